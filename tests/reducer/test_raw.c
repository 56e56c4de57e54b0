/* SPDX-License-Identifier: Apache-2.0
 * The reducer in a trainer of the user's: marks from other threads, results
 * bucket by bucket, buffers that overlap, move or go. */
#include "tests/reducer/trainer.h"

#include <pthread.h>
#include <sys/mman.h>

#include "core/base/assert.h"

/* ---- Threads ---------------------------------------------------------------- */

#define N_THREADS 3

typedef struct threaded_step {
    trainer *t;
    int step;
} threaded_step;

static brg_status mark_share(void *user, size_t first)
{
    const threaded_step *s = user;
    for (size_t i = first; i < s->t->n; i += N_THREADS) {
        fill(s->t, s->step, i);
        BRG_TRY(brg_reducer_mark_ready(s->t->reducer, i));
    }
    return BRG_OK;
}

static brg_status poll(void *user)
{
    const threaded_step *s = user;
    return brg_reducer_poll(s->t->reducer);
}

static brg_status threads_body(trainer *t, const run *r)
{
    (void)r;
    for (int step = 0; step < 5; step++) {
        BRG_TRY(ranks_by_threads(N_THREADS, mark_share, poll,
                                 &(threaded_step){t, step}));
        if (step % 2)
            BRG_TRY(brg_reducer_poll(t->reducer));
        BRG_TRY(brg_reducer_wait(t->reducer));
        BRG_TRY(check_all(t, step));
    }
    brg_reducer_stats stats;
    brg_reducer_get_stats(t->reducer, &stats);
    RANK_CHECK(stats.n_steps == 5, "%d steps", (int)stats.n_steps);
    return BRG_OK;
}

static void test_raw__gradients_may_be_marked_by_any_thread(void **state)
{
    (void)state;
    static const size_t caps[] = {1, 300, 0};
    run r = {.body = threads_body, .options = BRG_REDUCER_OPTIONS_INIT};
    for (size_t k = 0; k < 3; k++) {
        r.options.first_bucket_bytes = r.options.bucket_bytes = caps[k];
        r.in_slots = k == 1;
        run_worlds(&r, 1);
    }
}

typedef struct twice {
    trainer *t;
    brg_status status;
    char message[200];
} twice;

static void *mark_twice(void *user)
{
    twice *w = user;
    w->status = brg_reducer_mark_ready(w->t->reducer, 2);
    snprintf(w->message, sizeof w->message, "%s", brg_error_message());
    return NULL;
}

static void test_raw__a_mark_of_two_threads_is_found(void **state)
{
    (void)state;
    brg_pg *pg;
    trainer t;
    pthread_t thread;
    twice w = {.t = &t};
    assert_brg_ok(brg_pg_create_fake(&pg, 0, 2));
    trainer_init(&t, pg);
    assert_brg_ok(trainer_create(&t, NULL));
    assert_brg_ok(brg_reducer_mark_ready(t.reducer, 2));
    assert_int_equal(pthread_create(&thread, NULL, mark_twice, &w), 0);
    pthread_join(thread, NULL);
    assert_int_equal(w.status, BRG_ERR_STATE);
    assert_non_null(strstr(w.message, "only once: fc1.bias"));
    brg_reducer_destroy(t.reducer);
    brg_pg_destroy(pg);
}

/* On a CPU there is no event to wait for, and nothing is marked. */
static void test_raw__a_cpu_has_no_events(void **state)
{
    (void)state;
    brg_pg *pg;
    trainer t;
    assert_brg_ok(brg_pg_create_self(&pg));
    trainer_init(&t, pg);
    assert_brg_ok(trainer_create(&t, NULL));
    assert_brg_fails_with(brg_reducer_mark_ready_after(t.reducer, 2, &t),
                          BRG_ERR_UNSUPPORTED, "fc1.bias is on cpu:0");
    assert_brg_ok(run_step(&t, 0, 1));
    brg_reducer_destroy(t.reducer);
    brg_pg_destroy(pg);
}

