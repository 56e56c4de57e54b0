/* SPDX-License-Identifier: Apache-2.0
 * The schedule of buckets: its cost, the best one against all there are, and
 * both in virtual time. */
#include <math.h>

#include <brigade/schedule.h>

#include "comm/pg.h"
#include "tests/reducer/timed_step.h"
#include "tests/support/brg_test.h"
#include "tests/support/fail_alloc.h"
#include "tests/support/ranks.h"
#include "tests/support/temp_dir.h"

#define MAX_GRADS 12

/* ---- A model of the test's own ------------------------------------------------ */

typedef struct sample {
    brg_profile profile;
    brg_profile_grad grads[MAX_GRADS];
    brg_link link;
} sample;

static uint64_t draw(uint64_t *seed, uint64_t below)
{
    return brg_test_random(seed) % below;
}

static void draw_link(brg_link *link, uint64_t *seed)
{
    *link = (brg_link){.n = 1 + draw(seed, 4)};
    uint64_t nbytes = draw(seed, 3) ? 64 : 0, ns = draw(seed, 2000);
    for (size_t k = 0; k < link->n; k++) {
        link->at[k] = (brg_link_point){nbytes, ns, draw(seed, ns + 1)};
        nbytes += 64 * (1 + draw(seed, 40));
        ns += draw(seed, 5000);
    }
}

/* Without what the computing thread does: the choice leaves that out. */
static void draw_sample(sample *s, uint64_t *seed, bool is_mixed)
{
    uint64_t ready = 0;
    *s = (sample){.profile = {.n = 1 + draw(seed, MAX_GRADS),
                              .grads = s->grads,
                              .tail_nbytes = 64 * draw(seed, 3)}};
    for (size_t i = 0; i < s->profile.n; i++) {
        s->grads[i] = (brg_profile_grad){
            .name = "",
            .dtype = is_mixed && draw(seed, 2) ? BRG_DTYPE_F64 : BRG_DTYPE_F32,
            .nbytes = 64 * draw(seed, 60),
            .ready_ns = ready};
        ready += draw(seed, 3) ? draw(seed, 4000) : 0;
    }
    s->profile.backward_ns = ready + draw(seed, 2) * draw(seed, 9000);
    s->profile.step_ns = 100000;
    draw_link(&s->link, seed);
    for (size_t k = 0; k < s->link.n; k++)
        s->link.at[k].busy_ns = 0;
}

/* One number at a time, on the line through the points beside it. */
static double time_of(const brg_link *link, uint64_t nbytes)
{
    size_t k = 1;
    if (link->n == 1)
        return (double)link->at[0].ns;
    while (k + 1 < link->n && link->at[k].nbytes < nbytes)
        k++;
    double x0 = (double)link->at[k - 1].nbytes, x1 = (double)link->at[k].nbytes;
    double y0 = (double)link->at[k - 1].ns, y1 = (double)link->at[k].ns;
    double y = y0 + (y1 - y0) * ((double)nbytes - x0) / (x1 - x0);
    return y > 0 ? floor(y + 0.5) : 0;
}

/* The end of the last bucket if the order is cut after each i with bit i of
 * `cuts`; a part goes as one bucket of each dtype. */
static double end_of(const sample *s, unsigned cuts)
{
    size_t n = s->profile.n;
    double end = 0, ready = 0;
    uint64_t nbytes[BRG_N_DTYPES] = {0};
    bool has[BRG_N_DTYPES] = {false};
    for (size_t i = 0; i < n; i++) {
        const brg_profile_grad *g = &s->grads[i];
        nbytes[g->dtype] += g->nbytes;
        has[g->dtype] = true;
        ready = (double)g->ready_ns;
        if (i + 1 < n && !(cuts >> i & 1))
            continue;
        bool with_tail = i + 1 == n && g->dtype == BRG_DTYPE_F32;
        if (with_tail)
            nbytes[BRG_DTYPE_F32] += s->profile.tail_nbytes;
        end = end > ready ? end : ready;
        for (int d = 0; d < BRG_N_DTYPES; d++) {
            end += has[d] ? time_of(&s->link, nbytes[d]) : 0;
            nbytes[d] = 0;
            has[d] = false;
        }
        if (i + 1 == n && !with_tail && s->profile.tail_nbytes)
            end += time_of(&s->link, s->profile.tail_nbytes);
    }
    return end;
}

