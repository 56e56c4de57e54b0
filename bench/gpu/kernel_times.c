/* SPDX-License-Identifier: Apache-2.0
 * Where the time of a CUDA program goes, kernel by kernel: a library that the
 * driver loads into it,
 *
 *     CUDA_INJECTION64_PATH=./kernel_times.so KERNEL_TIMES=out.txt program
 *
 * built by: cc -O2 -shared -fPIC kernel_times.c -o kernel_times.so -I<cuda>/include
 * -L<cuda>/lib64 -lcupti. Activity of CUPTI, added up by name and written at the
 * end of the program, the longest first. KERNEL_TIMES_MS=500 counts only what began
 * in the last 500 ms. Above the names: how long the GPU computed (anything but
 * kernels of NCCL), did nothing but NCCL's kernels (exposed), or nothing. */
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cupti.h>

#define MAX_NAMES 512
#define BUFFER_BYTES ((size_t)8 << 20)
#define NAME_BYTES 120

typedef struct total {
    char name[NAME_BYTES];
    unsigned long long ns, n;
    bool is_nccl;
} total;

typedef struct span {
    unsigned long long start, end;
    int name; /* of totals */
} span;

static struct {
    pthread_mutex_t lock;
    total totals[MAX_NAMES];
    int n;
    span *spans;
    size_t n_spans, capacity;
} seen = {.lock = PTHREAD_MUTEX_INITIALIZER};

int InitializeInjection(void);

static int index_of(const char *name)
{
    char text[NAME_BYTES];
    snprintf(text, sizeof text, "%s", name);
    int i = 0;
    while (i < seen.n && strcmp(seen.totals[i].name, text) != 0)
        i++;
    if (i == seen.n && i < MAX_NAMES) {
        memcpy(seen.totals[i].name, text, sizeof text);
        seen.totals[i].is_nccl = strstr(text, "ncclDev") != NULL;
        seen.n++;
    }
    return i < MAX_NAMES ? i : -1;
}

static void add(const char *name, unsigned long long start,
                unsigned long long end)
{
    const int i = index_of(name);
    if (i < 0)
        return;
    if (seen.n_spans == seen.capacity) {
        const size_t capacity = seen.capacity ? 2 * seen.capacity : 1 << 16;
        span *more = realloc(seen.spans, capacity * sizeof *more);
        if (!more)
            return;
        seen.spans = more;
        seen.capacity = capacity;
    }
    seen.spans[seen.n_spans++] = (span){start, end, i};
}

static void take(const CUpti_Activity *record)
{
    if (record->kind == CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL) {
        const CUpti_ActivityKernel9 *k = (const void *)record;
        add(k->name, k->start, k->end);
    } else if (record->kind == CUPTI_ACTIVITY_KIND_MEMCPY) {
        const CUpti_ActivityMemcpy5 *c = (const void *)record;
        add(c->copyKind == CUPTI_ACTIVITY_MEMCPY_KIND_DTOD ? "[copy on the GPU]"
                                                           : "[copy]",
            c->start, c->end);
    } else if (record->kind == CUPTI_ACTIVITY_KIND_MEMSET) {
        const CUpti_ActivityMemset4 *m = (const void *)record;
        add("[fill]", m->start, m->end);
    }
}

static void CUPTIAPI get_buffer(uint8_t **buffer, size_t *size, size_t *n)
{
    *buffer = aligned_alloc(8, BUFFER_BYTES);
    *size = *buffer ? BUFFER_BYTES : 0;
    *n = 0;
}

static void CUPTIAPI take_buffer(CUcontext context, uint32_t stream,
                                 uint8_t *buffer, size_t size, size_t valid)
{
    CUpti_Activity *record = NULL;
    (void)context;
    (void)stream;
    (void)size;
    pthread_mutex_lock(&seen.lock);
    while (cuptiActivityGetNextRecord(buffer, valid, &record) == CUPTI_SUCCESS)
        take(record);
    pthread_mutex_unlock(&seen.lock);
    free(buffer);
}

static int by_time(const void *a, const void *b)
{
    const total *x = a, *y = b;
    return x->ns < y->ns ? 1 : x->ns > y->ns ? -1 : 0;
}

