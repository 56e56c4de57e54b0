/* SPDX-License-Identifier: Apache-2.0
 * The NCCL backend, one GPU per rank, the ranks started by mpirun: the
 * contract of backends on host memory, and device memory in stream order. */
#include "core/tensor/device.h"
#include "tests/cuda/gpu_ranks.h"
#include "tests/support/backend_suite.h"
#include "tests/support/half_range.h"

static brg_pg *make_group(void)
{
    brg_pg *pg;
    assert_brg_ok(brg_nccl_create(&pg, over, mine()));
    assert_int_equal(brg_pg_rank(pg), rank);
    assert_int_equal(brg_pg_world_size(pg), n_ranks);
    return pg;
}

static void test_nccl__keeps_the_contract(void **state)
{
    (void)state;
    brg_pg *pg = make_group();
    assert_brg_ok(brg_suite_run_on_host(pg));
    brg_pg_destroy(pg);
}

static void test_nccl__steady_state_allocates_nothing(void **state)
{
    (void)state;
    brg_pg *pg = make_group();
    assert_brg_ok(brg_suite_steady_state(pg));
    brg_pg_destroy(pg);
}

/* Kernels before and after it, no wait of the host in between. */
static void test_nccl__device_memory_in_stream_order(void **state)
{
    (void)state;
    brg_pg *pg = make_group();
    assert_brg_ok(brg_device_set(mine()));
    for (int round = 0; round < 20; round++) {
        brg_scope *scope = brg_scope_begin();
        const int64_t n = 1 << (round % 20);
        brg_tensor *x =
            brg_full(BRG_DTYPE_F32, BRG_SHAPE(n), (double)(rank + round));
        x = assert_brg_some(brg_mul_scalar(x, 2.0));
        brg_work *work;
        assert_brg_ok(brg_all_reduce(pg, &work, brg_tensor_data(x), (size_t)n,
                                     BRG_DTYPE_F32, BRG_REDUCE_SUM));
        assert_brg_ok(brg_work_wait(work));
        brg_tensor *y = assert_brg_some(brg_add_scalar(x, 1.0));
        double sum = 0, want = 1.0;
        for (int r = 0; r < n_ranks; r++)
            want += 2.0 * (r + round);
        assert_brg_ok(brg_tensor_item(brg_amax(y, 0, NULL, false), &sum));
        assert_float_equal(sum, want, 0);
        assert_brg_ok(brg_tensor_item(brg_amin(y, 0, NULL, false), &sum));
        assert_float_equal(sum, want, 0);
        brg_scope_end(scope);
    }
    assert_brg_ok(brg_device_set(CPU));
    brg_pg_destroy(pg);
}

static void test_nccl__memory_of_the_group(void **state)
{
    (void)state;
    brg_pg *pg = make_group();
    void *block;
    float out[256], in[256];
    const brg_device_vtable *vtable;
    brg_work *work;
    for (int i = 0; i < 256; i++)
        in[i] = (float)(rank + i);
    assert_brg_ok(brg_pg_alloc(pg, &block, sizeof in));
    assert_brg_ok(brg__device_find(mine(), &vtable));
    assert_brg_ok(vtable->copy(CPU, out, mine(), block, sizeof out));
    for (int i = 0; i < 256; i++)
        assert_float_equal(out[i], 0, 0);
    assert_brg_ok(vtable->copy(mine(), block, CPU, in, sizeof in));
    assert_brg_ok(
        brg_all_reduce(pg, &work, block, 256, BRG_DTYPE_F32, BRG_REDUCE_MAX));
    assert_brg_ok(brg_work_wait(work));
    assert_brg_ok(vtable->copy(CPU, out, mine(), block, sizeof out));
    for (int i = 0; i < 256; i++)
        assert_float_equal(out[i], (float)(n_ranks - 1 + i), 0);
    brg_pg_free(pg, block);
    brg_pg_destroy(pg);
}

/* NCCL divides before it adds. */
static void test_nccl__averages_of_halves_do_not_overflow(void **state)
{
    (void)state;
    brg_pg *pg = make_group();
    assert_brg_ok(half_check(pg, HALF_SUMS_STEPPED));
    brg_pg_destroy(pg);
    (void)setenv("BRG_NCCL_WIDE_SUMS", "1", 1);
    pg = make_group();
    assert_brg_ok(half_check(pg, HALF_SUMS_WIDE));
    brg_pg_destroy(pg);
    (void)unsetenv("BRG_NCCL_WIDE_SUMS");
}

static void test_nccl__options_are_checked(void **state)
{
    (void)state;
    brg_pg *pg;
    assert_brg_fails_with(brg_pg_create(&pg, "nccl", NULL), BRG_ERR_ARG,
                          "brg_nccl_create");
}

int main(int argc, char **argv)
{
    int status = gpu_ranks_begin(argc, argv);
    if (status)
        return status;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_nccl__device_memory_in_stream_order),
        cmocka_unit_test(test_nccl__memory_of_the_group),
        cmocka_unit_test(test_nccl__averages_of_halves_do_not_overflow),
        cmocka_unit_test(test_nccl__options_are_checked),
        cmocka_unit_test(test_nccl__steady_state_allocates_nothing),
        cmocka_unit_test(test_nccl__keeps_the_contract),
    };
    return gpu_ranks_end(
        cmocka_run_group_tests_name("nccl", tests, NULL, NULL));
}
