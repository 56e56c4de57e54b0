/* SPDX-License-Identifier: Apache-2.0
 * f32 matrix products of plans with kernels of their own, by libxsmm, which
 * makes code for the very sizes of a product: it packs nothing, so that few
 * rows and small matrices are cheap. Which products it gets depends on sizes and
 * strides alone, so equal plans have equal bits. */
#ifndef BRG_COMPILE_PRODUCTS_H
#define BRG_COMPILE_PRODUCTS_H

#include "core/ops/gemm.h"

/* For brg__gemm_swap; NULL: this build or processor has none. A kernel is made
 * when its sizes come first and kept by libxsmm; from then on no memory is
 * asked for. Any thread. */
const brg__gemm_maker *brg__products(void);

#endif
