/* SPDX-License-Identifier: Apache-2.0
 * Activation checkpointing by pack hooks: each tensor that the stretch saves
 * becomes a token; the first token that is asked for runs the stretch again
 * and fills them all. */
#include "core/autograd/recompute.h"

#include <string.h>

#include "core/base/error.h"
#include "core/base/options.h"
#include "core/ops/random.h"
#include "core/tensor/shape.h"

/* ---- Frames ---------------------------------------------------------------------- */

brg_status brg__frame_new(brg__frame **out, brg_stretch_fn fn, void *user,
                          brg_tensor *const *inputs, size_t n_inputs,
                          const brg_recompute_options *options)
{
    brg__frame *frame = BRG__NEW(brg__frame);
    *out = frame;
    if (!frame)
        return BRG_ERR_NOMEM;
    brg__ref_init(&frame->refs);
    frame->fn = fn;
    frame->user = user;
    frame->options = *options;
    frame->n_inputs = n_inputs;
    for (size_t i = 0; i < n_inputs; i++)
        frame->inputs[i] = brg_retain(inputs[i]);
    brg_random_get_state(&frame->random);
    frame->autocast = brg__autocast;
    return BRG_OK;
}

void brg__frame_release(brg__frame *frame)
{
    if (!frame || !brg__ref_release(&frame->refs))
        return;
    for (size_t i = 0; i < frame->n_inputs; i++)
        brg_release(frame->inputs[i]);
    for (size_t i = 0; i < frame->kept.n; i++)
        brg_release(frame->kept.at[i]);
    if (frame->options.destroy)
        frame->options.destroy(frame->user);
    brg__array_deinit(&frame->tokens);
    brg__array_deinit(&frame->kept);
    brg__mem_free(frame);
}

brg_status brg__frame_run(brg__frame *frame, brg_tensor *const *inputs,
                          brg_tensor **outputs)
{
    memset(outputs, 0, frame->options.n_outputs * sizeof *outputs);
    brg_status status = frame->fn(inputs, outputs, frame->user);
    BRG_EXPLAIN(status, "the stretch");
    BRG_TRY(status);
    for (size_t j = 0; j < frame->options.n_outputs; j++)
        if (!outputs[j])
            return brg__error_pending("an output of a stretch");
    return BRG_OK;
}

brg_status brg__frame_detach(const brg__frame *frame, brg_tensor **inputs)
{
    for (size_t i = 0; i < frame->n_inputs; i++) {
        inputs[i] = brg_detach(frame->inputs[i]);
        if (!inputs[i] && frame->inputs[i])
            return brg_error_code();
        if (brg_requires_grad(frame->inputs[i]))
            BRG_TRY(brg_set_requires_grad(inputs[i], true));
    }
    return BRG_OK;
}

/* ---- Tokens, the first time -------------------------------------------------------- */

static brg_status pack_token(brg_tensor *t, void **packed, void *user)
{
    brg__frame *frame = user;
    brg__token *token = brg__obj_alloc(sizeof *token, "a saved stretch");
    if (!token)
        return BRG_ERR_NOMEM;
    if (brg__array_push(&frame->tokens, token) != BRG_OK) {
        brg__obj_free(token, sizeof *token);
        return BRG_ERR_NOMEM;
    }
    brg__ref_retain(&frame->refs);
    token->frame = frame;
    token->index = frame->tokens.n - 1;
    token->layout = brg__layout_of(t);
    *packed = token;
    return BRG_OK;
}

static void free_token(void *packed, void *user)
{
    (void)user;
    brg__token *token = packed;
    token->frame->tokens.at[token->index] = NULL;
    brg_release(token->tensor);
    brg__frame_release(token->frame);
    brg__obj_free(token, sizeof *token);
}

/* ---- Tokens, the second time --------------------------------------------------------- */

typedef struct refill {
    brg__frame *frame;
    size_t n;
} refill;

