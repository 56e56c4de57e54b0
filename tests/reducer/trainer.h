/* SPDX-License-Identifier: Apache-2.0
 * A hand-written trainer over raw buffers, which the tests of the reducer
 * share: gradients as ranks_gradient says, ready in an order of each rank's
 * own. */
#ifndef BRG_TESTS_REDUCER_TRAINER_H
#define BRG_TESTS_REDUCER_TRAINER_H

#include <brigade/reducer.h>

#include "tests/support/brg_test.h"
#include "tests/support/ranks.h"

#define N_PARAMS 7
#define MAX_COUNT 300

static const brg_dtype dtypes[N_PARAMS] = {
    BRG_DTYPE_F32, BRG_DTYPE_F16, BRG_DTYPE_F32, BRG_DTYPE_BF16,
    BRG_DTYPE_F64, BRG_DTYPE_F32, BRG_DTYPE_F32};
static const size_t counts[N_PARAMS] = {300, 17, 64, 33, 5, 1, 128};
static const char *const names[N_PARAMS] = {
    "embed.weight", "fc1.weight", "fc1.bias",   "fc2.weight",
    "fc2.bias",     NULL,         "head.weight"};

/* A trainer's buffers on one rank. */
typedef struct trainer {
    brg_pg *pg;
    brg_reducer *reducer;
    int rank;
    int world_size;
    size_t n;
    double memory[N_PARAMS][MAX_COUNT]; /* room for any dtype */
    brg_reducer_param params[N_PARAMS];
} trainer;

static inline void trainer_init(trainer *t, brg_pg *pg)
{
    *t = (trainer){.pg = pg,
                   .rank = brg_pg_rank(pg),
                   .world_size = brg_pg_world_size(pg),
                   .n = N_PARAMS};
    for (size_t i = 0; i < t->n; i++)
        t->params[i] = (brg_reducer_param){.name = names[i],
                                           .grad = t->memory[i],
                                           .count = counts[i],
                                           .dtype = dtypes[i]};
}

static inline brg_status trainer_create(trainer *t,
                                        const brg_reducer_options *options)
{
    return brg_reducer_create(&t->reducer, t->pg, t->params, t->n, options);
}

/* Where the trainer keeps gradient i. */
static inline void *grad_of(const trainer *t, size_t i)
{
    return t->params[i].grad ? t->params[i].grad
                             : brg_reducer_slot(t->reducer, i);
}

static inline void fill(trainer *t, int step, size_t i)
{
    for (size_t k = 0; k < counts[i]; k++)
        ranks_store(grad_of(t, i), k, dtypes[i],
                    ranks_gradient(t->rank, step, i, k));
}

static inline void shuffle(size_t *order, size_t n, uint64_t seed)
{
    for (size_t i = 0; i < n; i++)
        order[i] = i;
    for (size_t i = n; i > 1; i--) {
        size_t k = brg_test_random(&seed) % i;
        size_t swap = order[i - 1];
        order[i - 1] = order[k];
        order[k] = swap;
    }
}

/* All gradients in an order of this rank's own. */
static inline brg_status mark_all(trainer *t, int step, uint64_t seed)
{
    size_t order[N_PARAMS];
    shuffle(order, t->n, seed + (uint64_t)(t->rank * 100 + step));
    for (size_t i = 0; i < t->n; i++) {
        fill(t, step, order[i]);
        BRG_TRY(brg_reducer_mark_ready(t->reducer, order[i]));
    }
    return BRG_OK;
}

static inline brg_status check_average(const trainer *t, int step, size_t i)
{
    const void *grad = grad_of(t, i);
    for (size_t k = 0; k < counts[i]; k++) {
        double expected = ranks_average(t->world_size, step, i, k);
        double found = ranks_load(grad, k, dtypes[i]);
        double error = expected > found ? expected - found : found - expected;
        RANK_CHECK(error <= ranks_epsilon(dtypes[i]),
                   "rank %d, step %d: gradient %zu[%zu] is %.9g, expected "
                   "%.9g",
                   t->rank, step, i, k, found, expected);
    }
    return ranks_same_bits(t->pg, grad, counts[i] * brg_dtype_size(dtypes[i]));
}

static inline brg_status check_all(const trainer *t, int step)
{
    for (size_t i = 0; i < t->n; i++)
        BRG_TRY(check_average(t, step, i));
    return BRG_OK;
}

static inline brg_status run_step(trainer *t, int step, uint64_t seed)
{
    BRG_TRY(mark_all(t, step, seed));
    BRG_TRY(brg_reducer_wait(t->reducer));
    return check_all(t, step);
}

/* ---- Values -------------------------------------------------------------------- */

typedef struct run {
    brg_reducer_options options;
    uint64_t seed;
    bool in_slots;
    brg_status (*body)(trainer *t, const struct run *run);
} run;

static inline brg_status run_rank(brg_pg *pg, void *user)
{
    const run *r = user;
    trainer t;
    trainer_init(&t, pg);
    for (size_t i = 0; r->in_slots && i < t.n; i++)
        t.params[i].grad = NULL;
    brg_status status = trainer_create(&t, &r->options);
    if (status == BRG_OK)
        status = r->body(&t, r);
    brg_reducer_destroy(t.reducer);
    return status;
}

static inline void run_worlds(run *r, int smallest)
{
    brg_sim_options options = BRG_SIM_OPTIONS_INIT;
    options.seed = r->seed;
    ranks_in_worlds(smallest, &options, run_rank, r);
}

#endif
