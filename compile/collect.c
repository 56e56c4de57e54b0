/* SPDX-License-Identifier: Apache-2.0
 * Collect: see collect.h. */
#include "compile/collect.h"

#include <string.h>

#include "compile/aliases.h"
#include "compile/ir.h"
#include "compile/segment.h"
#include "core/autograd/context.h"
#include "core/base/error.h"
#include "core/ops/op.h"

#define PACKED (-2) /* in the key, where an input would be named */

static _Atomic uint64_t marks;

uint64_t brg__mark_new(void)
{
    return atomic_fetch_add_explicit(&marks, 1, memory_order_relaxed) + 1;
}

/* ---- Bytes ---------------------------------------------------------------------- */

static brg_status reserve(brg__bytes *b, size_t extra)
{
    return brg__array_grow((void **)&b->at, &b->capacity, b->n + extra, 1);
}

static void put(brg__bytes *b, const void *data, size_t n)
{
    memcpy(b->at + b->n, data, n);
    b->n += n;
}

#define PUT(b, value)                                                          \
    do {                                                                       \
        __typeof__(value) put_value_ = (value);                                \
        put((b), &put_value_, sizeof put_value_);                              \
    } while (0)

/* ---- Sizes ------------------------------------------------------------------------ */

/* Room for the sizes (and strides) of so many tensors. */
static brg_status reserve_sizes(brg__collected *c, size_t n)
{
    BRG_TRY(reserve(&c->ones, n));
    BRG_TRY(brg__array_reserve(&c->strides, n * BRG_MAX_DIMS));
    return brg__array_reserve(&c->sizes, n * BRG_MAX_DIMS);
}

/* Dims of size 1 broadcast, so they are part of what a plan is. */
static inline void put_sizes(brg__collected *c, int ndim, const int64_t *shape)
{
    unsigned ones = 0;
    int64_t *to = c->sizes.at + c->sizes.n;
    for (int d = 0; d < ndim; d++) {
        ones |= (unsigned)(shape[d] == 1) << d;
        to[d] = shape[d];
    }
    c->sizes.n += (size_t)ndim;
    c->ones.at[c->ones.n++] = (unsigned char)ones;
}

/* ---- Tensors ---------------------------------------------------------------------- */

/* The input that t is; its sizes are written down the first time, where room
 * was made for them. */
static inline brg_status add_input(brg__collected *c, brg_tensor *t, int *input)
{
    uint32_t id;
    bool is_new;
    BRG_TRY(brg__map_add(&c->index, t, (uint32_t)c->inputs.n, &id, &is_new));
    *input = (int)id;
    if (!is_new)
        return BRG_OK;
    if (t->sparse)
        c->is_sparse = true;
    c->is_elsewhere |= t->device.type != BRG_DEVICE_CPU;
    BRG_TRY(brg__array_push(&c->inputs, t));
    brg_retain(t);
    put_sizes(c, t->ndim, t->shape);
    int64_t *to = c->strides.at + c->strides.n;
    for (int d = 0; d < t->ndim; d++)
        to[d] = t->stride[d];
    c->strides.n += t->ndim;
    return BRG_OK;
}

/* What the key says of a tensor: which one it is, and of what kind. */
static inline void put_tensor(brg__bytes *key, int input, const brg_tensor *t)
{
    uint64_t form = t->sparse ? 2 : t->storage == NULL;
    uint64_t kind = t->dtype | (uint64_t)t->ndim << 5 | form << 9 |
                    (uint64_t)brg__requires_grad(t) << 11 |
                    (uint64_t)t->device.type << 12 |
                    (uint64_t)(uint16_t)t->device.index << 16 |
                    (uint64_t)(uint32_t)input << 32;
    _Static_assert(BRG_MAX_DIMS < 16, "dims have 4 bits of the key");
    PUT(key, kind);
}

/* Only of what kind it is: the packed value stays with its node. */
static brg_status put_packed(brg__collected *c, const brg__saved *saved)
{
    const brg_tensor *like = saved->tensor;
    uint8_t split = (uint8_t)saved->pack->hooks.split;
    bool is_first = false;
    uint32_t unused;
    if (split == BRG_PACK_SPLIT_FIRST)
        BRG_TRY(brg__map_put(&c->index, saved->pack, 0, &unused, &is_first));
    put_tensor(&c->key, PACKED, like);
    PUT(&c->key, split);
    PUT(&c->key, is_first);
    put_sizes(c, like->ndim, like->shape);
    return BRG_OK;
}

