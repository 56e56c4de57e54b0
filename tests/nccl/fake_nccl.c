/* SPDX-License-Identifier: Apache-2.0
 * An NCCL between forked processes. A collective is one operation of a stream:
 * each rank puts what it sends into its tray, waits for all trays, and makes
 * the result of them. Send and recv go through a box for each pair of ranks, in
 * pieces. Collectives of a group are one operation, in an order that is not the
 * program's; where ranks group them differently, it hangs. */
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include <nccl.h>

#include <brigade/ext/backend.h>

#include "core/base/dtype.h"
#include "tests/nccl/fake_gpu.h"
#include "tests/nccl/fake_graph.h"

#define N_COMMS 64 /* of a world's life */
#define TRAY ((size_t)8 << 20)
#define BOX 65536

typedef struct box {
    _Atomic size_t n; /* 0: empty */
    char data[BOX];
} box;

typedef struct shared_comm {
    _Atomic int n_joined, n_final;
    _Atomic int child; /* 1 + the place of what is split from it; 0: none */
    _Atomic unsigned long posted[FAKE_MAX_RANKS], taken[FAKE_MAX_RANKS];
    _Atomic int n_grouped[FAKE_MAX_RANKS];     /* with what was posted last */
    box boxes[FAKE_MAX_RANKS][FAKE_MAX_RANKS]; /* from, to */
    char trays[FAKE_MAX_RANKS][TRAY];
} shared_comm;

typedef struct shared {
    _Atomic int n_comms;
    shared_comm comms[N_COMMS];
} shared;

struct ncclComm {
    shared_comm *s;
    int rank, n;
    bool is_blocking, is_final;
    struct ncclComm *child; /* being split */
    ncclComm_t *child_out;
    _Atomic bool is_aborted;
    _Atomic int n_ops; /* queued */
    unsigned long n_started;
};

static shared *all;
static _Atomic int state = ncclSuccess;

