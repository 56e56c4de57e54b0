/* SPDX-License-Identifier: Apache-2.0
 * Steps that run out of a GPU's memory, on made-up GPUs, one for each of the
 * forked ranks: the error says what was asked for, and training goes on, with a
 * smaller batch. On GPUs: tests/cuda/test_memory_mpi.c. */
#include "tests/nccl/forked_device.h"
#include "tests/reducer/memory_checks.h"

#define TIMEOUT_S 20
#define WIDTH 6
#define LARGE 8 /* samples */
#define SMALL 4
#define N_WARM 3

/* ---- The n-th piece of memory of a step is not there, on rank 0 ------------------------ */

static brg_status run_each_piece(forked_rank *me)
{
    memory_model m;
    memory_result r;
    brg_pg *pg;
    int n_of[3] = {0};
    BRG_TRY(forked_device_group(me, TIMEOUT_S, &pg));
    BRG_TRY(memory_make(&m, pg, WIDTH));
    for (int step = 0, n = 0; n >= 0; step++) {
        brg_work *work;
        if (step >= N_WARM && me->rank == 0)
            fake_gpu_fail_alloc(++n);
        BRG_TRY(memory_step(&m, step, LARGE, SMALL, &r));
        n_of[r]++;
        if (step >= N_WARM && me->rank == 0 && fake_gpu_allocs_left() > 0)
            n = -1;
        fake_gpu_fail_alloc(0);
        BRG_TRY(brg_broadcast(pg, &work, &n, 1, BRG_DTYPE_I32, 0));
        BRG_TRY(brg_work_wait(work));
    }
    RANK_CHECK(me->rank != 0 ||
                   (n_of[MEMORY_AGAIN] > 4 && n_of[MEMORY_LOST] > 3 &&
                    n_of[MEMORY_DONE] == 4),
               "%d made again, %d lost, %d done", n_of[MEMORY_AGAIN],
               n_of[MEMORY_LOST], n_of[MEMORY_DONE]);
    for (int step = 100; step < 103; step++) {
        BRG_TRY(memory_step(&m, step, LARGE, SMALL, &r));
        RANK_CHECK(r == MEMORY_DONE, "step %d failed", step);
    }
    BRG_TRY(memory_same(&m));
    memory_free(&m);
    brg_pg_destroy(pg);
    return BRG_OK;
}

static void test_memory__each_piece_of_a_step(void **state)
{
    (void)state;
    for (int n = 1; n <= 4; n++)
        forked_check(n, run_each_piece, NULL);
}

/* ---- A batch that does not fit --------------------------------------------------------- */

#define HUGE 100000
#define N_STEPS 6

/* In some steps it is tried first. */
static brg_status train(brg_pg *pg, bool tries, double losses[N_STEPS])
{
    memory_model m;
    BRG_TRY(memory_make(&m, pg, WIDTH));
    for (int step = 0; step < N_STEPS; step++) {
        brg_scope *scope = brg_scope_begin();
        if (tries && step % 2) {
            fake_gpu_set_memory(fake_gpu_used() + ((size_t)3 << 20));
            RANK_CHECK(memory_backward(&m, step, HUGE) != BRG_OK, "it fits");
            BRG_TRY(memory_told());
            RANK_CHECK(strstr(brg_error_message(), "f32[100000, "), "%s",
                       brg_error_message());
        }
        brg_tensor *loss = memory_loss(&m, memory_data(&m, step, SMALL));
        brg_status status = brg_backward(loss);
        if (status == BRG_OK)
            status = memory_update(&m);
        if (status == BRG_OK)
            status = brg_tensor_item(loss, &losses[step]);
        brg_scope_end(scope);
        fake_gpu_set_memory(0);
        BRG_TRY(status);
    }
    BRG_TRY(brg_ddp_confirm(m.ddp));
    BRG_TRY(memory_same(&m));
    memory_free(&m);
    return BRG_OK;
}

static brg_status run_large_batches(forked_rank *me)
{
    double want[N_STEPS], got[N_STEPS];
    brg_pg *pg;
    BRG_TRY(forked_device_group(me, TIMEOUT_S, &pg));
    BRG_TRY(train(pg, false, want));
    BRG_TRY(train(pg, true, got));
    RANK_CHECK(memcmp(want, got, sizeof want) == 0 && want[0] != want[1],
               "rank %d: loss %g, not %g", me->rank, got[N_STEPS - 1],
               want[N_STEPS - 1]);
    brg_pg_destroy(pg);
    return BRG_OK;
}

static void test_memory__a_smaller_batch_goes_on(void **state)
{
    (void)state;
    for (int n = 1; n <= 2; n++)
        forked_check(n, run_large_batches, NULL);
}

