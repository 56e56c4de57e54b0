/* SPDX-License-Identifier: Apache-2.0
 * check_finite and measure_norm of gradients on a device: what they say on the
 * CPU, in memory that the host may not touch. */
#include "tests/reducer/finite_ddp_checks.h"
#include "tests/reducer/made_up_device.h"

/* ---- What is not finite ------------------------------------------------------------ */

static brg_status every_ddp(world *w, const run *r)
{
    (void)r;
    return check_finite_ddp(w->pg);
}

static brg_status compiled_too(world *w, const run *r)
{
    (void)r;
    return check_finite_compiled(w->pg);
}

static brg_status loss_scaling(world *w, const run *r)
{
    (void)r;
    return check_loss_scaling(w->pg);
}

static void run_bare(brg_status (*body)(world *, const run *))
{
    run r = make_run(body);
    r.is_bare = true;
    run_worlds(&r);
}

static void test_device_looks__every_kind_of_ddp(void **state)
{
    (void)state;
    run_bare(every_ddp);
}

static void test_device_looks__compiled_backwards(void **state)
{
    (void)state;
    run_bare(compiled_too);
}

static void test_device_looks__loss_scaling(void **state)
{
    (void)state;
    run_bare(loss_scaling);
}

/* ---- Raw buffers of all dtypes -------------------------------------------------------- */

#define N_RAW 4
#define RAW_COUNT 67
static const brg_dtype raw_dtypes[N_RAW] = {BRG_DTYPE_F32, BRG_DTYPE_F16,
                                            BRG_DTYPE_BF16, BRG_DTYPE_F64};
static const double largest[N_RAW] = {0x1.fffffep127, 65504, 0x1.FEp127,
                                      0x1.fffffffffffffp1023};

typedef struct raw {
    world *w;
    brg_reducer *reducer;
    brg_reducer_param params[N_RAW];
} raw;

/* `bad` at element k of gradient i of the ranks in `who`. */
static brg_status raw_step(raw *x, size_t i, size_t k, unsigned who, double bad)
{
    for (size_t p = N_RAW; p-- > 0;) {
        void *grad = at(x->params[p].grad);
        for (size_t j = 0; j < RAW_COUNT; j++)
            ranks_store(grad, j, raw_dtypes[p],
                        ranks_gradient(x->w->rank, 0, p, j));
        if (p == i && who >> x->w->rank & 1u)
            ranks_store(grad, k, raw_dtypes[p], bad);
        BRG_TRY(brg_reducer_mark_ready(x->reducer, p));
    }
    return brg_reducer_wait(x->reducer);
}

static brg_status raw_expect(const raw *x, size_t n_ranks, int rank,
                             size_t param)
{
    brg_finite_info info;
    const bool all = brg_reducer_grads_finite(x->reducer, &info);
    RANK_CHECK(all == (n_ranks == 0) && info.all_finite == all &&
                   info.n_ranks == n_ranks && info.rank == rank &&
                   info.param == param,
               "rank %d: %d: %zu ranks, rank %d, parameter %zu; expected %zu, "
               "%d, %zu",
               x->w->rank, all, info.n_ranks, info.rank, info.param, n_ranks,
               rank, param);
    return BRG_OK;
}

static brg_status raw_steps(raw *x, bool is_sum)
{
    const int n = x->w->n;
    BRG_TRY(raw_expect(x, 0, -1, SIZE_MAX)); /* no step was made */
    for (size_t k = 0; k < 3 * RAW_COUNT; k++) {
        const double bad[3] = {NAN, INFINITY, -INFINITY};
        const size_t i = (k + k / RAW_COUNT) % N_RAW;
        const int rank = (int)k % n;
        BRG_TRY(raw_step(x, i, k % RAW_COUNT, 1u << rank, bad[k % 3]));
        BRG_TRY(raw_expect(x, 1, rank, i));
    }
    BRG_TRY(raw_step(x, 0, 0, 0, 0));
    BRG_TRY(raw_expect(x, 0, -1, SIZE_MAX));
    for (size_t i = 0; i < N_RAW; i++) { /* finite, but their sum is not */
        const bool is_f16 = raw_dtypes[i] == BRG_DTYPE_F16;
        BRG_TRY(raw_step(x, i, 3, ~0u, largest[i]));
        BRG_TRY(n == 1 ? raw_expect(x, 0, -1, SIZE_MAX)
                       : raw_expect(x, (size_t)n, -1, i));
        /* Averages of f16 may be larger, but for what rounding takes. */
        BRG_TRY(raw_step(x, i, 3, ~0u,
                         largest[i] * (is_f16 && !is_sum ? 0.99 : 0.9 / n)));
        BRG_TRY(raw_expect(x, 0, -1, SIZE_MAX));
    }
    BRG_TRY(raw_step(x, 2, 5, ~0u, NAN));
    return n == 1 ? raw_expect(x, 1, 0, 2) : raw_expect(x, (size_t)n, -1, 2);
}

