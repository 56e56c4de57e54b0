/* SPDX-License-Identifier: Apache-2.0
 * The three models, and their step. */
#include "tests/support/small_models.h"

#include <math.h>

#include <brigade/autograd.h>
#include <brigade/ops.h>
#include <brigade/random.h>
#include <brigade/runtime.h>

#include "tests/support/ranks.h"

#define BATCH 4
#define SIDE 6 /* of images */
#define N_CLASSES 5
#define CONTEXT 8
#define VOCAB 11
#define DIM 8
#define N_WARM_UP 4
#define N_STEPS 12

const char *small_model_name(small_kind kind)
{
    static const char *const names[] = {"mlp", "cnn", "gpt"};
    return names[kind];
}

/* ---- Making ------------------------------------------------------------------- */

static brg_status make_mlp(small_model *m, const brg_nn_options *nn)
{
    BRG_TRY(brg_nn_linear_init(&m->linear[0], nn, "fc1", SIDE * SIDE, 16));
    return brg_nn_linear_init(&m->linear[1], nn, "fc2", 16, N_CLASSES);
}

static brg_status make_cnn(small_model *m, const brg_nn_options *nn)
{
    const brg_nn_conv2d_options conv = {
        .n_in = 1, .n_out = 4, .kernel = {3, 3}, .padding = {1, 1}};
    BRG_TRY(brg_nn_conv2d_init(&m->conv, nn, "conv", &conv));
    BRG_TRY(brg_nn_batch_norm_init(&m->norm, nn, "bn", 4));
    return brg_nn_linear_init(&m->linear[0], nn, "fc", 4 * SIDE * SIDE / 4,
                              N_CLASSES);
}

static brg_status make_gpt(small_model *m, const brg_nn_options *nn)
{
    const brg_nn_block_options block = {
        .dim = DIM, .n_heads = 2, .n_blocks = 1};
    BRG_TRY(brg_nn_embedding_init(&m->tokens, nn, "wte", VOCAB, DIM));
    BRG_TRY(brg_nn_embedding_init(&m->positions, nn, "wpe", CONTEXT, DIM));
    return brg_nn_block_init(&m->block, nn, "h.0", &block);
}

static brg_status make_optim(small_model *m)
{
    brg_adamw_options adamw = BRG_ADAMW_OPTIONS_INIT;
    brg_sgd_options sgd = BRG_SGD_OPTIONS_INIT;
    sgd.momentum = 0.9;
    return m->kind == SMALL_MLP
               ? brg_optim_create_sgd(&m->optim, m->params, &sgd)
               : brg_optim_create_adamw(&m->optim, m->params, &adamw);
}

static brg_status make_ddp(small_model *m)
{
    brg_ddp_options options = BRG_DDP_OPTIONS_INIT;
    options.first_bucket_bytes = options.bucket_bytes = 600; /* several */
    options.keep_order = true; /* without memory, a rebuild is left out */
    size_t n, n_buffers;
    brg_tensor *const *trained =
        brg_params_tensors(m->params, BRG_PARAM_TRAINED, &n);
    brg_tensor *const *buffers =
        brg_params_tensors(m->params, BRG_PARAM_BUFFER, &n_buffers);
    return brg_ddp_create(&m->ddp, m->pg, trained, n, buffers, n_buffers,
                          &options);
}

brg_status small_model_init(small_model *m, small_kind kind, brg_pg *pg)
{
    static brg_status (*const make[])(small_model *, const brg_nn_options *) = {
        make_mlp, make_cnn, make_gpt};
    *m = (small_model){.kind = kind, .pg = pg};
    brg_seed(1);
    BRG_TRY(brg_params_create(&m->params));
    brg_nn_options nn = BRG_NN_OPTIONS_INIT;
    nn.params = m->params;
    BRG_TRY(make[kind](m, &nn));
    BRG_TRY(make_optim(m));
    return make_ddp(m);
}

void small_model_deinit(small_model *m)
{
    brg_ddp_destroy(m->ddp);
    brg_optim_destroy(m->optim);
    brg_params_destroy(m->params);
    *m = (small_model){0};
}

/* ---- A step ------------------------------------------------------------------- */

static brg_tensor *make_images(const small_model *m, int step)
{
    float x[BATCH * SIDE * SIDE];
    for (size_t k = 0; k < BATCH * SIDE * SIDE; k++)
        x[k] = (float)ranks_gradient(brg_pg_rank(m->pg), step, 0, k);
    return brg_from_data(BRG_DTYPE_F32, BRG_SHAPE(BATCH, 1, SIDE, SIDE), x);
}

