/* SPDX-License-Identifier: Apache-2.0
 * The models that the benchmarks train: MLPs, a CNN, a small GPT. */
#ifndef BRG_BENCH_MODELS_H
#define BRG_BENCH_MODELS_H

#include <brigade/compile.h>
#include <brigade/optim.h>
#include <brigade/reducer.h>
#include <brigade/tensor.h>

#define BENCH_MAX_PARAMS 64
#define BENCH_N_MODELS 4

/* "mlp-a", "mlp-b", "cnn", "gpt". */
extern const char *const bench_model_names[BENCH_N_MODELS];

/* A model, its batch of random data, its optimizer, all owned. */
typedef struct bench_model {
    const char *name;
    brg_params *params;
    brg_tensor *p[BENCH_MAX_PARAMS]; /* borrowed from params, in its order */
    size_t n_params;
    brg_tensor *x, *y;
    brg_tensor *(*loss)(const struct bench_model *m);
    brg_optim *optim;
    brg_ddp *ddp; /* NULL: this rank alone */
    bool is_sharded;
    brg_compiled *whole; /* its step, once one was asked for */
    double last_loss;
} bench_model;

/* How a step runs: op by op, with its backward compiled, or as one plan. */
typedef enum bench_mode { BENCH_EAGER, BENCH_COMPILED, BENCH_WHOLE } bench_mode;

/* Weights depend on the model only, the data on `seed` too. Everything is
 * made in the innermost scope. */
void bench_model_init(bench_model *m, const char *name, uint64_t seed);
/* From now on gradients are averaged over the ranks of pg; BENCH_BUCKET_KB in
 * the environment sets the size of buckets. */
void bench_model_distribute(bench_model *m, brg_pg *pg);
/* The same with AdamW, its state in shards or not. */
void bench_model_distribute_adamw(bench_model *m, brg_pg *pg, bool is_sharded);
void bench_model_deinit(bench_model *m);

/* Forward, backward, update. */
void bench_model_step(bench_model *m);

/* n steps, then checks that all parameters got gradients and that the loss
 * went down. */
void bench_model_warm_up(bench_model *m, int n_steps);

/* Seconds of one step, from n. */
double bench_model_time(bench_model *m, int n_steps);
/* The same in that mode; plans are those of BRG_COMPILE_BACKEND_FUSED. */
double bench_model_time_as(bench_model *m, bench_mode mode, int n_steps);

#endif
