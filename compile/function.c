/* SPDX-License-Identifier: Apache-2.0
 * Functions and their segments: see function.h. */
#include "compile/function.h"

#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#include "compile/relaunch.h"
#include "core/autograd/autocast.h"
#include "core/base/error.h"

void brg__function_init(brg__function *f)
{
    *f = (brg__function){.backend = BRG_COMPILE_BACKEND_PASSES};
    pthread_mutex_init(&f->lock, NULL);
}

void brg__variant_clear(brg__variant *v)
{
    brg__segment_release(v->segment);
    brg__mem_free(v->reason);
    brg__mem_free(v->key.at);
    brg__mem_free(v->shapes.at);
    *v = (brg__variant){0};
}

void brg__function_deinit(brg__function *f)
{
    for (size_t i = 0; i < f->n_variants; i++)
        brg__variant_clear(&f->variants[i]);
    for (size_t i = 0; i < f->pieces.n; i++)
        brg__variant_clear(&f->pieces.at[i]);
    brg__array_deinit(&f->pieces);
    brg__mem_free(f->key.at);
    brg__mem_free(f->shapes.at);
    pthread_mutex_destroy(&f->lock);
}

/* ---- Keys -------------------------------------------------------------------------- */

static brg_status append(brg__bytes *b, const void *data, size_t n)
{
    BRG_TRY(brg__array_grow((void **)&b->at, &b->capacity, b->n + n + 1, 1));
    if (n > 0)
        memcpy(b->at + b->n, data, n);
    b->n += n;
    return BRG_OK;
}

static _Atomic uint64_t next_thread = 1;
static _Thread_local uint64_t thread_id;

/* Segments are the thread's: one that runs is not entered by another. */
uint64_t brg__this_thread(void)
{
    if (thread_id == 0)
        thread_id = atomic_fetch_add(&next_thread, 1);
    return thread_id;
}

static brg_status put_input(brg__function *f, const brg__traced_call *call,
                            size_t i)
{
    const brg_tensor *t = call->inputs[i];
    uint32_t same = 0;
    uint8_t none = 255;
    if (!t)
        return append(&f->key, &none, 1);
    while (call->inputs[same] != t)
        same++;
    uint8_t kind[5] = {t->dtype, t->ndim, (uint8_t)t->device.type,
                       (uint8_t)t->device.index,
                       (uint8_t)(brg__requires_grad(t) + !brg_is_leaf(t))};
    BRG_TRY(append(&f->key, kind, sizeof kind));
    BRG_TRY(append(&f->key, &same, sizeof same));
    BRG_TRY(append(&f->key, t->shape, t->ndim * sizeof *t->shape));
    BRG_TRY(append(&f->key, t->stride, t->ndim * sizeof *t->stride));
    BRG_TRY(append(&f->shapes, &t->ndim, 1));
    return append(&f->shapes, t->shape, t->ndim * sizeof *t->shape);
}

static brg_status make_key(brg__function *f, const brg__traced_call *call)
{
    struct {
        uint64_t thread;
        uint64_t n_inputs, n_outputs;
        bool mode;
        uint8_t autocast[sizeof(brg_autocast)];
    } head;
    memset(&head, 0, sizeof head);
    head.thread = brg__this_thread();
    head.n_inputs = call->n_inputs;
    head.n_outputs = call->n_outputs;
    head.mode = brg_grad_mode();
    memcpy(head.autocast, &brg__autocast, sizeof brg__autocast);
    f->key.n = f->shapes.n = 0;
    BRG_TRY(append(&f->key, &head, sizeof head));
    for (size_t i = 0; i < call->n_inputs; i++)
        BRG_TRY(put_input(f, call, i));
    return BRG_OK;
}

/* ---- Which sizes are dynamic --------------------------------------------------------- */

/* The two differ in sizes only, and only in those that may. */
static bool may_share(const brg__function *f, const brg__variant *v,
                      const brg__traced_call *call)
{
    size_t at = 0;
    if (v->shapes.n != f->shapes.n)
        return false;
    for (size_t i = 0; i < call->n_inputs; i++) {
        if (!call->inputs[i])
            continue;
        uint8_t ndim = v->shapes.at[at];
        if (ndim != f->shapes.at[at++])
            return false;
        for (uint8_t d = 0; d < ndim; d++, at += sizeof(int64_t)) {
            bool is_marked = i < BRG__MAX_MARKED && ((f->marked[i] >> d) & 1u);
            if (!v->is_dynamic && !is_marked &&
                memcmp(v->shapes.at + at, f->shapes.at + at, sizeof(int64_t)) !=
                    0)
                return false;
        }
    }
    return true;
}

brg_status brg__function_mark(brg__function *f, size_t input, int dim)
{
    pthread_mutex_lock(&f->lock);
    bool was_called = f->n_variants > 0;
    if (!was_called)
        f->marked[input] |= (uint8_t)(1u << dim);
    pthread_mutex_unlock(&f->lock);
    return was_called ? BRG_FAIL(BRG_ERR_STATE,
                                 "brg_compiled_mark_dynamic: sizes of a "
                                 "function are marked before its first call")
                      : BRG_OK;
}

static _Atomic uint64_t next_segment;

uint64_t brg__next_segment_id(void)
{
    return atomic_fetch_add(&next_segment, 1);
}

