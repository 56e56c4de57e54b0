/* SPDX-License-Identifier: Apache-2.0
 * The hook object and its place in a reducer. See hook.h. */
#include "reducer/hooks/hook.h"

#include <stdio.h>
#include <string.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "core/base/alloc.h"
#include "core/ops/op.h"
#include "core/tensor/device.h"
#include "reducer/reducer.h"

#define MOST_WIRE (SIZE_MAX / 2) /* bytes, of all buckets */

/* ---- The object ------------------------------------------------------------ */

brg_status brg_comm_hook_create(brg_comm_hook **out,
                                const brg_comm_hook_ops *ops, void *user)
{
    BRG_CHECK_ARG(out, "brg_comm_hook_create: out is NULL");
    *out = NULL;
    BRG_CHECK_ARG(ops && ops->struct_size != 0,
                  "brg_comm_hook_create: ops is NULL or its struct_size is 0");
    brg_comm_hook_ops own = {0};
    memcpy(&own, ops,
           ops->struct_size < sizeof own ? ops->struct_size : sizeof own);
    BRG_CHECK_ARG(own.name && own.name[0],
                  "brg_comm_hook_create: a hook needs a name");
    BRG_CHECK_ARG(own.start && own.finish,
                  "brg_comm_hook_create: %s: start and finish are required",
                  own.name);
    brg_comm_hook *hook = BRG__NEW(brg_comm_hook);
    if (!hook)
        return BRG_ERR_NOMEM;
    hook->ops = own;
    hook->user = user;
    snprintf(hook->name, sizeof hook->name, "%s", own.name);
    *out = hook;
    return BRG_OK;
}

void brg_comm_hook_destroy(brg_comm_hook *hook)
{
    if (!hook)
        return;
    if (hook->ops.destroy)
        hook->ops.destroy(hook->user);
    brg__mem_free(hook);
}

const char *brg_comm_hook_name(const brg_comm_hook *hook)
{
    return hook ? hook->name : "";
}

uint64_t brg__hook_hash(const brg_comm_hook *hook)
{
    return hook ? XXH64(hook->name, strlen(hook->name), 1) | 1 : 0;
}

const brg_named_tensor *brg_comm_hook_state_at(const brg_comm_hook *hook,
                                               size_t i)
{
    return hook && hook->ops.state_at ? hook->ops.state_at(hook->user, i)
                                      : NULL;
}

size_t brg_comm_hook_state_count(const brg_comm_hook *hook)
{
    size_t n = 0;
    while (brg_comm_hook_state_at(hook, n))
        n++;
    return n;
}

/* ---- In a reducer ------------------------------------------------------------ */

static brg_status tell_params(brg_reducer *r)
{
    const brg_comm_hook *hook = r->options.hook;
    size_t n = r->n_params;
    brg_hook_param *list =
        brg__mem_alloc_array(n, sizeof *list, "parameters of a hook");
    for (size_t i = 0; list && i < n; i++)
        list[i] = (brg_hook_param){.name = r->members[i].name,
                                   .count = r->members[i].count,
                                   .n_rows = r->members[i].n_rows,
                                   .dtype = r->members[i].dtype,
                                   .device = r->device};
    brg_status status = list ? BRG_OK : BRG_ERR_NOMEM;
    if (status == BRG_OK && hook->ops.attach)
        status = hook->ops.attach(hook->user, list, n);
    BRG_EXPLAIN(status, "the attach of a communication hook");
    brg__mem_free(list);
    return status;
}

brg_status brg__hook_attach(brg_reducer *r)
{
    brg_comm_hook *hook = r->options.hook;
    if (!hook)
        return BRG_OK;
    if (hook->reducer)
        return BRG_FAIL(BRG_ERR_STATE,
                        "rank %d: the communication hook '%s' serves another "
                        "reducer already",
                        r->rank, hook->name);
    hook->reducer = r;
    size_t n = r->n_params;
    r->hooked.buckets = brg__mem_alloc_array(n + 1, sizeof *r->hooked.buckets,
                                             "buckets of a hook");
    r->hooked.offsets =
        brg__mem_alloc_array(n, sizeof *r->hooked.offsets, "buckets of a hook");
    r->hooked.places = brg__mem_alloc_array(n + 1, sizeof *r->hooked.places,
                                            "buckets of a hook");
    if (!r->hooked.buckets || !r->hooked.offsets || !r->hooked.places)
        return BRG_ERR_NOMEM;
    return tell_params(r);
}

void brg__hook_return(brg_reducer *r)
{
    brg__error_record kept;
    brg__error_save(&kept);
    r->options.hook->reducer = r;
    if (tell_params(r) != BRG_OK) /* out of memory: no step can be trusted */
        brg__error_save(&r->broken);
    brg__error_restore(&kept);
}

