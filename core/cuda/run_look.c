/* SPDX-License-Identifier: Apache-2.0
 * What a reducer wants to know of gradients: the slots of the table. */
#include "core/cuda/cu.h"

brg_status brg__cu_run_look(brg_device device, const brg_device_array *arrays,
                            size_t n, uint64_t *found)
{
    brg__cu *cu;
    BRG__CU_TRY(brg__cu_enter(device, &cu));
    return brg__cu_check(brg__cu_look(&cu->queue, arrays, n, found),
                         "looking at gradients");
}

brg_status brg__cu_run_look_tell(brg_device device, const uint64_t *found,
                                 int rank, float *to)
{
    brg__cu *cu;
    BRG__CU_TRY(brg__cu_enter(device, &cu));
    return brg__cu_check(brg__cu_look_tell(&cu->queue, found, rank, to),
                         "looking at gradients");
}

brg_status brg__cu_run_norm_squares(brg_device device,
                                    const brg_device_array *arrays, size_t n,
                                    double *partials)
{
    brg__cu *cu;
    BRG__CU_TRY(brg__cu_enter(device, &cu));
    return brg__cu_check(brg__cu_norm_squares(&cu->queue, arrays, n, partials),
                         "the norm of gradients");
}

brg_status brg__cu_run_norm_add(brg_device device, const double *partials,
                                size_t n, double *total)
{
    brg__cu *cu;
    BRG__CU_TRY(brg__cu_enter(device, &cu));
    return brg__cu_check(brg__cu_norm_add(&cu->queue, partials, n, total),
                         "the norm of gradients");
}

brg_status brg__cu_run_norm_clip(brg_device device,
                                 const brg_device_array *arrays, size_t n,
                                 const double *total, double max_norm)
{
    brg__cu *cu;
    BRG__CU_TRY(brg__cu_enter(device, &cu));
    return brg__cu_check(
        brg__cu_norm_clip(&cu->queue, arrays, n, total, max_norm), "clipping");
}

brg_status brg__cu_run_clock(brg_device device, uint64_t *to)
{
    brg__cu *cu;
    BRG__CU_TRY(brg__cu_enter(device, &cu));
    return brg__cu_check(brg__cu_clock(&cu->queue, to), "the clock");
}
