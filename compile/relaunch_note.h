/* SPDX-License-Identifier: Apache-2.0
 * What a step that is launched again depends on. */
#ifndef BRG_COMPILE_RELAUNCH_NOTE_H
#define BRG_COMPILE_RELAUNCH_NOTE_H

#include "compile/relaunch.h"

/* Once: can it be recorded at all? Sets the device; why[0..size) says what is
 * in the way. */
bool brg__relaunch_allows(brg__relauncher *r, const brg__segment *s,
                          brg_tensor *const *inputs, size_t n_inputs, char *why,
                          size_t size);
/* Fills r->now, of which n_lasting are not used up by the step, and r->reducers.
 * BRG_ERR_UNSUPPORTED: not now; the message says why. */
brg_status brg__relaunch_note(brg__relauncher *r, const brg__segment *s);
/* now is state; the lasting part of now, of which state has so many. */
bool brg__relaunch_is_noted(const brg__relauncher *r);
bool brg__relaunch_is_back(const brg__relauncher *r, size_t n_lasting);
/* The tensors from outside that an op may have changed have a new version. */
void brg__relaunch_touch(const brg__ir *ir, const brg__ir_node *node);

#endif
