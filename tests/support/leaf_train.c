/* SPDX-License-Identifier: Apache-2.0
 * The network, its data (a function of step and sample), and its training. */
#include "tests/support/leaf_train.h"

#include <stdlib.h>
#include <string.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <brigade/autograd.h>
#include <brigade/compile.h>
#include <brigade/device.h>
#include <brigade/ops.h>
#include <brigade/random.h>
#include <brigade/runtime.h>

#include "tests/support/ranks.h"

#define N_IN 48
#define N_OUT 10
#define MAX_LEAF 64 /* samples */
#define N_WARM_UP 6

static brg_status make_ddp(leaf_net *n, brg_pg *pg)
{
    brg_ddp_options options = BRG_DDP_OPTIONS_INIT;
    size_t count;
    brg_tensor *const *trained =
        brg_params_tensors(n->params, BRG_PARAM_TRAINED, &count);
    options.first_bucket_bytes = options.bucket_bytes = n->how->cap;
    if (!n->how->plain) {
        options.reduction = BRG_REDUCTION_REPRODUCIBLE;
        options.n_leaves = n->how->n_leaves;
    }
    if (n->how->casts)
        BRG_TRY(brg_comm_hook_create_cast(&n->hook, BRG_DTYPE_BF16, false));
    options.hook = n->hook;
    return brg_ddp_create(&n->ddp, pg, trained, count, NULL, 0, &options);
}

brg_status leaf_net_init(leaf_net *n, brg_pg *pg, const leaf_train *how)
{
    *n = (leaf_net){.how = how,
                    .rank = brg_pg_rank(pg),
                    .world_size = brg_pg_world_size(pg)};
    brg_seed(7);
    BRG_TRY(brg_params_create(&n->params));
    brg_nn_options nn = BRG_NN_OPTIONS_INIT;
    brg_sgd_options sgd = BRG_SGD_OPTIONS_INIT;
    brg_adamw_options adamw = BRG_ADAMW_OPTIONS_INIT;
    int h = how->n_hidden;
    nn.params = n->params;
    sgd.lr = 0.05;
    sgd.momentum = 0.9;
    BRG_TRY(brg_nn_linear_init(&n->fc[0], &nn, "fc1", N_IN, h));
    BRG_TRY(brg_nn_linear_init(&n->fc[1], &nn, "fc2", h, h));
    if (how->n_more)
        BRG_TRY(brg_nn_linear_init(&n->more[0], &nn, "more", h, h));
    BRG_TRY(brg_nn_linear_init(&n->fc[2], &nn, "fc3", h, N_OUT));
    BRG_TRY(how->adamw ? brg_optim_create_adamw(&n->optim, n->params, &adamw)
                       : brg_optim_create_sgd(&n->optim, n->params, &sgd));
    return make_ddp(n, pg);
}

void leaf_net_deinit(leaf_net *n)
{
    brg_ddp_destroy(n->ddp);
    brg_comm_hook_destroy(n->hook);
    brg_optim_destroy(n->optim);
    brg_params_destroy(n->params);
}

/* Backward over samples [first, first + n) of the step. `weight` makes the
 * mean over leaves (or ranks) the mean over samples. Dropout draws by step and
 * first sample, not by what this thread has drawn before. */
static brg_status run_samples(leaf_net *m, int step, int first, int n,
                              double weight)
{
    float x[MAX_LEAF * N_IN];
    int64_t y[MAX_LEAF];
    for (int i = 0; i < n; i++) {
        y[i] = (first + i + step) % N_OUT;
        for (int k = 0; k < N_IN; k++)
            x[i * N_IN + k] =
                (float)(ranks_gradient(50, step % 20, (size_t)(first + i),
                                       (size_t)k) /
                        3);
    }
    brg_random_state random = {.seed = 11 + (uint64_t)step,
                               .offset = (uint64_t)first << 20};
    brg_random_set_state(&random);
    brg_scope *scope = brg_scope_begin();
    if (!scope)
        return BRG_ERR_NOMEM;
    brg_tensor *h = brg_from_data(BRG_DTYPE_F32, BRG_SHAPE(n, N_IN), x);
    h = brg_tanh(brg_nn_linear_forward(&m->fc[0], h));
    h = brg_gelu(brg_nn_linear_forward(&m->fc[1], brg_dropout(h, 0.1, true)));
    if (m->how->n_more)
        h = brg_gelu(brg_nn_linear_forward(&m->more[0], h));
    brg_tensor *loss =
        brg_cross_entropy(brg_nn_linear_forward(&m->fc[2], h),
                          brg_from_data(BRG_DTYPE_I64, BRG_SHAPE(n), y));
    brg_status status = brg_backward(brg_mul_scalar(loss, weight));
    brg_scope_end(scope);
    return status;
}

