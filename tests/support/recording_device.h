/* SPDX-License-Identifier: Apache-2.0
 * The device made for tests, with graphs: what it is given while it records is
 * written down and done when the graph is launched, and its optimizer (SGD and
 * AdamW on f32) changes parameters. Memory that a graph gives is first filled
 * with NaN by each launch's recording, so that work that was not recorded
 * shows. */
#ifndef BRG_TESTS_SUPPORT_RECORDING_DEVICE_H
#define BRG_TESTS_SUPPORT_RECORDING_DEVICE_H

#include <math.h>

#include "core/tensor/tensor.h"
#include "reducer/hooks/compress.h"
#include "tests/support/device_looks.h"
#include "tests/support/fake_device.h"

#define MAX_JOBS 4096
#define MAX_BLOCKS 1024

typedef struct job {
    brg_op_call call; /* op NULL: a copy, or zeros without `from` */
    brg_attrs attrs;
    brg_tensor *args[BRG_MAX_OP_INPUTS];
    brg_tensor in[BRG_MAX_OP_INPUTS], out[BRG_MAX_OP_OUTPUTS];
    brg__storage in_storage[BRG_MAX_OP_INPUTS];
    brg__storage out_storage[BRG_MAX_OP_OUTPUTS];
    void *to;
    const void *from;
    size_t nbytes;
    brg_device_update *updates; /* an optimizer's step; */
    size_t n_updates;
    double max_norm;                 /* or of these gradients, clipped, */
    double *found;                   /* or measured for that */
    void (*work)(const void *bytes); /* or anything else, on its own copy */
    void *bytes;
} job;

typedef struct block {
    void *at;
    size_t nbytes;
    bool is_used;
} block;

/* A value for the host. */
typedef struct fetched {
    const void *from;
    size_t nbytes;
    void *memory;
} fetched;

typedef struct tape {
    job *jobs[MAX_JOBS];
    size_t n_jobs;
    block blocks[MAX_BLOCKS];
    size_t n_blocks;
    void *freed[MAX_BLOCKS]; /* of others, while it recorded */
    size_t n_freed;
    fetched *later[8]; /* made after the launch */
    size_t n_later;
    bool is_given_up;
    bool is_orphan;
} tape;

static tape *recording, *tapes[8];

/* ---- Memory ------------------------------------------------------------------- */

static void tape_drop_jobs(tape *t)
{
    for (size_t i = 0; i < t->n_jobs; i++) {
        free(t->jobs[i]->updates);
        free(t->jobs[i]->bytes);
        free(t->jobs[i]);
    }
    t->n_jobs = 0;
}

static void tape_free_if_unused(tape *t)
{
    size_t n_used = 0;
    for (size_t i = 0; i < t->n_blocks; i++)
        n_used += t->blocks[i].is_used;
    if (!t->is_orphan || n_used > 0)
        return;
    for (size_t i = 0; i < t->n_blocks; i++)
        fake_free(THERE, t->blocks[i].at, 0);
    for (size_t i = 0; i < sizeof tapes / sizeof *tapes; i++)
        if (tapes[i] == t)
            tapes[i] = NULL;
    free(t);
}

static brg_status record_alloc(brg_device device, void **out, size_t nbytes)
{
    tape *t = recording;
    if (!t)
        return fake_alloc(device, out, nbytes);
    for (size_t i = 0; i < t->n_blocks; i++)
        if (!t->blocks[i].is_used && t->blocks[i].nbytes == nbytes) {
            t->blocks[i].is_used = true;
            *out = t->blocks[i].at;
            return BRG_OK;
        }
    if (t->n_blocks == MAX_BLOCKS)
        abort();
    BRG_TRY(fake_alloc(device, out, nbytes));
    memset(*out, 0xff, nbytes);
    t->blocks[t->n_blocks++] = (block){*out, nbytes, true};
    return BRG_OK;
}

