/* SPDX-License-Identifier: Apache-2.0
 * The plans of a thread: see plan_cache.h. */
#include "compile/plan_cache.h"

#include <stdio.h>
#include <string.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "compile/capture.h"
#include "compile/passes/passes.h"
#include "core/base/error.h"

/* ---- Bytes ---------------------------------------------------------------------- */

uint64_t brg__hash_mask = UINT64_MAX;

uint64_t brg__bytes_hash(const brg__bytes *bytes)
{
    return XXH3_64bits(bytes->at, bytes->n) & brg__hash_mask;
}

/* Of arrays that count their items in n. */
#define is_same(a, b)                                                          \
    ((a)->n == (b)->n &&                                                       \
     ((a)->n == 0 || memcmp((a)->at, (b)->at, (a)->n * sizeof *(a)->at) == 0))

#define copy_array(to, from)                                                   \
    ((to)->n = 0,                                                              \
     brg__array_reserve((to), (from)->n + 1) == BRG_OK                         \
         ? (memcpy((to)->at, (from)->at, (from)->n * sizeof *(to)->at),        \
            (to)->n = (from)->n, BRG_OK)                                       \
         : BRG_ERR_NOMEM)

/* ---- Plans ---------------------------------------------------------------------- */

static void plan_destroy(brg__plan *p)
{
    if (!p)
        return;
    for (size_t i = 0; i < BRG__MAX_EXECS; i++) {
        brg__exec_destroy(p->execs[i].exec);
        brg__array_deinit(&p->execs[i].sizes);
        brg__array_deinit(&p->execs[i].strides);
    }
    brg__ir_deinit(&p->ir);
    brg__array_deinit(&p->key);
    brg__array_deinit(&p->ends);
    brg__array_deinit(&p->sizes);
    brg__array_deinit(&p->is_dynamic);
    brg__mem_free(p);
}

static brg__plan *search(const brg__plan_cache *cache, const brg__bytes *key,
                         uint64_t hash)
{
    for (size_t i = 0; i < cache->plans.n; i++) {
        brg__plan *p = cache->plans.at[i];
        if (p->hash == hash && is_same(&p->key, key))
            return p;
    }
    return NULL;
}

brg__plan *brg__plan_find(brg__plan_cache *cache, const brg__collected *c,
                          uint64_t *hash)
{
    brg__plan *p = cache->latest;
    if (p && is_same(&p->key, &c->key)) {
        *hash = p->hash;
    } else {
        *hash = brg__bytes_hash(&c->key);
        p = search(cache, &c->key, *hash);
    }
    if (p) {
        p->last_use = ++cache->clock;
        cache->latest = p;
    }
    return p;
}

brg__plan *brg__plan_find_sibling(const brg__plan_cache *cache,
                                  const brg__collected *c)
{
    for (size_t i = cache->plans.n; i-- > 0;) {
        brg__plan *p = cache->plans.at[i];
        if (p->n_structure == c->n_structure && p->sizes.n == c->sizes.n &&
            memcmp(p->key.at, c->key.at, p->n_structure) == 0)
            return p;
    }
    return NULL;
}

bool brg__plan_has_changed(const brg__plan *p, const brg__collected *c,
                           size_t i)
{
    return !p->is_dynamic.at[i] && p->sizes.at[i] != c->sizes.at[i];
}

size_t brg__plan_count_changed(const brg__plan *p, const brg__collected *c)
{
    size_t n = 0;
    for (size_t i = 0; i < p->sizes.n; i++)
        n += brg__plan_has_changed(p, c, i);
    return n;
}

static brg_status copy_identity(brg__plan *p, const brg__collected *c,
                                const brg__plan_wish *wish)
{
    p->hash = wish->hash;
    p->n_structure = c->n_structure;
    BRG_TRY(copy_array(&p->key, &c->key));
    BRG_TRY(copy_array(&p->ends, &c->ends));
    BRG_TRY(copy_array(&p->sizes, &c->sizes));
    BRG_TRY(brg__array_reserve(&p->is_dynamic, c->sizes.n + 1));
    const brg__plan *old = wish->sibling;
    for (size_t i = 0; i < c->sizes.n; i++)
        p->is_dynamic.at[i] =
            !wish->is_static || (old && (old->is_dynamic.at[i] ||
                                         old->sizes.at[i] != c->sizes.at[i]));
    p->is_dynamic.n = c->sizes.n;
    return BRG_OK;
}

/* A backward whose ops run one by one stays as the engine has it. */
static brg_compile_backend backend_of(const brg__ir *ir,
                                      const brg__collected *c)
{
    const brg_compile_backend asked = (brg_compile_backend)c->mode.backend;
    const bool is_fused = ir->is_there && asked == BRG_COMPILE_BACKEND_FUSED;
    return ir->is_loose && !is_fused ? BRG_COMPILE_BACKEND_EAGER : asked;
}

static brg_status capture(brg__plan *p, brg__task *task,
                          const brg__collected *c)
{
    brg_status status = brg__capture_task(&p->ir, task, c);
    if (status == BRG_OK)
        status = brg__passes_run(&p->ir, backend_of(&p->ir, c));
    p->pieces = brg__ir_count_pieces(&p->ir);
    p->is_closed = brg__ir_is_closed(&p->ir);
    p->is_sparse = c->is_sparse;
    if (status != BRG_ERR_UNSUPPORTED)
        return status;
    snprintf(p->reason, sizeof p->reason, "%s", brg_error_message());
    p->unsupported = p->reason;
    brg__ir_deinit(&p->ir);
    return BRG_OK;
}

