/* SPDX-License-Identifier: Apache-2.0
 * Groups of the user's: which parameters are to share a bucket. */
#include "reducer/reducer.h"

#include "core/base/alloc.h"

static const char *name_of(const brg__group_list *g, size_t i)
{
    const char *name = g->name ? g->name(g->list, i) : NULL;
    return name && name[0] ? name : "no name";
}

static brg_status check_numbers(const brg__group_list *g)
{
    BRG_CHECK_ARG(g->n_groups > 0,
                  "%s: bucket_groups is given, but n_bucket_groups is 0",
                  g->what);
    for (size_t i = 0; i < g->n; i++)
        BRG_CHECK_ARG(g->groups[i] <= g->n_groups,
                      "%s: parameter %zu (%s) is in bucket group %u, expected "
                      "0 (none) to %zu",
                      g->what, i, name_of(g, i), g->groups[i], g->n_groups);
    return BRG_OK;
}

/* Group `number` has nobody: says so by the parameter of the next one. */
static brg_status fail_gap(const brg__group_list *g, uint32_t number)
{
    size_t next = 0;
    uint32_t found = 0;
    for (size_t i = 0; i < g->n; i++) {
        bool is_nearer = g->groups[i] > number
                             ? found < number || g->groups[i] < found
                             : found < number && g->groups[i] > found;
        if (is_nearer) {
            next = i;
            found = g->groups[i];
        }
    }
    return BRG_FAIL(
        BRG_ERR_ARG,
        "%s: no parameter is in bucket group %u of %zu; the nearest "
        "is parameter %zu (%s), in group %u",
        g->what, number, g->n_groups, next, name_of(g, next), found);
}

brg_status brg__groups_check(const brg__group_list *g)
{
    BRG_CHECK_ARG(g->groups || g->n_groups == 0,
                  "%s: n_bucket_groups is %zu, but bucket_groups is NULL",
                  g->what, g->n_groups);
    if (!g->groups)
        return BRG_OK;
    BRG_TRY(check_numbers(g));
    BRG_CHECK_ARG(g->n_groups <= g->n,
                  "%s: n_bucket_groups is %zu for %zu parameters", g->what,
                  g->n_groups, g->n);
    bool *has = brg__mem_alloc_array(g->n_groups + 1, sizeof *has,
                                     "groups of parameters");
    if (!has)
        return BRG_ERR_NOMEM;
    uint32_t number = 1;
    for (size_t i = 0; i < g->n; i++)
        has[g->groups[i]] = true;
    while (number <= g->n_groups && has[number])
        number++;
    brg__mem_free(has);
    return number > g->n_groups ? BRG_OK : fail_gap(g, number);
}
