/* SPDX-License-Identifier: Apache-2.0
 * Groups and agreement. */
#include "common/world.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <brigade/device.h>
#include <brigade/nccl.h>

/* Open MPI, MPICH and others, Slurm's PMIx. */
static const char *const size_variables[] = {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE",
                                             "MV2_COMM_WORLD_SIZE"};
static const char *const rank_variables[] = {"OMPI_COMM_WORLD_RANK", "PMI_RANK",
                                             "MV2_COMM_WORLD_RANK"};

static const char *const local_variables[] = {
    "OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID",
    "MV2_COMM_WORLD_LOCAL_RANK", "SLURM_LOCALID"};

static int from_environment(const char *const *names, size_t n, int otherwise)
{
    for (size_t i = 0; i < n; i++) {
        const char *text = getenv(names[i]);
        if (text != NULL)
            return atoi(text);
    }
    return otherwise;
}

int world_env_rank(void)
{
    return from_environment(rank_variables, 3, 0);
}

brg_status world_open(world *w, const char *backend)
{
    *w = (world){.size = 1, .failed_rank = -1};
    if (backend == NULL)
        backend = from_environment(size_variables, 3, 0) > 0 ? "mpi" : "self";
    BRG_TRY(brg_pg_create(&w->pg, backend, NULL));
    w->rank = brg_pg_rank(w->pg);
    w->size = brg_pg_world_size(w->pg);
    return BRG_OK;
}

void world_close(world *w)
{
    brg_pg_destroy(w->gpus); /* it met over pg */
    brg_pg_destroy(w->pg);
    w->gpus = w->pg = NULL;
}

brg_status world_use_device(const char *name)
{
    brg_device device;
    if (name == NULL)
        return BRG_OK;
    BRG_TRY(brg_device_parse(&device, name));
    if (device.type == BRG_DEVICE_CUDA)
        BRG_TRY(brg_device_load("cuda"));
    if (device.type == BRG_DEVICE_CUDA && strchr(name, ':') == NULL)
        device.index = (int16_t)from_environment(local_variables, 4, 0);
    return brg_device_set(device);
}

brg_status world_gradients(world *w, brg_pg **out)
{
    const brg_device device = brg_device_get();
    *out = w->pg;
    if (device.type == BRG_DEVICE_CPU)
        return BRG_OK;
    if (w->gpus == NULL)
        BRG_TRY(brg_nccl_create(&w->gpus, w->pg, device));
    *out = w->gpus;
    return BRG_OK;
}

brg_status world_sum(const world *w, double *values, size_t n)
{
    brg_work *work = NULL;
    BRG_TRY(
        brg_all_reduce(w->pg, &work, values, n, BRG_DTYPE_F64, BRG_REDUCE_SUM));
    return brg_work_wait(work);
}

brg_status world_agree(world *w, brg_status mine)
{
    /* The lowest failing rank, as a minimum; size: nobody. */
    int32_t first = mine == BRG_OK ? w->size : w->rank;
    brg_work *work = NULL;
    brg_status status =
        brg_all_reduce(w->pg, &work, &first, 1, BRG_DTYPE_I32, BRG_REDUCE_MIN);
    if (status == BRG_OK)
        status = brg_work_wait(work);
    if (status != BRG_OK) /* mine is the cause, if there is one */
        return mine != BRG_OK ? mine : status;
    if (first == w->size)
        return BRG_OK;
    w->failed_rank = first;
    if (mine != BRG_OK)
        return mine;
    return brg_error_set(BRG_ERR_PEER, __FILE__, __LINE__, "rank %d failed",
                         (int)first);
}

static void print_error(const world *w, const char *program, brg_status status)
{
    if (w->failed_rank >= 0 && w->failed_rank != w->rank)
        return;
    fprintf(stderr, "%s: rank %d: %s (%s)\n", program,
            w->pg == NULL ? world_env_rank() : w->rank, brg_error_message(),
            brg_status_name(status));
}

int world_run(const char *program, const char *backend,
              brg_status (*run)(const void *arguments, world *w),
              const void *arguments)
{
    world w;
    brg_status status = world_open(&w, backend);
    if (status == BRG_OK)
        status = run(arguments, &w);
    if (status != BRG_OK)
        print_error(&w, program, status);
    world_close(&w);
    return status == BRG_OK ? 0 : 1;
}