static int by_start(const void *a, const void *b)
{
    const span *x = a, *y = b;
    return x->start < y->start ? -1 : x->start > y->start ? 1 : 0;
}

/* Leaves the spans of the last `ms` in order of their starts; all if 0. */
static void keep_last(double ms)
{
    unsigned long long last = 0;
    for (size_t i = 0; i < seen.n_spans; i++)
        if (seen.spans[i].start > last)
            last = seen.spans[i].start;
    const unsigned long long window = (unsigned long long)(1e6 * ms);
    size_t kept = 0;
    for (size_t i = 0; i < seen.n_spans; i++)
        if (ms <= 0 || seen.spans[i].start + window >= last)
            seen.spans[kept++] = seen.spans[i];
    seen.n_spans = kept;
    if (kept > 0)
        qsort(seen.spans, kept, sizeof *seen.spans, by_start);
}

/* ns in which a kernel of NCCL ran (with_nccl) or any other one, or either
 * (all): the length of the union of their spans. */
static unsigned long long covered(bool all, bool with_nccl)
{
    unsigned long long sum = 0, until = 0;
    for (size_t i = 0; i < seen.n_spans; i++) {
        const span *s = &seen.spans[i];
        if (!all && seen.totals[s->name].is_nccl != with_nccl)
            continue;
        const unsigned long long from = s->start > until ? s->start : until;
        if (s->end > from)
            sum += s->end - from;
        if (s->end > until)
            until = s->end;
    }
    return sum;
}

static void report_spans(FILE *out)
{
    unsigned long long last = 0;
    for (size_t i = 0; i < seen.n_spans; i++)
        if (seen.spans[i].end > last)
            last = seen.spans[i].end;
    const unsigned long long whole =
        seen.n_spans > 0 ? last - seen.spans[0].start : 0;
    const unsigned long long busy = covered(true, true);
    const unsigned long long computed = covered(false, false);
    fprintf(out,
            "%.3f ms: computed %.3f, NCCL %.3f, of that exposed %.3f, idle "
            "%.3f\n",
            1e-6 * (double)whole, 1e-6 * (double)computed,
            1e-6 * (double)covered(false, true),
            1e-6 * (double)(busy - computed), 1e-6 * (double)(whole - busy));
}

static void report(void)
{
    const char *path = getenv("KERNEL_TIMES"), *ms = getenv("KERNEL_TIMES_MS");
    (void)cuptiActivityFlushAll(CUPTI_ACTIVITY_FLAG_FLUSH_FORCED);
    FILE *out = path ? fopen(path, "w") : stderr;
    if (!out)
        return;
    keep_last(ms ? atof(ms) : 0.0);
    report_spans(out);
    unsigned long long all = 0;
    for (size_t i = 0; i < seen.n_spans; i++) {
        const unsigned long long ns = seen.spans[i].end - seen.spans[i].start;
        seen.totals[seen.spans[i].name].ns += ns;
        seen.totals[seen.spans[i].name].n++;
        all += ns;
    }
    qsort(seen.totals, (size_t)seen.n, sizeof seen.totals[0], by_time);
    for (int i = 0; i < seen.n && seen.totals[i].n > 0; i++)
        fprintf(out, "%10.3f ms %5.1f%% %7llu x %9.2f us  %s\n",
                1e-6 * (double)seen.totals[i].ns,
                100.0 * (double)seen.totals[i].ns / (double)all,
                seen.totals[i].n,
                1e-3 * (double)seen.totals[i].ns / (double)seen.totals[i].n,
                seen.totals[i].name);
    if (out != stderr)
        fclose(out);
}

int InitializeInjection(void)
{
    if (cuptiActivityRegisterCallbacks(get_buffer, take_buffer) !=
            CUPTI_SUCCESS ||
        cuptiActivityEnable(CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL) !=
            CUPTI_SUCCESS ||
        cuptiActivityEnable(CUPTI_ACTIVITY_KIND_MEMCPY) != CUPTI_SUCCESS ||
        cuptiActivityEnable(CUPTI_ACTIVITY_KIND_MEMSET) != CUPTI_SUCCESS) {
        fprintf(stderr, "kernel_times: CUPTI is not to be used here\n");
        return 1;
    }
    atexit(report);
    return 1;
}