static void record_free(brg_device device, void *ptr, size_t nbytes)
{
    for (size_t k = 0; k < sizeof tapes / sizeof *tapes; k++)
        for (size_t i = 0; tapes[k] && i < tapes[k]->n_blocks; i++)
            if (tapes[k]->blocks[i].at == ptr) {
                tapes[k]->blocks[i].is_used = false;
                tape_free_if_unused(tapes[k]);
                return;
            }
    if (recording)
        recording->freed[recording->n_freed++] = ptr;
    else
        fake_free(device, ptr, nbytes);
}

/* ---- Work ------------------------------------------------------------------------ */

static job *new_job(void)
{
    job *j = calloc(1, sizeof *j);
    if (!j || recording->n_jobs == MAX_JOBS)
        abort();
    recording->jobs[recording->n_jobs++] = j;
    return j;
}

static brg_tensor *twin_of(brg_tensor *t, brg__storage *s,
                           const brg_tensor *from)
{
    if (!from)
        return NULL;
    memcpy(t, from, sizeof *t);
    if (from->storage) {
        memcpy(s, from->storage, sizeof *s);
        t->storage = s;
    }
    return t;
}

static brg_status record_kernel(brg_op_call *call)
{
    if (!recording)
        return run_there(call);
    seen.n_kernels++;
    job *j = new_job();
    j->call = *call;
    j->attrs = *call->attrs;
    j->call.attrs = &j->attrs;
    j->call.in = j->args;
    for (int i = 0; i < call->n_in; i++)
        j->args[i] = twin_of(&j->in[i], &j->in_storage[i], call->in[i]);
    for (int i = 0; i < call->n_out; i++)
        j->call.out[i] = twin_of(&j->out[i], &j->out_storage[i], call->out[i]);
    return BRG_OK;
}

static brg_status (*record_find(const brg_op *op))(brg_op_call *call)
{
    return fake_kernel(op) ? record_kernel : NULL;
}

static inline void record_work(void (*work)(const void *bytes),
                               const void *bytes, size_t nbytes)
{
    job *j = new_job();
    j->work = work;
    j->bytes = malloc(nbytes);
    memcpy(j->bytes, bytes, nbytes);
}

static void update_element(const brg_device_update *u, size_t i)
{
    float *p = u->param, *m = u->state[0], *v = u->state[1];
    const double *f = u->f;
    double g = ((const float *)u->grad)[i];
    if (u->factor)
        g = (double)(float)(g * *u->factor);
    if (u->rule == BRG_UPDATE_ADAMW) {
        m[i] = (float)(f[1] * (double)m[i] + (1 - f[1]) * g);
        v[i] = (float)(f[2] * (double)v[i] + (1 - f[2]) * g * g);
        p[i] =
            (float)(f[0] * (double)p[i] -
                    f[3] * (double)m[i] / (sqrt((double)v[i]) * f[4] + f[5]));
        return;
    }
    double d = g + f[3] * (double)p[i];
    if (m)
        d = m[i] = (float)(f[1] * (double)m[i] + f[2] * d);
    p[i] = (float)((double)p[i] - f[0] * d);
}

static void update_now(const brg_device_update *updates, size_t n)
{
    for (size_t k = 0; k < n; k++)
        for (size_t i = 0; i < updates[k].numel; i++)
            if (!updates[k].found_inf || *updates[k].found_inf == 0)
                update_element(&updates[k], i);
}

static brg_status record_update(brg_device device,
                                const brg_device_update *updates, size_t n)
{
    (void)device;
    if (!recording) {
        update_now(updates, n);
        return BRG_OK;
    }
    job *j = new_job();
    j->updates = malloc(n * sizeof *updates);
    memcpy(j->updates, updates, n * sizeof *updates);
    j->n_updates = n;
    return BRG_OK;
}

