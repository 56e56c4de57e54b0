/* SPDX-License-Identifier: Apache-2.0
 * Collectives of a step, counted under mpirun, in shared memory and between
 * nodes. */
#include "tests/reducer/collectives_checks.h"
#include "tests/reducer/rider_checks.h"
#include "tests/support/mpi_ranks.h"

/* ---- Messages ------------------------------------------------------------------- */

/* TAG_HEADER of comm/mpi/group.h, which has another mpi_group. */
#define HEADER_TAG 1

static size_t n_headers, n_pieces, header_nbytes;

/* In MPI's place: its other name does the work. */
int MPI_Isend(const void *buf, int count, MPI_Datatype type, int dest, int tag,
              MPI_Comm comm, MPI_Request *request)
{
    *(tag == HEADER_TAG ? &n_headers : &n_pieces) += 1;
    if (tag == HEADER_TAG)
        header_nbytes = (size_t)count;
    return PMPI_Isend(buf, count, type, dest, tag, comm, request);
}

#define MESSAGE_STEPS 6

/* Of a steady step of two buckets, over nodes of one rank. */
static brg_status count_messages(brg_pg *pg, size_t n_other_nodes)
{
    brg_scope *scope = brg_scope_begin();
    brg_ddp *ddp = NULL;
    brg_tensor *params[TAIL_PARAMS];
    brg_ddp_options options = BRG_DDP_OPTIONS_INIT;
    brg_status status = BRG_OK;
    for (size_t i = 0; i < TAIL_PARAMS && status == BRG_OK; i++) {
        params[i] = brg_ones(BRG_DTYPE_F32, BRG_SHAPE(TAIL_NUMEL));
        status = brg_set_requires_grad(params[i], true);
    }
    options.first_bucket_bytes = options.bucket_bytes = 1;
    if (status == BRG_OK)
        status =
            brg_ddp_create(&ddp, pg, params, TAIL_PARAMS, NULL, 0, &options);
    for (int step = 0; step < MESSAGE_STEPS && status == BRG_OK; step++) {
        n_headers = n_pieces = 0;
        status = tail_step(params, mpi_rank());
        if (step == 0 || status != BRG_OK)
            continue;
        if (n_headers != TAIL_PARAMS * n_other_nodes ||
            n_pieces != TAIL_PARAMS * n_other_nodes)
            status = brg_error_set(
                BRG_ERR_INTERNAL, __FILE__, __LINE__,
                "step %d: %zu headers and %zu pieces to %zu other nodes", step,
                n_headers, n_pieces, n_other_nodes);
    }
    brg_ddp_destroy(ddp);
    brg_scope_end(scope);
    return status;
}

/* Within a node none; between nodes, for each bucket, a header and this rank's
 * slice to each other node (a slice of up to 4 KiB; more is in more pieces). */
static void test_collectives_mpi__messages_of_a_step(void **state)
{
    (void)state;
    brg_pg *pg = mpi_group(0, 60);
    assert_brg_ok(count_messages(pg, 0));
    brg_pg_destroy(pg);
    pg = mpi_group(1, 60);
    assert_brg_ok(count_messages(pg, (size_t)mpi_n_ranks() - 1));
    print_message("a step of %d buckets on %d nodes: %zu headers of %zu bytes, "
                  "%zu pieces of data\n",
                  TAIL_PARAMS, mpi_n_ranks(), n_headers, header_nbytes,
                  n_pieces);
    brg_pg_destroy(pg);
}

/* ---- Collectives ------------------------------------------------------------------ */

static void test_collectives_mpi__a_tail_of_its_own(void **state)
{
    (void)state;
    mpi_on_shapes(check_tails);
}

static void test_collectives_mpi__as_many_as_buckets_in_every_mode(void **state)
{
    (void)state;
    brg_pg *pg = mpi_group(0, 60);
    assert_brg_ok(check_collectives(pg));
    brg_pg_destroy(pg);
    pg = mpi_group(1, 60); /* each rank a node */
    assert_brg_ok(check_modes(pg, 1));
    brg_pg_destroy(pg);
}

static void test_collectives_mpi__buffers_ride_with_all_their_bits(void **state)
{
    (void)state;
    mpi_on_shapes(check_riders);
}

int main(int argc, char **argv)
{
    if (!mpi_begin(&argc, &argv))
        return 1;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_collectives_mpi__messages_of_a_step),
        cmocka_unit_test(test_collectives_mpi__a_tail_of_its_own),
        cmocka_unit_test(
            test_collectives_mpi__as_many_as_buckets_in_every_mode),
        cmocka_unit_test(
            test_collectives_mpi__buffers_ride_with_all_their_bits),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    MPI_Finalize();
    return failed;
}
