/* SPDX-License-Identifier: Apache-2.0
 * The models that the benchmarks train. */
#include "bench/models.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <brigade/autograd.h>
#include <brigade/ops.h>
#include <brigade/shard.h>

#include "bench/bench.h"

const char *const bench_model_names[BENCH_N_MODELS] = {"mlp-a", "mlp-b", "cnn",
                                                       "gpt"};

/* ---- Parameters and data ------------------------------------------------- */

static void add_param(bench_model *m, brg_tensor *t)
{
    char name[16];
    snprintf(name, sizeof(name), "p%zu", m->n_params);
    if (m->n_params == BENCH_MAX_PARAMS)
        bench_fail("more parameters than BENCH_MAX_PARAMS");
    bench_must(
        brg_params_add(m->params, name, bench_some(t), BRG_PARAM_TRAINED));
    m->p[m->n_params++] = t;
}

/* Weight of any shape, uniform in [-scale, scale). */
static void add_weight(bench_model *m, float scale, int ndim,
                       const int64_t *shape)
{
    brg_tensor *t = bench_random(scale, m->n_params + 1, ndim, shape);
    add_param(m, t);
    brg_release(t);
}

static void add_linear(bench_model *m, int64_t n_in, int64_t n_out)
{
    add_weight(m, 1.0f / sqrtf((float)n_in), BRG_SHAPE(n_out, n_in));
    add_param(m, brg_zeros(BRG_DTYPE_F32, BRG_SHAPE(n_out)));
}

static void add_conv(bench_model *m, int64_t n_in, int64_t n_out)
{
    add_weight(m, 1.0f / sqrtf((float)(9 * n_in)),
               BRG_SHAPE(n_out, n_in, 3, 3));
    add_param(m, brg_zeros(BRG_DTYPE_F32, BRG_SHAPE(n_out)));
}

static void add_norm(bench_model *m, int64_t width)
{
    add_param(m, brg_ones(BRG_DTYPE_F32, BRG_SHAPE(width)));
    add_param(m, brg_zeros(BRG_DTYPE_F32, BRG_SHAPE(width)));
}

/* Whole numbers in [0, n_values). */
static brg_tensor *random_ids(int64_t n_values, uint64_t seed, int ndim,
                              const int64_t *shape)
{
    brg_tensor *t = bench_random(1, seed, ndim, shape);
    brg_tensor *scaled =
        brg_mul_scalar(brg_add_scalar(t, 1.0), 0.5 * (double)n_values);
    brg_tensor *ids = bench_some(brg_cast(scaled, BRG_DTYPE_I64));
    brg_release(t);
    return brg_retain(ids);
}

/* The next n parameters are about to be used. */
static void use(const bench_model *m, brg_tensor *const *p, int n)
{
    for (int i = 0; i < n && m->is_sharded; i++)
        bench_must(brg_ddp_wait_params(m->ddp, p[i]));
}

/* ---- MLP: 784 - hidden - hidden - 10 ------------------------------------- */

static brg_tensor *mlp_loss(const bench_model *m)
{
    brg_tensor *const *p = m->p;
    use(m, p, 2);
    brg_tensor *h = brg_relu(brg_linear(m->x, p[0], p[1]));
    use(m, p + 2, 2);
    h = brg_relu(brg_linear(h, p[2], p[3]));
    use(m, p + 4, 2);
    return brg_cross_entropy(brg_linear(h, p[4], p[5]), m->y);
}

static void mlp_init(bench_model *m, int64_t hidden, int64_t batch,
                     uint64_t seed)
{
    add_linear(m, 784, hidden);
    add_linear(m, hidden, hidden);
    add_linear(m, hidden, 10);
    m->x = bench_random(1, seed, BRG_SHAPE(batch, 784));
    m->y = random_ids(10, seed + 1, BRG_SHAPE(batch));
    m->loss = mlp_loss;
}

/* ---- CNN: conv 32, conv 64, pool, 128, 10 -------------------------------- */

static brg_tensor *cnn_loss(const bench_model *m)
{
    brg_tensor *const *p = m->p;
    brg_pool2d_options pool = BRG_POOL2D_OPTIONS_INIT;
    pool.kernel[0] = pool.kernel[1] = 2;
    use(m, p, 2);
    brg_tensor *h = brg_relu(brg_conv2d(m->x, p[0], p[1], NULL));
    use(m, p + 2, 2);
    h = brg_relu(brg_conv2d(h, p[2], p[3], NULL));
    h = brg_flatten(brg_max_pool2d(h, &pool), 1, -1);
    use(m, p + 4, 4);
    h = brg_relu(brg_linear(h, p[4], p[5]));
    return brg_cross_entropy(brg_linear(h, p[6], p[7]), m->y);
}

