/* SPDX-License-Identifier: Apache-2.0
 * Autocast: matrix products in a 16-bit float, sums, norms and losses in f32,
 * without changing the model. */
#ifndef BRG_AUTOCAST_H
#define BRG_AUTOCAST_H

#include <brigade/status.h>
#include <brigade/types.h>

BRG_BEGIN_DECLS

/* The thread's policy. While it is on, an op's float inputs (f32 and 16-bit)
 * are cast, recorded, before it runs:
 *   low   products, convolutions, attention: to `dtype`
 *   f32   exponentials, sums, norms, losses: to f32
 *   any other op: to the widest among its inputs
 * (docs/ops.md lists the ops). f64 is left alone. A leaf's cast is made once
 * and kept until the policy changes. Backward runs with the policy off: each
 * gradient has the dtype of what it is the gradient of. A custom function's
 * backward and a checkpoint's second run have the policy of their forward. */
typedef struct brg_autocast {
    bool is_on;
    brg_dtype dtype; /* BRG_DTYPE_BF16 or BRG_DTYPE_F16 */
} brg_autocast;

/* Sets the policy; *before (may be NULL) gets the one until now, to be set
 * again at the end of the stretch. BRG_ERR_DTYPE, and no change, if a policy
 * that is on has another dtype than the two. */
BRG_API BRG_NODISCARD brg_status brg_autocast_set(brg_autocast policy,
                                                  brg_autocast *before);
BRG_API brg_autocast brg_autocast_get(void);

BRG_END_DECLS

#endif
