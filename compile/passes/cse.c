/* SPDX-License-Identifier: Apache-2.0
 * Common subexpressions: of two pure ops with the same attributes and operands,
 * the later one becomes the earlier. Sizes of the same slot and constants that
 * are one tensor count as the same operand, the latter unless the plan changes
 * tensors.
 *
 * Not if code of the user, or an effect, runs between the two and may change
 * what they read: memory from outside, or handed out, through views too. Each
 * such node begins an epoch; ops that read this memory are equal within one.
 *
 * Not if a result is handed out, to user code or to a leaf: those get memory of
 * their own, and two results are cheaper than one and a copy. */
#include <string.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "compile/passes/passes.h"
#include "core/base/error.h"

typedef struct cse {
    brg__ir *ir;
    int *to;          /* what each value has become */
    bool *is_given;   /* values that are handed out */
    int *root;        /* of each value: whose memory it may be */
    bool *is_handed;  /* of each root: given to code that may change it */
    int *epoch;       /* of each node; 0: nothing changes what it reads */
    int now;          /* the epoch that the walk has reached, from 1 */
    int *table;       /* open hash table of nodes; NONE: free */
    size_t size;      /* of the table, a power of two */
    bool has_effects; /* that change tensors which are constants of the plan */
} cse;

/* ---- Values that come from outside ------------------------------------------------ */

static bool is_same_source(const brg__ir_value *a, const brg__ir_value *b)
{
    if (a->source != b->source)
        return false;
    if (a->source == BRG__IR_FROM_SLOT)
        return a->visit == b->visit && a->index == b->index;
    return a->source == BRG__IR_FROM_CONST && a->constant == b->constant;
}

static uint64_t hash_source(const brg__ir_value *v)
{
    const uint64_t what[3] = {(uint64_t)v->source,
                              v->source == BRG__IR_FROM_SLOT
                                  ? (uint64_t)v->visit << 32 |
                                        (uint32_t)v->index
                                  : 0,
                              (uint64_t)(uintptr_t)v->constant};
    return XXH3_64bits(what, sizeof what);
}

static void merge_sources(cse *c)
{
    for (size_t id = 0; id < c->ir->values.n; id++) {
        const brg__ir_value *v = &c->ir->values.at[id];
        c->to[id] = (int)id;
        if (v->source != BRG__IR_FROM_SLOT &&
            (v->source != BRG__IR_FROM_CONST || c->has_effects))
            continue;
        size_t at = hash_source(v) & (c->size - 1);
        while (c->table[at] != BRG__IR_NONE &&
               !is_same_source(&c->ir->values.at[c->table[at]], v))
            at = (at + 1) & (c->size - 1);
        if (c->table[at] == BRG__IR_NONE)
            c->table[at] = (int)id;
        c->to[id] = c->table[at];
    }
}

/* ---- Nodes ----------------------------------------------------------------------------- */

static void mark_given(cse *c)
{
    for (size_t at = 0; at < c->ir->nodes.n; at++) {
        const brg__ir_node *node = &c->ir->nodes.at[at];
        c->has_effects |= node->kind == BRG__IR_EFFECT;
        if (node->kind == BRG__IR_OP || node->kind == BRG__IR_ADD)
            continue;
        for (int i = 0; i < node->n_in; i++)
            if (brg__ir_in(c->ir, node)[i] != BRG__IR_NONE)
                c->is_given[brg__ir_in(c->ir, node)[i]] = true;
    }
}

static bool is_candidate(const cse *c, const brg__ir_node *node)
{
    if (node->kind != BRG__IR_OP || !brg__ir_is_pure(node))
        return false;
    for (int j = 0; j < node->n_out; j++)
        if (c->is_given[node->first_out + j])
            return false;
    return true;
}

/* It may change memory from outside. An op that draws random numbers does not. */
static bool begins_epoch(const brg__ir_node *node)
{
    return node->kind == BRG__IR_EFFECT || brg__ir_runs_user_code(node) ||
           (node->kind == BRG__IR_OP && !brg__ir_is_pure(node) &&
            node->draw == 0);
}