bool fake_gpu_init(void)
{
    void *at = mmap(NULL, sizeof *all, PROT_READ | PROT_WRITE,
                    MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    all = at == MAP_FAILED ? NULL : at;
    return all != NULL;
}

static _Atomic int n_graphs;

void fake_nccl_set_graphs(int n)
{
    n_graphs = n;
}

void fake_nccl_set_state(int given)
{
    state = given;
}

/* ---- Communicators -------------------------------------------------------------- */

ncclResult_t ncclGetUniqueId(ncclUniqueId *out)
{
    const int k = atomic_fetch_add(&all->n_comms, 1);
    memset(out, 0, sizeof *out);
    memcpy(out->internal, &k, sizeof k);
    return k < N_COMMS ? ncclSuccess : ncclSystemError;
}

static fake_step fault_step;
static bool fault_kills;

void fake_nccl_set_fault(fake_step step, bool kills)
{
    fault_step = step;
    fault_kills = kills;
}

/* True: this rank does not come, or only when the others have given up. */
static bool is_lost_at(fake_step step)
{
    const struct timespec long_enough = {1, 0};
    if (step != fault_step)
        return false;
    if (fault_kills)
        (void)raise(SIGKILL);
    (void)nanosleep(&long_enough, NULL);
    return true;
}

static bool have_all_joined(const struct ncclComm *c)
{
    return atomic_load(&c->s->n_joined) >= c->n;
}

static struct ncclComm *join(int k, int n, int rank, bool is_blocking)
{
    struct ncclComm *c = calloc(1, sizeof *c);
    c->s = &all->comms[k];
    c->rank = rank;
    c->n = n;
    c->is_blocking = is_blocking;
    atomic_fetch_add(&c->s->n_joined, 1);
    return c;
}

ncclResult_t ncclCommInitRank(ncclComm_t *out, int n, ncclUniqueId id, int rank)
{
    int k;
    memcpy(&k, id.internal, sizeof k);
    if (is_lost_at(FAKE_INIT))
        return ncclSystemError;
    *out = join(k, n, rank, true);
    while (!have_all_joined(*out))
        sched_yield();
    return ncclSuccess;
}

ncclResult_t ncclCommInitRankConfig(ncclComm_t *out, int n, ncclUniqueId id,
                                    int rank, ncclConfig_t *config)
{
    int k;
    memcpy(&k, id.internal, sizeof k);
    if (config->blocking != 0)
        return ncclCommInitRank(out, n, id, rank);
    if (is_lost_at(FAKE_INIT))
        return ncclSystemError;
    *out = join(k, n, rank, false);
    return ncclInProgress;
}

/* All ranks stay together, in their order. As with NCCL, `out` is there once
 * `comm` is no longer in progress. */
ncclResult_t ncclCommSplit(ncclComm_t comm, int color, int key, ncclComm_t *out,
                           ncclConfig_t *config)
{
    int none = 0;
    if (color != 0 || key != comm->rank || comm->is_blocking ||
        !have_all_joined(comm))
        return ncclInvalidUsage;
    if (is_lost_at(FAKE_SPLIT))
        return ncclSystemError;
    const int k = atomic_fetch_add(&all->n_comms, 1);
    if (k >= N_COMMS)
        return ncclSystemError;
    (void)atomic_compare_exchange_strong(&comm->s->child, &none, k + 1);
    comm->child_out = out;
    comm->child = join(atomic_load(&comm->s->child) - 1, comm->n, key,
                       config->blocking != 0);
    return ncclSuccess; /* NCCL says so while it goes on */
}

ncclResult_t ncclCommFinalize(ncclComm_t comm)
{
    if (is_lost_at(FAKE_FINALIZE))
        return ncclSystemError;
    comm->is_final = true;
    atomic_fetch_add(&comm->s->n_final, 1);
    return ncclInProgress;
}

/* Whether the others have come; hands over what was split. */
static bool is_in_progress(struct ncclComm *c)
{
    if (!have_all_joined(c) || (c->child && !have_all_joined(c->child)) ||
        (c->is_final && atomic_load(&c->s->n_final) < c->n))
        return true;
    if (c->child)
        *c->child_out = c->child;
    c->child = NULL;
    return false;
}

static void drain(struct ncclComm *c)
{
    while (atomic_load(&c->n_ops) > 0 || atomic_load(&n_graphs) > 0)
        sched_yield();
    free(c->child);
    free(c);
}

ncclResult_t ncclCommDestroy(ncclComm_t comm)
{
    drain(comm);
    return ncclSuccess;
}

ncclResult_t ncclCommAbort(ncclComm_t comm)
{
    comm->is_aborted = true;
    drain(comm);
    return ncclSuccess;
}

#if NCCL_VERSION_CODE >= NCCL_VERSION(2, 28, 7)
ncclResult_t ncclCommRevoke(ncclComm_t comm, int flags)
{
    (void)flags;
    comm->is_aborted = true;
    return ncclSuccess;
}
#endif

ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t *out)
{
    *out = !comm->is_blocking && is_in_progress(comm)
               ? ncclInProgress
               : (ncclResult_t)atomic_load(&state);
    return ncclSuccess;
}

const char *ncclGetErrorString(ncclResult_t result)
{
    return result == ncclRemoteError ? "remote process exited" : "made up";
}

const char *ncclGetLastError(ncclComm_t comm)
{
    (void)comm;
    return "";
}

ncclResult_t ncclMemAlloc(void **out, size_t nbytes)
{
    return cudaMalloc(out, nbytes) == cudaSuccess ? ncclSuccess
                                                  : ncclSystemError;
}

ncclResult_t ncclMemFree(void *at)
{
    return cudaFree(at) == cudaSuccess ? ncclSuccess : ncclSystemError;
}

ncclResult_t ncclCommRegister(const ncclComm_t comm, void *at, size_t nbytes,
                              void **handle)
{
    (void)comm;
    (void)nbytes;
    *handle = at;
    return ncclSuccess;
}

ncclResult_t ncclCommDeregister(const ncclComm_t comm, void *handle)
{
    (void)comm;
    (void)handle;
    return ncclSuccess;
}

/* ---- Collectives ------------------------------------------------------------------ */

typedef struct job {
    struct ncclComm *comm;
    brg_coll coll;
    const void *send;
    void *recv;
    size_t count;
    brg_dtype dtype;
    brg_reduce_op op;
    int root;
    bool is_recorded; /* not counted */
} job;

