/* SPDX-License-Identifier: Apache-2.0
 * A CUDA runtime of the host: streams, events, copies; its memory is in
 * fake_memory.c. See fake_gpu.h. */
#include "tests/nccl/fake_gpu.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cuda_runtime_api.h>

#include "tests/nccl/fake_graph.h"

/* ---- Streams ----------------------------------------------------------------- */

static void *work(void *given)
{
    fake_stream *s = given;
    pthread_mutex_lock(&s->lock);
    for (;;) {
        while (!s->first && !s->is_over)
            pthread_cond_wait(&s->changed, &s->lock);
        fake_op *op = s->first;
        if (!op)
            break;
        pthread_mutex_unlock(&s->lock);
        op->run(op + 1);
        pthread_mutex_lock(&s->lock);
        s->first = op->next;
        s->n_done++;
        pthread_cond_broadcast(&s->changed);
        free(op);
    }
    pthread_mutex_unlock(&s->lock);
    return NULL;
}

void fake_push(fake_stream *s, void (*run)(void *), const void *args,
               size_t nbytes)
{
    if (fake_graph_push(s, run, args, nbytes))
        return;
    fake_op *op = calloc(1, sizeof *op + nbytes);
    op->run = run;
    memcpy(op + 1, args, nbytes);
    pthread_mutex_lock(&s->lock);
    fake_op **at = &s->first;
    while (*at)
        at = &(*at)->next;
    *at = op;
    s->n_queued++;
    pthread_cond_broadcast(&s->changed);
    pthread_mutex_unlock(&s->lock);
}

static bool is_done(fake_stream *s, unsigned long ticket)
{
    pthread_mutex_lock(&s->lock);
    const bool done = s->n_done >= ticket;
    pthread_mutex_unlock(&s->lock);
    return done;
}

static void await(fake_stream *s, unsigned long ticket)
{
    pthread_mutex_lock(&s->lock);
    while (s->n_done < ticket)
        pthread_cond_wait(&s->changed, &s->lock);
    pthread_mutex_unlock(&s->lock);
}

static unsigned long last_of(fake_stream *s)
{
    pthread_mutex_lock(&s->lock);
    const unsigned long last = s->n_queued;
    pthread_mutex_unlock(&s->lock);
    return last;
}

/* All of them, for those who wait for the whole GPU. */
#define MAX_STREAMS 64
static fake_stream *streams[MAX_STREAMS];
static pthread_mutex_t streams_lock = PTHREAD_MUTEX_INITIALIZER;

static void replace_stream(fake_stream *from, fake_stream *to)
{
    pthread_mutex_lock(&streams_lock);
    int i = 0;
    while (i < MAX_STREAMS - 1 && streams[i] != from)
        i++;
    streams[i] = to;
    pthread_mutex_unlock(&streams_lock);
}

void fake_await_all(void)
{
    for (int i = 0; i < MAX_STREAMS; i++) {
        pthread_mutex_lock(&streams_lock);
        fake_stream *s = streams[i];
        pthread_mutex_unlock(&streams_lock);
        if (s)
            await(s, last_of(s));
    }
}

static fake_stream *of(cudaStream_t stream)
{
    return (fake_stream *)(void *)stream;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *out, unsigned int flags)
{
    fake_stream *s = calloc(1, sizeof *s);
    (void)flags;
    pthread_mutex_init(&s->lock, NULL);
    pthread_cond_init(&s->changed, NULL);
    if (pthread_create(&s->thread, NULL, work, s) != 0)
        return cudaErrorMemoryAllocation;
    replace_stream(NULL, s);
    *out = (cudaStream_t)(void *)s;
    return cudaSuccess;
}

cudaError_t cudaStreamCreateWithPriority(cudaStream_t *out, unsigned int flags,
                                         int priority)
{
    (void)priority;
    return cudaStreamCreateWithFlags(out, flags);
}