static double exposed_of(const sample *s, unsigned cuts)
{
    double over = end_of(s, cuts) - (double)s->profile.backward_ns;
    return over > 0 ? over : 0;
}

static unsigned n_parts_of(size_t n, unsigned cuts)
{
    unsigned n_parts = 1;
    for (size_t i = 0; i + 1 < n; i++)
        n_parts += cuts >> i & 1;
    return n_parts;
}

/* ---- The best one ------------------------------------------------------------------ */

static void test_schedule__is_the_best_of_all_partitions(void **state)
{
    (void)state;
    uint64_t seed = brg_test_seed(71);
    for (int round = 0; round < 400; round++) {
        sample s;
        uint32_t buckets[MAX_GRADS];
        brg_schedule chosen;
        draw_sample(&s, &seed, false);
        double best = INFINITY;
        unsigned n_parts = 0;
        for (unsigned cuts = 0; cuts < 1u << (s.profile.n - 1); cuts++) {
            double exposed = exposed_of(&s, cuts);
            unsigned n = n_parts_of(s.profile.n, cuts);
            if (exposed < best || (exposed == best && n < n_parts)) {
                best = exposed;
                n_parts = n;
            }
        }
        assert_brg_ok(brg_schedule_choose(buckets, &s.profile, &s.link));
        assert_brg_ok(
            brg_schedule_predict(&chosen, &s.profile, &s.link, buckets));
        assert_true((double)chosen.exposed_ns == best);
        assert_int_equal(chosen.n_buckets, n_parts);
        for (size_t i = 0; i < s.profile.n; i++)
            assert_int_equal(buckets[i],
                             i ? buckets[i - 1] + (buckets[i] != buckets[i - 1])
                               : 0);
    }
}

/* With several dtypes a bucket that is complete before its part is sends
 * earlier than the search reckons, never later. */
static void test_schedule__of_several_dtypes_is_no_worse(void **state)
{
    (void)state;
    uint64_t seed = brg_test_seed(72);
    for (int round = 0; round < 400; round++) {
        sample s;
        uint32_t buckets[MAX_GRADS];
        brg_schedule chosen;
        draw_sample(&s, &seed, true);
        double best = INFINITY;
        for (unsigned cuts = 0; cuts < 1u << (s.profile.n - 1); cuts++)
            best = fmin(best, exposed_of(&s, cuts));
        assert_brg_ok(brg_schedule_choose(buckets, &s.profile, &s.link));
        assert_brg_ok(
            brg_schedule_predict(&chosen, &s.profile, &s.link, buckets));
        assert_true((double)chosen.exposed_ns <= best);
    }
}

static void test_schedule__is_no_worse_than_any_sizes(void **state)
{
    (void)state;
    uint64_t seed = brg_test_seed(73);
    for (int round = 0; round < 400; round++) {
        sample s;
        uint32_t buckets[MAX_GRADS];
        brg_schedule chosen, by_size;
        draw_sample(&s, &seed, false);
        assert_brg_ok(brg_schedule_choose(buckets, &s.profile, &s.link));
        assert_brg_ok(
            brg_schedule_predict(&chosen, &s.profile, &s.link, buckets));
        assert_brg_ok(brg_schedule_by_size(
            buckets, &s.profile, 1 + draw(&seed, 4000), 1 + draw(&seed, 9000)));
        assert_brg_ok(
            brg_schedule_predict(&by_size, &s.profile, &s.link, buckets));
        assert_true(chosen.exposed_ns <= by_size.exposed_ns);
    }
}

