/* SPDX-License-Identifier: Apache-2.0
 * What a group over NCCL notices that NCCL does not, on made-up GPUs: ranks that
 * die, leave, come late or do something else. No wait for the GPU lasts. */
#include "comm/pg.h"
#include "tests/nccl/forked.h"
#include "tests/support/backend_suite.h"

#define N 1000
#define SOON_S 5 /* what is found without a time-out */

/* Sums by NCCL, by one kernel without it, by copies without it. */
static const struct way {
    const char *sums;
    size_t n;
} ways[] = {{"nccl", N}, {"auto", N}, {"auto", 40 * N}};
#define N_WAYS 3
static size_t n_summed = N;

static void take_way(int k)
{
    (void)setenv("BRG_NCCL_SUMS", ways[k].sums, 1);
    n_summed = ways[k].n;
}

static brg_status reduce(brg_pg *pg, void *data)
{
    brg_work *work;
    BRG_TRY(brg_all_reduce(pg, &work, data, n_summed, BRG_DTYPE_F32,
                           BRG_REDUCE_SUM));
    return brg_work_wait(work);
}

/* Memory of the GPU, so that the host waits for nothing, and then for all. */
static brg_status reduce_there(const forked_rank *me, brg_pg *pg, void *data)
{
    BRG_TRY(reduce(pg, data));
    forked_synchronize(me);
    return BRG_OK;
}

/* A step is lost: the host's wait for the GPU ends, then the group fails. */
static brg_status lose(const forked_rank *me, brg_pg *pg, void *data)
{
    const uint64_t start = brg__clock_ns();
    brg_status status = reduce_there(me, pg, data);
    if (status == BRG_OK)
        status = reduce_there(me, pg, data);
    RANK_CHECK(brg__clock_ns() - start < (uint64_t)SOON_S * 1000000000u,
               "rank %d: it took too long", me->rank);
    RANK_CHECK(status != BRG_OK, "rank %d: no error", me->rank);
    RANK_CHECK(brg_pg_error(pg) == status, "rank %d: not sticky", me->rank);
    return status;
}

typedef enum fault { DIES, DIES_BEFORE, LEAVES, LATE, FAILS } fault;

/* Rank 1 does it. */
static brg_status run_fault(forked_rank *me)
{
    const fault f = *(const fault *)me->data;
    brg_pg *pg;
    void *data;
    BRG_TRY(forked_group(me, f == LATE ? 0.5 : 100, &pg));
    BRG_TRY(brg_pg_alloc(pg, &data, n_summed * sizeof(float)));
    BRG_TRY(reduce_there(me, pg, data));
    if (me->rank != 1) {
        brg_status status = lose(me, pg, data);
        brg__error_record kept;
        brg__error_save(&kept);
        brg_pg_destroy(pg);
        brg__error_restore(&kept);
        return status;
    }
    if (f != DIES_BEFORE)
        forked_sleep_ms(150);
    if (f == LEAVES) {
        brg_pg_destroy(pg);
        forked_sleep_ms(2500); /* its process lives */
        return BRG_OK;
    }
    if (f == LATE) {
        forked_sleep_ms(1500);
        return lose(me, pg, data);
    }
    if (f == FAILS) {
        fake_nccl_set_state(6); /* ncclRemoteError */
        forked_sleep_ms(300);
        return brg_pg_error(pg) == BRG_OK ? reduce(pg, data) : brg_pg_error(pg);
    }
    (void)raise(SIGKILL);
    return BRG_OK;
}

static void test_faults__a_rank_dies(void **state)
{
    (void)state;
    forked_result results[3];
    const fault faults[] = {DIES, DIES_BEFORE};
    for (int k = 0; k < 2 * 2 * N_WAYS; k++) {
        const int n = 2 + k % 2;
        take_way(k / 4);
        forked_run(n, run_fault, &faults[k / 2 % 2], results);
        assert_true(results[1].is_killed);
        forked_expect(&results[0], BRG_ERR_PEER, "rank 1, which has died");
        forked_expect(&results[n == 3 ? 2 : 0], BRG_ERR_PEER, "rank 1");
    }
    take_way(0);
}