static void cnn_init(bench_model *m, uint64_t seed)
{
    add_conv(m, 1, 32);
    add_conv(m, 32, 64);
    add_linear(m, 64 * 12 * 12, 128);
    add_linear(m, 128, 10);
    m->x = bench_random(1, seed, BRG_SHAPE(64, 1, 28, 28));
    m->y = random_ids(10, seed + 1, BRG_SHAPE(64));
    m->loss = cnn_loss;
}

/* ---- GPT: 4 blocks of width 128, 4 heads, 64 tokens of 256 --------------- */

enum {
    GPT_BLOCKS = 4,
    GPT_WIDTH = 128,
    GPT_HEADS = 4,
    GPT_LENGTH = 64,
    GPT_TOKENS = 256,
    GPT_BATCH = 8,
    GPT_BLOCK_PARAMS = 12
};

static brg_tensor *gpt_block(brg_tensor *x, brg_tensor *const *p)
{
    brg_attention_options causal = BRG_ATTENTION_OPTIONS_INIT;
    causal.is_causal = true;
    brg_tensor *h = brg_layer_norm(x, p[0], p[1], 1, 1e-5);
    h = brg_attention_qkv(brg_linear(h, p[2], p[3]), GPT_HEADS, &causal);
    x = brg_add(x, brg_linear(h, p[4], p[5]));
    h = brg_layer_norm(x, p[6], p[7], 1, 1e-5);
    h = brg_gelu(brg_linear(h, p[8], p[9]));
    return brg_add(x, brg_linear(h, p[10], p[11]));
}

/* The head shares the weight of the embedding. */
static brg_tensor *gpt_loss(const bench_model *m)
{
    brg_tensor *const *p = m->p;
    use(m, p, 2);
    brg_tensor *x = brg_add(brg_embedding(p[0], m->x), p[1]);
    for (int i = 0; i < GPT_BLOCKS; i++) {
        use(m, p + 2 + i * GPT_BLOCK_PARAMS, GPT_BLOCK_PARAMS);
        x = gpt_block(x, p + 2 + i * GPT_BLOCK_PARAMS);
    }
    brg_tensor *const *norm = p + 2 + GPT_BLOCKS * GPT_BLOCK_PARAMS;
    use(m, norm, 2);
    x = brg_layer_norm(x, norm[0], norm[1], 1, 1e-5);
    brg_tensor *logits = brg_linear(brg_flatten(x, 0, 1), p[0], NULL);
    return brg_cross_entropy(logits, m->y);
}

static void gpt_init(bench_model *m, uint64_t seed)
{
    add_weight(m, 0.02f, BRG_SHAPE(GPT_TOKENS, GPT_WIDTH));
    add_weight(m, 0.02f, BRG_SHAPE(GPT_LENGTH, GPT_WIDTH));
    for (int i = 0; i < GPT_BLOCKS; i++) {
        add_norm(m, GPT_WIDTH);
        add_linear(m, GPT_WIDTH, 3 * GPT_WIDTH);
        add_linear(m, GPT_WIDTH, GPT_WIDTH);
        add_norm(m, GPT_WIDTH);
        add_linear(m, GPT_WIDTH, 4 * GPT_WIDTH);
        add_linear(m, 4 * GPT_WIDTH, GPT_WIDTH);
    }
    add_norm(m, GPT_WIDTH);
    m->x = random_ids(GPT_TOKENS, seed, BRG_SHAPE(GPT_BATCH, GPT_LENGTH));
    m->y = random_ids(GPT_TOKENS, seed + 1, BRG_SHAPE(GPT_BATCH * GPT_LENGTH));
    m->loss = gpt_loss;
}

/* ---- Any model ----------------------------------------------------------- */

static void make_optim(bench_model *m)
{
    if (strcmp(m->name, "gpt") == 0) {
        const brg_adamw_options options = BRG_ADAMW_OPTIONS_INIT;
        bench_must(brg_optim_create_adamw(&m->optim, m->params, &options));
        return;
    }
    brg_sgd_options options = BRG_SGD_OPTIONS_INIT;
    options.lr = 0.05;
    bench_must(brg_optim_create_sgd(&m->optim, m->params, &options));
}

void bench_model_init(bench_model *m, const char *name, uint64_t seed)
{
    *m = (bench_model){.name = name};
    brg_scope *scope = brg_scope_begin();
    bench_must(brg_params_create(&m->params));
    if (strcmp(name, "mlp-a") == 0)
        mlp_init(m, 512, 64, 1000 * seed);
    else if (strcmp(name, "mlp-a8") == 0)
        mlp_init(m, 512, 8, 1000 * seed);
    else if (strcmp(name, "mlp-b") == 0)
        mlp_init(m, 2048, 128, 1000 * seed);
    else if (strcmp(name, "cnn") == 0)
        cnn_init(m, 1000 * seed);
    else if (strcmp(name, "gpt") == 0)
        gpt_init(m, 1000 * seed);
    else
        bench_fail("no such model; there are mlp-a, mlp-a8, mlp-b, cnn, gpt");
    make_optim(m);
    brg_scope_end(scope);
}

