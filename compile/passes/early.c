/* SPDX-License-Identifier: Apache-2.0
 * A leaf's steps (its hooks, accumulation, reduction), validation and tensor
 * hooks move up to right behind the node that makes their gradient. A rule that makes three
 * gradients lets go of the first before it works on the second, and its bucket
 * may leave by then.
 *
 * What has an effect keeps its order: user code sees what it sees in an eager
 * backward, gradients arrive in the same order. Only a leaf whose gradient
 * comes out of a precompiled segment does not wait for those before it, since
 * the segment brings them all at its end. Pre-hooks of ops, post-hooks of ops
 * and retain-grad stay where they are.
 *
 * Code of the user moves ahead of no node that reads memory which it may change:
 * a hook may update its parameter, which the same rule reads for its next
 * gradient. Accumulation without hooks, and reductions, do not wait for that. */
#include "compile/passes/passes.h"
#include "core/base/error.h"

typedef struct move_up {
    const brg__ir *ir;
    bool *is_leaf;    /* of each visit: it accumulates */
    bool *is_free;    /* of each visit: waits for its own steps only */
    bool *is_emitted; /* of each node */
    bool *is_reader;  /* of each node: of memory that user code may change */
    size_t reader;    /* the first of them that is not emitted */
    int *chain;       /* of each node: the leaf whose step it is, or NONE */
    int *before;  /* the node with an effect that comes before each, or NONE */
    int *movable; /* nodes that move, in order */
    size_t n_movable, first; /* those before `first` are emitted */
    int *order;
    size_t n;
} move_up;

/* The leaf that a node speaks of; or, through what it reads, the one whose
 * steps it continues: reductions, what capture callbacks wrote. */
static int find_chain(const move_up *m, const brg__ir_node *node)
{
    if (node->kind != BRG__IR_OP && node->visit != BRG__IR_NONE)
        return m->is_leaf[node->visit] ? node->visit : BRG__IR_NONE;
    for (int i = 0; i < node->n_in; i++) {
        int made = brg__ir_maker(m->ir, brg__ir_in(m->ir, node)[i]);
        if (made != BRG__IR_NONE && m->chain[made] != BRG__IR_NONE)
            return m->chain[made];
    }
    return BRG__IR_NONE;
}

static bool is_movable(const move_up *m, size_t at)
{
    brg__ir_kind kind = m->ir->nodes.at[at].kind;
    return kind == BRG__IR_TENSOR_HOOKS || kind == BRG__IR_VALIDATE ||
           m->chain[at] != BRG__IR_NONE;
}

/* Unpacking comes before its first use, whatever else happens; so does a
 * check. */
static bool keeps_order(const brg__ir_node *node)
{
    return !brg__ir_is_pure(node) && node->kind != BRG__IR_UNPACK &&
           node->kind != BRG__IR_VALIDATE;
}

/* ---- What has to come before what ------------------------------------------------- */

static void find_leaves(move_up *m)
{
    for (size_t at = 0; at < m->ir->nodes.n; at++) {
        const brg__ir_node *node = &m->ir->nodes.at[at];
        if (node->kind != BRG__IR_ACCUMULATE)
            continue;
        m->is_leaf[node->visit] = true;
        /* Through the leaf's own hooks to what made the gradient. */
        int made = brg__ir_maker(m->ir, brg__ir_in(m->ir, node)[0]);
        while (made != BRG__IR_NONE &&
               m->ir->nodes.at[made].visit == node->visit &&
               m->ir->nodes.at[made].n_in > 0)
            made = brg__ir_maker(m->ir,
                                 brg__ir_in(m->ir, &m->ir->nodes.at[made])[0]);
        m->is_free[node->visit] =
            made != BRG__IR_NONE && m->ir->nodes.at[made].segment != 0;
    }
}

static bool reads_outside(const brg__ir *ir, const brg__ir_node *node,
                          const int *root)
{
    for (int i = 0; i < node->n_in; i++) {
        int id = brg__ir_in(ir, node)[i];
        if (id == BRG__IR_NONE)
            continue;
        brg__ir_source source = ir->values.at[root[id]].source;
        if (source == BRG__IR_FROM_INPUT || source == BRG__IR_FROM_CONST)
            return true;
    }
    return false;
}

