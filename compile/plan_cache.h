/* SPDX-License-Identifier: Apache-2.0
 * The plans of a thread by their keys, and below each plan its executables by
 * their sizes. Both are bounded: the least recently used goes. */
#ifndef BRG_COMPILE_PLAN_CACHE_H
#define BRG_COMPILE_PLAN_CACHE_H

#include <brigade/compile.h>

#include "compile/plan.h"

#define BRG__MAX_EXECS 16 /* of a plan */

/* A plan made concrete, with the sizes that it is for. */
typedef struct brg__sized_exec {
    brg__bytes sizes;
    uint64_t hash;
    uint64_t last_use;
    brg__exec *exec;
} brg__sized_exec;

typedef struct brg__plan {
    brg__bytes key;
    uint64_t hash;
    brg__ir ir;
    brg__sized_exec execs[BRG__MAX_EXECS];
    size_t n_execs;
    const char *unsupported; /* why it runs eagerly; NULL: it does not */
    char reason[160];
} brg__plan;

typedef struct brg__plan_cache {
    BRG__ARRAY(brg__plan *) plans;
    uint64_t clock;
} brg__plan_cache;

uint64_t brg__bytes_hash(const brg__bytes *bytes);

/* The plan of this key, or NULL. */
brg__plan *brg__plan_find(const brg__plan_cache *cache, const brg__bytes *key,
                          uint64_t hash);
/* Captures one for what was collected. A capture that meets something it cannot
 * express makes a plan that says so, and is not tried again. */
brg_status brg__plan_capture(brg__plan_cache *cache, brg__task *task,
                             const brg__collected *c, uint64_t hash,
                             brg__plan **out);
/* The executable for the sizes of what was collected, made if there is none. */
brg_status brg__plan_exec(brg__plan_cache *cache, brg__plan *plan,
                          brg__task *task, const brg__collected *c,
                          brg_compile_stats *stats, brg__exec **out);
void brg__plan_cache_clear(brg__plan_cache *cache);

#endif
