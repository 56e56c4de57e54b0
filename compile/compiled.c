/* SPDX-License-Identifier: Apache-2.0
 * Compiled functions: options bound to a function, in force around each call. */
#include <string.h>

#include "compile/compiler.h"
#include "compile/function.h"
#include "core/base/error.h"
#include "core/base/tracer.h"

struct brg_compiled {
    brg_compiled_fn fn;
    void *user;
    brg_compile_options options;
    brg__function function; /* of `whole` */
};

brg_status brg_compiled_create(brg_compiled **out, brg_compiled_fn fn,
                               void *user, const brg_compile_options *options)
{
    BRG_CHECK_ARG(out, "brg_compiled_create: out is NULL");
    *out = NULL;
    BRG_CHECK_ARG(fn, "brg_compiled_create: fn is NULL");
    brg_compile_options checked;
    BRG_TRY(brg__compile_options_init(&checked, options,
                                      BRG_COMPILE_DYNAMIC_CHANGED));
    brg_compiled *compiled = BRG__NEW(brg_compiled);
    if (!compiled)
        return BRG_ERR_NOMEM;
    compiled->fn = fn;
    compiled->user = user;
    compiled->options = checked;
    brg__function_init(&compiled->function);
    compiled->function.is_all_dynamic =
        checked.dynamic == BRG_COMPILE_DYNAMIC_ALL;
    compiled->function.backend = checked.backend;
    compiled->function.is_relaunched = checked.replay;
    *out = compiled;
    return BRG_OK;
}

void brg_compiled_destroy(brg_compiled *compiled)
{
    if (compiled)
        brg__function_deinit(&compiled->function);
    brg__mem_free(compiled);
}

brg_status brg_compiled_mark_dynamic(brg_compiled *compiled, size_t input,
                                     int dim)
{
    BRG_CHECK_ARG(compiled, "brg_compiled_mark_dynamic: compiled is NULL");
    BRG_CHECK_ARG(
        input < BRG__MAX_MARKED && dim >= 0 && dim < BRG_MAX_DIMS,
        "brg_compiled_mark_dynamic: input %zu, dim %d: expected below "
        "%d and %d",
        input, dim, BRG__MAX_MARKED, BRG_MAX_DIMS);
    return brg__function_mark(&compiled->function, input, dim);
}

size_t brg_compiled_print(const brg_compiled *compiled, size_t i, char *filled,
                          size_t size)
{
    for (size_t k = 0; compiled && k < compiled->function.n_variants; k++) {
        const brg__segment *s = compiled->function.variants[k].segment;
        size_t n = !s ? 0 : s->captured.n_slots > 0 ? 2 : 1;
        if (i < n)
            return brg__ir_print(
                i ? &s->captured.backward : &s->captured.forward, filled, size);
        i -= n;
    }
    return 0;
}

/* Through what was captured of it; *why: why it was not called. */
static brg_status call_captured(brg_compiled *compiled,
                                brg_tensor *const *inputs, size_t n_inputs,
                                brg_tensor **outputs, size_t n_outputs,
                                const char **why)
{
    brg_compile_stats *stats = &brg__compiler_mine()->stats;
    brg__traced_call call = {.fn = compiled->fn,
                             .user = compiled->user,
                             .inputs = inputs,
                             .n_inputs = n_inputs,
                             .n_outputs = n_outputs};
    brg__call_outcome outcome = {0};
    brg_status status =
        brg__function_call(&compiled->function, &call, outputs, &outcome);
    *why = outcome.why;
    stats->functions += outcome.is_captured;
    stats->buckets += outcome.n_buckets;
    stats->function_hits += outcome.is_hit;
    if (!outcome.why || brg__is_traced())
        return status;
    brg__reason_of_fallback(brg__compiler_mine(), outcome.why);
    if (compiled->options.fullgraph)
        return BRG_FAIL(BRG_ERR_UNSUPPORTED,
                        "fullgraph: this function cannot be captured: %s",
                        outcome.why);
    stats->function_fallbacks++;
    if (status != BRG_OK || outcome.is_unfit)
        return status;
    *why = NULL;
    return brg__pieces_call(&compiled->function, &call, outputs,
                            &stats->function_pieces);
}

brg_status brg_compiled_call(brg_compiled *compiled, brg_tensor *const *inputs,
                             size_t n_inputs, brg_tensor **outputs,
                             size_t n_outputs)
{
    BRG_CHECK_ARG(compiled, "brg_compiled_call: compiled is NULL");
    BRG_CHECK_ARG(inputs || n_inputs == 0,
                  "brg_compiled_call: inputs is NULL, n_inputs %zu", n_inputs);
    BRG_CHECK_ARG(outputs || n_outputs == 0,
                  "brg_compiled_call: outputs is NULL, n_outputs %zu",
                  n_outputs);
    int scope;
    for (size_t j = 0; j < n_outputs; j++)
        outputs[j] = NULL;
    BRG_TRY(brg_compile_begin(&scope, &compiled->options));
    const char *why = "";
    brg_status status = BRG_OK;
    if (compiled->options.whole && brg__compile_may_capture())
        status =
            call_captured(compiled, inputs, n_inputs, outputs, n_outputs, &why);
    if (why && status == BRG_OK) {
        status =
            compiled->fn(inputs, n_inputs, outputs, n_outputs, compiled->user);
        BRG_EXPLAIN(status, "the function");
    }
    bool is_closed = brg__compile_unwind(scope);
    if (status == BRG_OK && !is_closed)
        status = BRG_FAIL(BRG_ERR_STATE,
                          "Nested Compiled Autograd Contexts must return "
                          "before their parent context: the compiled function "
                          "left scopes of its own open");
    return status;
}
