/* SPDX-License-Identifier: Apache-2.0
 * Whole files; processes. */
#include "comm/file/group.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "core/base/alloc.h"
#include "core/base/process.h"

static brg_status fail_errno(const brg__file_group *g, const char *what,
                             const char *path)
{
    const int why = errno;
    return BRG_FAIL(BRG_ERR_IO, "rank %d: file: cannot %s %s: %s", g->rank,
                    what, path, strerror(why));
}

static bool write_all(int fd, const void *data, size_t nbytes)
{
    const char *at = data;
    while (nbytes > 0) {
        const ssize_t n = write(fd, at, nbytes);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return false;
        at += n;
        nbytes -= (size_t)n;
    }
    return true;
}

/* Bytes read until the end. */
static ssize_t read_all(int fd, void *data, size_t nbytes)
{
    size_t done = 0;
    while (done < nbytes) {
        const ssize_t n = read(fd, (char *)data + done, nbytes - done);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -1;
        if (n == 0)
            break;
        done += (size_t)n;
    }
    return (ssize_t)done;
}

brg_status brg__file_write(const brg__file_group *g, const char *path,
                           const void *head, size_t n_head, const void *body,
                           size_t n_body)
{
    char beside[BRG__FILE_PATH + 96];
    snprintf(beside, sizeof beside, "%s.%016llx", path,
             (unsigned long long)g->nonce);
    const int fd = open(beside, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (fd < 0)
        return fail_errno(g, "write", beside);
    bool ok = write_all(fd, head, n_head) && write_all(fd, body, n_body);
    int why = errno;
    ok = close(fd) == 0 && ok; /* where quotas are told by some systems */
    if (ok && rename(beside, path) == 0)
        return BRG_OK;
    if (ok)
        why = errno;
    (void)unlink(beside);
    errno = why;
    return fail_errno(g, "write", path);
}

static brg_status read_body(const brg__file_group *g, const char *path, int fd,
                            size_t nbytes, void **body, size_t *room)
{
    BRG_TRY(brg__file_make_room(body, room, nbytes));
    const ssize_t n = read_all(fd, *body, nbytes);
    if (n < 0)
        return fail_errno(g, "read", path);
    return (size_t)n == nbytes
               ? BRG_OK
               : BRG_FAIL(BRG_ERR_IO, "rank %d: file: %s is cut short", g->rank,
                          path);
}

brg_status brg__file_read(const brg__file_group *g, const char *path,
                          void *head, size_t n_head, void **body, size_t *room,
                          bool *is_there)
{
    struct stat s;
    *is_there = false;
    const int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 && (errno == ENOENT || errno == ESTALE))
        return BRG_OK;
    if (fd < 0)
        return fail_errno(g, "read", path);
    brg_status status = BRG_OK;
    const ssize_t n = read_all(fd, head, n_head);
    if (n < 0 && errno != ESTALE)
        status = fail_errno(g, "read", path);
    *is_there = n == (ssize_t)n_head;
    if (*is_there && body && fstat(fd, &s) == 0 && (size_t)s.st_size > n_head)
        status = read_body(g, path, fd, (size_t)s.st_size - n_head, body, room);
    (void)close(fd);
    return status;
}

brg_status brg__file_make_folder(const brg__file_group *g, const char *path)
{
    if (mkdir(path, 0777) == 0 || errno == EEXIST)
        return BRG_OK;
    return fail_errno(g, "make the folder", path);
}

brg_status brg__file_make_room(void **at, size_t *room, size_t nbytes)
{
    if (nbytes <= *room)
        return BRG_OK;
    brg__mem_free(*at);
    *at = brg__mem_alloc(nbytes, "a message");
    *room = *at ? nbytes : 0;
    return *at ? BRG_OK : BRG_ERR_NOMEM;
}

void brg__file_sleep_us(long us)
{
    (void)nanosleep(&(struct timespec){us / 1000000, us % 1000000 * 1000},
                    NULL);
}

/* ---- Processes ------------------------------------------------------------------ */

/* Machines on which processes see each other's numbers have one name. */
static void name_machine(char *text, size_t size)
{
    char boot[48] = "", space[40] = "";
    const int fd =
        open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);
    if (fd >= 0) {
        (void)read_all(fd, boot, sizeof boot - 1);
        (void)close(fd);
    }
    boot[strcspn(boot, "\n")] = '\0';
    const ssize_t n = readlink("/proc/self/ns/pid", space, sizeof space - 1);
    space[n > 0 ? n : 0] = '\0';
    snprintf(text, size, "%s %s", boot, space);
}

void brg__file_name_process(brg__file_process *filled)
{
    name_machine(filled->machine, sizeof filled->machine);
    filled->pid = (int32_t)getpid();
    (void)brg__process_born(filled->pid, &filled->born);
}

bool brg__file_has_died(const brg__file_group *g,
                        const brg__file_process *process)
{
    return process->pid > 0 &&
           strcmp(process->machine, g->processes[g->rank].machine) == 0 &&
           brg__process_has_died(process->pid, process->born);
}
