/* SPDX-License-Identifier: Apache-2.0
 * The layout of a block of 8-bit numbers, for code of hosts and of devices; what
 * it means is in comm/q8.h.
 *
 *     | scale: bf16 | round: u16 | 60 codes: i8 | */
#ifndef BRG_CORE_BASE_Q8_BLOCK_H
#define BRG_CORE_BASE_Q8_BLOCK_H

#include <stddef.h>

#define BRG__Q8_NBYTES ((size_t)64) /* of a block */
#define BRG__Q8_N ((size_t)60)      /* elements of one */

static inline size_t brg__q8_blocks(size_t count)
{
    return count / BRG__Q8_N + (count % BRG__Q8_N != 0);
}

#endif
