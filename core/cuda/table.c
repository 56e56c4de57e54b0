/* SPDX-License-Identifier: Apache-2.0
 * Which function runs a row. */
#include <string.h>

#include "core/cuda/cu.h"

static const struct {
    const char *name;
    brg__cu_run_fn run;
} kernels[] = {
#define X(name) {#name, brg__cu_run_##name},
#include "core/cuda/kernels.def"
#undef X
};

brg__cu_run_fn brg__cu_kernel(const brg_op *op)
{
    if ((op->flags & BRG_OP_POINTWISE) && op->pointwise)
        return brg__cu_run_pointwise;
    for (size_t i = 0; i < sizeof kernels / sizeof *kernels; i++)
        if (strcmp(kernels[i].name, op->name) == 0)
            return kernels[i].run;
    return NULL;
}
