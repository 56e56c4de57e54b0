/* SPDX-License-Identifier: Apache-2.0
 * What a reducer does besides averages, with gradients on a device. */
#include <brigade/recover.h>

#include "tests/reducer/average_checks.h"
#include "tests/reducer/made_up_device.h"
#include "tests/reducer/sum_checks.h"

/* ---- Hooks, and functions that talk ------------------------------------------------------ */

static brg_status casts(world *w, const run *r)
{
    brg_comm_hook *hook;
    brg_ddp_options options = r->options;
    BRG_TRY(brg_comm_hook_create_cast(
        &hook, w->n % 2 ? BRG_DTYPE_BF16 : BRG_DTYPE_F16, false));
    options.hook = hook;
    brg_status status =
        brg_ddp_create(&w->ddp, w->pg, w->params, N_PARAMS, NULL, 0, &options);
    for (int step = 0; status == BRG_OK && step < 6; step++)
        status = step_of(w, step);
    if (status == BRG_OK)
        status = brg_ddp_confirm(w->ddp);
    brg_ddp_destroy(w->ddp);
    w->ddp = NULL;
    brg_comm_hook_destroy(hook);
    return status;
}

static void test_device_features__travel_in_16_bits(void **state)
{
    (void)state;
    run r = make_run(casts);
    r.is_bare = true;
    tolerance = 1e-2; /* averages of 3 are rounded */
    run_worlds(&r);
    tolerance = 1e-6;
}

#define CHANNELS 5
#define EACH 4 /* samples of a rank */

static brg_tensor *sync_input(int first, int n)
{
    float x[4 * EACH * CHANNELS * 3];
    for (int i = 0; i < n * CHANNELS * 3; i++)
        x[i] = (float)sin(0.7 * (first * CHANNELS * 3 + i) + 2);
    return brg_from_data(BRG_DTYPE_F32, BRG_SHAPE(n, CHANNELS, 3), x);
}

/* The largest difference of two tensors. */
static brg_status compare(brg_tensor *a, brg_tensor *b, double *worst)
{
    *worst = 1;
    brg_tensor *d = brg_abs(brg_sub(a, b));
    return d ? brg_tensor_item(brg_amax(d, 0, NULL, false), worst)
             : brg_error_code();
}

/* This rank's part of the norm of all ranks' batches, and of its gradient. */
static brg_status norms(world *w, const run *r)
{
    brg_sync_norm *sync;
    brg_batch_norm_options options = BRG_BATCH_NORM_OPTIONS_INIT;
    double forward = 1, back = 1;
    const int64_t first = w->rank * EACH;
    (void)r;
    options.training = true;
    BRG_TRY(brg_sync_norm_create(&sync, w->pg));
    brg_tensor *mine = sync_input((int)first, EACH);
    brg_tensor *all = sync_input(0, EACH * w->n);
    BRG_TRY(brg_set_requires_grad(mine, true));
    BRG_TRY(brg_set_requires_grad(all, true));
    brg_tensor *y =
        brg_sync_batch_norm(sync, mine, NULL, NULL, NULL, NULL, &options);
    brg_tensor *want = brg_batch_norm(all, NULL, NULL, NULL, NULL, &options);
    brg_status status = brg_backward(brg_sum_all(brg_mul(y, brg_square(y))));
    if (status == BRG_OK)
        status = brg_backward(brg_sum_all(brg_mul(want, brg_square(want))));
    if (status == BRG_OK)
        status =
            compare(brg_detach(y), brg_narrow(brg_detach(want), 0, first, EACH),
                    &forward);
    if (status == BRG_OK)
        status =
            compare(brg_tensor_grad(mine),
                    brg_narrow(brg_tensor_grad(all), 0, first, EACH), &back);
    brg_sync_norm_destroy(sync);
    BRG_TRY(status);
    RANK_CHECK(forward < 1e-5 && back < 1e-4,
               "rank %d of %d: off by %g, gradients by %g", w->rank, w->n,
               forward, back);
    return BRG_OK;
}

static void test_device_features__synchronised_norms(void **state)
{
    (void)state;
    run r = make_run(norms);
    r.is_bare = true;
    run_worlds(&r);
}

