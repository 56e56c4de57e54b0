/* SPDX-License-Identifier: Apache-2.0
 * Memory that the ranks of a node share: a file in memory that each of them
 * maps, and whose name goes as soon as all have it. So nothing stays behind
 * whoever dies, and each gives its mapping back alone: windows of MPI can only
 * be freed by all ranks together. Whether it went well, all ranks of the group
 * hear. */
#include "comm/mpi/group.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* By the first rank of the node; the descriptor, or -1. */
static int create(const mpi_group *g, size_t nbytes, shm_name *name)
{
    int fd = -1;
    uint64_t salt = g->host->clock_ns();
    do {
        snprintf(name->text, sizeof name->text, "/brg-%x-%x",
                 (unsigned)getpid(), (unsigned)(salt++ & 0xFFFFFFFF));
        fd = shm_open(name->text, O_CREAT | O_EXCL | O_RDWR | O_CLOEXEC, 0600);
    } while (fd < 0 && errno == EEXIST);
    if (fd < 0 || ftruncate(fd, (off_t)nbytes) != 0)
        name->error = errno;
    return fd;
}

/* Pages of its own part are taken here and now, near this rank: later there
 * would be no error for want of them, but a signal. */
static int32_t map(shm_map *made, int fd, size_t offset, size_t nbytes)
{
    int error;
    void *at =
        mmap(NULL, made->nbytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (at == MAP_FAILED)
        return errno;
    made->at = at;
    do
        error = posix_fallocate(fd, (off_t)offset, (off_t)nbytes);
    while (error == EINTR);
    if (error == 0)
        memset(made->at + offset, 0, nbytes);
    return error;
}

static int32_t open_and_map(const mpi_group *g, const shm_name *name, int fd,
                            shm_map *made)
{
    if (name->error)
        return name->error;
    if (g->local > 0)
        fd = shm_open(name->text, O_RDWR | O_CLOEXEC, 0);
    if (fd < 0)
        return errno;
    size_t each = made->nbytes / (size_t)g->n_local;
    int32_t error = map(made, fd, (size_t)g->local * each, each);
    if (g->local > 0)
        close(fd);
    return error;
}

brg_status brg__mpi_fail_memory(const mpi_group *g, const char *what,
                                size_t nbytes, int rank, int error)
{
    return MPI_FAIL(g, BRG_ERR_NOMEM,
                    "rank %d: %s: no memory for %zu bytes on rank %d: %s",
                    g->rank, what, nbytes, rank, strerror(error));
}

/* What the worst has come to, on all ranks. */
static brg_status agree(mpi_group *g, int error, const char *what,
                        size_t nbytes)
{
    shm_talk *t = g->talk;
    MPI_Request request;
    t->vote = (shm_vote){error, g->rank};
    MPI_CHECK(g, MPI_Iallreduce(&t->vote, &t->worst, 1, MPI_2INT, MPI_MAXLOC,
                                g->world, &request));
    BRG_TRY(brg__mpi_wait_moving(g, &request, what));
    if (t->worst.error == 0)
        return BRG_OK;
    return brg__mpi_fail_memory(g, what, nbytes, t->worst.rank, t->worst.error);
}

static brg_status share(mpi_group *g, int fd, shm_name *name, shm_map *made,
                        const char *what)
{
    MPI_Request request;
    MPI_CHECK(g,
              MPI_Ibcast(name, sizeof *name, MPI_BYTE, 0, g->node, &request));
    BRG_TRY(brg__mpi_wait_moving(g, &request, what));
    int32_t error = open_and_map(g, name, fd, made);
    return agree(g, error, what, made->nbytes);
}

brg_status brg__mpi_shm_make(mpi_group *g, size_t nbytes, const char *what,
                             shm_map *made, unsigned char **base)
{
    size_t each = (nbytes + BRG__SLICE_PAGE - 1) & ~(BRG__SLICE_PAGE - 1);
    int fd = -1;
    shm_name *name = &g->talk->name;
    *name = (shm_name){.error = 0};
    *made = (shm_map){.nbytes = each * (size_t)g->n_local};
    if (g->local == 0)
        fd = create(g, made->nbytes, name);
    brg_status status = share(g, fd, name, made, what);
    if (fd >= 0) {
        close(fd);
        (void)shm_unlink(name->text);
    }
    if (status != BRG_OK)
        brg__mpi_shm_drop(made);
    for (int r = 0; status == BRG_OK && r < g->n_local; r++)
        base[r] = made->at + (size_t)r * each;
    return status;
}

void brg__mpi_shm_drop(shm_map *made)
{
    if (made->at)
        (void)munmap(made->at, made->nbytes);
    *made = (shm_map){0};
}
