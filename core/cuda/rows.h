/* SPDX-License-Identifier: Apache-2.0
 * The pointwise rows in order, for tables of kernels. */
#ifndef BRG_CORE_CUDA_ROWS_H
#define BRG_CORE_CUDA_ROWS_H

typedef enum brg__cu_row {
#define BRG_UNARY(cls, name, ...) BRG__CU_ROW_##name,
#define BRG_BINARY(cls, name, ...) BRG__CU_ROW_##name,
#define BRG_TERNARY(cls, name, ...) BRG__CU_ROW_##name,
#define BRG_KERNEL(name, ...)
#define BRG_KERNEL_NOGRAD(name, ...)
#define BRG_VIEW(name, ...)
#include "core/ops/ops.def"
#include "core/ops/ops_undef.h"
    BRG__CU_N_ROWS
} brg__cu_row;

#endif
