/* SPDX-License-Identifier: Apache-2.0
 * Memory of the CUDA runtime of the host: of the GPU, pinned, of other processes,
 * and in the order of a stream. See fake_gpu.h. */
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include <cuda_runtime_api.h>

#include "tests/nccl/fake_gpu.h"
#include "tests/nccl/fake_stream.h"

/* ---- Blocks --------------------------------------------------------------------- */

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
    fake_await_all();
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
    fake_push((fake_stream *)(void *)stream, run_free, &at, sizeof at);
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