/* Marks come from one thread, then the reducer is driven by another. */
static void *drive(void *user)
{
    twice *w = user;
    w->status = mark_all(w->t, 0, 1);
    if (w->status == BRG_OK)
        w->status = brg_reducer_wait(w->t->reducer);
    for (size_t i = w->t->n; i-- > 0 && w->status == BRG_OK;)
        w->status = brg_reducer_mark_ready(w->t->reducer, i);
    return NULL;
}

static void test_raw__the_thread_that_waits_becomes_the_owner(void **state)
{
    (void)state;
    brg_pg *pg;
    trainer t;
    pthread_t thread;
    twice w = {.t = &t};
    brg_reducer_stats stats;
    brg_reducer_options options = BRG_REDUCER_OPTIONS_INIT;
    options.first_bucket_bytes = options.bucket_bytes = 1;
    options.keep_order = true;
    assert_brg_ok(brg_pg_create_fake(&pg, 0, 2));
    trainer_init(&t, pg);
    assert_brg_ok(trainer_create(&t, &options));
    assert_int_equal(pthread_create(&thread, NULL, drive, &w), 0);
    pthread_join(thread, NULL);
    assert_brg_ok(w.status);
    brg_reducer_get_stats(t.reducer, &stats);
    assert_int_equal(stats.n_early, N_PARAMS - 1); /* started as it marked */
    assert_brg_ok(brg_reducer_wait(t.reducer));
    brg_reducer_destroy(t.reducer);
    brg_pg_destroy(pg);
}

/* ---- Bucket by bucket ---------------------------------------------------------- */

static brg_status check_bucket(trainer *t, size_t bucket, int step)
{
    brg_bucket_info info;
    BRG_TRY(brg_reducer_get_bucket(t->reducer, bucket, &info));
    for (size_t k = 0; k < info.n_params; k++) {
        size_t i = info.params[k], found, offset;
        BRG_TRY(brg_reducer_find(t->reducer, i, &found, &offset));
        RANK_CHECK(found == bucket, "bucket %zu lists %zu of %zu", bucket, i,
                   found);
        for (size_t e = 0; e < counts[i]; e++) {
            double expected = ranks_average(t->world_size, step, i, e);
            double error = expected - ranks_load(grad_of(t, i), e, dtypes[i]);
            RANK_CHECK(error <= ranks_epsilon(dtypes[i]) &&
                           -error <= ranks_epsilon(dtypes[i]),
                       "gradient %zu[%zu] is off by %g", i, e, error);
        }
    }
    return BRG_OK;
}

static brg_status wait_buckets_body(trainer *t, const run *r)
{
    (void)r;
    for (int step = 0; step < 4; step++) {
        fill(t, step, 1);
        BRG_TRY(brg_reducer_mark_ready(t->reducer, 1));
        RANK_FAILS(brg_reducer_wait_bucket(t->reducer, 0), BRG_ERR_STATE,
                   "not marked in this step: embed.weight, fc1.bias, "
                   "fc2.weight, fc2.bias and 2 more");
        for (size_t i = 0; i < t->n; i++) {
            fill(t, step, i);
            if (i != 1)
                BRG_TRY(brg_reducer_mark_ready(t->reducer, i));
        }
        size_t n = brg_reducer_n_buckets(t->reducer);
        RANK_FAILS(brg_reducer_wait_bucket(t->reducer, n), BRG_ERR_ARG,
                   "no bucket");
        for (size_t k = step % 2; k < n; k += 1 + (size_t)(step % 2)) {
            BRG_TRY(brg_reducer_wait_bucket(t->reducer, k));
            for (size_t j = 0; j <= k; j++)
                BRG_TRY(check_bucket(t, j, step));
        }
        BRG_TRY(brg_reducer_wait(t->reducer));
        BRG_TRY(check_all(t, step));
    }
    return BRG_OK;
}

