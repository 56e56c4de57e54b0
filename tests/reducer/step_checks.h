/* SPDX-License-Identifier: Apache-2.0
 * Whole steps whose plans hold the reductions of a ddp, beside eager ones:
 * gradients are the same bits, and the plan's text shows when what starts. */
#ifndef BRG_TESTS_REDUCER_STEP_CHECKS_H
#define BRG_TESTS_REDUCER_STEP_CHECKS_H

#include <stdio.h>
#include <string.h>

#include <brigade/autograd.h>
#include <brigade/compile.h>
#include <brigade/ddp.h>
#include <brigade/ops.h>

#include "tests/support/ranks.h"

#define STEP_LAYERS 4
#define STEP_DIM 8
#define STEP_UNUSED __attribute__((unused))

typedef struct step_model {
    int rank;
    brg_scope *scope;
    brg_tensor *w[STEP_LAYERS];
    brg_ddp *ddp;
    brg_compiled *step; /* NULL: eager */
    size_t n_used;      /* layers */
} step_model;

static inline brg_status step_init(step_model *m, brg_pg *pg,
                                   const brg_ddp_options *options)
{
    float values[STEP_DIM * STEP_DIM];
    char name[16];
    *m = (step_model){.rank = brg_pg_rank(pg),
                      .scope = brg_scope_begin(),
                      .n_used = STEP_LAYERS};
    for (size_t k = 0; k < STEP_LAYERS; k++) {
        for (size_t i = 0; i < STEP_DIM * STEP_DIM; i++)
            values[i] = (float)ranks_gradient(0, 0, k, i);
        m->w[k] =
            brg_from_data(BRG_DTYPE_F32, BRG_SHAPE(STEP_DIM, STEP_DIM), values);
        snprintf(name, sizeof name, "fc%zu.weight", k);
        BRG_TRY(brg_tensor_set_name(m->w[k], name));
        BRG_TRY(brg_set_requires_grad(m->w[k], true));
    }
    return brg_ddp_create(&m->ddp, pg, m->w, STEP_LAYERS, NULL, 0, options);
}

static inline void step_deinit(step_model *m)
{
    brg_compiled_destroy(m->step);
    brg_ddp_destroy(m->ddp);
    brg_scope_end(m->scope);
}

/* A backward for each input. */
static inline brg_status step_body(brg_tensor *const *in, size_t n_in,
                                   brg_tensor **out, size_t n_out, void *user)
{
    const step_model *m = user;
    (void)n_out;
    for (size_t i = 0; i < n_in; i++) {
        brg_tensor *h = in[i];
        for (size_t k = 0; k < m->n_used; k++)
            h = brg_tanh(brg_linear(h, m->w[k], NULL));
        out[0] = brg_sum_all(h);
        BRG_TRY(brg_backward(out[0]));
    }
    return BRG_OK;
}

static inline brg_status step_compile(step_model *m,
                                      brg_compile_backend backend)
{
    brg_compile_options options = BRG_COMPILE_OPTIONS_INIT;
    options.whole = options.fullgraph = true;
    options.backend = backend;
    return brg_compiled_create(&m->step, step_body, m, &options);
}

/* Step `number` on data of its own, with so many backwards. */
static inline brg_status step_run(step_model *m, int number, size_t n)
{
    float values[3 * STEP_DIM];
    brg_tensor *in[4], *loss;
    brg_scope *scope = brg_scope_begin();
    for (size_t i = 0; i < n; i++) {
        for (size_t k = 0; k < 3 * STEP_DIM; k++)
            values[k] = (float)ranks_gradient(m->rank, number, i, k);
        in[i] = brg_from_data(BRG_DTYPE_F32, BRG_SHAPE(3, STEP_DIM), values);
    }
    brg_status status = m->step ? brg_compiled_call(m->step, in, n, &loss, 1)
                                : step_body(in, n, &loss, 1, m);
    brg_scope_end(scope);
    return status;
}

static inline brg_status step_drop_grads(step_model *m)
{
    for (size_t k = 0; k < STEP_LAYERS; k++)
        BRG_TRY(brg_tensor_set_grad(m->w[k], NULL));
    return BRG_OK;
}

