/* SPDX-License-Identifier: Apache-2.0
 * N ranks with a batch of B / N train as one rank with a batch of B. */
#include "tests/support/brg_test.h"
#include "tests/support/ddp_train.h"
#include "tests/support/ranks.h"

static brg_status train_rank(brg_pg *pg, void *user)
{
    return ddp_train_check(pg, user);
}

static void run(ddp_train how)
{
    ranks_in_worlds(1, NULL, train_rank, &how);
}

static void test_train_equal__sgd(void **state)
{
    (void)state;
    run((ddp_train){.n_steps = 6, .n_micro = 1});
    run((ddp_train){.n_steps = 6, .n_micro = 1, .cap = 1});
    run((ddp_train){.n_steps = 6, .n_micro = 1, .keep_memory = true});
}

static void test_train_equal__adamw(void **state)
{
    (void)state;
    run((ddp_train){.n_steps = 6, .n_micro = 1, .adamw = true});
    run((ddp_train){.n_steps = 6, .n_micro = 1, .cap = 400, .adamw = true});
}

static void test_train_equal__micro_batches(void **state)
{
    (void)state;
    run((ddp_train){.n_steps = 4, .n_micro = 3});
    run((ddp_train){.n_steps = 4, .n_micro = 3, .cap = 1, .adamw = true});
    run((ddp_train){.n_steps = 4, .n_micro = 3, .keep_memory = true});
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_train_equal__sgd),
        cmocka_unit_test(test_train_equal__adamw),
        cmocka_unit_test(test_train_equal__micro_batches),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
