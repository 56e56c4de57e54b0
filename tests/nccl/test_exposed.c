/* SPDX-License-Identifier: Apache-2.0
 * How long the queue of a GPU waits for the buckets of a step, by the GPU's clock,
 * on made-up GPUs: eager and in steps that are launched. */
#include "tests/nccl/forked_device.h"
#include "tests/reducer/memory_checks.h"

#define TIMEOUT_S 20
#define WIDTH 6
#define N_SAMPLES 4
#define N_STEPS 7
#define LATE_MS 200

static brg_status one_step(memory_model *m, brg_compiled *compiled, int step)
{
    brg_scope *scope = brg_scope_begin();
    brg_tensor *loss = NULL, *x = memory_data(m, step, N_SAMPLES);
    const brg_status status = compiled
                                  ? brg_compiled_call(compiled, &x, 1, &loss, 1)
                                  : memory_whole_step(&x, 1, &loss, 1, m);
    brg_scope_end(scope);
    return status;
}

/* The last rank is late in the last step: the others wait, and it does not. A
 * made-up graph runs one piece after the other, so that waits are elsewhere. */
static brg_status steps(memory_model *m, brg_compiled *compiled)
{
    const int rank = brg_pg_rank(m->pg), n = brg_pg_world_size(m->pg);
    uint64_t ns = 1, low = (LATE_MS - 50) * 1000000u, high = LATE_MS * 500000u;
    RANK_FAILS(brg_ddp_exposed_ns(m->ddp, &ns), BRG_ERR_STATE,
               "brg_reducer_measure_exposed was not called");
    BRG_TRY(brg_ddp_measure_exposed(m->ddp));
    BRG_TRY(brg_ddp_exposed_ns(m->ddp, &ns));
    RANK_CHECK(ns == 0, "%llu ns before the first step",
               (unsigned long long)ns);
    for (int step = 0; step < N_STEPS; step++) {
        if (step == N_STEPS - 1 && rank == n - 1)
            forked_sleep_ms(LATE_MS);
        BRG_TRY(one_step(m, compiled, step));
    }
    BRG_TRY(brg_ddp_exposed_ns(m->ddp, &ns));
    RANK_CHECK(ns > 0 && (rank == n - 1 || compiled ? ns < high : ns > low),
               "rank %d of %d waited %g ms", rank, n, (double)ns * 1e-6);
    return brg_ddp_confirm(m->ddp);
}

static brg_status run_way(brg_pg *pg, bool is_compiled)
{
    memory_model m;
    brg_compile_stats stats;
    brg_compiled *compiled = NULL;
    brg_compile_options options = BRG_COMPILE_OPTIONS_INIT;
    options.fullgraph = options.whole = options.replay = true;
    BRG_TRY(brg_compile_reset());
    BRG_TRY(memory_make(&m, pg, WIDTH));
    if (is_compiled)
        BRG_TRY(
            brg_compiled_create(&compiled, memory_whole_step, &m, &options));
    BRG_TRY(steps(&m, compiled));
    brg_compile_get_stats(&stats);
    RANK_CHECK(!is_compiled || stats.replay_launches > 0, "not launched: %s",
               brg_compile_reason());
    brg_compiled_destroy(compiled);
    memory_free(&m);
    return BRG_OK;
}

static brg_status run_both(forked_rank *me)
{
    brg_pg *pg;
    BRG_TRY(forked_device_group(me, TIMEOUT_S, &pg));
    BRG_TRY(run_way(pg, false));
    BRG_TRY(run_way(pg, true));
    brg_pg_destroy(pg);
    return BRG_OK;
}

static void test_exposed__who_waits_for_a_late_rank(void **state)
{
    (void)state;
    for (int n = 1; n <= 3; n++)
        forked_check(n, run_both, NULL);
}

static void test_exposed__a_cpu_has_no_such_clock(void **state)
{
    brg_pg *pg;
    brg_reducer *reducer;
    float grad[3] = {0};
    const brg_reducer_param param = {
        .grad = grad, .count = 3, .dtype = BRG_DTYPE_F32};
    (void)state;
    assert_brg_ok(brg_pg_create_self(&pg));
    assert_brg_ok(brg_reducer_create(&reducer, pg, &param, 1, NULL));
    assert_brg_fails_with(brg_reducer_measure_exposed(reducer),
                          BRG_ERR_UNSUPPORTED, "cpu:0 has no clock");
    brg_reducer_destroy(reducer);
    brg_pg_destroy(pg);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_exposed__who_waits_for_a_late_rank),
        cmocka_unit_test(test_exposed__a_cpu_has_no_such_clock),
    };
    return cmocka_run_group_tests_name("exposed", tests, NULL, NULL);
}
