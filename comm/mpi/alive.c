/* SPDX-License-Identifier: Apache-2.0
 * Whether the other processes of the node are alive. A process is known by its
 * number and the time it began, so that a new one with an old number is not
 * taken for it. */
#include "comm/mpi/group.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define PLACE_OF_BIRTH 22 /* in /proc/<pid>/stat, from 1 */
#define PLACE_OF_STATE 3

/* The file; false if there is no such process. */
static bool read_stat(int32_t pid, char *text, size_t size)
{
    char path[40];
    snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return false;
    ssize_t n = read(fd, text, size - 1);
    close(fd);
    text[n > 0 ? n : 0] = '\0';
    return n > 0;
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

uint64_t brg__mpi_process_born(int32_t pid)
{
    char text[512];
    if (!read_stat(pid, text, sizeof text))
        return 0;
    const char *state = find_place(text, PLACE_OF_STATE);
    const char *born = find_place(text, PLACE_OF_BIRTH);
    if (!state || !born || *state == 'Z' || *state == 'X')
        return 0; /* what is left of it waits for its parent */
    return strtoull(born, NULL, 10) + 1;
}

/* Where a rank cannot see the others' processes, it watches none. */
void brg__mpi_watch(mpi_group *g)
{
    g->is_watching = true;
    for (int r = 0; r < g->n_local; r++) {
        const shared_rank *s = g->shared[r];
        g->is_watching &=
            s->born != 0 && brg__mpi_process_born(s->pid) == s->born;
    }
}

bool brg__mpi_has_died(const mpi_group *g, int local)
{
    const shared_rank *s = g->shared[local];
    return g->is_watching && brg__mpi_process_born(s->pid) != s->born;
}

void brg__mpi_find_dead(mpi_group *g)
{
    for (int r = 0; g->is_watching && r < g->n_local && g->lost <= 0; r++)
        if (r != g->local && brg__mpi_has_died(g, r))
            brg__mpi_lose(g, rank_in(g, g->my_node, r) + 1);
}
