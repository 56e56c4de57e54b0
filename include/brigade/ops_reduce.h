/* SPDX-License-Identifier: Apache-2.0
 * Tensor ops: reduce. */
#ifndef BRG_OPS_REDUCE_H
#define BRG_OPS_REDUCE_H

#include <brigade/tensor.h>

BRG_BEGIN_DECLS

BRG_END_DECLS

#endif
