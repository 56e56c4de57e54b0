/* SPDX-License-Identifier: Apache-2.0
 * Process-wide services: allocator hook, log sink, environment, memory. */
#ifndef BRG_RUNTIME_H
#define BRG_RUNTIME_H

#include <brigade/status.h>
#include <brigade/types.h>

BRG_BEGIN_DECLS

/* Where host memory comes from. `alloc` returns NULL when it has none; `free`
 * gets the size and alignment that `alloc` got. Both may be called from any
 * thread. */
typedef struct brg_allocator {
    size_t struct_size;
    void *(*alloc)(void *user, size_t nbytes, size_t alignment);
    void (*free)(void *user, void *ptr, size_t nbytes, size_t alignment);
    void *user;
} brg_allocator;

/* Replaces the allocator (NULL: the built-in one). Fails with BRG_ERR_STATE
 * while any memory of the library is in use; cached memory is released first.
 * Not to be called beside other calls. */
BRG_API BRG_NODISCARD brg_status
brg_set_allocator(const brg_allocator *allocator);

/* Host memory of the library, in bytes, summed over all threads. */
typedef struct brg_memory_stats {
    uint64_t in_use;     /* handed out now: tensors, nodes, buffers */
    uint64_t peak;       /* largest in_use since the last reset */
    uint64_t cached;     /* free, kept for reuse */
    uint64_t n_allocs;   /* calls of the allocator hook so far */
    uint64_t n_requests; /* requests of tensor data, cached or not */
} brg_memory_stats;

BRG_API void brg_memory_get_stats(brg_memory_stats *filled);
BRG_API void brg_memory_reset_peak(void);

/* Gives cached memory back: tensor blocks of all threads, small objects of
 * the calling thread. */
BRG_API void brg_memory_trim(void);

/* X(NAME, value, text). */
typedef enum brg_log_level {
    BRG_LOG_OFF = 0,
    BRG_LOG_ERROR = 1,
    BRG_LOG_WARN = 2,
    BRG_LOG_INFO = 3,
    BRG_LOG_DEBUG = 4
} brg_log_level;

typedef void (*brg_log_fn)(brg_log_level level, const char *area,
                           const char *message, void *user);

/* The library prints nothing: messages up to `level` go to `sink` (NULL: to
 * nobody). The sink may be called from any thread, one call at a time. The
 * level starts from BRG_LOG_LEVEL in the environment. */
BRG_API void brg_set_log_sink(brg_log_fn sink, void *user);
BRG_API void brg_set_log_level(brg_log_level level);
BRG_API brg_log_level brg_get_log_level(void);

/* Threads that the matrix library may use inside one op; 1 by default, since
 * parallelism comes from ranks. */
BRG_API BRG_NODISCARD brg_status brg_set_num_threads(int n_threads);

/* The version of the library at run time, "0.1.0". */
BRG_API const char *brg_version(void);

/* What this build contains, one "key=value" a line. Static. */
BRG_API const char *brg_build_info(void);

/* One row of the table of environment variables. */
typedef struct brg_env_info {
    const char *name;
    const char *default_value;
    const char *doc;
} brg_env_info;

/* The i-th variable that the library reads, or NULL past the last. */
BRG_API const brg_env_info *brg_env_at(size_t i);

BRG_END_DECLS

#endif
