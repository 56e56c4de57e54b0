/* SPDX-License-Identifier: Apache-2.0
 * A function that cannot be captured in one piece: it is called each time, and
 * what it asks of tensors is put off and written down. Where it needs a value (reads
 * one, calls a function of the user's, goes backward), what is written down so
 * far, a piece, runs as a segment, found by what it is or made; the symbols that
 * are still there become the tensors that they stood for. Host code runs as
 * always, so nothing has to be assumed about it. */
#include <stddef.h>
#include <string.h>

#include "compile/function.h"
#include "compile/trace_inside.h"
#include "core/autograd/autocast.h"
#include "core/autograd/debug.h"
#include "core/ops/random.h"

typedef struct pieces {
    brg__tracing t;
    brg__captured captured;
    brg__traced_call call; /* n_outputs: tensors that are still there */
    brg__function *f;
    uint64_t n_made;
    /* What is written down cannot run any more: its tensors have no values. */
    bool is_broken;
    brg__error_record failure;
    bool is_flushing;
    /* What the thread had in force before. */
    brg__emitter *emitter;
    brg__tracer *tracer;
    brg__runner *runner;
    brg__pack_hooks *pack;
    bool is_paused; /* observers */
} pieces;

static pieces *pieces_of(brg__tracer *self)
{
    return (pieces *)((char *)self - offsetof(pieces, t.tracer));
}

/* ---- On and off ------------------------------------------------------------------------ */

static void enter(pieces *p)
{
    p->emitter = brg__emitter_set(&p->t.emitter);
    p->tracer = brg__tracer_now;
    brg__tracer_now = &p->t.tracer;
    p->runner = brg__runner_set(&p->t.runner);
    p->pack = brg__pack_hooks_swap(NULL);
    p->is_paused = brg__observers_pause(true);
    brg__autocast_forget();
}

static void leave(pieces *p)
{
    brg__autocast_forget();
    (void)brg__observers_pause(p->is_paused);
    brg__pack_hooks_swap(p->pack);
    brg__runner_set(p->runner);
    brg__tracer_now = p->tracer;
    brg__emitter_set(p->emitter);
}

static bool suspend(brg__tracer *self)
{
    pieces *p = pieces_of(self);
    if (p->is_flushing)
        return false;
    leave(p);
    return true;
}

static void resume(brg__tracer *self)
{
    enter(pieces_of(self));
}

static void begin_piece(pieces *p)
{
    brg__tracing_deinit(&p->t);
    brg__captured_deinit(&p->captured);
    p->captured = (brg__captured){0};
    p->t.symbols.n = 0;
    p->t.capture = brg__new_capture();
    p->t.ir = &p->captured.forward;
    p->t.is_backward = false;
}

/* The call goes on failing as it did first. */
static __attribute__((noinline)) brg_status breaks(pieces *p)
{
    if (!p->is_broken)
        brg__error_save(&p->failure);
    p->is_broken = true;
    brg__error_restore(&p->failure);
    return p->failure.code;
}

/* ---- What a piece is, as bytes ------------------------------------------------------------ */

static brg_status put(brg__bytes *key, const void *data, size_t n)
{
    BRG_TRY(
        brg__array_grow((void **)&key->at, &key->capacity, key->n + n + 1, 1));
    if (n > 0)
        memcpy(key->at + key->n, data, n);
    key->n += n;
    return BRG_OK;
}

static brg_status put_plan(brg__bytes *key, const brg__ir *ir)
{
    for (size_t i = 0; i < ir->nodes.n; i++) {
        const brg__ir_node *n = &ir->nodes.at[i];
        brg_attrs attrs = n->attrs;
        if (n->draw) /* seed and place of the draw */
            attrs.i[0] = attrs.i[1] = 0;
        int64_t what[6] = {n->kind, (int64_t)(intptr_t)n->op,
                           n->draw, n->slot,
                           n->n_in, n->n_out};
        BRG_TRY(put(key, what, sizeof what));
        BRG_TRY(put(key, &attrs, sizeof attrs));
        BRG_TRY(put(key, brg__ir_in(ir, n), (size_t)n->n_in * sizeof(int)));
    }
    for (size_t i = 0; i < ir->values.n; i++) {
        const brg__ir_value *v = &ir->values.at[i];
        int what[4] = {v->source, v->index, v->dtype, v->ndim};
        BRG_TRY(put(key, what, sizeof what));
        if (v->constant)
            BRG_TRY(put(key, v->constant->shape,
                        (size_t)v->ndim * sizeof(int64_t)));
    }
    return BRG_OK;
}

