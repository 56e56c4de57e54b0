/* SPDX-License-Identifier: Apache-2.0
 * Buffers of the user's that are freed too early, in debug builds: what
 * libbrigade_watch.so offers, a library that stands between a program and
 * free, realloc, munmap and mremap. A program that links the shared library of
 * a debug build (brigade::brigade) has it; any other gets it by LD_PRELOAD.
 *
 * Any thread may call these. What frees memory takes a lock only for a block
 * that lies between the first and the last watched one, and allocates
 * nothing. */
#ifndef BRG_REDUCER_WATCH_WATCH_H
#define BRG_REDUCER_WATCH_WATCH_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* One buffer; the memory is the caller's, from add to remove. */
typedef struct brg_watch {
    uintptr_t begin; /* 0: not watched */
    uintptr_t end;
    void *caller; /* who called, once `by` is set */
    _Atomic(const char *)
        by; /* "free": some of it is gone; NULL: it is there */
} brg_watch;

/* False if there is no memory for it: it is not watched then. Watches of one
 * address may be many. */
typedef bool brg_watch_add_fn(brg_watch *watch, const void *at, size_t nbytes);
/* Nothing if it is not watched. */
typedef void brg_watch_remove_fn(brg_watch *watch);

/* Found by dlsym: brigade runs without them. */
#define BRG_WATCH_ADD "brg_watch_add"
#define BRG_WATCH_REMOVE "brg_watch_remove"

#endif
