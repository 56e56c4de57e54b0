/* SPDX-License-Identifier: Apache-2.0
 * What the benchmarks share. */
#include "bench/bench.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

#include <brigade/tensor.h>

double bench_seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static int compare_doubles(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double bench_quantile(double *values, size_t n, double q)
{
    qsort(values, n, sizeof(values[0]), compare_doubles);
    return values[(size_t)(q * (double)(n - 1) + 0.5)];
}

double bench_median(double *values, size_t n)
{
    return bench_quantile(values, n, 0.5);
}

double bench_switches(void)
{
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return (double)usage.ru_nivcsw;
}

void bench_pairs_add(bench_pairs *pairs, double a, double b, double noise)
{
    if (pairs->n == BENCH_MAX_PASSES)
        bench_fail("more passes than BENCH_MAX_PASSES");
    /* sorted: the quietest first */
    size_t i = pairs->n++;
    for (; i > 0 && pairs->noise[i - 1] > noise; i--) {
        pairs->a[i] = pairs->a[i - 1];
        pairs->b[i] = pairs->b[i - 1];
        pairs->noise[i] = pairs->noise[i - 1];
    }
    pairs->a[i] = a;
    pairs->b[i] = b;
    pairs->noise[i] = noise;
}

/* The quantile of x[i] / y[i] (y NULL: of x) over the quietest quarter, or
 * seven pairs. */
static double quiet_quantile(const bench_pairs *pairs, const double *x,
                             const double *y, double q)
{
    double values[BENCH_MAX_PASSES];
    const size_t quarter = (pairs->n + 3) / 4,
                 least = pairs->n < 7 ? pairs->n : 7;
    const size_t n = quarter > least ? quarter : least;
    for (size_t i = 0; i < n; i++)
        values[i] = y != NULL ? x[i] / y[i] : x[i];
    return bench_quantile(values, n, q);
}

double bench_pairs_ratio(const bench_pairs *pairs, double q)
{
    return quiet_quantile(pairs, pairs->a, pairs->b, q);
}

double bench_pairs_a(const bench_pairs *pairs)
{
    return quiet_quantile(pairs, pairs->a, NULL, 0.5);
}

double bench_pairs_b(const bench_pairs *pairs)
{
    return quiet_quantile(pairs, pairs->b, NULL, 0.5);
}

double bench_pairs_noise(const bench_pairs *pairs)
{
    return quiet_quantile(pairs, pairs->noise, NULL, 0.5);
}

static void print_line(const char *name, double value, const char *unit,
                       const char *rest)
{
    printf("bench: %-32s %10.4g %s%s\n", name, value, unit, rest);
    fflush(stdout);
}

void bench_print(const char *name, double value, const char *unit)
{
    print_line(name, value, unit, "");
}

static void print_target(const char *name, double value, const char *unit,
                         double target, bool is_ok)
{
    char rest[64];
    snprintf(rest, sizeof(rest), " target=%g %s", target,
             is_ok ? "ok" : "miss");
    print_line(name, value, unit, rest);
}

void bench_at_least(const char *name, double value, const char *unit,
                    double target)
{
    print_target(name, value, unit, target, value >= target);
}

void bench_at_most(const char *name, double value, const char *unit,
                   double target)
{
    print_target(name, value, unit, target, value <= target);
}

const char *bench_name(const char *prefix, const char *name)
{
    static char text[96];
    snprintf(text, sizeof(text), "%s.%s", prefix, name);
    return text;
}

void bench_fail(const char *what)
{
    fprintf(stderr, "benchmark failed: %s\n", what);
    exit(1);
}

void bench_must(brg_status status)
{
    if (status != BRG_OK)
        bench_fail(brg_error_message());
}

brg_tensor *bench_some(brg_tensor *t)
{
    if (t == NULL)
        bench_fail(brg_error_message());
    return t;
}

void bench_fill(float *filled, size_t n, float scale, uint64_t seed)
{
    uint64_t state = seed * 0x9e3779b97f4a7c15u + 1;
    for (size_t i = 0; i < n; i++) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        const float unit = (float)(state >> 40) / (float)(1 << 24);
        filled[i] = scale * (2.0f * unit - 1.0f);
    }
}

brg_tensor *bench_random(float scale, uint64_t seed, int ndim,
                         const int64_t *shape)
{
    size_t n = 1;
    for (int d = 0; d < ndim; d++)
        n *= (size_t)shape[d];
    float *values = malloc(n * sizeof(*values));
    if (values == NULL)
        bench_fail("out of memory");
    bench_fill(values, n, scale, seed);
    brg_scope *scope = brg_scope_begin();
    brg_tensor *t =
        bench_some(brg_from_data(BRG_DTYPE_F32, ndim, shape, values));
    brg_retain(t);
    brg_scope_end(scope);
    free(values);
    return t;
}

double bench_memory_mb(const char *key)
{
    FILE *status = fopen("/proc/self/status", "r");
    if (status == NULL)
        return 0;
    char line[256];
    double kb = 0;
    while (fgets(line, sizeof(line), status) != NULL)
        if (strncmp(line, key, strlen(key)) == 0)
            kb = atof(line + strlen(key) + 1);
    fclose(status);
    return kb / 1024;
}
