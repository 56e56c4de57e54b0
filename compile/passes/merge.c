/* SPDX-License-Identifier: Apache-2.0
 * Merging, in plans of whole functions on a device: an op and what follows it
 * become one of the rows of core/ops/merged.c, for which the device has a kernel.
 *
 *     gelu(linear)                                   linear_gelu
 *     add(r, linear)                                 linear_add
 *     gelu_grad(matmul(g, w), y)                     matmul_gelu_grad
 *     add(r, layer_norm_grad)                        layer_norm_grad_add
 *     either, and the sum of its rows                layer_norm_grad_sum
 *     cross_entropy, its gradient by a backward      cross_entropy_with_grad
 *
 * What is merged runs where the first of its ops was, so the others move up: not
 * past what makes their operands, nor past an effect if an operand is memory
 * that it may change. layer_norm_grad_add and cross_entropy_with_grad have the bits
 * of what they stand for; the others round once instead of twice, or sum in another
 * order, and are for the backend FUSED. */
#include "compile/passes/passes.h"

#include <string.h>

#include "core/base/tracer.h"
#include "core/base/error.h"
#include "core/ops/op.h"
#include "core/ops/rows.h"
#include "core/tensor/tensor.h"

#define NONE BRG__IR_NONE

typedef struct merger {
    brg__ir *ir;
    size_t n_nodes, n_values; /* before any is added */
    int *n_uses;              /* of each value */
    int *n_effects;           /* among the nodes before */
    bool *may_lack;           /* of each value: it may be undefined */
    int *root;                /* of each value: whose memory it may be */
    bool *is_handed;          /* of each root: code of the user may change it */
    int *place;               /* of each node: where it runs now */
    int *becomes;             /* of each node: what runs there; NONE: nothing */
    int *to;                  /* what each value has become */
    brg_device device;
} merger;

static const brg__ir_node *node_at(const merger *m, int at)
{
    return &m->ir->nodes.at[at];
}

static const int *in_of(const merger *m, int at)
{
    return brg__ir_in(m->ir, node_at(m, at));
}

static const brg__ir_value *value_at(const merger *m, int id)
{
    return &m->ir->values.at[id];
}

/* ---- What is known of the plan --------------------------------------------------- */

/* Of the constants, of which some lie on it. */
static brg_device find_device(const brg__ir *ir)
{
    for (size_t id = 0; id < ir->values.n; id++) {
        const brg_tensor *t = ir->values.at[id].constant;
        if (t && t->device.type != BRG_DEVICE_CPU)
            return t->device;
    }
    return BRG_CPU;
}

static bool makes_defined(const merger *m, const brg__ir_node *node)
{
    if (node->kind != BRG__IR_OP && node->kind != BRG__IR_ADD &&
        node->kind != BRG__IR_VALIDATE)
        return false;
    for (int i = 0; i < node->n_in; i++) {
        const int id = brg__ir_in(m->ir, node)[i];
        if (id != NONE && m->may_lack[id])
            return false;
    }
    return true;
}

/* The begin of the backward changes no tensor. */
static bool is_effect(const brg__ir_node *node)
{
    return !brg__ir_is_pure(node) && node->kind != BRG__IR_VALIDATE &&
           !(node->kind == BRG__IR_EFFECT &&
             strcmp(node->effect->name, "backward_begin") == 0);
}

static void look_through(merger *m)
{
    for (size_t id = 0; id < m->n_values; id++)
        m->to[id] = (int)id;
    for (size_t at = 0; at < m->n_nodes; at++) {
        const brg__ir_node *node = node_at(m, (int)at);
        m->place[at] = m->becomes[at] = (int)at;
        m->n_effects[at + 1] = m->n_effects[at] + is_effect(node);
        const bool is_defined = makes_defined(m, node);
        for (int j = 0; j < node->n_out; j++)
            m->may_lack[node->first_out + j] = !is_defined;
    }
    brg__ir_count_uses(m->ir, m->n_uses);
    brg__ir_find_roots(m->ir, m->root, m->is_handed);
}

