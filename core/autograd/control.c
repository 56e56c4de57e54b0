/* SPDX-License-Identifier: Apache-2.0
 * Control flow. Eagerly it is plain C around the callbacks, whose ops are
 * recorded. While a function is captured, a map or a scan is written down step
 * by step; a branch or a loop, whose course nobody knows yet, as one call with
 * a gradient rule of its own: the plan runs it again, recorded, and takes its
 * gradients. */
#include <brigade/control.h>

#include <string.h>

#include <brigade/ops.h>

#include "core/autograd/node.h"
#include "core/base/array.h"
#include "core/base/error.h"
#include "core/base/tracer.h"
#include "core/tensor/shape.h"

/* ---- Regions ------------------------------------------------------------------------ */

static brg_status run_region(const char *what, brg_region region,
                             brg_tensor *const *in, size_t n_in,
                             brg_tensor **out, size_t n_out)
{
    memset(out, 0, n_out * sizeof *out);
    brg_status status = region.fn(in, n_in, out, n_out, region.user);
    BRG_EXPLAIN(status, "%s: a function", what);
    BRG_TRY(status);
    for (size_t j = 0; j < n_out; j++)
        if (!out[j])
            return brg__error_pending("%s: a tensor", what);
    return BRG_OK;
}

static brg_status check_sizes(const char *what, brg_region region, size_t n_in,
                              size_t n_out)
{
    BRG_CHECK_ARG(region.fn, "%s: a function is NULL", what);
    BRG_CHECK_ARG(n_in <= BRG_MAX_REGION && n_out <= BRG_MAX_REGION,
                  "%s: %zu tensors in and %zu out, %d is the most", what, n_in,
                  n_out, BRG_MAX_REGION);
    return BRG_OK;
}

static brg_status check_same(const char *what, size_t i,
                             const brg_tensor *before, const brg_tensor *after)
{
    char a[BRG_TENSOR_TEXT_MAX], b[BRG_TENSOR_TEXT_MAX];
    if (before->dtype == after->dtype &&
        brg__shape_equal(before->ndim, before->shape, after->ndim,
                         after->shape))
        return BRG_OK;
    return BRG_FAIL(BRG_ERR_SHAPE, "%s: value %zu is %s, expected %s", what, i,
                    brg__tensor_text(after, b), brg__tensor_text(before, a));
}

static brg_status is_true(const char *what, const brg_tensor *t, bool *out)
{
    double value;
    char text[BRG_TENSOR_TEXT_MAX];
    if (!t)
        return brg__error_pending("%s: a tensor", what);
    if (t->numel != 1)
        return BRG_FAIL(BRG_ERR_SHAPE,
                        "%s: the condition is %s, expected one "
                        "element",
                        what, brg__tensor_text(t, text));
    BRG_TRY(brg_tensor_item(t, &value));
    *out = value != 0;
    return BRG_OK;
}

/* ---- Eager ---------------------------------------------------------------------------- */

static brg_status cond(brg_tensor **out, size_t n_out, brg_tensor *predicate,
                       brg_region then, brg_region otherwise,
                       brg_tensor *const *in, size_t n_in)
{
    bool taken = false;
    BRG_TRY(is_true("brg_cond", predicate, &taken));
    return run_region("brg_cond: a branch", taken ? then : otherwise, in, n_in,
                      out, n_out);
}

static brg_status loop(brg_tensor **out, brg_region condition, brg_region body,
                       brg_tensor *const *in, size_t n)
{
    brg_tensor *now[BRG_MAX_REGION], *next[BRG_MAX_REGION], *predicate;
    memcpy(now, in, n * sizeof *now);
    for (;;) {
        bool goes_on = false;
        BRG_TRY(run_region("brg_while_loop: the condition", condition, now, n,
                           &predicate, 1));
        BRG_TRY(is_true("brg_while_loop", predicate, &goes_on));
        if (!goes_on)
            break;
        BRG_TRY(run_region("brg_while_loop: the body", body, now, n, next, n));
        for (size_t i = 0; i < n; i++)
            BRG_TRY(check_same("brg_while_loop", i, now[i], next[i]));
        memcpy(now, next, n * sizeof *now);
    }
    memcpy(out, now, n * sizeof *out);
    return BRG_OK;
}

/* ---- In a function that is being captured ------------------------------------------------ */

static brg_region region_of(const brg__traced_region *call, int k)
{
    return (brg_region){(brg_region_fn)call->fn[k], call->user[k]};
}

