/* SPDX-License-Identifier: Apache-2.0
 * A device without one: memory made for the test is mapped twice, where no one
 * may touch it (the device's addresses) and where its "kernels" and the group
 * do. A host access of a gradient ends the program. The group is a simulated
 * one, each rank has a device of its own, and run_worlds runs a body on 1 to 4
 * of them. */
#ifndef BRG_TESTS_REDUCER_MADE_UP_DEVICE_H
#define BRG_TESTS_REDUCER_MADE_UP_DEVICE_H

#include <brigade/brigade.h>
#include <brigade/ext/device.h>

#include <math.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "comm/pg.h"
#include "core/ops/op.h"
#include "core/tensor/device.h"
#include "core/tensor/tensor.h"
#include "tests/support/brg_test.h"
#include "tests/support/device_looks.h"
#include "tests/support/device_update.h"
#include "tests/support/ranks.h"

/* Each rank has a device of its own; the memory is one. */
#define THERE(rank) ((brg_device){BRG_DEVICE_CUDA, (int16_t)(rank)})
#define HOME ((brg_device){BRG_DEVICE_CPU, 0})
#define N_BYTES ((size_t)256 << 20)
#define N_ASKS 3 /* until a fetched value is there */

/* ---- The device ----------------------------------------------------------------- */

static char *there, *here;
static _Atomic size_t n_taken;
static _Atomic int n_blocks, n_allocs, n_crossings, n_asks, n_looks;
static _Atomic int n_cargo_calls;

static inline bool is_there(const void *p)
{
    return (const char *)p >= there && (const char *)p < there + N_BYTES;
}

static inline void *at(const void *p)
{
    return is_there(p) ? here + ((const char *)p - there) : (void *)p;
}

static inline brg_status fake_alloc(brg_device device, void **out,
                                    size_t nbytes)
{
    (void)device;
    size_t n = (nbytes + 127) / 64 * 64;
    size_t begin = atomic_fetch_add(&n_taken, n);
    if (begin + n > N_BYTES)
        return brg_error_set(BRG_ERR_NOMEM, __FILE__, __LINE__, "no room");
    *out = there + begin;
    n_blocks++;
    n_allocs++;
    return BRG_OK;
}

static inline void fake_free(brg_device device, void *ptr, size_t nbytes)
{
    (void)device;
    memset(at(ptr), 0xcd, nbytes);
    n_blocks--;
}

static inline brg_status fake_copy(brg_device to, void *dst, brg_device from,
                                   const void *src, size_t nbytes)
{
    n_crossings += to.type != from.type;
    memcpy(at(dst), at(src), nbytes);
    return BRG_OK;
}

static inline brg_status fake_zero(brg_device device, void *ptr, size_t nbytes)
{
    (void)device;
    memset(at(ptr), 0, nbytes);
    return BRG_OK;
}

typedef struct fetched {
    int n_asks;
    size_t nbytes;
    char *memory;
} fetched;

static inline brg_status fake_fetch(brg_device device, void **fetch,
                                    const void *src, size_t nbytes)
{
    fetched *f = *fetch;
    (void)device;
    if (!f) {
        *fetch = f = calloc(1, sizeof *f);
        f->memory = malloc(nbytes);
        f->nbytes = nbytes;
    }
    if (f->nbytes != nbytes)
        return brg_error_set(BRG_ERR_INTERNAL, __FILE__, __LINE__, "size");
    f->n_asks = 0;
    memcpy(f->memory, at(src), nbytes);
    return BRG_OK;
}

static inline brg_status fake_fetched(brg_device device, void *fetch,
                                      const void **out)
{
    fetched *f = fetch;
    (void)device;
    n_asks++;
    *out = ++f->n_asks < N_ASKS ? NULL : f->memory;
    return BRG_OK;
}

static inline void fake_fetch_free(brg_device device, void *fetch)
{
    (void)device;
    free(((fetched *)fetch)->memory);
    free(fetch);
}

typedef struct twin {
    brg_tensor tensor;
    brg__storage storage;
} twin;

static inline brg_tensor *twin_of(twin *t, const brg_tensor *from)
{
    if (!from || !from->storage)
        return (brg_tensor *)from;
    memcpy(&t->tensor, from, sizeof t->tensor);
    memcpy(&t->storage, from->storage, sizeof t->storage);
    t->storage.data = at(from->storage->data);
    t->storage.device = t->tensor.device = HOME;
    t->tensor.storage = &t->storage;
    return &t->tensor;
}

