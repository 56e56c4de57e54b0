/* SPDX-License-Identifier: Apache-2.0
 * Groups and agreement. */
#include "common/world.h"

#include <stdio.h>
#include <string.h>

#include <brigade/device.h>
#include <brigade/nccl.h>

int world_env_rank(void)
{
    const int rank = brg_launch_rank();
    return rank < 0 ? 0 : rank;
}

brg_status world_open(world *w, const char *backend)
{
    *w = (world){.size = 1, .failed_rank = -1};
    BRG_TRY(brg_pg_create(&w->pg, backend ? backend : "auto", NULL));
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

/* One GPU per rank; a launcher may show each rank one GPU only. */
static int16_t gpu_of_rank(void)
{
    const int local = brg_launch_local_rank();
    const int n = brg_device_count(BRG_DEVICE_CUDA);
    return (int16_t)(local > 0 && n > 0 ? local % n : 0);
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
        device.index = gpu_of_rank();
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
