/* SPDX-License-Identifier: Apache-2.0
 * Pointwise fusion: chains and fans of pointwise ops of one shape, and sums
 * over what they make, become one node that keeps their values in cache.
 *
 * Each op joins the clusters that its operands come from, or one that reads
 * the same tensor, where order allows it: a cluster runs at one place, behind
 * all that it reads and before all that read it. No node but those of clusters
 * moves. What code of the user may change in place (a gradient handed to a
 * hook, a parameter that a hook updates) is read on the same side of that code
 * as before. */
#include <stdlib.h>
#include <string.h>

#include "compile/passes/passes.h"
#include "core/base/error.h"
#include "core/ops/op.h"
#include "core/ops/pointwise.h"

#define NONE BRG__IR_NONE
#define STEP INT64_C(1048576) /* places between two nodes */

typedef struct cluster {
    BRG__ARRAY(int) members; /* nodes, in order */
    int64_t place;
    int merged_into; /* NONE: it lives */
} cluster;

typedef struct fuser {
    brg__ir *ir;
    size_t n_nodes, n_values; /* before the groups are added */
    int *cluster_of;          /* of each node, or NONE */
    int *first_user, *user;   /* of each value: user[first_user[v]..] */
    int *root;                /* of each value: whose memory it may be */
    int *n_effects;           /* effects among the nodes before */
    int *n_writes;            /* those that may write to an input */
    bool *is_handed;          /* of each root: given to code of the user */
    BRG__ARRAY(cluster) clusters;
} fuser;

/* ---- Nodes -------------------------------------------------------------------- */

static const brg__ir_node *node_at(const fuser *f, int at)
{
    return &f->ir->nodes.at[at];
}

static const int *in_of(const fuser *f, int at)
{
    return brg__ir_in(f->ir, node_at(f, at));
}

static const brg__ir_value *value_at(const fuser *f, int id)
{
    return &f->ir->values.at[id];
}

static const brg_op *op_of(const brg__ir_node *node)
{
    return node->kind == BRG__IR_ADD ? &brg__op_add : node->op;
}

static bool is_sum(const brg__ir_node *node)
{
    return node->kind == BRG__IR_OP &&
           (node->op == &brg__op_sum || node->op == &brg__op_mean ||
            node->op == &brg__op_sum_to_like);
}

/* The value whose shape a node runs over. */
static int space_of(const fuser *f, int at)
{
    const brg__ir_node *node = node_at(f, at);
    return is_sum(node) ? in_of(f, at)[0] : node->first_out;
}

static bool has_space(const fuser *f, int id, int space)
{
    const brg__ir_value *a = value_at(f, id), *b = value_at(f, space);
    return a->ndim == b->ndim && a->ones == b->ones;
}

static int leading(const brg_op *op)
{
    const brg__pw_row *row = op->pointwise;
    return row->cls == BRG__PW_COND ? 1 : 0;
}

static brg__ctype ctype_at(const fuser *f, int at)
{
    const brg__ir_node *node = node_at(f, at);
    int lead = is_sum(node) ? 0 : leading(op_of(node));
    return brg__ctype_of(value_at(f, in_of(f, at)[lead])->dtype);
}

/* Of the compute type, or a condition. */
static bool fits_type(brg_dtype dtype, brg__ctype type)
{
    return dtype == BRG_DTYPE_BOOL || brg__ctype_of(dtype) == type;
}

static bool sums_rows_or_columns(const fuser *f, int at)
{
    const brg__ir_node *node = node_at(f, at);
    const brg__ir_value *x = value_at(f, in_of(f, at)[0]);
    uint32_t dims = (uint32_t)node->attrs.i[0];
    int cut;
    if (node->op == &brg__op_sum_to_like) {
        const brg__ir_value *like = value_at(f, in_of(f, at)[1]);
        int shift = x->ndim - like->ndim;
        dims = 0;
        for (int d = 0; d < x->ndim; d++)
            if (d < shift || (like->ones >> (d - shift) & 1u))
                dims |= 1u << d;
    }
    return brg__sum_of_dims(x->ndim, x->ones, dims, &cut) != BRG__SUM_NOT;
}

