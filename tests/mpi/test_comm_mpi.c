/* SPDX-License-Identifier: Apache-2.0
 * The MPI backend: the contract at several shapes of nodes, and ways to fail.
 * Every rank runs every test; those after the first are quiet unless they
 * fail. */
#include "comm/patterns/tree.h"
#include "tests/support/backend_suite.h"
#include "tests/support/half_range.h"
#include "tests/support/mpi_ranks.h"

static int rank, n_ranks;

static void check_contract(int node_size)
{
    brg_pg *pg = mpi_group(node_size, 60);
    assert_brg_ok(brg_suite_run(pg, node_size));
    brg_pg_destroy(pg);
}

static void test_mpi__keeps_the_contract_on_one_node(void **state)
{
    (void)state;
    check_contract(0);
}

static void test_mpi__keeps_the_contract_on_nodes_of_one(void **state)
{
    (void)state;
    check_contract(1);
}

static void test_mpi__keeps_the_contract_on_nodes_of_two(void **state)
{
    (void)state;
    check_contract(2);
}

/* 2 + 1 of three ranks, 3 + 1 of four. */
static void test_mpi__keeps_the_contract_on_uneven_nodes(void **state)
{
    (void)state;
    if (n_ranks > 2)
        check_contract(n_ranks - 1);
}

/* ---- Several in a row, more pieces than are on their way at once --------------- */

#define ROW_COUNT 520000
#define ROW_LEAVES 37 /* several parts of each rank and node: short pieces */

typedef struct row {
    float *parts;  /* reduce_scatter: n x count, in place */
    float *whole;  /* all_gather: n x count, in place */
    float *sums;   /* all_reduce */
    float *leaves; /* sum_leaves: this rank's parts x count, in place */
    float *copies; /* broadcast; not of the group's memory */
    size_t count;
    int root;
} row;

static float row_value(int of, size_t i)
{
    return (float)((size_t)(of + 1) * (1 + i % 1013));
}

static void row_fill(const row *w)
{
    for (size_t i = 0; i < w->count; i++) {
        for (int r = 0; r < n_ranks; r++) {
            w->parts[(size_t)r * w->count + i] = row_value(rank + r, i);
            w->whole[(size_t)r * w->count + i] =
                r == rank ? row_value(rank, i) : -1;
        }
        w->sums[i] = row_value(rank, i);
        for (uint32_t k = 0; k < brg__tree_n_parts(ROW_LEAVES, n_ranks, rank);
             k++)
            w->leaves[k * w->count + i] = row_value(rank, i);
        w->copies[i] = rank == w->root ? row_value(w->root, i) : -1;
    }
}

static void row_start(brg_pg *pg, const row *w, brg_work **works)
{
    size_t n = w->count, own = (size_t)rank * n;
    assert_brg_ok(brg_reduce_scatter(pg, &works[0], w->parts + own, w->parts, n,
                                     BRG_DTYPE_F32, BRG_REDUCE_SUM));
    assert_brg_ok(brg_all_gather(pg, &works[1], w->whole, w->whole + own, n,
                                 BRG_DTYPE_F32));
    assert_brg_ok(brg_all_reduce(pg, &works[2], w->sums, n, BRG_DTYPE_F32,
                                 BRG_REDUCE_SUM));
    assert_brg_ok(
        brg_broadcast(pg, &works[3], w->copies, n, BRG_DTYPE_F32, w->root));
    brg_leaf_parts parts = {w->leaves, n * sizeof(float), ROW_LEAVES};
    assert_brg_ok(brg_sum_leaves(pg, &works[4], w->leaves, &parts, n,
                                 BRG_DTYPE_F32, BRG_REDUCE_SUM));
}

static void row_check(const row *w)
{
    int all = n_ranks * (n_ranks + 1) / 2, leaves = 0;
    for (int r = 0; r < n_ranks; r++)
        leaves += (r + 1) * (int)brg__tree_n_parts(ROW_LEAVES, n_ranks, r);
    for (size_t i = 0; i < w->count; i++) {
        float one = row_value(0, i);
        assert_true(w->leaves[i] == one * (float)leaves);
        assert_true(w->parts[(size_t)rank * w->count + i] ==
                    one * (float)(all + n_ranks * rank));
        assert_true(w->sums[i] == one * (float)all);
        assert_true(w->copies[i] == row_value(w->root, i));
        for (int r = 0; r < n_ranks; r++)
            assert_true(w->whole[(size_t)r * w->count + i] == row_value(r, i));
    }
}

