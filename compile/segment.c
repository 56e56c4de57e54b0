/* SPDX-License-Identifier: Apache-2.0
 * Segments: making and running them. See segment.h. */
#include "compile/segment.h"

#include <string.h>

#include "compile/aliases.h"
#include "compile/anomaly.h"
#include "compile/passes/passes.h"
#include "compile/relaunch.h"
#include "core/autograd/autocast.h"
#include "core/base/error.h"

#include <brigade/ops.h>

/* ---- Making ---------------------------------------------------------------------- */

static brg_status begin_backward(const brg__effect *effect, brg_tensor *in)
{
    (void)in;
    brg__segment *s = effect->object;
    const brg__captured *c = &s->captured;
    size_t k = s->n_backwards++, end = k + 1 < c->first_reduction.n
                                           ? c->first_reduction.at[k + 1]
                                           : c->reductions.n;
    BRG_TRY(brg__task_enter(&s->task));
    s->is_in_backward = true;
    for (size_t i = c->first_reduction.at[k]; i < end; i++) {
        const brg__reduction *r = &c->reductions.at[i];
        BRG_TRY(r->ops->begin(r->self));
        if (s->is_closed)
            r->ops->expect(r->self, c->members.at, c->members.n, (int)i);
    }
    return brg__anomaly_before(&s->task);
}

static brg_status end_backward(const brg__effect *effect, brg_tensor *in)
{
    (void)in;
    brg__segment *s = effect->object;
    s->is_in_backward = false;
    return brg__task_leave(&s->task, brg__anomaly_after(&s->task));
}

/* What both leave is noted and told by reducers. */
static brg_status again(const brg__effect *effect, brg__relaunch *launch)
{
    (void)effect;
    (void)launch;
    return BRG_OK;
}

static brg_status note_constants(brg__segment *s)
{
    const brg__ir *ir = &s->captured.forward;
    s->requires_grad =
        brg__mem_alloc_array(ir->values.n + 1, 1, "a segment's constants");
    if (!s->requires_grad)
        return BRG_ERR_NOMEM;
    for (size_t id = 0; id < ir->values.n; id++)
        s->requires_grad[id] = brg_requires_grad(ir->values.at[id].constant);
    return BRG_OK;
}

static brg_status give_inputs(brg__segment *s, brg_tensor *const *inputs,
                              size_t n)
{
    brg__collected_clear(&s->given);
    BRG_TRY(brg__array_reserve(&s->given.inputs, n));
    for (size_t i = 0; i < n; i++)
        s->given.inputs.at[s->given.inputs.n++] = brg_retain(inputs[i]);
    n = s->captured.reductions.n;
    BRG_TRY(brg__array_reserve(&s->given.reductions, n));
    for (size_t i = 0; i < n; i++)
        s->given.reductions.at[s->given.reductions.n++] =
            s->captured.reductions.at[i];
    return BRG_OK;
}

static brg_status make_ready(brg__segment *s, brg_tensor *const *inputs,
                             size_t n_inputs, brg_compile_backend backend)
{
    brg__captured *c = &s->captured;
    if (backend != BRG_COMPILE_BACKEND_EAGER || c->is_step)
        BRG_TRY(brg__passes_run(&c->forward, backend));
    s->is_closed = brg__ir_is_closed(&c->forward);
    BRG_TRY(note_constants(s));
    s->outputs = brg__mem_alloc_array(
        (size_t)c->n_outputs + 1, sizeof *s->outputs, "a segment's results");
    s->draws = brg__mem_alloc_array((size_t)c->n_draws + 1, sizeof *s->draws,
                                    "a segment's random numbers");
    if (!s->outputs || !s->draws)
        return BRG_ERR_NOMEM;
    s->io = (brg__run_io){.outputs = s->outputs, .draws = s->draws};
    BRG_TRY(give_inputs(s, inputs, n_inputs));
    BRG_TRY(brg__exec_create(&s->forward, &c->forward, &s->task, &s->given));
    s->forward->io = &s->io;
    brg__collected_clear(&s->given);
    return BRG_OK;
}

static brg_status mark_leaf(brg_tensor *leaf, uint64_t mark)
{
    brg_node *node;
    BRG_TRY(brg__accumulate_node(&node, leaf));
    pthread_mutex_lock(&node->lock);
    brg__mark_gradient(node, mark);
    pthread_mutex_unlock(&node->lock);
    brg_node_release(node);
    return BRG_OK;
}

