/* SPDX-License-Identifier: Apache-2.0
 * Recording when gradients are ready. See profile.h. */
#include "reducer/profile.h"

#include <stdlib.h>
#include <string.h>

#include "comm/pg.h"
#include "core/base/alloc.h"
#include "reducer/leaves.h"

#define MAX_STEPS 1000

/* ---- Recording ------------------------------------------------------------------ */

void brg__recording_deinit(brg_reducer *r)
{
    brg__mem_free(r->recording.ready_ns);
    brg__mem_free(r->wanted.ready_ns);
    r->recording = r->wanted = (brg__recording){0};
}

static brg_status prepare(const brg_reducer *r, size_t n_steps,
                          brg__recording *rec)
{
    size_t n;
    BRG_CHECK_ARG(n_steps >= 2 && n_steps <= MAX_STEPS,
                  "brg_reducer_record: %zu steps, expected 2 to %d", n_steps,
                  MAX_STEPS);
    if (r->device.type != BRG_DEVICE_CPU || brg__has_leaves(r))
        return BRG_FAIL(BRG_ERR_UNSUPPORTED,
                        "brg_reducer_record: not for gradients on a device or "
                        "in leaves");
    BRG_CHECK_ARG(brg__mul_size(r->n_params + 2, n_steps, &n),
                  "brg_reducer_record: %zu steps of %zu gradients", n_steps,
                  r->n_params);
    uint64_t *block = brg__mem_alloc_array(n, sizeof *block, "a recording");
    if (!block)
        return BRG_ERR_NOMEM;
    brg__mem_free(rec->ready_ns);
    *rec = (brg__recording){.n_rows = n_steps,
                            .ready_ns = block,
                            .backward_ns = block + n_steps * r->n_params,
                            .step_ns = block + n_steps * (r->n_params + 1)};
    return BRG_OK;
}

brg_status brg__recording_prepare(brg_reducer *r, size_t n_steps)
{
    return prepare(r, n_steps, &r->recording);
}

/* Its first steps are recorded to choose buckets by. */
static bool is_measuring(const brg_reducer *r)
{
    return r->options.buckets == BRG_BUCKETS_MEASURED && !r->is_rebuilt;
}

brg_status brg_reducer_record(brg_reducer *r, size_t n_steps)
{
    BRG_CHECK_ARG(r, "brg_reducer_record: the reducer is NULL");
    if (r->is_running)
        return BRG_FAIL(BRG_ERR_STATE,
                        "brg_reducer_record: a step is under way");
    if (is_measuring(r)) /* alike on all ranks, whichever of them record */
        return prepare(r, n_steps, &r->wanted);
    BRG_TRY(brg__recording_prepare(r, n_steps));
    r->recording.is_on = true;
    return BRG_OK;
}

/* Buckets were chosen: it is the user's turn. */
static void begin_wanted(brg_reducer *r)
{
    brg__mem_free(r->recording.ready_ns);
    r->recording = r->wanted;
    r->recording.is_on = true;
    r->wanted = (brg__recording){0};
}

void brg__recording_begin(brg_reducer *r)
{
    brg__recording *rec = &r->recording;
    if (r->wanted.n_rows > 0 && r->is_rebuilt)
        begin_wanted(r);
    if (rec->start_ns)
        rec->step_ns[rec->n_spans++] =
            r->start_ns - rec->start_ns - rec->wait_ns;
    rec->start_ns = 0;
    if (is_measuring(r))
        rec->is_on = r->stats.n_steps > 0; /* the first one warms up */
}

void brg__recording_gradient(brg_reducer *r, size_t i)
{
    brg__recording *rec = &r->recording;
    /* The last one's look at the clock has been taken. */
    bool is_last = r->is_closing || r->n_ready == r->n_params;
    rec->ready_ns[rec->n_done * r->n_params + i] =
        is_last ? r->stats.last_ready_ns
                : brg__pg_clock_ns(r->pg) - r->start_ns;
}

void brg__recording_end(brg_reducer *r)
{
    brg__recording *rec = &r->recording;
    rec->backward_ns[rec->n_done++] = r->stats.last_ready_ns;
    rec->start_ns = r->start_ns;
    rec->wait_ns = r->stats.wait_ns;
    rec->is_on = rec->n_done < rec->n_rows;
}

/* ---- Medians ----------------------------------------------------------------------- */

