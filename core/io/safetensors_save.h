/* SPDX-License-Identifier: Apache-2.0
 * Writing a safetensors file on behalf of `op`, which errors name. */
#ifndef BRG_CORE_IO_SAFETENSORS_SAVE_H
#define BRG_CORE_IO_SAFETENSORS_SAVE_H

#include <brigade/io.h>

brg_status brg__safetensors_write(const char *op, const char *path,
                                  const brg_named_tensor *tensors, size_t n,
                                  const brg_key_value *metadata,
                                  size_t n_metadata);

#endif