static brg_status merger_init(merger *m, brg__ir *ir)
{
    const size_t n = ir->nodes.n + 1, v = ir->values.n + 1;
    *m = (merger){.ir = ir, .n_nodes = n - 1, .n_values = v - 1};
    m->device = find_device(ir);
    m->n_uses = brg__mem_alloc_array(v, sizeof *m->n_uses, "uses");
    m->n_effects = brg__mem_alloc_array(n, sizeof *m->n_effects, "effects");
    m->may_lack = brg__mem_alloc_array(v, sizeof *m->may_lack, "values");
    m->root = brg__mem_alloc_array(v, sizeof *m->root, "roots");
    m->is_handed = brg__mem_alloc_array(v, sizeof *m->is_handed, "roots");
    m->place = brg__mem_alloc_array(n, sizeof *m->place, "places");
    m->becomes = brg__mem_alloc_array(n, sizeof *m->becomes, "nodes");
    /* values that are added are fewer than those that were */
    m->to = brg__mem_alloc_array(2 * v, sizeof *m->to, "values");
    if (!m->n_uses || !m->n_effects || !m->may_lack || !m->root ||
        !m->is_handed || !m->place || !m->becomes || !m->to)
        return BRG_ERR_NOMEM;
    look_through(m);
    return BRG_OK;
}

static void merger_deinit(merger *m)
{
    brg__mem_free(m->n_uses);
    brg__mem_free(m->n_effects);
    brg__mem_free(m->may_lack);
    brg__mem_free(m->root);
    brg__mem_free(m->is_handed);
    brg__mem_free(m->place);
    brg__mem_free(m->becomes);
    brg__mem_free(m->to);
}

/* ---- May it run there? ------------------------------------------------------------- */

static bool is_op(const merger *m, int at, const brg_op *op)
{
    const brg__ir_node *node = node_at(m, at);
    return node->kind == BRG__IR_OP && node->op == op && node->lifted == NONE &&
           node->draw == 0 && m->becomes[at] == at;
}

/* The first op of that kind behind node `at` that reads the value, or NONE. */
static int user_of(const merger *m, int at, int id, const brg_op *op)
{
    for (int n = m->n_uses[id], u = at + 1; n > 0 && u < (int)m->n_nodes; u++)
        for (int i = 0; i < node_at(m, u)->n_in; i++) {
            if (in_of(m, u)[i] != id)
                continue;
            if (is_op(m, u, op))
                return u;
            n--;
        }
    return NONE;
}

/* The same for a sum of gradients that meet, or an addition: and only that reads
 * the value. *other: the other operand. */
static int sum_of(const merger *m, int at, int id, int *other)
{
    if (m->n_uses[id] != 1)
        return NONE;
    for (int u = at + 1; u < (int)m->n_nodes; u++) {
        const int *in = in_of(m, u);
        const bool is_fan_in =
            node_at(m, u)->kind == BRG__IR_ADD && m->becomes[u] == u;
        if (node_at(m, u)->n_in != 2 || (in[0] != id && in[1] != id))
            continue;
        *other = in[in[0] == id];
        return (is_fan_in || is_op(m, u, &brg__op_add)) && *other != NONE &&
                       !m->may_lack[*other] && !m->may_lack[id]
                   ? u
                   : NONE;
    }
    return NONE;
}

/* The value is there, and is what it will be at `from`, where it is read now. */
static bool is_there(const merger *m, int id, int at, int from)
{
    const int maker = brg__ir_maker(m->ir, id);
    if (maker != NONE && m->place[maker] >= at)
        return false;
    const bool is_input =
        value_at(m, m->root[id])->source == BRG__IR_FROM_INPUT;
    return m->n_effects[from] == m->n_effects[at] ||
           !(m->is_handed[m->root[id]] || is_input);
}

static bool is_alike(const merger *m, int a, int b)
{
    const brg__ir_value *x = value_at(m, a), *y = value_at(m, b);
    return x->dtype == y->dtype && x->ndim == y->ndim && x->ones == y->ones;
}

/* ---- Merging -------------------------------------------------------------------------- */

/* What takes the place of a node; its outputs are what the listed values
 * become. */
typedef struct merged {
    const brg_op *op;
    brg_attrs attrs;
    int in[BRG_MAX_OP_INPUTS];
    int n_in;
    int out[BRG_MAX_OP_OUTPUTS];
} merged;

