/* SPDX-License-Identifier: Apache-2.0
 * Groups on devices that compile CUDA C (ext/device.h): a group's kernels, their
 * text, and launching them.
 *
 *   flat      operands are whole, or repeat rows, columns or one value of a
 *             space of two dims: 16 bytes at a time
 *   any       any strides, an element at a time
 *   columns   operands are whole or repeat a row; with all sums of the group,
 *             which are over the rows: each split of the rows leaves its part,
 *             the last one joins them
 *
 * Values are rounded to their dtypes between ops, as the ops' own kernels leave
 * them; products are kept from being contracted with sums of other ops. So the
 * bits of +, -, *, /, comparisons and choices are those of the ops one by one,
 * and other ops are within 2 ulp of them (16 bits: 1). Sums are in f64 (of 16-bit
 * values, up to four rows in f32 first), in an order that sizes decide. */
#ifndef BRG_COMPILE_FUSE_CUDA_GROUP_H
#define BRG_COMPILE_FUSE_CUDA_GROUP_H

#include <brigade/ext/device.h>

#include "compile/fuse/group.h"
#include "compile/fuse/kernels.h"
#include "core/ops/convert.h"
#include "core/tensor/tensor.h"

/* To be counted up when the text around kernels or their parameters change. */
#define BRG__CUDA_KERNEL_ABI 1

#define BRG__CUDA_MAX_STORES 16
#define BRG__CUDA_THREADS 256
#define BRG__CUDA_COLUMNS 8 /* vectors of a row that a block takes */
#define BRG__CUDA_DEPTH 32  /* rows at a time */
#define BRG__CUDA_MAX_CLAIMS 4096

/* How a flat operand lies in the space. */
typedef enum brg__cuda_kind {
    BRG__CUDA_WHOLE,
    BRG__CUDA_ROW,    /* one row, again and again */
    BRG__CUDA_COLUMN, /* one value for each row */
    BRG__CUDA_ONE
} brg__cuda_kind;

/* What is known without sizes. */
typedef struct brg__cuda_group {
    const brg__group *group;
    brg__ctype type;
    int width;                            /* elements at a time */
    brg_dtype operand[BRG__GROUP_MAX_IN]; /* dtypes */
    brg_dtype result[BRG__GROUP_MAX_OPS];
    int n_loads, load[BRG__GROUP_MAX_IN]; /* operands that are read */
    int n_stores;
    int store[BRG__CUDA_MAX_STORES]; /* ops whose values leave the kernel, or
                                        are summed */
    int n_sums, sum[BRG__GROUP_MAX_OUT]; /* ops */
    int scalars[BRG__GROUP_MAX_OPS];     /* of an op: the first, or NONE */
    int n_scalars;
    bool has_columns;
    void *flat, *any, *columns; /* the device's kernels; NULL: there are none */
} brg__cuda_group;

/* For operands of these dtypes and dims; sizes are 1 or any other. *why (NULL:
 * none): what keeps it from having kernels. */
brg_status brg__cuda_group_init(brg__cuda_group *g, const brg__group *group,
                                brg_tensor *const *in, const char **why);

/* The text of all; equal groups share kernels: kernel[i] is the number of those
 * of groups[i], brg_flat_<number>, brg_any_<number> and, if it has_columns,
 * brg_columns_<number>. *out: owned (brg__mem_free). */
brg_status brg__cuda_text(char **out, brg__cuda_group *const *groups, size_t n,
                          int *kernel);

/* ---- Kernels in memory (cuda_kernels.c) ----------------------------------------- */

typedef struct brg__cuda_kernels brg__cuda_kernels;

/* Gives the groups their kernels, from memory, disk or the device's compiler.
 * *out: to be released after the groups, or NULL. Where there is no compiler, or
 * something fails, groups stay without, which is logged once; no failure. */
brg_status brg__cuda_kernels_load(brg__cuda_kernels **out, brg_device device,
                                  brg__cuda_group *const *groups, size_t n);
/* Multiprocessors of their device. */
int brg__cuda_kernels_units(const brg__cuda_kernels *kernels);
void brg__cuda_kernels_release(brg__cuda_kernels *kernels);
/* A launch has failed, which the thread's record says: logged, and no kernels are
 * made for the device any more. */
void brg__cuda_kernels_failed(const brg__cuda_kernels *kernels);
/* A compiler that failed in this process is tried again. */
void brg__cuda_kernels_forget_failures(void);
void brg__cuda_kernels_get_stats(brg__kernels_stats *filled);

/* ---- Running (cuda_run.c) ---------------------------------------------------------- */

/* One run: tensors on the device, dense, of the group's dtypes. */
typedef struct brg__cuda_run {
    const brg__cuda_group *g;
    brg__cuda_kernels *kernels;
    brg_device device;
    brg_tensor *const *in; /* the group's operands */
    /* Of ops; row-major. Made by the caller for all that are stored or are sums
     * of the node, but for values that are only summed: see needs_values. */
    brg_tensor *const *results;
} brg__cuda_run;

/* True if the sums are made by the kernel as well, for operands and results of
 * these layouts (results may be meta tensors). Otherwise they are left, and
 * values that are only summed are stored. */
bool brg__cuda_sums(const brg__cuda_run *run);

brg_status brg__cuda_launch(const brg__cuda_run *run, bool sums);

#endif