static brg_status find_reads(const brg__segment *s, brg_tensor *const *inputs,
                             bool *reads)
{
    const brg__captured *c = &s->captured;
    uint64_t mark = brg__mark_new();
    *reads = false;
    for (size_t i = 0; i < c->edges.n; i++)
        BRG_TRY(mark_leaf(brg__leaf_of(&c->edges.at[i], inputs), mark));
    for (int i = 0; i < c->forward.n_inputs; i++)
        *reads |= brg__is_marked(inputs[i], mark);
    for (size_t id = 0; id < c->forward.values.n; id++)
        *reads |= brg__is_marked(c->forward.values.at[id].constant, mark);
    return BRG_OK;
}

static brg_status refuse_reads(const brg__segment *s, brg_tensor *const *inputs)
{
    bool reads;
    if (!s->captured.is_step)
        return BRG_OK;
    BRG_TRY(find_reads(s, inputs, &reads));
    return reads
               ? BRG_FAIL(BRG_ERR_UNSUPPORTED, "capture: " BRG__READS_GRADIENT)
               : BRG_OK;
}

static brg_status new_segment(brg__segment **out)
{
    brg__segment *s = BRG__NEW(brg__segment);
    *out = s;
    if (!s)
        return BRG_ERR_NOMEM;
    brg__ref_init(&s->refs);
    pthread_mutex_init(&s->lock, NULL);
    return BRG_OK;
}

static brg_status finish(brg__segment **out, brg__segment *s, brg_status status)
{
    if (status == BRG_OK)
        *out = s;
    else
        brg__segment_release(s);
    return status;
}

brg_status brg__segment_create(brg__segment **out, const brg__traced_call *call,
                               brg_compile_backend backend)
{
    brg__segment *s;
    *out = NULL;
    BRG_TRY(new_segment(&s));
    brg__traced_call traced = *call;
    traced.backward_begin = (brg__effect){.name = "backward_begin",
                                          .run = begin_backward,
                                          .relaunch = again,
                                          .object = s};
    traced.backward_end = (brg__effect){.name = "backward_end",
                                        .run = end_backward,
                                        .relaunch = again,
                                        .object = s,
                                        .ends_backward = true};
    brg_status status = brg__trace(&s->captured, &traced);
    if (status == BRG_OK)
        status = refuse_reads(s, call->inputs);
    if (status == BRG_OK)
        status = make_ready(s, call->inputs, call->n_inputs, backend);
    return finish(out, s, status);
}

brg_status brg__segment_adopt(brg__segment **out, brg__captured *captured,
                              brg_tensor *const *inputs, size_t n_inputs,
                              brg_compile_backend backend)
{
    brg__segment *s;
    *out = NULL;
    BRG_TRY(new_segment(&s));
    s->captured = *captured;
    *captured = (brg__captured){0};
    return finish(out, s, make_ready(s, inputs, n_inputs, backend));
}

void brg__segment_retain(brg__segment *s)
{
    brg__ref_retain(&s->refs);
}

void brg__segment_release(brg__segment *s)
{
    if (!s || !brg__ref_release(&s->refs))
        return;
    brg__relauncher_destroy(s->relauncher);
    brg__exec_destroy(s->forward);
    brg__exec_destroy(s->backward);
    brg__captured_deinit(&s->captured);
    brg__collected_deinit(&s->given);
    brg__collected_deinit(&s->given_back);
    brg__array_deinit(&s->task.visits);
    brg__array_deinit(&s->task.callbacks);
    brg__map_deinit(&s->task.index);
    brg__mem_free(s->outputs);
    brg__mem_free(s->draws);
    brg__mem_free(s->requires_grad);
    pthread_mutex_destroy(&s->lock);
    brg__mem_free(s);
}

/* ---- Questions ---------------------------------------------------------------------- */

static bool is_same_constant(const brg__segment *s, size_t id)
{
    const brg_tensor *now = s->captured.forward.values.at[id].constant;
    const brg_tensor *then = &s->forward->values[id].t;
    if (!now || !now->storage)
        return true;
    return brg_requires_grad(now) == s->requires_grad[id] && brg_is_leaf(now) &&
           now->dtype == then->dtype && now->ndim == then->ndim &&
           memcmp(now->shape, then->shape, now->ndim * sizeof *now->shape) ==
               0 &&
           memcmp(now->stride, then->stride, now->ndim * sizeof *now->stride) ==
               0;
}

