/* SPDX-License-Identifier: Apache-2.0
 * Gradients written by a stream of the user's, on GPUs, one for each rank: the
 * reducer reads them when they are there, which is long after they were marked. */
#include <cuda_runtime_api.h>

#include "core/tensor/device.h"
#include "tests/cuda/gpu_ranks.h"
#include "tests/support/ranks.h"

enum { N_GRADS = 3, N_STEPS = 6, N_COPIES = 60 };
#define COUNT ((size_t)300001)
#define WORK ((size_t)128 << 20) /* bytes that are copied to pass the time */

typedef struct trainer {
    brg_pg *pg;
    brg_reducer *reducer;
    cudaStream_t own, brigades;
    cudaEvent_t written, reduced;
    char *work[2];
    float *grads[N_GRADS], *host[N_STEPS][N_GRADS], *seen[N_GRADS];
    int n_late;
} trainer;

static void must(cudaError_t error)
{
    if (error != cudaSuccess)
        fail_msg("%s", cudaGetErrorString(error));
}

static void *device_memory(size_t nbytes)
{
    void *out = NULL;
    must(cudaMalloc(&out, nbytes));
    return out;
}

static float *host_memory(void)
{
    void *out = NULL;
    must(cudaMallocHost(&out, COUNT * sizeof(float)));
    return out;
}

/* Over NCCL, or through the host over MPI. */
static void trainer_make(trainer *t, bool over_mpi)
{
    void *stream;
    brg_reducer_param params[N_GRADS];
    if (over_mpi)
        assert_brg_ok(brg_pg_create(&t->pg, "mpi", NULL));
    else
        assert_brg_ok(brg_nccl_create(&t->pg, over, mine()));
    assert_brg_ok(brg_device_stream(mine(), &stream));
    t->brigades = stream;
    must(cudaSetDevice(rank));
    must(cudaStreamCreateWithFlags(&t->own, cudaStreamNonBlocking));
    must(cudaEventCreateWithFlags(&t->written, cudaEventDisableTiming));
    must(cudaEventCreateWithFlags(&t->reduced, cudaEventDisableTiming));
    for (int k = 0; k < 2; k++)
        t->work[k] = device_memory(WORK);
    for (size_t i = 0; i < N_GRADS; i++) {
        t->grads[i] = device_memory(COUNT * sizeof(float));
        t->seen[i] = host_memory();
        params[i] = (brg_reducer_param){.grad = t->grads[i],
                                        .count = COUNT,
                                        .dtype = BRG_DTYPE_F32,
                                        .device = mine()};
        for (int s = 0; s < N_STEPS; s++) {
            t->host[s][i] = host_memory();
            for (size_t e = 0; e < COUNT; e++)
                t->host[s][i][e] = (float)ranks_gradient(rank, s, i, e);
        }
    }
    brg_reducer_options options = BRG_REDUCER_OPTIONS_INIT;
    options.first_bucket_bytes = options.bucket_bytes = 2000000;
    assert_brg_ok(
        brg_reducer_create(&t->reducer, t->pg, params, N_GRADS, &options));
}

static void trainer_free(trainer *t)
{
    brg_reducer_destroy(t->reducer);
    must(cudaStreamSynchronize(t->own));
    for (size_t i = 0; i < N_GRADS; i++) {
        must(cudaFree(t->grads[i]));
        must(cudaFreeHost(t->seen[i]));
        for (int s = 0; s < N_STEPS; s++)
            must(cudaFreeHost(t->host[s][i]));
    }
    for (int k = 0; k < 2; k++)
        must(cudaFree(t->work[k]));
    must(cudaEventDestroy(t->written));
    must(cudaEventDestroy(t->reduced));
    must(cudaStreamDestroy(t->own));
    brg_pg_destroy(t->pg);
}

