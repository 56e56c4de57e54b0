/* SPDX-License-Identifier: Apache-2.0
 * Communication hooks with gradients on a device: the bits of the same hook
 * with gradients in host memory, state that is saved, loaded and moved, hooks of
 * the user's. */
#include "reducer/hooks/compress.h"
#include "tests/reducer/made_up_device.h"

/* ---- The device's passes --------------------------------------------------------------- */

static _Atomic int n_passes;

static brg_status compress_there(brg_device device, const brg_compress_job *job)
{
    brg_compress_job own = *job;
    brg_compress_part parts[16];
    (void)device;
    n_passes++;
    RANK_CHECK(job->n_parts <= 16, "%zu parts", job->n_parts);
    for (size_t i = 0; i < job->n_parts; i++) {
        brg_compress_part *p = &parts[i];
        *p = job->parts[i];
        p->data = at(p->data);
        p->wire = at(p->wire);
        p->error = at(p->error);
        p->left = at(p->left);
        p->right = at(p->right);
        p->q = at(p->q);
        p->finite = at(p->finite);
    }
    own.parts = parts;
    own.steps = at(job->steps);
    brg__compress_host(&own);
    return BRG_OK;
}

/* ---- The same training on the host and there ------------------------------------------- */

#define N 6
#define MAX_COUNT 130
#define N_STEPS 7
#define BAD_STEP 3
static const size_t counts[N] = {108, 70, 33, 61, 130, 0};
static const size_t rows[N] = {12, 0, 0, 0, 13, 0};
static const brg_dtype kinds[N] = {BRG_DTYPE_F32, BRG_DTYPE_F64, BRG_DTYPE_BF16,
                                   BRG_DTYPE_F32, BRG_DTYPE_F32, BRG_DTYPE_F32};

typedef enum hook_kind {
    F16_FED_BACK,
    BF16_FED_BACK,
    Q8,
    Q8_FED_BACK,
    POWERSGD,
    POWERSGD_COLD,
    POWERSGD_LATER,
    N_KINDS
} hook_kind;

static brg_status make_hook(brg_comm_hook **out, hook_kind kind)
{
    brg_powersgd_options options = BRG_POWERSGD_OPTIONS_INIT;
    options.rank = 2;
    options.min_saving = 1;
    options.no_warm_start = kind == POWERSGD_COLD;
    options.start_step = kind == POWERSGD_LATER ? 2 : 0;
    if (kind >= POWERSGD)
        return brg_comm_hook_create_powersgd(out, &options);
    if (kind >= Q8)
        return brg_comm_hook_create_q8(out, kind == Q8_FED_BACK);
    return brg_comm_hook_create_cast(
        out, kind == BF16_FED_BACK ? BRG_DTYPE_BF16 : BRG_DTYPE_F16, true);
}

typedef struct plan {
    hook_kind kind;
    bool sum;
    int there_from;  /* step from which gradients are on the device */
    int resume_from; /* step before which all is made anew; 0: none */
    int node_size;
} plan;

/* Of one rank. */
typedef struct trainer {
    world *w;
    const plan *plan;
    bool is_there;
    brg_comm_hook *hook;
    brg_reducer *reducer;
    brg_reducer_param params[N];
} trainer;

typedef unsigned char gradients[N][MAX_COUNT * 8];
static gradients expected[4][N_STEPS];

static void place(trainer *t, bool is_there)
{
    brg_pg *pg = t->w->pg;
    t->is_there = is_there;
    pg->end.device = is_there ? THERE(t->w->rank) : HOME;
    pg->end.ops = is_there ? &ops : plain;
}

static brg_status open_reducer(trainer *t)
{
    static const char *const names[N] = {"weight", "b", "c", "d", "wide", "e"};
    brg_reducer_options options = BRG_REDUCER_OPTIONS_INIT;
    options.hook = t->hook;
    options.sum = t->plan->sum;
    options.first_bucket_bytes = options.bucket_bytes = 800;
    for (size_t i = 0; i < N; i++) {
        brg_reducer_param *p = &t->params[i];
        *p = (brg_reducer_param){.name = names[i],
                                 .count = counts[i],
                                 .n_rows = rows[i],
                                 .dtype = kinds[i],
                                 .device = t->w->pg->end.device};
        if (t->is_there)
            BRG_TRY(fake_alloc(p->device, &p->grad, MAX_COUNT * 8));
        else
            p->grad = calloc(MAX_COUNT, 8);
    }
    return brg_reducer_create(&t->reducer, t->w->pg, t->params, N, &options);
}

