/* SPDX-License-Identifier: Apache-2.0
 * A thousand steps and more with random faults: late, lost, doubled and spoilt
 * messages, and deaths, several in a run, also while the ranks that are left
 * find together. Every step of every rank ends with the right weights, bit for
 * bit, or with an error that names a rank (the first of each rank: one that the
 * script befell); then training goes on with those that are left. Right are the
 * weights of a run on one rank, under the default reduction those of as many
 * ranks, until one is lost. Nothing hangs: the simulated world would say so. */
#include "core/base/clock.h"
#include "tests/support/brg_test.h"
#include "tests/support/survive.h"

enum { N_STEPS = 20, N_LEAVES = 6, MAX_FAULTS = 4, MAX_RANKS = 6 };

#define NETWORK                                                                \
    .n_steps = N_STEPS, .batch = 12, .n_leaves = N_LEAVES, .cap = 256,         \
    .n_hidden = 8

/* A kind of training, and how many steps of it. */
typedef struct mode {
    const char *name;
    leaf_train how;
    int n_steps;
} mode;

static const mode modes[] = {
    {"reproducible", {NETWORK}, 1000},
    {"reproducible, compiled", {NETWORK, .compiled = true}, 1000},
    {"default", {NETWORK, .plain = true}, 1000},
    {"default, compiled", {NETWORK, .plain = true, .compiled = true}, 1000},
    {"default, as bf16", {NETWORK, .plain = true, .casts = true}, 1000},
};
#define N_MODES (sizeof modes / sizeof modes[0])

typedef struct totals {
    int n_runs;
    int n_steps; /* of a run: the ranks' together over their number */
    int n_shrinks;
    int n_astray;
    int n_early;
    int n_faults[BRG_SIM_REPEAT + 1];
    int n_flipped; /* runs to which nothing else that harms was done */
    int n_noticed; /* of these */
} totals;

/* Of a run on so many ranks. */
typedef uint64_t hashes[MAX_RANKS + 1][N_STEPS + 1];

/* Flipped bits lie some steps apart: where two ranks get one in one step, the
 * second may hide the first. */
static uint64_t draw_call(uint64_t *seed, size_t i, brg_sim_fault_kind kind)
{
    return kind == BRG_SIM_CORRUPT ? 50 * i + brg_test_random(seed) % 20
                                   : brg_test_random(seed) % 150;
}

static void draw_faults(uint64_t *seed, int n, brg_sim_options *options,
                        struct brg_sim_fault *faults, totals *t)
{
    options->n_faults = brg_test_random(seed) % (MAX_FAULTS + 1);
    for (size_t i = 0; i < options->n_faults; i++) {
        faults[i] = (struct brg_sim_fault){
            .kind = (brg_sim_fault_kind)(brg_test_random(seed) %
                                         (BRG_SIM_REPEAT + 1)),
            .rank = (int)(brg_test_random(seed) % (unsigned)n),
            .ns = brg_test_random(seed) % 100000,
        };
        faults[i].call = draw_call(seed, i, faults[i].kind);
        t->n_faults[faults[i].kind]++;
    }
    options->faults = faults;
    options->seed = brg_test_random(seed);
    options->latency_ns = brg_test_random(seed) % 2 ? 2000 : 0;
}

/* A flip that hits nothing (padding, a call that does not come) changes no
 * weight: that run has ended right. */
static void count_flips(const brg_sim_options *options, const survive *s,
                        totals *t)
{
    bool is_flipped = false;
    for (size_t i = 0; i < options->n_faults; i++) {
        is_flipped |= options->faults[i].kind == BRG_SIM_CORRUPT;
        if (options->faults[i].kind != BRG_SIM_CORRUPT &&
            options->faults[i].kind != BRG_SIM_DELAY)
            return;
    }
    t->n_flipped += is_flipped;
    t->n_noticed += is_flipped && s->n_astray + s->n_shrinks > 0;
}

static void run_once(uint64_t *seed, const mode *m, hashes expected, totals *t)
{
    struct brg_sim_fault faults[MAX_FAULTS];
    brg_sim_options options = BRG_SIM_OPTIONS_INIT;
    int n = 2 + (int)(brg_test_random(seed) % 5);
    draw_faults(seed, n, &options, faults, t);
    survive s = {.script = &options,
                 .how = m->how,
                 .compares = true,
                 .expected = expected[m->how.plain ? n : 1],
                 .went_on = -1};
    if (brg_sim_run(n, &options, survive_rank, &s) != BRG_OK) {
        print_error("%s\n", brg_error_message());
        survive_print(n, &options);
        fail();
    }
    assert_int_equal(s.n_ended + s.n_died + s.n_astray + s.n_early, n);
    t->n_runs++;
    t->n_steps += s.n_steps / n;
    t->n_shrinks += s.n_shrinks;
    t->n_astray += s.n_astray;
    t->n_early += s.n_early;
    count_flips(&options, &s, t);
}

static void train_with_faults(const mode *m)
{
    static hashes expected;
    uint64_t seed = brg_test_seed(20) + (uint64_t)(m - modes);
    uint64_t start = brg__clock_ns();
    totals t = {0};
    for (int n = 1; n <= (m->how.plain ? MAX_RANKS : 1); n++)
        assert_brg_ok(survive_expect(expected[n], &m->how, n));
    while (t.n_steps < m->n_steps)
        run_once(&seed, m, expected, &t);
    print_message("%s: %d steps in %d runs, %.1f s: %d delays, %d losses, %d "
                  "flipped bits, %d deaths, %d doubled; groups shrunk %d "
                  "times, %d ranks told to leave, %d too early to go on; of %d "
                  "runs with flipped bits alone %d noticed, the others were "
                  "right\n",
                  m->name, t.n_steps, t.n_runs,
                  (double)(brg__clock_ns() - start) * 1e-9,
                  t.n_faults[BRG_SIM_DELAY], t.n_faults[BRG_SIM_DROP],
                  t.n_faults[BRG_SIM_CORRUPT], t.n_faults[BRG_SIM_DIE],
                  t.n_faults[BRG_SIM_REPEAT], t.n_shrinks, t.n_astray,
                  t.n_early, t.n_flipped, t.n_noticed);
    for (int k = 0; k <= BRG_SIM_REPEAT; k++)
        assert_true(t.n_faults[k] > 0);
    assert_true(t.n_shrinks > 0 && t.n_astray > 0 && t.n_noticed > 0);
}

static void
test_random_faults__right_or_an_error_that_names_a_rank(void **state)
{
    (void)state;
    for (size_t i = 0; i < N_MODES; i++)
        train_with_faults(&modes[i]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(
            test_random_faults__right_or_an_error_that_names_a_rank),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
