/* SPDX-License-Identifier: Apache-2.0
 * Trains a GPT on the bytes of a text, or GPT-2 on its tokens, on as many ranks
 * as mpirun starts:
 *
 *     mpirun -n 2 gpt --data kjv.txt
 *     mpirun -n 2 gpt --config gpt2-124m --dtype bf16 --device cuda \
 *         --batch 32 --data tokens.bin
 *
 * The last 5% of the text are left out of training: the loss there is what is
 * reported. */
#include <stdio.h>
#include <string.h>

#include <brigade/device.h>
#include <brigade/ops.h>

#include "common/options.h"
#include "common/train.h"
#include "model.h"
#include "sample.h"
#include "weights.h"

#define EVAL_CHUNK 16
#define MAX_EVAL_WINDOWS 512

enum {
    KEY_CONFIG = 1024,
    KEY_LAYERS,
    KEY_DIM,
    KEY_HEADS,
    KEY_CONTEXT,
    KEY_VOCAB,
    KEY_DTYPE,
    KEY_WEIGHTS,
    KEY_PEAK,
    KEY_WARM_UP,
    KEY_DECAY_STEPS,
    KEY_CLIP,
    KEY_SAMPLE,
    KEY_TEMPERATURE,
    KEY_PROMPT
};

typedef struct arguments {
    train_options train;
    gpt_config config;
    int token_bytes;     /* of the data */
    const char *weights; /* NULL: random ones */
    double peak_tflops;  /* of a rank's machine; 0: unknown */
    int64_t n_warm_up;
    int64_t n_decay; /* steps until the learning rate is at its end */
    int64_t n_sample;
    double clip;
    double temperature;
    const char *prompt;
} arguments;

/* Windows of T tokens, one behind the other; target i is input i + 1. */
typedef struct trainer {
    gpt model;
    brg_text *text;
    int64_t n_train; /* windows */
    int64_t n_test;
} trainer;

/* ---- Arguments ----------------------------------------------------------- */

static const struct argp_option option_rows[] = {
    {0, 0, 0, 0, "Model:", -1},
    {"config", KEY_CONFIG, "NAME", 0,
     "bytes: 4 blocks of 128, 4 heads, context 64, over bytes (default); "
     "gpt2-124m: 12 blocks of 768, 12 heads, context 1024, over 16-bit tokens. "
     "The options below change it",
     -1},
    {"layers", KEY_LAYERS, "N", 0, "Blocks (4)", -1},
    {"dim", KEY_DIM, "N", 0, "Width (128)", -1},
    {"heads", KEY_HEADS, "N", 0, "Attention heads (4)", -1},
    {"context", KEY_CONTEXT, "N", 0, "Tokens seen at once (64)", -1},
    {"vocab", KEY_VOCAB, "N", 0, "Tokens there are, for gpt2-124m (50257)", -1},
    {"dtype", KEY_DTYPE, "NAME", 0,
     "f32, bf16 or f16, of parameters and activations; the optimizer keeps f32 "
     "copies of those of 16 bits (f32)",
     -1},
    {"weights", KEY_WEIGHTS, "FILE", 0,
     "Start from these: safetensors with the names of the published GPT-2", -1},
    {"peak-tflops", KEY_PEAK, "X", 0,
     "What a rank's processor can do: for the share of it that is used (on a "
     "GPU what H100 and H200 do, dense and without TF32: 989 of 16 bits, 67 of "
     "f32)",
     -1},
    {0, 0, 0, 0, "Learning:", 0},
    {"warm-up", KEY_WARM_UP, "N", 0, "Steps of rising learning rate (50)", 0},
    {"decay-steps", KEY_DECAY_STEPS, "N", 0,
     "Steps after which the learning rate is at a tenth (default: --steps)", 0},
    {"clip", KEY_CLIP, "X", 0, "Limit of the gradients' norm; 0: none (1)", 0},
    {0, 0, 0, 0, "Sample:", 0},
    {"sample", KEY_SAMPLE, "N", 0, "Bytes to write at the end (300)", 0},
    {"temperature", KEY_TEMPERATURE, "X", 0, "0: no chance (0.8)", 0},
    {"prompt", KEY_PROMPT, "TEXT", 0, "What the sample begins with", 0},
    {0}};