/* Numbers in [0, n), n_rows rows of CONTEXT or (0) one row of BATCH. */
static brg_tensor *make_numbers(const small_model *m, int step, int n,
                                int64_t n_rows)
{
    int64_t y[BATCH * CONTEXT];
    for (size_t k = 0; k < BATCH * CONTEXT; k++)
        y[k] = (int64_t)(k * k + 3 * k + (size_t)step +
                         (size_t)brg_pg_rank(m->pg)) %
               n;
    return n_rows ? brg_from_data(BRG_DTYPE_I64, BRG_SHAPE(n_rows, CONTEXT), y)
                  : brg_from_data(BRG_DTYPE_I64, BRG_SHAPE(BATCH), y);
}

static brg_tensor *run_mlp(const small_model *m, int step)
{
    brg_tensor *h = brg_flatten(make_images(m, step), 1, -1);
    h = brg_gelu(brg_nn_linear_forward(&m->linear[0], h));
    h = brg_nn_linear_forward(&m->linear[1], brg_dropout(h, 0.2, true));
    return brg_cross_entropy(h, make_numbers(m, step, N_CLASSES, 0));
}

static brg_tensor *run_cnn(const small_model *m, int step)
{
    const brg_pool2d_options pool = {.struct_size = sizeof pool,
                                     .kernel = {2, 2}};
    brg_tensor *h = brg_nn_conv2d_forward(&m->conv, make_images(m, step));
    h = brg_relu(brg_nn_batch_norm_forward(&m->norm, h, true));
    h = brg_flatten(brg_max_pool2d(h, &pool), 1, -1);
    h = brg_nn_linear_forward(&m->linear[0], h);
    return brg_cross_entropy(h, make_numbers(m, step, N_CLASSES, 0));
}

static brg_tensor *run_gpt(const small_model *m, int step)
{
    brg_tensor *ids = make_numbers(m, step, VOCAB, BATCH);
    brg_tensor *h =
        brg_add(brg_nn_embedding_forward(&m->tokens, ids), m->positions.weight);
    h = brg_nn_block_forward(&m->block, h);
    return brg_cross_entropy(brg_linear(h, m->tokens.weight, NULL),
                             make_numbers(m, step + 1, VOCAB, BATCH));
}

static brg_status run_step(small_model *m, int step, bool keep_memory)
{
    static brg_tensor *(*const run[])(const small_model *,
                                      int) = {run_mlp, run_cnn, run_gpt};
    brg_tensor *loss = run[m->kind](m, step);
    double norm, value;
    BRG_TRY(brg_backward(loss));
    BRG_TRY(brg_clip_grad_norm(&norm, m->params, 1, true));
    BRG_TRY(brg_optim_step(m->optim));
    BRG_TRY(brg_tensor_item(loss, &value));
    RANK_CHECK(isfinite(value), "step %d: loss is %g", step, value);
    return brg_optim_zero_grad(m->optim, keep_memory);
}

brg_status small_model_step(small_model *m, int step, bool keep_memory)
{
    brg_scope *scope = brg_scope_begin();
    if (!scope)
        return BRG_ERR_NOMEM;
    brg_status status = run_step(m, step, keep_memory);
    brg_scope_end(scope);
    return status;
}

/* ---- Steady steps --------------------------------------------------------------- */

static brg_status train_steadily(small_model *m, bool keep_memory)
{
    brg_memory_stats before = {0}, after;
    uint64_t n_mallocs = 0;
    for (int step = 0; step < N_STEPS; step++) {
        if (step == N_WARM_UP) {
            brg_memory_get_stats(&before);
            n_mallocs = ranks_n_mallocs();
        }
        BRG_TRY(small_model_step(m, step, keep_memory));
    }
    n_mallocs = ranks_n_mallocs() - n_mallocs;
    brg_memory_get_stats(&after);
    RANK_CHECK(after.n_allocs == before.n_allocs && n_mallocs == 0,
               "%s, keep_memory %d: %d calls of the hook and %d of malloc in "
               "%d steps",
               small_model_name(m->kind), keep_memory,
               (int)(after.n_allocs - before.n_allocs), (int)n_mallocs,
               N_STEPS - N_WARM_UP);
    return BRG_OK;
}

brg_status small_model_check_steady(small_kind kind, brg_pg *pg,
                                    bool keep_memory)
{
    small_model m;
    brg_status status = small_model_init(&m, kind, pg);
    if (status == BRG_OK)
        status = train_steadily(&m, keep_memory);
    small_model_deinit(&m);
    return status;
}
