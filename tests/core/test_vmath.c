/* SPDX-License-Identifier: Apache-2.0
 * The f32 functions of vmath.h: errors against the C library in double, the
 * special values, and bits that do not depend on where a value stands. For
 * each instruction set that the processor has. */
#include <math.h>

#include "core/base/dtype.h"
#include "core/ops/isa.h"
#include "core/ops/pointwise.h"
#include "tests/support/brg_test.h"

#define BLOCK 4096

typedef struct function_case {
    const brg_op *op;
    double (*reference)(double x, double p);
    double p;
    double low, high; /* where the error bound holds */
    double max_ulp;
} function_case;

#define REFERENCE(name, value)                                                 \
    static double ref_##name(double x, double p)                               \
    {                                                                          \
        (void)p;                                                               \
        return value;                                                          \
    }
REFERENCE(exp, exp(x))
REFERENCE(expm1, expm1(x))
REFERENCE(log, log(x))
REFERENCE(log1p, log1p(x))
REFERENCE(tanh, tanh(x))
REFERENCE(sigmoid, x < 0 ? exp(x) / (1.0 + exp(x)) : 1.0 / (1.0 + exp(-x)))
REFERENCE(erf, erf(x))
REFERENCE(sin, sin(x))
REFERENCE(cos, cos(x))
REFERENCE(pow, pow(x, p))
REFERENCE(softplus, x > 0 ? x + log1p(exp(-x)) : log1p(exp(x)))
REFERENCE(rsqrt, 1.0 / sqrt(x))

static const function_case functions[] = {
    {&brg__op_exp, ref_exp, 0, -HUGE_VAL, HUGE_VAL, 1.5},
    {&brg__op_expm1, ref_expm1, 0, -HUGE_VAL, HUGE_VAL, 2.0},
    {&brg__op_log, ref_log, 0, -HUGE_VAL, HUGE_VAL, 1.5},
    {&brg__op_log1p, ref_log1p, 0, -HUGE_VAL, HUGE_VAL, 2.0},
    {&brg__op_tanh, ref_tanh, 0, -HUGE_VAL, HUGE_VAL, 3.0},
    {&brg__op_sigmoid, ref_sigmoid, 0, -HUGE_VAL, HUGE_VAL, 3.0},
    {&brg__op_erf, ref_erf, 0, -HUGE_VAL, HUGE_VAL, 2.0},
    {&brg__op_sin, ref_sin, 0, -1e6, 1e6, 2.0},
    {&brg__op_cos, ref_cos, 0, -1e6, 1e6, 2.0},
    {&brg__op_pow_scalar, ref_pow, 2.5, -HUGE_VAL, HUGE_VAL, 1.0},
    {&brg__op_pow_scalar, ref_pow, -3.0, -HUGE_VAL, HUGE_VAL, 1.0},
    {&brg__op_pow_scalar, ref_pow, 0.1f, -HUGE_VAL, HUGE_VAL, 1.0},
    {&brg__op_softplus, ref_softplus, 0, -80, HUGE_VAL, 4.0},
    {&brg__op_rsqrt, ref_rsqrt, 0, -HUGE_VAL, HUGE_VAL, 1.5},
};
#define N_FUNCTIONS (sizeof functions / sizeof *functions)

/* The instruction set under test. */
static brg__isa_level level;

static brg__pw_fn kernel_of(const brg_op *op, brg__ctype type)
{
    const brg__pw_row *row = op->pointwise;
    if (type == BRG__I64)
        return brg__pw_i64_base[row->index];
#if defined(BRG_HAVE_ISA_AVX512) && defined(BRG_HAVE_ISA_AVX2)
    if (level == BRG__ISA_AVX512 && type == BRG__F32)
        return brg__pw_f32_avx512[row->index];
    if (level != BRG__ISA_BASE)
        return type == BRG__F32 ? brg__pw_f32_avx2[row->index]
                                : brg__pw_f64_avx2[row->index];
#endif
    return type == BRG__F32 ? brg__pw_f32_base[row->index]
                            : brg__pw_f64_base[row->index];
}