/* By hand: 1 ns a byte and 100 ns a message; gradients of 1000 bytes at 0,
 * 1000 and 2000 ns. Backward ends at 2500. */
static void test_schedule__costs_what_the_formula_says(void **state)
{
    (void)state;
    const brg_profile_grad grads[] = {{"a", BRG_DTYPE_F32, 1000, 0, 0},
                                      {"b", BRG_DTYPE_F32, 1000, 1000, 0},
                                      {"c", BRG_DTYPE_F32, 1000, 2000, 0}};
    const brg_profile p = {3, grads, 2500, 7000, 0};
    const brg_link link = {2, {{0, 100, 0}, {1000, 1100, 500}}};
    static const struct {
        uint32_t buckets[3];
        uint64_t transfer, exposed, busy;
    } rows[] = {
        /* From 2000 to 5100. Its 1500 let 1600 of 3100 be computed: the 500
         * that are left take 968.75. */
        {{0, 0, 0}, 3100, 2600 - 468, 468},
        /* From 0, from 1500, and, 1000 late, from 3000 to 4100; the 500 that
         * are left then take 916 of that. */
        {{0, 1, 2}, 3300, 4100 - 3916, 1416},
        /* From 1000 to 3100, 1000 late, so to 4200; 400 are left and take 733. */
        {{0, 0, 1}, 3200, 4200 - 3833, 1333},
    };
    for (size_t k = 0; k < sizeof rows / sizeof rows[0]; k++) {
        brg_schedule s;
        assert_brg_ok(brg_schedule_predict(&s, &p, &link, rows[k].buckets));
        assert_int_equal(s.transfer_ns, rows[k].transfer);
        assert_int_equal(s.exposed_ns, rows[k].exposed);
        assert_int_equal(s.busy_ns, rows[k].busy);
        assert_int_equal(s.step_ns, 7000 + s.busy_ns + s.exposed_ns);
    }
}

/* ---- The computing thread beside a transfer ------------------------------------------ */

typedef struct course {
    double over;  /* when the backward is */
    double ended; /* the last transfer */
} course;

/* Step by step through the time: the thread does 1 of 1, or 1 - busy / t of it
 * beside a transfer. One dtype, at least one byte a bucket, each gradient a
 * bucket. */
static course walk(const brg_profile *p, const brg_link *link, double tick)
{
    course c = {-1, 0};
    double done = 0, left = 0, part = 0;
    size_t sent = 0;
    for (double now = 0; c.over < 0 || sent < p->n || left > 0; now += tick) {
        if (left <= 0 && sent < p->n &&
            done >= (double)p->grads[sent].ready_ns) {
            const uint64_t nbytes = p->grads[sent++].nbytes;
            const double t = (double)brg_link_ns(link, nbytes);
            left = t;
            part = (double)brg_link_busy_ns(link, nbytes) / t;
        }
        done += left > 0 ? tick * (1 - part) : tick;
        left -= left > 0 ? tick : 0;
        if (c.over < 0 && done >= (double)p->backward_ns)
            c.over = now + tick;
        c.ended = left > 0 ? now + tick : c.ended;
    }
    return c;
}

