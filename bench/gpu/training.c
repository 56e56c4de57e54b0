/* SPDX-License-Identifier: Apache-2.0
 * Times whole training steps on GPUs, one rank each, without data loading:
 *
 *     mpirun -n 2 gpu_training MODEL BATCH MODE[,MODE...] [STEPS] [REPEATS]
 *                           [BUCKET_MIB] [LOOKS]
 *
 * MODEL: gpt2 (124M, T = 1024, bf16), gpt (4 blocks of 128, T = 64, f32) or mlp
 * (784-2048-2048-10, f32). BATCH: of each rank. MODE: eager, compiled (captured
 * backward), graph (the whole step, replayed as one graph), fused (that, with
 * kernels for fused groups) or step (as fused, op by op); several take turns. A
 * step is forward, backward, all-reduce, clipping (not of mlp), AdamW, gradients
 * dropped; the host waits at the end of a repeat only. Rank 0 prints, of each
 * repeat, ms of a step and the host's ms until it was queued; then, of each mode,
 * what the timed steps did (waits of the host, bytes from the driver) and us of
 * a call while the GPU is idle (the median). LOOKS: steps (no such calls); of two
 * ranks or more: check (check_finite), norm (measure_norm), both, or exposed (by the GPU's clock, us
 * that a queue waits for the reduction when the backward has ended: of the rank
 * that waits least and of the one that waits most, medians over steps); tight: to a norm that no gradients have; tight,written: something changes between
 * the step and the dropping of gradients besides, so that they have to be written.
 * GPU_TRAINING_DEVICE=cpu: to try it where no GPU is. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <brigade/brigade.h>
#include <brigade/nccl.h>

#define MAX_BLOCKS 12
#define MAX_MODES 8
#define N_WARM_UP 10
#define N_SETTLE 2   /* once all modes are made */
#define N_CALLS 20   /* while the GPU is idle */
#define N_SAMPLES 11 /* of what is exposed, each after N_BETWEEN steps */
#define N_BETWEEN 4

