/* SPDX-License-Identifier: Apache-2.0
 * A folder of the test program's own, removed at exit, and files in it. */
#ifndef BRG_TESTS_SUPPORT_TEMP_DIR_H
#define BRG_TESTS_SUPPORT_TEMP_DIR_H

#include <stddef.h>

/* "<folder>/<name>"; one of 8 buffers in turn. */
const char *temp_path(const char *name);
/* Writes the bytes, plain or compressed; returns the path. */
const char *temp_file(const char *name, const void *data, size_t nbytes);
const char *temp_file_gz(const char *name, const void *data, size_t nbytes);
/* Bytes of a file, malloc'ed. */
void *temp_read(const char *path, size_t *nbytes);
/* Files that are in the folder now. */
size_t temp_count(void);

#endif
