/* SPDX-License-Identifier: Apache-2.0
 * Runs a body on every rank of simulated worlds, each with a distributed
 * model. */
#ifndef BRG_TESTS_REDUCER_DDP_RUN_H
#define BRG_TESTS_REDUCER_DDP_RUN_H

#include "tests/support/brg_test.h"
#include "tests/support/ddp_model.h"

typedef struct run {
    brg_ddp_options options;
    brg_status (*body)(ddp_model *m, const struct run *run);
    uint64_t seed;
    bool keep_memory;
} run;

static inline brg_status run_rank(brg_pg *pg, void *user)
{
    const run *r = user;
    ddp_model m;
    brg_status status = ddp_model_init(&m, pg);
    m.seed = r->seed;
    if (status == BRG_OK)
        status = ddp_model_wrap(&m, &r->options);
    if (status == BRG_OK)
        status = r->body(&m, r);
    ddp_model_deinit(&m);
    return status;
}

static inline void run_worlds(run *r, int smallest)
{
    brg_sim_options options = BRG_SIM_OPTIONS_INIT;
    options.seed = r->seed;
    ranks_in_worlds(smallest, &options, run_rank, r);
}

static inline run make_run(brg_status (*body)(ddp_model *m, const run *r),
                           size_t cap)
{
    run r = {.body = body, .options = BRG_DDP_OPTIONS_INIT};
    r.options.first_bucket_bytes = r.options.bucket_bytes = cap;
    return r;
}

#endif