static void close_reducer(trainer *t)
{
    brg_reducer_destroy(t->reducer);
    t->reducer = NULL;
    for (size_t i = 0; i < N; i++) {
        if (t->is_there && t->params[i].grad)
            fake_free(t->params[i].device, t->params[i].grad, MAX_COUNT * 8);
        else
            free(t->params[i].grad);
        t->params[i].grad = NULL;
    }
}

/* As a checkpoint does it: through host memory, into a hook made anew. */
static brg_status resume(trainer *t)
{
    enum { MOST = 16 };
    char saved[MOST][MAX_COUNT * 8];
    size_t n = brg_comm_hook_state_count(t->hook);
    RANK_CHECK(n > 0 && n <= MOST, "%zu tensors of state", n);
    for (size_t i = 0; i < n; i++) {
        brg_tensor *s = brg_comm_hook_state_at(t->hook, i)->tensor;
        BRG_TRY(brg_tensor_read(s, saved[i], brg_tensor_nbytes(s)));
    }
    close_reducer(t);
    brg_comm_hook_destroy(t->hook);
    t->hook = NULL;
    BRG_TRY(make_hook(&t->hook, t->plan->kind));
    BRG_TRY(open_reducer(t));
    RANK_CHECK(brg_comm_hook_state_count(t->hook) == n, "state differs");
    for (size_t i = 0; i < n; i++) {
        const brg_named_tensor *s = brg_comm_hook_state_at(t->hook, i);
        const bool stays =
            t->plan->kind >= POWERSGD && strcmp(s->name, "steps") == 0;
        RANK_CHECK(brg_tensor_numel(s->tensor) == 0 ||
                       is_there(brg_tensor_data(s->tensor)) ==
                           (t->is_there && !stays),
                   "%s is on the other side", s->name);
        BRG_TRY(brg_tensor_write(s->tensor, saved[i],
                                 brg_tensor_nbytes(s->tensor)));
    }
    return BRG_OK;
}

static double value_of(const world *w, int step, size_t i, size_t k)
{
    const bool is_bad =
        step == BAD_STEP && w->rank == w->n - 1 && k == 5 && i < 2;
    return is_bad ? (i ? NAN : INFINITY)
                  : ranks_gradient(w->rank, step, i, k) / 3;
}

static brg_status meet(const world *w)
{
    brg_work *work;
    BRG_TRY(brg_barrier(w->pg, &work));
    return brg_work_wait(work);
}

/* No step but the first takes memory or copies to or from the host. */
static brg_status reduce_step(trainer *t, int step, bool is_steady)
{
    const world *w = t->w;
    for (size_t i = 0; i < N; i++)
        for (size_t k = 0; k < counts[i]; k++)
            ranks_store(at(t->params[i].grad), k, kinds[i],
                        value_of(w, step, i, k));
    BRG_TRY(meet(w));
    const int before = n_crossings + n_allocs;
    BRG_TRY(meet(w));
    for (size_t i = 0; i < N; i++)
        BRG_TRY(brg_reducer_mark_ready(t->reducer, (i * 5 + 2) % N));
    BRG_TRY(brg_reducer_wait(t->reducer));
    BRG_TRY(meet(w));
    const int after = n_crossings + n_allocs;
    BRG_TRY(meet(w));
    RANK_CHECK(!is_steady || !fake.fetch || before == after,
               "step %d: %d copies or blocks", step, after - before);
    return BRG_OK;
}

