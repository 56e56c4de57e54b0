/* SPDX-License-Identifier: Apache-2.0
 * Saved tensors and the thread's stack of pack hooks: see saved.h. */
#include "core/autograd/saved.h"

#include "core/autograd/node.h"
#include "core/base/alloc.h"
#include "core/base/error.h"
#include "core/base/options.h"
#include "core/base/tracer.h"
#include "core/tensor/shape.h"

/* ---- The stack of pack hooks -------------------------------------------------- */

static _Thread_local brg__pack_hooks *innermost;
static _Thread_local bool is_packing_leaf;

const brg_pack_hooks *brg__pack_hooks_innermost(void)
{
    return innermost ? &innermost->hooks : NULL;
}

brg__pack_hooks *brg__pack_hooks_swap(brg__pack_hooks *pack)
{
    brg__pack_hooks *before = innermost;
    innermost = pack;
    return before;
}

void brg__pack_hooks_forget(const struct brg__tracer *tracer)
{
    for (brg__pack_hooks *pack = innermost; pack; pack = pack->outer)
        if (pack->suspended == tracer)
            pack->suspended = NULL;
}

bool brg__pack_source_is_leaf(void)
{
    return is_packing_leaf;
}

static void pack_hooks_release(brg__pack_hooks *pack)
{
    if (!pack || !brg__ref_release(&pack->refs))
        return;
    if (pack->hooks.destroy)
        pack->hooks.destroy(pack->hooks.user);
    brg__mem_free(pack);
}

brg_status brg_pack_hooks_push(const brg_pack_hooks *hooks)
{
    brg_pack_hooks taken = BRG_PACK_HOOKS_INIT;
    BRG_TRY(BRG_TAKE_OPTIONS(&taken, hooks, "brg_pack_hooks_push",
                             BRG_PACK_HOOKS_INIT));
    BRG_CHECK_ARG(taken.pack && taken.unpack,
                  "brg_pack_hooks_push: pack and unpack must both be set");
    BRG_TRY(brg__tracer_flush());
    brg__pack_hooks *pack = BRG__NEW(brg__pack_hooks);
    if (!pack)
        return BRG_ERR_NOMEM;
    brg__ref_init(&pack->refs);
    pack->hooks = taken;
    pack->suspended = brg__tracer_suspend();
    pack->outer = innermost;
    innermost = pack;
    return BRG_OK;
}

brg_status brg_pack_hooks_pop(void)
{
    if (!innermost)
        return BRG_FAIL(BRG_ERR_STATE, "brg_pack_hooks_pop: no pack hooks are "
                                       "in force on this thread");
    brg__pack_hooks *pack = innermost;
    innermost = pack->outer;
    brg__tracer_resume(pack->suspended);
    pack_hooks_release(pack);
    return BRG_OK;
}

/* ---- Saving -------------------------------------------------------------------- */

/* The hook sees an alias without history, with grad mode off, and must leave
 * the values alone. */
static brg_status pack(brg__saved *saved, brg_tensor *t)
{
    brg__pack_hooks *hooks = innermost;
    brg_scope *scope = brg_scope_begin();
    if (!scope)
        return BRG_ERR_NOMEM;
    bool mode = brg_grad_mode_set(false);
    innermost = NULL; /* ops inside the hook do not pack */
    is_packing_leaf = brg_requires_grad(t) && brg_is_leaf(t);
    brg_tensor *alias = brg_detach(t);
    brg_status status = alias ? BRG_OK : brg_error_code();
    if (status == BRG_OK)
        status = hooks->hooks.pack(alias, &saved->packed, hooks->hooks.user);
    BRG_EXPLAIN(status, "a pack hook");
    innermost = hooks;
    brg_grad_mode_set(mode);
    brg_scope_end(scope);
    if (status != BRG_OK)
        return status;
    brg__ref_retain(&hooks->refs);
    saved->pack = hooks;
    if (brg_tensor_version(t) == saved->version)
        return t->sparse ? BRG_OK : brg__tensor_new_meta(&saved->tensor, t);
    char text[BRG_TENSOR_TEXT_MAX];
    return BRG_FAIL(BRG_ERR_CALLBACK,
                    "A saved tensor pack hook is modifying its input in "
                    "place: %s",
                    brg__tensor_text(t, text));
}

