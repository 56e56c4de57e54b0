/* SPDX-License-Identifier: Apache-2.0
 * The NCCL backend on made-up GPUs: the contract of backends, sums in a fixed
 * order, memory. What NCCL and a GPU do themselves is tests/cuda's. */
#include "comm/q8.h"
#include "core/base/dtype.h"
#include "tests/nccl/fake_stream.h"
#include "tests/nccl/forked.h"
#include "tests/support/backend_suite.h"
#include "tests/support/half_range.h"

static const int worlds[] = {1, 2, 3, 4};

/* Sums by NCCL, and without it. */
static const char *const ways[] = {"nccl", "auto", "copy", "kernel"};

static void check_ways(int n, forked_fn fn)
{
    for (size_t k = 0; k < 4; k++)
        forked_check(n, fn, ways[k]);
}

static brg_status run_suite(forked_rank *me)
{
    brg_pg *pg;
    (void)setenv("BRG_NCCL_SUMS", me->data, 1);
    BRG_TRY(forked_group(me, 60, &pg));
    BRG_TRY(brg_suite_run_on_host(pg));
#if !defined(__SANITIZE_ADDRESS__) /* objects are not kept there */
    BRG_TRY(brg_suite_steady_state(pg));
#endif
    brg_pg_destroy(pg);
    return BRG_OK;
}

static void test_nccl__keeps_the_contract(void **state)
{
    (void)state;
    for (size_t i = 0; i < 4; i++)
        check_ways(worlds[i], run_suite);
}

static brg_status run_leaves(forked_rank *me)
{
    brg_pg *pg;
    (void)setenv("BRG_NCCL_SUMS", me->data, 1);
    BRG_TRY(forked_group(me, 60, &pg));
    BRG_TRY(brg_suite_leaves_on_host(pg));
    brg_pg_destroy(pg);
    return BRG_OK;
}

static void test_nccl__sums_leaves_in_the_tree(void **state)
{
    (void)state;
    for (size_t i = 0; i < 4; i++)
        check_ways(worlds[i], run_leaves);
}

static double value_of(int rank, size_t i)
{
    return 1.0 + 0.37 * (double)((i * 7 + (size_t)rank * 13) % 101);
}

/* In f32, in the order of the ranks, rounded once. */
static brg_status check_wide(const forked_rank *me, brg_pg *pg, brg_dtype dtype,
                             brg_reduce_op op)
{
    enum { N = 5003 };
    static uint16_t data[N];
    brg_work *work;
    for (size_t i = 0; i < N; i++)
        ranks_store(data, i, dtype, value_of(me->rank, i));
    BRG_TRY(brg_all_reduce(pg, &work, data, N, dtype, op));
    BRG_TRY(brg_work_wait(work));
    for (size_t i = 0; i < N; i++) {
        uint16_t one;
        float sum = 0;
        for (int r = 0; r < me->n; r++) {
            ranks_store(&one, 0, dtype, value_of(r, i));
            sum += (float)ranks_load(&one, 0, dtype);
        }
        if (op == BRG_REDUCE_AVG)
            sum *= 1.0f / (float)me->n;
        ranks_store(&one, 0, dtype, (double)sum);
        RANK_CHECK(data[i] == one, "rank %d: %s, element %zu is %g, not %g",
                   me->rank, brg_dtype_name(dtype), i,
                   ranks_load(data, i, dtype), ranks_load(&one, 0, dtype));
    }
    return BRG_OK;
}

static brg_status run_wide(forked_rank *me)
{
    brg_pg *pg;
    (void)setenv("BRG_NCCL_WIDE_SUMS", "1", 1);
    (void)setenv("BRG_NCCL_SUMS", me->data, 1);
    BRG_TRY(forked_group(me, 60, &pg));
    BRG_TRY(check_wide(me, pg, BRG_DTYPE_BF16, BRG_REDUCE_SUM));
    BRG_TRY(check_wide(me, pg, BRG_DTYPE_BF16, BRG_REDUCE_AVG));
    BRG_TRY(check_wide(me, pg, BRG_DTYPE_F16, BRG_REDUCE_AVG));
    BRG_TRY(brg_suite_run_on_host(pg));
    brg_pg_destroy(pg);
    return BRG_OK;
}

