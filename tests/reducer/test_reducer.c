/* SPDX-License-Identifier: Apache-2.0
 * The reducer over raw buffers, in simulated worlds and against the fake
 * group's log. */
#include "tests/support/brg_test.h"
#include "tests/support/fail_alloc.h"
#include "tests/support/ranks.h"

#include <brigade/reducer.h>

#include "reducer/reducer.h"

#define N_PARAMS 7
#define MAX_COUNT 300

static const brg_dtype dtypes[N_PARAMS] = {
    BRG_DTYPE_F32, BRG_DTYPE_F16, BRG_DTYPE_F32, BRG_DTYPE_BF16,
    BRG_DTYPE_F64, BRG_DTYPE_F32, BRG_DTYPE_F32};
static const size_t counts[N_PARAMS] = {300, 17, 64, 33, 5, 1, 128};
static const char *const names[N_PARAMS] = {
    "embed.weight", "fc1.weight", "fc1.bias",   "fc2.weight",
    "fc2.bias",     NULL,         "head.weight"};

/* A trainer's buffers on one rank. */
typedef struct trainer {
    brg_pg *pg;
    brg_reducer *reducer;
    int rank;
    int world_size;
    size_t n;
    double memory[N_PARAMS][MAX_COUNT]; /* room for any dtype */
    brg_reducer_param params[N_PARAMS];
} trainer;

static void trainer_init(trainer *t, brg_pg *pg)
{
    *t = (trainer){.pg = pg,
                   .rank = brg_pg_rank(pg),
                   .world_size = brg_pg_world_size(pg),
                   .n = N_PARAMS};
    for (size_t i = 0; i < t->n; i++)
        t->params[i] = (brg_reducer_param){.name = names[i],
                                           .grad = t->memory[i],
                                           .count = counts[i],
                                           .dtype = dtypes[i]};
}

static brg_status trainer_create(trainer *t, const brg_reducer_options *options)
{
    return brg_reducer_create(&t->reducer, t->pg, t->params, t->n, options);
}

/* Where the trainer keeps gradient i. */
static void *grad_of(const trainer *t, size_t i)
{
    return t->params[i].grad ? t->params[i].grad
                             : brg_reducer_slot(t->reducer, i);
}

static void fill(trainer *t, int step, size_t i)
{
    for (size_t k = 0; k < counts[i]; k++)
        ranks_store(grad_of(t, i), k, dtypes[i],
                    ranks_gradient(t->rank, step, i, k));
}

static void shuffle(size_t *order, size_t n, uint64_t seed)
{
    for (size_t i = 0; i < n; i++)
        order[i] = i;
    for (size_t i = n; i > 1; i--) {
        size_t k = brg_test_random(&seed) % i;
        size_t swap = order[i - 1];
        order[i - 1] = order[k];
        order[k] = swap;
    }
}

/* All gradients in an order of this rank's own. */
static brg_status mark_all(trainer *t, int step, uint64_t seed)
{
    size_t order[N_PARAMS];
    shuffle(order, t->n, seed + (uint64_t)(t->rank * 100 + step));
    for (size_t i = 0; i < t->n; i++) {
        fill(t, step, order[i]);
        BRG_TRY(brg_reducer_mark_ready(t->reducer, order[i]));
    }
    return BRG_OK;
}

static brg_status check_average(const trainer *t, int step, size_t i)
{
    const void *grad = grad_of(t, i);
    for (size_t k = 0; k < counts[i]; k++) {
        double expected = ranks_average(t->world_size, step, i, k);
        double found = ranks_load(grad, k, dtypes[i]);
        double error = expected > found ? expected - found : found - expected;
        RANK_CHECK(error <= ranks_epsilon(dtypes[i]),
                   "rank %d, step %d: gradient %zu[%zu] is %.9g, expected "
                   "%.9g",
                   t->rank, step, i, k, found, expected);
    }
    return ranks_same_bits(t->pg, grad, counts[i] * brg_dtype_size(dtypes[i]));
}

static brg_status check_all(const trainer *t, int step)
{
    for (size_t i = 0; i < t->n; i++)
        BRG_TRY(check_average(t, step, i));
    return BRG_OK;
}

static brg_status run_step(trainer *t, int step, uint64_t seed)
{
    BRG_TRY(mark_all(t, step, seed));
    BRG_TRY(brg_reducer_wait(t->reducer));
    return check_all(t, step);
}