/* Nothing to do but to take it. */
static inline bool is_as_saved(const brg__saved *saved)
{
    const brg_tensor *t = saved->tensor;
    if (saved->kind == BRG__SAVED_META)
        return true;
    return brg__grad_mode_is_off && t->storage &&
           atomic_load_explicit(&t->storage->version, memory_order_acquire) ==
               saved->version;
}

static brg_status collect_saved(brg__collected *c, brg_node *node,
                                const brg__saved *saved)
{
    int input = BRG__IR_NONE;
    if (saved->pack) {
        if (!saved->tensor)
            c->unsupported = "a sparse tensor packed by hooks";
        else
            BRG_TRY(put_packed(c, saved));
    } else if (saved->kind != BRG__SAVED_NOTHING) {
        brg_tensor *t = saved->tensor;
        if (!is_as_saved(saved)) /* it says what is wrong, or adds history */
            BRG_TRY(brg__saved_get(node, saved, &t));
        BRG_TRY(add_input(c, t, &input));
        put_tensor(&c->key, input, t);
    }
    return brg__array_push(&c->saved_input, input);
}

/* ---- Nodes -------------------------------------------------------------------------- */

static int count_hooks(const brg__hook_list *list)
{
    int n = 0;
    for (const brg_hook *h = list->first; h; h = h->next)
        n++;
    return n;
}

int brg__collected_reduction(const brg__collected *c, const void *self)
{
    for (size_t i = 0; i < c->reductions.n; i++)
        if (c->reductions.at[i].self == self)
            return (int)i;
    return BRG__IR_NONE;
}

/* What a plan writes down of a reduction. */
static brg_status put_part(brg__collected *c, const brg__reduction_part *part,
                           bool is_needed)
{
    int id = brg__collected_reduction(c, part->self);
    if (id == BRG__IR_NONE) {
        id = (int)c->reductions.n;
        BRG_TRY(brg__array_push(
            &c->reductions,
            ((brg__reduction){.ops = part->ops, .self = part->self})));
    }
    c->reductions.at[id].is_needed |= is_needed;
    if (is_needed)
        BRG_TRY(brg__array_push(&c->members,
                                ((brg__reduction_member){id, part->member})));
    PUT(&c->key, id);
    PUT(&c->key, part->version);
    PUT(&c->key, part->member);
    PUT(&c->key, part->bucket);
    PUT(&c->key, part->n_in_bucket);
    PUT(&c->key, part->divisor);
    return BRG_OK;
}

/* Which one a hook is, if the plan does not call it: what its callback would
 * write, or which part of a reduction. Else only that it is there. */
static brg_status put_hook(brg__collected *c, const brg_hook *h, bool is_needed)
{
    brg__reduction_part part = {.ops = NULL};
    PUT(&c->key, h->slot);
    PUT(&c->key, h->is_removed);
    if (h->is_removed)
        return BRG_OK;
    if (h->on_collect)
        BRG_TRY(h->on_collect(h->user, &part));
    PUT(&c->key, part.ops != NULL);
    if (part.ops)
        return put_part(c, &part, is_needed);
    PUT(&c->key, h->capture);
    if (h->capture) {
        PUT(&c->key, h->user);
        PUT(&c->key, h->version);
    }
    return BRG_OK;
}

/* Which hooks there are, by kind and slot; not what those do that are called.
 * */
static brg_status put_hooks(brg__collected *c, const brg_node *node,
                            bool is_needed)
{
    const brg__hook_list *lists[4] = {0};
    if (brg__node_is_accumulate(node)) {
        lists[0] = &brg__autograd_of(node->leaf)->hooks;
        lists[1] = &brg__autograd_of(node->leaf)->post_accumulate;
    } else if (node->hooks) {
        lists[0] = &node->hooks->tensor;
        lists[1] = &node->hooks->retain;
    }
    if (node->hooks) {
        lists[2] = &node->hooks->pre;
        lists[3] = &node->hooks->post;
    }
    for (int k = 0; k < 4; k++) {
        int n = lists[k] ? count_hooks(lists[k]) : 0;
        BRG_TRY(reserve(&c->key, sizeof n + (size_t)n * 48));
        PUT(&c->key, n);
        for (const brg_hook *h = n ? lists[k]->first : NULL; h; h = h->next)
            BRG_TRY(put_hook(c, h, is_needed));
    }
    return BRG_OK;
}

