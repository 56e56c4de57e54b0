/* SPDX-License-Identifier: Apache-2.0
 * Data-parallel training on GPUs, one per rank, the ranks started by mpirun,
 * equals training of the whole batch on the CPU: losses of each step, the
 * parameters after the last. */
#include "comm/pg.h"
#include "core/tensor/device.h"
#include "tests/reducer/average_checks.h"
#include "tests/reducer/rider_checks.h"
#include "tests/reducer/sum_checks.h"

#include "tests/cuda/gpu_ranks.h"

#define N_STEPS 12
#define BATCH 16 /* of all ranks */
#define SIDE 10
#define N_CLASSES 7
#define VOCAB 29
#define CONTEXT 16
#define DIM 32

typedef enum kind { MLP, GPT, NORM } kind;

typedef struct model {
    kind kind;
    brg_params *params;
    brg_optim *optim;
    brg_nn_linear linear[2];
    brg_nn_embedding tokens, positions;
    brg_nn_block block;
    brg_nn_batch_norm norm;
} model;

static void model_init(model *m, kind k, brg_dtype dtype)
{
    *m = (model){.kind = k};
    assert_brg_ok(brg_params_create(&m->params));
    brg_nn_options nn = BRG_NN_OPTIONS_INIT;
    const brg_nn_block_options block = {
        .dim = DIM, .n_heads = 4, .n_blocks = 1};
    nn.params = m->params;
    nn.dtype = dtype;
    brg_seed(2);
    if (k == GPT) {
        assert_brg_ok(
            brg_nn_embedding_init(&m->tokens, &nn, "wte", VOCAB, DIM));
        assert_brg_ok(
            brg_nn_embedding_init(&m->positions, &nn, "wpe", CONTEXT, DIM));
        assert_brg_ok(brg_nn_block_init(&m->block, &nn, "h.0", &block));
    } else {
        assert_brg_ok(brg_nn_linear_init(&m->linear[0], &nn, "fc1",
                                         (int64_t)SIDE * SIDE, 64));
        assert_brg_ok(
            brg_nn_linear_init(&m->linear[1], &nn, "fc2", 64, N_CLASSES));
        if (k == NORM)
            assert_brg_ok(brg_nn_batch_norm_init(&m->norm, &nn, "bn", 64));
    }
    brg_adamw_options adamw = BRG_ADAMW_OPTIONS_INIT;
    brg_sgd_options sgd = BRG_SGD_OPTIONS_INIT;
    sgd.momentum = 0.9;
    sgd.lr = 0.05;
    adamw.lr = 3e-3;
    adamw.eps = 1e-4; /* see test_train.c */
    assert_brg_ok(k != GPT
                      ? brg_optim_create_sgd(&m->optim, m->params, &sgd)
                      : brg_optim_create_adamw(&m->optim, m->params, &adamw));
}

/* This rank's part of the batch of a step; the whole one where n is 1. */
static brg_tensor *loss_of(model *m, int step, brg_dtype dtype, int part, int n)
{
    const int64_t each = BATCH / n, first = part * each;
    brg_seed(1000 + (uint64_t)step);
    if (m->kind == GPT) {
        brg_tensor *ids = brg_narrow(
            brg_randint(0, VOCAB, BRG_SHAPE(BATCH, CONTEXT)), 0, first, each);
        brg_tensor *next = brg_narrow(
            brg_randint(0, VOCAB, BRG_SHAPE(BATCH, CONTEXT)), 0, first, each);
        brg_tensor *x = brg_add(brg_nn_embedding_forward(&m->tokens, ids),
                                m->positions.weight);
        x = brg_nn_block_forward(&m->block, x);
        return brg_cross_entropy(brg_linear(x, m->tokens.weight, NULL), next);
    }
    brg_tensor *x = brg_cast(
        brg_randn(BRG_DTYPE_F32, BRG_SHAPE(BATCH, (int64_t)SIDE * SIDE)),
        dtype);
    brg_tensor *t = brg_randint(0, N_CLASSES, BRG_SHAPE(BATCH));
    x = brg_nn_linear_forward(&m->linear[0], brg_narrow(x, 0, first, each));
    if (m->kind == NORM)
        x = brg_nn_batch_norm_forward(&m->norm, x, true);
    x = brg_nn_linear_forward(&m->linear[1], brg_relu(x));
    return brg_cross_entropy(x, brg_narrow(t, 0, first, each));
}

