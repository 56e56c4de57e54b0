/* SPDX-License-Identifier: Apache-2.0
 * Rows of the suite `backward` about what runs beside the gradients: final
 * callbacks, side effects of a forward, sizes that change, backwards inside
 * functions and ops. */
#include <brigade/ext/op.h>

#include "tests/rows/both.h"

/* ---- A backward that queues a final callback ------------------------------------ */

typedef struct callbacks {
    char order[64];
    bool fails; /* the backward, after it has queued */
} callbacks;

static void add_order(callbacks *c, const char *word)
{
    size_t n = strlen(c->order);
    snprintf(c->order + n, sizeof c->order - n, "%s ", word);
}

static brg_status on_final(void *user)
{
    add_order(user, "final");
    return BRG_OK;
}

static brg_status on_leaf(brg_tensor *leaf, void *user)
{
    (void)leaf;
    add_order(user, "leaf");
    return BRG_OK;
}

FORWARD(double_forward)
{
    OUT(0, brg_mul_scalar(ARG(0), 2));
    return BRG_OK;
}

BACKWARD(queueing_backward)
{
    callbacks *c = brg_context_user(ctx);
    add_order(c, "backward");
    BRG_TRY(brg_queue_final_callback(on_final, c));
    if (c->fails)
        return brg_error_set(BRG_ERR_CALLBACK, __FILE__, __LINE__, "as asked");
    GRAD(0, brg_mul_scalar(g[0], 2));
    return BRG_OK;
}

static brg_function *queueing_function(callbacks *c)
{
    return new_function(.name = "Queues", .n_outputs = 1,
                        .forward = double_forward,
                        .backward = queueing_backward, .user = c);
}

static void callback_body(yields *y)
{
    callbacks c = {.order = ""};
    brg_function *f = queueing_function(&c);
    brg_tensor *x = leaf_full(3, BRG_SHAPE(4));
    assert_brg_ok(
        brg_tensor_add_post_accumulate_hook(NULL, x, on_leaf, &c, NULL));
    backward_of_sum(CALL(f, CALL(f, x)));
    assert_string_equal(c.order, "backward backward leaf final final ");
    expect_all(brg_tensor_grad(x), 4);
    yield_grad(y, x);
    brg_function_release(f);
}

/* The plan is cut at the function that queues: nothing is queued, and no leaf
 * is reached. With fullgraph nothing runs at all. */
static void check_cut(void)
{
    brg_compile_options options = BRG_COMPILE_OPTIONS_INIT;
    for (int fullgraph = 0; fullgraph < 2; fullgraph++) {
        callbacks c = {.order = ""};
        int scope;
        brg_function *f =
            new_function(.name = "Queues", .n_outputs = 1,
                         .forward = double_forward,
                         .backward = queueing_backward,
                         .tracing = BRG_FUNCTION_UNTRACEABLE, .user = &c);
        brg_tensor *x = leaf_full(3, BRG_SHAPE(4));
        brg_tensor *loss = brg_sum_all(CALL(f, x));
        options.fullgraph = fullgraph;
        assert_brg_ok(brg_compile_begin(&scope, &options));
        assert_brg_fails_with(
            brg_backward(loss), BRG_ERR_UNSUPPORTED,
            fullgraph ? "fullgraph: the plan would be cut at the backward of "
                        "Queues (NodeCall 2)"
                      : "only supported when Compiled Autograd is enabled with "
                        "fullgraph=True");
        assert_brg_ok(brg_compile_end(scope));
        assert_string_equal(c.order, fullgraph ? "" : "backward ");
        assert_null(brg_tensor_grad(x));
        brg_function_release(f);
    }
}

