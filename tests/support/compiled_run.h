/* SPDX-License-Identifier: Apache-2.0
 * A stretch of a test all of whose backwards are compiled ones: one that ran
 * eagerly instead fails it. */
#ifndef BRG_TESTS_SUPPORT_COMPILED_RUN_H
#define BRG_TESTS_SUPPORT_COMPILED_RUN_H

#include <brigade/compile.h>

#include "tests/support/ranks.h"

typedef struct compiled_run {
    int scope;
    brg_compile_stats before;
} compiled_run;

static inline brg_status compiled_begin(compiled_run *filled)
{
    brg_compile_get_stats(&filled->before);
    return brg_compile_begin(&filled->scope, NULL);
}

/* `status`: what came of the stretch, which is returned if it failed. */
static inline brg_status compiled_end(const compiled_run *c, brg_status status)
{
    const brg_compile_stats *before = &c->before;
    brg_compile_stats after;
    brg_compile_get_stats(&after);
    brg_status ended = brg_compile_end(c->scope);
    BRG_TRY(status);
    BRG_TRY(ended);
    RANK_CHECK(after.captures + after.hits > before->captures + before->hits,
               "no backward was compiled");
    RANK_CHECK(
        after.fallbacks == before->fallbacks, "%d backwards ran eagerly: %s",
        (int)(after.fallbacks - before->fallbacks), brg_compile_reason());
    return BRG_OK;
}

static inline brg_status compiled_check(brg_pg *pg,
                                        brg_status (*check)(brg_pg *pg))
{
    compiled_run c;
    BRG_TRY(compiled_begin(&c));
    return compiled_end(&c, check(pg));
}

#endif
