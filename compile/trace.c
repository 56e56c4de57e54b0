/* SPDX-License-Identifier: Apache-2.0
 * Capturing a function: see trace.h. */
#include "compile/trace.h"

#include <string.h>

#include <brigade/random.h>

#include "compile/capture.h"
#include "compile/trace_inside.h"
#include "core/autograd/autocast.h"
#include "core/autograd/debug.h"
#include "core/ops/random.h"

/* ---- Symbols --------------------------------------------------------------------- */

brg__symbol *brg__trace_symbol(brg__tracing *t, const brg_tensor *tensor)
{
    uint32_t number = (uint32_t)(uintptr_t)tensor->symbol;
    bool is_own = number > 0 && number <= t->symbols.n &&
                  brg__symbol_capture(tensor->symbol) == t->capture;
    return is_own ? &t->symbols.at[number - 1] : NULL;
}

static bool is_shape(const brg_tensor *tensor)
{
    return ((uintptr_t)tensor->symbol & BRG__SYMBOL_SHAPE) != 0;
}

/* A value of the plan that is being written, and the tensor that stands for
 * it; borrowed from the trace. */
brg_status brg__trace_new(brg__tracing *t, brg__ir_value value,
                          const brg__layout *layout, brg_tensor **out)
{
    brg__symbol symbol = {.is_backward = t->is_backward};
    value.dtype = layout->dtype;
    value.ndim = layout->ndim;
    value.ones = brg__ir_ones(layout);
    t->ir->is_loose |= layout->device.type != BRG_DEVICE_CPU;
    t->ir->is_there = t->ir->is_loose;
    BRG_TRY(brg__tensor_new_view(&symbol.tensor, layout, NULL));
    brg_status status = brg__array_push(&t->symbols, symbol);
    if (status != BRG_OK) {
        brg_release(symbol.tensor);
        return status;
    }
    brg__symbol *placed = &t->symbols.at[t->symbols.n - 1];
    BRG_TRY(brg__ir_add_value(t->ir, &value, &placed->value));
    placed->tensor->symbol = brg__symbol_of((uint32_t)t->symbols.n, t->capture);
    *out = placed->tensor;
    return BRG_OK;
}

static brg_status mark_leaf(brg_tensor *symbol)
{
    brg__autograd *a;
    BRG_TRY(brg__autograd_get(symbol, &a));
    a->requires_grad = true;
    return BRG_OK;
}

/* An input of the function that it reads by its address: one tensor, one
 * symbol. The plan is for calls with this input, then. */
static brg_status known_input(brg__tracing *t, brg_tensor *real,
                              brg_tensor **out)
{
    brg__captured *c = t->captured;
    *out = NULL;
    for (size_t i = 0; !t->is_piece && i < t->inputs.n && !*out; i++) {
        if (t->call->inputs[i] != real)
            continue;
        *out = t->inputs.at[i];
        for (size_t k = 0; k < c->known.n; k++)
            if (c->known.at[k].tensor == real)
                return BRG_OK;
        BRG_TRY(brg__array_push(&c->known, ((brg__known_input){(int)i, real})));
        brg_retain(real);
    }
    return BRG_OK;
}

/* A tensor from outside. Its leaf is a symbol of its own, so that no hook and
 * no gradient of the real one is met while capturing. */
