/* SPDX-License-Identifier: Apache-2.0
 * Clipping gradients by their norm: the slots of the table. */
#include "core/cuda/cu.h"

static brg_status clip(brg__cu_temps *temps, const brg_device_update *grads,
                       size_t n, double max_norm, double *norm)
{
    brg__cu *cu = temps->cu;
    void *scratch;
    BRG__CU_TRY(brg__cu_temp(temps, &scratch, brg__cu_clip_scratch(grads, n)));
    BRG__CU_TRY(brg__cu_check(
        brg__cu_clip(&cu->queue, grads, n, max_norm, scratch), "clipping"));
    return norm ? brg__cu_read(cu, norm, scratch, sizeof *norm) : BRG_OK;
}

brg_status brg__cu_run_clip_factor(brg_device device,
                                   const brg_device_update *grads, size_t n,
                                   double max_norm, double *to)
{
    brg__cu_temps temps = {.op = "clipping"};
    void *partials;
    BRG__CU_TRY(brg__cu_enter(device, &temps.cu));
    brg_status status =
        brg__cu_temp(&temps, &partials, brg__cu_clip_scratch(grads, n));
    if (status == BRG_OK)
        status = brg__cu_check(brg__cu_clip_factor(&temps.cu->queue, grads, n,
                                                   max_norm, partials, to),
                               "clipping");
    return brg__cu_temps_end(&temps, status);
}

brg_status brg__cu_run_clip(brg_device device, const brg_device_update *grads,
                            size_t n, double max_norm, double *norm)
{
    brg__cu_temps temps = {.op = "clipping"};
    BRG__CU_TRY(brg__cu_enter(device, &temps.cu));
    brg_status status = clip(&temps, grads, n, max_norm, norm);
    return brg__cu_temps_end(&temps, status);
}
