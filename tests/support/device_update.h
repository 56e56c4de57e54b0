/* SPDX-License-Identifier: Apache-2.0
 * The optimizers' step that ext/device.h asks of a device, element by element,
 * for devices that tests make up: pointers are ones that the host may follow. */
#ifndef BRG_TESTS_SUPPORT_DEVICE_UPDATE_H
#define BRG_TESTS_SUPPORT_DEVICE_UPDATE_H

#include <math.h>

#include <brigade/ext/device.h>

#include "tests/support/ranks.h"

typedef struct device_update_state {
    double p, s[2];
} device_update_state;

/* f: of u, or those of a step that is launched again. */
static inline device_update_state device_update_next(const brg_device_update *u,
                                                     const double *f, double g,
                                                     device_update_state x)
{
    if (u->rule == BRG_UPDATE_ADAMW) {
        x.s[0] = f[1] * x.s[0] + (1 - f[1]) * g;
        x.s[1] = f[2] * x.s[1] + (1 - f[2]) * g * g;
        x.p = f[0] * x.p - f[3] * x.s[0] / (sqrt(x.s[1]) * f[4] + f[5]);
        return x;
    }
    double d = g + f[3] * x.p;
    if (u->state[0])
        x.s[0] = f[1] * x.s[0] + f[2] * d;
    if (u->state[0] && u->rule == BRG_UPDATE_SGD)
        d = x.s[0];
    else if (u->state[0])
        d += f[1] * x.s[0];
    x.p -= f[0] * d;
    return x;
}

/* The parameter has been written since. */
static inline bool device_update_is_behind(const brg_device_update *u, size_t k)
{
    double rounded;
    ranks_store(&rounded, 0, u->dtype, ranks_load(u->master, k, BRG_DTYPE_F32));
    return u->follows && ranks_load(&rounded, 0, u->dtype) !=
                             ranks_load(u->param, k, u->dtype);
}

static inline void device_update_run(const brg_device_update *u,
                                     const double *f)
{
    const brg_dtype wide =
        u->dtype == BRG_DTYPE_F64 ? BRG_DTYPE_F64 : BRG_DTYPE_F32;
    for (size_t k = 0; k < u->numel; k++) {
        const bool is_wide = u->master && !device_update_is_behind(u, k);
        device_update_state x = {.p = is_wide
                                          ? ranks_load(u->master, k, wide)
                                          : ranks_load(u->param, k, u->dtype)};
        for (int i = 0; i < 2; i++)
            if (u->state[i])
                x.s[i] = ranks_load(u->state[i], k, wide);
        x = device_update_next(u, f, ranks_load(u->grad, k, u->dtype), x);
        for (int i = 0; i < 2; i++)
            if (u->state[i])
                ranks_store(u->state[i], k, wide, x.s[i]);
        if (u->master)
            ranks_store(u->master, k, wide, x.p);
        ranks_store(u->param, k, u->dtype, x.p);
    }
}

#endif
