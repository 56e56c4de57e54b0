/* SPDX-License-Identifier: Apache-2.0
 * A check of the ranks of one group, run in simulated worlds of every size. */
#ifndef BRG_TESTS_SUPPORT_SIM_WORLDS_H
#define BRG_TESTS_SUPPORT_SIM_WORLDS_H

#include <brigade/sim.h>

#include "tests/support/brg_test.h"
#include "tests/support/compiled_run.h"
#include "tests/support/ranks.h"

typedef brg_status (*check_fn)(brg_pg *pg);

/* For brg_sim_run; user: a check_fn's address. */
static inline brg_status call_check(brg_pg *pg, void *user)
{
    return (*(check_fn *)user)(pg);
}

/* With the seeds [0, n_seeds). */
static inline void in_all_worlds_seeded(check_fn check, uint64_t n_seeds)
{
    for (int i = 0; i < N_RANKS_WORLDS; i++)
        for (uint64_t seed = 0; seed < n_seeds; seed++) {
            brg_sim_options options = BRG_SIM_OPTIONS_INIT;
            options.seed = seed;
            assert_brg_ok(
                brg_sim_run(ranks_worlds[i], &options, call_check, &check));
        }
}

static inline void in_all_worlds(check_fn check)
{
    in_all_worlds_seeded(check, 1);
}

static inline brg_status call_compiled(brg_pg *pg, void *user)
{
    return compiled_check(pg, *(check_fn *)user);
}

/* Every backward of it compiled. */
static inline void in_all_worlds_compiled(check_fn check)
{
    ranks_in_worlds(1, NULL, call_compiled, &check);
}

#endif
