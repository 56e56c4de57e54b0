/* SPDX-License-Identifier: Apache-2.0
 * Making and destroying a reducer; queries. */
#include "reducer/reducer.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "comm/pg.h"
#include "comm/work.h"
#include "core/base/alloc.h"
#include "core/base/options.h"
#include "core/base/tracer.h"
#include "reducer/guard.h"
#include "reducer/leaves.h"
#include "reducer/profile.h"
#include "reducer/verify.h"

/* ---- Names ------------------------------------------------------------------ */

const char *brg__member_name(const brg_reducer *r, size_t i)
{
    return r->members[i].name;
}

static char *make_name(const char *given, size_t i)
{
    char text[40];
    if (given && given[0])
        return brg__mem_strdup(given);
    snprintf(text, sizeof text, "parameter %zu", i);
    return brg__mem_strdup(text);
}

/* ---- Making: what needs no other rank ------------------------------------------ */

/* Sizes that the caller gives are meant. */
static void choose_buckets(brg_reducer *r)
{
    brg_reducer_options *o = &r->options;
    r->is_default_choice = o->buckets == BRG_BUCKETS_DEFAULT;
    if (r->is_default_choice)
        o->buckets = r->pg->end.n_machines > 1 && o->bucket_bytes == 0 &&
                             o->first_bucket_bytes == 0
                         ? BRG_BUCKETS_MEASURED
                         : BRG_BUCKETS_BY_SIZE;
}

static brg_status complete_options(brg_reducer *r,
                                   const brg_reducer_options *options)
{
    brg_reducer_options *filled = &r->options;
    *filled = (brg_reducer_options)BRG_REDUCER_OPTIONS_INIT;
    BRG_TRY(BRG_TAKE_OPTIONS(filled, options, "brg_reducer_create",
                             BRG_REDUCER_OPTIONS_INIT));
    BRG_CHECK_ARG((unsigned)filled->buckets <= BRG_BUCKETS_MEASURED,
                  "brg_reducer_create: buckets %d is none of "
                  "BRG_BUCKETS_DEFAULT, BRG_BUCKETS_BY_SIZE and "
                  "BRG_BUCKETS_MEASURED",
                  (int)filled->buckets);
    choose_buckets(r);
    if (filled->first_bucket_bytes == 0)
        filled->first_bucket_bytes = BRG__FIRST_BUCKET_BYTES;
    if (filled->bucket_bytes == 0)
        filled->bucket_bytes = brg__pg_device(r->pg).type == BRG_DEVICE_CPU
                                   ? BRG__BUCKET_BYTES
                                   : BRG__BUCKET_BYTES_THERE;
    BRG_CHECK_ARG((unsigned)filled->reduction <= BRG_REDUCTION_REPRODUCIBLE,
                  "brg_reducer_create: reduction %d is none of "
                  "BRG_REDUCTION_DEFAULT and BRG_REDUCTION_REPRODUCIBLE",
                  (int)filled->reduction);
    if (filled->reduction == BRG_REDUCTION_DEFAULT) {
        BRG_CHECK_ARG(filled->n_leaves == 0,
                      "brg_reducer_create: n_leaves is %u, expected 0 without "
                      "BRG_REDUCTION_REPRODUCIBLE",
                      filled->n_leaves);
        return BRG_OK;
    }
    BRG_CHECK_ARG(!filled->hook && (r->is_default_choice ||
                                    filled->buckets != BRG_BUCKETS_MEASURED),
                  "brg_reducer_create: a communication hook and "
                  "BRG_BUCKETS_MEASURED do not go with "
                  "BRG_REDUCTION_REPRODUCIBLE");
    return BRG_OK;
}