static void test_schedule__as_walked_through(void **state)
{
    (void)state;
    uint64_t seed = brg_test_seed(74);
    for (int round = 0; round < 200; round++) {
        uint32_t buckets[MAX_GRADS];
        sample s;
        brg_schedule found;
        draw_sample(&s, &seed, false);
        s.profile.tail_nbytes = 0;
        for (size_t i = 0; i < s.profile.n; i++) {
            s.grads[i].nbytes += 64;
            buckets[i] = (uint32_t)i;
        }
        const uint64_t t = 1 + draw(&seed, 3000), beta = 1 + draw(&seed, 3000);
        const uint64_t percent = draw(&seed, 90);
        s.link =
            (brg_link){.n = 2,
                       .at = {{0, t, t * percent / 100},
                              {1024, t + beta, (t + beta) * percent / 100}}};
        const double tick = 0.25;
        const course c = walk(&s.profile, &s.link, tick);
        const double end = fmax(c.over, c.ended);
        const double slack = 4 + 2 * tick * (double)s.profile.n;
        assert_brg_ok(
            brg_schedule_predict(&found, &s.profile, &s.link, buckets));
        const double over = (double)(s.profile.backward_ns + found.busy_ns);
        assert_true(fabs(over - c.over) <= 10 * slack);
        assert_true(fabs(over + (double)found.exposed_ns - end) <= 10 * slack);
    }
}

static void test_schedule__formulas_of_links(void **state)
{
    (void)state;
    brg_link link;
    /* 1 us and 1 GB/s, 4 ranks, 1 MB: 6 messages and 1.5 MB; 4 messages */
    assert_brg_ok(brg_link_of(&link, BRG_LINK_RING, 4, 1000, 1e9));
    assert_int_equal(brg_link_ns(&link, 1000000), 1506000);
    assert_brg_ok(brg_link_of(&link, BRG_LINK_HALVING, 4, 1000, 1e9));
    assert_int_equal(brg_link_ns(&link, 1000000), 1504000);
    assert_brg_ok(brg_link_of(&link, BRG_LINK_HALVING, 5, 1000, 1e9));
    assert_int_equal(brg_link_ns(&link, 1000000), 1606000);
    assert_brg_ok(brg_link_of(&link, BRG_LINK_RING, 1, 1000, 1e9));
    assert_int_equal(brg_link_ns(&link, 1000000), 0);
    assert_brg_fails(brg_link_of(&link, BRG_LINK_RING, 0, 1, 1), BRG_ERR_ARG);
    assert_brg_fails(brg_link_of(&link, (brg_link_algorithm)7, 2, 1, 1),
                     BRG_ERR_ARG);
}

static void test_schedule__refuses_nonsense(void **state)
{
    (void)state;
    const brg_profile_grad grads[] = {{"a", BRG_DTYPE_F32, 64, 0, 0},
                                      {"b", BRG_DTYPE_F64, 64, 1, 0}};
    const brg_profile p = {2, grads, 2, 2, 0};
    const brg_link link = {1, {{0, 100, 0}}}, none = {0};
    brg_schedule s;
    assert_brg_fails(
        brg_schedule_predict(&s, &p, &link, (const uint32_t[]){0, 0}),
        BRG_ERR_ARG); /* two dtypes */
    assert_brg_fails(
        brg_schedule_predict(&s, &p, &link, (const uint32_t[]){0, 2}),
        BRG_ERR_ARG);
    assert_brg_fails(
        brg_schedule_predict(&s, &p, &link, (const uint32_t[]){1, 1}),
        BRG_ERR_ARG); /* 0 is empty */
    assert_brg_fails(
        brg_schedule_predict(&s, &p, &none, (const uint32_t[]){0, 1}),
        BRG_ERR_ARG);
}