static brg_status put_input(brg__bytes *key, const brg_tensor *t)
{
    uint8_t kind[4] = {t->dtype, t->ndim, (uint8_t)t->device.type,
                       brg__requires_grad(t)};
    BRG_TRY(put(key, kind, sizeof kind));
    BRG_TRY(put(key, t->shape, t->ndim * sizeof *t->shape));
    return put(key, t->stride, t->ndim * sizeof *t->stride);
}

static brg_status put_result(brg__bytes *key, const brg__result *r)
{
    int what[3] = {r->from, r->index, r->requires_grad};
    BRG_TRY(put(key, what, sizeof what));
    for (size_t k = 0; k < r->views.n; k++) {
        BRG_TRY(put(key, &r->views.at[k].op, sizeof r->views.at[k].op));
        BRG_TRY(put(key, &r->views.at[k].attrs, sizeof(brg_attrs)));
    }
    return BRG_OK;
}

static brg_status make_key(pieces *p)
{
    const brg__captured *c = &p->captured;
    brg__bytes *key = &p->f->key;
    uint64_t thread = brg__this_thread();
    key->n = 0;
    BRG_TRY(put(key, &thread, sizeof thread));
    for (size_t i = 0; i < p->t.piece_inputs.n; i++)
        BRG_TRY(put_input(key, p->t.piece_inputs.at[i]));
    BRG_TRY(put_plan(key, &c->forward));
    BRG_TRY(put_plan(key, &c->backward));
    for (size_t i = 0; i < c->results.n; i++)
        BRG_TRY(put_result(key, &c->results.at[i]));
    for (size_t k = 0; k < c->kept.n; k++) {
        int what[2] = {c->kept.at[k].value, c->kept.at[k].is_shape};
        BRG_TRY(put(key, what, sizeof what));
    }
    for (size_t i = 0; i < c->edges.n; i++)
        BRG_TRY(put(key, &c->edges.at[i].input, sizeof(int)));
    return BRG_OK;
}

/* ---- Finding or making its segment ---------------------------------------------------------- */

/* Pieces that differ in sizes only: the first is for its sizes, the next one's
 * id is that of all others. */
static void name_piece(brg__function *f, brg__variant *fresh)
{
    bool has_sibling = false;
    for (size_t i = 0; i < f->pieces.n; i++) {
        const brg__variant *v = &f->pieces.at[i];
        if (v == fresh || !brg__segment_is_like(v->segment, fresh->segment))
            continue;
        has_sibling = true;
        if (v->is_dynamic) {
            fresh->segment->id = v->segment->id;
            fresh->is_dynamic = true;
            return;
        }
    }
    fresh->segment->id = brg__next_segment_id();
    fresh->is_dynamic = f->is_all_dynamic || has_sibling;
}

static brg_status add_piece(pieces *p, brg__segment **out)
{
    brg__function *f = p->f;
    brg__variant fresh = {.last_use = ++f->clock};
    BRG_TRY(brg__segment_adopt(&fresh.segment, &p->captured,
                               p->t.piece_inputs.at, p->t.piece_inputs.n,
                               f->backend));
    brg_status status = put(&fresh.key, f->key.at, f->key.n);
    if (status == BRG_OK)
        status = brg__array_push(&f->pieces, fresh);
    if (status != BRG_OK) {
        brg__variant_clear(&fresh);
        return status;
    }
    name_piece(f, &f->pieces.at[f->pieces.n - 1]);
    p->n_made++;
    *out = fresh.segment;
    return BRG_OK;
}

static void drop_oldest(brg__function *f)
{
    size_t oldest = 0;
    if (f->pieces.n < BRG__MAX_PIECES)
        return;
    for (size_t i = 1; i < f->pieces.n; i++)
        if (f->pieces.at[i].last_use < f->pieces.at[oldest].last_use)
            oldest = i;
    brg__variant_clear(&f->pieces.at[oldest]);
    f->pieces.at[oldest] = f->pieces.at[--f->pieces.n];
}