static brg_status check_same(const brg__token *token, const brg_tensor *t)
{
    const brg__layout *before = &token->layout;
    if (brg__shape_equal(before->ndim, before->shape, t->ndim, t->shape) &&
        before->dtype == (brg_dtype)t->dtype)
        return BRG_OK;
    char a[BRG_SHAPE_TEXT_MAX], b[BRG_TENSOR_TEXT_MAX];
    return BRG_FAIL(BRG_ERR_MISMATCH,
                    "recomputed values have different metadata than during "
                    "the forward pass: saved tensor %zu was %s%s, now it is "
                    "%s",
                    token->index, brg_dtype_name(before->dtype),
                    brg__shape_text(before->ndim, before->shape, a),
                    brg__tensor_text(t, b));
}

static brg_status pack_refill(brg_tensor *t, void **packed, void *user)
{
    refill *r = user;
    brg__frame *frame = r->frame;
    *packed = NULL;
    if (r->n >= frame->tokens.n) {
        r->n++;
        return BRG_OK; /* counted; reported at the end */
    }
    brg__token *token = frame->tokens.at[r->n++];
    if (!token || token->tensor)
        return BRG_OK;
    BRG_TRY(check_same(token, t));
    token->tensor = brg_retain(t);
    return BRG_OK;
}

/* The graph of the second run is never used. */
static brg_status unpack_nothing(void *packed, brg_tensor **out, void *user)
{
    (void)packed;
    (void)out;
    (void)user;
    return BRG_FAIL(BRG_ERR_STATE, "a stretch called backward on its own "
                                   "values while being run again");
}

static brg_status run_recorded(brg__frame *frame)
{
    brg_tensor *inputs[BRG__STRETCH_MAX], *outputs[BRG__STRETCH_MAX];
    BRG_TRY(brg__frame_detach(frame, inputs));
    refill r = {frame, 0};
    brg_pack_hooks hooks = BRG_PACK_HOOKS_INIT;
    hooks.pack = pack_refill;
    hooks.unpack = unpack_nothing;
    hooks.user = &r;
    BRG_TRY(brg_pack_hooks_push(&hooks));
    brg__selective selective;
    if (frame->options.policy)
        brg__selective_begin(&selective, frame, true);
    brg_status status = brg__frame_run(frame, inputs, outputs);
    if (frame->options.policy)
        brg__selective_end(&selective);
    brg_status popped = brg_pack_hooks_pop();
    if (status == BRG_OK && r.n != frame->tokens.n)
        status = BRG_FAIL(BRG_ERR_MISMATCH,
                          "A different number of tensors was saved during the "
                          "original forward and recomputation: %zu, then %zu",
                          frame->tokens.n, r.n);
    return status == BRG_OK ? popped : status;
}

static brg_status run_again(brg__frame *frame)
{
    brg_scope *scope = brg_scope_begin();
    if (!scope)
        return BRG_ERR_NOMEM;
    brg_random_state random;
    brg_random_get_state(&random);
    if (!frame->options.keeps_random_state)
        brg__random_set_state(&frame->random);
    bool mode = brg_grad_mode_set(true);
    brg_autocast policy = brg__autocast_swap(frame->autocast);
    brg_status status = run_recorded(frame);
    brg__autocast_swap(policy);
    brg_grad_mode_set(mode);
    brg__random_set_state(&random);
    brg_scope_end(scope);
    return status;
}

static brg_status unpack_token(void *packed, brg_tensor **out, void *user)
{
    (void)user;
    brg__token *token = packed;
    if (!token->tensor)
        BRG_TRY(run_again(token->frame));
    *out = token->tensor;
    return BRG_OK;
}

/* ---- Public ------------------------------------------------------------------------------ */

static brg_status run_first(brg__frame *frame, brg_tensor **outputs)
{
    brg_pack_hooks hooks = BRG_PACK_HOOKS_INIT;
    hooks.pack = pack_token;
    hooks.unpack = unpack_token;
    hooks.free = free_token;
    hooks.user = frame;
    /* The first runs the stretch. Under a policy values come from the first
     * run and from the second: each is asked for where it is needed. */
    hooks.split =
        frame->options.policy ? BRG_PACK_SPLIT_EACH : BRG_PACK_SPLIT_FIRST;
    BRG_TRY(brg_pack_hooks_push(&hooks));
    brg__selective selective;
    if (frame->options.policy)
        brg__selective_begin(&selective, frame, false);
    brg_status status = brg__frame_run(frame, frame->inputs, outputs);
    if (frame->options.policy)
        brg__selective_end(&selective);
    brg_status popped = brg_pack_hooks_pop();
    return status == BRG_OK ? popped : status;
}

