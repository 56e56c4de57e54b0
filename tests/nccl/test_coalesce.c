/* SPDX-License-Identifier: Apache-2.0
 * Coalesced collectives over NCCL on made-up GPUs: what is launched as one, in
 * graphs too, ranks that do not coalesce the same calls, failures. That their
 * results are right for every kind of call is the contract's (test_contract). */
#include "comm/pg.h"
#include "tests/nccl/fake_stream.h"
#include "tests/nccl/forked.h"
#include "tests/support/backend_suite.h"

enum { N_CALLS = 16, N = 1000 };

typedef struct calls {
    brg_pg *pg;
    float *data; /* N for each */
    brg_work *works[N_CALLS];
} calls;

static brg_status make(forked_rank *me, double timeout_s, calls *c)
{
    BRG_TRY(forked_group(me, timeout_s, &c->pg));
    BRG_TRY(brg_pg_alloc(c->pg, (void **)&c->data,
                         (size_t)N_CALLS * N * sizeof(float)));
    forked_synchronize(me);
    return BRG_OK;
}

static void fill(const forked_rank *me, calls *c)
{
    for (int i = 0; i < N_CALLS * N; i++)
        c->data[i] = (float)(i % 77) * (float)(1 << me->rank);
}

static brg_status check_sums(const forked_rank *me, const calls *c, float times)
{
    const float each = (float)((1 << me->n) - 1) * times;
    forked_synchronize(me);
    for (int i = 0; i < N_CALLS * N; i++)
        RANK_CHECK(c->data[i] == (float)(i % 77) * each,
                   "rank %d: element %d is %g", me->rank, i,
                   (double)c->data[i]);
    return BRG_OK;
}

static brg_status reduce(calls *c, int k, size_t count)
{
    return brg_all_reduce(c->pg, &c->works[k], c->data + (size_t)k * N, count,
                          BRG_DTYPE_F32, BRG_REDUCE_SUM);
}

static brg_status start_all(calls *c)
{
    for (int k = 0; k < N_CALLS; k++)
        BRG_TRY(reduce(c, k, N));
    return BRG_OK;
}

static brg_status wait_all(calls *c)
{
    for (int k = 0; k < N_CALLS; k++)
        BRG_TRY(brg_work_wait(c->works[k]));
    return BRG_OK;
}

static brg_status start_coalesced(calls *c)
{
    BRG_TRY(brg_coalesce_begin(c->pg));
    BRG_TRY(start_all(c));
    return brg_coalesce_end(c->pg);
}

/* ---- Launches ------------------------------------------------------------------- */

typedef struct variant {
    const char *sums;
    unsigned long n_alone, n_coalesced; /* launches of NCCL's */
} variant;

static brg_status run_launches(forked_rank *me)
{
    const variant *v = me->data;
    calls c;
    (void)setenv("BRG_NCCL_SUMS", v->sums, 1);
    BRG_TRY(make(me, 60, &c));
    for (int is_coalesced = 0; is_coalesced < 2; is_coalesced++) {
        fill(me, &c);
        const unsigned long before = fake_nccl_n_queued();
        BRG_TRY(is_coalesced ? start_coalesced(&c) : start_all(&c));
        const unsigned long n = fake_nccl_n_queued() - before;
        RANK_CHECK(n == (is_coalesced ? v->n_coalesced : v->n_alone),
                   "rank %d: %d launches", me->rank, (int)n);
        BRG_TRY(wait_all(&c));
        BRG_TRY(check_sums(me, &c, 1));
    }
    brg_pg_destroy(c.pg);
    return BRG_OK;
}

static void test_coalesce__one_launch(void **state)
{
    (void)state;
    for (int n = 2; n <= 4; n++) {
        forked_check(n, run_launches, &(variant){"nccl", N_CALLS, 1});
        forked_check(n, run_launches, &(variant){"auto", 0, 0});
    }
}

