/* SPDX-License-Identifier: Apache-2.0
 * Compiled backward: scopes, the cache of plans, the runner that the engine
 * hands its tasks to. All of it belongs to the thread. */
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include <brigade/compile.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "compile/anomaly.h"
#include "compile/capture.h"
#include "compile/plan.h"
#include "core/base/error.h"
#include "core/base/log.h"

#define MAX_SCOPES 32
#define MAX_EXECS 16 /* of a plan; the least recently used goes */

/* A plan made concrete, with the sizes that it is for. */
typedef struct sized_exec {
    brg__bytes sizes;
    uint64_t hash;
    uint64_t last_use;
    brg__exec *exec;
} sized_exec;

typedef struct plan {
    brg__bytes key;
    uint64_t hash;
    brg__ir ir;
    sized_exec execs[MAX_EXECS];
    size_t n_execs;
    const char *unsupported; /* why it runs eagerly; NULL: it does not */
    char reason[160];
} plan;

typedef struct scope_state {
    bool is_on;
    bool is_disabled;
    brg_compile_options options;
} scope_state;

typedef struct compiler {
    brg__runner base;
    brg__collected collected;
    BRG__ARRAY(plan *) plans;
    scope_state now;
    scope_state saved[MAX_SCOPES];
    int n_scopes;
    brg_compile_stats stats;
    uint64_t clock;
    bool is_running;
    bool is_registered;
    char reason[256];
} compiler;

static _Thread_local compiler mine;
static pthread_key_t exit_key;
static pthread_once_t exit_once = PTHREAD_ONCE_INIT;

/* ---- Plans ---------------------------------------------------------------------- */

static brg_status copy_bytes(brg__bytes *to, const brg__bytes *from)
{
    BRG_TRY(brg__array_grow((void **)&to->at, &to->capacity, from->n + 1, 1));
    memcpy(to->at, from->at, from->n);
    to->n = from->n;
    return BRG_OK;
}

static bool is_same(const brg__bytes *a, const brg__bytes *b)
{
    return a->n == b->n && memcmp(a->at, b->at, a->n) == 0;
}

static void plan_destroy(plan *p)
{
    if (!p)
        return;
    for (size_t i = 0; i < p->n_execs; i++) {
        brg__exec_destroy(p->execs[i].exec);
        brg__mem_free(p->execs[i].sizes.at);
    }
    brg__ir_deinit(&p->ir);
    brg__mem_free(p->key.at);
    brg__mem_free(p);
}

static plan *find_plan(const compiler *c, uint64_t hash)
{
    for (size_t i = 0; i < c->plans.n; i++)
        if (c->plans.at[i]->hash == hash &&
            is_same(&c->plans.at[i]->key, &c->collected.key))
            return c->plans.at[i];
    return NULL;
}

