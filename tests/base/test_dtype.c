/* SPDX-License-Identifier: Apache-2.0
 * Dtype rows and the 16-bit floats, against conversions made of nothing but
 * double arithmetic and nearest-neighbour search. */
#include <math.h>

#include "core/base/dtype.h"
#include "tests/support/brg_test.h"

/* The format of a 16-bit float. */
typedef struct format {
    int n_exponent;
    int n_mantissa;
    float (*widen)(uint16_t);
    uint16_t (*narrow)(float);
} format;

static const format f16 = {5, 10, brg__f16_to_f32, brg__f32_to_f16};
static const format bf16 = {8, 7, brg__bf16_to_f32, brg__f32_to_bf16};

static bool is_nan_pattern(const format *f, uint16_t h)
{
    unsigned exponent = (1u << f->n_exponent) - 1;
    return ((h >> f->n_mantissa) & exponent) == exponent &&
           (h & ((1u << f->n_mantissa) - 1)) != 0;
}

/* The value of a pattern by its definition; infinities as such. */
static double value_of(const format *f, uint16_t h)
{
    int bias = (1 << (f->n_exponent - 1)) - 1;
    int exponent = (h >> f->n_mantissa) & ((1 << f->n_exponent) - 1);
    int mantissa = h & ((1 << f->n_mantissa) - 1);
    double sign = h & 0x8000 ? -1.0 : 1.0;
    if (exponent == (1 << f->n_exponent) - 1)
        return mantissa ? NAN : sign * INFINITY;
    if (exponent == 0)
        return sign * ldexp(mantissa, 1 - bias - f->n_mantissa);
    return sign * ldexp(mantissa + (1 << f->n_mantissa),
                        exponent - bias - f->n_mantissa);
}

static void check_all_patterns(const format *f)
{
    for (unsigned h = 0; h <= 0xFFFF; h++) {
        float wide = f->widen((uint16_t)h);
        if (is_nan_pattern(f, (uint16_t)h)) {
            assert_true(isnan(wide));
            assert_true(is_nan_pattern(f, f->narrow(wide)));
            continue;
        }
        double expected = value_of(f, (uint16_t)h);
        assert_true((double)wide == expected);
        assert_int_equal(signbit(wide) != 0, (h >> 15) != 0);
        assert_int_equal(f->narrow(wide), h); /* there and back */
    }
}

static void expect_narrow(const format *f, float x, uint16_t expected)
{
    uint16_t got = f->narrow(x);
    if (got != expected)
        print_error("%a gave 0x%04x, expected 0x%04x\n", (double)x, got,
                    expected);
    assert_int_equal(got, expected);
}

/* Between each two neighbours: just below the middle goes down, just above
 * goes up, the middle goes to the even one. Past the largest finite value,
 * the neighbour is what would come next if the exponent went on. */
static void check_rounding(const format *f)
{
    unsigned infinity = ((1u << f->n_exponent) - 1) << f->n_mantissa;
    for (unsigned h = 0; h < infinity; h++) {
        double low = value_of(f, (uint16_t)h);
        double high = h + 1 < infinity
                          ? value_of(f, (uint16_t)(h + 1))
                          : 2 * low - value_of(f, (uint16_t)(h - 1));
        float middle = (float)((low + high) / 2); /* exact in f32 */
        assert_true((double)middle == (low + high) / 2);
        uint16_t up = (uint16_t)(h + 1), even = h & 1 ? up : (uint16_t)h;
        for (unsigned sign = 0; sign <= 0x8000; sign += 0x8000) {
            float s = sign ? -1.0f : 1.0f;
            expect_narrow(f, s * middle, (uint16_t)(even | sign));
            expect_narrow(f, s * nextafterf(middle, 0.0f),
                          (uint16_t)(h | sign));
            expect_narrow(f, s * nextafterf(middle, INFINITY),
                          (uint16_t)(up | sign));
        }
    }
    expect_narrow(f, INFINITY, (uint16_t)infinity);
    expect_narrow(f, -INFINITY, (uint16_t)(infinity | 0x8000));
    expect_narrow(f, 0x1.fffffep127f, (uint16_t)infinity);
    expect_narrow(f, 0.0f, 0);
    expect_narrow(f, -0.0f, 0x8000);
}

