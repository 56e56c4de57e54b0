/* SPDX-License-Identifier: Apache-2.0
 * Kernels in memory: those of a plan's groups are compiled together, once for
 * each text in the process, and shared by all executables that need them. */
#ifndef BRG_COMPILE_FUSE_KERNELS_H
#define BRG_COMPILE_FUSE_KERNELS_H

#include "compile/fuse/fused.h"

typedef struct brg__kernels brg__kernels;

/* Gives each group that may have one its kernel, from memory, disk or the
 * compiler; entries may be NULL. *out: to be released after the groups, or
 * NULL if there are none. Without a compiler, or if it fails, groups stay as
 * they are, which is logged; that is no failure. */
brg_status brg__kernels_load(brg__kernels **out, brg__fused *const *fused,
                             size_t n);
/* A compiler that failed in this process is tried again. */
void brg__kernels_forget_failures(void);
void brg__kernels_release(brg__kernels *kernels);

/* Since the start of the process. */
typedef struct brg__kernels_stats {
    unsigned long long compiled; /* by the compiler */
    unsigned long long from_disk;
    unsigned long long shared; /* in memory already */
    unsigned long long failed;
} brg__kernels_stats;
void brg__kernels_get_stats(brg__kernels_stats *filled);

#endif
