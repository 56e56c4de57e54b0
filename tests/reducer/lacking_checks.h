/* SPDX-License-Identifier: Apache-2.0
 * A rank whose plan makes no gradient of a parameter that may not be left out:
 * every rank says so, with both names, before any data has moved. And what only
 * looks like it. */
#ifndef BRG_TESTS_REDUCER_LACKING_CHECKS_H
#define BRG_TESTS_REDUCER_LACKING_CHECKS_H

#include <string.h>

#include <brigade/compile.h>

#include "tests/support/ddp_model.h"

#define LACKING_PARAM 1 /* fc1.weight */
#define LACKING_MASK (DDP_MODEL_ALL & ~(1u << LACKING_PARAM))

static inline brg_status lacking_init(ddp_model *m, brg_pg *pg)
{
    brg_ddp_options options = BRG_DDP_OPTIONS_INIT;
    options.first_bucket_bytes = options.bucket_bytes = 64;
    BRG_TRY(brg_compile_reset());
    BRG_TRY(ddp_model_init(m, pg));
    return ddp_model_wrap(m, &options);
}

static inline brg_status lacking_step(ddp_model *m, int step, unsigned mask,
                                      bool is_compiled)
{
    int scope = 0;
    if (is_compiled)
        BRG_TRY(brg_compile_begin(&scope, NULL));
    brg_status status = ddp_model_backward(m, step, mask);
    brg_status ended = is_compiled ? brg_compile_end(scope) : BRG_OK;
    return status == BRG_OK ? ended : status;
}

static inline brg_status lacking_works(ddp_model *m, int step, bool is_compiled)
{
    BRG_TRY(ddp_model_zero(m, false));
    BRG_TRY(lacking_step(m, step, DDP_MODEL_ALL, is_compiled));
    BRG_TRY(ddp_model_check(m, step, step + 1));
    return ddp_model_zero(m, false);
}

/* Gradients are this rank's own, as far as there are any. */
static inline brg_status lacking_check_apart(const ddp_model *m, int step)
{
    double memory[DDP_MODEL_NUMEL];
    for (size_t i = 0; i < DDP_MODEL_N; i++) {
        const brg_tensor *grad = brg_tensor_grad(m->params[i]);
        if (!grad)
            continue;
        size_t size = brg_dtype_size(brg_tensor_dtype(grad));
        BRG_TRY(brg_tensor_read(grad, memory, brg_tensor_nbytes(grad)));
        for (size_t k = 0; k < brg_tensor_nbytes(grad) / size; k++) {
            double own = ranks_gradient(m->rank, step, i, k);
            double got = ranks_load(memory, k, brg_tensor_dtype(grad));
            RANK_CHECK(own == got, "gradient %zu[%zu] is %g, not rank %d's %g",
                       i, k, got, m->rank, own);
        }
    }
    return BRG_OK;
}

/* Steps that are good, on every rank the same plans or not; then the culprit's
 * next plan lacks a gradient, whether it is new or found. */
static inline brg_status lacking_found(ddp_model *m, int culprit, bool is_known)
{
    const char *text = culprit == 0 ? "the plan of rank 0 makes no gradient of "
                                      "fc1.weight"
                                    : "the plan of rank 1 makes no gradient of "
                                      "fc1.weight";
    for (int step = 0; step < 3; step++)
        BRG_TRY(lacking_works(m, step, true));
    if (is_known) { /* of a step in which all ranks lack it */
        RANK_FAILS(lacking_step(m, 4, LACKING_MASK, true), BRG_ERR_STATE,
                   "fc1.weight");
        BRG_TRY(lacking_works(m, 4, true));
    }
    brg_compile_stats before, after;
    brg_compile_get_stats(&before);
    unsigned mask = m->rank == culprit ? LACKING_MASK : DDP_MODEL_ALL;
    brg_status status = lacking_step(m, 4, mask, true);
    brg_compile_get_stats(&after);
    RANK_CHECK(!is_known || after.captures == before.captures,
               "the plan is a new one");
    BRG_TRY(ranks_expect(status, BRG_ERR_MISMATCH, text, "lacking", __LINE__));
    RANK_CHECK(strstr(brg_error_message(), "bucket 0") &&
                   strstr(brg_error_message(), "set options.allow_unused"),
               "it does not say where: %s", brg_error_message());
    return lacking_check_apart(m, 4);
}

/* A group of its own: it is over then. */
static inline brg_status lacking_check(brg_pg *pg, int culprit, bool is_known)
{
    ddp_model m = {0};
    brg_status status = lacking_init(&m, pg);
    if (status == BRG_OK)
        status = lacking_found(&m, culprit, is_known);
    ddp_model_deinit(&m);
    return status;
}

/* ---- What only the tail can tell, and what is right ------------------------------ */

static inline brg_status lacking_keep(brg_tensor *grad,
                                      brg_tensor **replacement, void *user)
{
    (void)grad, (void)replacement, (void)user;
    return BRG_OK;
}

/* The step fails on every rank at its end, and the next one works. */
static inline brg_status lacking_in_tail(ddp_model *m, int step, unsigned mask,
                                         bool is_compiled, const char *text)
{
    RANK_FAILS(lacking_step(m, step, mask, is_compiled), BRG_ERR_STATE, text);
    return lacking_works(m, step + 1, is_compiled);
}

/* A hook might start a backward that makes the gradient. */
static inline brg_status lacking_open(ddp_model *m)
{
    brg_hook *hook = NULL;
    unsigned mask = m->rank == 0 ? LACKING_MASK : DDP_MODEL_ALL;
    if (m->rank == 0)
        BRG_TRY(
            brg_tensor_add_hook(&hook, m->params[3], lacking_keep, NULL, NULL));
    BRG_TRY(lacking_in_tail(m, 20, mask, true, "fc1.weight on rank 0"));
    brg_hook_remove(hook);
    return BRG_OK;
}

/* Made in an earlier backward of the step, which only accumulated. */
static inline brg_status lacking_before(ddp_model *m)
{
    unsigned mask = m->rank == 0 ? LACKING_MASK : DDP_MODEL_ALL;
    BRG_TRY(ddp_model_zero(m, false));
    (void)brg_ddp_set_sync(m->ddp, false);
    BRG_TRY(lacking_step(m, 30, DDP_MODEL_ALL, true));
    (void)brg_ddp_set_sync(m->ddp, true);
    BRG_TRY(lacking_step(m, 31, mask, true));
    for (size_t i = 0; i < DDP_MODEL_N; i++)
        if (i != LACKING_PARAM)
            BRG_TRY(ddp_model_check_param(m, i, 30, 32, DDP_MODEL_EVERY_RANK));
    return ddp_model_zero(m, false);
}

static inline brg_status lacking_others(brg_pg *pg)
{
    ddp_model m = {0};
    brg_status status = lacking_init(&m, pg);
    if (status == BRG_OK)
        status = lacking_works(&m, 0, true);
    if (status == BRG_OK) /* no rank has it: they do not differ */
        status = lacking_in_tail(&m, 10, LACKING_MASK, true, "fc1.weight on ");
    if (status == BRG_OK)
        status = lacking_open(&m);
    if (status == BRG_OK)
        status = lacking_before(&m);
    if (status == BRG_OK) /* an eager rank learns it as it goes */
        status =
            lacking_in_tail(&m, 40, m.rank == 0 ? LACKING_MASK : DDP_MODEL_ALL,
                            m.rank != 0, "fc1.weight on rank 0");
    ddp_model_deinit(&m);
    return status;
}

#endif
