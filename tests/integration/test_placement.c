/* SPDX-License-Identifier: Apache-2.0
 * Gradients are written into their buckets by the ops that make them: nothing
 * is packed in a steady step, eager or compiled, and the values are those of a
 * model without buckets. */
#include <string.h>

#include <brigade/autograd.h>
#include <brigade/compile.h>
#include <brigade/ops.h>
#include <brigade/random.h>
#include <brigade/reducer.h>

#include "tests/support/brg_test.h"
#include "tests/support/ranks.h"

#define N_PARAMS 4

typedef struct net {
    brg_tensor *params[N_PARAMS];
} net;

static brg_status init(net *n)
{
    const int64_t sizes[N_PARAMS][2] = {{8, 6}, {8, 1}, {3, 8}, {3, 1}};
    brg_seed(11);
    for (int i = 0; i < N_PARAMS; i++) {
        int ndim = i % 2 ? 1 : 2;
        n->params[i] = brg_randn(BRG_DTYPE_F32, ndim, sizes[i]);
        BRG_TRY(brg_set_requires_grad(n->params[i], true));
    }
    return BRG_OK;
}

static brg_status backward(const net *n, int step)
{
    brg_scope *scope = brg_scope_begin();
    brg_seed((uint64_t)step);
    /* A batch of 3 gives the gradient of h the sizes of the second weight. */
    brg_tensor *x = brg_randn(BRG_DTYPE_F32, BRG_SHAPE(step % 2 ? 3 : 5, 6));
    brg_tensor *h = brg_relu(brg_linear(x, n->params[0], n->params[1]));
    brg_tensor *y = brg_linear(h, n->params[2], n->params[3]);
    brg_status status = brg_backward(brg_mean_all(brg_mul(y, y)));
    brg_scope_end(scope);
    return status;
}

static brg_status same_grads(const net *a, const net *b)
{
    for (int i = 0; i < N_PARAMS; i++) {
        brg_tensor *x = brg_tensor_grad(a->params[i]);
        brg_tensor *y = brg_tensor_grad(b->params[i]);
        RANK_CHECK(x && y, "parameter %d has no gradient", i);
        RANK_CHECK(memcmp(brg_tensor_data(x), brg_tensor_data(y),
                          brg_tensor_nbytes(x)) == 0,
                   "parameter %d: the gradients differ", i);
    }
    return BRG_OK;
}

static brg_status train(brg_ddp *ddp, const net *bare, const net *bucketed)
{
    for (int step = 0; step < 4; step++) {
        for (int i = 0; i < N_PARAMS; i++) {
            BRG_TRY(brg_tensor_set_grad(bare->params[i], NULL));
            BRG_TRY(brg_tensor_set_grad(bucketed->params[i], NULL));
        }
        BRG_TRY(backward(bare, step));
        BRG_TRY(backward(bucketed, step));
        /* All ranks draw the same data: the average is each one's own. */
        BRG_TRY(same_grads(bare, bucketed));
        brg_reducer_stats stats;
        brg_ddp_get_stats(ddp, &stats);
        RANK_CHECK(stats.n_packed_bytes == 0, "step %d packed %d bytes", step,
                   (int)stats.n_packed_bytes);
    }
    return BRG_OK;
}

static brg_status run_rank(brg_pg *pg, void *is_compiled)
{
    brg_scope *scope = brg_scope_begin();
    net bare, bucketed;
    brg_ddp *ddp = NULL;
    int compiled = 0;
    BRG_TRY(init(&bare));
    BRG_TRY(init(&bucketed));
    brg_status status =
        brg_ddp_create(&ddp, pg, bucketed.params, N_PARAMS, NULL, 0, NULL);
    if (status == BRG_OK && *(bool *)is_compiled)
        status = brg_compile_begin(&compiled, NULL);
    if (status == BRG_OK)
        status = train(ddp, &bare, &bucketed);
    if (compiled && brg_compile_end(compiled) != BRG_OK && status == BRG_OK)
        status = brg_error_code();
    brg_ddp_destroy(ddp);
    brg_scope_end(scope);
    return status;
}

static void check(bool is_compiled)
{
    for (int n = 1; n <= 4; n *= 2)
        assert_brg_ok(brg_sim_run(n, NULL, run_rank, &is_compiled));
}

static void test_placement__eager(void **state)
{
    (void)state;
    check(false);
}

static void test_placement__compiled(void **state)
{
    (void)state;
    check(true);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_placement__eager),
        cmocka_unit_test(test_placement__compiled),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
