/* SPDX-License-Identifier: Apache-2.0
 * Processes that are late in a step: the others' time-outs say who, at which
 * parameter and in which span, and all write their records; and a recorded
 * run repeated in the simulated world. */
#include <mpi.h>
#include <signal.h>
#include <time.h>
#include <unistd.h>

#include <brigade/mpi.h>
#include <brigade/sim.h>
#include <brigade/trace.h>

#include "core/base/clock.h"
#include "tests/reducer/trainer.h"

static int rank, n_ranks;
static MPI_Comm in_time;                        /* all but the last */
static char folder[] = "/tmp/brg-trace-XXXXXX"; /* the same on all ranks */

static void sleep_ms(int ms)
{
    struct timespec t = {ms / 1000, ms % 1000 * 1000000l};
    while (nanosleep(&t, &t) != 0)
        ;
}

static brg_pg *make_group(double timeout_s)
{
    brg_pg *pg;
    brg_pg_options options = BRG_PG_OPTIONS_INIT;
    options.timeout_s = timeout_s;
    assert_brg_ok(brg_pg_create(&pg, "mpi", &options));
    return pg;
}

static const char *path_of(int r)
{
    static char path[64];
    snprintf(path, sizeof path, "%s/rank%d.trace", folder, r);
    return path;
}

/* ---- Late -------------------------------------------------------------------- */

/* A step whose third gradient comes late, or never, on the last rank. */
static brg_status step_with(trainer *t, void (*be_late)(void))
{
    for (size_t i = 0; i < t->n; i++) {
        if (i == 2 && be_late && rank == n_ranks - 1) {
            brg_trace_begin("data");
            be_late();
            brg_trace_end("data");
        }
        BRG_TRY(brg_reducer_mark_ready(t->reducer, t->n - 1 - i));
    }
    return brg_reducer_wait(t->reducer);
}

static void check_message(const char *text)
{
    char late[80];
    snprintf(late, sizeof late,
             "rank %d has not started it (its last: ", n_ranks - 1);
    if (!strstr(text, late) || !strstr(text, "bucket 2 (fc2.bias)") ||
        !strstr(text, "s ago gradient of parameter 5") ||
        !strstr(text, "s in data"))
        fail_msg("rank %d: %s", rank, text);
}

static void check_file(void)
{
    brg_trace *trace;
    size_t n;
    assert_brg_ok(brg_trace_load(&trace, path_of(rank)));
    const brg_trace_record *records = brg_trace_records(trace, &n);
    assert_int_equal(records[n - 1].kind, BRG_TRACE_FAIL);
    assert_int_equal(brg_trace_get_header(trace)->reason, BRG_TRACE_FAILED);
    brg_trace_free(trace);
}

static void check_late(void (*be_late)(void), void (*wake)(void))
{
    static trainer t;
    brg_pg *pg = make_group(0.7);
    brg_reducer_options options = BRG_REDUCER_OPTIONS_INIT;
    options.first_bucket_bytes = options.bucket_bytes = 1;
    options.keep_order = true;
    trainer_init(&t, pg);
    assert_brg_ok(trainer_create(&t, &options));
    assert_brg_ok(step_with(&t, NULL));
    assert_brg_ok(brg_trace_set_folder(folder));
    brg_error_clear();
    brg_status status = step_with(&t, be_late);
    bool is_late = rank == n_ranks - 1; /* all that it needs may be there */
    if (!is_late && status != BRG_ERR_TIMEOUT && status != BRG_ERR_PEER)
        fail_msg("rank %d: %s", rank, brg_status_name(status));
    if (!is_late)
        check_message(brg_error_message());
    if (!is_late) /* all of these have been told by then */
        MPI_Barrier(in_time);
    if (rank == 0 && wake)
        wake();
    MPI_Barrier(MPI_COMM_WORLD);
    assert_brg_ok(brg_trace_set_folder(NULL));
    if (!is_late)
        check_file();
    brg_reducer_destroy(t.reducer);
    brg_pg_destroy(pg);
}

