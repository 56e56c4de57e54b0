/* SPDX-License-Identifier: Apache-2.0
 * Gradients that streams of the user's write, on made-up GPUs: the reducer reads
 * them when they are there, and the host waits for none. */
#include <brigade/cuda.h>
#include <brigade/reducer.h>

#include "tests/nccl/fake_stream.h"
#include "tests/nccl/forked_device.h"

enum { N_GRADS = 3, COUNT = 501, N_STEPS = 4, LATE_MS = 30 };

typedef struct trainer {
    forked_rank *me;
    brg_pg *pg;
    brg_reducer *reducer;
    cudaStream_t streams[N_GRADS]; /* one for each gradient */
    cudaEvent_t written[N_GRADS], reduced;
    float *grads[N_GRADS], *seen[N_GRADS];
} trainer;

/* A kernel of the user's that takes its time. */
typedef struct kernel {
    float *to;
    const float *from; /* NULL: writes gradient i of this step */
    int rank, step, i;
    long ms;
} kernel;

static void run_kernel(void *args)
{
    const kernel *k = args;
    forked_sleep_ms(k->ms);
    for (size_t e = 0; e < COUNT; e++)
        k->to[e] =
            k->from ? k->from[e]
                    : (float)ranks_gradient(k->rank, k->step, (size_t)k->i, e);
}

static void queue_kernel(cudaStream_t stream, kernel k)
{
    fake_push((fake_stream *)(void *)stream, run_kernel, &k, sizeof k);
}

static brg_status trainer_make(trainer *t)
{
    brg_reducer_param params[N_GRADS];
    BRG_TRY(forked_device(t->me));
    BRG_TRY(forked_group(t->me, 20, &t->pg));
    for (size_t i = 0; i < N_GRADS; i++) {
        bool ok = cudaMalloc((void **)&t->grads[i], COUNT * sizeof(float)) ==
                      cudaSuccess &&
                  cudaMalloc((void **)&t->seen[i], COUNT * sizeof(float)) ==
                      cudaSuccess &&
                  cudaStreamCreateWithFlags(&t->streams[i], 0) == cudaSuccess &&
                  cudaEventCreateWithFlags(&t->written[i], 0) == cudaSuccess;
        RANK_CHECK(ok, "no memory, stream or event");
        params[i] = (brg_reducer_param){.grad = t->grads[i],
                                        .count = COUNT,
                                        .dtype = BRG_DTYPE_F32,
                                        .device = t->me->device};
    }
    RANK_CHECK(cudaEventCreateWithFlags(&t->reduced, 0) == cudaSuccess,
               "no event");
    brg_reducer_options options = BRG_REDUCER_OPTIONS_INIT;
    options.first_bucket_bytes = options.bucket_bytes = 3000;
    return brg_reducer_create(&t->reducer, t->pg, params, N_GRADS, &options);
}

static void trainer_free(trainer *t)
{
    brg_reducer_destroy(t->reducer);
    for (size_t i = 0; i < N_GRADS; i++) {
        (void)cudaStreamSynchronize(t->streams[i]);
        (void)cudaStreamDestroy(t->streams[i]);
        (void)cudaEventDestroy(t->written[i]);
        (void)cudaFree(t->grads[i]);
        (void)cudaFree(t->seen[i]);
    }
    (void)cudaEventDestroy(t->reduced);
    brg_pg_destroy(t->pg);
}

/* Everything is queued before the first gradient is there, the copy of the
 * results and the kernels of the next step included. */
