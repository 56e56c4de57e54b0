/* SPDX-License-Identifier: Apache-2.0
 * What happens on each backward while compiled backward is on: collect, find or
 * capture the plan, find or make the executable, run it. */
#include "compile/anomaly.h"
#include "compile/compiler.h"
#include "core/base/error.h"

static brg_status run_eagerly(brg__compiler *c, brg__task *task,
                              const char *why)
{
    brg__reason_of_fallback(c, why);
    brg__collected_clear(&c->collected);
    if (c->now.options.fullgraph)
        return BRG_FAIL(BRG_ERR_UNSUPPORTED,
                        "fullgraph: this backward cannot be compiled: %s", why);
    c->stats.fallbacks++;
    return brg__task_run(task);
}

static brg_status find_plan(brg__compiler *c, brg__task *task, brg__plan **out)
{
    uint64_t hash = brg__bytes_hash(&c->collected.key);
    *out = brg__plan_find(&c->cache, &c->collected.key, hash);
    if (*out) {
        c->stats.hits += !(*out)->unsupported;
        return BRG_OK;
    }
    BRG_TRY(brg__plan_capture(&c->cache, task, &c->collected, hash, out));
    c->stats.captures += !(*out)->unsupported;
    brg__reason_of_capture(c, *out);
    return BRG_OK;
}

static brg_status run_compiled(brg__compiler *c, brg__task *task)
{
    brg__plan *plan;
    brg__exec *exec;
    BRG_TRY(brg__collect(&c->collected, task));
    BRG_TRY(find_plan(c, task, &plan));
    if (plan->unsupported)
        return run_eagerly(c, task, plan->unsupported);
    BRG_TRY(brg__anomaly_before(task));
    BRG_TRY(
        brg__plan_exec(&c->cache, plan, task, &c->collected, &c->stats, &exec));
    c->is_running = true;
    brg_status status = brg__exec_run(exec, task, &c->collected);
    c->is_running = false;
    return status == BRG_OK ? brg__anomaly_after(task) : status;
}

brg_status brg__compiler_run(brg__runner *self, brg__task *task)
{
    brg__compiler *c = (brg__compiler *)self;
    brg_status status = run_compiled(c, task);
    brg__collected_clear(&c->collected);
    return status;
}
