/* SPDX-License-Identifier: Apache-2.0
 * Kernels on disk: objects by the hash of what they were made from, shared
 * objects (.so) of the CPU and binaries (.cubin) of devices.
 *
 *   <folder>/<key>.so    the object, and behind it a record (which loaders
 *                        skip): magic, ABI, key, size and hash of the object
 *   <folder>/<key>.lock  held by who compiles it
 *   <folder>/<key>.<process>.<n>.*   files that are being made
 *
 * An entry appears complete, by renaming, or not at all. It is used only if it
 * is the user's own, nobody else may write it, and its record is right;
 * otherwise it is removed and made again. */
#ifndef BRG_COMPILE_FUSE_DISK_H
#define BRG_COMPILE_FUSE_DISK_H

#include <limits.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <brigade/status.h>

typedef struct brg__kernel_key {
    uint64_t word[2];
} brg__kernel_key;

typedef struct brg__disk_folder {
    char path[PATH_MAX - 128];
    bool
        is_private; /* of this process, to be removed: no cache could be used */
} brg__disk_folder;

/* What makes objects of a kind from source. */
typedef struct brg__disk_maker {
    const char *ending;        /* of entries: ".so" */
    const char *source_ending; /* ".c" */
    /* Compiles `source`, which the file `path` holds as well, into the file
     * `object`; the compiler's words go to the file `words`. */
    brg_status (*make)(const struct brg__disk_maker *self, const char *source,
                       const char *path, const char *object, const char *words);
} brg__disk_maker;

/* "<folder>/<key><ending>"; the buffer has PATH_MAX bytes. */
void brg__disk_path(char *filled, const brg__disk_folder *folder,
                    brg__kernel_key key, const char *ending);

/* The cache, made if need be; a private folder if it cannot be used, which is
 * logged once. */
brg_status brg__disk_folder_open(brg__disk_folder *folder);
void brg__disk_folder_close(brg__disk_folder *folder);

/* True: there is a good entry. A bad one is logged and removed. */
bool brg__disk_find(const brg__disk_folder *folder, brg__kernel_key key,
                    const brg__disk_maker *maker);
/* The same, and its bytes as they were checked, without the record; owned. NULL
 * if there is none. */
void *brg__disk_read(const brg__disk_folder *folder, brg__kernel_key key,
                     const brg__disk_maker *maker, size_t *nbytes);

/* The right to make an entry: a descriptor to unlock, or -1 if it is not given
 * within the seconds (it may be made nevertheless). */
int brg__disk_lock(const brg__disk_folder *folder, brg__kernel_key key,
                   double seconds);
void brg__disk_unlock(int fd);

/* Compiles the source into an entry. */
brg_status brg__disk_make(const brg__disk_folder *folder, brg__kernel_key key,
                          const brg__disk_maker *maker, const char *source);

/* What a source comes to under a compiler of that identity and an ABI. */
brg__kernel_key brg__disk_key(const char *source, const char *identity,
                              uint64_t abi);

#endif
