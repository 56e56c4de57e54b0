/* SPDX-License-Identifier: Apache-2.0
 * ranks.c on GPUs, one for each rank: parameters, gradients and the backward are
 * CUDA memory and kernels of one's own, in a stream of one's own; the reducer's
 * all-reduces run beside them, ordered by events. The host waits for nothing
 * until the error is read at the end.
 *
 *     mpirun -n 2 byo_ranks_cuda */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include <cuda_runtime.h>

#include <brigade/device.h>
#include <brigade/nccl.h>
#include <brigade/reducer.h>

#define N_IN 2
#define N_HIDDEN 32
#define BATCH 48
#define N_STEPS 300
#define RATE 0.3

enum { W1, B1, W2, B2, N_PARAMS };
static const size_t sizes[N_PARAMS] = {N_IN * N_HIDDEN, N_HIDDEN, N_HIDDEN, 1};
static const char *const names[N_PARAMS] = {"w1", "b1", "w2", "b2"};

struct net {
    double *param[N_PARAMS], *grad[N_PARAMS];
    double *x, *h, *error; /* of the batch */
};
static brg_pg *over, *pg;
static brg_reducer *reducer;
static cudaStream_t queue, brigades; /* ours; where the reducer works */
static cudaEvent_t written, reduced;

static void die(const char *why)
{
    fprintf(stderr, "%s\n", why);
    exit(EXIT_FAILURE);
}

static void must(brg_status status)
{
    if (status != BRG_OK)
        die(brg_error_message());
}

static void must_cuda(cudaError_t error)
{
    if (error != cudaSuccess)
        die(cudaGetErrorString(error));
}

/* ---- Kernels --------------------------------------------------------------- */

__global__ void forward(struct net t, int step, int first, int n)
{
    const int i = threadIdx.x;
    if (i >= n)
        return;
    double *x = t.x + i * N_IN, *h = t.h + i * N_HIDDEN;
    x[0] = sin(1.3 * step + 0.7 * (first + i));
    x[1] = cos(2.1 * step + 0.4 * (first + i));
    double error = t.param[B2][0] - x[0] * x[1];
    for (int j = 0; j < N_HIDDEN; j++) {
        double sum = t.param[B1][j];
        for (int k = 0; k < N_IN; k++)
            sum += x[k] * t.param[W1][k * N_HIDDEN + j];
        h[j] = tanh(sum);
        error += h[j] * t.param[W2][j];
    }
    t.error[i] = error;
}

__global__ void backward_output(struct net t, int n)
{
    const int j = threadIdx.x;
    double w2 = 0, b2 = 0;
    for (int i = 0; i < n; i++) {
        w2 += t.error[i] * t.h[i * N_HIDDEN + j] / n;
        b2 += t.error[i] / n;
    }
    t.grad[W2][j] = w2;
    if (j == 0)
        t.grad[B2][0] = b2;
}

__global__ void backward_hidden(struct net t, int n)
{
    const int j = threadIdx.x;
    double b1 = 0, w1[N_IN] = {0};
    for (int i = 0; i < n; i++) {
        const double h = t.h[i * N_HIDDEN + j];
        const double d = t.error[i] * t.param[W2][j] * (1 - h * h) / n;
        b1 += d;
        for (int k = 0; k < N_IN; k++)
            w1[k] += d * t.x[i * N_IN + k];
    }
    t.grad[B1][j] = b1;
    for (int k = 0; k < N_IN; k++)
        t.grad[W1][k * N_HIDDEN + j] = w1[k];
}

__global__ void update(double *param, const double *grad)
{
    param[threadIdx.x] -= RATE * grad[threadIdx.x];
}

/* ---- The training ------------------------------------------------------------- */

static void make_net(struct net *t)
{
    double start[N_IN * N_HIDDEN];
    for (int p = 0; p < N_PARAMS; p++) {
        const size_t nbytes = sizes[p] * sizeof(double);
        for (size_t k = 0; k < sizes[p]; k++)
            start[k] = p == W1 || p == W2 ? sin(9.7 * (double)k + p) : 0;
        must_cuda(cudaMalloc(&t->param[p], nbytes));
        must_cuda(cudaMalloc(&t->grad[p], nbytes));
        must_cuda(cudaMemcpy(t->param[p], start, nbytes,
                             cudaMemcpyHostToDevice));
    }
    must_cuda(cudaMalloc(&t->x, BATCH * N_IN * sizeof(double)));
    must_cuda(cudaMalloc(&t->h, BATCH * N_HIDDEN * sizeof(double)));
    must_cuda(cudaMalloc(&t->error, BATCH * sizeof(double)));
}

