/* SPDX-License-Identifier: Apache-2.0
 * Steps that are launched again, with reductions in them: the contexts, memory
 * and graphs of core/cuda and the groups of comm/nccl on made-up GPUs, one for
 * each of the forked ranks. */
#include <brigade/brigade.h>
#include <brigade/cuda.h>

#include "core/tensor/device.h"
#include "tests/nccl/forked_device.h"

#define N_STEPS 7
#define N_PARAMS 5
#define TIMEOUT_S 20

/* ---- A model --------------------------------------------------------------------- */

typedef struct model {
    forked_rank *me;
    brg_device home, there;
    brg_tensor *p[N_PARAMS]; /* the last is used by nobody */
    brg_params *params;
    brg_optim *optim;
    brg_pg *pg;
    brg_ddp *ddp;
    brg_scope *scope;
    bool crosses; /* through the host */
    bool draws;   /* drops some, and scales its loss by a number of the host */
} model;

static brg_status model_make(model *m, forked_rank *me, int n_params)
{
    static const int64_t shapes[N_PARAMS][2] = {
        {6, 5}, {6, 0}, {3, 6}, {3, 0}, {4, 0}};
    brg_sgd_options sgd = BRG_SGD_OPTIONS_INIT;
    brg_ddp_options options = BRG_DDP_OPTIONS_INIT;
    *m = (model){.me = me, .there = me->device};
    BRG_TRY(forked_device(me));
    m->there = me->device;
    BRG_TRY(forked_group(me, TIMEOUT_S, &m->pg));
    BRG_TRY(brg_device_set(m->there));
    m->scope = brg_scope_begin();
    BRG_TRY(brg_params_create(&m->params));
    brg_seed(11);
    for (int i = 0; i < n_params; i++) {
        char name[8];
        snprintf(name, sizeof name, "p%d", i);
        m->p[i] = brg_retain(
            brg_randn(BRG_DTYPE_F32, shapes[i][1] ? 2 : 1, shapes[i]));
        RANK_CHECK(m->p[i], "parameter %d: %s", i, brg_error_message());
        BRG_TRY(brg_set_requires_grad(m->p[i], true));
        BRG_TRY(brg_params_add(m->params, name, m->p[i], BRG_PARAM_TRAINED));
    }
    sgd.lr = 0.1;
    sgd.momentum = 0.9;
    BRG_TRY(brg_optim_create_sgd(&m->optim, m->params, &sgd));
    options.first_bucket_bytes = options.bucket_bytes = 64;
    options.allow_unused = n_params == N_PARAMS;
    return brg_ddp_create(&m->ddp, m->pg, m->p, (size_t)n_params, NULL, 0,
                          &options);
}

static void model_free(model *m)
{
    brg_ddp_destroy(m->ddp);
    brg_optim_destroy(m->optim);
    brg_params_destroy(m->params);
    for (int i = 0; i < N_PARAMS; i++)
        brg_release(m->p[i]);
    brg_pg_destroy(m->pg);
    brg_scope_end(m->scope);
}

/* in: x (n, 5), a number on the host. The gradients of p[2] and p[3] come first, in a bucket. */
static brg_status step(brg_tensor *const *in, size_t n_in, brg_tensor **out,
                       size_t n_out, void *user)
{
    model *m = user;
    (void)n_in;
    (void)n_out;
    brg_tensor *h = brg_relu(brg_linear(in[0], m->p[0], m->p[1]));
    if (m->crosses)
        h = brg_to(brg_to(h, m->home), m->there);
    if (m->draws)
        h = brg_dropout(h, 0.25, true);
    out[0] = brg_mean_all(brg_square(brg_linear(h, m->p[2], m->p[3])));
    if (m->draws)
        out[0] = brg_mul(out[0], brg_to(in[1], m->there));
    if (!out[0])
        return brg_error_code();
    BRG_TRY(brg_backward(out[0]));
    BRG_TRY(brg_optim_step(m->optim));
    return brg_optim_zero_grad(m->optim, false);
}

typedef struct history {
    double losses[N_STEPS];
    float numbers[64];
} history;

static brg_status read_all(const model *m, history *h)
{
    size_t n = 0;
    for (int i = 0; i < N_PARAMS && m->p[i]; i++) {
        const size_t nbytes = brg_tensor_nbytes(m->p[i]);
        BRG_TRY(brg_tensor_read(m->p[i], h->numbers + n, nbytes));
        n += nbytes / sizeof *h->numbers;
    }
    return BRG_OK;
}

static brg_compiled *compile(model *m)
{
    brg_compiled *compiled = NULL;
    brg_compile_options options = BRG_COMPILE_OPTIONS_INIT;
    options.fullgraph = options.whole = options.replay = true;
    return brg_compiled_create(&compiled, step, m, &options) == BRG_OK
               ? compiled
               : NULL;
}

