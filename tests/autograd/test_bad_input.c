/* SPDX-License-Identifier: Apache-2.0
 * What users get wrong, in backward calls, custom functions, checkpoints and
 * hooks: an error that names it, and an engine that still works. And memory
 * running out anywhere in a forward and backward pass. */
#include <brigade/offload.h>
#include <brigade/recompute.h>

#include "tests/rows/rows.h"
#include "tests/support/fail_alloc.h"

/* The engine works, and no state of the thread is left changed. */
static void expect_usable(void)
{
    assert_true(brg_grad_mode());
    brg_tensor *x = leaf_full(3, BRG_SHAPE(2));
    backward_of_sum(brg_mul(x, x));
    expect_all(brg_tensor_grad(x), 6);
}

/* ---- Calls of backward --------------------------------------------------------- */

static brg_status backward_given(brg_tensor *y, brg_tensor *grad)
{
    brg_backward_options options = BRG_BACKWARD_OPTIONS_INIT;
    options.grad_outputs = &grad;
    return brg_backward_with(&y, 1, &options);
}

static void test_bad_input__gradients_given_to_backward(void **state)
{
    (void)state;
    brg_tensor *x = leaf_full(1, BRG_SHAPE(2, 3));
    brg_tensor *y = brg_exp(x);
    assert_brg_fails_with(brg_backward(y), BRG_ERR_SHAPE,
                          "implicitly created only for scalar");
    assert_brg_fails_with(
        backward_given(y, brg_ones(BRG_DTYPE_F32, BRG_SHAPE(3, 2))),
        BRG_ERR_SHAPE, "grad_outputs[0] is f32[3, 2], its output is f32[2, 3]");
    assert_brg_fails_with(
        backward_given(y, brg_ones(BRG_DTYPE_F64, BRG_SHAPE(2, 3))),
        BRG_ERR_SHAPE, "f64");
    brg_tensor *grads[1];
    assert_brg_fails(brg_grad(grads, &y, 1, &x, 0, NULL), BRG_ERR_ARG);
    assert_brg_fails(brg_grad(grads, NULL, 0, &x, 1, NULL), BRG_ERR_ARG);
    brg_backward_options options = {0};
    assert_brg_fails_with(brg_backward_with(&y, 1, &options), BRG_ERR_ARG,
                          "struct_size");
    assert_brg_fails_with(brg_backward(brg_ones(BRG_DTYPE_F32, BRG_SCALAR)),
                          BRG_ERR_STATE, "does not require grad");
    assert_brg_fails(brg_backward(brg_matmul(x, x)), BRG_ERR_SHAPE);
    assert_null(brg_tensor_grad(x));
    expect_usable();
}

static void test_bad_input__backward_twice(void **state)
{
    (void)state;
    brg_tensor *x = leaf_full(1, BRG_SHAPE(2));
    brg_tensor *loss = brg_sum_all(brg_exp(x));
    assert_brg_ok(brg_backward(loss));
    assert_brg_fails_with(brg_backward(loss), BRG_ERR_STATE,
                          "Trying to backward through the graph a second time");
    expect_all(brg_tensor_grad(x), 2.718281828);
    expect_usable();
}

/* ---- Custom functions -------------------------------------------------------------- */

FORWARD(first_forward)
{
    SAVE(ARG(0));
    OUT(0, brg_mul_scalar(ARG(0), 2));
    return BRG_OK;
}

BACKWARD(too_many_backward)
{
    SAVED(x, 0);
    gi[0] = gi[*n] = brg_mul(g[0], x);
    *n = *n + 1;
    return BRG_OK;
}

BACKWARD(too_few_backward)
{
    GRAD(0, brg_mul_scalar(g[0], 2));
    *n = 1;
    return BRG_OK;
}

BACKWARD(wrong_shape_backward)
{
    gi[0] = brg_ones(BRG_DTYPE_F32, BRG_SHAPE(5));
    return BRG_OK;
}