static brg_status constant(brg__tracing *t, brg_tensor *real, brg_tensor **out)
{
    char text[BRG_TENSOR_TEXT_MAX];
    uint32_t at;
    bool is_new;
    BRG_TRY(known_input(t, real, out));
    if (*out)
        return BRG_OK;
    if (real->sparse || (!t->is_piece && !brg_is_leaf(real)))
        return BRG_FAIL(BRG_ERR_UNSUPPORTED,
                        "capture: the function uses %s, which is no input and "
                        "%s: make it an input",
                        brg__tensor_text(real, text),
                        real->sparse ? "sparse"
                                     : "was computed from tensors "
                                       "that require gradients");
    BRG_TRY(
        brg__map_put(&t->index, real, (uint32_t)t->constants.n, &at, &is_new));
    if (is_new)
        BRG_TRY(brg__array_push(&t->constants, NULL));
    *out = t->constants.at[at];
    if (*out)
        return BRG_OK;
    brg__layout layout = brg__layout_from_start(real);
    brg__ir_value value = {.source = BRG__IR_FROM_CONST, .constant = real};
    if (t->is_piece)
        value = (brg__ir_value){.source = BRG__IR_FROM_INPUT,
                                .index = (int)t->piece_inputs.n};
    BRG_TRY(brg__trace_new(t, value, &layout, out));
    if (t->is_piece) {
        BRG_TRY(brg__array_push(&t->piece_inputs, real));
        brg__trace_symbol(t, *out)->input = (int)t->piece_inputs.n;
        t->ir->n_inputs = (int)t->piece_inputs.n;
    } else {
        brg__trace_symbol(t, *out)->real = real;
    }
    brg_retain(real); /* the IR's, or the list's */
    t->constants.at[at] = *out;
    return brg__requires_grad(real) ? mark_leaf(*out) : BRG_OK;
}

void brg__trace_forget_constants(brg__tracing *t)
{
    for (size_t i = 0; i < t->constants.n; i++)
        t->constants.at[i] = NULL;
    brg__autocast_forget();
}

/* The backward reads a value of the forward: one more thing to keep. */
static brg_status keep(brg__tracing *t, brg__symbol *symbol, bool only_shape,
                       int *id)
{
    brg__captured *c = t->captured;
    for (size_t k = 0; k < c->kept.n; k++)
        if (c->kept.at[k].value == symbol->value) {
            c->kept.at[k].is_shape &= only_shape;
            *id = t->kept_values.at[k];
            return BRG_OK;
        }
    brg__kept kept = {symbol->value, only_shape, NULL, BRG__IR_NONE};
    brg__ir_value value = {.source = BRG__IR_FROM_INPUT,
                           .index = c->n_slots + (int)c->kept.n};
    brg__layout layout = brg__layout_from_start(symbol->tensor);
    brg_tensor *inside;
    BRG_TRY(brg__array_push(&c->kept, kept));
    BRG_TRY(brg__trace_new(t, value, &layout, &inside));
    *id = brg__trace_symbol(t, inside)->value;
    return brg__array_push(&t->kept_values, *id);
}

/* Only the shape of a value in the same plan, which is for these sizes: a
 * constant without memory, so that the value may go. */
static brg_status shape_only(brg__tracing *t, const brg_tensor *tensor, int *id)
{
    brg_tensor *meta, *inside;
    brg__layout layout = brg__layout_from_start(tensor);
    BRG_TRY(brg__tensor_new_view(&meta, &layout, NULL));
    brg__ir_value value = {.source = BRG__IR_FROM_CONST, .constant = meta};
    brg_status status = brg__trace_new(t, value, &layout, &inside);
    if (status != BRG_OK)
        brg_release(meta);
    else
        *id = brg__trace_symbol(t, inside)->value;
    return status;
}

brg_status brg__trace_operand(brg__tracing *t, brg_tensor **tensor, int *id)
{
    *id = BRG__IR_NONE;
    if (!*tensor)
        return BRG_OK;
    if (!(*tensor)->symbol && brg__tensor_is_meta(*tensor))
        return shape_only(t, *tensor, id);
    if (!(*tensor)->symbol)
        BRG_TRY(constant(t, *tensor, tensor));
    brg__symbol *symbol = brg__trace_symbol(t, *tensor);
    if (!symbol)
        return brg__symbol_is_left(BRG_ERR_UNSUPPORTED, "capture", *tensor);
    if (symbol->is_backward != t->is_backward)
        return keep(t, symbol, is_shape(*tensor), id);
    if (is_shape(*tensor) && !t->is_backward)
        return shape_only(t, *tensor, id);
    *id = symbol->value;
    return BRG_OK;
}

/* ---- Ops ---------------------------------------------------------------------------- */

/* A random op that repeats numbers drawn before (the gradient of a dropout)
 * shares the draw; any other draws its own each time the plan runs. */
