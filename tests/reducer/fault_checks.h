/* SPDX-License-Identifier: Apache-2.0
 * Ranks that do not do the same, on the ranks of any group: each way is found
 * in the step in which it begins, on every rank, with the culprit's rank and a
 * parameter, before data moves where its calls differ; no weight is touched. A
 * fault of a step ends the group, a model that differs does not. */
#ifndef BRG_TESTS_REDUCER_FAULT_CHECKS_H
#define BRG_TESTS_REDUCER_FAULT_CHECKS_H

#include <brigade/compile.h>
#include <brigade/ops.h>

#include "comm/pg.h"
#include "core/base/clock.h"
#include "reducer/ddp.h"
#include "tests/reducer/lacking_checks.h"
#include "tests/support/brg_test.h"
#include "tests/support/ddp_model.h"

#define FAULT_STEP 2
#define FAULT_N_STEPS 5

typedef struct fault {
    const char *name;
    /* The culprit's part in step FAULT_STEP instead of a backward, or before
     * it. */
    brg_status (*act)(ddp_model *m, int step);
    /* What all messages say, with the culprit for %d; code BRG_ERR_MISMATCH. */
    const char *text;
    const char *more;  /* besides; or NULL */
    const char *param; /* of the messages of ranks that are in a backward */
    bool is_late;  /* data has moved: found in the tail, or after a good step */
    bool is_alone; /* the culprit is the only one in a backward */
    bool is_voted; /* the fewest are named: of two ranks, the second */
} fault;

typedef struct fault_run {
    const fault *fault;
    int culprit;
    int n_errors;
    uint64_t weights;    /* the hash after the last good step, of all ranks */
    uint64_t elapsed_ns; /* from the step's begin to the error */
} fault_run;

static inline brg_status fault_barrier(brg_pg *pg)
{
    brg_work *work;
    BRG_TRY(brg_barrier(pg, &work));
    return brg_work_wait(work);
}

static inline brg_reducer *fault_reducer(const ddp_model *m)
{
    return (brg_reducer *)(uintptr_t)brg_ddp_reducer(m->ddp);
}

/* ---- Steps ---------------------------------------------------------------------- */

static inline brg_status skip_step(ddp_model *m, int step)
{
    (void)step;
    return fault_barrier(m->pg);
}

/* The others are at the barrier that ends each step. */
static inline brg_status extra_step(ddp_model *m, int step)
{
    BRG_TRY(ddp_model_backward(m, step, DDP_MODEL_ALL));
    return ddp_model_backward(m, step, DDP_MODEL_ALL);
}

/* ---- no_sync ---------------------------------------------------------------------- */

static inline brg_status no_sync_once(ddp_model *m, int step)
{
    (void)brg_ddp_set_sync(m->ddp, false);
    BRG_TRY(ddp_model_backward(m, step, DDP_MODEL_ALL));
    (void)brg_ddp_set_sync(m->ddp, true);
    return ddp_model_backward(m, step, DDP_MODEL_ALL);
}

static inline brg_status no_sync_for_good(ddp_model *m, int step)
{
    (void)brg_ddp_set_sync(m->ddp, false);
    BRG_TRY(ddp_model_backward(m, step, DDP_MODEL_ALL));
    return fault_barrier(m->pg);
}

/* Its calls say what those of the others do: the marks in the tail tell, which
 * is all that a backend without signatures has. */
static inline brg_status no_sync_by_marks(ddp_model *m, int step)
{
    brg_reducer *r = fault_reducer(m);
    (void)brg_ddp_set_sync(m->ddp, false);
    BRG_TRY(ddp_model_backward(m, step, DDP_MODEL_ALL));
    (void)brg_ddp_set_sync(m->ddp, true);
    uint32_t pace = r->pace;
    r->pace = 0;
    BRG_TRY(brg__reducer_expect(r, 0)); /* begins the step */
    r->pace = pace;
    return ddp_model_backward(m, step, DDP_MODEL_ALL);
}

/* ---- Plans ------------------------------------------------------------------------- */

/* Two gradients of one bucket, of as many bytes with their gaps, have changed
 * places: every call looks alike. */
