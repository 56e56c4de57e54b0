/* SPDX-License-Identifier: Apache-2.0
 * All memory of the library comes from here.
 *
 *   brg__block_*   big blocks (tensor data, windows): straight to the hook
 *   brg__mem_*     long-lived objects and arrays: the hook, size remembered
 *   brg__obj_*     small short-lived objects (tensors, nodes): free lists of
 *                  the thread, so that a steady step never calls the hook
 *
 * Every function sets the error record when it returns NULL. */
#ifndef BRG_CORE_BASE_ALLOC_H
#define BRG_CORE_BASE_ALLOC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <brigade/runtime.h>

#define BRG_CACHE_LINE 64

/* *out = a * b or a + b; false (out untouched) when it does not fit. */
static inline bool brg__mul_size(size_t a, size_t b, size_t *out)
{
    return !__builtin_mul_overflow(a, b, out);
}

static inline bool brg__add_size(size_t a, size_t b, size_t *out)
{
    return !__builtin_add_overflow(a, b, out);
}

/* The next multiple of `align`, a power of two. */
static inline size_t brg__round_up(size_t n, size_t align)
{
    return (n + align - 1) & ~(align - 1);
}

/* Raw blocks, uninitialised. `what` goes into the error message. */
void *brg__block_alloc(size_t nbytes, size_t alignment, const char *what);
void brg__block_free(void *ptr, size_t nbytes, size_t alignment);

/* Zero-filled; the size is kept in a header. */
void *brg__mem_alloc(size_t nbytes, const char *what);
void *brg__mem_alloc_array(size_t n, size_t nbytes_each, const char *what);
/* Grows or shrinks; new bytes are zero; the old block stays on failure. */
void *brg__mem_realloc(void *ptr, size_t nbytes, const char *what);
void brg__mem_free(void *ptr);
char *brg__mem_strdup(const char *text);

#define BRG__NEW(type) ((type *)brg__mem_alloc(sizeof(type), #type))

/* Zero-filled small objects; free with the size they were asked with, from
 * any thread. */
void *brg__obj_alloc(size_t nbytes, const char *what);
/* The same with values not set. */
void *brg__obj_alloc_raw(size_t nbytes, const char *what);
void brg__obj_free(void *ptr, size_t nbytes);
void brg__obj_trim(void);
/* The largest size that the free lists keep. */
#define BRG__OBJ_MAX 4096

/* For the caching allocator of tensor data (core/tensor/cache.c). */
typedef void (*brg__trim_fn)(void);
void brg__alloc_set_cache(brg__trim_fn trim, uint64_t (*cached_bytes)(void),
                          uint64_t (*n_requests)(void));
/* For scratch memory (core/ops/scratch.c), which counts as cached. */
void brg__alloc_set_scratch(brg__trim_fn trim);
void brg__alloc_count_idle(size_t more, size_t less);
/* To be called by that cache after it hands out a cached block. */
void brg__alloc_note_peak(void);

#endif
