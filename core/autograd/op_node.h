/* SPDX-License-Identifier: Apache-2.0
 * The node of an executed op: recorded by dispatch, run by the engine. */
#ifndef BRG_CORE_AUTOGRAD_OP_NODE_H
#define BRG_CORE_AUTOGRAD_OP_NODE_H

#include "core/autograd/node.h"

/* Makes the node of a finished call and ties the outputs to it. */
/* Those of a call that has none. */
extern const brg_attrs brg__no_attrs;

brg_status brg__op_node_record(brg_op_call *call);

/* The node alone: edges and saved tensors, tied to no output. Owned. */
brg_status brg__op_node_new(brg_node **out, const brg_op_call *call);

#endif
