/* SPDX-License-Identifier: Apache-2.0
 * Tensors that go along with gradients: slots of the table. */
#include "core/cuda/cu.h"

static brg_status run(brg_device device, const brg_device_cargo *cargo,
                      size_t n, bool is_load)
{
    brg__cu *cu;
    BRG__CU_TRY(brg__cu_enter(device, &cu));
    return brg__cu_check(brg__cu_cargo(&cu->queue, cargo, n, is_load),
                         "buffers beside gradients");
}

brg_status brg__cu_run_cargo_load(brg_device device,
                                  const brg_device_cargo *cargo, size_t n)
{
    return run(device, cargo, n, true);
}

brg_status brg__cu_run_cargo_unload(brg_device device,
                                    const brg_device_cargo *cargo, size_t n)
{
    return run(device, cargo, n, false);
}