/* A few of different lengths are under way at a time. */
static void check_rows(int node_size)
{
    enum { N_ROWS = 3, N_EACH = 5 };
    static const size_t counts[N_ROWS] = {1500, ROW_COUNT, 40007};
    row rows[N_ROWS];
    brg_work *works[N_ROWS][N_EACH];
    brg_pg *pg = mpi_group(node_size, 60);
    size_t n = (size_t)n_ranks * sizeof(float);
    for (int k = 0; k < N_ROWS; k++) {
        row *w = &rows[k];
        *w = (row){.count = counts[k], .root = (k + 1) % n_ranks};
        assert_brg_ok(brg_pg_alloc(pg, (void **)&w->parts, n * w->count));
        assert_brg_ok(brg_pg_alloc(pg, (void **)&w->whole, n * w->count));
        assert_brg_ok(
            brg_pg_alloc(pg, (void **)&w->sums, w->count * sizeof(float)));
        assert_brg_ok(
            brg_pg_alloc(pg, (void **)&w->leaves,
                         BRG__TREE_MAX_PARTS / 2 * w->count * sizeof(float)));
        w->copies = malloc(w->count * sizeof(float));
        assert_non_null(w->copies);
        row_fill(w);
    }
    for (int k = 0; k < N_ROWS; k++)
        row_start(pg, &rows[k], works[k]);
    for (int k = N_ROWS; k-- > 0;)
        for (int i = N_EACH; i-- > 0;)
            assert_brg_ok(brg_work_wait(works[k][i]));
    for (int k = 0; k < N_ROWS; k++) {
        row_check(&rows[k]);
        free(rows[k].copies);
    }
    brg_pg_destroy(pg);
}

static void test_mpi__collectives_in_a_row_over_nodes(void **state)
{
    (void)state;
    for (int node_size = 0; node_size < mpi_n_shapes(); node_size++)
        check_rows(node_size);
}

static void test_mpi__averages_of_halves_do_not_overflow(void **state)
{
    (void)state;
    for (int node_size = 0; node_size < 4; node_size++) {
        brg_pg *pg = mpi_group(node_size, 60);
        assert_brg_ok(half_check(pg, HALF_SUMS_WIDE));
        brg_pg_destroy(pg);
    }
}

static void test_mpi__sums_leaves_in_one_tree(void **state)
{
    (void)state;
    mpi_on_shapes(brg_suite_leaves);
}

static void test_mpi__steady_state_allocates_nothing(void **state)
{
    (void)state;
#if defined(__SANITIZE_ADDRESS__)
    skip(); /* objects are not cached, so that each is seen */
#endif
    mpi_on_shapes(brg_suite_steady_state);
}

static void test_mpi__mismatch_fails_on_every_rank(void **state)
{
    (void)state;
    for (int node_size = 0; n_ranks > 1 && node_size < mpi_n_shapes();
         node_size++)
        for (int which = 0; which < 4; which++) {
            /* Of three ranks on two nodes, each place is the odd one once. */
            brg_pg *pg = mpi_group(node_size, 20);
            int odd = (which + n_ranks - 1) % n_ranks;
            assert_brg_ok(brg_suite_mismatch(pg, which, odd));
            brg_pg_destroy(pg);
        }
}

static void check_leaver(int node_size, int leaver)
{
    float x = 1;
    brg_work *work;
    brg_pg *pg = mpi_group(node_size, 20);
    if (rank != leaver) {
        assert_brg_ok(
            brg_all_reduce(pg, &work, &x, 1, BRG_DTYPE_F32, BRG_REDUCE_SUM));
        assert_brg_fails_with(brg_work_wait(work), BRG_ERR_PEER, "rank ");
    }
    brg_pg_destroy(pg);
}

