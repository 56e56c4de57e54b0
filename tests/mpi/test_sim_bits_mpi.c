/* SPDX-License-Identifier: Apache-2.0
 * What the simulated world sums has the bits of mpirun: all dtypes, ops, sizes,
 * memory of the group and other, on one node and on several; and a training
 * with the default reduction. Every rank runs a simulated world beside. */
#define XXH_INLINE_ALL
#include <xxhash.h>

#include "comm/q8.h"
#include "tests/support/leaf_train.h"
#include "tests/support/mpi_ranks.h"
#include "tests/support/ranks.h"

#define MAX_COUNT 70001

typedef struct sums {
    bool in_region; /* memory of brg_pg_alloc */
    uint64_t hash;  /* of all results; filled */
} sums;

static const brg_dtype dtypes[] = {BRG_DTYPE_F64, BRG_DTYPE_F32, BRG_DTYPE_F16,
                                   BRG_DTYPE_BF16};
static const brg_reduce_op ops[] = {BRG_REDUCE_SUM, BRG_REDUCE_AVG,
                                    BRG_REDUCE_MAX};
static const size_t counts[] = {1, 17, 1029, MAX_COUNT};

/* Thirds, of very different sizes: no sum is exact. */
static void fill(brg_pg *pg, void *data, brg_dtype dtype, size_t count)
{
    static const double scales[] = {1, 1e3, 1e-3};
    int rank = brg_pg_rank(pg);
    for (size_t k = 0; k < count; k++)
        ranks_store(data, k, dtype,
                    ranks_gradient(rank, 0, 0, k) / 3 *
                        scales[(k + (size_t)rank) % 3]);
}

static brg_status reduce(brg_pg *pg, sums *s, char *data, brg_dtype dtype,
                         brg_reduce_op op, size_t count)
{
    brg_work *work;
    fill(pg, data, dtype, count);
    BRG_TRY(brg_all_reduce(pg, &work, data, count, dtype, op));
    BRG_TRY(brg_work_wait(work));
    s->hash = XXH64(data, count * brg_dtype_size(dtype), s->hash);
    return BRG_OK;
}

/* Blocks of 8-bit numbers, of two roundings or three. */
static brg_status reduce_blocks(brg_pg *pg, sums *s, char *data, size_t count)
{
    static _Thread_local float x[BRG__Q8_N];
    brg_work *work;
    for (size_t b = 0; b < count; b++) {
        fill(pg, x, BRG_DTYPE_F32, BRG__Q8_N);
        x[b % BRG__Q8_N] *= 17;
        brg__q8_store(data + b * BRG__Q8_NBYTES, x, NULL, BRG__Q8_N,
                      (uint16_t)b);
    }
    BRG_TRY(brg__all_reduce_q8(pg, &work, data, count, BRG_REDUCE_AVG));
    BRG_TRY(brg_work_wait(work));
    s->hash = XXH64(data, count * BRG__Q8_NBYTES, s->hash);
    return BRG_OK;
}

/* Each rank's piece, gathered again. */
static brg_status scatter(brg_pg *pg, sums *s, char *data, brg_dtype dtype,
                          brg_reduce_op op, size_t count)
{
    brg_work *work;
    size_t n = (size_t)brg_pg_world_size(pg), each = count / n;
    char *piece = data + (size_t)brg_pg_rank(pg) * each * brg_dtype_size(dtype);
    fill(pg, data, dtype, each * n);
    BRG_TRY(brg_reduce_scatter(pg, &work, piece, data, each, dtype, op));
    BRG_TRY(brg_work_wait(work));
    BRG_TRY(brg_all_gather(pg, &work, data, piece, each, dtype));
    BRG_TRY(brg_work_wait(work));
    s->hash = XXH64(data, each * n * brg_dtype_size(dtype), s->hash);
    return BRG_OK;
}

static brg_status sum_all(brg_pg *pg, void *user)
{
    sums *s = user;
    uint64_t hash = 0;
    size_t nbytes = ((size_t)MAX_COUNT * sizeof(double) + 63) & ~(size_t)63;
    void *region, *heap = aligned_alloc(64, nbytes);
    sums own = {.in_region = s->in_region};
    brg_status status = brg_pg_alloc(pg, &region, nbytes);
    char *data = own.in_region ? region : heap;
    for (size_t i = 0; i < 4 * 3 * 4 && status == BRG_OK; i++) {
        brg_dtype dtype = dtypes[i % 4];
        brg_reduce_op op = ops[i / 4 % 3];
        status = reduce(pg, &own, data, dtype, op, counts[i / 12]);
        if (status == BRG_OK)
            status = scatter(pg, &own, data, dtype, op, counts[i / 12]);
    }
    for (size_t i = 0; i < 4 && status == BRG_OK; i++)
        status = reduce_blocks(pg, &own, data, counts[i] / 9 + 1);
    hash = own.hash;
    if (status == BRG_OK)
        status = ranks_same_bits(pg, &hash, sizeof hash);
    s->hash = hash; /* one rank at a time, all the same */
    free(heap);
    return status;
}

static uint64_t simulate(int node_size, bool in_region)
{
    brg_sim_options options = BRG_SIM_OPTIONS_INIT;
    sums s = {.in_region = in_region};
    options.node_size = node_size;
    assert_brg_ok(brg_sim_run(mpi_n_ranks(), &options, sum_all, &s));
    return s.hash;
}

static void check_sums(int node_size, bool in_region)
{
    sums there = {.in_region = in_region};
    uint64_t here = simulate(node_size, in_region);
    brg_pg *pg = mpi_group(node_size, 60);
    assert_brg_ok(sum_all(pg, &there));
    assert_int_equal(here, there.hash);
    brg_pg_destroy(pg);
}

static void test_sim_bits__sums(void **state)
{
    (void)state;
    for (int node_size = 0; node_size < mpi_n_shapes(); node_size++) {
        check_sums(node_size, false);
        check_sums(node_size, true);
    }
}

/* That other bits would be seen: nodes are summed first. */
static void test_sim_bits__follow_from_the_nodes(void **state)
{
    (void)state;
    if (mpi_n_ranks() == 4)
        assert_int_not_equal(simulate(0, false), simulate(2, false));
}

static void test_sim_bits__training(void **state)
{
    (void)state;
    leaf_train how = {
        .n_steps = 20, .batch = 24, .n_hidden = 24, .cap = 4096, .plain = true};
    for (int node_size = 0; node_size < mpi_n_shapes(); node_size++) {
        uint64_t here, there;
        brg_sim_options options = BRG_SIM_OPTIONS_INIT;
        options.node_size = node_size;
        assert_brg_ok(
            leaf_train_sim_with(mpi_n_ranks(), &options, &how, &here));
        brg_pg *pg = mpi_group(node_size, 60);
        assert_brg_ok(leaf_train_run(pg, &how, &there));
        assert_int_equal(here, there);
        brg_pg_destroy(pg);
    }
}

int main(int argc, char **argv)
{
    if (!mpi_begin(&argc, &argv))
        return 1;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sim_bits__sums),
        cmocka_unit_test(test_sim_bits__follow_from_the_nodes),
        cmocka_unit_test(test_sim_bits__training),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    MPI_Finalize();
    return failed;
}