/* Where the group reduces; or on a device whose gradients go through the host. */
static brg_status check_place(const brg_reducer *r, size_t i,
                              const brg_reducer_param *param)
{
    char there[24], here[24];
    if (brg__device_equal(param->device, r->device))
        return BRG_OK;
    if (r->device.type == BRG_DEVICE_CPU && param->grad)
        return brg__device_check("brg_reducer_create", param->device);
    return BRG_FAIL(BRG_ERR_UNSUPPORTED,
                    "brg_reducer_create: parameter %zu is on %s, the group "
                    "reduces on %s (for GPUs: brg_nccl_create%s)",
                    i, brg__device_text(param->device, there),
                    brg__device_text(r->device, here),
                    r->device.type == BRG_DEVICE_CPU
                        ? ", or a `grad` that is not NULL"
                        : "");
}

static brg_status set_member(brg_reducer *r, size_t i,
                             const brg_reducer_param *param)
{
    brg__member *m = &r->members[i];
    BRG_CHECK_ARG((unsigned)param->dtype < BRG_N_DTYPES,
                  "brg_reducer_create: parameter %zu has dtype %d, which does "
                  "not exist",
                  i, (int)param->dtype);
    BRG_TRY(check_place(r, i, param));
    BRG_CHECK_ARG(
        brg__mul_size(param->count, brg_dtype_size(param->dtype), &m->nbytes),
        "brg_reducer_create: parameter %zu has %zu elements", i, param->count);
    m->grad = param->grad;
    m->count = param->count;
    m->n_rows = param->n_rows;
    m->dtype = param->dtype;
    m->device = param->device;
    m->group = r->has_groups ? r->options.bucket_groups[i] : 0;
    m->name = make_name(param->name, i);
    return m->name ? BRG_OK : BRG_ERR_NOMEM;
}

/* PyTorch keeps the first step in one bucket when unused parameters are not
 * looked for, since it will rebuild anyway; here the first step overlaps as
 * well: a wrong guess of the order costs no more than the one bucket would. */
brg_status brg__reducer_plan(const brg_reducer *r, const uint32_t *order,
                             brg__plan *out)
{
    *out = (brg__plan){0};
    const size_t limits[2] = {r->options.first_bucket_bytes,
                              r->options.bucket_bytes};
    brg__plan_param *params =
        brg__mem_alloc_array(r->n_params, sizeof *params, "sizes of gradients");
    if (!params)
        return BRG_ERR_NOMEM;
    for (size_t i = 0; i < r->n_params; i++)
        params[i] = (brg__plan_param){.nbytes = r->members[i].nbytes,
                                      .dtype = r->members[i].dtype,
                                      .device = r->device,
                                      .group = r->members[i].group};
    brg_status status = brg__plan_make(
        out, &(brg__plan_request){
                 .params = params,
                 .n_params = r->n_params,
                 .order = order,
                 .limits = limits,
                 .n_limits = 2,
                 .closes = order && r->has_closes ? r->closes : NULL,
                 .n_tail = BRG__N_TAIL(r) + r->n_cargo,
                 .is_tail_alone = r->options.hook || r->is_sharded,
                 .n_shards = r->is_sharded ? (size_t)r->world_size : 1});
    brg__mem_free(params);
    return status;
}

brg_status brg__reducer_plan_anew(brg_reducer *r)
{
    brg__plan_deinit(&r->plan);
    BRG_TRY(brg__reducer_plan(r, NULL, &r->plan));
    return brg__reducer_reserve(r, &r->plan);
}

brg_status brg__reducer_reserve(brg_reducer *r, const brg__plan *plan)
{
    size_t n = plan->n_buckets > r->n_works ? plan->n_buckets - r->n_works : 0;
    BRG_TRY(brg__work_reserve(r->pg, n));
    r->n_works += n;
    return BRG_OK;
}

/* What looks at values on the host. */
static brg_status check_device(const brg_reducer *r)
{
    char text[24];
    const brg_comm_hook *hook = r->options.hook;
    if (!hook || hook->ops.works_on_devices || r->device.type == BRG_DEVICE_CPU)
        return BRG_OK;
    return BRG_FAIL(BRG_ERR_UNSUPPORTED,
                    "brg_reducer_create: this communication hook needs "
                    "gradients in host memory, these are on %s",
                    brg__device_text(r->device, text));
}

