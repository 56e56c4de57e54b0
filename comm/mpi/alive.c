/* SPDX-License-Identifier: Apache-2.0
 * Whether the other processes of the node are alive. */
#include "comm/mpi/group.h"

#include "core/base/process.h"

/* Where a rank cannot see the others' processes, it watches none. */
void brg__mpi_watch(mpi_group *g)
{
    g->is_watching = true;
    for (int r = 0; r < g->n_local; r++)
        g->is_watching &=
            brg__process_is_alive(g->shared[r]->pid, g->shared[r]->born);
}

bool brg__mpi_has_died(const mpi_group *g, int local)
{
    const shared_rank *s = g->shared[local];
    return g->is_watching && brg__process_has_died(s->pid, s->born);
}

void brg__mpi_find_dead(mpi_group *g)
{
    for (int r = 0; g->is_watching && r < g->n_local && g->lost <= 0; r++)
        if (r != g->local && brg__mpi_has_died(g, r))
            brg__mpi_lose(g, rank_in(g, g->my_node, r) + 1);
}
