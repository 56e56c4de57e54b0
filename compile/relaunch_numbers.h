/* SPDX-License-Identifier: Apache-2.0
 * Numbers of the host that go with each launch of a step: inputs and constants
 * of no dims that lie on the host, and where the random numbers of its dropouts
 * begin. They are words of one block on the device, which is written, when some
 * have changed, by a copy that waits for nothing. */
#ifndef BRG_COMPILE_RELAUNCH_NUMBERS_H
#define BRG_COMPILE_RELAUNCH_NUMBERS_H

#include "compile/segment.h"

typedef struct brg__relaunch_number {
    const brg_tensor *constant; /* borrowed from the IR; NULL: an input, */
    size_t input;               /* this one */
    brg_tensor *place;          /* its word on the device; owned */
} brg__relaunch_number;

typedef struct brg__relaunch_numbers {
    BRG__ARRAY(brg__relaunch_number) list;
    uint64_t n_counters; /* of random numbers, that a step takes */
    brg_tensor *there;   /* i64: seed, counter, then the list; or NULL */
    brg__words now, sent;
    bool is_sent;
} brg__relaunch_numbers;

/* A tensor that may be one of them. */
bool brg__is_number(const brg_tensor *t);

/* What is in the way of moving those of a step to that device, or NULL: only ops
 * and changes of tensors there may read them, and what is computed from them on
 * the host. NULL with an error record set: no memory. */
const char *brg__numbers_check(const brg__segment *s, brg_tensor *const *inputs,
                               brg_device device);

/* Makes their places. */
brg_status brg__numbers_init(brg__relaunch_numbers *n, const brg__segment *s,
                             brg_tensor *const *inputs, size_t n_inputs,
                             brg_device device);
void brg__numbers_deinit(brg__relaunch_numbers *n);
/* The place of that input, or NULL; borrowed. */
brg_tensor *brg__numbers_place(const brg__relaunch_numbers *n, size_t input);

/* Sends those of a call, whose random numbers are drawn here. */
brg_status brg__numbers_bring(brg__relaunch_numbers *n,
                              brg_tensor *const *inputs);
/* From here to leave the segment's plan reads their places. */
void brg__numbers_enter(const brg__relaunch_numbers *n, brg__segment *s);
void brg__numbers_leave(const brg__relaunch_numbers *n, brg__segment *s);

#endif
