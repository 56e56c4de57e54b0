/* SPDX-License-Identifier: Apache-2.0
 * What a reducer's step leaves in the trace, eager and compiled; clocks of
 * several files; recorded runs again in the simulated world. */
#include <brigade/compile.h>
#include <brigade/sim.h>
#include <brigade/trace.h>

#include "tests/support/brg_test.h"
#include "tests/support/ddp_model.h"
#include "tests/support/temp_dir.h"

#define S 1000000000u

static brg_sim_options timed(uint64_t seed)
{
    brg_sim_options options = BRG_SIM_OPTIONS_INIT;
    options.seed = seed;
    options.latency_ns = 10000;
    options.bytes_per_s = 1e9;
    options.timeout_s = 2;
    options.trace_records = 4096;
    return options;
}

static const char *folder_of_tests(void)
{
    static char folder[4096];
    snprintf(folder, sizeof folder, "%s", temp_path("x"));
    *strrchr(folder, '/') = '\0';
    return folder;
}

static const char *rank_path(int r)
{
    char name[32];
    snprintf(name, sizeof name, "rank%d.trace", r);
    return temp_path(name);
}

/* ---- What is recorded ---------------------------------------------------------- */

typedef struct seen {
    int n[BRG_TRACE_FAIL + 1];
    int n_in_place; /* hooks of gradients made in their buckets */
    uint64_t hook[DDP_MODEL_N], copy[DDP_MODEL_N]; /* numbers of records */
    uint64_t start[DDP_MODEL_N + 1], complete[DDP_MODEL_N + 1]; /* of buckets */
} seen;

static void note(seen *s, const brg_trace_record *r)
{
    s->n[r->kind]++;
    bool is_in_place = r->kind == BRG_TRACE_HOOK && r->u.call.value == 1;
    s->n_in_place += is_in_place;
    if (r->kind == BRG_TRACE_HOOK)
        s->hook[r->u.call.param] = r->number;
    if (r->kind == BRG_TRACE_COPY || is_in_place)
        s->copy[r->u.call.param] = r->number;
    if (r->kind == BRG_TRACE_START && r->bucket >= 0)
        s->start[r->bucket] = r->number;
    if (r->kind == BRG_TRACE_COMPLETE && r->bucket >= 0)
        s->complete[r->bucket] = r->number;
}

static brg_status check_seen(const seen *s, const brg_ddp *ddp)
{
    const brg_reducer *reducer = brg_ddp_reducer(ddp);
    size_t n = brg_reducer_n_buckets(reducer);
    RANK_CHECK(s->n[BRG_TRACE_HOOK] == DDP_MODEL_N &&
                   s->n[BRG_TRACE_COPY] + s->n_in_place == DDP_MODEL_N,
               "%d hooks, %d copies, %d in place", s->n[BRG_TRACE_HOOK],
               s->n[BRG_TRACE_COPY], s->n_in_place);
    RANK_CHECK(s->n[BRG_TRACE_WAIT] == s->n[BRG_TRACE_WAKE], "%d, %d",
               s->n[BRG_TRACE_WAIT], s->n[BRG_TRACE_WAKE]);
    for (size_t i = 0; i < DDP_MODEL_N; i++) {
        size_t bucket, offset;
        BRG_TRY(brg_reducer_find(reducer, i, &bucket, &offset));
        RANK_CHECK(s->hook[i] <= s->copy[i] && s->copy[i] < s->start[bucket] &&
                       s->start[bucket] < s->complete[bucket],
                   "parameter %zu: %d %d %d %d", i, (int)s->hook[i],
                   (int)s->copy[i], (int)s->start[bucket],
                   (int)s->complete[bucket]);
    }
    for (size_t k = 1; k < n; k++)
        RANK_CHECK(s->start[k] > s->start[k - 1], "bucket %zu", k);
    return BRG_OK;
}

static brg_status backward(ddp_model *m, int step, bool is_compiled)
{
    int scope;
    if (is_compiled)
        BRG_TRY(brg_compile_begin(&scope, NULL));
    brg_status status = ddp_model_backward(m, step, DDP_MODEL_ALL);
    if (is_compiled)
        BRG_TRY(brg_compile_end(scope));
    return status;
}

static brg_status run_steps(brg_pg *pg, void *user)
{
    bool is_compiled = *(bool *)user;
    static brg_trace_record records[4][512];
    int rank = brg_pg_rank(pg);
    ddp_model m;
    BRG_TRY(ddp_model_init(&m, pg));
    brg_ddp_options options = BRG_DDP_OPTIONS_INIT;
    options.first_bucket_bytes = options.bucket_bytes = 256;
    BRG_TRY(ddp_model_wrap(&m, &options));
    brg_status status = BRG_OK;
    for (int step = 0; step < 4 && status == BRG_OK; step++) {
        brg_trace_record last;
        size_t n_before = brg_trace_copy(&last, 1);
        uint64_t before = n_before ? last.number : 0;
        seen s = {.n = {0}};
        BRG_TRY(ddp_model_zero(&m, false));
        BRG_TRY(backward(&m, step, is_compiled));
        size_t n = brg_trace_copy(records[rank], 512);
        for (size_t i = 0; i < n; i++)
            if (records[rank][i].number > before)
                note(&s, &records[rank][i]);
        if (step > 0) /* the first one ends with new buckets */
            status = check_seen(&s, m.ddp);
    }
    ddp_model_deinit(&m);
    return status;
}

