/* SPDX-License-Identifier: Apache-2.0
 * Several threads at once: each captures and replays plans of its own, over
 * leaves and compiled functions that they share. Meant for the thread sanitizer;
 * gradients are whole numbers, so their sums are exact in any order. */
#include <pthread.h>
#include <stdatomic.h>

#include "tests/compile/chains.h"

enum { N_THREADS = 4, N_ROUNDS = 100, N_W = 4 };

typedef enum run_kind {
    SCOPE, /* a compiled backward */
    SEGMENT,
    SEGMENT_AND_PLAN,
    STEP,
    PIECES,
    N_KINDS
} run_kind;

typedef struct common {
    run_kind kind;
    brg_compile_backend backend;
    brg_tensor *w, *v; /* shared by all */
    brg_compiled *c;   /* the same */
    bool is_forced;    /* eager, now and then, by another thread */
    pthread_barrier_t start;
} common;

/* sum(x (w + v)): the gradients of w and v are x. */
FUNCTION(adds)
{
    common *s = user;
    double value;
    brg_tensor *h = brg_mul(in[0], brg_add(s->w, s->v));
    if (s->kind == PIECES)
        BRG_TRY(brg_tensor_item(brg_sum_all(brg_detach(h)), &value));
    out[0] = brg_sum_all(brg_mul_scalar(brg_relu(h), 2));
    if (!out[0])
        return brg_error_code();
    return s->kind == STEP ? brg_backward(out[0]) : BRG_OK;
}

static brg_status round_of(common *s, int i)
{
    brg_compile_options options = BRG_COMPILE_OPTIONS_INIT;
    brg_tensor *y,
        *x = brg_full(BRG_DTYPE_F32, BRG_SHAPE(1 + i % 5, N_W), 1 + i % 3);
    int scope;
    options.backend = s->backend;
    options.max_plans = 2;
    if (!x)
        return brg_error_code();
    if (s->kind == SCOPE || s->kind == SEGMENT_AND_PLAN)
        BRG_TRY(brg_compile_begin(&scope, &options));
    brg_status status = s->kind == SCOPE
                            ? adds(&x, 1, &y, 1, s)
                            : brg_compiled_call(s->c, &x, 1, &y, 1);
    if (status == BRG_OK && s->kind != STEP)
        status = brg_backward(y);
    if (s->kind == SCOPE || s->kind == SEGMENT_AND_PLAN)
        BRG_TRY(brg_compile_end(scope));
    return status;
}

static void *runs(void *user)
{
    common *s = user;
    brg_status status = BRG_OK;
    pthread_barrier_wait(&s->start);
    for (int i = 0; i < N_ROUNDS && status == BRG_OK; i++) {
        brg_scope *scope = brg_scope_begin();
        status = round_of(s, i);
        brg_scope_end(scope);
        if (s->is_forced && i % 8 == 3)
            (void)brg_compile_force_eager(i % 16 == 3);
    }
    if (status != BRG_OK)
        fprintf(stderr, "%s\n", brg_error_message());
    if (brg_compile_reset() != BRG_OK)
        status = brg_error_code();
    return (void *)(intptr_t)status;
}

static double expected(void)
{
    double sum = 0;
    for (int i = 0; i < N_ROUNDS; i++)
        sum += N_THREADS * 2.0 * (1 + i % 5) * (1 + i % 3);
    return sum;
}

static void check(common *s)
{
    pthread_t threads[N_THREADS];
    brg_compile_options options = BRG_COMPILE_OPTIONS_INIT;
    options.whole = true;
    options.backend = s->backend;
    s->w = leaf_from(1, BRG_SHAPE(N_W));
    s->v = leaf_from(2, BRG_SHAPE(1, N_W));
    assert_brg_ok(brg_compiled_create(&s->c, adds, s, &options));
    pthread_barrier_init(&s->start, NULL, N_THREADS);
    for (int i = 0; i < N_THREADS; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, runs, s), 0);
    for (int i = 0; i < N_THREADS; i++) {
        void *status;
        pthread_join(threads[i], &status);
        assert_int_equal((int)(intptr_t)status, BRG_OK);
    }
    (void)brg_compile_force_eager(false);
    for (int i = 0; i < N_W; i++) {
        assert_float_equal(element(brg_tensor_grad(s->w), i), expected(), 0);
        assert_float_equal(element(brg_tensor_grad(s->v), i), expected(), 0);
    }
    pthread_barrier_destroy(&s->start);
    brg_compiled_destroy(s->c);
}

static void test_threads__capture_and_replay_at_once(void **state)
{
    (void)state;
    for (int kind = 0; kind < N_KINDS; kind++)
        for (int k = 0; k < 2; k++) {
            print_message("    kind %d%s\n", kind, k ? ", forced" : "");
            check(&(common){.kind = (run_kind)kind, .is_forced = k});
        }
}

static void test_threads__with_kernels(void **state)
{
    (void)state;
    for (int kind = 0; kind < N_KINDS; kind++)
        check(&(common){.kind = (run_kind)kind,
                        .backend = BRG_COMPILE_BACKEND_FUSED});
}

/* ---- Handed over ---------------------------------------------------------------- */

static void *goes_backward(void *user)
{
    return (void *)(intptr_t)brg_backward(user);
}

/* Results of segments, each with its backward on a thread of its own. */
static void test_threads__backward_of_a_segment_elsewhere(void **state)
{
    (void)state;
    brg_compile_options options = BRG_COMPILE_OPTIONS_INIT;
    common s = {.kind = SEGMENT};
    brg_tensor *y[N_THREADS];
    pthread_t threads[N_THREADS];
    options.whole = true;
    s.w = leaf_from(1, BRG_SHAPE(N_W));
    s.v = leaf_from(2, BRG_SHAPE(1, N_W));
    assert_brg_ok(brg_compiled_create(&s.c, adds, &s, &options));
    for (int i = 0; i < N_THREADS; i++) {
        brg_tensor *x = brg_full(BRG_DTYPE_F32, BRG_SHAPE(3, N_W), 1 + i);
        assert_brg_ok(brg_compiled_call(s.c, &x, 1, &y[i], 1));
    }
    for (int i = 0; i < N_THREADS; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, goes_backward, y[i]),
                         0);
    for (int i = 0; i < N_THREADS; i++) {
        void *status;
        pthread_join(threads[i], &status);
        assert_int_equal((int)(intptr_t)status, BRG_OK);
    }
    assert_float_equal(element(brg_tensor_grad(s.w), 0), 2 * 3 * 10, 0);
    brg_compiled_destroy(s.c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        scoped_test(test_threads__capture_and_replay_at_once),
        scoped_test(test_threads__with_kernels),
        scoped_test(test_threads__backward_of_a_segment_elsewhere),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
