/* SPDX-License-Identifier: Apache-2.0
 * The source of kernels: text that grows. */
#ifndef BRG_COMPILE_FUSE_SOURCE_H
#define BRG_COMPILE_FUSE_SOURCE_H

#include <brigade/status.h>

#include "core/base/array.h"

/* Ends with a zero once something was put; brg__array_deinit frees it. */
typedef BRG__ARRAY(char) brg__source;

brg_status brg__source_put(brg__source *t, const char *format, ...)
    BRG_PRINTF(2, 3);
brg_status brg__source_put_bytes(brg__source *t, const char *bytes, size_t n);
/* The text of core/ops/vmath.h. */
brg_status brg__source_put_vmath(brg__source *t);
/* *out (owned, brg__mem_free): what `put` makes, with n more texts to work on,
 * the bodies of kernels. */
brg_status brg__source_make(char **out, size_t n,
                            brg_status (*put)(brg__source *t,
                                              brg__source *bodies, void *user),
                            void *user);
bool brg__source_equal(const brg__source *a, const brg__source *b);

#endif
