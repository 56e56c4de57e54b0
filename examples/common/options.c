/* SPDX-License-Identifier: Apache-2.0
 * Parsing of options: numbers are checked completely, messages name the
 * option, what was given and what is expected. */
#include "common/options.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <brigade/runtime.h>

#include "common/world.h"

#define EXIT_USAGE 2
#define DEFAULT_LEAVES 8

enum {
    KEY_DATA = 256,
    KEY_BACKEND,
    KEY_CHECKPOINT,
    KEY_RESUME,
    KEY_LOG_LOSSES,
    KEY_METRICS,
    KEY_TRACE,
    KEY_PROFILE,
    KEY_BUCKETS,
    KEY_OPTIMIZER,
    KEY_EPOCHS,
    KEY_BATCH,
    KEY_STEPS,
    KEY_EVAL_EVERY,
    KEY_LOSS_EVERY,
    KEY_SEED,
    KEY_REDUCTION,
    KEY_LEAVES,
    KEY_LR,
    KEY_EVAL_ONLY,
    KEY_COMPILE,
    KEY_DEVICE,
    KEY_NO_PROGRESS
};

static const struct argp_option option_rows[] = {
    {0, 0, 0, 0, "Training:", 1},
    {"epochs", KEY_EPOCHS, "N", 0, "Passes over the data, in all", 1},
    {"steps", KEY_STEPS, "N", 0,
     "Stop after N steps, those before --resume included", 1},
    {"eval-every", KEY_EVAL_EVERY, "N", 0,
     "Evaluate and write the checkpoint every N steps too", 1},
    {"loss-every", KEY_LOSS_EVERY, "N", 0,
     "On a GPU: read and check the loss every N steps (1); the host waits only "
     "then",
     1},
    {"batch", KEY_BATCH, "N", 0, "Samples of a step, all ranks together", 1},
    {"optimizer", KEY_OPTIMIZER, "NAME", 0, "sgd or adamw", 1},
    {"lr", KEY_LR, "X", 0, "Learning rate", 1},
    {"seed", KEY_SEED, "N", 0, "Of the initial values and the data order", 1},
    {"reduction", KEY_REDUCTION, "NAME", 0,
     "default, or reproducible: the same weights, bit for bit, from any number "
     "of ranks",
     1},
    {"leaves", KEY_LEAVES, "N", 0,
     "Parts of a batch whose gradients the reproducible reduction adds (8)", 1},
    {0, 0, 0, 0, "Files:", 2},
    {"data", KEY_DATA, "PATH", 0, "The data", 2},
    {"checkpoint", KEY_CHECKPOINT, "FILE", 0,
     "Write the state here after each evaluation", 2},
    {"resume", KEY_RESUME, "FILE", 0, "Go on from a checkpoint", 2},
    {"log-losses", KEY_LOG_LOSSES, "FILE", 0,
     "Write the loss of every step here", 2},
    {"metrics", KEY_METRICS, "FILE", 0,
     "Write loss and times of every step here, comma-separated", 2},
    {"profile", KEY_PROFILE, "FILE", 0,
     "Write here when gradients were ready, for brigade plan --simulate", 2},
    {"trace", KEY_TRACE, "FOLDER", 0,
     "Write the newest records of each rank here (see brigade trace)", 2},
    {0, 0, 0, 0, "Running:", 3},
    {"backend", KEY_BACKEND, "NAME", 0,
     "mpi, self or another backend (default: mpi under mpirun, else self)", 3},
    {"device", KEY_DEVICE, "NAME", 0,
     "Where to train: cpu, cuda or cuda:N (default: cpu)", 3},
    {"buckets", KEY_BUCKETS, "NAME", 0,
     "size; measured: chosen after six steps for this network; default: "
     "measured between machines, else size, and size with --profile",
     3},
    {"eval-only", KEY_EVAL_ONLY, 0, 0, "Do not train", 3},
    {"compile", KEY_COMPILE, "WHAT", OPTION_ARG_OPTIONAL,
     "Capture and replay: backward (default); step: the whole one, with the "
     "bits "
     "of eager ones; fused: with kernels of its own, quicker, other last bits",
     3},
    {"no-progress", KEY_NO_PROGRESS, 0, 0, "Only the lines of epochs", 3},
    {0}};

static void reject(const struct argp_state *state, const char *name,
                   const char *text, const char *expected)
{
    argp_failure(state, EXIT_USAGE, 0, "%s is '%s', expected %s", name, text,
                 expected);
}

int64_t options_int(const struct argp_state *state, const char *name,
                    const char *text, int64_t min, int64_t max)
{
    char *end = NULL;
    errno = 0;
    long long value = strtoll(text, &end, 10);
    if (errno != 0 || end == text || *end != '\0' || value < min ||
        value > max) {
        char expected[96];
        snprintf(expected, sizeof expected,
                 max == INT64_MAX ? "a whole number from %lld"
                                  : "a whole number from %lld to %lld",
                 (long long)min, (long long)max);
        reject(state, name, text, expected);
    }
    return value;
}

double options_number(const struct argp_state *state, const char *name,
                      const char *text, double min, double max)
{
    char *end = NULL;
    errno = 0;
    double value = strtod(text, &end);
    if (errno != 0 || end == text || *end != '\0' ||
        !(value >= min && value <= max)) {
        char expected[96];
        snprintf(expected, sizeof expected, "a number from %g to %g", min, max);
        reject(state, name, text, expected);
    }
    return value;
}

