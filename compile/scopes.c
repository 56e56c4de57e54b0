/* SPDX-License-Identifier: Apache-2.0
 * Scopes: where compiled backward is on, for the calling thread. */
#include <pthread.h>
#include <stdatomic.h>

#include "compile/compiler.h"
#include "compile/segment.h"
#include "compile/fuse/cuda_group.h"
#include "core/base/error.h"
#include "core/base/tracer.h"
#include "core/base/options.h"

static _Thread_local brg__compiler mine;
static pthread_key_t exit_key;
static pthread_once_t exit_once = PTHREAD_ONCE_INIT;

brg__compiler *brg__compiler_mine(void)
{
    return &mine;
}

/* ---- The thread's end ------------------------------------------------------------ */

static void on_thread_exit(void *ptr)
{
    brg__compiler *c = ptr;
    brg__plan_cache_clear(&c->cache);
    brg__collected_deinit(&c->collected);
    c->is_registered = false;
}

static void make_exit_key(void)
{
    (void)pthread_key_create(&exit_key, on_thread_exit);
}

static void register_thread(void)
{
    if (mine.is_registered)
        return;
    pthread_once(&exit_once, make_exit_key);
    (void)pthread_setspecific(exit_key, &mine);
    mine.is_registered = true;
}

/* ---- Scopes ------------------------------------------------------------------------ */

static _Atomic bool is_forced_eager;

static bool is_on(void)
{
    return mine.now.is_on && !mine.now.is_disabled;
}

static void apply_state(void)
{
    mine.base.run = brg__compiler_run;
    if (!mine.is_running && !brg__is_traced())
        brg__runner_set(is_on() ? &mine.base : NULL);
}

bool brg__compile_is_eager(void)
{
    return !is_on() || is_forced_eager;
}

bool brg__compile_may_capture(void)
{
    return !brg__compile_is_eager() && !brg__is_traced();
}

bool brg_compile_force_eager(bool forced)
{
    return atomic_exchange(&is_forced_eager, forced);
}

static brg_status push_scope(int *scope)
{
    register_thread();
    if (mine.n_scopes == BRG__MAX_COMPILE_SCOPES)
        return BRG_FAIL(BRG_ERR_STATE, "compile scopes nest %d deep at most",
                        BRG__MAX_COMPILE_SCOPES);
    mine.saved[mine.n_scopes++] = mine.now;
    *scope = mine.n_scopes;
    return BRG_OK;
}

brg_status brg__compile_options_init(brg_compile_options *options,
                                     const brg_compile_options *given,
                                     brg_compile_dynamic dynamic)
{
    *options = (brg_compile_options)BRG_COMPILE_OPTIONS_INIT;
    BRG_TRY(BRG_TAKE_OPTIONS(options, given, "compile options",
                             BRG_COMPILE_OPTIONS_INIT));
    BRG_CHECK_ARG(options->dynamic <= BRG_COMPILE_DYNAMIC_CHANGED,
                  "compile options: dynamic is %d", (int)options->dynamic);
    BRG_CHECK_ARG(options->backend <= BRG_COMPILE_BACKEND_FUSED,
                  "compile options: backend is %d", (int)options->backend);
    if (options->dynamic == BRG_COMPILE_DYNAMIC_DEFAULT)
        options->dynamic = dynamic;
    if (options->backend == BRG_COMPILE_BACKEND_DEFAULT)
        options->backend = BRG_COMPILE_BACKEND_PASSES;
    return BRG_OK;
}

brg_status brg_compile_begin(int *scope, const brg_compile_options *options)
{
    brg_compile_options checked;
    BRG_CHECK_ARG(scope, "brg_compile_begin: scope is NULL");
    BRG_TRY(
        brg__compile_options_init(&checked, options, BRG_COMPILE_DYNAMIC_ALL));
    BRG_TRY(push_scope(scope));
    mine.now.is_on = true;
    mine.now.options = checked;
    mine.now.log_level = brg_get_log_level();
    apply_state();
    return BRG_OK;
}

brg_status brg_compile_disable_begin(int *scope)
{
    BRG_CHECK_ARG(scope, "brg_compile_disable_begin: scope is NULL");
    BRG_TRY(push_scope(scope));
    mine.now.is_disabled = true;
    apply_state();
    return BRG_OK;
}

brg_status brg_compile_end(int scope)
{
    if (scope != mine.n_scopes || scope < 1)
        return BRG_FAIL(BRG_ERR_STATE,
                        "Nested Compiled Autograd Contexts must return before "
                        "their parent context: scope %d was ended, %d are open",
                        scope, mine.n_scopes);
    mine.now = mine.saved[--mine.n_scopes];
    apply_state();
    return BRG_OK;
}

bool brg__compile_unwind(int scope)
{
    bool is_innermost = mine.n_scopes == scope;
    if (mine.n_scopes < scope)
        return false;
    mine.n_scopes = scope - 1;
    mine.now = mine.saved[mine.n_scopes];
    apply_state();
    return is_innermost;
}

bool brg_compile_is_on(void)
{
    return is_on() && !mine.is_running && !is_forced_eager;
}

brg_status brg_compile_reset(void)
{
    if (mine.is_running || brg__segment_runs())
        return BRG_FAIL(BRG_ERR_STATE, "brg_compile_reset: a plan is running");
    if (brg__runner_captures)
        return BRG_FAIL(BRG_ERR_STATE,
                        "brg_compile_reset: a plan is being captured");
    if (brg__is_traced())
        return BRG_FAIL(BRG_ERR_STATE,
                        "brg_compile_reset: a function is being captured");
    brg__plan_cache_clear(&mine.cache);
    mine.now = (brg__compile_state){0};
    mine.n_scopes = 0;
    mine.stats = (brg_compile_stats){0};
    mine.n_records = 0;
    brg__kernels_forget_failures();
    brg__cuda_kernels_forget_failures();
    apply_state();
    return BRG_OK;
}

/* ---- What is asked of it ------------------------------------------------------------ */

void brg_compile_get_stats(brg_compile_stats *filled)
{
    if (filled)
        *filled = mine.stats;
}

static const brg__ir *ir_of_plan(size_t i)
{
    for (size_t k = 0; k < mine.cache.plans.n; k++) {
        const brg__plan *p = mine.cache.plans.at[k];
        if (!p->unsupported && p->number == i)
            return &p->ir;
    }
    return NULL;
}

size_t brg_compile_print(size_t i, char *filled, size_t size)
{
    const brg__ir *ir = ir_of_plan(i);
    return ir ? brg__ir_print(ir, filled, size) : 0;
}

size_t brg_compile_print_dot(size_t i, char *filled, size_t size)
{
    const brg__ir *ir = ir_of_plan(i);
    return ir ? brg__ir_print_dot(ir, filled, size) : 0;
}
