/* SPDX-License-Identifier: Apache-2.0
 * Branches and loops in a function that is being captured: seen with symbols
 * for the shapes of their results, which is forgotten, and written down as one
 * call. */
#include <string.h>

#include "compile/capture.h"
#include "compile/trace_inside.h"
#include "core/ops/random.h"

/* ---- Trials -------------------------------------------------------------------------- */

brg_status brg__trace_trial_begin(brg__tracer *self)
{
    brg__tracing *t = brg__tracing_of(self);
    if (t->trial.is_on)
        return brg__tracer_refuse("a branch or loop inside another",
                                  "take it out of the function");
    BRG_TRY(brg__capture_point());
    t->trial = (brg__trial){.is_on = true,
                            .n_nodes = t->ir->nodes.n,
                            .n_values = t->ir->values.n,
                            .n_operands = t->ir->operands.n,
                            .n_symbols = t->symbols.n,
                            .n_draws = t->draws.n,
                            .n_effects = t->captured->effects.n};
    brg_random_get_state(&t->trial.random);
    return BRG_OK;
}

static bool is_given(int id, const int *in, int n_in)
{
    for (int k = 0; k < n_in; k++)
        if (in[k] == id)
            return true;
    return id == BRG__IR_NONE;
}

/* A value from before the trial that is read and was not handed in. */
static bool reads_beside(const brg__tracing *t, const int *in, int n_in)
{
    const brg__ir *ir = t->ir;
    for (size_t i = t->trial.n_operands; i < ir->operands.n; i++) {
        int id = ir->operands.at[i];
        if (!is_given(id, in, n_in) && (size_t)id < t->trial.n_values &&
            ir->values.at[id].source != BRG__IR_FROM_CONST)
            return true;
    }
    return false;
}

/* The same for what gets a gradient. */
static bool reads_parameters(const brg__tracing *t, const int *in, int n_in)
{
    for (size_t i = t->trial.n_operands; i < t->ir->operands.n; i++) {
        int id = t->ir->operands.at[i];
        if (!is_given(id, in, n_in) && t->ir->values.at[id].constant &&
            brg_requires_grad(t->ir->values.at[id].constant))
            return true;
    }
    return false;
}

static void forget(brg__tracing *t)
{
    const brg__trial *before = &t->trial;
    for (size_t i = before->n_values; i < t->ir->values.n; i++)
        brg_release(t->ir->values.at[i].constant);
    t->ir->nodes.n = before->n_nodes;
    t->ir->values.n = before->n_values;
    t->ir->operands.n = before->n_operands;
    for (size_t i = 0; i < t->constants.n; i++) {
        const brg_tensor *symbol = t->constants.at[i];
        if (symbol && (uint32_t)(uintptr_t)symbol->symbol > before->n_symbols)
            t->constants.at[i] = NULL;
    }
    while (t->symbols.n > before->n_symbols)
        brg_release(t->symbols.at[--t->symbols.n].tensor);
    t->draws.n = before->n_draws;
    brg__random_set_state(&before->random);
}

static int value_of(brg__tracing *t, const brg_tensor *tensor)
{
    const brg__symbol *symbol =
        tensor && tensor->symbol ? brg__trace_symbol(t, tensor) : NULL;
    return symbol ? symbol->value : BRG__IR_NONE;
}

brg_status brg__trace_trial_end(brg__tracer *self, brg_tensor *const *in,
                                int n_in, bool is_recorded)
{
    brg__tracing *t = brg__tracing_of(self);
    int ids[BRG__IR_MAX_IN];
    bool has_effects = t->captured->effects.n > t->trial.n_effects;
    for (int i = 0; i < n_in; i++)
        ids[i] = value_of(t, in[i]);
    bool reads = reads_beside(t, ids, n_in);
    bool reads_leaves = is_recorded && reads_parameters(t, ids, n_in);
    forget(t);
    t->trial.is_on = false;
    if (has_effects)
        return brg__tracer_refuse("a change of tensors in a branch or loop",
                                  "take it out of the function");
    if (reads || reads_leaves)
        return brg__tracer_refuse(reads ? "a value that a branch or loop uses "
                                          "beside its inputs"
                                        : "a parameter in a branch or loop",
                                  "make it one of its inputs");
    return BRG_OK;
}

/* ---- Calls ------------------------------------------------------------------------------ */

static brg_status copy_region(brg__tracing *t, const brg__traced_region *region,
                              brg__traced_region **out)
{
    *out = BRG__NEW(brg__traced_region);
    if (!*out)
        return BRG_ERR_NOMEM;
    **out = *region;
    brg_status status = brg__array_push(&t->captured->regions, *out);
    if (status != BRG_OK)
        brg__mem_free(*out);
    return status;
}

brg_status brg__trace_call(brg__tracer *self, const brg__traced_region *region,
                           brg_tensor *const *in, brg_tensor **out)
{
    brg__tracing *t = brg__tracing_of(self);
    brg__traced_region *kept;
    int ids[BRG__IR_MAX_IN];
    if (region->n_in > BRG__IR_MAX_IN)
        return brg__tracer_refuse(region->name, "it has too many inputs");
    BRG_TRY(brg__capture_point());
    BRG_TRY(copy_region(t, region, &kept));
    for (int i = 0; i < region->n_in; i++) {
        brg_tensor *operand = in[i];
        BRG_TRY(brg__trace_operand(t, &operand, &ids[i]));
    }
    brg__ir_node node = {.kind = BRG__IR_REGION,
                         .region = kept,
                         .lifted = BRG__IR_NONE,
                         .visit = BRG__IR_NONE,
                         .n_out = region->n_out};
    BRG_TRY(brg__ir_add_node(t->ir, &node, ids, region->n_in));
    int at = (int)t->ir->nodes.n - 1;
    t->captured->has_regions = true;
    for (int j = 0; j < region->n_out; j++) {
        brg__ir_value value = {.source = BRG__IR_FROM_NODE, .node = at};
        brg__layout layout;
        brg__region_layout(region, j, &layout);
        BRG_TRY(brg__trace_new(t, value, &layout, &out[j]));
        out[j] = brg__scope_adopt(brg_retain(out[j]));
        if (!out[j])
            return brg_error_code();
    }
    return BRG_OK;
}

void brg__region_layout(const brg__traced_region *region, int j,
                        brg__layout *layout)
{
    *layout = (brg__layout){.dtype = region->dtype[j], .ndim = region->ndim[j]};
    memcpy(layout->shape, region->shape[j], sizeof layout->shape);
    brg__shape_strides(layout->ndim, layout->shape, layout->stride);
}