static bool is_same_part(const brg__reduction_part *a,
                         const brg__reduction_part *b)
{
    if (!a->ops || !b->ops)
        return a->ops == b->ops;
    return a->ops == b->ops && a->self == b->self && a->version == b->version &&
           a->member == b->member && a->bucket == b->bucket &&
           a->n_in_bucket == b->n_in_bucket && a->divisor == b->divisor;
}

/* A hook that refuses a plan is asked again, and heard, by the next capture. */
static brg__segment_fit leaves_fit(const brg__segment *s,
                                   brg_tensor *const *inputs)
{
    const brg__captured *c = &s->captured;
    for (size_t i = 0; c->is_step && i < c->edges.n; i++) {
        const brg__leaf *leaf = &c->edges.at[i];
        brg__reduction_part now;
        brg_status status = brg__leaf_ask(brg__leaf_of(leaf, inputs), &now);
        if (status == BRG_OK && is_same_part(&leaf->part, &now))
            continue;
        bool is_rebuilt = status == BRG_OK && now.ops && leaf->part.ops &&
                          now.self == leaf->part.self;
        return is_rebuilt ? BRG__SEGMENT_STALE : BRG__SEGMENT_OTHER;
    }
    bool reads = false;
    bool is_known = !c->is_step || find_reads(s, inputs, &reads) == BRG_OK;
    return is_known && !reads ? BRG__SEGMENT_FITS : BRG__SEGMENT_OTHER;
}

/* Inputs are known by their address if they were when it was captured. */
static bool knows_inputs(const brg__segment *s, brg_tensor *const *inputs)
{
    const brg__captured *c = &s->captured;
    for (size_t i = 0; i < c->known.n; i++)
        if (inputs[c->known.at[i].input] != c->known.at[i].tensor)
            return false;
    for (size_t id = 0; id < c->forward.values.n; id++)
        for (int i = 0;
             c->forward.values.at[id].constant && i < c->forward.n_inputs; i++)
            if (inputs[i] == c->forward.values.at[id].constant)
                return false;
    return true;
}

brg__segment_fit brg__segment_fits(const brg__segment *s,
                                   brg_tensor *const *inputs)
{
    for (size_t id = 0; id < s->captured.forward.values.n; id++)
        if (!is_same_constant(s, id))
            return BRG__SEGMENT_STALE;
    return knows_inputs(s, inputs) ? leaves_fit(s, inputs) : BRG__SEGMENT_OTHER;
}

static bool is_same_node(const brg__ir_node *a, const brg__ir_node *b)
{
    return a->kind == b->kind && a->op == b->op && a->draw == b->draw &&
           a->slot == b->slot && a->n_in == b->n_in && a->n_out == b->n_out &&
           a->first_in == b->first_in && a->first_out == b->first_out &&
           (a->draw || memcmp(&a->attrs, &b->attrs, sizeof a->attrs) == 0);
}

static bool is_same_plan(const brg__ir *a, const brg__ir *b)
{
    if (a->nodes.n != b->nodes.n || a->values.n != b->values.n ||
        a->operands.n != b->operands.n)
        return false;
    for (size_t i = 0; i < a->nodes.n; i++)
        if (!is_same_node(&a->nodes.at[i], &b->nodes.at[i]))
            return false;
    for (size_t i = 0; i < a->values.n; i++) {
        const brg__ir_value *v = &a->values.at[i], *w = &b->values.at[i];
        if (v->source != w->source || v->index != w->index ||
            v->dtype != w->dtype || v->ndim != w->ndim ||
            v->constant != w->constant)
            return false;
    }
    return a->operands.n == 0 || memcmp(a->operands.at, b->operands.at,
                                        a->operands.n * sizeof(int)) == 0;
}

bool brg__segment_is_like(const brg__segment *a, const brg__segment *b)
{
    const brg__captured *c = &a->captured, *d = &b->captured;
    bool is_like = c->is_step == d->is_step && c->n_slots == d->n_slots &&
                   c->kept.n == d->kept.n && c->edges.n == d->edges.n &&
                   c->n_draws == d->n_draws &&
                   is_same_plan(&c->backward, &d->backward);
    for (size_t k = 0; is_like && k < c->kept.n; k++)
        is_like = c->kept.at[k].is_shape == d->kept.at[k].is_shape;
    for (size_t i = 0; is_like && i < c->edges.n; i++)
        is_like = c->edges.at[i].input == d->edges.at[i].input &&
                  c->edges.at[i].tensor == d->edges.at[i].tensor;
    return is_like;
}

