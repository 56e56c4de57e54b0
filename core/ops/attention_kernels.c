/* SPDX-License-Identifier: Apache-2.0
 * Softmax over strips of f32 scores, compiled once per instruction set. */
#include <math.h>

#include "core/ops/attention.h"
#include "core/ops/isa.h"
#include "core/ops/vmath.h"

#define REAL float
#define NAME(x) x##_f32
#define EXP brg__f32_exp
#define LOG logf
#include "core/ops/attention_body.h"

extern const brg__attention_kernels BRG__ISA_NAME(brg__attention_f32);
const brg__attention_kernels BRG__ISA_NAME(brg__attention_f32) = {
    softmax_f32, softmax_grad_f32};
