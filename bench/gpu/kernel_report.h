/* SPDX-License-Identifier: Apache-2.0
 * What ran on a GPU when, added up by what it is for, as us of a step. Not for
 * several threads at once. */
#ifndef BRG_BENCH_KERNEL_REPORT_H
#define BRG_BENCH_KERNEL_REPORT_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

/* What a kernel (its mangled name), or "[copy ...]", "[fill]", is for; "everything
 * else" if its name says nothing. A string that stays. */
const char *kernel_group(const char *name);

/* One that ran from `start` to `end`, in ns. */
void kernel_report_add(const char *name, uint64_t start, uint64_t end);
/* How many were added, and how many had no place. */
size_t kernel_report_count(void);
size_t kernel_report_lost(void);

/* Tables of groups, of gaps in which nothing runs and of kernels, in markdown: us
 * of a step, the mean. A step ends with each kernel whose name contains `step`;
 * those 1.2 times as long as the median one are left out (before all is warm, or
 * after a wait of the host). Where fewer than two ended, all is one step. */
void kernel_report_write(FILE *out, const char *step);
void kernel_report_clear(void);

#endif