/* Products of PowerSGD are the device's own, and so are their roundings. */
static brg_status compare_step(const trainer *t, int step)
{
    const double allowed = t->plan->kind >= POWERSGD ? 2e-5 : 0;
    for (size_t i = 0; i < N; i++)
        for (size_t k = 0; k < counts[i]; k++) {
            const void *wanted = expected[t->w->rank][step][i];
            const double want = ranks_load(wanted, k, kinds[i]);
            const double got = ranks_load(at(t->params[i].grad), k, kinds[i]);
            const bool same = isnan(want) ? isnan(got) != 0
                                          : want == got || /* infinite */
                                                fabs(want - got) <= allowed;
            RANK_CHECK(same,
                       "hook %d of %d ranks, rank %d, step %d: %zu[%zu] is %g, "
                       "on the host %g",
                       (int)t->plan->kind, t->w->n, t->w->rank, step, i, k, got,
                       want);
        }
    return BRG_OK;
}

static brg_status keep_step(const trainer *t, int step)
{
    for (size_t i = 0; i < N; i++)
        memcpy(expected[t->w->rank][step][i], t->params[i].grad, MAX_COUNT * 8);
    return BRG_OK;
}

static brg_status run_steps(trainer *t)
{
    const plan *p = t->plan;
    int made = 0; /* the step before which the reducer was made */
    for (int step = 0; step < N_STEPS; step++) {
        const bool moves = step > 0 && step == p->there_from;
        if (moves) {
            close_reducer(t);
            place(t, true);
            BRG_TRY(open_reducer(t));
        } else if (step > 0 && step == p->resume_from) {
            BRG_TRY(resume(t));
        }
        if (moves || step == p->resume_from)
            made = step;
        BRG_TRY(reduce_step(t, step, step > made + 1 && t->is_there));
        BRG_TRY(p->there_from < N_STEPS ? compare_step(t, step)
                                        : keep_step(t, step));
    }
    return BRG_OK;
}

static const plan *current;

static brg_status trains(world *w, const run *r)
{
    trainer t = {.w = w, .plan = current};
    (void)r;
    place(&t, current->there_from == 0);
    brg_status status = make_hook(&t.hook, current->kind);
    if (status == BRG_OK)
        status = open_reducer(&t);
    if (status == BRG_OK)
        status = run_steps(&t);
    close_reducer(&t);
    brg_comm_hook_destroy(t.hook);
    place(&t, true);
    return status;
}

static void run_plan(const plan *p, int n)
{
    run r = make_run(trains);
    brg_sim_options options = BRG_SIM_OPTIONS_INIT;
    options.node_size = p->node_size;
    r.is_bare = true;
    current = p;
    for (int later = 0; later < (p->there_from < N_STEPS ? 2 : 1); later++) {
        set_fetch(later);
        assert_brg_ok(brg_sim_run(n, &options, on_rank, &r));
    }
}

static void run_kind(hook_kind kind, bool sum)
{
    for (int n = 1; n <= 4; n++) {
        plan p = {.kind = kind, .sum = sum, .node_size = n == 4 ? 2 : 0};
        p.there_from = N_STEPS;
        run_plan(&p, n);
        p.there_from = 0;
        n_passes = 0;
        run_plan(&p, n);
        assert_true(n_passes > 0);
        p.resume_from = 5;
        run_plan(&p, n);
        p.there_from = 2;
        run_plan(&p, n);
    }
}

static void test_device_hooks__have_the_bits_of_the_host(void **state)
{
    (void)state;
    learn();
    fake.compress = compress_there;
    for (int kind = 0; kind < N_KINDS; kind++)
        for (int sum = 0; sum < 2; sum++)
            run_kind((hook_kind)kind, sum);
    fake.compress = NULL;
}

/* ---- Hooks of the user's ----------------------------------------------------------------- */

typedef struct own {
    brg_device device;
    size_t n_params, n_wrong;
    int n_starts;
} own;

static brg_status own_attach(void *user, const brg_hook_param *params, size_t n)
{
    own *o = user;
    o->n_params = n;
    for (size_t i = 0; i < n; i++)
        o->n_wrong += params[i].device.type != o->device.type ||
                      params[i].device.index != o->device.index;
    return BRG_OK;
}

static size_t own_wire_bytes(void *user, const brg_hook_bucket *b)
{
    (void)user;
    return b->count * brg_dtype_size(b->dtype);
}