static void test_faults__a_rank_leaves(void **state)
{
    (void)state;
    forked_result results[2];
    for (int k = 0; k < N_WAYS; k++) {
        take_way(k);
        forked_run(2, run_fault, &(fault){LEAVES}, results);
        forked_expect(&results[0], BRG_ERR_PEER,
                      "000 f32, sum) waits for rank 1, which has left the "
                      "group");
        assert_int_equal(results[1].status, BRG_OK);
    }
    take_way(0);
}

static void test_faults__a_rank_is_late(void **state)
{
    (void)state;
    forked_result results[3];
    for (int k = 0; k < N_WAYS; k++) {
        take_way(k);
        forked_run(3, run_fault, &(fault){LATE}, results);
        for (int r = 0; r < 3; r += 2)
            forked_expect(&results[r],
                          strstr(results[r].text, "has failed")
                              ? BRG_ERR_PEER
                              : BRG_ERR_TIMEOUT,
                          "000 f32, sum) timed out after 0.5 s; rank 1 has not "
                          "started it (its last: all_reduce #0");
        forked_expect(&results[1], BRG_ERR_PEER,
                      "timed out after 0.5 s; rank 1");
    }
    take_way(0);
}

static void test_faults__a_rank_fails(void **state)
{
    (void)state;
    forked_result results[2];
    forked_run(2, run_fault, &(fault){FAILS}, results);
    forked_expect(&results[0], BRG_ERR_PEER,
                  "rank 1, which has failed: rank 1");
    forked_expect(&results[0], BRG_ERR_PEER, "remote process exited");
    forked_expect(&results[1], BRG_ERR_PEER, "remote process exited");
}

/* A recv that nobody sends. */
static brg_status run_recv(forked_rank *me)
{
    brg_pg *pg;
    brg_work *work, *other;
    float data[N];
    BRG_TRY(forked_group(me, 0.5, &pg));
    if (me->rank == 1) {
        forked_sleep_ms(1500);
        return brg_pg_error(pg) == BRG_OK ? reduce(pg, data) : BRG_OK;
    }
    BRG_TRY(brg_recv(pg, &work, data, 10, BRG_DTYPE_F32, 1));
    BRG_TRY(brg_recv(pg, &other, data + 10, 10, BRG_DTYPE_F32, 1));
    return brg_work_wait(work);
}

static void test_faults__a_sender_is_late(void **state)
{
    (void)state;
    forked_result results[2];
    forked_run(2, run_recv, NULL, results);
    forked_expect(&results[0], BRG_ERR_TIMEOUT,
                  "(10 f32, from rank 1) timed out after 0.5 s; rank 1 has not "
                  "come");
    forked_expect(&results[1], BRG_ERR_PEER, "rank 0 has failed");
}

/* ---- Calls that differ ----------------------------------------------------------- */

static brg_status run_mismatch(forked_rank *me)
{
    brg_pg *pg;
    for (int which = 0; which < 4; which++) {
        BRG_TRY(forked_group(me, 100, &pg));
        BRG_TRY(brg_suite_mismatch(pg, which, me->n - 1));
        brg_pg_destroy(pg);
    }
    return BRG_OK;
}

static void test_faults__calls_that_differ(void **state)
{
    (void)state;
    for (int n = 2; n <= 4; n++)
        forked_check(n, run_mismatch, NULL);
}

/* Two ranks have differed and failed before the third calls anything: it hears
 * of both, in the wait. */
static brg_status run_late_witness(forked_rank *me)
{
    brg_pg *pg;
    brg_work *work;
    float data[N] = {0};
    BRG_TRY(forked_group(me, 100, &pg));
    BRG_TRY(reduce(pg, data));
    if (me->rank == 0)
        forked_sleep_ms(500);
    BRG_TRY(brg_all_reduce(pg, &work, data, me->rank == 2 ? N / 2 : N,
                           BRG_DTYPE_F32, BRG_REDUCE_SUM));
    RANK_FAILS(brg_work_wait(work), BRG_ERR_MISMATCH, "rank 1 called");
    RANK_CHECK(strstr(brg_error_message(), "rank 2 called"), "%s",
               brg_error_message());
    brg_pg_destroy(pg);
    return BRG_OK;
}

static void test_faults__a_late_rank_hears_of_calls_that_differ(void **state)
{
    (void)state;
    forked_check(3, run_late_witness, NULL);
}

