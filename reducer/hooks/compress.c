/* SPDX-License-Identifier: Apache-2.0
 * Passes over gradients on the host, and who does them elsewhere. */
#include "reducer/hooks/compress.h"

#include <math.h>
#include <string.h>

#include "comm/q8.h"
#include "core/base/alloc.h"
#include "core/ops/convert.h"
#include "core/tensor/device.h"

#define BATCH (32 * BRG__Q8_N) /* elements on the stack at once */

static size_t batch_of(size_t count, size_t from)
{
    return count - from < BATCH ? count - from : BATCH;
}

static char *data_of(const brg_compress_job *job, const brg_compress_part *p,
                     size_t i)
{
    return (char *)p->data + i * brg_dtype_size(job->dtype);
}

/* ---- Element by element ------------------------------------------------------ */

/* m gradients from i on in f32, and their errors. */
static void take(float *x, const brg_compress_job *job,
                 const brg_compress_part *p, size_t i, size_t m)
{
    brg__convert_row(x, BRG_DTYPE_F32, data_of(job, p, i), job->dtype, m);
    for (size_t k = 0; p->error && k < m; k++)
        x[k] += p->error[i + k];
}

/* What is not finite would never leave the error again. */
static void to_half(const brg_compress_job *job, const brg_compress_part *p)
{
    float x[BATCH], rounded[BATCH];
    uint16_t *wire = p->wire;
    for (size_t i = 0; i < p->count; i += BATCH) {
        size_t m = batch_of(p->count, i);
        take(x, job, p, i, m);
        brg__convert_row(wire + i, job->wire_dtype, x, BRG_DTYPE_F32, m);
        brg__convert_row(rounded, BRG_DTYPE_F32, wire + i, job->wire_dtype, m);
        for (size_t k = 0; p->error && k < m; k++) {
            float left = x[k] - rounded[k];
            p->error[i + k] = isfinite(left) ? left : 0;
        }
    }
    if (p->room > p->count)
        memset(wire + p->count, 0, (p->room - p->count) * sizeof *wire);
}

static void to_q8(const brg_compress_job *job, const brg_compress_part *p)
{
    float x[BATCH];
    char *blocks = p->wire;
    for (size_t i = 0; i < p->count; i += BATCH) {
        size_t m = batch_of(p->count, i);
        take(x, job, p, i, m);
        brg__q8_store(blocks, x, p->error ? p->error + i : NULL, m,
                      (uint16_t)*job->steps);
        blocks += brg__q8_blocks(m) * BRG__Q8_NBYTES;
    }
}

static void from_q8(const brg_compress_job *job, const brg_compress_part *p)
{
    float x[BATCH];
    const char *blocks = p->wire;
    for (size_t i = 0; i < p->count; i += BATCH) {
        size_t m = batch_of(p->count, i);
        brg__q8_load(x, blocks, m);
        brg__convert_row(data_of(job, p, i), job->dtype, x, BRG_DTYPE_F32, m);
        blocks += brg__q8_blocks(m) * BRG__Q8_NBYTES;
    }
}

/* ---- Low rank ------------------------------------------------------------------- */

static void add(const brg_compress_job *job, const brg_compress_part *p)
{
    const float *data = p->data;
    if (!p->n) {
        if (p->count)
            memcpy(p->wire, data, p->count * sizeof *data);
        return;
    }
    for (size_t i = 0; i < p->count; i++)
        p->error[i] = data[i] + (job->is_kept ? p->error[i] : 0);
}

static void draw(const brg_compress_job *job, const brg_compress_part *p)
{
    uint64_t seed = p->seed;
    for (size_t i = 0; i < p->m * (size_t)job->rank; i++) { /* splitmix64 */
        uint64_t z = (seed += 0x9E3779B97F4A7C15u);
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
        z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
        p->q[i] = (float)((double)(z ^ (z >> 31)) * 0x1p-63 - 1.0);
    }
}

static double dot(const float *p, size_t n, size_t r, size_t a, size_t b)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += (double)p[i * r + a] * p[i * r + b];
    return sum;
}

/* Column j without its parts along the columns before. */
static void project(float *p, size_t n, size_t r, size_t j)
{
    for (size_t k = 0; k < j; k++) {
        double d = dot(p, n, r, k, j);
        for (size_t i = 0; i < n; i++)
            p[i * r + j] -= (float)(d * p[i * r + k]);
    }
}

/* Twice, since once leaves what rounding makes of it. A column of which next to
 * nothing is left is rounding, and becomes zero: blown up it would lie along
 * the others. */
static void orthogonalise(const brg_compress_job *job,
                          const brg_compress_part *part)
{
    float *p = part->left;
    size_t n = part->n, r = (size_t)job->rank;
    for (size_t j = 0; part->n && j < r; j++) {
        double before = dot(p, n, r, j, j);
        project(p, n, r, j);
        bool is_noise = dot(p, n, r, j, j) <= 1e-8 * before;
        project(p, n, r, j);
        double after = is_noise ? 0 : dot(p, n, r, j, j);
        double scale = after > 0 ? 1 / sqrt(after) : 0;
        for (size_t i = 0; i < n; i++)
            p[i * r + j] = (float)(p[i * r + j] * scale);
    }
}

static bool are_finite(const float *x, size_t n)
{
    float sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += 0 * x[i];
    return sum == 0;
}

