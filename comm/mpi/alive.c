/* SPDX-License-Identifier: Apache-2.0
 * Whether the other processes of the node are alive. A process is known by its
 * number and the time it began, so that a new one with an old number is not
 * taken for it. */
#include "comm/mpi/group.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define PLACE_OF_BIRTH 22 /* in /proc/<pid>/stat, from 1 */
#define PLACE_OF_STATE 3

/* The file; empty if there is no such process. False: who knows, as when this
 * process has no descriptor left to look with. */
static bool read_stat(int32_t pid, char *text, size_t size)
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
static const char *find_place(const char *text, int place)
{
    const char *at = strrchr(text, ')');
    for (int k = PLACE_OF_STATE - 1; at && k < place; k++) {
        at = strchr(at, ' ');
        at = at ? at + 1 : NULL;
    }
    return at;
}

bool brg__mpi_process_born(int32_t pid, uint64_t *filled)
{
    char text[512];
    *filled = 0;
    if (!read_stat(pid, text, sizeof text))
        return false;
    const char *state = find_place(text, PLACE_OF_STATE);
    const char *born = find_place(text, PLACE_OF_BIRTH);
    bool is_alive = state && born && *state != 'Z' && *state != 'X';
    if (is_alive) /* else what is left of it waits for its parent */
        *filled = strtoull(born, NULL, 10) + 1;
    return true;
}

static bool is_alive(const shared_rank *s)
{
    uint64_t born;
    return brg__mpi_process_born(s->pid, &born) && born != 0 && born == s->born;
}

/* Where a rank cannot see the others' processes, it watches none. */
void brg__mpi_watch(mpi_group *g)
{
    g->is_watching = true;
    for (int r = 0; r < g->n_local; r++)
        g->is_watching &= is_alive(g->shared[r]);
}

bool brg__mpi_has_died(const mpi_group *g, int local)
{
    const shared_rank *s = g->shared[local];
    uint64_t born;
    return g->is_watching && brg__mpi_process_born(s->pid, &born) &&
           born != s->born;
}

void brg__mpi_find_dead(mpi_group *g)
{
    for (int r = 0; g->is_watching && r < g->n_local && g->lost <= 0; r++)
        if (r != g->local && brg__mpi_has_died(g, r))
            brg__mpi_lose(g, rank_in(g, g->my_node, r) + 1);
}
