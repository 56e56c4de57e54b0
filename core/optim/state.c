/* SPDX-License-Identifier: Apache-2.0
 * The memory of an optimizer's state, and its tensors with their names. Each
 * tensor keeps a storage of its own, so that its version says when it was
 * written; those on the CPU lie in one block (optim.h), which goes with the
 * last of them. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/optim/create.h"
#include "core/tensor/device.h"
#include "core/tensor/shape.h"

/* ---- The order of the slots ------------------------------------------------- */

/* Where a slot's elements are. */
typedef struct place {
    brg_dtype dtype;
    uintptr_t first, end;
    size_t slot;
} place;

static int compare_places(const void *a, const void *b)
{
    const place *p = a, *q = b;
    if (p->dtype != q->dtype)
        return p->dtype < q->dtype ? -1 : 1;
    if (p->first != q->first)
        return p->first < q->first ? -1 : 1;
    return p->slot < q->slot ? -1 : 1;
}

static place place_of(const brg_optim *optim, size_t i)
{
    const brg__optim_slot *slot = &optim->slots[i];
    const size_t size = brg_dtype_size(slot->dtype);
    const uintptr_t param = (uintptr_t)brg__tensor_ptr(slot->param);
    const uintptr_t first = param + slot->first * size;
    return (place){slot->dtype, first, first + slot->n * size, i};
}

static brg_status sort_slots(place **out, brg_optim *optim)
{
    place *places = brg__mem_alloc_array(optim->n_slots, sizeof *places,
                                         "the order of parameters");
    *out = places;
    optim->order = brg__mem_alloc_array(optim->n_slots, sizeof *optim->order,
                                        "the order of parameters");
    if (!places || !optim->order)
        return BRG_ERR_NOMEM;
    for (size_t i = 0; i < optim->n_slots; i++)
        if (optim->slots[i].param->device.type == BRG_DEVICE_CPU)
            places[optim->n_order++] = place_of(optim, i);
    qsort(places, optim->n_order, sizeof *places, compare_places);
    for (size_t k = 0; k < optim->n_order; k++)
        optim->order[k] = places[k].slot;
    return BRG_OK;
}

/* ---- The block ----------------------------------------------------------------- */

/*     | kind 0: f64, f32, f16, bf16 | kind 1: ... | masters: f16, bf16 | */
typedef struct state_block {
    brg__storage *storage;
    size_t each;    /* bytes of a kind */
    size_t half_at; /* where those of 16-bit parameters begin in it */
} state_block;

static bool is_half(brg_dtype dtype)
{
    return dtype == BRG_DTYPE_F16 || dtype == BRG_DTYPE_BF16;
}

static brg_dtype real_of(brg_dtype dtype)
{
    return dtype == BRG_DTYPE_F64 ? BRG_DTYPE_F64 : BRG_DTYPE_F32;
}

/* What touches in the parameters' memory touches here, all else begins a new
 * line. False if no block can be as large. */
static bool lay_out(brg_optim *optim, const place *places, state_block *filled)
{
    size_t at = 0;
    bool fits = true;
    filled->half_at = SIZE_MAX;
    for (size_t k = 0; k < optim->n_order && fits; k++) {
        const place *p = &places[k], *before = k > 0 ? p - 1 : NULL;
        brg__optim_slot *slot = &optim->slots[p->slot];
        if (!before || before->dtype != p->dtype || before->end != p->first)
            at = brg__round_up(at, BRG_CACHE_LINE);
        if (is_half(p->dtype) && filled->half_at == SIZE_MAX)
            filled->half_at = at;
        slot->at = at;
        fits = slot->n < SIZE_MAX / 64 &&
               brg__add_size(at, slot->n * brg_dtype_size(real_of(p->dtype)),
                             &at) &&
               at < SIZE_MAX / 8;
    }
    filled->each = brg__round_up(at, BRG_CACHE_LINE);
    if (filled->half_at == SIZE_MAX)
        filled->half_at = filled->each;
    return fits;
}

static brg_status make_block(brg_optim *optim, const place *places,
                             state_block *filled)
{
    if (!lay_out(optim, places, filled))
        return BRG_FAIL_NOMEM("optimizer state", SIZE_MAX);
    const size_t n_kinds = (size_t)optim->rule->n_state(optim);
    const size_t nbytes =
        n_kinds * filled->each + filled->each - filled->half_at;
    BRG_TRY(brg__storage_new(&filled->storage, BRG_CPU, nbytes));
    optim->block = filled->storage->data;
    optim->block_kind = filled->each;
    return nbytes > 0 ? brg__device_zero(BRG_CPU, filled->storage->data, nbytes)
                      : BRG_OK;
}

