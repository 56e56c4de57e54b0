/* SPDX-License-Identifier: Apache-2.0
 * The thread's grad mode. */
#include "core/autograd/node.h"

_Thread_local bool brg__grad_mode_is_off;

bool brg_grad_mode(void)
{
    return !brg__grad_mode_is_off;
}

bool brg_grad_mode_set(bool is_on)
{
    bool before = !brg__grad_mode_is_off;
    brg__grad_mode_is_off = !is_on;
    return before;
}