const char *options_choice(const struct argp_state *state, const char *name,
                           const char *text, const char *const *names)
{
    char expected[128] = "";
    for (size_t i = 0; names[i] != NULL; i++) {
        if (strcmp(text, names[i]) == 0)
            return names[i];
        size_t used = strlen(expected);
        snprintf(expected + used, sizeof expected - used, "%s%s",
                 i == 0 ? "" : " or ", names[i]);
    }
    reject(state, name, text, expected);
    return names[0];
}

static error_t parse_number(int key, char *arg, const struct argp_state *state,
                            train_options *options)
{
    switch (key) {
    case KEY_EPOCHS:
        options->epochs = options_int(state, "--epochs", arg, 1, 1000000);
        return 0;
    case KEY_STEPS:
        options->steps = options_int(state, "--steps", arg, 1, INT64_MAX);
        return 0;
    case KEY_EVAL_EVERY:
        options->eval_every =
            options_int(state, "--eval-every", arg, 1, INT64_MAX);
        return 0;
    case KEY_LOSS_EVERY:
        options->loss_every =
            options_int(state, "--loss-every", arg, 1, INT64_MAX);
        return 0;
    case KEY_BATCH:
        options->batch = options_int(state, "--batch", arg, 1, 1 << 20);
        return 0;
    case KEY_SEED:
        options->seed = options_int(state, "--seed", arg, 0, INT64_MAX);
        return 0;
    case KEY_LR:
        options->lr = options_number(state, "--lr", arg, 1e-30, 1e37);
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static void choose_reduction(const struct argp_state *state, const char *text,
                             train_options *options)
{
    static const char *const names[] = {"default", "reproducible", NULL};
    const char *name = options_choice(state, "--reduction", text, names);
    options->is_reproducible = strcmp(name, "reproducible") == 0;
}

static void choose_buckets(const struct argp_state *state, const char *text,
                           train_options *options)
{
    static const char *const names[] = {"default", "size", "measured", NULL};
    const char *name = options_choice(state, "--buckets", text, names);
    options->buckets = name == names[1]   ? BRG_BUCKETS_BY_SIZE
                       : name == names[2] ? BRG_BUCKETS_MEASURED
                                          : BRG_BUCKETS_DEFAULT;
}

/* What WHAT stands for; the first one where it is left out. */
static void choose_compiled(const struct argp_state *state, const char *text,
                            train_options *options)
{
    static const char *const names[] = {"backward", "step", "fused", NULL};
    const char *name = text == NULL
                           ? names[0]
                           : options_choice(state, "--compile", text, names);
    options->is_compiled = name == names[0];
    options->is_step_compiled = !options->is_compiled;
    options->is_fused = name == names[2];
}

static error_t parse(int key, char *arg, struct argp_state *state)
{
    static const char *const optimizers[] = {"sgd", "adamw", NULL};
    train_options *options = state->input;
    switch (key) {
    case KEY_DATA:
        options->data = arg;
        return 0;
    case KEY_BACKEND:
        options->backend = arg;
        return 0;
    case KEY_DEVICE:
        options->device = arg;
        return 0;
    case KEY_CHECKPOINT:
        options->checkpoint = arg;
        return 0;
    case KEY_RESUME:
        options->resume = arg;
        return 0;
    case KEY_LOG_LOSSES:
        options->log_losses = arg;
        return 0;
    case KEY_METRICS:
        options->metrics = arg;
        return 0;
    case KEY_TRACE:
        options->trace = arg;
        return 0;
    case KEY_PROFILE:
        options->profile = arg;
        return 0;
    case KEY_BUCKETS:
        choose_buckets(state, arg, options);
        return 0;
    case KEY_OPTIMIZER:
        options->optimizer =
            options_choice(state, "--optimizer", arg, optimizers);
        return 0;
    case KEY_REDUCTION:
        choose_reduction(state, arg, options);
        return 0;
    case KEY_LEAVES:
        options->leaves = options_int(state, "--leaves", arg, 1, 4096);
        return 0;
    case KEY_COMPILE:
        choose_compiled(state, arg, options);
        return 0;
    case KEY_EVAL_ONLY:
        options->is_eval_only = true;
        return 0;
    case ARGP_KEY_END:
        if (options->loss_every == 0)
            options->loss_every = 1;
        if (!options->is_reproducible)
            options->leaves = 0;
        else if (options->leaves == 0)
            options->leaves = DEFAULT_LEAVES;
        return 0;
    case KEY_NO_PROGRESS:
        options->is_quiet = true;
        return 0;
    default:
        return parse_number(key, arg, state, options);
    }
}

const struct argp options_argp = {.options = option_rows, .parser = parse};

static void print_version(FILE *stream, struct argp_state *state)
{
    fprintf(stream, "%s of Brigade %s\n%s", state->name, brg_version(),
            brg_build_info());
}

void options_parse(const struct argp *argp, int argc, char **argv, void *input)
{
    /* On the other ranks argp says the same; let it say so to nobody. */
    if (world_env_rank() > 0) {
        int null = open("/dev/null", O_WRONLY | O_CLOEXEC);
        int saved[2] = {dup(STDOUT_FILENO), dup(STDERR_FILENO)};
        dup2(null, STDOUT_FILENO);
        dup2(null, STDERR_FILENO);
        argp_err_exit_status = EXIT_USAGE;
        argp_parse(argp, argc, argv, 0, NULL, input);
        dup2(saved[0], STDOUT_FILENO);
        dup2(saved[1], STDERR_FILENO);
        close(saved[0]);
        close(saved[1]);
        close(null);
        return;
    }
    argp_program_version_hook = print_version;
    argp_err_exit_status = EXIT_USAGE;
    argp_parse(argp, argc, argv, 0, NULL, input);
}