static void fill_bucket(brg_reducer *r, size_t k)
{
    const brg__plan_bucket *planned = &r->plan.buckets[k];
    size_t item = brg_dtype_size(planned->dtype);
    size_t *offsets = r->hooked.offsets + planned->first;
    const uint32_t *params = r->plan.order + planned->first;
    for (size_t i = 0; i < planned->n_params; i++)
        offsets[i] = (r->plan.slots[params[i]].offset - planned->offset) / item;
    r->hooked.buckets[k] = (brg_hook_bucket){
        .pg = r->pg,
        .index = k,
        .data = r->buckets[k].data,
        .count = r->buckets[k].count,
        .dtype = planned->dtype,
        .op = r->options.sum ? BRG_REDUCE_SUM : BRG_REDUCE_AVG,
        .device = r->device,
        .n_params = planned->n_params,
        .params = params,
        .offsets = offsets,
        .work = &r->buckets[k].work};
}

/* Adds what bucket k wants to *total; its place is that from the beginning. */
static brg_status plan_wire(brg_reducer *r, size_t k, size_t *total)
{
    const brg_comm_hook *hook = r->options.hook;
    brg_hook_bucket *bucket = &r->hooked.buckets[k];
    size_t n = 0;
    if (hook->ops.wire_bytes && brg__hook_takes(r, k))
        n = hook->ops.wire_bytes(hook->user, bucket);
    if (n > MOST_WIRE - *total)
        return BRG_FAIL(BRG_ERR_CALLBACK,
                        "rank %d: hook '%s' wants %zu bytes for bucket %zu, "
                        "expected at most %zu",
                        r->rank, hook->name, n, k, MOST_WIRE - *total);
    r->hooked.places[k] = *total;
    *total += brg__round_up(n, BRG__PLAN_ALIGN);
    return BRG_OK;
}

/* The wire memory grows if it has to; a layout that needs less keeps it. */
brg_status brg__hook_lay_out(brg_reducer *r)
{
    if (!r->options.hook)
        return BRG_OK;
    size_t total = 0;
    for (size_t k = 0; k < r->plan.n_buckets; k++) {
        fill_bucket(r, k);
        BRG_TRY(plan_wire(r, k, &total));
    }
    if (total > r->hooked.wire_nbytes) {
        void *wire;
        BRG_TRY(brg_pg_alloc(r->pg, &wire, total));
        brg_pg_free(r->pg, r->hooked.wire);
        r->hooked.wire = wire;
        r->hooked.wire_nbytes = total;
    }
    for (size_t k = 0; k < r->plan.n_buckets; k++)
        r->hooked.buckets[k].wire = r->hooked.wire + r->hooked.places[k];
    return BRG_OK;
}

void brg__hook_detach(brg_reducer *r, bool is_in_flight)
{
    if (r->options.hook && r->options.hook->reducer == r)
        r->options.hook->reducer = NULL;
    if (!is_in_flight)
        brg_pg_free(r->pg, r->hooked.wire);
    brg__mem_free(r->hooked.buckets);
    brg__mem_free(r->hooked.offsets);
    brg__mem_free(r->hooked.places);
}

bool brg__hook_takes(const brg_reducer *r, size_t k)
{
    return r->options.hook && r->plan.buckets[k].n_params > 0;
}

static brg_status judge(const brg_reducer *r, brg_status status,
                        const char *what, size_t k)
{
    if (status == BRG_OK)
        return BRG_OK;
    BRG_EXPLAIN(status, "it");
    return brg__error_prefix("rank %d: hook '%s', %s of bucket %zu: ", r->rank,
                             r->options.hook->name, what, k);
}

brg_status brg__hook_start(brg_reducer *r, size_t k)
{
    const brg_comm_hook *hook = r->options.hook;
    if (k == 0)
        r->hooked.is_started = false;
    BRG_TRY(judge(r, hook->ops.start(hook->user, &r->hooked.buckets[k]),
                  "the start", k));
    if (!r->buckets[k].work)
        return BRG_FAIL(BRG_ERR_CALLBACK,
                        "rank %d: hook '%s' started nothing for bucket %zu",
                        r->rank, hook->name, k);
    return BRG_OK;
}

/* All buckets have been started, so this order is the same everywhere. */
static brg_status start_again(brg_reducer *r)
{
    const brg_comm_hook *hook = r->options.hook;
    if (!hook->ops.again || r->hooked.is_started)
        return BRG_OK;
    r->hooked.is_started = true;
    for (size_t k = 0; k < r->plan.n_buckets; k++)
        if (brg__hook_takes(r, k))
            BRG_TRY(judge(r, hook->ops.again(hook->user, &r->hooked.buckets[k]),
                          "the second round", k));
    return BRG_OK;
}

