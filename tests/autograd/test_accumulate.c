/* SPDX-License-Identifier: Apache-2.0
 * How a gradient becomes .grad: stolen, copied, added; and its layout. */
#include <brigade/ext/op.h>

#include "core/autograd/node.h"
#include "tests/autograd/graph.h"

typedef struct seen {
    const void *data;
    brg_tensor *kept;
    bool keeps;
} seen;

static brg_status look(brg_tensor **grads, size_t n, void *user)
{
    (void)n;
    seen *s = user;
    s->data = brg_tensor_data(grads[0]);
    if (s->keeps)
        s->kept = brg_retain(grads[0]);
    return BRG_OK;
}

static void test_accumulate__fresh_gradient_is_stolen(void **state)
{
    (void)state;
    brg_tensor *x = leaf_from(2, BRG_SHAPE(4, 4));
    brg_tensor *y = brg_sum_all(brg_mul(x, x));
    seen s = {0};
    brg_node *node;
    assert_brg_ok(brg_tensor_node(&node, x));
    assert_brg_ok(brg_node_add_pre_hook(NULL, node, look, &s, NULL));
    assert_brg_ok(brg_backward(y));
    brg_node_release(node);
    assert_ptr_equal(brg_tensor_data(brg_tensor_grad(x)), s.data);
    assert_false(brg_requires_grad(brg_tensor_grad(x)));
}

static void test_accumulate__a_gradient_somebody_keeps_is_copied(void **state)
{
    (void)state;
    brg_tensor *x = leaf_from(2, BRG_SHAPE(4, 4));
    brg_tensor *y = brg_sum_all(brg_mul(x, x));
    seen s = {.keeps = true};
    brg_node *node;
    assert_brg_ok(brg_tensor_node(&node, x));
    assert_brg_ok(brg_node_add_pre_hook(NULL, node, look, &s, NULL));
    assert_brg_ok(brg_backward(y));
    brg_node_release(node);
    brg_tensor *grad = brg_tensor_grad(x);
    assert_ptr_not_equal(brg_tensor_data(grad), s.data);
    assert_brg_ok(brg_fill_(grad, 0));
    assert_float_equal(element(s.kept, 3), 10, 0);
    brg_release(s.kept);
}

static void test_accumulate__aliased_gradients_are_not_shared(void **state)
{
    (void)state;
    brg_tensor *a = leaf_from(1, BRG_SHAPE(3)), *b = leaf_from(2, BRG_SHAPE(3));
    /* The gradient of both summands is one tensor. */
    assert_brg_ok(brg_backward(brg_sum_all(brg_mul_scalar(brg_add(a, b), 2))));
    assert_false(
        brg_tensor_shares_storage(brg_tensor_grad(a), brg_tensor_grad(b)));
    assert_brg_ok(brg_fill_(brg_tensor_grad(a), 0));
    assert_float_equal(element(brg_tensor_grad(b), 0), 2, 0);
}

static void test_accumulate__second_gradient_is_added_in_place(void **state)
{
    (void)state;
    brg_tensor *x = leaf_from(2, BRG_SHAPE(3));
    assert_brg_ok(brg_backward(brg_sum_all(brg_mul(x, x))));
    brg_tensor *grad = brg_tensor_grad(x);
    const void *data = brg_tensor_data(grad);
    assert_brg_ok(brg_backward(brg_sum_all(brg_mul(x, x))));
    assert_ptr_equal(brg_tensor_grad(x), grad);
    assert_ptr_equal(brg_tensor_data(grad), data);
    assert_float_equal(element(grad, 2), 16, 0);
}

static void test_accumulate__recorded_gradient_is_replaced(void **state)
{
    (void)state;
    brg_tensor *x = leaf_from(2, BRG_SHAPE(3));
    brg_backward_options options = BRG_BACKWARD_OPTIONS_INIT;
    options.create_graph = true;
    brg_tensor *y = brg_sum_all(brg_mul(x, x));
    assert_brg_ok(brg_backward_with(&y, 1, &options));
    brg_tensor *first = brg_retain(brg_tensor_grad(x));
    assert_true(brg_requires_grad(first));
    assert_brg_ok(brg_backward_with(&y, 1, &options));
    assert_ptr_not_equal(brg_tensor_grad(x), first);
    assert_true(brg_requires_grad(brg_tensor_grad(x)));
    assert_float_equal(element(brg_tensor_grad(x), 0), 8, 0);
    brg_release(first);
    assert_brg_ok(brg_tensor_set_grad(x, NULL)); /* breaks the cycle */
}

static void check_strides(brg_tensor *leaf, int64_t s0, int64_t s1)
{
    brg_tensor *y = brg_sum_all(brg_mul(brg_mul(leaf, leaf), leaf));
    assert_brg_ok(brg_backward(y));
    const int64_t *strides = brg_tensor_strides(brg_tensor_grad(leaf));
    assert_int_equal(strides[0], s0);
    assert_int_equal(strides[1], s1);
    assert_float_equal(element(brg_tensor_grad(leaf), 1),
                       3 * element(leaf, 1) * element(leaf, 1), 1e-4);
}