/* ---- Values -------------------------------------------------------------------- */

typedef struct run {
    brg_reducer_options options;
    uint64_t seed;
    bool in_slots;
    brg_status (*body)(trainer *t, const struct run *run);
} run;

static brg_status run_rank(brg_pg *pg, void *user)
{
    const run *r = user;
    trainer t;
    trainer_init(&t, pg);
    for (size_t i = 0; r->in_slots && i < t.n; i++)
        t.params[i].grad = NULL;
    brg_status status = trainer_create(&t, &r->options);
    if (status == BRG_OK)
        status = r->body(&t, r);
    brg_reducer_destroy(t.reducer);
    return status;
}

static void run_worlds(run *r, int smallest)
{
    for (int i = 0; i < N_RANKS_WORLDS; i++) {
        brg_sim_options options = BRG_SIM_OPTIONS_INIT;
        options.seed = r->seed;
        if (ranks_worlds[i] >= smallest)
            assert_brg_ok(brg_sim_run(ranks_worlds[i], &options, run_rank, r));
    }
}

static brg_status three_steps(trainer *t, const run *r)
{
    for (int step = 0; step < 3; step++)
        BRG_TRY(run_step(t, step, r->seed));
    brg_reducer_stats stats;
    brg_reducer_get_stats(t->reducer, &stats);
    RANK_CHECK(stats.n_steps == 3, "%d steps", (int)stats.n_steps);
    RANK_CHECK(stats.n_rebuilds == 0 || !r->in_slots, "slots have moved");
    for (size_t i = 0; i < t->n; i++)
        RANK_CHECK(brg_reducer_n_used(t->reducer, i) == (size_t)t->world_size,
                   "gradient %zu counts %zu ranks", i,
                   brg_reducer_n_used(t->reducer, i));
    return BRG_OK;
}

static void test_reducer__averages_whatever_the_order(void **state)
{
    (void)state;
    static const size_t caps[] = {1, 256, 1000, 0};
    run r = {.body = three_steps, .seed = brg_test_seed(11)};
    for (size_t i = 0; i < 4; i++) {
        r.options = (brg_reducer_options)BRG_REDUCER_OPTIONS_INIT;
        r.options.first_bucket_bytes = r.options.bucket_bytes = caps[i];
        r.in_slots = false;
        run_worlds(&r, 1);
        r.in_slots = true;
        run_worlds(&r, 1);
        r.seed++;
    }
}

static brg_status sum_step(trainer *t, const run *r)
{
    BRG_TRY(mark_all(t, 0, r->seed));
    BRG_TRY(brg_reducer_wait(t->reducer));
    for (size_t k = 0; k < counts[0]; k++) {
        double expected = ranks_average(t->world_size, 0, 0, k) * t->world_size;
        double error = expected - ranks_load(t->memory[0], k, dtypes[0]);
        RANK_CHECK(error < 1e-5 && error > -1e-5, "off by %g", error);
    }
    return BRG_OK;
}

static void test_reducer__can_sum(void **state)
{
    (void)state;
    run r = {.body = sum_step, .options = BRG_REDUCER_OPTIONS_INIT, .seed = 3};
    r.options.sum = true;
    run_worlds(&r, 1);
}

static brg_status results_in_slots(trainer *t, const run *r)
{
    for (int step = 0; step < 2; step++) {
        BRG_TRY(mark_all(t, step, r->seed));
        double before = ranks_load(t->memory[2], 5, dtypes[2]);
        BRG_TRY(brg_reducer_wait(t->reducer));
        RANK_CHECK(before == ranks_load(t->memory[2], 5, dtypes[2]),
                   "the buffer was written");
        double average = ranks_average(t->world_size, step, 2, 5);
        double found =
            ranks_load(brg_reducer_slot(t->reducer, 2), 5, dtypes[2]);
        RANK_CHECK(found - average < 1e-6 && average - found < 1e-6,
                   "slot holds %g, expected %g", found, average);
    }
    return BRG_OK;
}

static void test_reducer__can_leave_results_in_slots(void **state)
{
    (void)state;
    run r = {.body = results_in_slots, .options = BRG_REDUCER_OPTIONS_INIT};
    r.options.keep_in_slots = true;
    run_worlds(&r, 1);
}

/* ---- Order on the wire ------------------------------------------------------------ */

/* How many all-reduces the log holds from `from` on, and that they are those
 * of the plan's first buckets. */
