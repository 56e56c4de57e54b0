/* SPDX-License-Identifier: Apache-2.0
 * The commands of the program `brigade`. Each gets its own arguments, its name
 * first, and returns the exit code: 0, 1 after an error, 2 for bad arguments.
 * A new one is a row here, a file <name>.c and a page man/brigade-<name>.1. */
#ifndef TOOLS_COMMANDS_H
#define TOOLS_COMMANDS_H

#include <brigade/brigade.h>

#define TOOL_COMMANDS(X)                                                       \
    X(info, "what this build contains and finds")                              \
    X(bench, "time the all-reduces and the buckets of this machine")           \
    X(plan, "the buckets that a model's gradients would travel in")            \
    X(trace, "what the traces of several ranks say together")

/* What --help prints; the command does not see that option. */
#define TOOL_DECLARE(name, text)                                               \
    extern const char tool_##name##_help[];                                    \
    int tool_##name(int argc, char **argv);
TOOL_COMMANDS(TOOL_DECLARE)
#undef TOOL_DECLARE

/* The library's message on stderr; 1. */
int tool_fail(const char *name);
/* "brigade bench: <what> '<word>'", and where help is; 2. */
int tool_usage(const char *name, const char *what, const char *word);

/* "4096", "64K", "25M", "1G" (powers of 1024); false if it is none. */
bool tool_parse_bytes(const char *text, size_t *nbytes);

#endif