static void test_callback_graph_break_throws_error(void **state)
{
    (void)state;
    run_both(callback_body, 1);
    check_cut();
    callbacks c = {.order = "", .fails = true};
    brg_function *f = queueing_function(&c);
    brg_tensor *x = leaf_full(3, BRG_SHAPE(4));
    assert_brg_fails_with(brg_backward(brg_sum_all(CALL(f, x))),
                          BRG_ERR_CALLBACK, "as asked");
    assert_string_equal(c.order, "backward "); /* what was queued is dropped */
    assert_null(brg_tensor_grad(x));
    assert_brg_fails_with(brg_queue_final_callback(on_final, &c), BRG_ERR_STATE,
                          "Final callbacks can only be installed during "
                          "backward pass");
    brg_function_release(f);
    run_both(callback_body, 1); /* and all of it works again */
}

/* ---- A forward with side effects ---------------------------------------------------- */

typedef struct prints {
    int n_forward, n_backward;
    bool in_backward;
} prints;

FORWARD(printing_forward)
{
    prints *p = brg_context_user(ctx);
    SAVE(ARG(0));
    brg_tensor *h = brg_sin(ARG(0));
    p->n_forward++;
    OUT(0, brg_mul(h, ARG(0)));
    return BRG_OK;
}

BACKWARD(printing_backward)
{
    prints *p = brg_context_user(ctx);
    SAVED(x, 0);
    brg_tensor *slope = brg_add(brg_sin(x), brg_mul(x, brg_cos(x)));
    p->n_backward += p->in_backward;
    GRAD(0, brg_mul(g[0], slope));
    return BRG_OK;
}

/* The function between two ops: y = 2 f(x / 2 + x / 2) / 2. */
static brg_status around_printing(brg_tensor *const *in, size_t n_in,
                                  brg_tensor **out, size_t n_out, void *user)
{
    (void)n_in;
    (void)n_out;
    brg_tensor *half = brg_mul_scalar(in[0], 0.5);
    brg_value arg = brg_value_tensor(brg_add(half, half));
    brg_tensor *h = brg_function_call(user, &arg, 1);
    out[0] = brg_mul_scalar(brg_add(h, h), 0.5);
    return out[0] ? BRG_OK : brg_error_code();
}

/* Compiled whole: the forward is cut at the function, into two pieces for each
 * of the five sizes; the backward, in one plan, only if the function's
 * backward prints. */
static brg_compiled *compiled_around(brg_function *f)
{
    brg_compile_options options = BRG_COMPILE_OPTIONS_INIT;
    brg_compiled *c;
    options.whole = true;
    options.dynamic = BRG_COMPILE_DYNAMIC_ALL;
    assert_brg_ok(brg_compiled_create(&c, around_printing, f, &options));
    return c;
}

static void printing_body(yields *y, bool in_backward)
{
    static const int64_t sizes[] = {10, 100, 10, 15, 20, 25};
    prints p = {.in_backward = in_backward};
    brg_function *f =
        new_function(.name = "Prints", .n_outputs = 1,
                     .forward = printing_forward, .backward = printing_backward,
                     .user = &p,
                     .tracing = in_backward ? BRG_FUNCTION_UNTRACEABLE
                                            : BRG_FUNCTION_OPAQUE);
    brg_compiled *c = y->is_compiled ? compiled_around(f) : NULL;
    for (int i = 0; i < 6; i++) {
        brg_tensor *x = brg_randn(BRG_DTYPE_F32, BRG_SHAPE(sizes[i])), *out;
        assert_brg_ok(brg_set_requires_grad(x, true));
        assert_brg_ok(c ? brg_compiled_call(c, &x, 1, &out, 1)
                        : around_printing(&x, 1, &out, 1, f));
        assert_int_equal(p.n_forward, i + 1);
        backward_of_sum(out);
        assert_int_equal(p.n_forward, i + 1); /* backward ran none of it */
        assert_int_equal(p.n_backward, in_backward ? i + 1 : 0);
        for (int64_t k = 0; k < sizes[i]; k++) {
            double at = element(x, k);
            assert_float_equal(element(out, k), at * sin(at), 1e-5);
            assert_float_equal(element(brg_tensor_grad(x), k),
                               sin(at) + at * cos(at), 1e-5);
        }
        yield(y, out);
        yield_grad(y, x);
    }
    brg_compiled_destroy(c);
    brg_function_release(f);
}

