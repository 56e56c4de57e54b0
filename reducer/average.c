/* SPDX-License-Identifier: Apache-2.0
 * Periodic averaging: a reducer over the parameters themselves. */
#include <brigade/average.h>

#include <string.h>

#include "core/base/alloc.h"
#include "core/base/tracer.h"
#include "core/tensor/tensor.h"
#include "reducer/ddp.h"
#include "reducer/guard.h"
#include "reducer/verify.h"

struct brg_averager {
    brg_averager_options options;
    brg_pg *pg; /* borrowed */
    brg_reducer *reducer;
    brg_tensor **tensors; /* retained */
    size_t n;
    int64_t n_steps;
};

/* ---- Making -------------------------------------------------------------------- */

static brg_status check_options(const brg_averager_options *options)
{
    BRG_CHECK_ARG(options->struct_size != 0,
                  "brg_averager_create: options.struct_size is 0; start from "
                  "BRG_AVERAGER_OPTIONS_INIT");
    BRG_CHECK_ARG(options->period >= 1 && options->warm_up >= 0,
                  "brg_averager_create: period %lld and warm_up %lld, expected "
                  "at least 1 and 0",
                  (long long)options->period, (long long)options->warm_up);
    return BRG_OK;
}

static brg_status check_tensor(const brg_averager *a, const brg_tensor *t,
                               size_t i)
{
    BRG_CHECK_ARG(t, "brg_averager_create: tensor %zu is NULL", i);
    char text[BRG_TENSOR_TEXT_MAX], there[24], here[24];
    const brg_device where = brg__pg_device(a->pg);
    BRG_CHECK_ARG(t->storage && t->is_contiguous && brg__tensor_is_float(t),
                  "brg_averager_create: tensor %zu (%s) is no row-major float "
                  "tensor",
                  i, brg__tensor_text(t, text));
    if (where.type != BRG_DEVICE_CPU && !brg__device_equal(t->device, where))
        return BRG_FAIL(BRG_ERR_UNSUPPORTED,
                        "brg_averager_create: tensor %zu (%s) is on %s, the "
                        "group reduces on %s",
                        i, brg__tensor_text(t, text),
                        brg__device_text(t->device, there),
                        brg__device_text(where, here));
    return BRG_OK;
}

static brg_status list_tensors(brg_averager *a, brg_tensor *const *tensors,
                               size_t n, brg_reducer_param *list)
{
    for (size_t i = 0; i < n; i++) {
        brg_tensor *t = tensors[i];
        BRG_TRY(check_tensor(a, t, i));
        list[i] = (brg_reducer_param){.name = brg_tensor_name(t),
                                      .grad = brg__tensor_ptr(t),
                                      .count = (size_t)t->numel,
                                      .dtype = (brg_dtype)t->dtype,
                                      .device = t->device};
        a->tensors[a->n++] = brg_retain(t);
    }
    return BRG_OK;
}

static brg_status prepare(brg_averager *a, brg_tensor *const *tensors, size_t n,
                          brg_reducer_param **list)
{
    *list = NULL;
    BRG_CHECK_ARG(tensors && n > 0, "brg_averager_create: no tensors");
    BRG_TRY(check_options(&a->options));
    a->tensors = brg__mem_alloc_array(n, sizeof *a->tensors, "parameters");
    *list = brg__mem_alloc_array(n, sizeof **list, "parameters");
    if (!a->tensors || !*list)
        return BRG_ERR_NOMEM;
    return list_tensors(a, tensors, n, *list);
}

/* A rank that cannot go on says so to the others. */
static brg_status agree(const brg_averager *a, brg_status status)
{
    brg__agreement mine = {
        .what = "brg_averager_create",
        .caps = {(size_t)a->options.period, (size_t)a->options.warm_up},
        .caps_name = "period and warm_up",
        .status = status};
    return brg__verify_ranks(a->pg, &mine);
}

static brg_status broadcast_tensor(brg_pg *pg, brg_tensor *t)
{
    brg_work *work;
    BRG_TRY(brg_broadcast(pg, &work, brg__tensor_ptr(t), (size_t)t->numel,
                          (brg_dtype)t->dtype, 0));
    BRG_TRY(brg_work_wait(work));
    brg_tensor_touch(t);
    return BRG_OK;
}

