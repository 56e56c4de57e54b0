/* SPDX-License-Identifier: Apache-2.0
 * Training by many ranks against training by one: the same weights must come
 * of it. */
#ifndef BRG_TESTS_SUPPORT_DDP_TRAIN_H
#define BRG_TESTS_SUPPORT_DDP_TRAIN_H

#include <brigade/comm.h>

typedef struct ddp_train {
    int n_steps;
    int n_micro;      /* micro-batches of a step, the last one synced */
    size_t cap;       /* of buckets; 0: default */
    bool adamw;       /* or SGD with momentum */
    bool keep_memory; /* of gradients between steps */
} ddp_train;

/* Trains a small network on this group, each rank on its share of a batch,
 * and on this rank alone on whole batches; compares weights after each step
 * with each other, and bits with those of the other ranks. Collective. */
brg_status ddp_train_check(brg_pg *pg, const ddp_train *how);

#endif