static brg_status allocate(brg_reducer *r)
{
    size_t n = r->n_params, n_notes;
    BRG_CHECK_ARG(
        brg__mul_size(BRG__N_NOTES(r), (size_t)r->world_size + 1, &n_notes),
        "brg_reducer_create: %zu parameters", n);
    r->members = brg__mem_alloc_array(n, sizeof *r->members, "gradients");
    r->buckets = brg__mem_alloc_array(n + 1, sizeof *r->buckets, "buckets");
    r->arrivals = brg__mem_alloc_array(n, sizeof *r->arrivals, "an order");
    r->notes = brg__mem_alloc(n_notes, "notes of ranks");
    if (r->options.buckets == BRG_BUCKETS_MEASURED) {
        r->closes = brg__mem_alloc_array(n, sizeof *r->closes, "an order");
        BRG_TRY(r->closes ? BRG_OK : BRG_ERR_NOMEM);
        BRG_TRY(brg__recording_prepare(r, BRG__MEASURED_STEPS));
    }
    if (!r->members || !r->buckets || !r->arrivals || !r->notes)
        return BRG_ERR_NOMEM;
    return brg__inbox_init(&r->inbox, n);
}

brg_status brg__reducer_prepare(brg_reducer **out, brg_pg *pg,
                                const brg_reducer_param *params,
                                size_t n_params,
                                const brg_reducer_options *options)
{
    *out = NULL;
    BRG_CHECK_ARG(params && n_params > 0,
                  "brg_reducer_create: there are no parameters");
    brg_reducer *r = BRG__NEW(brg_reducer);
    if (!r)
        return BRG_ERR_NOMEM;
    brg_status status;
    r->pg = pg;
    brg__pg_hold(pg);
    r->rank = brg_pg_rank(pg);
    r->world_size = brg_pg_world_size(pg);
    r->n_params = n_params;
    r->device = brg__pg_device(pg);
    BRG_TRY_GOTO(complete_options(r, options), out);
    r->has_groups = r->options.bucket_groups != NULL;
    brg__finite_end(r, 0, 0, 0);
    r->is_rebuilt = r->options.keep_order;
    if ((status = allocate(r)) != BRG_OK)
        r->n_params = r->members ? n_params : 0;
    for (size_t i = 0; status == BRG_OK && i < n_params; i++) {
        status = set_member(r, i, &params[i]);
        r->is_rebuilt |= !params[i].grad;
    }
    if (status == BRG_OK)
        status = check_device(r);
    if (status == BRG_OK)
        status = brg__guard_distinct(r);
    if (status == BRG_OK)
        status = brg__guard_begin(r);
    if (status == BRG_OK && r->options.reduction == BRG_REDUCTION_REPRODUCIBLE)
        status = brg__leaves_prepare(r, r->options.n_leaves);
    if (status == BRG_OK)
        status = brg__device_tail_prepare(r);
    if (status == BRG_OK)
        status = brg__finite_prepare(r);
    if (status == BRG_OK)
        status = brg__reducer_plan(r, NULL, &r->plan);
    if (status == BRG_OK)
        status = brg__reducer_reserve(r, &r->plan);
    if (status == BRG_OK)
        status = brg__hook_attach(r);
out:
    if (status == BRG_OK)
        *out = r;
    else
        brg_reducer_destroy(r);
    return status;
}

/* ---- Making: with the others ----------------------------------------------------- */

