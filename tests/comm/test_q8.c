/* SPDX-License-Identifier: Apache-2.0
 * Blocks of 8-bit numbers: rounding, what is not finite, sums beside sums of
 * doubles, dithers whose errors cancel, and the same bits from every
 * instruction set. */
#include <float.h>
#include <math.h>

#include "comm/q8.h"
#include "comm/reduce_kernels.h"
#include "core/base/dtype.h"
#include "tests/support/brg_test.h"

#define MAX_COUNT 1000
#define MAX_BLOCKS 17
#define N_SOURCES 6

static uint64_t seed;

static const size_t counts[] = {0, 1, 2, 59, 60, 61, 119, 120, 121, MAX_COUNT};
#define N_COUNTS (sizeof counts / sizeof counts[0])

/* Of very different sizes from block to block. */
static void fill(float *x, size_t n)
{
    for (size_t i = 0; i < n; i++)
        x[i] = (float)(brg_test_uniform(&seed, -1, 1) *
                       pow(10, (double)(i / BRG__Q8_N % 7) * 5 - 15));
}

static double largest(const float *x, size_t n, size_t at)
{
    double most = 0;
    size_t begin = at / BRG__Q8_N * BRG__Q8_N;
    for (size_t i = begin; i < n && i < begin + BRG__Q8_N; i++)
        most = isfinite(x[i]) ? fmax(most, fabs((double)x[i])) : most;
    return most;
}

/* Half a step of the block, whose scale may be 1/128 above max / 127. */
static double half_step(const float *x, size_t n, size_t at)
{
    return 0.501 * largest(x, n, at) / 127 * (1 + 1.0 / 128);
}

static void test_q8__rounds_to_the_step_of_its_block(void **state)
{
    (void)state;
    for (size_t c = 0; c < N_COUNTS; c++) {
        float x[MAX_COUNT + 1], back[MAX_COUNT + 1], left[MAX_COUNT + 1];
        unsigned char blocks[MAX_BLOCKS + 1][BRG__Q8_NBYTES];
        size_t n = counts[c];
        fill(x, n);
        back[n] = left[n] = 7;
        memset(blocks, 0xAB, sizeof blocks);
        brg__q8_store(blocks, x, left, n, 3);
        brg__q8_load(back, blocks, n);
        assert_true(back[n] == 7 && left[n] == 7);
        assert_int_equal(blocks[brg__q8_blocks(n)][0], 0xAB);
        for (size_t i = 0; i < n; i++) {
            assert_true(fabs((double)x[i] - (double)back[i]) <=
                        half_step(x, n, i));
            assert_true(left[i] == x[i] - back[i]);
        }
    }
}

static void test_q8__extremes_stay_finite_and_zeros_zero(void **state)
{
    (void)state;
    static const float values[] = {FLT_MAX / 2, FLT_MIN, FLT_TRUE_MIN, 1, 0};
    for (size_t k = 0; k < sizeof values / sizeof values[0]; k++) {
        float x[3] = {values[k], -values[k], 0}, back[3], left[3];
        unsigned char block[BRG__Q8_NBYTES];
        brg__q8_store(block, x, left, 3, 0);
        brg__q8_load(back, block, 3);
        for (int i = 0; i < 3; i++) {
            assert_true(isfinite(back[i]) && left[i] == x[i] - back[i]);
            assert_true(fabsf(left[i]) <= fmaxf(values[k] / 120, FLT_MIN));
        }
        assert_true(back[2] == 0);
    }
}

static void test_q8__what_is_not_finite_stays_where_it_is(void **state)
{
    (void)state;
    static const float values[] = {NAN, -NAN, INFINITY, -INFINITY};
    for (size_t k = 0; k < sizeof values / sizeof values[0]; k++)
        for (size_t at = 0; at < 70; at += 23) {
            float x[70], back[70], left[70];
            unsigned char blocks[2][BRG__Q8_NBYTES];
            fill(x, 70);
            x[at] = values[k];
            brg__q8_store(blocks, x, left, 70, 0);
            brg__q8_load(back, blocks, 70);
            assert_true(isnan(back[at]) && left[at] == 0);
            for (size_t i = 0; i < 70; i++)
                if (i != at)
                    assert_true(fabs((double)(x[i] - back[i])) <=
                                half_step(x, 70, i));
        }
}

/* ---- Sums --------------------------------------------------------------------- */

typedef struct sources {
    float x[N_SOURCES][MAX_COUNT];
    unsigned char blocks[N_SOURCES][MAX_BLOCKS][BRG__Q8_NBYTES];
    const void *src[N_SOURCES];
} sources;