static int compare_times(const void *a, const void *b)
{
    const uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

uint64_t brg__median(uint64_t *values, size_t n)
{
    qsort(values, n, sizeof *values, compare_times);
    return values[n / 2];
}

void brg__recording_medians(const brg_reducer *r, int64_t *ready_ns)
{
    const brg__recording *rec = &r->recording;
    uint64_t values[MAX_STEPS];
    for (size_t i = 0; i < r->n_params; i++) {
        for (size_t row = 0; row < rec->n_done; row++)
            values[row] = rec->ready_ns[row * r->n_params + i];
        ready_ns[i] = (int64_t)brg__median(values, rec->n_done);
    }
    memcpy(values, rec->backward_ns, rec->n_done * sizeof *values);
    ready_ns[r->n_params] = (int64_t)brg__median(values, rec->n_done);
}

uint64_t brg__recording_step_ns(const brg_reducer *r)
{
    const brg__recording *rec = &r->recording;
    uint64_t values[MAX_STEPS];
    memcpy(values, rec->step_ns, rec->n_spans * sizeof *values);
    return rec->n_spans ? brg__median(values, rec->n_spans) : 0;
}

/* ---- Profiles ---------------------------------------------------------------------- */

brg_status brg__profile_new(brg__profile **out, size_t n, size_t names_size)
{
    *out = NULL;
    size_t nbytes;
    BRG_CHECK_ARG(n < UINT32_MAX &&
                      brg__mul_size(n, sizeof(brg_profile_grad), &nbytes) &&
                      brg__add_size(nbytes, sizeof(brg__profile), &nbytes) &&
                      brg__add_size(nbytes, names_size, &nbytes),
                  "a profile of %zu gradients", n);
    brg__profile *p = brg__mem_alloc(nbytes, "a profile");
    if (!p)
        return BRG_ERR_NOMEM;
    p->names = (char *)&p->grads[n];
    p->public.n = n;
    p->public.grads = p->grads;
    *out = p;
    return BRG_OK;
}

void brg_profile_destroy(brg_profile *profile)
{
    brg__mem_free(profile); /* the first member of its block */
}

typedef struct place {
    int64_t ready_ns;
    uint32_t i;
} place;

static int compare_places(const void *a, const void *b)
{
    const place *x = a, *y = b;
    return x->ready_ns != y->ready_ns
               ? (x->ready_ns > y->ready_ns) - (x->ready_ns < y->ready_ns)
               : (x->i < y->i) - (x->i > y->i); /* as backwards go */
}

brg_status brg__profile_order(const brg_reducer *r, const int64_t *ready_ns,
                              uint32_t *order)
{
    place *places =
        brg__mem_alloc_array(r->n_params, sizeof *places, "an order");
    if (!places)
        return BRG_ERR_NOMEM;
    for (size_t i = 0; i < r->n_params; i++)
        places[i] = (place){ready_ns[i], (uint32_t)i};
    qsort(places, r->n_params, sizeof *places, compare_places);
    for (size_t i = 0; i < r->n_params; i++)
        order[i] = places[i].i;
    brg__mem_free(places);
    return BRG_OK;
}

brg_status brg__profile_make(brg__profile **out, const brg_reducer *r,
                             const int64_t *ready_ns, const uint32_t *order)
{
    size_t n = r->n_params, size = 0;
    for (size_t i = 0; i < n; i++)
        size += strlen(r->members[i].name) + 1;
    brg__profile *p;
    BRG_TRY(brg__profile_new(&p, n, size));
    char *name = p->names;
    for (size_t k = 0; k < n; k++) {
        const brg__member *m = &r->members[order[k]];
        p->grads[k] = (brg_profile_grad){
            .name = strcpy(name, m->name),
            .dtype = m->dtype,
            .nbytes = brg__round_up(m->nbytes, BRG__PLAN_ALIGN),
            .ready_ns = (uint64_t)ready_ns[order[k]],
            .group = m->group};
        name += strlen(name) + 1;
    }
    p->public.backward_ns = (uint64_t)ready_ns[n];
    p->public.tail_nbytes =
        brg__round_up(r->plan.n_tail * sizeof(float), BRG__PLAN_ALIGN);
    *out = p;
    return BRG_OK;
}

brg_status brg_reducer_get_profile(const brg_reducer *r, brg_profile **out)
{
    BRG_CHECK_ARG(r && out, "brg_reducer_get_profile: argument is NULL");
    *out = NULL;
    if (r->recording.n_spans == 0)
        return BRG_FAIL(BRG_ERR_STATE,
                        "brg_reducer_get_profile: %zu steps were recorded, "
                        "expected 2 at least (brg_reducer_record)",
                        r->recording.n_done);
    brg_status status;
    brg__profile *p = NULL;
    int64_t *ready_ns =
        brg__mem_alloc_array(r->n_params + 1, sizeof *ready_ns, "a profile");
    uint32_t *order =
        brg__mem_alloc_array(r->n_params, sizeof *order, "a profile");
    BRG_TRY_GOTO(ready_ns && order ? BRG_OK : BRG_ERR_NOMEM, out);
    brg__recording_medians(r, ready_ns);
    BRG_TRY_GOTO(brg__profile_order(r, ready_ns, order), out);
    BRG_TRY_GOTO(brg__profile_make(&p, r, ready_ns, order), out);
    p->public.step_ns = brg__recording_step_ns(r);
    *out = &p->public;
out:
    brg__mem_free(ready_ns);
    brg__mem_free(order);
    return status;
}
