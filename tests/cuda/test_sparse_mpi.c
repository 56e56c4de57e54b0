/* SPDX-License-Identifier: Apache-2.0
 * brg_ddp over NCCL and a table with sparse gradients: the averages that dense
 * gradients give on the CPU over MPI, in the first backward and in one that
 * adds to it. */
#include <brigade/reducer.h>

#include "tests/cuda/gpu_ranks.h"

#define N_ROWS 41
#define WIDTH 5
#define N (N_ROWS * WIDTH)

static void backward(brg_tensor *table, bool is_sparse, uint64_t seed)
{
    brg_embedding_options options = BRG_EMBEDDING_OPTIONS_INIT;
    options.sparse_grad = is_sparse;
    options.padding_idx = 3;
    brg_seed(seed + 100 * (uint64_t)rank);
    brg_tensor *ids = brg_randint(0, N_ROWS, BRG_SHAPE(64));
    brg_tensor *rows = brg_embedding_with(table, ids, &options);
    assert_brg_ok(
        brg_backward(brg_sum_all(brg_square(brg_add_scalar(rows, 1)))));
}

static void train(brg_pg *pg, brg_device device, bool is_sparse, float grad[N])
{
    brg_ddp *ddp;
    brg_scope *scope = brg_scope_begin();
    assert_brg_ok(brg_device_set(device));
    brg_seed(7);
    brg_tensor *table = brg_randn(BRG_DTYPE_F32, BRG_SHAPE(N_ROWS, WIDTH));
    assert_brg_ok(brg_set_requires_grad(table, true));
    assert_brg_ok(brg_ddp_create(&ddp, pg, &table, 1, NULL, 0, NULL));
    backward(table, is_sparse, 1);
    backward(table, is_sparse, 2);
    assert_brg_ok(
        brg_tensor_read(brg_tensor_grad(table), grad, N * sizeof *grad));
    assert_false(brg_tensor_is_sparse(brg_tensor_grad(table)));
    brg_ddp_destroy(ddp);
    assert_brg_ok(brg_device_set(CPU));
    brg_scope_end(scope);
}

static void test_sparse_mpi__equals_dense_gradients_of_the_cpu(void **state)
{
    (void)state;
    brg_pg *pg;
    float want[N], got[N];
    assert_brg_ok(brg_nccl_create(&pg, over, mine()));
    train(over, CPU, false, want);
    train(pg, mine(), true, got);
    float most = 0;
    for (int i = 0; i < N; i++) {
        assert_float_equal(got[i], want[i], 1e-4);
        most = fmaxf(most, fabsf(want[i]));
    }
    assert_true(most > 1);
    for (int i = 0; i < WIDTH; i++) /* of the padding */
        assert_float_equal(got[3 * WIDTH + i], 0, 0);
    brg_pg_destroy(pg);
}

int main(int argc, char **argv)
{
    int status = gpu_ranks_begin(argc, argv);
    if (status)
        return status;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sparse_mpi__equals_dense_gradients_of_the_cpu),
    };
    return gpu_ranks_end(
        cmocka_run_group_tests_name("sparse_mpi", tests, NULL, NULL));
}
