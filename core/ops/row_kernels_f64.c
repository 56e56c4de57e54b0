/* SPDX-License-Identifier: Apache-2.0
 * The row kernels (rows.h) of f64: for checking gradients and small models,
 * so one instruction set is enough. */
#include <math.h>

#include "core/ops/row_tables.h"

#define ROW_T double
#define ROW(name) name##_rows
#define ROW_EXP(x) exp(x)
#include "core/ops/row_template.h"

const brg__row_kernels brg__row_kernels_f64 = {ROW_KERNELS};
