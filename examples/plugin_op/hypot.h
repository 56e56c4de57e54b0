/* SPDX-License-Identifier: Apache-2.0
 * What the shared object exports: one function that returns its op. */
#ifndef BRG_EXAMPLES_PLUGIN_OP_HYPOT_H
#define BRG_EXAMPLES_PLUGIN_OP_HYPOT_H

#include <brigade/ext/op.h>

typedef const brg_op *(*plugin_op_fn)(void);

#define PLUGIN_HYPOT_NAME "plugin_hypot"
BRG_API const brg_op *plugin_hypot(void);

#endif
