/* SPDX-License-Identifier: Apache-2.0
 * Groups of the user's on the ranks of any group: their parameters share a
 * bucket, before and after the rebuild, frozen and unfrozen. */
#ifndef BRG_TESTS_REDUCER_GROUP_CHECKS_H
#define BRG_TESTS_REDUCER_GROUP_CHECKS_H

#include "tests/reducer/ddp_feature_checks.h"

/* Across dtypes, and far apart in every order. */
static const uint32_t model_groups[DDP_MODEL_N] = {2, 0, 1, 2, 0, 1, 2, 2};
#define N_MODEL_GROUPS 2

/* Of those that require gradients now: the same bucket if and only if group and
 * dtype are the same; buckets of groups hold nothing else. */
static inline brg_status groups_hold(const ddp_model *m)
{
    for (size_t i = 0; i < DDP_MODEL_N; i++)
        for (size_t k = 0; k < i; k++) {
            size_t bucket_i, bucket_k, offset;
            const brg_tensor *a = m->params[i], *b = m->params[k];
            if (!brg_requires_grad(a) || !brg_requires_grad(b))
                continue;
            BRG_TRY(brg_ddp_gradient_bucket(m->ddp, a, &bucket_i, &offset));
            BRG_TRY(brg_ddp_gradient_bucket(m->ddp, b, &bucket_k, &offset));
            bool are_alike = model_groups[i] == model_groups[k] &&
                             brg_tensor_dtype(a) == brg_tensor_dtype(b);
            if (model_groups[i] == 0 && model_groups[k] == 0)
                continue;
            RANK_CHECK(are_alike == (bucket_i == bucket_k),
                       "%zu and %zu are in buckets %zu and %zu", i, k, bucket_i,
                       bucket_k);
        }
    return BRG_OK;
}

static inline brg_status groups_step(ddp_model *m, int step, unsigned mask)
{
    BRG_TRY(groups_hold(m));
    BRG_TRY(ddp_model_zero(m, step % 2));
    BRG_TRY(ddp_model_backward(m, step, mask));
    for (size_t i = 0; i < DDP_MODEL_N; i++)
        if (mask >> i & 1)
            BRG_TRY(ddp_model_check_param(m, i, step, step + 1,
                                          DDP_MODEL_EVERY_RANK));
    return groups_hold(m);
}

static inline brg_status freeze(ddp_model *m, unsigned mask, bool is_frozen)
{
    for (size_t i = 0; i < DDP_MODEL_N; i++)
        if (mask >> i & 1) {
            BRG_TRY(brg_tensor_set_grad(m->params[i], NULL));
            BRG_TRY(brg_set_requires_grad(m->params[i], !is_frozen));
        }
    return brg_ddp_refresh(m->ddp);
}

static inline brg_status groups_body(ddp_model *m)
{
    /* One of a group; all of the other. */
    static const unsigned frozen[] = {1u << 3, (1u << 2) | (1u << 5)};
    for (int step = 0; step < 4; step++)
        BRG_TRY(groups_step(m, step, DDP_MODEL_ALL));
    for (int k = 0; k < 2; k++) {
        BRG_TRY(freeze(m, frozen[k], true));
        for (int step = 0; step < 3; step++)
            BRG_TRY(groups_step(m, step, DDP_MODEL_ALL & ~frozen[k]));
        BRG_TRY(freeze(m, frozen[k], false));
        for (int step = 0; step < 3; step++)
            BRG_TRY(groups_step(m, step, DDP_MODEL_ALL));
    }
    return BRG_OK;
}

static inline brg_status check_groups(brg_pg *pg)
{
    for (int way = 0; way < 3; way++) {
        uint32_t groups[DDP_MODEL_N]; /* not there any more after the call */
        ddp_model m;
        brg_ddp_options options = BRG_DDP_OPTIONS_INIT;
        memcpy(groups, model_groups, sizeof groups);
        options.bucket_groups = groups;
        options.n_bucket_groups = N_MODEL_GROUPS;
        if (way == 1)
            options.first_bucket_bytes = options.bucket_bytes = 1;
        options.keep_order = way == 2;
        brg_status status = ddp_model_init(&m, pg);
        if (status == BRG_OK)
            status = ddp_model_wrap(&m, &options);
        memset(groups, 0xFF, sizeof groups);
        if (status == BRG_OK)
            status = groups_body(&m);
        ddp_model_deinit(&m);
        BRG_TRY(status);
    }
    return BRG_OK;
}

#endif
