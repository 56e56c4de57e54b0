/* SPDX-License-Identifier: Apache-2.0
 * Scopes: where compiled backward is on, for the calling thread. */
#include <pthread.h>

#include "compile/compiler.h"
#include "core/base/error.h"
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

static void apply_state(void)
{
    bool is_on = mine.now.is_on && !mine.now.is_disabled;
    mine.base.run = brg__compiler_run;
    if (!mine.is_running)
        brg__runner_set(is_on ? &mine.base : NULL);
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

brg_status brg_compile_begin(int *scope, const brg_compile_options *options)
{
    brg_compile_options o = BRG_COMPILE_OPTIONS_INIT;
    BRG_CHECK_ARG(scope, "brg_compile_begin: scope is NULL");
    BRG_TRY(BRG_TAKE_OPTIONS(&o, options, "brg_compile_begin",
                             BRG_COMPILE_OPTIONS_INIT));
    BRG_TRY(push_scope(scope));
    mine.now.is_on = true;
    mine.now.options = o;
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

bool brg_compile_is_on(void)
{
    return mine.now.is_on && !mine.now.is_disabled && !mine.is_running;
}

brg_status brg_compile_reset(void)
{
    if (mine.is_running)
        return BRG_FAIL(BRG_ERR_STATE, "brg_compile_reset: a plan is running");
    brg__plan_cache_clear(&mine.cache);
    mine.now = (brg__compile_state){0};
    mine.n_scopes = 0;
    mine.stats = (brg_compile_stats){0};
    mine.reason[0] = '\0';
    apply_state();
    return BRG_OK;
}

/* ---- What is asked of it ------------------------------------------------------------ */

void brg_compile_get_stats(brg_compile_stats *filled)
{
    *filled = mine.stats;
}

size_t brg_compile_print(size_t i, char *filled, size_t size)
{
    size_t seen = 0;
    for (size_t k = 0; k < mine.cache.plans.n; k++)
        if (!mine.cache.plans.at[k]->unsupported && seen++ == i)
            return brg__ir_print(&mine.cache.plans.at[k]->ir, filled, size);
    return 0;
}