static brg_status run_cond(const brg__traced_region *call,
                           brg_tensor *const *in, brg_tensor **out)
{
    return cond(out, (size_t)call->n_forward, in[0], region_of(call, 0),
                region_of(call, 1), in + 1, (size_t)call->n_in - 1);
}

static brg_status run_loop(const brg__traced_region *call,
                           brg_tensor *const *in, brg_tensor **out)
{
    return loop(out, region_of(call, 0), region_of(call, 1), in,
                (size_t)call->n_in);
}

static void note_result(brg__traced_region *call, int j, const brg_tensor *t)
{
    call->dtype[j] = (brg_dtype)t->dtype;
    call->ndim[j] = t->ndim;
    memcpy(call->shape[j], t->shape, sizeof call->shape[j]);
}

/* What the region gives, seen with symbols and then forgotten. */
static brg_status try_region(brg__traced_region *call, brg_region region,
                             brg_tensor *const *in, int n_in, int n_out,
                             bool is_first)
{
    brg__tracer *tracer = brg__tracer_now;
    brg_tensor *out[BRG_MAX_REGION];
    brg_scope *scope = brg_scope_begin();
    if (!scope)
        return BRG_ERR_NOMEM;
    bool mode = brg_grad_mode_set(false);
    brg_status status = tracer->trial_begin(tracer);
    if (status == BRG_OK) {
        status = run_region(call->name, region, in, (size_t)n_in, out,
                            (size_t)n_out);
        for (int j = 0; j < n_out && status == BRG_OK; j++) {
            brg_tensor like = {.dtype = (uint8_t)call->dtype[j],
                               .ndim = (uint8_t)call->ndim[j]};
            memcpy(like.shape, call->shape[j], sizeof like.shape);
            if (is_first)
                note_result(call, j, out[j]);
            else
                status = check_same(call->name, (size_t)j, &like, out[j]);
        }
        brg_scope_end(scope);
        scope = NULL;
        brg_status ended = tracer->trial_end(tracer, in, n_in, mode);
        status = status == BRG_OK ? ended : status;
    }
    brg_scope_end(scope);
    brg_grad_mode_set(mode);
    return status;
}

/* ---- The gradient of a call ---------------------------------------------------------------- */

/* in: the call's inputs, then the gradients of its results. */
static brg_status run_again(const brg__traced_region *call,
                            brg_status (*run)(const brg__traced_region *,
                                              brg_tensor *const *,
                                              brg_tensor **),
                            brg_tensor *const *in, brg_tensor **out)
{
    brg_tensor *inputs[2 * BRG_MAX_REGION], *results[BRG_MAX_REGION];
    brg_tensor *used[BRG_MAX_REGION], *grads[BRG_MAX_REGION];
    brg_tensor *wanted[BRG_MAX_REGION + 1];
    int n = call->n_in - call->n_forward, n_used = 0, n_wanted = 0;
    for (int i = 0; i < n; i++) {
        if (!(inputs[i] = brg_detach(in[i])))
            return brg_error_code();
        if ((call->needs >> i) & 1u) {
            BRG_TRY(brg_set_requires_grad(inputs[i], true));
            wanted[n_wanted++] = inputs[i];
        }
    }
    brg__traced_region forward = *call;
    forward.n_in = n;
    BRG_TRY(run(&forward, inputs, results));
    for (int j = 0; j < call->n_forward; j++)
        if (brg_requires_grad(results[j])) {
            used[n_used] = results[j];
            grads[n_used++] = in[n + j];
        }
    brg_backward_options options = BRG_BACKWARD_OPTIONS_INIT;
    options.grad_outputs = grads;
    memset(out, 0, (size_t)n_wanted * sizeof *out);
    if (n_used > 0)
        BRG_TRY(brg_grad(out, used, (size_t)n_used, wanted, (size_t)n_wanted,
                         &options));
    for (int k = 0; k < n_wanted; k++)
        if (!out[k] && !(out[k] = brg_zeros_like(wanted[k])))
            return brg_error_code();
    return BRG_OK;
}

static brg_status run_recorded(const brg__traced_region *call,
                               brg_status (*run)(const brg__traced_region *,
                                                 brg_tensor *const *,
                                                 brg_tensor **),
                               brg_tensor *const *in, brg_tensor **out)
{
    bool mode = brg_grad_mode_set(true);
    brg_status status = run_again(call, run, in, out);
    brg_grad_mode_set(mode);
    return status;
}

