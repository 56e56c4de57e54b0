/* SPDX-License-Identifier: Apache-2.0
 * The PowerSGD hook. See comm_hook.h for the formulas.
 *
 *     wire of a bucket   | P of each matrix | the rest as it is | Q of each |
 *                          first round ^^^^^^^^^^^^^^^^^^^^^^^^   second ^^^^
 *
 * M of this rank stays in the error's memory between the rounds. Everything
 * that follows from reduced numbers has the same bits on all ranks. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "core/base/alloc.h"
#include "core/base/error.h"
#include "core/tensor/tensor.h"
#include "reducer/hooks/hook.h"

#define MAX_RANK 64

/* A parameter. */
typedef struct part {
    size_t count;
    size_t n; /* rows; 0: it goes as it is */
    size_t m; /* columns */
    float *error;
    float *q; /* m x rank */
    uint64_t seed;
} part;

typedef struct powersgd {
    brg_powersgd_options options;
    char name[80];
    brg__hook_state state;
    BRG__ARRAY(part) parts; /* by parameter */
    int64_t *steps;         /* of the state: begun so far */
    bool is_plain;          /* this step */
} powersgd;

/* ---- State -------------------------------------------------------------------- */

static void draw(float *q, size_t n, uint64_t seed)
{
    for (size_t i = 0; i < n; i++) { /* splitmix64 */
        uint64_t z = (seed += 0x9E3779B97F4A7C15u);
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
        z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
        q[i] = (float)((double)(z ^ (z >> 31)) * 0x1p-63 - 1.0);
    }
}

/* Matrix and worth it? */
static bool is_low_rank(const powersgd *h, const brg_hook_param *p)
{
    if (p->dtype != BRG_DTYPE_F32 || p->n_rows < 2 ||
        p->count % p->n_rows != 0 || p->count / p->n_rows < 2)
        return false;
    double sent = (double)(p->n_rows + p->count / p->n_rows) * h->options.rank;
    return sent * h->options.min_saving <= (double)p->count;
}

static brg_status make_part(powersgd *h, part *filled, const brg_hook_param *p,
                            size_t i)
{
    *filled = (part){.count = p->count};
    if (!is_low_rank(h, p))
        return BRG_OK;
    brg_tensor *error, *q;
    bool is_new;
    size_t r = (size_t)h->options.rank, m = p->count / p->n_rows;
    BRG_TRY(brg__hook_state_get(&h->state, &error, "error", p->name,
                                BRG_DTYPE_F32, p->count, &is_new));
    BRG_TRY(brg__hook_state_get(&h->state, &q, "q", p->name, BRG_DTYPE_F32,
                                m * r, &is_new));
    filled->n = p->n_rows;
    filled->m = m;
    filled->error = brg_tensor_data(error);
    filled->q = brg_tensor_data(q);
    filled->seed = h->options.seed + 1000003u * (i + 1);
    if (is_new)
        draw(filled->q, m * r, filled->seed);
    return BRG_OK;
}

static brg_status powersgd_attach(void *user, const brg_hook_param *params,
                                  size_t n)
{
    powersgd *h = user;
    brg_tensor *steps;
    bool is_new;
    BRG_TRY(brg__hook_state_get(&h->state, &steps, "steps", "", BRG_DTYPE_I64,
                                1, &is_new));
    h->steps = brg_tensor_data(steps);
    h->parts.n = 0;
    for (size_t i = 0; i < n; i++) {
        part p;
        BRG_TRY(make_part(h, &p, &params[i], i));
        BRG_TRY(brg__array_push(&h->parts, p));
    }
    return BRG_OK;
}

/* ---- Small matrices --------------------------------------------------------------- */

/* P (n x r) = M (n x m) Q (m x r). */
static void times(float *p, const float *matrix, const float *q, size_t n,
                  size_t m, size_t r)
{
    for (size_t i = 0; i < n; i++) {
        float sum[MAX_RANK] = {0};
        for (size_t k = 0; k < m; k++)
            for (size_t j = 0; j < r; j++)
                sum[j] += matrix[i * m + k] * q[k * r + j];
        memcpy(p + i * r, sum, r * sizeof *p);
    }
}

