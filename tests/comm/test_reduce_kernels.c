/* SPDX-License-Identifier: Apache-2.0
 * The reductions: rounding, wrapping, NaN, partials, and the same bits from
 * every instruction set. The values themselves are checked against a reference
 * by the backend suite. */
#include <math.h>

#include "comm/reduce_kernels.h"
#include "core/base/dtype.h"
#include "tests/support/brg_test.h"

#define MAX_SOURCES 5
#define MAX_COUNT 1600

static uint64_t seed;

/* Any bits, but no NaN and nothing huge among floats. */
static void fill(unsigned char *data, size_t count, brg_dtype dtype)
{
    for (size_t i = 0; i < count; i++) {
        double x = brg_test_uniform(&seed, -3, 3);
        uint64_t bits = brg_test_random(&seed);
        size_t nbytes = brg_dtype_size(dtype);
        uint16_t half = dtype == BRG_DTYPE_F16 ? brg__f32_to_f16((float)x)
                                               : brg__f32_to_bf16((float)x);
        float single = (float)x;
        const void *from = &bits;
        if (dtype == BRG_DTYPE_F64)
            from = &x;
        else if (dtype == BRG_DTYPE_F32)
            from = &single;
        else if (nbytes == 2)
            from = &half;
        memcpy(data + i * nbytes, from, nbytes);
    }
}

static unsigned char sources[MAX_SOURCES][MAX_COUNT * 8];
static unsigned char results[3][MAX_COUNT * 8];

static brg_reduction make(brg_dtype dtype, brg_reduce_op op, size_t n_src,
                          size_t count)
{
    static const void *src[MAX_SOURCES];
    static void *dst[1];
    for (size_t k = 0; k < MAX_SOURCES; k++)
        src[k] = sources[k];
    dst[0] = results[0];
    return (brg_reduction){.src = src,
                           .dst = dst,
                           .n_src = n_src,
                           .n_dst = 1,
                           .count = count,
                           .dtype = dtype,
                           .op = op,
                           .divisor = (int)n_src};
}

static void test_reduce__same_bits_from_every_instruction_set(void **state)
{
    (void)state;
    static const char *const isas[] = {"base", "avx2", "avx512"};
    for (int dtype = 0; dtype < BRG_N_DTYPES; dtype++)
        for (int op = 0; op < BRG_N_REDUCE_OPS; op++) {
            for (size_t k = 0; k < MAX_SOURCES; k++)
                fill(sources[k], MAX_COUNT, (brg_dtype)dtype);
            brg_reduction r =
                make((brg_dtype)dtype, (brg_reduce_op)op, MAX_SOURCES, 1117);
            for (int i = 0; i < 3; i++) {
                const brg__reduce_table *table = brg__reduce_table_of(isas[i]);
                void *dst[1] = {results[i]};
                r.dst = dst;
                memset(results[i], 0, sizeof results[i]);
                if (table)
                    brg__reduce_with(table, &r);
                else
                    memcpy(results[i], results[0], sizeof results[0]);
            }
            assert_memory_equal(results[0], results[1], sizeof results[0]);
            assert_memory_equal(results[0], results[2], sizeof results[0]);
        }
}

static void test_reduce__halves_round_once(void **state)
{
    (void)state;
    /* 2048 + 1 + 1: two roundings in f16 would lose both ones. */
    uint16_t big = brg__f32_to_f16(2048), one = brg__f32_to_f16(1);
    uint16_t expected = brg__f32_to_f16(2050), found;
    memcpy(sources[0], &big, 2);
    memcpy(sources[1], &one, 2);
    memcpy(sources[2], &one, 2);
    brg_reduction r = make(BRG_DTYPE_F16, BRG_REDUCE_SUM, 3, 1);
    brg__reduce(&r);
    memcpy(&found, results[0], 2);
    assert_int_equal(found, expected);
}

