/* SPDX-License-Identifier: Apache-2.0
 * One end of a group over NCCL.
 *
 *     compute stream   kernels .. E1 ........................ W2 .. kernels
 *     own stream                  W1 .. collective .. E2
 *
 * start records E1 and queues W1, the collective and E2; wait queues W2. Host
 * buffers are copied on a third stream, so that a copy never waits for a later
 * collective.
 *
 * What NCCL cannot tell, who is late, gone or does something else, is told by
 * the board: memory that the ranks of a machine share. A thread of the group,
 * the watch, looks at it now and then, since the group's own thread may be
 * inside a call of CUDA's that waits for a collective that never ends. What it
 * finds is the verdict: it ends what runs (ncclCommAbort) and is the error of
 * the next call of the group. */
#ifndef BRG_COMM_NCCL_GROUP_H
#define BRG_COMM_NCCL_GROUP_H

#include <pthread.h>
#include <stdatomic.h>

#include <cuda_runtime_api.h>
#include <nccl.h>

#include <brigade/ext/backend.h>
#include <brigade/nccl.h>

#include "comm/nccl/board.h"
#include "comm/nccl/direct.h"
#include "comm/patterns/tree.h"

/* Calls that were launched as one share one. */
typedef struct brg__nccl_event {
    struct brg__nccl_event *next;
    cudaEvent_t event;
    int n_users;
    bool is_awaited; /* by the compute stream */
} brg__nccl_event;

/* In order. */
typedef struct brg__nccl_calls {
    brg_call *first;
    brg_call **last; /* where the next one goes */
} brg__nccl_calls;

/* What was queued and may still run: a call, or a graph that holds calls. */
typedef struct brg__nccl_beat {
    bool is_open;
    cudaEvent_t event;
    uint64_t start_ns;
    uint64_t n_launched; /* of a graph; 0: a call */
    int n_calls;         /* coalesced with it, itself included */
    brg_signature signature;
} brg__nccl_beat;

#define BRG__NCCL_BEATS 16

typedef struct brg__nccl_watch {
    pthread_t thread;
    bool is_running;
    pthread_mutex_t sleep_lock;
    pthread_cond_t wake;
    bool is_woken, is_over; /* under sleep_lock */
    brg__nccl_beat beats[BRG__NCCL_BEATS];
    unsigned next;    /* beat */
    uint64_t last_ns; /* a beat was seen to end */
    uint64_t n_launched;
} brg__nccl_watch;

typedef struct brg__nccl_verdict {
    _Atomic int code; /* brg_status; last to be set */
    bool has_pair;    /* of a mismatch */
    brg__nccl_said mine, theirs;
    char text[BRG__NCCL_WHY];
} brg__nccl_verdict;

/* A block of brg_pg_alloc. */
typedef struct brg__nccl_block {
    struct brg__nccl_block *next;
    void *at;
    void *handle; /* with NCCL; NULL: not registered */
} brg__nccl_block;

/* The tree of the last sum of leaves, and room for what other ranks send. */
typedef struct brg__nccl_leaves {
    uint32_t n_leaves; /* 0: none yet */
    size_t n_src;
    uint8_t *n_parts; /* of each rank */
    uint8_t *merges;  /* after each part of all ranks */
    const void **src; /* scratch, as many */
    void *room;       /* on the device */
    size_t room_nbytes;
} brg__nccl_leaves;

typedef struct brg__nccl_group {
    const brg_host *host;
    int rank, n_ranks, device;
    uint64_t timeout_ns;
    bool is_registering, sums_wide, is_bounded; /* settings */
    brg__nccl_way way;
    const int *were; /* while it is made by shrink.c: the old ranks; borrowed */
    ncclComm_t comm; /* under `lock` once the watch runs */
    pthread_mutex_t lock; /* of comm and the beats */
    cudaStream_t compute; /* borrowed */
    cudaStream_t own, copies;
    cudaEvent_t ready;      /* E1, recorded anew by each start */
    brg__nccl_event *spare; /* E2 of calls to come */
    void *byte;             /* on the device: what a barrier sums */
    brg__nccl_calls flying;
    brg__nccl_calls held;      /* send and recv not yet given to NCCL */
    brg__nccl_calls coalesced; /* collectives not yet said or given to it */
    bool is_coalescing;
    brg__nccl_block *blocks;
    brg__nccl_leaves leaves;
    brg__nccl_direct direct;
    brg__nccl_board board;
    brg__nccl_watch watch;
    brg__nccl_verdict verdict;
} brg__nccl_group;

