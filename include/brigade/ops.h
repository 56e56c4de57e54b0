/* SPDX-License-Identifier: Apache-2.0
 * All tensor ops. Each takes tensors and returns a tensor that belongs to the
 * innermost scope (tensor.h); NULL in gives NULL out. */
#ifndef BRG_OPS_H
#define BRG_OPS_H

#include <brigade/ops_pointwise.h>
#include <brigade/ops_shape.h>
#include <brigade/ops_reduce.h>
#include <brigade/ops_nn.h>

#endif
