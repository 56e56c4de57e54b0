/* SPDX-License-Identifier: Apache-2.0
 * Why plans were captured, or backwards ran eagerly: text and log. */
#include <stdio.h>
#include <string.h>

#include "compile/compiler.h"
#include "core/base/log.h"

/* The plan, one line a message. */
static void log_plan(const brg__compiler *c, const brg__plan *p)
{
    if (p->unsupported || brg_get_log_level() < BRG_LOG_INFO)
        return;
    size_t size = brg__ir_print(&p->ir, NULL, 0) + 1;
    char *text = brg__mem_alloc_array(size, 1, "a plan's text"), *rest = NULL;
    if (!text)
        return;
    (void)brg__ir_print(&p->ir, text, size);
    for (const char *line = strtok_r(text, "\n", &rest); line;
         line = strtok_r(NULL, "\n", &rest))
        brg__log(BRG_LOG_INFO, "compile", "plan %llu: %s",
                 (unsigned long long)c->stats.captures - 1, line);
    brg__mem_free(text);
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
