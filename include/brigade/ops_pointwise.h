/* SPDX-License-Identifier: Apache-2.0
 * Tensor ops: pointwise. */
#ifndef BRG_OPS_POINTWISE_H
#define BRG_OPS_POINTWISE_H

#include <brigade/tensor.h>

BRG_BEGIN_DECLS

BRG_END_DECLS

#endif
