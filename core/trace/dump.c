/* SPDX-License-Identifier: Apache-2.0
 * Rings to files: on request, after a failure, from a signal handler. What the
 * handler runs calls only what POSIX lets it call there (open, write, close,
 * rename, clock_gettime, getpid), takes no lock and no memory. */
#include "core/trace/ring.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "core/base/clock.h"
#include "core/base/env.h"
#include "core/base/error.h"
#include "core/base/log.h"

#define PATH_ROOM 32 /* "/rank2147483647.trace.tmp" */
#define VIRTUAL_CLOCK 1

static struct {
    char folder[PATH_MAX - PATH_ROOM]; /* empty: none */
    uint64_t clock;                    /* of this boot of this machine */
} files;

/* ---- Writing -------------------------------------------------------------------- */

static bool write_all(int fd, const void *data, size_t n)
{
    const char *at = data;
    while (n > 0) {
        ssize_t written = write(fd, at, n);
        if (written < 0 && errno == EINTR)
            continue;
        if (written <= 0)
            return false;
        at += written;
        n -= (size_t)written;
    }
    return true;
}

static bool write_records(int fd, const brg__record_ring *ring, uint64_t at,
                          uint64_t n)
{
    brg_trace_record records[32];
    while (n > 0) {
        size_t k = 0;
        for (; k < 32 && k < n; k++, at++)
            if (!brg__record_read(&ring->slots[at & ring->mask], &records[k]) ||
                records[k].number != at + 1)
                memset(&records[k], 0, sizeof records[k]);
        if (!write_all(fd, records, k * sizeof *records))
            return false;
        n -= k;
    }
    return true;
}

static int64_t wall_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

static bool write_ring(int fd, brg__record_ring *ring, brg_trace_reason reason,
                       const char *text, size_t n_extra)
{
    uint64_t end = atomic_load(&ring->n);
    uint64_t n = end <= ring->mask ? end : ring->mask + 1;
    size_t n_text = atomic_load_explicit(&ring->n_text, memory_order_acquire);
    brg_trace_header header = {
        .magic = {'B', 'R', 'G', 'T', 'R', 'A', 'C', 'E'},
        .version = BRG_TRACE_VERSION,
        .record_size = sizeof(brg_trace_record),
        .n_records = n,
        .n_lost = end - n,
        .n_text = n_text + n_extra,
        .time_ns = ring->clock ? *ring->clock : brg__clock_ns(),
        .wall_ns = wall_ns(),
        .clock = ring->clock ? VIRTUAL_CLOCK : files.clock,
        .rank = ring->rank,
        .world_size = ring->world_size,
        .pid = (int32_t)getpid(),
        .reason = (int32_t)reason,
    };
    return write_all(fd, &header, sizeof header) &&
           write_records(fd, ring, end - n, n) &&
           write_all(fd, ring->text, n_text) && write_all(fd, text, n_extra);
}

