/* SPDX-License-Identifier: Apache-2.0
 * Times whole training steps on GPUs, one rank each, without data loading:
 *
 *     mpirun -n 2 gpu_training MODEL BATCH MODE [STEPS] [REPEATS] [BUCKET_MIB]
 *                           [LOOKS]
 *
 * MODEL: gpt2 (124M, T = 1024, bf16), gpt (4 blocks of 128, T = 64, f32) or mlp
 * (784-2048-2048-10, f32). BATCH: of each rank. MODE: eager, compiled (captured
 * backward), graph (the whole step, replayed as one graph), fused (that, with
 * kernels for fused groups) or step (as fused, op by op). A step is
 * forward, backward, all-reduce, clipping (not of mlp), AdamW, gradients
 * dropped; the host waits at the end of a repeat only. Rank 0 prints, for each
 * repeat, ms of a step and the host's ms until it was queued. LOOKS: check
 * (check_finite), norm (measure_norm) or both, of two ranks or more. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <brigade/brigade.h>
#include <brigade/nccl.h>

#define MAX_BLOCKS 12
#define N_WARM_UP 10

typedef struct bench {
    const char *name;
    brg_pg *over, *pg;
    brg_params *params;
    brg_nn_embedding tokens, positions;
    brg_nn_block blocks[MAX_BLOCKS];
    int n_blocks;
    brg_nn_layer_norm norm;
    brg_nn_linear layers[3];
    int64_t n_classes;
    brg_tensor *in[2];
    brg_optim *optim;
    brg_ddp *ddp;
    brg_compiled *compiled;
    size_t bucket_bytes; /* 0: the default */
    const char *looks;
} bench;

static double now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return 1e3 * (double)t.tv_sec + 1e-6 * (double)t.tv_nsec;
}

/* ---- Models
 * ------------------------------------------------------------------ */

static brg_status make_mlp(bench *b, const brg_nn_options *nn, int64_t batch)
{
    BRG_TRY(brg_nn_linear_init(&b->layers[0], nn, "fc1", 784, 2048));
    BRG_TRY(brg_nn_linear_init(&b->layers[1], nn, "fc2", 2048, 2048));
    BRG_TRY(brg_nn_linear_init(&b->layers[2], nn, "fc3", 2048, 10));
    b->n_classes = 10;
    b->in[0] = brg_randn(BRG_DTYPE_F32, BRG_SHAPE(batch, 784));
    b->in[1] = brg_randint(0, 10, BRG_SHAPE(batch));
    return b->in[0] && b->in[1] ? BRG_OK : brg_error_code();
}

static brg_status make_gpt(bench *b, brg_nn_options *nn, int64_t batch,
                           bool is_gpt2)
{
    const int64_t dim = is_gpt2 ? 768 : 128, t = is_gpt2 ? 1024 : 64;
    const int64_t n_rows = is_gpt2 ? 50304 : 256;
    const brg_nn_block_options block = {
        .dim = dim, .n_heads = is_gpt2 ? 12 : 4, .n_blocks = is_gpt2 ? 12 : 4};
    nn->dtype = is_gpt2 ? BRG_DTYPE_BF16 : BRG_DTYPE_F32;
    nn->init = BRG_NN_INIT_NORMAL;
    nn->std = 0.02;
    b->n_blocks = (int)block.n_blocks;
    b->n_classes = is_gpt2 ? 50257 : 256;
    BRG_TRY(brg_nn_embedding_init(&b->tokens, nn, "wte", n_rows, dim));
    BRG_TRY(brg_nn_embedding_init(&b->positions, nn, "wpe", t, dim));
    for (int i = 0; i < b->n_blocks; i++) {
        char name[16];
        snprintf(name, sizeof name, "h.%d", i);
        BRG_TRY(brg_nn_block_init(&b->blocks[i], nn, name, &block));
    }
    BRG_TRY(brg_nn_layer_norm_init(&b->norm, nn, "ln_f", dim));
    for (int i = 0; i < 2; i++)
        if (!(b->in[i] = brg_randint(0, b->n_classes, BRG_SHAPE(batch, t))))
            return brg_error_code();
    return BRG_OK;
}

