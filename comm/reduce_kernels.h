/* SPDX-License-Identifier: Apache-2.0
 * Sums, minima, maxima and products over host memory.
 *
 * One pass reads every source once, in the order given, and writes every
 * destination once. The same C is compiled for several instruction sets and
 * the best is chosen at run time; the bits do not depend on which, since
 * additions and multiplications are never contracted. NaN wins MIN and MAX. */
#ifndef BRG_COMM_REDUCE_KERNELS_H
#define BRG_COMM_REDUCE_KERNELS_H

#include <brigade/ext/backend.h>

void brg__reduce(const brg_reduction *reduction);
size_t brg__partial_size(brg_dtype dtype);

/* The sum of a world of nodes: sources are summed in groups of `group_size`
 * in order (the last may be smaller; 0: one group), then the groups in order.
 * No partials in or out. */
void brg__reduce_grouped(const brg_reduction *reduction, size_t group_size);

/* ---- The loops, built per instruction set (reduce_body.c) ------------------ */

typedef enum brg__fold {
    BRG__FOLD_SUM,
    BRG__FOLD_MIN,
    BRG__FOLD_MAX,
    BRG__FOLD_PROD,
    BRG__N_FOLDS
} brg__fold;

/* Loops over partials, and to and from the dtype where partials differ. */
typedef struct brg__reduce_row {
    /* out = a op b; out may be a. */
    void (*fold[BRG__N_FOLDS])(void *out, const void *a, const void *b,
                               size_t n);
    void (*scale)(void *data, double factor, size_t n); /* NULL: integers */
    void (*load)(float *restrict out, const uint16_t *restrict in, size_t n);
    void (*store)(uint16_t *restrict out, const float *restrict in, size_t n);
} brg__reduce_row;

typedef struct brg__reduce_table {
    brg__reduce_row rows[BRG_N_DTYPES];
    const struct brg__q8_loops *q8; /* 8-bit blocks, q8.h */
} brg__reduce_table;

extern const brg__reduce_table brg__reduce_base;
extern const brg__reduce_table brg__reduce_avx2;
extern const brg__reduce_table brg__reduce_avx512;

/* For tests: one of the builds, by the words of BRG_ISA; NULL if this
 * processor lacks it. */
const brg__reduce_table *brg__reduce_table_of(const char *isa);
void brg__reduce_with(const brg__reduce_table *table,
                      const brg_reduction *reduction);

#endif
