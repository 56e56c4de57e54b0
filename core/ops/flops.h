/* SPDX-License-Identifier: Apache-2.0
 * The functions that rows of ops.def name in .flops. */
#ifndef BRG_CORE_OPS_FLOPS_H
#define BRG_CORE_OPS_FLOPS_H

#include <brigade/ext/op.h>

#define BRG__FLOPS(name) double brg__##name##_flops(const brg_op_call *call);

BRG__FLOPS(matmul)
BRG__FLOPS(contract_rows)
BRG__FLOPS(linear)
BRG__FLOPS(conv2d)
BRG__FLOPS(conv2d_grad_input)
BRG__FLOPS(conv2d_grad_weight)
BRG__FLOPS(attention)
BRG__FLOPS(attention_grad)
BRG__FLOPS(attention_qkv)
BRG__FLOPS(attention_qkv_grad)

#undef BRG__FLOPS

#endif
