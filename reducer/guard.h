/* SPDX-License-Identifier: Apache-2.0
 * Buffers of the user's: that no two share memory, and (in builds with
 * BRG_DEBUG > 0) that they are still there. */
#ifndef BRG_REDUCER_GUARD_H
#define BRG_REDUCER_GUARD_H

#include "reducer/reducer.h"

/* Fails with BRG_ERR_ARG naming two parameters whose buffers overlap. */
brg_status brg__guard_distinct(const brg_reducer *r);

/* Has buffers in host memory watched, if libbrigade_watch.so is there
 * (reducer/watch); that of gradient i, which has moved; none. */
brg_status brg__guard_begin(brg_reducer *r);
void brg__guard_move(brg_reducer *r, size_t i);
void brg__guard_end(brg_reducer *r);

/* Fails with BRG_ERR_STATE if the buffer of gradient i is no memory any more;
 * BRG_OK where that cannot be told: pages that are gone, memory that the device
 * no longer knows, and what the address sanitizer or a watch has seen freed are
 * found. */
brg_status brg__guard_buffer(const brg_reducer *r, size_t i);

#endif
