/* SPDX-License-Identifier: Apache-2.0
 * Where the time of a CUDA program goes, kernel by kernel: a library that the
 * driver loads into it,
 *
 *     CUDA_INJECTION64_PATH=./kernel_times.so KERNEL_TIMES=out.txt program
 *
 * built by: cc -O2 -shared -fPIC kernel_times.c -o kernel_times.so -I<cuda>/include
 * -L<cuda>/lib64 -lcupti. Activity of CUPTI, added up by name and written at the
 * end of the program, the longest first. */
#include <pthread.h>
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
} total;

static struct {
    pthread_mutex_t lock;
    total totals[MAX_NAMES];
    int n;
    unsigned long long first, last; /* of all kernels */
} seen = {.lock = PTHREAD_MUTEX_INITIALIZER};

int InitializeInjection(void);

static void add(const char *name, unsigned long long ns)
{
    char text[NAME_BYTES];
    snprintf(text, sizeof text, "%s", name);
    int i = 0;
    while (i < seen.n && strcmp(seen.totals[i].name, text) != 0)
        i++;
    if (i == MAX_NAMES)
        return;
    if (i == seen.n)
        memcpy(seen.totals[seen.n++].name, text, sizeof text);
    seen.totals[i].ns += ns;
    seen.totals[i].n++;
}

static void take(const CUpti_Activity *record)
{
    if (record->kind == CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL) {
        const CUpti_ActivityKernel9 *k = (const void *)record;
        add(k->name, k->end - k->start);
        if (seen.first == 0 || k->start < seen.first)
            seen.first = k->start;
        if (k->end > seen.last)
            seen.last = k->end;
    } else if (record->kind == CUPTI_ACTIVITY_KIND_MEMCPY) {
        const CUpti_ActivityMemcpy5 *c = (const void *)record;
        add(c->copyKind == CUPTI_ACTIVITY_MEMCPY_KIND_DTOD ? "[copy on the GPU]"
                                                           : "[copy]",
            c->end - c->start);
    } else if (record->kind == CUPTI_ACTIVITY_KIND_MEMSET) {
        const CUpti_ActivityMemset4 *m = (const void *)record;
        add("[fill]", m->end - m->start);
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

static void report(void)
{
    const char *path = getenv("KERNEL_TIMES");
    (void)cuptiActivityFlushAll(CUPTI_ACTIVITY_FLAG_FLUSH_FORCED);
    FILE *out = path ? fopen(path, "w") : stderr;
    if (!out)
        return;
    qsort(seen.totals, (size_t)seen.n, sizeof seen.totals[0], by_time);
    unsigned long long all = 0;
    for (int i = 0; i < seen.n; i++)
        all += seen.totals[i].ns;
    fprintf(out, "all %.3f ms, from the first kernel to the last %.3f ms\n",
            1e-6 * (double)all, 1e-6 * (double)(seen.last - seen.first));
    for (int i = 0; i < seen.n; i++)
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
