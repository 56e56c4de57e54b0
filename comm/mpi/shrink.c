/* SPDX-License-Identifier: Apache-2.0
 * A group of the ranks that are left, where MPI has the means: user-level
 * failure mitigation (W. Bland, A. Bouteiller, T. Herault, G. Bosilca, J.
 * Dongarra, "Post-failure recovery of MPI communication capability", 2013). */
#include "comm/mpi/group.h"

#include <stdio.h>
#include <string.h>

#include <brigade/mpi.h>

/* What this MPI is called, and whether it says `word` of itself. */
static bool mpi_says(const char *word, char *name, size_t size)
{
    char version[MPI_MAX_LIBRARY_VERSION_STRING] = "unknown";
    int n;
    (void)MPI_Get_library_version(version, &n);
    bool has = strstr(version, word) != NULL;
    version[strcspn(version, ",\n")] = '\0';
    snprintf(name, size, "%s", version);
    return has;
}

static brg_status fail_unsupported(const mpi_group *g, const char *name,
                                   const char *why)
{
    return MPI_FAIL(g, BRG_ERR_UNSUPPORTED,
                    "rank %d: brg_pg_shrink: this MPI (%s) cannot go on with "
                    "fewer ranks: %s; start again from a checkpoint",
                    g->rank, name, why);
}

#ifdef BRG_MPI_HAS_SHRINK

#ifdef BRG_MPI_HAS_EXT
#include <mpi-ext.h>
#endif

/* Ranks that still wait in this group get an error. */
static brg_status revoke(mpi_group *g)
{
    brg__mpi_abort(g, BRG_ERR_PEER);
    MPI_CHECK(g, MPIX_Comm_revoke(g->world));
    return BRG_OK;
}

brg_status brg__mpi_shrink(void *group, brg_group *filled)
{
    mpi_group *g = group;
    MPI_Comm left;
    char name[60];
    if (mpi_says("ch4:", name, sizeof name)) /* of MPICH */
        return fail_unsupported(g, name,
                                "its device ch4 declares MPIX_Comm_shrink, and "
                                "ends the process that calls it");
    BRG_TRY(revoke(g));
    MPI_CHECK(g, MPIX_Comm_shrink(g->world, &left));
    brg_mpi_options mine = BRG_MPI_OPTIONS_INIT;
    brg_pg_options options = BRG_PG_OPTIONS_INIT;
    mine.comm = &left;
    options.timeout_s = (double)g->timeout_ns * 1e-9;
    options.backend_data = &mine;
    brg_status status = brg__mpi_create(g->host, &options, filled);
    (void)MPI_Comm_free(&left); /* the group has one of its own */
    return status;
}

#else

brg_status brg__mpi_shrink(void *group, brg_group *filled)
{
    char name[60];
    (void)filled;
    (void)mpi_says("", name, sizeof name);
    return fail_unsupported(
        group, name, "libbrigade_mpi was built without MPIX_Comm_shrink");
}

#endif