/* One mode. */
typedef struct bench {
    const char *name;
    char mode[16];
    brg_pg *over, *pg; /* of all modes; pg: NULL for one rank */
    brg_params *params;
    brg_nn_embedding tokens, positions;
    brg_nn_block blocks[MAX_BLOCKS];
    int n_blocks;
    brg_nn_layer_norm norm;
    brg_nn_linear layers[3];
    int64_t n_classes;
    brg_tensor *in[2];
    brg_tensor *count; /* NULL: of nothing */
    brg_optim *optim;
    brg_ddp *ddp;
    brg_compiled *compiled;
    size_t bucket_bytes; /* 0: the default */
    const char *looks;
    brg_device_counts done; /* in the timed steps */
    uint64_t n_done;
    double loss;
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
        BRG_TRY(brg_clip_grad_norm(
            NULL, b->params, strstr(b->looks, "tight") ? 1e-6 : 1.0, false));
    BRG_TRY(brg_optim_step(b->optim));
    if (b->count)
        BRG_TRY(brg_add_(b->count, b->count, 1));
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

/* The device and all ranks are idle. */
static brg_status wait_all(const bench *b)
{
    brg_work *work = NULL;
    BRG_TRY(brg_device_synchronize(brg_device_get()));
    BRG_TRY(brg_barrier(b->over, &work));
    return brg_work_wait(work);
}

static void add_counts(bench *b, const brg_device_counts *from,
                       const brg_device_counts *to, int n_steps)
{
    b->done.n_waits += to->n_waits - from->n_waits;
    b->done.n_graphs += to->n_graphs - from->n_graphs;
    b->done.reserved += to->reserved - from->reserved;
    b->n_done += (uint64_t)n_steps;
}

static brg_status time_repeat(bench *b, int n_steps)
{
    const brg_device device = brg_device_get();
    brg_device_counts from, to;
    BRG_TRY(wait_all(b));
    BRG_TRY(brg_device_get_counts(device, &from));
    const double started = now_ms();
    BRG_TRY(run_steps(b, n_steps, NULL));
    const double queued = now_ms();
    BRG_TRY(brg_device_get_counts(device, &to));
    BRG_TRY(brg_device_synchronize(device));
    const double ended = now_ms();
    add_counts(b, &from, &to, n_steps);
    if (brg_pg_rank(b->over) == 0)
        printf("step_ms %.4f queued_ms %.4f mode %s\n",
               (ended - started) / n_steps, (queued - started) / n_steps,
               b->mode);
    fflush(stdout);
    return BRG_OK;
}

static int by_value(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *values, size_t n)
{
    qsort(values, n, sizeof *values, by_value);
    return values[n / 2];
}

static brg_status time_calls(bench *b)
{
    double us[N_CALLS];
    for (int i = 0; i < N_CALLS; i++) {
        BRG_TRY(wait_all(b));
        const double started = now_ms();
        BRG_TRY(run_steps(b, 1, NULL));
        us[i] = 1e3 * (now_ms() - started);
    }
    if (brg_pg_rank(b->over) == 0)
        printf("host_us %.1f waits %.2f driver_bytes %zu graphs %.2f mode %s\n",
               median(us, N_CALLS), (double)b->done.n_waits / (double)b->n_done,
               b->done.reserved, (double)b->done.n_graphs / (double)b->n_done,
               b->mode);
    return BRG_OK;
}

static brg_status of_ranks(bench *b, brg_reduce_op op, double *value)
{
    brg_work *work = NULL;
    BRG_TRY(brg_all_reduce(b->over, &work, value, 1, BRG_DTYPE_F64, op));
    return brg_work_wait(work);
}

/* Each in the last of some steps in a row. */
static brg_status sample_exposed(bench *b)
{
    double least[N_SAMPLES], most[N_SAMPLES];
    for (int i = 0; i < N_SAMPLES; i++) {
        uint64_t ns = 0;
        BRG_TRY(run_steps(b, N_BETWEEN, NULL));
        BRG_TRY(brg_ddp_exposed_ns(b->ddp, &ns));
        least[i] = most[i] = 1e-3 * (double)ns;
        BRG_TRY(of_ranks(b, BRG_REDUCE_MIN, &least[i]));
        BRG_TRY(of_ranks(b, BRG_REDUCE_MAX, &most[i]));
    }
    if (brg_pg_rank(b->over) == 0)
        printf("exposed_us %.1f %.1f mode %s\n", median(least, N_SAMPLES),
               median(most, N_SAMPLES), b->mode);
    return BRG_OK;
}

static brg_status finish(bench *b)
{
    const bool is_graph =
        strcmp(b->mode, "graph") == 0 || strcmp(b->mode, "fused") == 0;
    if (strcmp(b->looks, "steps") != 0)
        BRG_TRY(time_calls(b));
    if (b->ddp && strcmp(b->looks, "exposed") == 0)
        BRG_TRY(sample_exposed(b));
    BRG_TRY(run_steps(b, 1, &b->loss));
    brg_device_counts counts;
    BRG_TRY(brg_device_get_counts(brg_device_get(), &counts));
    if (brg_pg_rank(b->over) == 0)
        printf("loss %.5f memory_mib %zu mode %s %s\n", b->loss,
               counts.reserved >> 20, b->mode,
               is_graph && b->done.n_graphs == 0 ? brg_compile_reason() : "");
    return BRG_OK;
}

/* ---- Beginning
 * ------------------------------------------------------------------ */

static brg_status connect(bench *b)
{
    const int local = brg_launch_local_rank();
    const char *name = getenv("GPU_TRAINING_DEVICE");
    BRG_TRY(brg_pg_create(&b->over, "auto", NULL));
    if (name && strcmp(name, "cpu") == 0)
        return BRG_OK;
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
    if (strstr(b->looks, "written") &&
        !(b->count = brg_zeros(BRG_DTYPE_F32, BRG_SHAPE(1))))
        return brg_error_code();
    if (brg_pg_world_size(b->over) == 1)
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
    BRG_TRY(brg_ddp_create(&b->ddp, b->pg ? b->pg : b->over, all, n, NULL, 0,
                           &options));
    return strcmp(b->looks, "exposed") == 0 ? brg_ddp_measure_exposed(b->ddp)
                                            : BRG_OK;
}

static brg_status compile(bench *b)
{
    const bool is_step = strcmp(b->mode, "step") == 0;
    const bool is_fused = strcmp(b->mode, "fused") == 0;
    const bool is_graph = strcmp(b->mode, "graph") == 0;
    brg_compile_options options = BRG_COMPILE_OPTIONS_INIT;
    if (strcmp(b->mode, "eager") == 0)
        return BRG_OK;
    if (is_step || is_fused)
        options.backend = BRG_COMPILE_BACKEND_FUSED;
    options.fullgraph = true;
    options.whole = is_step || is_fused || is_graph;
    options.replay = is_fused || is_graph;
    return brg_compiled_create(&b->compiled, step, b, &options);
}

static brg_status run(bench *all, int n, int64_t batch, int n_steps,
                      int n_repeats)
{
    for (int i = 0; i < n; i++) {
        BRG_TRY(make(&all[i], batch));
        BRG_TRY(compile(&all[i]));
        BRG_TRY(run_steps(&all[i], N_WARM_UP, &all[i].loss));
    }
    for (int i = 0; i < n; i++) /* recordings may have taken its memory */
        BRG_TRY(run_steps(&all[i], N_SETTLE, &all[i].loss));
    for (int r = 0; r < n_repeats; r++)
        for (int i = 0; i < n; i++)
            BRG_TRY(time_repeat(&all[i], n_steps));
    for (int i = 0; i < n; i++)
        BRG_TRY(finish(&all[i]));
    return BRG_OK;
}

/* How many there are in `text`, separated by commas; 0 if it makes no sense. */
static int take_modes(bench *all, const bench *base, const char *text)
{
    static const char *const known[] = {"eager", "compiled", "graph", "fused",
                                        "step"};
    int n = 0;
    while (n < MAX_MODES) {
        size_t k = 0;
        const size_t length = strcspn(text, ",");
        while (k < 5 && (strlen(known[k]) != length ||
                         strncmp(known[k], text, length) != 0))
            k++;
        if (k == 5)
            return 0;
        all[n] = *base;
        snprintf(all[n].mode, sizeof all[n].mode, "%s", known[k]);
        n++;
        if (text[length] == '\0')
            return n;
        text += length + 1;
    }
    return 0;
}

static void destroy(bench *b)
{
    brg_compiled_destroy(b->compiled);
    brg_ddp_destroy(b->ddp);
    brg_optim_destroy(b->optim);
    brg_params_destroy(b->params);
}

int main(int argc, char **argv)
{
    static bench all[MAX_MODES];
    bench base = {.name = argc > 1 ? argv[1] : "",
                  .looks = argc > 7 ? argv[7] : ""};
    base.bucket_bytes = argc > 6 ? (size_t)atoi(argv[6]) << 20 : 0;
    if (argc < 4 || take_modes(all, &base, argv[3]) == 0) {
        fprintf(stderr,
                "usage: gpu_training gpt2|gpt|mlp BATCH "
                "eager|compiled|graph|fused|step[,...] [STEPS] "
                "[REPEATS] [BUCKET_MIB] "
                "[check|norm|both|exposed|steps|tight|tight,written]\n");
        return 2;
    }
    brg_scope *scope = brg_scope_begin();
    brg_status status = connect(&base);
    const int n = take_modes(all, &base, argv[3]);
    if (status == BRG_OK)
        status = run(all, n, atoi(argv[2]), argc > 4 ? atoi(argv[4]) : 30,
                     argc > 5 ? atoi(argv[5]) : 3);
    if (status != BRG_OK)
        fprintf(stderr, "gpu_training: %s (%s)\n", brg_error_message(),
                brg_status_name(status));
    for (int i = 0; i < n; i++)
        destroy(&all[i]);
    brg_scope_end(scope);
    brg_pg_destroy(base.pg);
    brg_pg_destroy(base.over);
    return status == BRG_OK ? 0 : 1;
}
