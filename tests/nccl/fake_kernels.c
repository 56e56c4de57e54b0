/* SPDX-License-Identifier: Apache-2.0
 * core/cuda without its kernels: those of ops are the CPU's, on the stream, and so
 * are an optimizer's step and what looks at gradients. */
#include <string.h>

#include <brigade/random.h>

#include "core/base/clock.h"
#include "core/cuda/cu.h"
#include "core/ops/op.h"
#include "core/tensor/device.h"
#include "tests/nccl/fake_gpu.h"
#include "tests/nccl/fake_stream.h"
#include "tests/support/device_looks.h"
#include "tests/support/device_update.h"

/* ---- Ops -------------------------------------------------------------------------- */

typedef struct kernel {
    brg_op_call call;
    brg_attrs attrs;
    int n_in;
    bool has[BRG_MAX_OP_INPUTS];
    brg_tensor in[BRG_MAX_OP_INPUTS], out[BRG_MAX_OP_OUTPUTS];
    brg__storage in_storage[BRG_MAX_OP_INPUTS];
    brg__storage out_storage[BRG_MAX_OP_OUTPUTS];
} kernel;

static void copy_tensor(brg_tensor *t, brg__storage *s, const brg_tensor *from)
{
    memcpy(t, from, sizeof *t);
    t->device = (brg_device){BRG_DEVICE_CPU, 0};
    if (!from->storage)
        return;
    memcpy(s, from->storage, sizeof *s);
    s->device = t->device;
}

static void run_kernel(void *args)
{
    kernel *k = args;
    brg_tensor *in[BRG_MAX_OP_INPUTS];
    for (int i = 0; i < k->n_in; i++) {
        in[i] = k->has[i] ? &k->in[i] : NULL;
        if (k->in[i].storage)
            k->in[i].storage = &k->in_storage[i];
    }
    for (int i = 0; i < k->call.n_out; i++) {
        k->call.out[i] = &k->out[i];
        if (k->out[i].storage)
            k->out[i].storage = &k->out_storage[i];
    }
    k->call.in = in;
    k->call.attrs = &k->attrs;
    if (k->call.op == &brg__op_full_like)
        (void)brg__fill_now(k->call.out[0], k->attrs.f[0]);
    else
        (void)k->call.op->run[BRG_DEVICE_CPU](&k->call);
}

static const char *failing_op; /* its next kernel fails; or NULL */

void fake_gpu_fail_op(const char *name)
{
    failing_op = name;
}

static brg_status push_kernel(brg_op_call *call)
{
    kernel k = {.call = *call, .attrs = *call->attrs, .n_in = call->n_in};
    brg__cu *cu;
    BRG__CU_TRY(brg__cu_enter(call->out[0]->device, &cu));
    if (failing_op && strcmp(failing_op, call->op->name) == 0) {
        failing_op = NULL;
        return BRG__CU_FAIL(BRG_ERR_DEVICE, "a kernel that fails");
    }
    for (int i = 0; i < call->n_in; i++) {
        k.has[i] = call->in[i] != NULL;
        if (k.has[i])
            copy_tensor(&k.in[i], &k.in_storage[i], call->in[i]);
    }
    for (int i = 0; i < call->n_out; i++)
        copy_tensor(&k.out[i], &k.out_storage[i], call->out[i]);
    fake_push((fake_stream *)(void *)cu->stream, run_kernel, &k, sizeof k);
    return BRG_OK;
}

brg__cu_run_fn brg__cu_kernel(const brg_op *op)
{
    (void)op;
    return push_kernel;
}

int brg__cu_try_kernels(void)
{
    return fake_gpu_kernels();
}

/* ---- Optimizers -------------------------------------------------------------------- */

typedef struct update {
    brg_device_update of;
    const double *numbers; /* of a graph; or NULL */
} update;

static void run_update(void *args)
{
    const update *u = args;
    device_update_run(&u->of, u->numbers ? u->numbers : u->of.f);
}