static inline brg_status run_there(brg_op_call *call)
{
    twin in[BRG_MAX_OP_INPUTS], out[BRG_MAX_OP_OUTPUTS];
    brg_tensor *args[BRG_MAX_OP_INPUTS];
    brg_op_call copy = *call;
    for (int i = 0; i < call->n_in; i++)
        args[i] = twin_of(&in[i], call->in[i]);
    for (int i = 0; i < call->n_out; i++)
        copy.out[i] = twin_of(&out[i], call->out[i]);
    copy.in = args;
    if (call->op == &brg__op_full_like)
        return brg__fill_now(copy.out[0], call->attrs->f[0]);
    return call->op->run[BRG_DEVICE_CPU](&copy);
}

static brg_status (*fake_kernel(const brg_op *op))(brg_op_call *call)
{
    (void)op;
    return run_there;
}

/* Where its kernels see them: all of one call. */
static inline brg_device_cargo *cargo_here(const brg_device_cargo *cargo,
                                           size_t n)
{
    brg_device_cargo *all = calloc(n, sizeof *all);
    for (size_t i = 0; i < n; i++) {
        all[i] = cargo[i];
        all[i].at = at(cargo[i].at);
        all[i].row = at(cargo[i].row);
    }
    n_cargo_calls++;
    return all;
}

static inline brg_status
fake_cargo_load(brg_device device, const brg_device_cargo *cargo, size_t n)
{
    brg_device_cargo *all = cargo_here(cargo, n);
    brg_status status = brg__cpu_cargo_load(device, all, n);
    free(all);
    return status;
}

static inline brg_status
fake_cargo_unload(brg_device device, const brg_device_cargo *cargo, size_t n)
{
    brg_device_cargo *all = cargo_here(cargo, n);
    brg_status status = brg__cpu_cargo_unload(device, all, n);
    free(all);
    return status;
}

static inline brg_status fake_update(brg_device device,
                                     const brg_device_update *updates, size_t n)
{
    (void)device;
    for (size_t i = 0; i < n; i++) {
        brg_device_update u = updates[i];
        if (u.found_inf && *(const float *)at(u.found_inf) != 0)
            continue;
        u.param = at(u.param);
        u.grad = at(u.grad);
        u.state[0] = at(u.state[0]);
        u.state[1] = at(u.state[1]);
        u.master = at(u.master);
        device_update_run(&u, u.f);
    }
    return BRG_OK;
}

/* ---- What is in gradients ---------------------------------------------------------- */

#define MAX_ARRAYS 16

/* As the "kernels" see them. */
static inline const brg_device_array *arrays_at(brg_device_array to[MAX_ARRAYS],
                                                const brg_device_array *arrays,
                                                size_t n)
{
    if (n > MAX_ARRAYS)
        abort();
    for (size_t i = 0; i < n; i++) {
        to[i] = arrays[i];
        to[i].data = at(arrays[i].data);
    }
    return to;
}

static inline brg_status fake_look(brg_device device,
                                   const brg_device_array *arrays, size_t n,
                                   uint64_t *found)
{
    brg_device_array mine[MAX_ARRAYS];
    (void)device;
    n_looks++;
    looks_look(arrays_at(mine, arrays, n), n, at(found));
    return BRG_OK;
}

static inline brg_status fake_tell(brg_device device, const uint64_t *found,
                                   int rank, float *to)
{
    (void)device;
    looks_tell(at(found), rank, at(to));
    return BRG_OK;
}

static inline brg_status fake_squares(brg_device device,
                                      const brg_device_array *arrays, size_t n,
                                      double *partials)
{
    brg_device_array mine[MAX_ARRAYS];
    (void)device;
    n_looks++;
    looks_squares(arrays_at(mine, arrays, n), n, at(partials));
    return BRG_OK;
}

static inline brg_status fake_add(brg_device device, const double *partials,
                                  size_t n, double *total)
{
    (void)device;
    looks_add(at(partials), n, at(total));
    return BRG_OK;
}

static inline brg_status fake_norm_clip(brg_device device,
                                        const brg_device_array *arrays,
                                        size_t n, const double *total,
                                        double max_norm)
{
    brg_device_array mine[MAX_ARRAYS];
    (void)device;
    looks_clip(arrays_at(mine, arrays, n), n, at(total), max_norm);
    return BRG_OK;
}

static inline int fake_count(void)
{
    return 8;
}

