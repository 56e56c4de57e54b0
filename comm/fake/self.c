/* SPDX-License-Identifier: Apache-2.0
 * The group of one. Collectives are carried out as they start. */
#include "comm/local.h"
#include "comm/pg.h"
#include "comm/registry.h"

static brg_status self_start(void *group, brg_call *call)
{
    (void)group;
    brg__local_run(&call, 1, 0);
    call->is_done = true;
    return BRG_OK;
}

static brg_status self_progress(void *group)
{
    (void)group;
    return BRG_OK;
}

static void self_destroy(void *group)
{
    (void)group;
}

static const brg_group_ops self_ops = {
    .abi = BRG_BACKEND_ABI,
    .struct_size = sizeof(brg_group_ops),
    .start = self_start,
    .progress = self_progress,
    .destroy = self_destroy,
};

static brg_status self_create(const brg_host *host,
                              const brg_pg_options *options, brg_group *filled)
{
    (void)host;
    (void)options;
    *filled = (brg_group){.ops = &self_ops,
                          .rank = 0,
                          .world_size = 1,
                          .sums_leaves = true,
                          .sums_blocks = true};
    return BRG_OK;
}

const brg_backend brg__backend_self = {
    .abi = BRG_BACKEND_ABI,
    .struct_size = sizeof(brg_backend),
    .name = "self",
    .create = self_create,
};

brg_status brg_pg_create_self(brg_pg **out)
{
    BRG_CHECK_ARG(out, "brg_pg_create_self: out is NULL");
    *out = NULL;
    return brg__pg_make(out, &brg__backend_self, NULL);
}