static inline brg_status other_plan(ddp_model *m, int step)
{
    brg_reducer *r = fault_reducer(m);
    brg__plan_slot *a = &r->plan.slots[5], *b = &r->plan.slots[6];
    size_t offset = a->offset;
    if (a->bucket != b->bucket)
        return brg_error_set(BRG_ERR_INTERNAL, __FILE__, __LINE__,
                             "the gradients lie apart");
    a->offset = b->offset;
    b->offset = offset;
    brg__reducer_lay_out(r);
    for (size_t i = 0; i < m->ddp->n_params; i++)
        brg__ddp_view_place(&m->ddp->params[i]);
    return ddp_model_backward(m, step, DDP_MODEL_ALL);
}

static inline brg_status compiled(ddp_model *m, int step,
                                  brg_status (*fn)(ddp_model *m, int step))
{
    int scope;
    BRG_TRY(brg_compile_begin(&scope, NULL));
    brg_status status = fn(m, step);
    brg_status ended = brg_compile_end(scope);
    return status == BRG_OK ? ended : status;
}

static inline brg_status other_plan_compiled(ddp_model *m, int step)
{
    return compiled(m, step, other_plan);
}

static inline brg_status no_sync_compiled(ddp_model *m, int step)
{
    return compiled(m, step, no_sync_once);
}

static inline brg_status without_a_gradient(ddp_model *m, int step)
{
    return ddp_model_backward(m, step, DDP_MODEL_ALL & ~2u);
}

static inline brg_status lacking_compiled(ddp_model *m, int step)
{
    return compiled(m, step, without_a_gradient);
}

/* Compiled from other ops, and over all parameters but one. */
static inline brg_status other_graph(ddp_model *m, int step)
{
    brg_scope *scope = brg_scope_begin();
    brg_tensor *loss = brg_zeros(BRG_DTYPE_F32, BRG_SCALAR);
    (void)step;
    for (size_t i = 0; i < DDP_MODEL_N; i++)
        if (i != 1)
            loss = brg_add(loss, brg_sum_all(brg_tanh(
                                     brg_cast(m->params[i], BRG_DTYPE_F32))));
    brg_status status = brg_backward(loss);
    brg_scope_end(scope);
    return status;
}

static inline brg_status other_graph_compiled(ddp_model *m, int step)
{
    return compiled(m, step, other_graph);
}

/* One whose digest in the calls is that of the others. */
static inline brg_status other_marks(ddp_model *m, int step)
{
    brg_reducer *r = fault_reducer(m);
    r->plan_hash ^= (uint64_t)1 << 16;
    return ddp_model_backward(m, step, DDP_MODEL_ALL);
}

/* ---- Calls ------------------------------------------------------------------------- */

/* A call for a bucket, as a reducer that has gone wrong would make it. */
static inline brg_status call_bucket(ddp_model *m, int bucket, brg_dtype dtype,
                                     size_t count)
{
    const brg_reducer *r = fault_reducer(m);
    brg_work *work = NULL;
    brg__pg_label(m->pg, r->number, 1, (uint16_t)r->plan_hash, bucket);
    brg_status status =
        brg_all_reduce(m->pg, &work, r->arena, count, dtype, BRG_REDUCE_AVG);
    brg__pg_label(m->pg, 0, 0, 0, -1);
    return status == BRG_OK ? brg_work_wait(work) : status;
}

static inline brg_status wrong_dtype(ddp_model *m, int step)
{
    (void)step;
    return call_bucket(m, 0, BRG_DTYPE_I32, fault_reducer(m)->buckets[0].count);
}

static inline brg_status wrong_size(ddp_model *m, int step)
{
    const brg__bucket *first = fault_reducer(m)->buckets;
    (void)step;
    return call_bucket(m, 0, first->dtype, first->count - 1);
}

/* The first one is left out; the next happens to look like it. */
static inline brg_status missing_bucket(ddp_model *m, int step)
{
    const brg__bucket *first = fault_reducer(m)->buckets;
    (void)step;
    return call_bucket(m, 1, first->dtype, first->count);
}