BACKWARD(grad_of_number_backward)
{
    gi[0] = gi[1] = g[0];
    return BRG_OK;
}

BACKWARD(failing_backward)
{
    return brg_error_set(BRG_ERR_CALLBACK, __FILE__, __LINE__, "as asked");
}

BACKWARD(right_backward)
{
    GRAD(0, brg_mul_scalar(g[0], 2));
    return BRG_OK;
}

/* (x, 7) through a function with this backward. */
static brg_tensor *loss_through(brg_tensor *x,
                                brg_status (*backward)(brg_context *,
                                                       brg_tensor *const *,
                                                       brg_tensor **, size_t *))
{
    brg_function *f = function_of("MyFn", first_forward, backward, 1);
    brg_value out[1];
    assert_brg_ok(APPLY(f, out, brg_value_tensor(x), brg_value_int(7)));
    brg_function_release(f);
    return brg_sum_all(out[0].as.tensor);
}

static void test_bad_input__gradients_of_a_function(void **state)
{
    (void)state;
    brg_tensor *x = leaf_full(1, BRG_SHAPE(2));
    assert_brg_fails_with(brg_backward(loss_through(x, too_many_backward)),
                          BRG_ERR_CALLBACK,
                          "Function MyFn returned an invalid number of "
                          "gradients - expected 2, but got 3");
    assert_brg_fails_with(brg_backward(loss_through(x, too_few_backward)),
                          BRG_ERR_CALLBACK, "expected 2, but got 1");
    assert_brg_fails_with(brg_backward(loss_through(x, wrong_shape_backward)),
                          BRG_ERR_SHAPE,
                          "invalid gradient at index 0 - got [5] but expected "
                          "shape compatible with [2]");
    assert_brg_fails_with(
        brg_backward(loss_through(x, grad_of_number_backward)),
        BRG_ERR_CALLBACK, "different than None at position 1");
    assert_brg_fails_with(brg_backward(loss_through(x, failing_backward)),
                          BRG_ERR_CALLBACK, "as asked");
    assert_non_null(strstr(brg_error_message(), "MyFn"));
    assert_brg_fails_with(brg_backward(loss_through(x, NULL)),
                          BRG_ERR_UNSUPPORTED, "has no backward");
    assert_null(brg_tensor_grad(x));
    assert_brg_ok(brg_backward(loss_through(x, right_backward)));
    expect_all(brg_tensor_grad(x), 2);
    expect_usable();
}

static void test_bad_input__once_differentiable_twice(void **state)
{
    (void)state;
    brg_function *f =
        new_function(.name = "Once", .n_outputs = 1, .forward = first_forward,
                     .backward = right_backward, .once_differentiable = true);
    brg_tensor *x = leaf_full(1, BRG_SHAPE(2)), *grad, *second;
    brg_tensor *h = brg_mul(x, x), *y = brg_sum_all(brg_exp(CALL(f, h)));
    brg_backward_options options = BRG_BACKWARD_OPTIONS_INIT;
    options.create_graph = true;
    assert_brg_ok(brg_grad(&grad, &y, 1, &x, 1, &options));
    brg_tensor *sum = brg_sum_all(grad);
    assert_brg_fails_with(brg_grad(&second, &sum, 1, &x, 1, NULL),
                          BRG_ERR_STATE, "once_differentiable");
    assert_null(second);
    brg_function_release(f);
    expect_usable();
}

FORWARD(failing_forward)
{
    SAVE(ARG(0));
    OUT(0, brg_exp(ARG(0)));
    return brg_error_set(BRG_ERR_CALLBACK, __FILE__, __LINE__, "midway");
}

FORWARD(empty_forward)
{
    out[0] = brg_value_tensor(NULL);
    return BRG_OK;
}

