/* SPDX-License-Identifier: Apache-2.0
 * Saved-tensor offload: what forward keeps for backward waits in other memory
 * or on a disk. */
#ifndef BRG_OFFLOAD_H
#define BRG_OFFLOAD_H

#include <brigade/status.h>
#include <brigade/types.h>

BRG_BEGIN_DECLS

typedef enum brg_offload_kind {
    BRG_OFFLOAD_HOST_MEMORY, /* a row-major copy in host memory */
    BRG_OFFLOAD_DISK         /* a file without a name */
} brg_offload_kind;

typedef struct brg_offload_options {
    size_t struct_size;
    brg_offload_kind kind;
    const char *folder; /* of the file; NULL: $TMPDIR or else /tmp; copied */
    size_t min_bytes;   /* smaller tensors stay where they are */
} brg_offload_options;

#define BRG_OFFLOAD_OPTIONS_INIT BRG_INIT(brg_offload_options)

/* From now on, until the end, what ops and custom functions recorded on this
 * thread save is moved away and comes back at each use in backward, which may
 * be after the end. Leaves that require gradients (parameters) live on anyway
 * and stay; they and the small ones are checked for changes at their use.
 * A pair of pack hooks: the innermost is in force. NULL options: host memory.
 * BRG_ERR_IO names the folder if there can be no file in it; a full disk makes
 * the op fail whose tensor found no place. The file has no name: nothing is
 * left, whatever ends the process. Each tensor gives its space back when it is
 * used and freed.
 * The end is BRG_ERR_STATE if none has begun on this thread, or other pack
 * hooks have come since. */
BRG_API BRG_NODISCARD brg_status
brg_offload_begin(const brg_offload_options *options);
BRG_API BRG_NODISCARD brg_status brg_offload_end(void);

BRG_END_DECLS

#endif
