/* SPDX-License-Identifier: Apache-2.0
 * The CUDA device, for programs that link brigade::cuda. Others load it by
 * name: brg_device_load("cuda"). */
#ifndef BRG_CUDA_H
#define BRG_CUDA_H

#include <brigade/ext/device.h>

BRG_BEGIN_DECLS

/* What brg_device_load calls: *out is for brg_device_register(*type, *out).
 * BRG_ERR_DEVICE if there is no GPU, or its driver is too old. */
BRG_API BRG_NODISCARD brg_status brg_device_cuda(const brg_device_host *host,
                                                 brg_device_type *type,
                                                 const brg_device_vtable **out);

BRG_END_DECLS

#endif
