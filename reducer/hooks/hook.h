/* SPDX-License-Identifier: Apache-2.0
 * Communication hooks: the object, and its place in a reducer.
 *
 *     pack -> [ start ... again ... finish ] -> gradients
 *
 * A reducer with a hook keeps its tail in a bucket of its own, which no hook
 * touches: who used what is exact whatever a hook does to gradients. */
#ifndef BRG_REDUCER_HOOKS_HOOK_H
#define BRG_REDUCER_HOOKS_HOOK_H

#include <brigade/comm_hook.h>

#include "core/base/array.h"

struct brg_comm_hook {
    brg_comm_hook_ops ops;
    void *user;
    char name[96];
    brg_reducer *reducer; /* that it serves now, or NULL */
};

/* The hook's part of a reducer. */
typedef struct brg__hook_binding {
    brg_hook_bucket *buckets; /* by bucket; the tail's own is not used */
    size_t *offsets;          /* elements, in the plan's order */
    size_t *places;           /* bytes, of each bucket's wire memory */
    char *wire;               /* of the group, as are the buckets */
    size_t wire_nbytes;
    bool is_started; /* the second round of this step */
} brg__hook_binding;

/* ---- For the reducer ---------------------------------------------------------- */

/* The state for the reducer's parameters. Not collective. */
brg_status brg__hook_attach(brg_reducer *r);
/* The hook serves r again, which it was taken from. */
void brg__hook_return(brg_reducer *r);
/* After the buckets were laid out. Collective. */
brg_status brg__hook_lay_out(brg_reducer *r);
/* `is_in_flight`: the wire memory stays with the group. */
void brg__hook_detach(brg_reducer *r, bool is_in_flight);

/* Has bucket k anything to do with the hook? */
bool brg__hook_takes(const brg_reducer *r, size_t k);
brg_status brg__hook_start(brg_reducer *r, size_t k);
brg_status brg__hook_finish(brg_reducer *r, size_t k);

/* What a recording of its work depends on; fails if there can be none. */
brg_status brg__hook_note(const brg_reducer *r, brg__words *state);
/* A recording was launched. */
void brg__hook_launched(brg_reducer *r);

/* Equal for equal hooks; 0: none. */
uint64_t brg__hook_hash(const brg_comm_hook *hook);

/* ---- For the hooks ---------------------------------------------------------------- */

/* A list of named tensors, found again by name and count. */
typedef struct brg__hook_state {
    BRG__ARRAY(brg_named_tensor) list;
} brg__hook_state;

/* "kind/name", or "kind" if the name is empty. */
typedef struct brg__hook_entry {
    const char *kind, *name;
    brg_dtype dtype;
    size_t count;
    brg_device device; /* one that is elsewhere is moved there */
} brg__hook_entry;

/* Zero when new; borrowed. */
brg_status brg__hook_state_get(brg__hook_state *state, brg_tensor **out,
                               const brg__hook_entry *wanted, bool *is_new);
const brg_named_tensor *brg__hook_state_at(const brg__hook_state *state,
                                           size_t i);
void brg__hook_state_deinit(brg__hook_state *state);

/* f32 and f64: what such a hook is for. */
static inline bool brg__hook_is_wide(brg_dtype dtype)
{
    return dtype == BRG_DTYPE_F32 || dtype == BRG_DTYPE_F64;
}

/* `version` of a hook that does the same in each step. */
brg_status brg__hook_version(void *user, uint64_t *version);

/* The bucket as it is, as without a hook; and its wait. */
brg_status brg__hook_plain_start(const brg_hook_bucket *b);
brg_status brg__hook_wait(const brg_hook_bucket *b);

#endif
