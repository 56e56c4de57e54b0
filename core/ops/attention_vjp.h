/* SPDX-License-Identifier: Apache-2.0
 * Gradients of attention as compositions of differentiable ops. */
#ifndef BRG_CORE_OPS_ATTENTION_VJP_H
#define BRG_CORE_OPS_ATTENTION_VJP_H

#include "core/ops/op.h"

brg_status brg__attention_vjp_composed(brg_vjp *v);
brg_status brg__attention_qkv_vjp_composed(brg_vjp *v);

#endif
