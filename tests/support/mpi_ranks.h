/* SPDX-License-Identifier: Apache-2.0
 * What tests under mpirun share: groups at several shapes of nodes, and a
 * beginning after which only rank 0 is heard. */
#ifndef BRG_TESTS_SUPPORT_MPI_RANKS_H
#define BRG_TESTS_SUPPORT_MPI_RANKS_H

#include <stdio.h>
#include <stdlib.h>

#include <mpi.h>

#include <brigade/mpi.h>

#include "tests/support/brg_test.h"

static inline int mpi_rank(void)
{
    int rank;
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    return rank;
}

static inline int mpi_n_ranks(void)
{
    int n;
    MPI_Comm_size(MPI_COMM_WORLD, &n);
    return n;
}

/* Nodes of 0 (all on one), 1, 2 and 3 ranks, as far as they differ: the last
 * node holds what remains, so 3 ranks are also 2 + 1, and 4 also 3 + 1. */
static inline int mpi_n_shapes(void)
{
    int n = mpi_n_ranks();
    return n < 4 ? n : 4;
}

/* A group that takes the ranks to be on nodes of node_size (0: on one). */
static inline brg_pg *mpi_group(int node_size, double timeout_s)
{
    char text[16];
    brg_pg *pg;
    brg_pg_options options = BRG_PG_OPTIONS_INIT;
    options.timeout_s = timeout_s;
    snprintf(text, sizeof text, "%d", node_size);
    setenv("BRG_MPI_NODE_SIZE", text, 1);
    assert_brg_ok(brg_pg_create(&pg, "mpi", &options));
    assert_int_equal(brg_pg_rank(pg), mpi_rank());
    assert_int_equal(brg_pg_world_size(pg), mpi_n_ranks());
    return pg;
}

/* A check on every shape of nodes. */
static inline void mpi_on_shapes(brg_status (*check)(brg_pg *pg))
{
    for (int node_size = 0; node_size < mpi_n_shapes(); node_size++) {
        brg_pg *pg = mpi_group(node_size, 60);
        assert_brg_ok(check(pg));
        brg_pg_destroy(pg);
    }
}

static inline bool mpi_silence(int rank)
{
    return rank <= 0 || freopen("/dev/null", "w", stdout);
}

/* For programs that know nothing of MPI before their group does. */
static inline int mpi_rank_of_environment(void)
{
    const char *rank = getenv("OMPI_COMM_WORLD_RANK");
    rank = rank ? rank : getenv("PMI_RANK");
    return rank ? atoi(rank) : 0;
}

static inline bool mpi_begin(int *argc, char ***argv)
{
    MPI_Init(argc, argv);
    return mpi_silence(mpi_rank()) &&
           brg_backend_register(brg_comm_mpi()) == BRG_OK;
}

#endif