static inline brg_status step_same(const step_model *a, const step_model *b,
                                   int number)
{
    for (size_t k = 0; k < STEP_LAYERS; k++) {
        const brg_tensor *x = brg_tensor_grad(a->w[k]);
        const brg_tensor *y = brg_tensor_grad(b->w[k]);
        RANK_CHECK(!x == !y, "step %d: one gradient %zu is missing", number, k);
        RANK_CHECK(!x || memcmp(brg_tensor_data(x), brg_tensor_data(y),
                                brg_tensor_nbytes(x)) == 0,
                   "step %d: the bits of gradient %zu differ", number, k);
    }
    return BRG_OK;
}

/* The same step of both. */
static inline brg_status step_both(step_model *eager, step_model *whole,
                                   int number, size_t n)
{
    BRG_TRY(step_run(eager, number, n));
    BRG_TRY(step_run(whole, number, n));
    return step_same(eager, whole, number);
}

/* What was captured so far, and the reductions in it. */
static inline brg_status step_counts(uint64_t functions, uint64_t buckets)
{
    brg_compile_stats stats;
    brg_compile_get_stats(&stats);
    RANK_CHECK(stats.functions == functions && stats.buckets == buckets &&
                   stats.function_fallbacks == 0,
               "%d functions, %d reductions, %d fallbacks, expected %d, %d, 0",
               (int)stats.functions, (int)stats.buckets,
               (int)stats.function_fallbacks, (int)functions, (int)buckets);
    return BRG_OK;
}

typedef brg_status (*step_check)(step_model *eager, step_model *whole);

/* A bucket for each layer; rebuilt if `keep_order` is false. */
static inline brg_status step_with(brg_pg *pg, bool keep_order,
                                   step_check check)
{
    brg_ddp_options options = BRG_DDP_OPTIONS_INIT;
    options.first_bucket_bytes = options.bucket_bytes = 64;
    options.keep_order = keep_order;
    options.allow_unused = true;
    step_model eager, whole = {0};
    BRG_TRY(brg_compile_reset());
    brg_status status = step_init(&eager, pg, &options);
    if (status == BRG_OK)
        status = step_init(&whole, pg, &options);
    if (status == BRG_OK)
        status = step_compile(&whole, BRG_COMPILE_BACKEND_DEFAULT);
    if (status == BRG_OK)
        status = check(&eager, &whole);
    step_deinit(&whole);
    step_deinit(&eager);
    return status;
}

/* ---- Where reductions stand -------------------------------------------------- */

static inline const char *step_last(const char *text, const char *what)
{
    const char *last = NULL;
    for (; (text = strstr(text, what)) != NULL; text++)
        last = text;
    return last;
}

/* All collectives start before any is waited for; the backward ends when all are
 * there. */
static inline brg_status step_check_ends(const char *text)
{
    const char *last = step_last(text, " = all_reduce_start["),
               *wait = strstr(text, " = wait["),
               *written = step_last(text, " = write_back@"),
               *end = strstr(text, "\nbackward_end(");
    RANK_CHECK(last && wait && written && end, "not in the plan: %s", text);
    RANK_CHECK(last < wait && written < end, "in another order: %s", text);
    RANK_CHECK(!strstr(text, "\nleaf@"), "hooks are called: %s", text);
    return BRG_OK;
}

/* And the first starts before the last gradient is worked out. */
static inline brg_status step_check_order(const char *text)
{
    const char *first = strstr(text, " = all_reduce_start["),
               *gradient = step_last(text, "\naccumulate@");
    RANK_CHECK(first && gradient && first < gradient, "too late: %s", text);
    return step_check_ends(text);
}

static inline brg_status step_check_text(const step_model *m, char *text,
                                         size_t size)
{
    size_t n = brg_compiled_print(m->step, 0, text, size);
    RANK_CHECK(n > 0 && n < size, "the plan has %zu characters", n);
    return BRG_OK;
}

/* ---- Checks of every world ----------------------------------------------------- */