static void test_accumulate__gradient_takes_the_leafs_strides(void **state)
{
    (void)state;
    brg_tensor *base = leaf_from(1, BRG_SHAPE(3, 4));
    brg_tensor *turned =
        brg_as_strided(base, 2, (int64_t[]){4, 3}, (int64_t[]){1, 4}, 0);
    assert_brg_ok(brg_set_requires_grad(turned, true));
    check_strides(turned, 1, 4);
}

static void
test_accumulate__leaf_with_gaps_gets_a_row_major_gradient(void **state)
{
    (void)state;
    brg_tensor *base = leaf_from(1, BRG_SHAPE(4, 4));
    brg_tensor *every_second =
        brg_as_strided(base, 2, (int64_t[]){2, 2}, (int64_t[]){8, 2}, 0);
    assert_brg_ok(brg_set_requires_grad(every_second, true));
    check_strides(every_second, 2, 1);
}

/* Recorded gradients obey the contract, too. */
static void test_accumulate__a_recorded_gradient_obeys_the_layout(void **state)
{
    (void)state;
    static const int64_t shape[2][2] = {{4, 3}, {2, 2}};
    static const int64_t leaf_stride[2][2] = {{1, 4}, {8, 2}};
    static const int64_t want[2][2] = {{1, 4}, {2, 1}};
    for (int k = 0; k < 2; k++) {
        brg_tensor *base = leaf_from(1, BRG_SHAPE(4, 4));
        brg_tensor *leaf = brg_as_strided(base, 2, shape[k], leaf_stride[k], 0);
        assert_brg_ok(brg_set_requires_grad(leaf, true));
        brg_backward_options options = BRG_BACKWARD_OPTIONS_INIT;
        options.create_graph = true;
        brg_tensor *y = brg_sum_all(brg_mul(brg_mul(leaf, leaf), leaf));
        assert_brg_ok(brg_backward_with(&y, 1, &options));
        brg_tensor *grad = brg_retain(brg_tensor_grad(leaf)), *second;
        assert_brg_ok(brg_tensor_set_grad(leaf, NULL)); /* breaks the cycle */
        assert_int_equal(brg_tensor_strides(grad)[0], want[k][0]);
        assert_int_equal(brg_tensor_strides(grad)[1], want[k][1]);
        assert_true(brg_requires_grad(grad));
        brg_tensor *sum = brg_sum_all(grad);
        assert_brg_ok(brg_grad(&second, &sum, 1, &leaf, 1, NULL));
        for (int64_t i = 0; i < brg_tensor_numel(leaf); i++) {
            double at = element(leaf, i);
            assert_float_equal(element(grad, i), 3 * at * at, 1e-3);
            assert_float_equal(element(second, i), 6 * at, 1e-3);
        }
        brg_release(grad);
    }
}

static void test_accumulate__a_leaf_of_no_gradient_stays_null(void **state)
{
    (void)state;
    brg_tensor *x = leaf_from(1, BRG_SHAPE(2)), *w = leaf_from(1, BRG_SHAPE(2));
    (void)brg_mul(x, w);
    assert_brg_ok(brg_backward(brg_sum_all(brg_mul(x, x))));
    assert_null(brg_tensor_grad(w));
}

static void test_accumulate__set_grad_must_fit(void **state)
{
    (void)state;
    brg_tensor *x = leaf_from(1, BRG_SHAPE(2));
    assert_brg_fails_with(
        brg_tensor_set_grad(x, brg_zeros(BRG_DTYPE_F32, BRG_SHAPE(3))),
        BRG_ERR_SHAPE, "must be equal");
    assert_brg_fails_with(brg_set_requires_grad(brg_mul(x, x), false),
                          BRG_ERR_STATE, "computed by mul");
    assert_brg_fails_with(
        brg_set_requires_grad(brg_zeros(BRG_DTYPE_I64, BRG_SHAPE(3)), true),
        BRG_ERR_DTYPE, "only floats");
}

/* ---- Kept by somebody else -------------------------------------------------------- */

static brg_status keep_grad(brg_tensor *grad, brg_tensor **replacement,
                            void *user)
{
    (void)replacement;
    *(brg_tensor **)user = brg_retain(grad);
    return BRG_OK;
}

static brg_status see_nothing(brg_tensor **grad_in, size_t n_in,
                              brg_tensor *const *grad_out, size_t n_out,
                              void *user)
{
    (void)grad_in, (void)n_in, (void)grad_out, (void)n_out, (void)user;
    return BRG_OK;
}

/* Post-hooks see the gradient without a reference of their own: one that
 * somebody keeps is not taken for theirs. */