static void test_reduce__sums_in_order(void **state)
{
    (void)state;
    float values[3] = {1e8f, 1.0f, -1e8f}, found;
    for (int k = 0; k < 3; k++)
        memcpy(sources[k], &values[k], 4);
    brg_reduction r = make(BRG_DTYPE_F32, BRG_REDUCE_SUM, 3, 1);
    brg__reduce(&r);
    memcpy(&found, results[0], 4);
    assert_true(found == 0.0f);
}

static void test_reduce__nan_wins_min_and_max(void **state)
{
    (void)state;
    for (int op = BRG_REDUCE_MIN; op <= BRG_REDUCE_MAX; op++)
        for (int at = 0; at < 3; at++) {
            for (int k = 0; k < 3; k++) {
                float x = k == at ? NAN : (float)k;
                memcpy(sources[k], &x, 4);
            }
            brg_reduction r = make(BRG_DTYPE_F32, (brg_reduce_op)op, 3, 1);
            float found;
            brg__reduce(&r);
            memcpy(&found, results[0], 4);
            assert_true(isnan(found));
        }
}

static void test_reduce__average_of_integers_goes_towards_zero(void **state)
{
    (void)state;
    int32_t values[2] = {-4, -3}, found;
    memcpy(sources[0], &values[0], 4);
    memcpy(sources[1], &values[1], 4);
    brg_reduction r = make(BRG_DTYPE_I32, BRG_REDUCE_AVG, 2, 1);
    brg__reduce(&r);
    memcpy(&found, results[0], 4);
    assert_int_equal(found, -3);
}

/* In place, to several destinations at once. */
static void test_reduce__destinations_may_be_sources(void **state)
{
    (void)state;
    static float data[3][1000];
    const void *src[3];
    void *dst[3];
    for (int k = 0; k < 3; k++) {
        src[k] = dst[k] = data[k];
        for (int i = 0; i < 1000; i++)
            data[k][i] = (float)(i * (k + 1));
    }
    brg_reduction r = {.src = src,
                       .dst = dst,
                       .n_src = 3,
                       .n_dst = 3,
                       .count = 1000,
                       .dtype = BRG_DTYPE_F32,
                       .op = BRG_REDUCE_SUM};
    brg__reduce(&r);
    for (int k = 0; k < 3; k++)
        for (int i = 0; i < 1000; i++)
            assert_true(data[k][i] == (float)(i * 6));
}

/* (a + b) + (c + d), in f32 for bf16, rounded at the end. */
static void test_reduce__groups_are_summed_first(void **state)
{
    (void)state;
    static uint16_t data[4][700];
    const void *src[4];
    uint16_t found[700];
    void *dst[1] = {found};
    for (int k = 0; k < 4; k++) {
        src[k] = data[k];
        fill((unsigned char *)data[k], 700, BRG_DTYPE_BF16);
    }
    brg_reduction r = {.src = src,
                       .dst = dst,
                       .n_src = 4,
                       .n_dst = 1,
                       .count = 700,
                       .dtype = BRG_DTYPE_BF16,
                       .op = BRG_REDUCE_SUM,
                       .divisor = 4};
    brg__reduce_grouped(&r, 2);
    for (int i = 0; i < 700; i++) {
        float x[4];
        for (int k = 0; k < 4; k++)
            x[k] = brg__bf16_to_f32(data[k][i]);
        float sum = (x[0] + x[1]) + (x[2] + x[3]);
        assert_int_equal(found[i], brg__f32_to_bf16(sum));
    }
}

int main(void)
{
    seed = brg_test_seed(5);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reduce__same_bits_from_every_instruction_set),
        cmocka_unit_test(test_reduce__halves_round_once),
        cmocka_unit_test(test_reduce__sums_in_order),
        cmocka_unit_test(test_reduce__nan_wins_min_and_max),
        cmocka_unit_test(test_reduce__average_of_integers_goes_towards_zero),
        cmocka_unit_test(test_reduce__destinations_may_be_sources),
        cmocka_unit_test(test_reduce__groups_are_summed_first),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
