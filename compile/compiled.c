/* SPDX-License-Identifier: Apache-2.0
 * Compiled functions: options bound to a function, in force around each call. */
#include <string.h>

#include "compile/compiler.h"
#include "core/base/error.h"

struct brg_compiled {
    brg_compiled_fn fn;
    void *user;
    brg_compile_options options;
};

brg_status brg_compiled_create(brg_compiled **out, brg_compiled_fn fn,
                               void *user, const brg_compile_options *options)
{
    BRG_CHECK_ARG(out, "brg_compiled_create: out is NULL");
    BRG_CHECK_ARG(fn, "brg_compiled_create: fn is NULL");
    *out = NULL;
    brg_compile_options checked;
    BRG_TRY(brg__compile_options_init(&checked, options,
                                      BRG_COMPILE_DYNAMIC_CHANGED));
    brg_compiled *compiled = BRG__NEW(brg_compiled);
    if (!compiled)
        return BRG_ERR_NOMEM;
    compiled->fn = fn;
    compiled->user = user;
    compiled->options = checked;
    *out = compiled;
    return BRG_OK;
}

void brg_compiled_destroy(brg_compiled *compiled)
{
    brg__mem_free(compiled);
}

brg_status brg_compiled_call(brg_compiled *compiled, brg_tensor *const *inputs,
                             size_t n_inputs, brg_tensor **outputs,
                             size_t n_outputs)
{
    BRG_CHECK_ARG(compiled, "brg_compiled_call: compiled is NULL");
    int scope;
    for (size_t j = 0; j < n_outputs; j++)
        outputs[j] = NULL;
    BRG_TRY(brg_compile_begin(&scope, &compiled->options));
    brg_status status =
        compiled->fn(inputs, n_inputs, outputs, n_outputs, compiled->user);
    bool is_closed = brg__compile_unwind(scope);
    if (status == BRG_OK && !is_closed)
        status = BRG_FAIL(BRG_ERR_STATE,
                          "Nested Compiled Autograd Contexts must return "
                          "before their parent context: the compiled function "
                          "left scopes of its own open");
    return status;
}
