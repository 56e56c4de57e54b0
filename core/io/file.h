/* SPDX-License-Identifier: Apache-2.0
 * Files of the system: mapping one for reading, replacing one at once. Errors
 * are BRG_ERR_IO and say "<op>: <path>: <reason>". */
#ifndef BRG_CORE_IO_FILE_H
#define BRG_CORE_IO_FILE_H

#include <stddef.h>

#include <brigade/status.h>

/* A regular file, read-only. `data` is never NULL while open. */
typedef struct brg__file_map {
    const unsigned char *data;
    size_t nbytes;
} brg__file_map;

brg_status brg__file_map_open(brg__file_map *map, const char *op,
                              const char *path);
void brg__file_map_close(brg__file_map *map);

/* Writes to "<path>.tmp.<process>.<n>"; commit flushes it to the disk and
 * renames it to `path`. op and path are borrowed until close. */
typedef struct brg__file_writer {
    const char *op;
    const char *path;
    char *temp; /* NULL: committed, or never opened */
    int fd;
} brg__file_writer;

brg_status brg__file_writer_open(brg__file_writer *writer, const char *op,
                                 const char *path);
brg_status brg__file_writer_put(brg__file_writer *writer, const void *data,
                                size_t nbytes);
brg_status brg__file_writer_commit(brg__file_writer *writer);
/* Removes the temporary file unless it was committed. */
void brg__file_writer_close(brg__file_writer *writer);

#endif
