/* SPDX-License-Identifier: Apache-2.0
 * A CUDA runtime of the host: memory, streams, events. See fake_gpu.h. */
#include "tests/nccl/fake_gpu.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

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

static void await_all(void)
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

/* ---- Memory ----------------------------------------------------------------------- */

/* Blocks of the GPU, and pinned ones, are told from others by a list. */
typedef struct block {
    struct block *next;
    char *at;
    size_t nbytes;
    int fd; /* of memory that other processes may map; -1: the heap's */
    enum cudaMemoryType type;
    bool is_pooled;
    bool is_counted;
    bool is_borrowed;
} block;

#define MADE_DIRTY ((size_t)1 << 20)

static bool no_peers;

void fake_gpu_set_no_peers(void)
{
    no_peers = true;
}

static block *blocks;
static pthread_mutex_t blocks_lock = PTHREAD_MUTEX_INITIALIZER;

static void free_block(void *at);

static void *map(int fd, size_t nbytes)
{
    void *at = mmap(NULL, nbytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    return at == MAP_FAILED ? NULL : at;
}

static void add_block(const block *made)
{
    block *b = calloc(1, sizeof *b);
    *b = *made;
    b->next = blocks;
    blocks = b;
}

/* What was freed in order of a stream stays with the pool until it is trimmed. */
static struct {
    size_t all; /* 0: as much as one likes */
    size_t n_used, n_pooled, n_spare;
} memory;

void fake_gpu_set_memory(size_t nbytes)
{
    memory.all = nbytes;
}

size_t fake_gpu_used(void)
{
    return memory.n_used + memory.n_pooled + memory.n_spare;
}

static long failing_alloc;

void fake_gpu_fail_alloc(long n)
{
    failing_alloc = n;
}

long fake_gpu_allocs_left(void)
{
    return failing_alloc;
}

static bool take(size_t nbytes, bool is_pooled)
{
    if (failing_alloc > 0 && --failing_alloc == 0)
        return false;
    const size_t spare = !is_pooled                ? 0
                         : nbytes < memory.n_spare ? nbytes
                                                   : memory.n_spare;
    if (memory.all && fake_gpu_used() + nbytes - spare > memory.all)
        return false;
    memory.n_spare -= spare;
    *(is_pooled ? &memory.n_pooled : &memory.n_used) += nbytes;
    return true;
}

static void give_back(const block *b)
{
    if (!b->is_counted)
        return;
    *(b->is_pooled ? &memory.n_pooled : &memory.n_used) -= b->nbytes;
    memory.n_spare += b->is_pooled ? b->nbytes : 0;
}

/* What is not the pool's may be mapped by other processes. */
static bool make_block(block *b)
{
    const size_t n = b->nbytes;
    if (b->is_pooled || b->type != cudaMemoryTypeDevice) {
        b->at = aligned_alloc(256, (n + 255) / 256 * 256 + 256);
    } else {
        b->fd = memfd_create("fake gpu", MFD_CLOEXEC);
        b->at = b->fd >= 0 && ftruncate(b->fd, (off_t)n) == 0 ? map(b->fd, n)
                                                              : NULL;
    }
    if (b->at && n <= MADE_DIRTY)
        memset(b->at, 0xcd, n);
    return b->at != NULL;
}

static cudaError_t new_block(void **out, size_t nbytes,
                             enum cudaMemoryType type, bool is_pooled)
{
    block b = {.nbytes = nbytes,
               .fd = -1,
               .type = type,
               .is_pooled = is_pooled,
               .is_counted = type == cudaMemoryTypeDevice};
    *out = NULL;
    pthread_mutex_lock(&blocks_lock);
    const bool is_there =
        (!b.is_counted || take(nbytes, is_pooled)) && make_block(&b);
    if (is_there)
        add_block(&b);
    pthread_mutex_unlock(&blocks_lock);
    *out = b.at;
    return is_there ? cudaSuccess : cudaErrorMemoryAllocation;
}

cudaError_t cudaMalloc(void **out, size_t nbytes)
{
    return new_block(out, nbytes, cudaMemoryTypeDevice, false);
}

cudaError_t cudaHostAlloc(void **out, size_t nbytes, unsigned int flags)
{
    (void)flags;
    return new_block(out, nbytes, cudaMemoryTypeHost, false);
}

/* ---- Memory of other processes ----------------------------------------------- */

typedef struct fake_handle {
    size_t nbytes;
    int pid, fd;
} fake_handle;

cudaError_t cudaIpcGetMemHandle(cudaIpcMemHandle_t *out, void *at)
{
    cudaError_t result = cudaErrorInvalidValue;
    pthread_mutex_lock(&blocks_lock);
    for (const block *b = blocks; b; b = b->next)
        if (b->at == at && b->fd >= 0) {
            const fake_handle h = {b->nbytes, (int)getpid(), b->fd};
            memcpy(out, &h, sizeof h);
            result = cudaSuccess;
        }
    pthread_mutex_unlock(&blocks_lock);
    return result;
}

cudaError_t cudaIpcOpenMemHandle(void **out, cudaIpcMemHandle_t handle,
                                 unsigned int flags)
{
    fake_handle h;
    char path[64];
    (void)flags;
    memcpy(&h, &handle, sizeof h);
    snprintf(path, sizeof path, "/proc/%d/fd/%d", h.pid, h.fd);
    const int fd = no_peers ? -1 : open(path, O_RDWR | O_CLOEXEC);
    void *at = fd >= 0 ? map(fd, h.nbytes) : NULL;
    if (!at)
        return cudaErrorPeerAccessUnsupported;
    pthread_mutex_lock(&blocks_lock);
    add_block(&(block){
        .at = at, .nbytes = h.nbytes, .fd = fd, .type = cudaMemoryTypeDevice});
    pthread_mutex_unlock(&blocks_lock);
    *out = at;
    return cudaSuccess;
}

cudaError_t cudaIpcCloseMemHandle(void *at)
{
    return cudaFree(at);
}

cudaError_t cudaHostRegister(void *at, size_t nbytes, unsigned int flags)
{
    (void)flags;
    pthread_mutex_lock(&blocks_lock);
    add_block(&(block){.at = at,
                       .nbytes = nbytes,
                       .fd = -1,
                       .type = cudaMemoryTypeHost,
                       .is_borrowed = true});
    pthread_mutex_unlock(&blocks_lock);
    return cudaSuccess;
}

cudaError_t cudaHostUnregister(void *at)
{
    free_block(at);
    return cudaSuccess;
}

cudaError_t cudaHostGetDevicePointer(void **out, void *at, unsigned int flags)
{
    (void)flags;
    *out = at;
    return cudaSuccess;
}

/* ---- Freeing, and memory in the order of a stream -------------------------------- */

static void free_block(void *at)
{
    pthread_mutex_lock(&blocks_lock);
    for (block **b = &blocks; *b; b = &(*b)->next)
        if ((*b)->at == at) {
            block *gone = *b;
            *b = gone->next;
            give_back(gone);
            if (gone->is_borrowed) {
                ; /* the program's */
            } else if (gone->fd >= 0) {
                (void)munmap(gone->at, gone->nbytes);
                (void)close(gone->fd);
            } else {
                free(gone->at);
            }
            free(gone);
            break;
        }
    pthread_mutex_unlock(&blocks_lock);
}

/* Waits for the GPU, as the real one does. */
cudaError_t cudaFree(void *at)
{
    await_all();
    free_block(at);
    return cudaSuccess;
}

cudaError_t cudaFreeHost(void *at)
{
    return cudaFree(at);
}

static long slow_ms;

void fake_gpu_set_slow_ms(long ms)
{
    slow_ms = ms;
}

cudaError_t cudaMallocAsync(void **out, size_t nbytes, cudaStream_t stream)
{
    const struct timespec pause = {slow_ms / 1000, slow_ms % 1000 * 1000000};
    (void)stream;
    if (slow_ms > 0)
        (void)nanosleep(&pause, NULL);
    return new_block(out, nbytes, cudaMemoryTypeDevice, true);
}

static void run_free(void *args)
{
    void *at;
    memcpy(&at, args, sizeof at);
    free_block(at);
}

cudaError_t cudaFreeAsync(void *at, cudaStream_t stream)
{
    fake_push(of(stream), run_free, &at, sizeof at);
    return cudaSuccess;
}

cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *out,
                                     const void *at)
{
    out->type = cudaMemoryTypeUnregistered;
    (void)cudaGetDevice(&out->device);
    pthread_mutex_lock(&blocks_lock);
    for (const block *b = blocks; b; b = b->next)
        if ((const char *)at >= b->at && (const char *)at < b->at + b->nbytes)
            out->type = b->type;
    pthread_mutex_unlock(&blocks_lock);
    return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t *n_free, size_t *all)
{
    *all = memory.all;
    *n_free = memory.all - fake_gpu_used();
    return cudaSuccess;
}

/* There is one pool. */
cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t *out, int device)
{
    (void)device;
    *out = (cudaMemPool_t)(void *)&memory;
    return cudaSuccess;
}

cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t pool,
                                    enum cudaMemPoolAttr which, void *value)
{
    (void)pool;
    (void)which;
    (void)value;
    return cudaSuccess;
}

cudaError_t cudaMemPoolGetAttribute(cudaMemPool_t pool,
                                    enum cudaMemPoolAttr which, void *value)
{
    const uint64_t n = memory.n_pooled + memory.n_spare;
    (void)pool;
    if (which != cudaMemPoolAttrReservedMemCurrent)
        return cudaErrorNotSupported;
    memcpy(value, &n, sizeof n);
    return cudaSuccess;
}

cudaError_t cudaMemPoolTrimTo(cudaMemPool_t pool, size_t n_kept)
{
    (void)pool;
    pthread_mutex_lock(&blocks_lock);
    if (memory.n_pooled + memory.n_spare > n_kept)
        memory.n_spare =
            n_kept > memory.n_pooled ? n_kept - memory.n_pooled : 0;
    pthread_mutex_unlock(&blocks_lock);
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