static brg_status check_call(brg_stretch_fn fn, brg_tensor *const *inputs,
                             size_t n_inputs,
                             const brg_recompute_options *options)
{
    BRG_CHECK_ARG(fn && (inputs || n_inputs == 0),
                  "brg_recompute: a pointer is NULL");
    BRG_CHECK_ARG(
        n_inputs <= BRG__STRETCH_MAX && options->n_outputs <= BRG__STRETCH_MAX,
        "brg_recompute: at most %d inputs and outputs", BRG__STRETCH_MAX);
    BRG_CHECK_ARG(!(options->is_reentrant && options->policy),
                  "brg_recompute: a policy needs is_reentrant to be false");
    return BRG_OK;
}

brg_status brg_recompute(brg_tensor **outputs, brg_stretch_fn fn, void *user,
                         brg_tensor *const *inputs, size_t n_inputs,
                         const brg_recompute_options *options)
{
    brg_recompute_options chosen = BRG_RECOMPUTE_OPTIONS_INIT;
    BRG_TRY(BRG_TAKE_OPTIONS(&chosen, options, "brg_recompute",
                             BRG_RECOMPUTE_OPTIONS_INIT));
    if (chosen.n_outputs == 0)
        chosen.n_outputs = 1;
    brg__frame *frame;
    brg_status made = check_call(fn, inputs, n_inputs, &chosen);
    if (made == BRG_OK)
        made = brg__frame_new(&frame, fn, user, inputs, n_inputs, &chosen);
    if (made != BRG_OK) {
        memset(outputs, 0, chosen.n_outputs * sizeof *outputs);
        if (chosen.destroy)
            chosen.destroy(user);
        return made;
    }
    if (chosen.is_reentrant)
        return brg__recompute_reentrant(frame, outputs);
    brg_scope *scope = brg_scope_begin();
    brg_status status = scope ? run_first(frame, outputs) : BRG_ERR_NOMEM;
    for (size_t j = 0; j < chosen.n_outputs && status == BRG_OK; j++)
        brg_retain(outputs[j]);
    brg_scope_end(scope);
    for (size_t j = 0; j < chosen.n_outputs; j++) {
        outputs[j] = status == BRG_OK ? brg__scope_adopt(outputs[j]) : NULL;
        if (!outputs[j] && status == BRG_OK)
            status = brg_error_code();
    }
    brg__frame_release(frame);
    return status;
}

/* ---- Chains ---------------------------------------------------------------------------------- */

typedef struct segment {
    brg_layer_fn layer;
    void *user;
    size_t first, end;
} segment;

static brg_status run_segment(brg_tensor *const *inputs, brg_tensor **outputs,
                              void *user)
{
    const segment *s = user;
    brg_tensor *x = inputs[0];
    for (size_t i = s->first; i < s->end; i++) {
        brg_tensor *y = NULL;
        BRG_TRY(s->layer(i, x, &y, s->user));
        if (!y)
            return brg__error_pending("a layer's output");
        x = y;
    }
    outputs[0] = x;
    return BRG_OK;
}

static void free_segment(void *user)
{
    brg__mem_free(user);
}

brg_tensor *brg_recompute_chain(brg_layer_fn layer, void *user, size_t n,
                                size_t n_segments, brg_tensor *x)
{
    BRG_CHECK_ARG_NULL(layer, "brg_recompute_chain: layer is NULL");
    while (n_segments == 0 || (n_segments > n && n_segments > 1))
        for (n_segments = 1; n_segments * n_segments < n;)
            n_segments++;
    brg_recompute_options options = BRG_RECOMPUTE_OPTIONS_INIT;
    options.destroy = free_segment;
    for (size_t k = 0; k < n_segments && x; k++) {
        segment *s = BRG__NEW(segment);
        if (!s)
            return NULL; /* below, brg_recompute frees it */
        *s = (segment){layer, user, k * n / n_segments,
                       (k + 1) * n / n_segments};
        brg_tensor *y;
        if (brg_recompute(&y, run_segment, s, &x, 1, &options) != BRG_OK)
            return NULL;
        x = y;
    }
    return x;
}
