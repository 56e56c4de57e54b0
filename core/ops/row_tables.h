/* SPDX-License-Identifier: Apache-2.0
 * The tables that row_kernels.c makes, one per instruction set. */
#ifndef BRG_CORE_OPS_ROW_TABLES_H
#define BRG_CORE_OPS_ROW_TABLES_H

#include "core/ops/rows.h"

extern const brg__row_kernels brg__row_kernels_f64;
extern const brg__row_kernels brg__row_kernels_f32_base;
extern const brg__row_kernels brg__row_kernels_f32_avx2;
extern const brg__row_kernels brg__row_kernels_f32_avx512;

#endif
