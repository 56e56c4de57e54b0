/* SPDX-License-Identifier: Apache-2.0
 * Gradients that shall share a bucket, by patterns of their names. */
#ifndef TOOLS_GROUPS_H
#define TOOLS_GROUPS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define GROUPS_MAX 64

typedef struct tool_groups {
    const char *patterns[GROUPS_MAX]; /* as the shell's; group 1 first */
    size_t n_members[GROUPS_MAX];
    size_t n;
} tool_groups;

/* False: there are too many. */
bool tool_groups_add(tool_groups *groups, const char *pattern);
/* That of the first pattern which matches, from 1; 0: none does. The gradient is
 * a member then. */
uint32_t tool_groups_join(tool_groups *groups, const char *name);
/* Says on stderr which pattern has no member; true if all have. */
bool tool_groups_check(const tool_groups *groups);

#endif