static void test_nccl__sums_halves_in_f32(void **state)
{
    (void)state;
    for (size_t i = 0; i < 4; i++)
        check_ways(worlds[i], run_wide);
}

/* By NCCL, which rounds at each step, and in f32. */
static brg_status run_half_range(forked_rank *me)
{
    brg_pg *pg;
    fake_nccl_set_stepped();
    (void)setenv("BRG_NCCL_SUMS", me->data, 1);
    BRG_TRY(forked_group(me, 60, &pg));
    BRG_TRY(half_check(pg, HALF_SUMS_STEPPED));
    brg_pg_destroy(pg);
    (void)setenv("BRG_NCCL_WIDE_SUMS", "1", 1);
    BRG_TRY(forked_group(me, 60, &pg));
    BRG_TRY(half_check(pg, HALF_SUMS_WIDE));
    brg_pg_destroy(pg);
    return BRG_OK;
}

static void test_nccl__averages_of_halves_do_not_overflow(void **state)
{
    (void)state;
    for (size_t i = 1; i < 4; i++)
        forked_check(worlds[i], run_half_range, "nccl");
    forked_check(3, run_half_range, "auto");
}

/* Of all sizes, in memory of the host and of the GPU; `direct`: NCCL has no part
 * in it. */
static brg_status check_without_nccl(const forked_rank *me, brg_pg *pg,
                                     bool direct)
{
    static const size_t counts[] = {1, 3000, 30000, 300001};
    brg_work *work;
    for (size_t c = 0; c < 4; c++) {
        float *data;
        const unsigned long before = fake_nccl_n_queued();
        BRG_TRY(brg_pg_alloc(pg, (void **)&data, counts[c] * sizeof *data));
        forked_synchronize(me);
        for (size_t i = 0; i < counts[c]; i++)
            data[i] = (float)(i % 1000) * (float)(me->rank + 1);
        for (int k = 0; k < 3; k++)
            BRG_TRY(brg_all_reduce(pg, &work, data, counts[c], BRG_DTYPE_F32,
                                   k ? BRG_REDUCE_AVG : BRG_REDUCE_SUM));
        BRG_TRY(brg_work_wait(work));
        forked_synchronize(me);
        const float each = (float)me->n * (float)(me->n + 1) / 2;
        for (size_t i = 0; i < counts[c]; i++)
            RANK_CHECK(data[i] == (float)(i % 1000) * each,
                       "rank %d: element %zu of %zu is %g", me->rank, i,
                       counts[c], (double)data[i]);
        RANK_CHECK((fake_nccl_n_queued() == before) == direct,
                   "rank %d: %zu elements, %d kernels of NCCL", me->rank,
                   counts[c], (int)(fake_nccl_n_queued() - before));
        brg_pg_free(pg, data);
    }
    return BRG_OK;
}

static brg_status run_without_nccl(forked_rank *me)
{
    brg_pg *pg, *far;
    (void)setenv("BRG_NCCL_SUMS", "auto", 1);
    BRG_TRY(forked_group(me, 60, &pg));
    BRG_TRY(check_without_nccl(me, pg, true));
    if (me->rank == 1) /* so none of them does */
        fake_gpu_set_no_peers();
    BRG_TRY(forked_group(me, 60, &far));
    BRG_TRY(check_without_nccl(me, far, false));
    BRG_TRY(check_without_nccl(me, pg, true));
    brg_pg_destroy(far);
    brg_pg_destroy(pg);
    return BRG_OK;
}

static void test_nccl__sums_without_nccl(void **state)
{
    (void)state;
    forked_check(2, run_without_nccl, NULL);
    forked_check(3, run_without_nccl, NULL);
}