/* The id of a new segment, and whether others may differ from it in size. */
static void name_segment(brg__function *f, const brg__traced_call *call,
                         brg__variant *fresh)
{
    bool has_sibling = false;
    for (size_t i = 0; i < f->n_variants; i++) {
        brg__variant *v = &f->variants[i];
        if (v == fresh || !v->segment ||
            !brg__segment_is_like(v->segment, fresh->segment))
            continue;
        has_sibling = true;
        if (!may_share(f, v, call))
            continue;
        fresh->segment->id = v->segment->id;
        fresh->is_dynamic = v->is_dynamic;
        return;
    }
    fresh->segment->id = brg__next_segment_id();
    fresh->is_dynamic = f->is_all_dynamic || has_sibling;
    f->n_segments++;
}

/* ---- Calls ------------------------------------------------------------------------------ */

static void drop(brg__function *f, brg__variant *v)
{
    brg__variant_clear(v);
    *v = f->variants[--f->n_variants];
    f->variants[f->n_variants] = (brg__variant){0};
}

static brg__variant *find(brg__function *f, brg_tensor *const *inputs)
{
    for (size_t i = 0; i < f->n_variants; i++) {
        brg__variant *v = &f->variants[i];
        if (v->key.n != f->key.n || memcmp(v->key.at, f->key.at, f->key.n) != 0)
            continue;
        if (!v->segment || v->segment->is_running)
            return v;
        brg__segment_fit fit = brg__segment_fits(v->segment, inputs);
        if (fit == BRG__SEGMENT_FITS)
            return v;
        if (fit == BRG__SEGMENT_STALE)
            drop(f, &f->variants[i--]);
    }
    return NULL;
}

static brg__variant *new_variant(brg__function *f)
{
    if (f->n_variants < BRG__MAX_SEGMENTS)
        return &f->variants[f->n_variants++];
    brg__variant *oldest = &f->variants[0];
    for (size_t i = 1; i < f->n_variants; i++)
        if (f->variants[i].last_use < oldest->last_use)
            oldest = &f->variants[i];
    brg__variant_clear(oldest);
    return oldest;
}

static brg_status fill(const brg__function *f, const brg__traced_call *call,
                       brg__variant *v)
{
    brg__traced_call traced = *call;
    traced.wants_graph = &v->wants_graph;
    brg_status status = brg__segment_create(&v->segment, &traced, f->backend);
    if (status == BRG_ERR_UNSUPPORTED) {
        v->reason = brg__mem_strdup(brg_error_message());
        status = v->reason ? BRG_OK : BRG_ERR_NOMEM;
    }
    BRG_TRY(status);
    if (v->segment && f->is_relaunched && v->segment->captured.is_step)
        BRG_TRY(brg__relauncher_create(&v->segment->relauncher));
    BRG_TRY(append(&v->key, f->key.at, f->key.n));
    return append(&v->shapes, f->shapes.at, f->shapes.n);
}

/* Nothing can fail once it has its place: each segment there has its name. */
static brg_status capture(brg__function *f, const brg__traced_call *call,
                          brg__variant **out)
{
    brg__variant fresh = {0};
    brg_status status = fill(f, call, &fresh);
    if (status != BRG_OK) {
        brg__variant_clear(&fresh);
        return status;
    }
    *out = new_variant(f);
    **out = fresh;
    if (fresh.segment)
        name_segment(f, call, *out);
    return BRG_OK;
}

static _Thread_local char why_text[BRG_ERROR_TEXT_MAX];

/* The segment to run, retained; NULL: the outcome says why not. */
static brg_status choose(brg__function *f, const brg__traced_call *call,
                         brg__segment **out, brg__call_outcome *outcome)
{
    *out = NULL;
    BRG_TRY(make_key(f, call));
    brg__variant *v = find(f, call->inputs);
    outcome->is_hit = v && v->segment;
    if (!v) {
        BRG_TRY(capture(f, call, &v));
        outcome->is_captured = v->segment != NULL;
        if (v->segment)
            outcome->n_buckets =
                brg__ir_count(&v->segment->captured.forward, BRG__IR_START);
    }
    v->last_use = ++f->clock;
    if (v->segment && v->segment->is_running)
        outcome->why = "the function calls itself";
    if (v->reason) { /* another thread may drop it */
        snprintf(why_text, sizeof why_text, "%s", v->reason);
        outcome->why = why_text;
        outcome->is_unfit = v->wants_graph;
    }
    if (outcome->why)
        return BRG_OK;
    *out = v->segment;
    brg__segment_retain(*out);
    return BRG_OK;
}

static const char *unfit_input(const brg__traced_call *call)
{
    for (size_t i = 0; i < call->n_inputs; i++) {
        const brg_tensor *t = call->inputs[i];
        if (t && t->sparse)
            return "an input is sparse";
        if (t && t->symbol)
            return "it is being captured itself";
        if (t && !t->storage)
            return "an input has no memory";
    }
    return NULL;
}

brg_status brg__function_call(brg__function *f, const brg__traced_call *call,
                              brg_tensor **outputs, brg__call_outcome *outcome)
{
    brg__segment *segment = NULL;
    outcome->why = unfit_input(call);
    outcome->is_unfit = outcome->why != NULL;
    if (outcome->why)
        return BRG_OK;
    pthread_mutex_lock(&f->lock);
    brg_status status = choose(f, call, &segment, outcome);
    pthread_mutex_unlock(&f->lock);
    if (!segment)
        return status;
    status = brg__segment_run(segment, call->inputs, call->n_inputs, outputs,
                              call->n_outputs);
    brg__segment_release(segment);
    return status;
}
