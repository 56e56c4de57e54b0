/* SPDX-License-Identifier: Apache-2.0
 * What the benchmarks share: clock, medians, the lines they print.
 *
 * Machines are shared and noisy, so a figure is a ratio of two things timed
 * in turn in one run (A B A B ...): the median of the ratios of the pairs. */
#ifndef BRG_BENCH_BENCH_H
#define BRG_BENCH_BENCH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <brigade/status.h>
#include <brigade/types.h>

double bench_seconds(void);

/* The values, in any order; sorts them. */
double bench_median(double *values, size_t n);
double bench_quantile(double *values, size_t n, double q);

/* How often the kernel gave this process's core to another, so far. */
double bench_switches(void);

/* Paired times of A and B in seconds. Results come from the quietest quarter
 * of the pairs: those in which other programs disturbed least. */
#define BENCH_MAX_PASSES 1024
typedef struct bench_pairs {
    size_t n;
    double a[BENCH_MAX_PASSES];
    double b[BENCH_MAX_PASSES];
    double noise[BENCH_MAX_PASSES]; /* switches during both */
} bench_pairs;

void bench_pairs_add(bench_pairs *pairs, double a, double b, double noise);
double bench_pairs_ratio(const bench_pairs *pairs, double q); /* of a / b */
double bench_pairs_a(const bench_pairs *pairs);               /* median */
double bench_pairs_b(const bench_pairs *pairs);
double bench_pairs_noise(const bench_pairs *pairs);

/* "bench: <name> <value> <unit>" */
void bench_print(const char *name, double value, const char *unit);
/* The same and "target=<x> ok|miss": ok if the value is at least or at most
 * the target. */
void bench_at_least(const char *name, double value, const char *unit,
                    double target);
void bench_at_most(const char *name, double value, const char *unit,
                   double target);
/* "<prefix>.<name>", in a buffer that the next call overwrites. */
const char *bench_name(const char *prefix, const char *name);

/* Ends the program with the library's message unless the call succeeded. */
void bench_must(brg_status status);
/* The same for a call that returns a tensor; returns it. */
brg_tensor *bench_some(brg_tensor *t);
void bench_fail(const char *what);

/* Numbers in [-scale, scale), the same for the same seed. */
void bench_fill(float *filled, size_t n, float scale, uint64_t seed);
/* A tensor of such, owned. */
brg_tensor *bench_random(float scale, uint64_t seed, int ndim,
                         const int64_t *shape);

/* Resident memory of this process in MB: "VmRSS" now, "VmHWM" at most. */
double bench_memory_mb(const char *key);

#endif