/* 0 or an errno. */
static int write_file(brg__record_ring *ring, const char *path,
                      brg_trace_reason reason, const char *text, size_t n_extra)
{
    char temporary[PATH_MAX + 8];
    size_t n = strlen(path);
    memcpy(temporary, path, n);
    memcpy(temporary + n, ".tmp", 5);
    int fd = open(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (fd < 0)
        return errno;
    int error = 0;
    if (!write_ring(fd, ring, reason, text, n_extra))
        error = errno ? errno : EIO;
    if (close(fd) != 0 && error == 0)
        error = errno;
    if (error == 0 && rename(temporary, path) != 0)
        error = errno;
    if (error != 0)
        (void)unlink(temporary);
    return error;
}

/* "<folder>/rank<r>.trace" */
static void make_path(char *path, int rank)
{
    char digits[12];
    size_t n = strlen(files.folder), n_digits = 0;
    unsigned left = rank < 0 ? 0 : (unsigned)rank;
    do {
        digits[n_digits++] = (char)('0' + left % 10);
        left /= 10;
    } while (left > 0);
    memcpy(path, files.folder, n);
    memcpy(path + n, "/rank", 5);
    for (n += 5; n_digits > 0;)
        path[n++] = digits[--n_digits];
    memcpy(path + n, ".trace", 7);
}

/* ---- Asked for -------------------------------------------------------------------- */

brg_status brg_trace_set_folder(const char *folder)
{
    (void)brg__record_process(); /* the environment comes first */
    size_t n = folder ? strlen(folder) : 0;
    BRG_CHECK_ARG(n < sizeof files.folder,
                  "brg_trace_set_folder: a path of %zu bytes is too long", n);
    if (n > 0 && access(folder, W_OK | X_OK) != 0)
        return BRG_FAIL(BRG_ERR_IO, "brg_trace_set_folder: %s: %s", folder,
                        strerror(errno));
    memset(files.folder, 0, sizeof files.folder);
    if (n > 0)
        memcpy(files.folder, folder, n);
    return BRG_OK;
}

brg_status brg_trace_dump(const char *path)
{
    brg__record_ring *ring = brg__record_mine();
    char made[PATH_MAX];
    if (!path && !files.folder[0])
        return BRG_FAIL(BRG_ERR_STATE,
                        "brg_trace_dump: no path, and no folder either: set "
                        "BRG_TRACE_FOLDER or call brg_trace_set_folder");
    BRG_CHECK_ARG(!path || strlen(path) < PATH_MAX,
                  "brg_trace_dump: the path is too long");
    if (!path) {
        make_path(made, ring->rank);
        path = made;
    }
    int error = write_file(ring, path, BRG_TRACE_ASKED, "", 0);
    if (error != 0)
        return BRG_FAIL(BRG_ERR_IO, "brg_trace_dump: cannot write %s: %s", path,
                        strerror(error));
    return BRG_OK;
}

void brg__record_dump_failed(brg__record_ring *ring)
{
    char path[PATH_MAX], text[BRG_ERROR_TEXT_MAX + 16];
    if (!files.folder[0] || !atomic_load(&brg__record_is_on))
        return;
    int n = snprintf(text, sizeof text, "error\t%s\n", brg_error_message());
    make_path(path, ring->rank);
    int error = write_file(ring, path, BRG_TRACE_FAILED, text, (size_t)n);
    if (error != 0)
        brg__log(BRG_LOG_WARN, "trace", "cannot write %s: %s", path,
                 strerror(error));
}

/* ---- Signals ------------------------------------------------------------------------ */

static void on_signal(int signal_number)
{
    int kept = errno;
    char path[PATH_MAX];
    (void)signal_number;
    if (files.folder[0]) {
        brg__record_ring *ring = brg__record_process(); /* begun already */
        make_path(path, ring->rank);
        (void)write_file(ring, path, BRG_TRACE_SIGNALLED, "", 0);
    }
    errno = kept;
}

static brg_status install(int signal_number)
{
    struct sigaction action = {.sa_flags = SA_RESTART};
    action.sa_handler = on_signal;
    sigemptyset(&action.sa_mask);
    if (sigaction(signal_number, &action, NULL) != 0)
        return BRG_FAIL(BRG_ERR_ARG, "brg_trace_on_signal: signal %d: %s",
                        signal_number, strerror(errno));
    return BRG_OK;
}

brg_status brg_trace_on_signal(int signal_number)
{
    (void)brg__record_process();
    return install(signal_number);
}

/* ---- The beginning -------------------------------------------------------------------- */

/* FNV-1a of the boot's id: two machines differ, two processes of one do not. */
static uint64_t read_boot(void)
{
    uint64_t hash = 0xCBF29CE484222325u;
    char text[64];
    ssize_t n = 0;
    int fd = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);
    if (fd >= 0) {
        n = read(fd, text, sizeof text);
        (void)close(fd);
    }
    for (ssize_t i = 0; i < n; i++)
        hash = (hash ^ (unsigned char)text[i]) * 0x100000001B3u;
    return n > 0 ? hash | 2 : (uint64_t)getpid() << 8 | 2;
}

static void use_environment(void)
{
    const char *folder = brg__env_text(BRG__ENV_TRACE_FOLDER);
    int64_t signal_number = brg__env_int(BRG__ENV_TRACE_SIGNAL);
    size_t n = strlen(folder);
    if (n < sizeof files.folder)
        memcpy(files.folder, folder, n + 1);
    else
        brg__log(BRG_LOG_WARN, "trace", "BRG_TRACE_FOLDER is too long");
    if (signal_number > 0 && install((int)signal_number) != BRG_OK) {
        brg__log(BRG_LOG_WARN, "trace", "%s", brg_error_message());
        brg_error_clear();
    }
}

void brg__record_init_files(void)
{
    files.clock = read_boot();
    use_environment();
}