/* Sums of our own are launched between those of NCCL's, in order. */
static brg_status run_mixed(forked_rank *me)
{
    brg_pg *pg;
    float *data;
    uint16_t *half;
    brg_work *works[5];
    (void)setenv("BRG_NCCL_WIDE_SUMS", "1", 1);
    BRG_TRY(forked_group(me, 60, &pg));
    BRG_TRY(brg_pg_alloc(pg, (void **)&data, 4 * sizeof *data));
    BRG_TRY(brg_pg_alloc(pg, (void **)&half, sizeof *half));
    forked_synchronize(me);
    for (int i = 0; i < 4; i++)
        data[i] = (float)(i + 1);
    ranks_store(half, 0, BRG_DTYPE_BF16, me->rank + 1);
    const unsigned long before = fake_nccl_n_queued();
    BRG_TRY(brg_coalesce_begin(pg));
    for (int i = 0; i < 4; i++) {
        BRG_TRY(brg_all_reduce(pg, &works[i], &data[i], 1, BRG_DTYPE_F32,
                               BRG_REDUCE_SUM));
        if (i == 1)
            BRG_TRY(brg_all_reduce(pg, &works[4], half, 1, BRG_DTYPE_BF16,
                                   BRG_REDUCE_SUM));
    }
    RANK_CHECK(fake_nccl_n_queued() == before, "launched before the end");
    BRG_TRY(brg_coalesce_end(pg));
    /* two, and what the wide sum exchanges before it and after */
    RANK_CHECK(fake_nccl_n_queued() - before == 4, "%d launches",
               (int)(fake_nccl_n_queued() - before));
    for (int i = 5; i-- > 0;)
        BRG_TRY(brg_work_wait(works[i]));
    forked_synchronize(me);
    for (int i = 0; i < 4; i++)
        RANK_CHECK(data[i] == (float)(me->n * (i + 1)), "data[%d] = %g", i,
                   (double)data[i]);
    RANK_CHECK(ranks_load(half, 0, BRG_DTYPE_BF16) == 3, "half = %g",
               ranks_load(half, 0, BRG_DTYPE_BF16));
    brg_pg_destroy(pg);
    return BRG_OK;
}

static void test_coalesce__sums_of_our_own_in_between(void **state)
{
    (void)state;
    forked_check(2, run_mixed, NULL);
}

/* ---- Graphs ---------------------------------------------------------------------- */

/* Sums of sums: each launch multiplies by what the ranks are. */
static brg_status run_recorded(forked_rank *me)
{
    enum { N_LAUNCHES = 3 };
    calls c;
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    cudaStream_t stream = (cudaStream_t)me->stream;
    float times = 1;
    (void)setenv("BRG_NCCL_SUMS", "nccl", 1);
    BRG_TRY(make(me, 60, &c));
    fill(me, &c);
    const unsigned long before = fake_nccl_n_queued();
    (void)cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal);
    BRG_TRY(start_coalesced(&c));
    BRG_TRY(wait_all(&c));
    RANK_CHECK(cudaStreamEndCapture(stream, &graph) == cudaSuccess, "capture");
    RANK_CHECK(fake_nccl_n_queued() - before == 1, "%d launches",
               (int)(fake_nccl_n_queued() - before));
    RANK_CHECK(cudaGraphInstantiate(&exec, graph,
                                    cudaGraphInstantiateFlagUseNodePriority) ==
                   cudaSuccess,
               "a graph");
    for (int i = 0; i < N_LAUNCHES; i++) {
        (void)cudaGraphLaunch(exec, stream);
        brg__pg_launched(c.pg, N_CALLS);
        times *= i ? (float)me->n : 1;
    }
    BRG_TRY(check_sums(me, &c, times));
    BRG_TRY(start_coalesced(&c)); /* behind it */
    BRG_TRY(wait_all(&c));
    BRG_TRY(check_sums(me, &c, times * (float)me->n));
    (void)cudaGraphExecDestroy(exec);
    (void)cudaGraphDestroy(graph);
    brg_pg_destroy(c.pg);
    return BRG_OK;
}

static void test_coalesce__launched_with_a_graph(void **state)
{
    (void)state;
    for (int n = 1; n <= 3; n++)
        forked_check(n, run_recorded, NULL);
}

/* Begun before the recording: neither it nor the program would have all. */
static brg_status run_across(forked_rank *me)
{
    calls c;
    cudaGraph_t graph;
    cudaStream_t stream = (cudaStream_t)me->stream;
    BRG_TRY(make(me, 60, &c));
    BRG_TRY(brg_coalesce_begin(c.pg));
    BRG_TRY(reduce(&c, 0, N));
    (void)cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal);
    BRG_TRY(reduce(&c, 1, N));
    RANK_FAILS(brg_coalesce_end(c.pg), BRG_ERR_STATE,
               "before a graph was recorded");
    RANK_CHECK(cudaStreamEndCapture(stream, &graph) == cudaSuccess, "capture");
    (void)cudaGraphDestroy(graph);
    fill(me, &c);
    BRG_TRY(start_coalesced(&c)); /* the group is as it was */
    BRG_TRY(wait_all(&c));
    BRG_TRY(check_sums(me, &c, 1));
    brg_pg_destroy(c.pg);
    return BRG_OK;
}

static void test_coalesce__across_the_start_of_a_recording(void **state)
{
    (void)state;
    forked_check(2, run_across, NULL);
}

/* ---- Ranks that differ -------------------------------------------------------------- */