/* Q (m x r) = M^T P. */
static void transposed_times(float *q, const float *matrix, const float *p,
                             size_t n, size_t m, size_t r)
{
    memset(q, 0, m * r * sizeof *q);
    for (size_t i = 0; i < n; i++)
        for (size_t k = 0; k < m; k++)
            for (size_t j = 0; j < r; j++)
                q[k * r + j] += matrix[i * m + k] * p[i * r + j];
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

/* Columns by Gram and Schmidt, twice, since once leaves what rounding makes of
 * it. A column of which next to nothing is left is rounding, and becomes zero:
 * blown up it would lie along the others. */
static void orthogonalise(float *p, size_t n, size_t r)
{
    for (size_t j = 0; j < r; j++) {
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

/* ---- A bucket ------------------------------------------------------------------------ */

/* Walks the parts of a bucket and their places on the wire. */
typedef struct walk {
    float *p;
    float *rest;
    float *q;
    size_t n_first; /* elements of the first round */
    size_t n_second;
} walk;

static walk walk_begin(const powersgd *h, const brg_hook_bucket *b)
{
    size_t n_p = 0, n_rest = 0, n_q = 0, r = (size_t)h->options.rank;
    for (size_t k = 0; k < b->n_params; k++) {
        const part *p = &h->parts.at[b->params[k]];
        n_p += p->n * r;
        n_q += p->m * r;
        n_rest += p->n ? 0 : p->count;
    }
    float *wire = b->wire;
    return (walk){.p = wire,
                  .rest = wire ? wire + n_p : NULL,
                  .q = wire ? wire + n_p + n_rest : NULL,
                  .n_first = n_p + n_rest,
                  .n_second = n_q};
}

static void walk_past(walk *w, const powersgd *h, const part *p)
{
    w->p += p->n * (size_t)h->options.rank;
    w->q += p->m * (size_t)h->options.rank;
    w->rest += p->n ? 0 : p->count;
}

static bool is_compressed(const powersgd *h, const brg_hook_bucket *b)
{
    return !h->is_plain && b->dtype == BRG_DTYPE_F32 &&
           walk_begin(h, b).n_second > 0;
}

static size_t powersgd_wire_bytes(void *user, const brg_hook_bucket *b)
{
    const powersgd *h = user;
    if (b->dtype != BRG_DTYPE_F32)
        return 0;
    walk w = walk_begin(h, b);
    return w.n_second ? (w.n_first + w.n_second) * sizeof(float) : 0;
}

static void compress(const powersgd *h, const part *p, float *to,
                     const float *gradient)
{
    size_t r = (size_t)h->options.rank;
    bool feeds_back = !h->options.no_error_feedback;
    if (h->options.no_warm_start)
        draw(p->q, p->m * r, p->seed + (uint64_t)*h->steps * 7919u);
    for (size_t i = 0; i < p->count; i++)
        p->error[i] = gradient[i] + (feeds_back ? p->error[i] : 0);
    times(to, p->error, p->q, p->n, p->m, r);
}

static brg_status powersgd_start(void *user, const brg_hook_bucket *b)
{
    powersgd *h = user;
    if (b->index == 0)
        h->is_plain = (*h->steps)++ < h->options.start_step;
    if (!is_compressed(h, b))
        return brg__hook_plain_start(b);
    walk w = walk_begin(h, b);
    size_t n = w.n_first;
    for (size_t k = 0; k < b->n_params; k++) {
        const part *p = &h->parts.at[b->params[k]];
        const float *gradient = (const float *)b->data + b->offsets[k];
        if (p->n)
            compress(h, p, w.p, gradient);
        else if (p->count)
            memcpy(w.rest, gradient, p->count * sizeof *gradient);
        walk_past(&w, h, p);
    }
    return brg_all_reduce(b->pg, b->work, b->wire, n, BRG_DTYPE_F32, b->op);
}

static brg_status powersgd_again(void *user, const brg_hook_bucket *b)
{
    const powersgd *h = user;
    if (!is_compressed(h, b))
        return BRG_OK;
    BRG_TRY(brg__hook_wait(b));
    walk w = walk_begin(h, b);
    float *second = w.q;
    size_t n = w.n_second, r = (size_t)h->options.rank;
    for (size_t k = 0; k < b->n_params; k++) {
        const part *p = &h->parts.at[b->params[k]];
        if (p->n) {
            orthogonalise(w.p, p->n, r);
            transposed_times(w.q, p->error, w.p, p->n, p->m, r);
        }
        walk_past(&w, h, p);
    }
    return brg_all_reduce(b->pg, b->work, second, n, BRG_DTYPE_F32, b->op);
}

static bool are_finite(const float *x, size_t n)
{
    float sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += 0 * x[i];
    return sum == 0;
}

/* The error of an average; a sum is world_size times that. After a gradient
 * that was not finite on some rank, all begin anew: nothing else would ever be
 * finite again. */
static void decompress(const powersgd *h, const part *p, float *result,
                       const float *left, const float *right, float share)
{
    size_t r = (size_t)h->options.rank;
    for (size_t i = 0; i < p->n; i++)
        for (size_t k = 0; k < p->m; k++) {
            float sum = 0;
            for (size_t j = 0; j < r; j++)
                sum += left[i * r + j] * right[k * r + j];
            result[i * p->m + k] = sum;
            p->error[i * p->m + k] -= share * sum;
        }
    if (!are_finite(left, p->n * r) || !are_finite(right, p->m * r)) {
        memset(p->error, 0, p->count * sizeof *p->error);
        draw(p->q, p->m * r, p->seed);
    } else if (!h->options.no_warm_start) {
        for (size_t i = 0; i < p->m * r; i++)
            p->q[i] = share * right[i];
    }
}

static brg_status powersgd_finish(void *user, const brg_hook_bucket *b)
{
    const powersgd *h = user;
    BRG_TRY(brg__hook_wait(b));
    if (!is_compressed(h, b))
        return BRG_OK;
    walk w = walk_begin(h, b);
    float share =
        b->op == BRG_REDUCE_SUM ? 1.0f / (float)brg_pg_world_size(b->pg) : 1.0f;
    for (size_t k = 0; k < b->n_params; k++) {
        const part *p = &h->parts.at[b->params[k]];
        float *result = (float *)b->data + b->offsets[k];
        if (p->n)
            decompress(h, p, result, w.p, w.q, share);
        else if (p->count)
            memcpy(result, w.rest, p->count * sizeof *result);
        walk_past(&w, h, p);
    }
    return BRG_OK;
}

/* ---- The hook ------------------------------------------------------------------------- */

static const brg_named_tensor *powersgd_state_at(void *user, size_t i)
{
    const powersgd *h = user;
    return brg__hook_state_at(&h->state, i);
}

static void powersgd_destroy(void *user)
{
    powersgd *h = user;
    brg__hook_state_deinit(&h->state);
    brg__array_deinit(&h->parts);
    brg__mem_free(h);
}

static brg_status check_options(const brg_powersgd_options *options)
{
    BRG_CHECK_ARG(options->struct_size != 0,
                  "brg_comm_hook_create_powersgd: options.struct_size is 0; "
                  "start from BRG_POWERSGD_OPTIONS_INIT");
    BRG_CHECK_ARG(options->rank >= 1 && options->rank <= MAX_RANK,
                  "brg_comm_hook_create_powersgd: rank %d, expected 1 to %d",
                  options->rank, MAX_RANK);
    BRG_CHECK_ARG(options->min_saving >= 1,
                  "brg_comm_hook_create_powersgd: min_saving %g, expected 1 "
                  "or more",
                  options->min_saving);
    return BRG_OK;
}

brg_status brg_comm_hook_create_powersgd(brg_comm_hook **out,
                                         const brg_powersgd_options *options)
{
    static const brg_powersgd_options usual = BRG_POWERSGD_OPTIONS_INIT;
    BRG_CHECK_ARG(out, "brg_comm_hook_create_powersgd: out is NULL");
    *out = NULL;
    const brg_powersgd_options *o = options ? options : &usual;
    BRG_TRY(check_options(o));
    powersgd *h = BRG__NEW(powersgd);
    if (!h)
        return BRG_ERR_NOMEM;
    h->options = *o;
    snprintf(h->name, sizeof h->name,
             "powersgd rank %d from %lld saving %g seed %llx %d%d", o->rank,
             (long long)o->start_step, o->min_saving,
             (unsigned long long)o->seed, o->no_warm_start,
             o->no_error_feedback);
    brg_comm_hook_ops ops = {.struct_size = sizeof ops,
                             .name = h->name,
                             .attach = powersgd_attach,
                             .wire_bytes = powersgd_wire_bytes,
                             .start = powersgd_start,
                             .again = powersgd_again,
                             .finish = powersgd_finish,
                             .state_at = powersgd_state_at,
                             .destroy = powersgd_destroy};
    brg_status status = brg_comm_hook_create(out, &ops, h);
    if (status != BRG_OK)
        powersgd_destroy(h);
    return status;
}