/* to[0..2] = the norm and the factor. */
static void factor_now(const brg_device_update *grads, size_t n,
                       double max_norm, double *to)
{
    double sum = 0;
    for (size_t k = 0; k < n; k++)
        for (size_t i = 0; i < grads[k].numel; i++) {
            double g = (double)((const float *)grads[k].grad)[i];
            sum += g * g;
        }
    const double factor = max_norm / (sqrt(sum) + 1e-6);
    to[0] = sqrt(sum);
    to[1] = isfinite(sum) && factor < 1 ? factor : 1;
}

static void clip_now(const brg_device_update *grads, size_t n, double max_norm,
                     double *norm)
{
    double found[2];
    factor_now(grads, n, max_norm, found);
    const double factor = found[1];
    if (norm)
        *norm = found[0];
    for (size_t k = 0; k < n && factor < 1; k++)
        for (size_t i = 0; i < grads[k].numel; i++) {
            float *g = (float *)(uintptr_t)grads[k].grad + i;
            *g = (float)((double)*g * factor);
        }
}

static void do_job(job *j)
{
    if (j->work) {
        j->work(j->bytes);
    } else if (j->found) {
        factor_now(j->updates, j->n_updates, j->max_norm, j->found);
    } else if (j->max_norm > 0) {
        clip_now(j->updates, j->n_updates, j->max_norm, NULL);
    } else if (j->updates) {
        update_now(j->updates, j->n_updates);
    } else if (j->call.op) {
        if (run_there(&j->call) != BRG_OK)
            abort();
        seen.n_kernels--; /* it was counted when the host called it */
    } else if (j->from) {
        memmove(j->to, j->from, j->nbytes);
    } else {
        memset(j->to, 0, j->nbytes);
    }
}

static brg_status tape_launch(brg_device device, void *graph)
{
    tape *t = graph;
    for (size_t i = 0; i < t->n_jobs; i++)
        do_job(t->jobs[i]);
    for (size_t i = 0; i < t->n_freed; i++)
        fake_free(device, t->freed[i], 0);
    for (size_t i = 0; i < t->n_later; i++)
        memcpy(t->later[i]->memory, t->later[i]->from, t->later[i]->nbytes);
    t->n_freed = t->n_later = 0;
    return BRG_OK;
}

static brg_status record_fetch(brg_device device, void **fetch, const void *src,
                               size_t nbytes)
{
    fetched *f = *fetch;
    (void)device;
    if (!f) {
        *fetch = f = calloc(1, sizeof *f);
        f->memory = malloc(nbytes);
    }
    f->from = src;
    f->nbytes = nbytes;
    if (recording)
        recording->later[recording->n_later++] = f;
    else
        memcpy(f->memory, src, nbytes);
    return BRG_OK;
}

static brg_status record_fetched(brg_device device, void *fetch,
                                 const void **out)
{
    (void)device;
    *out = ((fetched *)fetch)->memory;
    return BRG_OK;
}

static void record_fetch_free(brg_device device, void *fetch)
{
    (void)device;
    free(((fetched *)fetch)->memory);
    free(fetch);
}

static void give_up(void)
{
    tape *t = recording;
    if (!t)
        return;
    recording = NULL;
    t->is_given_up = true;
    (void)tape_launch(THERE, t);
}

static job *new_clip(const brg_device_update *grads, size_t n, double max_norm)
{
    job *j = new_job();
    j->updates = malloc(n * sizeof *grads);
    memcpy(j->updates, grads, n * sizeof *grads);
    j->n_updates = n;
    j->max_norm = max_norm;
    return j;
}

static size_t n_clips, n_factors; /* calls */

static brg_status record_clip(brg_device device, const brg_device_update *grads,
                              size_t n, double max_norm, double *norm)
{
    (void)device;
    n_clips++;
    if (norm)
        give_up();
    if (recording)
        (void)new_clip(grads, n, max_norm);
    else
        clip_now(grads, n, max_norm, norm);
    return BRG_OK;
}

