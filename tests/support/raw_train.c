/* SPDX-License-Identifier: Apache-2.0
 * The hand-written trainer, and what it should come to. */
#include "tests/support/raw_train.h"

#include <stdlib.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "tests/support/leaf_oracle.h"
#include "tests/support/ranks.h"

#define N_THREADS 3

const brg_dtype raw_dtypes[RAW_N] = {
    BRG_DTYPE_F32, BRG_DTYPE_BF16, BRG_DTYPE_F64, BRG_DTYPE_F16, BRG_DTYPE_F32};
const size_t raw_counts[RAW_N] = {RAW_MAX, 33, 5, 70, 1};

/* Thirds, so that no sum of them is exact. */
static double gradient(double weight, uint32_t leaf, int step, size_t i,
                       size_t k)
{
    return ranks_gradient((int)leaf, step, i, k) / 3 + weight * 0.01;
}

static void first_weights(double weights[RAW_N][RAW_MAX])
{
    for (size_t i = 0; i < RAW_N; i++)
        for (size_t k = 0; k < raw_counts[i]; k++)
            weights[i][k] = ranks_gradient(77, 0, i, k);
}

static double round_to(brg_dtype dtype, double x)
{
    double room;
    ranks_store(&room, 0, dtype, x);
    return ranks_load(&room, 0, dtype);
}

double raw_train_gradient(const raw_trainer *t, uint32_t leaf, int step,
                          size_t i, size_t k)
{
    return round_to(raw_dtypes[i],
                    gradient(t->weights[i][k], leaf, step, i, k));
}

static void update(double *weight, double grad)
{
    *weight -= 0.1 * grad;
}

/* ---- Training ------------------------------------------------------------------ */

brg_status raw_trainer_init(raw_trainer *t, brg_pg *pg, const raw_train *how,
                            const brg_reducer_options *options)
{
    brg_reducer_options complete = BRG_REDUCER_OPTIONS_INIT;
    brg_reducer_param params[RAW_N];
    static const char *const names[RAW_N] = {"fc1.weight", "fc1.bias",
                                             "fc2.weight", "fc2.bias", "scale"};
    *t = (raw_trainer){.how = how, .pg = pg};
    first_weights(t->weights);
    for (size_t i = 0; i < RAW_N; i++)
        params[i] =
            (brg_reducer_param){.name = names[i],
                                .grad = how->in_slots ? NULL : t->memory[i],
                                .count = raw_counts[i],
                                .dtype = raw_dtypes[i]};
    if (options)
        complete = *options;
    complete.first_bucket_bytes = complete.bucket_bytes = how->cap;
    complete.sum = how->sum;
    complete.reduction = BRG_REDUCTION_REPRODUCIBLE;
    complete.n_leaves = how->n_leaves;
    return brg_reducer_create(&t->reducer, pg, params, RAW_N, &complete);
}

void raw_trainer_deinit(raw_trainer *t)
{
    brg_reducer_destroy(t->reducer);
}

void *raw_trainer_grad(const raw_trainer *t, size_t i)
{
    return t->how->in_slots ? brg_reducer_slot(t->reducer, i)
                            : (void *)t->memory[i];
}

brg_status raw_trainer_mark(raw_trainer *t, uint32_t leaf, int step, size_t i)
{
    void *grad = raw_trainer_grad(t, i);
    for (size_t k = 0; k < raw_counts[i]; k++)
        ranks_store(grad, k, raw_dtypes[i],
                    gradient(t->weights[i][k], leaf, step, i, k));
    return brg_reducer_mark_ready(t->reducer, i);
}

typedef struct threaded_leaf {
    raw_trainer *t;
    uint32_t leaf;
    int step;
} threaded_leaf;

static brg_status mark_share(void *user, size_t first)
{
    const threaded_leaf *l = user;
    for (size_t i = first; i < RAW_N; i += N_THREADS)
        BRG_TRY(raw_trainer_mark(l->t, l->leaf, l->step, i));
    return BRG_OK;
}

brg_status raw_trainer_leaf(raw_trainer *t, uint32_t leaf, int step)
{
    if (t->how->has_threads)
        return ranks_by_threads(N_THREADS, mark_share, NULL,
                                &(threaded_leaf){t, leaf, step});
    for (size_t i = 0; i < RAW_N; i++) {
        size_t shifted = (i + leaf + (size_t)step) % RAW_N;
        BRG_TRY(raw_trainer_mark(t, leaf, step, RAW_N - 1 - shifted));
    }
    return BRG_OK;
}

brg_status raw_trainer_step(raw_trainer *t, int step)
{
    bool is_last;
    do {
        uint32_t leaf = 0;
        is_last = brg_reducer_next_leaf(t->reducer, &leaf);
        BRG_TRY(raw_trainer_leaf(t, leaf, step));
        BRG_TRY(is_last ? brg_reducer_wait(t->reducer)
                        : brg_reducer_end_leaf(t->reducer));
    } while (!is_last);
    for (size_t i = 0; i < RAW_N; i++)
        for (size_t k = 0; k < raw_counts[i]; k++)
            update(&t->weights[i][k],
                   ranks_load(raw_trainer_grad(t, i), k, raw_dtypes[i]));
    return BRG_OK;
}

static uint64_t hash_of(const double weights[RAW_N][RAW_MAX])
{
    uint64_t hash = 0;
    for (size_t i = 0; i < RAW_N; i++)
        hash = XXH64(weights[i], raw_counts[i] * sizeof(double), hash);
    return hash;
}

uint64_t raw_trainer_hash(const raw_trainer *t)
{
    return hash_of(t->weights);
}

brg_status raw_train_run(brg_pg *pg, const raw_train *how, uint64_t *hash)
{
    raw_trainer *t = malloc(sizeof *t);
    if (!t)
        return BRG_ERR_NOMEM;
    brg_status status = raw_trainer_init(t, pg, how, NULL);
    for (int step = 0; step < how->n_steps && status == BRG_OK; step++)
        status = raw_trainer_step(t, step);
    if (status == BRG_OK) {
        *hash = raw_trainer_hash(t);
        status = ranks_same_bits(pg, hash, sizeof *hash);
    }
    raw_trainer_deinit(t);
    free(t);
    return status;
}

static brg_status train_rank(brg_pg *pg, const void *how, uint64_t *hash)
{
    return raw_train_run(pg, how, hash);
}

brg_status raw_train_sim(int n, uint64_t seed, const raw_train *how,
                         uint64_t *hash)
{
    brg_sim_options options = BRG_SIM_OPTIONS_INIT;
    options.seed = seed;
    return ranks_sim_training(n, &options, train_rank, how, hash);
}

/* ---- What it should come to -------------------------------------------------------- */

static void expect_one(const raw_train *how, double *weight, int step, size_t i,
                       size_t k)
{
    double leaves[LEAF_ORACLE_MAX];
    brg_dtype dtype = raw_dtypes[i];
    for (uint32_t leaf = 0; leaf < how->n_leaves; leaf++)
        leaves[leaf] = round_to(dtype, gradient(*weight, leaf, step, i, k));
    double sum = leaf_oracle(leaves, how->n_leaves, dtype, !how->sum);
    update(weight, round_to(dtype, sum));
}

uint64_t raw_train_expected(const raw_train *how)
{
    double weights[RAW_N][RAW_MAX];
    first_weights(weights);
    for (int step = 0; step < how->n_steps; step++)
        for (size_t i = 0; i < RAW_N; i++)
            for (size_t k = 0; k < raw_counts[i]; k++)
                expect_one(how, &weights[i][k], step, i, k);
    return hash_of(weights);
}
