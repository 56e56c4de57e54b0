/* SPDX-License-Identifier: Apache-2.0
 * Collectives of a step, counted in simulated worlds; under mpirun in
 * tests/mpi/test_collectives_mpi.c. */
#include "tests/reducer/collectives_checks.h"
#include "tests/reducer/rider_checks.h"
#include "tests/support/sim_worlds.h"

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

static void test_collectives__a_tail_of_its_own(void **state)
{
    (void)state;
    in_all_worlds(check_tails);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_collectives__as_many_as_buckets_in_every_mode),
        cmocka_unit_test(test_collectives__buffers_ride_with_all_their_bits),
        cmocka_unit_test(test_collectives__a_tail_of_its_own),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
