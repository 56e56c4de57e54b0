/* SPDX-License-Identifier: Apache-2.0
 * The source of kernels: see source.h. */
#include "compile/fuse/source.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <compile/fuse/vmath_text.h>

#include "core/base/error.h"

brg_status brg__source_put(brg__source *t, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    int n = vsnprintf(NULL, 0, format, args);
    va_end(args);
    if (n < 0)
        return BRG_FAIL(BRG_ERR_INTERNAL, "text of a kernel");
    BRG_TRY(brg__array_reserve(t, (size_t)n + 1));
    va_start(args, format);
    (void)vsnprintf(t->at + t->n, (size_t)n + 1, format, args);
    va_end(args);
    t->n += (size_t)n;
    return BRG_OK;
}

brg_status brg__source_put_bytes(brg__source *t, const char *bytes, size_t n)
{
    BRG_TRY(brg__array_reserve(t, n + 1));
    memcpy(t->at + t->n, bytes, n);
    t->n += n;
    t->at[t->n] = '\0';
    return BRG_OK;
}

brg_status brg__source_put_vmath(brg__source *t)
{
    return brg__source_put_bytes(t, brg__vmath_text,
                                 sizeof brg__vmath_text - 1);
}

bool brg__source_equal(const brg__source *a, const brg__source *b)
{
    return a->n == b->n && memcmp(a->at, b->at, a->n) == 0;
}

brg_status brg__source_make(char **out, size_t n,
                            brg_status (*put)(brg__source *t,
                                              brg__source *bodies, void *user),
                            void *user)
{
    brg__source t = {0};
    *out = NULL;
    brg__source *bodies =
        brg__mem_alloc_array(n + 1, sizeof *bodies, "text of kernels");
    if (!bodies)
        return BRG_ERR_NOMEM;
    brg_status status = put(&t, bodies, user);
    for (size_t i = 0; i < n; i++)
        brg__array_deinit(&bodies[i]);
    brg__mem_free(bodies);
    if (status == BRG_OK)
        *out = t.at;
    else
        brg__array_deinit(&t);
    return status;
}