/* The stream has milliseconds of work before it writes the gradient. */
static void write_late(const trainer *t, int step, size_t i)
{
    for (int k = 0; k < N_COPIES; k++)
        must(cudaMemcpyAsync(t->work[k % 2], t->work[1 - k % 2], WORK,
                             cudaMemcpyDeviceToDevice, t->own));
    must(cudaMemcpyAsync(t->grads[i], t->host[step][i], COUNT * sizeof(float),
                         cudaMemcpyHostToDevice, t->own));
}

static void train_step(trainer *t, int step)
{
    for (size_t i = 0; i < N_GRADS; i++) {
        write_late(t, step, i);
        must(cudaEventRecord(t->written, t->own)); /* the same one each time */
        assert_brg_ok(brg_reducer_mark_ready_after(t->reducer, i, t->written));
        t->n_late += cudaEventQuery(t->written) == cudaErrorNotReady;
        (void)cudaGetLastError();
    }
    assert_brg_ok(brg_reducer_wait(t->reducer));
    must(cudaEventRecord(t->reduced, t->brigades));
    must(cudaStreamWaitEvent(t->own, t->reduced, 0));
    for (size_t i = 0; i < N_GRADS; i++)
        must(cudaMemcpyAsync(t->seen[i], t->grads[i], COUNT * sizeof(float),
                             cudaMemcpyDeviceToHost, t->own));
}

static void check_step(const trainer *t, int step)
{
    must(cudaStreamSynchronize(t->own));
    for (size_t i = 0; i < N_GRADS; i++)
        for (size_t e = 0; e < COUNT; e++) {
            const double want = ranks_average(n_ranks, step, i, e);
            if (fabs((double)t->seen[i][e] - want) > 1e-5)
                fail_msg("step %d: gradient %zu[%zu] is %g, not %g", step, i, e,
                         (double)t->seen[i][e], want);
        }
}

static void check_steps(bool over_mpi)
{
    trainer t = {0};
    trainer_make(&t, over_mpi);
    for (int step = 0; step < N_STEPS; step++) {
        train_step(&t, step);
        if (step % 2)
            check_step(&t, step);
    }
    assert_brg_ok(brg_reducer_confirm(t.reducer));
    printf("%d of %d gradients came after their mark\n", t.n_late,
           N_STEPS * N_GRADS);
    if (!over_mpi)                 /* where the host waits for each */
        assert_true(t.n_late > 0); /* else nothing was tested */
    trainer_free(&t);
}

static void test_streams__gradients_are_waited_for(void **state)
{
    (void)state;
    check_steps(false);
}

static void test_streams__gradients_go_through_the_host(void **state)
{
    (void)state;
    check_steps(true);
}

/* What the checks of debug builds ask. */
static void test_streams__freed_memory_is_known(void **state)
{
    const size_t nbytes = (size_t)64 << 20;
    const brg_device_vtable *table;
    char here;
    (void)state;
    assert_brg_ok(brg__device_find(mine(), &table));
    must(cudaSetDevice(rank));
    char *memory = device_memory(nbytes);
    assert_true(table->holds(mine(), memory, nbytes));
    assert_true(table->holds(mine(), memory + 100, nbytes - 100));
    assert_false(table->holds(mine(), &here, 1));
    must(cudaFree(memory));
    assert_false(table->holds(mine(), memory, nbytes));
    void *own = NULL; /* of the pool, as tensors have it */
    assert_brg_ok(table->alloc(mine(), &own, 1000));
    assert_true(table->holds(mine(), own, 1000));
    table->free(mine(), own, 1000);
}

int main(int argc, char **argv)
{
    int status = gpu_ranks_begin(argc, argv);
    if (status)
        return status;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_streams__gradients_are_waited_for),
        cmocka_unit_test(test_streams__gradients_go_through_the_host),
        cmocka_unit_test(test_streams__freed_memory_is_known),
    };
    return gpu_ranks_end(
        cmocka_run_group_tests_name("streams", tests, NULL, NULL));
}
