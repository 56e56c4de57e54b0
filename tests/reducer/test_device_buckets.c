/* SPDX-License-Identifier: Apache-2.0
 * Gradients on a device: averages, nothing copied, errors one step later. */
#include "reducer/reducer.h"
#include "tests/reducer/made_up_device.h"

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
        tally before, after;
        brg_scope *scope = brg_scope_begin();
        brg_tensor *loss = NULL;
        BRG_TRY(zero(w));
        for (size_t i = 0; i < N_PARAMS; i++) {
            brg_tensor *term = brg_cast(
                brg_sum_all(brg_mul(w->params[i], data[i])), BRG_DTYPE_F32);
            loss = loss ? brg_add(loss, term) : term;
        }
        BRG_TRY(take_tally(w->pg, &before));
        brg_status status = brg_backward(loss);
        BRG_TRY(take_tally(w->pg, &after));
        brg_scope_end(scope);
        BRG_TRY(status);
        RANK_CHECK(step < 2 || !fake.fetch ||
                       after.n_crossings == before.n_crossings,
                   "rank %d, step %d: %d copies between host and device",
                   w->rank, step, after.n_crossings - before.n_crossings);
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

/* ---- Streams of the user's -------------------------------------------------------------- */

enum { N_LATE = 3, LATE = 50 };

/* What a stream has not written yet: the gradient is there once the device's
 * queue has waited for it. */
typedef struct late {
    const world *w;
    void *grad;
    size_t i;
    int step;
} late;

static brg_status fake_event_wait(brg_device device, void *event)
{
    const late *l = event;
    float *x = at(l->grad);
    if (l->step < 0)
        return brg_error_set(BRG_ERR_DEVICE, __FILE__, __LINE__,
                             "an event of another device than %d",
                             device.index);
    for (size_t k = 0; k < LATE; k++)
        x[k] = (float)ranks_gradient(l->w->rank, l->step, l->i, k);
    return BRG_OK;
}

typedef struct late_run {
    world *w;
    brg_reducer *reducer;
    late all[N_LATE]; /* in slots: grad is set for each mark */
    bool in_slots;
} late_run;

static brg_status mark_late(void *user, size_t i)
{
    late_run *x = user;
    late *l = &x->all[i];
    if (x->in_slots)
        l->grad = brg_reducer_slot(x->reducer, i);
    return brg_reducer_mark_ready_after(x->reducer, i, l);
}

static brg_status check_late(const late_run *x, int step)
{
    for (size_t i = 0; i < N_LATE; i++)
        for (size_t k = 0; k < LATE; k++) {
            double got = ((float *)at(x->all[i].grad))[k];
            double d = got - ranks_average(x->w->n, step, i, k);
            RANK_CHECK(d < 1e-6 && d > -1e-6, "step %d: %zu[%zu] %g", step, i,
                       k, got);
        }
    return BRG_OK;
}

/* Marks of the thread that waits, and of others. */
static brg_status late_steps(late_run *x)
{
    for (int step = 0; step < 5; step++) {
        for (size_t i = 0; i < N_LATE; i++)
            x->all[i].step = step;
        for (size_t i = 0; i < N_LATE && step % 2 == 0; i++)
            BRG_TRY(mark_late(x, i));
        if (step % 2)
            BRG_TRY(ranks_by_threads(N_LATE, mark_late, NULL, x));
        BRG_TRY(brg_reducer_wait(x->reducer));
        BRG_TRY(check_late(x, step));
    }
    return brg_reducer_confirm(x->reducer);
}

/* A step in which a mark of rank 0 failed is no rank's: its own error there, the
 * others hear of it; then a good one. */
static brg_status lose_step(late_run *x, const char *text)
{
    const bool is_here = x->w->pg->end.device.type == BRG_DEVICE_CPU;
    if (x->w->rank == 0)
        RANK_FAILS(brg_reducer_wait(x->reducer), BRG_ERR_DEVICE, text);
    else if (is_here)
        RANK_FAILS(brg_reducer_wait(x->reducer), BRG_ERR_PEER,
                   "failed on rank 0");
    else
        BRG_TRY(brg_reducer_wait(x->reducer));
    if (!is_here)
        RANK_FAILS(brg_reducer_confirm(x->reducer), BRG_ERR_PEER, "on 1 of");
    for (size_t i = 0; i < N_LATE; i++) {
        x->all[i].step = 6;
        BRG_TRY(mark_late(x, i));
    }
    BRG_TRY(brg_reducer_wait(x->reducer));
    BRG_TRY(check_late(x, 6));
    return brg_reducer_confirm(x->reducer);
}