static void test_record__every_step_of_a_gradient(void **state)
{
    (void)state;
    for (int compiled = 0; compiled < 2; compiled++) {
        bool is_compiled = compiled;
        brg_sim_options options = timed(3);
        assert_brg_ok(brg_sim_run(4, &options, run_steps, &is_compiled));
        options.latency_ns = 0;
        options.bytes_per_s = 0;
        assert_brg_ok(brg_sim_run(4, &options, run_steps, &is_compiled));
    }
}

/* ---- Clocks -------------------------------------------------------------------------- */

enum { N_CALLS = 12 };

typedef struct pattern {
    uint64_t spend[4][N_CALLS]; /* before each call */
    bool is_replayed;
    uint64_t came[4][N_CALLS]; /* the clock after its start */
    uint64_t order[4][N_CALLS];
    uint64_t n_done;
    brg_status end[4];
    char text[4][512];
} pattern;

static brg_status run_pattern(brg_pg *pg, void *user)
{
    pattern *p = user;
    int rank = brg_pg_rank(pg);
    brg_status status = BRG_OK;
    for (int k = 0; k < N_CALLS && status == BRG_OK; k++) {
        float x = 1;
        brg_work *work;
        if (!p->is_replayed)
            brg_sim_spend_ns(pg, p->spend[rank][k]);
        status =
            brg_all_reduce(pg, &work, &x, 1, BRG_DTYPE_F32, BRG_REDUCE_SUM);
        p->came[rank][k] = brg_sim_now_ns(pg);
        p->order[rank][k] = p->n_done++;
        if (status == BRG_OK)
            status = brg_work_wait(work);
    }
    p->end[rank] = status;
    snprintf(p->text[rank], sizeof p->text[rank], "%s",
             status ? brg_error_message() : "");
    return status == BRG_OK ? brg_trace_dump(rank_path(rank)) : BRG_OK;
}

static void fill_pattern(pattern *p, uint64_t seed)
{
    for (int r = 0; r < 4; r++)
        for (int k = 0; k < N_CALLS; k++)
            p->spend[r][k] =
                (uint64_t)brg_test_uniform(&seed, 1000, 300 * 1000);
}

static void load_all(brg_trace *traces[4])
{
    for (int r = 0; r < 4; r++)
        assert_brg_ok(brg_trace_load(&traces[r], rank_path(r)));
}

static void free_all(brg_trace *traces[4])
{
    for (int r = 0; r < 4; r++)
        brg_trace_free(traces[r]);
}

/* Moves the clock of a file by ns, as if the rank's machine had begun at
 * another time. */
static void move_clock(int r, int64_t ns)
{
    size_t n_bytes;
    char path[4096];
    snprintf(path, sizeof path, "%s", rank_path(r));
    char *bytes = temp_read(path, &n_bytes);
    brg_trace_header header;
    memcpy(&header, bytes, sizeof header);
    header.clock = 1000 + (uint64_t)r;
    memcpy(bytes, &header, sizeof header);
    for (uint64_t i = 0; i < header.n_records; i++) {
        brg_trace_record record;
        char *at = bytes + sizeof header + i * sizeof record;
        memcpy(&record, at, sizeof record);
        record.time_ns += (uint64_t)ns;
        memcpy(at, &record, sizeof record);
    }
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(bytes, 1, n_bytes, file), n_bytes);
    assert_int_equal(fclose(file), 0);
    free(bytes);
}

static void test_align__finds_what_clocks_were_off_by(void **state)
{
    (void)state;
    static const int64_t off[] = {0, 5 * (int64_t)S, 0, 123456789};
    static pattern p;
    brg_trace *traces[4];
    int64_t found[4];
    brg_sim_options options = timed(1);
    fill_pattern(&p, brg_test_seed(7));
    assert_brg_ok(brg_sim_run(4, &options, run_pattern, &p));
    load_all(traces);
    assert_brg_ok(brg_trace_align(traces, 4, found));
    for (int r = 0; r < 4; r++)
        assert_int_equal(found[r], 0);
    free_all(traces);
    move_clock(1, off[1]);
    move_clock(3, off[3]);
    load_all(traces);
    assert_brg_ok(brg_trace_align(traces, 4, found));
    /* A call takes 40 us from its last rank on; now one rank was last, now the
     * other, so the difference is known as well as that. */
    for (int r = 0; r < 4; r++)
        assert_in_range((uint64_t)(found[r] + off[r] + 40000), 0, 80000);
    free_all(traces);
}

/* ---- Again ----------------------------------------------------------------------------- */

