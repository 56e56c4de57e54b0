/* SPDX-License-Identifier: Apache-2.0
 * The row kernels (rows.h) of f32, compiled once per instruction set. */
#include "core/ops/isa.h"
#include "core/ops/row_tables.h"
#include "core/ops/vmath.h"

#define ROW_T float
#define ROW(name) name##_rows
#define ROW_EXP(x) brg__f32_exp(x)
#include "core/ops/row_template.h"

const brg__row_kernels BRG__ISA_NAME(brg__row_kernels_f32) = {ROW_KERNELS};
