/* SPDX-License-Identifier: Apache-2.0
 * Two GPUs, and a rank that dies, comes late or calls something else: the other
 * one's wait for its GPU ends, the error names the rank, and the GPU is as good
 * as before. The ranks are forked: see tests/support/forked.h. */
#include <brigade/brigade.h>

#include "tests/cuda/forked_gpu.h"
#include "tests/support/survive.h"

#define N ((int64_t)1 << 20)
#define SOON_S 5

/* Sums ones; the host waits for the GPU. */
static brg_status reduce(brg_pg *pg, int64_t n, double *sum)
{
    brg_work *work;
    brg_scope *scope = brg_scope_begin();
    brg_tensor *x = brg_ones(BRG_DTYPE_F32, BRG_SHAPE(n));
    brg_status status =
        x ? brg_all_reduce(pg, &work, brg_tensor_data(x), (size_t)n,
                           BRG_DTYPE_F32, BRG_REDUCE_SUM)
          : brg_error_code();
    if (status == BRG_OK)
        status = brg_work_wait(work);
    if (status == BRG_OK)
        status = brg_tensor_item(brg_mean_all(x), sum);
    brg_scope_end(scope);
    return status;
}

static brg_status check_gpu(void)
{
    double sum = 0;
    brg_scope *scope = brg_scope_begin();
    brg_tensor *x = brg_full(BRG_DTYPE_F32, BRG_SHAPE(1000, 1000), 2.0);
    brg_status status = brg_tensor_item(brg_sum_all(brg_matmul(x, x)), &sum);
    brg_scope_end(scope);
    BRG_TRY(status);
    RANK_CHECK(sum == 4e9, "the GPU computes %g", sum);
    return BRG_OK;
}

/* The error, after which the GPU still works. */
static brg_status lose(forked_rank *me, brg_pg *pg, int64_t n)
{
    double sum;
    brg__error_record kept;
    const uint64_t start = brg__clock_ns();
    brg_status status = reduce(pg, n, &sum);
    const double s = 1e-9 * (double)(brg__clock_ns() - start);
    if (status == BRG_OK)
        status = reduce(pg, n, &sum);
    RANK_CHECK(status != BRG_OK, "rank %d: no error", me->rank);
    brg__error_save(&kept);
    RANK_CHECK(s < SOON_S, "rank %d: it took %g s: %s", me->rank, s, kept.text);
    brg_pg_destroy(pg);
    BRG_TRY(check_gpu());
    brg__error_restore(&kept);
    return status;
}

typedef enum fault { DIES, LATE, DIFFERS } fault;

/* Sums by NCCL, or without it. */
static const char *const ways[] = {"nccl", "kernel", "copy"};
#define N_WAYS 3

static void run_way(forked_fn fn, fault f, int k, forked_result *results)
{
    (void)setenv("BRG_NCCL_SUMS", ways[k], 1);
    forked_run(2, fn, &f, results);
}

/* Rank 1 does it, while rank 0 waits for it in a collective. */
static brg_status run_fault(forked_rank *me)
{
    const fault f = *(const fault *)me->data;
    double sum = 0;
    brg_pg *pg;
    BRG_TRY(forked_group(me, f == LATE ? 1.0 : 30, &pg));
    for (int i = 0; i < 3; i++)
        BRG_TRY(reduce(pg, N, &sum));
    RANK_CHECK(sum == me->n, "the sum is %g", sum);
    if (me->rank == 1 && f == DIES) {
        forked_sleep_ms(500);
        (void)raise(SIGKILL);
    }
    if (me->rank == 1)
        forked_sleep_ms(f == LATE ? 3000 : 300);
    return lose(me, pg, f == DIFFERS && me->rank == 1 ? N / 2 : N);
}

static void test_faults__a_rank_dies(void **state)
{
    (void)state;
    forked_result results[2];
    for (int k = 0; k < N_WAYS; k++) {
        run_way(run_fault, DIES, k, results);
        assert_true(results[1].is_killed);
        forked_expect(&results[0], BRG_ERR_PEER, "rank 1, which has died");
        printf("%s\n", results[0].text);
    }
}

