/* SPDX-License-Identifier: Apache-2.0
 * Rows of the suite `backward` on accumulating gradients: what is stolen,
 * copied, added in place, replaced. Each row is a body that gets the backward
 * to use: the engine's, then the compiled one. */
#include <brigade/compile.h>
#include <brigade/sparse.h>

#include "tests/rows/rows.h"

typedef brg_status (*backward_fn)(brg_tensor *y, bool create_graph);
typedef void (*row_body)(backward_fn backward);

static brg_status eager_backward(brg_tensor *y, bool create_graph)
{
    brg_backward_options options = BRG_BACKWARD_OPTIONS_INIT;
    options.create_graph = create_graph;
    brg_tensor *loss = brg_sum_all(y);
    return brg_backward_with(&loss, 1, &options);
}

static brg_status compiled_backward(brg_tensor *y, bool create_graph)
{
    int token;
    BRG_TRY(brg_compile_begin(&token, NULL));
    brg_status status = eager_backward(y, create_graph);
    BRG_TRY(brg_compile_end(token));
    return status;
}

/* How the functions of the row are met by a plan. */
static brg_function_tracing tracing;

/* Each body says which values, bit for bit, both ways must give; compiled, it
 * takes so many captures and pieces. */
static void run_row(row_body body, uint64_t n_captures, uint64_t n_compiles)
{
    brg_compile_stats stats;
    assert_brg_ok(brg_compile_reset());
    body(eager_backward);
    body(compiled_backward);
    brg_compile_get_stats(&stats);
    assert_int_equal(stats.captures, n_captures);
    assert_int_equal(stats.compiles, n_compiles);
    assert_int_equal(stats.fallbacks, 0);
}

