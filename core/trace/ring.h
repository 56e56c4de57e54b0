/* SPDX-License-Identifier: Apache-2.0
 * Rings of records: one for the process and one for each rank of a simulated
 * world. Writing one takes an atomic addition, a look at the clock and eight
 * stores, and no memory; a lock only for what goes to the place of another
 * group (marks, groups without a place of their own).
 *
 *   slots    the newest records, by number
 *   text     lines that give names to numbers, appended; when there is no more
 *            room it begins again, since only the latest reducers matter
 *   place    the last record, gradient and mark, in memory that other ranks
 *            can read (of a group, if its backend has such)
 *
 * A slot's number is 0 while it is written, so that a reader on another thread
 * or in another process, or a signal handler, knows what it may not use. All
 * words are atomic; release and acquire order them. */
#ifndef BRG_CORE_TRACE_RING_H
#define BRG_CORE_TRACE_RING_H

#include <pthread.h>
#include <stdatomic.h>

#include <brigade/trace.h>

#define BRG__RECORD_WORDS 8
#define BRG__RECORD_BUILT_IN 16384 /* records, of the process */
#define BRG__RECORD_TEXT ((size_t)256 << 10)

typedef _Atomic uint64_t brg__record_slot[BRG__RECORD_WORDS];

/* What other ranks read: 192 bytes, zero at first. */
typedef struct brg__record_place {
    _Alignas(64) brg__record_slot last; /* of a group */
    _Alignas(64) brg__record_slot gradient;
    _Alignas(64) brg__record_slot mark;
} brg__record_place;

typedef struct brg__record_ring {
    _Alignas(64) _Atomic uint64_t n; /* records so far */
    brg__record_slot *slots;
    uint64_t mask;         /* slots - 1 */
    const uint64_t *clock; /* ns; NULL: the machine's */
    pthread_mutex_t lock;  /* of place and of writing text */
    _Atomic(brg__record_place *) place;
    char *text;
    size_t text_size;
    _Atomic size_t n_text;
    int rank; /* in its first group; -1: none yet */
    int world_size;
    _Atomic unsigned n_groups;
} brg__record_ring;

extern _Atomic bool brg__record_is_on;

/* The calling thread's rank's. */
brg__record_ring *brg__record_mine(void);
/* The process's. */
brg__record_ring *brg__record_process(void);

/* A ring of its own; n a power of two. */
brg_status brg__record_ring_create(brg__record_ring **out, size_t n,
                                   size_t text_size);
void brg__record_ring_destroy(brg__record_ring *ring);
/* The calling thread is a rank with this ring; NULL: it is not. */
void brg__record_adopt(brg__record_ring *ring);

/* Adds a record, `place` getting it as well (NULL: the ring's, if it has one);
 * number and thread are set here, time_ns unless it is there. */
void brg__record_put(brg__record_ring *ring, brg__record_place *place,
                     brg_trace_record *record);

/* A gradient of a reducer, see BRG_TRACE_HOOK and BRG_TRACE_COPY. */
typedef struct brg__record_gradient {
    uint8_t group;
    uint8_t reducer;
    int16_t bucket;
    uint32_t param;
    size_t nbytes;
    int64_t value;
} brg__record_gradient;

/* brg__record_put of such, put together in registers: there is one for each
 * parameter of each step. */
void brg__record_put_gradient(brg__record_ring *ring, brg__record_place *place,
                              brg_trace_kind kind,
                              const brg__record_gradient *gradient);

/* A slot's record; false if there is none, or it is being written. */
bool brg__record_read(brg__record_slot *slot, brg_trace_record *filled);

/* On the clock of the ring; NULL: on the machine's. */
uint64_t brg__record_now(const brg__record_ring *ring);

/* A line of text; tabs and line ends only where the format has them. */
void brg__record_define(brg__record_ring *ring, const char *format, ...)
    BRG_PRINTF(2, 3);
/* What follows `begin` ("param\t0\t1\t3\t") in the last line that begins so, into
 * `text`; false: there is none. */
bool brg__record_find(brg__record_ring *ring, const char *begin, char *text,
                      size_t size);

/* This rank takes part in a group: its number. `place`: memory that its peers
 * can read, or NULL. */
uint8_t brg__record_join(brg__record_ring *ring, const char *backend, int rank,
                         int world_size, brg__record_place *place);
void brg__record_leave(brg__record_ring *ring, brg__record_place *place);

/* ---- dump.c ------------------------------------------------------------------ */

/* Reads the environment; once, at the first use. */
void brg__record_init_files(void);
/* Writes the ring to the folder, if there is one. Sets no record. */
void brg__record_dump_failed(brg__record_ring *ring);

#endif
