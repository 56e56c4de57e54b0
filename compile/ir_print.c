/* SPDX-License-Identifier: Apache-2.0
 * A plan as text, one node a line, and as a graph for Graphviz. Both depend on
 * nothing but the plan: golden tests compare them. */
#include <string.h>

#include "compile/ir.h"
#include "core/base/error.h"
#include "core/base/log.h"
#include "core/base/text.h"
#include "core/base/tracer.h"

#define put brg__text_add

static const char *const kind_names[] = {
#define KIND_NAME(name, text, is_pure) text,
    BRG__IR_KINDS(KIND_NAME)
#undef KIND_NAME
};

static void put_value(brg__text *t, const brg__ir *ir, int id)
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

/* "[1..2]": hooks by position; "[0]": which gradient of the node; "[r0.p3]": a
 * gradient of a reduction; "[r0.b1, scale 1/2]": a bucket. */
static void put_part(brg__text *t, const brg__ir_node *n)
{
    if (n->hooks.n > 0 && n->hooks.n != UINT32_MAX)
        put(t, "[%u..%u]", n->hooks.first, n->hooks.first + n->hooks.n - 1);
    if (n->kind == BRG__IR_VALIDATE)
        put(t, "[%d]", n->slot);
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

static void put_group(brg__text *t, const brg__ir *ir, const brg__ir_node *n)
{
    brg__group_print(ir->groups.at[n->group], t);
}

/* What the node is, and of what: "s3_0/mul", "accumulate@5". */
static void put_name(brg__text *t, const brg__ir_node *n)
{
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
}

static void put_type(brg__text *t, const brg__ir_value *v)
{
    if (v->is_token)
        put(t, "token");
    else
        put(t, "%s/%d", brg_dtype_name(v->dtype), v->ndim);
}

static void put_node(brg__text *t, const brg__ir *ir, const brg__ir_node *n)
{
    for (int j = 0; j < n->n_out; j++) {
        const brg__ir_value *v = &ir->values.at[n->first_out + j];
        put(t, "%sv%d ", j ? ", " : "", n->first_out + j);
        put_type(t, v);
    }
    if (n->n_out > 0)
        put(t, " = ");
    put_name(t, n);
    put(t, "(");
    for (int i = 0; i < n->n_in; i++) {
        put(t, "%s", i ? ", " : "");
        put_value(t, ir, brg__ir_in(ir, n)[i]);
    }
    put(t, ")");
    if (n->kind == BRG__IR_FUSED) {
        put(t, " ");
        put_group(t, ir, n);
    }
    put(t, n->is_stretch ? " stretch" : "");
    put(t, n->is_split ? " split\n" : "\n");
}

static void put_mask(brg__text *t, const char *what, uint32_t mask)
{
    put(t, ", %s", what);
    for (int i = 0; i < 32; i++)
        if (mask >> i & 1u)
            put(t, " %d", i);
    if (!mask)
        put(t, " none");
}

/* "function@1 MyFn(2 -> 1): saved 1, of arguments 0, tensors 0 1, gradients 0,
 * non-differentiable none" */
static void put_function(brg__text *t, const brg__ir_function *f)
{
    put(t, "function@%d %s(%d -> %d): saved %d", f->visit, f->name, f->n_args,
        f->n_out, f->n_saved);
    put_mask(t, "of arguments", f->saved_args);
    put_mask(t, "tensors", f->tensors);
    put_mask(t, "gradients", f->grads);
    put_mask(t, "non-differentiable", f->non_differentiable);
    put(t, "\n");
}

size_t brg__ir_print(const brg__ir *ir, char *filled, size_t size)
{
    brg__text t = brg__text_begin(filled, size);
    for (size_t i = 0; i < ir->functions.n; i++)
        put_function(&t, &ir->functions.at[i]);
    for (size_t i = 0; i < ir->nodes.n; i++)
        put_node(&t, ir, &ir->nodes.at[i]);
    return t.length;
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

/* ---- Graphviz ------------------------------------------------------------------- */

/* In a quoted string of the dot language. */
static void put_escaped(brg__text *t, const char *s)
{
    for (; *s; s++)
        put(t, *s == '"' || *s == '\\' ? "\\%c" : "%c", *s);
}

static void put_dot_node(brg__text *t, const brg__ir *ir, size_t at)
{
    const brg__ir_node *n = &ir->nodes.at[at];
    char label[1024];
    brg__text l = brg__text_begin(label, sizeof label);
    put_name(&l, n);
    if (n->kind == BRG__IR_FUSED) {
        put(&l, " ");
        put_group(&l, ir, n);
    }
    put(t, "  n%zu [label=\"", at);
    put_escaped(t, label);
    put(t, "\"%s];\n",
        brg__ir_is_reduction(n) ? ", style=filled, fillcolor=lightblue"
        : brg__ir_is_pure(n)    ? ""
                                : ", style=filled, fillcolor=lightgrey");
}

/* What comes from outside is a node of its own for each user. */
static void put_dot_operand(brg__text *t, const brg__ir *ir, size_t at, int i)
{
    int id = brg__ir_in(ir, &ir->nodes.at[at])[i];
    if (id == BRG__IR_NONE)
        return;
    const brg__ir_value *v = &ir->values.at[id];
    if (v->source == BRG__IR_FROM_NODE) {
        put(t, "  n%d -> n%zu [label=\"v%d ", v->node, at, id);
    } else {
        put(t, "  n%zu_%d [shape=plain, label=\"", at, i);
        put_value(t, ir, id);
        put(t, "\"];\n  n%zu_%d -> n%zu [label=\"", at, i, at);
    }
    put_type(t, v);
    put(t, "\"];\n");
}

size_t brg__ir_print_dot(const brg__ir *ir, char *filled, size_t size)
{
    brg__text t = brg__text_begin(filled, size);
    int last = BRG__IR_NONE;
    put(&t, "digraph plan {\n  node [shape=box];\n");
    for (size_t at = 0; at < ir->nodes.n; at++) {
        const brg__ir_node *n = &ir->nodes.at[at];
        put_dot_node(&t, ir, at);
        for (int i = 0; i < n->n_in; i++)
            put_dot_operand(&t, ir, at, i);
        if (brg__ir_is_pure(n))
            continue;
        if (last != BRG__IR_NONE)
            put(&t, "  n%d -> n%zu [style=dashed];\n", last, at);
        last = (int)at;
    }
    put(&t, "}\n");
    return t.length;
}