static brg_tensor *loss_of(const bench *b, brg_tensor *const in[2])
{
    brg_cross_entropy_options options = BRG_CROSS_ENTROPY_OPTIONS_INIT;
    options.n_classes = b->n_classes;
    brg_tensor *x;
    if (b->n_blocks == 0) {
        x = brg_relu(brg_nn_linear_forward(&b->layers[0], in[0]));
        x = brg_relu(brg_nn_linear_forward(&b->layers[1], x));
        x = brg_nn_linear_forward(&b->layers[2], x);
        return brg_cross_entropy_with(x, in[1], &options);
    }
    x = brg_add(brg_nn_embedding_forward(&b->tokens, in[0]),
                b->positions.weight);
    for (int i = 0; i < b->n_blocks; i++)
        x = brg_nn_block_forward(&b->blocks[i], x);
    x = brg_linear(brg_nn_layer_norm_forward(&b->norm, x), b->tokens.weight,
                   NULL);
    return brg_cross_entropy_with(x, in[1], &options);
}

/* ---- Steps
 * ------------------------------------------------------------------- */

static brg_status step(brg_tensor *const *in, size_t n_in, brg_tensor **out,
                       size_t n_out, void *user)
{
    bench *b = user;
    (void)n_in;
    (void)n_out;
    brg_scope *scope = brg_scope_begin(); /* the graph alone holds the rest */
    if (!scope)
        return brg_error_code();
    out[0] = brg_scope_return(scope, loss_of(b, in));
    if (!out[0])
        return brg_error_code();
    BRG_TRY(brg_backward(out[0]));
    if (b->n_blocks > 0)
        BRG_TRY(brg_clip_grad_norm(NULL, b->params, 1.0, false));
    BRG_TRY(brg_optim_step(b->optim));
    return brg_optim_zero_grad(b->optim, false);
}

static brg_status run_steps(bench *b, int n, double *loss)
{
    for (int i = 0; i < n; i++) {
        brg_scope *scope = brg_scope_begin();
        brg_tensor *out = NULL;
        if (!scope)
            return brg_error_code();
        brg_status status =
            b->compiled ? brg_compiled_call(b->compiled, b->in, 2, &out, 1)
                        : step(b->in, 2, &out, 1, b);
        if (status == BRG_OK && loss && i == n - 1)
            status = brg_tensor_item(out, loss);
        brg_scope_end(scope);
        BRG_TRY(status);
    }
    return BRG_OK;
}

static brg_status measure(bench *b, int n_steps, int n_repeats)
{
    const brg_device device = brg_device_get();
    double loss = 0;
    BRG_TRY(run_steps(b, N_WARM_UP, &loss));
    for (int r = 0; r < n_repeats; r++) {
        BRG_TRY(brg_device_synchronize(device));
        brg_work *work = NULL;
        BRG_TRY(brg_barrier(b->over, &work));
        BRG_TRY(brg_work_wait(work));
        double started = now_ms();
        BRG_TRY(run_steps(b, n_steps, NULL));
        double queued = now_ms();
        BRG_TRY(brg_device_synchronize(device));
        double ended = now_ms();
        if (brg_pg_rank(b->over) == 0)
            printf("step_ms %.4f queued_ms %.4f\n", (ended - started) / n_steps,
                   (queued - started) / n_steps);
        fflush(stdout);
    }
    BRG_TRY(run_steps(b, 1, &loss));
    brg_device_counts counts;
    BRG_TRY(brg_device_get_counts(device, &counts));
    if (brg_pg_rank(b->over) == 0)
        printf("memory_mib %zu\n", counts.reserved >> 20);
    brg_compile_stats stats;
    brg_compile_get_stats(&stats);
    if (brg_pg_rank(b->over) == 0)
        printf("loss %.5f graphs_launched %llu %s\n", loss,
               (unsigned long long)stats.replay_launches,
               b->compiled ? brg_compile_reason() : "");
    return BRG_OK;
}

/* ---- Beginning
 * ------------------------------------------------------------------ */