int brg__cu_update(const brg__cu_queue *q, const brg_device_update *updates,
                   uint64_t n, const double *numbers)
{
    for (uint64_t i = 0; i < n; i++) {
        const update u = {updates[i], numbers ? numbers + 6 * i : NULL};
        fake_push(q->stream, run_update, &u, sizeof u);
    }
    return cudaSuccess;
}

typedef struct stored {
    double *to;
    double value;
} stored;

static void run_store(void *args)
{
    const stored *s = args;
    *s->to = s->value;
}

int brg__cu_compress(const brg__cu_queue *q, const struct brg_compress_job *job)
{
    (void)q;
    (void)job;
    return cudaErrorNotSupported;
}

/* By the CPU's functions, from the state that is given. */
static void run_draw(void *args)
{
    const brg_draw *d = args;
    brg__storage storage = {.data = d->out};
    brg_tensor t = {.dtype = BRG_DTYPE_F32,
                    .ndim = 1,
                    .numel = (int64_t)d->numel,
                    .shape = {(int64_t)d->numel},
                    .stride = {1},
                    .is_contiguous = true,
                    .storage = &storage};
    brg_random_state kept;
    brg_random_get_state(&kept);
    brg_random_set_state(&(brg_random_state){d->seed, d->offset});
    if (brg_normal_(&t, d->a, d->b) != BRG_OK)
        memset(d->out, 0xFF, d->numel * sizeof(float)); /* shows in the sums */
    brg_random_set_state(&kept);
}

int brg__cu_draw(const brg__cu_queue *q, const struct brg_draw *draw)
{
    if (draw->kind != BRG_DRAW_NORMAL || draw->dtype != BRG_DTYPE_F32)
        return cudaErrorNotSupported;
    fake_push(q->stream, run_draw, draw, sizeof *draw);
    return cudaSuccess;
}

/* There are none in graphs here. */
void brg__cu_graph_fills(void *graph)
{
    (void)graph;
}

int brg__cu_store(const brg__cu_queue *q, double *to, const double *from,
                  uint64_t n)
{
    for (uint64_t i = 0; i < n; i++)
        fake_push(q->stream, run_store, &(stored){to + i, from[i]},
                  sizeof(stored));
    return cudaSuccess;
}

typedef struct stored_bytes {
    void *to;
    size_t n;
    char at[BRG__CU_BY_VALUE];
} stored_bytes;

static void run_store_bytes(void *args)
{
    const stored_bytes *s = args;
    memcpy(s->to, s->at, s->n);
}

int brg__cu_store_bytes(const brg__cu_queue *q, void *to, const void *from,
                        uint64_t n)
{
    stored_bytes s = {.to = to, .n = n};
    memcpy(s.at, from, n);
    fake_push(q->stream, run_store_bytes, &s, sizeof s);
    return cudaSuccess;
}

/* ---- Tensors that go along, what is in gradients ------------------------------------ */

/* Each array of a call is work of its own. */
typedef struct piece {
    brg_device_cargo cargo;
    brg_device_array array;
    uint64_t *found;
    double *partials;
    const double *total;
    const uint64_t *is_found;
    float *to;
    double max;
    size_t n;
    int rank;
} piece;

static brg_status push_piece(brg_device device, void (*run)(void *),
                             const piece *p)
{
    brg__cu *cu;
    BRG__CU_TRY(brg__cu_enter(device, &cu));
    fake_push((fake_stream *)(void *)cu->stream, run, p, sizeof *p);
    return BRG_OK;
}

static void run_load(void *args)
{
    const piece *p = args;
    (void)brg__cpu_cargo_load((brg_device){BRG_DEVICE_CPU, 0}, &p->cargo, 1);
}

static void run_unload(void *args)
{
    const piece *p = args;
    (void)brg__cpu_cargo_unload((brg_device){BRG_DEVICE_CPU, 0}, &p->cargo, 1);
}

brg_status brg__cu_run_cargo_load(brg_device d, const brg_device_cargo *c,
                                  size_t n)
{
    for (size_t i = 0; i < n; i++)
        BRG__CU_TRY(push_piece(d, run_load, &(piece){.cargo = c[i]}));
    return BRG_OK;
}