/* The host's wait for the GPU ends, then the group fails. */
static brg_status lose(const forked_rank *me, calls *c)
{
    BRG_TRY(wait_all(c));
    forked_synchronize(me);
    BRG_TRY(reduce(c, 0, N));
    return brg_work_wait(c->works[0]);
}

/* Rank 1 coalesces all but the first, or sums less in its fifth call. */
static brg_status run_differs(forked_rank *me)
{
    const bool is_shorter = *(const int *)me->data == 1;
    const bool is_odd = me->rank == 1;
    calls c;
    BRG_TRY(make(me, 60, &c));
    fill(me, &c);
    if (is_odd)
        forked_sleep_ms(100);
    if (is_odd && !is_shorter)
        BRG_TRY(reduce(&c, 0, N));
    BRG_TRY(brg_coalesce_begin(c.pg));
    for (int k = is_odd && !is_shorter; k < N_CALLS; k++)
        BRG_TRY(reduce(&c, k, is_odd && is_shorter && k == 4 ? N / 2 : N));
    BRG_TRY(brg_coalesce_end(c.pg));
    brg_status status = lose(me, &c);
    for (int i = 0; i < N_CALLS * N; i++)
        RANK_CHECK(c.data[i] == (float)(i % 77) * (float)(1 << me->rank) ||
                       !is_odd,
                   "rank %d: data has moved", me->rank);
    return status;
}

static void test_coalesce__ranks_coalesce_other_calls(void **state)
{
    (void)state;
    forked_result results[3];
    for (int n = 2; n <= 3; n++) {
        forked_run(n, run_differs, &(int){0}, results);
        for (int r = 0; r < n; r++)
            forked_expect(&results[r], BRG_ERR_MISMATCH,
                          "at the same calls on all ranks");
        forked_expect(&results[0], BRG_ERR_MISMATCH,
                      "rank 0: all_reduce #0 (1000 f32, sum) is number 1 of "
                      "coalesced ones, but not coalesced on rank 1");
    }
}

static void test_coalesce__one_of_the_calls_differs(void **state)
{
    (void)state;
    forked_result results[2];
    forked_run(2, run_differs, &(int){1}, results);
    for (int r = 0; r < 2; r++)
        forked_expect(&results[r], BRG_ERR_MISMATCH, "all_reduce #4 (500 f32");
}

/* Rank 1 forgets the end. */
static brg_status run_endless(forked_rank *me)
{
    calls c;
    BRG_TRY(make(me, 0.5, &c));
    if (me->rank == 0) {
        BRG_TRY(start_coalesced(&c));
        return lose(me, &c);
    }
    BRG_TRY(brg_coalesce_begin(c.pg));
    BRG_TRY(start_all(&c));
    forked_sleep_ms(1200);
    brg_pg_destroy(c.pg);
    return BRG_OK;
}

static void test_coalesce__a_rank_forgets_the_end(void **state)
{
    (void)state;
    forked_result results[2];
    forked_run(2, run_endless, NULL, results);
    forked_expect(&results[0], BRG_ERR_TIMEOUT,
                  "all_reduce #0 (1000 f32, sum), the first of 16 coalesced "
                  "ones, timed out after 0.5 s; rank 1 has not started it");
    assert_int_equal(results[1].status, BRG_OK);
}

/* ---- Failures ------------------------------------------------------------------------ */

/* No event can be recorded: nothing is launched, nothing is taken for done. */
static brg_status run_no_event(forked_rank *me)
{
    calls c;
    BRG_TRY(make(me, 60, &c));
    BRG_TRY(brg_coalesce_begin(c.pg));
    BRG_TRY(start_all(&c));
    fake_gpu_fail_record(1);
    RANK_FAILS(brg_coalesce_end(c.pg), BRG_ERR_NOMEM, "an event");
    for (int k = 1; k < N_CALLS; k++)
        brg_work_release(c.works[k]);
    RANK_FAILS(brg_work_wait(c.works[0]), BRG_ERR_STATE, "was given up");
    brg_pg_destroy(c.pg);
    return BRG_OK;
}

static void test_coalesce__no_memory_for_the_launch(void **state)
{
    (void)state;
    forked_check(1, run_no_event, NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_coalesce__one_launch),
        cmocka_unit_test(test_coalesce__sums_of_our_own_in_between),
        cmocka_unit_test(test_coalesce__launched_with_a_graph),
        cmocka_unit_test(test_coalesce__across_the_start_of_a_recording),
        cmocka_unit_test(test_coalesce__ranks_coalesce_other_calls),
        cmocka_unit_test(test_coalesce__one_of_the_calls_differs),
        cmocka_unit_test(test_coalesce__a_rank_forgets_the_end),
        cmocka_unit_test(test_coalesce__no_memory_for_the_launch),
    };
    return cmocka_run_group_tests_name("coalesce", tests, NULL, NULL);
}