/* Sums beyond the range of numbers would send the search round for ever. */
static void test_schedule__refuses_what_lasts_for_ages(void **state)
{
    (void)state;
    const uint64_t huge[] = {UINT64_MAX, INT64_MAX, (uint64_t)1 << 61};
    const brg_link fast = {2, {{0, 1, 0}, {64, 2, 0}}};
    const brg_link links[] = {
        {1, {{0, (uint64_t)1 << 60, 0}}},            /* two are too much */
        {2, {{0, 0, 0}, {1, (uint64_t)1 << 60, 0}}}, /* 64 bytes are */
        {2, {{64, 1, 0}, {64, 2, 0}}},               /* not ascending */
        {2, {{0, 2, 0}, {64, 1, 0}}}};
    uint32_t buckets[2];
    brg_schedule filled;
    for (size_t k = 0; k < 3 * 5; k++) {
        uint64_t v = huge[k % 3];
        brg_profile_grad grads[] = {{"a", BRG_DTYPE_F32, 64, 0, 0},
                                    {"b", BRG_DTYPE_F32, 64, 1, 0}};
        brg_profile p = {2, grads, 2, 2, 0};
        uint64_t *const places[] = {&p.backward_ns, &p.step_ns, &p.tail_nbytes,
                                    &grads[1].nbytes, &grads[0].ready_ns};
        *places[k / 3] = v;
        assert_brg_fails_with(brg_schedule_choose(buckets, &p, &fast),
                              BRG_ERR_ARG, "2^61");
        assert_brg_fails_with(brg_schedule_by_size(buckets, &p, 0, 0),
                              BRG_ERR_ARG, "2^61");
        assert_brg_fails_with(
            brg_schedule_predict(&filled, &p, &fast, (const uint32_t[]){0, 0}),
            BRG_ERR_ARG, "2^61");
    }
    const brg_profile_grad grads[] = {{"a", BRG_DTYPE_F32, 64, 0, 0},
                                      {"b", BRG_DTYPE_F32, 64, 1, 0}};
    const brg_profile p = {2, grads, 2, 2, 0};
    for (size_t k = 0; k < 4; k++)
        assert_brg_fails_with(brg_schedule_choose(buckets, &p, &links[k]),
                              BRG_ERR_ARG, k < 2 ? "2^61" : "ascend");
    assert_brg_ok(brg_schedule_choose(buckets, &p, &fast));
    brg_link link;
    assert_brg_fails_with(brg_link_of(&link, BRG_LINK_RING, 9, 1e18, 1e9),
                          BRG_ERR_ARG, "2^61");
    assert_brg_fails_with(brg_link_of(&link, BRG_LINK_RING, 9, 1, 1e-9),
                          BRG_ERR_ARG, "2^61");
    assert_brg_fails(brg_link_of(&link, BRG_LINK_RING, 9, INFINITY, 1),
                     BRG_ERR_ARG);
    assert_int_equal(brg_link_ns(&links[1], UINT64_MAX), (uint64_t)1 << 61);
}

/* ---- In virtual time ------------------------------------------------------------- */

#define N_STEPS 9

typedef struct timed {
    brg_bucket_choice buckets;
    size_t first_bytes; /* limits of sizes */
    uint64_t wait_ns;   /* of the last step */
    uint64_t step_ns;
    brg_reducer_stats stats;
} timed;

static brg_status timed_rank(brg_pg *pg, void *user)
{
    timed *t = user;
    brg_reducer_options options = BRG_REDUCER_OPTIONS_INIT;
    brg_reducer *r;
    options.buckets = t->buckets;
    options.first_bucket_bytes = options.bucket_bytes = t->first_bytes;
    BRG_TRY(timed_create(&r, pg, &options));
    brg_status status = BRG_OK;
    uint64_t ns = 0;
    for (int step = 0; step < N_STEPS && status == BRG_OK; step++)
        status = timed_step(pg, r, &ns);
    if (brg_pg_rank(pg) == 0) {
        t->step_ns = ns;
        brg_reducer_get_stats(r, &t->stats);
    }
    brg_reducer_destroy(r);
    return status;
}

static void run_timed(timed *t, int n_ranks)
{
    brg_sim_options world = BRG_SIM_OPTIONS_INIT;
    world.latency_ns = 20000;
    world.bytes_per_s = 1e9;
    assert_brg_ok(brg_sim_run(n_ranks, &world, timed_rank, t));
}

static uint64_t backward_ns(void)
{
    uint64_t ns = 0;
    for (size_t i = 0; i < N_GRADS; i++)
        ns += work_ns[i];
    return ns;
}

/* What the group measured is the world's formula, what it recorded are the
 * times above, so the step takes what was predicted, but for rounding. */
