/* SPDX-License-Identifier: Apache-2.0
 * Collectives of a step, counted in simulated worlds; under mpirun in
 * tests/mpi/test_collectives_mpi.c. */
#include "tests/reducer/collectives_checks.h"

typedef brg_status (*check_fn)(brg_pg *pg);

static brg_status call(brg_pg *pg, void *user)
{
    return (*(check_fn *)user)(pg);
}

static void in_all_worlds(check_fn check)
{
    for (int i = 0; i < N_RANKS_WORLDS; i++)
        assert_brg_ok(brg_sim_run(ranks_worlds[i], NULL, call, &check));
}

static void test_collectives__as_many_as_buckets_in_every_mode(void **state)
{
    (void)state;
    in_all_worlds(check_collectives);
}

static void test_collectives__buffers_ride_with_all_their_bits(void **state)
{
    (void)state;
    in_all_worlds(check_riders);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_collectives__as_many_as_buckets_in_every_mode),
        cmocka_unit_test(test_collectives__buffers_ride_with_all_their_bits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
