/* SPDX-License-Identifier: Apache-2.0
 * Buffers that are freed under the reducer while their pages stay, as
 * libbrigade_watch.so sees it in debug builds. Without that library (release
 * builds, sanitizers) all of this is skipped. */
#include "tests/reducer/trainer.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define I 2 /* fc1.bias */
#define NBYTES (MAX_COUNT * sizeof(double))

static int setup(void **state)
{
    brg_pg *pg;
    trainer *t = calloc(1, sizeof *t);
    if (!t || brg_pg_create_self(&pg) != BRG_OK)
        return -1;
    trainer_init(t, pg);
    *state = t;
    return 0;
}

static int teardown(void **state)
{
    trainer *t = *state;
    brg_reducer_destroy(t->reducer);
    brg_pg_destroy(t->pg);
    free(t);
    return 0;
}

static void needs_watch(void)
{
    if (!dlsym(RTLD_DEFAULT, "brg_watch_add"))
        skip();
}

/* A reducer that has done a step with gradient I at `at`. */
static void begin(trainer *t, void *at)
{
    assert_non_null(at);
    t->params[I].grad = at;
    assert_brg_ok(trainer_create(t, NULL));
    assert_brg_ok(run_step(t, 0, 1));
}

/* As other programs call it: that of the tests goes to libc (support). */
static void *reallocate(void *block, size_t nbytes)
{
    void *(*call)(void *block, size_t nbytes);
    *(void **)&call = dlsym(RTLD_DEFAULT, "realloc");
    return call(block, nbytes);
}

/* Between the block and what comes next, so that it cannot grow. */
static void *block_with_neighbour(void **neighbour)
{
    void *block = malloc(NBYTES);
    *neighbour = malloc(NBYTES);
    return block;
}

static void check_gone(trainer *t, const char *how)
{
    assert_brg_fails_with(brg_reducer_mark_ready(t->reducer, I), BRG_ERR_STATE,
                          "rank 0: the buffer of fc1.bias");
    assert_non_null(strstr(brg_error_message(), how));
    assert_brg_ok(brg_reducer_set_grad(t->reducer, I, t->memory[I]));
    t->params[I].grad = t->memory[I];
    assert_brg_ok(run_step(t, 1, 1));
}

static void test_watch__a_small_block_that_was_freed_is_named(void **state)
{
    needs_watch();
    void *neighbour, *block = block_with_neighbour(&neighbour);
    begin(*state, block);
    free(block);
    check_gone(*state, "since it was registered (by free, called at ");
    free(neighbour);
}

static void test_watch__what_was_freed_is_not_written(void **state)
{
    needs_watch();
    trainer *t = *state;
    void *neighbour, *block = block_with_neighbour(&neighbour);
    begin(t, block);
    assert_brg_ok(mark_all(t, 1, 1));
    free(block);
    assert_brg_fails_with(brg_reducer_wait(t->reducer), BRG_ERR_STATE,
                          "the buffer of fc1.bias");
    free(neighbour);
}

static void test_watch__a_block_that_realloc_moved_is_named(void **state)
{
    needs_watch();
    trainer *t = *state;
    void *neighbour, *block = block_with_neighbour(&neighbour);
    begin(t, block);
    void *moved = reallocate(block, 4 * NBYTES);
    assert_non_null(moved);
    assert_true(moved != t->params[I].grad);
    check_gone(t, "(by realloc, called at ");
    assert_brg_ok(brg_reducer_set_grad(t->reducer, I, moved));
    t->params[I].grad = moved;
    assert_brg_ok(run_step(t, 2, 1));
    free(neighbour);
    brg_reducer_destroy(t->reducer);
    t->reducer = NULL;
    free(moved);
}

static void test_watch__a_block_that_realloc_left_is_there(void **state)
{
    needs_watch();
    trainer *t = *state;
    void *block = malloc(NBYTES);
    begin(t, block);
    void *left = reallocate(block, NBYTES - 64);
    assert_ptr_equal(left, t->params[I].grad);
    assert_brg_ok(run_step(t, 1, 1));
    void *cut = reallocate(left, 32); /* less than it needs */
    assert_ptr_equal(cut, t->params[I].grad);
    check_gone(t, "(by realloc, called at ");
    free(cut);
}

static void test_watch__a_block_holds_many_buffers(void **state)
{
    needs_watch();
    trainer *t = *state;
    char *block = malloc(N_PARAMS * NBYTES);
    for (size_t i = 0; i < t->n; i++)
        t->params[i].grad = block + i * NBYTES;
    begin(t, block + I * NBYTES);
    free(block);
    for (size_t i = 0; i < t->n; i++)
        assert_brg_fails_with(brg_reducer_mark_ready(t->reducer, i),
                              BRG_ERR_STATE, "(by free, called at ");
}

/* Something else is there now, so its pages exist. */
static void test_watch__memory_that_was_mapped_anew_is_named(void **state)
{
    needs_watch();
    const int flags = MAP_PRIVATE | MAP_ANONYMOUS, rw = PROT_READ | PROT_WRITE;
    void *block = mmap(NULL, NBYTES, rw, flags, -1, 0);
    assert_ptr_not_equal(block, MAP_FAILED);
    begin(*state, block);
    assert_int_equal(munmap((char *)block + 1, NBYTES), -1); /* not aligned */
    assert_brg_ok(run_step(*state, 1, 1));
    munmap(block, NBYTES);
    assert_ptr_equal(mmap(block, NBYTES, rw, flags | MAP_FIXED, -1, 0), block);
    check_gone(*state, "(by munmap, called at ");
    munmap(block, NBYTES);
}

