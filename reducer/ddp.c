/* SPDX-License-Identifier: Apache-2.0
 * Making and destroying a ddp, and its public front. See ddp.h. */
#include "reducer/ddp.h"

#include <string.h>

#include "comm/pg.h"
#include "core/autograd/node.h"
#include "core/base/alloc.h"
#include "core/base/map.h"
#include "core/base/options.h"
#include "core/base/tracer.h"
#include "reducer/leaves.h"
#include "reducer/schedule.h"
#include "reducer/shard.h"

/* ---- Making: what needs no other rank -------------------------------------------- */

static brg_status check_tensor(const brg_ddp *ddp, const brg_tensor *t,
                               const char *kind, size_t i)
{
    const brg_device where = brg__pg_device(ddp->pg);
    const bool is_on_host = where.type == BRG_DEVICE_CPU;
    char there[24], here[24];
    const char *name = t ? brg_tensor_name(t) : NULL;
    BRG_CHECK_ARG(t, "brg_ddp_create: %s %zu is NULL", kind, i);
    BRG_CHECK_ARG(brg_is_leaf(t),
                  "brg_ddp_create: %s %zu (%s) was computed by %s, so it is "
                  "no leaf",
                  kind, i, name ? name : "no name", brg_grad_fn_name(t));
    if (!is_on_host && !brg__device_equal(t->device, where))
        return BRG_FAIL(BRG_ERR_UNSUPPORTED,
                        "brg_ddp_create: %s %zu (%s) is on %s, the group "
                        "reduces on %s",
                        kind, i, name ? name : "no name",
                        brg__device_text(t->device, there),
                        brg__device_text(where, here));
    if (!t->storage)
        return BRG_FAIL(BRG_ERR_UNSUPPORTED,
                        "brg_ddp_create: %s %zu (%s) is sparse", kind, i,
                        name ? name : "no name");
    return BRG_OK;
}

/* A tensor that was given before, in the same group. */
static brg_status check_again(const brg_ddp *ddp, size_t i, uint32_t before,
                              uint32_t group)
{
    const char *name = brg_tensor_name(ddp->tensors[before]);
    BRG_CHECK_ARG(ddp->groups[before] == group,
                  "brg_ddp_create: parameter %zu (%s) is in bucket group %u, "
                  "and was given before in group %u",
                  i, name ? name : "no name", group, ddp->groups[before]);
    return BRG_OK;
}

/* Sorts the parameters into those that are reduced and those that are not;
 * each tensor once. Two tensors over one storage are two leaves, each with a
 * gradient of its own, and both are reduced. */
static brg_status take_params(brg_ddp *ddp, brg_tensor *const *params, size_t n,
                              brg__map *seen)
{
    for (size_t i = 0; i < n; i++) {
        const uint32_t *groups = ddp->options.bucket_groups;
        brg_tensor *t = params[i];
        uint32_t place;
        uint32_t group = groups ? groups[i] : 0;
        bool is_new;
        BRG_TRY(check_tensor(ddp, t, "parameter", i));
        BRG_TRY(
            brg__map_put(seen, t, (uint32_t)ddp->n_tensors, &place, &is_new));
        if (!is_new) {
            BRG_TRY(check_again(ddp, i, place, group));
            continue;
        }
        ddp->groups[ddp->n_tensors] = group;
        ddp->tensors[ddp->n_tensors++] = brg_retain(t);
        if (!brg_requires_grad(t))
            continue;
        brg__ddp_param *p = &ddp->params[ddp->n_params];
        *p = (brg__ddp_param){
            .ddp = ddp, .index = ddp->n_params, .group = group, .leaf = t};
        ddp->n_params++;
        BRG_TRY(brg__ddp_view_make(p, ddp->has_leaves));
        BRG_TRY(brg__ddp_sum_make(p));
    }
    BRG_CHECK_ARG(ddp->n_params > 0,
                  "brg_ddp_create: none of %zu parameters requires gradients",
                  n);
    return BRG_OK;
}