static brg_status run_cond_backward(const brg__traced_region *call,
                                    brg_tensor *const *in, brg_tensor **out)
{
    return run_recorded(call, run_cond, in, out);
}

static brg_status run_loop_backward(const brg__traced_region *call,
                                    brg_tensor *const *in, brg_tensor **out)
{
    return run_recorded(call, run_loop, in, out);
}

static brg_status region_apply(brg_node *node, brg_tensor *const *grad_out,
                               brg_tensor **grad_in)
{
    const brg__traced_region *call = node->payload;
    brg__traced_region back = *call;
    brg_tensor *in[2 * BRG_MAX_REGION + 1], *out[BRG_MAX_REGION + 1];
    int n = 0;
    if (!brg__grad_mode_is_off || !brg__is_traced())
        return brg__tracer_refuse("create_graph through brg_cond or "
                                  "brg_while_loop",
                                  "take it out of the function");
    for (uint16_t i = 0; i < node->n_saved; i++)
        BRG_TRY(brg__saved_get(node, &node->saved[i], &in[n++]));
    for (uint16_t j = 0; j < node->n_slots; j++) {
        in[n] = grad_out[j];
        if (!in[n] && node->slots[j].is_differentiable) {
            const brg__slot *slot = &node->slots[j];
            in[n] = brg_zeros((brg_dtype)slot->dtype, slot->ndim, slot->shape);
            if (!in[n])
                return brg_error_code();
        }
        n++;
    }
    back.n_in = n;
    back.n_out = 0;
    for (int i = 0; i < call->n_in; i++)
        if ((call->needs >> i) & 1u)
            note_result(&back, back.n_out++, in[i]);
    back.run = call->run == run_cond ? run_cond_backward : run_loop_backward;
    BRG_TRY(brg__tracer_now->call(brg__tracer_now, &back, in, out));
    for (int i = 0, k = 0; i < call->n_in; i++)
        grad_in[i] = (call->needs >> i) & 1u ? out[k++] : NULL;
    return BRG_OK;
}

static void region_destroy(brg_node *node)
{
    brg__mem_free(node->payload);
}

static const brg__node_class region_class = {
    .name = "region", .apply = region_apply, .destroy = region_destroy};

static brg_status fill_node(brg_node *node, const brg__traced_region *call,
                            brg_tensor *const *in, brg_tensor *const *out)
{
    for (int i = 0; i < call->n_in; i++) {
        BRG_TRY(brg__edge_of(in[i], &node->edges[i]));
        BRG_TRY(brg__saved_init(&node->saved[i], BRG__SAVED_INPUT, i, in[i]));
    }
    brg__node_stamp(node);
    for (int j = 0; j < call->n_out; j++) {
        if (!brg__tensor_is_float(out[j]))
            continue;
        brg__slot_set(&node->slots[j], out[j]);
        BRG_TRY(brg__tensor_set_history(out[j], node, j));
    }
    return BRG_OK;
}

static brg_status record(const brg__traced_region *call, brg_tensor *const *in,
                         brg_tensor *const *out)
{
    brg_node *node;
    if (call->needs == 0 || brg__grad_mode_is_off)
        return BRG_OK;
    brg__traced_region *kept = BRG__NEW(brg__traced_region);
    if (!kept)
        return BRG_ERR_NOMEM;
    *kept = *call;
    brg_status status = brg__node_new(&node, &region_class, call->n_in,
                                      call->n_out, call->n_in);
    if (status != BRG_OK) {
        brg__mem_free(kept);
        return status;
    }
    node->payload = kept;
    status = fill_node(node, call, in, out);
    brg_node_release(node);
    return status;
}

/* Symbols for all inputs, those from outside too. */
static brg_status bring(brg_tensor **symbols, brg_tensor *const *in, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        symbols[i] = in[i];
        BRG_TRY(brg__tracer_bring(&symbols[i]));
    }
    return BRG_OK;
}

static brg_status write_down(brg__traced_region *call, brg_tensor *const *in,
                             brg_tensor **out)
{
    for (int i = 0; i < call->n_in; i++)
        if (brg_requires_grad(in[i]))
            call->needs |= 1u << i;
    BRG_TRY(brg__tracer_now->call(brg__tracer_now, call, in, out));
    return record(call, in, out);
}