static void test_schedule__virtual_step_is_as_predicted(void **state)
{
    (void)state;
    static const size_t sizes[] = {1, 100000, 0};
    for (int n_ranks = 2; n_ranks <= 8; n_ranks += 3)
        for (size_t k = 0; k < sizeof sizes / sizeof sizes[0]; k++) {
            timed chosen = {BRG_BUCKETS_MEASURED, sizes[k], 0, 0, {0}};
            timed by_size = {BRG_BUCKETS_BY_SIZE, sizes[k], 0, 0, {0}};
            run_timed(&chosen, n_ranks);
            run_timed(&by_size, n_ranks);
            const brg_reducer_stats *s = &chosen.stats;
            uint64_t rounding = 2 * N_GRADS;
            assert_in_range(chosen.step_ns,
                            backward_ns() + s->predicted_wait_ns - rounding,
                            backward_ns() + s->predicted_wait_ns + rounding);
            assert_in_range(by_size.step_ns,
                            backward_ns() + s->predicted_by_size_ns - rounding,
                            backward_ns() + s->predicted_by_size_ns + rounding);
            assert_true(chosen.step_ns <= by_size.step_ns + rounding);
            assert_int_equal(by_size.stats.predicted_wait_ns, 0);
            printf("%d ranks, sizes %zu: %zu buckets, wait %llu us; by size "
                   "%zu, %llu us\n",
                   n_ranks, sizes[k], s->n_buckets,
                   (unsigned long long)s->predicted_wait_ns / 1000,
                   by_size.stats.n_buckets,
                   (unsigned long long)s->predicted_by_size_ns / 1000);
        }
}

/* ---- Memory ---------------------------------------------------------------------------- */

static brg_status use_memory(void *user)
{
    brg_profile *p;
    brg_link link = {1, {{0, 100, 0}}};
    brg_schedule s;
    uint32_t buckets[2];
    BRG_TRY(brg_profile_read(&p, user));
    brg_status status = brg_schedule_choose(buckets, p, &link);
    if (status == BRG_OK)
        status = brg_schedule_predict(&s, p, &link, buckets);
    if (status == BRG_OK)
        status = brg_schedule_by_size(buckets, p, 0, 0);
    brg_profile_destroy(p);
    return status;
}

typedef struct poor {
    int64_t budget; /* allocations; -1: any number */
    int64_t n_refused;
    brg_status status;
} poor;

/* What is chosen follows from virtual times, so each run asks for the same
 * memory. */
static brg_status measure_poorly(brg_pg *pg, void *user)
{
    poor *p = user;
    float values[2] = {0};
    brg_reducer_param params[2] = {
        {.grad = &values[0], .count = 1, .dtype = BRG_DTYPE_F32},
        {.grad = &values[1], .count = 1, .dtype = BRG_DTYPE_F32}};
    brg_reducer_options options = BRG_REDUCER_OPTIONS_INIT;
    brg_reducer *r;
    options.buckets = BRG_BUCKETS_MEASURED;
    if (p->budget >= 0)
        fail_alloc_arm(p->budget);
    brg_status status = brg_reducer_create(&r, pg, params, 2, &options);
    for (int step = 0; step < 8 && status == BRG_OK; step++) {
        status = brg_reducer_mark_ready(r, 1);
        brg_sim_spend_ns(pg, 50000);
        if (status == BRG_OK)
            status = brg_reducer_mark_ready(r, 0);
        if (status == BRG_OK)
            status = brg_reducer_wait(r);
    }
    p->n_refused = fail_alloc_disarm();
    p->status = status;
    brg_reducer_destroy(r);
    return BRG_OK;
}

static void run_poorly(poor *p, int64_t budget)
{
    brg_sim_options world = BRG_SIM_OPTIONS_INIT;
    world.latency_ns = 20000;
    world.bytes_per_s = 1e9;
    *p = (poor){.budget = budget};
    assert_brg_ok(brg_sim_run(1, &world, measure_poorly, p));
}

