/* SPDX-License-Identifier: Apache-2.0
 * The allocator hook, its accounting, lack of memory, and the free lists of
 * small objects. */
#include <pthread.h>

#include "core/base/alloc.h"
#include "core/base/array.h"
#include "tests/support/brg_test.h"

/* An allocator that counts what it gave and checks what it gets back. */
static struct {
    int n_live;
    size_t n_bytes;
    int n_left; /* allocations until it fails; -1: never */
} mock;

static void *mock_alloc(void *user, size_t nbytes, size_t alignment)
{
    assert_ptr_equal(user, &mock);
    assert_true(nbytes > 0);
    assert_int_equal(alignment & (alignment - 1), 0);
    if (mock.n_left == 0)
        return NULL;
    if (mock.n_left > 0)
        mock.n_left--;
    void *ptr = NULL;
    assert_int_equal(posix_memalign(&ptr, alignment, nbytes), 0);
    memset(ptr, 0xA5, nbytes); /* zero-filling is the library's work */
    mock.n_live++;
    mock.n_bytes += nbytes;
    return ptr;
}

static void mock_free(void *user, void *ptr, size_t nbytes, size_t alignment)
{
    assert_ptr_equal(user, &mock);
    assert_int_equal((uintptr_t)ptr & (alignment - 1), 0);
    mock.n_live--;
    mock.n_bytes -= nbytes;
    free(ptr);
}

static const brg_allocator mock_allocator = {
    .struct_size = sizeof(brg_allocator),
    .alloc = mock_alloc,
    .free = mock_free,
    .user = &mock,
};

static int setup(void **state)
{
    (void)state;
    memset(&mock, 0, sizeof mock);
    mock.n_left = -1;
    assert_brg_ok(brg_set_allocator(&mock_allocator));
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    assert_brg_ok(brg_set_allocator(NULL));
    assert_int_equal(mock.n_live, 0);
    assert_int_equal(mock.n_bytes, 0);
    return 0;
}

static bool is_zero(const void *ptr, size_t nbytes)
{
    for (size_t i = 0; i < nbytes; i++)
        if (((const unsigned char *)ptr)[i] != 0)
            return false;
    return true;
}

static uint64_t in_use(void)
{
    brg_memory_stats stats;
    brg_memory_get_stats(&stats);
    return stats.in_use;
}

static void test_alloc__all_memory_comes_from_the_hook(void **state)
{
    (void)state;
    uint64_t before = in_use();
    void *block = brg__block_alloc(1000, 4096, "a block");
    assert_brg_some(block);
    assert_int_equal((uintptr_t)block % 4096, 0);
    void *memory = brg__mem_alloc(100, "memory");
    assert_true(is_zero(memory, 100));
    assert_int_equal((uintptr_t)memory % BRG_CACHE_LINE, 0);
    void *object = brg__obj_alloc(100, "an object");
    assert_true(is_zero(object, 100));
    assert_int_equal(mock.n_live, 3);
    assert_true(in_use() >= before + 1200);
    brg__block_free(block, 1000, 4096);
    brg__mem_free(memory);
    brg__obj_free(object, 100);
    assert_int_equal(in_use(), before);
}

static void test_alloc__zero_bytes_are_memory_too(void **state)
{
    (void)state;
    void *block = brg__block_alloc(0, 64, "nothing");
    void *memory = brg__mem_alloc(0, "nothing");
    void *object = brg__obj_alloc(0, "nothing");
    assert_true(block && memory && object);
    brg__block_free(block, 0, 64);
    brg__mem_free(memory);
    brg__obj_free(object, 0);
    brg__block_free(NULL, 10, 64);
    brg__mem_free(NULL);
    brg__obj_free(NULL, 10);
}

static void test_alloc__realloc_keeps_and_zero_fills(void **state)
{
    (void)state;
    unsigned char *ptr = brg__mem_realloc(NULL, 10, "text");
    memset(ptr, 7, 10);
    ptr = brg__mem_realloc(ptr, 1000, "text");
    for (int i = 0; i < 10; i++)
        assert_int_equal(ptr[i], 7);
    assert_true(is_zero(ptr + 10, 990));
    ptr = brg__mem_realloc(ptr, 5, "text");
    assert_int_equal(ptr[4], 7);
    mock.n_left = 0;
    assert_brg_null(brg__mem_realloc(ptr, 5000, "text"), BRG_ERR_NOMEM);
    assert_int_equal(ptr[4], 7); /* the old one stays */
    mock.n_left = -1;
    brg__mem_free(ptr);
    char *copy = brg__mem_strdup("a name");
    assert_string_equal(copy, "a name");
    brg__mem_free(copy);
}

static void test_alloc__no_memory_says_what_was_asked(void **state)
{
    (void)state;
    mock.n_left = 0;
    assert_brg_null_with(brg__block_alloc(12345, 64, "a bucket"), BRG_ERR_NOMEM,
                         "12345 bytes for a bucket");
    assert_brg_null_with(brg__mem_alloc(77, "a plan"), BRG_ERR_NOMEM, "a plan");
    assert_brg_null_with(brg__obj_alloc(300, "a node"), BRG_ERR_NOMEM,
                         "a node");
    assert_brg_null(brg__mem_strdup("x"), BRG_ERR_NOMEM);
    mock.n_left = -1;
}

