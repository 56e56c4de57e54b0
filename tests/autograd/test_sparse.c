/* SPDX-License-Identifier: Apache-2.0
 * Sparse tensors, and sparse gradients on their way to the leaf. */
#include <math.h>

#include <brigade/debug.h>
#include <brigade/sparse.h>

#include "tests/autograd/graph.h"
#include "tests/support/fail_alloc.h"

#define ROWS_N 6
#define WIDTH 3

static brg_tensor *ids_of(int ndim, const int64_t *shape, const int64_t *ids)
{
    return assert_brg_some(brg_from_data(BRG_DTYPE_I64, ndim, shape, ids));
}

/* Rows 4, 1, 4 of (6, 3): values 1, 2, ... */
static brg_tensor *three_rows(brg_dtype dtype)
{
    brg_tensor *indices = ids_of(BRG_SHAPE(1, 3), (int64_t[]){4, 1, 4});
    brg_tensor *values = leaf_from(1, BRG_SHAPE(3, WIDTH));
    return assert_brg_some(brg_sparse_coo(indices,
                                          brg_cast(brg_detach(values), dtype),
                                          BRG_SHAPE(ROWS_N, WIDTH)));
}

static brg_tensor *lookup(brg_tensor *weight, brg_tensor *ids, bool is_sparse)
{
    brg_embedding_options options = BRG_EMBEDDING_OPTIONS_INIT;
    options.sparse_grad = is_sparse;
    return assert_brg_some(brg_embedding_with(weight, ids, &options));
}

/* Equal elements; either may be sparse. */
static void assert_same(brg_tensor *a, brg_tensor *b)
{
    a = assert_brg_some(brg_to_dense(a));
    b = assert_brg_some(brg_to_dense(b));
    assert_int_equal(brg_tensor_numel(a), brg_tensor_numel(b));
    for (int64_t i = 0; i < brg_tensor_numel(a); i++)
        assert_float_equal(element(a, i), element(b, i), 1e-5);
}

/* ---- The tensor ---------------------------------------------------------------- */

static void test_sparse__parts_and_description(void **state)
{
    (void)state;
    brg_tensor *t = three_rows(BRG_DTYPE_F32);
    char text[64];
    brg_tensor_describe(t, text, sizeof text);
    assert_string_equal(text, "sparse f32[6, 3] nnz 3");
    brg_tensor_print(t, 4, text, sizeof text);
    assert_string_equal(text, "sparse f32[6, 3] nnz 3");
    assert_true(brg_tensor_is_sparse(t));
    assert_int_equal(brg_sparse_nnz(t), 3);
    assert_int_equal(brg_tensor_numel(t), 18);
    assert_null(brg_tensor_data(t));
    assert_false(brg_sparse_is_coalesced(t));
    assert_float_equal(element(brg_sparse_values(t), 3), 4, 0);
    brg_tensor *dense = brg_to_dense(t);
    assert_float_equal(element(dense, 12), 8, 0); /* 1 + 7 */
    assert_float_equal(element(dense, 3), 4, 0);
    assert_float_equal(element(dense, 0), 0, 0);
    assert_null(brg_sparse_values(dense));
    assert_int_equal(brg_sparse_nnz(dense), 0);
    assert_ptr_equal(brg_to_dense(dense), dense);
}

static void test_sparse__coalesce_sorts_and_adds_up(void **state)
{
    (void)state;
    brg_tensor *t = brg_sparse_coalesce(three_rows(BRG_DTYPE_F32));
    assert_true(brg_sparse_is_coalesced(assert_brg_some(t)));
    assert_int_equal(brg_sparse_nnz(t), 2);
    const int64_t *rows = brg_tensor_data(brg_sparse_indices(t));
    assert_int_equal(rows[0], 1);
    assert_int_equal(rows[1], 4);
    assert_float_equal(element(brg_sparse_values(t), 3), 8, 0);
    brg_tensor *again = brg_sparse_coalesce(t);
    assert_true(brg_tensor_shares_storage(brg_sparse_values(again),
                                          brg_sparse_values(t)));
}