cudaError_t cudaStreamDestroy(cudaStream_t stream)
{
    fake_stream *s = of(stream);
    replace_stream(s, NULL);
    pthread_mutex_lock(&s->lock);
    s->is_over = true;
    pthread_cond_broadcast(&s->changed);
    pthread_mutex_unlock(&s->lock);
    pthread_join(s->thread, NULL);
    pthread_mutex_destroy(&s->lock);
    pthread_cond_destroy(&s->changed);
    free(s);
    return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream)
{
    const cudaError_t error = fake_graph_forbid(of(stream));
    if (error != cudaSuccess)
        return error;
    await(of(stream), last_of(of(stream)));
    return cudaSuccess;
}

cudaError_t cudaStreamQuery(cudaStream_t stream)
{
    const cudaError_t error = fake_graph_forbid(of(stream));
    if (error != cudaSuccess)
        return error;
    return is_done(of(stream), last_of(of(stream))) ? cudaSuccess
                                                    : cudaErrorNotReady;
}

cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest)
{
    *least = *greatest = 0;
    return cudaSuccess;
}

/* ---- Events -------------------------------------------------------------------- */

typedef struct fake_event {
    pthread_mutex_t lock; /* two threads of the group use one */
    fake_stream *stream;  /* NULL: never recorded */
    unsigned long ticket;
    fake_place place; /* of what was captured */
} fake_event;

static fake_event read_event(cudaEvent_t event)
{
    fake_event *e = (fake_event *)(void *)event;
    fake_event copy = {.stream = NULL};
    pthread_mutex_lock(&e->lock);
    copy.stream = e->stream;
    copy.ticket = e->ticket;
    copy.place = e->place;
    pthread_mutex_unlock(&e->lock);
    return copy;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *out, unsigned int flags)
{
    fake_event *e = calloc(1, sizeof *e);
    (void)flags;
    pthread_mutex_init(&e->lock, NULL);
    *out = (cudaEvent_t)(void *)e;
    return cudaSuccess;
}

cudaError_t cudaEventDestroy(cudaEvent_t event)
{
    free((void *)event);
    return cudaSuccess;
}

static long failing_record;

void fake_gpu_fail_record(long n)
{
    failing_record = n;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream)
{
    fake_event *e = (fake_event *)(void *)event;
    const fake_place *place = fake_graph_place(of(stream));
    if (failing_record > 0 && --failing_record == 0)
        return cudaErrorMemoryAllocation;
    pthread_mutex_lock(&e->lock);
    e->place = place ? *place : (fake_place){0};
    e->stream = of(stream);
    e->ticket = last_of(e->stream);
    pthread_mutex_unlock(&e->lock);
    return cudaSuccess;
}

cudaError_t cudaEventQuery(cudaEvent_t event)
{
    const fake_event e = read_event(event);
    if (e.place.capture)
        return cudaErrorCapturedEvent;
    return !e.stream || is_done(e.stream, e.ticket) ? cudaSuccess
                                                    : cudaErrorNotReady;
}

cudaError_t cudaEventSynchronize(cudaEvent_t event)
{
    const fake_event e = read_event(event);
    if (e.place.capture)
        return cudaErrorCapturedEvent;
    if (e.stream)
        await(e.stream, e.ticket);
    return cudaSuccess;
}

static void run_wait(void *args)
{
    const fake_event *e = args;
    await(e->stream, e->ticket);
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event,
                                unsigned int flags)
{
    const fake_event e = read_event(event);
    (void)flags;
    if (e.stream && (e.place.capture || fake_graph_place(of(stream))))
        return fake_graph_wait(of(stream), &e.place);
    if (e.stream && e.stream != of(stream))
        fake_push(of(stream), run_wait, &e, sizeof e);
    return cudaSuccess;
}

/* ---- Copies ------------------------------------------------------------------------- */

typedef struct copy {
    void *dst;
    const void *src; /* NULL: fill */
    int value;
    size_t nbytes;
} copy;

static void run_copy(void *args)
{
    const copy *c = args;
    if (c->src)
        memcpy(c->dst, c->src, c->nbytes);
    else
        memset(c->dst, c->value, c->nbytes);
}