/* ---- Micro-batches of 16 bits, added up in f32 -------------------------------------------- */

static brg_status sums_there(world *w, const run *r)
{
    (void)r;
    return check_sums(w->pg);
}

static void test_device_features__micro_batches_of_halves_in_f32(void **state)
{
    (void)state;
    run r = make_run(sums_there);
    r.is_bare = true;
    run_worlds(&r);
}

/* ---- Periodic averaging ------------------------------------------------------------------ */

/* Once it is under way, averaging copies nothing between host and device and
 * takes no memory. */
static brg_status averages_quietly(world *w)
{
    brg_averager *a;
    brg_tensor *t[2] = {w->params[0], w->params[1]};
    BRG_TRY(brg_averager_create(&a, w->pg, t, 2, NULL));
    brg_status status = BRG_OK;
    tally before = {0}, after = {0};
    for (int step = 0; step < 4 && status == BRG_OK; step++) {
        status = take_tally(w->pg, &before);
        if (status == BRG_OK)
            status = brg_averager_step(a, NULL);
        if (status == BRG_OK)
            status = take_tally(w->pg, &after);
    }
    if (status == BRG_OK)
        status = brg_averager_confirm(a);
    brg_averager_destroy(a);
    BRG_TRY(status);
    RANK_CHECK(!fake.fetch || (after.n_crossings == before.n_crossings &&
                               after.n_allocs == before.n_allocs),
               "%d copies, %d allocations",
               after.n_crossings - before.n_crossings,
               after.n_allocs - before.n_allocs);
    return BRG_OK;
}

static brg_status averages_there(world *w, const run *r)
{
    brg_averager *a;
    (void)r;
    BRG_TRY(check_averages(w->pg));
    BRG_TRY(averages_quietly(w));
    BRG_TRY(brg_device_set(HOME));
    brg_tensor *stray = brg_zeros(BRG_DTYPE_F32, BRG_SHAPE(3));
    BRG_TRY(brg_device_set(THERE(w->rank)));
    RANK_FAILS(brg_averager_create(&a, w->pg, &stray, 1, NULL),
               BRG_ERR_UNSUPPORTED, "is on cpu:0, the group reduces on cuda:");
    return BRG_OK;
}