static double mean_over_ranks(double value)
{
    brg_work *work;
    assert_brg_ok(
        brg_all_reduce(over, &work, &value, 1, BRG_DTYPE_F64, BRG_REDUCE_AVG));
    assert_brg_ok(brg_work_wait(work));
    return value;
}

static brg_tensor *flatten(const model *m)
{
    brg_tensor *flat[64];
    const size_t n = brg_params_count(m->params);
    assert_true(n < 64);
    bool mode = brg_grad_mode_set(false);
    for (size_t i = 0; i < n; i++)
        flat[i] = brg_flatten(
            brg_cast(brg_params_at(m->params, i)->tensor, BRG_DTYPE_F32), 0,
            -1);
    brg_tensor *all = assert_brg_some(brg_cat(flat, (int)n, 0));
    (void)brg_grad_mode_set(mode);
    return all;
}

static brg_comm_hook *hook; /* of reducers to come */
static brg_ddp_buffers sync_buffers;

static brg_ddp *distribute(const model *m, brg_pg *pg)
{
    size_t n = 0, n_buffers = 0;
    brg_ddp *ddp;
    brg_ddp_options options = BRG_DDP_OPTIONS_INIT;
    brg_tensor *const *tensors =
        brg_params_tensors(m->params, BRG_PARAM_TRAINED, &n);
    brg_tensor *const *buffers =
        brg_params_tensors(m->params, BRG_PARAM_BUFFER, &n_buffers);
    options.first_bucket_bytes = 4096; /* several buckets */
    options.bucket_bytes = 16384;
    options.hook = hook;
    options.sync_buffers = sync_buffers;
    assert_brg_ok(
        brg_ddp_create(&ddp, pg, tensors, n, buffers, n_buffers, &options));
    return ddp;
}

/* `pg` NULL: one process, the whole batch; else where the group reduces. */
static brg_tensor *train(kind k, brg_dtype dtype, brg_pg *pg,
                         double losses[N_STEPS])
{
    model m;
    assert_brg_ok(brg_device_set(pg ? brg__pg_device(pg) : CPU));
    model_init(&m, k, dtype);
    brg_ddp *ddp = pg ? distribute(&m, pg) : NULL;
    for (int step = 0; step < N_STEPS; step++) {
        brg_scope *scope = brg_scope_begin();
        brg_tensor *loss = assert_brg_some(
            loss_of(&m, step, dtype, pg ? rank : 0, pg ? n_ranks : 1));
        assert_brg_ok(brg_backward(loss));
        assert_brg_ok(brg_optim_step(m.optim));
        assert_brg_ok(brg_optim_zero_grad(m.optim, step % 2 == 0));
        assert_brg_ok(brg_tensor_item(loss, &losses[step]));
        if (pg)
            losses[step] = mean_over_ranks(losses[step]);
        brg_scope_end(scope);
    }
    if (ddp) {
        brg_reducer_stats stats;
        assert_brg_ok(brg_ddp_confirm(ddp));
        brg_ddp_get_stats(ddp, &stats);
        assert_int_equal(stats.n_steps, N_STEPS);
        assert_true(stats.n_buckets > 1);
    }
    brg_tensor *all = flatten(&m);
    brg_ddp_destroy(ddp);
    brg_optim_destroy(m.optim);
    brg_params_destroy(m.params);
    assert_brg_ok(brg_device_set(CPU));
    return all;
}

/* The CPU takes the whole batch; of NORM, whose statistics are those of a rank's
 * part, as many ranks over MPI. */
static void check(kind k, brg_dtype dtype, double tolerance)
{
    static const char *const names[] = {"mlp", "gpt", "batch norm"};
    double here[N_STEPS], there[N_STEPS], worst = 0;
    brg_pg *pg;
    assert_brg_ok(brg_nccl_create(&pg, over, mine()));
    brg_scope *scope = brg_scope_begin();
    brg_tensor *want = train(k, dtype, k == NORM ? over : NULL, here);
    brg_tensor *got = train(k, dtype, pg, there);
    const double d = distance(got, want);
    for (int i = 0; i < N_STEPS; i++)
        worst = fmax(worst, fabs(here[i] - there[i]));
    printf("%s %s, %d ranks: parameters off by %.2g, losses by %.2g, %.4f to "
           "%.4f\n",
           names[k], brg_dtype_name(dtype), n_ranks, d, worst, here[0],
           here[N_STEPS - 1]);
    assert_true(d <= tolerance && worst <= 10 * tolerance);
    brg_scope_end(scope);
    brg_pg_destroy(pg);
}

