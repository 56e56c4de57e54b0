/* SPDX-License-Identifier: Apache-2.0
 * The fault matrix under mpirun, in shared memory and between nodes. A fault
 * has to be found within a second. Processors that are busy with something else
 * may take that time from any process, so a slower run is made again, twice at
 * the most: what waits for a time-out (20 s here) is slow in all of them. */
#include "tests/reducer/fault_checks.h"
#include "tests/support/mpi_ranks.h"

#define SECOND 1000000000u
#define N_TRIES 3

static uint64_t over_ranks(uint64_t mine, MPI_Op op)
{
    uint64_t all;
    MPI_Allreduce(&mine, &all, 1, MPI_UINT64_T, op, MPI_COMM_WORLD);
    return all;
}

/* The time that the slowest rank took. */
static uint64_t find(const fault *f, int node_size, int culprit)
{
    fault_run c = {.fault = f, .culprit = culprit};
    brg_pg *pg = mpi_group(node_size, 20);
    assert_brg_ok(fault_check(pg, &c));
    assert_int_equal(c.n_errors, 1);
    brg_pg_destroy(pg);
    /* All hold the weights of the last good step. */
    assert_true(over_ranks(c.weights, MPI_MIN) ==
                over_ranks(c.weights, MPI_MAX));
    return over_ranks(c.elapsed_ns, MPI_MAX);
}

static uint64_t differ(const model_fault *f, int node_size, int culprit)
{
    uint64_t elapsed_ns = 0;
    brg_pg *pg = mpi_group(node_size, 20);
    assert_brg_ok(model_check(pg, f, culprit, &elapsed_ns));
    brg_pg_destroy(pg);
    return over_ranks(elapsed_ns, MPI_MAX);
}

/* By the first rank and the last, in turn of the shapes; `number` decides who
 * begins. */
static void on_shapes(const fault *f, const model_fault *model, size_t number)
{
    const char *name = f ? f->name : model->name;
    uint64_t slowest_ns = 0;
    for (int node_size = 0; node_size < mpi_n_shapes(); node_size++) {
        bool is_last = (number + (size_t)node_size) % 2 == 0;
        int culprit = is_last ? mpi_n_ranks() - 1 : 0;
        uint64_t ns = SECOND;
        for (int k = 0; k < N_TRIES && ns >= SECOND; k++)
            ns = f ? find(f, node_size, culprit)
                   : differ(model, node_size, culprit);
        if (ns >= SECOND)
            fail_msg("%s by rank %d, nodes of %d: found after %g s", name,
                     culprit, node_size, (double)ns * 1e-9);
        slowest_ns = ns > slowest_ns ? ns : slowest_ns;
    }
    print_message("%s: found after %.2f ms at most\n", name,
                  (double)slowest_ns * 1e-6);
}

static void test_faults_mpi__are_found_at_once_and_named(void **state)
{
    (void)state;
    for (size_t i = 0; i < N_FAULTS && mpi_n_ranks() > 1; i++)
        on_shapes(&faults[i], NULL, i);
}

static void test_faults_mpi__beside_ranks_that_have_joined(void **state)
{
    (void)state;
    if (mpi_n_ranks() > 1)
        mpi_on_shapes(joined_check);
}

static void test_faults_mpi__models_that_differ(void **state)
{
    (void)state;
    for (size_t i = 0; i < N_MODEL_FAULTS && mpi_n_ranks() > 1; i++)
        on_shapes(NULL, &model_faults[i], i);
}

int main(int argc, char **argv)
{
    if (!mpi_begin(&argc, &argv))
        return 1;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_faults_mpi__are_found_at_once_and_named),
        cmocka_unit_test(test_faults_mpi__beside_ranks_that_have_joined),
        cmocka_unit_test(test_faults_mpi__models_that_differ),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    MPI_Finalize();
    return failed;
}