static void be_asleep(void)
{
    sleep_ms(2500);
}

static void test_trace_mpi__a_rank_that_sleeps_is_named(void **state)
{
    (void)state;
    if (n_ranks > 1)
        check_late(be_asleep, NULL);
}

static pid_t last_pid;

static void be_stopped(void)
{
    raise(SIGSTOP);
}

static void let_go_on(void)
{
    kill(last_pid, SIGCONT);
}

static void test_trace_mpi__a_rank_that_is_stopped_is_named(void **state)
{
    (void)state;
    if (n_ranks == 1)
        return;
    last_pid = getpid();
    MPI_Bcast(&last_pid, sizeof last_pid, MPI_BYTE, n_ranks - 1,
              MPI_COMM_WORLD);
    check_late(be_stopped, let_go_on);
}

/* Gradients go through a group whose ranks do not see each other, as those of
 * GPUs do: what a late rank did there is known to the group that they do. */
static void test_trace_mpi__gradients_of_another_group_are_seen(void **state)
{
    (void)state;
    static float grad[4];
    brg_reducer_param param = {
        .name = "head.bias", .grad = grad, .count = 4, .dtype = BRG_DTYPE_F32};
    brg_reducer *reducer;
    brg_work *work;
    brg_pg *alone, *pg = make_group(0.7);
    assert_brg_ok(brg_pg_create_self(&alone));
    assert_brg_ok(brg_reducer_create(&reducer, alone, &param, 1, NULL));
    assert_brg_ok(brg_reducer_mark_ready(reducer, 0));
    assert_brg_ok(brg_barrier(pg, &work));
    assert_brg_ok(brg_work_wait(work));
    if (rank != n_ranks - 1) {
        assert_brg_ok(brg_barrier(pg, &work));
        brg_status status = brg_work_wait(work);
        assert_true(status == BRG_ERR_TIMEOUT || status == BRG_ERR_PEER);
        if (!strstr(brg_error_message(), "s ago gradient of head.bias"))
            fail_msg("rank %d: %s", rank, brg_error_message());
        MPI_Barrier(in_time);
    }
    MPI_Barrier(MPI_COMM_WORLD);
    assert_brg_ok(brg_reducer_wait(reducer));
    brg_reducer_destroy(reducer);
    brg_pg_destroy(alone);
    brg_pg_destroy(pg);
}

/* ---- Again, in the simulated world ------------------------------------------------ */

enum { N_CALLS = 6, MAX_RANKS = 4, N_GROUPS = 4 /* before this one */ };

typedef struct span {
    uint64_t begin_ns, end_ns;
} span;

static span started[MAX_RANKS][N_CALLS]; /* on all ranks */

/* at[k]: when call k had been started, in a simulated world; spans: when it
 * was, between two looks at the clock. */
static brg_status run_calls(brg_pg *pg, void (*before)(int call), uint64_t *at,
                            span *spans)
{
    for (int k = 0; k < N_CALLS; k++) {
        float x = 1;
        brg_work *work;
        if (before)
            before(k);
        spans[k].begin_ns = brg__clock_ns();
        BRG_TRY(
            brg_all_reduce(pg, &work, &x, 1, BRG_DTYPE_F32, BRG_REDUCE_SUM));
        spans[k].end_ns = brg__clock_ns();
        at[k] = brg_sim_now_ns(pg);
        BRG_TRY(brg_work_wait(work));
    }
    return BRG_OK;
}

/* In every call another rank is meant to be the last by far. */
static void come_in_turn(int call)
{
    sleep_ms((rank + call) % n_ranks * 60);
}

static brg_status run_replay(brg_pg *pg, void *user)
{
    uint64_t(*at)[N_CALLS] = user;
    span unused[N_CALLS];
    return run_calls(pg, NULL, at[brg_pg_rank(pg)], unused);
}

/* Who certainly came before whom: the processes share a clock, to which traces
 * are aligned within this. On a machine that is busy it is not always who was
 * meant to. */
#define ALIGNED_NS 20000000u