/* ---- Recordings ------------------------------------------------------------------------ */

/* The n-th memory that step `at` asks for is not there: the step is made without,
 * or says so and the next one works. */
static brg_status record_short(brg_pg *pg, int at, long n, bool *is_over)
{
    memory_model m;
    brg_compiled *compiled;
    brg_compile_options options = BRG_COMPILE_OPTIONS_INIT;
    options.fullgraph = options.whole = options.replay = true;
    BRG_TRY(brg_compile_reset());
    BRG_TRY(memory_make(&m, pg, WIDTH));
    BRG_TRY(brg_compiled_create(&compiled, memory_whole_step, &m, &options));
    for (int step = 0; step < at + 5; step++) {
        brg_scope *scope = brg_scope_begin();
        brg_tensor *x = memory_data(&m, step, SMALL), *loss;
        fake_gpu_fail_alloc(step == at ? n : 0);
        brg_status status = brg_compiled_call(compiled, &x, 1, &loss, 1);
        if (step == at)
            *is_over = fake_gpu_allocs_left() > 0;
        fake_gpu_fail_alloc(0);
        if (status == BRG_ERR_NOMEM && step == at)
            status = strstr(brg_error_message(), "memory") ? BRG_OK : status;
        brg_scope_end(scope);
        RANK_CHECK(status == BRG_OK, "memory %ld of step %d, in step %d: %s", n,
                   at, step, brg_error_message());
        if (step != at)
            continue;
        status = brg_ddp_confirm(m.ddp);
        RANK_CHECK(status == BRG_OK || status == BRG_ERR_PEER, "%s",
                   brg_error_message());
        BRG_TRY(brg_optim_zero_grad(m.optim, false));
    }
    BRG_TRY(brg_ddp_confirm(m.ddp));
    BRG_TRY(memory_same(&m));
    brg_compiled_destroy(compiled);
    memory_free(&m);
    return BRG_OK;
}

/* The step is traced, runs as a plan, is recorded, is launched. */
static brg_status run_recordings(forked_rank *me)
{
    brg_pg *pg;
    BRG_TRY(forked_device_group(me, TIMEOUT_S, &pg));
    for (int at = 0; at < 4; at++) {
        bool is_over = false;
        long n = 1;
        for (; !is_over; n++)
            BRG_TRY(record_short(pg, at, n, &is_over));
        RANK_CHECK(n > 2, "step %d asks for no memory", at);
    }
    brg_pg_destroy(pg);
    return BRG_OK;
}

static void test_memory__each_piece_of_a_recording(void **state)
{
    (void)state;
    forked_check(1, run_recordings, NULL);
}

/* ---- Buckets --------------------------------------------------------------------------- */

#define N_LARGE 300000

static void limit(const forked_rank *me)
{
    if (me->rank == 0)
        fake_gpu_set_memory(fake_gpu_used() + 500000);
}

/* Rank 0 has no room for them and says how large which are, the others say who;
 * then what the pool has kept is enough. */
static brg_status run_buckets(forked_rank *me)
{
    brg_pg *pg;
    brg_tensor *p[2];
    BRG_TRY(forked_device_group(me, TIMEOUT_S, &pg));
    brg_scope *scope = brg_scope_begin();
    BRG_TRY(memory_two_params(p, N_LARGE));
    limit(me);
    const brg_status status = memory_wrap(pg, p);
    if (me->rank == 0)
        BRG_TRY(memory_buckets_told(status));
    else
        RANK_FAILS(status, BRG_ERR_PEER,
                   "rank 0 has no memory for its buckets");
    fake_gpu_set_memory(0);
    brg_scope *brief = brg_scope_begin();
    RANK_CHECK(brg_ones(BRG_DTYPE_F32, BRG_SHAPE(3 * N_LARGE)), "no tensor");
    brg_scope_end(brief);
    BRG_TRY(brg_device_synchronize(me->device));
    limit(me);
    BRG_TRY(memory_wrap(pg, p));
    fake_gpu_set_memory(0);
    brg_scope_end(scope);
    brg_pg_destroy(pg);
    return BRG_OK;
}

static void test_memory__buckets(void **state)
{
    (void)state;
    for (int n = 1; n <= 4; n++)
        forked_check(n, run_buckets, NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_memory__each_piece_of_a_step),
        cmocka_unit_test(test_memory__a_smaller_batch_goes_on),
        cmocka_unit_test(test_memory__each_piece_of_a_recording),
        cmocka_unit_test(test_memory__buckets),
    };
    return cmocka_run_group_tests_name("memory", tests, NULL, NULL);
}