/* The same of a mark by another thread, whose wait bucket by bucket fails, too;
 * and of one after which rank 0 gives the step up. */
static brg_status late_failures(late_run *x)
{
    for (size_t i = 0; i < N_LATE; i++)
        x->all[i].step = i == 0 && x->w->rank == 0 ? -1 : 5;
    const brg_status marked = ranks_by_threads(N_LATE, mark_late, NULL, x);
    RANK_CHECK(marked == (x->w->rank == 0 ? BRG_ERR_DEVICE : BRG_OK), "%s",
               brg_status_name(marked));
    if (x->w->rank == 0)
        RANK_FAILS(brg_reducer_wait_bucket(x->reducer, 0), BRG_ERR_DEVICE,
                   "parameter 0: the mark of another thread failed");
    return lose_step(x, "parameter 0: the mark of another thread failed");
}

static brg_status late_cancelled(late_run *x)
{
    const bool is_here = x->w->pg->end.device.type == BRG_DEVICE_CPU;
    for (size_t i = 0; i < N_LATE; i++)
        x->all[i].step = i == 1 && x->w->rank == 0 ? -1 : 5;
    for (size_t i = 0; i < N_LATE; i++)
        if (mark_late(x, i) != BRG_OK)
            RANK_CHECK(x->all[i].step < 0, "%s", brg_error_message());
    if (x->w->rank == 0)
        BRG_TRY(brg_reducer_cancel(x->reducer));
    else if (is_here)
        RANK_FAILS(brg_reducer_wait(x->reducer), BRG_ERR_PEER, "on rank 0");
    else
        BRG_TRY(brg_reducer_wait(x->reducer));
    if (!is_here)
        RANK_FAILS(brg_reducer_confirm(x->reducer), BRG_ERR_PEER, "on 1 of");
    return BRG_OK;
}

static brg_status late_faults(late_run *x);

/* An event that cannot be waited for: this rank's own error, the others get no
 * wait for ever. */
static brg_status late_mistakes(late_run *x)
{
    for (size_t i = 0; i < N_LATE; i++)
        x->all[i].step = i == 1 && x->w->rank == 0 ? -1 : 5;
    RANK_FAILS(brg_reducer_mark_ready_after(x->reducer, 0, NULL), BRG_ERR_ARG,
               "the event of parameter 0 is NULL");
    RANK_FAILS(brg_reducer_mark_ready_after(x->reducer, N_LATE, x), BRG_ERR_ARG,
               "no parameter 3");
    BRG_TRY(mark_late(x, 0));
    RANK_FAILS(mark_late(x, 0), BRG_ERR_STATE, "only once");
    for (size_t i = 1; i < N_LATE; i++)
        if (x->all[i].step < 0)
            RANK_FAILS(mark_late(x, i), BRG_ERR_DEVICE, "another device");
        else
            BRG_TRY(mark_late(x, i));
    BRG_TRY(lose_step(x, "another device"));
    BRG_TRY(late_failures(x));
    if (x->w->pg->end.device.type == BRG_DEVICE_CPU)
        BRG_TRY(late_faults(x));
    return late_cancelled(x);
}

static brg_status clocked_steps(late_run *x);

static brg_status late_body(world *w, const run *r)
{
    brg_reducer_param params[N_LATE];
    late_run x = {.w = w, .in_slots = r->options.grads_apart};
    for (size_t i = 0; i < N_LATE; i++) {
        params[i] = (brg_reducer_param){
            .count = LATE, .dtype = BRG_DTYPE_F32, .device = THERE(w->rank)};
        if (!x.in_slots)
            BRG_TRY(fake_alloc(THERE(w->rank), &params[i].grad,
                               LATE * sizeof(float)));
        x.all[i] = (late){.w = w, .grad = params[i].grad, .i = i};
    }
    brg_reducer_options options = BRG_REDUCER_OPTIONS_INIT;
    options.first_bucket_bytes = options.bucket_bytes = 300;
    BRG_TRY(brg_reducer_create(&x.reducer, w->pg, params, N_LATE, &options));
    brg_status status = late_steps(&x);
    if (status == BRG_OK)
        status = fake.clock ? clocked_steps(&x) : late_mistakes(&x);
    brg_reducer_destroy(x.reducer);
    for (size_t i = 0; i < N_LATE && !x.in_slots; i++)
        fake_free(THERE(w->rank), params[i].grad, LATE * sizeof(float));
    return status;
}

