/* SPDX-License-Identifier: Apache-2.0
 * What happens on each backward while compiled backward is on: collect, find or
 * capture the plan, find or make the executable, run it. */
#include "compile/anomaly.h"
#include "compile/compiler.h"
#include "compile/relaunch_exec.h"
#include "compile/replay.h"
#include "core/base/clock.h"
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

/* Before anything has run. */
static brg_status refuse_split(const brg__task *task, const brg__plan *plan)
{
    const brg__ir_node *at = &plan->ir.nodes.at[plan->pieces.first_split];
    return BRG_FAIL(
        BRG_ERR_UNSUPPORTED,
        "fullgraph: the plan would be cut at %s of %s (NodeCall "
        "%d), which no plan can hold",
        at->kind == BRG__IR_CALL ? "the backward" : "an unpack hook",
        brg_node_name(task->visits.at[at->visit].node), at->visit + 1);
}

static brg_status capture(brg__compiler *c, brg__task *task, uint64_t hash,
                          brg__plan *stale, brg__plan **out)
{
    brg__plan *sibling =
        stale ? stale : brg__plan_find_sibling(&c->cache, &c->collected);
    brg__plan_wish wish = {.hash = hash,
                           .is_static = c->now.options.dynamic ==
                                        BRG_COMPILE_DYNAMIC_CHANGED,
                           .sibling = sibling,
                           .stale = stale};
    brg__reason_of_miss(c, task, sibling);
    BRG_TRY(brg__plan_capture(&c->cache, task, &c->collected, &wish, out));
    if ((*out)->unsupported)
        return BRG_OK;
    (*out)->number = c->stats.captures++;
    c->stats.buckets += brg__ir_count(&(*out)->ir, BRG__IR_START);
    c->stats.splits += (*out)->pieces.n_splits;
    if (c->now.options.backend != BRG_COMPILE_BACKEND_EAGER &&
        !(*out)->is_sparse)
        c->stats.compiles += (*out)->pieces.n_pieces;
    brg__reason_log_plan(c, task, *out);
    return BRG_OK;
}

static brg_status find_plan(brg__compiler *c, brg__task *task, brg__plan **out)
{
    uint64_t hash;
    brg__plan *found = brg__plan_find(&c->cache, &c->collected, &hash);
    if (found && brg__plan_count_changed(found, &c->collected) == 0) {
        c->stats.hits += !found->unsupported;
        *out = found;
        return BRG_OK;
    }
    if (!found) {
        c->cache.limit = c->now.options.max_plans;
        c->stats.evictions += brg__plan_cache_trim(&c->cache);
    }
    return capture(c, task, hash, found, out);
}

/* From here on the reducers of this backward end it, however it goes: no other
 * rank waits for one that could not make its plan. */
static brg_status begin_reductions(const brg__collected *c)
{
    for (size_t i = 0; i < c->reductions.n; i++) {
        const brg__reduction *r = &c->reductions.at[i];
        if (r->is_needed)
            BRG_TRY(r->ops->begin(r->self));
    }
    return BRG_OK;
}

static void expect_reductions(const brg__plan *plan, const brg__collected *c)
{
    for (size_t i = 0; plan->is_closed && i < c->reductions.n; i++) {
        const brg__reduction *r = &c->reductions.at[i];
        if (r->is_needed)
            r->ops->expect(r->self, c->members.at, c->members.n, (int)i);
    }
}

static void count(brg__compiler *c, const brg__exec *exec,
                  const brg_compile_stats *before, uint64_t start)
{
    if (c->stats.hits > before->hits &&
        c->stats.specialisations == before->specialisations)
        c->stats.lookup_ns += brg__clock_ns() - start;
    c->stats.bytes_moved += exec->bytes_moved;
    c->stats.bytes_unfused += exec->bytes_unfused;
}

/* Once an executable. */
static brg_status judge_replay(brg__compiler *c, const brg__task *task,
                               const brg__plan *plan, brg__exec *exec)
{
    if (!c->now.options.replay || exec->is_judged)
        return BRG_OK;
    char why[128];
    exec->is_judged = true;
    if (brg__replay_allows(plan, task, &c->collected, why, sizeof why)) {
        c->stats.replays++;
        return brg__exec_again_create(exec, &c->collected);
    }
    c->stats.replay_skips++;
    brg__reason_of_skip(c, plan, why);
    return BRG_OK;
}

static brg_status run_compiled(brg__compiler *c, brg__task *task)
{
    brg__plan *plan;
    brg__exec *exec;
    brg__collect_mode mode = {(uint8_t)c->now.options.dynamic,
                              (uint8_t)c->now.options.backend};
    uint64_t start = brg__clock_ns();
    brg_compile_stats before = c->stats;
    BRG_TRY(brg__collect(&c->collected, task, mode));
    BRG_TRY(begin_reductions(&c->collected));
    if (c->collected.unsupported)
        return run_eagerly(c, task, c->collected.unsupported);
    brg__runner_captures = true;
    brg_status found = find_plan(c, task, &plan);
    brg__runner_captures = false;
    BRG_TRY(found);
    if (plan->unsupported)
        return run_eagerly(c, task, plan->unsupported);
    if (plan->pieces.n_splits > 0 && c->now.options.fullgraph)
        return refuse_split(task, plan);
    expect_reductions(plan, &c->collected);
    BRG_TRY(brg__anomaly_before(task));
    task->is_cut = plan->pieces.n_splits > 0;
    BRG_TRY(
        brg__plan_exec(&c->cache, plan, task, &c->collected, &c->stats, &exec));
    count(c, exec, &before, start);
    BRG_TRY(judge_replay(c, task, plan, exec));
    exec->is_launched = c->now.options.replay;
    c->is_running = true;
    brg_status status = brg__exec_run(exec, task, &c->collected);
    c->is_running = false;
    return status == BRG_OK ? brg__anomaly_after(task) : status;
}

brg_status brg__compiler_run(brg__runner *self, brg__task *task)
{
    brg__compiler *c = (brg__compiler *)self;
    if (brg__compile_is_eager())
        return brg__task_run(task);
    brg_status status = run_compiled(c, task);
    brg__collected_clear(&c->collected);
    return status;
}
