/* SPDX-License-Identifier: Apache-2.0
 * The board: what the ranks of one machine say of themselves in memory that
 * they share. Nothing of it goes over the wire or through the GPU.
 *
 *     desk 0 | desk 1 | ...      one for each rank of the machine, written by
 *                                it alone, read by all
 *
 * A rank writes line seq % BRG__NCCL_LINES of its desk before it hands a
 * collective to NCCL (of coalesced ones, before it hands over the first), then
 * looks whether the others wrote the same. Of two ranks that start calls which
 * do not match, the later one sees it before data moves, the earlier one when
 * its watch looks. */
#ifndef BRG_COMM_NCCL_BOARD_H
#define BRG_COMM_NCCL_BOARD_H

#include <stdatomic.h>

#include <brigade/ext/backend.h>

#include "comm/nccl/sum.h"

#define BRG__NCCL_LINES 128
#define BRG__NCCL_WHY 400  /* bytes of a reason */
#define BRG__NCCL_NOTE 256 /* ... of what ranks gather in shrink.c */

/* Words, since it may be written while somebody reads it. */
#define BRG__NCCL_WORDS ((sizeof(brg_signature) + 7) / 8)

/* What a rank says of a call. */
typedef struct brg__nccl_said {
    brg_signature call;
    uint32_t place; /* from 1, among those that are coalesced; 0: it is not */
} brg__nccl_said;

typedef struct brg__nccl_line {
    _Alignas(64) _Atomic uint64_t stamp; /* seq + 1; 0: being written */
    _Atomic uint32_t place;
    _Atomic uint64_t signature[BRG__NCCL_WORDS];
} brg__nccl_line;

/* Of direct.h: raised by GPUs of other ranks, flags[kind][slot][who]. */
typedef struct brg__nccl_flag {
    _Alignas(64) _Atomic uint32_t is_up;
} brg__nccl_flag;

typedef enum brg__nccl_flag_kind {
    BRG__NCCL_DATA,   /* is in this rank's slot */
    BRG__NCCL_CREDIT, /* that rank's slot is free for this one */
    BRG__NCCL_FLAG_KINDS
} brg__nccl_flag_kind;

#define BRG__NCCL_SLOTS 3

/* `gone`: 0, a brg_status (negative) of a group that failed, or: */
#define BRG__NCCL_LEFT 1 /* destroyed its end */

typedef struct brg__nccl_desk {
    _Alignas(64) _Atomic uint64_t started; /* collectives */
    _Atomic uint64_t launched;             /* graphs that hold some */
    _Atomic int32_t gone;
    _Atomic int32_t joined; /* steps of join.c done */
    int32_t pid;
    uint64_t born; /* core/base/process.h */
    char why[BRG__NCCL_WHY];
    _Atomic uint64_t wants, members, noted; /* shrink.c */
    char notes[2][BRG__NCCL_NOTE];
    _Alignas(64) unsigned char place[BRG_PLACE_NBYTES];
    brg__nccl_line lines[BRG__NCCL_LINES];
    _Alignas(64) _Atomic uint32_t stop; /* for kernels of this rank that wait */
    _Atomic uint32_t gave_up;           /* one of them has */
    brg__nccl_flag flags[BRG__NCCL_FLAG_KINDS][BRG__NCCL_SLOTS][BRG__NCCL_NEAR];
} brg__nccl_desk;

typedef struct brg__nccl_board {
    brg__nccl_desk *desks; /* shared; NULL: there is no board */
    int n;                 /* ranks of this machine */
    int mine;              /* among them */
    int *ranks;            /* of each desk; owned */
} brg__nccl_board;

struct brg__nccl_group;
struct brg_nccl_options;

/* Collective. A board that cannot be had is no error; two ranks on one GPU
 * are. */
brg_status brg__nccl_board_open(struct brg__nccl_group *g,
                                const struct brg_nccl_options *o);
void brg__nccl_board_close(struct brg__nccl_group *g);
size_t brg__nccl_board_nbytes(const brg__nccl_board *b);

/* The process of a desk has ended without a word. What it says, it says before
 * it ends: so first whether it lives. */
bool brg__nccl_desk_died(const brg__nccl_desk *desk);

/* This rank's desk, or NULL. */
static inline brg__nccl_desk *brg__nccl_desk_of_mine(const brg__nccl_board *b)
{
    return b->desks ? &b->desks[b->mine] : NULL;
}

/* The call is about to start. */
void brg__nccl_board_write(brg__nccl_board *b, const brg__nccl_said *mine);
/* What a desk says of the collective, if it is still there. */
bool brg__nccl_board_read(const brg__nccl_board *b, int desk, uint64_t seq,
                          brg__nccl_said *filled);
/* Whether some rank says something else of the call than `mine`: fills that. */
bool brg__nccl_board_differs(const struct brg__nccl_group *g,
                             const brg__nccl_said *mine,
                             brg__nccl_said *theirs);
/* The same for all lines that this rank has; then for those of ranks that have
 * failed for it, with others than this one. */
bool brg__nccl_board_find(const struct brg__nccl_group *g, brg__nccl_said *mine,
                          brg__nccl_said *theirs);

#endif