static void test_device_buckets__streams_of_the_users_own(void **state)
{
    (void)state;
    run r = make_run(late_body);
    r.is_bare = true;
    fake.event_wait = fake_event_wait;
    run_worlds(&r);
    r.options.grads_apart = true; /* here: gradients live in slots */
    run_worlds(&r);
    fake.event_wait = NULL;
}

/* ---- Through the host -------------------------------------------------------------------- */

/* Copies that the host waits for are made by the threads of the ranks alone;
 * and one of theirs may fail. */
static _Thread_local bool is_rank, fails_to_copy;
static _Atomic int n_strange;

static brg_status staged_copy(brg_device to, void *dst, brg_device from,
                              const void *src, size_t nbytes)
{
    if (to.type == BRG_DEVICE_CPU && from.type == BRG_DEVICE_CUDA) {
        n_strange += !is_rank;
        if (fails_to_copy)
            return brg_error_set(BRG_ERR_DEVICE, __FILE__, __LINE__,
                                 "an earlier fault");
    }
    return fake_copy(to, dst, from, src, nbytes);
}

static brg_status late_faults(late_run *x)
{
    for (size_t i = 0; i < N_LATE; i++)
        x->all[i].step = 5;
    BRG_TRY(ranks_by_threads(N_LATE, mark_late, NULL, x));
    fails_to_copy = x->w->rank == 0;
    BRG_TRY(brg_reducer_poll(x->reducer));
    fails_to_copy = false;
    return lose_step(x, "an earlier fault");
}

/* The group reduces in host memory, over MPI for example. */
static brg_status staged_body(world *w, const run *r)
{
    brg_reducer *reducer;
    brg_reducer_param bare = {
        .count = 3, .dtype = BRG_DTYPE_F32, .device = THERE(w->rank)};
    w->pg->end.device = HOME;
    w->pg->end.ops = plain;
    RANK_FAILS(brg_reducer_create(&reducer, w->pg, &bare, 1, NULL),
               BRG_ERR_UNSUPPORTED, "a `grad` that is not NULL");
    const int before = n_crossings;
    is_rank = true;
    BRG_TRY(late_body(w, r));
    RANK_CHECK(n_crossings > before, "nothing went through the host");
    RANK_CHECK(n_strange == 0, "%d copies by other threads", (int)n_strange);
    return BRG_OK;
}

static void test_device_buckets__gradients_go_through_the_host(void **state)
{
    (void)state;
    run r = make_run(staged_body);
    r.is_bare = true;
    fake.event_wait = fake_event_wait;
    fake.copy = staged_copy;
    run_worlds(&r);
    fake.copy = fake_copy;
    fake.event_wait = NULL;
}

/* ---- Waits by the device's clock ---------------------------------------------------------- */

static uint64_t now[4]; /* by rank; 0: the clock fails */

static brg_status fake_clock(brg_device device, uint64_t *to)
{
    if (now[device.index] == 0)
        return brg_error_set(BRG_ERR_DEVICE, __FILE__, __LINE__, "no launch");
    *(uint64_t *)at(to) = now[device.index];
    return BRG_OK;
}

/* A step that ends at that time, and begins to wait at `first`, if not 0, for
 * its first bucket. */
static brg_status timed(late_run *x, uint64_t first, uint64_t last)
{
    for (size_t i = 0; i < N_LATE; i++) {
        x->all[i].step = 7;
        BRG_TRY(mark_late(x, i));
    }
    now[x->w->rank] = first;
    if (first > 0)
        BRG_TRY(brg_reducer_wait_bucket(x->reducer, 0));
    now[x->w->rank] = last;
    BRG_TRY(brg_reducer_wait(x->reducer));
    return check_late(x, 7);
}

