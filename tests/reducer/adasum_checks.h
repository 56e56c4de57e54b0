/* SPDX-License-Identifier: Apache-2.0
 * Adasum on the ranks of any group, against its definition over the gradients
 * of all ranks. */
#ifndef BRG_TESTS_REDUCER_ADASUM_CHECKS_H
#define BRG_TESTS_REDUCER_ADASUM_CHECKS_H

#include <math.h>

#include "tests/reducer/trainer.h"

/* What a rank's gradients are in a step. */
typedef enum adasum_data {
    ADASUM_ANY,
    ADASUM_EQUAL,  /* on every rank: the result is that */
    ADASUM_APART,  /* no two ranks have an element in common: their sum */
    ADASUM_ZEROES, /* of the first rank: the others' */
    ADASUM_N_DATA
} adasum_data;

static inline double adasum_value(adasum_data data, int who, int n, size_t i,
                                  size_t k)
{
    const double x = ranks_gradient(data == ADASUM_EQUAL ? 0 : who, 3, i, k);
    if ((data == ADASUM_APART && (int)(k % (size_t)n) != who) ||
        (data == ADASUM_ZEROES && who == 0))
        return 0;
    return x;
}

/* a is that of ranks [first, last), in the order of a binary tree. */
static inline void adasum_of(double *a, adasum_data data, int first, int last,
                             int n, size_t i)
{
    double b[MAX_COUNT], aa = 0, ab = 0, bb = 0;
    int half = 1;
    while (2 * half < last - first)
        half *= 2;
    for (size_t k = 0; k < counts[i] && last - first == 1; k++)
        a[k] = adasum_value(data, first, n, i, k);
    if (last - first == 1)
        return;
    adasum_of(a, data, first, first + half, n, i);
    adasum_of(b, data, first + half, last, n, i);
    for (size_t k = 0; k < counts[i]; k++) {
        aa += a[k] * a[k];
        ab += a[k] * b[k];
        bb += b[k] * b[k];
    }
    const double of_a = aa > 0 ? 1 - ab / aa / 2 : 1;
    const double of_b = bb > 0 ? 1 - ab / bb / 2 : 1;
    for (size_t k = 0; k < counts[i]; k++)
        a[k] = of_a * a[k] + of_b * b[k];
}

/* What it should be by the definition, and by what it is for. */
static inline double adasum_want(const double *tree, adasum_data data, int n,
                                 size_t i, size_t k)
{
    double sum = 0;
    for (int r = 0; r < n; r++)
        sum += adasum_value(data, r, n, i, k);
    if (dtypes[i] != BRG_DTYPE_F32)
        return sum / n;
    return data == ADASUM_EQUAL   ? adasum_value(data, 0, n, i, k)
           : data == ADASUM_APART ? sum
                                  : tree[k];
}

static inline brg_status adasum_check(const trainer *t, adasum_data data)
{
    const int n = t->world_size;
    for (size_t i = 0; i < t->n; i++) {
        double tree[MAX_COUNT];
        adasum_of(tree, data, 0, n, n, i);
        for (size_t k = 0; k < counts[i]; k++) {
            const double want = adasum_want(tree, data, n, i, k);
            const double got = ranks_load(grad_of(t, i), k, dtypes[i]);
            RANK_CHECK(fabs(got - want) <= ranks_epsilon(dtypes[i]) * 4,
                       "rank %d of %d, data %d: gradient %zu[%zu] is %g, "
                       "expected %g",
                       t->rank, n, (int)data, i, k, got, want);
        }
        BRG_TRY(ranks_same_bits(t->pg, grad_of(t, i),
                                counts[i] * brg_dtype_size(dtypes[i])));
    }
    return BRG_OK;
}

static inline brg_status adasum_steps(trainer *t)
{
    for (int step = 0; step < 2 * ADASUM_N_DATA; step++) {
        const adasum_data data = (adasum_data)(step % ADASUM_N_DATA);
        for (size_t i = 0; i < t->n; i++) {
            for (size_t k = 0; k < counts[i]; k++)
                ranks_store(grad_of(t, i), k, dtypes[i],
                            adasum_value(data, t->rank, t->world_size, i, k));
            BRG_TRY(brg_reducer_mark_ready(t->reducer, i));
        }
        BRG_TRY(brg_reducer_wait(t->reducer));
        BRG_TRY(adasum_check(t, data));
    }
    return BRG_OK;
}

/* Several buckets, then one. */
static inline brg_status check_adasum(brg_pg *pg)
{
    brg_comm_hook *hook;
    brg_status status = BRG_OK;
    BRG_TRY(brg_comm_hook_create_adasum(&hook));
    for (size_t cap = 300; cap <= 300000 && status == BRG_OK; cap *= 1000) {
        trainer t;
        brg_reducer_options options = BRG_REDUCER_OPTIONS_INIT;
        options.first_bucket_bytes = options.bucket_bytes = cap;
        options.hook = hook;
        trainer_init(&t, pg);
        status = trainer_create(&t, &options);
        if (status == BRG_OK)
            status = adasum_steps(&t);
        brg_reducer_destroy(t.reducer);
    }
    brg_comm_hook_destroy(hook);
    return status;
}

/* On every rank alike, and the step is over. */
static inline brg_status check_adasum_of_sums(brg_pg *pg)
{
    trainer t;
    brg_comm_hook *hook;
    brg_reducer_options options = BRG_REDUCER_OPTIONS_INIT;
    BRG_TRY(brg_comm_hook_create_adasum(&hook));
    options.hook = hook;
    options.sum = true;
    trainer_init(&t, pg);
    BRG_TRY(trainer_create(&t, &options));
    brg_status status = BRG_OK;
    for (size_t i = 0; i < t.n && status == BRG_OK; i++)
        status = brg_reducer_mark_ready(t.reducer, i);
    if (status == BRG_OK)
        status = brg_reducer_wait(t.reducer);
    RANK_CHECK(status == BRG_ERR_UNSUPPORTED &&
                   strstr(brg_error_message(), "does not go with options.sum"),
               "%s: %s", brg_status_name(status), brg_error_message());
    brg_reducer_destroy(t.reducer);
    brg_comm_hook_destroy(hook);
    return BRG_OK;
}

#endif