void brg__reducer_lay_out(brg_reducer *r)
{
    for (size_t i = 0; i < r->n_params; i++) {
        r->members[i].slot = r->arena + r->plan.slots[i].offset;
        r->members[i].bucket = r->plan.slots[i].bucket;
    }
    r->plan_hash = brg__plan_hash(&r->plan);
    r->stats.n_bytes = 0;
    for (size_t k = 0; k < r->plan.n_buckets; k++) {
        const brg__plan_bucket *planned = &r->plan.buckets[k];
        brg__bucket *bucket = &r->buckets[k];
        *bucket = (brg__bucket){.n_params = planned->n_params,
                                .data = r->arena + planned->offset,
                                .count = planned->nbytes /
                                         brg_dtype_size(planned->dtype),
                                .dtype = planned->dtype};
        brg__leaves_lay_out(r, bucket, planned->offset);
        bucket->is_sharded = r->is_sharded && planned->n_params > 0;
        brg__bucket_arm(bucket);
        r->stats.n_bytes += planned->nbytes;
    }
    r->stats.n_params = r->n_params;
    r->stats.n_buckets = r->plan.n_buckets;
}

/* Says how much, and whose gradients the largest bucket holds. */
static brg_status take_arena(brg_reducer *r, void **arena)
{
    size_t nbytes, largest = 0;
    BRG_TRY(brg__leaves_arena(r, &nbytes));
    const brg_status status = brg_pg_alloc(r->pg, arena, nbytes);
    if (status != BRG_ERR_NOMEM)
        return status;
    const brg__plan_bucket *b = r->plan.buckets;
    for (size_t k = 1; k < r->plan.n_buckets; k++)
        largest = b[k].nbytes > b[largest].nbytes ? k : largest;
    const size_t n = b[largest].n_params;
    return brg__error_prefix(
        "%zu bytes for %zu buckets of %zu parameters, the largest %zu bytes "
        "(bucket %zu, %s%s): ",
        nbytes, r->plan.n_buckets, r->n_params, b[largest].nbytes, largest,
        n ? brg__member_name(r, r->plan.order[b[largest].first]) : "empty",
        n > 1 ? " and others" : "");
}

/* What one rank may fail at alone. */
static brg_status take_memory(brg_reducer *r)
{
    void *arena;
    r->number = brg__pg_number_reducer(r->pg);
    BRG_TRY(take_arena(r, &arena));
    r->arena = arena;
    for (size_t i = 0; i < r->n_params; i++)
        brg__record_define(r->pg->trace, "param\t%u\t%u\t%zu\t%s",
                           r->pg->number, r->number, i, r->members[i].name);
    brg__reducer_lay_out(r);
    return brg__hook_lay_out(r);
}

#define TWICE ((int64_t)0x100000001) /* in both halves: a flipped bit shows */

/* The first rank that fails, or the world size. */
static brg_status find_failed(brg_reducer *r, bool fails, int *found)
{
    int64_t first = TWICE * (fails ? r->rank : r->world_size);
    brg_work *work;
    BRG_TRY(
        brg_all_reduce(r->pg, &work, &first, 1, BRG_DTYPE_I64, BRG_REDUCE_MIN));
    BRG_TRY(brg_work_wait(work));
    *found = (int)(first / TWICE);
    if (first % TWICE != 0)
        return BRG_FAIL(BRG_ERR_MISMATCH,
                        "rank %d: what the ranks say of their memory came to "
                        "rank %d in wrong bits",
                        r->rank, r->rank);
    return BRG_OK;
}

/* All ranks have a reducer, or none has: nobody is to wait for the first step of
 * one that could not make it. */
brg_status brg__reducer_attach(brg_reducer *r)
{
    brg__error_record kept;
    int failed = 0;
    brg_status own = take_memory(r);
    brg__error_save(&kept);
    brg_status status = find_failed(r, own != BRG_OK, &failed);
    if (own != BRG_OK)
        brg__error_restore(&kept);
    if (own != BRG_OK || status != BRG_OK || failed == r->world_size)
        return own != BRG_OK ? own : status;
    return BRG_FAIL(BRG_ERR_PEER,
                    "rank %d: rank %d has no memory for its buckets", r->rank,
                    failed);
}

