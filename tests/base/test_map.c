/* SPDX-License-Identifier: Apache-2.0
 * The pointer map: growth, clearing in constant time, wrapping, lack of
 * memory. */
#include "core/base/alloc.h"
#include "core/base/map.h"
#include "tests/support/brg_test.h"

static const void *key_at(size_t i)
{
    return (const void *)(uintptr_t)(64 * (i + 1));
}

static void put_new(brg__map *map, const void *key, uint32_t fresh)
{
    uint32_t value;
    bool is_new = false;
    assert_brg_ok(brg__map_put(map, key, fresh, &value, &is_new));
    assert_true(is_new);
    assert_int_equal(value, fresh);
}

static void check_has(const brg__map *map, const void *key, uint32_t expected)
{
    uint32_t value;
    assert_true(brg__map_get(map, key, &value));
    assert_int_equal(value, expected);
}

static void test_map__empty_has_nothing(void **state)
{
    (void)state;
    brg__map map = {0};
    uint32_t value = 7;
    assert_false(brg__map_get(&map, key_at(0), &value));
    assert_int_equal(value, 7);
    brg__map_clear(&map);
    brg__map_deinit(&map);
}

static void test_map__grows_and_keeps_all(void **state)
{
    (void)state;
    brg__map map = {0};
    for (size_t i = 0; i < 20000; i++)
        put_new(&map, key_at(i), (uint32_t)i);
    assert_int_equal(map.n, 20000);
    assert_true(map.capacity >= 2 * map.n);
    assert_int_equal(map.capacity & (map.capacity - 1), 0);
    for (size_t i = 0; i < 20000; i++)
        check_has(&map, key_at(i), (uint32_t)i);
    uint32_t value;
    assert_false(brg__map_get(&map, key_at(20000), &value));
    brg__map_deinit(&map);
}

static void test_map__second_put_gives_the_first_value(void **state)
{
    (void)state;
    brg__map map = {0};
    put_new(&map, key_at(3), 11);
    uint32_t value;
    bool is_new = true;
    assert_brg_ok(brg__map_put(&map, key_at(3), 99, &value, &is_new));
    assert_false(is_new);
    assert_int_equal(value, 11);
    assert_int_equal(map.n, 1);
    brg__map_deinit(&map);
}

/* Keys within one line share a home; NULL and unaligned keys are keys too. */
static void test_map__colliding_keys_are_told_apart(void **state)
{
    (void)state;
    brg__map map = {0};
    for (uintptr_t i = 0; i < 200; i++)
        put_new(&map, (const void *)i, (uint32_t)i);
    for (uintptr_t i = 0; i < 200; i++)
        check_has(&map, (const void *)i, (uint32_t)i);
    brg__map_deinit(&map);
}

static void test_map__clear_empties_and_keeps_memory(void **state)
{
    (void)state;
    brg__map map = {0};
    for (size_t i = 0; i < 100; i++)
        put_new(&map, key_at(i), (uint32_t)i);
    brg_memory_stats before, after;
    brg_memory_get_stats(&before);
    for (int round = 0; round < 1000; round++) {
        uint32_t value;
        brg__map_clear(&map);
        assert_int_equal(map.n, 0);
        assert_false(brg__map_get(&map, key_at(5), &value));
        for (size_t i = 0; i < 100; i++)
            put_new(&map, key_at(2 * i), (uint32_t)round);
        check_has(&map, key_at(198), (uint32_t)round);
        assert_false(brg__map_get(&map, key_at(1), &value));
    }
    brg_memory_get_stats(&after);
    assert_int_equal(after.n_allocs, before.n_allocs);
    brg__map_deinit(&map);
}

/* Slots of 2^32 clears ago must not come back to life. */
static void test_map__generation_wraps(void **state)
{
    (void)state;
    brg__map map = {0};
    put_new(&map, key_at(1), 1); /* written in generation 1 */
    map.generation = UINT32_MAX;
    put_new(&map, key_at(2), 2);
    brg__map_clear(&map);
    assert_int_not_equal(map.generation, 0);
    uint32_t value;
    assert_false(brg__map_get(&map, key_at(1), &value));
    assert_false(brg__map_get(&map, key_at(2), &value));
    put_new(&map, key_at(1), 5);
    check_has(&map, key_at(1), 5);
    brg__map_deinit(&map);
}

static void *no_memory(void *user, size_t nbytes, size_t alignment)
{
    (void)user;
    (void)nbytes;
    (void)alignment;
    return NULL;
}

static void free_nothing(void *user, void *ptr, size_t nbytes, size_t alignment)
{
    (void)user;
    (void)ptr;
    (void)nbytes;
    (void)alignment;
}

static void test_map__no_memory_is_an_error(void **state)
{
    (void)state;
    brg_allocator allocator = {sizeof allocator, no_memory, free_nothing, NULL};
    assert_brg_ok(brg_set_allocator(&allocator));
    brg__map map = {0};
    uint32_t value;
    bool is_new;
    assert_brg_fails(brg__map_put(&map, key_at(0), 1, &value, &is_new),
                     BRG_ERR_NOMEM);
    assert_int_equal(map.capacity, 0);
    assert_false(brg__map_get(&map, key_at(0), &value));
    assert_brg_ok(brg_set_allocator(NULL));
    put_new(&map, key_at(0), 1);
    brg__map_deinit(&map);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_map__empty_has_nothing),
        cmocka_unit_test(test_map__grows_and_keeps_all),
        cmocka_unit_test(test_map__second_put_gives_the_first_value),
        cmocka_unit_test(test_map__colliding_keys_are_told_apart),
        cmocka_unit_test(test_map__clear_empties_and_keeps_memory),
        cmocka_unit_test(test_map__generation_wraps),
        cmocka_unit_test(test_map__no_memory_is_an_error),
    };
    return cmocka_run_group_tests_name("map", tests, NULL, NULL);
}