static void test_ddp__equals_the_cpu(void **state)
{
    (void)state;
    check(MLP, BRG_DTYPE_F64, 1e-7);
    check(GPT, BRG_DTYPE_F64, 1e-7);
    check(MLP, BRG_DTYPE_F32, 1e-5);
    check(GPT, BRG_DTYPE_F32, 1e-4);
    check(GPT, BRG_DTYPE_BF16, 3e-2);
}

static void test_ddp__travels_as_bf16(void **state)
{
    (void)state;
    assert_brg_ok(brg_comm_hook_create_cast(&hook, BRG_DTYPE_BF16, false));
    check(MLP, BRG_DTYPE_F32, 2e-3);
    brg_comm_hook_destroy(hook);
    hook = NULL;
}

/* Running statistics are among what is compared. */
static void test_ddp__buffers_are_those_of_the_cpu(void **state)
{
    (void)state;
    for (int i = 0; i < 3; i++) {
        sync_buffers = (brg_ddp_buffers)i;
        check(NORM, BRG_DTYPE_F64, 1e-7);
        check(NORM, BRG_DTYPE_F32, 1e-4);
    }
    sync_buffers = BRG_DDP_BUFFERS_LEAVE;
}

/* Every dtype, strides and gaps; averages, sums, shards and leaves; no
 * collectives but buckets. */
static void test_ddp__buffers_ride_with_all_their_bits(void **state)
{
    (void)state;
    brg_pg *pg;
    assert_brg_ok(brg_nccl_create(&pg, over, mine()));
    assert_brg_ok(brg_device_set(mine()));
    assert_brg_ok(check_riders(pg));
    assert_brg_ok(brg_device_set(CPU));
    brg_pg_destroy(pg);
}

/* Batch norm's statistics in a steady step: the host waits for nothing, nothing
 * is asked of the driver, collectives are the buckets. */
static void test_ddp__buffers_cost_no_wait(void **state)
{
    (void)state;
    model m;
    brg_pg *pg;
    brg_pg_stats calls[2];
    brg_device_counts counts[2];
    size_t n_buckets = 0;
    assert_brg_ok(brg_nccl_create(&pg, over, mine()));
    assert_brg_ok(brg_device_set(mine()));
    sync_buffers = BRG_DDP_BUFFERS_AVERAGE;
    model_init(&m, NORM, BRG_DTYPE_F32);
    brg_ddp *ddp = distribute(&m, pg);
    for (int step = 0; step < N_STEPS; step++) {
        brg_scope *scope = brg_scope_begin();
        brg_tensor *loss =
            assert_brg_some(loss_of(&m, step, BRG_DTYPE_F32, rank, n_ranks));
        assert_brg_ok(brg_device_get_counts(mine(), &counts[0]));
        brg_pg_get_stats(pg, &calls[0]);
        assert_brg_ok(brg_backward(loss));
        brg_pg_get_stats(pg, &calls[1]);
        assert_brg_ok(brg_device_get_counts(mine(), &counts[1]));
        assert_brg_ok(brg_optim_zero_grad(m.optim, false));
        brg_scope_end(scope);
    }
    n_buckets = brg_reducer_n_buckets(brg_ddp_reducer(ddp));
    assert_int_equal(counts[1].n_waits, counts[0].n_waits);
    assert_int_equal(counts[1].reserved, counts[0].reserved);
    assert_int_equal(calls[1].n_collectives - calls[0].n_collectives,
                     n_buckets);
    assert_brg_ok(brg_ddp_confirm(ddp));
    brg_ddp_destroy(ddp);
    brg_optim_destroy(m.optim);
    brg_params_destroy(m.params);
    sync_buffers = BRG_DDP_BUFFERS_LEAVE;
    assert_brg_ok(brg_device_set(CPU));
    brg_pg_destroy(pg);
}