/* 2048 + 1 + 1 in f16 is 2050, but 2048 if it is rounded on the way. */
static void test_sparse__sums_of_16_bits_are_rounded_once(void **state)
{
    (void)state;
    brg_tensor *values =
        brg_from_data(BRG_DTYPE_F32, BRG_SHAPE(3), (float[]){2048, 1, 1});
    brg_tensor *t =
        brg_sparse_coo(ids_of(BRG_SHAPE(1, 3), (int64_t[]){1, 1, 1}),
                       brg_cast(values, BRG_DTYPE_F16), BRG_SHAPE(2));
    brg_tensor *dense = brg_cast(brg_to_dense(t), BRG_DTYPE_F32);
    assert_float_equal(element(dense, 1), 2050, 0);
}

static void test_sparse__wrong_parts_are_named(void **state)
{
    (void)state;
    brg_tensor *values = brg_zeros(BRG_DTYPE_F32, BRG_SHAPE(2, 3));
    int64_t high[] = {1, 6}, low[] = {-1, 0};
    assert_brg_null_with(
        brg_sparse_coo(ids_of(BRG_SHAPE(1, 2), high), values, BRG_SHAPE(6, 3)),
        BRG_ERR_ARG, "index 6 of entry 1 in dim 0 is out of range [0, 6)");
    assert_brg_null(
        brg_sparse_coo(ids_of(BRG_SHAPE(1, 2), low), values, BRG_SHAPE(6, 3)),
        BRG_ERR_ARG);
    assert_brg_null_with(
        brg_sparse_coo(ids_of(BRG_SHAPE(2), low), values, BRG_SHAPE(6, 3)),
        BRG_ERR_SHAPE, "indices (input 0) is i64[2], expected 2 dims");
    assert_brg_null_with(
        brg_sparse_coo(ids_of(BRG_SHAPE(1, 2), low), values, BRG_SHAPE(6, 4)),
        BRG_ERR_SHAPE, "values (input 1) is f32[2, 3], expected shape [2, 4]");
    assert_brg_null_with(brg_sparse_coo(values, values, BRG_SHAPE(6, 3)),
                         BRG_ERR_DTYPE, "expected dtype i64");
    assert_brg_null_with(brg_sparse_coo(ids_of(BRG_SHAPE(1, 2), high),
                                        ids_of(BRG_SHAPE(2), high),
                                        BRG_SHAPE(6)),
                         BRG_ERR_DTYPE, "expected a float dtype");
    assert_brg_null_with(brg_sparse_coalesce(values), BRG_ERR_ARG,
                         "expected a sparse tensor");
}

static void test_sparse__dense_functions_refuse(void **state)
{
    (void)state;
    brg_tensor *t = three_rows(BRG_DTYPE_F32);
    brg_tensor *dense = brg_ones(BRG_DTYPE_F32, BRG_SHAPE(ROWS_N, WIDTH));
    float memory[ROWS_N * WIDTH];
    double value;
    const char *what = "sparse f32[6, 3] nnz 3";
    assert_brg_null_with(brg_mul(dense, t), BRG_ERR_UNSUPPORTED,
                         "mul: input 1 is sparse f32[6, 3] nnz 3");
    assert_brg_null_with(brg_sum_all(t), BRG_ERR_UNSUPPORTED, what);
    assert_brg_null_with(brg_reshape(t, BRG_SHAPE(-1)), BRG_ERR_UNSUPPORTED,
                         what);
    assert_brg_null(brg_as_strided(t, BRG_SCALAR, NULL, 0), BRG_ERR_ARG);
    assert_brg_fails_with(brg_fill_(t, 1), BRG_ERR_UNSUPPORTED, what);
    assert_brg_fails_with(brg_zero_(t), BRG_ERR_UNSUPPORTED, what);
    assert_brg_fails_with(brg_mul_scalar_(t, 2), BRG_ERR_UNSUPPORTED, what);
    assert_brg_fails_with(brg_copy_(t, dense), BRG_ERR_UNSUPPORTED, what);
    assert_brg_fails_with(brg_copy_(t, t), BRG_ERR_UNSUPPORTED, what);
    assert_brg_fails_with(brg_add_(t, dense, 1), BRG_ERR_UNSUPPORTED, what);
    assert_brg_fails_with(brg_tensor_item(t, &value), BRG_ERR_UNSUPPORTED,
                          "brg_tensor_item");
    assert_brg_fails_with(brg_tensor_read(t, memory, sizeof memory),
                          BRG_ERR_UNSUPPORTED, what);
    assert_brg_fails_with(brg_tensor_write(t, memory, sizeof memory),
                          BRG_ERR_UNSUPPORTED, what);
    brg_tensor *other = brg_ones(BRG_DTYPE_F32, BRG_SHAPE(WIDTH, ROWS_N));
    assert_brg_fails_with(brg_add_(other, t, 1), BRG_ERR_SHAPE,
                          "must be equal");
}

