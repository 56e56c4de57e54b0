/* SPDX-License-Identifier: Apache-2.0
 * brg_ddp over a table with sparse gradients gives the averages that dense
 * gradients give, in the first backward and in one that adds to it. */
#include <brigade/autograd.h>
#include <brigade/comm.h>
#include <brigade/ops.h>
#include <brigade/reducer.h>
#include <brigade/sparse.h>

#include "tests/support/brg_test.h"
#include "tests/support/ranks.h"

#define N_ROWS 7
#define WIDTH 3
#define N (N_ROWS * WIDTH)

static brg_status backward(brg_pg *pg, brg_tensor *table, bool is_sparse)
{
    brg_embedding_options options = BRG_EMBEDDING_OPTIONS_INIT;
    options.sparse_grad = is_sparse;
    int64_t rank = brg_pg_rank(pg), ids[] = {rank % N_ROWS, 3, 3, 5};
    brg_tensor *rows = brg_embedding_with(
        table, brg_from_data(BRG_DTYPE_I64, BRG_SHAPE(4), ids), &options);
    return brg_backward(brg_sum_all(brg_square(brg_add_scalar(rows, 1))));
}

static brg_status train(brg_pg *pg, bool is_sparse, float grad[N])
{
    brg_ddp *ddp = NULL;
    brg_tensor *table = brg_full(BRG_DTYPE_F32, BRG_SHAPE(N_ROWS, WIDTH), 0.5);
    BRG_TRY(brg_set_requires_grad(table, true));
    BRG_TRY(brg_ddp_create(&ddp, pg, &table, 1, NULL, 0, NULL));
    brg_status status = backward(pg, table, is_sparse);
    if (status == BRG_OK)
        status = backward(pg, table, is_sparse);
    if (status == BRG_OK)
        status =
            brg_tensor_read(brg_tensor_grad(table), grad, N * sizeof *grad);
    brg_ddp_destroy(ddp);
    return status;
}

static brg_status rank_main(brg_pg *pg, void *user)
{
    (void)user;
    float sparse[N] = {0}, dense[N] = {0};
    brg_scope *scope = brg_scope_begin();
    brg_status status = train(pg, true, sparse);
    if (status == BRG_OK)
        status = train(pg, false, dense);
    brg_scope_end(scope);
    BRG_TRY(status);
    for (int i = 0; i < N; i++)
        RANK_CHECK(sparse[i] == dense[i], "element %d is %g, expected %g", i,
                   (double)sparse[i], (double)dense[i]);
    RANK_CHECK(sparse[3 * WIDTH] > 0, "row 3 has no gradient");
    return ranks_same_bits(pg, sparse, sizeof sparse);
}

static void test_sparse_ddp__equals_dense_gradients(void **state)
{
    (void)state;
    ranks_in_worlds(1, NULL, rank_main, NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sparse_ddp__equals_dense_gradients),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
