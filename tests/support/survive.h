/* SPDX-License-Identifier: Apache-2.0
 * Training that goes on with the ranks that are left, for simulated worlds with
 * faults: every step of every rank is right, or an error that names a rank. */
#ifndef BRG_TESTS_SUPPORT_SURVIVE_H
#define BRG_TESTS_SUPPORT_SURVIVE_H

#include <brigade/sim.h>

#include "tests/support/leaf_train.h"

#define SURVIVE_MAX_STEPS 64

typedef struct survive {
    leaf_train how;
    const brg_sim_options *script; /* of the run: who was done something to */
    bool compares;                 /* replicas, after each step */
    /* The weights' hash after so many steps; NULL: not checked. Under the
     * default reduction it is checked as long as no rank is lost. */
    const uint64_t *expected;
    const char *names; /* what the first error of each rank must say, or NULL */
    void (*at_step)(int64_t step); /* before each, on each rank; or NULL */

    /* Filled. */
    int n_ended;     /* ranks that have trained to the end */
    int n_died;      /* by script */
    int n_early;     /* that heard of a loss before the first step */
    int n_astray;    /* that were told that they have gone astray */
    int n_shrinks;   /* by all ranks together */
    int n_steps;     /* that a rank has ended well, all together */
    int64_t went_on; /* the step that was under way at the first loss */
    uint64_t hash;   /* at the end */
} survive;

/* One rank's program; user: a survive. */
brg_status survive_rank(brg_pg *pg, void *user);

/* Fills hashes [0, how->n_steps] of a run on n ranks. */
brg_status survive_expect(uint64_t *filled, const leaf_train *how, int n);

/* The script as C, for a failure to be repeated. */
void survive_print(int world_size, const brg_sim_options *options);

#endif