static void apply(const function_case *f, size_t n, const float *x, float *y)
{
    double p[2] = {f->p};
    const void *in[3] = {x};
    kernel_of(f->op, BRG__F32)(n, y, in, p);
}

/* The distance in units of the last place of the f32 nearest to `want`. */
static double ulps(float got, double want)
{
    float rounded = (float)want;
    if (got != got && want != want)
        return 0.0;
    if (got == rounded)
        return 0.5;
    if (got != got || want != want || isinf(got))
        return HUGE_VAL;
    if (isinf(rounded)) /* just below overflow */
        return fabs((double)got - want) / 0x1p104;
    int exponent;
    frexp(want, &exponent);
    double unit = ldexp(1.0, (exponent < -125 ? -125 : exponent) - 24);
    return fabs((double)got - want) / unit;
}

/* Every 641st bit pattern: all exponents, both signs, NaNs. */
static double worst_error(const function_case *f, float *at)
{
    static float x[BLOCK], y[BLOCK];
    double worst = 0.0;
    uint64_t bits = 0;
    while (bits <= UINT32_MAX) {
        size_t n = 0;
        for (; n < BLOCK && bits <= UINT32_MAX; bits += 641)
            x[n++] = brg__bits_f32((uint32_t)bits);
        apply(f, n, x, y);
        for (size_t i = 0; i < n; i++) {
            if (x[i] < f->low || x[i] > f->high)
                continue;
            double error = ulps(y[i], f->reference((double)x[i], f->p));
            if (error > worst) {
                worst = error;
                *at = x[i];
            }
        }
    }
    return worst;
}

static void test_vmath__errors_are_within_the_stated_ulps(void **state)
{
    (void)state;
    size_t n_bad = 0;
    for (size_t k = 0; k < N_FUNCTIONS; k++) {
        const function_case *f = &functions[k];
        float at = 0.0f;
        double worst = worst_error(f, &at);
        print_message("%-12s %6.3f ulp at %.9g\n", f->op->name, worst,
                      (double)at);
        if (!(worst <= f->max_ulp)) {
            print_error("%s: more than the %.1f ulp allowed\n", f->op->name,
                        f->max_ulp);
            n_bad++;
        }
    }
    assert_int_equal(n_bad, 0);
}

static void test_vmath__special_values(void **state)
{
    (void)state;
    const float values[] = {0.0f,     -0.0f,    1.0f,      -1.0f,
                            1e-45f,   -1e-45f,  1.2e-38f,  3.4e38f,
                            -3.4e38f, INFINITY, -INFINITY, NAN};
    const size_t n = sizeof values / sizeof *values;
    for (size_t k = 0; k < N_FUNCTIONS; k++) {
        const function_case *f = &functions[k];
        float y[16];
        apply(f, n, values, y);
        for (size_t i = 0; i < n; i++) {
            bool is_inside = values[i] >= f->low && values[i] <= f->high;
            double want = f->reference((double)values[i], f->p);
            if (f->op == &brg__op_sin || f->op == &brg__op_cos) {
                assert_true(!(fabsf(y[i]) > 1.0f));
                assert_int_equal(y[i] != y[i], want != want);
            }
            if (is_inside && !(ulps(y[i], want) <= f->max_ulp)) {
                print_error("%s(%g) is %g, expected %g\n", f->op->name,
                            (double)values[i], (double)y[i], want);
                fail();
            }
        }
    }
}