static brg_status raw_body(world *w, const run *r)
{
    for (int k = 0; k < 4; k++) {
        raw x = {.w = w};
        brg_reducer_options options = BRG_REDUCER_OPTIONS_INIT;
        options.check_finite = true;
        options.sum = k % 2 == 1;
        options.first_bucket_bytes = options.bucket_bytes = k < 2 ? 1 : 0;
        for (size_t i = 0; i < N_RAW; i++) {
            x.params[i] = (brg_reducer_param){.count = RAW_COUNT,
                                              .dtype = raw_dtypes[i],
                                              .device = THERE(w->rank)};
            BRG_TRY(fake_alloc(THERE(w->rank), &x.params[i].grad,
                               RAW_COUNT * sizeof(double)));
        }
        BRG_TRY(
            brg_reducer_create(&x.reducer, w->pg, x.params, N_RAW, &options));
        const brg_status status = raw_steps(&x, options.sum);
        brg_reducer_destroy(x.reducer);
        for (size_t i = 0; i < N_RAW; i++)
            fake_free(THERE(w->rank), x.params[i].grad, 0);
        BRG_TRY(status);
    }
    (void)r;
    return BRG_OK;
}

static void test_device_looks__at_every_element(void **state)
{
    (void)state;
    run_bare(raw_body);
}

/* ---- Norms ------------------------------------------------------------------------------ */

/* Of the averages, by the order of the parameters. */
static double norm_of(int n, int step, unsigned mask)
{
    double sum = 0;
    for (size_t i = 0; i < N_PARAMS; i++)
        for (size_t k = 0; mask >> i & 1u && k < numel(i); k++) {
            const double x = ranks_average(n, step, i, k);
            sum += x * x;
        }
    return sqrt(sum);
}

static brg_status norm_now(world *w, double *norm)
{
    *norm = 0;
    for (size_t i = 0; i < N_PARAMS; i++) {
        double x;
        brg_tensor *grad = brg_tensor_grad(w->params[i]);
        if (!grad)
            continue;
        brg_scope *scope = brg_scope_begin();
        brg_status status = brg_tensor_item(
            brg_sum_all(brg_square(brg_cast(grad, BRG_DTYPE_F64))), &x);
        brg_scope_end(scope);
        BRG_TRY(status);
        *norm += x;
    }
    *norm = sqrt(*norm);
    return BRG_OK;
}

static double norms[4][6]; /* by ranks and step: of the first options */

static brg_status clips(world *w, const run *r)
{
    RANK_CHECK(brg_reducer_grad_norm(brg_ddp_reducer(w->ddp)) == 0,
               "a norm before the first step");
    for (int step = 0; step < 6; step++) {
        const unsigned mask =
            r->options.allow_unused && step > 2 ? ALL & ~2u : ALL;
        const double want = norm_of(w->n, step, mask);
        double found = 0, after = 0;
        BRG_TRY(zero(w));
        BRG_TRY(backward(w, step, mask));
        BRG_TRY(brg_ddp_clip_grad_norm(w->ddp, 1e9, &found));
        RANK_CHECK(fabs(found - want) < 1e-5 * want, "%g, not %g", found, want);
        BRG_TRY(norm_now(w, &after));
        RANK_CHECK(fabs(after - want) < 1e-5 * want, "%g, not %g", after, want);
        BRG_TRY(brg_ddp_clip_grad_norm(w->ddp, want / 4, NULL));
        BRG_TRY(norm_now(w, &after));
        RANK_CHECK(fabs(after - want / 4) < 1e-5 * want, "clipped to %g of %g",
                   after, want);
        const double again = brg_reducer_grad_norm(brg_ddp_reducer(w->ddp));
        RANK_CHECK(again == found, "%g, then %g", found, again);
        if (norms[w->n - 1][step] == 0)
            norms[w->n - 1][step] = found;
        RANK_CHECK(mask != ALL || norms[w->n - 1][step] == found,
                   "rank %d of %d, step %d: the norm's bits differ", w->rank,
                   w->n, step);
    }
    RANK_FAILS(brg_ddp_clip_grad_norm(w->ddp, 0, NULL), BRG_ERR_ARG,
               "must be positive");
    return brg_ddp_confirm(w->ddp);
}