static brg_status take_buffers(brg_ddp *ddp, brg_tensor *const *buffers,
                               size_t n, brg__map *seen)
{
    for (size_t i = 0; i < n; i++) {
        uint32_t unused;
        bool is_new;
        BRG_TRY(check_tensor(ddp, buffers[i], "buffer", i));
        BRG_TRY(brg__map_put(seen, buffers[i], 0, &unused, &is_new));
        if (is_new)
            ddp->buffers[ddp->n_buffers++] = brg_retain(buffers[i]);
    }
    return BRG_OK;
}

/* As a matrix, for hooks: (dim 0) x (all others), if its view is row-major. */
static size_t rows_of(const brg_tensor *t)
{
    bool is_matrix = t->ndim >= 2 && t->is_contiguous && t->shape[0] > 0;
    return is_matrix ? (size_t)t->shape[0] : 0;
}

static brg_status make_reducer(brg_ddp *ddp, const brg_ddp_options *options)
{
    brg_reducer_options inner = BRG_REDUCER_OPTIONS_INIT;
    inner.first_bucket_bytes = options->first_bucket_bytes;
    inner.bucket_bytes = options->bucket_bytes;
    inner.sum = options->sum;
    inner.allow_unused = options->allow_unused;
    inner.keep_order = options->keep_order;
    inner.hook = options->hook;
    inner.measure_norm = options->measure_norm;
    inner.check_finite = options->check_finite;
    inner.buckets = options->buckets;
    inner.reduction = options->reduction;
    inner.n_leaves = options->n_leaves;
    brg_reducer_param *list = brg__mem_alloc_array(ddp->n_params, sizeof *list,
                                                   "a list of parameters");
    if (!list)
        return BRG_ERR_NOMEM;
    for (size_t i = 0; i < ddp->n_params; i++) {
        const brg_tensor *t = ddp->params[i].leaf;
        list[i] = (brg_reducer_param){.name = brg_tensor_name(t),
                                      .count = (size_t)t->numel,
                                      .dtype = (brg_dtype)t->dtype,
                                      .device = brg__pg_device(ddp->pg),
                                      .n_rows = rows_of(t)};
    }
    brg_status status = brg__reducer_prepare(&ddp->reducer, ddp->pg, list,
                                             ddp->n_params, &inner);
    brg__mem_free(list);
    if (status != BRG_OK)
        return status;
    BRG_TRY(brg__cargo_prepare(ddp));
    ddp->reducer->loads_of = ddp;
    ddp->reducer->has_groups = ddp->options.bucket_groups != NULL;
    for (size_t i = 0; i < ddp->n_params; i++)
        ddp->reducer->members[i].group = ddp->params[i].group;
    if (ddp->reducer->n_cargo > 0 || ddp->reducer->has_groups)
        BRG_TRY(brg__reducer_plan_anew(ddp->reducer));
    BRG_TRY(brg__ddp_staged_prepare(ddp));
    if (options->shard)
        BRG_TRY(brg__shard_prepare(ddp));
    ddp->reducer->is_inner = true;
    /* Slots may move, unless state elsewhere hangs on their places. */
    ddp->reducer->is_rebuilt = options->keep_order || options->shard;
    return brg__measured_check(ddp->reducer);
}

static brg_status allocate(brg_ddp *ddp, size_t n_params, size_t n_buffers)
{
    ddp->params =
        brg__mem_alloc_array(n_params, sizeof *ddp->params, "parameters");
    ddp->tensors =
        brg__mem_alloc_array(n_params, sizeof *ddp->tensors, "parameters");
    ddp->groups =
        brg__mem_alloc_array(n_params, sizeof *ddp->groups, "parameters");
    ddp->late = brg__mem_alloc_array(n_params, sizeof *ddp->late, "an order");
    ddp->buffers =
        brg__mem_alloc_array(n_buffers, sizeof *ddp->buffers, "buffers");
    return ddp->params && ddp->tensors && ddp->groups && ddp->late &&
                   ddp->buffers
               ? BRG_OK
               : BRG_ERR_NOMEM;
}

static const char *param_name(const void *list, size_t i)
{
    return brg_tensor_name(((brg_tensor *const *)list)[i]);
}

/* From now on the options point at what the ddp keeps, which a refresh makes
 * the next one of. */