/* Of 16-bit gradients, added up in f32. */
static void test_ddp__micro_batches(void **state)
{
    (void)state;
    brg_pg *pg;
    assert_brg_ok(brg_nccl_create(&pg, over, mine()));
    assert_brg_ok(brg_device_set(mine()));
    assert_brg_ok(check_sums(pg));
    assert_brg_ok(brg_device_set(CPU));
    brg_pg_destroy(pg);
}

static void test_ddp__periodic_averaging(void **state)
{
    (void)state;
    brg_pg *pg;
    brg_averager *a;
    brg_device_counts counts[2];
    assert_brg_ok(brg_nccl_create(&pg, over, mine()));
    assert_brg_ok(brg_device_set(mine()));
    assert_brg_ok(check_averages(pg));
    brg_scope *scope = brg_scope_begin();
    brg_tensor *w[2] = {brg_full(BRG_DTYPE_F32, BRG_SHAPE(100000), rank + 1),
                        brg_full(BRG_DTYPE_BF16, BRG_SHAPE(3000), rank + 1)};
    assert_brg_ok(brg_averager_create(&a, pg, w, 2, NULL)); /* rank 0's: ones */
    for (int step = 0; step < 5; step++) {
        double value;
        for (int i = 0; i < 2; i++)
            assert_brg_ok(brg_fill_(w[i], 4 * rank + step));
        assert_brg_ok(brg_device_get_counts(mine(), &counts[0]));
        assert_brg_ok(brg_averager_step(a, NULL));
        assert_brg_ok(brg_device_get_counts(mine(), &counts[1]));
        for (int i = 0; i < 2; i++) {
            assert_brg_ok(
                brg_tensor_item(brg_amin(w[i], 0, NULL, false), &value));
            assert_float_equal(value, step + 2 * (n_ranks - 1), 0);
        }
    }
    assert_int_equal(counts[1].n_waits, counts[0].n_waits);
    assert_int_equal(counts[1].n_allocs, counts[0].n_allocs);
    assert_brg_ok(brg_averager_confirm(a));
    brg_averager_destroy(a);
    brg_scope_end(scope);
    assert_brg_ok(brg_device_set(CPU));
    brg_pg_destroy(pg);
}

/* This rank's part of the norm of all ranks' batches, and of its gradient. */
static void test_ddp__synchronised_norm(void **state)
{
    (void)state;
    const int64_t each = 6, first = rank * each;
    brg_pg *pg;
    brg_sync_norm *sync;
    brg_batch_norm_options options = BRG_BATCH_NORM_OPTIONS_INIT;
    options.training = true;
    assert_brg_ok(brg_nccl_create(&pg, over, mine()));
    assert_brg_ok(brg_sync_norm_create(&sync, pg));
    assert_brg_ok(brg_device_set(mine()));
    brg_scope *scope = brg_scope_begin();
    brg_seed(4);
    brg_tensor *all = assert_brg_some(
        brg_randn(BRG_DTYPE_F32, BRG_SHAPE(each * n_ranks, 33, 5, 5)));
    brg_tensor *part =
        assert_brg_some(brg_detach(brg_narrow(all, 0, first, each)));
    assert_brg_ok(brg_set_requires_grad(all, true));
    assert_brg_ok(brg_set_requires_grad(part, true));
    brg_tensor *y =
        brg_sync_batch_norm(sync, part, NULL, NULL, NULL, NULL, &options);
    brg_tensor *want = brg_batch_norm(all, NULL, NULL, NULL, NULL, &options);
    assert_brg_ok(brg_backward(brg_sum_all(brg_mul(y, brg_square(y)))));
    assert_brg_ok(brg_backward(brg_sum_all(brg_mul(want, brg_square(want)))));
    assert_true(distance(brg_detach(y),
                         brg_narrow(brg_detach(want), 0, first, each)) < 1e-5);
    assert_true(distance(brg_tensor_grad(part),
                         brg_narrow(brg_tensor_grad(all), 0, first, each)) <
                1e-4);
    brg_scope_end(scope);
    brg_sync_norm_destroy(sync);
    assert_brg_ok(brg_device_set(CPU));
    brg_pg_destroy(pg);
}