/* Where the bucket is; on a GPU these would be kernels on its stream. */
static void scale(void *to, const void *from, const brg_hook_bucket *b,
                  double by)
{
    for (size_t k = 0; k < b->count; k++)
        ranks_store(at(to), k, b->dtype,
                    by * ranks_load(at(from), k, b->dtype));
}

static brg_status own_start(void *user, const brg_hook_bucket *b)
{
    own *o = user;
    o->n_starts++;
    o->n_wrong += !is_there(b->data) || !is_there(b->wire) ||
                  b->device.type != o->device.type ||
                  b->device.index != o->device.index;
    scale(b->wire, b->data, b, 4);
    return brg_all_reduce(b->pg, b->work, b->wire, b->count, b->dtype, b->op);
}

static brg_status own_finish(void *user, const brg_hook_bucket *b)
{
    brg_work *work = *b->work;
    (void)user;
    *b->work = NULL;
    BRG_TRY(brg_work_wait(work));
    scale(b->data, b->wire, b, 0.25);
    return BRG_OK;
}

static brg_status own_steps(world *w, const run *r)
{
    own o = {.device = THERE(w->rank)};
    brg_comm_hook *hook;
    brg_ddp_options options = r->options;
    brg_comm_hook_ops slots = {.struct_size = sizeof slots,
                               .name = "four times",
                               .attach = own_attach,
                               .wire_bytes = own_wire_bytes,
                               .start = own_start,
                               .finish = own_finish,
                               .works_on_devices = true};
    BRG_TRY(brg_comm_hook_create(&hook, &slots, &o));
    options.hook = hook;
    brg_status status =
        brg_ddp_create(&w->ddp, w->pg, w->params, N_PARAMS, NULL, 0, &options);
    for (int step = 0; status == BRG_OK && step < 4; step++)
        status = step_of(w, step);
    if (status == BRG_OK)
        status = brg_ddp_confirm(w->ddp);
    brg_ddp_destroy(w->ddp);
    w->ddp = NULL;
    brg_comm_hook_destroy(hook);
    BRG_TRY(status);
    RANK_CHECK(o.n_params == N_PARAMS && o.n_wrong == 0 && o.n_starts >= 8,
               "%zu parameters, %zu wrong, %d starts", o.n_params, o.n_wrong,
               o.n_starts);
    return BRG_OK;
}

static void test_device_hooks__of_the_users_own(void **state)
{
    (void)state;
    run r = make_run(own_steps);
    r.is_bare = true;
    run_worlds(&r);
}

/* ---- What cannot be ---------------------------------------------------------------------- */

static brg_status refuses(world *w, const run *r)
{
    brg_comm_hook *hook;
    brg_ddp_options options = r->options;
    brg_comm_hook_ops slots = {.struct_size = sizeof slots,
                               .name = "of the host",
                               .start = own_start,
                               .finish = own_finish};
    BRG_TRY(brg_comm_hook_create(&hook, &slots, NULL));
    options.hook = hook;
    RANK_FAILS(
        brg_ddp_create(&w->ddp, w->pg, w->params, N_PARAMS, NULL, 0, &options),
        BRG_ERR_UNSUPPORTED,
        "this communication hook needs gradients in host memory");
    brg_comm_hook_destroy(hook);
    for (int kind = 0; kind < N_KINDS; kind++) {
        BRG_TRY(make_hook(&hook, (hook_kind)kind));
        options.hook = hook;
        RANK_FAILS(brg_ddp_create(&w->ddp, w->pg, w->params, N_PARAMS, NULL, 0,
                                  &options),
                   BRG_ERR_UNSUPPORTED, "compresses no gradients");
        brg_comm_hook_destroy(hook);
    }
    return BRG_OK;
}

static void test_device_hooks__refusals_say_why(void **state)
{
    (void)state;
    run r = make_run(refuses);
    r.is_bare = true;
    run_worlds(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_device_hooks__have_the_bits_of_the_host),
        TEST(test_device_hooks__of_the_users_own),
        TEST(test_device_hooks__refusals_say_why),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