static size_t n_sent(const trainer *t, size_t from)
{
    size_t n = brg_fake_n_calls(t->pg) - from;
    for (size_t k = 0; k < n; k++) {
        brg_fake_call call;
        brg_bucket_info info;
        assert_brg_ok(brg_fake_call_at(t->pg, from + k, &call));
        assert_brg_ok(brg_reducer_get_bucket(t->reducer, k, &info));
        assert_string_equal(call.name, "all_reduce");
        assert_int_equal(call.dtype, info.dtype);
        assert_int_equal(call.op, BRG_REDUCE_AVG);
        assert_int_equal(call.count * brg_dtype_size(call.dtype), info.nbytes);
    }
    return n;
}

/* Buckets complete from the first on, given the marked gradients. */
static size_t n_complete(const trainer *t, const bool *is_marked)
{
    size_t first_open = brg_reducer_n_buckets(t->reducer);
    for (size_t i = 0; i < t->n; i++) {
        size_t bucket, offset;
        assert_brg_ok(brg_reducer_find(t->reducer, i, &bucket, &offset));
        if (!is_marked[i] && bucket < first_open)
            first_open = bucket;
    }
    return first_open;
}

static void test_reducer__starts_buckets_in_order(void **state)
{
    (void)state;
    brg_pg *pg;
    trainer t;
    brg_reducer_options options = BRG_REDUCER_OPTIONS_INIT;
    uint64_t seed = brg_test_seed(5);
    options.first_bucket_bytes = options.bucket_bytes = 200;
    options.keep_order = true;
    assert_brg_ok(brg_pg_create_fake(&pg, 1, 4));
    trainer_init(&t, pg);
    assert_brg_ok(trainer_create(&t, &options));
    assert_true(brg_reducer_n_buckets(t.reducer) > 4);
    for (int round = 0; round < 200; round++) {
        bool is_marked[N_PARAMS] = {false};
        size_t order[N_PARAMS], from = brg_fake_n_calls(pg);
        shuffle(order, t.n, brg_test_random(&seed));
        for (size_t i = 0; i < t.n; i++) {
            is_marked[order[i]] = true;
            assert_brg_ok(brg_reducer_mark_ready(t.reducer, order[i]));
            size_t n = n_complete(&t, is_marked);
            if (i + 1 == t.n) /* a tail of its own goes along */
                n = brg_reducer_n_buckets(t.reducer);
            assert_int_equal(n_sent(&t, from), n);
        }
        assert_brg_ok(brg_reducer_wait(t.reducer));
        assert_int_equal(n_sent(&t, from), brg_reducer_n_buckets(t.reducer));
    }
    brg_reducer_destroy(t.reducer);
    brg_pg_destroy(pg);
}

static void test_reducer__overlaps_and_counts_it(void **state)
{
    (void)state;
    brg_pg *pg;
    trainer t;
    brg_reducer_options options = BRG_REDUCER_OPTIONS_INIT;
    options.first_bucket_bytes = options.bucket_bytes = 1;
    assert_brg_ok(brg_pg_create_fake(&pg, 0, 2));
    trainer_init(&t, pg);
    assert_brg_ok(trainer_create(&t, &options));
    for (size_t i = t.n; i-- > 0;)
        assert_brg_ok(brg_reducer_mark_ready(t.reducer, i));
    assert_brg_ok(brg_reducer_wait(t.reducer));
    brg_reducer_stats stats;
    brg_reducer_get_stats(t.reducer, &stats);
    assert_int_equal(stats.n_params, N_PARAMS);
    assert_int_equal(stats.n_buckets, N_PARAMS);
    assert_int_equal(stats.n_early, N_PARAMS - 1);
    assert_true(stats.first_launch_ns < stats.last_ready_ns);
    size_t nbytes = 0;
    for (size_t i = 0; i < t.n; i++)
        nbytes += counts[i] * brg_dtype_size(dtypes[i]);
    assert_int_equal(stats.n_packed_bytes, nbytes);
    brg_reducer_destroy(t.reducer);
    brg_pg_destroy(pg);
}

