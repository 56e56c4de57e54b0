/* SPDX-License-Identifier: Apache-2.0
 * The thread's tracer: see tracer.h. */
#include "core/base/tracer.h"

_Thread_local brg__tracer *brg__tracer_now;

brg_status brg__tracer_refuse(const char *what, const char *remedy)
{
    brg_status status = BRG_FAIL(BRG_ERR_UNSUPPORTED,
                                 "%s cannot be captured: %s", what, remedy);
    if (brg__tracer_now)
        brg__tracer_now->refuse(brg__tracer_now);
    return status;
}