static bool is_fusible(const fuser *f, int at)
{
    const brg__ir_node *node = node_at(f, at);
    if (node->kind != BRG__IR_ADD &&
        (node->kind != BRG__IR_OP || node->lifted != NONE || node->draw != 0))
        return false;
    if (!is_sum(node) && !brg__group_takes(op_of(node)))
        return false;
    for (int i = 0; i < node->n_in; i++)
        if (in_of(f, at)[i] == NONE)
            return false;
    brg__ctype type = ctype_at(f, at);
    if (type == BRG__I64)
        return false;
    if (is_sum(node))
        return sums_rows_or_columns(f, at);
    for (int i = 0; i < node->n_in; i++)
        if (!fits_type(value_at(f, in_of(f, at)[i])->dtype, type))
            return false;
    return fits_type(value_at(f, node->first_out)->dtype, type) &&
           brg__pw_kernel(op_of(node), type);
}

/* ---- Users, memory, effects ------------------------------------------------------ */

static void list_users(fuser *f)
{
    const brg__ir *ir = f->ir;
    brg__ir_count_uses(ir, f->first_user);
    int n = 0;
    for (size_t v = 0; v < f->n_values; v++) {
        int n_uses = f->first_user[v];
        f->first_user[v] = n;
        n += n_uses;
    }
    f->first_user[f->n_values] = n;
    for (int at = (int)f->n_nodes - 1; at >= 0; at--)
        for (int i = 0; i < node_at(f, at)->n_in; i++)
            if (in_of(f, at)[i] != NONE)
                f->user[f->first_user[in_of(f, at)[i] + 1] - 1 -
                        f->root[in_of(f, at)[i]]++] = at;
}

/* A backward may read what was saved before hooks run; a whole function reads
 * its inputs as its own effects, and leaves' hooks, have left them. */
static void count_effects(fuser *f)
{
    for (int at = 0; at < (int)f->n_nodes; at++) {
        brg__ir_kind kind = node_at(f, at)->kind;
        f->n_effects[at + 1] =
            f->n_effects[at] + !brg__ir_is_pure(node_at(f, at));
        f->n_writes[at + 1] =
            f->n_writes[at] + (kind == BRG__IR_EFFECT || kind == BRG__IR_LEAF);
    }
}

static brg_status fuser_init(fuser *f, brg__ir *ir)
{
    size_t n = ir->nodes.n, v = ir->values.n, o = ir->operands.n;
    *f = (fuser){.ir = ir, .n_nodes = n, .n_values = v};
    f->cluster_of = brg__mem_alloc_array(n + 1, sizeof(int), "clusters");
    f->n_effects = brg__mem_alloc_array(n + 1, sizeof(int), "effects");
    f->n_writes = brg__mem_alloc_array(n + 1, sizeof(int), "effects");
    f->first_user = brg__mem_alloc_array(v + 1, sizeof(int), "users");
    f->root = brg__mem_alloc_array(v + 1, sizeof(int), "roots");
    f->is_handed = brg__mem_alloc_array(v + 1, sizeof(bool), "roots");
    f->user = brg__mem_alloc_array(o + 1, sizeof(int), "users");
    if (!f->cluster_of || !f->n_effects || !f->n_writes || !f->first_user ||
        !f->root || !f->is_handed || !f->user)
        return BRG_ERR_NOMEM;
    for (size_t at = 0; at < n; at++)
        f->cluster_of[at] = NONE;
    list_users(f);
    brg__ir_find_roots(ir, f->root, f->is_handed);
    count_effects(f);
    return BRG_OK;
}

static void fuser_deinit(fuser *f)
{
    for (size_t i = 0; i < f->clusters.n; i++)
        brg__array_deinit(&f->clusters.at[i].members);
    brg__array_deinit(&f->clusters);
    brg__mem_free(f->cluster_of);
    brg__mem_free(f->n_effects);
    brg__mem_free(f->n_writes);
    brg__mem_free(f->first_user);
    brg__mem_free(f->root);
    brg__mem_free(f->is_handed);
    brg__mem_free(f->user);
}

/* ---- May these be one cluster? --------------------------------------------------- */

/* A set of nodes that is tried: at most BRG__GROUP_MAX_OPS, in order. */
typedef struct trial {
    int member[BRG__GROUP_MAX_OPS];
    int n;
    int in[BRG__GROUP_MAX_IN];
    int n_in, n_out;
    int64_t place;
} trial;

static bool holds(const trial *t, int at)
{
    for (int i = 0; i < t->n; i++)
        if (t->member[i] == at)
            return true;
    return false;
}