static void test_reducer__does_not_copy_what_lives_in_its_slot(void **state)
{
    (void)state;
    brg_pg *pg;
    brg_reducer *reducer;
    brg_reducer_stats stats;
    brg_reducer_param params[2] = {{.name = "a", .count = 3, .dtype = 1},
                                   {.name = "b", .count = 3, .dtype = 1}};
    assert_brg_ok(brg_pg_create_self(&pg));
    assert_brg_ok(brg_reducer_create(&reducer, pg, params, 2, NULL));
    float *a = brg_reducer_slot(reducer, 0), *b = brg_reducer_slot(reducer, 1);
    assert_null(brg_reducer_slot(reducer, 2));
    for (int step = 0; step < 3; step++) {
        a[0] = (float)step;
        b[2] = 7;
        assert_brg_ok(brg_reducer_mark_ready(reducer, 0));
        assert_brg_ok(brg_reducer_mark_ready(reducer, 1));
        assert_brg_ok(brg_reducer_wait(reducer));
        assert_ptr_equal(a, brg_reducer_slot(reducer, 0));
        assert_true(a[0] == (float)step && b[2] == 7);
    }
    brg_reducer_get_stats(reducer, &stats);
    assert_int_equal(stats.n_packed_bytes, 0);
    assert_int_equal(stats.n_rebuilds, 0);
    brg_reducer_destroy(reducer);
    brg_pg_destroy(pg);
}

/* ---- Rebuild ------------------------------------------------------------------------- */

static brg_status rebuild_body(trainer *t, const run *r)
{
    (void)r;
    static const size_t order[N_PARAMS] = {3, 0, 5, 1, 6, 2, 4};
    brg_reducer_stats stats;
    for (int step = 0; step < 3; step++) {
        for (size_t i = 0; i < t->n; i++) { /* other ranks, another order */
            size_t p = t->rank == 0 ? order[i] : order[t->n - 1 - i];
            fill(t, step, p);
            BRG_TRY(brg_reducer_mark_ready(t->reducer, p));
        }
        BRG_TRY(brg_reducer_wait(t->reducer));
        BRG_TRY(check_all(t, step));
        brg_reducer_get_stats(t->reducer, &stats);
        RANK_CHECK(stats.n_rebuilds == 1, "rebuilt %d times",
                   (int)stats.n_rebuilds);
    }
    const brg__plan *plan = &t->reducer->plan;
    for (size_t i = 0; i < t->n; i++)
        RANK_CHECK(plan->order[i] == order[i], "place %zu holds %u", i,
                   plan->order[i]);
    return BRG_OK;
}

static void test_reducer__is_rebuilt_in_the_order_of_rank_0(void **state)
{
    (void)state;
    run r = {.body = rebuild_body, .options = BRG_REDUCER_OPTIONS_INIT};
    r.options.first_bucket_bytes = r.options.bucket_bytes = 1;
    run_worlds(&r, 1);
}

static void test_reducer__rebuild_keeps_results_in_slots(void **state)
{
    (void)state;
    brg_pg *pg;
    trainer t;
    brg_reducer_options options = BRG_REDUCER_OPTIONS_INIT;
    options.first_bucket_bytes = options.bucket_bytes = 1;
    options.keep_in_slots = true;
    assert_brg_ok(brg_pg_create_self(&pg));
    trainer_init(&t, pg);
    assert_brg_ok(trainer_create(&t, &options));
    for (size_t i = 0; i < t.n; i++) {
        fill(&t, 0, i);
        assert_brg_ok(brg_reducer_mark_ready(t.reducer, i));
    }
    assert_brg_ok(brg_reducer_wait(t.reducer));
    assert_int_equal(t.reducer->stats.n_rebuilds, 1);
    for (size_t i = 0; i < t.n; i++)
        assert_memory_equal(brg_reducer_slot(t.reducer, i), t.memory[i],
                            counts[i] * brg_dtype_size(dtypes[i]));
    brg_reducer_destroy(t.reducer);
    brg_pg_destroy(pg);
}

/* ---- Mistakes ------------------------------------------------------------------------- */

