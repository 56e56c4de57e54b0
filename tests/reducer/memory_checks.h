/* SPDX-License-Identifier: Apache-2.0
 * Training that runs out of a GPU's memory in the middle of a step and goes on
 * with a smaller batch, on the ranks of any group: parameters are on the
 * thread's device. */
#ifndef BRG_TESTS_REDUCER_MEMORY_CHECKS_H
#define BRG_TESTS_REDUCER_MEMORY_CHECKS_H

#include <math.h>
#include <string.h>

#include <brigade/brigade.h>

#include "tests/support/brg_test.h"
#include "tests/support/ranks.h"

#define MEMORY_LAYERS 4
#define MEMORY_PARAMS (2 * MEMORY_LAYERS)
#define MEMORY_OUT 3

/* tanh(linear) of so many layers; all but the last give `width`. */
typedef struct memory_model {
    brg_pg *pg;
    int64_t width;
    brg_tensor *p[MEMORY_PARAMS];
    brg_params *params;
    brg_optim *optim;
    brg_ddp *ddp;
    brg_scope *scope;
} memory_model;

static inline brg_status memory_param(memory_model *m, int i)
{
    char name[8];
    const int64_t rows = i / 2 == MEMORY_LAYERS - 1 ? MEMORY_OUT : m->width;
    const double size = i % 2 ? 0 : 1 / sqrt((double)m->width);
    snprintf(name, sizeof name, "p%d", i);
    brg_tensor *t = i % 2 ? brg_zeros(BRG_DTYPE_F32, BRG_SHAPE(rows))
                          : brg_randn(BRG_DTYPE_F32, BRG_SHAPE(rows, m->width));
    m->p[i] = brg_mul_scalar(t, i % 2 ? 1 : size);
    RANK_CHECK(m->p[i], "parameter %d: %s", i, brg_error_message());
    BRG_TRY(brg_set_requires_grad(m->p[i], true));
    return brg_params_add(m->params, name, m->p[i], BRG_PARAM_TRAINED);
}

static inline brg_status memory_make(memory_model *m, brg_pg *pg, int64_t width)
{
    brg_sgd_options sgd = BRG_SGD_OPTIONS_INIT;
    brg_ddp_options options = BRG_DDP_OPTIONS_INIT;
    *m = (memory_model){.pg = pg, .width = width, .scope = brg_scope_begin()};
    BRG_TRY(brg_params_create(&m->params));
    brg_seed(11);
    for (int i = 0; i < MEMORY_PARAMS; i++)
        BRG_TRY(memory_param(m, i));
    sgd.lr = 0.1;
    sgd.momentum = 0.9;
    BRG_TRY(brg_optim_create_sgd(&m->optim, m->params, &sgd));
    options.first_bucket_bytes = options.bucket_bytes =
        (size_t)(4 * width * width); /* a bucket for a layer */
    return brg_ddp_create(&m->ddp, pg, m->p, MEMORY_PARAMS, NULL, 0, &options);
}

static inline void memory_free(memory_model *m)
{
    brg_ddp_destroy(m->ddp);
    brg_optim_destroy(m->optim);
    brg_params_destroy(m->params);
    brg_scope_end(m->scope);
}

static inline brg_tensor *memory_loss(const memory_model *m, brg_tensor *x)
{
    for (int i = 0; i < MEMORY_PARAMS; i += 2)
        x = brg_tanh(brg_linear(x, m->p[i], m->p[i + 1]));
    return brg_mean_all(brg_square(x));
}

/* n samples of this rank. */
static inline brg_tensor *memory_data(const memory_model *m, int step,
                                      int64_t n)
{
    brg_seed((uint64_t)(100 * step + brg_pg_rank(m->pg)));
    return brg_mul(brg_randn(BRG_DTYPE_F32, BRG_SHAPE(n, 1)),
                   brg_randn(BRG_DTYPE_F32, BRG_SHAPE(1, m->width)));
}

static inline brg_status memory_update(const memory_model *m)
{
    BRG_TRY(brg_optim_step(m->optim));
    return brg_optim_zero_grad(m->optim, false);
}

/* It was not lost, and is the same on all ranks. */
static inline brg_status memory_same(const memory_model *m)
{
    for (int i = 0; i < MEMORY_PARAMS; i++) {
        double sum;
        brg_scope *scope = brg_scope_begin();
        brg_status status =
            brg_tensor_item(brg_sum_all(brg_square(brg_detach(m->p[i]))), &sum);
        brg_scope_end(scope);
        BRG_TRY(status);
        RANK_CHECK(isfinite(sum), "the norm of p%d is %g", i, sum);
        BRG_TRY(ranks_same_bits(m->pg, &sum, sizeof sum));
    }
    return BRG_OK;
}