/* The plan, one line a message; verbose: why there is one more. */
static void log_capture(const compiler *c, const plan *p)
{
    brg__log(BRG_LOG_DEBUG, "compile", "%s", c->reason);
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

/* A capture that meets something it cannot express makes a plan that says so,
 * and is not tried again. */
static brg_status capture(compiler *c, brg__task *task, uint64_t hash,
                          plan **out)
{
    plan *p = BRG__NEW(plan);
    if (!p)
        return BRG_ERR_NOMEM;
    p->hash = hash;
    brg_status status = copy_bytes(&p->key, &c->collected.key);
    if (status == BRG_OK && !c->collected.unsupported)
        status = brg__capture_task(&p->ir, task, &c->collected);
    if (status == BRG_ERR_UNSUPPORTED) {
        snprintf(p->reason, sizeof p->reason, "%s", brg_error_message());
        p->unsupported = p->reason;
        brg__ir_deinit(&p->ir);
        status = BRG_OK;
    } else if (c->collected.unsupported) {
        p->unsupported = c->collected.unsupported;
    }
    if (status == BRG_OK)
        status = brg__array_push(&c->plans, p);
    if (status != BRG_OK) {
        plan_destroy(p);
        return status;
    }
    c->stats.captures += !p->unsupported;
    snprintf(c->reason, sizeof c->reason,
             "Cache miss due to new autograd node: GraphRoot (NodeCall 0) with "
             "key size %zu, %zu plans before",
             c->collected.key.n, c->plans.n - 1);
    log_capture(c, p);
    *out = p;
    return BRG_OK;
}

/* ---- Executables ------------------------------------------------------------------ */

static sized_exec *oldest(plan *p)
{
    sized_exec *found = &p->execs[0];
    for (size_t i = 1; i < p->n_execs; i++)
        if (p->execs[i].last_use < found->last_use)
            found = &p->execs[i];
    return found;
}

static brg_status specialise(compiler *c, plan *p, brg__task *task,
                             uint64_t hash, brg__exec **out)
{
    brg__exec *exec;
    BRG_TRY(brg__exec_create(&exec, &p->ir, task, &c->collected));
    sized_exec *place =
        p->n_execs < MAX_EXECS ? &p->execs[p->n_execs] : oldest(p);
    brg_status status = copy_bytes(&place->sizes, &c->collected.sizes);
    if (status != BRG_OK) {
        brg__exec_destroy(exec);
        return status;
    }
    if (p->n_execs < MAX_EXECS)
        p->n_execs++;
    brg__exec_destroy(place->exec);
    place->exec = exec;
    place->hash = hash;
    place->last_use = ++c->clock;
    c->stats.specialisations++;
    *out = exec;
    return BRG_OK;
}

static brg_status find_exec(compiler *c, plan *p, brg__task *task,
                            brg__exec **out)
{
    const brg__bytes *sizes = &c->collected.sizes;
    uint64_t hash = XXH3_64bits(sizes->at, sizes->n);
    for (size_t i = 0; i < p->n_execs; i++)
        if (p->execs[i].hash == hash && is_same(&p->execs[i].sizes, sizes)) {
            p->execs[i].last_use = ++c->clock;
            *out = p->execs[i].exec;
            return BRG_OK;
        }
    return specialise(c, p, task, hash, out);
}

/* ---- The runner --------------------------------------------------------------------- */

static brg_status run_eagerly(compiler *c, brg__task *task, const char *why)
{
    snprintf(c->reason, sizeof c->reason, "%s", why);
    brg__collected_clear(&c->collected);
    if (c->now.options.fullgraph)
        return BRG_FAIL(BRG_ERR_UNSUPPORTED,
                        "fullgraph: this backward cannot be compiled: %s", why);
    c->stats.fallbacks++;
    return brg__task_run(task);
}

static brg_status run_compiled(compiler *c, brg__task *task)
{
    BRG_TRY(brg__collect(&c->collected, task));
    uint64_t hash = XXH3_64bits(c->collected.key.at, c->collected.key.n);
    plan *p = find_plan(c, hash);
    if (p)
        c->stats.hits += !p->unsupported;
    else
        BRG_TRY(capture(c, task, hash, &p));
    if (p->unsupported)
        return run_eagerly(c, task, p->unsupported);
    brg__exec *exec;
    BRG_TRY(brg__anomaly_before(task));
    BRG_TRY(find_exec(c, p, task, &exec));
    c->is_running = true;
    brg_status status = brg__exec_run(exec, task, &c->collected);
    c->is_running = false;
    return status == BRG_OK ? brg__anomaly_after(task) : status;
}

static brg_status run(brg__runner *self, brg__task *task)
{
    compiler *c = (compiler *)self;
    brg_status status = run_compiled(c, task);
    brg__collected_clear(&c->collected);
    return status;
}

/* ---- Scopes --------------------------------------------------------------------------- */

static void drop_plans(compiler *c)
{
    for (size_t i = 0; i < c->plans.n; i++)
        plan_destroy(c->plans.at[i]);
    c->plans.n = 0;
}

static void on_thread_exit(void *ptr)
{
    compiler *c = ptr;
    drop_plans(c);
    brg__array_deinit(&c->plans);
    brg__collected_deinit(&c->collected);
    c->is_registered = false;
}

static void make_exit_key(void)
{
    (void)pthread_key_create(&exit_key, on_thread_exit);
}

static void apply_state(void)
{
    bool is_on = mine.now.is_on && !mine.now.is_disabled;
    mine.base.run = run;
    if (!mine.is_running)
        brg__runner_set(is_on ? &mine.base : NULL);
}

static brg_status push_scope(int *scope)
{
    if (!mine.is_registered) {
        pthread_once(&exit_once, make_exit_key);
        (void)pthread_setspecific(exit_key, &mine);
        mine.is_registered = true;
    }
    if (mine.n_scopes == MAX_SCOPES)
        return BRG_FAIL(BRG_ERR_STATE, "compile scopes nest %d deep at most",
                        MAX_SCOPES);
    mine.saved[mine.n_scopes++] = mine.now;
    *scope = mine.n_scopes;
    return BRG_OK;
}

brg_status brg_compile_begin(int *scope, const brg_compile_options *options)
{
    static const brg_compile_options defaults = BRG_COMPILE_OPTIONS_INIT;
    BRG_CHECK_ARG(scope, "brg_compile_begin: scope is NULL");
    BRG_CHECK_ARG(!options || options->struct_size >= sizeof *options,
                  "brg_compile_begin: struct_size is wrong: use "
                  "BRG_COMPILE_OPTIONS_INIT");
    BRG_TRY(push_scope(scope));
    mine.now.is_on = true;
    mine.now.options = options ? *options : defaults;
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
    drop_plans(&mine);
    mine.now = (scope_state){0};
    mine.n_scopes = 0;
    mine.stats = (brg_compile_stats){0};
    mine.reason[0] = '\0';
    apply_state();
    return BRG_OK;
}

void brg_compile_get_stats(brg_compile_stats *filled)
{
    *filled = mine.stats;
}

const char *brg_compile_reason(void)
{
    return mine.reason;
}

size_t brg_compile_print(size_t i, char *filled, size_t size)
{
    size_t seen = 0;
    for (size_t k = 0; k < mine.plans.n; k++)
        if (!mine.plans.at[k]->unsupported && seen++ == i)
            return brg__ir_print(&mine.plans.at[k]->ir, filled, size);
    return 0;
}