uint32_t brg__reducer_flags(const brg_reducer *r)
{
    return (r->options.sum ? BRG__FLAG_SUM : 0u) |
           (r->options.allow_unused ? BRG__FLAG_ALLOW_UNUSED : 0u) |
           (r->is_rebuilt ? BRG__FLAG_KEEP_ORDER : 0u) |
           (r->is_sharded ? BRG__FLAG_SHARD : 0u) |
           (r->options.check_finite ? BRG__FLAG_CHECK_FINITE : 0u) |
           (r->options.buckets == BRG_BUCKETS_MEASURED ? BRG__FLAG_MEASURED
                                                       : 0u);
}

static brg_status verify(brg_pg *pg, const brg_reducer *r, brg_status status)
{
    brg__agreement mine = {.what = "brg_reducer_create", .status = status};
    brg__descriptor *list = NULL;
    if (status == BRG_OK) {
        list = brg__mem_alloc_array(r->n_params, sizeof *list,
                                    "a list of parameters");
        mine.status = list ? BRG_OK : BRG_ERR_NOMEM;
    }
    for (size_t i = 0; list && i < r->n_params; i++) {
        const brg__member *m = &r->members[i];
        list[i] = (brg__descriptor){.shape[0] = (int64_t)m->count,
                                    .strides[0] = 1,
                                    .ndim = 1,
                                    .dtype = (int16_t)m->dtype,
                                    .device = m->device.type,
                                    .requires_grad = 1,
                                    .group = m->group};
        brg__descriptor_set_name(&list[i], m->name);
    }
    if (list) {
        mine.tensors = list;
        mine.n_params = r->n_params;
        mine.caps[0] = r->options.first_bucket_bytes;
        mine.caps[1] = r->options.bucket_bytes;
        mine.flags = brg__reducer_flags(r);
        mine.n_leaves = r->options.n_leaves;
        mine.hook = brg__hook_hash(r->options.hook);
    }
    status = brg__verify_ranks(pg, &mine);
    brg__mem_free(list);
    return status;
}

static const char *member_name(const void *list, size_t i)
{
    return ((const brg__member *)list)[i].name;
}

static brg_status check_groups(brg_reducer *r)
{
    brg_status status = brg__groups_check(
        &(brg__group_list){.what = "brg_reducer_create",
                           .groups = r->options.bucket_groups,
                           .n_groups = r->options.n_bucket_groups,
                           .n = r->n_params,
                           .list = r->members,
                           .name = member_name});
    r->options.bucket_groups = NULL; /* the caller's */
    return status;
}

brg_status brg_reducer_create(brg_reducer **out, brg_pg *pg,
                              const brg_reducer_param *params, size_t n_params,
                              const brg_reducer_options *options)
{
    BRG_CHECK_ARG(out, "brg_reducer_create: out is NULL");
    *out = NULL;
    BRG_CHECK_ARG(pg, "brg_reducer_create: the group is NULL");
    brg_reducer *r;
    brg_status status = brg__reducer_prepare(&r, pg, params, n_params, options);
    if (status == BRG_OK)
        status = check_groups(r);
    if (status == BRG_OK)
        status = brg__measured_check(r);
    BRG_TRY_GOTO(verify(pg, r, status), out);
    BRG_TRY_GOTO(brg__reducer_attach(r), out);
    brg__raw_init(r);
    *out = r;
    return BRG_OK;
out:
    brg_reducer_destroy(r);
    return status;
}

