/* SPDX-License-Identifier: Apache-2.0 */
#include "bench/gpu/kernel_report.h"

#include <inttypes.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#define MAX_NAMES 1024
#define NAME_BYTES 120
#define N_SHOWN 40

#define BETWEEN_RANKS "sums between ranks, with the waiting inside of them"
#define ELSE "everything else"

/* The first pattern that the name contains decides. */
static const struct {
    const char *group, *pattern;
} patterns[] = {
    {BETWEEN_RANKS, "nccl"},
    {BETWEEN_RANKS, "sum_all"},
    {BETWEEN_RANKS, "sum_blocks"},
    {BETWEEN_RANKS, "push_then_sum"},
    {"copies between GPUs", "[copy between GPUs]"},
    {"attention, gradient", "bprop"},
    {"attention, gradient", "dot_do_o"},
    {"attention, gradient", "matmul_dq"},
    {"attention, gradient", "query_kernel"},
    {"attention, gradient", "key_kernel"},
    {"attention, gradient", "delta_kernel"},
    {"attention, gradient", "scores_grad_kernel"},
    {"attention", "sdpa"},
    {"attention", "scores_kernel"},
    {"attention", "forward_kernel"},
    {"convolution", "cudnn"},
    {"convolution", "conv"},
    {"products", "nvjet"},
    {"products", "gemm"},
    {"products", "gemv"},
    {"products", "gemmk"},
    {"products", "cublas"},
    {"products", "cutlass"},
    {"products", "splitK"},
    {"cross entropy", "entropy"},
    {"cross entropy", "count_kernel"},
    {"cross entropy", "targets_kernel"},
    {"batch norm", "batch_norm"},
    {"layer norm, gradient", "norm_grad"},
    {"layer norm, gradient", "layer_norm_join"},
    {"layer norm, gradient", "layer_norm_sums"},
    {"layer norm", "norm_in_registers"},
    {"layer norm", "layer_norm_kernel"},
    {"softmax", "softmax"},
    {"optimizer", "update_kernel"},
    {"clipping", "squares_kernel"},
    {"clipping", "total_kernel"},
    {"clipping", "factor_kernel"},
    {"clipping", "scale_kernel"},
    {"clipping", "scale_by_total"},
    {"sums of biases' gradients", "columns_kernel"},
    {"sums of biases' gradients", "across_kernel"},
    {"sums of biases' gradients", "join_sums_kernel"},
    {"sums of biases' gradients", "brg_columns_"},
    {"embeddings", "add_rows_kernel"},
    {"embeddings", "add_slices_kernel"},
    {"embeddings", "take_slices_kernel"},
    {"embeddings", "keys_kernel"},
    {"embeddings", "first_kernel"},
    {"embeddings", "radix_sort"},
    {"pointwise", "packed_kernel"},
    {"pointwise", "strided_kernel"},
    {"pointwise", "brg_flat_"},
    {"pointwise", "brg_any_"},
    {"buckets: looks, packing", "look_kernel"},
    {"buckets: looks, packing", "tell_kernel"},
    {"buckets: looks, packing", "cargo_kernel"},
    {"copies and fills", "[copy"},
    {"copies and fills", "[fill]"},
    {"copies and fills", "fill_kernel"},
};
#define N_PATTERNS (sizeof patterns / sizeof *patterns)

typedef struct total {
    char name[NAME_BYTES];
    const char *group;
    uint64_t ns;
    size_t n;
} total;

typedef struct span {
    uint64_t start, end;
    int name; /* of names */
} span;

static struct {
    total names[MAX_NAMES];
    int n_names;
    span *spans;
    size_t n_spans, capacity, n_lost;
} seen;

/* Time that counts: [start, end) of each step. */
typedef struct steps {
    span *at;
    size_t n, n_left_out;
    uint64_t ns;
} steps;

const char *kernel_group(const char *name)
{
    for (size_t i = 0; i < N_PATTERNS; i++)
        if (strstr(name, patterns[i].pattern))
            return patterns[i].group;
    return ELSE;
}

static int index_of(const char *name)
{
    char text[NAME_BYTES];
    int i = 0;
    snprintf(text, sizeof text, "%s", name ? name : "(no name)");
    while (i < seen.n_names && strcmp(seen.names[i].name, text) != 0)
        i++;
    if (i == MAX_NAMES)
        return -1;
    if (i == seen.n_names) {
        memcpy(seen.names[i].name, text, sizeof text);
        seen.names[i].group = kernel_group(name ? name : text);
        seen.n_names++;
    }
    return i;
}

static bool grow(void)
{
    if (seen.n_spans < seen.capacity)
        return true;
    const size_t capacity = seen.capacity ? 2 * seen.capacity : 1 << 16;
    span *more = realloc(seen.spans, capacity * sizeof *more);
    if (!more)
        return false;
    seen.spans = more;
    seen.capacity = capacity;
    return true;
}

