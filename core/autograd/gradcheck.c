/* SPDX-License-Identifier: Apache-2.0
 * Gradients against central differences.
 *
 * The outputs are projected onto fixed random directions d_k, so that one
 * scalar L = sum_k <d_k, out_k> stands for them all; every element of every
 * input is then moved by +eps and -eps. */
#include <math.h>
#include <string.h>

#include <brigade/autograd.h>
#include <brigade/device.h>
#include <brigade/ops.h>
#include <brigade/sparse.h>

#include "core/base/alloc.h"
#include "core/base/error.h"
#include "core/base/options.h"
#include "core/tensor/device.h"
#include "core/tensor/tensor.h"

#define MAX_OUTPUTS 16
#define MAX_INPUTS 32

typedef struct check {
    brg_gradcheck_fn fn;
    void *user;
    brg_tensor *inputs[MAX_INPUTS]; /* detached copies, contiguous; owned */
    size_t n_inputs;
    size_t n_outputs;
    uint64_t seed;
    double eps, atol, rtol;
} check;

/* splitmix64: directions need no statistical quality, only to be fixed. */
static double direction(uint64_t seed, uint64_t i)
{
    uint64_t z = seed + (i + 1) * 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return (double)(z >> 11) * 0x1p-52 - 1.0;
}

static brg_tensor *direction_like(const check *c, size_t k,
                                  const brg_tensor *out)
{
    brg_tensor *d = brg__empty_host(BRG_DTYPE_F64, out->ndim, out->shape);
    if (!d)
        return NULL;
    double *at = brg_tensor_data(d);
    for (int64_t i = 0; i < d->numel; i++)
        at[i] = direction(c->seed + k, (uint64_t)i);
    return brg_to(d, out->device);
}

static brg_status call_fn(const check *c, brg_tensor *const *inputs,
                          brg_tensor **outputs)
{
    memset(outputs, 0, c->n_outputs * sizeof *outputs);
    brg_status status = c->fn(inputs, outputs, c->user);
    BRG_EXPLAIN(status, "the function");
    BRG_TRY(status);
    for (size_t k = 0; k < c->n_outputs; k++) {
        if (!outputs[k])
            return brg__error_pending("brg_gradcheck: an output");
        char text[BRG_TENSOR_TEXT_MAX];
        if (outputs[k]->dtype != BRG_DTYPE_F64)
            return BRG_FAIL(BRG_ERR_DTYPE,
                            "brg_gradcheck: output %zu is %s, expected f64", k,
                            brg__tensor_text(outputs[k], text));
    }
    return BRG_OK;
}

/* The scalar L at the copies as they stand. */
static brg_status evaluate(const check *c, double *filled)
{
    brg_scope *scope = brg_scope_begin();
    if (!scope)
        return BRG_ERR_NOMEM;
    bool mode = brg_grad_mode_set(false);
    brg_tensor *outputs[MAX_OUTPUTS];
    brg_status status = call_fn(c, c->inputs, outputs);
    *filled = 0.0;
    for (size_t k = 0; status == BRG_OK && k < c->n_outputs; k++) {
        brg_tensor *flat = brg_contiguous(brg_to(outputs[k], BRG_CPU));
        if (!flat) {
            status = brg_error_code();
            break;
        }
        const double *at = brg_tensor_data(flat);
        for (int64_t i = 0; i < flat->numel; i++)
            *filled += at[i] * direction(c->seed + k, (uint64_t)i);
    }
    brg_grad_mode_set(mode);
    brg_scope_end(scope);
    return status;
}

/* Of a row-major f64 tensor, wherever it is. */
static brg_status get_element(const brg_tensor *t, int64_t i, double *filled)
{
    const double *at = (const double *)brg_tensor_data(t) + i;
    return brg__device_copy(BRG_CPU, filled, t->device, at, sizeof *filled);
}

static brg_status set_element(const brg_tensor *t, int64_t i, double value)
{
    double *at = (double *)brg_tensor_data(t) + i;
    return brg__device_copy(t->device, at, BRG_CPU, &value, sizeof value);
}

static brg_status compare(const check *c, size_t input, int64_t element,
                          double analytic)
{
    double kept, above, below;
    BRG_TRY(get_element(c->inputs[input], element, &kept));
    BRG_TRY(set_element(c->inputs[input], element, kept + c->eps));
    BRG_TRY(evaluate(c, &above));
    BRG_TRY(set_element(c->inputs[input], element, kept - c->eps));
    BRG_TRY(evaluate(c, &below));
    BRG_TRY(set_element(c->inputs[input], element, kept));
    double numeric = (above - below) / (2.0 * c->eps);
    double allowed = c->atol + c->rtol * fabs(numeric);
    if (isfinite(numeric) && fabs(analytic - numeric) <= allowed)
        return BRG_OK;
    char text[BRG_TENSOR_TEXT_MAX];
    return BRG_FAIL(BRG_ERR_MISMATCH,
                    "brg_gradcheck: input %zu (%s), element %lld: the "
                    "gradient is %.9g, differences give %.9g",
                    input, brg__tensor_text(c->inputs[input], text),
                    (long long)element, analytic, numeric);
}

