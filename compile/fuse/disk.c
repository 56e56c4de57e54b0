/* SPDX-License-Identifier: Apache-2.0
 * Kernels on disk: see disk.h. */
#include "compile/fuse/disk.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "compile/fuse/generate.h"
#include "core/base/alloc.h"
#include "core/base/clock.h"
#include "core/base/env.h"
#include "core/base/error.h"
#include "core/base/log.h"
#include "core/base/progress.h"

#define STALE_S 3600 /* age of unfinished files that are removed */

typedef struct record {
    char magic[8];
    uint64_t abi;
    uint64_t key[2];
    uint64_t nbytes;
    uint64_t hash[2];
} record;

static const char magic[8] = {'B', 'R', 'G', 'K', 'E', 'R', 'N', '\n'};

void brg__disk_path(char *filled, const brg__disk_folder *folder,
                    brg__kernel_key key, const char *ending)
{
    snprintf(filled, PATH_MAX, "%s/%016llx%016llx%s", folder->path,
             (unsigned long long)key.word[0], (unsigned long long)key.word[1],
             ending);
}

/* ---- The folder ----------------------------------------------------------------- */

static brg_status name_cache(char *filled, size_t size)
{
    const char *set = brg__env_text(BRG__ENV_COMPILE_CACHE);
    const char *xdg = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    int n = -1;
    if (set[0])
        n = snprintf(filled, size, "%s", set);
    else if (xdg && xdg[0] == '/')
        n = snprintf(filled, size, "%s/brigade", xdg);
    else if (home && home[0] == '/')
        n = snprintf(filled, size, "%s/.cache/brigade", home);
    if (n < 0)
        return BRG_FAIL(BRG_ERR_IO, "there is no HOME for a cache of kernels");
    if ((size_t)n >= size)
        return BRG_FAIL(BRG_ERR_IO, "the path of the cache is too long");
    return BRG_OK;
}

static brg_status make_folders(char *path)
{
    for (char *slash = path + 1;; slash++) {
        if (*slash != '/' && *slash != '\0')
            continue;
        char end = *slash;
        *slash = '\0';
        int made = mkdir(path, 0700);
        *slash = end;
        if (made < 0 && errno != EEXIST)
            return BRG_FAIL(BRG_ERR_IO, "cannot make %s: %s", path,
                            strerror(errno));
        if (end == '\0')
            return BRG_OK;
    }
}

static brg_status check_folder(const char *path)
{
    struct stat s;
    if (stat(path, &s) < 0)
        return BRG_FAIL(BRG_ERR_IO, "%s: %s", path, strerror(errno));
    if (!S_ISDIR(s.st_mode))
        return BRG_FAIL(BRG_ERR_IO, "%s is no folder", path);
    if (s.st_uid != geteuid() || (s.st_mode & 022))
        return BRG_FAIL(BRG_ERR_IO,
                        "%s belongs to somebody else, or others may write it",
                        path);
    if (access(path, W_OK | X_OK) < 0)
        return BRG_FAIL(BRG_ERR_IO, "%s cannot be written", path);
    return BRG_OK;
}

static brg_status open_cache(brg__disk_folder *folder)
{
    BRG_TRY(name_cache(folder->path, sizeof folder->path));
    BRG_TRY(make_folders(folder->path));
    return check_folder(folder->path);
}

brg_status brg__disk_folder_open(brg__disk_folder *folder)
{
    static _Atomic bool is_said;
    *folder = (brg__disk_folder){.is_private = false};
    if (open_cache(folder) == BRG_OK)
        return BRG_OK;
    if (!atomic_exchange(&is_said, true))
        brg__log(BRG_LOG_WARN, "compile", "kernels are not kept: %s",
                 brg_error_message());
    brg_error_clear();
    snprintf(folder->path, sizeof folder->path, "/tmp/brigade-XXXXXX");
    folder->is_private = true;
    if (mkdtemp(folder->path))
        return BRG_OK;
    return BRG_FAIL(BRG_ERR_IO, "cannot make a folder in /tmp: %s",
                    strerror(errno));
}

/* Files of the folder for which `is_old` says so. */
static void sweep(const char *path, bool (*is_old)(const char *, time_t))
{
    DIR *dir = opendir(path);
    for (struct dirent *e = dir ? readdir(dir) : NULL; e; e = readdir(dir)) {
        struct stat s;
        if (e->d_name[0] != '.' &&
            fstatat(dirfd(dir), e->d_name, &s, AT_SYMLINK_NOFOLLOW) == 0 &&
            S_ISREG(s.st_mode) && is_old(e->d_name, s.st_mtime))
            (void)unlinkat(dirfd(dir), e->d_name, 0);
    }
    if (dir)
        closedir(dir);
}

static bool is_any(const char *name, time_t changed)
{
    (void)name;
    (void)changed;
    return true;
}

/* What a killed process left: a key, then two dots or more, where entries and
 * locks have one. Other files are not ours: the user chose the folder. */
