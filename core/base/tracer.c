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

brg_status brg__tracer_flush(void)
{
    brg__tracer *tracer = brg__tracer_now;
    return tracer && tracer->flush ? tracer->flush(tracer) : BRG_OK;
}

brg_status brg__tracer_settle(const char *what, const char *remedy)
{
    brg__tracer *tracer = brg__tracer_now;
    if (!tracer || tracer->flush)
        return brg__tracer_flush();
    return brg__tracer_refuse(what, remedy);
}

brg_status brg__tracer_outside(const char *name)
{
    return brg__is_traced()
               ? brg__tracer_settle(name, "call it outside of the function")
               : BRG_OK;
}

brg__tracer *brg__tracer_suspend(void)
{
    brg__tracer *tracer = brg__tracer_now;
    return tracer && tracer->suspend && tracer->suspend(tracer) ? tracer : NULL;
}

void brg__tracer_resume(brg__tracer *tracer)
{
    if (tracer)
        tracer->resume(tracer);
}