static void test_device_features__periodic_averaging(void **state)
{
    (void)state;
    run r = make_run(averages_there);
    r.is_bare = true;
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

static void test_device_features__sum_leaves_alike(void **state)
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

/* ---- Gradients that are not finite ---------------------------------------------------------- */

#define SPOILT_STEP 2

/* In one step all that the last rank gives is infinite or NaN. */
static brg_status spoilt_backward(world *w, int step)
{
    brg_scope *scope = brg_scope_begin();
    brg_tensor *loss = NULL;
    bool is_spoilt = step == SPOILT_STEP && w->rank == w->n - 1;
    for (size_t i = 0; i < N_PARAMS; i++) {
        brg_tensor *term = brg_cast(
            brg_sum_all(brg_mul(w->params[i], constant(w->rank, step, i))),
            BRG_DTYPE_F32);
        loss = loss ? brg_add(loss, term) : term;
    }
    brg_status status =
        brg_backward(is_spoilt ? brg_mul_scalar(loss, INFINITY) : loss);
    brg_scope_end(scope);
    return status;
}

static brg_status norms_tell(world *w, const run *r)
{
    brg_params *params;
    (void)r;
    BRG_TRY(brg_params_create(&params));
    brg_status status = BRG_OK;
    for (size_t i = 0; i < N_PARAMS && status == BRG_OK; i++) {
        char name[2] = {(char)('a' + (int)i), '\0'};
        status = brg_params_add(params, name, w->params[i], BRG_PARAM_TRAINED);
    }
    for (int step = 0; step < 4 && status == BRG_OK; step++) {
        double norm = -1;
        status = zero(w);
        if (status == BRG_OK)
            status = spoilt_backward(w, step);
        if (status == BRG_OK)
            status = brg_clip_grad_norm(&norm, params, INFINITY, false);
        if (status == BRG_OK && isfinite(norm) == (step == SPOILT_STEP))
            status = brg_error_set(BRG_ERR_INTERNAL, __FILE__, __LINE__,
                                   "rank %d, step %d: the norm is %g", w->rank,
                                   step, norm);
    }
    brg_params_destroy(params);
    return status;
}

static void test_device_features__a_norm_tells_what_is_not_finite(void **state)
{
    (void)state;
    run r = make_run(norms_tell);
    run_worlds(&r);
}

/* ---- Going on with the ranks that are left ------------------------------------------------ */

#define N_SURVIVED 6 /* steps */
#define MAX_LEFT 4
static const brg_sim_options *script;
static bool confirms;       /* each step before its update */
static uint64_t n_calls[2]; /* before the training, and with it */

/* p -= g / 4: multiples of powers of two, and exact. */
static brg_status update(world *w)
{
    bool was = brg_grad_mode_set(false);
    brg_scope *scope = brg_scope_begin();
    brg_status status = BRG_OK;
    for (size_t i = 0; i < N_PARAMS && status == BRG_OK; i++)
        status = brg_add_(w->params[i], brg_tensor_grad(w->params[i]), -0.25);
    brg_scope_end(scope);
    (void)brg_grad_mode_set(was);
    return status;
}

static brg_status train_step(world *w, int step)
{
    BRG_TRY(zero(w));
    BRG_TRY(backward(w, step, ALL));
    if (confirms)
        BRG_TRY(brg_ddp_confirm(w->ddp));
    return update(w);
}

static brg_status values_of(world *w, double values[N_PARAMS][80])
{
    brg_scope *scope = brg_scope_begin();
    brg_status status = BRG_OK;
    for (size_t i = 0; i < N_PARAMS && status == BRG_OK; i++)
        status =
            brg_tensor_read(brg_cast(brg_detach(w->params[i]), BRG_DTYPE_F64),
                            values[i], numel(i) * sizeof(double));
    brg_scope_end(scope);
    return status;
}

/* From these values on: n ranks until step `lost`, then as many as there are. */
static brg_status check_values(world *w, double first[N_PARAMS][80], int n,
                               int lost)
{
    double got[N_PARAMS][80] = {{0}};
    BRG_TRY(values_of(w, got));
    for (size_t i = 0; i < N_PARAMS; i++)
        for (size_t k = 0; k < numel(i); k++) {
            double want = first[i][k];
            for (int step = 0; step < N_SURVIVED; step++)
                want -= ranks_average(step < lost ? n : w->n, step, i, k) / 4;
            RANK_CHECK(fabs(got[i][k] - want) < 1e-5,
                       "rank %d of %d, %d before step %d: value %zu[%zu] is "
                       "%g, not %g",
                       w->rank, w->n, n, lost, i, k, got[i][k], want);
        }
    return ranks_same_bits(w->pg, got, sizeof got);
}

/* The groups that were left, in their order; as on_rank has them. */
static brg_status shrink(world *w, brg_pg **left)
{
    const brg_device device = w->pg->end.device;
    BRG_TRY(brg_pg_shrink(left, w->pg));
    (*left)->end.device = device;
    (*left)->end.ops = &ops;
    w->pg = *left;
    w->rank = brg_pg_rank(*left);
    w->n = brg_pg_world_size(*left);
    return BRG_OK;
}

static brg_status train_on(world *w, brg_pg *left[MAX_LEFT], int64_t *lost)
{
    int64_t n_steps = 0;
    for (int n_left = 0; n_steps < N_SURVIVED;) {
        brg_status status = train_step(w, (int)n_steps);
        n_steps += status == BRG_OK;
        if (status == BRG_OK)
            continue;
        RANK_CHECK(status != BRG_ERR_INTERNAL, "%s", brg_error_message());
        BRG_TRY(n_left < MAX_LEFT ? shrink(w, &left[n_left++])
                                  : BRG_ERR_INTERNAL);
        BRG_TRY(brg_ddp_regroup(w->ddp, w->pg, NULL, &n_steps));
        *lost = n_steps;
    }
    return BRG_OK;
}

static bool is_victim(const world *w)
{
    return script && script->faults[0].rank == w->rank;
}

static brg_status survives(world *w, const run *r)
{
    double first[N_PARAMS][80];
    brg_pg *left[MAX_LEFT] = {NULL}, *all = w->pg;
    int64_t lost = 0;
    const int n = w->n;
    const bool dies = is_victim(w);
    brg_pg_stats stats;
    BRG_TRY(values_of(w, first));
    brg_pg_get_stats(w->pg, &stats);
    n_calls[0] = stats.n_collectives;
    brg_status status = train_on(w, left, &lost);
    brg_pg_get_stats(all, &stats);
    if (!dies)
        n_calls[1] = stats.n_collectives;
    if (dies && status != BRG_OK)
        status = BRG_OK; /* a dead rank's word does not count */
    else if (status == BRG_OK)
        status = check_values(w, first, n, (int)lost);
    brg_ddp_destroy(w->ddp);
    w->ddp = NULL;
    for (int k = MAX_LEFT; k-- > 0;) {
        if (left[k])
            left[k]->end.ops = plain;
        brg_pg_destroy(left[k]);
    }
    w->pg = all;
    (void)r;
    return status;
}

/* The last rank dies at this call. */
static brg_status run_with_death(const run *r, int n, uint64_t call, bool later)
{
    struct brg_sim_fault fault = {BRG_SIM_DIE, n - 1, call, 0};
    brg_sim_options options = BRG_SIM_OPTIONS_INIT;
    options.seed = call;
    options.faults = &fault;
    options.n_faults = 1;
    script = &options;
    set_fetch(later);
    return brg_sim_run(n, &options, on_rank, (void *)r);
}

static void test_device_features__the_ranks_left_go_on(void **state)
{
    (void)state;
    run r = make_run(survives);
    learn();
    confirms = true;
    for (int n = 2; n <= 4; n++) {
        script = NULL;
        assert_brg_ok(brg_sim_run(n, NULL, on_rank, &r));
        const uint64_t first = n_calls[0], end = n_calls[1];
        assert_true(end - first > 3 * N_SURVIVED);
        for (uint64_t call = first; call < end; call++)
            for (int later = 0; later < 2; later++)
                assert_brg_ok(run_with_death(&r, n, call, later));
    }
}

/* Updates were queued behind a step of which nobody knew that it was lost. */
static void test_device_features__regrouping_may_be_refused(void **state)
{
    (void)state;
    run r = make_run(survives);
    int n_refused = 0;
    learn();
    confirms = false;
    script = NULL;
    assert_brg_ok(brg_sim_run(3, NULL, on_rank, &r));
    const uint64_t first = n_calls[0], end = n_calls[1];
    for (uint64_t call = first; call < end; call++) {
        brg_status status = run_with_death(&r, 3, call, true);
        n_refused += status == BRG_ERR_UNSUPPORTED;
        if (status == BRG_ERR_UNSUPPORTED)
            assert_non_null(strstr(brg_error_message(), "brg_ddp_confirm"));
        else
            assert_brg_ok(status);
    }
    /* All but deaths in the first step, which is waited for. */
    assert_in_range(n_refused, end - first - 8, end - first - 3);
}

/* ---- Sharded optimizer state ------------------------------------------------------------- */

#define N_SHARDED 3 /* the last parameter is not row-major */

static brg_status read_there(double *to, brg_tensor *t)
{
    brg_scope *scope = brg_scope_begin();
    brg_status status =
        brg_tensor_read(brg_cast(brg_detach(t), BRG_DTYPE_F64), to,
                        (size_t)brg_tensor_numel(t) * sizeof *to);
    brg_scope_end(scope);
    return status;
}

static brg_status sharded_steps(world *w, brg_optim *optim, double lr)
{
    double before[N_SHARDED][80], after[80];
    for (int step = 0; step < 4; step++) {
        for (size_t i = 0; i < N_SHARDED; i++)
            BRG_TRY(read_there(before[i], w->params[i]));
        BRG_TRY(backward(w, step, (1u << N_SHARDED) - 1));
        BRG_TRY(brg_optim_step(optim));
        BRG_TRY(brg_ddp_gather_params(w->ddp));
        BRG_TRY(zero(w));
        BRG_TRY(brg_ddp_wait_params(w->ddp, NULL));
        for (size_t i = 0; i < N_SHARDED; i++) {
            BRG_TRY(read_there(after, w->params[i]));
            for (size_t k = 0; k < numel(i); k++) {
                const double want =
                    before[i][k] - lr * ranks_average(w->n, step, i, k);
                RANK_CHECK(fabs(after[k] - want) < 1e-6,
                           "rank %d, step %d: %zu[%zu] is %g, not %g", w->rank,
                           step, i, k, after[k], want);
            }
        }
    }
    return BRG_OK;
}

static brg_status shards_there(world *w, const run *r)
{
    brg_ddp_options options = r->options;
    brg_sgd_options sgd = BRG_SGD_OPTIONS_INIT;
    brg_optim_range ranges[N_SHARDED];
    brg_params *params = NULL;
    brg_optim *optim = NULL;
    options.shard = true;
    sgd.ranges = ranges;
    BRG_TRY(brg_ddp_create(&w->ddp, w->pg, w->params, N_SHARDED, NULL, 0,
                           &options));
    BRG_TRY(brg_params_create(&params));
    brg_status status = BRG_OK;
    for (size_t i = 0; i < N_SHARDED && status == BRG_OK; i++)
        status = brg_params_add(params, brg_tensor_name(w->params[i]),
                                w->params[i], BRG_PARAM_TRAINED);
    if (status == BRG_OK)
        status = brg_ddp_shard(w->ddp, params, ranges, N_SHARDED);
    if (status == BRG_OK)
        status = brg_optim_create_sgd(&optim, params, &sgd);
    if (status == BRG_OK)
        status = sharded_steps(w, optim, sgd.lr);
    brg_ddp_destroy(w->ddp);
    w->ddp = NULL;
    double back[80]; /* out of the arena */
    if (status == BRG_OK)
        status = read_there(back, w->params[2]);
    brg_optim_destroy(optim);
    brg_params_destroy(params);
    return status;
}

static void test_device_features__sharded_optimizer_state(void **state)
{
    (void)state;
    run r = make_run(shards_there);
    r.is_bare = true;
    run_worlds(&r);
}

/* ---- A copy that never ends ---------------------------------------------------------------- */

static brg_status never_fetched(brg_device device, void *fetch,
                                const void **out)
{
    (void)device;
    (void)fetch;
    *out = NULL;
    return BRG_OK;
}

/* The group says nothing: the reducer does, 2 s after it should have. */
static brg_status waits_in_vain(world *w, const run *r)
{
    (void)r;
    w->pg->timeout_ns = 1000000;
    RANK_FAILS(backward(w, 0, ALL), BRG_ERR_TIMEOUT,
               "the gradients of step 1 were not reduced within 0.001 s");
    RANK_CHECK(brg_pg_error(w->pg) != BRG_OK, "the group lives");
    return BRG_OK;
}

static void test_device_features__a_copy_that_never_ends(void **state)
{
    (void)state;
    run r = make_run(waits_in_vain);
    brg_pg *pg; /* a simulated world would see that nothing moves */
    assert_brg_ok(brg_pg_create(&pg, "self", NULL));
    assert_brg_ok(learn_ops(pg, NULL));
    take_ops();
    set_fetch(true);
    fake.fetched = never_fetched;
    assert_brg_ok(on_rank(pg, &r));
    set_fetch(true);
    brg_pg_destroy(pg);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_device_features__travel_in_16_bits),
        TEST(test_device_features__synchronised_norms),
        TEST(test_device_features__micro_batches_of_halves_in_f32),
        TEST(test_device_features__periodic_averaging),
        TEST(test_device_features__sum_leaves_alike),
        TEST(test_device_features__a_norm_tells_what_is_not_finite),
        TEST(test_device_features__the_ranks_left_go_on),
        TEST(test_device_features__regrouping_may_be_refused),
        TEST(test_device_features__sharded_optimizer_state),
        TEST(test_device_features__a_copy_that_never_ends),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