/* One rank has it switched off. */
static brg_status run_one_refuses(forked_rank *me)
{
    brg_pg *pg;
    (void)setenv("BRG_NCCL_SUMS", me->rank == 0 ? "auto" : "nccl", 1);
    BRG_TRY(forked_group(me, 60, &pg));
    BRG_TRY(check_without_nccl(me, pg, false));
    brg_pg_destroy(pg);
    return BRG_OK;
}

static void test_nccl__sums_by_nccl_where_a_rank_refuses(void **state)
{
    (void)state;
    forked_check(3, run_one_refuses, NULL);
}

/* ---- Order of streams ---------------------------------------------------------- */

enum { N_QUEUED = 3001 };

/* A kernel that takes its time: without it the data is not there. */
typedef struct late_kernel {
    float *to;
    const float *from;
    long ms;
} late_kernel;

static void run_late(void *args)
{
    const late_kernel *k = args;
    forked_sleep_ms(k->ms);
    memcpy(k->to, k->from, N_QUEUED * sizeof *k->to);
}

/* Ranks are late by their number, so that the first one's compute stream is
 * done long before the sum is. */
static brg_status check_order(const forked_rank *me, brg_pg *pg, float *there,
                              int round)
{
    static float mine[N_QUEUED], got[N_QUEUED];
    fake_stream *stream = me->stream;
    brg_work *work;
    for (size_t i = 0; i < N_QUEUED; i++)
        mine[i] = (float)ranks_gradient(me->rank, round, 0, i);
    late_kernel produce = {there, mine, 30 * (me->rank + 1)};
    late_kernel consume = {got, there, 0};
    fake_push(stream, run_late, &produce, sizeof produce);
    BRG_TRY(brg_all_reduce(pg, &work, there, N_QUEUED, BRG_DTYPE_F32,
                           BRG_REDUCE_AVG));
    BRG_TRY(brg_work_wait(work));
    fake_push(stream, run_late, &consume, sizeof consume);
    forked_synchronize(me);
    for (size_t i = 0; i < N_QUEUED; i++) {
        double want = ranks_average(me->n, round, 0, i);
        double off = (double)got[i] - want;
        RANK_CHECK(off < 1e-6 && off > -1e-6,
                   "rank %d, round %d: element %zu is %g, not %g", me->rank,
                   round, i, (double)got[i], want);
    }
    return BRG_OK;
}

static brg_status run_queued(forked_rank *me)
{
    brg_pg *pg;
    void *there;
    BRG_TRY(forked_group(me, 60, &pg));
    RANK_CHECK(cudaMalloc(&there, N_QUEUED * sizeof(float)) == cudaSuccess,
               "no memory");
    brg_status status = BRG_OK;
    for (int round = 0; round < 4 && status == BRG_OK; round++)
        status = check_order(me, pg, there, round);
    (void)cudaFree(there);
    brg_pg_destroy(pg);
    return status;
}

static void test_nccl__reduces_what_the_compute_stream_makes(void **state)
{
    (void)state;
    for (size_t i = 1; i < 4; i++)
        forked_check(worlds[i], run_queued, NULL);
}

/* Sums of 8-bit blocks: the bytes that the host's loops make of all ranks'
 * blocks. */
static brg_status check_blocks(const forked_rank *me, brg_pg *pg, size_t n,
                               brg_reduce_op op)
{
    enum { MOST = 300 };
    static _Alignas(64) unsigned char blocks[4][MOST][BRG__Q8_NBYTES];
    static _Alignas(64) unsigned char want[MOST][BRG__Q8_NBYTES];
    static float x[MOST * BRG__Q8_N];
    const void *src[4];
    void *dst[1] = {want};
    brg_work *work;
    for (int r = 0; r < me->n; r++) {
        for (size_t i = 0; i < n * BRG__Q8_N; i++)
            x[i] = (float)(value_of(r, i) - 18);
        brg__q8_store(blocks[r], x, NULL, n * BRG__Q8_N, 7);
        src[r] = blocks[r];
    }
    brg_host_get()->reduce(&(brg_reduction){.src = src,
                                            .dst = dst,
                                            .n_src = (size_t)me->n,
                                            .n_dst = 1,
                                            .count = n,
                                            .dtype = BRG__DTYPE_Q8,
                                            .op = op,
                                            .divisor = me->n});
    BRG_TRY(brg__all_reduce_q8(pg, &work, blocks[me->rank], n, op));
    BRG_TRY(brg_work_wait(work));
    RANK_CHECK(memcmp(blocks[me->rank], want, n * BRG__Q8_NBYTES) == 0,
               "rank %d of %d: %zu blocks differ", me->rank, me->n, n);
    return BRG_OK;
}