static brg_status clocked_steps(late_run *x)
{
    const bool is_hurt = x->w->rank == 0;
    uint64_t ns = 1;
    BRG_TRY(brg_reducer_measure_exposed(x->reducer));
    BRG_TRY(timed(x, 0, 10));
    BRG_TRY(brg_reducer_exposed_ns(x->reducer, &ns));
    RANK_CHECK(ns == 0, "%d ns", (int)ns);
    BRG_TRY(timed(x, 20, 70));
    BRG_TRY(brg_reducer_exposed_ns(x->reducer, &ns));
    RANK_CHECK(ns == 50, "%d ns of 50", (int)ns);
    BRG_TRY(timed(x, 80, is_hurt ? 0 : 90)); /* its own, and no step's */
    for (int again = 0; again < 2; again++) {
        if (is_hurt)
            RANK_FAILS(brg_reducer_exposed_ns(x->reducer, &ns), BRG_ERR_DEVICE,
                       "since the clock failed: no launch");
        else
            BRG_TRY(brg_reducer_exposed_ns(x->reducer, &ns));
        BRG_TRY(timed(x, 0, 100));
    }
    BRG_TRY(brg_reducer_measure_exposed(x->reducer));
    BRG_TRY(timed(x, 110, 140));
    BRG_TRY(brg_reducer_exposed_ns(x->reducer, &ns));
    RANK_CHECK(ns == 30, "%d ns of 30", (int)ns);
    return brg_reducer_confirm(x->reducer);
}

static void test_device_buckets__waits_by_the_clock_of_the_device(void **state)
{
    (void)state;
    run r = make_run(late_body);
    r.is_bare = true;
    fake.event_wait = fake_event_wait;
    fake.clock = fake_clock;
    run_worlds(&r);
    fake.clock = NULL;
    fake.event_wait = NULL;
}

/* ---- What cannot be ------------------------------------------------------------------- */

/* Sizes that are not given. */
static brg_status takes_sizes(world *w, const run *r)
{
    brg_ddp *ddp;
    brg_ddp_options options = BRG_DDP_OPTIONS_INIT;
    (void)r;
    for (size_t given = 0; given <= 5000; given += 5000) {
        options.bucket_bytes = given;
        BRG_TRY(brg_ddp_create(&ddp, w->pg, w->params, 4, NULL, 0, &options));
        const brg_reducer_options *o = &brg_ddp_reducer(ddp)->options;
        RANK_CHECK(o->first_bucket_bytes == (size_t)1 << 20 &&
                       o->bucket_bytes == (given ? given : (size_t)60 << 20),
                   "buckets of %zu and %zu bytes", o->first_bucket_bytes,
                   o->bucket_bytes);
        brg_ddp_destroy(ddp);
    }
    return BRG_OK;
}

static void test_device_buckets__are_larger_there(void **state)
{
    (void)state;
    run r = make_run(takes_sizes);
    r.is_bare = true;
    run_worlds(&r);
}

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
    options.measure_norm = true;
    RANK_FAILS(brg_ddp_create(&ddp, w->pg, w->params, 4, NULL, 0, &options),
               BRG_ERR_UNSUPPORTED,
               "measure_norm is not for gradients on cuda");
    options.measure_norm = false;
    options.check_finite = true;
    RANK_FAILS(brg_ddp_create(&ddp, w->pg, w->params, 4, NULL, 0, &options),
               BRG_ERR_UNSUPPORTED,
               "check_finite is not for gradients on cuda");
    return BRG_OK;
}

static void test_device_buckets__refusals_say_why(void **state)
{
    (void)state;
    run r = make_run(refuses);
    r.is_bare = true;
    fake.look = NULL; /* a device that cannot */
    run_worlds(&r);
    fake.look = fake_look;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_device_buckets__average_over_ranks),
        TEST(test_device_buckets__a_steady_step_crosses_nothing),
        TEST(test_device_buckets__missing_gradients_show_in_the_next),
        TEST(test_device_buckets__the_first_step_is_waited_for),
        TEST(test_device_buckets__a_failed_rank_shows_in_the_next),
        TEST(test_device_buckets__parameters_may_be_left_out),
        TEST(test_device_buckets__ranks_may_run_out_of_data),
        TEST(test_device_buckets__raw_buffers),
        TEST(test_device_buckets__streams_of_the_users_own),
        TEST(test_device_buckets__gradients_go_through_the_host),
        TEST(test_device_buckets__waits_by_the_clock_of_the_device),
        TEST(test_device_buckets__are_larger_there),
        TEST(test_device_buckets__refusals_say_why),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