static void test_device_looks__clipping_by_the_norm_of_buckets(void **state)
{
    (void)state;
    run r = make_run(clips);
    memset(norms, 0, sizeof norms);
    r.options.measure_norm = true;
    run_worlds(&r);
    r.options.grads_apart = true;
    r.options.first_bucket_bytes = r.options.bucket_bytes = 1;
    run_worlds(&r);
    r.options.grads_apart = false;
    r.options.first_bucket_bytes = r.options.bucket_bytes = 0;
    r.options.check_finite = r.options.allow_unused = true;
    run_worlds(&r);
}

/* The norm of a rank's shards, and of all. */
static brg_status clips_shards(world *w, const run *r)
{
    brg_ddp_options options = r->options;
    const unsigned mask = 7; /* the last is not row-major */
    options.shard = options.measure_norm = true;
    BRG_TRY(brg_ddp_create(&w->ddp, w->pg, w->params, 3, NULL, 0, &options));
    for (int step = 0; step < 3; step++) {
        const double want = norm_of(w->n, step, mask);
        double found, own, sum;
        brg_work *work;
        BRG_TRY(zero(w));
        BRG_TRY(backward(w, step, mask));
        BRG_TRY(brg_ddp_clip_grad_norm(w->ddp, want / 2, &found));
        RANK_CHECK(fabs(found - want) < 1e-5 * want, "%g, not %g", found, want);
        own = brg_reducer_grad_norm(brg_ddp_reducer(w->ddp));
        sum = own * own;
        BRG_TRY(brg_all_reduce(w->pg, &work, &sum, 1, BRG_DTYPE_F64,
                               BRG_REDUCE_SUM));
        BRG_TRY(brg_work_wait(work));
        RANK_CHECK(fabs(sqrt(sum) - want) < 1e-5 * want, "shards: %g, not %g",
                   sqrt(sum), want);
    }
    brg_ddp_destroy(w->ddp);
    w->ddp = NULL;
    return BRG_OK;
}

static void test_device_looks__norms_of_shards(void **state)
{
    (void)state;
    run_bare(clips_shards);
}

/* ---- Steps that are left out ---------------------------------------------------------- */

#define N_TRAINED 3 /* the last parameter is not row-major */
#define N_TRAIN_STEPS 9

static double element(const void *x, size_t i, brg_dtype dtype)
{
    return ranks_load(at(x), i, dtype);
}

/* AdamW of the i-th element, as a device's kernel would do it. */
static void adamw_element(const brg_device_update *u, size_t i)
{
    const brg_dtype wide =
        u->dtype == BRG_DTYPE_F64 ? BRG_DTYPE_F64 : BRG_DTYPE_F32;
    const double *f = u->f, g = element(u->grad, i, u->dtype);
    void *m = at(u->state[0]), *v = at(u->state[1]);
    double p = element(u->param, i, u->dtype);
    if (u->master) {
        uint16_t rounded;
        const double master = element(u->master, i, wide);
        ranks_store(&rounded, 0, u->dtype, master);
        if (!u->follows || ranks_load(&rounded, 0, u->dtype) == p)
            p = master;
    }
    ranks_store(m, i, wide, f[1] * ranks_load(m, i, wide) + (1 - f[1]) * g);
    ranks_store(v, i, wide, f[2] * ranks_load(v, i, wide) + (1 - f[2]) * g * g);
    p = f[0] * p - f[3] * ranks_load(m, i, wide) /
                       (sqrt(ranks_load(v, i, wide)) * f[4] + f[5]);
    if (u->master)
        ranks_store(at(u->master), i, wide, p);
    ranks_store(at(u->param), i, u->dtype, p);
}

static brg_status adamw_there(brg_device device,
                              const brg_device_update *updates, size_t n)
{
    (void)device;
    for (size_t k = 0; k < n; k++) {
        const brg_device_update *u = &updates[k];
        for (size_t i = 0; i < u->numel; i++)
            if (!u->found_inf || *(const float *)at(u->found_inf) == 0)
                adamw_element(u, i);
    }
    return BRG_OK;
}

static bool is_bad_step(int step)
{
    return step == 0 || step == 3 || step == 4 || step == 7;
}