static void test_alloc__sizes_that_do_not_fit(void **state)
{
    (void)state;
    size_t n = 1;
    assert_false(brg__mul_size(SIZE_MAX, 2, &n));
    assert_false(brg__add_size(SIZE_MAX, 1, &n));
    assert_true(brg__mul_size(SIZE_MAX / 2, 2, &n));
    assert_true(n == SIZE_MAX - 1);
    assert_brg_null(brg__mem_alloc(SIZE_MAX, "much"), BRG_ERR_NOMEM);
    assert_brg_null_with(brg__mem_alloc_array(SIZE_MAX / 2, 3, "rows"),
                         BRG_ERR_NOMEM, "rows");
    assert_int_equal(brg__round_up(0, 64), 0);
    assert_int_equal(brg__round_up(1, 64), 64);
    assert_int_equal(brg__round_up(64, 64), 64);
}

static void test_alloc__peak_is_the_largest_use(void **state)
{
    (void)state;
    brg_memory_stats stats;
    brg_memory_reset_peak();
    uint64_t before = in_use();
    void *a = brg__block_alloc(1 << 20, 64, "a");
    void *b = brg__block_alloc(1 << 20, 64, "b");
    brg__block_free(a, 1 << 20, 64);
    void *c = brg__block_alloc(1 << 10, 64, "c");
    brg_memory_get_stats(&stats);
    assert_int_equal(stats.peak, before + (2 << 20));
    assert_int_equal(stats.in_use, before + (1 << 20) + (1 << 10));
    brg__block_free(b, 1 << 20, 64);
    brg__block_free(c, 1 << 10, 64);
    brg_memory_reset_peak();
    brg_memory_get_stats(&stats);
    assert_int_equal(stats.peak, before);
}

static void test_alloc__peak_is_never_below_use(void **state)
{
    (void)state;
    void *object = brg__obj_alloc(640, "warm");
    brg__obj_free(object, 640);
    brg_memory_reset_peak();
    object = brg__obj_alloc(640, "again"); /* from the free list */
    brg_memory_stats stats;
    brg_memory_get_stats(&stats);
    assert_true(stats.peak >= stats.in_use);
    brg__obj_free(object, 640);
}

static void test_alloc__steady_objects_do_not_call_the_hook(void **state)
{
    (void)state;
    void *warm[8];
    brg_memory_stats before, after;
    for (int round = 0; round < 100; round++) {
        if (round == 1)
            brg_memory_get_stats(&before);
        for (size_t i = 0; i < 8; i++) {
            warm[i] = brg__obj_alloc(40 + 50 * i, "an object");
            assert_true(is_zero(warm[i], 40 + 50 * i));
            memset(warm[i], 0xFF, 40 + 50 * i);
        }
        for (size_t i = 0; i < 8; i++)
            brg__obj_free(warm[i], 40 + 50 * i);
    }
    brg_memory_get_stats(&after);
    if (after.cached != 0) /* under the address sanitizer nothing is kept */
        assert_int_equal(after.n_allocs, before.n_allocs);
    assert_int_equal(after.in_use, before.in_use);
    brg_memory_trim();
    brg_memory_get_stats(&after);
    assert_int_equal(after.cached, 0);
    assert_int_equal(mock.n_live, 0);
}

static void test_alloc__large_objects_are_not_kept(void **state)
{
    (void)state;
    void *object = brg__obj_alloc(4097, "a large object");
    assert_int_equal(mock.n_live, 1);
    brg__obj_free(object, 4097);
    assert_int_equal(mock.n_live, 0);
}

static void test_alloc__hook_cannot_change_under_memory_in_use(void **state)
{
    (void)state;
    void *memory = brg__mem_alloc(10, "held");
    assert_brg_fails_with(brg_set_allocator(NULL), BRG_ERR_STATE,
                          "still in use");
    brg__mem_free(memory);
    brg_allocator broken = mock_allocator;
    broken.struct_size = 8;
    assert_brg_fails(brg_set_allocator(&broken), BRG_ERR_ARG);
    broken = mock_allocator;
    broken.free = NULL;
    assert_brg_fails(brg_set_allocator(&broken), BRG_ERR_ARG);
}

static void test_alloc__array_grows_and_survives_failure(void **state)
{
    (void)state;
    BRG__ARRAY(int) numbers = {0};
    for (int i = 0; i < 1000; i++)
        assert_brg_ok(brg__array_push(&numbers, i));
    for (int i = 1000; numbers.n < numbers.capacity; i++)
        assert_brg_ok(brg__array_push(&numbers, i));
    size_t n = numbers.n;
    mock.n_left = 0;
    assert_brg_fails(brg__array_push(&numbers, -1), BRG_ERR_NOMEM);
    mock.n_left = -1;
    assert_int_equal(numbers.n, n);
    for (size_t i = 0; i < n; i++)
        assert_int_equal(numbers.at[i], (int)i);
    numbers.n = 0; /* emptied, it keeps its memory */
    assert_brg_ok(brg__array_push(&numbers, 5));
    assert_int_equal(numbers.capacity, n);
    brg__array_deinit(&numbers);
    assert_null(numbers.at);
}