static inline void put_slots(brg__collected *c, const brg_node *node)
{
    for (uint16_t j = 0; j < node->n_slots; j++) {
        const brg__slot *slot = &node->slots[j];
        uint64_t kind = slot->dtype | (uint64_t)slot->ndim << 8 |
                        (uint64_t)slot->is_differentiable << 16 |
                        (uint64_t)(uint8_t)slot->device.type << 24 |
                        (uint64_t)(uint16_t)slot->device.index << 32;
        PUT(&c->key, kind);
        c->is_elsewhere |= slot->device.type != BRG_DEVICE_CPU;
        put_sizes(c, slot->ndim, slot->shape);
    }
}

/* Most edges lead to the node visited next, or are looked up. */
static inline void put_edges(brg__collected *c, const brg__task *task,
                             const brg__visit *visit)
{
    const brg_node *node = visit->node;
    size_t next = (size_t)(visit - task->visits.at) + 1;
    const brg_node *guess =
        next < task->visits.n ? task->visits.at[next].node : NULL;
    for (uint16_t i = 0; i < node->n_edges; i++) {
        uint32_t to = UINT32_MAX;
        const brg_node *leads_to = node->edges[i].node;
        if (leads_to && leads_to == guess)
            to = (uint32_t)next;
        else if (leads_to)
            (void)brg__map_look(&task->index, leads_to, &to);
        PUT(&c->key, to | (uint64_t)node->edges[i].slot << 32);
    }
}

/* What is copied into the plan as a constant. A number or a tensor given
 * directly is read at run time, as sizes are; inside a list it is a constant,
 * but for tensors. */
static brg_status put_value(brg__bytes *key, const brg_value *v, bool is_inside)
{
    const char *text = v->kind == BRG_VALUE_STRING ? v->as.text : "";
    size_t n = strlen(text);
    BRG_TRY(reserve(key, n + 64));
    PUT(key, (uint8_t)v->kind);
    PUT(key, n);
    put(key, text, n);
    if (v->kind == BRG_VALUE_BOOL)
        PUT(key, v->as.truth);
    if (v->kind == BRG_VALUE_INT && is_inside)
        PUT(key, v->as.integer);
    if (v->kind == BRG_VALUE_FLOAT && is_inside)
        PUT(key, v->as.real);
    if (v->kind != BRG_VALUE_LIST)
        return BRG_OK;
    PUT(key, v->as.list.n);
    for (size_t i = 0; i < v->as.list.n; i++)
        BRG_TRY(put_value(key, &v->as.list.items[i], true));
    return BRG_OK;
}

static brg_status put_attributes(brg__bytes *key, const brg_context *ctx)
{
    BRG_TRY(reserve(key, sizeof ctx->attributes.n));
    PUT(key, ctx->attributes.n);
    for (size_t i = 0; i < ctx->attributes.n; i++) {
        const brg__attribute *a = &ctx->attributes.at[i];
        const brg_value name = brg_value_string(a->name);
        BRG_TRY(put_value(key, &name, true));
        BRG_TRY(put_value(key, &a->value, false));
    }
    return BRG_OK;
}

/* Tensors and numbers of a traceable function: inputs of the plan. */
static brg_status collect_attributes(brg__collected *c, const brg_context *ctx)
{
    BRG_TRY(reserve(&c->key, 16 * ctx->attributes.n + sizeof ctx->autocast));
    PUT(&c->key, ctx->autocast);
    for (size_t i = 0; i < ctx->attributes.n; i++) {
        int input = BRG__IR_NONE;
        const brg__attribute *a = &ctx->attributes.at[i];
        brg_tensor *t = brg__attribute_tensor(a);
        bool is_number =
            a->value.kind == BRG_VALUE_INT || a->value.kind == BRG_VALUE_FLOAT;
        if (!t && is_number)
            return brg_error_code();
        if (t) {
            BRG_TRY(reserve_sizes(c, 1));
            BRG_TRY(add_input(c, t, &input));
            put_tensor(&c->key, input, t);
        }
        BRG_TRY(brg__array_push(&c->saved_input, input));
    }
    return BRG_OK;
}