static brg_status record_clip_factor(brg_device device,
                                     const brg_device_update *grads, size_t n,
                                     double max_norm, double *to)
{
    (void)device;
    n_factors++;
    if (recording)
        new_clip(grads, n, max_norm)->found = to;
    else
        factor_now(grads, n, max_norm, to);
    return BRG_OK;
}

static brg_status record_copy(brg_device to, void *dst, brg_device from,
                              const void *src, size_t nbytes)
{
    if (to.type != from.type)
        give_up();
    if (!recording)
        return fake_copy(to, dst, from, src, nbytes);
    job *j = new_job();
    j->to = dst;
    j->from = src;
    j->nbytes = nbytes;
    return BRG_OK;
}

static brg_status record_zero(brg_device device, void *ptr, size_t nbytes)
{
    if (!recording)
        return fake_zero(device, ptr, nbytes);
    job *j = new_job();
    j->to = ptr;
    j->nbytes = nbytes;
    return BRG_OK;
}

/* ---- Buffers beside gradients --------------------------------------------------- */

#define MAX_CARGO 4
static size_t n_loads, n_unloads; /* done */

typedef struct cargo_job {
    bool is_load;
    size_t n;
    brg_device_cargo cargo[MAX_CARGO];
} cargo_job;

static void do_cargo(const void *bytes)
{
    const cargo_job *c = bytes;
    brg_status status = c->is_load
                            ? brg__cpu_cargo_load(THERE, c->cargo, c->n)
                            : brg__cpu_cargo_unload(THERE, c->cargo, c->n);
    if (status != BRG_OK)
        abort();
    *(c->is_load ? &n_loads : &n_unloads) += 1;
}

static brg_status take_cargo(const brg_device_cargo *cargo, size_t n,
                             bool is_load)
{
    cargo_job c = {.is_load = is_load, .n = n};
    if (n > MAX_CARGO)
        abort();
    memcpy(c.cargo, cargo, n * sizeof *cargo);
    if (recording)
        record_work(do_cargo, &c, sizeof c);
    else
        do_cargo(&c);
    return BRG_OK;
}

static brg_status record_cargo_load(brg_device device,
                                    const brg_device_cargo *cargo, size_t n)
{
    (void)device;
    return take_cargo(cargo, n, true);
}

static brg_status record_cargo_unload(brg_device device,
                                      const brg_device_cargo *cargo, size_t n)
{
    (void)device;
    return take_cargo(cargo, n, false);
}

/* ---- What is in gradients ---------------------------------------------------------- */

#define MAX_ARRAYS 8

typedef struct looked {
    brg_device_array arrays[MAX_ARRAYS];
    size_t n;
    uint64_t *found;
    int rank;
    float *to;
    double *partials;
} looked;

static looked look_of(const brg_device_array *arrays, size_t n)
{
    looked l = {.n = n};
    if (n > MAX_ARRAYS)
        abort();
    memcpy(l.arrays, arrays, n * sizeof *arrays);
    return l;
}

static void look_now(const void *bytes)
{
    const looked *l = bytes;
    looks_look(l->arrays, l->n, l->found);
}

static void tell_now(const void *bytes)
{
    const looked *l = bytes;
    looks_tell(l->found, l->rank, l->to);
}

static void squares_now(const void *bytes)
{
    const looked *l = bytes;
    looks_squares(l->arrays, l->n, l->partials);
}

static brg_status record_looked(void (*work)(const void *bytes),
                                const looked *l)
{
    if (recording)
        record_work(work, l, sizeof *l);
    else
        work(l);
    return BRG_OK;
}

static brg_status record_look(brg_device device, const brg_device_array *arrays,
                              size_t n, uint64_t *found)
{
    looked l = look_of(arrays, n);
    (void)device;
    l.found = found;
    return record_looked(look_now, &l);
}

static brg_status record_tell(brg_device device, const uint64_t *found,
                              int rank, float *to)
{
    looked l = {.found = (uint64_t *)(uintptr_t)found, .rank = rank, .to = to};
    (void)device;
    return record_looked(tell_now, &l);
}