static bool has_kernel(const merger *m, const brg_op *op)
{
    return brg__kernel_exists(op, m->device);
}

/* The node's results are made by what runs at `at`. */
static void drop(merger *m, int node, int at)
{
    m->becomes[node] = NONE;
    m->place[node] = at;
}

/* The op at `gone` goes, too. */
static brg_status merge(merger *m, int at, int gone, const merged *what)
{
    const brg__ir_node node = {.kind = BRG__IR_OP,
                               .op = what->op,
                               .attrs = what->attrs,
                               .lifted = NONE,
                               .visit = NONE,
                               .n_out = what->op->n_out};
    const int number = (int)m->ir->nodes.n;
    BRG_TRY(brg__ir_add_node(m->ir, &node, what->in, what->n_in));
    for (int j = 0; j < node.n_out; j++) {
        brg__ir_value value = *value_at(m, what->out[j]);
        value.node = number;
        BRG_TRY(brg__ir_add_value(m->ir, &value, &m->to[what->out[j]]));
    }
    m->becomes[at] = number;
    drop(m, gone, at);
    return BRG_OK;
}

/* Operands of node `at`, and one more unless it is NONE. */
static merged begin(const merger *m, int at, const brg_op *op, int more)
{
    const brg__ir_node *node = node_at(m, at);
    merged what = {.op = op, .attrs = node->attrs, .n_in = node->n_in};
    memcpy(what.in, in_of(m, at), (size_t)node->n_in * sizeof *what.in);
    if (more != NONE)
        what.in[what.n_in++] = more;
    for (int j = 0; j < node->n_out; j++)
        what.out[j] = node->first_out + j;
    return what;
}

static brg_status merge_linear(merger *m, int at)
{
    const int y = node_at(m, at)->first_out;
    int r, next = user_of(m, at, y, &brg__op_gelu);
    if (next != NONE && has_kernel(m, &brg__op_linear_gelu)) {
        merged what = begin(m, at, &brg__op_linear_gelu, NONE);
        what.out[0] = node_at(m, next)->first_out;
        what.out[1] = y;
        return merge(m, at, next, &what);
    }
    next = sum_of(m, at, y, &r);
    if (next == NONE || !is_alike(m, r, y) || !is_there(m, r, at, next) ||
        !has_kernel(m, &brg__op_linear_add))
        return BRG_OK;
    merged what = begin(m, at, &brg__op_linear_add, r);
    what.out[0] = node_at(m, next)->first_out;
    return merge(m, at, next, &what);
}

static brg_status merge_matmul(merger *m, int at)
{
    const int gz = node_at(m, at)->first_out;
    const int next = user_of(m, at, gz, &brg__op_gelu_grad);
    if (next == NONE || m->n_uses[gz] != 1 || in_of(m, next)[0] != gz)
        return BRG_OK;
    const int y = in_of(m, next)[1];
    if (!is_alike(m, y, gz) || !is_there(m, y, at, next) ||
        !has_kernel(m, &brg__op_matmul_gelu_grad))
        return BRG_OK;
    merged what = begin(m, at, &brg__op_matmul_gelu_grad, y);
    what.out[0] = node_at(m, next)->first_out;
    return merge(m, at, next, &what);
}

/* The op that sums a gradient of rows of one dim over them, for a bias; or NONE. */
static int sum_of_rows(const merger *m, int at, int g)
{
    const int sum = user_of(m, at, g, &brg__op_sum_to_like);
    if (sum == NONE || !m->ir->wants_kernels || in_of(m, sum)[0] != g ||
        node_at(m, at)->attrs.i[0] != 1 ||
        !has_kernel(m, &brg__op_layer_norm_grad_sum))
        return NONE;
    const brg__ir_value *like = value_at(m, in_of(m, sum)[1]);
    return like->ndim == 1 && like->ones == 0 ? sum : NONE;
}

