/* SPDX-License-Identifier: Apache-2.0
 * The program `brigade`: finds the command and runs it. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tools/commands.h"

typedef struct command {
    const char *name;
    const char *text, *help;
    int (*run)(int argc, char **argv);
} command;

static const command commands[] = {
#define TOOL_ROW(name, text) {#name, text, tool_##name##_help, tool_##name},
    TOOL_COMMANDS(TOOL_ROW)
#undef TOOL_ROW
};

#define N_COMMANDS (sizeof commands / sizeof *commands)

int tool_fail(const char *name)
{
    fprintf(stderr, "brigade %s: %s\n", name, brg_error_message());
    return 1;
}

int tool_usage(const char *name, const char *what, const char *word)
{
    fprintf(stderr, "brigade %s: %s '%s'; see brigade %s --help\n", name, what,
            word, name);
    return 2;
}

bool tool_parse_bytes(const char *text, size_t *nbytes)
{
    static const char units[] = "KMG";
    char *end;
    if (*text < '0' || *text > '9')
        return false;
    unsigned long long n = strtoull(text, &end, 10);
    const char *unit = *end ? strchr(units, *end) : NULL;
    int shift = unit ? 10 * (int)(unit - units + 1) : 0;
    if (end[unit ? 1 : 0] != '\0' || n == 0 || n > (SIZE_MAX >> 1) >> shift)
        return false;
    *nbytes = (size_t)n << shift;
    return true;
}

static int print_help(FILE *file)
{
    fprintf(file, "usage: brigade <command> [option...]\n\n");
    for (size_t i = 0; i < N_COMMANDS; i++)
        fprintf(file, "  %-8s %s\n", commands[i].name, commands[i].text);
    fprintf(file, "\nbrigade <command> --help says more; so does man "
                  "brigade-<command>.\n");
    return file == stdout ? 0 : 2;
}

static int run(const command *c, int argc, char **argv)
{
    if (argc < 2 || strcmp(argv[1], "--help") != 0)
        return c->run(argc, argv);
    printf("%s", c->help);
    return 0;
}

int main(int argc, char **argv)
{
    if (argc < 2)
        return print_help(stderr);
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0)
        return print_help(stdout);
    if (strcmp(argv[1], "--version") == 0) {
        printf("brigade %s\n", brg_version());
        return 0;
    }
    for (size_t i = 0; i < N_COMMANDS; i++)
        if (strcmp(argv[1], commands[i].name) == 0)
            return run(&commands[i], argc - 1, argv + 1);
    fprintf(stderr, "brigade: unknown command '%s'\n", argv[1]);
    return print_help(stderr);
}
