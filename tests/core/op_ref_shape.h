/* SPDX-License-Identifier: Apache-2.0
 * References of the cases in op_cases_shape.def: plain loops in double. */
#ifndef BRG_TESTS_CORE_OP_REF_SHAPE_H
#define BRG_TESTS_CORE_OP_REF_SHAPE_H

#include "tests/support/op_case.h"

#endif