static void test_faults__a_rank_is_late(void **state)
{
    (void)state;
    forked_result results[2];
    for (int k = 0; k < N_WAYS; k++) {
        run_way(run_fault, LATE, k, results);
        forked_expect(&results[0], BRG_ERR_TIMEOUT,
                      "timed out after 1 s; rank 1 has not started it");
        forked_expect(&results[1], BRG_ERR_PEER, "rank 0");
        printf("%s\n%s\n", results[0].text, results[1].text);
    }
}

static void test_faults__calls_that_differ(void **state)
{
    (void)state;
    forked_result results[2];
    for (int k = 0; k < N_WAYS; k++) {
        run_way(run_fault, DIFFERS, k, results);
        for (int r = 0; r < 2; r++) {
            forked_expect(&results[r], BRG_ERR_MISMATCH, "(1048576 f32, sum)");
            forked_expect(&results[r], BRG_ERR_MISMATCH, "(524288 f32, sum)");
        }
    }
}

/* ---- Steps that are launched ---------------------------------------------------------- */

#define N_IN 64

typedef struct net {
    brg_params *params;
    brg_nn_linear fc;
    brg_optim *optim;
    brg_ddp *ddp;
    brg_compiled *step;
} net;

static brg_status step_of(brg_tensor *const *in, size_t n_in, brg_tensor **out,
                          size_t n_out, void *user)
{
    net *m = user;
    (void)n_in;
    (void)n_out;
    out[0] = brg_mean_all(brg_square(brg_nn_linear_forward(&m->fc, in[0])));
    if (!out[0])
        return brg_error_code();
    BRG_TRY(brg_backward(out[0]));
    BRG_TRY(brg_optim_step(m->optim));
    return brg_optim_zero_grad(m->optim, false);
}

static brg_status make_net(net *m, brg_pg *pg)
{
    size_t n;
    brg_sgd_options sgd = BRG_SGD_OPTIONS_INIT;
    brg_nn_options nn = BRG_NN_OPTIONS_INIT;
    brg_compile_options compile = BRG_COMPILE_OPTIONS_INIT;
    compile.whole = compile.replay = compile.fullgraph = true;
    sgd.lr = 0.01;
    BRG_TRY(brg_params_create(&m->params));
    nn.params = m->params;
    brg_seed(1);
    BRG_TRY(brg_nn_linear_init(&m->fc, &nn, "fc", N_IN, N_IN));
    BRG_TRY(brg_optim_create_sgd(&m->optim, m->params, &sgd));
    brg_tensor *const *tensors =
        brg_params_tensors(m->params, BRG_PARAM_TRAINED, &n);
    BRG_TRY(brg_ddp_create(&m->ddp, pg, tensors, n, NULL, 0, NULL));
    return brg_compiled_create(&m->step, step_of, m, &compile);
}

static brg_status call_step(net *m)
{
    double loss = 0;
    brg_tensor *out = NULL;
    brg_scope *scope = brg_scope_begin();
    brg_tensor *x = brg_randn(BRG_DTYPE_F32, BRG_SHAPE(8, N_IN));
    brg_status status =
        x ? brg_compiled_call(m->step, &x, 1, &out, 1) : brg_error_code();
    if (status == BRG_OK)
        status = brg_tensor_item(out, &loss); /* the host waits */
    brg_scope_end(scope);
    return status;
}

static brg_status run_launched(forked_rank *me)
{
    const fault f = *(const fault *)me->data;
    brg_pg *pg;
    net m = {0};
    brg__error_record kept;
    brg_compile_stats stats;
    BRG_TRY(forked_group(me, f == LATE ? 1.5 : 30, &pg));
    BRG_TRY(make_net(&m, pg));
    for (int i = 0; i < 8; i++)
        BRG_TRY(call_step(&m));
    brg_compile_get_stats(&stats);
    RANK_CHECK(stats.replay_launches >= 3, "%d launches: %s",
               (int)stats.replay_launches, brg_compile_reason());
    if (me->rank == 1 && f == DIES)
        (void)raise(SIGKILL);
    if (me->rank == 1)
        forked_sleep_ms(4000);
    const uint64_t start = brg__clock_ns();
    brg_status status = BRG_OK;
    for (int i = 0; i < 3 && status == BRG_OK; i++)
        status = call_step(&m);
    const double s = 1e-9 * (double)(brg__clock_ns() - start);
    RANK_CHECK(status != BRG_OK, "rank %d: no error", me->rank);
    brg__error_save(&kept);
    RANK_CHECK(s < SOON_S, "rank %d: it took %g s: %s", me->rank, s, kept.text);
    brg_compiled_destroy(m.step);
    brg_ddp_destroy(m.ddp);
    brg_pg_destroy(pg);
    BRG_TRY(check_gpu());
    brg__error_restore(&kept);
    return status;
}