static brg_status compare_input(const check *c, size_t input, brg_tensor *grad)
{
    brg_tensor *dense = grad ? brg_to(brg_to_dense(grad), BRG_CPU) : NULL;
    brg_tensor *flat = grad ? brg_contiguous(dense) : NULL;
    if (grad && !flat)
        return brg_error_code();
    const double *at = flat ? brg_tensor_data(flat) : NULL;
    for (int64_t i = 0; i < c->inputs[input]->numel; i++)
        BRG_TRY(compare(c, input, i, at ? at[i] : 0.0));
    return BRG_OK;
}

/* The analytic gradients, at the user's own tensors (views stay views). */
static brg_status gradients(const check *c, brg_tensor *const *inputs,
                            brg_tensor **wanted, size_t n_wanted,
                            brg_tensor **grads)
{
    brg_tensor *outputs[MAX_OUTPUTS], *grad_outputs[MAX_OUTPUTS];
    brg_tensor *used[MAX_OUTPUTS];
    size_t n_used = 0;
    BRG_TRY(call_fn(c, inputs, outputs));
    for (size_t k = 0; k < c->n_outputs; k++) {
        if (!brg_requires_grad(outputs[k]))
            continue;
        used[n_used] = outputs[k];
        grad_outputs[n_used] = direction_like(c, k, outputs[k]);
        if (!grad_outputs[n_used++])
            return brg_error_code();
    }
    if (n_used == 0)
        return BRG_FAIL(BRG_ERR_ARG,
                        "brg_gradcheck: no output depends on an input that "
                        "requires gradients");
    brg_backward_options options = BRG_BACKWARD_OPTIONS_INIT;
    options.grad_outputs = grad_outputs;
    return brg_grad(grads, used, n_used, wanted, n_wanted, &options);
}

static brg_status check_all(check *c, brg_tensor *const *inputs)
{
    brg_tensor *wanted[MAX_INPUTS], *grads[MAX_INPUTS];
    size_t at[MAX_INPUTS], n_wanted = 0;
    for (size_t i = 0; i < c->n_inputs; i++) {
        char text[BRG_TENSOR_TEXT_MAX];
        if (!inputs[i])
            return brg__error_pending("brg_gradcheck: an input");
        if (brg_requires_grad(inputs[i])) {
            if (inputs[i]->dtype != BRG_DTYPE_F64)
                return BRG_FAIL(BRG_ERR_DTYPE,
                                "brg_gradcheck: input %zu is %s, expected f64",
                                i, brg__tensor_text(inputs[i], text));
            at[n_wanted] = i;
            wanted[n_wanted++] = inputs[i];
        }
        brg_tensor *copy = brg_copy(brg_detach(inputs[i]));
        if (!copy)
            return brg_error_code();
        c->inputs[i] = copy;
    }
    if (n_wanted == 0)
        return BRG_FAIL(BRG_ERR_ARG,
                        "brg_gradcheck: no input requires gradients");
    BRG_TRY(gradients(c, inputs, wanted, n_wanted, grads));
    for (size_t i = 0; i < n_wanted; i++)
        BRG_TRY(compare_input(c, at[i], grads[i]));
    return BRG_OK;
}

brg_status brg_gradcheck(brg_gradcheck_fn fn, void *user,
                         brg_tensor *const *inputs, size_t n_inputs,
                         const brg_gradcheck_options *options)
{
    brg_gradcheck_options o = BRG_GRADCHECK_OPTIONS_INIT;
    BRG_TRY(BRG_TAKE_OPTIONS(&o, options, "brg_gradcheck",
                             BRG_GRADCHECK_OPTIONS_INIT));
    size_t n_outputs = o.n_outputs ? o.n_outputs : 1;
    BRG_CHECK_ARG(fn && inputs, "brg_gradcheck: fn or inputs is NULL");
    BRG_CHECK_ARG(n_inputs <= MAX_INPUTS && n_outputs <= MAX_OUTPUTS,
                  "brg_gradcheck: at most %d inputs and %d outputs", MAX_INPUTS,
                  MAX_OUTPUTS);
    check c = {.fn = fn,
               .user = user,
               .n_inputs = n_inputs,
               .n_outputs = n_outputs,
               .seed = o.seed,
               .eps = o.eps > 0 ? o.eps : 1e-6,
               .atol = o.atol > 0 ? o.atol : 1e-5,
               .rtol = o.rtol > 0 ? o.rtol : 1e-3};
    brg_scope *scope = brg_scope_begin();
    if (!scope)
        return BRG_ERR_NOMEM;
    brg_status status = check_all(&c, inputs);
    brg_scope_end(scope);
    return status;
}
