/* SPDX-License-Identifier: Apache-2.0
 * brg-test: ranks 2 3 4
 * brg-test: shrinks
 * Ranks are killed one after the other while they train, at a moment drawn from
 * the seed; the others go on, until one is left, whose weights are those of a
 * run on one rank, as every rank's were after every step. Where MPI can do
 * that: else brg_pg_shrink says why not. cmake/BrgTests.cmake says which is to
 * be expected, and how mpirun has to be told. */
#include <signal.h>
#include <sys/time.h>
#include <unistd.h>

#include "tests/support/mpi_ranks.h"
#include "tests/support/ranks.h"
#include "tests/support/survive.h"

enum { N_STEPS = 60, STEP_US = 800 };

/* World ranks in the order in which they go, at about which step. */
static const struct {
    int rank;
    int64_t step;
} deaths[] = {{1, 3}, {0, 20}, {3, 40}};

static uint64_t seed;

static void die(int signal)
{
    (void)signal;
    kill(getpid(), SIGKILL);
}

/* This rank's time has come: it dies within this step or soon after. */
static void at_step(int64_t step)
{
    struct itimerval timer = {.it_value = {0, 1}};
    static bool is_set;
    for (int i = 0; i < 3 && i < mpi_n_ranks() - 1; i++)
        if (deaths[i].rank == mpi_rank() && step >= deaths[i].step && !is_set) {
            signal(SIGALRM, die);
            timer.it_value.tv_usec += (int)(brg_test_random(&seed) % STEP_US);
            setitimer(ITIMER_REAL, &timer, NULL);
            is_set = true;
        }
}

/* Of the memory that groups share. */
static int n_mappings(void)
{
    char line[600];
    int n = 0;
    FILE *file = fopen("/proc/self/maps", "r");
    assert_non_null(file);
    while (fgets(line, sizeof line, file))
        n += strstr(line, "/brg-") != NULL;
    fclose(file);
    return n;
}

/* Rank 1 dies while the others wait for it in brg_pg_alloc. */
static brg_pg *lose_one(brg_pg *pg)
{
    brg_pg *left;
    void *block;
    double start = MPI_Wtime();
    if (mpi_rank() == 1) {
        usleep(100000);
        die(SIGKILL);
    }
    brg_status status = brg_pg_alloc(pg, &block, 1000);
    if (status != BRG_ERR_COMM) /* MPI has found out first */
        assert_brg_ok(
            ranks_expect(status, BRG_ERR_PEER,
                         "brg_pg_alloc waits for rank 1, which has died",
                         "alloc", __LINE__));
    assert_true(MPI_Wtime() - start < 4);
    assert_brg_ok(brg_pg_shrink(&left, pg));
    return left;
}

static void train_to_the_last(int node_size)
{
    uint64_t expected[N_STEPS + 1];
    survive s = {.how = {.n_steps = N_STEPS,
                         .batch = 24,
                         .n_leaves = 8,
                         .cap = 4096,
                         .n_hidden = 24},
                 .expected = expected,
                 .at_step = at_step,
                 .went_on = -1};
    assert_brg_ok(survive_expect(expected, &s.how, 1));
    bool is_short = mpi_n_ranks() == 3;
    brg_pg *first = NULL, *pg = mpi_group(is_short ? 0 : node_size, 5);
    assert_true(n_mappings() > 0);
    if (is_short) {
        first = pg;
        pg = lose_one(pg);
    }
    assert_brg_ok(survive_rank(pg, &s));
    assert_int_equal(s.n_ended, 1);
    assert_int_equal(s.hash, expected[N_STEPS]);
    brg_pg_destroy(pg);
    brg_pg_destroy(first);
    assert_int_equal(n_mappings(), 0);
    fprintf(stderr, "rank %d went on alone after %d shrinks\n", mpi_rank(),
            s.n_shrinks);
}

static void test_shrink__goes_on_to_the_last_rank(void **state)
{
    (void)state;
    brg_pg *left, *pg = mpi_group(0, 20);
    if (!getenv("BRG_TEST_SHRINKS")) {
        assert_brg_fails_with(brg_pg_shrink(&left, pg), BRG_ERR_UNSUPPORTED,
                              "start again from a checkpoint");
        brg_pg_destroy(pg);
        return;
    }
    brg_pg_destroy(pg);
    uint64_t seed0 = brg_test_seed(1);
    seed = seed0 + (uint64_t)mpi_rank();
    train_to_the_last((int)(seed0 % 3));
}

int main(int argc, char **argv)
{
    MPI_Init(&argc, &argv);
    if (brg_backend_register(brg_comm_mpi()) != BRG_OK)
        return 1;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_shrink__goes_on_to_the_last_rank),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    if (!getenv("BRG_TEST_SHRINKS"))
        MPI_Finalize();
    return failed;
}