static void test_reducer__names_what_was_marked_wrongly(void **state)
{
    (void)state;
    brg_pg *pg;
    trainer t;
    assert_brg_ok(brg_pg_create_fake(&pg, 2, 4));
    trainer_init(&t, pg);
    assert_brg_ok(trainer_create(&t, NULL));
    assert_brg_fails_with(brg_reducer_mark_ready(t.reducer, N_PARAMS),
                          BRG_ERR_ARG, "no parameter 7");
    assert_brg_ok(brg_reducer_mark_ready(t.reducer, 2));
    assert_brg_fails_with(brg_reducer_mark_ready(t.reducer, 2), BRG_ERR_STATE,
                          "rank 2: Expected to mark a variable ready only "
                          "once: fc1.bias");
    for (size_t i = 0; i < t.n; i++)
        if (i != 2)
            assert_brg_ok(brg_reducer_mark_ready(t.reducer, i));
    assert_brg_fails_with(brg_reducer_mark_ready(t.reducer, 5), BRG_ERR_STATE,
                          "Expected to have finished reduction in the prior "
                          "iteration before starting a new one: parameter 5");
    assert_brg_ok(brg_reducer_wait(t.reducer));
    for (size_t i = 0; i < t.n; i++)
        assert_brg_ok(brg_reducer_mark_ready(t.reducer, i));
    assert_brg_ok(brg_reducer_wait(t.reducer));
    brg_reducer_destroy(t.reducer);
    brg_pg_destroy(pg);
}

static void test_reducer__refuses_bad_arguments(void **state)
{
    (void)state;
    brg_pg *pg;
    brg_reducer *reducer;
    trainer t;
    assert_brg_ok(brg_pg_create_self(&pg));
    trainer_init(&t, pg);
    assert_brg_fails(brg_reducer_create(NULL, pg, t.params, t.n, NULL),
                     BRG_ERR_ARG);
    assert_brg_fails(brg_reducer_create(&reducer, NULL, t.params, t.n, NULL),
                     BRG_ERR_ARG);
    assert_brg_fails_with(brg_reducer_create(&reducer, pg, t.params, 0, NULL),
                          BRG_ERR_ARG, "no parameters");
    assert_null(reducer);
    t.params[1].dtype = (brg_dtype)99;
    assert_brg_fails_with(trainer_create(&t, NULL), BRG_ERR_ARG, "dtype 99");
    t.params[1].dtype = BRG_DTYPE_F64;
    t.params[1].count = SIZE_MAX / 4;
    assert_brg_fails(trainer_create(&t, NULL), BRG_ERR_ARG);
    t.params[1].count = 1;
    t.params[1].device.type = BRG_DEVICE_CUDA;
    assert_brg_fails(trainer_create(&t, NULL), BRG_ERR_UNSUPPORTED);
    brg_reducer_options options = {0};
    trainer_init(&t, pg);
    assert_brg_fails_with(trainer_create(&t, &options), BRG_ERR_ARG,
                          "struct_size");
    brg_reducer_destroy(NULL);
    brg_pg_destroy(pg);
}

/* Rank 1 leaves out fc2.weight, ranks 0 and 1 the last one. */
static bool leaves_out(const trainer *t, size_t i)
{
    return (t->rank == 1 && i == 3) || (t->rank <= 1 && i == 6);
}

static brg_status step_with_gaps(trainer *t, int step)
{
    for (size_t i = 0; i < t->n; i++) {
        fill(t, step, i);
        if (!leaves_out(t, i))
            BRG_TRY(brg_reducer_mark_ready(t->reducer, i));
    }
    return brg_reducer_wait(t->reducer);
}

static brg_status missing_body(trainer *t, const run *r)
{
    for (int step = 0; step < 3; step++) {
        RANK_FAILS(step_with_gaps(t, step), BRG_ERR_STATE,
                   "fc2.weight on rank 1; head.weight on ranks 0, 1");
        RANK_CHECK(strstr(brg_error_message(), "allow_unused"), "no remedy");
        BRG_TRY(run_step(t, step, r->seed));
    }
    return BRG_OK;
}

static void test_reducer__missing_gradients_fail_on_every_rank(void **state)
{
    (void)state;
    run r = {.body = missing_body, .options = BRG_REDUCER_OPTIONS_INIT};
    r.options.first_bucket_bytes = r.options.bucket_bytes = 256;
    run_worlds(&r, 2);
}

static brg_status unused_body(trainer *t, const run *r)
{
    (void)r;
    for (int step = 0; step < 3; step++) {
        BRG_TRY(step_with_gaps(t, step));
        size_t n_used = (size_t)t->world_size - 2;
        RANK_CHECK(brg_reducer_n_used(t->reducer, 6) == n_used, "%zu ranks",
                   brg_reducer_n_used(t->reducer, 6));
        for (size_t k = 0; k < counts[6]; k++) {
            double expected = 0, found = ranks_load(t->memory[6], k, 1);
            for (int rank = 2; rank < t->world_size; rank++)
                expected += ranks_gradient(rank, step, 6, k) / t->world_size;
            if (n_used == 0) /* left as it was */
                expected = ranks_gradient(t->rank, step, 6, k);
            RANK_CHECK(expected - found < 1e-6 && found - expected < 1e-6,
                       "%g, expected %g", found, expected);
        }
        BRG_TRY(check_average(t, step, 0));
    }
    return BRG_OK;
}