static brg_status find_draw(brg__tracing *t, const brg_op_call *call,
                            brg__ir_node *node)
{
    bool draws = call->op == &brg__op_dropout;
    if (!draws && call->op != &brg__op_dropout_grad)
        return BRG_OK;
    for (size_t k = 0; k < t->draws.n; k++)
        if (memcmp(&t->draws.at[k], call->attrs, sizeof *call->attrs) == 0) {
            node->draw = (int)k + 1;
            return BRG_OK;
        }
    if (!draws || t->is_backward)
        return BRG_FAIL(BRG_ERR_UNSUPPORTED,
                        "capture: a backward draws random numbers");
    BRG_TRY(brg__array_push(&t->draws, *call->attrs));
    node->draw = (int)t->draws.n;
    node->is_drawing = true;
    node->n_drawn = call->in[0]->numel;
    return BRG_OK;
}

brg_status brg__trace_op(brg__tracing *t, brg_op_call *call)
{
    int in[BRG_MAX_OP_INPUTS];
    brg__ir_node node = {.kind = BRG__IR_OP,
                         .op = call->op,
                         .attrs = *call->attrs,
                         .lifted = BRG__IR_NONE,
                         .visit = BRG__IR_NONE,
                         .n_out = call->n_out};
    BRG_TRY(brg__capture_point());
    for (int i = 0; i < call->n_in; i++)
        t->in[i] = call->in[i];
    call->in = t->in; /* symbols, what they were or not */
    for (int i = 0; i < call->n_in; i++)
        BRG_TRY(brg__trace_operand(t, &t->in[i], &in[i]));
    memset(call->info, 0, (size_t)call->n_out * sizeof *call->info);
    BRG_TRY(call->op->infer(call));
    for (int j = 0; j < call->n_out; j++)
        if (call->info[j].is_sparse)
            return BRG_FAIL(BRG_ERR_UNSUPPORTED,
                            "capture: %s makes a sparse tensor",
                            call->op->name);
    BRG_TRY(find_draw(t, call, &node));
    BRG_TRY(brg__ir_add_node(t->ir, &node, in, call->n_in));
    int at = (int)t->ir->nodes.n - 1;
    for (int j = 0; j < call->n_out; j++) {
        brg__ir_value value = {.source = BRG__IR_FROM_NODE, .node = at};
        brg__layout layout =
            brg__out_layout(&call->info[j], brg__call_device(call));
        BRG_TRY(brg__trace_new(t, value, &layout, &call->out[j]));
        call->out[j] = brg__scope_adopt(brg_retain(call->out[j]));
        if (!call->out[j])
            return brg_error_code();
    }
    return BRG_OK;
}

static void refuse(brg__tracer *self)
{
    brg__tracing *t = brg__tracing_of(self);
    if (!t->is_refused)
        brg__error_save(&t->refusal);
    t->is_refused = true;
}

static brg_status emit(brg__emitter *self, brg_op_call *call)
{
    brg__tracing *t = (brg__tracing *)self;
    brg_status status = brg__trace_op(t, call);
    if (status == BRG_ERR_UNSUPPORTED)
        refuse(&t->tracer);
    return status;
}

/* ---- What is no op -------------------------------------------------------------------- */

static brg_status copy_effect(brg__tracing *t, const brg__effect *effect,
                              brg__effect **out)
{
    *out = BRG__NEW(brg__effect);
    if (!*out)
        return BRG_ERR_NOMEM;
    **out = *effect;
    (*out)->in = NULL;
    brg_status status = brg__array_push(&t->captured->effects, *out);
    if (status != BRG_OK)
        brg__mem_free(*out);
    else
        brg_retain((*out)->target);
    return status;
}

brg_status brg__trace_effect(brg__tracing *t, const brg__effect *effect)
{
    brg__effect *kept;
    brg_tensor *in = effect->in;
    int id;
    BRG_TRY(brg__capture_point());
    BRG_TRY(copy_effect(t, effect, &kept));
    BRG_TRY(brg__trace_operand(t, &in, &id));
    brg__ir_node node = {.kind = BRG__IR_EFFECT,
                         .effect = kept,
                         .lifted = BRG__IR_NONE,
                         .visit = BRG__IR_NONE};
    BRG_TRY(brg__ir_add_node(t->ir, &node, &id, 1));
    brg__trace_forget_constants(t);
    return BRG_OK;
}