static void test_schedule__survives_want_of_memory(void **state)
{
    (void)state;
    static const char text[] = "brigade-profile 1\nstep\t9\t9\t64\n"
                               "grad\tf32\t64\t2\ta\n"
                               "grad\tf32\t64\t3\tb\n";
    assert_oom_clean(use_memory,
                     (void *)temp_file("small", text, sizeof text - 1));
    /* Without memory to choose, sizes go on: some of these succeed. */
    poor p;
    run_poorly(&p, -1);
    assert_brg_ok(p.status);
    int n_by_size = 0;
    p.n_refused = 1;
    for (int64_t n = 0; p.n_refused > 0; n++) {
        brg_memory_trim();
        int64_t n_live = fail_alloc_live();
        run_poorly(&p, n);
        assert_true(p.status == BRG_OK || p.status == BRG_ERR_NOMEM);
        assert_true(p.status == BRG_OK || p.n_refused > 0);
        n_by_size += p.status == BRG_OK && p.n_refused > 0;
        brg_memory_trim();
        assert_int_equal(fail_alloc_live(), n_live);
    }
    assert_true(n_by_size > 0);
}

/* ---- Options -------------------------------------------------------------------------- */

static brg_status differing_rank(brg_pg *pg, void *user)
{
    float value = 0;
    brg_reducer_param param = {.name = "w", .grad = &value, .count = 1};
    brg_reducer_options options = BRG_REDUCER_OPTIONS_INIT;
    brg_reducer *r;
    (void)user;
    options.buckets =
        brg_pg_rank(pg) == 1 ? BRG_BUCKETS_MEASURED : BRG_BUCKETS_BY_SIZE;
    RANK_FAILS(brg_reducer_create(&r, pg, &param, 1, &options),
               BRG_ERR_MISMATCH, "rank 1 has buckets MEASURED on");
    return BRG_OK;
}

static void test_schedule__options_that_do_not_go_together(void **state)
{
    (void)state;
    float value = 0;
    brg_reducer_param param = {.name = "w", .grad = &value, .count = 1};
    brg_reducer_options options = BRG_REDUCER_OPTIONS_INIT;
    brg_reducer *r;
    brg_pg *pg;
    assert_brg_ok(brg_pg_create_self(&pg));
    options.buckets = BRG_BUCKETS_MEASURED;
    options.keep_order = true;
    assert_brg_fails_with(brg_reducer_create(&r, pg, &param, 1, &options),
                          BRG_ERR_UNSUPPORTED, "keep_order");
    options.keep_order = false;
    param.grad = NULL;
    assert_brg_fails_with(brg_reducer_create(&r, pg, &param, 1, &options),
                          BRG_ERR_UNSUPPORTED, "live in slots");
    param.grad = &value;
    options.buckets = (brg_bucket_choice)9;
    assert_brg_fails(brg_reducer_create(&r, pg, &param, 1, &options),
                     BRG_ERR_ARG);
    brg_pg_destroy(pg);
    assert_brg_ok(brg_sim_run(3, NULL, differing_rank, NULL));
}

/* Of a world of so many machines; the steps after which buckets are chosen, and
 * one more. */
typedef struct left_open {
    int n_machines;
    size_t bucket_bytes;
    bool keep_order;
    bool is_measured;
} left_open;

static brg_status leave_open(brg_pg *pg, void *user)
{
    left_open *o = user;
    brg_reducer_options options = BRG_REDUCER_OPTIONS_INIT;
    brg_reducer_stats stats;
    brg_reducer *r;
    uint64_t ns;
    pg->end.n_machines = o->n_machines;
    options.bucket_bytes = o->bucket_bytes;
    options.keep_order = o->keep_order;
    BRG_TRY(timed_create(&r, pg, &options));
    for (int step = 0; step < N_STEPS; step++)
        BRG_TRY(timed_step(pg, r, &ns));
    brg_reducer_get_stats(r, &stats);
    o->is_measured = stats.predicted_wait_ns > 0;
    brg_reducer_destroy(r);
    return BRG_OK;
}

