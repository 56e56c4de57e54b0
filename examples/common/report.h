/* SPDX-License-Identifier: Apache-2.0
 * The end of a run: the hash of the parameters, equal on all ranks or an
 * error, and the result line "result: key=value ...". */
#ifndef EXAMPLES_COMMON_REPORT_H
#define EXAMPLES_COMMON_REPORT_H

#include <brigade/params.h>

#include "common/world.h"

/* xxHash (XXH3, 64 bits) over the bytes of all tensors in their order.
 * Collective; fails with BRG_ERR_MISMATCH if a rank has another one. */
BRG_NODISCARD brg_status params_hash(uint64_t *out, const brg_params *params,
                                     const world *w);

#endif