static brg_status broadcast(const brg_averager *a)
{
    for (size_t i = 0; i < a->n; i++) {
        brg_tensor *t = a->tensors[i], *copy;
        if (!brg__is_staged(a->pg, t)) {
            BRG_TRY(broadcast_tensor(a->pg, t));
            continue;
        }
        BRG_TRY(brg__copy_for(&copy, a->pg, t));
        brg_status status = broadcast_tensor(a->pg, copy);
        if (status == BRG_OK)
            status = brg__ddp_copy(t, copy);
        brg_release(copy);
        BRG_TRY(status);
    }
    return BRG_OK;
}

brg_status brg_averager_create(brg_averager **out, brg_pg *pg,
                               brg_tensor *const *tensors, size_t n_tensors,
                               const brg_averager_options *options)
{
    BRG_CHECK_ARG(out, "brg_averager_create: out is NULL");
    *out = NULL;
    BRG_CHECK_ARG(pg, "brg_averager_create: the group is NULL");
    brg_averager *a = BRG__NEW(brg_averager);
    if (!a)
        return BRG_ERR_NOMEM;
    brg_reducer_param *list;
    brg_reducer_options inner = BRG_REDUCER_OPTIONS_INIT;
    a->pg = pg;
    a->options = (brg_averager_options)BRG_AVERAGER_OPTIONS_INIT;
    if (options)
        memcpy(&a->options, options,
               options->struct_size < sizeof *options ? options->struct_size
                                                      : sizeof *options);
    inner.first_bucket_bytes = inner.bucket_bytes = a->options.bucket_bytes;
    inner.keep_order = true; /* nothing overlaps that would set an order */
    brg_status status = prepare(a, tensors, n_tensors, &list);
    BRG_TRY_GOTO(agree(a, status), out);
    BRG_TRY_GOTO(brg_reducer_create(&a->reducer, pg, list, n_tensors, &inner),
                 out);
    BRG_TRY_GOTO(broadcast(a), out);
    *out = a;
out:
    brg__mem_free(list);
    if (status != BRG_OK)
        brg_averager_destroy(a);
    return status;
}

void brg_averager_destroy(brg_averager *a)
{
    if (!a)
        return;
    brg_reducer_destroy(a->reducer);
    for (size_t i = 0; i < a->n; i++)
        brg_release(a->tensors[i]);
    brg__mem_free(a->tensors);
    brg__mem_free(a);
}

/* ---- Averaging --------------------------------------------------------------------- */

brg_status brg_averager_now(brg_averager *a)
{
    BRG_CHECK_ARG(a, "brg_averager_now: the averager is NULL");
    BRG_TRY(brg__tracer_outside("brg_averager_now"));
    a->n_steps -= a->n_steps % a->options.period;
    for (size_t i = a->n; i-- > 0;) {
        void *at = brg__tensor_ptr(a->tensors[i]); /* may have been replaced */
        if (at != a->reducer->members[i].grad) {
            a->reducer->members[i].grad = at;
            brg__guard_move(a->reducer, i);
        }
        BRG_TRY(brg_reducer_mark_ready(a->reducer, i));
    }
    BRG_TRY(brg_reducer_wait(a->reducer));
    for (size_t i = 0; i < a->n; i++)
        brg_tensor_touch(a->tensors[i]);
    return BRG_OK;
}

brg_status brg_averager_step(brg_averager *a, bool *averaged)
{
    BRG_CHECK_ARG(a, "brg_averager_step: the averager is NULL");
    BRG_TRY(brg__tracer_outside("brg_averager_step"));
    int64_t n = ++a->n_steps;
    bool is_due = n <= a->options.warm_up || n % a->options.period == 0;
    if (averaged)
        *averaged = is_due;
    if (!is_due)
        return BRG_OK;
    BRG_TRY(brg_averager_now(a));
    a->n_steps = n;
    return BRG_OK;
}

brg_status brg_averager_confirm(brg_averager *a)
{
    BRG_CHECK_ARG(a, "brg_averager_confirm: the averager is NULL");
    BRG_TRY(brg__tracer_outside("brg_averager_confirm"));
    return brg_reducer_confirm(a->reducer);
}

int64_t brg_averager_count(const brg_averager *a)
{
    return a ? a->n_steps : 0;
}

void brg_averager_set_count(brg_averager *a, int64_t n_steps)
{
    if (a)
        a->n_steps = n_steps;
}
