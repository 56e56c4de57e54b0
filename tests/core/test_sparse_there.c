/* SPDX-License-Identifier: Apache-2.0
 * Sparse tensors on another device than the CPU, with a device made for the
 * test. */
#include "tests/support/fake_device.h"
#include "tests/support/plain_sparse.h"
#include "tests/support/sparse_cases.h"

static brg_device_vtable sparse_device;

static int set_up(void **state)
{
    *state = brg_scope_begin();
    memset(&seen, 0, sizeof seen);
    sparse_device = fake;
    sparse_device.sparse = plain_sparse;
    return brg_device_register(BRG_DEVICE_CUDA, &sparse_device);
}

static int tear_down(void **state)
{
    int status = brg_device_set(HOME);
    brg_scope_end(*state);
    return status || seen.n_blocks != 0;
}

static void test_sparse_there__index_out_of_range_is_told(void **state)
{
    (void)state;
    assert_brg_ok(brg_device_set(THERE));
    brg_tensor *indices = brg_full(BRG_DTYPE_I64, BRG_SHAPE(1, 2), 5);
    brg_tensor *values = brg_ones(BRG_DTYPE_F32, BRG_SHAPE(2, 3));
    assert_brg_null_with(brg_sparse_coo(indices, values, BRG_SHAPE(5, 3)),
                         BRG_ERR_ARG, "index 5 is out of range [0, 5)");
}

static void test_sparse_there__a_device_without_them_is_named(void **state)
{
    (void)state;
    brg_params *params;
    brg_optim *optim;
    brg_sgd_options o = BRG_SGD_OPTIONS_INIT;
    assert_brg_ok(brg_device_set(THERE));
    brg_tensor *t = rows_of(1, BRG_DTYPE_F32);
    brg_tensor *w = brg_zeros(BRG_DTYPE_F32, BRG_SHAPE(N_ROWS, WIDTH));
    assert_brg_ok(brg_params_create(&params));
    assert_brg_ok(brg_params_add(params, "w", w, BRG_PARAM_TRAINED));
    assert_brg_ok(brg_optim_create_sgd(&optim, params, &o));
    assert_brg_ok(brg_tensor_set_grad(w, t));
    assert_brg_ok(brg_device_register(BRG_DEVICE_CUDA, &fake));
    assert_brg_null_with(brg_to_dense(t), BRG_ERR_UNSUPPORTED,
                         "cuda:0 has no sparse tensors");
    assert_brg_fails_with(brg_optim_step(optim), BRG_ERR_UNSUPPORTED,
                          "sparse f32[37, 6] nnz 80) is sparse, which cuda:0 "
                          "does not take");
    brg_optim_destroy(optim);
    brg_params_destroy(params);
}

/* Every allocation and copy there fails once. */
static void test_sparse_there__failures_leave_nothing(void **state)
{
    (void)state;
    for (int what = 0; what < 2; what++)
        for (int64_t n = 1, is_over = 0; !is_over; n++) {
            brg_scope *scope = brg_scope_begin();
            assert_brg_ok(brg_device_set(THERE));
            brg_tensor *t = brg_sparse_copy(rows_of(1, BRG_DTYPE_F32));
            brg_tensor *more = rows_of(2, BRG_DTYPE_F32);
            brg_tensor *x = brg_zeros(BRG_DTYPE_F32, BRG_SHAPE(WIDTH, N_ROWS));
            *(what ? &seen.failing_copy : &seen.failing_alloc) =
                n + (what ? seen.n_copies : seen.n_allocs);
            is_over = brg_add_(t, more, 1.0) == BRG_OK &&
                      brg_sparse_coalesce(t) &&
                      brg_add_(brg_transpose(x, 0, 1), t, 1.0) == BRG_OK;
            seen.failing_copy = seen.failing_alloc = 0;
            if (!is_over)
                assert_brg_some(brg_sparse_coalesce(t)); /* it still works */
            brg_scope_end(scope);
            assert_int_equal(seen.n_blocks, 0);
        }
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        TEST(test_sparse_there__has_the_bits_of_the_cpu),
        TEST(test_sparse_there__padding_lies_nowhere),
        TEST(test_sparse_there__optimizers_step_as_on_the_cpu),
        TEST(test_sparse_there__training_equals_the_cpu),
        TEST(test_sparse_there__mixed_devices_are_named),
        TEST(test_sparse_there__index_out_of_range_is_told),
        TEST(test_sparse_there__a_device_without_them_is_named),
        TEST(test_sparse_there__failures_leave_nothing),
    };
    return cmocka_run_group_tests_name("sparse_there", tests, NULL, NULL);
}