/* The rest runs with the built-in allocator: the mock asserts, which only the
 * main thread may do. */

#define N_OBJECTS 500

static void *make_objects(void *slots)
{
    for (size_t i = 0; i < N_OBJECTS; i++)
        ((void **)slots)[i] = brg__obj_alloc(200, "an object");
    return NULL;
}

static void *free_objects(void *slots)
{
    for (size_t i = 0; i < N_OBJECTS; i++)
        brg__obj_free(((void **)slots)[i], 200);
    return NULL;
}

static void run_thread(void *(*body)(void *), void *argument)
{
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, body, argument), 0);
    pthread_join(thread, NULL);
}

static void test_alloc__objects_may_die_on_another_thread(void **state)
{
    (void)state;
    uint64_t before = in_use();
    void *slots[N_OBJECTS];
    run_thread(make_objects, slots);
    assert_true(in_use() >= before + N_OBJECTS * 200);
    run_thread(free_objects, slots);
    assert_int_equal(in_use(), before);
    brg_memory_stats stats;
    brg_memory_get_stats(&stats);
    assert_int_equal(stats.cached, 0); /* threads gave their lists back */
    make_objects(slots);
    run_thread(free_objects, slots);
    brg_memory_get_stats(&stats);
    assert_int_equal(stats.cached, 0);
}

static pthread_key_t late_key;

static void free_late(void *object)
{
    brg__obj_free(object, 200);
}

static void *leave_object_to_destructor(void *unused)
{
    (void)unused;
    brg__obj_free(brg__obj_alloc(100, "registers the thread"), 100);
    pthread_setspecific(late_key, brg__obj_alloc(200, "an object"));
    return NULL;
}

/* A destructor of the user's may run after ours: what it frees must not be
 * lost with the thread. */
static void test_alloc__freed_while_the_thread_ends(void **state)
{
    (void)state;
    assert_int_equal(pthread_key_create(&late_key, free_late), 0);
    run_thread(leave_object_to_destructor, NULL);
    pthread_key_delete(late_key);
    brg_memory_stats stats;
    brg_memory_get_stats(&stats);
    assert_int_equal(stats.cached, 0);
}

static void *churn(void *seed)
{
    void *slots[64] = {0};
    uint64_t state = *(uint64_t *)seed;
    for (int i = 0; i < 20000; i++) {
        size_t at = brg_test_random(&state) % 64;
        size_t nbytes = 64 * (at + 1);
        if (slots[at]) {
            brg__obj_free(slots[at], nbytes);
            slots[at] = NULL;
        } else {
            slots[at] = brg__obj_alloc(nbytes, "an object");
        }
    }
    for (size_t at = 0; at < 64; at++)
        brg__obj_free(slots[at], 64 * (at + 1));
    return NULL;
}

static void test_alloc__many_threads_balance(void **state)
{
    (void)state;
    uint64_t before = in_use(), seed = brg_test_seed(3), seeds[4];
    pthread_t threads[4];
    for (int i = 0; i < 4; i++) {
        seeds[i] = brg_test_random(&seed);
        assert_int_equal(pthread_create(&threads[i], NULL, churn, &seeds[i]),
                         0);
    }
    for (int i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    assert_int_equal(in_use(), before);
    brg_memory_trim();
    assert_brg_ok(brg_set_allocator(NULL)); /* succeeds: nothing is held */
}

static void test_alloc__huge_blocks_are_usable(void **state)
{
    (void)state;
    size_t nbytes = (size_t)9 << 20;
    unsigned char *block = brg__block_alloc(nbytes, 64, "a huge block");
    assert_brg_some(block);
    assert_int_equal((uintptr_t)block % ((size_t)2 << 20), 0);
    block[0] = block[nbytes - 1] = 1;
    brg__block_free(block, nbytes, 64);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
        TEST(test_alloc__all_memory_comes_from_the_hook),
        TEST(test_alloc__zero_bytes_are_memory_too),
        TEST(test_alloc__realloc_keeps_and_zero_fills),
        TEST(test_alloc__no_memory_says_what_was_asked),
        TEST(test_alloc__sizes_that_do_not_fit),
        TEST(test_alloc__peak_is_the_largest_use),
        TEST(test_alloc__peak_is_never_below_use),
        TEST(test_alloc__steady_objects_do_not_call_the_hook),
        TEST(test_alloc__large_objects_are_not_kept),
        TEST(test_alloc__hook_cannot_change_under_memory_in_use),
        TEST(test_alloc__array_grows_and_survives_failure),
#undef TEST
        cmocka_unit_test(test_alloc__objects_may_die_on_another_thread),
        cmocka_unit_test(test_alloc__freed_while_the_thread_ends),
        cmocka_unit_test(test_alloc__many_threads_balance),
        cmocka_unit_test(test_alloc__huge_blocks_are_usable),
    };
    return cmocka_run_group_tests_name("alloc", tests, NULL, NULL);
}