static brg_status trace_cond(brg_tensor **out, size_t n_out,
                             brg_tensor *predicate, brg_region then,
                             brg_region otherwise, brg_tensor *const *in,
                             size_t n_in)
{
    brg_tensor *all[BRG_MAX_REGION + 1] = {predicate};
    brg__traced_region call = {
        .name = "cond",
        .run = run_cond,
        .fn = {(void (*)(void))then.fn, (void (*)(void))otherwise.fn},
        .user = {then.user, otherwise.user},
        .n_in = (int)n_in + 1,
        .n_out = (int)n_out,
        .n_forward = (int)n_out};
    BRG_TRY(bring(all + 1, in, n_in));
    BRG_TRY(try_region(&call, then, all + 1, (int)n_in, (int)n_out, true));
    BRG_TRY(
        try_region(&call, otherwise, all + 1, (int)n_in, (int)n_out, false));
    return write_down(&call, all, out);
}

static brg_status trace_loop(brg_tensor **out, brg_region condition,
                             brg_region body, brg_tensor *const *in, size_t n)
{
    brg__traced_region call = {
        .name = "while_loop",
        .run = run_loop,
        .fn = {(void (*)(void))condition.fn, (void (*)(void))body.fn},
        .user = {condition.user, body.user},
        .n_in = (int)n,
        .n_out = (int)n,
        .n_forward = (int)n};
    brg__traced_region unused = {.name = "while_loop"};
    brg_tensor *first[BRG_MAX_REGION];
    BRG_TRY(bring(first, in, n));
    BRG_TRY(try_region(&unused, condition, first, (int)n, 1, true));
    for (size_t i = 0; i < n; i++)
        note_result(&call, (int)i, first[i]);
    BRG_TRY(try_region(&call, body, first, (int)n, (int)n, false));
    return write_down(&call, first, out);
}

/* ---- Public ------------------------------------------------------------------------------------ */

static brg_status check_inputs(const char *what, brg_tensor *const *in,
                               size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (!in[i])
            return brg__error_pending("%s: a tensor", what);
    return BRG_OK;
}

/* What a call gives, once it no longer reads its inputs, which may be the same
 * array. */
static brg_status give(brg_status status, brg_tensor **outputs,
                       brg_tensor *const *out, size_t n)
{
    for (size_t i = 0; i < n; i++)
        outputs[i] = status == BRG_OK ? out[i] : NULL;
    return status;
}

static brg_status cond_or_trace(brg_tensor **out, size_t n_out,
                                brg_tensor *predicate, brg_region then,
                                brg_region otherwise, brg_tensor *const *in,
                                size_t n_in)
{
    BRG_TRY(check_sizes("brg_cond", then, n_in, n_out));
    BRG_TRY(check_sizes("brg_cond", otherwise, n_in, n_out));
    BRG_TRY(check_inputs("brg_cond", in, n_in));
    if (!predicate)
        return brg__error_pending("brg_cond: a tensor");
    return (brg__is_traced() && !brg__tracer_now->flush ? trace_cond : cond)(
        out, n_out, predicate, then, otherwise, in, n_in);
}

brg_status brg_cond(brg_tensor **outputs, size_t n_outputs,
                    brg_tensor *predicate, brg_region then,
                    brg_region otherwise, brg_tensor *const *inputs,
                    size_t n_inputs)
{
    brg_tensor *out[BRG_MAX_REGION];
    return give(cond_or_trace(out, n_outputs, predicate, then, otherwise,
                              inputs, n_inputs),
                outputs, out, n_outputs);
}

brg_status brg_while_loop(brg_tensor **outputs, brg_region condition,
                          brg_region body, brg_tensor *const *inputs, size_t n)
{
    brg_tensor *out[BRG_MAX_REGION];
    BRG_TRY(check_sizes("brg_while_loop", condition, n, 1));
    BRG_TRY(check_sizes("brg_while_loop", body, n, n));
    BRG_TRY(check_inputs("brg_while_loop", inputs, n));
    return give(brg__is_traced() && !brg__tracer_now->flush
                    ? trace_loop(out, condition, body, inputs, n)
                    : loop(out, condition, body, inputs, n),
                outputs, out, n);
}

/* Dim 0 that all xs share. */
static brg_status common_length(const char *what, brg_tensor *const *xs,
                                size_t n_xs, int64_t *length)
{
    char text[BRG_TENSOR_TEXT_MAX];
    BRG_CHECK_ARG(n_xs > 0, "%s: there is nothing to go through", what);
    BRG_TRY(check_inputs(what, xs, n_xs));
    *length = brg_tensor_size(xs[0], 0);
    for (size_t k = 0; k < n_xs; k++)
        if (xs[k]->ndim == 0 || xs[k]->shape[0] != *length || *length < 1)
            return BRG_FAIL(BRG_ERR_SHAPE,
                            "%s: xs[%zu] is %s, expected a dim 0 of %lld, at "
                            "least 1",
                            what, k, brg__tensor_text(xs[k], text),
                            (long long)*length);
    return BRG_OK;
}

