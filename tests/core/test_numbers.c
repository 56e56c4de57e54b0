/* SPDX-License-Identifier: Apache-2.0
 * Numbers that a dtype cannot hold are refused where the caller gives them. */
#include <float.h>
#include <math.h>

#include <brigade/autograd.h>
#include <brigade/ops.h>

#include "tests/support/brg_test.h"

static int open_scope(void **state)
{
    *state = brg_scope_begin();
    return *state ? 0 : -1;
}

static int close_scope(void **state)
{
    brg_scope_end(*state);
    return 0;
}

typedef struct row {
    brg_dtype dtype;
    double value;
    double stored; /* NAN: refused */
} row;

static const row rows[] = {
    {BRG_DTYPE_U8, 255, 255},
    {BRG_DTYPE_U8, 255.9, 255},
    {BRG_DTYPE_U8, 256, NAN},
    {BRG_DTYPE_U8, 300, NAN},
    {BRG_DTYPE_U8, -0.9, 0},
    {BRG_DTYPE_U8, -1, NAN},
    {BRG_DTYPE_U8, NAN, NAN},
    {BRG_DTYPE_I32, INT32_MAX, INT32_MAX},
    {BRG_DTYPE_I32, 0x1p31, NAN},
    {BRG_DTYPE_I32, INT32_MIN, INT32_MIN},
    {BRG_DTYPE_I32, -0x1p31 - 1, NAN},
    {BRG_DTYPE_I64, -0x1p63, -0x1p63},
    {BRG_DTYPE_I64, 0x1p63, NAN},
    {BRG_DTYPE_I64, INFINITY, NAN},
    {BRG_DTYPE_BOOL, 300, 1},
    {BRG_DTYPE_BOOL, 0.5, 1},
    {BRG_DTYPE_F16, 65504, 65504},
    {BRG_DTYPE_F16, 65519, 65504}, /* rounds down */
    {BRG_DTYPE_F16, 65520, NAN},
    {BRG_DTYPE_F16, -1e6, NAN},
    {BRG_DTYPE_F16, -INFINITY, -INFINITY},
    {BRG_DTYPE_BF16, 1e38, 0x1.2cp126},
    {BRG_DTYPE_BF16, FLT_MAX, NAN},
    {BRG_DTYPE_F32, FLT_MAX, FLT_MAX},
    {BRG_DTYPE_F32, 1e39, NAN},
    {BRG_DTYPE_F32, INFINITY, INFINITY},
    {BRG_DTYPE_F64, DBL_MAX, DBL_MAX},
};

static void assert_stored(brg_tensor *t, double expected)
{
    double value;
    assert_brg_ok(brg_tensor_item(assert_brg_some(t), &value));
    assert_true(value == expected);
}

static void test_numbers__fill_tensors_if_they_fit(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        const row *r = &rows[i];
        brg_tensor *t = brg_ones(r->dtype, BRG_SCALAR);
        if (!isnan(r->stored)) {
            assert_stored(brg_full(r->dtype, BRG_SCALAR, r->value), r->stored);
            assert_stored(brg_full_like(t, r->value), r->stored);
            assert_brg_ok(brg_fill_(t, r->value));
            assert_stored(t, r->stored);
            continue;
        }
        assert_brg_null_with(brg_full(r->dtype, BRG_SCALAR, r->value),
                             BRG_ERR_ARG, brg_dtype_name(r->dtype));
        assert_brg_null_with(brg_full_like(t, r->value), BRG_ERR_ARG,
                             "full_like: ");
        assert_brg_fails_with(brg_fill_(t, r->value), BRG_ERR_ARG,
                              "does not fit into");
        assert_stored(t, 1);
    }
    assert_brg_null_with(
        brg_full(BRG_DTYPE_U8, BRG_SHAPE(0), 300), BRG_ERR_ARG,
        "brg_full: 300 does not fit into u8, expected 0 to 255");
}

static void test_numbers__ranges_stay_inside(void **state)
{
    (void)state;
    assert_brg_some(brg_arange(BRG_DTYPE_U8, 0, 256, 1));
    assert_brg_some(brg_arange(BRG_DTYPE_U8, 255, -1, -1));
    assert_brg_some(brg_arange(BRG_DTYPE_U8, 300, 300, 1)); /* empty */
    assert_brg_null_with(brg_arange(BRG_DTYPE_U8, 0, 257, 1), BRG_ERR_ARG,
                         "arange: 256 does not fit into u8");
    assert_brg_null_with(brg_arange(BRG_DTYPE_U8, 5, -2, -1), BRG_ERR_ARG,
                         "arange: -1 does not fit into u8");
    assert_brg_null_with(brg_arange(BRG_DTYPE_F16, 7e4, 7e4 + 2, 1),
                         BRG_ERR_ARG, "f16");
}

/* What numpy 2 refuses too, but for negative numbers: -1 subtracts one. */
static void test_numbers__of_arithmetic_are_in_range(void **state)
{
    (void)state;
    brg_tensor *x = brg_full(BRG_DTYPE_U8, BRG_SCALAR, 7);
    assert_stored(brg_add_scalar(x, -1), 6);
    assert_stored(brg_add_scalar(x, 255), 6); /* wraps */
    assert_stored(brg_rsub_scalar(x, 7), 0);
    assert_brg_null_with(brg_add_scalar(x, 300), BRG_ERR_ARG,
                         "add_scalar: 300 does not fit into u8");
    assert_brg_null_with(brg_mul_scalar(x, 256), BRG_ERR_ARG, "mul_scalar");
    assert_brg_null_with(brg_rsub_scalar(x, 1e300), BRG_ERR_ARG, "rsub_scalar");
    assert_brg_null_with(
        brg_add_scalar(brg_ones(BRG_DTYPE_I64, BRG_SCALAR), 1e19), BRG_ERR_ARG,
        "i64");
    assert_brg_fails_with(brg_mul_scalar_(x, 300), BRG_ERR_ARG, "300");
    assert_brg_fails_with(brg_mul_scalar_(x, 0.5), BRG_ERR_DTYPE, "whole");
    assert_brg_fails_with(brg_add_(x, x, 0.5), BRG_ERR_DTYPE, "whole");
    assert_brg_fails_with(brg_add_(x, x, 300), BRG_ERR_ARG, "brg_add_");
    assert_stored(x, 7);
    assert_brg_ok(brg_add_(x, x, -1));
    assert_stored(x, 0);
}

static void test_numbers__bounds_have_results_that_fit(void **state)
{
    (void)state;
    brg_tensor *x = brg_full(BRG_DTYPE_U8, BRG_SCALAR, 200);
    assert_stored(brg_clamp(x, -1, 300), 200);
    assert_stored(brg_clamp(x, -INFINITY, 100), 100);
    assert_stored(brg_clamp(x, 255, INFINITY), 255);
    assert_brg_null_with(brg_clamp(x, 256, 300), BRG_ERR_ARG,
                         "clamp: 256 does not fit");
    assert_brg_null_with(brg_clamp(x, -5, -1), BRG_ERR_ARG,
                         "clamp: -1 does not");
    assert_brg_null_with(brg_clamp(x, 0.5, 3), BRG_ERR_DTYPE, "whole");
}

#define TEST(name)                                                             \
    cmocka_unit_test_setup_teardown(test_numbers__##name, open_scope,          \
                                    close_scope)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(fill_tensors_if_they_fit),
        TEST(ranges_stay_inside),
        TEST(of_arithmetic_are_in_range),
        TEST(bounds_have_results_that_fit),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
