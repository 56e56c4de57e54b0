/* SPDX-License-Identifier: Apache-2.0
 * One rank of a training that goes on. */
#include "tests/support/survive.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#include <brigade/compile.h>

#include "tests/support/brg_test.h"
#include "tests/support/ranks.h"

#define MAX_GROUPS 16

typedef struct run {
    survive *s;
    brg_pg *pg;               /* borrowed, or the last of these */
    brg_pg *left[MAX_GROUPS]; /* owned */
    int n_left;
    leaf_net net;
    int64_t n_steps;
    bool has_failed;
    bool is_fresh; /* the state has come from another rank */
    int origin;    /* the rank in the first group */
} run;

/* The script befell the rank (of the first group). */
static bool is_culprit(const run *r, int origin)
{
    const brg_sim_options *script = r->s->script;
    for (size_t i = 0; script && i < script->n_faults; i++)
        if (script->faults[i].rank == origin)
            return true;
    return false;
}

/* What this rank heard was spoilt, so that it may take any rank for wrong. */
static bool is_deceived(const run *r)
{
    const brg_sim_options *script = r->s->script;
    for (size_t i = 0; script && i < script->n_faults; i++)
        if (script->faults[i].rank == r->origin &&
            script->faults[i].kind == BRG_SIM_CORRUPT)
            return true;
    return false;
}

/* Every message begins with the rank that it is from, and a colon. Besides, it
 * has to name one that the script befell: in the first group the rank itself,
 * later, where ranks have other numbers, another one or this one if it was. */
static bool names_a_rank(const run *r, const char *message)
{
    int mine = brg_pg_rank(r->pg);
    bool is_sure = r->n_left == 0 && r->s->script && !is_deceived(r);
    for (const char *at = message; (at = strstr(at, "rank"));) {
        at += strlen("rank");
        const char *number = *at == 's' ? at + 1 : at;
        if (number[0] != ' ' || !isdigit((unsigned char)number[1]))
            continue;
        char *end;
        int rank = (int)strtol(number, &end, 10);
        if (rank == mine && (*end == ':' || !is_culprit(r, r->origin)))
            continue;
        if (!is_sure || is_culprit(r, rank))
            return true;
    }
    return false;
}

/* The error is one of losing a rank, and says which. */
static brg_status check_words(run *r, brg_status status)
{
    const char *names = r->has_failed ? NULL : r->s->names;
    r->has_failed = true;
    RANK_CHECK(status == BRG_ERR_PEER || status == BRG_ERR_TIMEOUT ||
                   status == BRG_ERR_MISMATCH || status == BRG_ERR_COMM,
               "%s: %s", brg_status_name(status), brg_error_message());
    RANK_CHECK(!names || strstr(brg_error_message(), names), "no \"%s\" in: %s",
               names, brg_error_message());
    RANK_CHECK(names_a_rank(r, brg_error_message()), "no rank is named in: %s",
               brg_error_message());
    return BRG_OK;
}

/* This rank's own: it has died, by script. */
static bool has_died(void)
{
    return brg_error_code() == BRG_ERR_COMM;
}

static brg_status go_on(run *r)
{
    for (brg_status status = BRG_ERR_PEER; status != BRG_OK;) {
        int64_t before = r->n_steps;
        RANK_CHECK(r->n_left < MAX_GROUPS, "shrunk too often");
        BRG_TRY(brg_pg_shrink(&r->left[r->n_left], r->pg));
        r->pg = r->left[r->n_left++];
        r->s->n_shrinks++;
        status = leaf_net_regroup(&r->net, r->pg, &r->n_steps);
        if (status != BRG_OK && brg_pg_error(r->pg) == BRG_OK)
            return status;
        RANK_CHECK(r->n_steps == before || r->n_steps == before + 1,
                   "from %d steps to %d", (int)before, (int)r->n_steps);
    }
    r->is_fresh = true;
    if (r->s->went_on < 0)
        r->s->went_on = r->n_steps;
    return BRG_OK;
}

/* *is_astray: this rank has to leave. */
static brg_status compare(run *r, bool *is_astray)
{
    if (!r->s->compares)
        return BRG_OK;
    brg_status status = brg_ddp_compare(r->net.ddp);
    *is_astray = status == BRG_ERR_MISMATCH && brg_pg_error(r->pg) == BRG_OK;
    return status;
}