static void leave_block(void *storage)
{
    brg__storage_release(storage);
}

/* `layout`, at so many bytes of the block; zeros. */
static brg_status new_inside(brg_tensor **out, const brg__layout *layout,
                             brg__storage *block, size_t at)
{
    brg__storage *part;
    int64_t numel;
    BRG_TRY(brg__storage_new(&part, BRG_CPU, 0));
    (void)brg__shape_numel(layout->ndim, layout->shape, &numel);
    part->is_external = true;
    part->nbytes = (size_t)numel * brg_dtype_size(layout->dtype);
    part->data = block->data ? (char *)block->data + at : NULL;
    part->free_fn = leave_block;
    part->user = block;
    brg__storage_retain(block);
    brg_status status = brg__tensor_new_view(out, layout, part);
    brg__storage_release(part);
    return status;
}

/* ---- Tensors ---------------------------------------------------------------------- */

/* Zeros in memory of their own. */
static brg_status new_apart(brg_tensor **out, const brg__layout *layout)
{
    BRG_TRY(brg__tensor_new(out, layout));
    return brg__device_zero(layout->device, (*out)->storage->data,
                            (*out)->storage->nbytes);
}

/* Lists `t`, state of `owner`, as "kind/name". */
static brg_status list_state(brg_optim *optim, const char *kind, brg_tensor *t,
                             const brg__optim_slot *owner)
{
    const char *name = owner ? owner->name : "";
    size_t size = strlen(kind) + strlen(name) + 2;
    char *text = brg__mem_alloc(size, "the name of optimizer state");
    if (!text)
        return BRG_ERR_NOMEM;
    snprintf(text, size, "%s%s%s", kind, name[0] ? "/" : "", name);
    brg_status status = brg_tensor_set_name(t, text);
    if (status == BRG_OK)
        status = brg__array_push(&optim->owners, owner);
    brg_named_tensor entry = {text, t};
    if (status == BRG_OK)
        status = brg__array_push(&optim->state, entry);
    if (status != BRG_OK)
        brg__mem_free(text);
    return status;
}

static brg_status add_state(brg_optim *optim, brg__optim_slot *slot,
                            brg_tensor **out, const char *kind,
                            const state_block *block, size_t at)
{
    brg__layout layout;
    const int64_t n = (int64_t)slot->n;
    BRG_TRY(brg__layout_init(&layout, "optimizer state", real_of(slot->dtype),
                             slot->is_part ? 1 : slot->ndim,
                             slot->is_part ? &n : slot->shape));
    layout.device = slot->param->device;
    if (layout.device.type == BRG_DEVICE_CPU)
        BRG_TRY(new_inside(out, &layout, block->storage, at));
    else
        BRG_TRY(new_apart(out, &layout));
    return list_state(optim, kind, *out, slot);
}

static brg_status add_states(brg_optim *optim, const state_block *block)
{
    const brg__optim_rule *rule = optim->rule;
    const size_t n_kinds = (size_t)rule->n_state(optim);
    for (size_t i = 0; i < optim->n_slots; i++) {
        brg__optim_slot *slot = &optim->slots[i];
        for (size_t k = 0; k < n_kinds; k++)
            BRG_TRY(add_state(optim, slot, &slot->state[k],
                              rule->state_names[k], block,
                              k * block->each + slot->at));
        if (is_half(slot->dtype))
            BRG_TRY(
                add_state(optim, slot, &slot->master, "master", block,
                          n_kinds * block->each + slot->at - block->half_at));
    }
    return BRG_OK;
}

static brg_status add_steps(brg_optim *optim)
{
    brg__layout layout;
    const int64_t n = (int64_t)optim->n_slots;
    BRG_TRY(brg__layout_init(&layout, "optimizer state", BRG_DTYPE_I64, 1, &n));
    BRG_TRY(new_apart(&optim->steps, &layout));
    return list_state(optim, "steps", optim->steps, NULL);
}

brg_status brg__optim_make_state(brg_optim *optim)
{
    place *places;
    state_block block = {0};
    brg_status status;
    BRG_TRY_GOTO(sort_slots(&places, optim), out);
    BRG_TRY_GOTO(make_block(optim, places, &block), out);
    BRG_TRY_GOTO(add_steps(optim), out);
    BRG_TRY_GOTO(add_states(optim, &block), out);
out:
    brg__storage_release(block.storage); /* its tensors hold it */
    brg__mem_free(places);
    return status;
}