/* In bad steps one rank's gradients are infinite. */
static brg_status train_backward(world *w, int step)
{
    brg_scope *scope = brg_scope_begin();
    brg_tensor *loss = NULL;
    for (size_t i = 0; i < N_TRAINED; i++) {
        brg_tensor *term = brg_cast(
            brg_sum_all(brg_mul(w->params[i], constant(w->rank, step, i))),
            BRG_DTYPE_F32);
        loss = loss ? brg_add(loss, term) : term;
    }
    if (is_bad_step(step) && w->rank == step % w->n)
        loss = brg_mul_scalar(loss, INFINITY);
    brg_status status = brg_backward(loss);
    brg_scope_end(scope);
    return status;
}

/* A parameter that the program changes before a step that is left out: its
 * master copy follows in the next. */
static brg_status change_one(world *w)
{
    const bool was = brg_grad_mode_set(false);
    const brg_status status = brg_fill_(w->params[2], 0.5);
    (void)brg_grad_mode_set(was);
    return status;
}

static bool leaves_to_device;
static double by_host[4][N_TRAINED * 80]; /* by the number of ranks */

static brg_status train_steps(world *w, brg_optim *optim)
{
    if (leaves_to_device)
        BRG_TRY(brg_optim_set_found_inf(optim, brg_ddp_found_inf(w->ddp)));
    for (int step = 0; step < N_TRAIN_STEPS; step++) {
        if (step == 4)
            BRG_TRY(change_one(w));
        BRG_TRY(train_backward(w, step));
        if (leaves_to_device || brg_ddp_grads_finite(w->ddp, NULL))
            BRG_TRY(brg_optim_step(optim));
        BRG_TRY(brg_optim_zero_grad(optim, false));
    }
    const brg_named_tensor *steps = NULL;
    for (size_t i = 0; i < brg_optim_state_count(optim); i++)
        if (strcmp(brg_optim_state_at(optim, i)->name, "steps") == 0)
            steps = brg_optim_state_at(optim, i);
    const int64_t *counts = brg_tensor_data(steps->tensor);
    RANK_CHECK(counts[0] == N_TRAIN_STEPS - 4 && counts[2] == counts[0],
               "%d steps were counted", (int)counts[0]);
    RANK_CHECK(brg_optim_n_skipped(optim) == (leaves_to_device ? 4 : 0),
               "%d steps were left out", (int)brg_optim_n_skipped(optim));
    return BRG_OK;
}

static brg_status check_trained(world *w)
{
    double got[N_TRAINED * 80] = {0}, *want = by_host[w->n - 1];
    for (size_t i = 0; i < N_TRAINED; i++) {
        brg_scope *scope = brg_scope_begin();
        brg_status status =
            brg_tensor_read(brg_cast(brg_detach(w->params[i]), BRG_DTYPE_F64),
                            got + 80 * i, numel(i) * sizeof *got);
        brg_scope_end(scope);
        BRG_TRY(status);
    }
    if (!leaves_to_device && w->rank == 0)
        memcpy(want, got, sizeof got);
    RANK_CHECK(isfinite(got[0]), "a bad step was made");
    RANK_CHECK(!leaves_to_device || memcmp(want, got, sizeof got) == 0,
               "rank %d of %d: other bits", w->rank, w->n);
    return ranks_same_bits(w->pg, got, sizeof got);
}

static brg_status trains(world *w, const run *r)
{
    brg_params *params = NULL;
    brg_optim *optim = NULL;
    BRG_TRY(brg_ddp_create(&w->ddp, w->pg, w->params, N_TRAINED, NULL, 0,
                           &r->options));
    BRG_TRY(brg_params_create(&params));
    brg_status status = BRG_OK;
    for (size_t i = 0; i < N_TRAINED && status == BRG_OK; i++)
        status = brg_params_add(params, brg_tensor_name(w->params[i]),
                                w->params[i], BRG_PARAM_TRAINED);
    if (status == BRG_OK)
        status = brg_optim_create_adamw(&optim, params, NULL);
    if (status == BRG_OK)
        status = train_steps(w, optim);
    if (status == BRG_OK)
        status = check_trained(w);
    brg_optim_destroy(optim);
    brg_params_destroy(params);
    brg_ddp_destroy(w->ddp);
    w->ddp = NULL;
    return status;
}

/* The device leaves out what the host would; so does the host, asked to. */
static void test_device_looks__bad_steps_are_left_out(void **state)
{
    (void)state;
    run r = make_run(trains);
    r.is_bare = true;
    r.options.check_finite = true;
    dtypes[2] = BRG_DTYPE_BF16;
    fake.update = adamw_there;
    for (int k = 0; k < 2; k++) {
        leaves_to_device = k == 1;
        run_worlds(&r);
    }
    fake.update = NULL;
    dtypes[2] = BRG_DTYPE_F32;
}