static brg_dtype dtype_of(ncclDataType_t type)
{
    static const brg_dtype dtypes[ncclNumTypes] = {
        [ncclUint8] = BRG_DTYPE_U8,     [ncclInt32] = BRG_DTYPE_I32,
        [ncclInt64] = BRG_DTYPE_I64,    [ncclFloat16] = BRG_DTYPE_F16,
        [ncclFloat32] = BRG_DTYPE_F32,  [ncclFloat64] = BRG_DTYPE_F64,
        [ncclBfloat16] = BRG_DTYPE_BF16};
    return dtypes[type];
}

static brg_reduce_op op_of(ncclRedOp_t op)
{
    return op == ncclSum   ? BRG_REDUCE_SUM
           : op == ncclAvg ? BRG_REDUCE_AVG
           : op == ncclMin ? BRG_REDUCE_MIN
           : op == ncclMax ? BRG_REDUCE_MAX
                           : BRG_REDUCE_PROD;
}

/* False: aborted meanwhile. */
static bool await_all(struct ncclComm *c, _Atomic unsigned long *counts,
                      unsigned long k)
{
    for (int r = 0; r < c->n; r++)
        while (atomic_load(&counts[r]) < k) {
            if (c->is_aborted)
                return false;
            sched_yield();
        }
    return true;
}

static bool is_stepped;

void fake_nccl_set_stepped(void)
{
    is_stepped = true;
}

static float rounded(float x, brg_dtype dtype)
{
    return dtype == BRG_DTYPE_F16 ? brg__f16_to_f32(brg__f32_to_f16(x))
                                  : brg__bf16_to_f32(brg__f32_to_bf16(x));
}

static float half_at(const void *from, size_t i, brg_dtype dtype)
{
    const uint16_t x = ((const uint16_t *)from)[i];
    return dtype == BRG_DTYPE_F16 ? brg__f16_to_f32(x) : brg__bf16_to_f32(x);
}

static void reduce_stepped(const job *j, const void *const *src, uint16_t *dst)
{
    const float scale = j->op == BRG_REDUCE_AVG
                            ? rounded(1.0f / (float)j->comm->n, j->dtype)
                            : 1.0f;
    for (size_t i = 0; i < j->count; i++) {
        float sum = rounded(scale * half_at(src[0], i, j->dtype), j->dtype);
        for (int r = 1; r < j->comm->n; r++) {
            const float x = half_at(src[r], i, j->dtype);
            sum = rounded(sum + rounded(scale * x, j->dtype), j->dtype);
        }
        dst[i] = j->dtype == BRG_DTYPE_F16 ? brg__f32_to_f16(sum)
                                           : brg__f32_to_bf16(sum);
    }
}

static void reduce(const job *j, size_t skip, void *dst)
{
    const void *src[FAKE_MAX_RANKS];
    for (int r = 0; r < j->comm->n; r++)
        src[r] = j->comm->s->trays[r] + skip;
    if (is_stepped && brg_dtype_size(j->dtype) == 2 &&
        (j->op == BRG_REDUCE_SUM || j->op == BRG_REDUCE_AVG)) {
        reduce_stepped(j, src, dst);
        return;
    }
    brg_host_get()->reduce(&(brg_reduction){.src = src,
                                            .dst = &dst,
                                            .n_src = (size_t)j->comm->n,
                                            .n_dst = 1,
                                            .count = j->count,
                                            .dtype = j->dtype,
                                            .op = j->op,
                                            .divisor = j->comm->n});
}

static void take_result(const job *j)
{
    const shared_comm *s = j->comm->s;
    const size_t nbytes = j->count * brg_dtype_size(j->dtype);
    if (j->coll == BRG_COLL_ALL_REDUCE)
        reduce(j, 0, j->recv);
    else if (j->coll == BRG_COLL_REDUCE_SCATTER)
        reduce(j, (size_t)j->comm->rank * nbytes, j->recv);
    else if (j->coll == BRG_COLL_BROADCAST)
        memcpy(j->recv, s->trays[j->root], nbytes);
    else
        for (int r = 0; r < j->comm->n; r++)
            memcpy((char *)j->recv + (size_t)r * nbytes, s->trays[r], nbytes);
}

