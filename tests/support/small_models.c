/* SPDX-License-Identifier: Apache-2.0
 * The three models, and their step. */
#include "tests/support/small_models.h"

#include <math.h>
#include <string.h>

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
    options.check_finite = true;
    options.sync_buffers = BRG_DDP_BUFFERS_BROADCAST;
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
    brg_compiled_destroy(m->compiled);
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

static brg_tensor *run_mlp(const small_model *m, brg_tensor *x)
{
    brg_tensor *h = brg_flatten(x, 1, -1);
    h = brg_gelu(brg_nn_linear_forward(&m->linear[0], h));
    return brg_nn_linear_forward(&m->linear[1], brg_dropout(h, 0.2, true));
}

static brg_tensor *run_cnn(const small_model *m, brg_tensor *x)
{
    const brg_pool2d_options pool = {.struct_size = sizeof pool,
                                     .kernel = {2, 2}};
    brg_tensor *h = brg_nn_conv2d_forward(&m->conv, x);
    h = brg_relu(brg_nn_batch_norm_forward(&m->norm, h, true));
    h = brg_flatten(brg_max_pool2d(h, &pool), 1, -1);
    return brg_nn_linear_forward(&m->linear[0], h);
}

static brg_tensor *run_gpt(const small_model *m, brg_tensor *ids)
{
    brg_tensor *h =
        brg_add(brg_nn_embedding_forward(&m->tokens, ids), m->positions.weight);
    h = brg_nn_block_forward(&m->block, h);
    return brg_linear(h, m->tokens.weight, NULL);
}

static brg_status train(brg_tensor *const *in, size_t n_in, brg_tensor **out,
                        size_t n_out, void *user)
{
    static brg_tensor *(*const run[])(const small_model *, brg_tensor *) = {
        run_mlp, run_cnn, run_gpt};
    small_model *m = user;
    (void)n_in;
    (void)n_out;
    out[0] = brg_cross_entropy(run[m->kind](m, in[0]), in[1]);
    BRG_TRY(brg_backward(out[0]));
    BRG_TRY(brg_clip_grad_norm(NULL, m->params, 1, true));
    BRG_TRY(brg_optim_step(m->optim));
    return brg_optim_zero_grad(m->optim, m->keep_memory);
}

brg_status small_model_compile(small_model *m, bool is_whole)
{
    brg_compile_options options = BRG_COMPILE_OPTIONS_INIT;
    options.whole = is_whole;
    options.fullgraph = true;
    return brg_compiled_create(&m->compiled, train, m, &options);
}

static brg_status run_step(small_model *m, int step)
{
    bool is_gpt = m->kind == SMALL_GPT;
    brg_tensor *in[2], *loss;
    in[0] = is_gpt ? make_numbers(m, step, VOCAB, BATCH) : make_images(m, step);
    in[1] = is_gpt ? make_numbers(m, step + 1, VOCAB, BATCH)
                   : make_numbers(m, step, N_CLASSES, 0);
    if (!in[0] || !in[1])
        return brg_error_code();
    BRG_TRY(m->compiled ? brg_compiled_call(m->compiled, in, 2, &loss, 1)
                        : train(in, 2, &loss, 1, m));
    BRG_TRY(brg_tensor_item(loss, &m->loss));
    RANK_CHECK(isfinite(m->loss), "step %d: loss is %g", step, m->loss);
    return BRG_OK;
}

brg_status small_model_step(small_model *m, int step)
{
    brg_scope *scope = brg_scope_begin();
    if (!scope)
        return BRG_ERR_NOMEM;
    brg_status status = run_step(m, step);
    brg_scope_end(scope);
    return status;
}

/* ---- Compiled steps ------------------------------------------------------------- */

