/* SPDX-License-Identifier: Apache-2.0
 * A step of known length in virtual time: seven gradients, and work before each. */
#ifndef BRG_TESTS_REDUCER_TIMED_STEP_H
#define BRG_TESTS_REDUCER_TIMED_STEP_H

#include <brigade/reducer.h>
#include <brigade/sim.h>

#define N_GRADS 7
#define TIMED_MAX_RANKS 8

static const size_t counts[N_GRADS] = {40000, 300, 90000, 5, 2000, 70000, 1000};
/* Work before each gradient, from the last to the first. */
static const uint64_t work_ns[N_GRADS] = {300,   90000,  40000, 0,
                                          20000, 400000, 9000};

static inline brg_status timed_create(brg_reducer **r, brg_pg *pg,
                                      const brg_reducer_options *options)
{
    static float values[TIMED_MAX_RANKS][N_GRADS][90000];
    brg_reducer_param params[N_GRADS] = {{0}};
    for (size_t i = 0; i < N_GRADS; i++)
        params[i] = (brg_reducer_param){.grad = values[brg_pg_rank(pg)][i],
                                        .count = counts[i],
                                        .dtype = BRG_DTYPE_F32};
    return brg_reducer_create(r, pg, params, N_GRADS, options);
}

static inline brg_status timed_step(brg_pg *pg, brg_reducer *r, uint64_t *ns)
{
    uint64_t start = brg_sim_now_ns(pg);
    for (size_t i = N_GRADS; i-- > 0;) {
        brg_sim_spend_ns(pg, work_ns[N_GRADS - 1 - i]);
        BRG_TRY(brg_reducer_mark_ready(r, i));
    }
    BRG_TRY(brg_reducer_wait(r));
    *ns = brg_sim_now_ns(pg) - start;
    return BRG_OK;
}

#endif