/* The last bucket before the first. */
static inline brg_status wrong_order(ddp_model *m, int step)
{
    const brg_reducer *r = fault_reducer(m);
    size_t last = r->plan.n_buckets - 1;
    (void)step;
    return call_bucket(m, (int)last, r->buckets[last].dtype,
                       r->buckets[last].count);
}

#define CALLED_BARRIER "rank %d called barrier"
#define CALLED_REDUCE "rank %d called all_reduce"
#define IN_BUCKET_0 "bucket 0 (fc1.weight and 4 more)"
#define OF_ALL "embed and 7 more"

static const fault faults[] = {
    {"a step left out", skip_step, CALLED_BARRIER, NULL, IN_BUCKET_0, false,
     false, false},
    {"a step too many", extra_step, CALLED_REDUCE, "bucket 0)", IN_BUCKET_0,
     true, true, false},
    {"no sync in one backward", no_sync_once, "rank %d: 2 times",
     "the ranks are out of step: since the last step ", IN_BUCKET_0, false,
     false, false},
    {"no sync in one backward, compiled", no_sync_compiled, "rank %d: 2 times",
     "the ranks are out of step: since the last step ", IN_BUCKET_0, false,
     false, false},
    {"no sync from now on", no_sync_for_good, CALLED_BARRIER, NULL, IN_BUCKET_0,
     false, false, false},
    {"no sync, by its marks", no_sync_by_marks, "out of step: rank %d had",
     "brg_ddp_set_sync off", OF_ALL, true, false, true},
    {"slots in other places", other_plan, CALLED_REDUCE, ", plan ", IN_BUCKET_0,
     false, false, false},
    {"slots in other places, compiled", other_plan_compiled, CALLED_REDUCE,
     ", plan ", IN_BUCKET_0, false, false, false},
    {"a plan without a gradient", lacking_compiled,
     "the plan of rank %d makes no gradient of fc1.weight", NULL, IN_BUCKET_0,
     false, false, false},
    {"another graph, compiled", other_graph_compiled,
     "the plan of rank %d makes no gradient of fc1.weight", NULL, IN_BUCKET_0,
     false, false, false},
    {"another plan, by its marks", other_marks,
     "rank %d has another bucket plan", "were mixed up", OF_ALL, true, false,
     true},
    {"wrong dtype", wrong_dtype, CALLED_REDUCE, "(288 i32, avg", IN_BUCKET_0,
     false, false, false},
    {"wrong size", wrong_size, CALLED_REDUCE, "(287 f32, avg", IN_BUCKET_0,
     false, false, false},
    {"a bucket left out", missing_bucket, CALLED_REDUCE, "bucket 1)",
     IN_BUCKET_0, false, false, false},
    {"buckets in another order", wrong_order, CALLED_REDUCE, "(32 f32, avg",
     IN_BUCKET_0, false, false, false},
};
#define N_FAULTS (sizeof faults / sizeof faults[0])

/* ---- A training ---------------------------------------------------------------------- */

/* What an optimizer does. */
static inline brg_status fault_update(ddp_model *m)
{
    bool was = brg_grad_mode_set(false);
    brg_status status = BRG_OK;
    for (size_t i = 0; i < DDP_MODEL_N && status == BRG_OK; i++)
        status = brg_add_(m->params[i], brg_tensor_grad(m->params[i]), -0.25);
    (void)brg_grad_mode_set(was);
    return status;
}

static inline brg_status hash_weights(const ddp_model *m, uint64_t *hash)
{
    *hash = 0;
    return brg__ddp_hash(hash, m->params, DDP_MODEL_N);
}

static inline brg_status fault_step(ddp_model *m, const fault_run *c, int k)
{
    bool is_bad = m->rank == c->culprit && k == FAULT_STEP;
    BRG_TRY(ddp_model_zero(m, false));
    BRG_TRY(is_bad ? c->fault->act(m, k)
                   : ddp_model_backward(m, k, DDP_MODEL_ALL));
    BRG_TRY(fault_barrier(m->pg));
    BRG_TRY(ddp_model_check(m, k, k + 1));
    return fault_update(m);
}