/* x: what the blocks say. */
static void make_sources(sources *s, size_t n, uint16_t round)
{
    for (size_t k = 0; k < N_SOURCES; k++) {
        fill(s->x[k], n);
        brg__q8_store(s->blocks[k], s->x[k], NULL, n, round);
        brg__q8_load(s->x[k], s->blocks[k], n);
        s->src[k] = s->blocks[k];
    }
}

static brg_reduction reduction(const sources *s, void *const *dst, size_t n_src,
                               size_t n, brg_reduce_op op)
{
    return (brg_reduction){.src = s->src,
                           .dst = dst,
                           .n_src = n_src,
                           .n_dst = 1,
                           .count = brg__q8_blocks(n),
                           .dtype = BRG__DTYPE_Q8,
                           .op = op,
                           .divisor = (int)n_src};
}

static void sum_of(float *total, const sources *s, size_t from, size_t to,
                   size_t n, double factor)
{
    for (size_t i = 0; i < n; i++) {
        double sum = 0;
        for (size_t k = from; k < to; k++)
            sum += (double)s->x[k][i];
        total[i] = (float)(sum * factor);
    }
}

/* Within a step, as a dither may round either way; and one of each group's. */
static void check_sum(const sources *s, const float *found, size_t n_src,
                      size_t n, double factor, size_t group_size)
{
    static float expected[MAX_COUNT], partial[MAX_COUNT];
    double room[MAX_COUNT];
    sum_of(expected, s, 0, n_src, n, factor);
    for (size_t i = 0; i < n; i++)
        room[i] = 2.01 * half_step(expected, n, i);
    for (size_t k = 0; group_size && k < n_src; k += group_size) {
        size_t end = k + group_size < n_src ? k + group_size : n_src;
        sum_of(partial, s, k, end, n, factor);
        for (size_t i = 0; i < n;
             i++) /* which makes the last one longer, too */
            room[i] += 2.05 * half_step(partial, n, i);
    }
    for (size_t i = 0; i < n; i++)
        assert_true(fabs((double)expected[i] - (double)found[i]) <= room[i]);
}

static void test_q8__sums_are_those_of_doubles(void **state)
{
    (void)state;
    static sources s;
    for (size_t c = 0; c < N_COUNTS; c++)
        for (size_t n_src = 1; n_src <= N_SOURCES; n_src++) {
            unsigned char result[MAX_BLOCKS][BRG__Q8_NBYTES];
            float found[MAX_COUNT];
            void *dst[] = {result};
            size_t n = counts[c];
            make_sources(&s, n, (uint16_t)(c * 911));
            brg_reduction r = reduction(&s, dst, n_src, n, BRG_REDUCE_SUM);
            brg__reduce(&r);
            brg__q8_load(found, result, n);
            check_sum(&s, found, n_src, n, 1, 0);
            r.op = BRG_REDUCE_AVG;
            brg__reduce(&r);
            brg__q8_load(found, result, n);
            check_sum(&s, found, n_src, n, 1.0 / (double)n_src, 0);
            if (n_src < 3)
                continue;
            brg__reduce_grouped(&r, 2); /* rounded on two levels */
            brg__q8_load(found, result, n);
            check_sum(&s, found, n_src, n, 1.0 / (double)n_src, 2);
        }
}

static void test_q8__sums_in_place_to_all(void **state)
{
    (void)state;
    static sources s;
    unsigned char result[MAX_BLOCKS][BRG__Q8_NBYTES];
    void *dst[N_SOURCES] = {result};
    make_sources(&s, 200, 1);
    brg_reduction r = reduction(&s, dst, 3, 200, BRG_REDUCE_AVG);
    brg__reduce(&r);
    for (size_t k = 0; k < 3; k++)
        dst[k] = s.blocks[k];
    r.n_dst = 3;
    brg__reduce(&r);
    for (size_t k = 0; k < 3; k++)
        assert_memory_equal(s.blocks[k], result,
                            brg__q8_blocks(200) * BRG__Q8_NBYTES);
}

static void test_q8__sums_keep_what_is_not_finite(void **state)
{
    (void)state;
    static sources s;
    unsigned char result[MAX_BLOCKS][BRG__Q8_NBYTES];
    float found[100];
    void *dst[] = {result};
    make_sources(&s, 100, 0);
    s.x[1][7] = NAN;
    s.x[2][64] = INFINITY;
    for (size_t k = 0; k < N_SOURCES; k++)
        brg__q8_store(s.blocks[k], s.x[k], NULL, 100, 0);
    brg_reduction r = reduction(&s, dst, N_SOURCES, 100, BRG_REDUCE_AVG);
    for (int is_grouped = 0; is_grouped < 2; is_grouped++) {
        brg__reduce_grouped(&r, is_grouped ? 2 : 0);
        brg__q8_load(found, result, 100);
        for (size_t i = 0; i < 100; i++)
            assert_int_equal(isnan(found[i]) != 0, i == 7 || i == 64);
    }
    for (size_t k = 0; k < N_SOURCES; k++) { /* finite, but no sum of them */
        for (size_t i = 0; i < 100; i++)
            s.x[k][i] = FLT_MAX / 2;
        brg__q8_store(s.blocks[k], s.x[k], NULL, 100, 0);
    }
    brg__reduce(&r);
    brg__q8_load(found, result, 100);
    assert_true(isnan(found[0]) && isnan(found[99]));
}

