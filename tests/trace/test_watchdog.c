/* SPDX-License-Identifier: Apache-2.0
 * Ranks that are late in the simulated world: the others' time-outs name them,
 * the collective, and what they did last; each writes its records. */
#include <brigade/sim.h>
#include <brigade/trace.h>

#include "tests/reducer/trainer.h"
#include "tests/support/temp_dir.h"

#define S 1000000000u

static brg_sim_options timed(void)
{
    brg_sim_options options = BRG_SIM_OPTIONS_INIT;
    options.latency_ns = 10000;
    options.bytes_per_s = 1e9;
    options.timeout_s = 2;
    return options;
}

/* ---- Late in a step of a reducer -------------------------------------------------- */

typedef struct late_case {
    int who;
    uint64_t ns;    /* it computes so long in the middle of a step */
    size_t n_ready; /* gradients that it has by then */
} late_case;

static brg_status mark_slowly(trainer *t, const late_case *c)
{
    brg_trace_begin("backward");
    for (size_t i = 0; i < t->n; i++) {
        if (t->rank == c->who && i == c->n_ready)
            brg_sim_spend_ns(t->pg, c->ns);
        BRG_TRY(brg_reducer_mark_ready(t->reducer, t->n - 1 - i));
    }
    brg_trace_end("backward");
    return brg_reducer_wait(t->reducer);
}

/* What the others say: who, where, and the last gradient that it had. */
static brg_status check_text(const trainer *t, const late_case *c,
                             const char *text)
{
    char late[80], gradient[80] = "", bucket[16];
    const char *name = c->n_ready ? names[t->n - c->n_ready] : "";
    snprintf(late, sizeof late,
             "; rank %d has not started it (its last: ", c->who);
    snprintf(bucket, sizeof bucket, "bucket %zu", c->n_ready);
    if (c->n_ready)
        snprintf(gradient, sizeof gradient, "; 2 s ago gradient of %s",
                 name ? name : "parameter 5");
    RANK_CHECK(strstr(text, late) && strstr(text, bucket) &&
                   strstr(text, gradient) && strstr(text, "; 2 s in backward"),
               "%s", text);
    return BRG_OK;
}

static brg_status run_late(brg_pg *pg, void *user)
{
    const late_case *c = user;
    static trainer trainers[3];
    trainer *t = &trainers[brg_pg_rank(pg)];
    brg_reducer_options options = BRG_REDUCER_OPTIONS_INIT;
    options.first_bucket_bytes = options.bucket_bytes = 1;
    options.keep_order = true;
    trainer_init(t, pg);
    BRG_TRY(trainer_create(t, &options));
    brg_status status = mark_slowly(t, c);
    char text[600];
    snprintf(text, sizeof text, "%s", brg_error_message());
    brg_reducer_destroy(t->reducer);
    RANK_CHECK(status != BRG_OK, "rank %d was not told", t->rank);
    if (t->rank == c->who)
        return BRG_OK;
    RANK_CHECK(status == BRG_ERR_TIMEOUT, "%s", text);
    return check_text(t, c, text);
}

/* Every rank, at every gradient. */
static void test_watchdog__a_late_rank_is_named(void **state)
{
    (void)state;
    size_t n_named = 0;
    for (int who = 0; who < 3; who++)
        for (size_t n_ready = 0; n_ready < N_PARAMS; n_ready++) {
            late_case c = {who, 100ull * S, n_ready};
            brg_sim_options options = timed();
            options.seed = n_ready;
            assert_brg_ok(brg_sim_run(3, &options, run_late, &c));
            n_named++;
        }
    printf("late ranks named, with collective and parameter: %zu of %d\n",
           n_named, 3 * N_PARAMS);
}

/* ---- Delayed, lost, another -------------------------------------------------------- */

typedef struct fault_case {
    struct brg_sim_fault fault;
    brg_status code;
    const char *text;
    uint64_t end[3];
} fault_case;