static brg_status run_blocks(forked_rank *me)
{
    static const size_t sizes[] = {1, 2, 3, 70, 300};
    brg_pg *pg;
    BRG_TRY(forked_group(me, 60, &pg));
    for (size_t i = 0; i < 5; i++) {
        BRG_TRY(check_blocks(me, pg, sizes[i], BRG_REDUCE_AVG));
        BRG_TRY(check_blocks(me, pg, sizes[i], BRG_REDUCE_SUM));
    }
    brg_pg_destroy(pg);
    return BRG_OK;
}

static void test_nccl__sums_blocks_of_8_bits(void **state)
{
    (void)state;
    for (size_t i = 0; i < 4; i++)
        forked_check(worlds[i], run_blocks, NULL);
}

/* Blocks come and go, with the group and before it. */
static brg_status run_registered(forked_rank *me)
{
    brg_pg *pg;
    float *a, *b, *c;
    brg_work *work;
    (void)setenv("BRG_NCCL_REGISTER", "1", 1);
    BRG_TRY(forked_group(me, 60, &pg));
    BRG_TRY(brg_pg_alloc(pg, (void **)&a, 4000));
    BRG_TRY(brg_pg_alloc(pg, (void **)&b, 0));
    BRG_TRY(brg_pg_alloc(pg, (void **)&c, 4000));
    brg_pg_free(pg, a);
    forked_synchronize(me);
    for (int i = 0; i < 1000; i++) {
        RANK_CHECK(c[i] == 0, "memory is not zero");
        c[i] = (float)(me->rank + i);
    }
    BRG_TRY(brg_all_reduce(pg, &work, c, 1000, BRG_DTYPE_F32, BRG_REDUCE_MAX));
    BRG_TRY(brg_work_wait(work));
    forked_synchronize(me);
    for (int i = 0; i < 1000; i++)
        RANK_CHECK(c[i] == (float)(me->n - 1 + i), "element %d", i);
    brg_pg_destroy(pg);
    return BRG_OK;
}

static void test_nccl__takes_memory_from_nccl(void **state)
{
    (void)state;
    forked_check(2, run_registered, NULL);
}

/* NCCL's own way of making a communicator. */
static brg_status run_unbounded(forked_rank *me)
{
    brg_pg *pg;
    (void)setenv("BRG_NCCL_BOUNDED_INIT", "0", 1);
    BRG_TRY(forked_group(me, 60, &pg));
    BRG_TRY(brg_suite_run_on_host(pg));
    brg_pg_destroy(pg);
    return BRG_OK;
}

static void test_nccl__joins_without_a_bound(void **state)
{
    (void)state;
    forked_check(2, run_unbounded, NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_nccl__keeps_the_contract),
        cmocka_unit_test(test_nccl__sums_leaves_in_the_tree),
        cmocka_unit_test(test_nccl__sums_halves_in_f32),
        cmocka_unit_test(test_nccl__averages_of_halves_do_not_overflow),
        cmocka_unit_test(test_nccl__reduces_what_the_compute_stream_makes),
        cmocka_unit_test(test_nccl__sums_blocks_of_8_bits),
        cmocka_unit_test(test_nccl__takes_memory_from_nccl),
        cmocka_unit_test(test_nccl__sums_without_nccl),
        cmocka_unit_test(test_nccl__sums_by_nccl_where_a_rank_refuses),
        cmocka_unit_test(test_nccl__joins_without_a_bound),
    };
    return cmocka_run_group_tests_name("nccl", tests, NULL, NULL);
}