static void forward_prints_body(yields *y)
{
    printing_body(y, false);
}

static void both_print_body(yields *y)
{
    printing_body(y, true);
}

static void test_custom_fn_compiled_fw_graph_break(void **state)
{
    (void)state;
    run_both(forward_prints_body, 1);
    assert_int_equal(both_stats().function_pieces, 10);
    assert_int_equal(both_stats().function_fallbacks, 6);
    assert_int_equal(both_stats().splits, 0);
    assert_int_equal(both_stats().compiles, 1);
}

static void test_custom_fn_compiled_fw_bw_graph_break(void **state)
{
    (void)state;
    run_both(both_print_body, 1);
    assert_int_equal(both_stats().function_pieces, 10);
    assert_int_equal(both_stats().splits, 1);
    assert_int_equal(both_stats().compiles, 2); /* before and after it */
}

/* ---- Sizes that change ----------------------------------------------------------------- */

static brg_status layer(brg_tensor *const *in, size_t n_in, brg_tensor **out,
                        size_t n_out, void *user)
{
    (void)n_in;
    (void)n_out;
    out[0] = brg_matmul(in[0], user);
    return out[0] ? BRG_OK : brg_error_code();
}

static brg_compiled *compiled_layer; /* if the body is */

/* One layer and the loss of it; gradients against the formula
 * d(sum (x w)^2) / dw = 2 x^T (x w). */
static void train_layer(yields *y, brg_tensor *w, int64_t batch)
{
    brg_tensor *x = brg_randn(BRG_DTYPE_F32, BRG_SHAPE(batch, 3));
    assert_brg_ok(brg_tensor_set_grad(w, NULL));
    brg_tensor *h;
    if (compiled_layer)
        assert_brg_ok(brg_compiled_call(compiled_layer, &x, 1, &h, 1));
    else
        h = brg_matmul(x, w);
    backward_of_sum(brg_square(h));
    for (int64_t i = 0; i < 3; i++)
        for (int64_t j = 0; j < 2; j++) {
            double want = 0;
            for (int64_t b = 0; b < batch; b++)
                want += 2 * element(x, 3 * b + i) * element(h, 2 * b + j);
            assert_float_equal(element(brg_tensor_grad(w), 2 * i + j), want,
                               1e-4);
        }
    yield_grad(y, w);
}

static void annotations_body(yields *y)
{
    brg_tensor *w = leaf_from(-1, BRG_SHAPE(3, 2));
    compiled_layer = y->is_compiled ? compile_whole(layer, w) : NULL;
    if (compiled_layer)
        assert_brg_ok(brg_compiled_mark_dynamic(compiled_layer, 0, 0));
    train_layer(y, w, 2);
    train_layer(y, w, 4);
    brg_compiled_destroy(compiled_layer);
    compiled_layer = NULL;
}

static void test_dynamic_shapes_annotations(void **state)
{
    (void)state;
    run_both(annotations_body, 1);
    assert_int_equal(both_stats().functions, 2); /* host code sees the size */
}

static void from_forward_body(yields *y)
{
    brg_tensor *w = leaf_from(-1, BRG_SHAPE(3, 2));
    compiled_layer = y->is_compiled ? compile_whole(layer, w) : NULL;
    for (int64_t batch = 3; batch <= 6; batch++) {
        brg_compile_stats before = both_stats();
        train_layer(y, w, batch);
        if (y->is_compiled) /* the forward itself becomes dynamic once */
            assert_int_equal(both_stats().captures - before.captures,
                             batch <= 4);
    }
    brg_compiled_destroy(compiled_layer);
    compiled_layer = NULL;
}

