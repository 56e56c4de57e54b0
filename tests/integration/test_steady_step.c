/* SPDX-License-Identifier: Apache-2.0
 * A steady training step, from data to optimizer, asks for no memory. (With
 * simulated ranks it may: threads that share a cache add up as the schedule
 * has it. test_steady_step_mpi.c has several ranks.) */
#include "tests/support/brg_test.h"
#include "tests/support/fail_alloc.h"
#include "tests/support/ranks.h"
#include "tests/support/small_models.h"

static void check(small_kind kind)
{
#if defined(__SANITIZE_ADDRESS__)
    skip(); /* objects are not cached, so that each is seen */
#endif
    brg_pg *pg;
    assert_brg_ok(brg_pg_create_self(&pg));
    for (int i = 0; i < 4; i++)
        assert_brg_ok(small_model_check_steady(kind, pg, i & 1, i & 2));
    brg_pg_destroy(pg);
}

static void test_steady_step__mlp(void **state)
{
    (void)state;
    check(SMALL_MLP);
}

static void test_steady_step__cnn(void **state)
{
    (void)state;
    check(SMALL_CNN);
}

static void test_steady_step__gpt(void **state)
{
    (void)state;
    check(SMALL_GPT);
}

/* Both counters count. */
static void test_steady_step__would_be_noticed(void **state)
{
    (void)state;
    brg_memory_stats before, after;
    brg_memory_trim();
    brg_memory_get_stats(&before);
    uint64_t n_mallocs = ranks_n_mallocs();
    brg_scope *scope = brg_scope_begin();
    assert_brg_some(brg_zeros(BRG_DTYPE_F32, BRG_SHAPE(1 << 20)));
    brg_scope_end(scope);
    brg_memory_get_stats(&after);
    assert_true(after.n_allocs > before.n_allocs);
#if defined(__GLIBC__) && !defined(__SANITIZE_ADDRESS__) &&                    \
    !defined(__SANITIZE_THREAD__)
    assert_true(ranks_n_mallocs() > n_mallocs);
#endif
    (void)n_mallocs;
}

int main(void)
{
    fail_alloc_install();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_steady_step__mlp),
        cmocka_unit_test(test_steady_step__cnn),
        cmocka_unit_test(test_steady_step__gpt),
        cmocka_unit_test(test_steady_step__would_be_noticed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