static bool are_grouped_alike(const struct ncclComm *c)
{
    for (int r = 1; r < c->n; r++)
        if (atomic_load(&c->s->n_grouped[r]) !=
            atomic_load(&c->s->n_grouped[0]))
            return false;
    return true;
}

static void run_job(const job *j, int n_grouped)
{
    struct ncclComm *c = j->comm;
    const unsigned long k = ++c->n_started; /* a graph runs it again */
    size_t nbytes = j->count * brg_dtype_size(j->dtype);
    if (j->coll == BRG_COLL_REDUCE_SCATTER)
        nbytes *= (size_t)c->n;
    if (nbytes <= TRAY && await_all(c, c->s->taken, k - 1)) {
        memcpy(c->s->trays[c->rank], j->send, nbytes);
        atomic_store(&c->s->n_grouped[c->rank], n_grouped);
        atomic_store(&c->s->posted[c->rank], k);
        if (await_all(c, c->s->posted, k)) {
            while (!are_grouped_alike(c) && !c->is_aborted)
                sched_yield();
            take_result(j);
            atomic_store(&c->s->taken[c->rank], k);
        }
    }
}

#define MAX_JOBS 256

typedef struct jobs {
    int n;
    job list[MAX_JOBS];
} jobs;

static void run_jobs(void *args)
{
    const jobs *all_jobs = args;
    const job *first = all_jobs->list;
    for (int k = all_jobs->n; k-- > 0;)
        run_job(&all_jobs->list[k], all_jobs->n);
    if (!first->is_recorded)
        atomic_fetch_sub(&first->comm->n_ops, 1);
}

static _Atomic unsigned long n_queued;

unsigned long fake_nccl_n_queued(void)
{
    return n_queued;
}

static _Thread_local int depth; /* of groups */
static _Thread_local jobs grouped;
static _Thread_local fake_stream *grouped_stream;

static void launch_grouped(void)
{
    const size_t nbytes =
        offsetof(jobs, list) + (size_t)grouped.n * sizeof grouped.list[0];
    n_queued++;
    if (!grouped.list[0].is_recorded)
        atomic_fetch_add(&grouped.list[0].comm->n_ops, 1);
    fake_push(grouped_stream, run_jobs, &grouped, nbytes);
    grouped.n = 0;
}

static ncclResult_t start(job j, cudaStream_t stream)
{
    if (!j.comm->is_blocking || /* the host would have to wait for it */
        grouped.n == MAX_JOBS)
        return ncclInvalidUsage;
    grouped_stream = (fake_stream *)(void *)stream;
    j.is_recorded = fake_graph_place(grouped_stream) != NULL;
    grouped.list[grouped.n++] = j;
    if (depth == 0)
        launch_grouped();
    return ncclSuccess;
}

ncclResult_t ncclAllReduce(const void *send, void *recv, size_t count,
                           ncclDataType_t type, ncclRedOp_t op, ncclComm_t comm,
                           cudaStream_t stream)
{
    return start((job){comm, BRG_COLL_ALL_REDUCE, send, recv, count,
                       dtype_of(type), op_of(op), 0, false},
                 stream);
}

ncclResult_t ncclReduceScatter(const void *send, void *recv, size_t count,
                               ncclDataType_t type, ncclRedOp_t op,
                               ncclComm_t comm, cudaStream_t stream)
{
    return start((job){comm, BRG_COLL_REDUCE_SCATTER, send, recv, count,
                       dtype_of(type), op_of(op), 0, false},
                 stream);
}

ncclResult_t ncclAllGather(const void *send, void *recv, size_t count,
                           ncclDataType_t type, ncclComm_t comm,
                           cudaStream_t stream)
{
    return start((job){comm, BRG_COLL_ALL_GATHER, send, recv, count,
                       dtype_of(type), BRG_REDUCE_SUM, 0, false},
                 stream);
}