#define ROW(name, n_captures, n_compiles)                                      \
    static void name(void **state)                                             \
    {                                                                          \
        (void)state;                                                           \
        tracing = BRG_FUNCTION_OPAQUE;                                         \
        run_row(name##_body, (n_captures), (n_compiles));                      \
    }

/* Its function does what no plan can hold. */
#define ROW_SPLIT(name, n_captures, n_compiles)                                \
    static void name(void **state)                                             \
    {                                                                          \
        (void)state;                                                           \
        tracing = BRG_FUNCTION_UNTRACEABLE;                                    \
        run_row(name##_body, (n_captures), (n_compiles));                      \
    }

/* ---- Functions that make a gradient of one kind ------------------------------------ */

FORWARD(twice_forward)
{
    OUT(0, brg_mul_scalar(ARG(0), 2));
    return BRG_OK;
}

/* A fresh dense gradient. */
static brg_tensor *dense_of(const brg_tensor *like, double value)
{
    brg_tensor *t = brg_full(BRG_DTYPE_F32, brg_tensor_ndim(like),
                             brg_tensor_shape(like), value);
    if (t && brg_grad_mode() && brg_set_requires_grad(t, true) != BRG_OK)
        return NULL;
    return t;
}

/* Of (2, 2): row 1 = value, row 0 = 0. */
static brg_tensor *sparse_of(double value, bool requires_grad)
{
    int64_t row = 1;
    brg_tensor *values = brg_full(BRG_DTYPE_F32, BRG_SHAPE(1, 2), value);
    if (values && brg_set_requires_grad(values, requires_grad) != BRG_OK)
        return NULL;
    return brg_sparse_coo(brg_from_data(BRG_DTYPE_I64, BRG_SHAPE(1, 1), &row),
                          values, BRG_SHAPE(2, 2));
}

BACKWARD(dense_5)
{
    GRAD(0, dense_of(g[0], 5));
    return BRG_OK;
}

BACKWARD(dense_7)
{
    GRAD(0, dense_of(g[0], 7));
    return BRG_OK;
}

BACKWARD(dense_10)
{
    GRAD(0, dense_of(g[0], 10));
    return BRG_OK;
}

BACKWARD(sparse_5)
{
    GRAD(0, sparse_of(5, brg_grad_mode()));
    return BRG_OK;
}

/* A leaf of ones, (2, 2). */
static brg_tensor *leaf_2x2(void)
{
    return leaf_full(1, BRG_SHAPE(2, 2));
}

/* y = 2 leaf, whose gradient `rule` makes; then backward. */
static void run_through(brg_tensor *leaf,
                        brg_status (*rule)(brg_context *, brg_tensor *const *,
                                           brg_tensor **, size_t *),
                        backward_fn backward, bool create_graph)
{
    brg_function *f =
        function_traced(tracing, "BaseCustomOp", twice_forward, rule, 1);
    brg_scope *scope = brg_scope_begin();
    assert_brg_ok(backward(CALL(f, leaf), create_graph));
    brg_scope_end(scope);
    brg_function_release(f);
}

/* ---- What arrived at the leaf ---------------------------------------------------------- */

typedef struct seen {
    const void *data;
    const void *indices;
    brg_tensor *kept; /* retained if `keeps` */
    bool keeps;
} seen;

static brg_status look(brg_tensor *grad, brg_tensor **replacement, void *user)
{
    (void)replacement;
    seen *s = user;
    bool is_sparse = brg_tensor_is_sparse(grad);
    s->data = brg_tensor_data(is_sparse ? brg_sparse_values(grad) : grad);
    if (is_sparse)
        s->indices = brg_tensor_data(brg_sparse_indices(grad));
    if (s->keeps)
        s->kept = brg_retain(grad);
    return BRG_OK;
}

static void watch(brg_tensor *leaf, seen *s)
{
    assert_brg_ok(brg_tensor_add_hook(NULL, leaf, look, s, NULL));
}

/* ---- Values and strides ------------------------------------------------------------------ */

static void test_accumulate_grad_accuracy_body(backward_fn backward)
{
    brg_tensor *x =
        brg_from_data(BRG_DTYPE_F32, BRG_SHAPE(1, 2), (float[]){3, -2});
    brg_tensor *w1 = leaf_from(1, BRG_SHAPE(1, 2)); /* 1, 2 */
    brg_tensor *w2 = leaf_from(4, BRG_SHAPE(2, 1)); /* 4, 5 */
    brg_tensor *y = brg_linear(brg_linear(x, w1, NULL), w2, NULL);
    assert_brg_ok(backward(y, false));
    EXPECT_VALUES(brg_tensor_grad(w1), 27, -18);
    EXPECT_VALUES(brg_tensor_grad(w2), -1, -1);
    assert_int_equal(brg_tensor_strides(brg_tensor_grad(w1))[1], 1);
    assert_int_equal(brg_tensor_strides(brg_tensor_grad(w2))[0], 1);
    assert_true(brg_tensor_is_contiguous(brg_tensor_grad(w1)));
    assert_true(brg_tensor_is_contiguous(brg_tensor_grad(w2)));
}
ROW(test_accumulate_grad_accuracy, 1, 1)

static void test_accumulate_without_zero_body(backward_fn backward)
{
    brg_tensor *x = leaf_from(1, BRG_SHAPE(3, 2));
    brg_tensor *w = leaf_from(-2, BRG_SHAPE(4, 2));
    for (int step = 1; step <= 10; step++) {
        brg_scope *scope = brg_scope_begin();
        assert_brg_ok(backward(brg_linear(x, w, NULL), false));
        brg_scope_end(scope);
        for (int64_t i = 0; i < 8; i++)
            assert_float_equal(element(brg_tensor_grad(w), i),
                               step * (i % 2 ? 12 : 9), 1e-4);
    }
}
ROW(test_accumulate_without_zero, 2, 2)

/* ---- 1: no gradient yet --------------------------------------------------------------------- */

static void test_accumulate_grad_polyfill_case_1_1_body(backward_fn backward)
{
    brg_tensor *leaf = leaf_2x2();
    seen s = {0};
    watch(leaf, &s);
    run_through(leaf, dense_5, backward, false);
    brg_tensor *grad = brg_tensor_grad(leaf);
    expect_all(grad, 5);
    assert_false(brg_requires_grad(grad));
    assert_ptr_equal(brg_tensor_data(grad), s.data);
}
ROW_SPLIT(test_accumulate_grad_polyfill_case_1_1, 1, 2)

static void test_accumulate_grad_polyfill_case_1_2_body(backward_fn backward)
{
    brg_tensor *leaf = leaf_2x2();
    seen s = {0};
    watch(leaf, &s);
    run_through(leaf, sparse_5, backward, false);
    brg_tensor *grad = brg_tensor_grad(leaf);
    assert_true(brg_tensor_is_sparse(grad));
    assert_false(brg_requires_grad(grad));
    assert_ptr_equal(brg_tensor_data(brg_sparse_indices(grad)), s.indices);
    assert_ptr_equal(brg_tensor_data(brg_sparse_values(grad)), s.data);
    EXPECT_VALUES(brg_to_dense(grad), 0, 0, 5, 5);
}
ROW_SPLIT(test_accumulate_grad_polyfill_case_1_2, 1, 2)

static void test_accumulate_grad_polyfill_case_1_3_body(backward_fn backward)
{
    brg_tensor *leaf = leaf_2x2();
    seen s = {.keeps = true};
    watch(leaf, &s);
    run_through(leaf, sparse_5, backward, true);
    brg_tensor *grad = brg_tensor_grad(leaf);
    assert_true(brg_tensor_is_sparse(grad));
    assert_true(brg_requires_grad(grad));
    assert_ptr_not_equal(brg_tensor_data(brg_sparse_indices(grad)), s.indices);
    assert_ptr_not_equal(brg_tensor_data(brg_sparse_values(grad)), s.data);
    EXPECT_VALUES(brg_to_dense(grad), 0, 0, 5, 5);
    brg_release(s.kept);
}
ROW(test_accumulate_grad_polyfill_case_1_3, 1, 1)

static void test_accumulate_grad_polyfill_case_1_5_1_body(backward_fn backward)
{
    brg_tensor *leaf = leaf_2x2();
    seen s = {.keeps = true};
    watch(leaf, &s);
    run_through(leaf, dense_10, backward, false);
    brg_tensor *grad = brg_tensor_grad(leaf);
    expect_all(grad, 10);
    assert_false(brg_tensor_shares_storage(grad, s.kept));
    assert_brg_ok(brg_fill_(grad, 1));
    expect_all(s.kept, 10);
    brg_release(s.kept);
}
ROW(test_accumulate_grad_polyfill_case_1_5_1, 1, 1)

static void test_accumulate_grad_polyfill_case_1_5_2_body(backward_fn backward)
{
    brg_tensor *base = brg_ones(BRG_DTYPE_F32, BRG_SHAPE(4, 4));
    brg_tensor *leaf =
        brg_as_strided(base, 2, (int64_t[]){2, 2}, (int64_t[]){8, 2}, 0);
    assert_brg_ok(brg_set_requires_grad(leaf, true));
    seen s = {.keeps = true};
    watch(leaf, &s);
    run_through(leaf, dense_7, backward, false);
    brg_tensor *grad = brg_tensor_grad(leaf);
    expect_all(grad, 7);
    assert_true(brg_tensor_is_contiguous(grad));
    assert_false(brg_tensor_shares_storage(grad, s.kept));
    brg_release(s.kept);
}
ROW(test_accumulate_grad_polyfill_case_1_5_2, 1, 1)

/* ---- 2: onto a gradient, not recorded ---------------------------------------------------------- */

/* Sets .grad before the backward; returns it, borrowed from the leaf. */
static brg_tensor *preset(brg_tensor *leaf, brg_tensor *grad)
{
    assert_brg_ok(brg_tensor_set_grad(leaf, assert_brg_some(grad)));
    return grad;
}

static void test_accumulate_grad_polyfill_case_2_1_body(backward_fn backward)
{
    brg_tensor *leaf = leaf_2x2();
    brg_tensor *old = preset(leaf, sparse_of(3, false));
    run_through(leaf, dense_5, backward, false);
    brg_tensor *grad = brg_tensor_grad(leaf);
    assert_ptr_not_equal(grad, old);
    assert_false(brg_tensor_is_sparse(grad));
    EXPECT_VALUES(grad, 5, 5, 8, 8);
}
ROW(test_accumulate_grad_polyfill_case_2_1, 1, 0)

static void test_accumulate_grad_polyfill_case_2_3_1_body(backward_fn backward)
{
    brg_tensor *leaf = leaf_2x2();
    brg_tensor *old = preset(leaf, brg_ones(BRG_DTYPE_F32, BRG_SHAPE(2, 2)));
    const void *data = brg_tensor_data(old);
    run_through(leaf, dense_5, backward, false);
    assert_ptr_equal(brg_tensor_grad(leaf), old);
    assert_ptr_equal(brg_tensor_data(old), data);
    expect_all(old, 6);
}
ROW(test_accumulate_grad_polyfill_case_2_3_1, 1, 1)

static void test_accumulate_grad_polyfill_case_2_3_2_body(backward_fn backward)
{
    brg_tensor *leaf = leaf_2x2();
    brg_tensor *old = preset(leaf, sparse_of(3, false));
    run_through(leaf, sparse_5, backward, false);
    assert_ptr_equal(brg_tensor_grad(leaf), old);
    assert_true(brg_tensor_is_sparse(old));
    assert_int_equal(brg_sparse_nnz(old), 2);
    EXPECT_VALUES(brg_to_dense(old), 0, 0, 8, 8);
}
ROW(test_accumulate_grad_polyfill_case_2_3_2, 1, 0)

static void test_accumulate_grad_polyfill_case_2_3_3_body(backward_fn backward)
{
    brg_tensor *leaf = leaf_2x2();
    brg_tensor *old = preset(leaf, brg_ones(BRG_DTYPE_F32, BRG_SHAPE(2, 2)));
    const void *data = brg_tensor_data(old);
    run_through(leaf, sparse_5, backward, false);
    assert_ptr_equal(brg_tensor_grad(leaf), old);
    assert_ptr_equal(brg_tensor_data(old), data);
    EXPECT_VALUES(old, 1, 1, 6, 6);
}
ROW_SPLIT(test_accumulate_grad_polyfill_case_2_3_3, 1, 2)

/* ---- 3: onto a gradient, recorded ---------------------------------------------------------------- */

static void test_accumulate_grad_polyfill_case_3_1_body(backward_fn backward)
{
    brg_tensor *leaf = leaf_2x2();
    brg_tensor *old = preset(leaf, sparse_of(3, false));
    run_through(leaf, dense_5, backward, true);
    brg_tensor *grad = brg_tensor_grad(leaf);
    assert_ptr_not_equal(grad, old);
    assert_false(brg_tensor_is_sparse(grad));
    assert_true(brg_requires_grad(grad));
    EXPECT_VALUES(grad, 5, 5, 8, 8);
    EXPECT_VALUES(brg_to_dense(old), 0, 0, 3, 3);
}
ROW(test_accumulate_grad_polyfill_case_3_1, 1, 0)

static void test_accumulate_grad_polyfill_case_3_2_body(backward_fn backward)
{
    brg_tensor *leaf = leaf_2x2();
    brg_tensor *old = preset(leaf, brg_ones(BRG_DTYPE_F32, BRG_SHAPE(2, 2)));
    run_through(leaf, dense_5, backward, true);
    brg_tensor *grad = brg_tensor_grad(leaf);
    assert_ptr_not_equal(grad, old);
    assert_true(brg_requires_grad(grad));
    expect_all(grad, 6);
    expect_all(old, 1);
}
ROW_SPLIT(test_accumulate_grad_polyfill_case_3_2, 1, 2)

int main(void)
{
    const struct CMUnitTest tests[] = {
        scoped_test(test_accumulate_grad_accuracy),
        scoped_test(test_accumulate_grad_polyfill_case_1_1),
        scoped_test(test_accumulate_grad_polyfill_case_1_2),
        scoped_test(test_accumulate_grad_polyfill_case_1_3),
        scoped_test(test_accumulate_grad_polyfill_case_1_5_1),
        scoped_test(test_accumulate_grad_polyfill_case_1_5_2),
        scoped_test(test_accumulate_grad_polyfill_case_2_1),
        scoped_test(test_accumulate_grad_polyfill_case_2_3_1),
        scoped_test(test_accumulate_grad_polyfill_case_2_3_2),
        scoped_test(test_accumulate_grad_polyfill_case_2_3_3),
        scoped_test(test_accumulate_grad_polyfill_case_3_1),
        scoped_test(test_accumulate_grad_polyfill_case_3_2),
        scoped_test(test_accumulate_without_zero),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
