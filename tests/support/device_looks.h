/* SPDX-License-Identifier: Apache-2.0
 * What devices made for tests find out about gradients, in memory that the host
 * can read: look, look_tell, norm_... of brg_device_vtable. */
#ifndef BRG_TESTS_SUPPORT_DEVICE_LOOKS_H
#define BRG_TESTS_SUPPORT_DEVICE_LOOKS_H

#include <math.h>
#include <string.h>

#include <brigade/ext/device.h>

#include "tests/support/ranks.h"

static inline bool looks_beyond(const brg_device_array *a, size_t k)
{
    const size_t size = brg_dtype_size(a->dtype);
    uint64_t bits = 0;
    memcpy(&bits, (const char *)a->data + k * size, size);
    return (bits & ~((uint64_t)1 << (8 * size - 1))) > a->limit;
}

static inline void looks_look(const brg_device_array *arrays, size_t n,
                              uint64_t *found)
{
    for (size_t i = 0; i < n; i++)
        for (size_t k = 0; k < arrays[i].numel; k++)
            if (looks_beyond(&arrays[i], k) && arrays[i].mark > *found)
                *found = arrays[i].mark;
}

static inline void looks_tell(const uint64_t *found, int rank, float *to)
{
    to[0] = *found > 0;
    to[1] = *found > 0 ? (float)rank : 0;
    to[2] = *found > 0 ? (float)((uint32_t)*found - 1) : 0;
}

static inline void looks_squares(const brg_device_array *arrays, size_t n,
                                 double *partials)
{
    for (size_t i = 0; i < n; i++)
        for (size_t k = 0; k < arrays[i].numel; k++) {
            const double x = ranks_load(arrays[i].data, k, arrays[i].dtype);
            double *to = &partials[arrays[i].place + k / BRG_DEVICE_PIECE];
            *to = k % BRG_DEVICE_PIECE == 0 ? x * x : *to + x * x;
        }
}

static inline void looks_add(const double *partials, size_t n, double *total)
{
    *total = 0;
    for (size_t i = 0; i < n; i++)
        *total += partials[i];
}

static inline void looks_clip(const brg_device_array *arrays, size_t n,
                              const double *total, double max_norm)
{
    const double factor = max_norm / (sqrt(*total) + 1e-6);
    for (size_t i = 0; i < n && isfinite(*total) && factor < 1; i++)
        for (size_t k = 0; k < arrays[i].numel; k++)
            ranks_store(arrays[i].data, k, arrays[i].dtype,
                        factor *
                            ranks_load(arrays[i].data, k, arrays[i].dtype));
}

#endif