static void test_bad_input__a_forward_that_fails(void **state)
{
    (void)state;
    brg_tensor *x = leaf_full(1, BRG_SHAPE(2));
    brg_function *f = function_of("Fails", failing_forward, NULL, 1);
    const brg_value arg = brg_value_tensor(x);
    assert_brg_null_with(brg_function_call(f, &arg, 1), BRG_ERR_CALLBACK,
                         "midway");
    brg_function_release(f);
    f = function_of("Empty", empty_forward, NULL, 1);
    assert_brg_null(brg_function_call(f, &arg, 1), BRG_ERR_ARG);
    brg_function_release(f);
    expect_usable();
}

/* ---- Changes in place, views, returned inputs ------------------------------------------ */

FORWARD(unreturned_forward)
{
    BRG_TRY(brg_context_mark_dirty(ctx, &ARG(0), 1));
    OUT(0, brg_mul_scalar(ARG(0), 2));
    return BRG_OK;
}

FORWARD(dirty_pair_forward)
{
    BRG_TRY(brg_mul_scalar_(ARG(0), 2));
    BRG_TRY(brg_context_mark_dirty(ctx, &ARG(0), 1));
    OUT(0, ARG(0));
    OUT(1, brg_mul_scalar(ARG(0), 2));
    return BRG_OK;
}

FORWARD(views_forward)
{
    OUT(0, brg_select(ARG(0), 0, 0));
    OUT(1, brg_select(ARG(0), 0, 1));
    return BRG_OK;
}

BACKWARD(views_backward)
{
    GRAD(0, brg_stack((brg_tensor *[]){g[0], g[1]}, 2, 0));
    return BRG_OK;
}

FORWARD(same_forward)
{
    OUT(0, ARG(0));
    return BRG_OK;
}

static brg_status same_setup(brg_context *ctx, const brg_value *args, size_t n,
                             const brg_value *outputs)
{
    (void)n;
    (void)outputs;
    return brg_context_save(ctx, &args[0].as.tensor, 1);
}

static brg_status apply_one(const brg_function *f, brg_tensor *x)
{
    brg_value out[2];
    return APPLY(f, out, brg_value_tensor(x));
}

static void test_bad_input__changes_in_place_of_a_function(void **state)
{
    (void)state;
    brg_tensor *leaf = leaf_full(1, BRG_SHAPE(2, 2));
    brg_tensor *x = brg_mul_scalar(leaf, 1);
    brg_function *f = function_of("Forgets", unreturned_forward, NULL, 1);
    assert_brg_fails_with(apply_one(f, x), BRG_ERR_CALLBACK,
                          "Some elements marked as dirty during the forward "
                          "method were not returned as output");
    brg_function_release(f);
    f = function_of("Dirty", dirty_pair_forward, NULL, 2);
    assert_brg_fails_with(apply_one(f, leaf), BRG_ERR_STATE,
                          "a leaf Variable that requires grad has been used in "
                          "an in-place operation");
    assert_brg_fails_with(apply_one(f, brg_select(x, 0, 0)),
                          BRG_ERR_UNSUPPORTED,
                          "a view was changed in place by a function of 2 "
                          "outputs");
    brg_function_release(f);
    expect_usable();
}

static void test_bad_input__views_of_a_function_stay_as_they_are(void **state)
{
    (void)state;
    brg_tensor *x = leaf_full(1, BRG_SHAPE(2, 2));
    brg_function *f = function_of("Views", views_forward, views_backward, 2);
    brg_value out[2];
    assert_brg_ok(APPLY(f, out, brg_value_tensor(brg_mul_scalar(x, 1))));
    assert_brg_fails_with(brg_mul_scalar_(out[0].as.tensor, 2), BRG_ERR_STATE,
                          "view that a custom function gave of its argument");
    assert_brg_fails_with(brg_zero_(brg_narrow(out[1].as.tensor, 0, 0, 1)),
                          BRG_ERR_STATE, "modified in place");
    brg_tensor *sum = brg_add(out[0].as.tensor, out[1].as.tensor);
    assert_brg_ok(brg_mul_scalar_(sum, 3)); /* no view */
    backward_of_sum(sum);
    expect_all(brg_tensor_grad(x), 3);
    brg_function_release(f);
    expect_usable();
}