static error_t parse_learning(int key, char *arg,
                              const struct argp_state *state, arguments *args)
{
    switch (key) {
    case KEY_WARM_UP:
        args->n_warm_up = options_int(state, "--warm-up", arg, 0, 1 << 30);
        return 0;
    case KEY_DECAY_STEPS:
        args->n_decay = options_int(state, "--decay-steps", arg, 1, 1 << 30);
        return 0;
    case KEY_CLIP:
        args->clip = options_number(state, "--clip", arg, 0, 1e30);
        return 0;
    case KEY_WEIGHTS:
        args->weights = arg;
        return 0;
    case KEY_PEAK:
        args->peak_tflops = options_number(state, "--peak-tflops", arg, 0, 1e9);
        return 0;
    case KEY_SAMPLE:
        args->n_sample = options_int(state, "--sample", arg, 0, 1 << 20);
        return 0;
    case KEY_TEMPERATURE:
        args->temperature = options_number(state, "--temperature", arg, 0, 100);
        return 0;
    case KEY_PROMPT:
        args->prompt = arg;
        if (arg[0] == '\0')
            argp_failure(state, 2, 0, "--prompt is empty");
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static void set_config(const struct argp_state *state, const char *text,
                       arguments *args)
{
    static const char *const names[] = {"bytes", "gpt2-124m", NULL};
    bool is_bytes = options_choice(state, "--config", text, names) == names[0];
    const brg_dtype dtype = args->config.dtype;
    args->token_bytes = is_bytes ? 1 : 2;
    args->config = is_bytes ? (gpt_config){4, 128, 4, 64, GPT_BYTES, 0, dtype}
                            : (gpt_config){12, 768, 12, 1024, 50257, 0, dtype};
}

static void set_dtype(const struct argp_state *state, const char *text,
                      gpt_config *config)
{
    static const char *const names[] = {"f32", "bf16", "f16", NULL};
    const char *name = options_choice(state, "--dtype", text, names);
    config->dtype = name == names[0]   ? BRG_DTYPE_F32
                    : name == names[1] ? BRG_DTYPE_BF16
                                       : BRG_DTYPE_F16;
}

static void finish_config(const struct argp_state *state, arguments *args)
{
    gpt_config *c = &args->config;
    const bool is_bytes = args->token_bytes == 1;
    if (is_bytes && c->n_classes != GPT_BYTES)
        argp_failure(state, 2, 0, "--vocab goes with --config gpt2-124m");
    c->n_rows = (c->n_classes + GPT_PADDING - 1) / GPT_PADDING * GPT_PADDING;
    if (args->n_sample < 0)
        args->n_sample = is_bytes ? 300 : 0;
    if (!is_bytes && args->n_sample > 0)
        argp_failure(state, 2, 0,
                     "--sample writes bytes: it goes with --config "
                     "bytes");
}

static void check_config(const struct argp_state *state, const gpt_config *c)
{
    if (c->dim % c->n_heads != 0)
        argp_failure(state, 2, 0,
                     "--dim is %d, expected a multiple of --heads, %d",
                     (int)c->dim, (int)c->n_heads);
}

static error_t parse(int key, char *arg, struct argp_state *state)
{
    arguments *args = state->input;
    gpt_config *config = &args->config;
    switch (key) {
    case ARGP_KEY_INIT:
        state->child_inputs[0] = &args->train;
        return 0;
    case ARGP_KEY_END:
        check_config(state, config);
        finish_config(state, args);
        return 0;
    case ARGP_KEY_ARG:
        argp_failure(state, 2, 0, "'%s': only options are expected", arg);
        return 0;
    case KEY_CONFIG:
        set_config(state, arg, args);
        return 0;
    case KEY_DTYPE:
        set_dtype(state, arg, config);
        return 0;
    case KEY_VOCAB:
        config->n_classes = options_int(state, "--vocab", arg, 2, 1 << 16);
        return 0;
    case KEY_LAYERS:
        config->n_layers =
            options_int(state, "--layers", arg, 1, GPT_MAX_LAYERS);
        return 0;
    case KEY_DIM:
        config->dim = options_int(state, "--dim", arg, 1, 1 << 14);
        return 0;
    case KEY_HEADS:
        config->n_heads = options_int(state, "--heads", arg, 1, 1 << 10);
        return 0;
    case KEY_CONTEXT:
        config->context = options_int(state, "--context", arg, 1, 1 << 14);
        return 0;
    default:
        return parse_learning(key, arg, state, args);
    }
}

static void parse_arguments(arguments *out, int argc, char **argv)
{
    static const struct argp_child children[] = {{&options_argp, 0, NULL, 0},
                                                 {0}};
    static const struct argp argp = {
        .options = option_rows,
        .parser = parse,
        .doc = "Trains a GPT on a text with data parallelism.",
        .children = children};
    *out = (arguments){.train = {.data = "build/train/kjv.txt",
                                 .optimizer = "adamw",
                                 .lr = 1e-3,
                                 .epochs = 100,
                                 .steps = 1000,
                                 .batch = 32,
                                 .eval_every = 250,
                                 .seed = 1},
                       .config = {4, 128, 4, 64, GPT_BYTES, 0, BRG_DTYPE_F32},
                       .token_bytes = 1,
                       .n_warm_up = 50,
                       .n_sample = -1,
                       .clip = 1.0,
                       .temperature = 0.8,
                       .prompt = "And God said"};
    options_parse(&argp, argc, argv, out);
    if (out->n_decay == 0)
        out->n_decay = out->train.steps;
}

/* ---- The task ------------------------------------------------------------ */

/* The n windows, read on the CPU; `windows` are their numbers. */
static brg_status read_windows(const trainer *t, const int64_t *windows,
                               size_t n, brg_tensor *data[2])
{
    int64_t context = t->model.config.context;
    const int64_t shape[2] = {(int64_t)n, context};
    brg_tensor *starts = brg_from_data(BRG_DTYPE_I64, 1, shape, windows);
    data[0] = brg_empty(BRG_DTYPE_I32, 2, shape);
    data[1] = brg_empty(BRG_DTYPE_I32, 2, shape);
    starts = brg_mul_scalar(starts, (double)context);
    if (starts == NULL || data[0] == NULL || data[1] == NULL)
        return brg_error_code();
    return brg_text_read(t->text, data[0], data[1], brg_tensor_data(starts));
}

/* Their tokens, and those one further on, where the model is. */
static brg_status load_windows(const trainer *t, const int64_t *windows,
                               size_t n, brg_tensor *data[2])
{
    brg_device device = brg_device_get();
    BRG_TRY(brg_device_set((brg_device){BRG_DEVICE_CPU, 0}));
    brg_status status = read_windows(t, windows, n, data);
    BRG_TRY(brg_device_set(device));
    for (int i = 0; i < 2 && status == BRG_OK; i++)
        if ((data[i] = brg_to(data[i], device)) == NULL)
            status = brg_error_code();
    return status;
}

static brg_status load_batch(void *user, const brg_batch *batch,
                             brg_tensor *data[2])
{
    return load_windows(user, batch->samples, batch->n, data);
}

static brg_tensor *batch_loss(void *user, brg_tensor *const data[2])
{
    const trainer *t = user;
    brg_cross_entropy_options options = BRG_CROSS_ENTROPY_OPTIONS_INIT;
    options.n_classes = t->model.config.n_classes;
    return brg_cross_entropy_with(gpt_forward(&t->model, data[0]), data[1],
                                  &options);
}

static brg_status evaluate_chunk(const void *user, int64_t first, int64_t n,
                                 eval_sums *sums)
{
    const trainer *t = user;
    int64_t windows[EVAL_CHUNK];
    double loss = 0;
    for (int64_t i = 0; i < n; i++)
        windows[i] = t->n_train + first + i;
    brg_tensor *data[2] = {NULL, NULL}, *mean;
    BRG_TRY(load_windows(t, windows, (size_t)n, data));
    mean = batch_loss((void *)(uintptr_t)t, data);
    if (mean == NULL)
        return brg_error_code();
    BRG_TRY(brg_tensor_item(mean, &loss));
    sums->loss += loss * (double)n;
    sums->n += (double)n;
    return BRG_OK;
}

static brg_status evaluate(void *user, const world *w, eval_sums *sums)
{
    const trainer *t = user;
    return train_evaluate(evaluate_chunk, t, t->n_test, EVAL_CHUNK, w, sums);
}

static brg_status load(trainer *t, const arguments *args)
{
    BRG_TRY(brg_text_open(&t->text, args->train.data, args->token_bytes));
    int64_t n = (brg_text_length(t->text) - 1) / args->config.context;
    if (n < 20)
        return brg_error_set(BRG_ERR_FORMAT, __FILE__, __LINE__,
                             "%s has %lld %s, expected at least %lld (20 "
                             "times --context)",
                             args->train.data,
                             (long long)brg_text_length(t->text),
                             args->token_bytes == 1 ? "bytes" : "tokens",
                             (long long)(20 * args->config.context + 1));
    t->n_test = n / 20;
    t->n_train = n - t->n_test;
    if (t->n_test > MAX_EVAL_WINDOWS)
        t->n_test = MAX_EVAL_WINDOWS;
    BRG_TRY(gpt_create(&t->model, &args->config, (uint64_t)args->train.seed));
    return args->weights ? weights_load(&t->model, args->weights) : BRG_OK;
}

/* ---- The run ------------------------------------------------------------- */

static brg_status report(const trainer *t, const arguments *args, world *w,
                         const train_result *result)
{
    brg_status status = BRG_OK;
    if (w->rank == 0 && args->n_sample > 0)
        status = sample_print(&t->model, args->prompt, args->n_sample,
                              args->temperature, (uint64_t)args->train.seed);
    BRG_TRY(world_agree(w, status));
    char first[160];
    const double tokens_s = 1e3 *
                            (double)(args->train.batch * args->config.context) /
                            result->step_ms;
    double peak = args->peak_tflops;
    if (peak == 0 && brg_device_get().type == BRG_DEVICE_CUDA)
        peak = t->model.config.dtype == BRG_DTYPE_F32 ? 67 : 989;
    int n =
        snprintf(first, sizeof first, "model=gpt val_loss=%.5f tokens_s=%.0f",
                 result->loss, tokens_s);
    if (peak > 0)
        snprintf(first + n, sizeof first - (size_t)n,
                 " mfu=%.4f peak_tflops=%g",
                 tokens_s * gpt_flops_per_token(&t->model) /
                     (peak * 1e12 * (double)w->size),
                 peak);
    train_print_result(result, w, first);
    return BRG_OK;
}

static brg_status run(const void *arguments_, world *w)
{
    const arguments *args = arguments_;
    trainer t = {0};
    train_result result = {0};
    char model[64];
    const gpt_config *c = &args->config;
    snprintf(model, sizeof model, "gpt-%d-%d-%d-%d-%d-%s", (int)c->n_layers,
             (int)c->dim, (int)c->n_heads, (int)c->context, (int)c->n_classes,
             brg_dtype_name(c->dtype));
    brg_status status = world_use_device(args->train.device);
    if (status == BRG_OK)
        status = load(&t, args);
    status = world_agree(w, status);
    if (status == BRG_OK) {
        train_task task = {.model = model,
                           .user = &t,
                           .params = t.model.params,
                           .n_samples = t.n_train,
                           .clip_norm = args->clip,
                           .weight_decay = 0.1,
                           .schedule = {.lr = args->train.lr,
                                        .lr_min = args->train.lr / 10,
                                        .n_warmup = args->n_warm_up,
                                        .n_steps = args->n_decay},
                           .load = load_batch,
                           .loss = batch_loss,
                           .evaluate = evaluate};
        status = train(&result, &task, &args->train, w);
    }
    if (status == BRG_OK)
        status = report(&t, args, w, &result);
    gpt_free(&t.model);
    brg_text_close(t.text);
    return status;
}

int main(int argc, char **argv)
{
    arguments args;
    parse_arguments(&args, argc, argv);
    return world_run("gpt", args.train.backend, run, &args);
}
