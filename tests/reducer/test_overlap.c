/* SPDX-License-Identifier: Apache-2.0
 * A backward pass goes on while its buckets are on their way: no rank waits
 * for another before the end of it. */
#include <brigade/sim.h>

#include "tests/support/brg_test.h"
#include "tests/support/ddp_model.h"

typedef struct overlap {
    size_t n_fired[2]; /* hooks of each rank, in the step */
    uint64_t n_calls;  /* of rank 1 before the step */
    bool has_started;  /* rank 1 its first bucket, when ... */
    size_t n_others;   /* ... rank 0 had so many gradients */
} overlap;

typedef struct watcher {
    overlap *o;
    brg_pg *pg;
} watcher;

static uint64_t count_calls(const brg_pg *pg)
{
    brg_pg_stats stats;
    brg_pg_get_stats(pg, &stats);
    return stats.n_collectives;
}

static brg_status watch(brg_tensor *leaf, void *user)
{
    watcher *w = user;
    overlap *o = w->o;
    int rank = brg_pg_rank(w->pg);
    (void)leaf;
    o->n_fired[rank]++;
    if (rank == 0 || o->has_started || count_calls(w->pg) == o->n_calls)
        return BRG_OK;
    o->has_started = true;
    o->n_others = o->n_fired[0];
    return BRG_OK;
}

static brg_status run_rank(brg_pg *pg, void *user)
{
    ddp_model m;
    brg_hook *hooks[DDP_MODEL_N] = {NULL};
    brg_ddp_options options = BRG_DDP_OPTIONS_INIT;
    options.first_bucket_bytes = options.bucket_bytes = 1;
    options.keep_order = true;
    watcher w = {user, pg};
    brg_status status = ddp_model_init(&m, pg);
    if (status == BRG_OK)
        status = ddp_model_wrap(&m, &options);
    for (size_t i = 0; i < DDP_MODEL_N && status == BRG_OK; i++)
        status = brg_tensor_add_post_accumulate_hook(&hooks[i], m.params[i],
                                                     watch, &w, NULL);
    if (status == BRG_OK && m.rank == 1)
        w.o->n_calls = count_calls(pg);
    if (status == BRG_OK)
        status = ddp_model_backward(&m, 0, DDP_MODEL_ALL);
    for (size_t i = 0; i < DDP_MODEL_N; i++)
        brg_hook_remove(hooks[i]);
    ddp_model_deinit(&m);
    return status;
}

/* Rank 1 starts its first bucket when nothing else can happen any more; by
 * then rank 0 has all its gradients. */
static void test_overlap__no_rank_waits_in_the_middle(void **state)
{
    (void)state;
    overlap first = {.n_calls = 0};
    assert_brg_ok(brg_sim_run(2, NULL, run_rank, &first));
    for (uint64_t seed = 0; seed < 10; seed++) {
        overlap o = {.n_calls = 0};
        struct brg_sim_fault late = {BRG_SIM_DELAY, 1, first.n_calls, 0};
        brg_sim_options options = BRG_SIM_OPTIONS_INIT;
        options.seed = seed;
        options.faults = &late;
        options.n_faults = 1;
        assert_brg_ok(brg_sim_run(2, &options, run_rank, &o));
        assert_true(o.has_started);
        assert_int_equal(o.n_others, DDP_MODEL_N);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_overlap__no_rank_waits_in_the_middle),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