/* A rank has said what it calls, and is told by the watch that the other calls
 * something else before NCCL has got the call: the start succeeds all the same,
 * and the wait says why. */
static brg_status run_slow_start(forked_rank *me)
{
    brg_pg *pg;
    brg_work *work;
    float data[N] = {0}; /* host memory: a copy is made first */
    BRG_TRY(forked_group(me, 100, &pg));
    BRG_TRY(reduce(pg, data));
    fake_gpu_set_slow_ms(me->rank == 0 ? 600 : 0);
    if (me->rank == 1)
        forked_sleep_ms(100);
    BRG_TRY(brg_all_reduce(pg, &work, data, N,
                           me->rank == 0 ? BRG_DTYPE_F32 : BRG_DTYPE_I32,
                           BRG_REDUCE_SUM));
    RANK_FAILS(brg_work_wait(work), BRG_ERR_MISMATCH, "rank 1 called");
    brg_pg_destroy(pg);
    return BRG_OK;
}

static void test_faults__a_verdict_between_call_and_queue(void **state)
{
    (void)state;
    forked_check(2, run_slow_start, NULL);
}

/* The first to come has given its call to NCCL; the second does not, so that no
 * data moves. */
static brg_status run_plans(forked_rank *me)
{
    brg_pg *pg;
    float *data;
    BRG_TRY(forked_group(me, 100, &pg));
    BRG_TRY(brg_pg_alloc(pg, (void **)&data, n_summed * sizeof(float)));
    forked_synchronize(me);
    for (size_t i = 0; i < n_summed; i++)
        data[i] = 7; /* what is left of it is never added to anything */
    BRG_TRY(reduce_there(me, pg, data));
    for (size_t i = 0; i < n_summed; i++)
        data[i] = (float)me->rank;
    if (me->rank == 1)
        forked_sleep_ms(200);
    brg__pg_label(pg, 1, 0, (uint16_t)(0x1000 + me->rank), 0);
    brg_status status = lose(me, pg, data);
    RANK_CHECK(status == BRG_ERR_MISMATCH, "%s", brg_error_message());
    for (size_t i = 0; i < n_summed; i++)
        RANK_CHECK(data[i] == (float)me->rank, "data has moved");
    return brg_pg_error(pg);
}

static void test_faults__plans_that_differ(void **state)
{
    (void)state;
    forked_result results[2];
    for (int k = 0; k < N_WAYS; k++) {
        take_way(k);
        forked_run(2, run_plans, NULL, results);
        for (int r = 0; r < 2; r++) {
            forked_expect(&results[r], BRG_ERR_MISMATCH, "plan 1000");
            forked_expect(&results[r], BRG_ERR_MISMATCH, "plan 1001");
        }
    }
    take_way(0);
}

/* ---- Steps that are launched again -------------------------------------------------- */

static brg_status run_launches(forked_rank *me)
{
    brg_pg *pg;
    void *data;
    brg_work *work;
    brg_status status = BRG_OK;
    brg__error_record kept;
    BRG_TRY(forked_group(me, 0.5, &pg));
    BRG_TRY(brg_pg_alloc(pg, &data, n_summed * sizeof(float)));
    BRG_TRY(reduce_there(me, pg, data));
    fake_nccl_set_graphs(1);
    brg__pg_launched(pg, 0);
    if (me->rank == 1)
        forked_sleep_ms(1500);
    else { /* what hangs in the queue stands for the graph */
        BRG_TRY(
            brg_all_reduce(pg, &work, data, N, BRG_DTYPE_F32, BRG_REDUCE_SUM));
        BRG_TRY(brg_work_wait(work));
    }
    for (int i = 0; i < 3 && status == BRG_OK; i++) {
        brg__pg_launched(pg, 0);
        forked_synchronize(me);
        brg_pg_progress(pg);
        status =
            brg_pg_error(pg) != BRG_OK ? brg_pg_error(pg) : reduce(pg, data);
    }
    brg__error_save(&kept);
    fake_nccl_set_graphs(0);
    brg_pg_destroy(pg);
    brg__error_restore(&kept);
    return status;
}