static inline brg_status fault_says(const char *message, const char *text,
                                    const fault_run *c, int rank)
{
    RANK_CHECK(!text || strstr(message, text),
               "%s by rank %d: no \"%s\" in rank %d's: %s", c->fault->name,
               c->culprit, text, rank, message);
    return BRG_OK;
}

/* The error's words, on this rank. */
static inline brg_status
fault_check_words(const fault_run *c, const ddp_model *m, brg_status status)
{
    const fault *f = c->fault;
    int rank = m->rank;
    bool is_even = f->is_voted && m->world_size == 2;
    char message[BRG_ERROR_TEXT_MAX], culprit[80];
    RANK_CHECK(status == BRG_ERR_MISMATCH, "%s: %s: %s", f->name,
               brg_status_name(status), brg_error_message());
    snprintf(message, sizeof message, "%s", brg_error_message());
    snprintf(culprit, sizeof culprit, f->text, is_even ? 1 : c->culprit);
    BRG_TRY(fault_says(message, culprit, c, rank));
    BRG_TRY(fault_says(message, f->more, c, rank));
    return (rank == c->culprit) == f->is_alone
               ? fault_says(message, f->param, c, rank)
               : BRG_OK;
}

/* All steps before are right, and this one fails before the weights change:
 * every rank still has those of the step before, bit for bit. */
static inline brg_status fault_steps(ddp_model *m, fault_run *c)
{
    const fault *f = c->fault;
    brg_status status = BRG_OK;
    uint64_t before = 0, after = 0, start = 0;
    int k = 0;
    while (status == BRG_OK && k < FAULT_N_STEPS) {
        uint64_t last = before;
        BRG_TRY(hash_weights(m, &before));
        RANK_CHECK(before != last, "step %d has changed no weight", k - 1);
        start = brg__clock_ns();
        status = fault_step(m, c, k++);
    }
    uint64_t elapsed = brg__clock_ns() - start;
    c->elapsed_ns = elapsed > c->elapsed_ns ? elapsed : c->elapsed_ns;
    BRG_TRY(fault_check_words(c, m, status));
    RANK_CHECK(k == FAULT_STEP + 1, "rank %d: %s went on for %d steps", m->rank,
               f->name, k);
    BRG_TRY(hash_weights(m, &after));
    RANK_CHECK(after == before, "rank %d: %s has touched weights", m->rank,
               f->name);
    c->weights = c->n_errors == 0 ? after : c->weights;
    RANK_CHECK(after == c->weights, "rank %d: %s: other weights", m->rank,
               f->name);
    c->n_errors++;
    return f->is_late || m->rank == c->culprit ? BRG_OK
                                               : lacking_check_apart(m, k - 1);
}

static inline brg_status fault_check(brg_pg *pg, fault_run *c)
{
    ddp_model m;
    brg_status status = ddp_model_init(&m, pg);
    if (status == BRG_OK)
        status = ddp_model_wrap(&m, NULL);
    if (status == BRG_OK)
        status = fault_steps(&m, c);
    ddp_model_deinit(&m);
    return status;
}

/* ---- Beside ranks that have joined ------------------------------------------------------ */

static inline brg_status joined_step(ddp_model *m, int step, int n_switching)
{
    bool is_over;
    BRG_TRY(ddp_model_zero(m, false));
    if (m->rank > 1)
        return brg_ddp_join(m->ddp, &is_over);
    return m->rank < n_switching ? no_sync_once(m, step)
                                 : ddp_model_backward(m, step, DDP_MODEL_ALL);
}

/* Ranks from 2 on have no data, and say nothing of switches: they go along with
 * two that accumulate, and hear of it when only one of these does. */
static inline brg_status joined_steps(ddp_model *m)
{
    for (int step = 0; step < 3; step++)
        BRG_TRY(joined_step(m, step, step == 1 ? 2 : 0));
    BRG_TRY(ddp_model_check_param(m, 0, 2, 3, 3));
    BRG_TRY(ranks_expect(joined_step(m, 3, 1), BRG_ERR_MISMATCH,
                         "the ranks are out of step: since the last step ",
                         "one of two", __LINE__));
    return ranks_expect(brg_error_code(), BRG_ERR_MISMATCH, "rank 0: 2 times",
                        "one of two", __LINE__);
}