static void test_mpi__waiting_for_a_rank_that_left_fails(void **state)
{
    (void)state;
    for (int node_size = 0; n_ranks > 1 && node_size < mpi_n_shapes();
         node_size++)
        for (int leaver = 0; leaver < n_ranks; leaver++)
            check_leaver(node_size, leaver);
}

static void test_mpi__time_out_names_who_is_missing(void **state)
{
    (void)state;
    if (n_ranks == 1)
        return;
    char text[64];
    float x = 1;
    brg_work *work;
    brg_pg *pg = mpi_group(0, 0.3);
    snprintf(text, sizeof text,
             "rank %d has not started it (its last: barrier #0", n_ranks - 1);
    assert_brg_ok(brg_barrier(pg, &work));
    assert_brg_ok(brg_work_wait(work));
    if (rank != n_ranks - 1) {
        assert_brg_ok(
            brg_all_reduce(pg, &work, &x, 1, BRG_DTYPE_F32, BRG_REDUCE_SUM));
        /* On a busy machine a rank may be late even for that: it hears then
         * that another one has given up, and for whom that waited. */
        brg_status status = brg_work_wait(work);
        assert_true(status == BRG_ERR_TIMEOUT || status == BRG_ERR_PEER);
        assert_brg_ok(brg_suite_expect(status, status, text, "a wait"));
    }
    MPI_Barrier(MPI_COMM_WORLD);
    brg_pg_destroy(pg);
}

/* Also where an earlier call, for which nobody waits yet, is the one under
 * way. */
static void test_mpi__time_out_names_a_rank_of_another_node(void **state)
{
    (void)state;
    char text[64];
    float x = 1, y = 1;
    brg_work *first, *second;
    if (n_ranks == 1)
        return;
    brg_pg *pg = mpi_group(1, 0.3);
    snprintf(text, sizeof text, "rank %d has not started it", n_ranks - 1);
    if (rank != n_ranks - 1) {
        assert_brg_ok(
            brg_all_reduce(pg, &first, &x, 1, BRG_DTYPE_F32, BRG_REDUCE_SUM));
        assert_brg_ok(
            brg_all_reduce(pg, &second, &y, 1, BRG_DTYPE_F32, BRG_REDUCE_SUM));
        assert_brg_fails_with(brg_work_wait(second), BRG_ERR_TIMEOUT, text);
        brg_work_release(first);
    }
    MPI_Barrier(MPI_COMM_WORLD);
    brg_pg_destroy(pg);
    pg = mpi_group(1, 0.3);
    snprintf(text, sizeof text, "rank %d has not come", n_ranks - 1);
    if (rank == 0) {
        assert_brg_ok(brg_recv(pg, &first, &x, 1, BRG_DTYPE_F32, n_ranks - 1));
        assert_brg_fails_with(brg_work_wait(first), BRG_ERR_TIMEOUT, text);
    }
    MPI_Barrier(MPI_COMM_WORLD);
    brg_pg_destroy(pg);
}

static void test_mpi__message_of_another_size_is_an_error(void **state)
{
    (void)state;
    float x[4] = {0};
    brg_work *work;
    brg_pg *pg = mpi_group(0, 20);
    if (n_ranks > 1 && rank == 0) {
        assert_brg_ok(brg_send(pg, &work, x, 3, BRG_DTYPE_F32, 1));
        assert_brg_ok(brg_work_wait(work));
    } else if (rank == 1) {
        assert_brg_ok(brg_recv(pg, &work, x, 4, BRG_DTYPE_F32, 0));
        assert_brg_fails_with(brg_work_wait(work), BRG_ERR_MISMATCH,
                              "send #0 (3 f32");
    }
    brg_pg_destroy(pg);
}

static void test_mpi__memory_of_another_size_is_an_error(void **state)
{
    (void)state;
    brg_pg *pg = mpi_group(0, 20);
    void *block;
    if (n_ranks > 1)
        assert_brg_fails_with(brg_pg_alloc(pg, &block, rank == 0 ? 100 : 200),
                              BRG_ERR_MISMATCH, "brg_pg_alloc");
    brg_pg_destroy(pg);
}

