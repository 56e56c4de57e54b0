/* SPDX-License-Identifier: Apache-2.0
 * Passes over the gradients of a bucket (brigade/ext/compress.h), by this host
 * or by the device that the gradients are on; and the list of parameters that
 * hooks keep for them. */
#ifndef BRG_REDUCER_HOOKS_COMPRESS_H
#define BRG_REDUCER_HOOKS_COMPRESS_H

#include <brigade/comm_hook.h>
#include <brigade/ext/compress.h>

#include "reducer/hooks/hook.h"

/* Fails naming the device if it compresses nothing. */
brg_status brg__compress_check(brg_device device);
brg_status brg__compress(brg_device device, const brg_compress_job *job);

/* In host memory. */
void brg__compress_host(const brg_compress_job *job);

/* The parameters of a hook, and its state; the first member of what the hook is. */
typedef struct brg__hook_parts {
    brg__hook_state state;
    BRG__ARRAY(brg_compress_part) all; /* by parameter; the state's pointers */
    BRG__ARRAY(brg_compress_part) now; /* room for those of a bucket */
    brg_device device;
} brg__hook_parts;

/* Those of a reducer, in the place of what was there, as yet without state;
 * fails where its device compresses nothing. */
brg_status brg__hook_parts_make(brg__hook_parts *parts,
                                const brg_hook_param *params, size_t n);
/* Errors of f32 and f64 parameters, in the state as "error/<name>". */
brg_status brg__hook_parts_feed_back(brg__hook_parts *parts,
                                     const brg_hook_param *params);

/* Slots of such a hook: entry i of its state; its end. */
const brg_named_tensor *brg__hook_parts_state_at(void *hook, size_t i);
void brg__hook_parts_destroy(void *hook);

/* The parts of a bucket, in its order, with `data`; a job without a rule. */
brg_compress_part *brg__hook_parts_of(brg__hook_parts *parts,
                                      const brg_hook_bucket *b,
                                      brg_compress_job *job);

#endif