void kernel_report_add(const char *name, uint64_t start, uint64_t end)
{
    const int i = index_of(name);
    if (i < 0 || end < start || !grow())
        seen.n_lost++;
    else
        seen.spans[seen.n_spans++] = (span){start, end, i};
}

size_t kernel_report_count(void)
{
    return seen.n_spans;
}

size_t kernel_report_lost(void)
{
    return seen.n_lost;
}

void kernel_report_clear(void)
{
    free(seen.spans);
    memset(&seen, 0, sizeof seen);
}

/* ---- Steps -------------------------------------------------------------------- */

static int by_start(const void *a, const void *b)
{
    const span *x = a, *y = b;
    return (x->start > y->start) - (x->start < y->start);
}

static int by_length(const void *a, const void *b)
{
    const uint64_t x = ((const span *)a)->end - ((const span *)a)->start;
    const uint64_t y = ((const span *)b)->end - ((const span *)b)->start;
    return (x > y) - (x < y);
}

static steps all_as_one(span *at)
{
    at[0] = seen.spans[0];
    for (size_t i = 0; i < seen.n_spans; i++)
        if (seen.spans[i].end > at[0].end)
            at[0].end = seen.spans[i].end;
    return (steps){.at = at, .n = 1, .ns = at[0].end - at[0].start};
}

/* The spans are in order of their starts; at has room for all of them. */
static steps find_steps(span *at, const char *step)
{
    steps found = {.at = at};
    uint64_t last = 0;
    for (size_t i = 0; i < seen.n_spans; i++) {
        const span *s = &seen.spans[i];
        if (!strstr(seen.names[s->name].name, step))
            continue;
        if (last > 0)
            at[found.n++] = (span){last, s->end, 0};
        last = s->end;
    }
    if (found.n == 0)
        return all_as_one(at);
    qsort(at, found.n, sizeof *at, by_length);
    const span *median = &at[found.n / 2];
    const uint64_t longest = (median->end - median->start) * 6 / 5;
    const size_t n = found.n;
    while (at[found.n - 1].end - at[found.n - 1].start > longest)
        found.n--;
    found.n_left_out = n - found.n;
    qsort(at, found.n, sizeof *at, by_start);
    for (size_t i = 0; i < found.n; i++)
        found.ns += at[i].end - at[i].start;
    return found;
}

/* ns of the steps in which something ran: of all groups, or of all but sums
 * between ranks and copies. */
static uint64_t covered(const steps *all, bool is_all)
{
    uint64_t sum = 0, until = 0;
    size_t k = 0;
    for (size_t i = 0; i < seen.n_spans; i++) {
        const span *s = &seen.spans[i];
        const char *group = seen.names[s->name].group;
        if (!is_all && (strcmp(group, BETWEEN_RANKS) == 0 ||
                        strcmp(group, "copies between GPUs") == 0))
            continue;
        while (k < all->n && all->at[k].end <= s->start)
            k++;
        for (size_t j = k; j < all->n && all->at[j].start < s->end; j++) {
            uint64_t from = s->start, to = s->end;
            from = all->at[j].start > from ? all->at[j].start : from;
            from = until > from ? until : from;
            to = all->at[j].end < to ? all->at[j].end : to;
            sum += to > from ? to - from : 0;
        }
        until = s->end > until ? s->end : until;
    }
    return sum;
}

/* To the totals of the names: what lies in the steps. */
static uint64_t add_up(const steps *all)
{
    uint64_t sum = 0;
    size_t k = 0;
    for (int i = 0; i < seen.n_names; i++)
        seen.names[i].ns = seen.names[i].n = 0;
    for (size_t i = 0; i < seen.n_spans; i++) {
        const span *s = &seen.spans[i];
        total *t = &seen.names[s->name];
        while (k < all->n && all->at[k].end <= s->start)
            k++;
        for (size_t j = k; j < all->n && all->at[j].start < s->end; j++) {
            const span *in = &all->at[j];
            const uint64_t from = s->start > in->start ? s->start : in->start;
            const uint64_t to = s->end < in->end ? s->end : in->end;
            t->ns += to > from ? to - from : 0;
            sum += to > from ? to - from : 0;
            t->n += s->start >= in->start;
        }
    }
    return sum;
}

/* ---- Gaps --------------------------------------------------------------------- */

#define MAX_GAPS 1024
#define N_GAPS_SHOWN 24

/* Nothing ran behind one name and before the other. */
typedef struct gap {
    int before, after; /* of names */
    uint64_t ns;
    size_t n;
} gap;