static bool trial_add(trial *t, int at)
{
    if (holds(t, at))
        return true;
    if (t->n == BRG__GROUP_MAX_OPS)
        return false;
    int i = t->n++;
    for (; i > 0 && t->member[i - 1] > at; i--)
        t->member[i] = t->member[i - 1];
    t->member[i] = at;
    return true;
}

static bool trial_add_cluster(trial *t, const cluster *c)
{
    for (size_t i = 0; i < c->members.n; i++)
        if (!trial_add(t, c->members.at[i]))
            return false;
    return true;
}

static int64_t place_of(const fuser *f, int at)
{
    int k = f->cluster_of[at];
    return k == NONE ? at * STEP : f->clusters.at[k].place;
}

static bool add_input(trial *t, int id)
{
    for (int i = 0; i < t->n_in; i++)
        if (t->in[i] == id)
            return true;
    if (t->n_in == BRG__GROUP_MAX_IN)
        return false;
    t->in[t->n_in++] = id;
    return true;
}

/* What the members read from outside, and after what they run. */
static bool find_inputs(const fuser *f, trial *t, int64_t *after)
{
    for (int i = 0; i < t->n; i++) {
        const int *in = in_of(f, t->member[i]);
        for (int k = 0; k < node_at(f, t->member[i])->n_in; k++) {
            int maker = brg__ir_maker(f->ir, in[k]);
            if (maker != NONE && holds(t, maker)) {
                if (is_sum(node_at(f, maker)))
                    return false;
                continue;
            }
            if (!add_input(t, in[k]))
                return false;
            if (maker != NONE && place_of(f, maker) > *after)
                *after = place_of(f, maker);
        }
    }
    return true;
}

/* Who reads of them from outside, and before what they run. */
static void find_outputs(const fuser *f, trial *t, int64_t *before)
{
    for (int i = 0; i < t->n; i++) {
        int id = node_at(f, t->member[i])->first_out;
        bool is_out = false;
        for (int u = f->first_user[id]; u < f->first_user[id + 1]; u++) {
            if (holds(t, f->user[u]))
                continue;
            is_out = true;
            int64_t place = place_of(f, f->user[u]);
            *before = place < *before ? place : *before;
        }
        t->n_out += is_out;
    }
}

/* The second operand of such a sum is a shape, which nobody changes. */
static bool reads_values(const brg__ir_node *node, int operand)
{
    return !is_sum(node) || operand == 0;
}

/* An operand that code of the user may change is read on the same side of it
 * as before. */
static bool keeps_sides(const fuser *f, const trial *t)
{
    int to = (int)(t->place / STEP); /* behind this node, or in its place */
    for (int i = 0; i < t->n; i++) {
        int at = t->member[i];
        int low = to < at ? to : at, high = to < at ? at : to;
        if (f->n_effects[high + 1] == f->n_effects[low + 1])
            continue;
        bool is_written = f->n_writes[high + 1] != f->n_writes[low + 1];
        for (int k = 0; k < node_at(f, at)->n_in; k++) {
            int id = in_of(f, at)[k];
            int maker = brg__ir_maker(f->ir, id);
            bool is_input =
                value_at(f, f->root[id])->source == BRG__IR_FROM_INPUT;
            if ((maker != NONE && holds(t, maker)) ||
                !reads_values(node_at(f, at), k))
                continue;
            if (f->is_handed[f->root[id]] ||
                (is_input && (to > at || is_written)))
                return false;
        }
    }
    return true;
}

static bool is_uniform(const fuser *f, const trial *t)
{
    int space = space_of(f, t->member[0]);
    brg__ctype type = ctype_at(f, t->member[0]);
    for (int i = 1; i < t->n; i++)
        if (!has_space(f, space_of(f, t->member[i]), space) ||
            ctype_at(f, t->member[i]) != type)
            return false;
    return true;
}

static bool may_be(const fuser *f, trial *t)
{
    int64_t after = -1, before = INT64_MAX;
    if (!is_uniform(f, t) || !find_inputs(f, t, &after))
        return false;
    find_outputs(f, t, &before);
    t->place = t->member[0] * STEP;
    if (t->place <= after)
        t->place = after + 1;
    return t->n_out <= BRG__GROUP_MAX_OUT && t->place < before &&
           keeps_sides(f, t);
}

/* ---- Growing clusters -------------------------------------------------------------- */