/* The attributes are sizes of the result, which its slot has too and the
 * gradient rule does not read. */
static bool has_sizes_for_attrs(const brg_op *op)
{
    return op == &brg__op_reshape || op == &brg__op_expand;
}

/* Which words of the attributes are part of what the op is: those that are
 * not 0. Of an op that draws random numbers they change with each call: the
 * plan reads them at run time. */
static inline uint32_t attrs_mask(const brg_node *node, uint64_t *words)
{
    uint32_t mask = 0;
    if (!node->has_attrs || !node->op || (node->op->flags & BRG_OP_IMPURE) ||
        has_sizes_for_attrs(node->op))
        return 0;
    memcpy(words, &node->attrs, sizeof node->attrs);
    for (size_t i = 0; i < sizeof(brg_attrs) / 8; i++)
        mask |= (uint32_t)(words[i] != 0) << i;
    return mask;
}

static bool has_hooks(const brg_node *node)
{
    return node->hooks || brg__node_is_accumulate(node);
}

/* Whole words at once: bytes put together in memory cost more. */
static inline void put_head(brg__collected *c, const brg__visit *visit)
{
    const brg_node *node = visit->node;
    uint64_t words[sizeof(brg_attrs) / 8];
    uint32_t mask = attrs_mask(node, words);
    uint64_t flags = visit->is_needed | (uint64_t)visit->is_wanted << 1 |
                     (uint64_t)has_hooks(node) << 2 | (uint64_t)mask << 16 |
                     (uint64_t)node->saves << 32;
    uint64_t counts = node->n_edges | (uint64_t)node->n_slots << 16 |
                      (uint64_t)node->n_saved << 32 |
                      (uint64_t)(uint16_t)visit->n_waiting << 48;
    PUT(&c->key, node->cls);
    PUT(&c->key, node->op);
    PUT(&c->key, flags);
    PUT(&c->key, counts);
    for (; mask; mask &= mask - 1)
        PUT(&c->key, words[__builtin_ctz(mask)]);
}

/* What nodes that are no ops are. */
static void put_class(brg__bytes *key, const brg_node *node)
{
    const brg__segment *segment = brg__segment_of(node);
    if (segment)
        PUT(key, segment->id);
    if (brg__node_is_function(node)) {
        const brg_context *ctx = node->payload;
        PUT(key, ctx->function->id);
        PUT(key, ctx->tensors);
        PUT(key, ctx->needs);
        PUT(key, ctx->saved_args);
        PUT(key, ctx->is_materializing);
    }
}

/* Whether the leaf has a gradient, and of which kind. */
static void put_grad(brg__collected *c, brg_node *node)
{
    pthread_mutex_lock(&node->lock);
    const brg_tensor *grad = brg__autograd_of(node->leaf)->grad;
    uint8_t kind[2] = {grad ? 1 + (grad->sparse != NULL) : 0,
                       grad && brg__requires_grad(grad)};
    put(&c->key, kind, sizeof kind);
    c->is_sparse |= grad && grad->sparse;
    brg__mark_gradient(node, c->mark);
    pthread_mutex_unlock(&node->lock);
}

/* Where unpacking cuts the plan, of a function that unpacks for itself. */
static void put_splits(brg__bytes *key, const brg_node *node)
{
    for (uint16_t k = 0; k < node->n_saved; k++) {
        const brg__pack_hooks *pack = node->saved[k].pack;
        PUT(key, (uint8_t)(pack ? 1 + pack->hooks.split : 0));
    }
}

