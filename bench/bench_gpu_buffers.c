/* SPDX-License-Identifier: Apache-2.0
 * What it costs to keep the statistics of batch norms alike on all GPUs: a stack
 * of linear layers with norms, forward and backward under a brg_ddp that leaves
 * the statistics as they are, averages them on the last bucket, takes rank 0's,
 * or does as if each were sent by a collective of its own. All in turn; medians
 * over the rounds.
 *     mpirun -n 2 bench_gpu_buffers [rounds] */
#include <stdio.h>
#include <stdlib.h>

#include <brigade/brigade.h>
#include <brigade/nccl.h>

#include "bench/bench.h"
#include "bench/ranks.h"

enum { LEFT, AVERAGED, SENT, ONE_BY_ONE, N_WAYS };
enum { MAX_ROUNDS = 101, N_LAYERS = 53, WIDTH = 256, BATCH = 64, STEPS = 20 };

static const char *const names[N_WAYS] = {"left", "averaged on the bucket",
                                          "sent on the bucket", "one by one"};
static const brg_ddp_buffers syncs[N_WAYS] = {
    BRG_DDP_BUFFERS_LEAVE, BRG_DDP_BUFFERS_AVERAGE, BRG_DDP_BUFFERS_BROADCAST,
    BRG_DDP_BUFFERS_LEAVE};

typedef struct model {
    brg_params *params;
    brg_nn_linear linear[N_LAYERS];
    brg_nn_batch_norm norm[N_LAYERS];
    brg_ddp *ddp;
    brg_tensor *const *buffers;
    size_t n_buffers;
    double ms[MAX_ROUNDS];
} model;

static brg_device gpu;

static void model_init(model *m, brg_pg *pg, brg_ddp_buffers sync)
{
    brg_nn_options nn = BRG_NN_OPTIONS_INIT;
    brg_ddp_options options = BRG_DDP_OPTIONS_INIT;
    size_t n = 0;
    bench_must(brg_params_create(&m->params));
    nn.params = m->params;
    for (int i = 0; i < N_LAYERS; i++) {
        char name[16];
        (void)snprintf(name, sizeof name, "fc%d", i);
        bench_must(brg_nn_linear_init(&m->linear[i], &nn, name, WIDTH, WIDTH));
        (void)snprintf(name, sizeof name, "bn%d", i);
        bench_must(brg_nn_batch_norm_init(&m->norm[i], &nn, name, WIDTH));
    }
    options.sync_buffers = sync;
    brg_tensor *const *tensors =
        brg_params_tensors(m->params, BRG_PARAM_TRAINED, &n);
    m->buffers = brg_params_tensors(m->params, BRG_PARAM_BUFFER, &m->n_buffers);
    bench_must(brg_ddp_create(&m->ddp, pg, tensors, n, m->buffers, m->n_buffers,
                              &options));
}

static void send_one_by_one(const model *m, brg_pg *pg)
{
    for (size_t i = 0; i < m->n_buffers; i++) {
        brg_tensor *t = m->buffers[i];
        const brg_dtype dtype = brg_tensor_dtype(t);
        const size_t n = (size_t)brg_tensor_numel(t);
        brg_work *work;
        bench_must(
            brg_dtype_is_float(dtype)
                ? brg_all_reduce(pg, &work, brg_tensor_data(t), n, dtype,
                                 BRG_REDUCE_AVG)
                : brg_broadcast(pg, &work, brg_tensor_data(t), n, dtype, 0));
        bench_must(brg_work_wait(work));
    }
}

static void step(model *m, brg_pg *pg, brg_tensor *x, int which)
{
    brg_scope *scope = brg_scope_begin();
    brg_tensor *y = x;
    for (int i = 0; i < N_LAYERS; i++)
        y = brg_relu(brg_nn_batch_norm_forward(
            &m->norm[i], brg_nn_linear_forward(&m->linear[i], y), true));
    bench_must(brg_backward(bench_some(brg_mean_all(brg_square(y)))));
    if (which == ONE_BY_ONE)
        send_one_by_one(m, pg);
    brg_scope_end(scope);
}

static double time_steps(model *m, brg_pg *pg, brg_tensor *x, int which)
{
    for (int i = 0; i < 3; i++)
        step(m, pg, x, which);
    bench_must(brg_device_synchronize(gpu));
    bench_barrier();
    const double start = bench_seconds();
    for (int i = 0; i < STEPS; i++)
        step(m, pg, x, which);
    bench_must(brg_device_synchronize(gpu));
    return 1e3 * bench_max(bench_seconds() - start) / STEPS;
}

int main(int argc, char **argv)
{
    static model models[N_WAYS];
    brg_pg *over = bench_ranks_begin(&argc, &argv), *pg;
    const int asked = argc > 1 ? atoi(argv[1]) : 9;
    const int n_rounds = asked > MAX_ROUNDS ? MAX_ROUNDS : asked;
    gpu = (brg_device){BRG_DEVICE_CUDA, (int16_t)brg_pg_rank(over)};
    bench_must(brg_device_load("cuda"));
    bench_must(brg_device_set(gpu));
    bench_must(brg_nccl_create(&pg, over, gpu));
    brg_scope *scope = brg_scope_begin();
    brg_tensor *x =
        bench_some(brg_randn(BRG_DTYPE_F32, BRG_SHAPE(BATCH, WIDTH)));
    for (int k = 0; k < N_WAYS; k++)
        model_init(&models[k], pg, syncs[k]);
    for (int round = 0; round < n_rounds; round++)
        for (int i = 0; i < N_WAYS; i++) {
            const int k = (i + round) % N_WAYS;
            models[k].ms[round] = time_steps(&models[k], pg, x, k);
        }
    for (int k = 0; k < N_WAYS; k++) {
        const double ms = bench_median(models[k].ms, (size_t)n_rounds);
        if (brg_pg_rank(over) == 0)
            printf("%3zu buffers %-24s %8.3f ms\n", models[k].n_buffers,
                   names[k], ms);
        brg_ddp_destroy(models[k].ddp);
        brg_params_destroy(models[k].params);
    }
    brg_scope_end(scope);
    brg_pg_destroy(pg);
    bench_ranks_end(over);
    return 0;
}