static brg_status new_cluster(fuser *f, int at)
{
    cluster c = {.place = at * STEP, .merged_into = NONE};
    BRG_TRY(brg__array_push(&c.members, at));
    brg_status status = brg__array_push(&f->clusters, c);
    if (status != BRG_OK) {
        brg__array_deinit(&c.members);
        return status;
    }
    f->cluster_of[at] = (int)f->clusters.n - 1;
    return BRG_OK;
}

/* The trial becomes cluster k. */
static brg_status settle(fuser *f, const trial *t, int k)
{
    cluster *c = &f->clusters.at[k];
    c->members.n = 0;
    BRG_TRY(brg__array_reserve(&c->members, (size_t)t->n));
    c->place = t->place;
    for (int i = 0; i < t->n; i++) {
        int other = f->cluster_of[t->member[i]];
        if (other != NONE && other != k) {
            f->clusters.at[other].merged_into = k;
            f->clusters.at[other].members.n = 0;
        }
        f->cluster_of[t->member[i]] = k;
        c->members.at[c->members.n++] = t->member[i];
    }
    return BRG_OK;
}

static bool add_candidate(int *found, int *n, int most, int k)
{
    for (int i = 0; i < *n; i++)
        if (found[i] == k)
            return true;
    if (*n < most)
        found[(*n)++] = k;
    return *n < most;
}

/* Clusters that make operands of the node, then those that read one. */
static int find_candidates(const fuser *f, int at, int *found, int most)
{
    int n = 0;
    const int *in = in_of(f, at);
    for (int i = 0; i < node_at(f, at)->n_in; i++) {
        int maker = brg__ir_maker(f->ir, in[i]);
        if (maker != NONE && f->cluster_of[maker] != NONE &&
            !is_sum(node_at(f, maker)) && has_space(f, in[i], space_of(f, at)))
            add_candidate(found, &n, most, f->cluster_of[maker]);
    }
    for (int i = 0; i < node_at(f, at)->n_in; i++) {
        if (!has_space(f, in[i], space_of(f, at)) ||
            value_at(f, in[i])->source == BRG__IR_FROM_SLOT)
            continue;
        for (int u = f->first_user[in[i]]; u < f->first_user[in[i] + 1]; u++)
            if (f->user[u] < at && f->cluster_of[f->user[u]] != NONE &&
                !add_candidate(found, &n, most, f->cluster_of[f->user[u]]))
                return n;
    }
    return n;
}

#define MOST 4 /* clusters tried */

static brg_status place_node(fuser *f, int at)
{
    int found[MOST], n = find_candidates(f, at, found, MOST);
    /* the more the better: all of them, all but the last... */
    for (int most = n; most > 0; most--)
        for (int first = 0; first + most <= n; first++) {
            trial t = {0};
            bool fits = trial_add(&t, at);
            for (int i = first; i < first + most; i++)
                fits = fits && trial_add_cluster(&t, &f->clusters.at[found[i]]);
            if (fits && may_be(f, &t))
                return settle(f, &t, found[first]);
        }
    return new_cluster(f, at);
}

/* ---- From clusters to nodes ----------------------------------------------------------- */

static int number_of(const brg__group *g, const trial *t, const cluster *c,
                     const fuser *f, int id)
{
    int maker = brg__ir_maker(f->ir, id);
    for (size_t m = 0; maker != NONE && m < c->members.n; m++)
        if (c->members.at[m] == maker)
            return g->n_in + (int)m;
    for (int i = 0; i < t->n_in; i++)
        if (t->in[i] == id)
            return i;
    return NONE;
}

static void fill_op(const fuser *f, brg__group *g, const trial *t,
                    const cluster *c, int m)
{
    const brg__ir_node *node = node_at(f, c->members.at[m]);
    brg__group_op *op = &g->ops[m];
    *op = (brg__group_op){.op = op_of(node),
                          .is_fan_in = node->kind == BRG__IR_ADD,
                          .is_sum = is_sum(node),
                          .n_in = node->n_in,
                          .out = BRG__GROUP_NONE};
    if (node->kind == BRG__IR_OP)
        op->attrs = node->attrs;
    for (int i = 0; i < node->n_in; i++)
        op->in[i] = number_of(g, t, c, f, in_of(f, c->members.at[m])[i]);
    for (int u = f->first_user[node->first_out];
         u < f->first_user[node->first_out + 1]; u++)
        if (!holds(t, f->user[u]))
            op->out = g->n_out;
    g->n_out += op->out != BRG__GROUP_NONE;
}

