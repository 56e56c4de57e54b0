/* SPDX-License-Identifier: Apache-2.0
 * What a step that is launched again depends on: see relaunch_note.h. */
#include "compile/relaunch_note.h"

#include <stdio.h>
#include <string.h>

#include "core/autograd/node.h"
#include "core/base/error.h"

/* ---- Once ----------------------------------------------------------------------- */

static bool is_there(const brg__relauncher *r, const brg_tensor *t)
{
    return brg__device_equal(t->device, r->device);
}

static const char *check_tensors(brg__relauncher *r, const brg__segment *s,
                                 brg_tensor *const *inputs, size_t n_inputs)
{
    const brg__ir *ir = &s->captured.forward;
    for (size_t id = 0; id < ir->values.n; id++) {
        const brg_tensor *t = ir->values.at[id].constant;
        if (t && t->storage && r->device.type == BRG_DEVICE_CPU)
            r->device = t->device;
    }
    if (r->device.type == BRG_DEVICE_CPU)
        return "no tensor on a device";
    for (size_t id = 0; id < ir->values.n; id++) {
        const brg_tensor *t = ir->values.at[id].constant;
        if (t && t->storage && !is_there(r, t) && !brg__is_number(t))
            return "tensors on several devices";
    }
    for (size_t i = 0; i < n_inputs; i++) {
        if (inputs[i] && !is_there(r, inputs[i]) && !brg__is_number(inputs[i]))
            return "an input on another device";
        if (inputs[i] && !inputs[i]->is_contiguous)
            return "an input that is not row-major";
    }
    for (size_t i = 0; i < s->captured.edges.n; i++) {
        const brg_tensor *leaf = s->captured.edges.at[i].tensor;
        if (!leaf)
            return "the gradient of an input";
        if (!is_there(r, leaf))
            return "a gradient on the host";
    }
    return brg__numbers_check(s, inputs, r->device);
}

static const char *check_node(const brg__relauncher *r,
                              const brg__ir_node *node, const char **of)
{
    *of = "";
    switch ((int)node->kind) {
    case BRG__IR_OP:
        *of = node->op->name;
        return node->lifted != BRG__IR_NONE ? "attributes read at each run: "
                                            : NULL;
    case BRG__IR_EFFECT:
        *of = node->effect->name;
        if (!node->effect->relaunch)
            return "the host has to act: ";
        return node->effect->target && !is_there(r, node->effect->target)
                   ? "a change of a tensor on another device: "
                   : NULL;
    case BRG__IR_ADD:
    case BRG__IR_FUSED:
    case BRG__IR_LEAF:
    case BRG__IR_ACCUMULATE:
    case BRG__IR_PACK:
    case BRG__IR_START:
    case BRG__IR_WAIT:
    case BRG__IR_WRITE_BACK:
    case BRG__IR_OUTPUT:
        return NULL;
    case BRG__IR_REGION:
        return "values decide what runs";
    default:
        return "code of the user";
    }
}

bool brg__relaunch_allows(brg__relauncher *r, const brg__segment *s,
                          brg_tensor *const *inputs, size_t n_inputs, char *why,
                          size_t size)
{
    const brg__ir *ir = &s->captured.forward;
    const char *what = check_tensors(r, s, inputs, n_inputs), *of = "";
    if (!what && brg__device_find(r->device, &r->vtable) != BRG_OK)
        what = brg_error_message();
    if (!what && !r->vtable->graph_record)
        what = "the device records nothing";
    for (size_t n = 0; !what && n < ir->nodes.n; n++)
        what = check_node(r, &ir->nodes.at[n], &of);
    if (what)
        snprintf(why, size, "%s%s", what, of);
    return !what;
}

/* ---- Each time --------------------------------------------------------------------- */

static brg_status put(brg__relauncher *r, uintptr_t word)
{
    return brg__array_push(&r->now, word);
}

static uintptr_t address_of(const brg_tensor *t)
{
    return t && t->storage ? (uintptr_t)brg__tensor_ptr(t) : 0;
}

static bool is_known(const brg__relauncher *r, const brg__reduction_part *part)
{
    for (size_t i = 0; i < r->reducers.n; i++)
        if (r->reducers.at[i].relaunch_self == part->relaunch_self)
            return true;
    return false;
}

