/* SPDX-License-Identifier: Apache-2.0
 * The file backend: what brg_pg_create(&pg, "file", ...) takes. */
#ifndef BRG_FILE_H
#define BRG_FILE_H

#include <brigade/comm.h>

BRG_BEGIN_DECLS

/* Ranks that meet, and send each other all there is, through files in a folder
 * that they share: no launcher and no MPI is needed. For what is small and rare:
 * making a group over NCCL (brg_nccl_create), numbers for a log. Buffers are in
 * host memory.
 *
 * What earlier runs have left in the folder is no harm; two runs at once need
 * two folders. The folder is made if it is not there, and empty again once all
 * ranks have destroyed their ends; where one was killed, some kilobytes stay,
 * which may be deleted when no run uses them.
 *
 * brg_pg_create is collective and fails on every rank, saying why: with
 * BRG_ERR_TIMEOUT, naming the ranks that have not come; BRG_ERR_ARG where two
 * processes have one number or numbers of ranks differ; BRG_ERR_PEER for a rank
 * that has died (on the same machine) or failed; BRG_ERR_IO where the folder
 * cannot be made, written or read. */

/* backend_data of brg_pg_options. */
typedef struct brg_file_options {
    size_t struct_size;
    const char *folder; /* borrowed */
    int rank;
    int world_size; /* up to 256 */
} brg_file_options;

#define BRG_FILE_OPTIONS_INIT BRG_INIT(brg_file_options)

BRG_END_DECLS

#endif
