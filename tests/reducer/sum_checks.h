/* SPDX-License-Identifier: Apache-2.0
 * Micro-batches of 16-bit gradients added up in f32, on the ranks of any group:
 * the error is that of two roundings, however many there are. */
#ifndef BRG_TESTS_REDUCER_SUM_CHECKS_H
#define BRG_TESTS_REDUCER_SUM_CHECKS_H

#include "tests/reducer/ddp_feature_checks.h"

#define N_MICRO 120
#define HALVES ((1u << 2) | (1u << 4)) /* f16, bf16 */

/* The worst error of parameter i over what two roundings may cost: of a rank's
 * sum, and of the result. */
static inline brg_status sums_excess(const ddp_model *m, size_t i, int first,
                                     int last, double *excess)
{
    double memory[DDP_MODEL_NUMEL];
    brg_tensor *grad = brg_tensor_grad(m->params[i]);
    RANK_CHECK(grad, "parameter %zu has no gradient", i);
    brg_dtype dtype = brg_tensor_dtype(grad);
    double rounding = dtype == BRG_DTYPE_F16 ? 0x1p-11 : 0x1p-8;
    BRG_TRY(brg_tensor_read(grad, memory, brg_tensor_nbytes(grad)));
    *excess = 0;
    for (size_t k = 0; k < (size_t)brg_tensor_numel(grad); k++) {
        double total = 0, room = 1e-4;
        for (int rank = 0; rank < m->world_size; rank++) {
            double sum = 0;
            for (int step = first; step < last; step++)
                sum += ranks_gradient(rank, step, i, k);
            total += sum / m->world_size;
            room += rounding * fabs(sum) / m->world_size;
        }
        room += rounding * fabs(total);
        double off = fabs(ranks_load(memory, k, dtype) - total);
        *excess = fmax(*excess, off / room);
    }
    return BRG_OK;
}

static inline brg_status sums_check(const ddp_model *m, int first, int last)
{
    BRG_TRY(ddp_model_check(m, first, last));
    for (size_t i = 0; i < DDP_MODEL_N; i++) {
        double excess = 0;
        if (!(HALVES >> i & 1))
            continue;
        BRG_TRY(sums_excess(m, i, first, last, &excess));
        RANK_CHECK(excess <= 1, "gradient %zu is off by %g of its room", i,
                   excess);
    }
    return BRG_OK;
}

static inline brg_status sums_off(ddp_model *m, int first, int last)
{
    (void)brg_ddp_set_sync(m->ddp, false);
    for (int step = first; step < last; step++) {
        BRG_TRY(ddp_model_backward(m, step, DDP_MODEL_ALL));
        for (size_t i = 0; i < DDP_MODEL_N; i++)
            RANK_CHECK((HALVES >> i & 1) == !brg_tensor_grad(m->params[i]),
                       "step %d: .grad of %zu", step, i);
    }
    (void)brg_ddp_set_sync(m->ddp, true);
    return BRG_OK;
}

static inline brg_status sums_body(ddp_model *m)
{
    for (int round = 0; round < 3; round++) { /* buckets are made anew */
        BRG_TRY(ddp_model_zero(m, round == 2));
        BRG_TRY(sums_off(m, round, round + N_MICRO - 1));
        BRG_TRY(ddp_model_backward(m, round + N_MICRO - 1, DDP_MODEL_ALL));
        BRG_TRY(sums_check(m, round, round + N_MICRO));
    }
    BRG_TRY(ddp_model_zero(m, false)); /* none of it is left */
    BRG_TRY(ddp_model_backward(m, 3, DDP_MODEL_ALL));
    BRG_TRY(sums_check(m, 3, 4));
    BRG_TRY(ddp_model_zero(m, false)); /* a refresh in between */
    BRG_TRY(sums_off(m, 0, 50));
    BRG_TRY(brg_ddp_refresh(m->ddp));
    BRG_TRY(sums_off(m, 50, 99));
    BRG_TRY(ddp_model_backward(m, 99, DDP_MODEL_ALL));
    return sums_check(m, 0, 100);
}

/* The last of the micro-batches has no gradient of these. */
static inline brg_status sums_unused_body(ddp_model *m)
{
    BRG_TRY(sums_off(m, 0, N_MICRO - 1));
    BRG_TRY(ddp_model_backward(m, N_MICRO - 1, DDP_MODEL_ALL & ~HALVES));
    for (size_t i = 0; i < DDP_MODEL_N; i++) {
        double excess = 0;
        if (HALVES >> i & 1)
            BRG_TRY(sums_excess(m, i, 0, N_MICRO - 1, &excess));
        RANK_CHECK(excess <= 1, "gradient %zu is off by %g of its room", i,
                   excess);
        RANK_CHECK(brg_reducer_n_used(brg_ddp_reducer(m->ddp), i) ==
                       (size_t)m->world_size,
                   "gradient %zu was not counted", i);
    }
    return BRG_OK;
}

/* Without the option much more is lost: this test would see it. */
static inline brg_status sums_plain_body(ddp_model *m)
{
    double excess = 0;
    (void)brg_ddp_set_sync(m->ddp, false);
    for (int step = 0; step < N_MICRO - 1; step++)
        BRG_TRY(ddp_model_backward(m, step, DDP_MODEL_ALL));
    (void)brg_ddp_set_sync(m->ddp, true);
    BRG_TRY(ddp_model_backward(m, N_MICRO - 1, DDP_MODEL_ALL));
    BRG_TRY(sums_excess(m, 4, 0, N_MICRO, &excess));
    RANK_CHECK(excess > 1.2, "off by %g of the room only", excess);
    return BRG_OK;
}

static inline brg_status check_sums(brg_pg *pg)
{
    brg_ddp_options options = BRG_DDP_OPTIONS_INIT;
    BRG_TRY(with_model(pg, &options, sums_plain_body));
    options.accumulate_f32 = true;
    BRG_TRY(with_model(pg, &options, sums_body));
    BRG_TRY(with_model(pg, &options, sums_unused_body));
    options.first_bucket_bytes = options.bucket_bytes = 100;
    options.allow_unused = true;
    BRG_TRY(with_model(pg, &options, sums_body));
    BRG_TRY(with_model(pg, &options, sums_unused_body));
    options.grads_apart = true;
    ddp_model m;
    brg_status status = ddp_model_init(&m, pg);
    if (status == BRG_OK)
        status = ranks_expect(ddp_model_wrap(&m, &options), BRG_ERR_ARG,
                              "accumulate_f32 does not go with grads_apart",
                              "wrap", __LINE__);
    ddp_model_deinit(&m);
    return status;
}

#endif
