/* SPDX-License-Identifier: Apache-2.0
 * Matrix products of plans with kernels of their own: the text of
 * product_text.h, compiled for this machine, once for all plans. It takes the
 * products that it is good at, by their sizes alone, so equal plans have equal
 * bits; the matrix library has the rest. */
#ifndef BRG_COMPILE_FUSE_PRODUCTS_H
#define BRG_COMPILE_FUSE_PRODUCTS_H

#include "compile/fuse/kernels.h"
#include "core/ops/gemm.h"

struct brg_product;

typedef struct brg__products {
    brg__gemm_maker maker; /* for brg__gemm_swap, while `kernels` is there */
    brg__kernels *kernels;
    int (*run)(const struct brg_product *product);
    size_t space; /* floats of scratch that it needs */
} brg__products;

/* From memory, disk or the compiler. Without a compiler, or if it fails,
 * p->kernels is NULL, which is logged; that is no failure. */
brg_status brg__products_load(brg__products *p);
void brg__products_release(brg__products *p);

#endif