static void test_faults__a_rank_dies_between_launches(void **state)
{
    (void)state;
    forked_result results[2];
    for (int k = 0; k < N_WAYS; k++) {
        run_way(run_launched, DIES, k, results);
        assert_true(results[1].is_killed);
        forked_expect(&results[0], BRG_ERR_PEER, "rank 1");
        forked_expect(&results[0], BRG_ERR_PEER, "has died");
        printf("%s\n", results[0].text);
    }
}

static void test_faults__a_rank_launches_late(void **state)
{
    (void)state;
    forked_result results[2];
    for (int k = 0; k < N_WAYS; k++) {
        run_way(run_launched, LATE, k, results);
        forked_expect(&results[0], BRG_ERR_TIMEOUT,
                      "of a recorded step timed out after 1.5 s; rank 1 has "
                      "launched");
        forked_expect(&results[1], BRG_ERR_PEER, "rank 0");
        printf("%s\n", results[0].text);
    }
}

/* ---- A rank that is lost while all join ----------------------------------------------- */

/* Rank 1 has the id of the group, and does not go on. */
static brg_status broadcast_and_go(void *user, void *data, size_t nbytes)
{
    forked_rank *me = user;
    BRG_TRY(forked_broadcast(user, data, nbytes));
    if (me->rank == 1 && *(const fault *)me->data == DIES)
        (void)raise(SIGKILL);
    if (me->rank == 1)
        forked_sleep_ms(4000);
    return BRG_OK;
}

static brg_status run_join(forked_rank *me)
{
    brg_pg *pg;
    double sum;
    brg__error_record kept;
    brg_nccl_options nccl = {.struct_size = sizeof nccl,
                             .rank = me->rank,
                             .world_size = me->n,
                             .device = me->device,
                             .stream = me->stream,
                             .broadcast = broadcast_and_go,
                             .all_gather = forked_gather,
                             .user = me};
    brg_pg_options options = BRG_PG_OPTIONS_INIT;
    options.timeout_s = *(const fault *)me->data == LATE ? 1.5 : 30;
    options.backend_data = &nccl;
    const uint64_t start = brg__clock_ns();
    brg_status status = brg_pg_create(&pg, "nccl", &options);
    const double s = 1e-9 * (double)(brg__clock_ns() - start);
    RANK_CHECK(status != BRG_OK, "rank %d: no error", me->rank);
    brg__error_save(&kept);
    RANK_CHECK(me->rank == 1 || s < SOON_S, "rank %d: it took %g s: %s",
               me->rank, s, kept.text);
    BRG_TRY(check_gpu());
    if (me->rank == 0) { /* alone, a group can be made */
        nccl.world_size = 1;
        nccl.broadcast = forked_broadcast;
        me->n = 1;
        BRG_TRY(brg_pg_create(&pg, "nccl", &options));
        BRG_TRY(reduce(pg, N, &sum));
        RANK_CHECK(sum == 1, "the sum is %g", sum);
        brg_pg_destroy(pg);
    }
    brg__error_restore(&kept);
    return status;
}

static void test_faults__a_rank_is_lost_while_all_join(void **state)
{
    (void)state;
    forked_result results[2];
    forked_run(2, run_join, &(fault){DIES}, results);
    assert_true(results[1].is_killed);
    forked_expect(&results[0], BRG_ERR_PEER, "rank 1 has died");
    printf("%s\n", results[0].text);
    forked_run(2, run_join, &(fault){LATE}, results);
    forked_expect(&results[0], BRG_ERR_TIMEOUT, "rank 1 has not come");
    forked_expect(&results[1], BRG_ERR_PEER, "rank 0 has failed");
    printf("%s\n%s\n", results[0].text, results[1].text);
}