/* Retained. */
static brg_status find_piece(pieces *p, brg__segment **out)
{
    brg__function *f = p->f;
    pthread_mutex_lock(&f->lock);
    brg_status status = make_key(p);
    *out = NULL;
    for (size_t i = 0; status == BRG_OK && i < f->pieces.n && !*out; i++) {
        brg__variant *v = &f->pieces.at[i];
        if (v->key.n == f->key.n &&
            memcmp(v->key.at, f->key.at, f->key.n) == 0 &&
            !v->segment->is_running) {
            v->last_use = ++f->clock;
            *out = v->segment;
        }
    }
    if (status == BRG_OK && !*out) {
        drop_oldest(f);
        status = add_piece(p, out);
    }
    if (status == BRG_OK)
        brg__segment_retain(*out);
    pthread_mutex_unlock(&f->lock);
    return status;
}

/* ---- Running it -------------------------------------------------------------------------------- */

typedef BRG__ARRAY(brg_tensor *) tensor_list;

/* Symbols that somebody beside the capture holds. */
static brg_status list_live(const pieces *p, tensor_list *live)
{
    for (size_t i = 0; i < p->t.symbols.n; i++) {
        const brg__symbol *s = &p->t.symbols.at[i];
        if (!s->input && brg__ref_count(&s->tensor->refs) > 1)
            BRG_TRY(brg__array_push(live, s->tensor));
    }
    return BRG_OK;
}

/* The symbol's object becomes the result, whose own goes with the scope. */
static void become(brg_tensor *symbol, brg_tensor *result)
{
    brg_tensor kept;
    int32_t n_symbol = brg__ref_count(&symbol->refs);
    int32_t n_result = brg__ref_count(&result->refs);
    memcpy(&kept, symbol, sizeof kept);
    memcpy(symbol, result, sizeof kept);
    memcpy(result, &kept, sizeof kept);
    atomic_store(&symbol->refs.n, n_symbol);
    atomic_store(&result->refs.n, n_result);
    result->symbol = NULL;
}

/* Views among them are parts of what became of their bases. */
static void keep_bases(const tensor_list *live, brg_tensor *const *results)
{
    for (size_t i = 0; i < live->n; i++) {
        brg_tensor *view = live->at[i], *base = view->base;
        for (size_t j = 0; base && j < live->n; j++) {
            if (results[j] != base)
                continue;
            view->base = brg_retain(live->at[j]);
            brg_release(base);
            break;
        }
    }
}

/* Random numbers are those that its ops drew when they were written down. */
static brg_status run_segment(pieces *p, brg__segment *segment,
                              brg_tensor **results, size_t n)
{
    brg_random_state after;
    brg_random_get_state(&after);
    if (p->t.draws.n > 0) {
        const brg_attrs *first = &p->t.draws.at[0];
        brg__random_set_state(
            &(brg_random_state){(uint64_t)first->i[0], (uint64_t)first->i[1]});
    }
    /* What is recorded was decided when it was written down. */
    (void)brg_grad_mode_set(true);
    brg_status status = brg__segment_run(segment, p->t.piece_inputs.at,
                                         p->t.piece_inputs.n, results, n);
    brg__random_set_state(&after);
    return status;
}

static brg_status run_piece(pieces *p, const tensor_list *live)
{
    brg__segment *segment;
    BRG_TRY(find_piece(p, &segment));
    brg_tensor **results = brg__mem_alloc_array(live->n + 1, sizeof *results,
                                                "results of a piece");
    brg_status status = results ? BRG_OK : BRG_ERR_NOMEM;
    leave(p);
    if (status == BRG_OK)
        status = run_segment(p, segment, results, live->n);
    enter(p);
    for (size_t i = 0; status == BRG_OK && i < live->n; i++)
        become(live->at[i], results[i]);
    if (status == BRG_OK)
        keep_bases(live, results);
    brg__mem_free(results);
    brg__segment_release(segment);
    return status;
}

static brg_status flush_piece(pieces *p)
{
    tensor_list live = {0};
    brg_status status = list_live(p, &live);
    p->call.n_outputs = live.n;
    if (status == BRG_OK && live.n > 0)
        status = brg__trace_segment(&p->t, live.at);
    if (status == BRG_OK)
        status = brg__ir_verify(&p->captured.forward);
    if (status == BRG_OK && live.n > 0)
        status = run_piece(p, &live);
    brg__array_deinit(&live);
    return status;
}

