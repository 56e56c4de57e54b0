/* SPDX-License-Identifier: Apache-2.0
 * A group that is destroyed before its reducers: the memory that gradients live
 * in stays until the last of them goes. */
#include <brigade/brigade.h>

#include "tests/support/brg_test.h"

static size_t in_use(void)
{
    brg_memory_stats stats;
    brg_memory_trim();
    brg_memory_get_stats(&stats);
    return stats.in_use;
}

static void count_warnings(brg_log_level level, const char *area,
                           const char *message, void *user)
{
    (void)area;
    if (level == BRG_LOG_WARN &&
        strstr(message, "a group was destroyed before its 2 reducers"))
        ++*(int *)user;
}

static void train_without(brg_pg *pg, brg_tensor *w)
{
    int n_warnings = 0;
    double grad = 3;
    const brg_reducer_param param = {
        .grad = &grad, .count = 1, .dtype = BRG_DTYPE_F64};
    brg_ddp *ddp;
    brg_reducer *reducer;
    assert_brg_ok(brg_ddp_create(&ddp, pg, &w, 1, NULL, 0, NULL));
    assert_brg_ok(brg_reducer_create(&reducer, pg, &param, 1, NULL));
    brg_set_log_sink(count_warnings, &n_warnings);
    brg_pg_destroy(pg);
    brg_set_log_sink(NULL, NULL);
    assert_int_equal(n_warnings, 1);
    for (int step = 1; step <= 3; step++) {
        double value;
        assert_brg_ok(brg_backward(brg_sum_all(brg_mul_scalar(w, 2))));
        assert_brg_ok(brg_tensor_item(brg_tensor_grad(w), &value));
        assert_float_equal(value, 2 * step, 0);
        assert_brg_ok(brg_reducer_mark_ready(reducer, 0));
        assert_brg_ok(brg_reducer_wait(reducer));
    }
    brg_reducer_destroy(reducer);
    brg_ddp_destroy(ddp);
    assert_brg_ok(brg_tensor_set_grad(w, NULL));
}

static void test_group_order__the_group_first(void **state)
{
    (void)state;
    brg_scope *scope = brg_scope_begin();
    brg_tensor *w = brg_ones(BRG_DTYPE_F32, BRG_SHAPE(1));
    assert_brg_ok(brg_set_requires_grad(w, true));
    size_t before = 0;
    for (int i = 0; i < 3; i++) { /* the first fills caches */
        before = in_use();
        brg_scope *inner = brg_scope_begin();
        brg_pg *pg;
        assert_brg_ok(brg_pg_create_self(&pg));
        train_without(pg, w);
        brg_scope_end(inner);
    }
    assert_int_equal(in_use(), before);
    brg_scope_end(scope);
}

/* A program written for mpirun destroys the group that the world lends it. */
static brg_status destroys_what_it_was_lent(brg_pg *pg, void *user)
{
    (void)user;
    float x = 1;
    brg_work *work;
    brg_pg_destroy(pg);
    BRG_TRY(brg_all_reduce(pg, &work, &x, 1, BRG_DTYPE_F32, BRG_REDUCE_SUM));
    BRG_TRY(brg_work_wait(work));
    return x == 2 ? BRG_OK : BRG_ERR_INTERNAL;
}

static void test_group_order__a_simulated_one(void **state)
{
    (void)state;
    assert_brg_ok(brg_sim_run(2, NULL, destroys_what_it_was_lent, NULL));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_group_order__the_group_first),
        cmocka_unit_test(test_group_order__a_simulated_one),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