static void test_sparse__changes_dense_tensors_in_place(void **state)
{
    (void)state;
    brg_tensor *t = three_rows(BRG_DTYPE_F32);
    brg_tensor *base = brg_ones(BRG_DTYPE_F32, BRG_SHAPE(WIDTH, 2 * ROWS_N));
    /* (6, 3), every second column of the base, transposed */
    brg_tensor *dst = brg_as_strided(base, 2, (int64_t[]){ROWS_N, WIDTH},
                                     (int64_t[]){2, 2 * ROWS_N}, 0);
    uint32_t version = brg_tensor_version(dst);
    assert_brg_ok(brg_add_(dst, t, -0.5));
    assert_true(brg_tensor_version(dst) > version);
    assert_same(dst, brg_add_scalar(brg_mul_scalar(brg_to_dense(t), -0.5), 1));
    assert_float_equal(element(base, 1), 1, 0);
    assert_brg_ok(brg_copy_(dst, t));
    assert_same(dst, t);
    assert_float_equal(element(base, 9), 1, 0);
}

static void test_sparse__append_keeps_the_handle(void **state)
{
    (void)state;
    brg_tensor *t = three_rows(BRG_DTYPE_F32);
    brg_tensor *kept = brg_detach(t);
    uint32_t version = brg_tensor_version(t);
    assert_brg_ok(brg_add_(t, three_rows(BRG_DTYPE_F32), -2));
    assert_int_equal(brg_sparse_nnz(t), 6);
    assert_true(brg_tensor_version(t) > version);
    assert_int_equal(brg_sparse_nnz(kept), 3);
    assert_same(t, brg_mul_scalar(brg_to_dense(kept), -1));
    assert_brg_ok(brg_add_(t, t, 1)); /* itself */
    assert_same(t, brg_mul_scalar(brg_to_dense(kept), -2));
}

/* ---- Embedding --------------------------------------------------------------------- */

static const int64_t id_list[] = {4, 1, 4, 0, 2, 1};

static void test_sparse__embedding_gradient_equals_the_dense_one(void **state)
{
    (void)state;
    brg_tensor *a = leaf_from(1, BRG_SHAPE(ROWS_N, WIDTH));
    brg_tensor *b = leaf_from(1, BRG_SHAPE(ROWS_N, WIDTH));
    brg_tensor *ids = ids_of(BRG_SHAPE(2, 3), id_list);
    assert_brg_ok(brg_backward(brg_sum_all(brg_square(lookup(a, ids, true)))));
    assert_brg_ok(brg_backward(brg_sum_all(brg_square(lookup(b, ids, false)))));
    brg_tensor *grad = brg_tensor_grad(a);
    assert_true(brg_tensor_is_sparse(grad));
    assert_int_equal(brg_sparse_nnz(grad), 6);
    assert_memory_equal(brg_tensor_data(brg_sparse_indices(grad)), id_list,
                        sizeof id_list);
    assert_same(grad, brg_tensor_grad(b));
}

static void test_sparse__padding_gives_no_gradient(void **state)
{
    (void)state;
    brg_tensor *ids = brg_cast(ids_of(BRG_SHAPE(2, 3), id_list), BRG_DTYPE_I32);
    for (int is_sparse = 0; is_sparse < 2; is_sparse++) {
        brg_tensor *w = leaf_from(1, BRG_SHAPE(ROWS_N, WIDTH));
        brg_embedding_options options = BRG_EMBEDDING_OPTIONS_INIT;
        options.sparse_grad = is_sparse;
        options.padding_idx = 1;
        brg_tensor *y = brg_embedding_with(w, ids, &options);
        assert_float_equal(element(y, 3), 4, 0);
        assert_brg_ok(brg_backward(brg_sum_all(y)));
        brg_tensor *grad = brg_tensor_grad(w);
        assert_int_equal(brg_tensor_is_sparse(grad), is_sparse);
        assert_int_equal(brg_sparse_nnz(grad), is_sparse ? 4 : 0);
        grad = brg_to_dense(grad);
        assert_float_equal(element(grad, 4), 0, 0);
        assert_float_equal(element(grad, 12), 2, 0);
        options.padding_idx = ROWS_N;
        assert_brg_null_with(brg_embedding_with(w, ids, &options), BRG_ERR_ARG,
                             "padding_idx 6 is out of range [0, 6)");
    }
}

