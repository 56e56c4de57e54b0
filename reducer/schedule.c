/* SPDX-License-Identifier: Apache-2.0
 * What a schedule of buckets costs, and the best one. Pure. See
 * include/brigade/schedule.h for the formulas. */
#include "reducer/schedule.h"

#include <string.h>

#include "core/base/alloc.h"
#include "core/base/array.h"

static uint64_t most(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

static brg_status check_link(const brg_link *link, const char *what)
{
    BRG_CHECK_ARG(link->n >= 1 && link->n <= BRG_LINK_MAX,
                  "%s: the link has %zu points, expected 1 to %d", what,
                  link->n, BRG_LINK_MAX);
    for (size_t k = 1; k < link->n; k++)
        BRG_CHECK_ARG(link->at[k].nbytes > link->at[k - 1].nbytes &&
                          link->at[k].ns >= link->at[k - 1].ns,
                      "%s: points %zu and %zu of the link do not ascend", what,
                      k - 1, k);
    return BRG_OK;
}

/* Sums of times and bytes fit, however the gradients are cut. */
static brg_status check_sums(const brg_profile *profile, const brg_link *link,
                             const char *what)
{
    uint64_t nbytes = profile->tail_nbytes;
    uint64_t last = most(profile->backward_ns, profile->step_ns);
    for (size_t i = 0; i < profile->n && nbytes < BRG__SCHEDULE_MOST; i++) {
        const brg_profile_grad *g = &profile->grads[i];
        nbytes +=
            g->nbytes < BRG__SCHEDULE_MOST ? g->nbytes : BRG__SCHEDULE_MOST;
        last = most(last, g->ready_ns);
    }
    double transfer =
        (double)(profile->n + 1) * (double)brg_link_ns(link, nbytes);
    BRG_CHECK_ARG(nbytes < BRG__SCHEDULE_MOST && last < BRG__SCHEDULE_MOST &&
                      transfer < (double)BRG__SCHEDULE_MOST,
                  "%s: the profile has more than 2^61 bytes or lasts more than "
                  "2^61 ns",
                  what);
    return BRG_OK;
}

static brg_status check(const brg_profile *profile, const brg_link *link,
                        const char *what)
{
    BRG_CHECK_ARG(profile && link, "%s: argument is NULL", what);
    BRG_TRY(check_link(link, what));
    BRG_CHECK_ARG(profile->n > 0 && profile->n < UINT32_MAX,
                  "%s: the profile has %zu gradients", what, profile->n);
    for (size_t i = 0; i < profile->n; i++)
        BRG_CHECK_ARG((unsigned)profile->grads[i].dtype < BRG_N_DTYPES,
                      "%s: gradient %zu has dtype %d", what, i,
                      (int)profile->grads[i].dtype);
    return check_sums(profile, link, what);
}

/* ---- The cost of given buckets ------------------------------------------------ */

typedef struct planned {
    uint64_t nbytes;
    uint64_t ready_ns;
    size_t n;
    brg_dtype dtype;
} planned;

static brg_status collect(planned *plan, size_t n_buckets,
                          const brg_profile *profile, const uint32_t *buckets)
{
    for (size_t i = 0; i < profile->n; i++) {
        const brg_profile_grad *g = &profile->grads[i];
        planned *b = &plan[buckets[i]];
        BRG_CHECK_ARG(b->n == 0 || b->dtype == g->dtype,
                      "brg_schedule_predict: bucket %u holds %s and %s",
                      buckets[i], brg_dtype_name(b->dtype),
                      brg_dtype_name(g->dtype));
        b->n++;
        b->dtype = g->dtype;
        b->nbytes += g->nbytes;
        b->ready_ns = most(b->ready_ns, g->ready_ns);
    }
    for (size_t k = 0; k < n_buckets; k++)
        BRG_CHECK_ARG(plan[k].n > 0,
                      "brg_schedule_predict: bucket %zu of %zu is empty", k,
                      n_buckets);
    return BRG_OK;
}

/* One transfer after another, which begins at `start` or when the one before has
 * ended. Beside it the computing thread gets on slower, until its backward is
 * over: s->busy_ns is how late it is. */
static uint64_t pass(brg_schedule *s, uint64_t start, uint64_t nbytes,
                     uint64_t backward, const brg_link *link)
{
    const uint64_t ns = brg_link_ns(link, nbytes);
    const uint64_t busy = brg_link_busy_ns(link, nbytes);
    const uint64_t end = backward + s->busy_ns;
    const uint64_t left = end > start ? end - start : 0; /* of the backward */
    s->busy_ns +=
        left >= ns - busy
            ? (left > 0 ? busy : 0)
            : (uint64_t)((double)left * (double)busy / (double)(ns - busy));
    s->transfer_ns += ns;
    s->n_buckets++;
    return start + ns;
}

static void run(brg_schedule *s, const planned *plan, size_t n_buckets,
                const brg_profile *profile, const brg_link *link)
{
    uint64_t end = 0, tail = profile->tail_nbytes;
    for (size_t k = 0; k < n_buckets; k++) {
        bool has_tail =
            k + 1 == n_buckets && plan[k].dtype == BRG_DTYPE_F32 && tail;
        end = pass(s, most(end, plan[k].ready_ns + s->busy_ns),
                   plan[k].nbytes + (has_tail ? tail : 0), profile->backward_ns,
                   link);
        tail = has_tail ? 0 : tail;
    }
    if (tail)
        end = pass(s, end, tail, profile->backward_ns, link);
    const uint64_t over = profile->backward_ns + s->busy_ns;
    s->exposed_ns = most(end, over) - over;
    s->step_ns = profile->step_ns + s->busy_ns + s->exposed_ns;
}

brg_status brg_schedule_predict(brg_schedule *filled,
                                const brg_profile *profile,
                                const brg_link *link, const uint32_t *buckets)
{
    BRG_CHECK_ARG(filled && buckets, "brg_schedule_predict: argument is NULL");
    *filled = (brg_schedule){0};
    BRG_TRY(check(profile, link, "brg_schedule_predict"));
    size_t n_buckets = 0;
    for (size_t i = 0; i < profile->n; i++) {
        BRG_CHECK_ARG(buckets[i] < profile->n,
                      "brg_schedule_predict: gradient %zu is in bucket %u, "
                      "expected less than %zu",
                      i, buckets[i], profile->n);
        n_buckets = most(n_buckets, buckets[i] + 1u);
    }
    planned *plan = brg__mem_alloc_array(n_buckets, sizeof *plan, "a schedule");
    if (!plan)
        return BRG_ERR_NOMEM;
    brg_status status = collect(plan, n_buckets, profile, buckets);
    if (status == BRG_OK)
        run(filled, plan, n_buckets, profile, link);
    brg__mem_free(plan);
    return status;
}

/* ---- The buckets of a plan ------------------------------------------------------ */

brg_status brg__schedule_plan(uint32_t *buckets, const brg_profile *profile,
                              const size_t limits[2], const bool *closes)
{
    size_t n = profile->n;
    brg__plan plan;
    brg_status status;
    uint32_t *order = brg__mem_alloc_array(n, sizeof *order, "an order");
    brg__plan_param *params =
        brg__mem_alloc_array(n, sizeof *params, "sizes of gradients");
    BRG_TRY_GOTO(order && params ? BRG_OK : BRG_ERR_NOMEM, out);
    for (size_t i = 0; i < n; i++) {
        order[i] = (uint32_t)i;
        params[i] =
            (brg__plan_param){.nbytes = profile->grads[i].nbytes,
                              .dtype = profile->grads[i].dtype,
                              .group = closes ? 0 : profile->grads[i].group};
    }
    BRG_TRY_GOTO(
        brg__plan_make(&plan, &(brg__plan_request){.params = params,
                                                   .n_params = n,
                                                   .order = order,
                                                   .limits = limits,
                                                   .n_limits = limits ? 2 : 0,
                                                   .closes = closes}),
        out);
    for (size_t i = 0; i < n; i++)
        buckets[i] = plan.slots[i].bucket;
    brg__plan_deinit(&plan);
out:
    brg__mem_free(order);
    brg__mem_free(params);
    return status;
}

brg_status brg_schedule_by_size(uint32_t *buckets, const brg_profile *profile,
                                size_t first_bucket_bytes, size_t bucket_bytes)
{
    const brg_link none = {.n = 1};
    const size_t limits[2] = {first_bucket_bytes ? first_bucket_bytes
                                                 : BRG__FIRST_BUCKET_BYTES,
                              bucket_bytes ? bucket_bytes : BRG__BUCKET_BYTES};
    BRG_CHECK_ARG(buckets, "brg_schedule_by_size: buckets is NULL");
    BRG_TRY(check(profile, &none, "brg_schedule_by_size"));
    return brg__schedule_plan(buckets, profile, limits, NULL);
}

/* ---- The best one ------------------------------------------------------------------
 * Forwards: the least end of the whole. Backwards from it: the fewest parts that
 * end no later. */

#define NEVER (-1)

typedef BRG__ARRAY(uint32_t) index_array;

typedef struct search {
    const brg_profile *profile;
    const brg_link *link;
    size_t n;
    uint64_t *ready_ns; /* n + 1: of the prefix */
    uint64_t *end_ns;   /* n + 1: the least, of the prefix */
    uint64_t deadline_ns;
    /* n + 1 each: the link may be free for gradient i no later than this, if
     * what remains goes in one part fewer, and in so many; or NEVER. */
    int64_t *fewer, *latest;
} search;

/* A part that grows by one gradient after another: bytes and time of its
 * buckets. */
typedef struct part {
    uint64_t nbytes[BRG_N_DTYPES];
    uint64_t ns[BRG_N_DTYPES];
    uint64_t all_ns;
} part;

static void grow(part *p, brg_dtype dtype, uint64_t nbytes,
                 const brg_link *link)
{
    p->nbytes[dtype] += nbytes;
    uint64_t ns = brg_link_ns(link, p->nbytes[dtype]);
    p->all_ns += ns - p->ns[dtype];
    p->ns[dtype] = ns;
}

/* What the last part has besides its gradients. */
static void add_tail(part *p, const search *s)
{
    uint64_t tail = s->profile->tail_nbytes;
    if (tail == 0)
        return;
    if (s->profile->grads[s->n - 1].dtype == BRG_DTYPE_F32)
        grow(p, BRG_DTYPE_F32, tail, s->link);
    else
        p->all_ns += brg_link_ns(s->link, tail);
}

/* Parts that end with gradient j - 1, longer and longer: once one that starts
 * as soon as it is ready ends too late, all longer ones do. */
static void find_end(search *s, size_t j)
{
    part p = {.all_ns = 0};
    uint64_t best = UINT64_MAX;
    if (j == s->n)
        add_tail(&p, s);
    for (size_t i = j; i-- > 0;) {
        const brg_profile_grad *g = &s->profile->grads[i];
        grow(&p, g->dtype, g->nbytes, s->link);
        if (s->ready_ns[j] + p.all_ns >= best)
            break;
        uint64_t end = most(s->end_ns[i], s->ready_ns[j]) + p.all_ns;
        best = end < best ? end : best;
    }
    s->end_ns[j] = best;
}

/* Parts that begin with gradient i: where the first should end, 0 if no cut
 * keeps the deadline. */
static size_t find_first(search *s, size_t i)
{
    part p = {.all_ns = 0};
    size_t first = 0;
    s->latest[i] = NEVER;
    for (size_t j = i + 1; j <= s->n; j++) {
        const brg_profile_grad *g = &s->profile->grads[j - 1];
        grow(&p, g->dtype, g->nbytes, s->link);
        if (j == s->n)
            add_tail(&p, s);
        uint64_t least = s->ready_ns[j] + p.all_ns;
        if (least > s->deadline_ns)
            break;
        int64_t start = s->fewer[j] - (int64_t)p.all_ns;
        if (s->fewer[j] >= (int64_t)least && start > s->latest[i]) {
            s->latest[i] = start;
            first = j;
        }
    }
    return first;
}

/* firsts: k-th row of n, where the first of k + 1 parts of what follows each
 * gradient ends. Returns when what follows the start has one. */
static brg_status count_parts(search *s, index_array *firsts)
{
    for (size_t i = 0; i < s->n; i++)
        s->fewer[i] = NEVER;
    s->fewer[s->n] = (int64_t)s->deadline_ns;
    do {
        BRG_TRY(brg__array_reserve(firsts, s->n));
        for (size_t i = 0; i < s->n; i++)
            firsts->at[firsts->n++] = (uint32_t)find_first(s, i);
        int64_t *swap = s->fewer;
        s->fewer = s->latest;
        s->latest = swap;
        s->fewer[s->n] = NEVER;
    } while (s->fewer[0] == NEVER);
    return BRG_OK;
}

static brg_status search_parts(search *s, bool *closes)
{
    const brg_profile *profile = s->profile;
    for (size_t j = 1; j <= s->n; j++) {
        s->ready_ns[j] =
            most(s->ready_ns[j - 1], profile->grads[j - 1].ready_ns);
        find_end(s, j);
    }
    s->deadline_ns = most(s->end_ns[s->n], profile->backward_ns);
    index_array firsts = {0};
    brg_status status = count_parts(s, &firsts);
    memset(closes, 0, s->n * sizeof *closes);
    for (size_t i = 0, k = firsts.n / s->n; status == BRG_OK && i < s->n;) {
        i = firsts.at[--k * s->n + i];
        closes[i - 1] = true;
    }
    brg__array_deinit(&firsts);
    return status;
}

brg_status brg__schedule_parts(bool *closes, const brg_profile *profile,
                               const brg_link *link)
{
    size_t n = profile->n + 1;
    int64_t *block = brg__mem_alloc_array(4 * n, sizeof *block, "a schedule");
    if (!block)
        return BRG_ERR_NOMEM;
    search s = {.profile = profile,
                .link = link,
                .n = profile->n,
                .ready_ns = (uint64_t *)block,
                .end_ns = (uint64_t *)block + n,
                .fewer = block + 2 * n,
                .latest = block + 3 * n};
    brg_status status = search_parts(&s, closes);
    brg__mem_free(block);
    return status;
}

brg_status brg_schedule_choose(uint32_t *buckets, const brg_profile *profile,
                               const brg_link *link)
{
    BRG_CHECK_ARG(buckets, "brg_schedule_choose: buckets is NULL");
    BRG_TRY(check(profile, link, "brg_schedule_choose"));
    bool *closes =
        brg__mem_alloc_array(profile->n, sizeof *closes, "a schedule");
    if (!closes)
        return BRG_ERR_NOMEM;
    brg_status status = brg__schedule_parts(closes, profile, link);
    if (status == BRG_OK)
        status = brg__schedule_plan(buckets, profile, NULL, closes);
    brg__mem_free(closes);
    return status;
}
