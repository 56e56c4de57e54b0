/* SPDX-License-Identifier: Apache-2.0
 * What a reducer does besides averages, with gradients on a device. */
#include "tests/reducer/made_up_device.h"

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

/* Steps were queued behind the one that was lost. */
static brg_status does_not_regroup(world *w, const run *r)
{
    int64_t n_steps = 0;
    (void)r;
    BRG_TRY(step_of(w, 0));
    RANK_FAILS(brg_ddp_regroup(w->ddp, w->pg, NULL, &n_steps),
               BRG_ERR_UNSUPPORTED, "start again from a checkpoint");
    return step_of(w, 1);
}

static void test_device_features__regrouping_is_refused(void **state)
{
    (void)state;
    run r = make_run(does_not_regroup);
    run_worlds(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_device_features__travel_in_16_bits),
        TEST(test_device_features__synchronised_norms),
        TEST(test_device_features__sum_leaves_alike),
        TEST(test_device_features__regrouping_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
