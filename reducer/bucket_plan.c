/* SPDX-License-Identifier: Apache-2.0
 * The bucket plan: grouping, numbering, offsets. See bucket_plan.h. */
#include "reducer/bucket_plan.h"

#include <stdio.h>
#include <string.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "core/base/alloc.h"
#include "core/base/error.h"
#include "core/base/text.h"

/* A bucket while the plan is made, in the order of its first tensor. */
typedef struct draft {
    brg_dtype dtype;
    brg_device device;
    uint32_t group; /* closes by no limit */
    size_t n_params;
    size_t nbytes;       /* without padding: what the limit is about */
    size_t limit;        /* index of its limit */
    size_t part;         /* closes that came before it */
    size_t completes_at; /* place in the order of its last tensor */
    uint32_t number;     /* in the finished plan */
    bool is_newest;      /* of its key */
} draft;

static uint32_t nth(const brg__plan_request *q, size_t place)
{
    return q->order ? q->order[place] : (uint32_t)(q->n_params - 1 - place);
}

/* ---- Checks and memory ------------------------------------------------------ */

static brg_status check_order(const brg__plan_request *q, draft *drafts)
{
    for (size_t i = 0; q->order && i < q->n_params; i++) {
        BRG_CHECK_ARG(q->order[i] < q->n_params &&
                          !drafts[q->order[i]].is_newest,
                      "bucket plan: place %zu of the order names parameter "
                      "%u of %zu, which is unknown or named before",
                      i, q->order[i], q->n_params);
        drafts[q->order[i]].is_newest = true;
    }
    memset(drafts, 0, q->n_params * sizeof *drafts);
    return BRG_OK;
}

static brg_status check_sizes(const brg__plan_request *q)
{
    size_t total = q->n_tail, slack = (2 + q->n_shards) * BRG__PLAN_ALIGN;
    BRG_CHECK_ARG(q->n_limits > 0 || q->closes, "bucket plan: no limits");
    BRG_CHECK_ARG(q->n_params < UINT32_MAX, "bucket plan: %zu parameters",
                  q->n_params);
    bool fits = brg__mul_size(total, sizeof(float), &total) &&
                brg__add_size(total, slack, &total);
    for (size_t i = 0; fits && i < q->n_params; i++)
        fits = brg__add_size(total, q->params[i].nbytes, &total) &&
               brg__add_size(total, slack, &total);
    BRG_CHECK_ARG(fits && total <= PTRDIFF_MAX,
                  "bucket plan: the gradients do not fit into memory");
    return BRG_OK;
}

/* One block holds the three arrays. */
static brg_status allocate(brg__plan *plan, size_t n)
{
    size_t slots = n * sizeof *plan->slots;
    size_t buckets = (n + 1) * sizeof *plan->buckets;
    char *block = brg__mem_alloc(slots + buckets + n * sizeof *plan->order,
                                 "a bucket plan");
    if (!block)
        return BRG_ERR_NOMEM;
    plan->n_params = n;
    plan->buckets = (brg__plan_bucket *)block;
    plan->slots = (brg__plan_slot *)(block + buckets);
    plan->order = (uint32_t *)(block + buckets + slots);
    return BRG_OK;
}

void brg__plan_deinit(brg__plan *plan)
{
    brg__mem_free(plan->buckets);
    *plan = (brg__plan){0};
}

/* ---- Grouping ---------------------------------------------------------------- */

static bool has_key(const draft *d, const brg__plan_param *p)
{
    return d->dtype == p->dtype && d->device.type == p->device.type &&
           d->device.index == p->device.index && d->group == p->group;
}

static bool is_open(const brg__plan_request *q, const draft *d, size_t part)
{
    if (d->group)
        return true;
    return q->closes ? d->part == part : d->nbytes < q->limits[d->limit];
}

/* The open bucket of the parameter's key; a new one if there is none. */
static draft *open_bucket(const brg__plan_request *q, const brg__plan_param *p,
                          draft *drafts, size_t *n, size_t part)
{
    size_t limit = 0;
    for (size_t i = *n; i-- > 0;) {
        draft *d = &drafts[i];
        if (!d->is_newest || !has_key(d, p))
            continue;
        if (is_open(q, d, part))
            return d;
        d->is_newest = false;
        limit = d->limit + (d->limit + 1 < q->n_limits);
        break;
    }
    draft *fresh = &drafts[(*n)++];
    *fresh = (draft){.dtype = p->dtype,
                     .device = p->device,
                     .group = p->group,
                     .limit = limit,
                     .part = part,
                     .is_newest = true};
    return fresh;
}

/* Slots name drafts for now. */
static size_t group(const brg__plan_request *q, draft *drafts,
                    brg__plan_slot *slots)
{
    size_t n = 0, part = 0;
    for (size_t place = 0; place < q->n_params; place++) {
        uint32_t i = nth(q, place);
        draft *d = open_bucket(q, &q->params[i], drafts, &n, part);
        d->nbytes += q->params[i].nbytes;
        d->n_params++;
        d->completes_at = place;
        slots[i] = (brg__plan_slot){.bucket = (uint32_t)(d - drafts),
                                    .nbytes = q->params[i].nbytes};
        part += q->closes && q->closes[place];
    }
    return n;
}

/* ---- Numbering and offsets --------------------------------------------------- */