static brg_status enter(brg__plan_cache *cache, brg__plan *p, brg__plan *stale)
{
    for (size_t i = 0; stale && i < cache->plans.n; i++)
        if (cache->plans.at[i] == stale) {
            cache->plans.at[i] = p;
            cache->latest = NULL;
            plan_destroy(stale);
            return BRG_OK;
        }
    return brg__array_push(&cache->plans, p);
}

brg_status brg__plan_capture(brg__plan_cache *cache, brg__task *task,
                             const brg__collected *c,
                             const brg__plan_wish *wish, brg__plan **out)
{
    brg__plan *p = BRG__NEW(brg__plan);
    if (!p)
        return BRG_ERR_NOMEM;
    brg_status status = copy_identity(p, c, wish);
    if (status == BRG_OK)
        status = capture(p, task, c);
    if (status == BRG_OK)
        status = enter(cache, p, wish->stale);
    if (status != BRG_OK) {
        plan_destroy(p);
        return status;
    }
    p->last_use = ++cache->clock;
    *out = p;
    return BRG_OK;
}

size_t brg__plan_cache_trim(brg__plan_cache *cache)
{
    size_t limit = cache->limit ? cache->limit : BRG__MAX_PLANS, n_gone = 0;
    for (; cache->plans.n >= limit; n_gone++) {
        size_t oldest = 0;
        for (size_t i = 1; i < cache->plans.n; i++)
            if (cache->plans.at[i]->last_use <
                cache->plans.at[oldest]->last_use)
                oldest = i;
        plan_destroy(cache->plans.at[oldest]);
        cache->latest = NULL;
        memmove(cache->plans.at + oldest, cache->plans.at + oldest + 1,
                (cache->plans.n - oldest - 1) * sizeof *cache->plans.at);
        cache->plans.n--;
    }
    return n_gone;
}

void brg__plan_cache_clear(brg__plan_cache *cache)
{
    for (size_t i = 0; i < cache->plans.n; i++)
        plan_destroy(cache->plans.at[i]);
    brg__array_deinit(&cache->plans);
    cache->latest = NULL;
    cache->clock = 0;
}

/* ---- Executables ------------------------------------------------------------------ */

static brg__sized_exec *oldest(brg__plan *p)
{
    brg__sized_exec *found = &p->execs[0];
    for (size_t i = 1; i < p->n_execs; i++)
        if (p->execs[i].last_use < found->last_use)
            found = &p->execs[i];
    return found;
}

static uint64_t hash_sizes(const brg__collected *c)
{
    uint64_t hash = XXH3_64bits(c->sizes.at, c->sizes.n * sizeof *c->sizes.at);
    return XXH3_64bits_withSeed(c->strides.at,
                                c->strides.n * sizeof *c->strides.at, hash) &
           brg__hash_mask;
}

/* A place that failed to be filled holds nothing and is filled another time. */
static brg_status specialise(brg__plan *p, brg__task *task,
                             const brg__collected *c, brg__sized_exec *place)
{
    brg__exec *exec;
    BRG_TRY(brg__exec_create(&exec, &p->ir, task, c));
    brg__exec_destroy(place->exec);
    place->exec = NULL;
    brg_status status = copy_array(&place->sizes, &c->sizes);
    if (status == BRG_OK)
        status = copy_array(&place->strides, &c->strides);
    if (status != BRG_OK) {
        brg__exec_destroy(exec);
        return status;
    }
    place->exec = exec;
    return BRG_OK;
}

static brg__sized_exec *find_exec(brg__plan *plan, const brg__collected *c,
                                  uint64_t *hash)
{
    brg__sized_exec *e = &plan->execs[plan->latest];
    if (e->exec && is_same(&e->sizes, &c->sizes) &&
        is_same(&e->strides, &c->strides))
        return e;
    *hash = hash_sizes(c);
    for (size_t i = 0; i < plan->n_execs; i++) {
        e = &plan->execs[i];
        if (e->exec && e->hash == *hash && is_same(&e->sizes, &c->sizes) &&
            is_same(&e->strides, &c->strides))
            return e;
    }
    return NULL;
}

brg_status brg__plan_exec(brg__plan_cache *cache, brg__plan *plan,
                          brg__task *task, const brg__collected *c,
                          brg_compile_stats *stats, brg__exec **out)
{
    uint64_t hash = 0;
    brg__sized_exec *place = find_exec(plan, c, &hash);
    if (!place) {
        bool is_full = plan->n_execs == BRG__MAX_EXECS;
        place = is_full ? oldest(plan) : &plan->execs[plan->n_execs];
        BRG_TRY(specialise(plan, task, c, place));
        plan->n_execs += !is_full;
        place->hash = hash;
        stats->specialisations++;
    }
    place->last_use = ++cache->clock;
    plan->latest = (size_t)(place - plan->execs);
    *out = place->exec;
    return BRG_OK;
}