static brg_device_vtable fake = {
    .abi = BRG_DEVICE_ABI,
    .struct_size = sizeof(brg_device_vtable),
    .name = "cuda",
    .alloc = fake_alloc,
    .free = fake_free,
    .copy = fake_copy,
    .fill_zero = fake_zero,
    .count = fake_count,
    .kernel = fake_kernel,
    .update = fake_update,
    .cargo_load = fake_cargo_load,
    .cargo_unload = fake_cargo_unload,
    .look = fake_look,
    .look_tell = fake_tell,
    .norm_squares = fake_squares,
    .norm_add = fake_add,
    .norm_clip = fake_norm_clip,
};

static inline int set_up(void **state)
{
    (void)state;
    int file = memfd_create("device", 0);
    if (file < 0 || ftruncate(file, (off_t)N_BYTES) != 0)
        return 1;
    there = mmap(NULL, N_BYTES, PROT_NONE, MAP_SHARED, file, 0);
    here = mmap(NULL, N_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    n_taken = 0;
    return there == MAP_FAILED || here == MAP_FAILED ||
           brg_device_register(BRG_DEVICE_CUDA, &fake) != BRG_OK;
}

static inline int tear_down(void **state)
{
    (void)state;
    munmap(there, N_BYTES);
    munmap(here, N_BYTES);
    return n_blocks != 0;
}

/* ---- The group: a simulated one that takes the device's memory ------------------- */

static brg_group_ops ops;
static const brg_group_ops *plain;

static inline brg_status group_start(void *group, brg_call *call)
{
    call->send = at(call->send);
    call->recv = at(call->recv);
    return plain->start(group, call);
}

static inline brg_status group_alloc(void *group, void **out, size_t nbytes)
{
    (void)group;
    BRG_TRY(fake_alloc(HOME, out, nbytes));
    return fake_zero(HOME, *out, nbytes);
}

static inline void group_free(void *group, void *ptr)
{
    (void)group;
    fake_free(HOME, ptr, 0);
}

/* What all ranks have done, between two barriers. */
typedef struct tally {
    int n_crossings, n_allocs;
} tally;

static inline brg_status take_tally(brg_pg *pg, tally *filled)
{
    brg_work *work;
    BRG_TRY(brg_barrier(pg, &work));
    BRG_TRY(brg_work_wait(work));
    *filled = (tally){n_crossings, n_allocs};
    BRG_TRY(brg_barrier(pg, &work));
    return brg_work_wait(work);
}

/* ---- A model ----------------------------------------------------------------------- */

#define N_PARAMS 4
static const int64_t shapes[N_PARAMS][2] = {{3, 5}, {7, 1}, {2, 40}, {4, 6}};
static brg_dtype dtypes[N_PARAMS] = {BRG_DTYPE_F32, BRG_DTYPE_F64,
                                     BRG_DTYPE_F32, BRG_DTYPE_F32};
#define ALL ((1u << N_PARAMS) - 1)

typedef struct world {
    brg_pg *pg;
    int rank, n;
    brg_tensor *params[N_PARAMS]; /* the last is a transposed view */
    brg_ddp *ddp;
} world;

static inline size_t numel(size_t i)
{
    return (size_t)(shapes[i][0] * shapes[i][1]);
}

static double size = 1; /* of gradients */

static inline brg_tensor *constant(int rank, int step, size_t i)
{
    double values[80];
    for (size_t k = 0; k < numel(i); k++)
        values[k] = size * ranks_gradient(rank, step, i, k);
    return brg_cast(brg_from_data(BRG_DTYPE_F64, 2, shapes[i], values),
                    dtypes[i]);
}

static inline brg_status make_params(world *w)
{
    for (size_t i = 0; i < N_PARAMS; i++) {
        static const char *const names[] = {"a", "b", "c", "d"};
        brg_tensor *t = brg_rand(dtypes[i], 2, shapes[i]);
        if (i == 3)
            t = brg_detach(brg_transpose(
                brg_rand(dtypes[i], BRG_SHAPE(shapes[i][1], shapes[i][0])), 0,
                1));
        RANK_CHECK(t, "parameter %zu", i);
        w->params[i] = t;
        BRG_TRY(brg_tensor_set_name(t, names[i]));
        BRG_TRY(brg_set_requires_grad(t, true));
    }
    return BRG_OK;
}

static inline brg_status backward(world *w, int step, unsigned mask)
{
    brg_scope *scope = brg_scope_begin();
    brg_tensor *loss = NULL;
    for (size_t i = 0; i < N_PARAMS; i++) {
        if (!(mask >> i & 1u))
            continue;
        brg_tensor *term = brg_cast(
            brg_sum_all(brg_mul(w->params[i], constant(w->rank, step, i))),
            BRG_DTYPE_F32);
        loss = loss ? brg_add(loss, term) : term;
    }
    brg_status status = loss ? brg_backward(loss) : brg_error_code();
    brg_scope_end(scope);
    return status;
}

static inline brg_status zero(world *w)
{
    for (size_t i = 0; i < N_PARAMS; i++)
        BRG_TRY(brg_tensor_set_grad(w->params[i], NULL));
    return BRG_OK;
}

static double tolerance = 1e-6;

/* .grad of i is the average of the gradients of ranks in `who`. */
static inline brg_status check_grad(world *w, int step, size_t i, unsigned who)
{
    double got[80];
    brg_tensor *grad = brg_tensor_grad(w->params[i]);
    RANK_CHECK(grad && grad->device.type == BRG_DEVICE_CUDA, "no gradient %zu",
               i);
    brg_scope *scope = brg_scope_begin();
    brg_status status = brg_tensor_read(brg_cast(grad, BRG_DTYPE_F64), got,
                                        numel(i) * sizeof *got);
    brg_scope_end(scope);
    BRG_TRY(status);
    for (size_t k = 0; k < numel(i); k++) {
        double want = 0;
        for (int r = 0; r < w->n; r++)
            want += who >> r & 1u ? ranks_gradient(r, step, i, k) : 0;
        want /= w->n;
        RANK_CHECK(fabs(got[k] - want) < tolerance,
                   "rank %d, step %d: gradient %zu[%zu] is %g, not %g", w->rank,
                   step, i, k, got[k], want);
    }
    return BRG_OK;
}

static inline brg_status check(world *w, int step)
{
    for (size_t i = 0; i < N_PARAMS; i++)
        BRG_TRY(check_grad(w, step, i, ~0u));
    return BRG_OK;
}

static inline brg_status step_of(world *w, int step)
{
    BRG_TRY(zero(w));
    BRG_TRY(backward(w, step, ALL));
    return check(w, step);
}

/* ---- Runs --------------------------------------------------------------------------- */

typedef struct run {
    brg_status (*body)(world *w, const struct run *r);
    brg_ddp_options options;
    bool is_bare;    /* no ddp */
    bool is_on_host; /* the group; each rank's parameters are on its device */
} run;

static inline brg_status on_rank(brg_pg *pg, void *user)
{
    const run *r = user;
    world w = {.pg = pg, .rank = brg_pg_rank(pg), .n = brg_pg_world_size(pg)};
    const brg_group_ops *own = pg->end.ops;
    pg->end.device = r->is_on_host ? HOME : THERE(w.rank);
    pg->end.ops = r->is_on_host ? own : &ops;
    brg_scope *scope = brg_scope_begin();
    brg_seed(5 + (uint64_t)w.rank);
    brg_status status = brg_device_set(THERE(w.rank));
    if (status == BRG_OK)
        status = make_params(&w);
    if (status == BRG_OK && !r->is_bare)
        status = brg_ddp_create(&w.ddp, pg, w.params, N_PARAMS, NULL, 0,
                                &r->options);
    if (status == BRG_OK)
        status = r->body(&w, r);
    brg_ddp_destroy(w.ddp);
    brg_scope_end(scope);
    if (brg_device_set(HOME) != BRG_OK)
        status = BRG_ERR_INTERNAL;
    pg->end.device = HOME;
    pg->end.ops = own;
    return status;
}

static inline brg_status learn_ops(brg_pg *pg, void *user)
{
    (void)user;
    plain = pg->end.ops;
    return BRG_OK;
}

static inline void take_ops(void)
{
    ops = *plain;
    ops.start = group_start;
    ops.alloc = group_alloc;
    ops.free = group_free;
}

/* Before the first run of on_rank. */
static inline void learn(void)
{
    assert_brg_ok(brg_sim_run(1, NULL, learn_ops, NULL));
    take_ops();
}

static inline void set_fetch(bool later)
{
    fake.fetch = later ? fake_fetch : NULL;
    fake.fetched = later ? fake_fetched : NULL;
    fake.fetch_free = later ? fake_fetch_free : NULL;
}

static inline void run_worlds(run *r)
{
    learn();
    for (int n = 1; n <= 4; n++)
        for (int later = 0; later < 2; later++) { /* with fetch, without */
            set_fetch(later);
            assert_brg_ok(brg_sim_run(n, NULL, on_rank, r));
            if (n_blocks == 0)
                n_taken = 0; /* all of it is free again */
        }
}

static inline run make_run(brg_status (*body)(world *, const run *))
{
    run r = {.body = body, .options = BRG_DDP_OPTIONS_INIT};
    r.options.first_bucket_bytes = r.options.bucket_bytes = 100;
    return r;
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

#endif
