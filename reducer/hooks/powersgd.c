/* SPDX-License-Identifier: Apache-2.0
 * The PowerSGD hook. See comm_hook.h for the formulas.
 *
 *     wire of a bucket   | P of each matrix | the rest as it is | Q of each | flags
 *                          first round ^^^^^^^^^^^^^^^^^^^^^^^^   second ^^^^
 *
 * M of this rank stays in the error's memory between the rounds. Everything
 * that follows from reduced numbers has the same bits on all ranks. */
#include <stdio.h>
#include <string.h>

#include "core/base/alloc.h"
#include "core/base/error.h"
#include "core/ops/op.h"
#include "reducer/device_row.h"
#include "reducer/hooks/compress.h"

#define MAX_RANK 64

typedef struct powersgd {
    brg__hook_parts parts; /* by parameter */
    brg_powersgd_options options;
    char name[80];
    int64_t *steps; /* of the state: begun so far; in host memory */
    bool is_plain;  /* this step */
} powersgd;

/* ---- State -------------------------------------------------------------------- */

/* Matrix and worth it? */
static bool is_low_rank(const powersgd *h, const brg_hook_param *p)
{
    if (p->dtype != BRG_DTYPE_F32 || p->n_rows < 2 ||
        p->count % p->n_rows != 0 || p->count / p->n_rows < 2)
        return false;
    double sent = (double)(p->n_rows + p->count / p->n_rows) * h->options.rank;
    return sent * h->options.min_saving <= (double)p->count;
}

static brg_status draw(const powersgd *h, const brg_compress_part *p)
{
    return brg__compress(h->parts.device,
                         &(brg_compress_job){.rule = BRG_COMPRESS_DRAW,
                                             .parts = p,
                                             .n_parts = 1,
                                             .rank = h->options.rank});
}

static brg_status make_part(powersgd *h, brg_compress_part *filled,
                            const brg_hook_param *p, size_t i)
{
    if (!is_low_rank(h, p))
        return BRG_OK;
    brg_tensor *error, *q;
    bool is_new;
    size_t r = (size_t)h->options.rank, m = p->count / p->n_rows;
    brg__hook_entry wanted = {.kind = "error",
                              .name = p->name,
                              .dtype = BRG_DTYPE_F32,
                              .count = p->count,
                              .device = p->device};
    BRG_TRY(brg__hook_state_get(&h->parts.state, &error, &wanted, &is_new));
    wanted.kind = "q";
    wanted.count = m * r;
    BRG_TRY(brg__hook_state_get(&h->parts.state, &q, &wanted, &is_new));
    filled->n = p->n_rows;
    filled->m = m;
    filled->error = brg_tensor_data(error);
    filled->q = brg_tensor_data(q);
    filled->seed = h->options.seed + 1000003u * (i + 1);
    return is_new ? draw(h, filled) : BRG_OK;
}