static void test_sparse__gradients_of_many_uses_add_up(void **state)
{
    (void)state;
    brg_tensor *ids = ids_of(BRG_SHAPE(6), id_list);
    brg_tensor *grads[2][2];
    for (int is_sparse = 0; is_sparse < 2; is_sparse++)
        for (int is_tied = 0; is_tied < 2; is_tied++) {
            brg_tensor *w = leaf_from(1, BRG_SHAPE(ROWS_N, WIDTH));
            brg_tensor *y = brg_add(lookup(w, ids, is_sparse),
                                    brg_square(lookup(w, ids, is_sparse)));
            if (is_tied) /* the same table makes logits */
                y = brg_linear(y, w, NULL);
            y = brg_add(brg_sum_all(y), brg_sum_all(lookup(w, ids, is_sparse)));
            assert_brg_ok(brg_backward(y));
            grads[is_sparse][is_tied] = brg_tensor_grad(w);
        }
    assert_true(brg_tensor_is_sparse(grads[1][0]));
    assert_int_equal(brg_sparse_nnz(grads[1][0]), 18);
    assert_false(brg_tensor_is_sparse(grads[1][1]));
    assert_same(grads[0][0], grads[1][0]);
    assert_same(grads[0][1], grads[1][1]);
}

static void test_sparse__a_gradient_for_a_dense_op_names_it(void **state)
{
    (void)state;
    brg_tensor *w = leaf_from(1, BRG_SHAPE(ROWS_N, WIDTH));
    brg_tensor *ids = ids_of(BRG_SHAPE(6), id_list);
    brg_tensor *y = lookup(brg_tanh(w), ids, true);
    assert_brg_fails_with(brg_backward(brg_sum_all(y)), BRG_ERR_UNSUPPORTED,
                          "backward of tanh");
}

/* ---- Arriving at the leaf ------------------------------------------------------------- */

typedef struct seen {
    const void *values;
    brg_tensor *kept;
    bool keeps_part;
} seen;

static brg_status look(brg_tensor *grad, brg_tensor **replacement, void *user)
{
    (void)replacement;
    seen *s = user;
    s->values = brg_tensor_data(brg_sparse_values(grad));
    if (s->keeps_part)
        s->kept = brg_retain(brg_sparse_values(grad));
    return BRG_OK;
}

static brg_status do_nothing(brg_tensor **grad_in, size_t n_in,
                             brg_tensor *const *grad_out, size_t n_out,
                             void *user)
{
    (void)grad_in, (void)n_in, (void)grad_out, (void)n_out, (void)user;
    return BRG_OK;
}

/* The gradient of an embedding of which a hook keeps what `s` says. */
static brg_tensor *arrived(seen *s, bool has_post_hook)
{
    brg_tensor *w = leaf_from(1, BRG_SHAPE(ROWS_N, WIDTH));
    brg_tensor *ids = ids_of(BRG_SHAPE(6), id_list);
    brg_node *node;
    assert_brg_ok(brg_tensor_add_hook(NULL, w, look, s, NULL));
    assert_brg_ok(brg_tensor_node(&node, w));
    if (has_post_hook)
        assert_brg_ok(
            brg_node_add_post_hook(NULL, node, do_nothing, NULL, NULL));
    brg_scope *scope = brg_scope_begin();
    brg_tensor *y = brg_square(lookup(w, ids, true));
    assert_brg_ok(brg_backward(brg_sum_all(y)));
    brg_scope_end(scope);
    brg_node_release(node);
    return brg_tensor_grad(w);
}

static void test_sparse__gradient_of_an_embedding_is_stolen(void **state)
{
    (void)state;
    for (int has_post_hook = 0; has_post_hook < 2; has_post_hook++) {
        seen s = {0};
        brg_tensor *grad = arrived(&s, has_post_hook);
        assert_ptr_equal(brg_tensor_data(brg_sparse_values(grad)), s.values);
    }
}

