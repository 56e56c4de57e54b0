/* SPDX-License-Identifier: Apache-2.0
 * Why plans were captured, or backwards ran eagerly: records, text and log.
 *
 * The keys of all plans together are read as a tree whose branches are the
 * records of their nodes: the first record of a new key that no plan has at its
 * place is the new node, and the other records seen at that place, after the
 * same beginning and of the same kind, are its siblings. */
#include <stdio.h>
#include <string.h>

#include "compile/compiler.h"
#include "core/base/log.h"

/* ---- The new node -------------------------------------------------------------- */

static size_t start_of(const uint32_t *ends, size_t i)
{
    return i == 0 ? 0 : ends[i - 1];
}

/* How many records p and the collected key have in common. */
static size_t common_records(const brg__plan *p, const brg__collected *c)
{
    size_t n = p->ends.n < c->ends.n ? p->ends.n : c->ends.n, i = 0;
    while (i < n && p->ends.at[i] == c->ends.at[i] &&
           memcmp(p->key.at + start_of(p->ends.at, i),
                  c->key.at + start_of(c->ends.at, i),
                  p->ends.at[i] - start_of(p->ends.at, i)) == 0)
        i++;
    return i;
}

static size_t first_new_record(const brg__plan_cache *cache,
                               const brg__collected *c)
{
    size_t most = 0;
    for (size_t k = 0; k < cache->plans.n; k++) {
        size_t n = common_records(cache->plans.at[k], c);
        most = n > most ? n : most;
    }
    return most < c->ends.n ? most : c->ends.n - 1;
}

/* Whether plan p has a record of that kind at place i: class and op are the
 * first bytes of each node's, the root has no kinds. */
static bool is_sibling(const brg__plan *p, const brg__collected *c, size_t i)
{
    if (common_records(p, c) != i || i >= p->ends.n)
        return false;
    size_t at = start_of(c->ends.at, i);
    return i == 0 ||
           memcmp(p->key.at + at, c->key.at + at, 2 * sizeof(void *)) == 0;
}

typedef struct text {
    char *at;
    size_t size, n;
} text;

static void add(text *t, const char *format, size_t value)
{
    if (t->n < t->size)
        t->n += (size_t)snprintf(t->at + t->n, t->size - t->n, format, value);
}

static void describe_node(const brg__compiler *c, const brg__task *task,
                          brg_compile_record *r)
{
    const brg__collected *now = &c->collected;
    size_t i = first_new_record(&c->cache, now);
    r->cause = BRG_COMPILE_NEW_NODE;
    r->call = (uint32_t)i;
    r->key_size = now->ends.at[i] - start_of(now->ends.at, i);
    const char *name =
        i == 0 ? "GraphRoot" : brg_node_name(task->visits.at[i - 1].node);
    snprintf(r->node, sizeof r->node, "%s", name);
    text t = {r->text, sizeof r->text, 0};
    t.n = (size_t)snprintf(r->text, sizeof r->text,
                           "Cache miss due to new autograd node: %s (NodeCall "
                           "%zu) with key size %zu, previous key sizes=[",
                           name, i, r->key_size);
    for (size_t k = 0; k < c->cache.plans.n; k++) {
        const brg__plan *p = c->cache.plans.at[k];
        if (!is_sibling(p, now, i))
            continue;
        add(&t, r->n_siblings++ ? ", %zu" : "%zu",
            p->ends.at[i] - start_of(p->ends.at, i));
    }
    add(&t, "]", 0);
}

static void describe_sizes(const brg__compiler *c, const brg__plan *sibling,
                           brg_compile_record *r)
{
    const brg__ints *sizes = &c->collected.sizes;
    r->cause = BRG_COMPILE_CHANGED_SIZES;
    r->n_sizes = sizes->n;
    r->n_changed = brg__plan_count_changed(sibling, &c->collected);
    text t = {r->text, sizeof r->text, 0};
    t.n = (size_t)snprintf(
        r->text, sizeof r->text,
        "Cache miss due to %zu changed tensor shapes (total of %zu): ",
        r->n_changed, r->n_sizes);
    size_t n = 0;
    for (size_t i = 0; i < sizes->n; i++)
        if (brg__plan_has_changed(sibling, &c->collected, i))
            add(&t, n++ ? ", sizes[%zu]" : "sizes[%zu]", i);
}

/* ---- Records -------------------------------------------------------------------- */

static brg_compile_record *new_record(brg__compiler *c)
{
    brg_compile_record *r = &c->records[c->n_records++ % BRG__MAX_RECORDS];
    memset(r, 0, sizeof *r);
    r->plan = c->stats.captures;
    return r;
}

void brg__reason_of_miss(brg__compiler *c, const brg__task *task,
                         const brg__plan *sibling)
{
    brg_compile_record *r = new_record(c);
    if (sibling)
        describe_sizes(c, sibling, r);
    else
        describe_node(c, task, r);
    if (c->now.log_level >= BRG_LOG_DEBUG)
        brg__log(BRG_LOG_DEBUG, "compile", "%s", r->text);
}

void brg__reason_of_fallback(brg__compiler *c, const char *why)
{
    brg_compile_record *r = new_record(c);
    r->cause = BRG_COMPILE_FALLBACK;
    snprintf(r->text, sizeof r->text, "%s", why);
}

void brg__reason_of_skip(brg__compiler *c, const brg__plan *plan,
                         const char *why)
{
    brg_compile_record *r = new_record(c);
    r->cause = BRG_COMPILE_REPLAY_SKIP;
    r->plan = plan ? plan->number : 0;
    snprintf(r->text, sizeof r->text, "skipping replay due to %s", why);
    if (c->now.log_level >= BRG_LOG_DEBUG)
        brg__log(BRG_LOG_DEBUG, "compile", "%s", r->text);
}

bool brg_compile_get_record(size_t i, brg_compile_record *filled)
{
    const brg__compiler *c = brg__compiler_mine();
    if (i >= c->n_records || i >= BRG__MAX_RECORDS || !filled)
        return false;
    *filled = c->records[(c->n_records - 1 - i) % BRG__MAX_RECORDS];
    return true;
}

const char *brg_compile_reason(void)
{
    const brg__compiler *c = brg__compiler_mine();
    if (c->n_records == 0)
        return "";
    return c->records[(c->n_records - 1) % BRG__MAX_RECORDS].text;
}

/* ---- The log ----------------------------------------------------------------------- */

/* What dce dropped, and which node each number in the plan is. */
static void log_origins(const brg__task *task, const brg__plan *p,
                        const char *prefix)
{
    brg__log(BRG_LOG_DEBUG, "compile", "%s%zu nodes dropped that nobody needs",
             prefix, p->ir.n_dropped);
    for (size_t v = 0; v < task->visits.n; v++)
        brg__log(BRG_LOG_DEBUG, "compile", "%s@%zu is %s (NodeCall %zu)",
                 prefix, v, brg_node_name(task->visits.at[v].node), v + 1);
}

void brg__reason_log_plan(const brg__compiler *c, const brg__task *task,
                          const brg__plan *p)
{
    char prefix[32];
    if (c->now.log_level < BRG_LOG_INFO)
        return;
    snprintf(prefix, sizeof prefix,
             "plan %llu: ", (unsigned long long)p->number);
    brg__ir_log(&p->ir, BRG_LOG_INFO, prefix);
    if (c->now.log_level >= BRG_LOG_DEBUG)
        log_origins(task, p, prefix);
}