/* Gradients of raw buffers; the step ends before they are there. */
static void test_ddp__raw_buffers(void **state)
{
    (void)state;
    enum { N = 4 };
    const int64_t count = 100000;
    brg_pg *pg;
    brg_reducer *reducer;
    brg_reducer_param params[N];
    brg_tensor *grads[N];
    assert_brg_ok(brg_nccl_create(&pg, over, mine()));
    assert_brg_ok(brg_device_set(mine()));
    brg_scope *scope = brg_scope_begin();
    for (size_t i = 0; i < N; i++) {
        grads[i] = assert_brg_some(brg_empty(BRG_DTYPE_F32, BRG_SHAPE(count)));
        params[i] = (brg_reducer_param){.grad = brg_tensor_data(grads[i]),
                                        .count = (size_t)count,
                                        .dtype = BRG_DTYPE_F32,
                                        .device = mine()};
    }
    brg_reducer_options options = BRG_REDUCER_OPTIONS_INIT;
    options.first_bucket_bytes = options.bucket_bytes = 500000;
    assert_brg_ok(brg_reducer_create(&reducer, pg, params, N, &options));
    for (int step = 0; step < 5; step++) {
        for (size_t i = 0; i < N; i++) {
            assert_brg_ok(
                brg_fill_(grads[i], (double)(step + (int)i * 10 + 100 * rank)));
            assert_brg_ok(brg_reducer_mark_ready(reducer, i));
        }
        assert_brg_ok(brg_reducer_wait(reducer));
        for (size_t i = 0; i < N; i++) {
            double low, high, want = step + (double)i * 10 + 50 * (n_ranks - 1);
            assert_brg_ok(
                brg_tensor_item(brg_amin(grads[i], 0, NULL, false), &low));
            assert_brg_ok(
                brg_tensor_item(brg_amax(grads[i], 0, NULL, false), &high));
            assert_float_equal(low, want, 1e-4);
            assert_float_equal(high, want, 1e-4);
        }
    }
    assert_brg_ok(brg_reducer_mark_ready(reducer, 0)); /* the others are not */
    assert_brg_ok(brg_reducer_wait(reducer));
    assert_brg_fails_with(brg_reducer_confirm(reducer), BRG_ERR_STATE,
                          "no gradient in step 6 for parameter 1 on");
    brg_reducer_destroy(reducer);
    brg_scope_end(scope);
    assert_brg_ok(brg_device_set(CPU));
    brg_pg_destroy(pg);
}

static void test_ddp__the_group_must_reduce_there(void **state)
{
    (void)state;
    brg_ddp *ddp;
    brg_pg *pg;
    brg_scope *scope = brg_scope_begin();
    assert_brg_ok(brg_nccl_create(&pg, over, mine()));
    brg_tensor *w = assert_brg_some(brg_zeros(BRG_DTYPE_F32, BRG_SHAPE(3)));
    assert_brg_ok(brg_set_requires_grad(w, true));
    assert_brg_fails_with(brg_ddp_create(&ddp, pg, &w, 1, NULL, 0, NULL),
                          BRG_ERR_UNSUPPORTED,
                          "is on cpu:0, the group reduces on cuda:");
    brg_scope_end(scope);
    brg_pg_destroy(pg);
}

int main(int argc, char **argv)
{
    int status = gpu_ranks_begin(argc, argv);
    if (status)
        return status;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ddp__raw_buffers),
        cmocka_unit_test(test_ddp__the_group_must_reduce_there),
        cmocka_unit_test(test_ddp__equals_the_cpu),
        cmocka_unit_test(test_ddp__travels_as_bf16),
        cmocka_unit_test(test_ddp__synchronised_norm),
        cmocka_unit_test(test_ddp__buffers_are_those_of_the_cpu),
        cmocka_unit_test(test_ddp__buffers_ride_with_all_their_bits),
        cmocka_unit_test(test_ddp__buffers_cost_no_wait),
        cmocka_unit_test(test_ddp__micro_batches),
        cmocka_unit_test(test_ddp__periodic_averaging),
    };
    return gpu_ranks_end(cmocka_run_group_tests_name("ddp", tests, NULL, NULL));
}
