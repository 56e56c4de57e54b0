/* SPDX-License-Identifier: Apache-2.0
 * Text that grows: the source of kernels. */
#ifndef BRG_COMPILE_FUSE_TEXT_H
#define BRG_COMPILE_FUSE_TEXT_H

#include <brigade/status.h>

#include "core/base/array.h"

/* Ends with a zero once something was put; brg__array_deinit frees it. */
typedef BRG__ARRAY(char) brg__text;

brg_status brg__text_put(brg__text *t, const char *format, ...)
    BRG_PRINTF(2, 3);
brg_status brg__text_put_bytes(brg__text *t, const char *bytes, size_t n);
/* The text of core/ops/vmath.h. */
brg_status brg__text_put_vmath(brg__text *t);
/* *out (owned, brg__mem_free): what `put` makes, with n more texts to work on,
 * the bodies of kernels. */
brg_status brg__text_make(char **out, size_t n,
                          brg_status (*put)(brg__text *t, brg__text *bodies,
                                            void *user),
                          void *user);
bool brg__text_equal(const brg__text *a, const brg__text *b);

#endif