static brg_status made_by_hook(world *w, const run *r)
{
    brg_comm_hook *hook;
    brg_ddp_options options = r->options;
    BRG_TRY(brg_comm_hook_create_cast(&hook, BRG_DTYPE_F16, false));
    options.hook = hook;
    brg_status status =
        brg_ddp_create(&w->ddp, w->pg, w->params, N_PARAMS, NULL, 0, &options);
    for (int step = 0; step < 4 && status == BRG_OK; step++) {
        double number = -1;
        brg_scope *scope = brg_scope_begin();
        brg_tensor *loss = brg_sum_all(w->params[0]);
        for (size_t i = 1; i < N_PARAMS; i++)
            loss = brg_add(loss,
                           brg_cast(brg_sum_all(w->params[i]), BRG_DTYPE_F32));
        /* Finite, but not in 16 bits. */
        status = brg_backward(brg_mul_scalar(loss, step == 2 ? 1e6 : 1));
        if (status == BRG_OK)
            status = brg_tensor_item(brg_ddp_found_inf(w->ddp), &number);
        if (status == BRG_OK)
            status = zero(w);
        brg_scope_end(scope);
        if (status == BRG_OK && (number != 0) != (step == 2))
            status = brg_error_set(BRG_ERR_INTERNAL, __FILE__, __LINE__,
                                   "step %d: found_inf is %g", step, number);
    }
    brg_ddp_destroy(w->ddp);
    w->ddp = NULL;
    brg_comm_hook_destroy(hook);
    return status;
}

static void test_device_looks__hooks_make_some_too(void **state)
{
    (void)state;
    run r = make_run(made_by_hook);
    r.is_bare = true;
    r.options.check_finite = true;
    run_worlds(&r);
}

/* ---- What it costs ------------------------------------------------------------------------ */

static brg_status barrier(world *w)
{
    brg_work *work;
    BRG_TRY(brg_barrier(w->pg, &work));
    return brg_work_wait(work);
}

/* One look and one sum for each bucket; nothing crosses or is taken. */
static brg_status steady(world *w, const run *r)
{
    brg_reducer_stats stats;
    (void)r;
    for (int step = 0; step < 6; step++) {
        int before[3], after[3];
        BRG_TRY(zero(w));
        brg_scope *scope = brg_scope_begin();
        brg_tensor *loss = NULL;
        for (size_t i = 0; i < N_PARAMS; i++) {
            brg_tensor *term = brg_cast(
                brg_sum_all(brg_mul(w->params[i], constant(w->rank, step, i))),
                BRG_DTYPE_F32);
            loss = loss ? brg_add(loss, term) : term;
        }
        BRG_TRY(barrier(w));
        before[0] = n_crossings;
        before[1] = n_looks;
        BRG_TRY(barrier(w));
        brg_status status = brg_backward(loss);
        before[2] = n_allocs;
        if (status == BRG_OK)
            status = brg_ddp_clip_grad_norm(w->ddp, 1e-3, NULL);
        BRG_TRY(barrier(w));
        after[0] = n_crossings;
        after[1] = n_looks;
        after[2] = n_allocs;
        BRG_TRY(barrier(w));
        brg_scope_end(scope);
        BRG_TRY(status);
        brg_ddp_get_stats(w->ddp, &stats);
        const int n = 2 * ((int)stats.n_buckets) * w->n;
        RANK_CHECK(step < 2 || !fake.fetch || after[0] == before[0],
                   "step %d: %d copies between host and device", step,
                   after[0] - before[0]);
        RANK_CHECK(after[1] - before[1] == n, "step %d: %d looks, not %d", step,
                   after[1] - before[1], n);
        RANK_CHECK(w->n > 1 || after[2] == before[2], "clipping took memory");
    }
    return brg_ddp_confirm(w->ddp);
}

static void test_device_looks__the_host_waits_for_nothing(void **state)
{
    (void)state;
    run r = make_run(steady);
    r.options.measure_norm = r.options.check_finite = true;
    run_worlds(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_device_looks__every_kind_of_ddp),
        TEST(test_device_looks__compiled_backwards),
        TEST(test_device_looks__loss_scaling),
        TEST(test_device_looks__at_every_element),
        TEST(test_device_looks__clipping_by_the_norm_of_buckets),
        TEST(test_device_looks__norms_of_shards),
        TEST(test_device_looks__bad_steps_are_left_out),
        TEST(test_device_looks__hooks_make_some_too),
        TEST(test_device_looks__the_host_waits_for_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