static brg_status take_groups(brg_ddp *ddp, brg_tensor *const *params, size_t n)
{
    brg_ddp_options *o = &ddp->options;
    BRG_TRY(brg__groups_check(&(brg__group_list){.what = "brg_ddp_create",
                                                 .groups = o->bucket_groups,
                                                 .n_groups = o->n_bucket_groups,
                                                 .n = n,
                                                 .list = params,
                                                 .name = param_name}));
    o->bucket_groups = o->bucket_groups ? ddp->groups : NULL;
    return BRG_OK;
}

static brg_status prepare(brg_ddp *ddp, brg_tensor *const *params,
                          size_t n_params, brg_tensor *const *buffers,
                          size_t n_buffers)
{
    BRG_CHECK_ARG(params && n_params > 0,
                  "brg_ddp_create: there are no parameters");
    BRG_CHECK_ARG(buffers || n_buffers == 0,
                  "brg_ddp_create: buffers is NULL, n_buffers %zu", n_buffers);
    BRG_TRY(allocate(ddp, n_params, n_buffers));
    brg__map seen = {0};
    brg_status status = take_params(ddp, params, n_params, &seen);
    if (status == BRG_OK)
        status = take_groups(ddp, params, n_params);
    if (status == BRG_OK)
        status = take_buffers(ddp, buffers, n_buffers, &seen);
    brg__map_deinit(&seen);
    return status;
}

/* ---- Making: with the others --------------------------------------------------------- */

/* A compiled backward found this parameter of an eager-mode ddp. */
static brg_status refuse_compiled(const brg__ddp_param *p)
{
    const char *name = brg_tensor_name(p->leaf);
    return BRG_FAIL(BRG_ERR_STATE,
                    "rank %d: Compiled autograd is not compatible with an "
                    "eager DDP reducer: the brg_ddp of parameter %s (%zu of "
                    "%zu) was created with mode BRG_DDP_EAGER; create it with "
                    "BRG_DDP_AUTO or BRG_DDP_CAPTURED, or run this backward "
                    "outside brg_compile_begin",
                    brg_pg_rank(p->ddp->pg), name ? name : "without a name",
                    p->index, p->ddp->n_params);
}

/* Asked on every compiled backward. */
static brg_status on_collect(void *user, brg__reduction_part *part)
{
    const brg__ddp_param *p = user;
    if (p->ddp->options.mode == BRG_DDP_EAGER)
        return refuse_compiled(p);
    brg__ddp_describe(p, part);
    return BRG_OK;
}

static brg_status add_hooks(brg_ddp *ddp)
{
    for (size_t i = 0; i < ddp->n_params; i++) {
        brg__ddp_param *p = &ddp->params[i];
        BRG_TRY(brg_tensor_add_post_accumulate_hook(
            &p->hook, p->leaf, brg__ddp_on_gradient, p, NULL));
        p->hook->on_collect = on_collect;
        if (!ddp->options.grads_apart)
            brg__autograd_of(p->leaf)->home = p->home;
    }
    return BRG_OK;
}

static brg_status attach(brg_ddp *ddp, bool is_fresh)
{
    BRG_TRY(brg__reducer_attach(ddp->reducer));
    for (size_t i = 0; i < ddp->n_params; i++)
        brg__ddp_view_place(&ddp->params[i]);
    brg__ddp_leaf_place(ddp);
    if (ddp->options.shard)
        BRG_TRY(brg__shard_attach(ddp));
    if (!is_fresh)
        return BRG_OK;
    BRG_TRY(brg__ddp_broadcast_params(ddp));
    return brg__ddp_broadcast_buffers(ddp);
}

