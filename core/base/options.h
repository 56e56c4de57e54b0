/* SPDX-License-Identifier: Apache-2.0
 * Options structs of callers. The first member of each is a size_t
 * struct_size, set by its ..._INIT macro: what the caller was built with.
 *
 *   0             not begun with the macro: an error
 *   shorter       an older caller: what it does not have keeps its default
 *   longer        a newer caller: an error, unless what is unknown here is 0
 *
 * Tables of functions that the library keeps a pointer to (allocators, devices,
 * backends, ops, classes) are no options: each checks its own interface. */
#ifndef BRG_CORE_BASE_OPTIONS_H
#define BRG_CORE_BASE_OPTIONS_H

#include <stddef.h>

#include <brigade/status.h>

/* *filled, of `size` bytes, comes in with the defaults and gets what `given`
 * says; NULL: nothing. */
brg_status brg__options_take(void *filled, size_t size, const void *given,
                             const char *where, const char *init);

/* `filled` is a pointer to the struct, init the name of its macro. */
#define BRG_TAKE_OPTIONS(filled, given, where, init)                           \
    brg__options_take((filled), sizeof *(filled), (given), (where), #init)

#endif