static void test_reducer__may_allow_missing_gradients(void **state)
{
    (void)state;
    run r = {.body = unused_body, .options = BRG_REDUCER_OPTIONS_INIT};
    r.options.allow_unused = true;
    r.options.bucket_bytes = 256;
    run_worlds(&r, 2);
}

static brg_status cancel_body(trainer *t, const run *r)
{
    for (int step = 0; step < 3; step++) {
        size_t n_marked = (size_t)step * 3; /* none, some, more */
        int last = t->world_size - 1;
        for (size_t i = t->n; i-- > (t->rank == last ? t->n - n_marked : 0);)
            BRG_TRY(brg_reducer_mark_ready(t->reducer, i));
        char text[60];
        snprintf(text, sizeof text, "backward failed on rank %d", last);
        if (t->rank == last)
            BRG_TRY(brg_reducer_cancel(t->reducer));
        else
            RANK_FAILS(brg_reducer_wait(t->reducer), BRG_ERR_PEER, text);
        BRG_TRY(run_step(t, step, r->seed));
    }
    return BRG_OK;
}

static void test_reducer__a_cancelled_step_fails_elsewhere(void **state)
{
    (void)state;
    run r = {.body = cancel_body, .options = BRG_REDUCER_OPTIONS_INIT};
    r.options.first_bucket_bytes = r.options.bucket_bytes = 1;
    run_worlds(&r, 1);
    r.options.first_bucket_bytes = r.options.bucket_bytes = 0;
    run_worlds(&r, 1);
}

/* ---- Ranks that differ ------------------------------------------------------------------ */

typedef struct difference {
    const char *text;
    void (*apply)(trainer *t, brg_reducer_options *options);
    brg_status code;
} difference;

static void differ_count(trainer *t, brg_reducer_options *options)
{
    (void)options;
    t->n--;
}

static void differ_size(trainer *t, brg_reducer_options *options)
{
    (void)options;
    t->params[2].count = 63;
}

static void differ_dtype(trainer *t, brg_reducer_options *options)
{
    (void)options;
    t->params[3].dtype = BRG_DTYPE_F16;
}

static void differ_name(trainer *t, brg_reducer_options *options)
{
    (void)options;
    t->params[0].name = "wte";
}

static void differ_caps(trainer *t, brg_reducer_options *options)
{
    (void)t;
    options->bucket_bytes = 12345;
}

static void differ_argument(trainer *t, brg_reducer_options *options)
{
    (void)options;
    t->params[4].dtype = (brg_dtype)50;
}

static const difference differences[] = {
    {"rank 0 has 7 parameters and 0 buffers, rank 1 has 6", differ_count,
     BRG_ERR_MISMATCH},
    {"parameter 2: rank 0 has fc1.bias f32[64], rank 1 has fc1.bias f32[63]",
     differ_size, BRG_ERR_MISMATCH},
    {"rank 0 has fc2.weight bf16[33], rank 1 has fc2.weight f16[33]",
     differ_dtype, BRG_ERR_MISMATCH},
    {"rank 0 has embed.weight f32[300], rank 1 has wte f32[300]", differ_name,
     BRG_ERR_MISMATCH},
    {"rank 1 has 1048576, 12345", differ_caps, BRG_ERR_MISMATCH},
    {"brg_reducer_create failed on rank 1", differ_argument, BRG_ERR_PEER},
};

static brg_status differ_rank(brg_pg *pg, void *user)
{
    const difference *d = user;
    brg_reducer_options options = BRG_REDUCER_OPTIONS_INIT;
    trainer t;
    trainer_init(&t, pg);
    if (t.rank == 1)
        d->apply(&t, &options);
    if (t.rank == 1 && d->code == BRG_ERR_PEER)
        RANK_FAILS(trainer_create(&t, &options), BRG_ERR_ARG, "dtype 50");
    else
        RANK_FAILS(trainer_create(&t, &options), d->code, d->text);
    trainer_init(&t, pg); /* the group is as good as before */
    BRG_TRY(trainer_create(&t, NULL));
    brg_status status = run_step(&t, 0, 1);
    brg_reducer_destroy(t.reducer);
    return status;
}