static brg_status merge_layer_norm_grad(merger *m, int at)
{
    const int gx = node_at(m, at)->first_out;
    int r = NONE, next = sum_of(m, at, gx, &r);
    if (next == NONE || !is_alike(m, r, gx) || !is_there(m, r, at, next) ||
        !has_kernel(m, &brg__op_layer_norm_grad_add))
        next = r = NONE;
    const int made = next == NONE ? gx : node_at(m, next)->first_out;
    const int sum = sum_of_rows(m, at, made);
    if (next == NONE && sum == NONE)
        return BRG_OK;
    merged what = begin(m, at, &brg__op_layer_norm_grad_add, r);
    what.out[0] = made;
    if (sum == NONE)
        return merge(m, at, next, &what);
    what.op = &brg__op_layer_norm_grad_sum;
    what.in[5] = r;
    what.n_in = 6;
    what.out[3] = node_at(m, sum)->first_out;
    if (next != NONE)
        drop(m, next, at);
    return merge(m, at, sum, &what);
}

/* The number that a tensor of that dtype holds. */
static double as_stored(brg_dtype dtype, double value)
{
    char at[sizeof(double)];
    brg__put_f64(at, dtype, 0, value);
    return brg__get_f64(at, dtype, 0);
}

/* The gradient is read where the loss is if a backward begins with the loss: it
 * is then a number that the plan knows. */
static brg_status merge_cross_entropy(merger *m, int at)
{
    const brg__ir_node *node = node_at(m, at);
    const int loss = node->first_out, *in = in_of(m, at);
    const int next = user_of(m, at, loss + 1, &brg__op_cross_entropy_grad);
    if (next == NONE || !has_kernel(m, &brg__op_cross_entropy_with_grad))
        return BRG_OK;
    const int *of = in_of(m, next), seed = brg__ir_maker(m->ir, of[0]);
    if (of[1] != in[0] || of[2] != in[1] || of[3] != loss + 1 ||
        memcmp(&node_at(m, next)->attrs, &node->attrs, sizeof node->attrs) !=
            0 ||
        !is_there(m, in[0], at, next) || !is_there(m, in[1], at, next) ||
        seed == NONE || !is_op(m, seed, &brg__op_full_like) ||
        in_of(m, seed)[0] != loss)
        return BRG_OK;
    merged what = begin(m, at, &brg__op_cross_entropy_with_grad, NONE);
    what.attrs.f[1] =
        as_stored(value_at(m, loss)->dtype, node_at(m, seed)->attrs.f[0]);
    what.out[2] = node_at(m, next)->first_out;
    if (m->n_uses[of[0]] == 1)
        drop(m, seed, at);
    return merge(m, at, next, &what);
}

static brg_status merge_node(merger *m, int at)
{
    const brg__ir_node *node = node_at(m, at);
    if (node->kind != BRG__IR_OP || m->becomes[at] != at ||
        value_at(m, node->first_out)->dtype == BRG_DTYPE_F64)
        return BRG_OK;
    if (is_op(m, at, &brg__op_layer_norm_grad))
        return merge_layer_norm_grad(m, at);
    if (is_op(m, at, &brg__op_cross_entropy))
        return merge_cross_entropy(m, at);
    if (!m->ir->wants_kernels)
        return BRG_OK;
    return is_op(m, at, &brg__op_linear)   ? merge_linear(m, at)
           : is_op(m, at, &brg__op_matmul) ? merge_matmul(m, at)
                                           : BRG_OK;
}

/* Merged nodes take their places. */
static brg_status finish(merger *m)
{
    size_t n = 0;
    for (size_t id = m->n_values; id < m->ir->values.n; id++)
        m->to[id] = (int)id;
    brg__ir_rename(m->ir, m->to);
    for (size_t at = 0; at < m->n_nodes; at++)
        if (m->becomes[at] != NONE)
            m->place[n++] = m->becomes[at];
    return brg__ir_arrange(m->ir, m->place, n);
}

brg_status brg__pass_merge(brg__ir *ir)
{
    merger m;
    brg_status status = merger_init(&m, ir);
    for (int at = 0; status == BRG_OK && at < (int)m.n_nodes; at++)
        status = merge_node(&m, at);
    if (status == BRG_OK && ir->nodes.n > m.n_nodes)
        status = finish(&m);
    merger_deinit(&m);
    return status;
}