static brg_status run_leaves(leaf_net *n, int step)
{
    int batch = n->how->batch, n_leaves = (int)n->how->n_leaves;
    brg_leaf_run run;
    uint32_t leaf = 0;
    BRG_TRY(brg_leaf_run_of(&run, n->how->n_leaves, n->rank, n->world_size));
    for (uint32_t i = 0; i < run.n; i++) {
        bool is_last = brg_ddp_next_leaf(n->ddp, &leaf);
        RANK_CHECK(leaf == run.first + i && is_last == (i + 1 == run.n),
                   "rank %d: leaf %d comes next", n->rank, (int)leaf);
        int first = batch * (int)leaf / n_leaves;
        int end = batch * ((int)leaf + 1) / n_leaves;
        BRG_TRY(run_samples(n, step, first, end - first,
                            (double)(end - first) * n_leaves / batch));
    }
    return BRG_OK;
}

static brg_status run_plain(leaf_net *n, int step)
{
    int first = n->how->batch * n->rank / n->world_size;
    int end = n->how->batch * (n->rank + 1) / n->world_size;
    return run_samples(n, step, first, end - first,
                       (double)(end - first) * n->world_size / n->how->batch);
}

brg_status leaf_net_step(leaf_net *n, int step)
{
    BRG_TRY(n->how->plain ? run_plain(n, step) : run_leaves(n, step));
    if (n->how->confirms)
        BRG_TRY(brg_ddp_confirm(n->ddp));
    BRG_TRY(brg_optim_step(n->optim));
    return brg_optim_zero_grad(n->optim, false);
}

brg_status leaf_net_regroup(leaf_net *n, brg_pg *pg, int64_t *n_steps)
{
    BRG_TRY(brg_ddp_regroup(n->ddp, pg, n->optim, n_steps));
    n->rank = brg_pg_rank(pg);
    n->world_size = brg_pg_world_size(pg);
    return BRG_OK;
}

static brg_status train(leaf_net *n, brg_pg *pg)
{
    brg_memory_stats before = {0}, after;
    uint64_t n_mallocs = 0;
    for (int step = 0; step < n->how->n_steps; step++) {
        if (step == N_WARM_UP) {
            brg_memory_get_stats(&before);
            n_mallocs = ranks_n_mallocs();
        }
        BRG_TRY(leaf_net_step(n, step));
    }
    n_mallocs = ranks_n_mallocs() - n_mallocs;
    brg_memory_get_stats(&after);
    if (n->how->n_buckets && n->rank == 0) {
        brg_reducer_stats stats;
        brg_ddp_get_stats(n->ddp, &stats);
        *n->how->n_buckets = (int)stats.n_buckets;
    }
    /* Other ranks are at other steps, the simulated world makes room for as many
     * events as there are at once, and what a GPU's driver does is its own. */
    bool is_alone = n->world_size == 1 &&
                    strcmp(brg_pg_backend_name(pg), "sim") != 0 &&
                    brg_device_get().type == BRG_DEVICE_CPU;
#if defined(__SANITIZE_ADDRESS__)
    is_alone = false; /* objects are not cached, so that each is seen */
#endif
    RANK_CHECK(!is_alone || n->how->compiled || n->how->n_steps <= N_WARM_UP ||
                   (after.n_allocs == before.n_allocs && n_mallocs == 0),
               "steady leaves asked for memory %d and %d times",
               (int)(after.n_allocs - before.n_allocs), (int)n_mallocs);
    return BRG_OK;
}

uint64_t leaf_net_hash(const leaf_net *n)
{
    size_t count;
    uint64_t hash = 0;
    brg_tensor *const *tensors =
        brg_params_tensors(n->params, BRG_PARAM_TRAINED, &count);
    for (size_t i = 0; i < count; i++) {
        const size_t nbytes = brg_tensor_nbytes(tensors[i]);
        void *bytes = malloc(nbytes); /* it may be on a device */
        if (!bytes || brg_tensor_read(tensors[i], bytes, nbytes) != BRG_OK)
            hash++;
        else
            hash = XXH64(bytes, nbytes, hash);
        free(bytes);
    }
    return hash;
}

brg_status leaf_train_run(brg_pg *pg, const leaf_train *how, uint64_t *hash)
{
    leaf_net n;
    int scope = 0;
    brg_compile_options compile = BRG_COMPILE_OPTIONS_INIT;
    compile.fullgraph = true; /* rather an error than eager unnoticed */
    if (how->compiled)
        BRG_TRY(brg_compile_begin(&scope, &compile));
    brg_status status = leaf_net_init(&n, pg, how);
    if (status == BRG_OK)
        status = train(&n, pg);
    if (status == BRG_OK) {
        *hash = leaf_net_hash(&n);
        status = ranks_same_bits(pg, hash, sizeof *hash);
    }
    leaf_net_deinit(&n);
    if (how->compiled && brg_compile_end(scope) != BRG_OK && status == BRG_OK)
        status = brg_error_code();
    return status;
}

static brg_status train_rank(brg_pg *pg, const void *how, uint64_t *hash)
{
    return leaf_train_run(pg, how, hash);
}

brg_status leaf_train_sim_with(int n, const brg_sim_options *options,
                               const leaf_train *how, uint64_t *hash)
{
    return ranks_sim_training(n, options, train_rank, how, hash);
}

brg_status leaf_train_sim(int n, uint64_t seed, const leaf_train *how,
                          uint64_t *hash)
{
    brg_sim_options options = BRG_SIM_OPTIONS_INIT;
    options.seed = seed;
    return leaf_train_sim_with(n, &options, how, hash);
}
