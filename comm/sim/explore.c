/* SPDX-License-Identifier: Apache-2.0
 * Every order of events: depth first over the choices of the scheduler. A run
 * is repeated up to its last choice that can be made otherwise, and that one
 * is. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "comm/sim/world.h"

/* ---- Choices as text ----------------------------------------------------------- */

static brg_status parse(brg__sim_choices *c, const char *text)
{
    const char *at = text;
    while (at && *at) {
        char *end;
        unsigned long i = strtoul(at, &end, 10);
        BRG_CHECK_ARG(end != at && (*end == '.' || *end == '\0') &&
                          i <= UINT16_MAX && c->n_given < BRG__SIM_MAX_DEPTH,
                      "brg_sim_run: replay is \"%s\", expected up to %d "
                      "numbers like \"0.2.1\"",
                      text, BRG__SIM_MAX_DEPTH);
        c->at[c->n_given++] = (uint16_t)i;
        at = end + (*end == '.');
    }
    return BRG_OK;
}

static void print(const brg__sim_choices *c, char *text, size_t size)
{
    size_t used = 0;
    text[0] = '\0';
    for (size_t i = 0; i < c->n && i < c->depth && used + 8 < size; i++)
        used += (size_t)snprintf(text + used, size - used, "%s%u",
                                 i ? "." : ", choices ", c->at[i]);
}

/* The failure says how to come back to it. */
static brg_status name_run(brg_status status, const brg_sim_options *options,
                           const brg__sim_choices *c)
{
    char text[300];
    if (status == BRG_OK)
        return BRG_OK;
    print(c, text, sizeof text);
    return brg__error_prefix("seed %llu%s: ", (unsigned long long)options->seed,
                             text);
}

/* ---- Runs ------------------------------------------------------------------------ */

brg_status brg_sim_run(int world_size, const brg_sim_options *options,
                       brg_sim_rank_fn fn, void *user)
{
    brg_sim_options complete;
    brg__sim_choices choices = {.n = 0};
    BRG_TRY(brg__sim_options_take(&complete, world_size, options, fn));
    BRG_TRY(parse(&choices, complete.replay));
    choices.depth = choices.n_given;
    return name_run(brg__sim_run(world_size, &complete, fn, user, &choices),
                    &complete, &choices);
}

/* Sets up the next order; false if there is none. */
static bool advance(brg__sim_choices *c)
{
    size_t n = c->n < c->depth ? c->n : c->depth;
    while (n > 0 && c->at[n - 1] + 1 >= c->of[n - 1])
        n--;
    if (n == 0)
        return false;
    c->at[n - 1]++;
    c->n_given = n;
    return true;
}

brg_status brg_sim_explore(int world_size, const brg_sim_options *options,
                           brg_sim_rank_fn fn, void *user,
                           brg_sim_exploration *filled)
{
    brg_sim_options complete;
    BRG_TRY(brg__sim_options_take(&complete, world_size, options, fn));
    BRG_CHECK_ARG(filled && filled->depth >= 1 &&
                      filled->depth <= BRG__SIM_MAX_DEPTH,
                  "brg_sim_explore: depth is %zu, expected 1 to %d",
                  filled ? filled->depth : 0, BRG__SIM_MAX_DEPTH);
    brg__sim_choices choices = {.depth = filled->depth};
    brg_status status = BRG_OK;
    filled->n_runs = 0;
    filled->is_complete = false;
    while (status == BRG_OK && !filled->is_complete &&
           (filled->max_runs == 0 || filled->n_runs < filled->max_runs)) {
        choices.n = 0;
        status = brg__sim_run(world_size, &complete, fn, user, &choices);
        filled->n_runs++;
        if (status == BRG_OK)
            filled->is_complete = !advance(&choices);
    }
    return name_run(status, &complete, &choices);
}