static brg_status flush(brg__tracer *self)
{
    pieces *p = pieces_of(self);
    if (p->is_broken)
        return breaks(p);
    if (p->is_flushing || p->captured.forward.nodes.n == 0)
        return BRG_OK;
    p->is_flushing = true;
    bool mode = brg_grad_mode();
    brg_status status = flush_piece(p);
    (void)brg_grad_mode_set(mode);
    p->is_flushing = false;
    begin_piece(p);
    return status == BRG_OK ? BRG_OK : breaks(p);
}

/* ---- The tracer's other calls --------------------------------------------------------------------- */

/* Its gradient is no plan's. */
static bool has_sparse_gradient(const brg_op_call *call)
{
    return call->op == &brg__op_embedding_with && call->attrs->i[1];
}

static size_t n_live(const pieces *p)
{
    size_t n = 0;
    for (size_t i = 0; i < p->t.symbols.n; i++)
        n += brg__ref_count(&p->t.symbols.at[i].tensor->refs) > 1;
    return n;
}

/* A node has so many gradients, in and out, and no more. What is live is counted
 * now and then; a function's call, which is not recorded, stays in one piece. */
static bool is_full(const pieces *p)
{
    const size_t n = p->captured.forward.nodes.n;
    if (p->is_flushing || !brg_grad_mode() || n == 0)
        return false;
    return p->t.piece_inputs.n + BRG_MAX_OP_INPUTS > BRG__MAX_SLOTS ||
           (n % 32 == 0 && n_live(p) > BRG__MAX_SLOTS * 3 / 4);
}

static brg_status emit(brg__emitter *self, brg_op_call *call)
{
    pieces *p = (pieces *)self;
    brg_tensor *const *in = call->in;
    if (p->is_broken)
        return breaks(p);
    if (is_full(p))
        BRG_TRY(flush(&p->t.tracer));
    size_t n = p->t.ir->nodes.n;
    brg_status status = has_sparse_gradient(call) ? BRG_ERR_UNSUPPORTED
                                                  : brg__trace_op(&p->t, call);
    bool is_half = status != BRG_OK && p->t.ir->nodes.n > n;
    if (is_half && !p->is_flushing)
        return breaks(p);
    if (status != BRG_ERR_UNSUPPORTED || p->is_flushing)
        return status;
    call->in = in; /* it runs now, by itself */
    BRG_TRY(flush(&p->t.tracer));
    leave(p);
    status = brg__eager_emitter.emit(&brg__eager_emitter, call);
    resume(&p->t.tracer);
    return status;
}

static brg_status defer(brg__tracer *self, const brg__effect *effect)
{
    pieces *p = pieces_of(self);
    BRG_TRY(flush(self));
    leave(p);
    brg_status status = effect->run(effect, effect->in);
    resume(self);
    return status;
}

static brg_status call_now(brg__tracer *self, const brg__traced_region *region,
                           brg_tensor *const *in, brg_tensor **out)
{
    (void)self;
    (void)in;
    (void)out;
    return BRG_FAIL(BRG_ERR_INTERNAL, "%s: a piece has no regions",
                    region->name);
}

static void refuse(brg__tracer *self)
{
    (void)self; /* the failure itself says it */
}

/* ---- The call ------------------------------------------------------------------------------------------ */

brg_status brg__pieces_call(brg__function *f, const brg__traced_call *call,
                            brg_tensor **outputs, uint64_t *n_made)
{
    pieces *p = BRG__NEW(pieces);
    if (!p)
        return BRG_ERR_NOMEM;
    p->t = (brg__tracing){.emitter.emit = emit,
                          .tracer = {.defer = defer,
                                     .call = call_now,
                                     .flush = flush,
                                     .suspend = suspend,
                                     .resume = resume,
                                     .refuse = refuse},
                          .runner.run = brg__trace_backward,
                          .captured = &p->captured,
                          .call = &p->call,
                          .is_piece = true};
    p->f = f;
    begin_piece(p);
    enter(p);
    brg_status status = call->fn(call->inputs, call->n_inputs, outputs,
                                 call->n_outputs, call->user);
    BRG_EXPLAIN(status, "the function");
    if (brg__tracer_now == &p->t.tracer) {
        if (status == BRG_OK)
            status = flush(&p->t.tracer);
        leave(p);
    } else { /* it left pack hooks in force */
        brg__pack_hooks_forget(&p->t.tracer);
    }
    begin_piece(p);
    *n_made += p->n_made;
    brg__mem_free(p);
    return status;
}
