/* SPDX-License-Identifier: Apache-2.0
 * Complete training steps of three small models: data, forward, loss,
 * backward, reduction, clipping, optimizer. For what must hold of a step as a
 * whole. */
#ifndef BRG_TESTS_SUPPORT_SMALL_MODELS_H
#define BRG_TESTS_SUPPORT_SMALL_MODELS_H

#include <brigade/compile.h>
#include <brigade/nn.h>
#include <brigade/optim.h>
#include <brigade/reducer.h>

typedef enum small_kind {
    SMALL_MLP, /* dropout; SGD with momentum */
    SMALL_CNN, /* batch norm, pooling; AdamW */
    SMALL_GPT, /* attention, layer norm, shared embedding; AdamW */
    N_SMALL_KINDS
} small_kind;

typedef struct small_model {
    small_kind kind;
    brg_pg *pg;
    brg_params *params;
    brg_optim *optim;
    brg_ddp *ddp;
    brg_compiled *compiled; /* NULL: steps are eager */
    bool keep_memory;       /* of gradients */
    double loss;            /* of the last step */
    brg_nn_linear linear[2];
    brg_nn_conv2d conv;
    brg_nn_batch_norm norm;
    brg_nn_embedding tokens;
    brg_nn_embedding positions;
    brg_nn_block block;
} small_model;

const char *small_model_name(small_kind kind);

/* Collective, as is a step. small_model_deinit also after a failure. */
brg_status small_model_init(small_model *m, small_kind kind, brg_pg *pg);
void small_model_deinit(small_model *m);

/* From now on its steps are one plan, or their backwards are. Fails where they
 * cannot be. */
brg_status small_model_compile(small_model *m, bool is_whole);

/* One step on data that follow from `step` and the rank. */
brg_status small_model_step(small_model *m, int step);

/* Trains two, one of them compiled: after each step losses and weights are the
 * same bits. Collective. */
brg_status small_model_check_compiled(small_kind kind, brg_pg *pg,
                                      bool is_whole);

/* Trains one, and fails unless the steps after the first few ask for no
 * memory: neither the allocator hook is called, nor malloc by anybody in the
 * program. Collective. */
brg_status small_model_check_steady(small_kind kind, brg_pg *pg,
                                    bool keep_memory, bool is_compiled);

#endif
