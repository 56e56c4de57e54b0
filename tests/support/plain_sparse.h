/* SPDX-License-Identifier: Apache-2.0
 * The slot `sparse` of a device in plain loops, for one whose memory is the
 * host's (fake_device.h). */
#ifndef BRG_TESTS_SUPPORT_PLAIN_SPARSE_H
#define BRG_TESTS_SUPPORT_PLAIN_SPARSE_H

#include <math.h>
#include <string.h>

#include <brigade/ext/device.h>
#include <brigade/sparse.h>

#include "core/base/dtype.h"

/* ---- Elements ------------------------------------------------------------- */

static inline double plain_get(brg_dtype dtype, const void *at, int64_t i)
{
    if (dtype == BRG_DTYPE_F64)
        return ((const double *)at)[i];
    if (dtype == BRG_DTYPE_F32)
        return (double)((const float *)at)[i];
    const uint16_t bits = ((const uint16_t *)at)[i];
    return (double)(dtype == BRG_DTYPE_F16 ? brg__f16_to_f32(bits)
                                           : brg__bf16_to_f32(bits));
}

static inline void plain_put(brg_dtype dtype, void *at, int64_t i, double v)
{
    if (dtype == BRG_DTYPE_F64)
        ((double *)at)[i] = v;
    else if (dtype == BRG_DTYPE_F32)
        ((float *)at)[i] = (float)v;
    else
        ((uint16_t *)at)[i] = dtype == BRG_DTYPE_F16
                                  ? brg__f32_to_f16((float)v)
                                  : brg__f32_to_bf16((float)v);
}

/* a + b as it is computed for that dtype. */
static inline double plain_plus(brg_dtype dtype, double a, double b)
{
    return dtype == BRG_DTYPE_F64 ? a + b : (double)(float)(a + b);
}

static inline double plain_round(brg_dtype dtype, double v)
{
    double held;
    plain_put(dtype, &held, 0, v);
    return plain_get(dtype, &held, 0);
}

/* ---- Places --------------------------------------------------------------- */

static inline int64_t plain_n_places(const brg_sparse_job *j)
{
    int64_t n = 1;
    for (int d = 0; d < j->n_dims; d++)
        n *= j->shape[d];
    return n;
}

/* Of entry k; the number of places: nowhere. */
static inline int64_t plain_place(const brg_sparse_job *j, int64_t k)
{
    int64_t place = 0;
    for (int d = 0; d < j->n_dims; d++) {
        const int64_t i = j->indices[d * j->nnz + k];
        if (i < 0 || i >= j->shape[d])
            return plain_n_places(j);
        place = place * j->shape[d] + i;
    }
    return place;
}

static inline brg_status plain_fail(int64_t id, int64_t size)
{
    return brg_error_set(BRG_ERR_ARG, __FILE__, __LINE__,
                         "index %lld is out of range [0, %lld)", (long long)id,
                         (long long)size);
}

static inline brg_status plain_check(const brg_sparse_job *j)
{
    for (int64_t at = 0; at < j->n_dims * j->nnz; at++) {
        const int64_t i = j->indices[at], size = j->shape[at / j->nnz];
        if (i != BRG_SPARSE_NO_PLACE && (i < 0 || i >= size))
            return plain_fail(i, size);
    }
    return BRG_OK;
}

static inline brg_status plain_places(const brg_sparse_job *j)
{
    for (int64_t k = 0; k < j->nnz; k++) {
        const int64_t id = j->id_dtype == BRG_DTYPE_I32
                               ? ((const int32_t *)j->from)[k]
                               : ((const int64_t *)j->from)[k];
        if (id < 0 || id >= j->shape[0])
            return plain_fail(id, j->shape[0]);
        ((int64_t *)j->to)[k] = id == j->padding ? BRG_SPARSE_NO_PLACE : id;
    }
    return BRG_OK;
}

static inline void plain_order(const brg_sparse_job *j)
{
    int64_t *place = j->to, *entry = place + j->nnz, *rank = entry + j->nnz;
    for (int64_t k = 0; k < j->nnz; k++) {
        const int64_t mine = plain_place(j, k);
        int64_t to = k;
        for (; to > 0 && place[to - 1] > mine; to--) {
            place[to] = place[to - 1];
            entry[to] = entry[to - 1];
        }
        place[to] = mine;
        entry[to] = k;
    }
    for (int64_t k = 0, n = 0; k < j->nnz; k++) {
        n += place[k] < plain_n_places(j) &&
             (k == 0 || place[k] != place[k - 1]);
        rank[k] = n;
    }
}

/* ---- Entries --------------------------------------------------------------- */

static inline int64_t plain_end(const brg_sparse_job *j, int64_t k)
{
    int64_t end = k + 1;
    while (j->order && end < j->nnz && j->order[end] == j->order[k])
        end++;
    return end;
}

static inline double plain_entry(const brg_sparse_job *j, int64_t k, int64_t at)
{
    const int64_t entry = j->order ? j->order[j->nnz + k] : k;
    return plain_get(j->dtype, j->from, entry * j->size + at);
}