static void test_bad_input__a_returned_input_is_not_saved_later(void **state)
{
    (void)state;
    brg_function *f =
        new_function(.name = "Same", .n_outputs = 1, .forward = same_forward,
                     .setup_context = same_setup);
    assert_brg_fails_with(apply_one(f, leaf_full(1, BRG_SHAPE(2))),
                          BRG_ERR_CALLBACK, "return and save a view");
    brg_function_release(f);
    expect_usable();
}

static void test_bad_input__a_leaf_that_became_a_result(void **state)
{
    (void)state;
    brg_tensor *x = brg_ones(BRG_DTYPE_F32, BRG_SHAPE(2));
    brg_tensor *w = leaf_full(3, BRG_SHAPE(2));
    assert_brg_ok(brg_set_requires_grad(x, true));
    brg_tensor *loss = brg_sum_all(brg_exp(x)); /* x is its leaf */
    bool mode = brg_grad_mode_set(false);
    assert_brg_ok(brg_set_requires_grad(x, false));
    brg_grad_mode_set(mode);
    assert_brg_ok(brg_add_(x, w, 1.0)); /* x has a history now */
    assert_brg_fails_with(brg_backward(loss), BRG_ERR_STATE,
                          "leaf variable has been moved into the graph "
                          "interior");
    assert_null(brg_tensor_grad(w));
    expect_usable();
}

/* ---- Hooks and pack hooks -------------------------------------------------------------- */

static brg_status fail_hook(brg_tensor *grad, brg_tensor **replacement,
                            void *user)
{
    (void)grad;
    (void)replacement;
    if (++*(int *)user == 2)
        return brg_error_set(BRG_ERR_CALLBACK, __FILE__, __LINE__, "no more");
    return BRG_OK;
}

/* What was accumulated before stays; a retained graph can be used again. */
static void test_bad_input__a_hook_that_fails_midway(void **state)
{
    (void)state;
    int n_calls = 0;
    brg_tensor *x = leaf_full(2, BRG_SHAPE(2)), *w = leaf_full(5, BRG_SHAPE(2));
    brg_tensor *h = brg_mul_scalar(x, 3);
    brg_tensor *loss = brg_sum_all(brg_mul(h, w));
    assert_brg_ok(brg_tensor_add_hook(NULL, loss, fail_hook, &n_calls, NULL));
    assert_brg_ok(brg_tensor_add_hook(NULL, h, fail_hook, &n_calls, NULL));
    brg_backward_options options = BRG_BACKWARD_OPTIONS_INIT;
    options.retain_graph = true;
    assert_brg_fails_with(brg_backward_with(&loss, 1, &options),
                          BRG_ERR_CALLBACK, "no more");
    expect_all(brg_tensor_grad(w), 6);
    assert_null(brg_tensor_grad(x));
    assert_brg_ok(brg_backward(loss));
    expect_all(brg_tensor_grad(w), 12);
    expect_all(brg_tensor_grad(x), 15);
    expect_usable();
}

static brg_status failing_pack(brg_tensor *t, void **packed, void *user)
{
    (void)t;
    (void)packed;
    (void)user;
    return brg_error_set(BRG_ERR_CALLBACK, __FILE__, __LINE__, "pack failed");
}

static brg_status changing_pack(brg_tensor *t, void **packed, void *user)
{
    (void)user;
    *packed = NULL;
    return brg_mul_scalar_(t, 2);
}

static brg_status failing_unpack(void *packed, brg_tensor **out, void *user)
{
    (void)packed;
    (void)out;
    (void)user;
    return brg_error_set(BRG_ERR_CALLBACK, __FILE__, __LINE__, "unpack failed");
}

static brg_status nothing_pack(brg_tensor *t, void **packed, void *user)
{
    (void)t;
    (void)user;
    *packed = NULL;
    return BRG_OK;
}

