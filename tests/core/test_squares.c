/* SPDX-License-Identifier: Apache-2.0
 * Sums of squares: against sums in long double, and the same bits from every
 * instruction set that the processor has. */
#include <math.h>
#include <string.h>

#include "core/ops/convert.h"
#include "core/ops/isa.h"
#include "core/ops/squares.h"
#include "tests/support/brg_test.h"

#define MAX_N 1100

static double x[MAX_N];

static void fill(uint64_t seed)
{
    for (size_t i = 0; i < MAX_N; i++)
        x[i] = (double)(brg_test_random(&seed) % 20001) / 7001 - 1.5;
}

static const size_t ns[] = {0, 1, 7, 15, 16, 17, 31, 33, 255, 256, 257, MAX_N};

static void test_squares__are_those_of_every_dtype(void **state)
{
    (void)state;
    static const brg_dtype dtypes[] = {BRG_DTYPE_F64, BRG_DTYPE_F32,
                                       BRG_DTYPE_F16, BRG_DTYPE_BF16};
    fill(brg_test_seed(7));
    for (size_t d = 0; d < 4; d++) {
        double at[MAX_N], back[MAX_N];
        brg__convert_row(at, dtypes[d], x, BRG_DTYPE_F64, MAX_N);
        brg__convert_row(back, BRG_DTYPE_F64, at, dtypes[d], MAX_N);
        for (size_t k = 0; k < sizeof ns / sizeof *ns; k++) {
            long double want = 0;
            for (size_t i = 0; i < ns[k]; i++)
                want += (long double)back[i] * back[i];
            const double sum = brg__sum_squares(at, dtypes[d], ns[k]);
            assert_true(fabsl(sum - want) <= 1e-14L * want);
        }
    }
}

static void test_squares__have_one_set_of_bits(void **state)
{
    (void)state;
    static const brg__square_kernels *const kernels[] = {
        &brg__squares_base,
#ifdef BRG_HAVE_ISA_AVX512
        &brg__squares_avx2,
        &brg__squares_avx512,
#endif
    };
    float narrow[MAX_N];
    fill(brg_test_seed(7) + 1);
    brg__convert_row(narrow, BRG_DTYPE_F32, x, BRG_DTYPE_F64, MAX_N);
    for (int k = 0; k <= (int)brg__isa(); k++)
        for (size_t i = 0; i < sizeof ns / sizeof *ns; i++) {
            const double a = kernels[0]->f64(x, ns[i]),
                         b = kernels[k]->f64(x, ns[i]);
            assert_memory_equal(&a, &b, sizeof a);
            const double c = kernels[0]->f32(narrow, ns[i]),
                         e = kernels[k]->f32(narrow, ns[i]);
            assert_memory_equal(&c, &e, sizeof c);
        }
}

/* What is not finite is not lost in a sum. */
static void test_squares__say_what_is_not_finite(void **state)
{
    (void)state;
    for (size_t i = 0; i < 40; i++) {
        float y[40] = {0};
        y[i] = INFINITY;
        assert_true(isinf(brg__sum_squares(y, BRG_DTYPE_F32, 40)));
        y[i] = NAN;
        assert_true(isnan(brg__sum_squares(y, BRG_DTYPE_F32, 40)));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_squares__are_those_of_every_dtype),
        cmocka_unit_test(test_squares__have_one_set_of_bits),
        cmocka_unit_test(test_squares__say_what_is_not_finite),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