/* Hooks of reducers are known; others are code of the user. */
static brg_status note_hook(brg__relauncher *r, const brg_hook *h)
{
    brg__reduction_part part = {0};
    if (h->on_collect)
        BRG_TRY(h->on_collect(h->user, &part));
    if (!part.relaunch)
        return BRG_FAIL(BRG_ERR_UNSUPPORTED, "code of the user at a leaf");
    if (is_known(r, &part))
        return BRG_OK;
    BRG_TRY(part.relaunch->note(part.relaunch_self, &r->now));
    return brg__array_push(&r->reducers, part);
}

static bool is_empty(const brg__hook_list *list)
{
    for (const brg_hook *h = list->first; h; h = h->next)
        if (!h->is_removed)
            return false;
    return true;
}

/* Hooks of the leaf's node, which exists while somebody holds it. */
static brg_status check_node_hooks(brg_tensor *leaf)
{
    brg_node *node;
    if (!brg__autograd_of(leaf)->accumulate)
        return BRG_OK;
    BRG_TRY(brg__accumulate_node(&node, leaf));
    const bool has_hooks = node->hooks && (!is_empty(&node->hooks->pre) ||
                                           !is_empty(&node->hooks->post));
    brg_node_release(node);
    return has_hooks
               ? BRG_FAIL(BRG_ERR_UNSUPPORTED, "code of the user at a leaf")
               : BRG_OK;
}

static brg_status note_leaf(brg__relauncher *r, brg_tensor *leaf)
{
    const brg__autograd *a = brg__autograd_of(leaf);
    if (!is_empty(&a->hooks))
        return BRG_FAIL(BRG_ERR_UNSUPPORTED, "code of the user at a leaf");
    BRG_TRY(check_node_hooks(leaf));
    BRG_TRY(put(r, address_of(a->grad)));
    BRG_TRY(put(r, a->grad ? (uintptr_t)atomic_load(&a->grad->refs.n) : 0));
    for (const brg_hook *h = a->post_accumulate.first; h; h = h->next)
        if (!h->is_removed)
            BRG_TRY(note_hook(r, h));
    return BRG_OK;
}

static brg_status note_effect(brg__relauncher *r, const brg__effect *effect)
{
    BRG_TRY(put(r, address_of(effect->target)));
    return effect->note ? effect->note(effect, &r->now) : BRG_OK;
}

brg_status brg__relaunch_note(brg__relauncher *r, const brg__segment *s)
{
    const brg__captured *c = &s->captured;
    r->now.n = r->reducers.n = 0;
    for (size_t id = 0; id < c->forward.values.n; id++) {
        const brg_tensor *t = c->forward.values.at[id].constant;
        if (t && !brg__is_number(t))
            BRG_TRY(put(r, address_of(t)));
    }
    for (size_t i = 0; i < c->edges.n; i++)
        BRG_TRY(note_leaf(r, c->edges.at[i].tensor));
    for (size_t i = 0; i < c->effects.n; i++)
        BRG_TRY(note_effect(r, c->effects.at[i]));
    r->n_lasting = r->now.n;
    for (size_t i = 0; i < r->reducers.n; i++) {
        const brg__reduction_part *part = &r->reducers.at[i];
        BRG_TRY(part->relaunch->find(part->relaunch_self, &r->now));
    }
    return BRG_OK;
}

static bool is_equal(const brg__relauncher *r, size_t n)
{
    return n == 0 || memcmp(r->now.at, r->state.at, n * sizeof *r->now.at) == 0;
}

bool brg__relaunch_is_noted(const brg__relauncher *r)
{
    return r->now.n == r->state.n && is_equal(r, r->now.n);
}

bool brg__relaunch_is_back(const brg__relauncher *r, size_t n_lasting)
{
    return r->n_lasting == n_lasting && is_equal(r, n_lasting);
}

void brg__relaunch_touch(const brg__ir *ir, const brg__ir_node *node)
{
    for (int i = 0; i < node->n_in; i++) {
        int id = brg__ir_in(ir, node)[i];
        brg_tensor *t = id == BRG__IR_NONE ? NULL : ir->values.at[id].constant;
        if (t && t->storage)
            brg_tensor_touch(t);
    }
}