static brg_status collect_visit(brg__collected *c, const brg__task *task,
                                const brg__visit *visit)
{
    brg_node *node = visit->node;
    size_t most =
        512 + node->n_edges * 8u + node->n_slots * 80u + node->n_saved * 80u;
    BRG_TRY(reserve(&c->key, most));
    BRG_TRY(reserve_sizes(c, node->n_slots + (size_t)node->n_saved));
    BRG_TRY(brg__array_push(&c->first_saved, (int)c->saved_input.n));
    put_head(c, visit);
    if (!node->op)
        put_class(&c->key, node);
    if (brg__node_is_accumulate(node))
        put_grad(c, node);
    put_slots(c, node);
    put_edges(c, task, visit);
    if (has_hooks(node))
        BRG_TRY(put_hooks(c, node, visit->is_needed && !task->returns_grads));
    bool is_function = brg__node_is_function(node);
    if (is_function) {
        put_splits(&c->key, node);
        BRG_TRY(put_attributes(&c->key, node->payload));
    }
    if (is_function && brg__node_tracing(node) != BRG_FUNCTION_TRACEABLE)
        return BRG_OK; /* it unpacks for itself */
    BRG_TRY(brg__node_check_alive(node));
    for (uint16_t k = 0; k < node->n_saved; k++)
        BRG_TRY(collect_saved(c, node, &node->saved[k]));
    return is_function ? collect_attributes(c, node->payload) : BRG_OK;
}

/* ---- The whole ----------------------------------------------------------------------- */

static brg_status end_record(brg__collected *c)
{
    return brg__array_push(&c->ends, (uint32_t)c->key.n);
}

/* The first record: how it is to be run, what flows in, what is asked for. */
static brg_status collect_root(brg__collected *c, const brg__task *task)
{
    uint8_t kind[4] = {task->returns_grads, brg__grad_mode_is_off,
                       c->mode.dynamic, c->mode.backend};
    BRG_TRY(reserve(&c->key, sizeof kind + task->buffers.n * 16 +
                                 task->requests.n * 8 + 4));
    put(&c->key, kind, sizeof kind);
    for (size_t i = 0; i < task->buffers.n; i++) {
        int input = BRG__IR_NONE;
        brg_tensor *t = task->buffers.at[i];
        if (t) {
            BRG_TRY(reserve_sizes(c, 1));
            BRG_TRY(add_input(c, t, &input));
            PUT(&c->key, (uint32_t)i);
            put_tensor(&c->key, input, t);
        }
        BRG_TRY(brg__array_push(&c->root_input, input));
    }
    PUT(&c->key, UINT32_MAX);
    for (size_t i = 0; i < task->requests.n; i++) {
        PUT(&c->key, task->requests.at[i].visit);
        PUT(&c->key, task->requests.at[i].slot);
    }
    return end_record(c);
}

brg_status brg__collect(brg__collected *c, const brg__task *task,
                        brg__collect_mode mode)
{
    brg__collected_clear(c);
    c->mode = mode;
    c->is_sparse = c->is_elsewhere = false;
    c->records_graph = !brg__grad_mode_is_off;
    c->mark = brg__mark_new();
    BRG_TRY(collect_root(c, task));
    for (size_t i = 0; i < task->visits.n; i++) {
        BRG_TRY(collect_visit(c, task, &task->visits.at[i]));
        BRG_TRY(end_record(c));
    }
    for (size_t i = 0; i < c->inputs.n; i++)
        if (brg__is_marked(c->inputs.at[i], c->mark))
            c->unsupported = BRG__READS_GRADIENT;
    c->n_structure = c->key.n;
    BRG_TRY(reserve(&c->key, c->ones.n));
    put(&c->key, c->ones.at, c->ones.n);
    return BRG_OK;
}

void brg__collected_clear(brg__collected *c)
{
    for (size_t i = 0; i < c->inputs.n; i++)
        brg_release(c->inputs.at[i]);
    c->key.n = c->ones.n = c->ends.n = c->n_structure = 0;
    c->sizes.n = c->strides.n = c->inputs.n = 0;
    c->saved_input.n = c->first_saved.n = c->root_input.n = 0;
    c->reductions.n = c->members.n = 0;
    c->unsupported = NULL;
    brg__map_clear(&c->index);
}

void brg__collected_deinit(brg__collected *c)
{
    brg__collected_clear(c);
    brg__array_deinit(&c->key);
    brg__array_deinit(&c->ends);
    brg__array_deinit(&c->ones);
    brg__array_deinit(&c->sizes);
    brg__array_deinit(&c->strides);
    brg__array_deinit(&c->inputs);
    brg__array_deinit(&c->saved_input);
    brg__array_deinit(&c->first_saved);
    brg__array_deinit(&c->root_input);
    brg__array_deinit(&c->reductions);
    brg__array_deinit(&c->members);
    brg__map_deinit(&c->index);
}
