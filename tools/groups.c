/* SPDX-License-Identifier: Apache-2.0
 * brigade plan --group. */
#include "tools/groups.h"

#include <fnmatch.h>
#include <stdio.h>

bool tool_groups_add(tool_groups *groups, const char *pattern)
{
    if (groups->n == GROUPS_MAX)
        return false;
    groups->patterns[groups->n++] = pattern;
    return true;
}

uint32_t tool_groups_join(tool_groups *groups, const char *name)
{
    for (size_t k = 0; k < groups->n; k++)
        if (fnmatch(groups->patterns[k], name, 0) == 0) {
            groups->n_members[k]++;
            return (uint32_t)k + 1;
        }
    return 0;
}

bool tool_groups_check(const tool_groups *groups)
{
    for (size_t k = 0; k < groups->n; k++)
        if (groups->n_members[k] == 0) {
            fprintf(stderr,
                    "brigade plan: no gradient is in the group '%s': none has "
                    "such a name, or an earlier group has them all\n",
                    groups->patterns[k]);
            return false;
        }
    return true;
}
