/* SPDX-License-Identifier: Apache-2.0
 * A training over NCCL that goes on when a rank has died: on made-up GPUs, with
 * the reproducible reduction, so that the weights after each step are those of
 * any world. At most the step under way is made again. */
#include "tests/nccl/fake_tensors.h"
#include "tests/support/survive.h"

#define N_STEPS 5
#define N_DEATHS 12 /* of a rank, from the first step on */

static const leaf_train how = {.n_steps = N_STEPS,
                               .batch = 12,
                               .n_leaves = 12,
                               .cap = 4096,
                               .n_hidden = 16,
                               .confirms = true};

/* What the ranks share. */
typedef struct notes {
    uint64_t expected[N_STEPS + 1];
    _Atomic long n_kernels[FORKED_MAX_RANKS]; /* of all steps but the last */
} notes;

static notes *noted;

typedef struct death {
    int rank;    /* -1: none dies */
    long kernel; /* it is about to run so many */
} death;

static const death *mine; /* of this rank; or NULL */
static _Atomic long *counter;
static bool is_counting;

static void at_kernel(void)
{
    if (!is_counting)
        return;
    const long n = (*counter)++;
    if (mine && n == mine->kernel)
        (void)raise(SIGKILL);
}

static void at_step(int64_t step)
{
    is_counting = step < N_STEPS - 1; /* behind its sums there is no loss */
}

static brg_status begin(forked_rank *me, brg_pg **pg)
{
    BRG_TRY(fake_tensors_begin(me));
    counter = &noted->n_kernels[me->rank];
    *counter = 0;
    fake_tensors_at_kernel = at_kernel;
    return forked_group(me, 20, pg);
}

/* One rank: what is right. */
static brg_status run_alone(forked_rank *me)
{
    brg_pg *pg;
    leaf_net net;
    BRG_TRY(begin(me, &pg));
    brg_status status = leaf_net_init(&net, pg, &how);
    for (int k = 0; k <= N_STEPS && status == BRG_OK; k++) {
        noted->expected[k] = leaf_net_hash(&net);
        if (k < N_STEPS)
            status = leaf_net_step(&net, k);
    }
    leaf_net_deinit(&net);
    brg_pg_destroy(pg);
    return status;
}

static brg_status run_on(forked_rank *me)
{
    const death *d = me->data;
    survive s = {.how = how,
                 .expected = noted->expected,
                 .at_step = at_step,
                 .went_on = -1};
    brg_pg *pg;
    BRG_TRY(begin(me, &pg));
    mine = d->rank == me->rank ? d : NULL;
    BRG_TRY(survive_rank(pg, &s));
    RANK_CHECK(s.n_ended == 1 && s.n_shrinks == (d->rank >= 0),
               "rank %d: ended %d times, after %d losses", me->rank, s.n_ended,
               s.n_shrinks);
    brg_pg_destroy(pg);
    return BRG_OK;
}

static void run_death(int n, const death *d)
{
    forked_result results[FORKED_MAX_RANKS];
    forked_run(n, run_on, d, results);
    for (int r = 0; r < n; r++) {
        if (r != d->rank && results[r].status != BRG_OK)
            print_error("rank %d of %d, rank %d died at kernel %ld: %s\n", r, n,
                        d->rank, d->kernel, results[r].text);
        assert_int_equal(results[r].is_killed, r == d->rank);
        assert_true(r == d->rank || results[r].status == BRG_OK);
    }
}

static void test_recover__a_training_goes_on(void **state)
{
    (void)state;
    forked_check(1, run_alone, NULL);
    assert_true(noted->expected[0] != noted->expected[N_STEPS]);
    for (int n = 2; n <= 4; n++) {
        run_death(n, &(death){-1, 0});
        const long end = noted->n_kernels[0]; /* all have as many leaves */
        assert_true(end > 10 * N_STEPS && end == noted->n_kernels[n - 1]);
        for (int k = 0; k < N_DEATHS; k++)
            for (int r = 0; r < n; r += n - 1) /* the first, the last */
                run_death(n, &(death){r, (end - 1) * k / (N_DEATHS - 1)});
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_recover__a_training_goes_on),
    };
    noted = mmap(NULL, sizeof *noted, PROT_READ | PROT_WRITE,
                 MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (noted == MAP_FAILED)
        return 1;
    return cmocka_run_group_tests_name("recover", tests, NULL, NULL);
}