static void test_mpi__memory_given_back_is_used_again(void **state)
{
    (void)state;
    brg_pg *pg = mpi_group(0, 20);
    unsigned char *a, *b;
    assert_brg_ok(brg_pg_alloc(pg, (void **)&a, 100000));
    assert_int_equal((uintptr_t)a % 64, 0);
    a[99999] = 1;
    brg_pg_free(pg, a);
    assert_brg_ok(brg_pg_alloc(pg, (void **)&b, 90000));
    assert_ptr_equal(a, b);
    assert_int_equal(b[0], 0);
    brg_pg_destroy(pg);
}

static void test_mpi__takes_a_communicator(void **state)
{
    (void)state;
    MPI_Comm half;
    MPI_Comm_split(MPI_COMM_WORLD, rank % 2, -rank, &half);
    brg_mpi_options mpi = BRG_MPI_OPTIONS_INIT;
    brg_pg_options options = BRG_PG_OPTIONS_INIT;
    mpi.comm = &half;
    options.backend_data = &mpi;
    brg_pg *pg;
    int expected_rank, expected_size;
    MPI_Comm_rank(half, &expected_rank);
    MPI_Comm_size(half, &expected_size);
    assert_brg_ok(brg_pg_create(&pg, "mpi", &options));
    assert_int_equal(brg_pg_rank(pg), expected_rank);
    assert_int_equal(brg_pg_world_size(pg), expected_size);
    int32_t x = expected_rank, n = expected_size;
    brg_work *work;
    assert_brg_ok(
        brg_all_reduce(pg, &work, &x, 1, BRG_DTYPE_I32, BRG_REDUCE_SUM));
    assert_brg_ok(brg_work_wait(work));
    assert_int_equal(x, n * (n - 1) / 2);
    brg_pg_destroy(pg);
    MPI_Comm_free(&half);
}

/* Leak detection is off under mpirun, since MPI keeps memory of its own. */
static void test_mpi__groups_give_all_memory_back(void **state)
{
    (void)state;
    brg_memory_stats before, after;
    brg_memory_get_stats(&before);
    for (int node_size = 0; node_size < mpi_n_shapes(); node_size++) {
        brg_pg *pg = mpi_group(node_size, 20);
        void *block;
        assert_brg_ok(brg_pg_alloc(pg, &block, 1000));
        brg_pg_destroy(pg);
    }
    brg_memory_get_stats(&after);
    assert_int_equal(after.in_use, before.in_use);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_mpi__keeps_the_contract_on_one_node),
        cmocka_unit_test(test_mpi__keeps_the_contract_on_nodes_of_one),
        cmocka_unit_test(test_mpi__keeps_the_contract_on_nodes_of_two),
        cmocka_unit_test(test_mpi__keeps_the_contract_on_uneven_nodes),
        cmocka_unit_test(test_mpi__collectives_in_a_row_over_nodes),
        cmocka_unit_test(test_mpi__averages_of_halves_do_not_overflow),
        cmocka_unit_test(test_mpi__sums_leaves_in_one_tree),
        cmocka_unit_test(test_mpi__steady_state_allocates_nothing),
        cmocka_unit_test(test_mpi__mismatch_fails_on_every_rank),
        cmocka_unit_test(test_mpi__waiting_for_a_rank_that_left_fails),
        cmocka_unit_test(test_mpi__time_out_names_who_is_missing),
        cmocka_unit_test(test_mpi__time_out_names_a_rank_of_another_node),
        cmocka_unit_test(test_mpi__message_of_another_size_is_an_error),
        cmocka_unit_test(test_mpi__memory_of_another_size_is_an_error),
        cmocka_unit_test(test_mpi__memory_given_back_is_used_again),
        cmocka_unit_test(test_mpi__takes_a_communicator),
        cmocka_unit_test(test_mpi__groups_give_all_memory_back),
    };
    if (!mpi_begin(&argc, &argv))
        return 1;
    rank = mpi_rank();
    n_ranks = mpi_n_ranks();
    int n_failed = cmocka_run_group_tests(tests, NULL, NULL);
    MPI_Finalize();
    return n_failed;
}
