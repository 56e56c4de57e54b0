/* SPDX-License-Identifier: Apache-2.0
 * Flags that streams wait for and raise, and the kernels of comm/nccl. */
#include <sched.h>
#include <stdatomic.h>
#include <string.h>

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <brigade/ext/backend.h>

#include "comm/nccl/sum.h"
#include "tests/nccl/fake_gpu.h"
#include "tests/nccl/fake_stream.h"

/* ---- Flags ------------------------------------------------------------------- */

static void run_op(void *args)
{
    const CUstreamBatchMemOpParams *op = args;
    if (op->operation == CU_STREAM_MEM_OP_WAIT_VALUE_32) {
        const _Atomic uint32_t *at =
            (const _Atomic uint32_t *)(uintptr_t)op->waitValue.address;
        while (atomic_load(at) < op->waitValue.value)
            (void)sched_yield();
    } else {
        atomic_store((_Atomic uint32_t *)(uintptr_t)op->writeValue.address,
                     op->writeValue.value);
    }
}

static CUresult queue_ops(CUstream stream, unsigned n,
                          CUstreamBatchMemOpParams *ops, unsigned flags)
{
    (void)flags;
    for (unsigned k = 0; k < n; k++)
        fake_push((fake_stream *)(void *)stream, run_op, &ops[k],
                  sizeof ops[k]);
    return CUDA_SUCCESS;
}

cudaError_t
cudaGetDriverEntryPointByVersion(const char *name, void **out, unsigned version,
                                 unsigned long long flags,
                                 enum cudaDriverEntryPointQueryResult *how)
{
    CUresult (*at)(CUstream, unsigned, CUstreamBatchMemOpParams *, unsigned) =
        queue_ops;
    (void)version;
    (void)flags;
    *how = strcmp(name, "cuStreamBatchMemOp") == 0
               ? cudaDriverEntryPointSuccess
               : cudaDriverEntryPointSymbolNotFound;
    memcpy(out, &at, sizeof at);
    return cudaSuccess;
}

/* ---- The kernels of comm/nccl/sum.cu --------------------------------------------- */

static void run_sum(void *args)
{
    const brg__nccl_sum_job *j = args;
    const void *src[BRG__NCCL_MAX_SRC];
    void *dst = j->dst;
    if (j->stop && atomic_load((const _Atomic uint32_t *)(const void *)j->stop))
        return;
    for (int k = 0; k < j->n_src; k++) {
        const int mine = k - j->own_first;
        const int place = mine < 0 ? k : k - j->own_n;
        src[k] = mine >= 0 && mine < j->own_n
                     ? j->own + (size_t)mine * j->own_stride
                     : j->room + (size_t)place * j->room_stride;
    }
    brg_host_get()->reduce(
        &(brg_reduction){.src = src,
                         .dst = &dst,
                         .n_src = (size_t)j->n_src,
                         .n_dst = 1,
                         .count = j->count,
                         .dtype = (brg_dtype)j->dtype,
                         .op = j->divisor ? BRG_REDUCE_AVG : BRG_REDUCE_SUM,
                         .divisor = j->divisor,
                         .src_partial = j->is_partial,
                         .merges = j->is_tree ? j->merges : NULL});
}

int brg__nccl_sum_launch(const brg__nccl_sum_job *given, void *stream)
{
    fake_push(stream, run_sum, given, sizeof *given);
    return 0;
}

static size_t nbytes_of_sources(const brg__nccl_sum_job *j)
{
    const brg_dtype dtype = (brg_dtype)j->dtype;
    return j->count * (j->is_partial ? brg_host_get()->partial_size(dtype)
                                     : brg_dtype_size(dtype));
}

static void push(const brg__nccl_push_job *j, size_t skip, size_t nbytes)
{
    for (int r = 0; r < j->n_ranks; r++) {
        char *to =
            j->rooms[r] + skip + (size_t)j->places[r] * j->sum.room_stride;
        for (int k = 0; r != j->rank && k < j->sum.own_n; k++)
            memcpy(to + (size_t)k * j->sum.room_stride,
                   j->sum.own + (size_t)k * j->sum.own_stride, nbytes);
    }
}

static _Atomic uint64_t *flag_of(const brg__nccl_push_job *j, int owner,
                                 int from)
{
    return (_Atomic uint64_t *)(void *)(j->flags[owner] +
                                        from * BRG__NCCL_PUSH_BLOCKS);
}

static bool await_flag(const brg__nccl_push_job *j, int from, uint64_t turn)
{
    while (atomic_load(flag_of(j, j->rank, from)) < turn) {
        if (atomic_load((const _Atomic uint32_t *)(const void *)j->stop))
            return false;
        (void)sched_yield();
    }
    return true;
}

static void run_push(void *args)
{
    brg__nccl_push_job *j = args;
    const uint64_t turn = j->turns->turn + 1;
    const size_t skip = turn % 2 * j->turn_stride;
    bool all = true;
    push(j, skip, nbytes_of_sources(&j->sum));
    for (int r = 0; r < j->n_ranks; r++)
        if (r != j->rank)
            atomic_store(flag_of(j, r, j->rank), turn);
    for (int r = 0; r < j->n_ranks && all; r++)
        all = r == j->rank || await_flag(j, r, turn);
    j->sum.room += skip;
    if (all)
        run_sum(&j->sum);
    j->turns->turn = turn;
}

int brg__nccl_push_launch(const brg__nccl_push_job *job, void *stream)
{
    fake_push(stream, run_push, job, sizeof *job);
    return 0;
}