static void test_reducer__ranks_that_differ_all_hear_the_same(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof differences / sizeof differences[0]; i++)
        for (int n = 2; n <= 4; n++) {
            difference d = differences[i];
            print_message("%s\n", d.text);
            assert_brg_ok(brg_sim_run(n, NULL, differ_rank, &d));
        }
}

/* ---- Ranks that go ------------------------------------------------------------------------- */

static brg_status leave_body(trainer *t, const run *r)
{
    BRG_TRY(run_step(t, 0, r->seed));
    if (t->rank == 1) /* in the middle of a step */
        return brg_reducer_mark_ready(t->reducer, 6);
    brg_status status = mark_all(t, 1, r->seed);
    if (status == BRG_OK)
        status = brg_reducer_wait(t->reducer);
    RANK_FAILS(status, BRG_ERR_PEER, "rank 1");
    RANK_FAILS(brg_reducer_wait(t->reducer), BRG_ERR_PEER, "rank 1");
    return BRG_OK;
}

static void test_reducer__a_rank_that_leaves_is_named(void **state)
{
    (void)state;
    run r = {.body = leave_body, .options = BRG_REDUCER_OPTIONS_INIT};
    r.options.first_bucket_bytes = r.options.bucket_bytes = 1;
    run_worlds(&r, 2);
}

static void test_reducer__a_failed_collective_is_reported(void **state)
{
    (void)state;
    for (int64_t nth = 0; nth < 5; nth++) {
        brg_pg *pg;
        trainer t;
        brg_reducer_options options = BRG_REDUCER_OPTIONS_INIT;
        options.first_bucket_bytes = options.bucket_bytes = 1;
        options.keep_order = true;
        assert_brg_ok(brg_pg_create_fake(&pg, 0, 2));
        trainer_init(&t, pg);
        assert_brg_ok(trainer_create(&t, &options));
        assert_brg_ok(brg_fake_fail_after(pg, nth));
        brg_status status = BRG_OK;
        for (size_t i = t.n; i-- > 0 && status == BRG_OK;)
            status = brg_reducer_mark_ready(t.reducer, i);
        assert_brg_fails(brg_reducer_wait(t.reducer), BRG_ERR_COMM);
        assert_brg_fails(brg_reducer_wait(t.reducer), BRG_ERR_COMM);
        assert_brg_ok(brg_fake_fail_after(pg, -1));
        for (size_t i = 0; i < t.n; i++)
            assert_brg_ok(brg_reducer_mark_ready(t.reducer, i));
        assert_brg_ok(brg_reducer_wait(t.reducer));
        brg_reducer_destroy(t.reducer);
        brg_pg_destroy(pg);
    }
}

/* ---- Memory ---------------------------------------------------------------------------------- */

static brg_status make_and_step(void *user)
{
    trainer t;
    trainer_init(&t, user);
    brg_reducer_options options = BRG_REDUCER_OPTIONS_INIT;
    options.bucket_bytes = 256;
    options.keep_order = true; /* a rebuild may fail: the next test */
    brg_status status = trainer_create(&t, &options);
    for (int step = 0; status == BRG_OK && step < 2; step++)
        status = run_step(&t, step, 1);
    brg_reducer_destroy(t.reducer);
    return status;
}

static void test_reducer__runs_out_of_memory_cleanly(void **state)
{
    (void)state;
    brg_pg *pg;
    assert_brg_ok(brg_pg_create_self(&pg));
    assert_oom_clean(make_and_step, pg);
    brg_pg_destroy(pg);
}

/* Rank 1 has memory for so many allocations of the rebuild. */
static brg_status rebuild_poorly(brg_pg *pg, void *user)
{
    int64_t budget = *(const int64_t *)user;
    trainer t;
    trainer_init(&t, pg);
    BRG_TRY(trainer_create(&t, NULL));
    brg_status status = mark_all(&t, 0, 1);
    for (size_t i = 0; i < t.reducer->plan.n_buckets; i++)
        (void)brg_work_test(t.reducer->buckets[i].work);
    if (t.rank == 1)
        fail_alloc_arm(budget);
    if (status == BRG_OK)
        status = brg_reducer_wait(t.reducer);
    if (t.rank == 1)
        (void)fail_alloc_disarm();
    if (status == BRG_OK)
        status = run_step(&t, 1, 1);
    brg_reducer_stats stats;
    brg_reducer_get_stats(t.reducer, &stats);
    brg_reducer_destroy(t.reducer);
    BRG_TRY(status);
    RANK_CHECK(stats.n_steps == 2, "%d steps", (int)stats.n_steps);
    uint64_t n = stats.n_rebuilds;
    return ranks_same_bits(pg, &n, sizeof n);
}

