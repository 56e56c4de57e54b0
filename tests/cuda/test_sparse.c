/* SPDX-License-Identifier: Apache-2.0
 * Sparse tensors on a GPU: the cases of sparse_cases.h, errors, and steps that
 * wait for nothing. Their rows: cuda/core_test_ops. */
#include "tests/cuda/compare.h"

#define HOME CPU
#define THERE GPU
#include "tests/support/sparse_cases.h"

static void
test_sparse_there__index_out_of_range_is_told_by_a_read(void **state)
{
    (void)state;
    float out[5 * 3];
    const int64_t at[] = {1, 9, 3};
    assert_brg_ok(brg_device_set(GPU));
    brg_tensor *ids = brg_from_data(BRG_DTYPE_I64, BRG_SHAPE(1, 3), at);
    brg_tensor *values = brg_ones(BRG_DTYPE_F32, BRG_SHAPE(3, 3));
    brg_tensor *t =
        assert_brg_some(brg_sparse_coo(ids, values, BRG_SHAPE(5, 3)));
    brg_tensor *dense = assert_brg_some(brg_to_dense(t));
    assert_brg_fails_with(
        brg_tensor_read(dense, out, sizeof out), BRG_ERR_ARG,
        "sparse_coo: index 9 of entry 1 is out of range [0, 5)");
    assert_brg_ok(brg_tensor_read(dense, out, sizeof out)); /* told once */
    assert_float_equal(out[3], 1.0, 0);
    assert_float_equal(out[0], 0.0, 0);
    assert_int_equal(brg_sparse_nnz(brg_sparse_coalesce(t)), 2);
}

/* Look-up, backward and step, with padding; more ids than a block has threads. */
static void test_sparse_there__steps_wait_for_nothing(void **state)
{
    (void)state;
    brg_params *params;
    brg_device_counts before, after;
    brg_embedding_options options = BRG_EMBEDDING_OPTIONS_INIT;
    options.sparse_grad = true;
    options.padding_idx = 0;
    assert_brg_ok(brg_device_set(GPU));
    brg_tensor *table = random_of(1, BRG_DTYPE_BF16, BRG_SHAPE(50000, 64));
    assert_brg_ok(brg_params_create(&params));
    assert_brg_ok(brg_params_add(params, "table", table, BRG_PARAM_TRAINED));
    brg_optim *optim = make_optim(params, ADAMW);
    brg_tensor *ids = ids_of(2, BRG_SHAPE(4096), 50000);
    for (int step = 0; step < 4; step++) {
        brg_scope *scope = brg_scope_begin();
        if (step == 1)
            assert_brg_ok(brg_device_get_counts(GPU, &before));
        brg_tensor *rows = brg_embedding_with(table, ids, &options);
        assert_brg_ok(brg_optim_zero_grad(optim, false));
        assert_brg_ok(brg_backward(brg_mean_all(brg_square(rows))));
        assert_brg_ok(brg_optim_step(optim));
        brg_scope_end(scope);
    }
    assert_brg_ok(brg_device_get_counts(GPU, &after));
    assert_int_equal(after.n_waits, before.n_waits);
    brg_optim_destroy(optim);
    brg_params_destroy(params);
}

/* Gradients of many duplicates, twice. */
static void
test_sparse_there__sums_repeat_and_are_those_of_the_cpu(void **state)
{
    (void)state;
    static float want[999 * 33], got[999 * 33];
    for (int k = 0; k < 3; k++) {
        assert_brg_ok(brg_device_set(k ? GPU : CPU));
        brg_tensor *t =
            brg_sparse_coo(ids_of(3, BRG_SHAPE(1, 20000), 999),
                           random_of(3, BRG_DTYPE_F32, BRG_SHAPE(20000, 33)),
                           BRG_SHAPE(999, 33));
        assert_brg_ok(brg_tensor_read(assert_brg_some(brg_to_dense(t)),
                                      k ? got : want, sizeof got));
        if (k)
            assert_memory_equal(got, want, sizeof got);
    }
}

int main(void)
{
    int missing = require_gpu();
    if (missing)
        return missing;
    const struct CMUnitTest tests[] = {
        gpu_test(test_sparse_there__has_the_bits_of_the_cpu),
        gpu_test(test_sparse_there__padding_lies_nowhere),
        gpu_test(test_sparse_there__optimizers_step_as_on_the_cpu),
        gpu_test(test_sparse_there__training_equals_the_cpu),
        gpu_test(test_sparse_there__mixed_devices_are_named),
        gpu_test(test_sparse_there__index_out_of_range_is_told_by_a_read),
        gpu_test(test_sparse_there__steps_wait_for_nothing),
        gpu_test(test_sparse_there__sums_repeat_and_are_those_of_the_cpu),
    };
    return cmocka_run_group_tests_name("sparse", tests, NULL, NULL);
}
