/* SPDX-License-Identifier: Apache-2.0
 * Gradients on a device, without one: memory made for the test is mapped twice,
 * where no one may touch it (the device's addresses) and where its "kernels"
 * and the group do. A host access of a gradient ends the program. */
#include <brigade/brigade.h>
#include <brigade/ext/device.h>

#include <math.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "comm/pg.h"
#include "core/ops/op.h"
#include "core/tensor/tensor.h"
#include "tests/support/brg_test.h"
#include "tests/support/ranks.h"

/* Each rank has a device of its own; the memory is one. */
#define THERE(rank) ((brg_device){BRG_DEVICE_CUDA, (int16_t)(rank)})
#define HOME ((brg_device){BRG_DEVICE_CPU, 0})
#define N_BYTES ((size_t)64 << 20)
#define N_ASKS 3 /* until a fetched value is there */

/* ---- The device ----------------------------------------------------------------- */

static char *there, *here;
static _Atomic size_t n_taken;
static _Atomic int n_blocks, n_allocs, n_crossings, n_asks;

static bool is_there(const void *p)
{
    return (const char *)p >= there && (const char *)p < there + N_BYTES;
}

static void *at(const void *p)
{
    return is_there(p) ? here + ((const char *)p - there) : (void *)p;
}

static brg_status fake_alloc(brg_device device, void **out, size_t nbytes)
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

static void fake_free(brg_device device, void *ptr, size_t nbytes)
{
    (void)device;
    memset(at(ptr), 0xcd, nbytes);
    n_blocks--;
}

static brg_status fake_copy(brg_device to, void *dst, brg_device from,
                            const void *src, size_t nbytes)
{
    n_crossings += to.type != from.type;
    memcpy(at(dst), at(src), nbytes);
    return BRG_OK;
}

static brg_status fake_zero(brg_device device, void *ptr, size_t nbytes)
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

static brg_status fake_fetch(brg_device device, void **fetch, const void *src,
                             size_t nbytes)
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

static brg_status fake_fetched(brg_device device, void *fetch, const void **out)
{
    fetched *f = fetch;
    (void)device;
    n_asks++;
    *out = ++f->n_asks < N_ASKS ? NULL : f->memory;
    return BRG_OK;
}

static void fake_fetch_free(brg_device device, void *fetch)
{
    (void)device;
    free(((fetched *)fetch)->memory);
    free(fetch);
}

typedef struct twin {
    brg_tensor tensor;
    brg__storage storage;
} twin;

static brg_tensor *twin_of(twin *t, const brg_tensor *from)
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

static brg_status run_there(brg_op_call *call)
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

static int fake_count(void)
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
};

static int set_up(void **state)
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

static int tear_down(void **state)
{
    (void)state;
    munmap(there, N_BYTES);
    munmap(here, N_BYTES);
    return n_blocks != 0;
}

/* ---- The group: a simulated one that takes the device's memory ------------------- */

static brg_group_ops ops;
static const brg_group_ops *plain;

static brg_status group_start(void *group, brg_call *call)
{
    call->send = at(call->send);
    call->recv = at(call->recv);
    return plain->start(group, call);
}

static brg_status group_alloc(void *group, void **out, size_t nbytes)
{
    (void)group;
    BRG_TRY(fake_alloc(HOME, out, nbytes));
    return fake_zero(HOME, *out, nbytes);
}

static void group_free(void *group, void *ptr)
{
    (void)group;
    fake_free(HOME, ptr, 0);
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

static size_t numel(size_t i)
{
    return (size_t)(shapes[i][0] * shapes[i][1]);
}

static double size = 1; /* of gradients */

static brg_tensor *constant(int rank, int step, size_t i)
{
    double values[80];
    for (size_t k = 0; k < numel(i); k++)
        values[k] = size * ranks_gradient(rank, step, i, k);
    return brg_cast(brg_from_data(BRG_DTYPE_F64, 2, shapes[i], values),
                    dtypes[i]);
}

static brg_status make_params(world *w)
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

static brg_status backward(world *w, int step, unsigned mask)
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

static brg_status zero(world *w)
{
    for (size_t i = 0; i < N_PARAMS; i++)
        BRG_TRY(brg_tensor_set_grad(w->params[i], NULL));
    return BRG_OK;
}

/* .grad of i is the average of the gradients of ranks in `who`. */
static brg_status check_grad(world *w, int step, size_t i, unsigned who)
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
        RANK_CHECK(got[k] - want < 1e-6 && want - got[k] < 1e-6,
                   "rank %d, step %d: gradient %zu[%zu] is %g, not %g", w->rank,
                   step, i, k, got[k], want);
    }
    return BRG_OK;
}