static brg_status complete_options(brg_ddp_options *filled,
                                   const brg_ddp_options *options)
{
    *filled = (brg_ddp_options)BRG_DDP_OPTIONS_INIT;
    BRG_TRY(BRG_TAKE_OPTIONS(filled, options, "brg_ddp_create",
                             BRG_DDP_OPTIONS_INIT));
    BRG_CHECK_ARG((unsigned)filled->mode <= BRG_DDP_CAPTURED,
                  "brg_ddp_create: mode %d is none of BRG_DDP_AUTO, "
                  "BRG_DDP_EAGER and BRG_DDP_CAPTURED",
                  (int)filled->mode);
    BRG_CHECK_ARG((unsigned)filled->reduction <= BRG_REDUCTION_REPRODUCIBLE,
                  "brg_ddp_create: reduction %d is none of "
                  "BRG_REDUCTION_DEFAULT and BRG_REDUCTION_REPRODUCIBLE",
                  (int)filled->reduction);
    BRG_CHECK_ARG(filled->reduction == BRG_REDUCTION_REPRODUCIBLE ||
                      filled->n_leaves == 0,
                  "brg_ddp_create: n_leaves is %u, expected 0 without "
                  "BRG_REDUCTION_REPRODUCIBLE",
                  filled->n_leaves);
    BRG_CHECK_ARG(!filled->hook || filled->n_leaves == 0,
                  "brg_ddp_create: a communication hook decides itself how "
                  "buckets are reduced, so BRG_REDUCTION_REPRODUCIBLE cannot "
                  "hold; choose one of the two");
    BRG_CHECK_ARG(filled->n_leaves == 0 ||
                      (!filled->static_graph && !filled->grads_apart),
                  "brg_ddp_create: static_graph and grads_apart do not go "
                  "with BRG_REDUCTION_REPRODUCIBLE");
    BRG_CHECK_ARG(!filled->accumulate_f32 || !filled->grads_apart,
                  "brg_ddp_create: accumulate_f32 does not go with "
                  "grads_apart");
    BRG_CHECK_ARG(!filled->shard || (!filled->hook && filled->n_leaves == 0 &&
                                     !filled->grads_apart),
                  "brg_ddp_create: a hook, grads_apart and "
                  "BRG_REDUCTION_REPRODUCIBLE do not go with shard");
    BRG_CHECK_ARG(filled->buckets != BRG_BUCKETS_MEASURED ||
                      (filled->n_leaves == 0 && !filled->shard),
                  "brg_ddp_create: shard and BRG_REDUCTION_REPRODUCIBLE do not "
                  "go with BRG_BUCKETS_MEASURED");
    BRG_CHECK_ARG((unsigned)filled->sync_buffers <= BRG_DDP_BUFFERS_AVERAGE,
                  "brg_ddp_create: sync_buffers %d is none of "
                  "BRG_DDP_BUFFERS_LEAVE, _BROADCAST and _AVERAGE",
                  (int)filled->sync_buffers);
    return BRG_OK;
}

brg_status brg_ddp_create(brg_ddp **out, brg_pg *pg, brg_tensor *const *params,
                          size_t n_params, brg_tensor *const *buffers,
                          size_t n_buffers, const brg_ddp_options *options)
{
    BRG_CHECK_ARG(out, "brg_ddp_create: out is NULL");
    *out = NULL;
    BRG_CHECK_ARG(pg, "brg_ddp_create: the group is NULL");
    return brg__ddp_make(out, pg, params, n_params, buffers, n_buffers, options,
                         true);
}

brg_status brg__ddp_make(brg_ddp **out, brg_pg *pg, brg_tensor *const *params,
                         size_t n_params, brg_tensor *const *buffers,
                         size_t n_buffers, const brg_ddp_options *options,
                         bool is_fresh)
{
    brg_ddp_options complete;
    brg_status status = complete_options(&complete, options);
    brg_ddp *ddp = BRG__NEW(brg_ddp);
    if (!ddp)
        return BRG_ERR_NOMEM;
    ddp->pg = pg;
    ddp->is_sync = true;
    ddp->options = complete;
    ddp->graph = complete.static_graph ? BRG__GRAPH_RECORDING : BRG__GRAPH_FREE;
    ddp->has_leaves = complete.reduction == BRG_REDUCTION_REPRODUCIBLE;
    if (status == BRG_OK)
        status = prepare(ddp, params, n_params, buffers, n_buffers);
    if (status == BRG_OK)
        status = make_reducer(ddp, &complete);
    if (status == BRG_OK)
        status = add_hooks(ddp);
    BRG_TRY_GOTO(brg__ddp_verify(pg, ddp, &complete, status), out);
    BRG_TRY_GOTO(attach(ddp, is_fresh), out);
    *out = ddp;
    return BRG_OK;
out:
    brg_ddp_destroy(ddp);
    return status;
}