static brg_status one_step(model *m, brg_compiled *compiled, int k, int n,
                           double *loss)
{
    brg_scope *scope = brg_scope_begin();
    brg_tensor *in[2], *out = NULL;
    brg_seed((uint64_t)(100 * k + m->me->rank));
    in[0] = brg_randn(BRG_DTYPE_F32, BRG_SHAPE(n, 5));
    in[1] = brg_to(brg_full(BRG_DTYPE_F32, BRG_SHAPE(), 1 + k), m->home);
    brg_status status = compiled ? brg_compiled_call(compiled, in, 2, &out, 1)
                                 : step(in, 2, &out, 1, m);
    if (status == BRG_OK)
        status = brg_tensor_item(out, loss);
    brg_scope_end(scope);
    return status;
}

static brg_compile_stats stats_now(void)
{
    brg_compile_stats stats;
    brg_compile_get_stats(&stats);
    return stats;
}

/* ---- All is launched ---------------------------------------------------------------- */

typedef struct variant {
    int n_params;
    bool crosses;
    uint64_t n_recordings, n_launches, n_skips;
    bool draws;
} variant;

static brg_status run_way(forked_rank *me, const variant *v, bool is_compiled,
                          history *h)
{
    model m;
    BRG_TRY(brg_compile_reset());
    BRG_TRY(model_make(&m, me, v->n_params));
    m.crosses = v->crosses;
    m.draws = v->draws;
    brg_compiled *compiled = is_compiled ? compile(&m) : NULL;
    for (int k = 0; k < N_STEPS; k++)
        BRG_TRY(one_step(&m, compiled, k, 4, &h->losses[k]));
    BRG_TRY(brg_ddp_confirm(m.ddp));
    BRG_TRY(read_all(&m, h));
    brg_compiled_destroy(compiled);
    model_free(&m);
    return BRG_OK;
}

/* Eager steps and compiled ones alike, bit for bit. */
static brg_status run_both(forked_rank *me)
{
    const variant *v = me->data;
    history eager = {0}, launched = {0};
    BRG_TRY(run_way(me, v, false, &eager));
    BRG_TRY(run_way(me, v, true, &launched));
    const brg_compile_stats s = stats_now();
    RANK_CHECK(memcmp(&eager, &launched, sizeof eager) == 0,
               "rank %d: loss %g, eager %g", me->rank,
               launched.losses[N_STEPS - 1], eager.losses[N_STEPS - 1]);
    RANK_CHECK(eager.losses[0] != eager.losses[1], "it learnt nothing");
    RANK_CHECK(
        s.replay_recordings == v->n_recordings &&
            s.replay_launches == v->n_launches && s.replay_skips == v->n_skips,
        "%d recordings, %d launches, %d skips: %s", (int)s.replay_recordings,
        (int)s.replay_launches, (int)s.replay_skips, brg_compile_reason());
    return BRG_OK;
}

static void test_graphs__steps_are_launched(void **state)
{
    (void)state;
    for (int n = 1; n <= 4; n++)
        forked_check(n, run_both,
                     &(variant){4, false, 1, N_STEPS - 3, 0, false});
}

/* Each launch with numbers of its own, as the one that ends early. */
static void test_graphs__numbers_of_each_launch(void **state)
{
    (void)state;
    for (int n = 1; n <= 2; n++) {
        forked_check(n, run_both,
                     &(variant){4, false, 1, N_STEPS - 3, 0, true});
        forked_check(n, run_both, &(variant){4, true, 1, 0, 1, true});
    }
}

/* ---- Recordings that end early, with a reduction in flight --------------------------- */

static void test_graphs__a_copy_to_the_host(void **state)
{
    (void)state;
    for (int n = 1; n <= 4; n++)
        forked_check(n, run_both, &(variant){4, true, 1, 0, 1, false});
}

/* What such a step came to is asked for at once. */
static void test_graphs__a_parameter_that_nobody_uses(void **state)
{
    (void)state;
    for (int n = 1; n <= 4; n++)
        forked_check(n, run_both, &(variant){N_PARAMS, false, 1, 0, 1, false});
}

/* In the recording a kernel of rank 0 fails behind the first bucket: it says so,
 * all hear it one step later, when the others launch what rank 0 records, and go
 * on with calls that meet. */
