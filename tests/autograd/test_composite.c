/* SPDX-License-Identifier: Apache-2.0
 * Composites: parts and back, ops and functions over them, gradients through
 * them, what does not fit. */
#include <brigade/composite.h>

#include "tests/rows/rows.h"
#include "tests/support/fail_alloc.h"

static brg_tensor *offsets_of(int64_t a, int64_t b, int64_t c)
{
    return assert_brg_some(brg_from_data(BRG_DTYPE_I64, BRG_SHAPE(4),
                                         (const int64_t[]){0, a, b, c}));
}

static void test_composite__op_over_the_parts(void **state)
{
    (void)state;
    brg_tensor *a = leaf_full(2, BRG_SHAPE(3)), *b = leaf_full(5, BRG_SHAPE(1));
    brg_composite *x, *y;
    assert_brg_ok(brg_pair_create(&x, a, b));
    assert_true(brg_composite_requires_grad(x));
    brg_composite *in[] = {x, x};
    assert_brg_ok(brg_composite_map_op(&y, brg_op_find("mul"), in, 2, NULL));
    brg_tensor *parts[BRG_MAX_COMPOSITE_TENSORS];
    size_t n;
    assert_brg_ok(brg_composite_flatten(y, parts, &n));
    assert_int_equal(n, 2);
    expect_all(parts[0], 4);
    expect_all(parts[1], 25);
    backward_of_sum(brg_add(parts[0], parts[1]));
    expect_all(brg_tensor_grad(a), 4);
    expect_all(brg_tensor_grad(b), 30);
    brg_composite_release(brg_composite_retain(y));
    brg_composite_release(y);
    brg_composite_release(x);
}

static brg_status scale_and_sin(brg_tensor *const *parts, size_t n_parts,
                                brg_tensor **result, void *user)
{
    assert_int_equal(n_parts, 1);
    *result = brg_sin(brg_mul_scalar(parts[0], *(double *)user));
    return *result ? BRG_OK : brg_error_code();
}

static void test_composite__jagged_rows_keep_their_offsets(void **state)
{
    (void)state;
    brg_tensor *values = leaf_from(0, BRG_SHAPE(6, 2));
    brg_composite *x, *y;
    assert_brg_ok(brg_jagged_create(&x, values, offsets_of(1, 1, 6)));
    assert_int_equal(brg_jagged_n_rows(x), 3);
    double scale = 0.5;
    assert_brg_ok(brg_composite_map(&y, scale_and_sin, &scale, &x, 1));
    assert_ptr_equal(brg_jagged_offsets(y), brg_jagged_offsets(x));
    assert_int_equal(brg_tensor_size(brg_jagged_row(y, 1), 0), 0);
    brg_tensor *last = brg_jagged_row(y, 2);
    assert_int_equal(brg_tensor_size(last, 0), 5);
    assert_float_equal(element(last, 0), sin(1), 1e-6);
    backward_of_sum(last);
    assert_float_equal(element(brg_tensor_grad(values), 0), 0, 0);
    assert_float_equal(element(brg_tensor_grad(values), 4), 0.5 * cos(2), 1e-6);
    brg_composite_release(y);
    brg_composite_release(x);
}

/* ---- Functions ------------------------------------------------------------------ */

/* (a, b), (c, d) -> (a c, b + d) */
FORWARD(two_pairs_forward)
{
    SAVE(ARG(0), ARG(2));
    OUT(0, brg_mul(ARG(0), ARG(2)));
    OUT(1, brg_add(ARG(1), ARG(3)));
    return BRG_OK;
}

BACKWARD(two_pairs_backward)
{
    SAVED(a, 0);
    SAVED(c, 1);
    GRAD(0, brg_mul(g[0], c));
    GRAD(2, brg_mul(g[0], a));
    gi[1] = gi[3] = g[1];
    return BRG_OK;
}