/* Numbers the buckets as they complete, and gives each its part of `order`. */
static void number(brg__plan *plan, const brg__plan_request *q, draft *drafts)
{
    size_t first = 0;
    for (size_t place = 0; place < q->n_params; place++) {
        draft *d = &drafts[plan->slots[nth(q, place)].bucket];
        if (d->completes_at != place)
            continue;
        d->number = (uint32_t)plan->n_buckets;
        plan->buckets[plan->n_buckets++] = (brg__plan_bucket){
            .first = first, .dtype = d->dtype, .device = d->device};
        first += d->n_params;
    }
    for (size_t place = 0; place < q->n_params; place++) {
        uint32_t i = nth(q, place);
        brg__plan_slot *slot = &plan->slots[i];
        slot->bucket = drafts[slot->bucket].number;
        brg__plan_bucket *b = &plan->buckets[slot->bucket];
        plan->order[b->first + b->n_params++] = i;
    }
}

/* The bucket that carries the tail: the last, if it is f32, or a new one. */
static brg__plan_bucket *tail_bucket(brg__plan *plan, bool is_alone)
{
    brg__plan_bucket *next = &plan->buckets[plan->n_buckets];
    bool is_first = plan->n_buckets == 0;
    if (!is_first && !is_alone && next[-1].dtype == BRG_DTYPE_F32)
        return next - 1;
    *next = (brg__plan_bucket){.first = plan->n_params,
                               .offset = plan->nbytes,
                               .dtype = BRG_DTYPE_F32};
    if (!is_first)
        next->device = next[-1].device;
    plan->n_buckets++;
    return next;
}

static void place_tail(brg__plan *plan, size_t n_tail, bool is_alone)
{
    if (n_tail == 0)
        return;
    brg__plan_bucket *last = tail_bucket(plan, is_alone);
    plan->n_tail = n_tail;
    plan->tail_offset = last->offset + last->nbytes;
    size_t nbytes = brg__round_up(n_tail * sizeof(float), BRG__PLAN_ALIGN);
    last->nbytes += nbytes;
    plan->nbytes += nbytes;
}

static void place(brg__plan *plan, size_t n_shards)
{
    size_t whole = BRG__PLAN_ALIGN * (n_shards ? n_shards : 1);
    for (size_t k = 0; k < plan->n_buckets; k++) {
        brg__plan_bucket *b = &plan->buckets[k];
        b->offset = plan->nbytes;
        for (size_t i = 0; i < b->n_params; i++) {
            brg__plan_slot *slot = &plan->slots[plan->order[b->first + i]];
            slot->offset = plan->nbytes;
            plan->nbytes += brg__round_up(slot->nbytes, BRG__PLAN_ALIGN);
        }
        b->nbytes = (plan->nbytes - b->offset + whole - 1) / whole * whole;
        plan->nbytes = b->offset + b->nbytes;
    }
}

brg_status brg__plan_make(brg__plan *out, const brg__plan_request *request)
{
    *out = (brg__plan){0};
    BRG_TRY(check_sizes(request));
    brg__plan plan = {0};
    draft *drafts = brg__mem_alloc_array(request->n_params + 1, sizeof *drafts,
                                         "a bucket plan");
    if (!drafts)
        return BRG_ERR_NOMEM;
    brg_status status;
    BRG_TRY_GOTO(check_order(request, drafts), out);
    BRG_TRY_GOTO(allocate(&plan, request->n_params), out);
    (void)group(request, drafts, plan.slots);
    number(&plan, request, drafts);
    place(&plan, request->n_shards);
    place_tail(&plan, request->n_tail, request->is_tail_alone);
    *out = plan;
out:
    brg__mem_free(drafts);
    return status;
}

/* ---- Hash and text ------------------------------------------------------------ */

static uint64_t mix(uint64_t hash, size_t a, size_t b, size_t c)
{
    uint64_t words[3] = {a, b, c};
    return XXH64(words, sizeof words, hash);
}

uint64_t brg__plan_hash(const brg__plan *plan)
{
    uint64_t hash = mix(0, plan->n_params, plan->n_buckets, plan->nbytes);
    hash = mix(hash, plan->n_tail, plan->tail_offset, 0);
    for (size_t i = 0; i < plan->n_params; i++) {
        const brg__plan_slot *slot = &plan->slots[i];
        hash = mix(hash, slot->bucket, slot->offset, slot->nbytes);
    }
    for (size_t k = 0; k < plan->n_buckets; k++) {
        const brg__plan_bucket *b = &plan->buckets[k];
        hash = mix(hash, b->n_params, b->offset, b->nbytes);
        /* Each rank has a GPU of its own, so its number does not count. */
        hash = mix(hash, (size_t)b->dtype, (size_t)b->device.type, 0);
    }
    return hash;
}

size_t brg__plan_print(const brg__plan *plan, char *filled, size_t size)
{
    brg__text text = brg__text_begin(filled, size);
    brg__text_add(&text, "%zu parameters, %zu buckets, %zu bytes\n",
                  plan->n_params, plan->n_buckets, plan->nbytes);
    for (size_t k = 0; k < plan->n_buckets; k++) {
        const brg__plan_bucket *b = &plan->buckets[k];
        brg__text_add(&text, "bucket %zu %s, %zu bytes at %zu:", k,
                      brg_dtype_name(b->dtype), b->nbytes, b->offset);
        for (size_t i = 0; i < b->n_params; i++) {
            uint32_t p = plan->order[b->first + i];
            brg__text_add(&text, " %u@%zu", p, plan->slots[p].offset);
        }
        if (plan->n_tail && k + 1 == plan->n_buckets)
            brg__text_add(&text, " tail@%zu", plan->tail_offset);
        brg__text_add(&text, "\n");
    }
    return text.length;
}