static bool is_unfinished(const char *name, time_t changed)
{
    const size_t n_key = 2 * sizeof(brg__kernel_key);
    return strspn(name, "0123456789abcdef") == n_key && name[n_key] == '.' &&
           strchr(name + n_key + 1, '.') && changed + STALE_S < time(NULL);
}

void brg__disk_folder_close(brg__disk_folder *folder)
{
    if (!folder->is_private)
        return;
    sweep(folder->path, is_any);
    (void)rmdir(folder->path);
}

/* ---- Checking an entry ------------------------------------------------------------ */

static void fill_record(record *r, brg__kernel_key key, const void *object,
                        size_t nbytes)
{
    XXH128_hash_t hash = XXH3_128bits(object, nbytes);
    memset(r, 0, sizeof *r);
    memcpy(r->magic, magic, sizeof magic);
    r->abi = BRG__KERNEL_ABI;
    r->key[0] = key.word[0];
    r->key[1] = key.word[1];
    r->nbytes = nbytes;
    r->hash[0] = hash.low64;
    r->hash[1] = hash.high64;
}

static bool read_all(int fd, char *to, size_t n)
{
    while (n > 0) {
        ssize_t got = read(fd, to, n);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return false;
        to += got;
        n -= (size_t)got;
    }
    return true;
}

/* NULL: it is good; else what is wrong. The bytes are owned by the caller in
 * any case. */
static const char *check_content(int fd, size_t size, brg__kernel_key key,
                                 char **bytes)
{
    if (size <= sizeof(record))
        return "it is too short";
    *bytes = brg__mem_alloc(size, "a kernel's file");
    if (!*bytes)
        return "there is no memory to check it";
    size_t nbytes = size - sizeof(record);
    record found, right;
    if (!read_all(fd, *bytes, size))
        return "it cannot be read";
    memcpy(&found, *bytes + nbytes, sizeof found);
    fill_record(&right, key, *bytes, nbytes);
    if (memcmp(found.magic, right.magic, sizeof right.magic) != 0)
        return "it has no record at its end";
    return memcmp(&found, &right, sizeof right) != 0
               ? "its content is not what its record says"
               : NULL;
}

static const char *check_file(int fd, brg__kernel_key key, char **bytes,
                              size_t *nbytes)
{
    struct stat s;
    if (fstat(fd, &s) < 0 || !S_ISREG(s.st_mode))
        return "it is no file";
    if (s.st_uid != geteuid() || (s.st_mode & 022))
        return "it belongs to somebody else, or others may write it";
    *nbytes = (size_t)s.st_size - sizeof(record);
    return check_content(fd, (size_t)s.st_size, key, bytes);
}

void *brg__disk_read(const brg__disk_folder *folder, brg__kernel_key key,
                     const brg__disk_maker *maker, size_t *nbytes)
{
    char path[PATH_MAX], *bytes = NULL;
    brg__disk_path(path, folder, key, maker->ending);
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0 && errno == ENOENT)
        return NULL;
    const char *wrong =
        fd < 0 ? "it cannot be opened" : check_file(fd, key, &bytes, nbytes);
    if (fd >= 0)
        close(fd);
    if (!wrong)
        return bytes;
    brg__mem_free(bytes);
    brg__log(BRG_LOG_WARN, "compile", "kernel %s is made again: %s", path,
             wrong);
    (void)unlink(path);
    return NULL;
}

bool brg__disk_find(const brg__disk_folder *folder, brg__kernel_key key,
                    const brg__disk_maker *maker)
{
    size_t nbytes;
    void *bytes = brg__disk_read(folder, key, maker, &nbytes);
    brg__mem_free(bytes);
    return bytes != NULL;
}

brg__kernel_key brg__disk_key(const char *source, const char *identity,
                              uint64_t abi)
{
    XXH128_hash_t a = XXH3_128bits(source, strlen(source));
    XXH128_hash_t b = XXH3_128bits_withSeed(identity, strlen(identity), abi);
    uint64_t both[4] = {a.low64, a.high64, b.low64, b.high64};
    XXH128_hash_t all = XXH3_128bits(both, sizeof both);
    return (brg__kernel_key){{all.low64, all.high64}};
}

/* ---- Making one ------------------------------------------------------------------- */

int brg__disk_lock(const brg__disk_folder *folder, brg__kernel_key key,
                   double seconds)
{
    char path[PATH_MAX];
    uint64_t end = brg__clock_ns() + (uint64_t)(seconds * 1e9);
    brg__disk_path(path, folder, key, ".lock");
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    while (fd >= 0 && flock(fd, LOCK_EX | LOCK_NB) < 0) {
        const struct timespec pause = {0, 2000000};
        if (errno != EINTR && errno != EWOULDBLOCK)
            break;
        if (brg__clock_ns() > end) {
            close(fd);
            return -1;
        }
        brg__progress_poll();
        (void)nanosleep(&pause, NULL);
    }
    return fd;
}

void brg__disk_unlock(int fd)
{
    if (fd >= 0)
        close(fd);
}