static brg_status compare(const small_model *a, const small_model *b, int step)
{
    RANK_CHECK(a->loss == b->loss, "%s, step %d: the loss is %.9g, not %.9g",
               small_model_name(a->kind), step, b->loss, a->loss);
    for (size_t i = 0; i < brg_params_count(a->params); i++) {
        const brg_param *p = brg_params_at(a->params, i);
        const brg_param *q = brg_params_at(b->params, i);
        RANK_CHECK(memcmp(brg_tensor_data(p->tensor),
                          brg_tensor_data(q->tensor),
                          brg_tensor_nbytes(p->tensor)) == 0,
                   "%s, step %d: the bits of '%s' differ",
                   small_model_name(a->kind), step, p->name);
    }
    return BRG_OK;
}

static brg_status compare_steps(small_model *eager, small_model *compiled)
{
    for (int step = 0; step < N_WARM_UP + 2; step++) {
        double lr = 0.01 / (1 + step);
        BRG_TRY(brg_optim_set_lr(eager->optim, lr));
        BRG_TRY(brg_optim_set_lr(compiled->optim, lr));
        brg_seed((uint64_t)step);
        BRG_TRY(small_model_step(eager, step));
        brg_seed((uint64_t)step);
        BRG_TRY(small_model_step(compiled, step));
        BRG_TRY(compare(eager, compiled, step));
    }
    return BRG_OK;
}

/* One capture, then hits. */
static brg_status check_counts(bool is_whole)
{
    brg_compile_stats stats;
    brg_compile_get_stats(&stats);
    uint64_t captured = is_whole ? stats.functions : stats.captures;
    uint64_t hits = is_whole ? stats.function_hits : stats.hits;
    RANK_CHECK(captured == 1 && hits == N_WARM_UP + 1 && stats.fallbacks == 0 &&
                   stats.function_fallbacks == 0,
               "%d captured, %d hits", (int)captured, (int)hits);
    return BRG_OK;
}

brg_status small_model_check_compiled(small_kind kind, brg_pg *pg,
                                      bool is_whole)
{
    small_model eager = {0}, compiled = {0};
    brg_status status = brg_compile_reset();
    if (status == BRG_OK)
        status = small_model_init(&eager, kind, pg);
    if (status == BRG_OK)
        status = small_model_init(&compiled, kind, pg);
    if (status == BRG_OK)
        status = small_model_compile(&compiled, is_whole);
    if (status == BRG_OK)
        status = compare_steps(&eager, &compiled);
    small_model_deinit(&compiled);
    small_model_deinit(&eager);
    return status == BRG_OK ? check_counts(is_whole) : status;
}

/* ---- Steady steps --------------------------------------------------------------- */

static brg_status train_steadily(small_model *m)
{
    brg_memory_stats before = {0}, after;
    uint64_t n_mallocs = 0;
    for (int step = 0; step < N_STEPS; step++) {
        if (step == N_WARM_UP) {
            brg_memory_get_stats(&before);
            n_mallocs = ranks_n_mallocs();
        }
        BRG_TRY(small_model_step(m, step));
    }
    n_mallocs = ranks_n_mallocs() - n_mallocs;
    brg_memory_get_stats(&after);
    RANK_CHECK(after.n_allocs == before.n_allocs && n_mallocs == 0,
               "%s, keep_memory %d, compiled %d: %d calls of the hook and %d "
               "of malloc in %d steps",
               small_model_name(m->kind), m->keep_memory, m->compiled != NULL,
               (int)(after.n_allocs - before.n_allocs), (int)n_mallocs,
               N_STEPS - N_WARM_UP);
    return BRG_OK;
}

brg_status small_model_check_steady(small_kind kind, brg_pg *pg,
                                    bool keep_memory, bool is_compiled)
{
    small_model m;
    brg_status status = small_model_init(&m, kind, pg);
    m.keep_memory = keep_memory;
    if (status == BRG_OK && is_compiled)
        status = small_model_compile(&m, true);
    if (status == BRG_OK)
        status = train_steadily(&m);
    small_model_deinit(&m);
    return status;
}