void brg_reducer_destroy(brg_reducer *r)
{
    if (!r)
        return;
    brg__error_record kept;
    brg__error_save(&kept);
    bool is_in_flight = false;
    for (size_t k = 0; r->arena && k < r->plan.n_buckets; k++)
        if (r->buckets[k].state == BRG__BUCKET_LAUNCHED)
            is_in_flight |= !brg__bucket_drop(&r->buckets[k]);
    if (!is_in_flight) { /* else other ranks use it: it goes with the group */
        brg__work_unreserve(r->pg, r->n_works);
        brg_pg_free(r->pg, r->arena);
    }
    brg__hook_detach(r, is_in_flight);
    brg__device_tail_free(r);
    brg_release(r->found_inf);
    brg__guard_end(r);
    for (size_t i = 0; r->members && i < r->n_params; i++)
        brg__mem_free(r->members[i].name);
    brg__mem_free(r->members);
    brg__mem_free(r->buckets);
    brg__mem_free(r->arrivals);
    brg__mem_free(r->closes);
    brg__recording_deinit(r);
    brg__mem_free(r->notes);
    brg__inbox_deinit(&r->inbox);
    brg__plan_deinit(&r->plan);
    brg__pg_let_go(r->pg);
    brg__mem_free(r);
    brg__error_restore(&kept);
}

/* ---- Queries ------------------------------------------------------------------------ */

void *brg_reducer_slot(const brg_reducer *r, size_t i)
{
    return r && i < r->n_params ? brg__leaf_home(r, i) : NULL;
}

size_t brg_reducer_n_buckets(const brg_reducer *r)
{
    return r ? r->plan.n_buckets : 0;
}

brg_status brg_reducer_get_bucket(const brg_reducer *r, size_t bucket,
                                  brg_bucket_info *filled)
{
    BRG_CHECK_ARG(r && bucket < r->plan.n_buckets,
                  "brg_reducer_get_bucket: there is no bucket %zu", bucket);
    const brg__bucket *b = &r->buckets[bucket];
    *filled = (brg_bucket_info){.dtype = b->dtype,
                                .n_params = b->n_params,
                                .params = r->plan.order +
                                          r->plan.buckets[bucket].first,
                                .nbytes = r->plan.buckets[bucket].nbytes,
                                .data = b->data};
    if (b->launch_ns >= r->start_ns && b->done_ns >= b->launch_ns) {
        filled->launch_ns = b->launch_ns - r->start_ns;
        filled->done_ns = b->done_ns - r->start_ns;
    }
    return BRG_OK;
}

brg_status brg_reducer_find(const brg_reducer *r, size_t i, size_t *bucket,
                            size_t *offset)
{
    BRG_CHECK_ARG(r && i < r->n_params,
                  "brg_reducer_find: there is no parameter %zu", i);
    const brg__plan_slot *slot = &r->plan.slots[i];
    *bucket = slot->bucket;
    *offset = slot->offset - r->plan.buckets[slot->bucket].offset;
    return BRG_OK;
}

size_t brg_reducer_n_used(const brg_reducer *r, size_t i)
{
    return r && i < r->n_params ? r->members[i].n_used : 0;
}

brg_status brg_reducer_confirm(brg_reducer *r)
{
    BRG_CHECK_ARG(r, "brg_reducer_confirm: the reducer is NULL");
    return r->tail.vtable ? brg__device_tail_tell(r) : BRG_OK;
}

static double norm_there(const brg_reducer *r)
{
    double *total, sum;
    if (brg__look_norm(r, &total) != BRG_OK ||
        brg__look_fetch(r, total, &sum) != BRG_OK)
        return NAN;
    return sqrt(sum);
}

double brg_reducer_grad_norm(const brg_reducer *r)
{
    double sum = 0;
    if (brg__tracer_outside("brg_reducer_grad_norm") == BRG_OK && r &&
        r->look.partials)
        return norm_there(r);
    for (size_t i = 0; r && i < r->n_params; i++)
        if (r->members[i].n_used > 0)
            sum += r->members[i].sum_squares;
    return sqrt(sum);
}

void brg_reducer_get_stats(const brg_reducer *r, brg_reducer_stats *filled)
{
    *filled = r ? r->stats : (brg_reducer_stats){0};
}

size_t brg_reducer_describe(const brg_reducer *r, char *filled, size_t size)
{
    return brg__plan_print(&r->plan, filled, size);
}