/* The mean over rounds of a sum of the same sources. Rounding by chance would
 * leave about 20 / N_ROUNDS of a step in the worst of the elements. */
static void check_dither(size_t group_size)
{
    enum { N = 60, N_ROUNDS = 256 };
    static sources s;
    unsigned char result[1][BRG__Q8_NBYTES];
    double mean[N] = {0}, worst = 0, one = 0;
    float found[N], expected[N];
    void *dst[] = {result};
    make_sources(&s, N, 0);
    for (size_t i = 0; i < N; i++) {
        double sum = 0;
        for (size_t k = 0; k < 4; k++)
            sum += (double)s.x[k][i];
        expected[i] = (float)(sum / 4);
    }
    brg_reduction r = reduction(&s, dst, 4, N, BRG_REDUCE_AVG);
    for (uint16_t round = 0; round < N_ROUNDS; round++) {
        for (size_t k = 0; k < 4; k++)
            memcpy(s.blocks[k][0] + 2, &round, sizeof round);
        brg__reduce_grouped(&r, group_size);
        brg__q8_load(found, result, N);
        for (size_t i = 0; i < N; i++) {
            double off = (double)found[i] - (double)expected[i];
            mean[i] += off / N_ROUNDS;
            one = fmax(one, fabs(off));
        }
    }
    for (size_t i = 0; i < N; i++)
        worst = fmax(worst, fabs(mean[i]));
    double step = 2 * half_step(expected, N, 0);
    assert_true(one > 0.4 * step);
    assert_true(worst < (group_size ? 12.0 : 4.0) / N_ROUNDS * step);
}

static void test_q8__dithers_cancel_over_rounds(void **state)
{
    (void)state;
    check_dither(0);
    check_dither(2);
}

static void test_q8__same_bits_from_every_instruction_set(void **state)
{
    (void)state;
    static const char *const isas[] = {"base", "avx2", "avx512"};
    static sources s;
    static unsigned char all[3][3][MAX_BLOCKS][BRG__Q8_NBYTES];
    static float left[3][MAX_COUNT], back[3][MAX_COUNT];
    make_sources(&s, MAX_COUNT, 1234);
    fill(s.x[0], MAX_COUNT);
    s.x[0][5] = NAN;
    s.x[0][100] = -INFINITY;
    for (int i = 0; i < 3; i++) {
        const brg__reduce_table *table = brg__reduce_table_of(isas[i]);
        table = table ? table : brg__reduce_table_of("base");
        table->q8->store(all[i][0], s.x[0], left[i], MAX_COUNT, 77);
        table->q8->load(back[i], all[i][0], MAX_COUNT);
        s.src[1] = all[i][0];
        for (int partial = 0; partial < 2; partial++) {
            void *dst[] = {all[i][1 + partial]};
            brg_reduction r =
                reduction(&s, dst, N_SOURCES, MAX_COUNT, BRG_REDUCE_AVG);
            r.dst_partial = partial;
            brg__reduce_with(table, &r);
        }
        assert_memory_equal(all[0], all[i], sizeof all[0]);
        assert_memory_equal(left[0], left[i], sizeof left[0]);
        assert_memory_equal(back[0], back[i], sizeof back[0]);
    }
    assert_memory_not_equal(all[0][1], all[0][2], sizeof all[0][1]);
}

int main(void)
{
    seed = brg_test_seed(9);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_q8__rounds_to_the_step_of_its_block),
        cmocka_unit_test(test_q8__extremes_stay_finite_and_zeros_zero),
        cmocka_unit_test(test_q8__what_is_not_finite_stays_where_it_is),
        cmocka_unit_test(test_q8__sums_are_those_of_doubles),
        cmocka_unit_test(test_q8__sums_in_place_to_all),
        cmocka_unit_test(test_q8__sums_keep_what_is_not_finite),
        cmocka_unit_test(test_q8__dithers_cancel_over_rounds),
        cmocka_unit_test(test_q8__same_bits_from_every_instruction_set),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
