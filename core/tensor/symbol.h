/* SPDX-License-Identifier: Apache-2.0
 * Which capture a symbol (tensor.h) is of, above the 32 bits of its number: one
 * that outlives its capture is known by it. */
#ifndef BRG_CORE_TENSOR_SYMBOL_H
#define BRG_CORE_TENSOR_SYMBOL_H

#include <stdint.h>

#include "core/tensor/tensor.h"

#define BRG__SYMBOL_CAPTURES ((uintptr_t)1 << 28)

static inline void *brg__symbol_of(uint32_t number, uint32_t capture)
{
    return (void *)((uintptr_t)capture << 32 | number);
}

static inline uint32_t brg__symbol_capture(const void *symbol)
{
    return (uint32_t)((uintptr_t)symbol >> 32) & (BRG__SYMBOL_CAPTURES - 1);
}

/* Of a new capture; not 0. */
uint32_t brg__new_capture(void);

/* The failure of `who` to use a symbol whose capture is over. */
brg_status brg__symbol_is_left(brg_status code, const char *who,
                               const brg_tensor *t);

#endif