static brg_status defer(brg__tracer *self, const brg__effect *effect)
{
    brg__tracing *t = brg__tracing_of(self);
    if (t->is_backward)
        return brg__tracer_refuse(effect->name,
                                  "a hook of the function calls it");
    brg_status status = brg__trace_effect(t, effect);
    if (status == BRG_ERR_UNSUPPORTED)
        refuse(self);
    return status;
}

/* The engine asks whether what an op saved is still what it was. */
static uint32_t version(brg__tracer *self, const brg_tensor *tensor)
{
    brg__tracing *t = brg__tracing_of(self);
    const brg_tensor *real = brg__trace_outside(t, tensor);
    uint32_t n = 0;
    for (size_t i = 0; real && i < t->captured->effects.n; i++) {
        const brg__effect *e = t->captured->effects.at[i];
        n += (e->target && brg_tensor_shares_storage(e->target, real)) ||
             (e->changes && e->changes(e, real));
    }
    return n;
}

brg_status brg__trace_bring(brg__tracer *self, brg_tensor **tensor)
{
    brg__tracing *t = brg__tracing_of(self);
    if (!*tensor || (*tensor)->symbol || brg__tensor_is_meta(*tensor))
        return BRG_OK;
    brg_status status = constant(t, *tensor, tensor);
    if (status == BRG_ERR_UNSUPPORTED)
        self->refuse(self);
    return status;
}

brg_status brg__trace_output(brg__tracing *t, brg_tensor *tensor, int slot)
{
    int id;
    BRG_TRY(brg__capture_point());
    BRG_TRY(brg__trace_operand(t, &tensor, &id));
    brg__ir_node node = {.kind = BRG__IR_OUTPUT,
                         .slot = slot,
                         .lifted = BRG__IR_NONE,
                         .visit = BRG__IR_NONE};
    return brg__ir_add_node(t->ir, &node, &id, 1);
}

/* ---- The call --------------------------------------------------------------------------- */

static brg_status make_inputs(brg__tracing *t, const brg__traced_call *call)
{
    for (size_t i = 0; i < call->n_inputs; i++) {
        brg_tensor *real = call->inputs[i], *symbol = NULL;
        for (size_t k = 0; k < i; k++)
            if (call->inputs[k] == real)
                symbol = t->inputs.at[k];
        if (real && !symbol) {
            brg__layout layout = brg__layout_from_start(real);
            brg__ir_value value = {.source = BRG__IR_FROM_INPUT,
                                   .index = (int)i};
            BRG_TRY(brg__trace_new(t, value, &layout, &symbol));
            brg__trace_symbol(t, symbol)->input = (int)i + 1;
            if (brg__requires_grad(real))
                BRG_TRY(mark_leaf(symbol));
        }
        BRG_TRY(brg__array_push(&t->inputs, symbol));
    }
    t->ir->n_inputs = (int)call->n_inputs;
    return BRG_OK;
}

static brg_status call_function(brg__tracing *t, const brg__traced_call *call,
                                brg_tensor **outputs)
{
    BRG_TRY(make_inputs(t, call));
    BRG_TRY(brg__capture_point());
    brg_status status = call->fn(t->inputs.at, call->n_inputs, outputs,
                                 call->n_outputs, call->user);
    BRG_EXPLAIN(status, "the function");
    if (t->is_refused) {
        brg__error_restore(&t->refusal);
        return BRG_ERR_UNSUPPORTED;
    }
    if (status != BRG_OK)
        return status;
    BRG_TRY(brg__capture_point());
    return t->captured->is_step ? brg__trace_step_results(t, outputs)
                                : brg__trace_segment(t, outputs);
}

/* What the thread has in force besides: put away during the capture. */
typedef struct surroundings {
    brg__emitter *emitter;
    brg__tracer *tracer;
    brg__runner *runner;
    brg__pack_hooks *pack;
    brg_random_state random;
    bool mode;
    bool is_paused; /* observers */
} surroundings;