static inline double plain_sum(const brg_sparse_job *j, int64_t k, int64_t at)
{
    double sum = plain_entry(j, k, at);
    for (int64_t i = k + 1, end = plain_end(j, k); i < end; i++)
        sum = plain_plus(j->dtype, sum, plain_entry(j, i, at));
    return plain_round(j->dtype, sum);
}

static inline void plain_add(const brg_sparse_job *j, int64_t k, int64_t to,
                             int64_t at)
{
    const bool is_16 = j->dtype == BRG_DTYPE_F16 || j->dtype == BRG_DTYPE_BF16;
    double sum = plain_get(j->dtype, j->to, to);
    if (is_16)
        sum = plain_plus(j->dtype, sum, j->alpha * plain_sum(j, k, at));
    for (int64_t i = k, end = plain_end(j, k); i < end && !is_16; i++)
        sum = plain_plus(j->dtype, sum, j->alpha * plain_entry(j, i, at));
    plain_put(j->dtype, j->to, to, sum);
}

/* The rules of ext/device.h, in doubles. */
static inline void plain_step(const brg_device_update *u, int64_t i, double g)
{
    const brg_dtype wide =
        u->dtype == BRG_DTYPE_F64 ? BRG_DTYPE_F64 : BRG_DTYPE_F32;
    const double *f = u->f;
    double p = u->master ? plain_get(wide, u->master, i)
                         : plain_get(u->dtype, u->param, i);
    if (u->rule == BRG_UPDATE_ADAMW) {
        double m = f[1] * plain_get(wide, u->state[0], i) + (1 - f[1]) * g;
        double v = f[2] * plain_get(wide, u->state[1], i) + (1 - f[2]) * g * g;
        plain_put(wide, u->state[0], i, m);
        plain_put(wide, u->state[1], i, v);
        p = f[0] * p - f[3] * m / (sqrt(v) * f[4] + f[5]);
    } else {
        double d = g + f[3] * p;
        if (u->state[0]) {
            double b = f[1] * plain_get(wide, u->state[0], i) + f[2] * d;
            plain_put(wide, u->state[0], i, b);
            d = u->rule == BRG_UPDATE_SGD ? b : d + f[1] * b;
        }
        p -= f[0] * d;
    }
    if (u->master)
        plain_put(wide, u->master, i, p);
    plain_put(u->dtype, u->param, i, p);
}

static inline void plain_follow(const brg_device_update *u)
{
    for (int64_t i = 0; u->follows && u->master && i < (int64_t)u->numel; i++)
        if (plain_round(u->dtype, plain_get(BRG_DTYPE_F32, u->master, i)) !=
            plain_get(u->dtype, u->param, i))
            plain_put(BRG_DTYPE_F32, u->master, i,
                      plain_get(u->dtype, u->param, i));
}

/* Element `at` of the entries from k of the order on, of that place. */
static inline void plain_element(const brg_sparse_job *j, int64_t k,
                                 int64_t place, int64_t at)
{
    const int64_t to = place * j->size + at, owned = to - j->first;
    if (j->rule == BRG_SPARSE_ADD)
        plain_add(j, k, to, at);
    else if (j->rule == BRG_SPARSE_SUM)
        plain_put(j->dtype, j->to,
                  (j->order[2 * j->nnz + k] - 1) * j->size + at,
                  plain_sum(j, k, at));
    else if (owned >= 0 && owned < (int64_t)j->update->numel)
        plain_step(j->update, owned, plain_sum(j, k, at));
}

static inline void plain_entries(const brg_sparse_job *j)
{
    for (int64_t k = 0; k < j->nnz; k = plain_end(j, k)) {
        const int64_t entry = j->order ? j->order[j->nnz + k] : k;
        const int64_t place = plain_place(j, entry);
        if (place == plain_n_places(j))
            continue;
        for (int d = 0; d < j->n_dims && j->rule == BRG_SPARSE_SUM; d++)
            j->to_indices[d * j->n + j->order[2 * j->nnz + k] - 1] =
                j->indices[d * j->nnz + entry];
        for (int64_t at = 0; at < j->size; at++)
            plain_element(j, k, place, at);
    }
}

static inline void plain_take(const brg_sparse_job *j)
{
    for (int64_t k = 0; k < j->nnz; k++) {
        const int64_t place = plain_place(j, k);
        for (int64_t at = 0; at < j->size; at++)
            plain_put(j->dtype, j->to, k * j->size + at,
                      place == plain_n_places(j)
                          ? 0.0
                          : plain_get(j->dtype, j->from, place * j->size + at));
    }
}

static inline brg_status plain_sparse(brg_device device,
                                      const brg_sparse_job *j)
{
    (void)device;
    if (j->rule == BRG_SPARSE_CHECK)
        return plain_check(j);
    if (j->rule == BRG_SPARSE_PLACES)
        return plain_places(j);
    if (j->rule == BRG_SPARSE_UPDATE)
        plain_follow(j->update);
    if (j->rule == BRG_SPARSE_ORDER)
        plain_order(j);
    else if (j->rule == BRG_SPARSE_TAKE)
        plain_take(j);
    else
        plain_entries(j);
    return BRG_OK;
}

#endif
