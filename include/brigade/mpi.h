/* SPDX-License-Identifier: Apache-2.0
 * The MPI backend: what brg_pg_create(&pg, "mpi", ...) takes. */
#ifndef BRG_MPI_H
#define BRG_MPI_H

#include <brigade/comm.h>

BRG_BEGIN_DECLS

/* Ranks of one node reduce through shared memory, nodes exchange messages;
 * nothing runs on threads of its own. MPI may have been initialised by the
 * program at any thread level, and is then left for the program to finalise
 * (below MPI_THREAD_SERIALIZED, groups are for its main thread: else
 * BRG_ERR_STATE); if it was not, the first group does it
 * (MPI_THREAD_FUNNELED) and MPI is finalised when the process exits. MPI's
 * errors become BRG_ERR_COMM with MPI's words; error handlers of the program's
 * communicators are left alone.
 *
 * brg_pg_create, brg_pg_alloc and brg_pg_destroy are collective. Destroy gives
 * the other ranks up to 5 seconds to come; what is shared stays until the
 * process ends if they do not. A rank that destroys its end, finalises MPI or
 * exits while others wait for it makes their waits fail with BRG_ERR_PEER.
 *
 * Between nodes an all-reduce sums within each node first: each rank one slice,
 * which it then exchanges with the ranks at its place of the other nodes. Where
 * nodes hold different numbers of ranks, as many ranks of each take part in
 * that as the smallest has. */

/* backend_data of brg_pg_options. */
typedef struct brg_mpi_options {
    size_t struct_size;
    const void *comm; /* borrowed, an MPI_Comm *, of any group of processes
                         but no intercommunicator: duplicated; NULL:
                         MPI_COMM_WORLD */
} brg_mpi_options;

#define BRG_MPI_OPTIONS_INIT BRG_INIT(brg_mpi_options)

/* The backend, for programs that link it: brg_backend_register takes it.
 * brg_pg_create finds it by name otherwise. */
BRG_API const brg_backend *brg_comm_mpi(void);

BRG_END_DECLS

#endif
