/* SPDX-License-Identifier: Apache-2.0
 * References of reductions: see op_ref_shape.h, which includes this. */
#ifndef BRG_TESTS_CORE_OP_REF_REDUCE_H
#define BRG_TESTS_CORE_OP_REF_REDUCE_H

#include "tests/core/op_ref_shape.h"

/* Elements of x that go into element k of y: those whose index agrees with
 * that of k in the dims not in `dims`. */
typedef struct ref_group {
    size_t n;
    double *v;
} ref_group;

static void ref_reduce(op_values *y, const op_values *x, unsigned dims,
                       bool keepdim, double (*fn)(const ref_group *group))
{
    op_shape kept = {0}, shape = {0};
    for (int d = 0; d < x->shape.ndim; d++) {
        bool is_reduced = dims >> d & 1u;
        kept.size[kept.ndim++] = is_reduced ? 1 : x->shape.size[d];
        if (!is_reduced || keepdim)
            shape.size[shape.ndim++] = is_reduced ? 1 : x->shape.size[d];
    }
    op_values_init(y, shape.ndim, shape.size);
    ref_group group = {.v = calloc(x->n + 1, sizeof(double))};
    for (size_t k = 0; k < y->n; k++) {
        group.n = 0;
        int64_t at[8];
        ref_index(&kept, k, at);
        for (size_t m = 0; m < x->n; m++) {
            int64_t i[8] = {0};
            bool belongs = true;
            ref_index(&x->shape, m, i);
            for (int d = 0; d < x->shape.ndim; d++)
                belongs = belongs && ((dims >> d & 1u) || i[d] == at[d]);
            if (belongs)
                group.v[group.n++] = x->v[m];
        }
        y->v[k] = fn(&group);
    }
    free(group.v);
}

static double ref_sum_of(const ref_group *x)
{
    double sum = 0;
    for (size_t i = 0; i < x->n; i++)
        sum += x->v[i];
    return sum;
}

static double ref_mean_of(const ref_group *x)
{
    return ref_sum_of(x) / (double)x->n;
}

static double ref_max_of(const ref_group *x)
{
    double most = x->v[0];
    for (size_t i = 1; i < x->n; i++)
        most = x->v[i] > most ? x->v[i] : most;
    return most;
}

static double ref_min_of(const ref_group *x)
{
    double least = x->v[0];
    for (size_t i = 1; i < x->n; i++)
        least = x->v[i] < least ? x->v[i] : least;
    return least;
}

static double ref_argmax_of(const ref_group *x)
{
    size_t best = 0;
    for (size_t i = 1; i < x->n; i++)
        best = x->v[i] > x->v[best] ? i : best;
    return (double)best;
}

static double ref_argmin_of(const ref_group *x)
{
    size_t best = 0;
    for (size_t i = 1; i < x->n; i++)
        best = x->v[i] < x->v[best] ? i : best;
    return (double)best;
}

static double ref_sum_sq_of(const ref_group *x)
{
    double mean = ref_mean_of(x), sum = 0;
    for (size_t i = 0; i < x->n; i++)
        sum += (x->v[i] - mean) * (x->v[i] - mean);
    return sum;
}

static double ref_var0_of(const ref_group *x)
{
    return ref_sum_sq_of(x) / (double)x->n;
}

static double ref_var1_of(const ref_group *x)
{
    return ref_sum_sq_of(x) / (x->n > 1 ? (double)x->n - 1.0 : 0.0);
}

static double ref_norm_of(const ref_group *x)
{
    double sum = 0;
    for (size_t i = 0; i < x->n; i++)
        sum += x->v[i] * x->v[i];
    return sqrt(sum);
}

#define REF_REDUCE(name, fn, dims, keepdim)                                    \
    static void ref_##name(op_values *y, const op_values *x)                   \
    {                                                                          \
        ref_reduce(y, &x[0], (dims), (keepdim), (fn));                         \
    }

REF_REDUCE(sum_all, ref_sum_of, ~0u, false)
REF_REDUCE(sum_0, ref_sum_of, 1u, false)
REF_REDUCE(sum_1, ref_sum_of, 2u, false)
REF_REDUCE(sum_02, ref_sum_of, 5u, true)
REF_REDUCE(sum_01, ref_sum_of, 3u, false)
REF_REDUCE(mean_all, ref_mean_of, ~0u, false)
REF_REDUCE(mean_0, ref_mean_of, 1u, false)
REF_REDUCE(mean_12, ref_mean_of, 6u, true)
REF_REDUCE(amax_1, ref_max_of, 2u, false)
REF_REDUCE(amax_02, ref_max_of, 5u, true)
REF_REDUCE(amin_0, ref_min_of, 1u, false)
REF_REDUCE(amin_all, ref_min_of, ~0u, false)
REF_REDUCE(argmax_1, ref_argmax_of, 2u, false)
REF_REDUCE(argmin_0, ref_argmin_of, 1u, true)
REF_REDUCE(var1_1, ref_var1_of, 2u, false)
REF_REDUCE(var0_02, ref_var0_of, 5u, true)
REF_REDUCE(norm_1, ref_norm_of, 2u, false)

/* x[0] summed to the shape of x[1]. */
static void ref_sum_to_like(op_values *y, const op_values *x)
{
    op_values_init(y, x[1].shape.ndim, x[1].shape.size);
    int shift = x[0].shape.ndim - y->shape.ndim;
    for (size_t k = 0; k < x[0].n; k++) {
        int64_t i[8], own[8] = {0};
        ref_index(&x[0].shape, k, i);
        for (int d = 0; d < y->shape.ndim; d++)
            own[d] = y->shape.size[d] == 1 ? 0 : i[d + shift];
        *ref_place(y, own) += x[0].v[k];
    }
}

/* 3 g / (numel of x / numel of g - 1) */
static void ref_div_count(op_values *y, const op_values *x)
{
    op_values_init(y, x[0].shape.ndim, x[0].shape.size);
    for (size_t k = 0; k < y->n; k++)
        y->v[k] = 3.0 * x[0].v[k] / ((double)x[1].n / (double)x[0].n - 1.0);
}

#endif
