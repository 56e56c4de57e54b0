/* SPDX-License-Identifier: Apache-2.0
 * Attention by matrix products (attention_gemm.c). */
#ifndef BRG_CORE_CUDA_ATTENTION_H
#define BRG_CORE_CUDA_ATTENTION_H

#include "core/cuda/cu.h"

/* Whether it is worth it, and the strides allow it. */
bool brg__cu_attention_by_products(const brg__cu_attention *a,
                                   bool is_backward);
brg_status brg__cu_attention_products_forward(brg__cu *cu,
                                              const brg__cu_attention *a);
brg_status brg__cu_attention_products_backward(brg__cu *cu,
                                               const brg__cu_attention *a);

#endif
