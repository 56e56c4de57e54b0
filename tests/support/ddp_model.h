/* SPDX-License-Identifier: Apache-2.0
 * A model whose gradients are known exactly: loss = sum of p[i] * x[i], where
 * x comes from ranks_gradient, so that x[i] is the gradient of p[i]. Parameters
 * of several dtypes and layouts; terms are recorded in an order that a seed
 * and the rank decide, and so gradients arrive in that order. */
#ifndef BRG_TESTS_SUPPORT_DDP_MODEL_H
#define BRG_TESTS_SUPPORT_DDP_MODEL_H

#include <brigade/autograd.h>
#include <brigade/reducer.h>

#include "tests/support/ranks.h"

#define DDP_MODEL_N 8
#define DDP_MODEL_ALL ((1u << DDP_MODEL_N) - 1)
#define DDP_MODEL_NUMEL 120 /* of the largest */

typedef struct ddp_model {
    brg_pg *pg;
    int rank;
    int world_size;
    brg_scope *scope; /* holds the parameters */
    brg_tensor *params[DDP_MODEL_N];
    brg_tensor *buffer;
    brg_ddp *ddp;
    uint64_t seed;
} ddp_model;

/* Parameters; their values differ between ranks. */
brg_status ddp_model_init(ddp_model *m, brg_pg *pg);
/* And the ddp over them. */
brg_status ddp_model_wrap(ddp_model *m, const brg_ddp_options *options);
void ddp_model_deinit(ddp_model *m);

/* The loss of this rank's step over the parameters in the mask; borrowed. */
brg_tensor *ddp_model_loss(ddp_model *m, int step, unsigned mask);
/* Forward and backward of it. */
brg_status ddp_model_backward(ddp_model *m, int step, unsigned mask);

/* .grad becomes NULL, or zeros. */
brg_status ddp_model_zero(ddp_model *m, bool keep_memory);

/* .grad of parameter i is the average over ranks of their
 * gradients of steps [first, last), those ranks in `who` (bits) only, and the
 * bits are equal on all ranks. */
brg_status ddp_model_check_param(const ddp_model *m, size_t i, int first,
                                 int last, unsigned who);
brg_status ddp_model_check(const ddp_model *m, int first, int last);

/* Everybody. */
#define DDP_MODEL_EVERY_RANK (~0u)

#endif