/* Appends the node of a cluster; to[] leads from old values to its outputs. */
static brg_status add_group(fuser *f, const cluster *c, int *to)
{
    trial t = {0};
    int64_t after = -1;
    if (!trial_add_cluster(&t, c) || !find_inputs(f, &t, &after))
        return BRG_FAIL(BRG_ERR_INTERNAL, "fuse: a cluster came apart");
    brg__group *g = brg__group_create(t.n);
    if (!g)
        return BRG_ERR_NOMEM;
    g->n_in = t.n_in;
    for (int m = 0; m < t.n; m++)
        fill_op(f, g, &t, c, m);
    brg__ir_node node = {.kind = BRG__IR_FUSED,
                         .lifted = NONE,
                         .visit = NONE,
                         .group = (int)f->ir->groups.n,
                         .n_out = g->n_out};
    brg_status status = brg__array_push(&f->ir->groups, g);
    if (status != BRG_OK) {
        brg__mem_free(g);
        return status;
    }
    BRG_TRY(brg__ir_add_node(f->ir, &node, t.in, t.n_in));
    for (int m = 0; m < t.n; m++) {
        if (g->ops[m].out == BRG__GROUP_NONE)
            continue;
        int old = node_at(f, c->members.at[m])->first_out;
        brg__ir_value value = *value_at(f, old);
        value.node = (int)f->ir->nodes.n - 1;
        BRG_TRY(brg__ir_add_value(f->ir, &value, &to[old]));
    }
    return BRG_OK;
}

typedef struct placed {
    int64_t place;
    int node;
} placed;

static int by_place(const void *a, const void *b)
{
    const placed *x = a, *y = b;
    if (x->place != y->place)
        return x->place < y->place ? -1 : 1;
    return x->node < y->node ? -1 : x->node > y->node;
}

static bool is_group(const cluster *c)
{
    return c->merged_into == NONE && c->members.n > 1;
}

static brg_status arrange(fuser *f, placed *order, int *list, int *to)
{
    size_t n = 0;
    for (size_t id = 0; id < f->n_values; id++)
        to[id] = (int)id;
    for (size_t at = 0; at < f->n_nodes; at++) {
        int k = f->cluster_of[at];
        if (k == NONE || !is_group(&f->clusters.at[k]))
            order[n++] = (placed){(int64_t)at * STEP, (int)at};
    }
    for (size_t k = 0; k < f->clusters.n; k++) {
        if (!is_group(&f->clusters.at[k]))
            continue;
        order[n++] = (placed){f->clusters.at[k].place, (int)f->ir->nodes.n};
        BRG_TRY(add_group(f, &f->clusters.at[k], to));
    }
    qsort(order, n, sizeof *order, by_place);
    for (size_t i = 0; i < n; i++)
        list[i] = order[i].node;
    for (size_t id = f->n_values; id < f->ir->values.n; id++)
        to[id] = (int)id;
    brg__ir_rename(f->ir, to);
    return brg__ir_arrange(f->ir, list, n);
}

static brg_status add_groups(fuser *f)
{
    size_t n = f->n_nodes + f->clusters.n + 1;
    placed *order = brg__mem_alloc_array(n, sizeof *order, "an order");
    int *list = brg__mem_alloc_array(n, sizeof *list, "an order");
    /* outputs are fewer than values */
    int *to = brg__mem_alloc_array(2 * f->n_values + 1, sizeof *to, "values");
    brg_status status = BRG_ERR_NOMEM;
    if (order && list && to)
        status = arrange(f, order, list, to);
    brg__mem_free(order);
    brg__mem_free(list);
    brg__mem_free(to);
    return status;
}

brg_status brg__pass_fuse(brg__ir *ir)
{
    fuser f;
    brg_status status = fuser_init(&f, ir);
    for (int at = 0; status == BRG_OK && at < (int)f.n_nodes; at++)
        if (is_fusible(&f, at))
            status = place_node(&f, at);
    bool has_groups = false;
    for (size_t k = 0; status == BRG_OK && k < f.clusters.n; k++)
        has_groups = has_groups || is_group(&f.clusters.at[k]);
    if (has_groups)
        status = add_groups(&f);
    fuser_deinit(&f);
    return status;
}
