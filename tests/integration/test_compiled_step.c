/* SPDX-License-Identifier: Apache-2.0
 * A whole training step as one plan, or its backward alone: losses and weights
 * are those of the eager step, bit for bit, at any number of ranks. */
#include "tests/support/brg_test.h"
#include "tests/support/ranks.h"
#include "tests/support/small_models.h"

static brg_status check_rank(brg_pg *pg, void *user)
{
    return small_model_check_compiled(*(small_kind *)user, pg, true);
}

static brg_status check_backward_rank(brg_pg *pg, void *user)
{
    return small_model_check_compiled(*(small_kind *)user, pg, false);
}

static void check(small_kind kind)
{
    ranks_in_worlds(1, NULL, check_rank, &kind);
}

static void test_compiled_step__backwards_alone(void **state)
{
    (void)state;
    for (small_kind kind = 0; kind < N_SMALL_KINDS; kind++)
        ranks_in_worlds(1, NULL, check_backward_rank, &kind);
}

static void test_compiled_step__mlp(void **state)
{
    (void)state;
    check(SMALL_MLP);
}

static void test_compiled_step__cnn(void **state)
{
    (void)state;
    check(SMALL_CNN);
}

static void test_compiled_step__gpt(void **state)
{
    (void)state;
    check(SMALL_GPT);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_compiled_step__mlp),
        cmocka_unit_test(test_compiled_step__cnn),
        cmocka_unit_test(test_compiled_step__gpt),
        cmocka_unit_test(test_compiled_step__backwards_alone),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
