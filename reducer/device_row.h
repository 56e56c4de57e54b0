/* SPDX-License-Identifier: Apache-2.0
 * Elements in a row in memory of a device, as a tensor without an owner: for
 * kernels that are to work on pieces of buckets. */
#ifndef BRG_REDUCER_DEVICE_ROW_H
#define BRG_REDUCER_DEVICE_ROW_H

#include "core/tensor/tensor.h"

typedef struct brg__device_row {
    brg_tensor tensor;
    brg__storage storage;
} brg__device_row;

/* Valid as long as `filled` is. */
static inline const brg_tensor *brg__device_row_of(brg__device_row *filled,
                                                   brg_device device, void *at,
                                                   brg_dtype dtype,
                                                   size_t count)
{
    *filled = (brg__device_row){
        .storage = {.device = device,
                    .data = at,
                    .nbytes = count * brg_dtype_size(dtype)},
        .tensor = {.dtype = (uint8_t)dtype,
                   .device = device,
                   .ndim = 1,
                   .is_contiguous = true,
                   .numel = (int64_t)count,
                   .shape = {(int64_t)count},
                   .stride = {1}},
    };
    filled->tensor.storage = &filled->storage;
    return &filled->tensor;
}

#endif
