/* SPDX-License-Identifier: Apache-2.0
 * An open safetensors file, as its parts share it.
 *
 *   | 8 bytes: n | n bytes: header, JSON | data: tensor after tensor |
 *                                        ^ begin and end count from here
 *
 * After brg_safetensors_open every entry is known to be right: a known dtype,
 * end - begin = bytes of the shape, the entries cover the data without gaps or
 * overlaps, names are unique. Data is little-endian, as are the machines that
 * the library runs on. */
#ifndef BRG_CORE_IO_SAFETENSORS_H
#define BRG_CORE_IO_SAFETENSORS_H

#include <brigade/io.h>

#include "core/base/array.h"
#include "core/io/file.h"

#define BRG__SAFETENSORS_MAX_HEADER ((uint64_t)100000000)

typedef struct brg__safetensors_entry {
    brg_safetensors_info info; /* info.name is owned */
    uint64_t begin;
    uint64_t end;
} brg__safetensors_entry;

struct brg_safetensors {
    brg__file_map map;
    char *path;
    const unsigned char *data;
    uint64_t data_nbytes;
    BRG__ARRAY(brg__safetensors_entry) entries; /* by name */
    BRG__ARRAY(brg_key_value) metadata;         /* owned strings */
};

/* Fills entries and metadata from the JSON text. */
brg_status brg__safetensors_parse(brg_safetensors *file, const char *json,
                                  size_t nbytes);

/* Reads each of the list, which the file must hold with that shape and dtype.
 * Tensors of the file that are not in the list are passed over if
 * allow_unexpected or their name begins with `skip` (may be NULL). Checks all
 * before it changes any. */
typedef struct brg__safetensors_match {
    const char *op;
    bool allow_missing;
    bool allow_unexpected;
    const char *skip;
} brg__safetensors_match;

brg_status brg__safetensors_check(const brg_safetensors *file,
                                  const brg_named_tensor *list, size_t n,
                                  const brg__safetensors_match *match);
/* After the check. */
brg_status brg__safetensors_read_all(const brg_safetensors *file,
                                     const brg_named_tensor *list, size_t n);

/* What a checkpoint calls the tensors of its optimizer. */
#define BRG__CHECKPOINT_OPTIM "optim/"

#endif
