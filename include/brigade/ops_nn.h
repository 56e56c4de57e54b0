/* SPDX-License-Identifier: Apache-2.0
 * Tensor ops: nn. */
#ifndef BRG_OPS_NN_H
#define BRG_OPS_NN_H

#include <brigade/tensor.h>

BRG_BEGIN_DECLS

BRG_END_DECLS

#endif