static brg_status connect(bench *b)
{
    const int local = brg_launch_local_rank();
    BRG_TRY(brg_pg_create(&b->over, "auto", NULL));
    const brg_device device = {BRG_DEVICE_CUDA,
                               (int16_t)(local > 0 ? local : 0)};
    BRG_TRY(brg_device_load("cuda"));
    BRG_TRY(brg_device_set(device));
    return brg_pg_world_size(b->over) > 1
               ? brg_nccl_create(&b->pg, b->over, device)
               : BRG_OK;
}

static brg_status make(bench *b, int64_t batch)
{
    BRG_TRY(brg_params_create(&b->params));
    brg_nn_options nn = BRG_NN_OPTIONS_INIT;
    nn.params = b->params;
    brg_seed(1);
    BRG_TRY(strcmp(b->name, "mlp") == 0
                ? make_mlp(b, &nn, batch)
                : make_gpt(b, &nn, batch, strcmp(b->name, "gpt2") == 0));
    brg_adamw_options adamw = BRG_ADAMW_OPTIONS_INIT;
    adamw.lr = 1e-4;
    adamw.weight_decay = 0.1;
    BRG_TRY(brg_optim_create_adamw(&b->optim, b->params, &adamw));
    if (!b->pg)
        return BRG_OK;
    size_t n = 0;
    brg_ddp_options options = BRG_DDP_OPTIONS_INIT;
    if (b->bucket_bytes > 0)
        options.bucket_bytes = b->bucket_bytes;
    options.check_finite = strcmp(b->looks, "check") == 0;
    options.measure_norm = strcmp(b->looks, "norm") == 0;
    if (strcmp(b->looks, "both") == 0)
        options.check_finite = options.measure_norm = true;
    brg_tensor *const *all =
        brg_params_tensors(b->params, BRG_PARAM_TRAINED, &n);
    return brg_ddp_create(&b->ddp, b->pg, all, n, NULL, 0, &options);
}

static brg_status run(bench *b, const char *mode, int64_t batch, int n_steps,
                      int n_repeats)
{
    int scope = 0;
    brg_compile_options options = BRG_COMPILE_OPTIONS_INIT;
    BRG_TRY(make(b, batch));
    const bool is_graph = strcmp(mode, "graph") == 0;
    const bool is_step = strcmp(mode, "step") == 0;
    if (is_graph || is_step || strcmp(mode, "fused") == 0) {
        if (!is_graph)
            options.backend = BRG_COMPILE_BACKEND_FUSED;
        options.whole = options.fullgraph = true;
        options.replay = !is_step;
        BRG_TRY(brg_compiled_create(&b->compiled, step, b, &options));
    } else if (strcmp(mode, "compiled") == 0) {
        options.fullgraph = true;
        BRG_TRY(brg_compile_begin(&scope, &options));
    }
    brg_status status = measure(b, n_steps, n_repeats);
    if (scope && brg_compile_end(scope) != BRG_OK && status == BRG_OK)
        status = brg_error_code();
    return status;
}

int main(int argc, char **argv)
{
    if (argc < 4) {
        fprintf(stderr, "usage: gpu_training gpt2|gpt|mlp BATCH "
                        "eager|compiled|graph|fused|step [STEPS] [REPEATS] "
                        "[BUCKET_MIB] [check|norm|both]\n");
        return 2;
    }
    bench b = {.name = argv[1], .looks = argc > 7 ? argv[7] : ""};
    b.bucket_bytes = argc > 6 ? (size_t)atoi(argv[6]) << 20 : 0;
    brg_scope *scope = brg_scope_begin();
    brg_status status = connect(&b);
    if (status == BRG_OK)
        status = run(&b, argv[3], atoi(argv[2]), argc > 4 ? atoi(argv[4]) : 30,
                     argc > 5 ? atoi(argv[5]) : 3);
    if (status != BRG_OK)
        fprintf(stderr, "gpu_training: %s (%s)\n", brg_error_message(),
                brg_status_name(status));
    brg_compiled_destroy(b.compiled);
    brg_ddp_destroy(b.ddp);
    brg_optim_destroy(b.optim);
    brg_params_destroy(b.params);
    brg_scope_end(scope);
    brg_pg_destroy(b.pg);
    brg_pg_destroy(b.over);
    return status == BRG_OK ? 0 : 1;
}
