/* SPDX-License-Identifier: Apache-2.0
 * Re-entrant recomputation: a custom function whose forward runs the stretch
 * without recording and whose backward records it and calls backward inside. */
#include <string.h>

#include <brigade/function.h>

#include "core/autograd/context.h"
#include "core/autograd/engine.h"
#include "core/autograd/recompute.h"
#include "core/base/error.h"
#include "core/ops/random.h"

static brg_status forward(brg_context *ctx, const brg_value *args,
                          size_t n_args, brg_value *out)
{
    (void)args;
    (void)n_args;
    brg__frame *frame = brg_context_user(ctx);
    brg_tensor *outputs[BRG__STRETCH_MAX];
    BRG_TRY(brg__frame_run(frame, frame->inputs, outputs));
    for (size_t j = 0; j < frame->options.n_outputs; j++)
        out[j] = brg_value_tensor(outputs[j]);
    return BRG_OK;
}

static brg_status inner_backward(brg__frame *frame, brg_tensor *const *grad_out,
                                 brg_tensor **inputs)
{
    brg_tensor *outputs[BRG__STRETCH_MAX], *used[BRG__STRETCH_MAX];
    brg_tensor *grads[BRG__STRETCH_MAX];
    size_t n = 0;
    bool mode = brg_grad_mode_set(true);
    brg_status status = brg__frame_detach(frame, inputs);
    if (status == BRG_OK)
        status = brg__frame_run(frame, inputs, outputs);
    for (size_t j = 0; status == BRG_OK && j < frame->options.n_outputs; j++)
        if (brg_requires_grad(outputs[j]) && grad_out[j]) {
            used[n] = outputs[j];
            grads[n++] = grad_out[j];
        }
    brg_backward_options options = BRG_BACKWARD_OPTIONS_INIT;
    options.grad_outputs = grads;
    if (status == BRG_OK && n == 0)
        status = BRG_FAIL(BRG_ERR_STATE,
                          "none of the stretch's outputs requires grad");
    if (status == BRG_OK)
        status = brg_backward_with(used, n, &options);
    brg_grad_mode_set(mode);
    return status;
}

static brg_status backward(brg_context *ctx, brg_tensor *const *grad_out,
                           brg_tensor **grad_in, size_t *n_grad_in)
{
    (void)n_grad_in;
    brg__frame *frame = brg_context_user(ctx);
    const brg__task *task = brg__task_current();
    if (task && task->is_selective)
        return BRG_FAIL(BRG_ERR_STATE,
                        "re-entrant recomputation is not compatible with "
                        "brg_grad or when inputs is passed to backward; use "
                        "is_reentrant = false");
    brg_random_state random;
    brg_random_get_state(&random);
    if (!frame->options.keeps_random_state)
        brg__random_set_state(&frame->random);
    brg_tensor *inputs[BRG__STRETCH_MAX] = {0};
    brg_status status = inner_backward(frame, grad_out, inputs);
    brg__random_set_state(&random);
    for (size_t i = 0; status == BRG_OK && i < frame->n_inputs; i++)
        grad_in[i] = brg_tensor_grad(inputs[i]);
    return status;
}

static void destroy(void *user)
{
    brg__frame_release(user);
}

brg_status brg__recompute_reentrant(brg__frame *frame, brg_tensor **outputs)
{
    size_t n = frame->options.n_outputs;
    brg_function_def def = BRG_FUNCTION_DEF_INIT;
    def.name = "recompute";
    def.n_outputs = n;
    def.forward = forward;
    def.backward = backward;
    def.user = frame;
    def.destroy = destroy;
    def.tracing = BRG_FUNCTION_UNTRACEABLE;
    brg_function *function;
    brg_status status = brg_function_create(&function, &def);
    if (status != BRG_OK) {
        brg__frame_release(frame);
        return status;
    }
    function->id = BRG__RECOMPUTE_ID;
    brg_value args[BRG__STRETCH_MAX], results[BRG_MAX_FUNCTION_OUTPUTS];
    for (size_t i = 0; i < frame->n_inputs; i++)
        args[i] = brg_value_tensor(frame->inputs[i]);
    status = brg_function_apply(function, args, frame->n_inputs, results);
    for (size_t j = 0; j < n; j++)
        outputs[j] = status == BRG_OK ? results[j].as.tensor : NULL;
    brg_function_release(function);
    return status;
}