static void enter(brg__tracing *t, surroundings *before)
{
    before->emitter = brg__emitter_set(&t->emitter);
    before->tracer = brg__tracer_now;
    brg__tracer_now = &t->tracer;
    before->runner = brg__runner_set(&t->runner);
    before->pack = brg__pack_hooks_swap(NULL);
    before->mode = brg_grad_mode();
    before->is_paused = brg__observers_pause(true);
    brg__autocast_forget();
    brg_random_get_state(&before->random);
}

static void leave(const surroundings *before)
{
    brg__autocast_forget();
    brg__random_set_state(&before->random);
    (void)brg__observers_pause(before->is_paused);
    (void)brg_grad_mode_set(before->mode);
    brg__pack_hooks_swap(before->pack);
    brg__runner_set(before->runner);
    brg__tracer_now = before->tracer;
    brg__emitter_set(before->emitter);
}

void brg__tracing_deinit(brg__tracing *t)
{
    for (size_t i = 0; i < t->symbols.n; i++)
        brg_release(t->symbols.at[i].tensor);
    brg__array_deinit(&t->symbols);
    brg__array_deinit(&t->constants);
    brg__array_deinit(&t->inputs);
    brg__array_deinit(&t->draws);
    brg__array_deinit(&t->kept_values);
    for (size_t i = 0; i < t->piece_inputs.n; i++)
        brg_release(t->piece_inputs.at[i]);
    brg__array_deinit(&t->piece_inputs);
    brg__map_deinit(&t->index);
}

static _Atomic uint64_t n_captures;

brg_status brg__trace(brg__captured *out, const brg__traced_call *call)
{
    brg__tracing t = {.emitter.emit = emit,
                      .capture = brg__new_capture(),
                      .tracer = {.id = atomic_fetch_add(&n_captures, 1) + 1,
                                 .defer = defer,
                                 .call = brg__trace_call,
                                 .bring = brg__trace_bring,
                                 .trial_begin = brg__trace_trial_begin,
                                 .trial_end = brg__trace_trial_end,
                                 .version = version,
                                 .refuse = refuse},
                      .runner.run = brg__trace_backward,
                      .captured = out,
                      .call = call,
                      .ir = &out->forward};
    surroundings before;
    brg_tensor **outputs =
        brg__mem_alloc_array(call->n_outputs + 1, sizeof *outputs, "results");
    brg_scope *scope = outputs ? brg_scope_begin() : NULL;
    if (!scope) {
        brg__mem_free(outputs);
        return BRG_ERR_NOMEM;
    }
    enter(&t, &before);
    brg_status status = call_function(&t, call, outputs);
    if (status == BRG_ERR_MODIFIED) /* of which only a backward may speak */
        status = BRG_ERR_UNSUPPORTED;
    brg_scope_end(scope);
    leave(&before);
    brg__tracing_deinit(&t);
    brg__mem_free(outputs);
    if (status == BRG_OK)
        status = brg__ir_verify(&out->forward);
    return status == BRG_OK ? brg__ir_verify(&out->backward) : status;
}

void brg__captured_deinit(brg__captured *c)
{
    for (size_t i = 0; i < c->results.n; i++)
        brg__array_deinit(&c->results.at[i].views);
    for (size_t i = 0; i < c->effects.n; i++) {
        brg_release(c->effects.at[i]->target);
        brg__mem_free(c->effects.at[i]);
    }
    for (size_t k = 0; k < c->kept.n; k++)
        brg_release(c->kept.at[k].shape);
    for (size_t i = 0; i < c->known.n; i++)
        brg_release(c->known.at[i].tensor);
    brg__array_deinit(&c->known);
    for (size_t i = 0; i < c->regions.n; i++)
        brg__mem_free(c->regions.at[i]);
    brg__array_deinit(&c->regions);
    brg__array_deinit(&c->results);
    brg__array_deinit(&c->bases);
    brg__array_deinit(&c->kept);
    brg__array_deinit(&c->edges);
    brg__array_deinit(&c->reductions);
    brg__array_deinit(&c->first_reduction);
    brg__array_deinit(&c->members);
    brg__array_deinit(&c->effects);
    brg__ir_deinit(&c->forward);
    brg__ir_deinit(&c->backward);
}
