/* SPDX-License-Identifier: Apache-2.0
 * What slice (shape_ops.c) and its gradient (join.c) both know. */
#ifndef BRG_CORE_OPS_SLICE_H
#define BRG_CORE_OPS_SLICE_H

#include "core/ops/op.h"

/* The attributes {dim, start, end, step} against the sizes of x. */
typedef struct brg__slice {
    int dim;
    int64_t start;
    int64_t step;
    int64_t length;
} brg__slice;

brg_status brg__slice_resolve(const char *op, const brg_tensor *x,
                              const brg_attrs *attrs, brg__slice *out);

#endif