static brg_status run_faulty(brg_pg *pg, void *user)
{
    fault_case *c = user;
    int rank = brg_pg_rank(pg);
    brg_status status = BRG_OK;
    for (int k = 0; k < 3 && status == BRG_OK; k++) {
        float x = 1;
        brg_work *work;
        if (c->code == BRG_ERR_MISMATCH && rank == 1 && k == 2)
            status = brg_barrier(pg, &work);
        else
            status =
                brg_all_reduce(pg, &work, &x, 1, BRG_DTYPE_F32, BRG_REDUCE_SUM);
        if (status == BRG_OK)
            status = brg_work_wait(work);
    }
    c->end[rank] = brg_sim_now_ns(pg);
    RANK_CHECK(rank == 1 || status == c->code, "rank %d got %d: %s", rank,
               status, brg_error_message());
    RANK_CHECK(rank == 1 || strstr(brg_error_message(), c->text), "rank %d: %s",
               rank, brg_error_message());
    return BRG_OK;
}

static void run_fault(fault_case *c)
{
    brg_sim_options options = timed();
    options.faults = &c->fault;
    options.n_faults = 1;
    assert_brg_ok(brg_sim_run(3, &options, run_faulty, c));
}

static void test_watchdog__a_delayed_call_is_named(void **state)
{
    (void)state;
    fault_case c = {.fault = {BRG_SIM_DELAY, 1, 2, 50ull * S},
                    .code = BRG_ERR_TIMEOUT,
                    .text = "rank 1 has started it, but is late"};
    run_fault(&c);
    assert_in_range(c.end[0], 2ull * S, 2ull * S + S / 100);
}

static void test_watchdog__within_the_time_out_nothing_is_said(void **state)
{
    (void)state;
    fault_case c = {.fault = {BRG_SIM_DELAY, 1, 2, S}, .text = ""};
    run_fault(&c);
}

static void test_watchdog__a_lost_call_is_a_deadlock(void **state)
{
    (void)state;
    fault_case c = {.fault = {BRG_SIM_DROP, 1, 2, 0},
                    .code = BRG_ERR_TIMEOUT,
                    .text = "which was lost"};
    run_fault(&c);
}

static void test_watchdog__another_collective_is_named(void **state)
{
    (void)state;
    fault_case c = {.code = BRG_ERR_MISMATCH, .text = "rank 1 called barrier"};
    brg_sim_options options = timed();
    assert_brg_ok(brg_sim_run(3, &options, run_faulty, &c));
}

/* ---- Files --------------------------------------------------------------------------- */

/* Rank 1 computes for ever; the others write what they waited for. */
static void test_watchdog__each_rank_writes_its_records(void **state)
{
    (void)state;
    char folder[4096];
    late_case c = {.who = 1, .ns = 100ull * S, .n_ready = 2};
    brg_sim_options options = timed();
    snprintf(folder, sizeof folder, "%s", temp_path("x"));
    *strrchr(folder, '/') = '\0';
    assert_brg_ok(brg_trace_set_folder(folder));
    assert_brg_ok(brg_sim_run(3, &options, run_late, &c));
    assert_brg_ok(brg_trace_set_folder(NULL));
    for (int r = 0; r < 3; r++) {
        char name[32];
        size_t n;
        brg_trace *trace;
        snprintf(name, sizeof name, "rank%d.trace", r);
        assert_brg_ok(brg_trace_load(&trace, temp_path(name)));
        const brg_trace_header *header = brg_trace_get_header(trace);
        const brg_trace_record *records = brg_trace_records(trace, &n);
        assert_int_equal(header->rank, r);
        assert_int_equal(header->world_size, 3);
        assert_int_equal(header->reason, BRG_TRACE_FAILED);
        assert_int_equal(records[n - 1].kind, BRG_TRACE_FAIL);
        assert_non_null(strstr(brg_trace_error(trace), "rank "));
        assert_string_equal(brg_trace_param_name(trace, 0, 1, 3), "fc2.weight");
        brg_trace_free(trace);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_watchdog__a_late_rank_is_named),
        cmocka_unit_test(test_watchdog__a_delayed_call_is_named),
        cmocka_unit_test(test_watchdog__within_the_time_out_nothing_is_said),
        cmocka_unit_test(test_watchdog__a_lost_call_is_a_deadlock),
        cmocka_unit_test(test_watchdog__another_collective_is_named),
        cmocka_unit_test(test_watchdog__each_rank_writes_its_records),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