static brg_status write_all(int fd, const char *from, size_t n,
                            const char *path)
{
    while (n > 0) {
        ssize_t done = write(fd, from, n);
        if (done < 0 && errno == EINTR)
            continue;
        if (done <= 0)
            return BRG_FAIL(BRG_ERR_IO, "writing %s: %s", path,
                            strerror(errno));
        from += done;
        n -= (size_t)done;
    }
    return BRG_OK;
}

static brg_status write_source(const char *path, const char *source)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0)
        return BRG_FAIL(BRG_ERR_IO, "cannot make %s: %s", path,
                        strerror(errno));
    brg_status status = write_all(fd, source, strlen(source), path);
    if (close(fd) < 0 && status == BRG_OK)
        status = BRG_FAIL(BRG_ERR_IO, "writing %s: %s", path, strerror(errno));
    return status;
}

/* Puts the record behind the object. */
static brg_status seal(int fd, brg__kernel_key key, const char *path)
{
    struct stat s;
    record r;
    if (fstat(fd, &s) < 0 || s.st_size <= 0)
        return BRG_FAIL(BRG_ERR_IO, "%s is empty", path);
    size_t nbytes = (size_t)s.st_size;
    char *bytes = brg__mem_alloc(nbytes, "a kernel's file");
    if (!bytes)
        return BRG_ERR_NOMEM;
    bool is_read = read_all(fd, bytes, nbytes);
    if (is_read)
        fill_record(&r, key, bytes, nbytes);
    brg__mem_free(bytes);
    if (!is_read)
        return BRG_FAIL(BRG_ERR_IO, "cannot read %s", path);
    BRG_TRY(write_all(fd, (const char *)&r, sizeof r, path));
    if (fchmod(fd, 0600) < 0 || fsync(fd) < 0)
        return BRG_FAIL(BRG_ERR_IO, "keeping %s: %s", path, strerror(errno));
    return BRG_OK;
}

static brg_status publish(const char *object, brg__kernel_key key,
                          const char *path)
{
    int fd = open(object, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0)
        return BRG_FAIL(BRG_ERR_IO, "the compiler made no %s", object);
    brg_status status = seal(fd, key, object);
    close(fd);
    if (status == BRG_OK && rename(object, path) < 0)
        status = BRG_FAIL(BRG_ERR_IO, "cannot rename %s: %s", object,
                          strerror(errno));
    return status;
}

/* Copies of the source and of the compiler's words (why: it failed), for who asked for them. */
static void keep_for_debugging(brg__kernel_key key,
                               const brg__disk_maker *maker, const char *source,
                               const char *words, const char *why,
                               double seconds)
{
    brg__disk_folder debug = {.is_private = false};
    char to[PATH_MAX], line[1024];
    const char *name = brg__env_text(BRG__ENV_COMPILE_DEBUG);
    if (name[0] == '\0' ||
        snprintf(debug.path, sizeof debug.path, "%s", name) >=
            (int)sizeof debug.path ||
        make_folders(debug.path) != BRG_OK)
        return;
    brg__disk_path(to, &debug, key, maker->source_ending);
    (void)unlink(to);
    (void)write_source(to, source);
    brg__disk_path(to, &debug, key, ".log");
    FILE *from = fopen(words, "re"), *log = fopen(to, "we");
    if (log && why)
        fprintf(log, "failed after %.3f s: %s\n", seconds, why);
    else if (log)
        fprintf(log, "compiled in %.3f s\n", seconds);
    while (from && log && fgets(line, sizeof line, from))
        fputs(line, log);
    if (from)
        fclose(from);
    if (log)
        fclose(log);
}

brg_status brg__disk_make(const brg__disk_folder *folder, brg__kernel_key key,
                          const brg__disk_maker *maker, const char *source)
{
    static _Atomic unsigned n_made;
    char c[PATH_MAX], object[PATH_MAX], words[PATH_MAX], path[PATH_MAX];
    char ending[64];
    long pid = (long)getpid();
    unsigned n = atomic_fetch_add(&n_made, 1);
    snprintf(ending, sizeof ending, ".%ld.%u%s", pid, n, maker->source_ending);
    brg__disk_path(c, folder, key, ending);
    snprintf(ending, sizeof ending, ".%ld.%u.o", pid, n);
    brg__disk_path(object, folder, key, ending);
    snprintf(ending, sizeof ending, ".%ld.%u.txt", pid, n);
    brg__disk_path(words, folder, key, ending);
    brg__disk_path(path, folder, key, maker->ending);
    sweep(folder->path, is_unfinished);
    uint64_t start = brg__clock_ns();
    brg_status status = write_source(c, source);
    if (status == BRG_OK)
        status = maker->make(maker, source, c, object, words);
    char why[512];
    snprintf(why, sizeof why, "%s", brg_error_message());
    keep_for_debugging(key, maker, source, words, status == BRG_OK ? NULL : why,
                       1e-9 * (double)(brg__clock_ns() - start));
    if (status == BRG_OK)
        status = publish(object, key, path);
    (void)unlink(c);
    (void)unlink(object);
    (void)unlink(words);
    return status;
}