static void test_composite__arguments_of_a_function(void **state)
{
    (void)state;
    brg_function *f =
        function_of("TwoPairs", two_pairs_forward, two_pairs_backward, 2);
    brg_tensor *leaf[4];
    brg_composite *in[2], *y;
    for (int i = 0; i < 4; i++)
        leaf[i] = leaf_full(i + 2, BRG_SHAPE(2));
    assert_brg_ok(brg_pair_create(&in[0], leaf[0], leaf[1]));
    assert_brg_ok(brg_pair_create(&in[1], leaf[2], leaf[3]));
    assert_brg_ok(brg_composite_apply(&y, f, in, 2));
    brg_tensor *parts[BRG_MAX_COMPOSITE_TENSORS];
    size_t n;
    assert_brg_ok(brg_composite_flatten(y, parts, &n));
    backward_of_sum(brg_mul(parts[0], parts[1])); /* (2 * 4) (3 + 5) */
    expect_all(brg_tensor_grad(leaf[0]), 32);
    expect_all(brg_tensor_grad(leaf[1]), 8);
    expect_all(brg_tensor_grad(leaf[2]), 16);
    expect_all(brg_tensor_grad(leaf[3]), 8);
    brg_composite *none;
    assert_brg_fails_with(brg_composite_apply(&none, f, in, 0), BRG_ERR_ARG,
                          "0 composites");
    brg_composite *jagged;
    assert_brg_ok(brg_jagged_create(
        &jagged, brg_zeros(BRG_DTYPE_F32, BRG_SHAPE(3)), offsets_of(1, 2, 3)));
    assert_brg_fails_with(brg_composite_apply(&none, f, &jagged, 1),
                          BRG_ERR_ARG, "2 outputs");
    in[1] = (brg_composite_release(in[1]), jagged);
    assert_brg_fails_with(brg_composite_apply(&none, f, in, 2), BRG_ERR_ARG,
                          "composite 1 is a jagged tensor");
    for (int i = 0; i < 2; i++)
        brg_composite_release(in[i]);
    brg_composite_release(y);
    brg_function_release(f);
}

/* ---- What does not fit ------------------------------------------------------------- */

static brg_status drop_a_row(brg_tensor *const *parts, size_t n_parts,
                             brg_tensor **result, void *user)
{
    (void)n_parts;
    (void)user;
    *result = brg_narrow(parts[0], 0, 0, 2);
    return *result ? BRG_OK : brg_error_code();
}

static void test_composite__misfits_are_named(void **state)
{
    (void)state;
    brg_tensor *values = brg_zeros(BRG_DTYPE_F32, BRG_SHAPE(6));
    brg_composite *x, *y;
    assert_brg_fails_with(brg_jagged_create(&x, values, offsets_of(1, 4, 5)),
                          BRG_ERR_SHAPE, "the last offset");
    assert_brg_fails_with(brg_jagged_create(&x, values, offsets_of(4, 1, 6)),
                          BRG_ERR_ARG, "offset 2 is 1");
    assert_brg_fails_with(brg_jagged_create(&x, values, values), BRG_ERR_ARG,
                          "i64[rows + 1]");
    assert_brg_ok(brg_jagged_create(&x, values, offsets_of(1, 4, 6)));
    assert_brg_fails_with(brg_composite_map(&y, drop_a_row, NULL, &x, 1),
                          BRG_ERR_SHAPE, "jagged tensor: the values are");
    assert_null(y);
    assert_brg_null_with(brg_composite_object(x, &brg_pair_class), BRG_ERR_ARG,
                         "is a jagged tensor, expected a pair");
    assert_brg_null(brg_jagged_row(x, 3), BRG_ERR_ARG);
    brg_composite_class cls = brg_pair_class;
    cls.struct_size = 0;
    assert_brg_fails(brg_composite_create(&y, &cls, NULL), BRG_ERR_ARG);
    assert_brg_fails(brg_pair_create(&y, NULL, values), BRG_ERR_ARG);
    brg_tensor *both[] = {values, values};
    assert_brg_fails(brg_composite_unflatten(&y, x, both, 2), BRG_ERR_ARG);
    brg_composite_release(x);
}

static brg_status make_and_map(void *user)
{
    (void)user;
    brg_composite *x = NULL, *y = NULL;
    brg_scope *scope = brg_scope_begin();
    if (!scope)
        return BRG_ERR_NOMEM;
    brg_tensor *a = brg_ones(BRG_DTYPE_F32, BRG_SHAPE(3));
    brg_status status = a ? brg_pair_create(&x, a, a) : brg_error_code();
    double scale = 2;
    if (status == BRG_OK)
        status = brg_composite_map(&y, scale_and_sin, &scale, &x, 1);
    brg_composite_release(y);
    brg_composite_release(x);
    brg_scope_end(scope);
    return status;
}

static void test_composite__out_of_memory(void **state)
{
    (void)state;
    assert_oom_clean(make_and_map, NULL);
}

int main(void)
{
    fail_alloc_install();
    const struct CMUnitTest tests[] = {
        scoped_test(test_composite__op_over_the_parts),
        scoped_test(test_composite__jagged_rows_keep_their_offsets),
        scoped_test(test_composite__arguments_of_a_function),
        scoped_test(test_composite__misfits_are_named),
        cmocka_unit_test(test_composite__out_of_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
