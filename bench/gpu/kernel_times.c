/* SPDX-License-Identifier: Apache-2.0
 * Where the time of a CUDA program goes: a library that the driver loads into it,
 *
 *     CUDA_INJECTION64_PATH=build/bench/kernel_times.so \
 *         KERNEL_TIMES=rank%r.txt program
 *
 * (of several ranks: run.py --profile). Activity of CUPTI, also of each kernel of a
 * graph that is launched, goes to a file when the program ends: %r is its rank, %p
 * the number of its process; without a name, to stderr. KERNEL_TIMES_STEP: part of
 * the name of the kernel that ends a step ("update_kernel").
 *
 * Records are asked for whenever the host has waited for the GPU: at the end of the
 * program the driver may be gone before, and with it all that is in CUPTI's buffers.
 * A process in which nothing ran (mpirun's own, one that only looks for GPUs) writes
 * no file. */
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cupti.h>

#include "bench/gpu/kernel_report.h"

#define BUFFER_BYTES ((size_t)8 << 20)

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static size_t n_dropped; /* by CUPTI */

__attribute__((visibility("default"))) int InitializeInjection(void);

static void take(const CUpti_Activity *record)
{
    if (record->kind == CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL ||
        record->kind == CUPTI_ACTIVITY_KIND_KERNEL) {
        const CUpti_ActivityKernel9 *k = (const void *)record;
        kernel_report_add(k->name, k->start, k->end);
    } else if (record->kind == CUPTI_ACTIVITY_KIND_MEMCPY) {
        const CUpti_ActivityMemcpy5 *c = (const void *)record;
        kernel_report_add(c->copyKind == CUPTI_ACTIVITY_MEMCPY_KIND_PTOP
                              ? "[copy between GPUs]"
                          : c->copyKind == CUPTI_ACTIVITY_MEMCPY_KIND_DTOD
                              ? "[copy on the GPU]"
                              : "[copy]",
                          c->start, c->end);
    } else if (record->kind == CUPTI_ACTIVITY_KIND_MEMCPY2) {
        const CUpti_ActivityMemcpyPtoP4 *c = (const void *)record;
        kernel_report_add("[copy between GPUs]", c->start, c->end);
    } else if (record->kind == CUPTI_ACTIVITY_KIND_MEMSET) {
        const CUpti_ActivityMemset4 *m = (const void *)record;
        kernel_report_add("[fill]", m->start, m->end);
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
    size_t n = 0;
    (void)size;
    pthread_mutex_lock(&lock);
    while (cuptiActivityGetNextRecord(buffer, valid, &record) == CUPTI_SUCCESS)
        take(record);
    if (cuptiActivityGetNumDroppedRecords(context, stream, &n) == CUPTI_SUCCESS)
        n_dropped += n;
    pthread_mutex_unlock(&lock);
    free(buffer);
}

/* ---- The host waits ----------------------------------------------------------- */

/* The runtime's calls, and the driver's own. */
static const struct {
    CUpti_CallbackDomain domain;
    CUpti_CallbackId id;
} waits[] = {
    {CUPTI_CB_DOMAIN_RUNTIME_API,
     CUPTI_RUNTIME_TRACE_CBID_cudaStreamSynchronize_v3020},
    {CUPTI_CB_DOMAIN_RUNTIME_API,
     CUPTI_RUNTIME_TRACE_CBID_cudaEventSynchronize_v3020},
    {CUPTI_CB_DOMAIN_RUNTIME_API,
     CUPTI_RUNTIME_TRACE_CBID_cudaDeviceSynchronize_v3020},
    {CUPTI_CB_DOMAIN_DRIVER_API, CUPTI_DRIVER_TRACE_CBID_cuCtxSynchronize},
    {CUPTI_CB_DOMAIN_DRIVER_API, CUPTI_DRIVER_TRACE_CBID_cuStreamSynchronize},
    {CUPTI_CB_DOMAIN_DRIVER_API, CUPTI_DRIVER_TRACE_CBID_cuEventSynchronize},
};

static void CUPTIAPI see(void *user, CUpti_CallbackDomain domain,
                         CUpti_CallbackId id, const void *data)
{
    const CUpti_CallbackData *call = data;
    (void)user;
    (void)domain;
    (void)id;
    if (call->callbackSite == CUPTI_API_EXIT)
        (void)cuptiActivityFlushAll(0);
}

static void watch_waits(void)
{
    CUpti_SubscriberHandle subscriber;
    CUptiResult error = cuptiSubscribe(&subscriber, see, NULL);
    for (size_t i = 0; i < sizeof waits / sizeof *waits; i++)
        if (error == CUPTI_SUCCESS)
            error = cuptiEnableCallback(1, subscriber, waits[i].domain,
                                        waits[i].id);
    if (error != CUPTI_SUCCESS)
        fprintf(stderr,
                "kernel_times: waits are not seen (error %d of CUPTI): what "
                "ran last may be lost\n",
                (int)error);
}

/* ---- The end ------------------------------------------------------------------ */

static const char *rank_text(void)
{
    static const char *const names[] = {"OMPI_COMM_WORLD_RANK", "PMIX_RANK",
                                        "PMI_RANK", "SLURM_PROCID", "RANK"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (getenv(names[i]))
            return getenv(names[i]);
    return "0";
}

static FILE *open_file(const char *name)
{
    char path[1024];
    size_t n = 0;
    for (; *name && n < sizeof path - 32; name++) {
        if (name[0] == '%' && (name[1] == 'r' || name[1] == 'p')) {
            name++;
            n += *name == 'r'
                     ? (size_t)snprintf(path + n, 24, "%.20s", rank_text())
                     : (size_t)snprintf(path + n, 24, "%ld", (long)getpid());
        } else {
            path[n++] = *name;
        }
    }
    path[n] = '\0';
    FILE *out = fopen(path, "w");
    if (!out)
        perror(path);
    return out;
}

static void report(void)
{
    const char *name = getenv("KERNEL_TIMES");
    const char *step = getenv("KERNEL_TIMES_STEP");
    const CUptiResult error =
        cuptiActivityFlushAll(CUPTI_ACTIVITY_FLAG_FLUSH_FORCED);
    pthread_mutex_lock(&lock);
    FILE *out = kernel_report_count() == 0 ? NULL
                : name                     ? open_file(name)
                                           : stderr;
    if (n_dropped > 0)
        fprintf(stderr, "kernel_times: CUPTI dropped %zu records\n", n_dropped);
    if (kernel_report_count() == 0)
        fprintf(stderr,
                "kernel_times: process %ld ran nothing on a GPU (error %d of "
                "CUPTI)\n",
                (long)getpid(), (int)error);
    if (out)
        kernel_report_write(out, step ? step : "update_kernel");
    if (out && out != stderr)
        (void)fclose(out);
    pthread_mutex_unlock(&lock);
}

int InitializeInjection(void)
{
    static const CUpti_ActivityKind kinds[] = {
        CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL, CUPTI_ACTIVITY_KIND_MEMCPY,
        CUPTI_ACTIVITY_KIND_MEMCPY2, CUPTI_ACTIVITY_KIND_MEMSET};
    CUptiResult error = cuptiActivityRegisterCallbacks(get_buffer, take_buffer);
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
        if (error == CUPTI_SUCCESS)
            error = cuptiActivityEnable(kinds[i]);
    if (error != CUPTI_SUCCESS) {
        fprintf(stderr, "kernel_times: error %d of CUPTI\n", (int)error);
        return 1;
    }
    watch_waits();
    (void)atexit(report);
    return 1;
}
