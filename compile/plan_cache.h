/* SPDX-License-Identifier: Apache-2.0
 * The plans of a thread by their keys, and below each plan its executables by
 * their sizes. Both are bounded: the least recently used goes.
 *
 *   structure   the key without its ones: what is the same at all sizes
 *   static      with BRG_COMPILE_DYNAMIC_CHANGED a plan serves the sizes it was
 *               captured for, but for those known to change; when another one
 *               changes it is captured again, that one being free from then on */
#ifndef BRG_COMPILE_PLAN_CACHE_H
#define BRG_COMPILE_PLAN_CACHE_H

#include <brigade/compile.h>

#include "compile/plan.h"

#define BRG__MAX_EXECS 16 /* of a plan */
#define BRG__MAX_PLANS 64 /* of a thread, unless the options say otherwise */

/* A plan made concrete, with the sizes that it is for. */
typedef struct brg__sized_exec {
    brg__ints sizes;
    brg__ints strides;
    uint64_t hash;
    uint64_t last_use;
    brg__exec *exec;
} brg__sized_exec;

typedef struct brg__plan {
    brg__bytes key;
    size_t n_structure; /* bytes of the key before the ones */
    BRG__ARRAY(uint32_t) ends;
    uint64_t hash;
    uint64_t last_use;
    uint64_t number; /* in order of capture */
    brg__ir ir;
    brg__ir_pieces pieces;
    bool is_closed;        /* brg__ir_is_closed */
    bool is_sparse;        /* brought something sparse: it is not compiled */
    brg__ints sizes;       /* CHANGED: that it was captured for */
    brg__bytes is_dynamic; /* CHANGED: of each size: any value will do */
    brg__sized_exec execs[BRG__MAX_EXECS];
    size_t n_execs;
    size_t latest;           /* of them: the one that ran last */
    const char *unsupported; /* why it runs eagerly; NULL: it does not */
    char reason[256];
} brg__plan;

typedef struct brg__plan_cache {
    BRG__ARRAY(brg__plan *) plans;
    brg__plan *latest; /* that ran last; NULL: it is gone */
    size_t limit;      /* 0: BRG__MAX_PLANS */
    uint64_t clock;
} brg__plan_cache;

/* All hashes are masked with it: a test makes them collide. */
extern uint64_t brg__hash_mask;
uint64_t brg__bytes_hash(const brg__bytes *bytes);

/* The plan of what was collected, or NULL. *hash: the key's, unless the plan is
 * the one that ran last, which is asked without. */
brg__plan *brg__plan_find(brg__plan_cache *cache, const brg__collected *c,
                          uint64_t *hash);
/* The plan captured last that differs from what was collected in sizes only,
 * or NULL. */
brg__plan *brg__plan_find_sibling(const brg__plan_cache *cache,
                                  const brg__collected *c);
/* Size i is one the plan was captured for, and another now. */
bool brg__plan_has_changed(const brg__plan *plan, const brg__collected *c,
                           size_t i);
/* How many sizes are not those that the plan is for. */
size_t brg__plan_count_changed(const brg__plan *plan, const brg__collected *c);

/* Captures one for what was collected, in the place of `stale` (or NULL). A
 * capture that meets something it cannot express makes a plan that says so,
 * and is not tried again. `is_static`: it is for the sizes at hand, but for
 * those that `sibling` (or NULL) had otherwise. */
typedef struct brg__plan_wish {
    uint64_t hash;
    bool is_static;
    const brg__plan *sibling;
    brg__plan *stale;
} brg__plan_wish;
brg_status brg__plan_capture(brg__plan_cache *cache, brg__task *task,
                             const brg__collected *c,
                             const brg__plan_wish *wish, brg__plan **out);
/* Makes room for one more plan; returns how many went. */
size_t brg__plan_cache_trim(brg__plan_cache *cache);

/* The executable for the sizes of what was collected, made if there is none. */
brg_status brg__plan_exec(brg__plan_cache *cache, brg__plan *plan,
                          brg__task *task, const brg__collected *c,
                          brg_compile_stats *stats, brg__exec **out);
void brg__plan_cache_clear(brg__plan_cache *cache);

#endif
