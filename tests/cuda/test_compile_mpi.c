/* SPDX-License-Identifier: Apache-2.0
 * Compiled data-parallel training on GPUs, one per rank, over NCCL, has the bits
 * of eager training there: captured reductions, and steps recorded as one CUDA
 * graph with the reductions in it. */
#include "tests/cuda/gpu_ranks.h"
#include "tests/cuda/steps.h"

static brg_ddp_buffers sync_buffers;

/* At gradients: what they found last. */
static bool looks;
static double last_norm;

static void look(brg_ddp *ddp)
{
    last_norm = brg_reducer_grad_norm(brg_ddp_reducer(ddp));
    assert_true(last_norm > 0 && isfinite(last_norm));
    assert_true(brg_ddp_grads_finite(ddp, NULL));
}

/* Steps whose gradients were not finite are left out. */
static bool leaves_out;

/* Micro-batches that are not reduced, before steps that are. */
static brg_ddp *of_run;
static brg_dtype dtype_of_run;
static bool slips;   /* the last rank has one more before the last step */
static bool adds_up; /* in f32; there are always two then */

static void micro_batches(model *m, int step)
{
    const bool does_slip = slips && step == N_STEPS - 1 && rank == n_ranks - 1;
    for (int i = 0; i < (adds_up ? 2 : step % 3) + does_slip; i++) {
        brg_tensor *in[2];
        brg_scope *scope = brg_scope_begin();
        make_data(m, 100 * (i + 1) + step, dtype_of_run, rank, n_ranks, in);
        assert_true(brg_ddp_set_sync(of_run, false));
        assert_brg_ok(
            brg_backward(brg_cross_entropy(forward(m, in[0]), in[1])));
        assert_false(brg_ddp_set_sync(of_run, true));
        brg_scope_end(scope);
    }
}

/* All ranks find it, though the step was launched. */
static void confirm(brg_ddp *ddp)
{
    if (!slips || n_ranks == 1) {
        assert_brg_ok(brg_ddp_confirm(ddp));
        return;
    }
    assert_int_equal(brg_ddp_confirm(ddp), BRG_ERR_MISMATCH);
    assert_non_null(strstr(brg_error_message(), "are out of step in step"));
}

/* A parameter that no step uses: what a step came to is asked for at its end,
 * while the last reductions are under way. */
static bool has_unused;

static void add_unused(model *m, brg_dtype dtype)
{
    brg_tensor *t = brg_ones(dtype, BRG_SHAPE(5));
    assert_brg_ok(brg_set_requires_grad(t, true));
    assert_brg_ok(brg_params_add(m->params, "unused", t, BRG_PARAM_TRAINED));
}

/* Of the models. */
static const model_options *shape = &plain;

static brg_ddp *distribute(const model *m, brg_pg *pg)
{
    brg_ddp *ddp;
    size_t n = 0, n_buffers = 0;
    brg_ddp_options options = BRG_DDP_OPTIONS_INIT;
    options.first_bucket_bytes = 4096; /* several buckets */
    options.bucket_bytes = 16384;
    options.sync_buffers = sync_buffers;
    options.check_finite = looks || leaves_out;
    options.measure_norm = looks;
    options.allow_unused = has_unused;
    options.accumulate_f32 = adds_up;
    brg_tensor *const *tensors =
        brg_params_tensors(m->params, BRG_PARAM_TRAINED, &n);
    brg_tensor *const *buffers =
        brg_params_tensors(m->params, BRG_PARAM_BUFFER, &n_buffers);
    assert_brg_ok(
        brg_ddp_create(&ddp, pg, tensors, n, buffers, n_buffers, &options));
    return ddp;
}

static void run(kind k, way w, brg_dtype dtype, brg_pg *pg, outcome *o)
{
    model m;
    brg_reducer_stats stats;
    memset(o, 0, sizeof *o);
    brg_scope *scope = brg_scope_begin();
    assert_brg_ok(brg_device_set(mine()));
    model_init(&m, k, dtype, shape);
    if (has_unused)
        add_unused(&m, dtype);
    brg_ddp *ddp = distribute(&m, pg);
    if (leaves_out)
        assert_brg_ok(brg_optim_set_found_inf(m.optim, brg_ddp_found_inf(ddp)));
    of_run = ddp;
    dtype_of_run = dtype;
    run_steps(&m, w, dtype, rank, n_ranks, o);
    if (looks)
        look(ddp);
    confirm(ddp);
    assert_int_equal(brg_optim_n_skipped(m.optim), leaves_out);
    brg_ddp_get_stats(ddp, &stats);
    assert_int_equal(stats.n_steps, N_STEPS);
    assert_true(stats.n_buckets > 1);
    brg_ddp_destroy(ddp);
    model_free(&m);
    assert_brg_ok(brg_device_set(CPU));
    brg_scope_end(scope);
}

static void check(kind k, brg_dtype dtype)
{
    static outcome want, got;
    double norm = 0;
    brg_pg *pg;
    assert_brg_ok(brg_nccl_create(&pg, over, mine()));
    for (way w = EAGER; w <= LAUNCHED; w++) {
        run(k, w, dtype, pg, w == EAGER ? &want : &got);
        check_bits(k, w, w == EAGER ? &want : &got, &want);
        check_counts(k, w, &got);
        norm = w == EAGER ? last_norm : norm;
        assert_true(norm == last_norm);
    }
    brg_pg_destroy(pg);
}