static void test_raw__buckets_can_be_waited_for_one_by_one(void **state)
{
    (void)state;
    run r = {.body = wait_buckets_body, .options = BRG_REDUCER_OPTIONS_INIT};
    r.options.first_bucket_bytes = r.options.bucket_bytes = 0;
    run_worlds(&r, 1);
    r.options.bucket_bytes = 1 << 10;
    run_worlds(&r, 1);
}

typedef struct told {
    trainer *t;
    int step;
    size_t n;
    size_t fail_at;
} told;

static brg_status on_bucket(brg_reducer *reducer, size_t bucket, void *user)
{
    told *u = user;
    RANK_CHECK(reducer == u->t->reducer && bucket == u->n,
               "bucket %zu came when %zu was due", bucket, u->n);
    if (u->n++ == u->fail_at)
        return brg_error_set(BRG_ERR_CALLBACK, __FILE__, __LINE__,
                             "the optimizer is tired");
    return check_bucket(u->t, bucket, u->step);
}

static brg_status callbacks_rank(brg_pg *pg, void *user)
{
    trainer t;
    told u = {.t = &t, .fail_at = SIZE_MAX};
    brg_reducer_options options = *(const brg_reducer_options *)user;
    options.on_bucket = on_bucket;
    options.user = &u;
    trainer_init(&t, pg);
    BRG_TRY(trainer_create(&t, &options));
    brg_status status = BRG_OK;
    for (u.step = 0; u.step < 4 && status == BRG_OK; u.step++) {
        size_t n = brg_reducer_n_buckets(t.reducer);
        u.n = 0;
        status = mark_all(&t, u.step, 1);
        if (status == BRG_OK)
            status = brg_reducer_wait(t.reducer);
        if (status == BRG_OK && u.n != n)
            status = brg_error_set(BRG_ERR_INTERNAL, __FILE__, __LINE__,
                                   "%zu of %zu buckets", u.n, n);
        if (status == BRG_OK)
            status = check_all(&t, u.step);
    }
    brg_reducer_destroy(t.reducer);
    return status;
}

static void test_raw__a_callback_gets_every_bucket_in_order(void **state)
{
    (void)state;
    brg_reducer_options options = BRG_REDUCER_OPTIONS_INIT;
    for (int k = 0; k < N_RANKS_WORLDS; k++)
        for (int way = 0; way < 4; way++) {
            options.allow_unused = way % 2;
            options.bucket_bytes = way < 2 ? 100 : 0;
            options.first_bucket_bytes = options.bucket_bytes;
            assert_brg_ok(
                brg_sim_run(ranks_worlds[k], NULL, callbacks_rank, &options));
        }
}

/* On rank 1 the callback fails; the step was good, and the next one is. */
static brg_status tired_rank(brg_pg *pg, void *user)
{
    (void)user;
    trainer t;
    told u = {.t = &t, .fail_at = brg_pg_rank(pg) == 1 ? 1 : SIZE_MAX};
    brg_reducer_options options = BRG_REDUCER_OPTIONS_INIT;
    options.on_bucket = on_bucket;
    options.user = &u;
    options.first_bucket_bytes = options.bucket_bytes = 1;
    trainer_init(&t, pg);
    BRG_TRY(trainer_create(&t, &options));
    BRG_TRY(mark_all(&t, 0, 1));
    if (t.rank == 1) {
        RANK_FAILS(brg_reducer_wait(t.reducer), BRG_ERR_CALLBACK, "tired");
        RANK_CHECK(u.n == 2, "called %zu times", u.n);
    } else {
        BRG_TRY(brg_reducer_wait(t.reducer));
    }
    BRG_TRY(check_all(&t, 0));
    u = (told){.t = &t, .step = 1, .fail_at = SIZE_MAX};
    brg_status status = run_step(&t, 1, 1);
    brg_reducer_destroy(t.reducer);
    return status;
}

static void test_raw__a_failed_callback_is_this_ranks_own(void **state)
{
    (void)state;
    for (int n = 2; n <= 4; n++)
        assert_brg_ok(brg_sim_run(n, NULL, tired_rank, NULL));
}

