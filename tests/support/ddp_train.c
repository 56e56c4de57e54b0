/* SPDX-License-Identifier: Apache-2.0
 * Training by many ranks against training by one. */
#include "tests/support/ddp_train.h"

#include <math.h>

#include <brigade/autograd.h>
#include <brigade/ops.h>
#include <brigade/optim.h>
#include <brigade/reducer.h>

#include "tests/support/brg_test.h"
#include "tests/support/ranks.h"

#define N_IN 12
#define N_HIDDEN 16
#define N_OUT 5
#define BATCH 504 /* of all ranks and micro-batches: divisible by them all */
#define N_PARAMS 4
#define TOLERANCE 2e-5

/* Two linear layers, and what trains them. */
typedef struct network {
    brg_params *params;
    brg_tensor *at[N_PARAMS];
    brg_optim *optim;
    brg_ddp *ddp; /* NULL: alone */
} network;

static brg_status add(network *n, size_t i, const char *name, int ndim,
                      const int64_t *shape, double offset)
{
    n->at[i] = brg_empty(BRG_DTYPE_F32, ndim, shape);
    if (!n->at[i])
        return brg_error_code();
    float *value = brg_tensor_data(n->at[i]);
    for (int64_t k = 0; k < brg_tensor_numel(n->at[i]); k++)
        value[k] = (float)(0.3 * ranks_gradient(99, 0, i, (size_t)k) + offset);
    return brg_params_add(n->params, name, n->at[i], BRG_PARAM_TRAINED);
}

static brg_status make_optim(network *n, const ddp_train *how)
{
    brg_sgd_options sgd = BRG_SGD_OPTIONS_INIT;
    brg_adamw_options adamw = BRG_ADAMW_OPTIONS_INIT;
    sgd.lr = 0.1;
    sgd.momentum = 0.9;
    adamw.eps = 1e-3; /* else rounding of tiny gradients is blown up */
    return how->adamw ? brg_optim_create_adamw(&n->optim, n->params, &adamw)
                      : brg_optim_create_sgd(&n->optim, n->params, &sgd);
}

static brg_status network_init(network *n, brg_pg *pg, const ddp_train *how)
{
    *n = (network){0};
    double offset = pg ? brg_pg_rank(pg) : 0; /* to be overruled by rank 0 */
    BRG_TRY(brg_params_create(&n->params));
    BRG_TRY(add(n, 0, "fc1.weight", BRG_SHAPE(N_HIDDEN, N_IN), offset));
    BRG_TRY(add(n, 1, "fc1.bias", BRG_SHAPE(N_HIDDEN), offset));
    BRG_TRY(add(n, 2, "fc2.weight", BRG_SHAPE(N_OUT, N_HIDDEN), offset));
    BRG_TRY(add(n, 3, "fc2.bias", BRG_SHAPE(N_OUT), offset));
    brg_ddp_options options = BRG_DDP_OPTIONS_INIT;
    options.first_bucket_bytes = options.bucket_bytes = how->cap;
    if (pg)
        BRG_TRY(
            brg_ddp_create(&n->ddp, pg, n->at, N_PARAMS, NULL, 0, &options));
    return make_optim(n, how);
}

static void network_deinit(network *n)
{
    brg_optim_destroy(n->optim);
    brg_ddp_destroy(n->ddp);
    brg_params_destroy(n->params);
}

/* Forward and backward over rows [first, first + n) of the step's batch. The
 * loss is a mean, divided among micro-batches. */
static brg_status run_rows(network *net, int step, int first, int n,
                           int n_micro)
{
    float x[BATCH * N_IN];
    int64_t y[BATCH];
    for (int i = 0; i < n; i++) {
        y[i] = (first + i + step) % N_OUT;
        for (int k = 0; k < N_IN; k++)
            x[i * N_IN + k] =
                (float)ranks_gradient(50, step, (size_t)(first + i), (size_t)k);
    }
    brg_scope *scope = brg_scope_begin();
    brg_tensor *h =
        brg_tanh(brg_linear(brg_from_data(BRG_DTYPE_F32, BRG_SHAPE(n, N_IN), x),
                            net->at[0], net->at[1]));
    brg_tensor *loss =
        brg_cross_entropy(brg_linear(h, net->at[2], net->at[3]),
                          brg_from_data(BRG_DTYPE_I64, BRG_SHAPE(n), y));
    brg_status status = brg_backward(brg_mul_scalar(loss, 1.0 / n_micro));
    brg_scope_end(scope);
    return status;
}

static brg_status train_step(network *net, int step, int rank, int world_size,
                             const ddp_train *how)
{
    int share = BATCH / world_size, part = share / how->n_micro;
    for (int k = 0; k < how->n_micro; k++) {
        if (net->ddp)
            (void)brg_ddp_set_sync(net->ddp, k + 1 == how->n_micro);
        BRG_TRY(
            run_rows(net, step, rank * share + k * part, part, how->n_micro));
    }
    BRG_TRY(brg_optim_step(net->optim));
    return brg_optim_zero_grad(net->optim, how->keep_memory);
}

static brg_status compare(const network *many, const network *one, brg_pg *pg,
                          int step)
{
    for (size_t i = 0; i < N_PARAMS; i++) {
        const float *a = brg_tensor_data(many->at[i]);
        const float *b = brg_tensor_data(one->at[i]);
        for (int64_t k = 0; k < brg_tensor_numel(many->at[i]); k++)
            RANK_CHECK(fabsf(a[k] - b[k]) <= TOLERANCE,
                       "step %d: weight %zu[%d] is %.9g with %d ranks, %.9g "
                       "with one",
                       step, i, (int)k, (double)a[k], brg_pg_world_size(pg),
                       (double)b[k]);
        BRG_TRY(ranks_same_bits(pg, a, brg_tensor_nbytes(many->at[i])));
    }
    return BRG_OK;
}

brg_status ddp_train_check(brg_pg *pg, const ddp_train *how)
{
    network many = {0}, one = {0};
    int rank = brg_pg_rank(pg), world_size = brg_pg_world_size(pg);
    brg_scope *scope = brg_scope_begin();
    if (!scope)
        return BRG_ERR_NOMEM;
    brg_status status;
    BRG_TRY_GOTO(network_init(&many, pg, how), out);
    BRG_TRY_GOTO(network_init(&one, NULL, how), out);
    ddp_train whole = *how;
    whole.n_micro = 1;
    for (int step = 0; step < how->n_steps; step++) {
        BRG_TRY_GOTO(train_step(&many, step, rank, world_size, how), out);
        BRG_TRY_GOTO(train_step(&one, step, 0, 1, &whole), out);
        BRG_TRY_GOTO(compare(&many, &one, pg, step), out);
    }
out:
    network_deinit(&many);
    network_deinit(&one);
    brg_scope_end(scope);
    return status;
}
