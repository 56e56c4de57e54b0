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

uint64_t brg__bytes_hash(const brg__bytes *bytes)
{
    return XXH3_64bits(bytes->at, bytes->n);
}

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

/* ---- Plans ---------------------------------------------------------------------- */

static void plan_destroy(brg__plan *p)
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

brg__plan *brg__plan_find(const brg__plan_cache *cache, const brg__bytes *key,
                          uint64_t hash)
{
    for (size_t i = 0; i < cache->plans.n; i++)
        if (cache->plans.at[i]->hash == hash &&
            is_same(&cache->plans.at[i]->key, key))
            return cache->plans.at[i];
    return NULL;
}

brg_status brg__plan_capture(brg__plan_cache *cache, brg__task *task,
                             const brg__collected *c, uint64_t hash,
                             brg__plan **out)
{
    brg__plan *p = BRG__NEW(brg__plan);
    if (!p)
        return BRG_ERR_NOMEM;
    p->hash = hash;
    brg_status status = copy_bytes(&p->key, &c->key);
    if (status == BRG_OK && !c->unsupported)
        status = brg__capture_task(&p->ir, task, c);
    if (status == BRG_OK && !c->unsupported)
        status = brg__passes_run(&p->ir);
    if (status == BRG_ERR_UNSUPPORTED) {
        snprintf(p->reason, sizeof p->reason, "%s", brg_error_message());
        p->unsupported = p->reason;
        brg__ir_deinit(&p->ir);
        status = BRG_OK;
    } else if (c->unsupported) {
        p->unsupported = c->unsupported;
    }
    if (status == BRG_OK)
        status = brg__array_push(&cache->plans, p);
    if (status != BRG_OK) {
        plan_destroy(p);
        return status;
    }
    *out = p;
    return BRG_OK;
}

void brg__plan_cache_clear(brg__plan_cache *cache)
{
    for (size_t i = 0; i < cache->plans.n; i++)
        plan_destroy(cache->plans.at[i]);
    brg__array_deinit(&cache->plans);
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

static brg_status specialise(brg__plan_cache *cache, brg__plan *p,
                             brg__task *task, const brg__collected *c,
                             brg__sized_exec **out)
{
    brg__exec *exec;
    BRG_TRY(brg__exec_create(&exec, &p->ir, task, c));
    brg__sized_exec *place =
        p->n_execs < BRG__MAX_EXECS ? &p->execs[p->n_execs] : oldest(p);
    brg_status status = copy_bytes(&place->sizes, &c->sizes);
    if (status != BRG_OK) {
        brg__exec_destroy(exec);
        return status;
    }
    if (p->n_execs < BRG__MAX_EXECS)
        p->n_execs++;
    brg__exec_destroy(place->exec);
    place->exec = exec;
    place->last_use = ++cache->clock;
    *out = place;
    return BRG_OK;
}

brg_status brg__plan_exec(brg__plan_cache *cache, brg__plan *plan,
                          brg__task *task, const brg__collected *c,
                          brg_compile_stats *stats, brg__exec **out)
{
    uint64_t hash = brg__bytes_hash(&c->sizes);
    for (size_t i = 0; i < plan->n_execs; i++) {
        brg__sized_exec *e = &plan->execs[i];
        if (e->hash != hash || !is_same(&e->sizes, &c->sizes))
            continue;
        e->last_use = ++cache->clock;
        *out = e->exec;
        return BRG_OK;
    }
    brg__sized_exec *made;
    BRG_TRY(specialise(cache, plan, task, c, &made));
    made->hash = hash;
    stats->specialisations++;
    *out = made->exec;
    return BRG_OK;
}