static brg_status step(trainer *t, int number)
{
    const int rank = t->me->rank;
    for (int i = 0; i < N_GRADS; i++) {
        queue_kernel(t->streams[i],
                     (kernel){.to = t->grads[i],
                              .rank = rank,
                              .step = number,
                              .i = i,
                              .ms = LATE_MS * (rank + 1) / (i + 1)});
        RANK_CHECK(cudaEventRecord(t->written[i], t->streams[i]) == cudaSuccess,
                   "no event");
        BRG_TRY(
            brg_reducer_mark_ready_after(t->reducer, (size_t)i, t->written[i]));
    }
    BRG_TRY(brg_reducer_wait(t->reducer));
    bool ok =
        cudaEventRecord(t->reduced, (cudaStream_t)t->me->stream) == cudaSuccess;
    for (int i = 0; i < N_GRADS && ok; i++) {
        ok = cudaStreamWaitEvent(t->streams[i], t->reduced, 0) == cudaSuccess;
        queue_kernel(t->streams[i],
                     (kernel){.to = t->seen[i], .from = t->grads[i]});
    }
    RANK_CHECK(ok, "the streams cannot wait");
    return BRG_OK;
}

static brg_status check_step(const trainer *t, int number)
{
    for (size_t i = 0; i < N_GRADS; i++) {
        (void)cudaStreamSynchronize(t->streams[i]);
        for (size_t e = 0; e < COUNT; e++) {
            double want = ranks_average(t->me->n, number, i, e);
            double off = (double)t->seen[i][e] - want;
            RANK_CHECK(off < 1e-6 && off > -1e-6,
                       "rank %d, step %d: gradient %zu[%zu] is %g, not %g",
                       t->me->rank, number, i, e, (double)t->seen[i][e], want);
        }
    }
    return BRG_OK;
}

/* Steps with a look at each, then some in a row, for which the host does not
 * wait. */
static brg_status run_steps(trainer *t)
{
    brg_device_counts before, after;
    for (int s = 0; s < 2; s++) {
        BRG_TRY(step(t, s));
        BRG_TRY(check_step(t, s));
    }
    BRG_TRY(brg_device_get_counts(t->me->device, &before));
    for (int s = 2; s < N_STEPS; s++)
        BRG_TRY(step(t, s));
    BRG_TRY(brg_device_get_counts(t->me->device, &after));
    RANK_CHECK(after.n_waits == before.n_waits, "rank %d: %d waits",
               t->me->rank, (int)(after.n_waits - before.n_waits));
    BRG_TRY(check_step(t, N_STEPS - 1));
    return brg_reducer_confirm(t->reducer);
}

static brg_status run_streams(forked_rank *me)
{
    trainer t = {.me = me};
    brg_status status = trainer_make(&t);
    if (status == BRG_OK)
        status = run_steps(&t);
    trainer_free(&t);
    return status;
}

static void test_streams__gradients_are_waited_for(void **state)
{
    (void)state;
    for (int n = 1; n <= 3; n++)
        forked_check(n, run_streams, NULL);
}

#if BRG_DEBUG >= 1
/* Memory that was given back is found when it is marked; with other memory the
 * step goes on. */
static brg_status run_freed(forked_rank *me)
{
    trainer t = {.me = me};
    BRG_TRY(trainer_make(&t));
    BRG_TRY(step(&t, 0));
    BRG_TRY(check_step(&t, 0));
    (void)cudaFree(t.grads[1]);
    RANK_FAILS(brg_reducer_mark_ready(t.reducer, 1), BRG_ERR_STATE,
               "the buffer of parameter 1 (2004 bytes at");
    RANK_CHECK(cudaMalloc((void **)&t.grads[1], COUNT * sizeof(float)) ==
                   cudaSuccess,
               "no memory");
    BRG_TRY(brg_reducer_set_grad(t.reducer, 1, t.grads[1]));
    BRG_TRY(step(&t, 1));
    BRG_TRY(check_step(&t, 1));
    trainer_free(&t);
    return BRG_OK;
}
#endif

static void test_streams__freed_memory_is_found_in_debug_builds(void **state)
{
    (void)state;
#if BRG_DEBUG >= 1
    for (int n = 1; n <= 2; n++)
        forked_check(n, run_freed, NULL);
#else
    skip();
#endif
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_streams__gradients_are_waited_for),
        cmocka_unit_test(test_streams__freed_memory_is_found_in_debug_builds),
    };
    return cmocka_run_group_tests_name("streams", tests, NULL, NULL);
}