static void test_dynamic_shapes_from_forward(void **state)
{
    (void)state;
    run_both(from_forward_body, 2);
}

/* ---- A function that does its own backward ------------------------------------------------ */

/* out = x + y; its backward runs inside, and the gradient of y goes. */
static brg_status add_and_train(brg_tensor *const *in, size_t n_in,
                                brg_tensor **out, size_t n_out, void *user)
{
    (void)n_in;
    (void)n_out;
    (void)user;
    out[0] = brg_add(in[0], in[1]);
    BRG_TRY(brg_backward(brg_sum_all(out[0])));
    return brg_tensor_set_grad(in[1], NULL);
}

static void mismatch_step(yields *yielded, brg_compiled *c, int64_t rows)
{
    brg_tensor *x = leaf_full(1, BRG_SHAPE(rows, 4)), *out;
    brg_tensor *y = leaf_full(2, BRG_SHAPE(rows, 4));
    brg_tensor *in[2] = {x, y};
    if (c)
        assert_brg_ok(brg_compiled_call(c, in, 2, &out, 1));
    else
        assert_brg_ok(add_and_train(in, 2, &out, 1, NULL));
    expect_all(out, 3);
    expect_all(brg_tensor_grad(x), 1);
    assert_null(brg_tensor_grad(y));
    yield(yielded, out);
    yield_grad(yielded, x);
}

/* Captured inside a scope that compiles backwards, and besides as such. */
static void mismatch_whole_body(yields *y)
{
    brg_compiled *c =
        y->is_compiled ? compile_whole(add_and_train, NULL) : NULL;
    for (int i = 0; i < 3; i++)
        mismatch_step(y, c, 4);
    brg_compiled_destroy(c);
}

static void mismatch_whole_dynamic_body(yields *y)
{
    brg_compiled *c =
        y->is_compiled ? compile_whole(add_and_train, NULL) : NULL;
    for (int i = 0; c && i < 2; i++)
        assert_brg_ok(brg_compiled_mark_dynamic(c, (size_t)i, 0));
    for (int64_t rows = 4; rows <= 6; rows++)
        mismatch_step(y, c, rows);
    brg_compiled_destroy(c);
}

static void test_mismatch_fake_tensor_mode_body(yields *y)
{
    mismatch_step(y, NULL, 4);
}

static void test_mismatch_fake_tensor_mode(void **state)
{
    (void)state;
    run_both(test_mismatch_fake_tensor_mode_body, 1);
    run_both(mismatch_whole_body, 0);
    assert_int_equal(both_stats().functions, 1);
    assert_int_equal(both_stats().function_hits, 2);
}

static void test_mismatch_fake_tensor_mode_dynamic_shape_body(yields *y)
{
    for (int64_t rows = 4; rows <= 6; rows++)
        mismatch_step(y, NULL, rows);
}

static void test_mismatch_fake_tensor_mode_dynamic_shape(void **state)
{
    (void)state;
    run_both(test_mismatch_fake_tensor_mode_dynamic_shape_body, 1);
    run_both(mismatch_whole_dynamic_body, 0);
    assert_int_equal(both_stats().functions, 3);
    assert_int_equal(both_stats().function_fallbacks, 0);
}

/* ---- An op that trains inside -------------------------------------------------------------- */

static int n_inner;
static bool inner_compiles;
static brg_compiled *inner_compiled; /* forward only: cos */

static brg_status inner_cos(brg_tensor *const *in, size_t n_in,
                            brg_tensor **out, size_t n_out, void *user)
{
    (void)n_in;
    (void)n_out;
    (void)user;
    out[0] = brg_cos(in[0]);
    return out[0] ? BRG_OK : brg_error_code();
}

/* out = cos x, by a compiled function. */
static brg_status inner_call(brg_op_call *call)
{
    brg_tensor *out;
    BRG_TRY(brg_compiled_call(inner_compiled, call->in, 1, &out, 1));
    memcpy(brg_tensor_data(call->out[0]), brg_tensor_data(out),
           brg_tensor_nbytes(out));
    n_inner++;
    return BRG_OK;
}