static brg_status nothing_unpack(void *packed, brg_tensor **out, void *user)
{
    (void)packed;
    (void)user;
    *out = NULL;
    return BRG_OK;
}

/* Another shape than (2), and another dtype than f32. */
static brg_status longer_unpack(void *packed, brg_tensor **out, void *user)
{
    (void)packed;
    (void)user;
    *out = brg_ones(BRG_DTYPE_F32, BRG_SHAPE(3));
    return BRG_OK;
}

static brg_status wider_unpack(void *packed, brg_tensor **out, void *user)
{
    (void)packed;
    (void)user;
    *out = brg_ones(BRG_DTYPE_F64, BRG_SHAPE(2));
    return BRG_OK;
}

static brg_tensor *
exp_packed(brg_tensor *x, brg_status (*pack)(brg_tensor *, void **, void *),
           brg_status (*unpack)(void *, brg_tensor **, void *))
{
    brg_pack_hooks hooks = BRG_PACK_HOOKS_INIT;
    hooks.pack = pack;
    hooks.unpack = unpack;
    assert_brg_ok(brg_pack_hooks_push(&hooks));
    brg_tensor *y = brg_exp(x);
    assert_brg_ok(brg_pack_hooks_pop());
    return y;
}

static void test_bad_input__pack_hooks_that_fail(void **state)
{
    (void)state;
    brg_tensor *x = leaf_full(1, BRG_SHAPE(2));
    assert_brg_null_with(exp_packed(x, failing_pack, failing_unpack),
                         BRG_ERR_CALLBACK, "pack failed");
    assert_brg_null_with(exp_packed(x, changing_pack, failing_unpack),
                         BRG_ERR_CALLBACK, "modifying its input");
    brg_tensor *y = exp_packed(x, nothing_pack, failing_unpack);
    assert_brg_fails_with(brg_backward(brg_sum_all(y)), BRG_ERR_CALLBACK,
                          "unpack failed");
    y = exp_packed(x, nothing_pack, nothing_unpack);
    assert_brg_fails_with(brg_backward(brg_sum_all(y)), BRG_ERR_CALLBACK,
                          "gave back nothing");
    y = exp_packed(x, nothing_pack, longer_unpack);
    assert_brg_fails_with(brg_backward(brg_sum_all(y)), BRG_ERR_CALLBACK,
                          "another shape or dtype than was packed");
    y = exp_packed(x, nothing_pack, wider_unpack);
    assert_brg_fails_with(brg_backward(brg_sum_all(y)), BRG_ERR_CALLBACK,
                          "another shape or dtype than was packed");
    assert_null(brg_tensor_grad(x));
    assert_brg_fails(brg_pack_hooks_pop(), BRG_ERR_STATE);
    expect_usable();
}

/* ---- Checkpoints -------------------------------------------------------------------------- */

typedef struct changing {
    int n_runs;
    bool has_more_ops;
} changing;

static brg_status changing_stretch(brg_tensor *const *in, brg_tensor **out,
                                   void *user)
{
    changing *c = user;
    bool is_second = ++c->n_runs > 1;
    brg_tensor *x = in[0];
    if (is_second && c->has_more_ops)
        x = brg_sin(x);
    else if (is_second)
        x = brg_narrow(x, 0, 0, 1);
    out[0] = brg_exp(brg_sin(x));
    return BRG_OK;
}

static void test_bad_input__a_checkpoint_that_changes(void **state)
{
    (void)state;
    for (int more = 0; more < 2; more++) {
        brg_scope *scope = brg_scope_begin();
        changing c = {0, more};
        brg_tensor *x = leaf_full(1, BRG_SHAPE(4)), *y;
        assert_brg_ok(brg_recompute(&y, changing_stretch, &c, &x, 1, NULL));
        assert_brg_fails_with(brg_backward(brg_sum_all(y)), BRG_ERR_MISMATCH,
                              more ? "different number of tensors"
                                   : "different metadata");
        assert_null(brg_tensor_grad(x));
        brg_scope_end(scope);
    }
    expect_usable();
}

