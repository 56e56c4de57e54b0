/* SPDX-License-Identifier: Apache-2.0
 * The captured backward: building, printing, verifying. */
#include "compile/ir.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "core/base/error.h"
#include "core/base/tracer.h"
#include "core/base/log.h"

void brg__ir_deinit(brg__ir *ir)
{
    for (size_t i = 0; i < ir->values.n; i++)
        brg_release(ir->values.at[i].constant);
    for (size_t i = 0; i < ir->groups.n; i++)
        brg__mem_free(ir->groups.at[i]);
    brg__array_deinit(&ir->groups);
    brg__array_deinit(&ir->nodes);
    brg__array_deinit(&ir->values);
    brg__array_deinit(&ir->operands);
    brg__array_deinit(&ir->traced);
}

brg_status brg__ir_add_value(brg__ir *ir, const brg__ir_value *value, int *id)
{
    *id = (int)ir->values.n;
    return brg__array_push(&ir->values, *value);
}

brg_status brg__ir_add_node(brg__ir *ir, const brg__ir_node *node,
                            const int *in, int n_in)
{
    brg__ir_node fresh = *node;
    fresh.first_in = (int)ir->operands.n;
    fresh.n_in = n_in;
    fresh.first_out = (int)ir->values.n;
    BRG_TRY(brg__array_reserve(&ir->operands, (size_t)n_in));
    BRG_TRY(brg__array_push(&ir->nodes, fresh));
    for (int i = 0; i < n_in; i++)
        ir->operands.at[ir->operands.n++] = in[i];
    return BRG_OK;
}

/* ---- Text ---------------------------------------------------------------------- */

typedef struct text {
    char *at;
    size_t size, n;
} text;

static void put(text *t, const char *format, ...) BRG_PRINTF(2, 3);

static void put(text *t, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    size_t left = t->n < t->size ? t->size - t->n : 0;
    int n = vsnprintf(left ? t->at + t->n : NULL, left, format, args);
    va_end(args);
    t->n += n > 0 ? (size_t)n : 0;
}

static const char *const kind_names[] = {
#define KIND_NAME(name, text, is_pure) text,
    BRG__IR_KINDS(KIND_NAME)
#undef KIND_NAME
};

static void put_value(text *t, const brg__ir *ir, int id)
{
    if (id == BRG__IR_NONE) {
        put(t, "none");
        return;
    }
    const brg__ir_value *v = &ir->values.at[id];
    if (v->source == BRG__IR_FROM_INPUT)
        put(t, "in%d", v->index);
    else if (v->source == BRG__IR_FROM_SLOT)
        put(t, "slot%d.%d", v->visit, v->index);
    else if (v->source == BRG__IR_FROM_CONST)
        put(t, "const%d", id);
    else
        put(t, "v%d", id);
}

/* "[1..2]": hooks by position; "[r0.p3]": a gradient of a reduction;
 * "[r0.b1, scale 1/2]": a bucket. */
static void put_part(text *t, const brg__ir_node *n)
{
    if (n->hooks.n > 0 && n->hooks.n != UINT32_MAX)
        put(t, "[%u..%u]", n->hooks.first, n->hooks.first + n->hooks.n - 1);
    if (n->kind == BRG__IR_PACK || n->kind == BRG__IR_WRITE_BACK)
        put(t, "[r%d.p%d]", n->bucket.reduction, n->slot);
    if (n->kind == BRG__IR_START || n->kind == BRG__IR_WAIT)
        put(t, "[r%d.b%d", n->bucket.reduction, n->bucket.number);
    if (n->kind == BRG__IR_START && n->bucket.divisor > 1)
        put(t, ", scale 1/%d", n->bucket.divisor);
    if (n->kind == BRG__IR_START && n->bucket.divisor == 0)
        put(t, ", hook");
    if (n->kind == BRG__IR_START || n->kind == BRG__IR_WAIT)
        put(t, "]");
}

static void put_node(text *t, const brg__ir *ir, const brg__ir_node *n)
{
    for (int j = 0; j < n->n_out; j++) {
        const brg__ir_value *v = &ir->values.at[n->first_out + j];
        put(t, "%sv%d ", j ? ", " : "", n->first_out + j);
        if (v->is_token)
            put(t, "token");
        else
            put(t, "%s/%d", brg_dtype_name(v->dtype), v->ndim);
    }
    if (n->n_out > 0)
        put(t, " = ");
    if (n->segment)
        put(t, "s%llu_%d/", (unsigned long long)n->segment - 1, n->instance);
    put(t, "%s",
        n->kind == BRG__IR_OP       ? n->op->name
        : n->kind == BRG__IR_EFFECT ? n->effect->name
        : n->kind == BRG__IR_REGION ? n->region->name
                                    : kind_names[n->kind]);
    if (n->kind == BRG__IR_OUTPUT)
        put(t, "%d", n->slot);
    if (n->visit != BRG__IR_NONE)
        put(t, "@%d", n->visit);
    put_part(t, n);
    put(t, "(");
    for (int i = 0; i < n->n_in; i++) {
        put(t, "%s", i ? ", " : "");
        put_value(t, ir, brg__ir_in(ir, n)[i]);
    }
    put(t, ")");
    if (n->kind == BRG__IR_FUSED) {
        size_t left = t->n < t->size ? t->size - t->n : 0;
        put(t, " ");
        left -= left > 0;
        t->n += brg__group_print(ir->groups.at[n->group],
                                 left ? t->at + t->n : NULL, left);
    }
    put(t, n->is_split ? " split\n" : "\n");
}