static void test_compile__mlp(void **state)
{
    (void)state;
    check(MLP, BRG_DTYPE_F32);
}

static void test_compile__gpt(void **state)
{
    (void)state;
    check(GPT, BRG_DTYPE_F32);
    check(GPT, BRG_DTYPE_BF16);
}

static void test_compile__attention_of_long_rows(void **state)
{
    (void)state;
    shape = &longer;
    check(GPT, BRG_DTYPE_BF16);
    shape = &plain;
}

static void test_compile__dropout(void **state)
{
    (void)state;
    shape = &dropping;
    check(GPT, BRG_DTYPE_BF16);
    shape = &plain;
}

static void test_compile__a_launched_step_does_not_wait(void **state)
{
    brg_pg *pg;
    (void)state;
    assert_brg_ok(brg_nccl_create(&pg, over, mine()));
    for (int i = 0; i < 2; i++) {
        model m;
        const brg_dtype dtype = i ? BRG_DTYPE_BF16 : BRG_DTYPE_F32;
        brg_scope *scope = brg_scope_begin();
        assert_brg_ok(brg_device_set(mine()));
        model_init(&m, GPT, dtype, &plain);
        brg_ddp *ddp = distribute(&m, pg);
        clips = true;
        launch_without_waits(&m, dtype, rank, n_ranks);
        clips = false;
        assert_brg_ok(brg_ddp_confirm(ddp));
        brg_ddp_destroy(ddp);
        model_free(&m);
        assert_brg_ok(brg_device_set(CPU));
        brg_scope_end(scope);
    }
    brg_pg_destroy(pg);
}

/* The statistics of its batch norm ride on the last bucket. */
static void test_compile__cnn_with_buffers(void **state)
{
    (void)state;
    sync_buffers = BRG_DDP_BUFFERS_AVERAGE;
    check(CNN, BRG_DTYPE_F32);
    sync_buffers = BRG_DDP_BUFFERS_BROADCAST;
    check(CNN, BRG_DTYPE_F32);
    sync_buffers = BRG_DDP_BUFFERS_LEAVE;
}

/* Also in launched steps, where the host still waits for nothing. */
static void test_compile__gradients_are_looked_at(void **state)
{
    (void)state;
    looks = true;
    check(MLP, BRG_DTYPE_F32);
    looks = false;
}

/* The GPU leaves it out; the host hears of it before it launches the next. */
static void test_compile__a_step_that_is_left_out(void **state)
{
    (void)state;
    leaves_out = true;
    bad_step = 5;
    check(MLP, BRG_DTYPE_F32);
    check(MLP, BRG_DTYPE_BF16);
    check(CNN, BRG_DTYPE_F32);
    leaves_out = false;
    bad_step = -1;
}

static void test_compile__behind_micro_batches(void **state)
{
    (void)state;
    before_step = micro_batches;
    check(MLP, BRG_DTYPE_F32);
    check(GPT, BRG_DTYPE_BF16);
    before_step = NULL;
}

static void test_compile__sums_of_micro_batches(void **state)
{
    (void)state;
    before_step = micro_batches;
    adds_up = drops = true;
    check(GPT, BRG_DTYPE_BF16);
    adds_up = drops = false;
    before_step = NULL;
}

/* The recording ends before they do; nothing of it is lost. */
static void test_compile__a_recording_that_ends_early(void **state)
{
    static outcome want, got;
    brg_pg *pg;
    (void)state;
    assert_brg_ok(brg_nccl_create(&pg, over, mine()));
    has_unused = true;
    run(MLP, EAGER, BRG_DTYPE_F32, pg, &want);
    run(MLP, LAUNCHED, BRG_DTYPE_F32, pg, &got);
    has_unused = false;
    check_bits(MLP, LAUNCHED, &got, &want);
    assert_int_equal(got.stats.replay_recordings, 1);
    assert_int_equal(got.stats.replay_launches, 0);
    assert_int_equal(got.stats.replay_skips, 1);
    brg_pg_destroy(pg);
}

static void test_compile__a_rank_that_is_out_of_step(void **state)
{
    static outcome got;
    brg_pg *pg;
    (void)state;
    assert_brg_ok(brg_nccl_create(&pg, over, mine()));
    before_step = micro_batches;
    slips = true;
    run(MLP, LAUNCHED, BRG_DTYPE_F32, pg, &got);
    check_counts(MLP, LAUNCHED, &got);
    slips = false;
    before_step = NULL;
    brg_pg_destroy(pg);
}

int main(int argc, char **argv)
{
    int status = gpu_ranks_begin(argc, argv);
    if (status)
        return status;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_compile__mlp),
        cmocka_unit_test(test_compile__gpt),
        cmocka_unit_test(test_compile__attention_of_long_rows),
        cmocka_unit_test(test_compile__dropout),
        cmocka_unit_test(test_compile__a_launched_step_does_not_wait),
        cmocka_unit_test(test_compile__cnn_with_buffers),
        cmocka_unit_test(test_compile__gradients_are_looked_at),
        cmocka_unit_test(test_compile__a_step_that_is_left_out),
        cmocka_unit_test(test_compile__behind_micro_batches),
        cmocka_unit_test(test_compile__sums_of_micro_batches),
        cmocka_unit_test(test_compile__a_recording_that_ends_early),
        cmocka_unit_test(test_compile__a_rank_that_is_out_of_step),
    };
    return gpu_ranks_end(
        cmocka_run_group_tests_name("compile", tests, NULL, NULL));
}
