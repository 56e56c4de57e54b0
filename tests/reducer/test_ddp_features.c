/* SPDX-License-Identifier: Apache-2.0
 * Features of a ddp in simulated worlds; under mpirun they are in
 * tests/mpi/test_features_mpi.c. */
#include "tests/reducer/group_checks.h"
#include "tests/reducer/sum_checks.h"
#include "tests/reducer/trainer.h"
#include "tests/support/sim_worlds.h"

static void test_ddp_features__gradients_apart_from_buckets(void **state)
{
    (void)state;
    in_all_worlds(check_grads_apart);
}

static void test_ddp_features__unused_parameters(void **state)
{
    (void)state;
    in_all_worlds(check_unused_params);
}

static void test_ddp_features__micro_batches(void **state)
{
    (void)state;
    in_all_worlds(check_accumulation);
}

static void test_ddp_features__static_graph(void **state)
{
    (void)state;
    in_all_worlds(check_static_graph);
}

static void test_ddp_features__static_graph_with_micro_batches(void **state)
{
    (void)state;
    in_all_worlds(check_static_accumulation);
}

static void test_ddp_features__join_for_uneven_inputs(void **state)
{
    (void)state;
    in_all_worlds(check_join);
}

static void test_ddp_features__buffers_are_synced(void **state)
{
    (void)state;
    in_all_worlds(check_buffers);
}

static void test_ddp_features__freezing_and_unfreezing(void **state)
{
    (void)state;
    in_all_worlds(check_freezing);
}

static void test_ddp_features__clipping_by_the_norm_of_buckets(void **state)
{
    (void)state;
    in_all_worlds(check_clipping);
}

static void test_ddp_features__buckets_by_measurement(void **state)
{
    (void)state;
    in_all_worlds(check_measured);
}

static void test_ddp_features__micro_batches_of_halves_in_f32(void **state)
{
    (void)state;
    in_all_worlds(check_sums);
}

/* The same through a compiled backward. */
static brg_status compiled_features(brg_pg *pg)
{
    BRG_TRY(check_grads_apart(pg));
    BRG_TRY(check_accumulation(pg));
    BRG_TRY(check_static_graph(pg));
    BRG_TRY(check_static_accumulation(pg));
    BRG_TRY(check_join(pg));
    BRG_TRY(check_buffers(pg));
    BRG_TRY(check_freezing(pg));
    BRG_TRY(check_clipping(pg));
    BRG_TRY(check_measured(pg));
    BRG_TRY(check_groups(pg));
    return check_sums(pg);
}

static void test_ddp_features__compiled_too(void **state)
{
    (void)state;
    in_all_worlds_compiled(compiled_features);
}

/* ---- Raw buffers ------------------------------------------------------------------ */

static brg_status raw_join(brg_pg *pg)
{
    trainer t;
    bool is_over = false;
    trainer_init(&t, pg);
    brg_reducer_options options = BRG_REDUCER_OPTIONS_INIT;
    options.measure_norm = true;
    BRG_TRY(trainer_create(&t, &options));
    brg_status status = BRG_OK;
    for (int step = 0; step < 3 + t.rank && status == BRG_OK; step++) {
        status = mark_all(&t, step, 1);
        if (status == BRG_OK && t.rank == 0 && step == 0) {
            status = ranks_expect(brg_reducer_join(t.reducer, &is_over),
                                  BRG_ERR_STATE, "has marked gradients", "join",
                                  __LINE__);
        }
        if (status == BRG_OK)
            status = brg_reducer_wait(t.reducer);
    }
    int n_joined = 0;
    while (status == BRG_OK && !is_over) {
        status = brg_reducer_join(t.reducer, &is_over);
        n_joined += !is_over;
    }
    double norm = brg_reducer_grad_norm(t.reducer);
    brg_reducer_destroy(t.reducer);
    BRG_TRY(status);
    RANK_CHECK(n_joined == t.world_size - 1 - t.rank, "%d steps shadowed",
               n_joined);
    RANK_CHECK(norm == 0, "the norm of nothing is %g", norm);
    return BRG_OK;
}

static void test_ddp_features__raw_buffers_can_join(void **state)
{
    (void)state;
    in_all_worlds(raw_join);
}

/* A live rank that leaves a gradient out is still blamed, alone. */
static brg_status missing_beside_a_shadow(brg_pg *pg)
{
    trainer t;
    bool is_over;
    trainer_init(&t, pg);
    BRG_TRY(trainer_create(&t, NULL));
    brg_status status;
    if (t.rank == 0) {
        status = brg_reducer_join(t.reducer, &is_over);
    } else {
        for (size_t i = 0; i < t.n; i++)
            if (t.rank != 1 || i != 3)
                BRG_TRY(brg_reducer_mark_ready(t.reducer, i));
        status = brg_reducer_wait(t.reducer);
    }
    RANK_FAILS(status, BRG_ERR_STATE,
               "no gradient in this step for fc2.weight on rank 1.");
    brg_reducer_destroy(t.reducer);
    return BRG_OK;
}

static void test_ddp_features__shadows_are_not_blamed(void **state)
{
    (void)state;
    check_fn check = missing_beside_a_shadow;
    ranks_in_worlds(2, NULL, call_check, &check);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ddp_features__gradients_apart_from_buckets),
        cmocka_unit_test(test_ddp_features__unused_parameters),
        cmocka_unit_test(test_ddp_features__micro_batches),
        cmocka_unit_test(test_ddp_features__static_graph),
        cmocka_unit_test(test_ddp_features__static_graph_with_micro_batches),
        cmocka_unit_test(test_ddp_features__join_for_uneven_inputs),
        cmocka_unit_test(test_ddp_features__buffers_are_synced),
        cmocka_unit_test(test_ddp_features__freezing_and_unfreezing),
        cmocka_unit_test(test_ddp_features__clipping_by_the_norm_of_buckets),
        cmocka_unit_test(test_ddp_features__buckets_by_measurement),
        cmocka_unit_test(test_ddp_features__micro_batches_of_halves_in_f32),
        cmocka_unit_test(test_ddp_features__compiled_too),
        cmocka_unit_test(test_ddp_features__raw_buffers_can_join),
        cmocka_unit_test(test_ddp_features__shadows_are_not_blamed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
