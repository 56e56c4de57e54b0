/* SPDX-License-Identifier: Apache-2.0
 * The NCCL backend on made-up GPUs: the contract of backends, sums in a fixed
 * order, memory. What NCCL and a GPU do themselves is tests/cuda's. */
#include "core/base/dtype.h"
#include "tests/nccl/forked.h"
#include "tests/support/backend_suite.h"

static const int worlds[] = {1, 2, 3, 4};

static brg_status run_suite(forked_rank *me)
{
    brg_pg *pg;
    BRG_TRY(forked_group(me, 60, &pg));
    BRG_TRY(brg_suite_run_on_host(pg));
#if !defined(__SANITIZE_ADDRESS__) /* objects are not kept there */
    BRG_TRY(brg_suite_steady_state(pg));
#endif
    brg_pg_destroy(pg);
    return BRG_OK;
}

static void test_nccl__keeps_the_contract(void **state)
{
    (void)state;
    for (size_t i = 0; i < 4; i++)
        forked_check(worlds[i], run_suite, NULL);
}

static brg_status run_leaves(forked_rank *me)
{
    brg_pg *pg;
    BRG_TRY(forked_group(me, 60, &pg));
    BRG_TRY(brg_suite_leaves_on_host(pg));
    brg_pg_destroy(pg);
    return BRG_OK;
}

static void test_nccl__sums_leaves_in_the_tree(void **state)
{
    (void)state;
    for (size_t i = 0; i < 4; i++)
        forked_check(worlds[i], run_leaves, NULL);
}

static double value_of(int rank, size_t i)
{
    return 1.0 + 0.37 * (double)((i * 7 + (size_t)rank * 13) % 101);
}

/* In f32, in the order of the ranks, rounded once. */
static brg_status check_wide(const forked_rank *me, brg_pg *pg, brg_dtype dtype,
                             brg_reduce_op op)
{
    enum { N = 5003 };
    static uint16_t data[N];
    brg_work *work;
    for (size_t i = 0; i < N; i++)
        ranks_store(data, i, dtype, value_of(me->rank, i));
    BRG_TRY(brg_all_reduce(pg, &work, data, N, dtype, op));
    BRG_TRY(brg_work_wait(work));
    for (size_t i = 0; i < N; i++) {
        uint16_t one;
        float sum = 0;
        for (int r = 0; r < me->n; r++) {
            ranks_store(&one, 0, dtype, value_of(r, i));
            sum += (float)ranks_load(&one, 0, dtype);
        }
        if (op == BRG_REDUCE_AVG)
            sum *= 1.0f / (float)me->n;
        ranks_store(&one, 0, dtype, (double)sum);
        RANK_CHECK(data[i] == one, "rank %d: %s, element %zu is %g, not %g",
                   me->rank, brg_dtype_name(dtype), i,
                   ranks_load(data, i, dtype), ranks_load(&one, 0, dtype));
    }
    return BRG_OK;
}

static brg_status run_wide(forked_rank *me)
{
    brg_pg *pg;
    (void)setenv("BRG_NCCL_WIDE_SUMS", "1", 1);
    BRG_TRY(forked_group(me, 60, &pg));
    BRG_TRY(check_wide(me, pg, BRG_DTYPE_BF16, BRG_REDUCE_SUM));
    BRG_TRY(check_wide(me, pg, BRG_DTYPE_BF16, BRG_REDUCE_AVG));
    BRG_TRY(check_wide(me, pg, BRG_DTYPE_F16, BRG_REDUCE_AVG));
    BRG_TRY(brg_suite_run_on_host(pg));
    brg_pg_destroy(pg);
    return BRG_OK;
}

static void test_nccl__sums_halves_in_f32(void **state)
{
    (void)state;
    for (size_t i = 0; i < 4; i++)
        forked_check(worlds[i], run_wide, NULL);
}

/* Blocks come and go, with the group and before it. */
static brg_status run_registered(forked_rank *me)
{
    brg_pg *pg;
    float *a, *b, *c;
    brg_work *work;
    (void)setenv("BRG_NCCL_REGISTER", "1", 1);
    BRG_TRY(forked_group(me, 60, &pg));
    BRG_TRY(brg_pg_alloc(pg, (void **)&a, 4000));
    BRG_TRY(brg_pg_alloc(pg, (void **)&b, 0));
    BRG_TRY(brg_pg_alloc(pg, (void **)&c, 4000));
    brg_pg_free(pg, a);
    forked_synchronize(me);
    for (int i = 0; i < 1000; i++) {
        RANK_CHECK(c[i] == 0, "memory is not zero");
        c[i] = (float)(me->rank + i);
    }
    BRG_TRY(brg_all_reduce(pg, &work, c, 1000, BRG_DTYPE_F32, BRG_REDUCE_MAX));
    BRG_TRY(brg_work_wait(work));
    forked_synchronize(me);
    for (int i = 0; i < 1000; i++)
        RANK_CHECK(c[i] == (float)(me->n - 1 + i), "element %d", i);
    brg_pg_destroy(pg);
    return BRG_OK;
}

static void test_nccl__takes_memory_from_nccl(void **state)
{
    (void)state;
    forked_check(2, run_registered, NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_nccl__keeps_the_contract),
        cmocka_unit_test(test_nccl__sums_leaves_in_the_tree),
        cmocka_unit_test(test_nccl__sums_halves_in_f32),
        cmocka_unit_test(test_nccl__takes_memory_from_nccl),
    };
    return cmocka_run_group_tests_name("nccl", tests, NULL, NULL);
}