static void test_raw__wait_bucket_needs_every_gradient(void **state)
{
    (void)state;
    brg_pg *pg;
    trainer t;
    brg_reducer_options options = BRG_REDUCER_OPTIONS_INIT;
    assert_brg_ok(brg_pg_create_self(&pg));
    trainer_init(&t, pg);
    assert_brg_ok(trainer_create(&t, &options));
    assert_brg_fails_with(brg_reducer_wait_bucket(t.reducer, 0), BRG_ERR_STATE,
                          "and 3 more");
    assert_brg_ok(mark_all(&t, 0, 1));
    assert_brg_ok(brg_reducer_wait(t.reducer));
    /* The step is over: nothing of the next one is marked. */
    assert_brg_fails_with(brg_reducer_wait_bucket(t.reducer, 0), BRG_ERR_STATE,
                          "and 3 more");
    brg_reducer_destroy(t.reducer);
    options.allow_unused = true;
    assert_brg_ok(trainer_create(&t, &options));
    assert_brg_ok(mark_all(&t, 0, 1));
    assert_brg_fails_with(brg_reducer_wait_bucket(t.reducer, 0), BRG_ERR_STATE,
                          "allow_unused");
    brg_reducer_destroy(t.reducer);
    brg_pg_destroy(pg);
}

/* ---- Buffers ---------------------------------------------------------------------- */

static void test_raw__refuses_a_buffer_twice(void **state)
{
    (void)state;
    brg_pg *pg;
    trainer t;
    assert_brg_ok(brg_pg_create_self(&pg));
    trainer_init(&t, pg);
    t.params[5].grad = t.params[0].grad;
    t.params[5].count = t.params[0].count;
    t.params[5].dtype = t.params[0].dtype;
    assert_brg_fails_with(trainer_create(&t, NULL), BRG_ERR_ARG,
                          "embed.weight (0) and parameter 5 (5) are the same "
                          "buffer, registered twice");
    trainer_init(&t, pg);
    t.params[3].grad = (char *)t.params[2].grad + 4;
    assert_brg_fails_with(trainer_create(&t, NULL), BRG_ERR_ARG,
                          "fc1.bias (2) and fc2.weight (3) have buffers that "
                          "overlap");
    trainer_init(&t, pg);
    t.params[3].grad = (char *)t.params[2].grad + 4 * t.params[2].count;
    assert_brg_ok(trainer_create(&t, NULL)); /* side by side */
    brg_reducer_destroy(t.reducer);
    brg_pg_destroy(pg);
}

static void test_raw__a_buffer_may_be_moved_between_steps(void **state)
{
    (void)state;
    brg_pg *pg;
    trainer t;
    double elsewhere[MAX_COUNT];
    assert_brg_ok(brg_pg_create_self(&pg));
    trainer_init(&t, pg);
    assert_brg_ok(trainer_create(&t, NULL));
    assert_brg_ok(run_step(&t, 0, 1));
    assert_brg_fails_with(brg_reducer_set_grad(t.reducer, 0, NULL), BRG_ERR_ARG,
                          "cannot move to NULL");
    assert_brg_fails_with(brg_reducer_set_grad(t.reducer, 0, t.params[1].grad),
                          BRG_ERR_ARG, "overlap");
    assert_brg_ok(brg_reducer_set_grad(t.reducer, 0, elsewhere));
    t.params[0].grad = elsewhere;
    assert_brg_ok(run_step(&t, 1, 1));
    assert_brg_ok(brg_reducer_mark_ready(t.reducer, 3));
    assert_brg_fails_with(brg_reducer_set_grad(t.reducer, 0, t.memory[0]),
                          BRG_ERR_STATE, "while a step is under way");
    brg_reducer_destroy(t.reducer);
    brg_pg_destroy(pg);
}

