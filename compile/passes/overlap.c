/* SPDX-License-Identifier: Apache-2.0
 * Overlap: a collective starts right behind what it sends, and is waited for
 * right before the first node that needs its result, or at the end: of the
 * backward, if the plan is a whole step. Starts keep their order, which is that
 * of all ranks; so do waits. */
#include "compile/passes/passes.h"
#include "core/base/error.h"
#include "core/base/tracer.h"

typedef struct overlap {
    const brg__ir *ir;
    bool *is_emitted; /* of each node */
    int *starts;      /* in order; emitted up to first_start */
    size_t n_starts, first_start;
    int *late; /* waits and write-backs met, in order; up to first_late */
    size_t n_late, first_late;
    int *order;
    size_t n;
} overlap;

static bool is_late_kind(brg__ir_kind kind)
{
    return kind == BRG__IR_WAIT || kind == BRG__IR_WRITE_BACK;
}

static bool is_there(const overlap *o, int id)
{
    int made = brg__ir_maker(o->ir, id);
    return made == BRG__IR_NONE || o->is_emitted[made];
}

static bool has_operands(const overlap *o, int at)
{
    const brg__ir_node *node = &o->ir->nodes.at[at];
    for (int i = 0; i < node->n_in; i++)
        if (!is_there(o, brg__ir_in(o->ir, node)[i]))
            return false;
    return true;
}

static void put(overlap *o, int at)
{
    o->is_emitted[at] = true;
    o->order[o->n++] = at;
}

static void put_starts(overlap *o)
{
    while (o->first_start < o->n_starts &&
           has_operands(o, o->starts[o->first_start]))
        put(o, o->starts[o->first_start++]);
}

/* What a node reads of those put off, and what was put off before that. */
static void put_what_it_reads(overlap *o, int at)
{
    const brg__ir_node *node = &o->ir->nodes.at[at];
    bool needs_all =
        node->kind == BRG__IR_FINAL ||
        (node->kind == BRG__IR_EFFECT && node->effect->ends_backward);
    while (o->first_late < o->n_late && (needs_all || !has_operands(o, at)))
        put(o, o->late[o->first_late++]);
}

static void schedule(overlap *o)
{
    for (size_t at = 0; at < o->ir->nodes.n; at++)
        if (o->ir->nodes.at[at].kind == BRG__IR_START)
            o->starts[o->n_starts++] = (int)at;
    put_starts(o);
    for (size_t at = 0; at < o->ir->nodes.n; at++) {
        brg__ir_kind kind = o->ir->nodes.at[at].kind;
        if (kind == BRG__IR_START)
            continue;
        if (is_late_kind(kind)) {
            o->late[o->n_late++] = (int)at;
            continue;
        }
        put_what_it_reads(o, (int)at);
        put(o, (int)at);
        put_starts(o);
    }
    while (o->first_late < o->n_late)
        put(o, o->late[o->first_late++]);
}

brg_status brg__pass_overlap(brg__ir *ir)
{
    size_t n = ir->nodes.n;
    overlap o = {.ir = ir};
    int *numbers =
        brg__mem_alloc_array(3 * n + 1, sizeof *numbers, "an order of nodes");
    o.is_emitted =
        brg__mem_alloc_array(n + 1, sizeof *o.is_emitted, "flags of nodes");
    brg_status status = numbers && o.is_emitted ? BRG_OK : BRG_ERR_NOMEM;
    if (status == BRG_OK) {
        o.starts = numbers;
        o.late = numbers + n;
        o.order = numbers + 2 * n;
        schedule(&o);
        status = brg__ir_arrange(ir, o.order, o.n);
    }
    brg__mem_free(numbers);
    brg__mem_free(o.is_emitted);
    return status;
}
