/* SPDX-License-Identifier: Apache-2.0
 * A group: pointwise ops over one iteration space, and sums over it, as one
 * small program. It knows no sizes; a node of kind FUSED runs it.
 *
 *   operands   of the node: numbers 0 .. n_in
 *   results    of the program's ops: numbers n_in .. n_in + n_ops
 *   outputs    of the node: the results that name one (`out`)
 *
 * All ops but sums give values of the space's shape; a sum ends a chain. */
#ifndef BRG_COMPILE_FUSE_GROUP_H
#define BRG_COMPILE_FUSE_GROUP_H

#include <brigade/ext/op.h>

#include "core/base/array.h"
#include "core/base/text.h"

#define BRG__GROUP_NONE (-1)
#define BRG__GROUP_MAX_OPS 64
#define BRG__GROUP_MAX_IN 12
#define BRG__GROUP_MAX_OUT 8
#define BRG__GROUP_OP_MAX_IN 3

typedef struct brg__group_op {
    const brg_op *op;
    brg_attrs attrs;
    bool is_fan_in; /* undefined operands are skipped */
    bool is_sum;
    int n_in;
    int in[BRG__GROUP_OP_MAX_IN];
    int out; /* of the node, or NONE */
} brg__group_op;

typedef struct brg__group {
    int n_in;
    int n_ops;
    int n_out;
    brg__group_op *ops; /* behind it, in brg__group_create */
} brg__group;

/* Room for so many ops; free with brg__mem_free. NULL when out of memory. */
brg__group *brg__group_create(int n_ops);

/* What a sum takes together: the trailing dims of each row, or the rows of
 * each column, where the space is cut before dim `cut`. */
typedef enum brg__sum_kind {
    BRG__SUM_NOT,    /* other dims than these */
    BRG__SUM_ROWS,   /* [0, cut) stay, the rest is summed */
    BRG__SUM_COLUMNS /* [0, cut) are summed, the rest stays */
} brg__sum_kind;

/* How a sum over `dims` (bits) of a space divides it: sizes of 1 (bits of
 * `ones`) count for neither side. */
brg__sum_kind brg__sum_of_dims(int ndim, uint8_t ones, uint32_t dims, int *cut);

/* True for pointwise ops that a group may hold. */
bool brg__group_takes(const brg_op *op);

/* Adds "{t0 = mul(a0, a1); t1 = ... -> o0}": stable text without a line end. */
void brg__group_print(const brg__group *group, brg__text *text);

/* Operands come before their use, outputs are all made, once. */
brg_status brg__group_verify(const brg__group *group);

#endif
