/* SPDX-License-Identifier: Apache-2.0
 * References of the cases in op_cases_nn.def: plain loops in double. */
#ifndef BRG_TESTS_CORE_OP_REF_NN_H
#define BRG_TESTS_CORE_OP_REF_NN_H

#include "tests/support/op_case.h"

#endif