static brg_status run_making(forked_rank *me)
{
    brg_pg *pg;
    double sum, least = 1e9;
    for (int k = 0; k < 4; k++) {
        const uint64_t start = brg__clock_ns();
        BRG_TRY(forked_group(me, 30, &pg));
        const double s = 1e-9 * (double)(brg__clock_ns() - start);
        least = s < least ? s : least;
        BRG_TRY(reduce(pg, N, &sum));
        RANK_CHECK(sum == me->n, "the sum is %g", sum);
        brg_pg_destroy(pg);
    }
    if (me->rank == 0)
        fprintf(stderr, "a group of %d: %.3f s, BRG_NCCL_BOUNDED_INIT=%s\n",
                me->n, least, getenv("BRG_NCCL_BOUNDED_INIT"));
    return BRG_OK;
}

static void test_faults__groups_are_made_and_destroyed(void **state)
{
    (void)state;
    for (int bounded = 0; bounded <= 1; bounded++) {
        (void)setenv("BRG_NCCL_BOUNDED_INIT", bounded ? "1" : "0", 1);
        forked_check(1, run_making, NULL);
        forked_check(2, run_making, NULL);
    }
    (void)unsetenv("BRG_NCCL_BOUNDED_INIT");
}

/* ---- Going on alone ------------------------------------------------------------------- */

#define N_STEPS 6

static const leaf_train how = {.n_steps = N_STEPS,
                               .batch = 16,
                               .n_leaves = 4,
                               .cap = 65536,
                               .n_hidden = 64,
                               .confirms = true};

typedef struct death {
    int rank;
    int64_t step; /* dies before it */
} death;

static uint64_t *expected; /* shared: weights' hashes of a run on one GPU */
static const death *mine;

static void die_at_step(int64_t step)
{
    if (mine && mine->step == step)
        (void)raise(SIGKILL);
}

static brg_status run_alone(forked_rank *me)
{
    brg_pg *pg;
    leaf_net trained;
    BRG_TRY(forked_group(me, 30, &pg));
    brg_status status = leaf_net_init(&trained, pg, &how);
    for (int k = 0; k <= N_STEPS && status == BRG_OK; k++) {
        expected[k] = leaf_net_hash(&trained);
        if (k < N_STEPS)
            status = leaf_net_step(&trained, k);
    }
    leaf_net_deinit(&trained);
    brg_pg_destroy(pg);
    return status;
}

static brg_status run_on(forked_rank *me)
{
    const death *d = me->data;
    survive s = {.how = how,
                 .expected = expected,
                 .at_step = die_at_step,
                 .went_on = -1};
    brg_pg *pg;
    mine = d->rank == me->rank ? d : NULL;
    BRG_TRY(forked_group(me, 30, &pg));
    BRG_TRY(survive_rank(pg, &s));
    RANK_CHECK(s.n_ended == 1 && s.n_shrinks == 1 && s.went_on == d->step,
               "ended %d times, %d losses, went on at step %d", s.n_ended,
               s.n_shrinks, (int)s.went_on);
    brg_pg_destroy(pg);
    return check_gpu();
}

static void test_faults__the_rank_left_goes_on(void **state)
{
    (void)state;
    forked_result results[2];
    expected = mmap(NULL, (N_STEPS + 1) * sizeof *expected,
                    PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    assert_true(expected != MAP_FAILED);
    forked_check(1, run_alone, NULL);
    assert_true(expected[0] != expected[N_STEPS]);
    for (int rank = 0; rank < 2; rank++)
        for (int64_t step = 0; step < N_STEPS; step += N_STEPS - 2) {
            forked_run(2, run_on, &(death){rank, step}, results);
            assert_true(results[rank].is_killed);
            if (results[1 - rank].status != BRG_OK)
                print_error("%s\n", results[1 - rank].text);
            assert_int_equal(results[1 - rank].status, BRG_OK);
        }
}

/* Of what is named by a pattern, "*launch*", if there is one. */
int main(int argc, char **argv)
{
    int status = require_two_gpus();
    if (status)
        return status;
    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_faults__a_rank_dies),
        cmocka_unit_test(test_faults__a_rank_is_late),
        cmocka_unit_test(test_faults__calls_that_differ),
        cmocka_unit_test(test_faults__a_rank_dies_between_launches),
        cmocka_unit_test(test_faults__a_rank_launches_late),
        cmocka_unit_test(test_faults__groups_are_made_and_destroyed),
        cmocka_unit_test(test_faults__a_rank_is_lost_while_all_join),
        cmocka_unit_test(test_faults__the_rank_left_goes_on),
    };
    return cmocka_run_group_tests_name("faults", tests, NULL, NULL);
}
