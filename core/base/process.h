/* SPDX-License-Identifier: Apache-2.0
 * Whether another process of this machine is alive. A process is known by its
 * number and the time it began, so that a new one with an old number is not
 * taken for it. In a header, since component libraries use it too. */
#ifndef BRG_CORE_BASE_PROCESS_H
#define BRG_CORE_BASE_PROCESS_H

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define BRG__PROC_STATE 3 /* places in /proc/<pid>/stat, from 1 */
#define BRG__PROC_BIRTH 22

/* The file; empty if there is no such process. False: who knows, as when this
 * process has no descriptor left to look with. */
static inline bool brg__proc_read(int32_t pid, char *text, size_t size)
{
    char path[40];
    snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read(fd, text, size - 1);
    int why = errno;
    if (fd >= 0)
        close(fd);
    text[n > 0 ? n : 0] = '\0';
    return n > 0 || (n < 0 && (why == ENOENT || why == ESRCH));
}

/* Counted from the end of the name, which may hold anything. */
static inline const char *brg__proc_place(const char *text, int place)
{
    const char *at = strrchr(text, ')');
    for (int k = BRG__PROC_STATE - 1; at && k < place; k++) {
        at = strchr(at, ' ');
        at = at ? at + 1 : NULL;
    }
    return at;
}

/* Fills when a process began, in units of the system's; 0: it is no more, or,
 * where this returns false, nobody knows. */
static inline bool brg__process_born(int32_t pid, uint64_t *filled)
{
    char text[512];
    *filled = 0;
    if (!brg__proc_read(pid, text, sizeof text))
        return false;
    const char *state = brg__proc_place(text, BRG__PROC_STATE);
    const char *born = brg__proc_place(text, BRG__PROC_BIRTH);
    bool is_alive = state && born && *state != 'Z' && *state != 'X';
    if (is_alive) /* else what is left of it waits for its parent */
        *filled = strtoull(born, NULL, 10) + 1;
    return true;
}

/* The process that began then is there for sure; it is gone for sure. */
static inline bool brg__process_is_alive(int32_t pid, uint64_t born)
{
    uint64_t now;
    return brg__process_born(pid, &now) && now != 0 && now == born;
}

static inline bool brg__process_has_died(int32_t pid, uint64_t born)
{
    uint64_t now;
    return brg__process_born(pid, &now) && now != born;
}

#endif