static inline brg_status step_check_bits(step_model *eager, step_model *whole)
{
    char text[8192];
    for (int number = 0; number < 4; number++) {
        BRG_TRY(step_both(eager, whole, number, 1));
        if (number % 2)
            BRG_TRY(step_drop_grads(eager));
        if (number % 2)
            BRG_TRY(step_drop_grads(whole));
    }
    BRG_TRY(step_check_text(whole, text, sizeof text));
    BRG_TRY(step_check_order(text));
    return step_counts(1, STEP_LAYERS);
}

/* Off for two steps of three: another plan, found again. */
static inline brg_status step_check_sync(step_model *eager, step_model *whole)
{
    for (int number = 0; number < 6; number++) {
        bool is_on = number % 3 == 2;
        (void)brg_ddp_set_sync(eager->ddp, is_on);
        (void)brg_ddp_set_sync(whole->ddp, is_on);
        BRG_TRY(step_both(eager, whole, number, 1));
    }
    return step_counts(2, STEP_LAYERS);
}

/* Buckets made anew after the first step. */
static inline brg_status step_check_rebuilt(step_model *eager,
                                            step_model *whole)
{
    for (int number = 0; number < 4; number++)
        BRG_TRY(step_both(eager, whole, number, 1));
    RANK_CHECK(brg_reducer_n_buckets(brg_ddp_reducer(whole->ddp)) ==
                   STEP_LAYERS,
               "there are other buckets");
    brg_reducer_stats stats;
    brg_reducer_get_stats(brg_ddp_reducer(whole->ddp), &stats);
    return step_counts(1 + stats.n_rebuilds,
                       STEP_LAYERS * (1 + stats.n_rebuilds));
}

/* Each backward of a step is reduced, the second on top of the first. */
static inline brg_status step_check_two(step_model *eager, step_model *whole)
{
    for (int number = 0; number < 3; number++)
        BRG_TRY(step_both(eager, whole, number, 2));
    return step_counts(1, 2 * STEP_LAYERS);
}

/* A layer that the step does not use, or uses on some ranks only. */
static inline brg_status step_check_unused(step_model *eager, step_model *whole)
{
    eager->n_used = whole->n_used = STEP_LAYERS - 1 - (whole->rank == 1);
    for (int number = 0; number < 3; number++)
        BRG_TRY(step_both(eager, whole, number, 1));
    brg_compile_stats stats;
    brg_compile_get_stats(&stats);
    RANK_CHECK(stats.functions == 1, "%d functions", (int)stats.functions);
    return BRG_OK;
}

/* A step that lacks a layer on rank 1 only: found at the first bucket. The
 * group is over then. */
static inline STEP_UNUSED brg_status step_check_lacking(brg_pg *pg)
{
    brg_ddp_options options = BRG_DDP_OPTIONS_INIT;
    options.first_bucket_bytes = options.bucket_bytes = 64;
    step_model m;
    BRG_TRY(brg_compile_reset());
    brg_status status = step_init(&m, pg, &options);
    if (status == BRG_OK)
        status = step_compile(&m, BRG_COMPILE_BACKEND_DEFAULT);
    for (int number = 0; status == BRG_OK && number < 3; number++)
        status = step_run(&m, number, 1);
    if (status == BRG_OK && brg_pg_world_size(pg) > 1) {
        brg_compiled_destroy(m.step); /* what it calls is another function */
        m.step = NULL;
        m.n_used -= m.rank == 1;
        status = step_compile(&m, BRG_COMPILE_BACKEND_DEFAULT);
        if (status == BRG_OK)
            status = ranks_expect(step_run(&m, 3, 1), BRG_ERR_MISMATCH,
                                  "the plan of rank 1 makes no gradient of "
                                  "fc3.weight",
                                  "step_run", __LINE__);
    }
    step_deinit(&m);
    return status;
}

/* All of them; collective. */
static inline STEP_UNUSED brg_status step_check_all(brg_pg *pg)
{
    BRG_TRY(step_with(pg, true, step_check_bits));
    BRG_TRY(step_with(pg, true, step_check_sync));
    BRG_TRY(step_with(pg, false, step_check_rebuilt));
    BRG_TRY(step_with(pg, true, step_check_two));
    return step_with(pg, true, step_check_unused);
}

#endif
