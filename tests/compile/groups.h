/* SPDX-License-Identifier: Apache-2.0
 * Random groups with operands, and their values by eager ops: what the
 * interpreter and the generated kernels are compared with. */
#ifndef BRG_TESTS_COMPILE_GROUPS_H
#define BRG_TESTS_COMPILE_GROUPS_H

#include <brigade/ops.h>
#include <brigade/random.h>

#include "compile/fuse/fused.h"
#include "core/ops/op.h"
#include "tests/support/brg_test.h"

#define MAX_DIM 160

/* Random numbers of one case. */
typedef struct chance {
    uint64_t state;
} chance;

static inline int pick(chance *c, int n)
{
    return (int)(brg_test_random(&c->state) % (uint64_t)n);
}

/* A group, its operands, its results by eager ops (borrowed from the scope). */
typedef struct group_case {
    brg__group group;
    brg__group_op ops[BRG__GROUP_MAX_OPS];
    brg_dtype dtype;
    int ndim;
    int64_t shape[BRG_MAX_DIMS];
    brg_tensor *in[BRG__GROUP_MAX_IN];
    brg_tensor *want[BRG__GROUP_MAX_OPS];
    bool has_rounding_math; /* an op that compilers may round otherwise */
} group_case;

/* ---- Operands --------------------------------------------------------------- */

static inline brg_tensor *random_values(brg_dtype dtype, int ndim,
                                        const int64_t *shape)
{
    brg_tensor *t = assert_brg_some(brg_randn(BRG_DTYPE_F32, ndim, shape));
    return assert_brg_some(brg_cast(t, dtype));
}

/* Whole, transposed, one row, one column, one number, a slice. */
static inline brg_tensor *random_operand(chance *c, const group_case *g)
{
    int64_t shape[BRG_MAX_DIMS];
    memcpy(shape, g->shape, sizeof shape);
    int last = g->ndim - 1;
    switch (pick(c, 8)) {
    case 0: /* a row, fewer dims */
        return random_values(g->dtype, 1, shape + last);
    case 1:
        return random_values(g->dtype, 0, shape);
    case 2:
        shape[last] = 1;
        return random_values(g->dtype, g->ndim, shape);
    case 3:
        shape[0] = g->shape[last];
        shape[last] = g->shape[0];
        return assert_brg_some(
            brg_transpose(random_values(g->dtype, g->ndim, shape), 0, last));
    case 4:
        shape[last] = 2 * shape[last] + 1;
        return assert_brg_some(brg_slice(
            random_values(g->dtype, g->ndim, shape), last, 1, BRG_TO_END, 2));
    default:
        return random_values(g->dtype, g->ndim, shape);
    }
}

static inline void random_space(chance *c, group_case *g)
{
    static const int sizes[] = {1, 2, 3, 4, 5, 7, 31, 64, 129, 513, 1100};
    int64_t numel = 1;
    g->ndim = 1 + pick(c, 3);
    for (int d = 0; d < g->ndim; d++) {
        g->shape[d] = sizes[pick(c, 11)];
        if (numel * g->shape[d] > 40000)
            g->shape[d] = 3;
        numel *= g->shape[d];
    }
}

/* ---- Ops -------------------------------------------------------------------- */

static inline const brg_op *random_op(chance *c)
{
    for (;;) {
        size_t n = 0;
        while (brg_op_at(n))
            n++;
        const brg_op *op = brg_op_at((size_t)pick(c, (int)n));
        const brg__pw_row *row = op->pointwise;
        if (brg__group_takes(op) && row->cls != BRG__PW_CAST &&
            op != &brg__op_assign && op != &brg__op_logical_not &&
            op != &brg__op_logical_and && op != &brg__op_logical_or)
            return op;
    }
}

static inline brg_tensor *value_of(const group_case *g, int number)
{
    return number < g->group.n_in ? g->in[number]
                                  : g->want[number - g->group.n_in];
}

static inline bool is_whole(const group_case *g, int number)
{
    const brg_tensor *t = value_of(g, number);
    return brg__shape_equal(t->ndim, t->shape, g->ndim, g->shape);
}

/* An operand or result of the dtype (or a condition); for ops that must give
 * a whole value the first is whole. */
static inline int random_number(chance *c, const group_case *g, int n_ops,
                                bool is_condition, bool is_first)
{
    for (;;) {
        int number = pick(c, g->group.n_in + n_ops);
        int k = number - g->group.n_in;
        if (k >= 0 && g->group.ops[k].is_sum)
            continue;
        bool is_bool = value_of(g, number)->dtype == BRG_DTYPE_BOOL;
        if (is_bool == is_condition && (!is_first || is_whole(g, number)))
            return number;
    }
}

static inline void call_op(group_case *g, int k)
{
    const brg__group_op *op = &g->group.ops[k];
    brg_tensor *in[BRG__GROUP_OP_MAX_IN];
    for (int i = 0; i < op->n_in; i++)
        in[i] = value_of(g, op->in[i]);
    assert_brg_ok(brg_op_apply(op->op, op->n_in, in, &op->attrs, &g->want[k]));
}