static brg_status record_squares(brg_device device,
                                 const brg_device_array *arrays, size_t n,
                                 double *partials)
{
    looked l = look_of(arrays, n);
    (void)device;
    l.partials = partials;
    return record_looked(squares_now, &l);
}

/* Asked for between steps. */
static brg_status add_now(brg_device device, const double *partials, size_t n,
                          double *total)
{
    (void)device;
    looks_add(partials, n, total);
    return BRG_OK;
}

static brg_status norm_clip_now(brg_device device,
                                const brg_device_array *arrays, size_t n,
                                const double *total, double max_norm)
{
    (void)device;
    looks_clip(arrays, n, total, max_norm);
    return BRG_OK;
}

/* Passes of communication hooks: host memory, so the host's own. */
typedef struct pass {
    brg_compress_job job;
    brg_compress_part parts[16];
} pass;

static void do_pass(const void *bytes)
{
    pass p = *(const pass *)bytes;
    p.job.parts = p.parts;
    brg__compress_host(&p.job);
}

static brg_status record_compress(brg_device device,
                                  const brg_compress_job *given)
{
    pass p = {.job = *given};
    (void)device;
    if (given->n_parts > sizeof p.parts / sizeof *p.parts)
        abort();
    memcpy(p.parts, given->parts, given->n_parts * sizeof *p.parts);
    if (recording)
        record_work(do_pass, &p, sizeof p);
    else
        do_pass(&p);
    return BRG_OK;
}

/* ---- Graphs ------------------------------------------------------------------------ */

static brg_status tape_record(brg_device device, void **graph)
{
    (void)device;
    tape *t = *graph;
    if (!t) {
        size_t i = 0;
        *graph = t = calloc(1, sizeof *t);
        while (tapes[i])
            i++;
        tapes[i] = t;
    }
    tape_drop_jobs(t);
    t->is_given_up = false;
    recording = t;
    return BRG_OK;
}

static brg_status tape_recorded(brg_device device, void *graph)
{
    (void)device;
    recording = NULL;
    return ((tape *)graph)->is_given_up
               ? brg_error_set(BRG_ERR_UNSUPPORTED, __FILE__, __LINE__,
                               "a copy to or from the host")
               : BRG_OK;
}

static void tape_updates(brg_device device, void *graph, size_t i,
                         brg_device_update **updates, size_t *n)
{
    tape *t = graph;
    (void)device;
    *updates = NULL;
    *n = 0;
    for (size_t k = 0; k < t->n_jobs; k++)
        if (t->jobs[k]->updates && t->jobs[k]->max_norm == 0 && i-- == 0) {
            *updates = t->jobs[k]->updates;
            *n = t->jobs[k]->n_updates;
            return;
        }
}

static void tape_free(brg_device device, void *graph)
{
    tape *t = graph;
    (void)device;
    tape_drop_jobs(t);
    t->is_orphan = true;
    tape_free_if_unused(t);
}

static const brg_device_vtable recording_device = {
    .abi = BRG_DEVICE_ABI,
    .struct_size = sizeof(brg_device_vtable),
    .name = "cuda",
    .alloc = record_alloc,
    .free = record_free,
    .copy = record_copy,
    .fill_zero = record_zero,
    .kernel = record_find,
    .update = record_update,
    .clip = record_clip,
    .clip_factor = record_clip_factor,
    .cargo_load = record_cargo_load,
    .cargo_unload = record_cargo_unload,
    .stream = fake_stream,
    .fetch = record_fetch,
    .fetched = record_fetched,
    .fetch_free = record_fetch_free,
    .graph_record = tape_record,
    .graph_recorded = tape_recorded,
    .graph_updates = tape_updates,
    .graph_launch = tape_launch,
    .graph_free = tape_free,
    .look = record_look,
    .look_tell = record_tell,
    .norm_squares = record_squares,
    .norm_add = add_now,
    .norm_clip = norm_clip_now,
    .compress = record_compress,
};

#endif
