/* SPDX-License-Identifier: Apache-2.0
 * One end of a group over files. What a rank says it writes beside its place and
 * renames, so that a file that is there is whole.
 *
 *     <folder>/rank-<r>             who is there (meet.c)
 *     <folder>/run-<id>/c<k>-<r>    what rank r gives to exchange k
 *     <folder>/run-<id>/m<k>-<a>-<b>  message k from rank a to rank b
 *     <folder>/run-<id>/gone-<r>    rank r has failed or left
 *
 * A rank gives to exchange k + 1 when it has all of k: once all have given to
 * k + 1, nobody needs what was given to k. */
#ifndef BRG_COMM_FILE_GROUP_H
#define BRG_COMM_FILE_GROUP_H

#include <limits.h>
#include <stdio.h>

#include <brigade/ext/backend.h>
#include <brigade/file.h>

#include "core/base/error.h"

#define BRG__FILE_PATH (PATH_MAX + 64)
#define BRG__FILE_MACHINE 96

/* A process, as others may look for it. */
typedef struct brg__file_process {
    char machine[BRG__FILE_MACHINE];
    int32_t pid;
    int32_t unused;
    uint64_t born;
} brg__file_process;

/* What rank r gave to the exchange under way. */
typedef struct brg__file_part {
    bool has_come;
    brg_signature signature;
    void *data; /* owned */
    size_t room;
} brg__file_part;

typedef struct brg__file_group {
    int rank, n;
    uint64_t timeout_ns;
    char folder[PATH_MAX]; /* where all met */
    char run[BRG__FILE_PATH];
    uint64_t nonce, id;           /* id 0: has never had a card of each rank */
    uint64_t *nonces;             /* of each rank, as id has them */
    brg__file_process *processes; /* likewise */
    brg__file_part *parts;
    brg_call *queue; /* collectives, oldest first */
    brg_call *recvs;
    uint64_t n_exchanged;
    uint64_t *n_sent, *n_received; /* messages to and from each rank */
    bool has_given;                /* to the exchange under way */
    brg_status failed;
    uint64_t looked_ns;
    void *scratch;
    size_t scratch_room;
} brg__file_group;

/* ---- files.c ----------------------------------------------------------------------- */

/* Writes head and body as a whole; BRG_ERR_IO with a record. */
brg_status brg__file_write(const brg__file_group *g, const char *path,
                           const void *head, size_t n_head, const void *body,
                           size_t n_body);
/* The file's head and what follows, into *body, which grows as needed (NULL: of
 * no interest). *is_there: false where there is no such file. */
brg_status brg__file_read(const brg__file_group *g, const char *path,
                          void *head, size_t n_head, void **body, size_t *room,
                          bool *is_there);
brg_status brg__file_make_folder(const brg__file_group *g, const char *path);
/* Grows, and keeps nothing of what was there. */
brg_status brg__file_make_room(void **at, size_t *room, size_t nbytes);
void brg__file_sleep_us(long us);

void brg__file_name_process(brg__file_process *filled);
/* On this machine, and no more. */
bool brg__file_has_died(const brg__file_group *g,
                        const brg__file_process *process);

/* ---- meet.c ------------------------------------------------------------------------ */

/* Fills id, nonces and processes. On failure this rank's card says why. */
brg_status brg__file_meet(brg__file_group *g);
/* All have met: what this rank wrote for that is no longer needed; if what came
 * then has failed, its card says so instead. */
void brg__file_part_from_meeting(const brg__file_group *g, brg_status status);
/* Fails if the card of that rank, of this run, says that it has failed, or with
 * BRG_ERR_IO. */
brg_status brg__file_check_card(const brg__file_group *g, int rank);

#endif