/* ---- Out of memory ---------------------------------------------------------------------------- */

static brg_status stretch(brg_tensor *const *in, brg_tensor **out, void *user)
{
    brg_value args[2] = {brg_value_tensor(in[0]), brg_value_int(1)};
    out[0] = brg_mul(brg_sin(in[0]), brg_function_call(user, args, 2));
    return out[0] ? BRG_OK : brg_error_code();
}

static brg_status scale_hook(brg_tensor *grad, brg_tensor **replacement,
                             void *user)
{
    (void)user;
    *replacement = brg_mul_scalar(grad, 2);
    return *replacement ? BRG_OK : brg_error_code();
}

static brg_status forward_backward(brg_tensor *x, const brg_function *f,
                                   bool is_reentrant)
{
    brg_recompute_options options = BRG_RECOMPUTE_OPTIONS_INIT;
    options.is_reentrant = is_reentrant;
    brg_tensor *h = brg_mul_scalar(x, 2), *y;
    BRG_TRY(h ? brg_mul_scalar_(brg_select(h, 0, 1), 3) : brg_error_code());
    BRG_TRY(brg_tensor_add_hook(NULL, h, scale_hook, NULL, NULL));
    BRG_TRY(brg_recompute(&y, stretch, (void *)f, &h, 1, &options));
    brg_status status = brg_offload_begin(NULL);
    if (status == BRG_OK) {
        const brg_value args[2] = {brg_value_tensor(brg_exp(y)),
                                   brg_value_int(1)};
        y = args[0].as.tensor ? brg_function_call(f, args, 2) : NULL;
        status = brg_offload_end();
    }
    return status == BRG_OK ? brg_backward(brg_mean_all(y)) : status;
}

static brg_status step(void *user)
{
    brg_function_def def = BRG_FUNCTION_DEF_INIT;
    def.name = "Twice";
    def.n_outputs = 1;
    def.forward = first_forward;
    def.backward = right_backward;
    brg_function *f;
    BRG_TRY(brg_function_create(&f, &def));
    brg_scope *scope = brg_scope_begin();
    brg_tensor *x = scope ? brg_ones(BRG_DTYPE_F32, BRG_SHAPE(3, 4)) : NULL;
    brg_status status = x ? brg_set_requires_grad(x, true) : brg_error_code();
    if (status == BRG_OK)
        status = forward_backward(x, f, *(bool *)user);
    brg_scope_end(scope);
    brg_function_release(f);
    return status;
}

static void test_bad_input__out_of_memory(void **state)
{
    (void)state;
    for (int i = 0; i < 2; i++) {
        bool is_reentrant = i;
        assert_oom_clean(step, &is_reentrant);
    }
    brg_scope *scope = brg_scope_begin();
    expect_usable();
    brg_scope_end(scope);
}

int main(void)
{
    fail_alloc_install();
    const struct CMUnitTest tests[] = {
        scoped_test(test_bad_input__gradients_given_to_backward),
        scoped_test(test_bad_input__backward_twice),
        scoped_test(test_bad_input__gradients_of_a_function),
        scoped_test(test_bad_input__once_differentiable_twice),
        scoped_test(test_bad_input__a_forward_that_fails),
        scoped_test(test_bad_input__changes_in_place_of_a_function),
        scoped_test(test_bad_input__views_of_a_function_stay_as_they_are),
        scoped_test(test_bad_input__a_returned_input_is_not_saved_later),
        scoped_test(test_bad_input__a_leaf_that_became_a_result),
        scoped_test(test_bad_input__a_hook_that_fails_midway),
        scoped_test(test_bad_input__pack_hooks_that_fail),
        scoped_test(test_bad_input__a_checkpoint_that_changes),
        cmocka_unit_test(test_bad_input__out_of_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
