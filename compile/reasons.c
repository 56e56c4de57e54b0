/* SPDX-License-Identifier: Apache-2.0
 * Why plans were captured, or backwards ran eagerly: text and log. */
#include <stdio.h>

#include "compile/compiler.h"
#include "core/base/log.h"

/* The plan, one line a message. */
static void log_plan(const brg__compiler *c, const brg__plan *p)
{
    char prefix[32];
    if (p->unsupported)
        return;
    snprintf(prefix, sizeof prefix,
             "plan %llu: ", (unsigned long long)c->stats.captures - 1);
    brg__ir_log(&p->ir, BRG_LOG_INFO, prefix);
}

void brg__reason_of_capture(brg__compiler *c, const brg__plan *plan)
{
    snprintf(c->reason, sizeof c->reason,
             "Cache miss due to new autograd node: GraphRoot (NodeCall 0) with "
             "key size %zu, %zu plans before",
             plan->key.n, c->cache.plans.n - 1);
    brg__log(BRG_LOG_DEBUG, "compile", "%s", c->reason);
    log_plan(c, plan);
}

void brg__reason_of_fallback(brg__compiler *c, const char *why)
{
    snprintf(c->reason, sizeof c->reason, "%s", why);
}

const char *brg_compile_reason(void)
{
    return brg__compiler_mine()->reason;
}