static brg_status check(world *w, int step)
{
    for (size_t i = 0; i < N_PARAMS; i++)
        BRG_TRY(check_grad(w, step, i, ~0u));
    return BRG_OK;
}

static brg_status step_of(world *w, int step)
{
    BRG_TRY(zero(w));
    BRG_TRY(backward(w, step, ALL));
    return check(w, step);
}

/* ---- Runs --------------------------------------------------------------------------- */

typedef struct run {
    brg_status (*body)(world *w, const struct run *r);
    brg_ddp_options options;
    bool is_bare; /* no ddp */
} run;

static brg_status on_rank(brg_pg *pg, void *user)
{
    const run *r = user;
    world w = {.pg = pg, .rank = brg_pg_rank(pg), .n = brg_pg_world_size(pg)};
    const brg_group_ops *own = pg->end.ops;
    pg->end.device = THERE(w.rank);
    pg->end.ops = &ops;
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

static brg_status learn_ops(brg_pg *pg, void *user)
{
    (void)user;
    plain = pg->end.ops;
    return BRG_OK;
}

static void run_worlds(run *r)
{
    assert_brg_ok(brg_sim_run(1, NULL, learn_ops, NULL));
    ops = *plain;
    ops.start = group_start;
    ops.alloc = group_alloc;
    ops.free = group_free;
    for (int n = 1; n <= 4; n++)
        for (int later = 0; later < 2; later++) { /* with fetch, without */
            fake.fetch = later ? fake_fetch : NULL;
            fake.fetched = later ? fake_fetched : NULL;
            fake.fetch_free = later ? fake_fetch_free : NULL;
            assert_brg_ok(brg_sim_run(n, NULL, on_rank, r));
        }
}

static run make_run(brg_status (*body)(world *, const run *))
{
    run r = {.body = body, .options = BRG_DDP_OPTIONS_INIT};
    r.options.first_bucket_bytes = r.options.bucket_bytes = 100;
    return r;
}

/* ---- ddp ---------------------------------------------------------------------------- */

static brg_status averages(world *w, const run *r)
{
    for (int step = 0; step < 6; step++)
        BRG_TRY(step_of(w, step));
    brg_reducer_stats stats;
    brg_ddp_get_stats(w->ddp, &stats);
    RANK_CHECK(stats.n_steps == 6, "%d steps", (int)stats.n_steps);
    RANK_CHECK(stats.n_buckets > 2, "%d buckets", (int)stats.n_buckets);
    BRG_TRY(brg_ddp_confirm(w->ddp));
    double first, mine;
    BRG_TRY(brg_tensor_item(brg_sum_all(w->params[3]), &mine));
    brg_work *work;
    first = mine;
    BRG_TRY(brg_broadcast(w->pg, &work, &first, 1, BRG_DTYPE_F64, 0));
    BRG_TRY(brg_work_wait(work));
    RANK_CHECK(first == mine, "rank 0's values did not arrive");
    /* Gradients outlive the ddp. */
    brg_ddp_destroy(w->ddp);
    w->ddp = NULL;
    (void)r;
    return check(w, 5);
}

static void test_device_buckets__average_over_ranks(void **state)
{
    (void)state;
    run r = make_run(averages);
    run_worlds(&r);
    r.options.keep_order = true;
    run_worlds(&r);
    r.options.grads_apart = true;
    run_worlds(&r);
    r = make_run(averages);
    r.options.static_graph = true;
    run_worlds(&r);
}

/* Nothing crosses between host and device in a backward, but for what the
 * program itself sends and reads: the data. */
static brg_status crosses_nothing(world *w, const run *r)
{
    brg_tensor *data[N_PARAMS];
    (void)r;
    for (size_t i = 0; i < N_PARAMS; i++)
        data[i] = constant(w->rank, 0, i);
    for (int step = 0; step < 8; step++) {
        brg_work *work;
        brg_scope *scope = brg_scope_begin();
        brg_tensor *loss = NULL;
        BRG_TRY(zero(w));
        for (size_t i = 0; i < N_PARAMS; i++) {
            brg_tensor *term = brg_cast(
                brg_sum_all(brg_mul(w->params[i], data[i])), BRG_DTYPE_F32);
            loss = loss ? brg_add(loss, term) : term;
        }
        BRG_TRY(brg_barrier(w->pg, &work));
        BRG_TRY(brg_work_wait(work));
        const int before = n_crossings;
        BRG_TRY(brg_barrier(w->pg, &work));
        BRG_TRY(brg_work_wait(work));
        brg_status status = brg_backward(loss);
        BRG_TRY(brg_barrier(w->pg, &work));
        BRG_TRY(brg_work_wait(work));
        const int after = n_crossings;
        BRG_TRY(brg_barrier(w->pg, &work));
        BRG_TRY(brg_work_wait(work));
        brg_scope_end(scope);
        BRG_TRY(status);
        RANK_CHECK(step < 2 || !fake.fetch || after == before,
                   "rank %d, step %d: %d copies between host and device",
                   w->rank, step, after - before);
    }
    return BRG_OK;
}

static void test_device_buckets__a_steady_step_crosses_nothing(void **state)
{
    (void)state;
    run r = make_run(crosses_nothing);
    run_worlds(&r);
}

/* ---- What is known a step later --------------------------------------------------- */

static brg_status misses(world *w, const run *r)
{
    const unsigned mine = w->rank == w->n - 1 ? ALL & ~4u : ALL;
    char text[60];
    (void)r;
    snprintf(text, sizeof text, "no gradient in step 3 for c on 1 of %d", w->n);
    BRG_TRY(step_of(w, 0));
    BRG_TRY(step_of(w, 1));
    BRG_TRY(zero(w));
    BRG_TRY(backward(w, 2, mine));
    RANK_FAILS(backward(w, 3, ALL), BRG_ERR_STATE, text);
    BRG_TRY(step_of(w, 4));
    BRG_TRY(zero(w));
    BRG_TRY(backward(w, 5, mine));
    RANK_FAILS(brg_ddp_confirm(w->ddp), BRG_ERR_STATE, "step 6 for c");
    BRG_TRY(brg_ddp_confirm(w->ddp)); /* it is told once */
    BRG_TRY(step_of(w, 6));
    return step_of(w, 7);
}

static void
test_device_buckets__missing_gradients_show_in_the_next(void **state)
{
    (void)state;
    run r = make_run(misses);
    run_worlds(&r);
}

/* Before buckets are made anew, all ranks must know. */
static brg_status misses_first(world *w, const run *r)
{
    (void)r;
    RANK_FAILS(backward(w, 0, w->rank == 0 ? ALL & ~1u : ALL), BRG_ERR_STATE,
               "no gradient in step 1 for a on 1 of");
    BRG_TRY(step_of(w, 1));
    return step_of(w, 2);
}

static void test_device_buckets__the_first_step_is_waited_for(void **state)
{
    (void)state;
    run r = make_run(misses_first);
    run_worlds(&r);
}

static brg_status fail_hook(brg_tensor *leaf, void *user)
{
    (void)leaf;
    return *(bool *)user
               ? brg_error_set(BRG_ERR_CALLBACK, __FILE__, __LINE__, "broken")
               : BRG_OK;
}

static brg_status fails(world *w, const run *r)
{
    bool is_broken = false;
    brg_hook *hook;
    (void)r;
    BRG_TRY(brg_tensor_add_post_accumulate_hook(&hook, w->params[0], fail_hook,
                                                &is_broken, NULL));
    BRG_TRY(step_of(w, 0));
    BRG_TRY(zero(w));
    is_broken = w->rank == w->n - 1;
    if (is_broken)
        RANK_FAILS(backward(w, 1, ALL & ~8u), BRG_ERR_CALLBACK, "broken");
    else
        BRG_TRY(backward(w, 1, ALL));
    is_broken = false;
    RANK_FAILS(backward(w, 2, ALL), BRG_ERR_PEER,
               "backward failed in step 2 on 1 of");
    BRG_TRY(step_of(w, 3));
    BRG_TRY(step_of(w, 4));
    BRG_TRY(brg_ddp_confirm(w->ddp));
    brg_hook_remove(hook);
    return BRG_OK;
}

static void test_device_buckets__a_failed_rank_shows_in_the_next(void **state)
{
    (void)state;
    run r = make_run(fails);
    run_worlds(&r);
}

/* ---- Unused parameters --------------------------------------------------------------- */

static brg_status leaves_out(world *w, const run *r)
{
    (void)r;
    BRG_TRY(step_of(w, 0));
    for (int step = 1; step < 5; step++) {
        unsigned mine = ALL & ~2u; /* none uses b; the first alone uses a */
        if (w->rank > 0)
            mine &= ~1u;
        BRG_TRY(zero(w));
        BRG_TRY(backward(w, step, mine));
        BRG_TRY(check_grad(w, step, 0, 1u));
        BRG_TRY(check_grad(w, step, 2, ~0u));
        RANK_CHECK(!brg_tensor_grad(w->params[1]), "b has a gradient");
        const brg_reducer *reducer = brg_ddp_reducer(w->ddp);
        RANK_CHECK(brg_reducer_n_used(reducer, 0) == 1, "%zu ranks use a",
                   brg_reducer_n_used(reducer, 0));
    }
    return brg_ddp_confirm(w->ddp);
}

static void test_device_buckets__parameters_may_be_left_out(void **state)
{
    (void)state;
    run r = make_run(leaves_out);
    r.options.allow_unused = true;
    run_worlds(&r);
}

/* Ranks run out of data one after the other. */
static brg_status joins(world *w, const run *r)
{
    (void)r;
    for (int step = 0; step < 3 + w->rank; step++) {
        unsigned who = 0;
        for (int k = 0; k < w->n; k++)
            who |= step < 3 + k ? 1u << k : 0;
        BRG_TRY(zero(w));
        BRG_TRY(backward(w, step, ALL));
        BRG_TRY(check_grad(w, step, 3, who));
    }
    int n = 0;
    for (bool is_over = false; !is_over; n++)
        BRG_TRY(brg_ddp_join(w->ddp, &is_over));
    RANK_CHECK(n == w->n - w->rank, "%d steps joined", n);
    return brg_ddp_confirm(w->ddp);
}

static void test_device_buckets__ranks_may_run_out_of_data(void **state)
{
    (void)state;
    run r = make_run(joins);
    run_worlds(&r);
}

/* ---- The reproducible reduction ---------------------------------------------------------- */

#define LEAVES 6
static double totals[LEAVES]; /* of each step, as one rank has it */

/* One backward for each leaf, then the weighted sum of all gradients: the same
 * bits in every world, and about the average. */
static brg_status sums_leaves(world *w, const run *r)
{
    (void)r;
    for (int step = 0; step < LEAVES; step++) {
        double got = 0, want = 0, scale = 0;
        BRG_TRY(zero(w));
        for (bool is_last = false; !is_last;) {
            uint32_t leaf;
            world as = *w;
            is_last = brg_ddp_next_leaf(w->ddp, &leaf);
            as.rank = (int)leaf;
            BRG_TRY(backward(&as, step, ALL));
        }
        for (size_t i = 0; i < N_PARAMS; i++) {
            double values[80];
            brg_scope *scope = brg_scope_begin();
            brg_status status = brg_tensor_read(
                brg_cast(brg_tensor_grad(w->params[i]), BRG_DTYPE_F64), values,
                numel(i) * sizeof *values);
            brg_scope_end(scope);
            BRG_TRY(status);
            for (size_t k = 0; k < numel(i); k++) {
                got += (double)(k + 1) * values[k];
                scale += (double)(k + 1) * fabs(values[k]);
                for (int leaf = 0; leaf < LEAVES; leaf++)
                    want += (double)(k + 1) / LEAVES * 0.3 *
                            ranks_gradient(leaf, step, i, k);
            }
        }
        RANK_CHECK(fabs(got - want) < 0.005 * scale,
                   "rank %d, step %d: %g, not %g", w->rank, step, got, want);
        if (w->n == 1)
            totals[step] = got;
        RANK_CHECK(memcmp(&got, &totals[step], sizeof got) == 0,
                   "%d ranks, rank %d, step %d: %.17g, alone %.17g", w->n,
                   w->rank, step, got, totals[step]);
    }
    return brg_ddp_confirm(w->ddp);
}

static void test_device_buckets__sum_leaves_alike(void **state)
{
    (void)state;
    run r = make_run(sums_leaves);
    r.options.reduction = BRG_REDUCTION_REPRODUCIBLE;
    r.options.n_leaves = LEAVES;
    size = 0.3; /* sums are to be rounded */
    run_worlds(&r);
    dtypes[2] = BRG_DTYPE_BF16;
    run_worlds(&r);
    dtypes[2] = BRG_DTYPE_F32;
    size = 1;
}

/* ---- Raw buffers ---------------------------------------------------------------------- */

static brg_status raw_body(world *w, const run *r)
{
    enum { N = 3, COUNT = 50 };
    brg_reducer_param params[N];
    brg_reducer *reducer;
    (void)r;
    for (size_t i = 0; i < N; i++) {
        params[i] = (brg_reducer_param){
            .count = COUNT, .dtype = BRG_DTYPE_F32, .device = THERE(w->rank)};
        BRG_TRY(
            fake_alloc(THERE(w->rank), &params[i].grad, COUNT * sizeof(float)));
    }
    brg_reducer_options options = BRG_REDUCER_OPTIONS_INIT;
    options.first_bucket_bytes = options.bucket_bytes = 300;
    BRG_TRY(brg_reducer_create(&reducer, w->pg, params, N, &options));
    for (int step = 0; step < 5; step++) {
        for (size_t i = 0; i < N; i++) {
            float *x = at(params[i].grad);
            for (size_t k = 0; k < COUNT; k++)
                x[k] = (float)ranks_gradient(w->rank, step, i, k);
            BRG_TRY(brg_reducer_mark_ready(reducer, i));
        }
        BRG_TRY(brg_reducer_wait(reducer));
        for (size_t i = 0; i < N; i++)
            for (size_t k = 0; k < COUNT; k++) {
                double got = ((float *)at(params[i].grad))[k];
                double d = got - ranks_average(w->n, step, i, k);
                RANK_CHECK(d < 1e-6 && d > -1e-6, "step %d: %zu[%zu] %g", step,
                           i, k, got);
            }
    }
    BRG_TRY(brg_reducer_mark_ready(reducer, 0));
    if (w->rank == 0) {
        BRG_TRY(brg_reducer_cancel(reducer));
    } else {
        for (size_t i = 1; i < N; i++)
            BRG_TRY(brg_reducer_mark_ready(reducer, i));
        BRG_TRY(brg_reducer_wait(reducer));
    }
    RANK_FAILS(brg_reducer_confirm(reducer), BRG_ERR_PEER, "step 6 on 1 of");
    brg_reducer_destroy(reducer);
    for (size_t i = 0; i < N; i++)
        fake_free(THERE(w->rank), params[i].grad, COUNT * sizeof(float));
    return BRG_OK;
}

static void test_device_buckets__raw_buffers(void **state)
{
    (void)state;
    run r = make_run(raw_body);
    r.is_bare = true;
    run_worlds(&r);
}

/* ---- What cannot be ------------------------------------------------------------------- */

static brg_status refuses(world *w, const run *r)
{
    brg_ddp *ddp;
    brg_ddp_options options = r->options;
    BRG_TRY(brg_device_set(HOME));
    brg_tensor *stray = brg_rand(BRG_DTYPE_F32, BRG_SHAPE(3));
    BRG_TRY(brg_device_set(THERE(w->rank)));
    BRG_TRY(brg_set_requires_grad(stray, true));
    RANK_FAILS(brg_ddp_create(&ddp, w->pg, &stray, 1, NULL, 0, &options),
               BRG_ERR_UNSUPPORTED, "is on cpu:0, the group reduces on cuda:");
    w->pg->end.device = HOME;
    RANK_FAILS(brg_ddp_create(&ddp, w->pg, w->params, 4, NULL, 0, &options),
               BRG_ERR_UNSUPPORTED, "parameter 0 (a) is on cuda:");
    w->pg->end.device = THERE(w->rank);
    options.measure_norm = true;
    RANK_FAILS(brg_ddp_create(&ddp, w->pg, w->params, 4, NULL, 0, &options),
               BRG_ERR_UNSUPPORTED, "measure_norm needs gradients in host");
    return BRG_OK;
}

static void test_device_buckets__refusals_say_why(void **state)
{
    (void)state;
    run r = make_run(refuses);
    r.is_bare = true;
    run_worlds(&r);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        TEST(test_device_buckets__average_over_ranks),
        TEST(test_device_buckets__a_steady_step_crosses_nothing),
        TEST(test_device_buckets__missing_gradients_show_in_the_next),
        TEST(test_device_buckets__the_first_step_is_waited_for),
        TEST(test_device_buckets__a_failed_rank_shows_in_the_next),
        TEST(test_device_buckets__parameters_may_be_left_out),
        TEST(test_device_buckets__ranks_may_run_out_of_data),
        TEST(test_device_buckets__sum_leaves_alike),
        TEST(test_device_buckets__raw_buffers),
        TEST(test_device_buckets__refusals_say_why),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
