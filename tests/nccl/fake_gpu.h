/* SPDX-License-Identifier: Apache-2.0
 * What comm/nccl calls of the CUDA runtime and of NCCL, without a GPU: memory
 * of the host, streams that are threads, collectives between processes that
 * were forked after fake_gpu_init. A collective waits for its ranks as long as
 * NCCL's kernels do: until they come, or it is aborted. */
#ifndef BRG_TESTS_NCCL_FAKE_GPU_H
#define BRG_TESTS_NCCL_FAKE_GPU_H

#include <stdbool.h>
#include <stddef.h>

#define FAKE_MAX_RANKS 4

/* Before the ranks are forked. */
bool fake_gpu_init(void);

/* From now on NCCL says that its communicators are in this state (an
 * ncclResult_t). */
void fake_nccl_set_state(int state);

/* From now on this rank is lost where it makes a communicator: it is killed
 * there, or does not do its part for 1 s. */
typedef enum fake_step {
    FAKE_NOWHERE,
    FAKE_INIT,
    FAKE_SPLIT,
    FAKE_FINALIZE
} fake_step;
void fake_nccl_set_fault(fake_step step, bool kills);

/* So many graphs hold calls of NCCL's: communicators are neither destroyed nor
 * freed by an abort until they are gone. */
void fake_nccl_set_graphs(int n);

/* From now on it sums 16-bit floats as NCCL does: averages by numbers that are
 * divided first, rounded at each step. Else in f32, rounded once. */
void fake_nccl_set_stepped(void);

/* Every memory that is asked for in a stream takes so long. */
void fake_gpu_set_slow_ms(long ms);

/* Kernels of NCCL's that this process has queued. */
unsigned long fake_nccl_n_queued(void);

/* No GPU reaches the memory of another from now on. */
void fake_gpu_set_no_peers(void);

/* The GPU has so much memory, of which so much is in use, or kept by the pool. */
void fake_gpu_set_memory(size_t nbytes);
size_t fake_gpu_used(void);
/* Copies from pageable memory so far: the host waited for each. */
long fake_gpu_n_pageable(void);

/* The n-th memory that is asked for from now on is not there; what is left of n,
 * 0 when that has been. 0: none. */
void fake_gpu_fail_alloc(long n);
long fake_gpu_allocs_left(void);

/* The op's next kernel cannot be launched; the n-th graph from now on cannot be
 * made for want of memory (-1: each). NULL, 0: none. */
void fake_gpu_fail_op(const char *name);
void fake_gpu_fail_graph(long n);
/* So does the n-th event that is recorded. */
void fake_gpu_fail_record(long n);

/* The CUDA runtime finds no GPU for this reason (a cudaError_t), with a driver of
 * that version (12040; 0: none). */
void fake_gpu_set_none(int error, int driver);
/* Kernels are not for this GPU (a cudaError_t; 0: they are); what it is (89 for
 * 8.9). */
void fake_gpu_set_kernels(int error, int capability);
int fake_gpu_kernels(void);

/* The GPU is said to be this one, whatever the device. */
void fake_gpu_set_bus(const char *bus);

#endif