static brg_status run_failure(forked_rank *me)
{
    model m;
    double loss;
    brg_work *work;
    float sign = me->rank == 0 ? 7 : 0;
    BRG_TRY(model_make(&m, me, 4));
    brg_compiled *compiled = compile(&m);
    for (int k = 0; k < N_STEPS; k++) {
        if (k == 2 && me->rank == 0)
            fake_gpu_fail_op("relu_grad");
        const brg_status status = one_step(&m, compiled, k, 4, &loss);
        if (k == 2 && me->rank == 0)
            RANK_CHECK(status == BRG_ERR_DEVICE &&
                           strstr(brg_error_message(), "a kernel that fails"),
                       "step %d: %s", k, brg_error_message());
        else if (k == 3)
            RANK_CHECK(status == BRG_ERR_PEER &&
                           strstr(brg_error_message(),
                                  "backward failed in step 3 on 1 of"),
                       "rank %d, step %d: %s", me->rank, k,
                       brg_error_message());
        else
            RANK_CHECK(status == BRG_OK, "rank %d, step %d: %s", me->rank, k,
                       brg_error_message());
    }
    BRG_TRY(brg_ddp_confirm(m.ddp));
    const brg_compile_stats s = stats_now();
    RANK_CHECK(s.replay_skips == 0 && s.replay_launches > 0,
               "rank %d: %d skips, %d launches", me->rank, (int)s.replay_skips,
               (int)s.replay_launches);
    BRG_TRY(brg_broadcast(m.pg, &work, &sign, 1, BRG_DTYPE_F32, 0));
    BRG_TRY(brg_work_wait(work));
    RANK_CHECK(sign == 7, "rank %d has %g", me->rank, sign);
    brg_compiled_destroy(compiled);
    model_free(&m);
    return BRG_OK;
}

static void test_graphs__a_kernel_fails_behind_a_bucket(void **state)
{
    (void)state;
    for (int n = 1; n <= 4; n++)
        forked_check(n, run_failure, NULL);
}

/* ---- Memory ------------------------------------------------------------------------ */

#define N_TIGHT 24

/* Room for one graph: that of a size is given up for the other's, but once for
 * each; then one is launched, and the other op by op. */
static brg_status run_tight(forked_rank *me)
{
    double losses[2][N_TIGHT];
    for (int is_compiled = 0; is_compiled < 2; is_compiled++) {
        model m;
        BRG_TRY(brg_compile_reset());
        BRG_TRY(model_make(&m, me, 4));
        brg_compiled *compiled = is_compiled ? compile(&m) : NULL;
        for (int k = 0; k < N_TIGHT; k++) {
            BRG_TRY(one_step(&m, compiled, k, k / 6 % 2 ? 3 : 4,
                             &losses[is_compiled][k]));
            if (k == 5 && is_compiled)
                fake_gpu_set_memory(fake_gpu_used() + ((size_t)8 << 20));
        }
        fake_gpu_set_memory(0);
        BRG_TRY(brg_ddp_confirm(m.ddp));
        brg_compiled_destroy(compiled);
        model_free(&m);
    }
    const brg_compile_stats s = stats_now();
    RANK_CHECK(memcmp(losses[0], losses[1], sizeof losses[0]) == 0,
               "rank %d: other losses", me->rank);
    /* 3 of the first 6; 2 of the next: warm, warm, without, recorded; 4:
     * without, recorded; then without a graph for good */
    RANK_CHECK(s.replay_recordings == 6 && s.replay_launches == 3 + 2 + 4 &&
                   s.replay_skips == 1,
               "rank %d: %d recordings, %d launches, %d skips", me->rank,
               (int)s.replay_recordings, (int)s.replay_launches,
               (int)s.replay_skips);
    RANK_CHECK(strstr(brg_compile_reason(), "no memory for a graph"), "%s",
               brg_compile_reason());
    return BRG_OK;
}

static void test_graphs__memory_for_one_of_two(void **state)
{
    (void)state;
    for (int n = 1; n <= 2; n++)
        forked_check(n, run_tight, NULL);
}

/* The pool has what the driver lacks. */
static brg_status run_trimmed(forked_rank *me)
{
    fake_gpu_fail_graph(1);
    return run_both(me);
}

static void test_graphs__memory_of_the_pool(void **state)
{
    (void)state;
    forked_check(1, run_trimmed,
                 &(variant){4, false, 1, N_STEPS - 3, 0, false});
}

/* A step that was recorded and could not be made a graph has not run, and says
 * so. */
static brg_status run_lost(forked_rank *me)
{
    model m;
    double loss;
    BRG_TRY(model_make(&m, me, 4));
    brg_compiled *compiled = compile(&m);
    for (int k = 0; k < 2; k++)
        BRG_TRY(one_step(&m, compiled, k, 4, &loss));
    fake_gpu_fail_graph(-1);
    RANK_FAILS(one_step(&m, compiled, 2, 4, &loss), BRG_ERR_DEVICE,
               "what was recorded is lost: no memory for a graph");
    fake_gpu_fail_graph(0);
    brg_compiled_destroy(compiled);
    model_free(&m);
    return BRG_OK;
}

