/* SPDX-License-Identifier: Apache-2.0
 * Two reducers in one compiled backward, alike in sizes and options. At first
 * all ranks start their buckets in one order; then rank 1 captures a plan of
 * the other order while the others replay theirs. */
#ifndef BRG_TESTS_REDUCER_ORDER_CHECKS_H
#define BRG_TESTS_REDUCER_ORDER_CHECKS_H

#include <string.h>

#include <brigade/compile.h>
#include <brigade/ops.h>

#include "tests/support/ddp_model.h"

typedef struct order_model {
    int rank, world_size;
    brg_scope *scope;
    brg_tensor *w[2];
    brg_ddp *ddp[2];
} order_model;

static inline brg_status order_init(order_model *m, brg_pg *pg)
{
    const char *both[2] = {"first.weight", "second.weight"};
    *m = (order_model){.rank = brg_pg_rank(pg),
                       .world_size = brg_pg_world_size(pg),
                       .scope = brg_scope_begin()};
    for (int k = 0; k < 2; k++) {
        brg_ddp_options options = BRG_DDP_OPTIONS_INIT;
        m->w[k] = brg_ones(BRG_DTYPE_F32, BRG_SHAPE(4));
        BRG_TRY(brg_set_requires_grad(m->w[k], true));
        BRG_TRY(brg_tensor_set_name(m->w[k], both[k]));
        BRG_TRY(brg_ddp_create(&m->ddp[k], pg, &m->w[k], 1, NULL, 0, &options));
    }
    return BRG_OK;
}

static inline void order_deinit(order_model *m)
{
    for (int k = 0; k < 2; k++)
        brg_ddp_destroy(m->ddp[k]);
    brg_scope_end(m->scope);
}

/* What rank r alone would have in .grad of w[k]. */
static inline float order_gradient(int r, int k)
{
    return (float)(r + 1 + 100 * k);
}

/* A compiled backward in which w[last] comes last. */
static inline brg_status order_backward(order_model *m, int last)
{
    int token;
    brg_scope *scope = brg_scope_begin();
    brg_tensor *loss = NULL;
    for (int i = 0; i < 2; i++) {
        int k = i == 0 ? last : 1 - last;
        double factor = (double)order_gradient(m->rank, k);
        brg_tensor *term = brg_sum_all(brg_mul_scalar(m->w[k], factor));
        loss = loss ? brg_add(loss, term) : term;
    }
    brg_status status = brg_compile_begin(&token, NULL);
    if (status == BRG_OK) {
        status = brg_backward(loss);
        brg_status ended = brg_compile_end(token);
        status = status == BRG_OK ? ended : status;
    }
    brg_scope_end(scope);
    return status;
}

static inline brg_status order_zero(order_model *m)
{
    for (int k = 0; k < 2; k++)
        BRG_TRY(brg_tensor_set_grad(m->w[k], NULL));
    return BRG_OK;
}

static inline brg_status order_good_step(order_model *m, int last)
{
    BRG_TRY(order_zero(m));
    BRG_TRY(order_backward(m, last));
    for (int k = 0; k < 2; k++) {
        float want = order_gradient(0, k) + (float)(m->world_size - 1) / 2;
        const float *got = brg_tensor_data(brg_tensor_grad(m->w[k]));
        for (int i = 0; i < 4; i++)
            RANK_CHECK(got[i] > want - 1e-4f && got[i] < want + 1e-4f,
                       "gradient %d is %g, expected %g", k, (double)got[i],
                       (double)want);
    }
    return BRG_OK;
}

/* Nothing of another rank's has come into a gradient. */
static inline brg_status order_check_apart(order_model *m)
{
    for (int k = 0; k < 2; k++) {
        brg_tensor *grad = brg_tensor_grad(m->w[k]);
        const float *got = grad ? brg_tensor_data(grad) : NULL;
        for (int i = 0; got && i < 4; i++)
            RANK_CHECK(got[i] == order_gradient(m->rank, k),
                       "gradient %d is %g, not rank %d's own", k,
                       (double)got[i], m->rank);
    }
    return BRG_OK;
}

static inline brg_status order_steps(order_model *m)
{
    BRG_TRY(order_good_step(m, 0));
    BRG_TRY(order_good_step(m, 0));
    BRG_TRY(order_good_step(m, 1)); /* on all ranks: no matter */
    BRG_TRY(order_good_step(m, 0));
    BRG_TRY(order_zero(m));
    if (m->world_size == 1)
        return BRG_OK;
    if (m->rank == 1)
        BRG_TRY(brg_compile_reset()); /* its plan is new */
    brg_status status = order_backward(m, m->rank == 1);
    BRG_TRY(ranks_expect(status, BRG_ERR_MISMATCH,
                         "weight): ranks disagree: rank ", "order", __LINE__));
    const char *text = brg_error_message();
    RANK_CHECK(strstr(text, "reducer 1, plan ") &&
                   strstr(text, "reducer 2, plan ") &&
                   strstr(text, "rank 1 called all_reduce"),
               "it does not say what differs: %s", text);
    return order_check_apart(m);
}

static inline brg_status order_check(brg_pg *pg)
{
    order_model m;
    brg_status status = order_init(&m, pg);
    if (status == BRG_OK)
        status = order_steps(&m);
    order_deinit(&m);
    return status;
}

#endif