/* These two are there when what `queue` holds has run. */
static void mark(int a, int b)
{
    must_cuda(cudaEventRecord(written, queue));
    must(brg_reducer_mark_ready_after(reducer, a, written));
    must(brg_reducer_mark_ready_after(reducer, b, written));
}

/* What is queued next sees the average. */
static void wait_for_average(void)
{
    must(brg_reducer_wait(reducer));
    must_cuda(cudaEventRecord(reduced, brigades));
    must_cuda(cudaStreamWaitEvent(queue, reduced, 0));
}

static void step(struct net *t, int number, int first, int n)
{
    forward<<<1, BATCH, 0, queue>>>(*t, number, first, n);
    backward_output<<<1, N_HIDDEN, 0, queue>>>(*t, n);
    mark(W2, B2);
    backward_hidden<<<1, N_HIDDEN, 0, queue>>>(*t, n);
    mark(W1, B1);
    wait_for_average();
    for (int p = 0; p < N_PARAMS; p++)
        update<<<1, (unsigned)sizes[p], 0, queue>>>(t->param[p], t->grad[p]);
    must_cuda(cudaGetLastError());
}

/* One rank, one GPU; a group over NCCL if there are more. */
static void connect(brg_device *device)
{
    const int local = brg_launch_local_rank();
    void *stream;
    must(brg_pg_create(&over, "auto", NULL));
    must(brg_device_load("cuda"));
    const int n = brg_device_count(BRG_DEVICE_CUDA);
    *device = {BRG_DEVICE_CUDA, (int16_t)(local > 0 ? local % n : 0)};
    must(brg_device_set(*device));
    must(brg_nccl_create(&pg, over, *device));
    must(brg_device_stream(*device, &stream));
    brigades = (cudaStream_t)stream;
    must_cuda(cudaSetDevice(device->index));
    must_cuda(cudaStreamCreateWithFlags(&queue, cudaStreamNonBlocking));
    must_cuda(cudaEventCreateWithFlags(&written, cudaEventDisableTiming));
    must_cuda(cudaEventCreateWithFlags(&reduced, cudaEventDisableTiming));
}

static void print_result(const struct net *t, int first)
{
    double error[BATCH], w1, sum = 0;
    forward<<<1, BATCH, 0, queue>>>(*t, N_STEPS, 0, BATCH);
    must_cuda(cudaStreamSynchronize(queue));
    must_cuda(cudaMemcpy(error, t->error, sizeof error,
                         cudaMemcpyDeviceToHost));
    must_cuda(cudaMemcpy(&w1, t->param[W1], sizeof w1,
                         cudaMemcpyDeviceToHost));
    for (int i = 0; i < BATCH; i++)
        sum += error[i] * error[i] / BATCH;
    if (first == 0)
        printf("error %.10f, w1[0] %.10f\n", sum, w1);
}

int main(void)
{
    struct net t = {};
    brg_device device;
    connect(&device);
    make_net(&t);
    brg_reducer_param list[N_PARAMS] = {};
    for (int p = 0; p < N_PARAMS; p++) {
        list[p] = brg_reducer_raw(names[p], t.grad[p], sizes[p], BRG_DTYPE_F64);
        list[p].device = device;
    }
    must(brg_reducer_create(&reducer, pg, list, N_PARAMS, NULL));
    const int n = BATCH / brg_pg_world_size(pg), first = n * brg_pg_rank(pg);
    for (int i = 0; i < N_STEPS; i++)
        step(&t, i, first, n);
    print_result(&t, first);
    brg_reducer_destroy(reducer);
    brg_pg_destroy(pg);
    brg_pg_destroy(over);
    for (int p = 0; p < N_PARAMS; p++) {
        (void)cudaFree(t.param[p]);
        (void)cudaFree(t.grad[p]);
    }
    (void)cudaFree(t.x);
    (void)cudaFree(t.h);
    (void)cudaFree(t.error);
    (void)cudaEventDestroy(written);
    (void)cudaEventDestroy(reduced);
    (void)cudaStreamDestroy(queue);
    return EXIT_SUCCESS;
}
