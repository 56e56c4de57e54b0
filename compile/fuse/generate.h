/* SPDX-License-Identifier: Apache-2.0
 * C source for groups: a function each, over tiles of contiguous values.
 *
 * Each op is the expression of its row in ops.def, with the functions of
 * core/ops/vmath.h, as in the eager kernels, compiled for the same instruction
 * set; a product is kept from being contracted with the op that adds it. So the
 * bits of +, -, *, /, comparisons and choices are the eager ones; an expression
 * that the compiler contracts otherwise than in the eager kernel differs by a
 * unit in the last place or two (tests/compile/test_kernels.c). */
#ifndef BRG_COMPILE_FUSE_GENERATE_H
#define BRG_COMPILE_FUSE_GENERATE_H

#include "compile/fuse/fused.h"

/* To be counted up when brg__fused_fn or the text around kernels changes. */
#define BRG__KERNEL_ABI 2

/* Why the group has no kernel of its own; NULL: it may have one. */
const char *brg__generate_refuses(const brg__fused *fused);

/* The text of all; equal groups share a kernel: kernel[i] is the number of
 * that of fused[i], called brg_kernel_<number>, or -1 where fused[i] is NULL.
 * *out: owned (brg__mem_free). */
brg_status brg__generate(char **out, brg__fused *const *fused, size_t n,
                         int *kernel);

#endif