static void test_faults__a_launch_is_late(void **state)
{
    (void)state;
    forked_result results[2];
    forked_run(2, run_launches, NULL, results);
    forked_expect(&results[0], BRG_ERR_TIMEOUT,
                  "timed out after 0.5 s; rank 1");
    forked_expect(&results[1], BRG_ERR_PEER, "rank 0 has failed");
}

/* ---- Going on with fewer ranks ------------------------------------------------------- */

/* Ranks die one after the other, the first before anything went wrong for the
 * others; those that are left sum up who they are. */
static brg_status run_shrinks(forked_rank *me)
{
    brg_pg *groups[FORKED_MAX_RANKS] = {NULL};
    float *data;
    const int n_deaths = *(const int *)me->data;
    BRG_TRY(forked_group(me, 20, &groups[0]));
    for (int k = 0;; k++) {
        float want = 0;
        brg_pg *pg = groups[k];
        const int n = brg_pg_world_size(pg);
        RANK_CHECK(
            n == me->n - k && brg_pg_rank(pg) == (me->rank ? me->rank - k : 0),
            "rank %d of %d is %d of %d", me->rank, me->n, brg_pg_rank(pg), n);
        BRG_TRY(brg_pg_alloc(pg, (void **)&data, n_summed * sizeof(float)));
        forked_synchronize(me);
        for (int i = 0; i < N; i++)
            data[i] = (float)(1 << me->rank);
        for (int r = 0; r < me->n; r++)
            want += r == 0 || r > k ? (float)(1 << r) : 0;
        BRG_TRY(reduce_there(me, pg, data));
        RANK_CHECK(data[0] == want && data[N - 1] == want,
                   "rank %d: the sum of %d ranks is %g, not %g", me->rank, n,
                   (double)data[0], (double)want);
        if (k == n_deaths)
            break;
        if (me->rank == k + 1)
            (void)raise(SIGKILL);
        RANK_CHECK(lose(me, pg, data) == BRG_ERR_PEER, "%s",
                   brg_error_message());
        BRG_TRY(brg_pg_shrink(&groups[k + 1], pg));
        RANK_CHECK(brg_pg_error(pg) != BRG_OK, "the old group lives");
    }
    for (int k = n_deaths; k >= 0; k--)
        brg_pg_destroy(groups[k]);
    return BRG_OK;
}

static void test_faults__the_ranks_left_go_on(void **state)
{
    (void)state;
    forked_result results[FORKED_MAX_RANKS];
    for (int n = 2; n <= FORKED_MAX_RANKS; n++) {
        const int n_deaths = n - 1;
        forked_run(n, run_shrinks, &n_deaths, results);
        for (int r = 0; r < n; r++) {
            const bool dies = r > 0;
            if (!dies && results[r].status != BRG_OK)
                print_error("%d ranks, rank %d: %s\n", n, r, results[r].text);
            assert_int_equal(results[r].is_killed, dies);
            assert_true(dies || results[r].status == BRG_OK);
        }
    }
}

/* Nobody has died; one does not come. */
static brg_status run_no_show(forked_rank *me)
{
    brg_pg *pg, *left;
    BRG_TRY(forked_group(me, 0.6, &pg));
    if (me->rank == 1) {
        forked_sleep_ms(2000);
        return BRG_OK;
    }
    RANK_FAILS(brg_pg_shrink(&left, pg), BRG_ERR_TIMEOUT,
               "rank 1 has not come within 0.6 s");
    brg_pg_destroy(pg);
    return BRG_OK;
}

static brg_status run_all_shrink(forked_rank *me)
{
    brg_pg *pg, *left;
    void *data;
    BRG_TRY(forked_group(me, 20, &pg));
    BRG_TRY(brg_pg_shrink(&left, pg));
    brg_pg_destroy(pg);
    RANK_CHECK(brg_pg_world_size(left) == me->n &&
                   brg_pg_rank(left) == me->rank,
               "rank %d is another", me->rank);
    BRG_TRY(brg_pg_alloc(left, &data, n_summed * sizeof(float)));
    BRG_TRY(reduce_there(me, left, data));
    brg_pg_destroy(left);
    return BRG_OK;
}

static void test_faults__shrinking_without_a_loss(void **state)
{
    (void)state;
    forked_check(3, run_all_shrink, NULL);
    forked_check(3, run_no_show, NULL);
}

/* ---- Making a group ------------------------------------------------------------------- */

