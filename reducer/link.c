/* SPDX-License-Identifier: Apache-2.0
 * How long an all-reduce takes: by measurement, or by formula. */
#include <math.h>
#include <string.h>

#include "comm/pg.h"
#include "core/base/clock.h"
#include "reducer/schedule.h"

#define LEAST_BYTES 1024
/* From one size to the next; the least buffer has room for so many of the
 * first, in flight at once. */
#define STEP BRG__LINK_WORKS
#define N_REPEATS 9      /* the median counts */
#define N_REPEATS_MANY 3 /* of sizes beyond ... */
#define MANY_BYTES ((size_t)4 << 20)
#define POLL_PAUSE 50 /* polls in vain that fit between two */
#define POLL_PAUSE_MAX_NS 10000000u

/* ---- Between points ----------------------------------------------------------- */

static uint64_t pick(const brg_link_point *p, bool is_busy)
{
    return is_busy ? p->busy_ns : p->ns;
}

static uint64_t interpolate(const brg_link *link, uint64_t nbytes, bool is_busy)
{
    size_t k = 1;
    if (link->n == 1)
        return pick(&link->at[0], is_busy);
    while (k + 1 < link->n && nbytes > link->at[k].nbytes)
        k++;
    const brg_link_point *a = &link->at[k - 1], *b = &link->at[k];
    double beta = ((double)pick(b, is_busy) - (double)pick(a, is_busy)) /
                  (double)(b->nbytes - a->nbytes);
    double ns =
        (double)pick(a, is_busy) + beta * ((double)nbytes - (double)a->nbytes);
    if (ns >= (double)BRG__SCHEDULE_MOST)
        return BRG__SCHEDULE_MOST;
    return ns > 0 ? (uint64_t)(ns + 0.5) : 0;
}

uint64_t brg_link_ns(const brg_link *link, uint64_t nbytes)
{
    return interpolate(link, nbytes, false);
}

uint64_t brg_link_busy_ns(const brg_link *link, uint64_t nbytes)
{
    uint64_t ns = interpolate(link, nbytes, false);
    uint64_t busy = interpolate(link, nbytes, true);
    return busy < ns ? busy : ns;
}

/* ---- By formula ----------------------------------------------------------------- */

brg_status brg_link_of(brg_link *filled, brg_link_algorithm algorithm,
                       int n_ranks, double latency_ns, double bytes_per_s)
{
    BRG_CHECK_ARG(filled && n_ranks >= 1 && latency_ns >= 0 && bytes_per_s > 0,
                  "brg_link_of: %d ranks, latency %g ns, %g bytes/s", n_ranks,
                  latency_ns, bytes_per_s);
    BRG_CHECK_ARG((unsigned)algorithm <= BRG_LINK_HALVING,
                  "brg_link_of: algorithm %d is none of BRG_LINK_RING and "
                  "BRG_LINK_HALVING",
                  (int)algorithm);
    const uint64_t far = (uint64_t)1 << 40; /* so that rounding is far below */
    double n = n_ranks;
    double messages = algorithm == BRG_LINK_RING ? n - 1 : ceil(log2(n));
    double alpha = 2 * messages * latency_ns;
    double beta = 2 * (n - 1) / n * 1e9 / bytes_per_s;
    BRG_CHECK_ARG(alpha + beta * (double)far < (double)BRG__SCHEDULE_MOST,
                  "brg_link_of: %d ranks, latency %g ns, %g bytes/s: an "
                  "all-reduce of a TiB takes more than 2^61 ns",
                  n_ranks, latency_ns, bytes_per_s);
    *filled = (brg_link){.n = 2};
    filled->at[0].ns = (uint64_t)(alpha + 0.5);
    filled->at[1].nbytes = far;
    filled->at[1].ns = filled->at[0].ns + (uint64_t)(beta * (double)far + 0.5);
    return BRG_OK;
}

/* ---- By measurement --------------------------------------------------------------- */

static brg_status meet(brg_pg *pg)
{
    brg_work *work;
    BRG_TRY(brg_barrier(pg, &work));
    return brg_work_wait(work);
}

/* Waited for as soon as it is started. */
static brg_status time_wait(brg_pg *pg, float *data, size_t n, uint64_t *ns)
{
    brg_work *work;
    BRG_TRY(meet(pg));
    uint64_t start = brg__pg_clock_ns(pg);
    BRG_TRY(brg_all_reduce(pg, &work, data, n, BRG_DTYPE_F32, BRG_REDUCE_AVG));
    BRG_TRY(brg_work_wait(work));
    *ns = brg__pg_clock_ns(pg) - start;
    return BRG_OK;
}

/* Polled now and then, as a backward does (core/base/progress.h): it is over
 * when a poll has found so, and the time in polls is what a backward loses.
 * Short ones several in a row, as buckets come. Times of one of them. */