static void judge(const brg_compress_job *job, const brg_compress_part *p)
{
    size_t r = (size_t)job->rank;
    if (p->n)
        *p->finite =
            are_finite(p->left, p->n * r) && are_finite(p->right, p->m * r);
}

static void expand(const brg_compress_job *job, const brg_compress_part *p)
{
    float *result = p->data;
    size_t r = (size_t)job->rank;
    if (!p->n && p->count)
        memcpy(result, p->wire, p->count * sizeof *result);
    for (size_t i = 0; i < p->n; i++)
        for (size_t k = 0; k < p->m; k++) {
            float sum = 0, *error = &p->error[i * p->m + k];
            for (size_t j = 0; j < r; j++)
                sum += p->left[i * r + j] * p->right[k * r + j];
            result[i * p->m + k] = sum;
            *error = *p->finite != 0 ? *error - job->share * sum : 0;
        }
}

static void warm(const brg_compress_job *job, const brg_compress_part *p)
{
    if (p->n && *p->finite == 0)
        draw(job, p);
    else if (job->is_kept)
        for (size_t i = 0; i < p->m * (size_t)job->rank; i++)
            p->q[i] = job->share * p->right[i];
}

/* ---- All of a job ------------------------------------------------------------------ */

void brg__compress_host(const brg_compress_job *job)
{
    static void (*const rules[])(const brg_compress_job *,
                                 const brg_compress_part *) = {
        [BRG_COMPRESS_TO_HALF] = to_half, [BRG_COMPRESS_TO_Q8] = to_q8,
        [BRG_COMPRESS_FROM_Q8] = from_q8, [BRG_COMPRESS_ADD] = add,
        [BRG_COMPRESS_DRAW] = draw,       [BRG_COMPRESS_ORTHO] = orthogonalise,
        [BRG_COMPRESS_JUDGE] = judge,     [BRG_COMPRESS_EXPAND] = expand,
        [BRG_COMPRESS_WARM] = warm};
    for (size_t i = 0; i < job->n_parts; i++)
        rules[job->rule](job, &job->parts[i]);
}

static brg_status find(brg_device device, const brg_device_vtable **out)
{
    char text[24];
    BRG_TRY(brg__device_find(device, out));
    if ((*out)->compress)
        return BRG_OK;
    return BRG_FAIL(BRG_ERR_UNSUPPORTED,
                    "a communication hook: %s compresses no gradients",
                    brg__device_text(device, text));
}

brg_status brg__compress_check(brg_device device)
{
    const brg_device_vtable *vtable;
    return device.type == BRG_DEVICE_CPU ? BRG_OK : find(device, &vtable);
}

brg_status brg__compress(brg_device device, const brg_compress_job *job)
{
    const brg_device_vtable *vtable;
    if (device.type == BRG_DEVICE_CPU) {
        brg__compress_host(job);
        return BRG_OK;
    }
    BRG_TRY(find(device, &vtable));
    return vtable->compress(device, job);
}

/* ---- The parameters of a hook --------------------------------------------------------- */

brg_status brg__hook_parts_make(brg__hook_parts *parts,
                                const brg_hook_param *params, size_t n)
{
    parts->all.n = parts->now.n = 0;
    parts->device = n ? params[0].device : (brg_device){BRG_DEVICE_CPU, 0};
    BRG_TRY(brg__compress_check(parts->device));
    BRG_TRY(brg__array_reserve(&parts->all, n));
    BRG_TRY(brg__array_reserve(&parts->now, n));
    for (; parts->all.n < n; parts->all.n++)
        parts->all.at[parts->all.n] =
            (brg_compress_part){.count = params[parts->all.n].count};
    return BRG_OK;
}

brg_status brg__hook_parts_feed_back(brg__hook_parts *parts,
                                     const brg_hook_param *params)
{
    for (size_t i = 0; i < parts->all.n; i++) {
        brg_tensor *error;
        bool is_new;
        if (!brg__hook_is_wide(params[i].dtype))
            continue;
        BRG_TRY(
            brg__hook_state_get(&parts->state, &error,
                                &(brg__hook_entry){.kind = "error",
                                                   .name = params[i].name,
                                                   .dtype = BRG_DTYPE_F32,
                                                   .count = params[i].count,
                                                   .device = params[i].device},
                                &is_new));
        parts->all.at[i].error = brg_tensor_data(error);
    }
    return BRG_OK;
}

const brg_named_tensor *brg__hook_parts_state_at(void *hook, size_t i)
{
    const brg__hook_parts *parts = hook;
    return brg__hook_state_at(&parts->state, i);
}

void brg__hook_parts_destroy(void *hook)
{
    brg__hook_parts *parts = hook;
    brg__hook_state_deinit(&parts->state);
    brg__array_deinit(&parts->all);
    brg__array_deinit(&parts->now);
    brg__mem_free(hook);
}

brg_compress_part *brg__hook_parts_of(brg__hook_parts *parts,
                                      const brg_hook_bucket *b,
                                      brg_compress_job *job)
{
    brg_compress_part *list = parts->now.at;
    for (size_t k = 0; k < b->n_params; k++) {
        list[k] = parts->all.at[b->params[k]];
        list[k].data =
            (char *)b->data + b->offsets[k] * brg_dtype_size(b->dtype);
    }
    *job = (brg_compress_job){
        .dtype = b->dtype, .parts = list, .n_parts = b->n_params};
    return list;
}
