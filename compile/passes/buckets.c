/* SPDX-License-Identifier: Apache-2.0
 * Bucket reductions: a capture writes a start, a wait and a write-back for every
 * gradient; gradients that the reducer keeps in one bucket get one of each.
 *
 * A bucket starts where its last gradient is packed and the buckets before it
 * have started, as the eager reducer starts it: so the plan does what the
 * reducer would, and ranks that run different plans, or none, agree on the order
 * of the collectives. A bucket belongs to one reducer, so group, operation and
 * divisor are one; its dtype and device are one by the bucket plan. A bucket of
 * which this backward makes not all gradients, and those after it, are left to
 * the end of the backward. */
#include "compile/passes/passes.h"
#include "core/base/error.h"

typedef struct bucket {
    brg__ir_bucket is;
    int n_packed;  /* of its gradients, in this plan */
    int n_arrived; /* before the node at hand */
    int start;     /* its one start, a new node; or NONE */
    int wait;      /* its one wait */
    bool is_whole; /* it and all before it are started by the plan */
    bool is_started;
} bucket;

typedef struct buckets {
    brg__ir *ir;
    BRG__ARRAY(bucket) list;
    int *to; /* what tokens become */
    int *order;
    size_t n;
} buckets;

static bucket *find(const buckets *b, const brg__ir_bucket *is)
{
    for (size_t i = 0; i < b->list.n; i++)
        if (b->list.at[i].is.reduction == is->reduction &&
            b->list.at[i].is.number == is->number)
            return &b->list.at[i];
    return NULL;
}

static brg_status count_members(buckets *b)
{
    for (size_t at = 0; at < b->ir->nodes.n; at++) {
        const brg__ir_node *node = &b->ir->nodes.at[at];
        if (node->kind != BRG__IR_PACK)
            continue;
        bucket *found = find(b, &node->bucket);
        if (!found) {
            BRG_TRY(
                brg__array_push(&b->list, ((bucket){.is = node->bucket,
                                                    .start = BRG__IR_NONE,
                                                    .wait = BRG__IR_NONE})));
            found = &b->list.at[b->list.n - 1];
        }
        found->n_packed++;
    }
    return BRG_OK;
}

static void find_whole(const buckets *b)
{
    for (size_t i = 0; i < b->list.n; i++) {
        bucket *this = &b->list.at[i];
        brg__ir_bucket is = this->is;
        this->is_whole = true;
        for (is.number = 0; is.number <= this->is.number; is.number++) {
            const bucket *before = find(b, &is);
            this->is_whole &=
                before && before->n_packed == before->is.n_members;
        }
    }
}

/* ---- One node for many ------------------------------------------------------------ */

/* A start that reads the packs of all members, in their order. */
static brg_status make_start(buckets *b, bucket *of)
{
    brg__ir *ir = b->ir;
    int *in = brg__mem_alloc_array((size_t)of->n_packed + 1, sizeof *in,
                                   "a bucket's gradients");
    if (!in)
        return BRG_ERR_NOMEM;
    int n = 0;
    for (size_t at = 0; at < ir->nodes.n; at++)
        if (ir->nodes.at[at].kind == BRG__IR_PACK &&
            find(b, &ir->nodes.at[at].bucket) == of)
            in[n++] = ir->nodes.at[at].first_out;
    brg__ir_node start = {.kind = BRG__IR_START,
                          .lifted = BRG__IR_NONE,
                          .visit = BRG__IR_NONE,
                          .bucket = of->is,
                          .n_out = 1};
    of->start = (int)ir->nodes.n;
    brg__ir_value token = {
        .source = BRG__IR_FROM_NODE, .node = of->start, .is_token = true};
    int id;
    brg_status status = brg__ir_add_node(ir, &start, in, n);
    if (status == BRG_OK)
        status = brg__ir_add_value(ir, &token, &id);
    brg__mem_free(in);
    return status;
}

/* Readers of a member's start or wait read the bucket's. */
static void redirect(const buckets *b, size_t n_nodes)
{
    for (size_t at = 0; at < n_nodes; at++) {
        const brg__ir_node *node = &b->ir->nodes.at[at];
        bool is_start = node->kind == BRG__IR_START;
        if (!is_start && node->kind != BRG__IR_WAIT)
            continue;
        bucket *of = find(b, &node->bucket);
        if (!of->is_whole)
            continue;
        if (!is_start && of->wait == BRG__IR_NONE)
            of->wait = (int)at;
        int kept = is_start ? of->start : of->wait;
        b->to[node->first_out] = b->ir->nodes.at[kept].first_out;
    }
    brg__ir_rename(b->ir, b->to);
}

/* ---- The order ---------------------------------------------------------------------- */

static void put(buckets *b, int node)
{
    b->order[b->n++] = node;
}

static void put_write_backs(buckets *b, const bucket *of, size_t n_nodes)
{
    for (size_t at = 0; at < n_nodes; at++)
        if (b->ir->nodes.at[at].kind == BRG__IR_WRITE_BACK &&
            find(b, &b->ir->nodes.at[at].bucket) == of)
            put(b, (int)at);
}

/* Starts what can start now of a reduction, in the order of the numbers. */
static void start_ready(buckets *b, int reduction, size_t n_nodes)
{
    brg__ir_bucket is = {.reduction = reduction};
    for (bucket *of; (of = find(b, &is)) != NULL; is.number++) {
        if (!of->is_whole || of->n_arrived < of->is.n_members)
            return;
        if (of->is_started)
            continue;
        of->is_started = true;
        put(b, of->start);
        put(b, of->wait);
        put_write_backs(b, of, n_nodes);
    }
}

static void arrange(buckets *b, size_t n_nodes)
{
    for (size_t at = 0; at < n_nodes; at++) {
        const brg__ir_node *node = &b->ir->nodes.at[at];
        if (!brg__ir_is_reduction(node))
            put(b, (int)at);
        if (node->kind != BRG__IR_PACK)
            continue;
        put(b, (int)at);
        find(b, &node->bucket)->n_arrived++;
        start_ready(b, node->bucket.reduction, n_nodes);
    }
}

static brg_status put_together(buckets *b)
{
    brg__ir *ir = b->ir;
    size_t n_nodes = ir->nodes.n;
    find_whole(b);
    for (size_t i = 0; i < b->list.n; i++)
        if (b->list.at[i].is_whole)
            BRG_TRY(make_start(b, &b->list.at[i]));
    b->to = brg__mem_alloc_array(ir->values.n + 1, sizeof *b->to, "tokens");
    b->order = brg__mem_alloc_array(ir->nodes.n + 1, sizeof *b->order, "nodes");
    if (!b->to || !b->order)
        return BRG_ERR_NOMEM;
    for (size_t id = 0; id < ir->values.n; id++)
        b->to[id] = (int)id;
    redirect(b, n_nodes);
    arrange(b, n_nodes);
    return brg__ir_arrange(ir, b->order, b->n);
}

brg_status brg__pass_buckets(brg__ir *ir)
{
    buckets b = {.ir = ir};
    brg_status status = count_members(&b);
    if (status == BRG_OK && b.list.n > 0)
        status = put_together(&b);
    brg__array_deinit(&b.list);
    brg__mem_free(b.to);
    brg__mem_free(b.order);
    return status;
}