#if BRG_DEBUG >= 1
/* What is left of a step in which a buffer was found to be gone. */
static void check_gone(trainer *t, size_t i)
{
    assert_brg_fails_with(brg_reducer_mark_ready(t->reducer, i), BRG_ERR_STATE,
                          "was freed or has moved");
    assert_brg_ok(brg_reducer_set_grad(t->reducer, i, t->memory[i]));
    t->params[i].grad = t->memory[i];
    assert_brg_ok(run_step(t, 1, 1));
}

/* The system moves the block, as a realloc of a large one does. */
static void check_moved(trainer *t)
{
    size_t nbytes = MAX_COUNT * sizeof(double);
    void *block = mmap(NULL, nbytes, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    void *free_place =
        mmap(NULL, nbytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_true(block != MAP_FAILED && free_place != MAP_FAILED);
    t->params[3].grad = block;
    assert_brg_ok(trainer_create(t, NULL));
    assert_brg_ok(run_step(t, 0, 1));
    void *moved = mremap(block, nbytes, nbytes, MREMAP_MAYMOVE | MREMAP_FIXED,
                         free_place);
    assert_ptr_equal(moved, free_place);
    assert_brg_fails_with(brg_reducer_mark_ready(t->reducer, 3), BRG_ERR_STATE,
                          "was freed or has moved");
    assert_brg_ok(brg_reducer_set_grad(t->reducer, 3, moved));
    t->params[3].grad = moved;
    assert_brg_ok(run_step(t, 1, 1));
    brg_reducer_destroy(t->reducer);
    t->params[3].grad = t->memory[3];
    munmap(moved, nbytes);
}

/* malloc takes this much from the system, and free gives it back. */
static void check_large(trainer *t)
{
    char *block = malloc((size_t)40 << 20);
    assert_non_null(block);
    t->params[3].grad = block;
    assert_brg_ok(trainer_create(t, NULL));
    assert_brg_ok(run_step(t, 0, 1));
    free(block);
    check_gone(t, 3);
    brg_reducer_destroy(t->reducer);
}
#endif

static void test_raw__a_buffer_that_went_is_found_in_debug_builds(void **state)
{
    (void)state;
#if BRG_DEBUG >= 1
    brg_pg *pg;
    trainer t;
    size_t nbytes = MAX_COUNT * sizeof(double);
    assert_brg_ok(brg_pg_create_self(&pg));
    trainer_init(&t, pg);
    void *block = mmap(NULL, nbytes, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_ptr_not_equal(block, MAP_FAILED);
    t.params[3].grad = block;
    assert_brg_ok(trainer_create(&t, NULL));
    assert_brg_ok(run_step(&t, 0, 1));
    munmap(block, nbytes);
    check_gone(&t, 3);
    brg_reducer_destroy(t.reducer);
    check_moved(&t);
    check_large(&t);
#if defined(__SANITIZE_ADDRESS__)
    t.params[2].grad = block = malloc(nbytes);
    assert_brg_ok(trainer_create(&t, NULL));
    assert_brg_ok(run_step(&t, 0, 1));
    free(block);
    check_gone(&t, 2);
    brg_reducer_destroy(t.reducer);
#endif
    brg_pg_destroy(pg);
#else
    skip();
#endif
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_raw__gradients_may_be_marked_by_any_thread),
        cmocka_unit_test(test_raw__a_mark_of_two_threads_is_found),
        cmocka_unit_test(test_raw__a_cpu_has_no_events),
        cmocka_unit_test(test_raw__the_thread_that_waits_becomes_the_owner),
        cmocka_unit_test(test_raw__buckets_can_be_waited_for_one_by_one),
        cmocka_unit_test(test_raw__a_callback_gets_every_bucket_in_order),
        cmocka_unit_test(test_raw__a_failed_callback_is_this_ranks_own),
        cmocka_unit_test(test_raw__wait_bucket_needs_every_gradient),
        cmocka_unit_test(test_raw__refuses_a_buffer_twice),
        cmocka_unit_test(test_raw__a_buffer_may_be_moved_between_steps),
        cmocka_unit_test(test_raw__a_buffer_that_went_is_found_in_debug_builds),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