/* ---- Running -------------------------------------------------------------------------- */

static brg_status find_leaves(brg__segment *s, brg_tensor *const *inputs)
{
    const brg__captured *c = &s->captured;
    s->task.visits.n = 0;
    for (size_t i = 0; c->is_step && i < c->edges.n; i++) {
        brg_tensor *t = brg__leaf_of(&c->edges.at[i], inputs);
        brg__visit visit = {.n_waiting = 1, .is_needed = true};
        BRG_TRY(brg__accumulate_node(&visit.node, t));
        brg_status status = brg__array_push(&s->task.visits, visit);
        if (status != BRG_OK) {
            brg_node_release(visit.node);
            return status;
        }
    }
    return BRG_OK;
}

static void forget_leaves(brg__segment *s)
{
    for (size_t i = 0; i < s->task.visits.n; i++)
        brg_node_release(s->task.visits.at[i].node);
    s->task.visits.n = 0;
}

static _Thread_local int n_running;

bool brg__segment_runs(void)
{
    return n_running > 0;
}

/* The forward plan, with everything off that would meddle with its steps. */
brg_status brg__segment_run_forward(brg__segment *s, brg_tensor *const *inputs,
                                    size_t n_inputs)
{
    memset(s->outputs, 0, (size_t)s->captured.n_outputs * sizeof *s->outputs);
    brg_status status = find_leaves(s, inputs);
    s->n_backwards = 0;
    if (status == BRG_OK)
        status = give_inputs(s, inputs, n_inputs);
    if (status == BRG_OK) {
        bool mode = brg_grad_mode_set(false);
        brg__runner *runner = brg__runner_set(NULL);
        brg_autocast policy = brg__autocast_swap((brg_autocast){0});
        s->is_running = true;
        n_running++;
        status = brg__exec_run(s->forward, &s->task, &s->given);
        n_running--;
        if (s->is_in_backward)
            status = brg__task_leave(&s->task, status);
        s->is_in_backward = s->is_running = false;
        brg__autocast_swap(policy);
        brg__runner_set(runner);
        (void)brg_grad_mode_set(mode);
    }
    brg__collected_clear(&s->given);
    forget_leaves(s);
    return status;
}

static brg_tensor *make_result(const brg__segment *s, const brg__result *r,
                               brg_tensor *const *inputs)
{
    brg_tensor *t = r->from == BRG__RESULT_INPUT   ? inputs[r->index]
                    : r->from == BRG__RESULT_CONST ? r->tensor
                                                   : s->outputs[r->index];
    for (size_t k = 0; t && k < r->views.n; k++) {
        brg_tensor *view[BRG_MAX_OP_OUTPUTS] = {0};
        if (brg_op_apply(r->views.at[k].op, 1, &t, &r->views.at[k].attrs,
                         view) != BRG_OK)
            return NULL;
        t = view[0];
    }
    return t && !r->requires_grad && brg_requires_grad(t) ? brg_detach(t) : t;
}

static brg_status give_results(brg__segment *s, brg_tensor *const *inputs,
                               brg_tensor **outputs, size_t n_outputs)
{
    const brg__captured *c = &s->captured;
    for (int i = 0; i < c->n_outputs; i++)
        if (s->outputs[i] && !(s->outputs[i] = brg__scope_adopt(s->outputs[i])))
            return brg_error_code();
    if (c->n_slots > 0)
        BRG_TRY(brg__segment_record(s, inputs, s->outputs));
    for (size_t j = 0; j < n_outputs; j++) {
        const brg__result *r = &c->results.at[j];
        outputs[j] = NULL;
        if (r->from == BRG__RESULT_NONE)
            continue;
        outputs[j] = make_result(s, r, inputs);
        if (!outputs[j])
            return brg_error_code();
    }
    return BRG_OK;
}

brg_status brg__segment_run(brg__segment *s, brg_tensor *const *inputs,
                            size_t n_inputs, brg_tensor **outputs,
                            size_t n_outputs)
{
    brg_status status = s->relauncher
                            ? brg__relaunch_step(s, inputs, n_inputs)
                            : brg__segment_run_forward(s, inputs, n_inputs);
    if (status != BRG_OK) {
        for (int i = 0; i < s->captured.n_outputs; i++)
            brg_release(s->outputs[i]);
        return status;
    }
    return give_results(s, inputs, outputs, n_outputs);
}