brg_status brg__saved_init(brg__saved *saved, brg__saved_kind kind, int index,
                           brg_tensor *t)
{
    saved->kind = (uint8_t)(t ? kind : BRG__SAVED_NOTHING);
    saved->index = (uint8_t)index;
    if (!t)
        return BRG_OK;
    if (kind == BRG__SAVED_META)
        return brg__tensor_new_meta(&saved->tensor, t);
    saved->version = brg_tensor_version(t);
    if (innermost) {
        if (kind == BRG__SAVED_INPUT)
            BRG_TRY(brg__edge_of(t, &saved->history));
        return pack(saved, t);
    }
    if (kind == BRG__SAVED_OUTPUT)
        return brg__tensor_new_alias(&saved->tensor, t);
    saved->tensor = brg_retain(t);
    return BRG_OK;
}

void brg__saved_deinit(brg__saved *saved)
{
    brg_release(saved->tensor);
    saved->tensor = NULL;
    if (saved->pack) {
        if (saved->pack->hooks.free)
            saved->pack->hooks.free(saved->packed, saved->pack->hooks.user);
        pack_hooks_release(saved->pack);
        saved->pack = NULL;
    }
    brg_node_release(saved->history.node);
    saved->history.node = NULL;
}

/* ---- Using ---------------------------------------------------------------------- */

static brg_status check_version(const brg_node *owner, const brg__saved *saved)
{
    uint32_t now = brg_tensor_version(saved->tensor);
    if (now == saved->version)
        return BRG_OK;
    char text[BRG_TENSOR_TEXT_MAX];
    return BRG_FAIL(BRG_ERR_MODIFIED,
                    "%s: its %s %d (%s), needed for the gradient, has been "
                    "modified by an inplace operation: it is at version %u; "
                    "expected version %u instead",
                    brg_node_name(owner),
                    saved->kind == BRG__SAVED_OUTPUT ? "output" : "input",
                    saved->index, brg__tensor_text(saved->tensor, text), now,
                    saved->version);
}

/* An alias of t that continues the given history. */
static brg_status with_history(brg_tensor *t, brg__edge history,
                               brg_tensor **out)
{
    *out = brg_detach(t);
    if (!*out)
        return brg_error_code();
    return brg__tensor_set_history(*out, history.node, (int)history.slot);
}

/* What comes back is what rules count on; of sparse tensors nothing is kept. */
static brg_status check_unpacked(const brg_node *owner,
                                 const brg_tensor *packed, const brg_tensor *t)
{
    char a[BRG_TENSOR_TEXT_MAX], b[BRG_TENSOR_TEXT_MAX];
    if (!packed ||
        (packed->dtype == t->dtype && !t->sparse &&
         brg__shape_equal(packed->ndim, packed->shape, t->ndim, t->shape)))
        return BRG_OK;
    return BRG_FAIL(BRG_ERR_CALLBACK,
                    "a saved tensor unpack hook of %s gave back another shape "
                    "or dtype than was packed: %s, packed was %s",
                    brg_node_name(owner), brg__tensor_text(t, a),
                    brg__tensor_text(packed, b));
}

static brg_status unpack(const brg_node *owner, const brg__saved *saved,
                         brg_tensor **out)
{
    bool mode = brg_grad_mode_set(false);
    brg_status status =
        saved->pack->hooks.unpack(saved->packed, out, saved->pack->hooks.user);
    BRG_EXPLAIN(status, "an unpack hook");
    brg_grad_mode_set(mode);
    if (status == BRG_OK && !*out)
        status = BRG_FAIL(BRG_ERR_CALLBACK,
                          "a saved tensor unpack hook gave back nothing");
    return status == BRG_OK ? check_unpacked(owner, saved->tensor, *out)
                            : status;
}

brg_status brg__saved_get(brg_node *owner, const brg__saved *saved,
                          brg_tensor **out)
{
    *out = saved->tensor;
    if (saved->kind == BRG__SAVED_NOTHING || saved->kind == BRG__SAVED_META)
        return BRG_OK;
    if (saved->pack)
        BRG_TRY(unpack(owner, saved, out));
    else
        BRG_TRY(check_version(owner, saved));
    if (brg__grad_mode_is_off)
        return BRG_OK;
    if (saved->kind == BRG__SAVED_OUTPUT && saved->index < owner->n_slots)
        return with_history(*out, (brg__edge){owner, saved->index}, out);
    if (saved->history.node)
        return with_history(*out, saved->history, out);
    return BRG_OK;
}