/* rows[j * length + i] is result j at index i. */
static brg_status stack_rows(brg_tensor **outputs, size_t n_outputs,
                             brg_tensor *const *rows, int64_t length)
{
    for (size_t j = 0; j < n_outputs; j++) {
        outputs[j] = brg_stack(rows + (int64_t)j * length, (int)length, 0);
        if (!outputs[j])
            return brg_error_code();
    }
    return BRG_OK;
}

/* fn(carry..., xs[..][i], others...) for each i. */
static brg_status go_through(const char *what, brg_tensor **carry,
                             size_t n_carry, brg_tensor **rows,
                             size_t n_outputs, brg_region fn,
                             brg_tensor *const *xs, size_t n_xs,
                             brg_tensor *const *others, size_t n_others,
                             int64_t length)
{
    brg_tensor *in[BRG_MAX_REGION], *out[BRG_MAX_REGION];
    size_t n_in = n_carry + n_xs + n_others, n_out = n_carry + n_outputs;
    for (int64_t i = 0; i < length; i++) {
        memcpy(in, carry, n_carry * sizeof *in);
        for (size_t k = 0; k < n_xs; k++)
            if (!(in[n_carry + k] = brg_select(xs[k], 0, i)))
                return brg_error_code();
        for (size_t k = 0; k < n_others; k++)
            in[n_carry + n_xs + k] = others[k];
        BRG_TRY(run_region(what, fn, in, n_in, out, n_out));
        for (size_t k = 0; k < n_carry; k++)
            BRG_TRY(check_same(what, k, carry[k], out[k]));
        memcpy(carry, out, n_carry * sizeof *carry);
        for (size_t j = 0; j < n_outputs; j++)
            rows[(int64_t)j * length + i] = out[n_carry + j];
    }
    return BRG_OK;
}

/* The carried values come from carry and end in last. */
static brg_status scan(const char *what, brg_tensor *const *carry,
                       brg_tensor **last, size_t n_carry, brg_tensor **out,
                       size_t n_outputs, brg_region fn, brg_tensor *const *xs,
                       size_t n_xs, brg_tensor *const *others, size_t n_others)
{
    int64_t length = 0;
    BRG_TRY(
        check_sizes(what, fn, n_carry + n_xs + n_others, n_carry + n_outputs));
    BRG_TRY(common_length(what, xs, n_xs, &length));
    BRG_TRY(check_inputs(what, others, n_others));
    BRG_TRY(check_inputs(what, carry, n_carry));
    brg_tensor **rows = brg__mem_alloc_array(
        (size_t)length * n_outputs + 1, sizeof *rows, "the rows of a scan");
    if (!rows)
        return BRG_ERR_NOMEM;
    memcpy(last, carry, n_carry * sizeof *last);
    brg_status status = go_through(what, last, n_carry, rows, n_outputs, fn, xs,
                                   n_xs, others, n_others, length);
    if (status == BRG_OK)
        status = stack_rows(out, n_outputs, rows, length);
    brg__mem_free(rows);
    return status;
}

brg_status brg_map(brg_tensor **outputs, size_t n_outputs, brg_region fn,
                   brg_tensor *const *xs, size_t n_xs,
                   brg_tensor *const *others, size_t n_others)
{
    brg_tensor *none[1] = {NULL}, *out[BRG_MAX_REGION];
    return give(scan("brg_map", none, none, 0, out, n_outputs, fn, xs, n_xs,
                     others, n_others),
                outputs, out, n_outputs);
}

brg_status brg_scan(brg_tensor **carry, size_t n_carry, brg_tensor **outputs,
                    size_t n_outputs, brg_region fn, brg_tensor *const *xs,
                    size_t n_xs)
{
    brg_tensor *last[BRG_MAX_REGION], *out[BRG_MAX_REGION];
    brg_status status = scan("brg_scan", carry, last, n_carry, out, n_outputs,
                             fn, xs, n_xs, NULL, 0);
    give(status, carry, last, n_carry);
    return give(status, outputs, out, n_outputs);
}