void bench_model_distribute(bench_model *m, brg_pg *pg)
{
    bench_must(brg_ddp_create(&m->ddp, pg, m->p, m->n_params, NULL, 0, NULL));
}

void bench_model_distribute_adamw(bench_model *m, brg_pg *pg, bool is_sharded)
{
    brg_ddp_options options = BRG_DDP_OPTIONS_INIT;
    brg_adamw_options adamw = BRG_ADAMW_OPTIONS_INIT;
    brg_optim_range ranges[BENCH_MAX_PARAMS];
    options.shard = m->is_sharded = is_sharded;
    bench_must(
        brg_ddp_create(&m->ddp, pg, m->p, m->n_params, NULL, 0, &options));
    if (is_sharded) {
        bench_must(brg_ddp_shard(m->ddp, m->params, ranges, m->n_params));
        adamw.ranges = ranges;
    }
    brg_optim_destroy(m->optim);
    bench_must(brg_optim_create_adamw(&m->optim, m->params, &adamw));
}

void bench_model_deinit(bench_model *m)
{
    brg_compiled_destroy(m->whole);
    brg_ddp_destroy(m->ddp);
    brg_optim_destroy(m->optim);
    brg_release(m->x);
    brg_release(m->y);
    brg_params_destroy(m->params);
}

void bench_model_step(bench_model *m)
{
    brg_scope *scope = brg_scope_begin();
    bench_must(brg_optim_zero_grad(m->optim, false));
    brg_tensor *loss = m->loss(m);
    bench_must(brg_backward(loss));
    bench_must(brg_optim_step(m->optim));
    if (m->is_sharded)
        bench_must(brg_ddp_gather_params(m->ddp));
    bench_must(brg_tensor_item(loss, &m->last_loss));
    brg_scope_end(scope);
}

static void check_gradients(const bench_model *m)
{
    brg_scope *scope = brg_scope_begin();
    for (size_t i = 0; i < m->n_params; i++) {
        double norm;
        brg_tensor *grad = brg_tensor_grad(m->p[i]);
        if (grad == NULL)
            bench_fail("a parameter has no gradient");
        brg_tensor *norm2 = bench_some(brg_norm2(grad, BRG_ALL_DIMS, false));
        bench_must(brg_tensor_item(norm2, &norm));
        if (!(norm > 0 && norm < 1e6))
            bench_fail("the gradient of a parameter is zero or not finite");
    }
    brg_scope_end(scope);
}

void bench_model_warm_up(bench_model *m, int n_steps)
{
    bench_model_step(m);
    const double first = m->last_loss;
    check_gradients(m);
    for (int i = 0; i < n_steps; i++)
        bench_model_step(m);
    if (!(m->last_loss < first))
        bench_fail("the loss does not go down");
}

double bench_model_time(bench_model *m, int n_steps)
{
    const double start = bench_seconds();
    for (int i = 0; i < n_steps; i++)
        bench_model_step(m);
    return (bench_seconds() - start) / n_steps;
}

/* ---- Compiled ------------------------------------------------------------ */

static brg_status whole_step(brg_tensor *const *in, size_t n_in,
                             brg_tensor **out, size_t n_out, void *user)
{
    const bench_model *m = user;
    (void)in;
    (void)n_in;
    (void)n_out;
    BRG_TRY(brg_optim_zero_grad(m->optim, false));
    out[0] = m->loss(m);
    BRG_TRY(brg_backward(out[0]));
    return brg_optim_step(m->optim);
}

static void run_whole(bench_model *m)
{
    if (!m->whole) {
        brg_compile_options options = BRG_COMPILE_OPTIONS_INIT;
        options.whole = options.fullgraph = true;
        options.backend = BRG_COMPILE_BACKEND_FUSED;
        bench_must(brg_compiled_create(&m->whole, whole_step, m, &options));
    }
    brg_scope *scope = brg_scope_begin();
    brg_tensor *loss = NULL;
    bench_must(brg_compiled_call(m->whole, NULL, 0, &loss, 1));
    bench_must(brg_tensor_item(loss, &m->last_loss));
    brg_scope_end(scope);
}

double bench_model_time_as(bench_model *m, bench_mode mode, int n_steps)
{
    int scope = 0;
    brg_compile_options options = BRG_COMPILE_OPTIONS_INIT;
    options.backend = BRG_COMPILE_BACKEND_FUSED;
    if (mode == BENCH_COMPILED)
        bench_must(brg_compile_begin(&scope, &options));
    const double start = bench_seconds();
    for (int i = 0; i < n_steps; i++) {
        if (mode == BENCH_WHOLE)
            run_whole(m);
        else
            bench_model_step(m);
    }
    const double seconds = (bench_seconds() - start) / n_steps;
    if (mode == BENCH_COMPILED)
        bench_must(brg_compile_end(scope));
    return seconds;
}
