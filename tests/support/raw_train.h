/* SPDX-License-Identifier: Apache-2.0
 * A hand-written trainer over a brg_reducer with leaves: weights of every float
 * dtype, whose gradients depend on them, so that one wrong bit stays. */
#ifndef BRG_TESTS_SUPPORT_RAW_TRAIN_H
#define BRG_TESTS_SUPPORT_RAW_TRAIN_H

#include <brigade/reducer.h>

#define RAW_N 5
#define RAW_MAX 200

extern const brg_dtype raw_dtypes[RAW_N];
extern const size_t raw_counts[RAW_N];

typedef struct raw_train {
    int n_steps;
    uint32_t n_leaves;
    size_t cap; /* of buckets; 0: default */
    bool sum;
    bool in_slots;    /* gradients live there */
    bool has_threads; /* other threads mark */
} raw_train;

typedef struct raw_trainer {
    const raw_train *how;
    brg_pg *pg;
    brg_reducer *reducer;
    double weights[RAW_N][RAW_MAX];
    double memory[RAW_N][RAW_MAX]; /* of gradients, whatever their dtype */
} raw_trainer;

/* Collective. `options` (NULL: what `how` says) is completed by `how`. To be
 * deinitialised whatever comes. */
brg_status raw_trainer_init(raw_trainer *t, brg_pg *pg, const raw_train *how,
                            const brg_reducer_options *options);
void raw_trainer_deinit(raw_trainer *t);
void *raw_trainer_grad(const raw_trainer *t, size_t i);

/* Element k of gradient i of this leaf, as its dtype holds it. */
double raw_train_gradient(const raw_trainer *t, uint32_t leaf, int step,
                          size_t i, size_t k);
/* Computes gradient i of this leaf and marks it. */
brg_status raw_trainer_mark(raw_trainer *t, uint32_t leaf, int step, size_t i);
/* All gradients of this leaf, in an order of its own. */
brg_status raw_trainer_leaf(raw_trainer *t, uint32_t leaf, int step);
/* All leaves, the wait, and the update. */
brg_status raw_trainer_step(raw_trainer *t, int step);
uint64_t raw_trainer_hash(const raw_trainer *t);

/* Trains; *hash: of the weights, equal on all ranks or an error. Collective. */
brg_status raw_train_run(brg_pg *pg, const raw_train *how, uint64_t *hash);
brg_status raw_train_sim(int n, uint64_t seed, const raw_train *how,
                         uint64_t *hash);
/* What it has to be: one thread, no reducer, the sum by its definition. */
uint64_t raw_train_expected(const raw_train *how);

#endif