ncclResult_t ncclBroadcast(const void *send, void *recv, size_t count,
                           ncclDataType_t type, int root, ncclComm_t comm,
                           cudaStream_t stream)
{
    return start((job){comm, BRG_COLL_BROADCAST, send, recv, count,
                       dtype_of(type), BRG_REDUCE_SUM, root, false},
                 stream);
}

/* ---- Send and recv ------------------------------------------------------------------- */

typedef struct parcel {
    char *at;
    size_t nbytes, n_done;
    int peer;
    bool is_send;
} parcel;

#define MAX_PARCELS 256

typedef struct parcels {
    struct ncclComm *comm;
    fake_stream *stream;
    int n;
    parcel list[MAX_PARCELS];
} parcels;

static _Thread_local parcels group;

/* One piece, if the box allows. */
static void move(struct ncclComm *c, parcel *p)
{
    box *b = p->is_send ? &c->s->boxes[c->rank][p->peer]
                        : &c->s->boxes[p->peer][c->rank];
    const size_t n = atomic_load(&b->n), left = p->nbytes - p->n_done;
    if (p->is_send && n == 0) {
        const size_t piece = left < BOX ? left : BOX;
        memcpy(b->data, p->at + p->n_done, piece);
        p->n_done += piece;
        atomic_store(&b->n, piece);
    } else if (!p->is_send && n > 0) {
        memcpy(p->at + p->n_done, b->data, n);
        p->n_done += n;
        atomic_store(&b->n, 0);
    }
}

/* Those to and from one rank go one after the other. */
static bool is_first(const parcels *all_parcels, int k)
{
    const parcel *p = &all_parcels->list[k];
    for (int i = 0; i < k; i++) {
        const parcel *other = &all_parcels->list[i];
        if (other->peer == p->peer && other->is_send == p->is_send &&
            other->n_done < other->nbytes)
            return false;
    }
    return p->n_done < p->nbytes;
}

static void run_parcels(void *args)
{
    parcels *p = args;
    for (bool is_over = false; !is_over && !p->comm->is_aborted;
         sched_yield()) {
        is_over = true;
        for (int k = 0; k < p->n; k++) {
            if (is_first(p, k))
                move(p->comm, &p->list[k]);
            is_over &= p->list[k].n_done == p->list[k].nbytes;
        }
    }
    atomic_fetch_sub(&p->comm->n_ops, 1);
}

/* nccl.h declares them without arguments in the old way. */
ncclResult_t ncclGroupStart(void);
ncclResult_t ncclGroupEnd(void);

ncclResult_t ncclGroupStart(void)
{
    if (depth++ == 0)
        group.n = 0;
    return ncclSuccess;
}

ncclResult_t ncclGroupEnd(void)
{
    if (--depth > 0)
        return ncclSuccess;
    if (grouped.n > 0)
        launch_grouped();
    if (group.n == 0)
        return ncclSuccess;
    n_queued++;
    atomic_fetch_add(&group.comm->n_ops, 1);
    fake_push(group.stream, run_parcels, &group, sizeof group);
    return ncclSuccess;
}

static ncclResult_t add_parcel(ncclComm_t comm, cudaStream_t stream,
                               const parcel *p)
{
    ncclResult_t result = ncclGroupStart();
    if (group.n == MAX_PARCELS || !comm->is_blocking)
        return ncclInvalidUsage;
    group.comm = comm;
    group.stream = (fake_stream *)(void *)stream;
    group.list[group.n++] = *p;
    return result == ncclSuccess ? ncclGroupEnd() : result;
}

ncclResult_t ncclSend(const void *send, size_t count, ncclDataType_t type,
                      int peer, ncclComm_t comm, cudaStream_t stream)
{
    return add_parcel(comm, stream,
                      &(parcel){(char *)(void *)(size_t)send,
                                count * brg_dtype_size(dtype_of(type)), 0, peer,
                                true});
}

ncclResult_t ncclRecv(void *recv, size_t count, ncclDataType_t type, int peer,
                      ncclComm_t comm, cudaStream_t stream)
{
    return add_parcel(comm, stream,
                      &(parcel){recv, count * brg_dtype_size(dtype_of(type)), 0,
                                peer, false});
}
