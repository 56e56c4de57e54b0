/* SPDX-License-Identifier: Apache-2.0
 * Tensor ops: shape. */
#ifndef BRG_OPS_SHAPE_H
#define BRG_OPS_SHAPE_H

#include <brigade/tensor.h>

BRG_BEGIN_DECLS

BRG_END_DECLS

#endif