static _Atomic long n_pageable;

long fake_gpu_n_pageable(void)
{
    return n_pageable;
}

/* Pageable memory is read before the call returns, behind all that is queued. */
cudaError_t cudaMemcpyAsync(void *dst, const void *src, size_t nbytes,
                            enum cudaMemcpyKind kind, cudaStream_t stream)
{
    copy c = {dst, src, 0, nbytes};
    struct cudaPointerAttributes a;
    (void)kind;
    (void)cudaPointerGetAttributes(&a, src);
    if (a.type == cudaMemoryTypeUnregistered) {
        const cudaError_t error = cudaStreamSynchronize(stream);
        if (error != cudaSuccess)
            return error;
        n_pageable++;
        run_copy(&c);
        return cudaSuccess;
    }
    fake_push(of(stream), run_copy, &c, sizeof c);
    return cudaSuccess;
}

cudaError_t cudaMemcpyPeerAsync(void *dst, int to, const void *src, int from,
                                size_t nbytes, cudaStream_t stream)
{
    (void)to;
    (void)from;
    return cudaMemcpyAsync(dst, src, nbytes, cudaMemcpyDeviceToDevice, stream);
}

cudaError_t cudaMemsetAsync(void *dst, int value, size_t nbytes,
                            cudaStream_t stream)
{
    const copy c = {dst, NULL, value, nbytes};
    fake_push(of(stream), run_copy, &c, sizeof c);
    return cudaSuccess;
}

cudaError_t cudaMemset(void *dst, int value, size_t nbytes)
{
    memset(dst, value, nbytes);
    return cudaSuccess;
}

/* ---- The rest ------------------------------------------------------------------------ */

static char bus_id[32];
static int device_index;

void fake_gpu_set_bus(const char *bus)
{
    snprintf(bus_id, sizeof bus_id, "%s", bus);
}

cudaError_t cudaDeviceGetPCIBusId(char *out, int size, int device)
{
    if (bus_id[0])
        snprintf(out, (size_t)size, "%s", bus_id);
    else
        snprintf(out, (size_t)size, "0000:%02d:00.0", device);
    return cudaSuccess;
}

cudaError_t cudaSetDevice(int device)
{
    __atomic_store_n(&device_index, device, __ATOMIC_RELAXED);
    return cudaSuccess;
}

cudaError_t cudaGetDevice(int *device)
{
    *device = __atomic_load_n(&device_index, __ATOMIC_RELAXED);
    return cudaSuccess;
}

static int no_gpu; /* a cudaError_t */
static int driver_version = CUDART_VERSION;
static int capability = 90;
static int no_kernels;

void fake_gpu_set_none(int error, int driver)
{
    no_gpu = error;
    driver_version = driver;
}

void fake_gpu_set_kernels(int error, int of_gpu)
{
    no_kernels = error;
    capability = of_gpu;
}

int fake_gpu_kernels(void)
{
    return no_kernels;
}

cudaError_t cudaGetDeviceCount(int *n)
{
    *n = no_gpu ? 0 : FAKE_MAX_RANKS;
    return (cudaError_t)no_gpu;
}

cudaError_t cudaDriverGetVersion(int *version)
{
    *version = driver_version;
    return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr which,
                                   int device)
{
    (void)device;
    *value = which == cudaDevAttrMultiProcessorCount      ? 2
             : which == cudaDevAttrComputeCapabilityMajor ? capability / 10
             : which == cudaDevAttrComputeCapabilityMinor ? capability % 10
                                                          : 0;
    return cudaSuccess;
}

cudaError_t cudaGetLastError(void)
{
    return cudaSuccess;
}

const char *cudaGetErrorString(cudaError_t error)
{
    return error == cudaSuccess ? "no error" : "a made-up error";
}

const char *cudaGetErrorName(cudaError_t error)
{
    return error == cudaSuccess ? "cudaSuccess" : "cudaError";
}
