/* SPDX-License-Identifier: Apache-2.0
 * Nodes: one block each, freed without recursion. */
#include "core/autograd/node.h"

#include <stdatomic.h>
#include <string.h>

#include "core/autograd/debug.h"
#include "core/base/alloc.h"
#include "core/base/error.h"

static _Atomic uint64_t next_sequence;

void brg__node_stamp(brg_node *node)
{
    node->sequence =
        atomic_fetch_add_explicit(&next_sequence, 1, memory_order_relaxed);
}

brg_status brg__node_new(brg_node **out, const brg__node_class *cls,
                         int n_edges, int n_slots, int n_saved)
{
    size_t edges_at = brg__round_up(sizeof(brg_node), 16);
    size_t slots_at = edges_at + (size_t)n_edges * sizeof(brg__edge);
    size_t saved_at = slots_at + (size_t)n_slots * sizeof(brg__slot);
    size_t nbytes = saved_at + (size_t)n_saved * sizeof(brg__saved);
    brg_node *node = brg__obj_alloc(nbytes, "a node");
    *out = node;
    if (!node)
        return BRG_ERR_NOMEM;
    brg__ref_init(&node->refs);
    node->cls = cls;
    node->nbytes = nbytes;
    brg__node_stamp(node);
    node->n_edges = (uint16_t)n_edges;
    node->n_slots = (uint16_t)n_slots;
    node->n_saved = (uint16_t)n_saved;
    brg__place_current(&node->file, &node->line);
    node->edges = (brg__edge *)((char *)node + edges_at);
    node->slots = (brg__slot *)((char *)node + slots_at);
    node->saved = (brg__saved *)((char *)node + saved_at);
    return BRG_OK;
}

void brg__node_retain(brg_node *node)
{
    if (node)
        brg__ref_retain(&node->refs);
}

void brg__node_free_saved(brg_node *node)
{
    for (uint16_t i = 0; i < node->n_saved; i++)
        brg__saved_deinit(&node->saved[i]);
    if (node->cls->free_saved && !node->is_freed)
        node->cls->free_saved(node);
    node->is_freed = true;
}

brg_status brg__node_check_alive(const brg_node *node)
{
    if (!node->is_freed || node->n_saved == 0)
        return BRG_OK;
    return BRG_FAIL(BRG_ERR_STATE,
                    "Trying to backward through the graph a second time: what "
                    "%s saved has been freed; keep it with retain_graph",
                    brg_node_name(node));
}

static brg_status empty_apply(brg_node *node, brg_tensor *const *grad_out,
                              brg_tensor **grad_in)
{
    (void)node;
    (void)grad_out;
    (void)grad_in;
    return BRG_OK;
}

const brg__node_class brg__empty_class = {.name = "nothing",
                                          .apply = empty_apply};

static void free_hooks(brg__node_hooks *hooks)
{
    if (!hooks)
        return;
    brg__hook_list_deinit(&hooks->tensor);
    brg__hook_list_deinit(&hooks->retain);
    brg__hook_list_deinit(&hooks->pre);
    brg__hook_list_deinit(&hooks->post);
    brg__obj_free(hooks, sizeof *hooks);
}

/* Freeing a node may free the nodes behind its edges, and so on down a chain
 * as long as the graph is deep: the dead wait in a list instead of recursing. */
static _Thread_local brg_node *dead;
static _Thread_local bool is_burying;

static void bury(brg_node *node)
{
    brg__node_free_saved(node);
    free_hooks(node->hooks);
    for (uint16_t i = 0; i < node->n_edges; i++)
        brg_node_release(node->edges[i].node);
    if (node->cls->destroy)
        node->cls->destroy(node);
    brg__obj_free(node, node->nbytes);
}

void brg_node_release(brg_node *node)
{
    if (!node || !brg__ref_release_shared(&node->refs))
        return;
    node->next_dead = dead;
    dead = node;
    if (is_burying)
        return;
    is_burying = true;
    while (dead) {
        brg_node *next = dead;
        dead = next->next_dead;
        bury(next);
    }
    is_burying = false;
}

brg_status brg__node_hooks_get(brg_node *node, brg__node_hooks **out)
{
    if (!node->hooks)
        node->hooks = brg__obj_alloc(sizeof *node->hooks, "a node's hooks");
    *out = node->hooks;
    return node->hooks ? BRG_OK : BRG_ERR_NOMEM;
}

const char *brg_node_name(const brg_node *node)
{
    return node->cls->name ? node->cls->name : node->cls->name_of(node);
}

void brg__slot_set(brg__slot *slot, const brg_tensor *t)
{
    slot->is_differentiable = true;
    slot->dtype = t->dtype;
    slot->ndim = t->ndim;
    slot->device = t->device;
    memcpy(slot->shape, t->shape, sizeof slot->shape);
    slot->symbol = t->symbol;
}

brg__layout brg__slot_layout(const brg__slot *slot)
{
    brg__layout layout = {.dtype = (brg_dtype)slot->dtype,
                          .device = slot->device,
                          .ndim = slot->ndim};
    memcpy(layout.shape, slot->shape, sizeof layout.shape);
    brg__shape_strides(layout.ndim, layout.shape, layout.stride);
    return layout;
}

bool brg__slot_can_sum(const brg__slot *slot, const brg_tensor *grad)
{
    int ndim;
    int64_t shape[BRG_MAX_DIMS];
    return brg__shape_broadcast(grad->ndim, grad->shape, slot->ndim,
                                slot->shape, &ndim, shape) &&
           brg__shape_equal(ndim, shape, grad->ndim, grad->shape);
}
