/* SPDX-License-Identifier: Apache-2.0
 * Trains a classifier on Fashion-MNIST, on as many ranks as mpirun starts:
 *
 *     mpirun -n 2 fashion_mnist --model mlp
 */
#include <stdio.h>
#include <string.h>

#include <brigade/ops.h>

#include "common/options.h"
#include "common/train.h"
#include "data.h"
#include "model.h"

#define EVAL_CHUNK 250

enum { KEY_MODEL = 1024, KEY_DECAY };

typedef struct arguments {
    train_options train;
    const char *model;
    double decay;
} arguments;

typedef struct trainer {
    model model;
    dataset train;
    dataset test;
} trainer;

/* ---- Arguments ----------------------------------------------------------- */

static const struct argp_option option_rows[] = {
    {"model", KEY_MODEL, "NAME", 0, "mlp (784-512-512-10) or cnn", 0},
    {"decay", KEY_DECAY, "X", 0,
     "Factor of the learning rate from one epoch to the next (0.6)", 0},
    {0}};

static error_t parse(int key, char *arg, struct argp_state *state)
{
    static const char *const models[] = {"mlp", "cnn", NULL};
    arguments *args = state->input;
    switch (key) {
    case ARGP_KEY_INIT:
        state->child_inputs[0] = &args->train;
        return 0;
    case KEY_MODEL:
        args->model = options_choice(state, "--model", arg, models);
        return 0;
    case KEY_DECAY:
        args->decay = options_number(state, "--decay", arg, 0.01, 1.0);
        return 0;
    case ARGP_KEY_ARG:
        argp_failure(state, 2, 0, "'%s': only options are expected", arg);
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static void parse_arguments(arguments *out, int argc, char **argv)
{
    static const struct argp_child children[] = {{&options_argp, 0, NULL, 0},
                                                 {0}};
    static const struct argp argp = {
        .options = option_rows,
        .parser = parse,
        .doc = "Trains a classifier on Fashion-MNIST with data parallelism.",
        .children = children};
    *out = (arguments){.model = "mlp",
                       .decay = 0.6,
                       .train = {.data = "/usr/share/datasets/fashion-mnist",
                                 .batch = 128,
                                 .seed = 1}};
    options_parse(&argp, argc, argv, out);
    bool is_cnn = strcmp(out->model, "cnn") == 0;
    if (out->train.epochs == 0)
        out->train.epochs = is_cnn ? 3 : 5;
    if (out->train.optimizer == NULL)
        out->train.optimizer = is_cnn ? "adamw" : "sgd";
    if (out->train.lr == 0)
        out->train.lr = strcmp(out->train.optimizer, "sgd") == 0 ? 0.05 : 1e-3;
}

/* ---- The task ------------------------------------------------------------ */

static brg_status load_batch(void *user, const brg_batch *batch,
                             brg_tensor *data[2])
{
    const trainer *t = user;
    return dataset_batch(&t->train, batch->samples, batch->n, &data[0],
                         &data[1]);
}

static brg_tensor *batch_loss(void *user, brg_tensor *const data[2])
{
    const trainer *t = user;
    return brg_cross_entropy(model_forward(&t->model, data[0]), data[1]);
}

static brg_status evaluate_chunk(const void *user, int64_t first, int64_t n,
                                 eval_sums *sums)
{
    const trainer *t = user;
    int64_t rows[EVAL_CHUNK];
    brg_tensor *images = NULL, *labels = NULL;
    for (int64_t i = 0; i < n; i++)
        rows[i] = first + i;
    BRG_TRY(dataset_batch(&t->test, rows, (size_t)n, &images, &labels));
    brg_tensor *scores = model_forward(&t->model, images);
    brg_tensor *best = brg_argmax(scores, 1, false);
    double loss = 0, n_correct = 0;
    BRG_TRY(brg_tensor_item(brg_cross_entropy(scores, labels), &loss));
    BRG_TRY(brg_tensor_item(brg_sum_all(brg_eq(best, labels)), &n_correct));
    sums->loss += loss * (double)n;
    sums->n_correct += n_correct;
    sums->n += (double)n;
    return BRG_OK;
}

static brg_status evaluate(void *user, const world *w, eval_sums *sums)
{
    const trainer *t = user;
    return train_evaluate(evaluate_chunk, t, t->test.n, EVAL_CHUNK, w, sums);
}

static brg_status load(trainer *t, const arguments *args)
{
    BRG_TRY(dataset_load(&t->train, args->train.data, "train"));
    BRG_TRY(dataset_load(&t->test, args->train.data, "t10k"));
    return model_create(&t->model, args->model, (uint64_t)args->train.seed);
}

static brg_status run(const void *arguments_, world *w)
{
    const arguments *args = arguments_;
    trainer t = {0};
    train_result result = {0};
    brg_status status = world_use_device(args->train.device);
    if (status == BRG_OK)
        status = load(&t, args);
    status = world_agree(w, status);
    if (status == BRG_OK) {
        train_task task = {.model = args->model,
                           .user = &t,
                           .params = t.model.params,
                           .n_samples = t.train.n,
                           .has_accuracy = true,
                           .weight_decay = 1e-4,
                           .epoch_decay = args->decay,
                           .load = load_batch,
                           .loss = batch_loss,
                           .evaluate = evaluate};
        status = train(&result, &task, &args->train, w);
    }
    if (status == BRG_OK) {
        char first[96];
        snprintf(first, sizeof first, "model=%s accuracy=%.4f loss=%.5f",
                 args->model, result.accuracy, result.loss);
        train_print_result(&result, w, first);
    }
    model_free(&t.model);
    dataset_free(&t.train);
    dataset_free(&t.test);
    return status;
}

int main(int argc, char **argv)
{
    arguments args;
    parse_arguments(&args, argc, argv);
    return world_run("fashion_mnist", args.train.backend, run, &args);
}
