/* SPDX-License-Identifier: Apache-2.0
 * A thousand steps and more with random faults: late, lost, doubled and spoilt
 * messages, and deaths, several in a run, also while the ranks that are left
 * find together. Every step of every rank ends with the weights of a run on one
 * rank, bit for bit, or with an error that names a rank; then training goes on
 * with those that are left. Nothing hangs: the simulated world would say so. */
#include "core/base/clock.h"
#include "tests/support/brg_test.h"
#include "tests/support/survive.h"

enum { N_STEPS = 20, N_LEAVES = 6, MAX_FAULTS = 4, N_STEPS_IN_ALL = 1000 };

static leaf_train how = {.n_steps = N_STEPS,
                         .batch = 12,
                         .n_leaves = N_LEAVES,
                         .cap = 256,
                         .n_hidden = 8};

typedef struct totals {
    int n_runs;
    int n_steps; /* of a run: the ranks' together over their number */
    int n_shrinks;
    int n_astray;
    int n_early;
    int n_faults[BRG_SIM_REPEAT + 1];
} totals;

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

static void run_once(uint64_t *seed, const uint64_t *expected, totals *t)
{
    struct brg_sim_fault faults[MAX_FAULTS];
    brg_sim_options options = BRG_SIM_OPTIONS_INIT;
    int n = 2 + (int)(brg_test_random(seed) % 5);
    draw_faults(seed, n, &options, faults, t);
    survive s = {.script = &options,
                 .how = how,
                 .compares = true,
                 .expected = expected,
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
}

static void
test_random_faults__right_or_an_error_that_names_a_rank(void **state)
{
    (void)state;
    uint64_t seed = brg_test_seed(20), expected[N_STEPS + 1];
    uint64_t start = brg__clock_ns();
    totals t = {0};
    assert_brg_ok(survive_expect(expected, &how));
    while (t.n_steps < N_STEPS_IN_ALL)
        run_once(&seed, expected, &t);
    print_message("%d steps in %d runs, %.1f s: %d delays, %d losses, %d "
                  "flipped bits, %d deaths, %d doubled; groups shrunk %d "
                  "times, %d ranks told to leave, %d too early to go on\n",
                  t.n_steps, t.n_runs, (double)(brg__clock_ns() - start) * 1e-9,
                  t.n_faults[BRG_SIM_DELAY], t.n_faults[BRG_SIM_DROP],
                  t.n_faults[BRG_SIM_CORRUPT], t.n_faults[BRG_SIM_DIE],
                  t.n_faults[BRG_SIM_REPEAT], t.n_shrinks, t.n_astray,
                  t.n_early);
    for (int k = 0; k <= BRG_SIM_REPEAT; k++)
        assert_true(t.n_faults[k] > 0);
    assert_true(t.n_shrinks > 0 && t.n_astray > 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(
            test_random_faults__right_or_an_error_that_names_a_rank),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