brg_status brg__cu_run_cargo_unload(brg_device d, const brg_device_cargo *c,
                                    size_t n)
{
    for (size_t i = 0; i < n; i++)
        BRG__CU_TRY(push_piece(d, run_unload, &(piece){.cargo = c[i]}));
    return BRG_OK;
}

static void run_clock(void *args)
{
    const piece *p = args;
    *p->found = brg__clock_ns();
}

brg_status brg__cu_run_clock(brg_device d, uint64_t *to)
{
    return push_piece(d, run_clock, &(piece){.found = to});
}

static void run_look(void *args)
{
    const piece *p = args;
    looks_look(&p->array, 1, p->found);
}

brg_status brg__cu_run_look(brg_device d, const brg_device_array *a, size_t n,
                            uint64_t *found)
{
    for (size_t i = 0; i < n; i++)
        BRG__CU_TRY(
            push_piece(d, run_look, &(piece){.array = a[i], .found = found}));
    return BRG_OK;
}

static void run_tell(void *args)
{
    const piece *p = args;
    looks_tell(p->is_found, p->rank, p->to);
}

brg_status brg__cu_run_look_tell(brg_device d, const uint64_t *found, int rank,
                                 float *to)
{
    return push_piece(d, run_tell,
                      &(piece){.is_found = found, .rank = rank, .to = to});
}

static void run_squares(void *args)
{
    const piece *p = args;
    looks_squares(&p->array, 1, p->partials);
}

brg_status brg__cu_run_norm_squares(brg_device d, const brg_device_array *a,
                                    size_t n, double *partials)
{
    for (size_t i = 0; i < n; i++)
        BRG__CU_TRY(push_piece(d, run_squares,
                               &(piece){.array = a[i], .partials = partials}));
    return BRG_OK;
}

static void run_add(void *args)
{
    const piece *p = args;
    looks_add(p->total, p->n, p->partials);
}

brg_status brg__cu_run_norm_add(brg_device d, const double *partials, size_t n,
                                double *total)
{
    return push_piece(d, run_add,
                      &(piece){.total = partials, .n = n, .partials = total});
}

static void run_norm_clip(void *args)
{
    const piece *p = args;
    looks_clip(&p->array, 1, p->total, p->max);
}

brg_status brg__cu_run_norm_clip(brg_device d, const brg_device_array *a,
                                 size_t n, const double *total, double max)
{
    for (size_t i = 0; i < n; i++)
        BRG__CU_TRY(
            push_piece(d, run_norm_clip,
                       &(piece){.array = a[i], .total = total, .max = max}));
    return BRG_OK;
}

/* ---- What tests do without ---------------------------------------------------------- */

#pragma GCC diagnostic ignored "-Wunused-parameter"

#define REFUSED(name, args)                                                    \
    brg_status name args                                                       \
    {                                                                          \
        return BRG__CU_FAIL(BRG_ERR_UNSUPPORTED, "%s on a made-up GPU",        \
                            #name);                                            \
    }

REFUSED(brg__cu_run_clip, (brg_device d, const brg_device_update *u, size_t n,
                           double max, double *norm))
REFUSED(brg__cu_run_clip_factor, (brg_device d, const brg_device_update *u,
                                  size_t n, double max, double *to))
REFUSED(brg__cu_run_sparse, (brg_device d, const brg_sparse_job *job))
REFUSED(brg__cu_kernel_compiler, (brg_device d, brg_device_compiler *c))
REFUSED(brg__cu_kernel_compile, (brg_device d, const char *source, double s,
                                 void **binary, size_t *nbytes))
REFUSED(brg__cu_kernel_load,
        (brg_device d, const void *binary, size_t nbytes, void **module))
REFUSED(brg__cu_kernel_find,
        (brg_device d, void *module, const char *name, void **found))
REFUSED(brg__cu_kernel_launch, (brg_device d, const brg_device_launch *l))

void brg__cu_kernel_unload(brg_device device, void *module)
{
}