static void release_all(brg_tensor **tensors, size_t n)
{
    for (size_t i = 0; i < n; i++)
        brg_release(tensors[i]);
    brg__mem_free(tensors);
}

void brg_ddp_destroy(brg_ddp *ddp)
{
    if (!ddp)
        return;
    brg__error_record kept;
    brg__error_save(&kept);
    for (size_t i = 0; i < ddp->n_params; i++) {
        brg__ddp_param *p = &ddp->params[i];
        brg_hook_remove(p->hook);
        if (p->hook)
            brg__autograd_of(p->leaf)->home = NULL;
        brg_release(p->kept);
        brg__ddp_sum_drop(p);
        brg__ddp_view_drop(p);
    }
    brg__shard_detach(ddp);
    brg_reducer_destroy(ddp->reducer);
    brg__mem_free(ddp->params);
    brg__mem_free(ddp->groups);
    brg__mem_free(ddp->late);
    brg__mem_free(ddp->cargo);
    release_all(ddp->tensors, ddp->n_tensors);
    release_all(ddp->buffers, ddp->n_buffers);
    brg__mem_free(ddp);
    brg__error_restore(&kept);
}

/* ---- Public --------------------------------------------------------------------------- */

bool brg_ddp_set_sync(brg_ddp *ddp, bool is_on)
{
    if (!ddp)
        return false;
    bool was_on = ddp->is_sync;
    (void)brg__tracer_outside("brg_ddp_set_sync");
    ddp->is_sync = is_on;
    ddp->reducer->pace += was_on != is_on;
    return was_on;
}

brg_status brg_ddp_sync_buffers(brg_ddp *ddp)
{
    BRG_CHECK_ARG(ddp, "brg_ddp_sync_buffers: the ddp is NULL");
    BRG_TRY(brg__tracer_outside("brg_ddp_sync_buffers"));
    return brg__ddp_broadcast_buffers(ddp);
}

brg_status brg_ddp_confirm(brg_ddp *ddp)
{
    BRG_CHECK_ARG(ddp, "brg_ddp_confirm: the ddp is NULL");
    BRG_TRY(brg__tracer_outside("brg_ddp_confirm"));
    return brg_reducer_confirm(ddp->reducer);
}

brg_tensor *brg_ddp_found_inf(const brg_ddp *ddp)
{
    return brg_reducer_found_inf(brg_ddp_reducer(ddp));
}

bool brg_ddp_grads_finite(const brg_ddp *ddp, brg_finite_info *filled)
{
    return brg_reducer_grads_finite(brg_ddp_reducer(ddp), filled);
}

bool brg_ddp_next_leaf(const brg_ddp *ddp, uint32_t *leaf)
{
    if (!ddp || !brg__has_leaves(ddp->reducer))
        return false;
    const brg_reducer *r = ddp->reducer;
    (void)brg__tracer_outside("brg_ddp_next_leaf");
    *leaf = r->run.first + r->leaf;
    return brg__leaf_is_last(r);
}

const brg_reducer *brg_ddp_reducer(const brg_ddp *ddp)
{
    return ddp ? ddp->reducer : NULL;
}

void brg_ddp_get_stats(const brg_ddp *ddp, brg_reducer_stats *filled)
{
    brg_reducer_get_stats(brg_ddp_reducer(ddp), filled);
}

brg_status brg_ddp_gradient_bucket(const brg_ddp *ddp, const brg_tensor *param,
                                   size_t *bucket, size_t *offset)
{
    BRG_CHECK_ARG(ddp && param, "brg_ddp_gradient_bucket: argument is NULL");
    for (size_t i = 0; i < ddp->n_params; i++)
        if (ddp->params[i].leaf == param)
            return brg_reducer_find(ddp->reducer, i, bucket, offset);
    return BRG_FAIL(BRG_ERR_NOT_FOUND,
                    "brg_ddp_gradient_bucket: the ddp does not reduce this "
                    "tensor");
}
