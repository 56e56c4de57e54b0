/* SPDX-License-Identifier: Apache-2.0
 * Mapping files and replacing them at once. The order in commit matters: the
 * data must be on the disk before the name points to it, and the folder is
 * flushed so that the new name survives a crash too. */
#include "core/io/file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/base/alloc.h"
#include "core/base/error.h"

static brg_status fail_errno(const char *op, const char *path, const char *verb)
{
    int code = errno;
    char text[128];
    return BRG_FAIL(code == ENOMEM ? BRG_ERR_NOMEM : BRG_ERR_IO,
                    "%s: cannot %s %s: %s", op, verb, path,
                    strerror_r(code, text, sizeof text));
}

/* ---- Mapping ------------------------------------------------------------------ */

static brg_status map_fd(brg__file_map *map, int fd, const char *op,
                         const char *path)
{
    struct stat info;
    if (fstat(fd, &info) != 0)
        return fail_errno(op, path, "read");
    if (!S_ISREG(info.st_mode))
        return BRG_FAIL(BRG_ERR_IO, "%s: %s is not a regular file", op, path);
    map->nbytes = (size_t)info.st_size;
    if (map->nbytes == 0) { /* the system refuses to map nothing */
        map->data = (const unsigned char *)"";
        return BRG_OK;
    }
    void *data = mmap(NULL, map->nbytes, PROT_READ, MAP_PRIVATE, fd, 0);
    if (data == MAP_FAILED)
        return fail_errno(op, path, "map");
    map->data = data;
    return BRG_OK;
}

brg_status brg__file_map_open(brg__file_map *map, const char *op,
                              const char *path)
{
    *map = (brg__file_map){0};
    BRG_CHECK_ARG(path && path[0], "%s: the path is empty", op);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return fail_errno(op, path, "open");
    brg_status status = map_fd(map, fd, op, path);
    close(fd);
    return status;
}

void brg__file_map_close(brg__file_map *map)
{
    if (map->data && map->nbytes > 0)
        munmap((void *)(uintptr_t)map->data, map->nbytes);
    *map = (brg__file_map){0};
}

/* ---- Writing ------------------------------------------------------------------ */

#define TEMP_EXTRA 48 /* ".tmp.<process>.<n>" */
#define TEMP_TRIES 100

brg_status brg__file_writer_open(brg__file_writer *writer, const char *op,
                                 const char *path)
{
    static _Atomic unsigned counter;
    *writer = (brg__file_writer){.op = op, .path = path, .fd = -1};
    BRG_CHECK_ARG(path && path[0], "%s: the path is empty", op);
    size_t size = strlen(path) + TEMP_EXTRA;
    writer->temp = brg__mem_alloc(size, "the name of a temporary file");
    if (!writer->temp)
        return BRG_ERR_NOMEM;
    errno = EEXIST;
    for (int i = 0; i < TEMP_TRIES && writer->fd < 0 && errno == EEXIST; i++) {
        snprintf(writer->temp, size, "%s.tmp.%ld.%u", path, (long)getpid(),
                 atomic_fetch_add(&counter, 1));
        writer->fd =
            open(writer->temp, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    }
    if (writer->fd >= 0)
        return BRG_OK;
    brg_status status = fail_errno(op, writer->temp, "create");
    brg__mem_free(writer->temp);
    writer->temp = NULL;
    return status;
}

brg_status brg__file_writer_put(brg__file_writer *writer, const void *data,
                                size_t nbytes)
{
    const char *at = data;
    while (nbytes > 0) {
        ssize_t n = write(writer->fd, at, nbytes);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return fail_errno(writer->op, writer->temp, "write");
        at += n;
        nbytes -= (size_t)n;
    }
    return BRG_OK;
}

/* Some file systems cannot flush a folder; then the name is as safe as they
 * make it. */
static void flush_folder(char *temp)
{
    char *slash = strrchr(temp, '/');
    if (slash)
        slash[slash == temp] = '\0'; /* keep "/" itself */
    int fd = open(slash ? temp : ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return;
    (void)fsync(fd);
    close(fd);
}

brg_status brg__file_writer_commit(brg__file_writer *writer)
{
    if (fsync(writer->fd) != 0)
        return fail_errno(writer->op, writer->temp, "flush");
    int closed = close(writer->fd);
    writer->fd = -1;
    if (closed != 0)
        return fail_errno(writer->op, writer->temp, "close");
    if (rename(writer->temp, writer->path) != 0)
        return fail_errno(writer->op, writer->path, "replace");
    flush_folder(writer->temp);
    brg__mem_free(writer->temp);
    writer->temp = NULL;
    return BRG_OK;
}

void brg__file_writer_close(brg__file_writer *writer)
{
    if (writer->fd >= 0 && writer->temp)
        close(writer->fd);
    if (writer->temp)
        unlink(writer->temp);
    brg__mem_free(writer->temp);
    writer->temp = NULL;
    writer->fd = -1;
}