static uint64_t hash_node(const brg__ir *ir, const brg__ir_node *node,
                          int epoch)
{
    uint64_t hash = XXH3_64bits(&node->attrs, sizeof node->attrs);
    hash = XXH3_64bits_withSeed(&node->op, sizeof node->op, hash);
    hash = XXH3_64bits_withSeed(&epoch, sizeof epoch, hash);
    return XXH3_64bits_withSeed(brg__ir_in(ir, node),
                                (size_t)node->n_in * sizeof(int), hash);
}

static bool is_same_node(const brg__ir *ir, const brg__ir_node *a,
                         const brg__ir_node *b)
{
    return a->op == b->op && a->n_in == b->n_in &&
           memcmp(&a->attrs, &b->attrs, sizeof a->attrs) == 0 &&
           memcmp(brg__ir_in(ir, a), brg__ir_in(ir, b),
                  (size_t)a->n_in * sizeof(int)) == 0;
}

/* Operands become what they are now; then the node is met or is new. */
static void merge_node(cse *c, size_t number)
{
    const brg__ir_node *node = &c->ir->nodes.at[number];
    int *in = c->ir->operands.at + node->first_in;
    for (int i = 0; i < node->n_in; i++)
        if (in[i] != BRG__IR_NONE)
            in[i] = c->to[in[i]];
    c->now += begins_epoch(node);
    if (!is_candidate(c, node))
        return;
    int epoch = 0;
    if (brg__ir_reads_exposed(c->ir, node, c->root, c->is_handed))
        epoch = c->now;
    c->epoch[number] = epoch;
    size_t at = hash_node(c->ir, node, epoch) & (c->size - 1);
    while (c->table[at] != BRG__IR_NONE &&
           (c->epoch[c->table[at]] != epoch ||
            !is_same_node(c->ir, &c->ir->nodes.at[c->table[at]], node)))
        at = (at + 1) & (c->size - 1);
    if (c->table[at] == BRG__IR_NONE) {
        c->table[at] = (int)number;
        return;
    }
    const brg__ir_node *same = &c->ir->nodes.at[c->table[at]];
    for (int j = 0; j < node->n_out; j++)
        c->to[node->first_out + j] = same->first_out + j;
}

static void clear_table(cse *c)
{
    for (size_t i = 0; i < c->size; i++)
        c->table[i] = BRG__IR_NONE;
}

static brg_status cse_init(cse *c, brg__ir *ir)
{
    size_t n = ir->values.n + 1;
    *c = (cse){.ir = ir, .now = 1, .size = 16};
    while (c->size < 2 * (ir->nodes.n + ir->values.n))
        c->size *= 2;
    c->to = brg__mem_alloc_array(n, sizeof *c->to, "values");
    c->is_given = brg__mem_alloc_array(n, sizeof *c->is_given, "values");
    c->root = brg__mem_alloc_array(n, sizeof *c->root, "roots");
    c->is_handed = brg__mem_alloc_array(n, sizeof *c->is_handed, "roots");
    c->epoch =
        brg__mem_alloc_array(ir->nodes.n + 1, sizeof *c->epoch, "epochs");
    c->table =
        brg__mem_alloc_array(c->size, sizeof *c->table, "a table of nodes");
    return c->to && c->is_given && c->root && c->is_handed && c->epoch &&
                   c->table
               ? BRG_OK
               : BRG_ERR_NOMEM;
}

static void cse_deinit(cse *c)
{
    brg__mem_free(c->to);
    brg__mem_free(c->is_given);
    brg__mem_free(c->root);
    brg__mem_free(c->is_handed);
    brg__mem_free(c->epoch);
    brg__mem_free(c->table);
}

brg_status brg__pass_cse(brg__ir *ir)
{
    cse c;
    brg_status status = cse_init(&c, ir);
    if (status == BRG_OK) {
        mark_given(&c);
        brg__ir_find_roots(ir, c.root, c.is_handed);
        clear_table(&c);
        merge_sources(&c);
        clear_table(&c);
        for (size_t at = 0; at < ir->nodes.n; at++)
            merge_node(&c, at);
    }
    cse_deinit(&c);
    return status; /* the nodes without users are the next pass's */
}