size_t brg__ir_print(const brg__ir *ir, char *filled, size_t size)
{
    text t = {filled, size, 0};
    for (size_t i = 0; i < ir->nodes.n; i++)
        put_node(&t, ir, &ir->nodes.at[i]);
    put(&t, "final_callbacks()\n");
    return t.n;
}

void brg__ir_log(const brg__ir *ir, brg_log_level level, const char *prefix)
{
    if (brg_get_log_level() < level)
        return;
    size_t size = brg__ir_print(ir, NULL, 0) + 1;
    char *lines = brg__mem_alloc_array(size, 1, "a plan's text"), *rest = NULL;
    if (!lines)
        return;
    (void)brg__ir_print(ir, lines, size);
    for (const char *line = strtok_r(lines, "\n", &rest); line;
         line = strtok_r(NULL, "\n", &rest))
        brg__log(level, "compile", "%s%s", prefix, line);
    brg__mem_free(lines);
}

/* ---- Pieces ----------------------------------------------------------------------- */

static bool computes(const brg__ir_node *n)
{
    return n->kind == BRG__IR_OP || n->kind == BRG__IR_ADD ||
           n->kind == BRG__IR_FUSED || n->kind == BRG__IR_ACCUMULATE;
}

brg__ir_pieces brg__ir_count_pieces(const brg__ir *ir)
{
    brg__ir_pieces p = {.first_split = BRG__IR_NONE};
    bool is_empty = true, is_cut = false;
    for (size_t at = 0; at < ir->nodes.n; at++) {
        const brg__ir_node *n = &ir->nodes.at[at];
        if (n->is_split) {
            p.n_splits += !is_cut;
            if (p.first_split == BRG__IR_NONE)
                p.first_split = (int)at;
            is_cut = is_empty = true;
        } else if (computes(n)) {
            p.n_pieces += is_empty;
            is_cut = is_empty = false;
        }
    }
    return p;
}

/* ---- Verification ---------------------------------------------------------------- */

static brg_status verify_operands(const brg__ir *ir, size_t at)
{
    const brg__ir_node *n = &ir->nodes.at[at];
    for (int i = 0; i < n->n_in; i++) {
        int id = brg__ir_in(ir, n)[i];
        if (id == BRG__IR_NONE)
            continue;
        if (id < 0 || (size_t)id >= ir->values.n)
            return BRG_FAIL(BRG_ERR_INTERNAL,
                            "plan: node %zu reads value %d of %zu", at, id,
                            ir->values.n);
        const brg__ir_value *v = &ir->values.at[id];
        if (v->source == BRG__IR_FROM_NODE && v->node == BRG__IR_NONE)
            return BRG_FAIL(BRG_ERR_INTERNAL,
                            "plan: node %zu reads value %d, whose node is gone",
                            at, id);
        if (v->source == BRG__IR_FROM_NODE && (size_t)v->node >= at)
            return BRG_FAIL(BRG_ERR_INTERNAL,
                            "plan: node %zu reads value %d before node %d "
                            "makes it",
                            at, id, v->node);
    }
    return BRG_OK;
}

static brg_status verify_group(const brg__ir *ir, size_t at)
{
    const brg__ir_node *n = &ir->nodes.at[at];
    if (n->group < 0 || (size_t)n->group >= ir->groups.n)
        return BRG_FAIL(BRG_ERR_INTERNAL, "plan: node %zu runs group %d of %zu",
                        at, n->group, ir->groups.n);
    const brg__group *group = ir->groups.at[n->group];
    if (n->n_in != group->n_in || n->n_out != group->n_out)
        return BRG_FAIL(BRG_ERR_INTERNAL,
                        "plan: node %zu has %d operands and %d results, its "
                        "group %d and %d",
                        at, n->n_in, n->n_out, group->n_in, group->n_out);
    return brg__group_verify(group);
}

brg_status brg__ir_verify(const brg__ir *ir)
{
    for (size_t at = 0; at < ir->nodes.n; at++) {
        const brg__ir_node *n = &ir->nodes.at[at];
        BRG_TRY(verify_operands(ir, at));
        if (n->kind == BRG__IR_OP &&
            (n->n_in != n->op->n_in || n->n_out != n->op->n_out))
            return BRG_FAIL(BRG_ERR_INTERNAL,
                            "plan: node %zu calls %s with %d operands and %d "
                            "results, its row says %d and %d",
                            at, n->op->name, n->n_in, n->n_out, n->op->n_in,
                            n->op->n_out);
        if (n->kind == BRG__IR_FUSED)
            BRG_TRY(verify_group(ir, at));
        if ((size_t)(n->first_out + n->n_out) > ir->values.n)
            return BRG_FAIL(BRG_ERR_INTERNAL,
                            "plan: node %zu makes values that are not there",
                            at);
        for (int j = 0; j < n->n_out; j++)
            if (ir->values.at[n->first_out + j].node != (int)at)
                return BRG_FAIL(BRG_ERR_INTERNAL,
                                "plan: value %d is not of node %zu",
                                n->first_out + j, at);
    }
    return BRG_OK;
}
