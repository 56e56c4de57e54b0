/* SPDX-License-Identifier: Apache-2.0
 * What launchers say in the environment, and the backend that follows. */
#include <stdlib.h>

#include <brigade/comm.h>

#include "tests/support/brg_test.h"

static const char *const all[] = {
    "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "PMI_RANK",
    "MPI_LOCALRANKID",      "MV2_COMM_WORLD_RANK",        "PMIX_RANK",
    "SLURM_LOCALID",        "MV2_COMM_WORLD_LOCAL_RANK",  "SLURM_PROCID",
    "SLURM_NTASKS"};

static int nothing_set(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++)
        unsetenv(all[i]);
    return 0;
}

static void expect(int rank, int local)
{
    assert_int_equal(brg_launch_rank(), rank);
    assert_int_equal(brg_launch_local_rank(), local);
}

static void test_launch__launchers(void **state)
{
    static const struct {
        const char *rank, *local;
    } known[] = {{"OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK"},
                 {"PMI_RANK", "MPI_LOCALRANKID"},
                 {"MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_LOCAL_RANK"},
                 {"PMI_RANK", "SLURM_LOCALID"},   /* srun --mpi=pmi2 */
                 {"PMIX_RANK", "SLURM_LOCALID"}}; /* srun --mpi=pmix */
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++) {
        nothing_set(state);
        expect(-1, -1);
        setenv(known[i].rank, "5", 1);
        expect(5, -1);
        setenv(known[i].local, "1", 1);
        expect(5, 1);
    }
}

static void test_launch__what_is_no_rank(void **state)
{
    static const char *const texts[] = {"", "-1", "x", "1x", "99999999999"};
    (void)state;
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) {
        setenv("PMI_RANK", texts[i], 1);
        expect(-1, -1);
    }
}

/* A batch script has Slurm's variables too, and starts one process. */
static void test_launch__auto_alone(void **state)
{
    brg_pg *pg;
    (void)state;
    setenv("SLURM_PROCID", "0", 1);
    setenv("SLURM_NTASKS", "8", 1);
    setenv("SLURM_LOCALID", "0", 1);
    expect(-1, -1);
    assert_brg_ok(brg_pg_create(&pg, "auto", NULL));
    assert_int_equal(brg_pg_world_size(pg), 1);
    brg_pg_destroy(pg);
}

static void test_launch__auto_among_ranks(void **state)
{
    brg_pg *pg;
    (void)state;
    setenv("BRG_BACKEND_PATH", "/nowhere", 1);
    setenv("PMIX_RANK", "1", 1);
    assert_int_equal(brg_pg_create(&pg, "auto", NULL), BRG_ERR_NOT_FOUND);
    assert_non_null(strstr(brg_error_message(), "backend mpi"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_launch__launchers, nothing_set),
        cmocka_unit_test_setup(test_launch__what_is_no_rank, nothing_set),
        cmocka_unit_test_setup(test_launch__auto_alone, nothing_set),
        cmocka_unit_test_setup(test_launch__auto_among_ranks, nothing_set),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