static brg_status time_polls(brg_pg *pg, float *data, size_t n, uint64_t *ns,
                             uint64_t *busy_ns)
{
    brg_work *works[BRG__LINK_WORKS];
    size_t n_works = n * sizeof *data == LEAST_BYTES ? BRG__LINK_WORKS : 1;
    BRG_TRY(meet(pg));
    *ns = *busy_ns = 0;
    uint64_t least = UINT64_MAX, first = brg__clock_ns(), start = first;
    size_t n_started = 0;
    brg_status status = BRG_OK;
    while (n_started < n_works &&
           (status = brg_all_reduce(pg, &works[n_started], data + n_started * n,
                                    n, BRG_DTYPE_F32, BRG_REDUCE_AVG)) ==
               BRG_OK)
        n_started++;
    for (bool is_over = status != BRG_OK; !is_over;) {
        is_over = brg_work_test(works[n_works - 1]);
        uint64_t end = brg__clock_ns(), took = end - start;
        least = took < least ? took : least;
        *busy_ns += took;
        *ns = end - first;
        do
            start = brg__clock_ns();
        while (!is_over && start - end < POLL_PAUSE * least &&
               start - end < POLL_PAUSE_MAX_NS);
    }
    *ns /= n_works;
    *busy_ns /= n_works;
    for (size_t i = 0; i < n_started; i++) {
        brg_status one = brg_work_wait(works[i]);
        status = status == BRG_OK ? one : status;
    }
    return status;
}

/* *polled_ns: the same all-reduce, polled. */
static brg_status time_size(brg_pg *pg, float *data, size_t nbytes,
                            brg_link_point *filled, uint64_t *polled_ns)
{
    uint64_t ns[N_REPEATS], busy_ns[N_REPEATS], polled[N_REPEATS];
    size_t n = nbytes / sizeof *data;
    size_t n_repeats = nbytes > MANY_BYTES ? N_REPEATS_MANY : N_REPEATS;
    BRG_TRY(time_wait(pg, data, n, ns)); /* first touch, connections */
    for (size_t i = 0; i < n_repeats; i++) {
        BRG_TRY(time_wait(pg, data, n, &ns[i]));
        polled[i] = ns[i];
        busy_ns[i] = 0;
        if (!pg->end.ops->clock_ns) /* virtual time is not spent in polls */
            BRG_TRY(time_polls(pg, data, n, &polled[i], &busy_ns[i]));
    }
    *polled_ns = brg__median(polled, n_repeats);
    *filled = (brg_link_point){nbytes, brg__median(ns, n_repeats),
                               brg__median(busy_ns, n_repeats)};
    return BRG_OK;
}

/* While a backward computes, what comes lies until the next poll: that is part
 * of every alpha. The rest of a large transfer is waited for. */
static brg_status time_sizes(brg_pg *pg, float *data, size_t max_bytes,
                             brg_link *filled)
{
    uint64_t polled_ns, lag_ns = 0;
    for (size_t nbytes = LEAST_BYTES; filled->n < BRG_LINK_MAX;
         nbytes *= STEP) {
        bool is_last =
            nbytes > max_bytes / STEP || filled->n + 1 == BRG_LINK_MAX;
        brg_link_point *p = &filled->at[filled->n];
        BRG_TRY(
            time_size(pg, data, is_last ? max_bytes : nbytes, p, &polled_ns));
        if (filled->n++ == 0 && polled_ns > p->ns)
            lag_ns = polled_ns - p->ns;
        p->ns += lag_ns;
        if (is_last)
            break;
    }
    return BRG_OK;
}

/* The slowest rank counts; longer ones take no less time. */
static brg_status agree(brg_pg *pg, brg_link *link)
{
    int64_t times[2 * BRG_LINK_MAX];
    brg_work *work;
    for (size_t k = 0; k < link->n; k++) {
        times[2 * k] = (int64_t)link->at[k].ns;
        times[2 * k + 1] = (int64_t)link->at[k].busy_ns;
    }
    BRG_TRY(brg_all_reduce(pg, &work, times, 2 * link->n, BRG_DTYPE_I64,
                           BRG_REDUCE_MAX));
    BRG_TRY(brg_work_wait(work));
    for (size_t k = 0; k < link->n; k++) {
        brg_link_point *p = &link->at[k];
        p->ns = (uint64_t)times[2 * k];
        p->busy_ns = (uint64_t)times[2 * k + 1];
        if (k > 0 && p->ns < p[-1].ns)
            p->ns = p[-1].ns;
        if (k > 0 && p->busy_ns < p[-1].busy_ns)
            p->busy_ns = p[-1].busy_ns;
    }
    return BRG_OK;
}

brg_status brg_link_measure(brg_pg *pg, size_t max_bytes, brg_link *filled)
{
    BRG_CHECK_ARG(pg && filled, "brg_link_measure: argument is NULL");
    *filled = (brg_link){0};
    if (brg__pg_device(pg).type != BRG_DEVICE_CPU)
        return BRG_FAIL(BRG_ERR_UNSUPPORTED,
                        "brg_link_measure: the group reduces on a device");
    if (max_bytes < STEP * LEAST_BYTES)
        max_bytes = STEP * LEAST_BYTES;
    max_bytes = max_bytes / sizeof(float) * sizeof(float);
    void *data;
    BRG_TRY(brg_pg_alloc(pg, &data, max_bytes));
    memset(data, 0, max_bytes);
    brg_link link = {0};
    brg_status status = time_sizes(pg, data, max_bytes, &link);
    if (status == BRG_OK)
        status = agree(pg, &link);
    brg_pg_free(pg, data);
    if (status == BRG_OK)
        *filled = link;
    return status;
}