static inline void add_op(chance *c, group_case *g, int k)
{
    const brg_op *op = random_op(c);
    const brg__pw_row *row = op->pointwise;
    brg__group_op *to = &g->group.ops[k];
    *to = (brg__group_op){.op = op, .n_in = op->n_in, .out = BRG__GROUP_NONE};
    bool has_condition = row->cls == BRG__PW_COND;
    for (int i = 0; i < op->n_in; i++)
        to->in[i] = random_number(c, g, k, has_condition && i == 0,
                                  i == (int)has_condition);
    to->attrs.f[0] = 0.25 * (1 + pick(c, 8));
    to->attrs.f[1] = to->attrs.f[0] + 0.5;
    call_op(g, k);
}

static inline void add_sum(chance *c, group_case *g, int k)
{
    brg__group_op *to = &g->group.ops[k];
    int cut = pick(c, g->ndim + 1);
    int64_t all = (INT64_C(1) << g->ndim) - 1;
    int64_t head = (INT64_C(1) << cut) - 1;
    *to = (brg__group_op){.op = pick(c, 2) ? &brg__op_sum : &brg__op_mean,
                          .is_sum = true,
                          .n_in = 1,
                          .out = BRG__GROUP_NONE};
    do {
        to->in[0] = random_number(c, g, k, false, true);
    } while (!value_of(g, to->in[0])->is_contiguous);
    to->attrs.i[0] = pick(c, 2) ? head : all & ~head;
    to->attrs.i[1] = pick(c, 2);
    call_op(g, k);
}

/* Operand 0 is whole, 1 is a condition. */
static inline void random_group(chance *c, group_case *g, brg_dtype dtype)
{
    memset(g, 0, sizeof *g);
    g->dtype = dtype;
    g->group.ops = g->ops;
    random_space(c, g);
    g->group.n_in = 3 + pick(c, 4);
    g->group.n_ops = 2 + pick(c, 14);
    g->in[0] = random_values(dtype, g->ndim, g->shape);
    g->in[1] = assert_brg_some(brg_gt(g->in[0], brg_neg(g->in[0])));
    for (int i = 2; i < g->group.n_in; i++)
        g->in[i] = random_operand(c, g);
    for (int k = 0; k < g->group.n_ops; k++)
        if (k > 0 && pick(c, 5) == 0)
            add_sum(c, g, k);
        else
            add_op(c, g, k);
    for (int k = g->group.n_ops - 1; k >= 0; k--)
        if (g->group.n_out < BRG__GROUP_MAX_OUT &&
            (k == g->group.n_ops - 1 || g->group.ops[k].is_sum || !pick(c, 3)))
            g->group.ops[k].out = g->group.n_out++;
}

/* Whose bits do not depend on what a compiler contracts. */
static inline bool is_exact_op(const brg_op *op)
{
    static const char *const names[] = {
        "add",        "sub",        "mul",         "div",         "neg",
        "abs",        "sign",       "eq",          "ne",          "lt",
        "le",         "gt",         "ge",          "relu",        "where",
        "relu_grad",  "keep_if",    "keep_unless", "maximum",     "minimum",
        "clamp",      "add_scalar", "mul_scalar",  "rsub_scalar", "square",
        "clamp_grad", "copy",       "sqrt"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (strcmp(op->name, names[i]) == 0)
            return true;
    return false;
}

/* ---- Running ------------------------------------------------------------------ */

typedef struct group_run {
    brg__fused *fused;
    brg_tensor *out[BRG__GROUP_MAX_OUT]; /* of the scope */
    void *workspace;
} group_run;

static inline void prepare_group(group_run *r, group_case *g)
{
    brg_tensor results[BRG__GROUP_MAX_OPS];
    bool is_uniform;
    assert_brg_ok(brg__group_verify(&g->group));
    assert_brg_ok(
        brg__fused_infer(&g->group, BRG_CPU, g->in, results, &is_uniform));
    assert_true(is_uniform);
    for (int k = 0; k < g->group.n_ops; k++)
        if (g->group.ops[k].out != BRG__GROUP_NONE)
            r->out[g->group.ops[k].out] =
                assert_brg_some(brg_empty((brg_dtype)results[k].dtype,
                                          results[k].ndim, results[k].shape));
    assert_brg_ok(
        brg__fused_create(&r->fused, &g->group, g->in, r->out, results));
    r->workspace = aligned_alloc(64, brg__round_up(r->fused->nbytes + 1, 64));
    assert_non_null(r->workspace);
    memset(r->workspace, 0xA5, r->fused->nbytes);
}

static inline void run_group(group_run *r, const group_case *g)
{
    for (int j = 0; j < g->group.n_out; j++)
        memset(brg_tensor_data(r->out[j]), 0x5A, brg_tensor_nbytes(r->out[j]));
    brg__fused_run(r->fused, g->in, r->out, r->workspace);
}

static inline void free_group_run(group_run *r)
{
    brg__fused_destroy(r->fused);
    free(r->workspace);
}

#endif