static void test_sparse__a_kept_part_is_not_stolen(void **state)
{
    (void)state;
    seen s = {.keeps_part = true};
    brg_tensor *grad = arrived(&s, false);
    assert_ptr_not_equal(brg_tensor_data(brg_sparse_values(grad)), s.values);
    assert_brg_ok(brg_fill_(brg_sparse_values(grad), 0));
    assert_float_equal(element(s.kept, 0), 26, 0);
    brg_release(s.kept);
}

static void test_sparse__another_dtype_is_cast(void **state)
{
    (void)state;
    brg_tensor *w = leaf_from(1, BRG_SHAPE(ROWS_N, WIDTH));
    brg_tensor *half = brg_cast(brg_detach(w), BRG_DTYPE_BF16);
    assert_brg_ok(brg_set_requires_grad(half, true));
    brg_tensor *g = three_rows(BRG_DTYPE_F32);
    assert_same(brg_sparse_cast(three_rows(BRG_DTYPE_F16), BRG_DTYPE_F32), g);
    assert_brg_fails_with(brg_tensor_set_grad(half, g), BRG_ERR_SHAPE,
                          "must be equal");
    assert_brg_ok(
        brg_tensor_set_grad(half, brg_sparse_cast(g, BRG_DTYPE_BF16)));
}

static void test_sparse__anomaly_mode_finds_nan(void **state)
{
    (void)state;
    DIVERGES_WHEN_COMPILED("anomaly mode looks at the ends of a plan");
    brg_tensor *w = leaf_from(1, BRG_SHAPE(ROWS_N, WIDTH));
    brg_tensor *ids = ids_of(BRG_SHAPE(6), id_list);
    brg_tensor *y = lookup(w, ids, true);
    brg_tensor *g = brg_full(BRG_DTYPE_F32, BRG_SHAPE(6, WIDTH), NAN);
    brg_backward_options options = BRG_BACKWARD_OPTIONS_INIT;
    options.grad_outputs = &g;
    brg_anomaly_mode_set(true);
    assert_brg_fails_with(brg_backward_with(&y, 1, &options), BRG_ERR_NAN,
                          "embedding_with");
    brg_anomaly_mode_set(false);
}

/* ---- Gradients of gradients -------------------------------------------------------------- */

/* d/dw of |d/dw sum(lookup(w)^3)|^2, by .grad or by brg_grad. */
static brg_tensor *second_gradient(bool is_sparse, int64_t padding)
{
    brg_tensor *w = leaf_from(-2, BRG_SHAPE(ROWS_N, WIDTH));
    brg_embedding_options options = BRG_EMBEDDING_OPTIONS_INIT;
    options.sparse_grad = is_sparse;
    options.padding_idx = padding;
    brg_tensor *y =
        brg_embedding_with(w, ids_of(BRG_SHAPE(6), id_list), &options);
    brg_tensor *loss = brg_sum_all(brg_mul(brg_square(y), y)), *first, *second;
    brg_backward_options again = BRG_BACKWARD_OPTIONS_INIT;
    again.create_graph = true;
    assert_brg_ok(brg_grad(&first, &loss, 1, &w, 1, &again));
    assert_int_equal(brg_tensor_is_sparse(first), is_sparse);
    assert_true(brg_requires_grad(first));
    /* A scale and a copy on the way, which are differentiated too. */
    if (is_sparse)
        first = brg_sparse_coalesce(brg_sparse_mul_scalar(first, 1.0));
    loss = brg_sum_all(brg_square(brg_to_dense(first)));
    assert_brg_ok(brg_grad(&second, &loss, 1, &w, 1, NULL));
    return second;
}

static void test_sparse__gradients_can_be_differentiated(void **state)
{
    (void)state;
    for (int64_t padding = -1; padding < 3; padding += 3)
        assert_same(second_gradient(true, padding),
                    second_gradient(false, padding));
}