static brg_status powersgd_attach(void *user, const brg_hook_param *params,
                                  size_t n)
{
    powersgd *h = user;
    brg_tensor *steps;
    bool is_new;
    BRG_TRY(brg__hook_parts_make(&h->parts, params, n));
    BRG_TRY(brg__hook_state_get(
        &h->parts.state, &steps,
        &(brg__hook_entry){
            .kind = "steps", .name = "", .dtype = BRG_DTYPE_I64, .count = 1},
        &is_new));
    h->steps = brg_tensor_data(steps);
    for (size_t i = 0; i < n; i++)
        BRG_TRY(make_part(h, &h->parts.all.at[i], &params[i], i));
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

/* a (rows, cols) of a device, as a tensor without an owner. */
static brg_tensor *matrix_of(brg__device_row *filled, brg_device device,
                             float *at, size_t rows, size_t cols)
{
    (void)brg__device_row_of(filled, device, at, BRG_DTYPE_F32, rows * cols);
    brg_tensor *t = &filled->tensor;
    t->ndim = 2;
    t->shape[0] = (int64_t)rows;
    t->shape[1] = t->stride[0] = (int64_t)cols;
    t->stride[1] = 1;
    return t;
}

/* out (rows, r) = M q, or M^T q, M (n, m) being the error. */
static brg_status product(const powersgd *h, const brg_compress_part *p,
                          float *out, float *q, bool is_transposed)
{
    size_t r = (size_t)h->options.rank;
    brg_device d = h->parts.device;
    brg__device_row a, b, c;
    brg__run_fn run;
    if (d.type == BRG_DEVICE_CPU) {
        (is_transposed ? transposed_times : times)(out, p->error, q, p->n, p->m,
                                                   r);
        return BRG_OK;
    }
    BRG_TRY(brg__kernel_find(&brg__op_matmul, d, &run));
    brg_attrs attrs = {.i = {is_transposed}};
    brg_tensor *in[] = {matrix_of(&a, d, p->error, p->n, p->m),
                        matrix_of(&b, d, q, is_transposed ? p->n : p->m, r)};
    brg_op_call call = {
        .op = &brg__op_matmul,
        .n_in = 2,
        .n_out = 1,
        .in = in,
        .attrs = &attrs,
        .out = {matrix_of(&c, d, out, is_transposed ? p->m : p->n, r)}};
    return run(&call);
}

/* ---- A bucket ------------------------------------------------------------------------ */

/* Elements of what a bucket has on the wire. */
typedef struct sizes {
    size_t first, second; /* round */
    size_t n_p;           /* of the first */
    size_t n_matrices;
} sizes;

static sizes sizes_of(const powersgd *h, const brg_hook_bucket *b)
{
    sizes s = {0};
    size_t r = (size_t)h->options.rank;
    for (size_t k = 0; k < b->n_params; k++) {
        const brg_compress_part *p = &h->parts.all.at[b->params[k]];
        s.n_p += p->n * r;
        s.first += p->n ? p->n * r : p->count;
        s.second += p->m * r;
        s.n_matrices += p->n > 0;
    }
    return s;
}

static bool is_compressed(const powersgd *h, const brg_hook_bucket *b)
{
    return !h->is_plain && b->dtype == BRG_DTYPE_F32 &&
           sizes_of(h, b).n_matrices > 0;
}

static size_t powersgd_wire_bytes(void *user, const brg_hook_bucket *b)
{
    const powersgd *h = user;
    sizes s = sizes_of(h, b);
    return b->dtype == BRG_DTYPE_F32 && s.n_matrices > 0
               ? (s.first + s.second + s.n_matrices) * sizeof(float)
               : 0;
}

/* The bucket's parts with their places on the wire. */
static sizes begin(powersgd *h, const brg_hook_bucket *b, brg_compress_job *job)
{
    sizes s = sizes_of(h, b);
    size_t r = (size_t)h->options.rank;
    float *left = b->wire, *rest = left + s.n_p, *right = left + s.first,
          *finite = right + s.second;
    brg_compress_part *parts = brg__hook_parts_of(&h->parts, b, job);
    for (size_t k = 0; k < b->n_params; k++) {
        brg_compress_part *p = &parts[k];
        p->wire = rest;
        p->left = left;
        p->right = right;
        p->finite = finite;
        rest += p->n ? 0 : p->count;
        left += p->n * r;
        right += p->m * r;
        finite += p->n > 0;
    }
    job->rank = h->options.rank;
    return s;
}

static brg_status pass(const brg_hook_bucket *b, brg_compress_job *job,
                       brg_compress_rule rule, bool is_kept)
{
    job->rule = rule;
    job->is_kept = is_kept;
    return brg__compress(b->device, job);
}

/* For this step alone: seeds are turned by it. */
static brg_status draw_anew(const powersgd *h, const brg_hook_bucket *b,
                            brg_compress_job *job)
{
    const uint64_t turn = (uint64_t)*h->steps * 7919u;
    brg_compress_part *parts = h->parts.now.at;
    for (size_t k = 0; k < b->n_params; k++)
        parts[k].seed += turn;
    brg_status status = pass(b, job, BRG_COMPRESS_DRAW, false);
    for (size_t k = 0; k < b->n_params; k++)
        parts[k].seed -= turn;
    return status;
}

static brg_status powersgd_start(void *user, const brg_hook_bucket *b)
{
    powersgd *h = user;
    brg_compress_job job;
    if (b->index == 0)
        h->is_plain = (*h->steps)++ < h->options.start_step;
    if (!is_compressed(h, b))
        return brg__hook_plain_start(b);
    sizes s = begin(h, b, &job);
    if (h->options.no_warm_start)
        BRG_TRY(draw_anew(h, b, &job));
    BRG_TRY(pass(b, &job, BRG_COMPRESS_ADD, !h->options.no_error_feedback));
    for (size_t k = 0; k < b->n_params; k++) {
        const brg_compress_part *p = &job.parts[k];
        if (p->n)
            BRG_TRY(product(h, p, p->left, p->q, false));
    }
    return brg_all_reduce(b->pg, b->work, b->wire, s.first, BRG_DTYPE_F32,
                          b->op);
}

static brg_status powersgd_again(void *user, const brg_hook_bucket *b)
{
    powersgd *h = user;
    brg_compress_job job;
    if (!is_compressed(h, b))
        return BRG_OK;
    BRG_TRY(brg__hook_wait(b));
    sizes s = begin(h, b, &job);
    BRG_TRY(pass(b, &job, BRG_COMPRESS_ORTHO, false));
    for (size_t k = 0; k < b->n_params; k++) {
        const brg_compress_part *p = &job.parts[k];
        if (p->n)
            BRG_TRY(product(h, p, p->right, p->left, true));
    }
    return brg_all_reduce(b->pg, b->work, (float *)b->wire + s.first, s.second,
                          BRG_DTYPE_F32, b->op);
}

/* The error of an average; a sum is world_size times that. After a gradient
 * that was not finite on some rank, all begin anew: nothing else would ever be
 * finite again. */
static brg_status powersgd_finish(void *user, const brg_hook_bucket *b)
{
    powersgd *h = user;
    brg_compress_job job;
    BRG_TRY(brg__hook_wait(b));
    if (!is_compressed(h, b))
        return BRG_OK;
    (void)begin(h, b, &job);
    job.share =
        b->op == BRG_REDUCE_SUM ? 1.0f / (float)brg_pg_world_size(b->pg) : 1.0f;
    BRG_TRY(pass(b, &job, BRG_COMPRESS_JUDGE, false));
    BRG_TRY(pass(b, &job, BRG_COMPRESS_EXPAND, false));
    return pass(b, &job, BRG_COMPRESS_WARM, !h->options.no_warm_start);
}

/* ---- Steps launched again ----------------------------------------------------------------- */

/* Steps are counted on the host, which decides by them. */
static brg_status powersgd_version(void *user, uint64_t *version)
{
    const powersgd *h = user;
    if (h->options.no_warm_start)
        return BRG_FAIL(BRG_ERR_UNSUPPORTED,
                        "%s: Q is drawn anew in each step (no_warm_start)",
                        h->name);
    *version = *h->steps < h->options.start_step;
    return BRG_OK;
}

static void powersgd_launched(void *user)
{
    const powersgd *h = user;
    ++*h->steps;
}

/* ---- The hook ------------------------------------------------------------------------- */

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
                             .state_at = brg__hook_parts_state_at,
                             .destroy = brg__hook_parts_destroy,
                             .works_on_devices = true,
                             .version = powersgd_version,
                             .launched = powersgd_launched};
    brg_status status = brg_comm_hook_create(out, &ops, h);
    if (status != BRG_OK)
        brg__hook_parts_destroy(h);
    return status;
}