static void test_graphs__no_memory_for_what_was_recorded(void **state)
{
    (void)state;
    forked_check(1, run_lost, NULL);
}

/* ---- Copies, the current GPU --------------------------------------------------------- */

/* The host does not wait, and goes on with its own memory. */
static brg_status run_copies(forked_rank *me)
{
    enum { N = 700001 }; /* three slots */
    static float data[N], back[N];
    brg_device_counts before, after;
    BRG_TRY(forked_device(me));
    brg_scope *scope = brg_scope_begin();
    for (int i = 0; i < N; i++)
        data[i] = (float)i;
    const long n_pageable = fake_gpu_n_pageable();
    BRG_TRY(brg_device_get_counts(me->device, &before));
    brg_tensor *t =
        brg_to(brg_from_data(BRG_DTYPE_F32, BRG_SHAPE(N), data), me->device);
    BRG_TRY(brg_device_get_counts(me->device, &after));
    RANK_CHECK(t, "no tensor: %s", brg_error_message());
    RANK_CHECK(after.n_waits == before.n_waits &&
                   fake_gpu_n_pageable() == n_pageable,
               "the host waited");
    BRG_TRY(brg_tensor_read(t, back, sizeof back));
    RANK_CHECK(memcmp(data, back, sizeof data) == 0, "other values");
    brg_scope_end(scope);
    return BRG_OK;
}

static void test_graphs__copies_of_some_megabytes(void **state)
{
    (void)state;
    forked_check(1, run_copies, NULL);
}

/* Chosen by the program, or by what else it uses. */
static brg_status run_other_gpu(forked_rank *me)
{
    int current = -1;
    BRG_TRY(forked_device(me));
    brg_scope *scope = brg_scope_begin();
    BRG_TRY(brg_device_set(me->device));
    (void)cudaSetDevice(3);
    RANK_CHECK(brg_ones(BRG_DTYPE_F32, BRG_SHAPE(3)), "no tensor");
    (void)cudaGetDevice(&current);
    RANK_CHECK(current == me->device.index, "GPU %d is current", current);
    brg_scope_end(scope);
    return BRG_OK;
}

static void test_graphs__another_gpu_was_chosen(void **state)
{
    (void)state;
    forked_check(1, run_other_gpu, NULL);
}

/* ---- Calls that are held ------------------------------------------------------------- */

static brg_status swap(forked_rank *me, brg_pg *pg, float *in, float *out,
                       brg_status want)
{
    brg_work *works[2];
    brg_status found[2];
    const int other = 1 - me->rank;
    BRG_TRY(brg_recv(pg, &works[0], in, 1, BRG_DTYPE_F32, other));
    BRG_TRY(brg_send(pg, &works[1], out, 1, BRG_DTYPE_F32, other));
    fake_gpu_fail_record(want != BRG_OK);
    for (int i = 0; i < 2; i++)
        found[i] = brg_work_wait(works[i]);
    RANK_CHECK(found[0] == want && (found[1] == BRG_OK) == (want == BRG_OK),
               "%s, %s: %s", brg_status_name(found[0]),
               brg_status_name(found[1]), brg_error_message());
    return BRG_OK;
}

/* Neither of two that could not start is taken for done. */
static brg_status run_held(forked_rank *me)
{
    brg_pg *pg;
    float *data, back = 0;
    BRG_TRY(forked_device(me));
    BRG_TRY(forked_group(me, TIMEOUT_S, &pg));
    BRG_TRY(brg_pg_alloc(pg, (void **)&data, 2 * sizeof *data));
    BRG_TRY(swap(me, pg, data, data + 1, BRG_ERR_NOMEM));
    brg_pg_free(pg, data);
    (void)back;
    brg_pg_destroy(pg);
    return BRG_OK;
}

static void test_graphs__held_calls_that_fail(void **state)
{
    (void)state;
    forked_check(2, run_held, NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_graphs__steps_are_launched),
        cmocka_unit_test(test_graphs__numbers_of_each_launch),
        cmocka_unit_test(test_graphs__a_copy_to_the_host),
        cmocka_unit_test(test_graphs__a_parameter_that_nobody_uses),
        cmocka_unit_test(test_graphs__a_kernel_fails_behind_a_bucket),
        cmocka_unit_test(test_graphs__memory_for_one_of_two),
        cmocka_unit_test(test_graphs__memory_of_the_pool),
        cmocka_unit_test(test_graphs__no_memory_for_what_was_recorded),
        cmocka_unit_test(test_graphs__copies_of_some_megabytes),
        cmocka_unit_test(test_graphs__another_gpu_was_chosen),
        cmocka_unit_test(test_graphs__held_calls_that_fail),
    };
    return cmocka_run_group_tests_name("graphs", tests, NULL, NULL);
}