static void test_accumulate__a_kept_gradient_is_not_taken(void **state)
{
    (void)state;
    for (int has_post_hook = 0; has_post_hook < 2; has_post_hook++) {
        brg_tensor *x = leaf_from(1, BRG_SHAPE(3)), *kept = NULL;
        brg_node *node;
        assert_brg_ok(brg_tensor_add_hook(NULL, x, keep_grad, &kept, NULL));
        assert_brg_ok(brg_tensor_node(&node, x));
        if (has_post_hook)
            assert_brg_ok(
                brg_node_add_post_hook(NULL, node, see_nothing, NULL, NULL));
        assert_brg_ok(brg_backward(brg_sum_all(brg_mul_scalar(x, 2))));
        assert_brg_ok(brg_zero_(brg_tensor_grad(x)));
        assert_float_equal(element(kept, 1), 2, 0);
        brg_release(kept);
        brg_node_release(node);
    }
}

/* ---- In a bucket ------------------------------------------------------------------ */

static brg_status sum_infer(brg_op_call *call)
{
    const brg_tensor *x = call->in[0];
    call->info[0].dtype = brg_tensor_dtype(x);
    call->info[0].ndim = brg_tensor_ndim(x);
    memcpy(call->info[0].shape, brg_tensor_shape(x),
           (size_t)brg_tensor_ndim(x) * sizeof(int64_t));
    return BRG_OK;
}

static brg_status sum_run(brg_op_call *call)
{
    const float *a = brg_tensor_data(call->in[0]);
    const float *b = brg_tensor_data(call->in[1]);
    float *out = brg_tensor_data(call->out[0]);
    for (int64_t i = 0; i < brg_tensor_numel(call->out[0]); i++)
        out[i] = 3 * (a[i] + b[i]);
    return BRG_OK;
}

/* Both gradients are one tensor, made for the first. */
static brg_status sum_vjp(brg_vjp *v)
{
    BRG_VJP_SET(v, 0, brg_mul_scalar(v->grad_out[0], 3));
    v->grad_in[1] = v->grad_in[0];
    return BRG_OK;
}

static const brg_op sum_op = {
    .abi = BRG_OP_ABI,
    .struct_size = sizeof(brg_op),
    .name = "test.sum",
    .n_in = 2,
    .n_out = 1,
    .n_diff_out = 1,
    .infer = sum_infer,
    .run[BRG_DEVICE_CPU] = sum_run,
    .vjp = sum_vjp,
};

static brg_status reduce_in_place(brg_tensor *leaf, void *user)
{
    ++*(int *)user;
    return brg_fill_(brg_tensor_grad(leaf), 1000);
}

/* As soon as the first leaf has its gradient, its bucket is reduced; what flows
 * on to the second must not change with it. */
static void
test_accumulate__what_lies_in_a_bucket_is_apart_from_the_rest(void **state)
{
    (void)state;
    int n_reduced = 0;
    brg_tensor *bucket = brg_zeros(BRG_DTYPE_F32, BRG_SHAPE(3));
    brg_tensor *p = leaf_from(1, BRG_SHAPE(3)), *w = leaf_from(2, BRG_SHAPE(3));
    brg_tensor *in[2] = {p, brg_mul_scalar(w, 5)}, *y;
    assert_brg_ok(brg_tensor_add_post_accumulate_hook(NULL, p, reduce_in_place,
                                                      &n_reduced, NULL));
    brg__autograd_of(p)->home = bucket;
    assert_brg_ok(brg_op_apply(&sum_op, 2, in, NULL, &y));
    assert_brg_ok(brg_backward(brg_sum_all(y)));
    assert_int_equal(n_reduced, 1);
    if (!is_compiled_run()) /* a plan places no value that has other users */
        assert_ptr_equal(brg_tensor_grad(p), bucket);
    for (int i = 0; i < 3; i++) {
        assert_float_equal(element(brg_tensor_grad(p), i), 1000, 0);
        assert_float_equal(element(brg_tensor_grad(w), i), 15, 0);
    }
    brg__autograd_of(p)->home = NULL;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        scoped_test(test_accumulate__a_kept_gradient_is_not_taken),
        scoped_test(test_accumulate__fresh_gradient_is_stolen),
        scoped_test(test_accumulate__a_gradient_somebody_keeps_is_copied),
        scoped_test(test_accumulate__aliased_gradients_are_not_shared),
        scoped_test(test_accumulate__second_gradient_is_added_in_place),
        scoped_test(test_accumulate__recorded_gradient_is_replaced),
        scoped_test(test_accumulate__gradient_takes_the_leafs_strides),
        scoped_test(test_accumulate__leaf_with_gaps_gets_a_row_major_gradient),
        scoped_test(test_accumulate__a_recorded_gradient_obeys_the_layout),
        scoped_test(test_accumulate__a_leaf_of_no_gradient_stays_null),
        scoped_test(test_accumulate__set_grad_must_fit),
        scoped_test(
            test_accumulate__what_lies_in_a_bucket_is_apart_from_the_rest),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