static void test_reducer__is_not_rebuilt_without_memory(void **state)
{
    (void)state;
    for (int64_t budget = 0; budget < 8; budget++) {
        brg_status status = brg_sim_run(2, NULL, rebuild_poorly, &budget);
        if (status != BRG_ERR_NOMEM) /* of a collective itself */
            assert_brg_ok(status);
    }
}

static brg_status steady_body(trainer *t, const run *r)
{
    brg_memory_stats before, after;
    for (int step = 0; step < 3; step++)
        BRG_TRY(run_step(t, step, r->seed));
    brg_memory_get_stats(&before);
    uint64_t n_mallocs = ranks_n_mallocs();
    for (int step = 3; step < 6; step++) {
        BRG_TRY(mark_all(t, step, r->seed));
        BRG_TRY(brg_reducer_wait(t->reducer));
    }
    brg_memory_get_stats(&after);
    RANK_CHECK(after.n_allocs == before.n_allocs, "%d allocations",
               (int)(after.n_allocs - before.n_allocs));
    RANK_CHECK(ranks_n_mallocs() == n_mallocs, "%d calls of malloc",
               (int)(ranks_n_mallocs() - n_mallocs));
    return check_all(t, 5);
}

static void test_reducer__a_steady_step_allocates_nothing(void **state)
{
    (void)state;
#if defined(__SANITIZE_ADDRESS__)
    skip(); /* objects are not cached, so that each is seen */
#endif
    run r = {.body = steady_body, .options = BRG_REDUCER_OPTIONS_INIT};
    brg_pg *pg;
    assert_brg_ok(brg_pg_create_self(&pg));
    assert_brg_ok(run_rank(pg, &r));
    brg_pg_destroy(pg);
    assert_true(ranks_n_mallocs() > 0);
}

static void test_reducer__may_be_destroyed_in_flight(void **state)
{
    (void)state;
    brg_pg *pg;
    trainer t;
    assert_brg_ok(brg_pg_create_fake(&pg, 0, 2));
    trainer_init(&t, pg);
    brg_reducer_options options = BRG_REDUCER_OPTIONS_INIT;
    options.first_bucket_bytes = options.bucket_bytes = 1;
    assert_brg_ok(trainer_create(&t, &options));
    assert_brg_ok(brg_reducer_mark_ready(t.reducer, 6));
    brg_reducer_destroy(t.reducer);
    brg_pg_destroy(pg);
}

int main(void)
{
    fail_alloc_install();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reducer__averages_whatever_the_order),
        cmocka_unit_test(test_reducer__can_sum),
        cmocka_unit_test(test_reducer__can_leave_results_in_slots),
        cmocka_unit_test(test_reducer__starts_buckets_in_order),
        cmocka_unit_test(test_reducer__overlaps_and_counts_it),
        cmocka_unit_test(test_reducer__does_not_copy_what_lives_in_its_slot),
        cmocka_unit_test(test_reducer__is_rebuilt_in_the_order_of_rank_0),
        cmocka_unit_test(test_reducer__rebuild_keeps_results_in_slots),
        cmocka_unit_test(test_reducer__names_what_was_marked_wrongly),
        cmocka_unit_test(test_reducer__refuses_bad_arguments),
        cmocka_unit_test(test_reducer__missing_gradients_fail_on_every_rank),
        cmocka_unit_test(test_reducer__may_allow_missing_gradients),
        cmocka_unit_test(test_reducer__a_cancelled_step_fails_elsewhere),
        cmocka_unit_test(test_reducer__ranks_that_differ_all_hear_the_same),
        cmocka_unit_test(test_reducer__a_rank_that_leaves_is_named),
        cmocka_unit_test(test_reducer__a_failed_collective_is_reported),
        cmocka_unit_test(test_reducer__runs_out_of_memory_cleanly),
        cmocka_unit_test(test_reducer__is_not_rebuilt_without_memory),
        cmocka_unit_test(test_reducer__a_steady_step_allocates_nothing),
        cmocka_unit_test(test_reducer__may_be_destroyed_in_flight),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