/* ---- A step for which memory may be short ------------------------------------------- */

typedef enum memory_result {
    MEMORY_DONE,
    MEMORY_AGAIN,
    MEMORY_LOST
} memory_result;

static inline brg_status memory_backward(const memory_model *m, int step,
                                         int64_t n)
{
    brg_scope *scope = brg_scope_begin();
    brg_tensor *loss = memory_loss(m, memory_data(m, step, n));
    brg_status status = loss ? brg_backward(loss) : brg_error_code();
    brg_scope_end(scope);
    return status;
}

/* The op, the tensor or the temporary, the GPU, bytes. */
static inline brg_status memory_told(void)
{
    const char *text = brg_error_message();
    char where[32];
    snprintf(where, sizeof where,
             "out of memory on cuda:%d: ", brg_device_get().index);
    RANK_CHECK(brg_error_code() == BRG_ERR_NOMEM && strstr(text, where) &&
                   strstr(text, " bytes for a ") &&
                   (strstr(text, "f32[") || strstr(text, "temporary of ")),
               "it says: %s", text);
    return BRG_OK;
}

/* Where no gradient was there yet nobody has heard of the step: it is made again
 * with less. Else it is lost for all ranks, and brg_ddp_confirm says so. */
static inline brg_status memory_step(const memory_model *m, int step,
                                     int64_t large, int64_t small,
                                     memory_result *r)
{
    brg_status status = memory_backward(m, step, large);
    *r = MEMORY_DONE;
    if (status != BRG_OK) {
        BRG_TRY(memory_told());
        const bool is_backward =
            strncmp(brg_error_message(), "backward of ", 12) == 0;
        status = brg_ddp_confirm(m->ddp);
        *r = status == BRG_OK ? MEMORY_AGAIN : MEMORY_LOST;
        RANK_CHECK(*r == MEMORY_AGAIN || is_backward,
                   "lost before the backward");
    }
    if (*r ==
        MEMORY_AGAIN) { /* what was freed is free when the queue is there */
        BRG_TRY(brg_device_synchronize(brg_device_get()));
        BRG_TRY(memory_backward(m, step, small));
    }
    if (*r != MEMORY_LOST)
        status = brg_ddp_confirm(m->ddp);
    if (status == BRG_OK)
        return memory_update(m);
    *r = MEMORY_LOST;
    RANK_FAILS(status, BRG_ERR_PEER, "backward failed in step");
    return brg_optim_zero_grad(m->optim, false);
}

/* The same as a function, for steps that are launched; user: the model. */
static inline brg_status memory_whole_step(brg_tensor *const *in, size_t n_in,
                                           brg_tensor **out, size_t n_out,
                                           void *user)
{
    const memory_model *m = user;
    (void)n_in;
    (void)n_out;
    out[0] = memory_loss(m, in[0]);
    if (!out[0])
        return brg_error_code();
    BRG_TRY(brg_backward(out[0]));
    return memory_update(m);
}

/* ---- Buckets ------------------------------------------------------------------------- */

/* Of parameters "small" and "large". */
static inline brg_status memory_wrap(brg_pg *pg, brg_tensor **p)
{
    brg_ddp *ddp = NULL;
    const brg_status status = brg_ddp_create(&ddp, pg, p, 2, NULL, 0, NULL);
    brg_ddp_destroy(ddp);
    return status;
}

static inline brg_status memory_two_params(brg_tensor *p[2], int64_t n_large)
{
    static const char *const names[2] = {"small", "large"};
    for (int i = 0; i < 2; i++) {
        p[i] = brg_ones(BRG_DTYPE_F32, BRG_SHAPE(i ? n_large : 3));
        BRG_TRY(brg_set_requires_grad(p[i], true));
        BRG_TRY(brg_tensor_set_name(p[i], names[i]));
    }
    return BRG_OK;
}

static inline brg_status memory_buckets_told(brg_status status)
{
    RANK_FAILS(status, BRG_ERR_NOMEM, "nccl: memory");
    RANK_CHECK(strstr(brg_error_message(), " bytes for ") &&
                   strstr(brg_error_message(), " of 2 parameters") &&
                   strstr(brg_error_message(), "large"),
               "it says: %s", brg_error_message());
    return BRG_OK;
}

#endif