static void check_order(const struct brg_sim_arrival *arrivals, size_t n)
{
    int n_pairs = 0;
    for (size_t i = 0; i < n; i++)
        for (size_t k = 0; k < n; k++) {
            const struct brg_sim_arrival *a = &arrivals[i], *b = &arrivals[k];
            if (a->call != b->call ||
                started[a->rank][a->call].end_ns + ALIGNED_NS >=
                    started[b->rank][b->call].begin_ns)
                continue;
            n_pairs++;
            if (a->at_ns > b->at_ns)
                fail_msg("call %d: rank %d came %g ms before rank %d, in the "
                         "simulated world %g ms after it",
                         (int)a->call, a->rank,
                         (double)(started[b->rank][b->call].begin_ns -
                                  started[a->rank][a->call].end_ns) *
                             1e-6,
                         b->rank, (double)(a->at_ns - b->at_ns) * 1e-6);
        }
    assert_true(n_pairs > 0);
}

static void replay(void)
{
    brg_trace *traces[MAX_RANKS];
    struct brg_sim_arrival arrivals[128];
    uint64_t at[MAX_RANKS][N_CALLS];
    brg_sim_options options = BRG_SIM_OPTIONS_INIT;
    for (int r = 0; r < n_ranks; r++)
        assert_brg_ok(brg_trace_load(&traces[r], path_of(r)));
    assert_brg_ok(brg_sim_arrivals_of(arrivals, 128, &options.n_arrivals,
                                      traces, (size_t)n_ranks, N_GROUPS));
    assert_int_equal(options.n_arrivals, n_ranks * N_CALLS);
    options.latency_ns = 1;
    options.arrivals = arrivals;
    assert_brg_ok(brg_sim_run(n_ranks, &options, run_replay, at));
    for (size_t i = 0; i < options.n_arrivals; i++) {
        const struct brg_sim_arrival *a = &arrivals[i];
        assert_int_equal(at[a->rank][a->call], a->at_ns);
    }
    check_order(arrivals, options.n_arrivals);
    for (int r = 0; r < n_ranks; r++)
        brg_trace_free(traces[r]);
}

static void test_trace_mpi__a_run_is_repeated_in_a_simulated_world(void **state)
{
    (void)state;
    uint64_t unused[N_CALLS];
    if (n_ranks == 1)
        return;
    brg_pg *pg = make_group(60);
    assert_brg_ok(run_calls(pg, come_in_turn, unused, started[rank]));
    MPI_Allgather(MPI_IN_PLACE, 0, MPI_BYTE, started, sizeof started[0],
                  MPI_BYTE, MPI_COMM_WORLD);
    brg_pg_destroy(pg);
    assert_brg_ok(brg_trace_dump(path_of(rank)));
    MPI_Barrier(MPI_COMM_WORLD);
    if (rank == 0)
        replay();
    MPI_Barrier(MPI_COMM_WORLD);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_trace_mpi__a_rank_that_sleeps_is_named),
        cmocka_unit_test(test_trace_mpi__a_rank_that_is_stopped_is_named),
        cmocka_unit_test(test_trace_mpi__gradients_of_another_group_are_seen),
        cmocka_unit_test(
            test_trace_mpi__a_run_is_repeated_in_a_simulated_world),
    };
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &n_ranks);
    MPI_Comm_split(MPI_COMM_WORLD, rank == n_ranks - 1, rank, &in_time);
    if (rank == 0 && !mkdtemp(folder))
        return 1;
    MPI_Bcast(folder, sizeof folder, MPI_CHAR, 0, MPI_COMM_WORLD);
    if (rank > 0 && !freopen("/dev/null", "w", stdout))
        return 1;
    if (brg_backend_register(brg_comm_mpi()) != BRG_OK)
        return 1;
    int n_failed = cmocka_run_group_tests(tests, NULL, NULL);
    unlink(path_of(rank));
    MPI_Barrier(MPI_COMM_WORLD);
    if (rank == 0)
        rmdir(folder);
    MPI_Finalize();
    return n_failed;
}
