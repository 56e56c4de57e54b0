/* SPDX-License-Identifier: Apache-2.0
 * Taking over options of callers built for other versions (options.h). */
#include "core/base/options.h"

#include <string.h>

#include "core/base/error.h"

#define MAX_SIZE 4096 /* more was never initialised */

brg_status brg__options_take(void *filled, size_t size, const void *given,
                             const char *where, const char *init)
{
    size_t n;
    if (!given)
        return BRG_OK;
    memcpy(&n, given, sizeof n);
    BRG_CHECK_ARG(n >= sizeof n && n <= MAX_SIZE,
                  "%s: struct_size is %zu, expected %zu: start from %s", where,
                  n, size, init);
    for (size_t i = size; i < n; i++)
        if (((const unsigned char *)given)[i] != 0)
            return BRG_FAIL(BRG_ERR_ABI,
                            "%s: the caller was built for a newer library: it "
                            "sets an option that is not known here "
                            "(struct_size is %zu, here %zu)",
                            where, n, size);
    memcpy(filled, given, n < size ? n : size);
    memcpy(filled, &size, sizeof size);
    return BRG_OK;
}