/* Replicas that were equal before a step and are not after it: those that have
 * gone astray alone are wrong. One that was wrong before has spoilt all. */
static brg_status step(run *r, bool *is_astray)
{
    const survive *s = r->s;
    *is_astray = false;
    if (s->at_step)
        s->at_step(r->n_steps);
    if (r->is_fresh)
        BRG_TRY(compare(r, is_astray));
    r->is_fresh = false;
    BRG_TRY(leaf_net_step(&r->net, (int)r->n_steps));
    r->n_steps++;
    BRG_TRY(compare(r, is_astray));
    r->s->n_steps++;
    bool is_known = s->expected && (!s->how.plain || r->n_left == 0);
    RANK_CHECK(!is_known || leaf_net_hash(&r->net) == s->expected[r->n_steps],
               "wrong weights after step %d", (int)r->n_steps);
    return BRG_OK;
}

static brg_status train(run *r)
{
    while (r->n_steps < r->s->how.n_steps) {
        bool is_astray;
        brg_status status = step(r, &is_astray);
        if (status == BRG_ERR_INTERNAL)
            return status;
        if (status == BRG_OK)
            continue;
        if (!has_died())
            BRG_TRY(check_words(r, status));
        if (!is_astray)
            status = go_on(r);
        if (status == BRG_ERR_MISMATCH && brg_pg_error(r->pg) == BRG_OK) {
            r->s->n_astray++;
            return BRG_OK;
        }
        r->s->n_died += status != BRG_OK && has_died();
        BRG_TRY(status);
    }
    r->s->n_ended++;
    r->s->hash = leaf_net_hash(&r->net);
    return BRG_OK;
}

static brg_status run_rank(run *r, const leaf_train *how)
{
    brg_status status = leaf_net_init(&r->net, r->pg, how);
    if (status == BRG_OK)
        return train(r);
    if (has_died()) {
        r->s->n_died++;
        return status;
    }
    r->s->n_early++;
    return check_words(r, status);
}

brg_status survive_rank(brg_pg *pg, void *user)
{
    run r = {.s = user, .pg = pg, .is_fresh = true, .origin = brg_pg_rank(pg)};
    int scope = 0;
    brg_compile_options compile = BRG_COMPILE_OPTIONS_INIT;
    compile.fullgraph = true;
    if (r.s->how.compiled)
        BRG_TRY(brg_compile_begin(&scope, &compile));
    brg_status status = run_rank(&r, &r.s->how);
    leaf_net_deinit(&r.net);
    while (r.n_left > 0)
        brg_pg_destroy(r.left[--r.n_left]);
    if (scope && brg_compile_end(scope) != BRG_OK && status == BRG_OK)
        status = brg_error_code();
    return status;
}

/* ---- What is right --------------------------------------------------------------- */

typedef struct reference {
    uint64_t *filled;
    const leaf_train *how;
} reference;

static brg_status run_reference(brg_pg *pg, void *user)
{
    const reference *ref = user;
    leaf_net net;
    brg_status status = leaf_net_init(&net, pg, ref->how);
    for (int k = 0; k <= ref->how->n_steps && status == BRG_OK; k++) {
        ref->filled[k] = leaf_net_hash(&net);
        if (k < ref->how->n_steps)
            status = leaf_net_step(&net, k);
    }
    leaf_net_deinit(&net);
    return status;
}

brg_status survive_expect(uint64_t *filled, const leaf_train *how, int n)
{
    return brg_sim_run(n, NULL, run_reference, &(reference){filled, how});
}

void survive_print(int world_size, const brg_sim_options *options)
{
    static const char *const kinds[] = {"DELAY", "DROP", "CORRUPT", "DIE",
                                        "REPEAT"};
    printf("repeat with: %d ranks, seed %llu, latency_ns %llu, faults {",
           world_size, (unsigned long long)options->seed,
           (unsigned long long)options->latency_ns);
    for (size_t i = 0; i < options->n_faults; i++) {
        const struct brg_sim_fault *f = &options->faults[i];
        printf("%s{BRG_SIM_%s, %d, %llu, %llu}", i ? ", " : "", kinds[f->kind],
               f->rank, (unsigned long long)f->call, (unsigned long long)f->ns);
    }
    printf("}\n");
}