static void add_gap(gap *gaps, int *n_gaps, int before, int after, uint64_t ns)
{
    int i = 0;
    while (i < *n_gaps && (gaps[i].before != before || gaps[i].after != after))
        i++;
    if (i == MAX_GAPS)
        return;
    if (i == *n_gaps)
        gaps[(*n_gaps)++] = (gap){.before = before, .after = after};
    gaps[i].ns += ns;
    gaps[i].n++;
}

static int by_gap(const void *a, const void *b)
{
    const gap *x = a, *y = b;
    return (x->ns < y->ns) - (x->ns > y->ns);
}

/* Those that end within the steps, the largest sums first. */
static int find_gaps(const steps *all, gap *gaps)
{
    int n = 0, last = seen.spans[0].name;
    uint64_t until = seen.spans[0].end;
    size_t k = 0;
    for (size_t i = 1; i < seen.n_spans; i++) {
        const span *s = &seen.spans[i];
        while (k < all->n && all->at[k].end < s->start)
            k++;
        if (s->start > until && k < all->n && all->at[k].start <= until)
            add_gap(gaps, &n, last, s->name, s->start - until);
        if (s->end > until) {
            until = s->end;
            last = s->name;
        }
    }
    qsort(gaps, (size_t)n, sizeof *gaps, by_gap);
    return n;
}

/* ---- Tables ------------------------------------------------------------------- */

static int by_time(const void *a, const void *b)
{
    const total *x = a, *y = b;
    return (x->ns < y->ns) - (x->ns > y->ns);
}

static void put(FILE *out, const char *what, double ns, const steps *all)
{
    fprintf(out, "| %s | %.0f | %.1f%% |\n", what, 1e-3 * ns / (double)all->n,
            100.0 * ns / (double)all->ns);
}

static void put_groups(FILE *out, const steps *all)
{
    total groups[N_PATTERNS + 1] = {0};
    int n = 0;
    for (int i = 0; i < seen.n_names; i++) {
        int g = 0;
        while (g < n && strcmp(groups[g].group, seen.names[i].group) != 0)
            g++;
        if (g == n)
            groups[n++].group = seen.names[i].group;
        groups[g].ns += seen.names[i].ns;
    }
    qsort(groups, (size_t)n, sizeof *groups, by_time);
    for (int g = 0; g < n; g++)
        if (groups[g].ns > 0)
            put(out, groups[g].group, (double)groups[g].ns, all);
}

/* The names are still in the order that spans know. */
static void put_gaps(FILE *out, const steps *all)
{
    static gap gaps[MAX_GAPS];
    const int n = find_gaps(all, gaps);
    const double n_steps = (double)all->n;
    fprintf(out, "\n| nothing runs, us of a step | times | behind | before |\n"
                 "|---|---|---|---|\n");
    for (int i = 0; i < n && i < N_GAPS_SHOWN; i++)
        fprintf(out, "| %.1f | %.1f | `%s` | `%s` |\n",
                1e-3 * (double)gaps[i].ns / n_steps,
                (double)gaps[i].n / n_steps, seen.names[gaps[i].before].name,
                seen.names[gaps[i].after].name);
}

static void put_names(FILE *out, const steps *all)
{
    const double n = (double)all->n;
    qsort(seen.names, (size_t)seen.n_names, sizeof *seen.names, by_time);
    fprintf(out, "\n| us of a step | times | what | kernel |\n"
                 "|---|---|---|---|\n");
    for (int i = 0; i < seen.n_names && i < N_SHOWN; i++)
        if (seen.names[i].ns > 0)
            fprintf(out, "| %.1f | %.1f | %s | `%s` |\n",
                    1e-3 * (double)seen.names[i].ns / n,
                    (double)seen.names[i].n / n, seen.names[i].group,
                    seen.names[i].name);
}

void kernel_report_write(FILE *out, const char *step)
{
    span *at = malloc((seen.n_spans + 1) * sizeof *at);
    if (!at || seen.n_spans == 0) {
        fprintf(out, "nothing ran\n");
        free(at);
        return;
    }
    qsort(seen.spans, seen.n_spans, sizeof *seen.spans, by_start);
    const steps all = find_steps(at, step);
    const double sum = (double)add_up(&all), ran = (double)covered(&all, true);
    const double computed = (double)covered(&all, false);
    fprintf(out,
            "%zu steps of %.0f us (%zu left out), %zu records (%zu lost)\n\n"
            "| what | us of a step | of it |\n|---|---|---|\n",
            all.n, 1e-3 * (double)all.ns / (double)all.n, all.n_left_out,
            seen.n_spans, seen.n_lost);
    put_groups(out, &all);
    put(out, "at the same time as others (subtracted)", ran - sum, &all);
    put(out, "nothing runs", (double)all.ns - ran, &all);
    put(out, "step", (double)all.ns, &all);
    put(out, "in it: only sums and copies between GPUs run", ran - computed,
        &all);
    put_gaps(out, &all);
    put_names(out, &all);
    free(at);
}
