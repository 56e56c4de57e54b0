/* SPDX-License-Identifier: Apache-2.0
 * A cache of kernels of a test's own, and what is logged meanwhile. */
#ifndef BRG_TESTS_COMPILE_KERNEL_CACHE_H
#define BRG_TESTS_COMPILE_KERNEL_CACHE_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <brigade/runtime.h>

#include "tests/support/brg_test.h"
#include "tests/support/temp_dir.h"

#define CACHE_UNUSED __attribute__((unused))

static char logged[4096]; /* warnings and worse */
static char cache[4096];

static inline void note_log(brg_log_level level, const char *area,
                            const char *text, void *user)
{
    (void)area;
    (void)user;
    if (level >= BRG_LOG_WARN)
        snprintf(logged + strlen(logged), sizeof logged - strlen(logged),
                 "%s\n", text);
}

static inline void fresh_kernel_cache(void)
{
    static int n;
    char name[32];
    snprintf(name, sizeof name, "cache%d", n++);
    snprintf(cache, sizeof cache, "%s", temp_path(name));
    assert_int_equal(setenv("BRG_COMPILE_CACHE", cache, 1), 0);
    logged[0] = '\0';
    brg_set_log_sink(note_log, NULL);
}

static inline int remove_kernel_cache(void)
{
    char command[5000];
    brg_set_log_sink(NULL, NULL);
    snprintf(command, sizeof command, "rm -rf '%s'", cache);
    return system(command);
}

/* The only entry with that ending, or "". */
static inline CACHE_UNUSED const char *only_entry(const char *ending)
{
    static char path[4200];
    char command[5000];
    snprintf(command, sizeof command, "ls '%s'/*%s 2>/dev/null", cache, ending);
    FILE *list = popen(command, "r");
    assert_non_null(list);
    if (!fgets(path, sizeof path, list))
        path[0] = '\0';
    path[strcspn(path, "\n")] = '\0';
    pclose(list);
    return path;
}

static inline CACHE_UNUSED void change_byte(const char *path, long at)
{
    FILE *file = fopen(path, "r+b");
    assert_non_null(file);
    assert_int_equal(fseek(file, at, at < 0 ? SEEK_END : SEEK_SET), 0);
    int byte = fgetc(file);
    assert_int_equal(fseek(file, at, at < 0 ? SEEK_END : SEEK_SET), 0);
    fputc(byte ^ 0x40, file);
    fclose(file);
}

/* Loads the kernel of the tests; fails unless so many were compiled and so many
 * came from disk. */
typedef void (*load_fn)(unsigned long long n_compiled,
                        unsigned long long n_from_disk);

/* The only entry with that ending, damaged in one way after the other, is made
 * again each time. */
static inline CACHE_UNUSED void survive_damage(const char *ending, load_fn load)
{
    static const long places[] = {0, 700, -1, -20, -50};
    for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
        change_byte(only_entry(ending), places[i]);
        logged[0] = '\0';
        load(1, 0);
        assert_non_null(strstr(logged, "is made again"));
        load(0, 1);
    }
    assert_int_equal(truncate(only_entry(ending), 100), 0);
    load(1, 0);
    assert_int_equal(truncate(only_entry(ending), 0), 0);
    load(1, 0);
}

/* A good file, of another text: the only entry is what `make` makes in its
 * place. */
static inline CACHE_UNUSED void exchange_entry(const char *ending,
                                               void (*make)(void))
{
    char first[4200], command[14000];
    snprintf(first, sizeof first, "%s", only_entry(ending));
    snprintf(command, sizeof command, "mv '%s' '%s/other'", first, cache);
    assert_int_equal(system(command), 0);
    make();
    snprintf(command, sizeof command, "mv '%s' '%s'", only_entry(ending),
             first);
    assert_int_equal(system(command), 0);
    logged[0] = '\0';
}

#endif