static void test_vmath__pow_has_the_cases_of_c(void **state)
{
    (void)state;
    const float xs[] = {0.0f,  -0.0f,    1.0f,      -1.0f, 0.5f,   -0.5f,  2.0f,
                        -2.0f, INFINITY, -INFINITY, NAN,   1e-40f, -1e-40f};
    const double ps[] = {0,        1,        -1,        2,    -2,
                         3,        -3,       0.5,       -0.5, 8388609,
                         16777216, HUGE_VAL, -HUGE_VAL, NAN,  1e30};
    const size_t n = sizeof xs / sizeof *xs;
    for (size_t k = 0; k < sizeof ps / sizeof *ps; k++) {
        function_case f = {&brg__op_pow_scalar, ref_pow, ps[k], 0, 0, 1};
        float y[16];
        apply(&f, n, xs, y);
        for (size_t i = 0; i < n; i++) {
            float want = (float)pow((double)xs[i], ps[k]);
            bool is_same = want != want
                               ? y[i] != y[i]
                               : y[i] == want && signbit(y[i]) == signbit(want);
            if (!is_same && !(ulps(y[i], (double)want) <= 1.0)) {
                print_error("pow(%g, %g) is %g, expected %g\n", (double)xs[i],
                            ps[k], (double)y[i], (double)want);
                fail();
            }
        }
    }
}

/* Every kernel, in each type: a value at any place of a row of any length has
 * the bits that it has alone. */
static void check_places(const brg_op *op, brg__ctype type)
{
    enum { N = 75 };
    brg__pw_fn kernel = kernel_of(op, type);
    if (!kernel)
        return;
    size_t item = brg__ctype_size(type);
    _Alignas(64) char in[3][N * 8], row[N * 8 + 64], alone[8];
    uint64_t state = 11;
    const double p[2] = {-0.7, 1.3};
    for (int i = 0; i < 3; i++)
        for (size_t k = 0; k < N; k++) {
            double v = brg_test_uniform(&state, -3.0, 3.0);
            if (type == BRG__F32)
                ((float *)in[i])[k] = (float)v;
            else if (type == BRG__F64)
                ((double *)in[i])[k] = v;
            else
                ((int64_t *)in[i])[k] = (int64_t)(v * 5);
        }
    for (size_t first = 0; first < 9; first++)
        for (size_t n = 1; first + n <= N; n += n < 20 ? 1 : 7) {
            const void *at[3], *one[3];
            for (int i = 0; i < 3; i++)
                at[i] = in[i] + first * item;
            char *out = row + (first % 3) * item;
            kernel(n, out, at, p);
            for (size_t k = 0; k < n; k++) {
                for (int i = 0; i < 3; i++)
                    one[i] = in[i] + (first + k) * item;
                kernel(1, alone, one, p);
                if (memcmp(alone, out + k * item, item) != 0) {
                    print_error("%s: element %zu of %zu from %zu\n", op->name,
                                k, n, first);
                    fail();
                }
            }
        }
}

static void test_vmath__bits_do_not_depend_on_the_place(void **state)
{
    (void)state;
    for (size_t i = 0; brg_op_at(i); i++)
        if (brg_op_at(i)->pointwise)
            for (int type = 0; type < BRG__N_CTYPES; type++)
                check_places(brg_op_at(i), (brg__ctype)type);
}

static int set_level(void **state)
{
    level = *(const brg__isa_level *)*state;
    return 0;
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_vmath__errors_are_within_the_stated_ulps),
        cmocka_unit_test(test_vmath__special_values),
        cmocka_unit_test(test_vmath__pow_has_the_cases_of_c),
        cmocka_unit_test(test_vmath__bits_do_not_depend_on_the_place),
    };
    enum { N = sizeof tests / sizeof *tests, N_LEVELS = 3 };
    static const char *const names[N_LEVELS] = {"base", "avx2", "avx512"};
    static brg__isa_level levels[N_LEVELS] = {BRG__ISA_BASE, BRG__ISA_AVX2,
                                              BRG__ISA_AVX512};
    int n_failed = 0;
    for (int k = 0; k <= (int)brg__isa(); k++) {
        struct CMUnitTest here[N];
        for (int i = 0; i < N; i++) {
            here[i] = tests[i];
            here[i].setup_func = set_level;
            here[i].initial_state = &levels[k];
        }
        n_failed += _cmocka_run_group_tests(names[k], here, N, NULL, NULL);
    }
    return n_failed;
}