static void test_schedule__between_machines_buckets_are_measured(void **state)
{
    (void)state;
    static const left_open cases[] = {{0, 0, false, false},
                                      {1, 0, false, false},
                                      {2, 0, false, true},
                                      {2, 100000, false, false},
                                      {2, 0, true, false}};
    brg_sim_options world = BRG_SIM_OPTIONS_INIT;
    world.latency_ns = 20000;
    world.bytes_per_s = 1e9;
    for (size_t k = 0; k < sizeof cases / sizeof cases[0]; k++) {
        left_open o = cases[k];
        o.is_measured = !cases[k].is_measured;
        assert_brg_ok(brg_sim_run(2, &world, leave_open, &o));
        assert_true(o.is_measured == cases[k].is_measured);
    }
}

/* Rank 0 alone records, from the start: steps after the choice, which does not
 * differ for it. */
static brg_status record_open(brg_pg *pg, void *user)
{
    const brg_reducer_options *options = user;
    brg_reducer_stats stats;
    brg_profile *profile;
    brg_reducer *r;
    uint64_t ns;
    pg->end.n_machines = 2;
    BRG_TRY(timed_create(&r, pg, options));
    for (int twice = 0; twice < 2 && brg_pg_rank(pg) == 0; twice++)
        BRG_TRY(brg_reducer_record(r, 3));
    for (int step = 0; step < 7; step++)
        BRG_TRY(timed_step(pg, r, &ns));
    brg_reducer_get_stats(r, &stats);
    RANK_CHECK(stats.predicted_wait_ns > 0, "nothing was measured");
    if (brg_pg_rank(pg) == 0)
        RANK_FAILS(brg_reducer_get_profile(r, &profile), BRG_ERR_STATE,
                   "1 steps were recorded");
    for (int step = 0; step < 3; step++)
        BRG_TRY(timed_step(pg, r, &ns));
    BRG_TRY(brg_reducer_get_profile(r, &profile));
    RANK_CHECK(profile->n == N_GRADS, "%zu gradients", profile->n);
    brg_profile_destroy(profile);
    brg_reducer_destroy(r);
    return BRG_OK;
}

static void test_schedule__recording_waits_for_measured_buckets(void **state)
{
    (void)state;
    brg_reducer_options options = BRG_REDUCER_OPTIONS_INIT;
    brg_sim_options world = BRG_SIM_OPTIONS_INIT;
    world.latency_ns = 20000;
    world.bytes_per_s = 1e9;
    assert_brg_ok(brg_sim_run(2, &world, record_open, &options));
    options.buckets = BRG_BUCKETS_MEASURED;
    assert_brg_ok(brg_sim_run(2, &world, record_open, &options));
}

int main(void)
{
    fail_alloc_install();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_schedule__is_the_best_of_all_partitions),
        cmocka_unit_test(test_schedule__of_several_dtypes_is_no_worse),
        cmocka_unit_test(test_schedule__is_no_worse_than_any_sizes),
        cmocka_unit_test(test_schedule__costs_what_the_formula_says),
        cmocka_unit_test(test_schedule__as_walked_through),
        cmocka_unit_test(test_schedule__formulas_of_links),
        cmocka_unit_test(test_schedule__refuses_nonsense),
        cmocka_unit_test(test_schedule__refuses_what_lasts_for_ages),
        cmocka_unit_test(test_schedule__virtual_step_is_as_predicted),
        cmocka_unit_test(test_schedule__survives_want_of_memory),
        cmocka_unit_test(test_schedule__options_that_do_not_go_together),
        cmocka_unit_test(test_schedule__between_machines_buckets_are_measured),
        cmocka_unit_test(test_schedule__recording_waits_for_measured_buckets),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
