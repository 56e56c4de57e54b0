/* SPDX-License-Identifier: Apache-2.0
 * A group made concrete for sizes, and its interpreter.
 *
 * The group runs tile by tile (core/ops/tiles.h): a tile of each operand is
 * read, each op computes the tile of its result with the kernel that runs it
 * eagerly, outputs are written, sums take what is new. Values that are no
 * outputs never leave the cache. Values are rounded to their dtype, sums taken
 * in the pieces of the eager reductions, so all bits are the eager ones.
 *
 * A generated kernel (generate.h) computes a tile in one call instead. */
#ifndef BRG_COMPILE_FUSE_FUSED_H
#define BRG_COMPILE_FUSE_FUSED_H

#include "compile/fuse/group.h"
#include "core/ops/pointwise.h"
#include "core/ops/rows.h"
#include "core/ops/tiles.h"

/* n elements of each, a tile at most: out[] are the values that leave the group or are summed,
 * in the order of their ops; in[] the operands that are read; p[] two scalars
 * of each op, then 0. All of the compute type, none overlaps another. */
typedef void (*brg__fused_fn)(size_t n, void *const *out, const void *const *in,
                              const double *p);

typedef struct brg__fused_op {
    brg__pw_fn kernel;
    int in[BRG__GROUP_OP_MAX_IN]; /* registers */
    int to;                       /* register */
    int buffer;                   /* where, unless it is written in place */
    int tile;                     /* the operand of the walk, or NONE */
    bool is_export;
    bool is_rounded; /* to 16 bits */
    brg_dtype dtype;
} brg__fused_op;

typedef struct brg__fused_sum {
    brg__sum_kind kind;
    int64_t rows, cols, block_rows;
    double scale;
    int from;                       /* register */
    int out;                        /* of the node */
    size_t staging, partial, total; /* offsets in the workspace */
    bool is_staged;                 /* its values lie in no tensor */
    /* while it runs */
    const char *values; /* element `first` of the space */
    int64_t first, done;
    double line;
} brg__fused_sum;

typedef struct brg__fused {
    const brg__group *group;
    brg__ctype type;
    size_t item;
    brg__tiles tiles; /* loads, then stores */
    int n_loads, n_stores;
    int load[BRG__GROUP_MAX_IN];   /* the operand of each load */
    int store[BRG__GROUP_MAX_OUT]; /* the output of each store */
    int n_ops;
    int n_sums;
    brg__fused_op *ops; /* these three behind it */
    brg__fused_sum *sums;
    double *p; /* two of each op, and a zero */
    const brg__row_kernels *rows;
    int n_buffers;
    size_t buffer_bytes;
    size_t bytes_moved;     /* read and written in tensors by a run */
    size_t bytes_unfused;   /* by its ops one by one */
    size_t nbytes;          /* of the workspace */
    brg__fused_fn compiled; /* NULL: interpreted */
} brg__fused;

/* Shapes and dtypes of all results, from those of the operands, as meta
 * tensors of the device. *is_uniform: they share the space that the group
 * assumes, and the operands are there. */
brg_status brg__fused_infer(const brg__group *group, brg_device device,
                            brg_tensor *const *in, brg_tensor *results,
                            bool *is_uniform);

/* For operands and outputs of these layouts; results as inferred, uniform.
 * Owned. */
brg_status brg__fused_create(brg__fused **out, const brg__group *group,
                             brg_tensor *const *in, brg_tensor *const *outputs,
                             const brg_tensor *results);
void brg__fused_destroy(brg__fused *fused);

/* Runs it on tensors of the same layouts; the workspace has room for
 * `nbytes`, at a cache line. */
void brg__fused_run(brg__fused *fused, brg_tensor *const *in,
                    brg_tensor *const *outputs, void *workspace);

#endif
