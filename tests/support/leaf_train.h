/* SPDX-License-Identifier: Apache-2.0
 * Training under the reproducible reduction: a network whose weights after
 * some steps have one hash, whatever the world. */
#ifndef BRG_TESTS_SUPPORT_LEAF_TRAIN_H
#define BRG_TESTS_SUPPORT_LEAF_TRAIN_H

#include <brigade/comm_hook.h>
#include <brigade/nn.h>
#include <brigade/optim.h>
#include <brigade/params.h>
#include <brigade/recover.h>

typedef struct leaf_train {
    int n_steps;
    int batch; /* samples of a step, all ranks together */
    uint32_t n_leaves;
    size_t cap; /* of buckets; 0: default, SIZE_MAX: one */
    int n_hidden;
    int n_more;     /* hidden layers beside the one, 0 to 1 */
    int *n_buckets; /* filled by rank 0; may be NULL */
    bool adamw;     /* or SGD with momentum */
    bool compiled;  /* backward */
    bool confirms;  /* each step, before its update */
    bool plain;     /* no leaves: one backward a step, the default reduction */
    bool casts;     /* and gradients that travel as bf16 */
} leaf_train;

/* Trains; *hash: of the weights' bytes, equal on all ranks or an error. No
 * memory is asked for after the first steps. Collective. */
brg_status leaf_train_run(brg_pg *pg, const leaf_train *how, uint64_t *hash);

/* The same in a simulated world. */
brg_status leaf_train_sim(int n, uint64_t seed, const leaf_train *how,
                          uint64_t *hash);
brg_status leaf_train_sim_with(int n, const brg_sim_options *options,
                               const leaf_train *how, uint64_t *hash);

/* ---- The same step by step ------------------------------------------------------- */

typedef struct leaf_net {
    brg_params *params;
    brg_nn_linear fc[3]; /* of the inputs, hidden, of the outputs */
    brg_nn_linear more[1];
    brg_optim *optim;
    brg_comm_hook *hook;
    brg_ddp *ddp;
    const leaf_train *how;
    int rank;
    int world_size;
} leaf_net;

/* Collective. To be deinitialised whatever comes. */
brg_status leaf_net_init(leaf_net *n, brg_pg *pg, const leaf_train *how);
void leaf_net_deinit(leaf_net *n);
/* All backwards of this rank, and the update. */
brg_status leaf_net_step(leaf_net *n, int step);
/* Goes on over `pg`; see brg_ddp_regroup. Collective. */
brg_status leaf_net_regroup(leaf_net *n, brg_pg *pg, int64_t *n_steps);
/* Of this rank's weights. */
uint64_t leaf_net_hash(const leaf_net *n);

#endif
