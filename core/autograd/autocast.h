/* SPDX-License-Identifier: Apache-2.0
 * The thread's autocast policy as dispatch sees it. */
#ifndef BRG_CORE_AUTOGRAD_AUTOCAST_H
#define BRG_CORE_AUTOGRAD_AUTOCAST_H

#include <brigade/autocast.h>
#include <brigade/ext/op.h>

extern _Thread_local brg_autocast brg__autocast;

/* Casts the inputs of a call as the policy says, into `cast`, which starts as
 * a copy of them; borrowed from the scope or the policy's cache. */
brg_status brg__autocast_inputs(const brg_op *op, int n_in, brg_tensor **cast);

/* Puts a policy in force that was in force before (backward, recomputation):
 * cannot fail. */
brg_autocast brg__autocast_swap(brg_autocast policy);

/* Lets go of the casts of leaves that are kept: around a capture, whose casts
 * are symbols, and in it where leaves change. */
void brg__autocast_forget(void);

#endif