/* A NaN stays one whatever its payload, and keeps its sign. */
static void check_nans(const format *f)
{
    for (int bit = 0; bit < 23; bit++)
        for (uint32_t sign = 0; sign <= 1; sign++) {
            uint32_t bits = sign << 31 | 0x7F800000u | 1u << bit;
            uint16_t h = f->narrow(brg__bits_f32(bits));
            assert_true(is_nan_pattern(f, h));
            assert_int_equal(h >> 15, sign);
        }
}

static void test_dtype__f16_widens_exactly(void **state)
{
    (void)state;
    check_all_patterns(&f16);
}

static void test_dtype__bf16_widens_exactly(void **state)
{
    (void)state;
    check_all_patterns(&bf16);
}

static void test_dtype__f16_rounds_to_nearest_even(void **state)
{
    (void)state;
    check_rounding(&f16);
}

static void test_dtype__bf16_rounds_to_nearest_even(void **state)
{
    (void)state;
    check_rounding(&bf16);
}

static void test_dtype__nan_stays_nan(void **state)
{
    (void)state;
    check_nans(&f16);
    check_nans(&bf16);
}

/* Random patterns of f32, the nearest f16 found by comparing neighbours. */
static void test_dtype__random_values_go_to_a_nearest(void **state)
{
    (void)state;
    const format *formats[] = {&f16, &bf16};
    uint64_t seed = brg_test_seed(1);
    for (int i = 0; i < 400000; i++) {
        const format *f = formats[i & 1];
        float x = brg__bits_f32((uint32_t)brg_test_random(&seed));
        uint16_t h = f->narrow(x);
        if (isnan(x)) {
            assert_true(is_nan_pattern(f, h));
            continue;
        }
        double y = value_of(f, h);
        if (isinf(y))
            continue; /* the border is a case of the rounding test */
        double error = fabs(y - (double)x);
        double above = value_of(f, (uint16_t)(h + 1)) - (double)x;
        assert_true(isnan(above) || error <= fabs(above));
        if (h & 0x7FFF)
            assert_true(error <=
                        fabs(value_of(f, (uint16_t)(h - 1)) - (double)x));
    }
}

static void test_dtype__rows_are_right(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        size_t nbytes;
        bool is_float;
    } expected[BRG_N_DTYPES] = {
        {"f64", 8, true},  {"f32", 4, true},   {"f16", 2, true},
        {"bf16", 2, true}, {"i64", 8, false},  {"i32", 4, false},
        {"u8", 1, false},  {"bool", 1, false},
    };
    for (int i = 0; i < BRG_N_DTYPES; i++) {
        assert_string_equal(brg_dtype_name((brg_dtype)i), expected[i].name);
        assert_int_equal(brg_dtype_size((brg_dtype)i), expected[i].nbytes);
        assert_int_equal(brg_dtype_is_float((brg_dtype)i),
                         expected[i].is_float);
    }
    assert_string_equal(brg_dtype_name((brg_dtype)99), "unknown dtype");
    assert_int_equal(brg_dtype_size((brg_dtype)-1), 0);
    assert_false(brg_dtype_is_float((brg_dtype)BRG_N_DTYPES));
}

static void test_dtype__reduce_ops_have_names(void **state)
{
    (void)state;
    assert_string_equal(brg_reduce_op_name(BRG_REDUCE_SUM), "sum");
    assert_string_equal(brg_reduce_op_name(BRG_REDUCE_AVG), "avg");
    assert_string_equal(brg_reduce_op_name(BRG_REDUCE_MIN), "min");
    assert_string_equal(brg_reduce_op_name(BRG_REDUCE_MAX), "max");
    assert_string_equal(brg_reduce_op_name(BRG_REDUCE_PROD), "prod");
    assert_string_equal(brg_reduce_op_name((brg_reduce_op)77),
                        "unknown reduction");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_dtype__f16_widens_exactly),
        cmocka_unit_test(test_dtype__bf16_widens_exactly),
        cmocka_unit_test(test_dtype__f16_rounds_to_nearest_even),
        cmocka_unit_test(test_dtype__bf16_rounds_to_nearest_even),
        cmocka_unit_test(test_dtype__nan_stays_nan),
        cmocka_unit_test(test_dtype__random_values_go_to_a_nearest),
        cmocka_unit_test(test_dtype__rows_are_right),
        cmocka_unit_test(test_dtype__reduce_ops_have_names),
    };
    return cmocka_run_group_tests_name("dtype", tests, NULL, NULL);
}
