/* SPDX-License-Identifier: Apache-2.0
 * Training under the reproducible reduction: a network whose weights after
 * some steps have one hash, whatever the world. */
#ifndef BRG_TESTS_SUPPORT_LEAF_TRAIN_H
#define BRG_TESTS_SUPPORT_LEAF_TRAIN_H

#include <brigade/comm.h>

typedef struct leaf_train {
    int n_steps;
    int batch; /* samples of a step, all ranks together */
    uint32_t n_leaves;
    size_t cap; /* of buckets; 0: default, SIZE_MAX: one */
    int n_hidden;
    bool adamw;    /* or SGD with momentum */
    bool compiled; /* backward */
    bool plain;    /* no leaves: one backward a step, the default reduction */
} leaf_train;

/* Trains; *hash: of the weights' bytes, equal on all ranks or an error. No
 * memory is asked for after the first steps. Collective. */
brg_status leaf_train_run(brg_pg *pg, const leaf_train *how, uint64_t *hash);

/* The same in a simulated world. */
brg_status leaf_train_sim(int n, uint64_t seed, const leaf_train *how,
                          uint64_t *hash);
brg_status leaf_train_sim_with(int n, const brg_sim_options *options,
                               const leaf_train *how, uint64_t *hash);

#endif