static brg_status run_one_gpu(forked_rank *me)
{
    brg_pg *pg;
    fake_gpu_set_bus(me->rank == 0 ? "0000:00:00.0" : "0000:07:00.0");
    return forked_group(me, 100, &pg);
}

static void test_faults__two_ranks_on_one_gpu(void **state)
{
    (void)state;
    forked_result results[3];
    forked_run(3, run_one_gpu, NULL, results);
    for (int r = 0; r < 3; r++)
        forked_expect(&results[r], BRG_ERR_ARG,
                      "ranks 1 and 2 are both on the GPU 0000:07:00.0");
}

/* ---- A rank that is lost while a group is made ---------------------------------------- */

typedef struct loss {
    fake_step step;
    bool kills;
    bool is_shrinking; /* the group is made by brg_pg_shrink */
} loss;

/* The last rank is lost; where a group is shrunk, rank 0 was before. */
static brg_status run_loss(forked_rank *me)
{
    const loss *l = me->data;
    brg_pg *pg = NULL, *left = NULL;
    brg__error_record kept;
    const double timeout_s = l->kills ? 20 : 0.4;
    if (l->is_shrinking) {
        BRG_TRY(forked_group(me, timeout_s, &pg));
        if (me->rank == 0)
            (void)raise(SIGKILL);
    }
    if (me->rank == me->n - 1)
        fake_nccl_set_fault(l->step, l->kills);
    const uint64_t start = brg__clock_ns();
    brg_status status = l->is_shrinking ? brg_pg_shrink(&left, pg)
                                        : forked_group(me, timeout_s, &left);
    const uint64_t took_ns = brg__clock_ns() - start;
    RANK_CHECK(status != BRG_OK && !left, "rank %d: no error", me->rank);
    RANK_CHECK(took_ns < (uint64_t)SOON_S * 1000000000u,
               "rank %d: it took too long", me->rank);
    brg__error_save(&kept);
    brg_pg_destroy(pg);
    brg__error_restore(&kept);
    return status;
}

static void check_loss(int n, const loss *l)
{
    forked_result results[FORKED_MAX_RANKS];
    char who[40];
    snprintf(who, sizeof who, "rank %d has %s", n - 1,
             l->kills ? "died" : "not come");
    forked_run(n, run_loss, l, results);
    assert_int_equal(results[n - 1].is_killed, l->kills);
    for (int r = l->is_shrinking ? 1 : 0; r < n - 1; r++)
        if (l->kills || results[r].status == BRG_ERR_TIMEOUT)
            forked_expect(&results[r],
                          l->kills ? BRG_ERR_PEER : BRG_ERR_TIMEOUT, who);
        else /* another one gave up first */
            forked_expect(&results[r], BRG_ERR_PEER, "not come");
}

static void test_faults__a_rank_is_lost_while_all_join(void **state)
{
    (void)state;
    for (fake_step step = FAKE_INIT; step <= FAKE_FINALIZE; step++)
        for (int kills = 0; kills <= 1; kills++)
            for (int n = 2; n <= 4; n += 2) {
                check_loss(n, &(loss){step, kills, false});
                check_loss(n + (n == 2), &(loss){step, kills, true});
            }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_faults__a_rank_dies),
        cmocka_unit_test(test_faults__a_rank_leaves),
        cmocka_unit_test(test_faults__a_rank_is_late),
        cmocka_unit_test(test_faults__a_rank_fails),
        cmocka_unit_test(test_faults__a_sender_is_late),
        cmocka_unit_test(test_faults__calls_that_differ),
        cmocka_unit_test(test_faults__a_late_rank_hears_of_calls_that_differ),
        cmocka_unit_test(test_faults__a_verdict_between_call_and_queue),
        cmocka_unit_test(test_faults__plans_that_differ),
        cmocka_unit_test(test_faults__a_launch_is_late),
        cmocka_unit_test(test_faults__the_ranks_left_go_on),
        cmocka_unit_test(test_faults__shrinking_without_a_loss),
        cmocka_unit_test(test_faults__two_ranks_on_one_gpu),
        cmocka_unit_test(test_faults__a_rank_is_lost_while_all_join),
    };
    return cmocka_run_group_tests_name("faults", tests, NULL, NULL);
}