static brg_status inner_infer(brg_op_call *call)
{
    const brg_tensor *x = call->in[0];
    brg_out_info *info = &call->info[0];
    info->dtype = brg_tensor_dtype(x);
    info->ndim = brg_tensor_ndim(x);
    memcpy(info->shape, brg_tensor_shape(x),
           (size_t)info->ndim * sizeof *info->shape);
    return BRG_OK;
}

/* out = d(sum sin)/dx = cos x, by a forward and a backward of its own, in a
 * compile scope of its own if the outer backward is compiled. */
static brg_status inner_run(brg_op_call *call)
{
    int scope;
    if (inner_compiled)
        return inner_call(call);
    size_t nbytes = brg_tensor_nbytes(call->in[0]);
    bool mode = brg_grad_mode_set(true);
    BRG_TRY(inner_compiles ? brg_compile_begin(&scope, NULL)
                           : brg_compile_disable_begin(&scope));
    brg_tensor *x = brg_detach(call->in[0]);
    brg_status status = brg_set_requires_grad(x, true);
    if (status == BRG_OK)
        status = brg_backward(brg_sum_all(brg_sin(x)));
    if (status == BRG_OK)
        memcpy(brg_tensor_data(call->out[0]),
               brg_tensor_data(brg_tensor_grad(x)), nbytes);
    brg_grad_mode_set(mode);
    n_inner++;
    brg_status ended = brg_compile_end(scope);
    return status == BRG_OK ? ended : status;
}

static const brg_op inner_op = {
    .abi = BRG_OP_ABI,
    .struct_size = sizeof(brg_op),
    .name = "test.inner",
    .n_in = 1,
    .n_out = 1,
    .infer = inner_infer,
    .run[BRG_DEVICE_CPU] = inner_run,
};

FORWARD(sin_forward)
{
    SAVE(ARG(0));
    OUT(0, brg_sin(ARG(0)));
    return BRG_OK;
}

BACKWARD(inner_backward)
{
    SAVED(x, 0);
    brg_tensor *slope;
    BRG_TRY(brg_op_apply(&inner_op, 1, &x, NULL, &slope));
    GRAD(0, brg_mul(g[0], slope));
    return BRG_OK;
}

static void test_nested_compile_body(yields *y)
{
    brg_function *f = function_of("Inner", sin_forward, inner_backward, 1);
    brg_tensor *x = leaf_from(0, BRG_SHAPE(3));
    n_inner = 0;
    inner_compiles = y->is_compiled;
    backward_of_sum(CALL(f, x));
    if (y->is_compiled) {
        inner_compiled = compile_whole(inner_cos, NULL);
        assert_brg_ok(brg_tensor_set_grad(x, NULL));
        backward_of_sum(CALL(f, x));
        assert_int_equal(both_stats().functions, 1);
        brg_compiled_destroy(inner_compiled);
        inner_compiled = NULL;
        n_inner--;
    }
    assert_int_equal(n_inner, 1);
    EXPECT_VALUES(brg_tensor_grad(x), 1, cos(1), cos(2));
    yield_grad(y, x);
    brg_function_release(f);
}
BOTH_ROW(test_nested_compile, 1)

int main(void)
{
    const struct CMUnitTest tests[] = {
        scoped_test(test_callback_graph_break_throws_error),
        scoped_test(test_custom_fn_compiled_fw_bw_graph_break),
        scoped_test(test_custom_fn_compiled_fw_graph_break),
        scoped_test(test_dynamic_shapes_annotations),
        scoped_test(test_dynamic_shapes_from_forward),
        scoped_test(test_mismatch_fake_tensor_mode),
        scoped_test(test_mismatch_fake_tensor_mode_dynamic_shape),
        scoped_test(test_nested_compile),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