#define BRG__NCCL_TRY(expr)                                                    \
    do {                                                                       \
        brg_status nccl_try_ = (expr);                                         \
        if (nccl_try_ != BRG_OK)                                               \
            return nccl_try_;                                                  \
    } while (0)

brg_status brg__nccl_check_cuda(brg__nccl_group *g, cudaError_t error,
                                const char *what);
brg_status brg__nccl_check(brg__nccl_group *g, ncclResult_t result,
                           const char *what);

/* nccl.c, shrink.c. `were`: see brg__nccl_group; or NULL. */
brg_status brg__nccl_make(const brg_host *host, const brg_pg_options *options,
                          const int *were, brg_group *filled);
brg_status brg__nccl_shrink(void *group, brg_group *filled);

/* The slots of brg_group_ops (calls.c). */
brg_status brg__nccl_start(void *group, brg_call *call);
brg_status brg__nccl_progress(void *group);
brg_status brg__nccl_wait(void *group, brg_call *call);
brg_status brg__nccl_coalesce_begin(void *group);
brg_status brg__nccl_coalesce_end(void *group);
/* What is queued is recorded, to be launched later (ext/device.h): nothing
 * ends meanwhile, and events may not be asked for. */
bool brg__nccl_is_recorded(const brg__nccl_group *g);
brg_status brg__nccl_fail_recorded(const brg__nccl_group *g, const char *what);
/* Gives events and copies of all calls in flight back; nothing is reported. */
void brg__nccl_forget(brg__nccl_group *g);
ncclDataType_t brg__nccl_type(brg_dtype dtype);

/* ---- leaves.c: sums in a fixed order ------------------------------------------- */

/* Bytes that a sum of leaves reads at call->send. */
size_t brg__nccl_leaves_extent(const brg__nccl_group *g, const brg_call *call);
/* Queues the call: a sum of leaves, or an all-reduce as the sum of one leaf for
 * each rank. */
brg_status brg__nccl_sum(brg__nccl_group *g, const brg_call *call,
                         const void *send, void *recv);
/* Whether it is for brg__nccl_sum. */
bool brg__nccl_sums(const brg__nccl_group *g, const brg_call *call);
void brg__nccl_leaves_deinit(brg__nccl_group *g);

/* join.c: sets `comm`. Collective. */
brg_status brg__nccl_join(brg__nccl_group *g, ncclUniqueId id);

/* ---- watch.c ----------------------------------------------------------------------- */

brg_status brg__nccl_watch_start(brg__nccl_group *g);
/* Waits for the thread; nothing is found any more. */
void brg__nccl_watch_stop(brg__nccl_group *g);
/* The verdict as an error, if there is one. */
brg_status brg__nccl_heed(const brg__nccl_group *g);
static inline bool brg__nccl_is_judged(const brg__nccl_group *g)
{
    return atomic_load_explicit(&g->verdict.code, memory_order_acquire) !=
           BRG_OK;
}
/* Two ranks do not agree; the first verdict stays. */
void brg__nccl_judge_pair(brg__nccl_group *g, const brg__nccl_said *mine,
                          const brg__nccl_said *theirs);
/* A call, or so many coalesced ones of which it is the first, was queued (not
 * recorded); a graph that holds calls was launched. */
void brg__nccl_watch_call(brg__nccl_group *g, const brg_call *call,
                          int n_calls);
void brg__nccl_launched(void *group); /* a slot */
/* What the other ranks are to know of this one; the first word stays. */
void brg__nccl_say_gone(brg__nccl_group *g, int32_t gone, const char *why);
/* The group has failed for what the caller knows: the watch stops what runs and
 * lets the other ranks of the machine hear of it. */
void brg__nccl_fail(brg__nccl_group *g, brg_status code);

#endif