brg_status brg__hook_finish(brg_reducer *r, size_t k)
{
    const brg_comm_hook *hook = r->options.hook;
    BRG_TRY(start_again(r));
    return judge(r, hook->ops.finish(hook->user, &r->hooked.buckets[k]),
                 "the end", k);
}

/* ---- Steps launched again ----------------------------------------------------------- */

brg_status brg__hook_note(const brg_reducer *r, brg__words *state)
{
    const brg_comm_hook *hook = r->options.hook;
    uint64_t version = 0;
    if (!hook->ops.version)
        return BRG_FAIL(BRG_ERR_UNSUPPORTED,
                        "communication hook '%s' is to be called in each step",
                        hook->name);
    BRG_TRY(hook->ops.version(hook->user, &version));
    BRG_TRY(brg__array_push(state, (uintptr_t)r->hooked.wire));
    return brg__array_push(state, (uintptr_t)version);
}

void brg__hook_launched(brg_reducer *r)
{
    const brg_comm_hook *hook = r->options.hook;
    if (hook->ops.launched)
        hook->ops.launched(hook->user);
}

brg_status brg__hook_version(void *user, uint64_t *version)
{
    (void)user;
    *version = 0;
    return BRG_OK;
}

/* ---- For the hooks -------------------------------------------------------------- */

brg_status brg__hook_plain_start(const brg_hook_bucket *b)
{
    return brg_all_reduce(b->pg, b->work, b->data, b->count, b->dtype, b->op);
}

brg_status brg__hook_wait(const brg_hook_bucket *b)
{
    brg_work *work = *b->work;
    *b->work = NULL;
    return work ? brg_work_wait(work) : BRG_OK;
}

static brg_status new_state(brg_tensor **out, const char *name,
                            const brg__hook_entry *wanted)
{
    brg__layout layout;
    int64_t shape = (int64_t)wanted->count;
    BRG_TRY(brg__layout_init(&layout, "state of a communication hook",
                             wanted->dtype, 1, &shape));
    layout.device = wanted->device;
    BRG_TRY(brg__tensor_new(out, &layout));
    brg_status status = brg__fill_now(*out, 0);
    if (status == BRG_OK)
        status = brg_tensor_set_name(*out, name);
    if (status != BRG_OK)
        brg_release(*out);
    return status;
}

/* The same values, there. */
static brg_status move_state(brg_named_tensor *entry,
                             const brg__hook_entry *wanted)
{
    brg_tensor *moved;
    BRG_TRY(new_state(&moved, entry->name, wanted));
    brg_status status = brg__copy_now(moved, entry->tensor);
    if (status != BRG_OK) {
        brg_release(moved);
        return status;
    }
    brg_release(entry->tensor);
    *entry = (brg_named_tensor){brg_tensor_name(moved), moved};
    return BRG_OK;
}

static brg_named_tensor *find_state(brg__hook_state *state, const char *name,
                                    size_t count)
{
    for (size_t i = 0; i < state->list.n; i++)
        if (strcmp(state->list.at[i].name, name) == 0 &&
            (size_t)brg_tensor_numel(state->list.at[i].tensor) == count)
            return &state->list.at[i];
    return NULL;
}

brg_status brg__hook_state_get(brg__hook_state *state, brg_tensor **out,
                               const brg__hook_entry *wanted, bool *is_new)
{
    char text[160];
    snprintf(text, sizeof text, "%s%s%s", wanted->kind,
             wanted->name[0] ? "/" : "", wanted->name);
    brg_named_tensor *found = find_state(state, text, wanted->count);
    *is_new = !found;
    if (found) {
        if (!brg__device_equal(found->tensor->device, wanted->device))
            BRG_TRY(move_state(found, wanted));
        *out = found->tensor;
        return BRG_OK;
    }
    BRG_TRY(new_state(out, text, wanted));
    brg_named_tensor entry = {brg_tensor_name(*out), *out};
    brg_status status = brg__array_push(&state->list, entry);
    if (status != BRG_OK)
        brg_release(*out);
    return status;
}

const brg_named_tensor *brg__hook_state_at(const brg__hook_state *state,
                                           size_t i)
{
    return i < state->list.n ? &state->list.at[i] : NULL;
}

void brg__hook_state_deinit(brg__hook_state *state)
{
    for (size_t i = 0; i < state->list.n; i++)
        brg_release(state->list.at[i].tensor);
    brg__array_deinit(&state->list);
}