static inline brg_status joined_check(brg_pg *pg)
{
    ddp_model m;
    brg_status status = ddp_model_init(&m, pg);
    if (status == BRG_OK)
        status = ddp_model_wrap(&m, NULL);
    if (status == BRG_OK)
        status = joined_steps(&m);
    ddp_model_deinit(&m);
    return status;
}

/* ---- Models that differ ----------------------------------------------------------------- */

typedef struct model_fault {
    const char *name;
    brg_status (*change)(ddp_model *m);
    const char *text; /* with the culprit for %d */
    const char *text_of_0;
} model_fault;

static inline brg_status put_param(ddp_model *m, size_t i, brg_dtype dtype,
                                   int ndim, const int64_t *shape)
{
    const char *name = brg_tensor_name(m->params[i]);
    brg_tensor *t = brg_full(dtype, ndim, shape, 1);
    BRG_TRY(brg_tensor_set_name(t, name));
    m->params[i] = t;
    return brg_set_requires_grad(t, true);
}

static inline brg_status model_dtype(ddp_model *m)
{
    return put_param(m, 4, BRG_DTYPE_F16, 2, (int64_t[]){3, 4});
}

static inline brg_status model_size(ddp_model *m)
{
    return put_param(m, 7, BRG_DTYPE_F32, 2, (int64_t[]){2, 32});
}

static inline brg_status model_order(ddp_model *m)
{
    brg_tensor *first = m->params[0];
    m->params[0] = m->params[7];
    m->params[7] = first;
    return BRG_OK;
}

static inline brg_status model_less(ddp_model *m)
{
    m->params[7] = m->params[0];
    return BRG_OK;
}

static inline brg_status model_name(ddp_model *m)
{
    return brg_tensor_set_name(m->params[0], "wte");
}

static inline brg_status model_frozen(ddp_model *m)
{
    return brg_set_requires_grad(m->params[2], false);
}

static const model_fault model_faults[] = {
    {"dtype", model_dtype, "rank %d has fc2.weight f16[3, 4]", NULL},
    {"size", model_size, "rank %d has head f32[2, 32]", NULL},
    {"order", model_order, "rank %d has head f32[2, 33]", NULL},
    {"a parameter less", model_less, "rank %d has 7 and 1",
     "rank %d has 7 parameters and 1 buffers"},
    {"another model", model_name, "rank %d has wte f32[8, 15]", NULL},
    {"a frozen parameter", model_frozen, "rank %d has fc1.bias f16[7] without ",
     NULL},
};
#define N_MODEL_FAULTS (sizeof model_faults / sizeof model_faults[0])

static inline brg_status works_as_before(brg_pg *pg)
{
    ddp_model m;
    brg_status status = ddp_model_init(&m, pg);
    if (status == BRG_OK)
        status = ddp_model_wrap(&m, NULL);
    if (status == BRG_OK)
        status = ddp_model_backward(&m, 3, DDP_MODEL_ALL);
    if (status == BRG_OK)
        status = ddp_model_check(&m, 3, 4);
    ddp_model_deinit(&m);
    return status;
}

static inline brg_status model_check(brg_pg *pg, const model_fault *f,
                                     int culprit, uint64_t *elapsed_ns)
{
    ddp_model m;
    char text[80];
    snprintf(text, sizeof text,
             culprit == 0 && f->text_of_0 ? f->text_of_0 : f->text, culprit);
    brg_status status = ddp_model_init(&m, pg);
    if (status == BRG_OK && m.rank == culprit)
        status = f->change(&m);
    uint64_t start = brg__clock_ns();
    if (status == BRG_OK)
        status = ranks_expect(ddp_model_wrap(&m, NULL), BRG_ERR_MISMATCH, text,
                              f->name, __LINE__);
    uint64_t elapsed = brg__clock_ns() - start;
    *elapsed_ns = elapsed > *elapsed_ns ? elapsed : *elapsed_ns;
    ddp_model_deinit(&m);
    return status == BRG_OK ? works_as_before(pg) : status;
}

#endif