/* The operands of a call are not all that it reads. */
static void find_readers(move_up *m, const int *root)
{
    for (size_t at = 0; at < m->ir->nodes.n; at++) {
        const brg__ir_node *node = &m->ir->nodes.at[at];
        bool is_op = node->kind == BRG__IR_OP || node->kind == BRG__IR_ADD;
        m->is_reader[at] = node->kind == BRG__IR_CALL ||
                           node->kind == BRG__IR_REGION ||
                           (is_op && reads_outside(m->ir, node, root));
    }
}

static void find_order(move_up *m, int *last_of_visit)
{
    int last = BRG__IR_NONE;
    for (size_t at = 0; at < m->ir->nodes.n; at++) {
        const brg__ir_node *node = &m->ir->nodes.at[at];
        int chain = m->chain[at] = find_chain(m, node);
        bool is_free = chain != BRG__IR_NONE && m->is_free[chain];
        m->before[at] = is_free ? last_of_visit[chain] - 1 : last;
        if (!keeps_order(node))
            m->before[at] = BRG__IR_NONE;
        if (is_movable(m, at))
            m->movable[m->n_movable++] = (int)at;
        if (chain != BRG__IR_NONE && keeps_order(node))
            last_of_visit[chain] = (int)at + 1;
        if (keeps_order(node) && !is_free)
            last = (int)at;
    }
}

/* ---- Putting them in order ------------------------------------------------------------ */

static void emit(move_up *m, int at)
{
    m->is_emitted[at] = true;
    m->order[m->n++] = at;
    while (m->reader < m->ir->nodes.n &&
           (!m->is_reader[m->reader] || m->is_emitted[m->reader]))
        m->reader++;
}

static bool is_ready(const move_up *m, int at)
{
    const brg__ir_node *node = &m->ir->nodes.at[at];
    if (m->before[at] != BRG__IR_NONE && !m->is_emitted[m->before[at]])
        return false;
    if (brg__ir_runs_user_code(node) && m->reader < (size_t)at)
        return false;
    for (int i = 0; i < node->n_in; i++) {
        int made = brg__ir_maker(m->ir, brg__ir_in(m->ir, node)[i]);
        if (made != BRG__IR_NONE && !m->is_emitted[made])
            return false;
    }
    return true;
}

/* All that can come now. Those that are not free wait for each other: behind
 * the first of them that cannot, none can. */
static void emit_ready(move_up *m, bool some_are_free)
{
    for (size_t k = m->first; k < m->n_movable; k++) {
        int at = m->movable[k];
        if (!m->is_emitted[at] && is_ready(m, at))
            emit(m, at);
        else if (!m->is_emitted[at] && !some_are_free &&
                 m->ir->nodes.at[at].kind != BRG__IR_VALIDATE)
            break;
    }
    while (m->first < m->n_movable && m->is_emitted[m->movable[m->first]])
        m->first++;
}

static void schedule(move_up *m, size_t n_visits)
{
    bool some_are_free = false;
    for (size_t v = 0; v < n_visits; v++)
        some_are_free |= m->is_free[v];
    emit_ready(m, some_are_free);
    for (size_t at = 0; at < m->ir->nodes.n; at++) {
        if (is_movable(m, at))
            continue;
        emit(m, (int)at);
        emit_ready(m, some_are_free);
    }
}

brg_status brg__pass_early(brg__ir *ir)
{
    size_t n = ir->nodes.n, n_visits = brg__ir_count_visits(ir);
    size_t n_values = ir->values.n;
    move_up m = {.ir = ir};
    int *numbers = brg__mem_alloc_array(4 * n + n_visits + n_values + 1,
                                        sizeof *numbers, "an order of nodes");
    bool *flags = brg__mem_alloc_array(2 * n + 2 * n_visits + n_values + 1,
                                       sizeof *flags, "flags of nodes");
    brg_status status = numbers && flags ? BRG_OK : BRG_ERR_NOMEM;
    if (status == BRG_OK) {
        int *root = numbers + 4 * n + n_visits;
        bool *is_handed = flags + 2 * n + 2 * n_visits;
        m.before = numbers;
        m.movable = numbers + n;
        m.order = numbers + 2 * n;
        m.chain = numbers + 3 * n;
        m.is_emitted = flags;
        m.is_reader = flags + n;
        m.is_leaf = flags + 2 * n;
        m.is_free = flags + 2 * n + n_visits;
        brg__ir_find_roots(ir, root, is_handed);
        find_readers(&m, root);
        find_leaves(&m);
        find_order(&m, numbers + 4 * n);
        schedule(&m, n_visits);
        status = brg__ir_arrange(ir, m.order, m.n);
    }
    brg__mem_free(numbers);
    brg__mem_free(flags);
    return status;
}