static void test_replay__ranks_come_as_recorded(void **state)
{
    (void)state;
    static pattern p, again;
    static struct brg_sim_arrival arrivals[4 * N_CALLS];
    brg_trace *traces[4];
    size_t n;
    for (uint64_t seed = 1; seed < 5; seed++) {
        brg_sim_options options = timed(seed);
        p = again = (pattern){.is_replayed = false};
        fill_pattern(&p, seed);
        assert_brg_ok(brg_sim_run(4, &options, run_pattern, &p));
        load_all(traces);
        assert_brg_ok(brg_sim_arrivals_of(NULL, 0, &n, traces, 4, 0));
        assert_int_equal(n, 4 * N_CALLS);
        assert_brg_ok(brg_sim_arrivals_of(arrivals, n, &n, traces, 4, 0));
        free_all(traces);
        again.is_replayed = true;
        options.seed = seed + 100;
        options.arrivals = arrivals;
        options.n_arrivals = n;
        assert_brg_ok(brg_sim_run(4, &options, run_pattern, &again));
        uint64_t first = UINT64_MAX;
        for (int r = 0; r < 4; r++)
            first = p.came[r][0] < first ? p.came[r][0] : first;
        for (int r = 0; r < 4; r++)
            for (int k = 0; k < N_CALLS; k++)
                assert_int_equal(again.came[r][k], p.came[r][k] - first);
        assert_memory_equal(again.order, p.order, sizeof p.order);
    }
}

/* A run that failed for a delay fails the same way without the script. */
static void test_replay__fails_as_recorded(void **state)
{
    (void)state;
    static const struct brg_sim_fault delay = {BRG_SIM_DELAY, 2, 7, 50ull * S};
    static pattern p, again;
    static struct brg_sim_arrival arrivals[4 * N_CALLS];
    brg_trace *traces[4];
    size_t n;
    brg_sim_options options = timed(4);
    p = again = (pattern){.is_replayed = false};
    fill_pattern(&p, 9);
    options.faults = &delay;
    options.n_faults = 1;
    assert_brg_ok(brg_trace_set_folder(folder_of_tests()));
    assert_brg_ok(brg_sim_run(4, &options, run_pattern, &p));
    assert_brg_ok(brg_trace_set_folder(NULL));
    assert_int_equal(p.end[0], BRG_ERR_TIMEOUT);
    load_all(traces);
    assert_brg_ok(brg_sim_arrivals_of(arrivals, 4 * N_CALLS, &n, traces, 4, 0));
    free_all(traces);
    again.is_replayed = true;
    options.n_faults = 0;
    options.arrivals = arrivals;
    options.n_arrivals = n;
    assert_brg_ok(brg_sim_run(4, &options, run_pattern, &again));
    for (int r = 0; r < 4; r++)
        if (r != 2)
            assert_int_equal(again.end[r], p.end[r]);
    assert_non_null(strstr(p.text[0], "rank 2 has started it, but is"));
    assert_non_null(strstr(again.text[0], "rank 2 has not started it"));
}

/* A rank that never came does not come again. */
static brg_status run_short(brg_pg *pg, void *user)
{
    pattern *p = user;
    int rank = brg_pg_rank(pg), n = rank == 2 && !p->is_replayed ? 7 : N_CALLS;
    for (int k = 0; k < n; k++) {
        float x = 1;
        brg_work *work;
        brg_status status =
            brg_all_reduce(pg, &work, &x, 1, BRG_DTYPE_F32, BRG_REDUCE_SUM);
        if (status == BRG_OK)
            status = brg_work_wait(work);
        p->end[rank] = status;
        snprintf(p->text[rank], sizeof p->text[rank], "%s",
                 status ? brg_error_message() : "");
        if (status != BRG_OK)
            return BRG_OK;
    }
    return p->is_replayed ? BRG_OK : brg_trace_dump(rank_path(rank));
}

static void test_replay__who_never_came_does_not_come(void **state)
{
    (void)state;
    static pattern p, again = {.is_replayed = true};
    static struct brg_sim_arrival arrivals[4 * N_CALLS];
    brg_trace *traces[4];
    brg_sim_options options = timed(4);
    assert_brg_ok(brg_trace_set_folder(folder_of_tests()));
    assert_brg_ok(brg_sim_run(4, &options, run_short, &p));
    assert_brg_ok(brg_trace_set_folder(NULL));
    load_all(traces);
    assert_brg_ok(brg_sim_arrivals_of(arrivals, 4 * N_CALLS,
                                      &options.n_arrivals, traces, 4, 0));
    free_all(traces);
    options.arrivals = arrivals;
    assert_brg_ok(brg_sim_run(4, &options, run_short, &again));
    for (int r = 0; r < 4; r++) {
        assert_true(r == 2 || p.end[r] == BRG_ERR_PEER);
        assert_int_equal(again.end[r], BRG_ERR_TIMEOUT);
        assert_non_null(strstr(again.text[r], "rank 2 waits for all_reduce #7 "
                                              "(1 f32, sum), which was lost"));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_record__every_step_of_a_gradient),
        cmocka_unit_test(test_align__finds_what_clocks_were_off_by),
        cmocka_unit_test(test_replay__ranks_come_as_recorded),
        cmocka_unit_test(test_replay__fails_as_recorded),
        cmocka_unit_test(test_replay__who_never_came_does_not_come),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
