/* SPDX-License-Identifier: Apache-2.0
 * A growable array whose memory outlives its contents: emptied, it keeps its
 * capacity, so that a steady step does not allocate.
 *
 *     BRG__ARRAY(brg_tensor *) kept = {0};
 *     BRG_TRY(brg__array_push(&kept, t));
 *     brg__array_deinit(&kept); */
#ifndef BRG_CORE_BASE_ARRAY_H
#define BRG_CORE_BASE_ARRAY_H

#include <stddef.h>
#include <stdint.h>

#include "core/base/alloc.h"
#include "core/base/error.h"

#define BRG__ARRAY(type)                                                       \
    struct {                                                                   \
        type *at;                                                              \
        size_t n;                                                              \
        size_t capacity;                                                       \
    }

/* Makes room for `extra` more items. */
#define brg__array_reserve(array, extra)                                       \
    brg__array_grow((void **)&(array)->at, &(array)->capacity,                 \
                    (array)->n + (extra), sizeof *(array)->at)

/* A status; the item is evaluated only if there is room. */
#define brg__array_push(array, item)                                           \
    (brg__array_reserve(array, 1) == BRG_OK                                    \
         ? ((array)->at[(array)->n++] = (item), BRG_OK)                        \
         : BRG_ERR_NOMEM)

#define brg__array_deinit(array)                                               \
    (brg__mem_free((array)->at), (array)->at = NULL, (array)->n = 0,           \
     (array)->capacity = 0)

static inline brg_status brg__array_grow(void **at, size_t *capacity,
                                         size_t wanted, size_t nbytes_each)
{
    if (wanted <= *capacity)
        return BRG_OK;
    size_t n = *capacity ? *capacity : 8;
    while (n < wanted)
        n *= 2;
    size_t nbytes;
    if (!brg__mul_size(n, nbytes_each, &nbytes))
        return BRG_FAIL_NOMEM("an array", (size_t)-1);
    void *grown = brg__mem_realloc(*at, nbytes, "an array");
    if (!grown)
        return BRG_ERR_NOMEM;
    *at = grown;
    *capacity = n;
    return BRG_OK;
}

/* Addresses and the like, to be compared. */
typedef BRG__ARRAY(uintptr_t) brg__words;

#endif