static void test_watch__a_mapping_that_grows_in_place_is_there(void **state)
{
    needs_watch();
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    char *block = mmap(NULL, 2 * page, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_ptr_not_equal(block, MAP_FAILED);
    assert_int_equal(munmap(block + page, page), 0);
    begin(*state, block);
    assert_ptr_equal(mremap(block, page, 2 * page, 0), block);
    assert_brg_ok(run_step(*state, 1, 1));
    assert_ptr_not_equal(mremap(block, 2 * page, 4096 * page, MREMAP_MAYMOVE),
                         MAP_FAILED);
}

/* Registered again, also at the same place. */
static void test_watch__a_new_registration_counts(void **state)
{
    needs_watch();
    trainer *t = *state;
    void *block = malloc(NBYTES);
    begin(t, block);
    free(block);
    void *again = malloc(NBYTES); /* most likely the same */
    assert_brg_fails_with(brg_reducer_mark_ready(t->reducer, I), BRG_ERR_STATE,
                          "(by free, called at ");
    assert_brg_ok(brg_reducer_set_grad(t->reducer, I, again));
    t->params[I].grad = again;
    assert_brg_ok(run_step(t, 1, 1));
    brg_reducer_destroy(t->reducer);
    assert_brg_ok(trainer_create(t, NULL));
    assert_brg_ok(run_step(t, 2, 1));
    brg_reducer_destroy(t->reducer);
    t->reducer = NULL;
    free(again);
}

/* ---- Correct programs ---------------------------------------------------------- */

static _Atomic bool is_over;

/* Blocks of all sizes around the watched ones. */
static void *churn(void *user)
{
    uint64_t seed = *(const uint64_t *)user;
    void *blocks[32] = {NULL};
    while (!is_over) {
        const size_t i = brg_test_random(&seed) % 32;
        const size_t nbytes = 1 + brg_test_random(&seed) % 5000;
        if (brg_test_random(&seed) % 2) {
            void *more = reallocate(blocks[i], nbytes);
            blocks[i] = more ? more : blocks[i];
        } else {
            free(blocks[i]);
            blocks[i] = malloc(nbytes);
        }
    }
    for (size_t i = 0; i < 32; i++)
        free(blocks[i]);
    return NULL;
}

static void steps_and_reducers(trainer *t)
{
    for (int k = 0; k < 50; k++) {
        assert_brg_ok(trainer_create(t, NULL));
        for (int step = 0; step < 5; step++)
            assert_brg_ok(run_step(t, step, 1));
        brg_reducer_destroy(t->reducer);
        t->reducer = NULL;
        for (size_t i = 0; i < t->n; i++) {
            free(t->params[i].grad);
            t->params[i].grad = malloc(NBYTES);
            assert_non_null(t->params[i].grad);
        }
    }
}

static void test_watch__a_correct_program_is_left_alone(void **state)
{
    needs_watch();
    trainer *t = *state;
    uint64_t seeds[3] = {1, 2, 3};
    pthread_t threads[3];
    for (size_t i = 0; i < t->n; i++)
        t->params[i].grad = malloc(NBYTES);
    begin(t, t->params[I].grad);
    brg_reducer_destroy(t->reducer);
    is_over = false;
    for (int i = 0; i < 3; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, churn, &seeds[i]),
                         0);
    steps_and_reducers(t);
    is_over = true;
    for (int i = 0; i < 3; i++)
        pthread_join(threads[i], NULL);
    for (size_t i = 0; i < t->n; i++)
        free(t->params[i].grad);
}

/* Children of fork, made while other threads free. */
static void test_watch__a_child_may_free(void **state)
{
    needs_watch();
    uint64_t seed = 4;
    pthread_t thread;
    begin(*state, ((trainer *)*state)->memory[I]);
    is_over = false;
    assert_int_equal(pthread_create(&thread, NULL, churn, &seed), 0);
    for (int k = 0; k < 100; k++) {
        const pid_t child = fork();
        if (child == 0) {
            for (size_t i = 1; i < 100; i++)
                free(malloc(i));
            _exit(0);
        }
        int status = -1;
        assert_int_equal(waitpid(child, &status, 0), child);
        assert_int_equal(status, 0);
    }
    is_over = true;
    pthread_join(thread, NULL);
    assert_brg_ok(run_step(*state, 1, 1));
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_watch__a_small_block_that_was_freed_is_named),
        TEST(test_watch__what_was_freed_is_not_written),
        TEST(test_watch__a_block_that_realloc_moved_is_named),
        TEST(test_watch__a_block_that_realloc_left_is_there),
        TEST(test_watch__a_block_holds_many_buffers),
        TEST(test_watch__memory_that_was_mapped_anew_is_named),
        TEST(test_watch__a_mapping_that_grows_in_place_is_there),
        TEST(test_watch__a_new_registration_counts),
        TEST(test_watch__a_correct_program_is_left_alone),
        TEST(test_watch__a_child_may_free),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
