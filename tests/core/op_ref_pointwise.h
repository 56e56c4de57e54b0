/* SPDX-License-Identifier: Apache-2.0
 * References in op_cases_pointwise.def that are not expressions. */
#ifndef BRG_TESTS_CORE_OP_REF_POINTWISE_H
#define BRG_TESTS_CORE_OP_REF_POINTWISE_H

#include <Random123/philox.h>

#include "tests/support/op_case.h"

/* Element k: lane k % 4 of counter 5 + k / 4, key 7; kept if its word is in
 * the upper half. */
static void ref_dropout(op_values *y, const op_values *x)
{
    op_values_init(y, x->shape.ndim, x->shape.size);
    for (size_t k = 0; k < y->n; k++) {
        philox4x32_ctr_t counter = {{5 + (uint32_t)k / 4, 0, 0, 0}};
        philox4x32_key_t key = {{7, 0}};
        uint32_t word = philox4x32(counter, key).v[k % 4];
        y->v[k] = word < 0x80000000u ? 0.0 : 2.0 * x->v[k];
    }
}

#endif