static void test_sparse__recorded_gradients_are_replaced(void **state)
{
    (void)state;
    brg_tensor *w = leaf_from(1, BRG_SHAPE(ROWS_N, WIDTH));
    brg_tensor *ids = ids_of(BRG_SHAPE(6), id_list);
    brg_backward_options options = BRG_BACKWARD_OPTIONS_INIT;
    options.create_graph = true;
    brg_tensor *y = brg_sum_all(brg_square(lookup(w, ids, true)));
    assert_brg_ok(brg_backward_with(&y, 1, &options));
    brg_tensor *first = brg_retain(brg_tensor_grad(w));
    assert_true(brg_tensor_is_sparse(first) && brg_requires_grad(first));
    assert_brg_ok(brg_backward_with(&y, 1, &options));
    brg_tensor *both = brg_tensor_grad(w);
    assert_ptr_not_equal(both, first);
    assert_true(brg_tensor_is_sparse(both) && brg_requires_grad(both));
    assert_int_equal(brg_sparse_nnz(both), 12);
    brg_tensor *z = brg_sum_all(brg_square(brg_to_dense(both))), *grad;
    assert_brg_ok(brg_grad(&grad, &z, 1, &w, 1, NULL));
    /* Row 0 is used once: .grad = 4 w, so the gradient is 32 w. */
    assert_float_equal(element(brg_to_dense(grad), 1), 64, 1e-4);
    brg_release(first);
    assert_brg_ok(brg_tensor_set_grad(w, NULL)); /* breaks the cycle */
}

/* ---- Memory --------------------------------------------------------------------------------- */

/* Two backwards onto one table, sparse and dense, and in-place work. */
static brg_status steps(void *user)
{
    (void)user;
    brg_tensor *w = brg_zeros(BRG_DTYPE_F32, BRG_SHAPE(ROWS_N, WIDTH));
    brg_tensor *ids = brg_from_data(BRG_DTYPE_I64, BRG_SHAPE(6), id_list);
    brg_embedding_options options = BRG_EMBEDDING_OPTIONS_INIT;
    options.sparse_grad = true;
    BRG_TRY(brg_set_requires_grad(w, true));
    for (int i = 0; i < 2; i++) {
        brg_tensor *y = brg_embedding_with(w, ids, &options);
        BRG_TRY(brg_backward(brg_sum_all(brg_square(y))));
        options.padding_idx = 1;
    }
    if (!brg_sparse_coalesce(brg_sparse_copy(brg_tensor_grad(w))))
        return brg_error_code();
    BRG_TRY(brg_backward(brg_sum_all(brg_square(w))));
    return brg_copy_(brg_detach(w),
                     brg_sparse_coo(brg_unsqueeze(ids, 0),
                                    brg_embedding(brg_detach(w), ids),
                                    BRG_SHAPE(ROWS_N, WIDTH)));
}

static brg_status scoped_steps(void *user)
{
    brg_scope *scope = brg_scope_begin();
    brg_status status = scope ? steps(user) : BRG_ERR_NOMEM;
    brg_scope_end(scope);
    return status;
}

static void test_sparse__out_of_memory_leaves_nothing(void **state)
{
    (void)state;
    assert_oom_clean(scoped_steps, NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        scoped_test(test_sparse__parts_and_description),
        scoped_test(test_sparse__coalesce_sorts_and_adds_up),
        scoped_test(test_sparse__sums_of_16_bits_are_rounded_once),
        scoped_test(test_sparse__wrong_parts_are_named),
        scoped_test(test_sparse__dense_functions_refuse),
        scoped_test(test_sparse__changes_dense_tensors_in_place),
        scoped_test(test_sparse__append_keeps_the_handle),
        scoped_test(test_sparse__embedding_gradient_equals_the_dense_one),
        scoped_test(test_sparse__padding_gives_no_gradient),
        scoped_test(test_sparse__gradients_of_many_uses_add_up),
        scoped_test(test_sparse__a_gradient_for_a_dense_op_names_it),
        scoped_test(test_sparse__gradient_of_an_embedding_is_stolen),
        scoped_test(test_sparse__a_kept_part_is_not_stolen),
        scoped_test(test_sparse__another_dtype_is_cast),
        scoped_test(test_sparse__anomaly_mode_finds_nan),
        scoped_test(test_sparse__gradients_can_be_differentiated),
        scoped_test(test_sparse__recorded_gradients_are_replaced),
        cmocka_unit_test(test_sparse__out_of_memory_leaves_nothing),
    };
    fail_alloc_install();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
