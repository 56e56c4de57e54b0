/* SPDX-License-Identifier: Apache-2.0
 * Sums without NCCL between the GPUs of one machine: see direct.h. */
#include "comm/nccl/direct.h"

#include <stddef.h>
#include <string.h>
#include <time.h>

#include "comm/nccl/group.h"
#include "comm/patterns/slices.h"

/* Tests have smaller ones. */
#ifndef BRG__NCCL_TURN_NBYTES
#define BRG__NCCL_TURN_NBYTES ((size_t)16 << 20)
#define BRG__NCCL_SLOT_NBYTES ((size_t)16 << 20)
#endif

#define LAST_TURNS 2       /* of a kernel for what nothing runs beside */
#define LINE ((size_t)256) /* sources begin at a multiple of it */
#define FLAGS_NBYTES                                                           \
    ((size_t)BRG__NCCL_NEAR * BRG__NCCL_PUSH_BLOCKS * sizeof(uint64_t))
#define TURNS_AT FLAGS_NBYTES
#define SLOTS_AT (TURNS_AT + 2 * BRG__NCCL_TURN_NBYTES)
#define ALL_NBYTES (SLOTS_AT + BRG__NCCL_SLOTS * BRG__NCCL_SLOT_NBYTES)

#define LIMIT_NS                                                               \
    20000000000u /* past the time-out, when the watch has not come */
#define RELEASE_NS 100000
#define RESCUE_NS 50000000u /* for a word to come to the GPU */

/* ---- Making ------------------------------------------------------------------- */

typedef struct near_card {
    cudaIpcMemHandle_t handle;
    uint8_t way; /* BY_NCCL: another cannot be had */
} near_card;

brg__nccl_way brg__nccl_direct_way(const char *name)
{
    static const char *const names[] = {"nccl", "auto", "kernel", "copy"};
    int way = BRG__NCCL_BY_COPY;
    while (way > BRG__NCCL_BY_NCCL && strcmp(name, names[way]) != 0)
        way--;
    return (brg__nccl_way)way;
}

static bool can_be(const brg__nccl_group *g)
{
    return g->board.desks && g->board.n == g->n_ranks && g->n_ranks > 1 &&
           g->n_ranks <= BRG__NCCL_NEAR;
}

static bool find_queue_ops(brg__nccl_direct *d)
{
    enum cudaDriverEntryPointQueryResult how;
    void *at = NULL;
    if (cudaGetDriverEntryPointByVersion("cuStreamBatchMemOp", &at, 12000,
                                         cudaEnableDefault,
                                         &how) != cudaSuccess ||
        how != cudaDriverEntryPointSuccess)
        return false;
    memcpy(&d->queue_ops, &at, sizeof at);
    return true;
}

static bool make_events(brg__nccl_direct *d)
{
    const unsigned flags = cudaEventDisableTiming;
    bool ok = cudaEventCreateWithFlags(&d->began, flags) == cudaSuccess;
    for (int k = 0; ok && k < BRG__NCCL_SLOTS; k++)
        ok = cudaEventCreateWithFlags(&d->credited[k], flags) == cudaSuccess &&
             cudaEventCreateWithFlags(&d->copied[k], flags) == cudaSuccess &&
             cudaEventCreateWithFlags(&d->summed[k], flags) == cudaSuccess;
    return ok;
}

static bool make_streams(brg__nccl_direct *d)
{
    cudaStream_t *const streams[] = {&d->credits, &d->copies, &d->rescue};
    int least, greatest;
    bool ok =
        cudaDeviceGetStreamPriorityRange(&least, &greatest) == cudaSuccess;
    for (int k = 0; ok && k < 3; k++)
        ok = cudaStreamCreateWithPriority(streams[k], cudaStreamNonBlocking,
                                          greatest) == cudaSuccess;
    return ok;
}

/* Memory, nothing raised in it, but the credits. */
static bool make_memory(brg__nccl_group *g)
{
    brg__nccl_direct *d = &g->direct;
    brg__nccl_board *b = &g->board;
    void *there = NULL;
    if (cudaMalloc((void **)&d->memory, ALL_NBYTES) != cudaSuccess ||
        cudaMalloc((void **)&d->turns, sizeof *d->turns) != cudaSuccess ||
        cudaMemsetAsync(d->memory, 0, FLAGS_NBYTES, g->own) != cudaSuccess ||
        cudaMemsetAsync(d->turns, 0, sizeof *d->turns, g->own) != cudaSuccess ||
        cudaStreamSynchronize(g->own) != cudaSuccess ||
        cudaHostRegister(b->desks, brg__nccl_board_nbytes(b),
                         cudaHostRegisterMapped | cudaHostRegisterPortable) !=
            cudaSuccess)
        return false;
    const bool ok =
        cudaHostGetDevicePointer(&there, b->desks, 0) == cudaSuccess;
    d->board = ok ? there : (char *)b->desks; /* it is registered */
    brg__nccl_desk *desk = brg__nccl_desk_of_mine(b);
    for (int slot = 0; slot < BRG__NCCL_SLOTS; slot++)
        for (int r = 0; r < BRG__NCCL_NEAR; r++)
            atomic_store(&desk->flags[BRG__NCCL_CREDIT][slot][r].is_up, 1);
    return ok;
}

static bool make_mine(brg__nccl_group *g, near_card *mine)
{
    brg__nccl_direct *d = &g->direct;
    return find_queue_ops(d) && make_events(d) && make_streams(d) &&
           make_memory(g) &&
           cudaIpcGetMemHandle(&mine->handle, d->memory) == cudaSuccess;
}

static bool open_theirs(brg__nccl_group *g, const near_card *cards)
{
    brg__nccl_direct *d = &g->direct;
    for (int r = 0; r < g->n_ranks; r++) {
        void *at = d->memory;
        if (r != g->rank &&
            cudaIpcOpenMemHandle(&at, cards[r].handle,
                                 cudaIpcMemLazyEnablePeerAccess) != cudaSuccess)
            return false;
        d->near[r] = at;
    }
    return true;
}

/* All have the same, and it can be had. */
static bool agree(const brg__nccl_group *g, const near_card *cards)
{
    bool all = g->way != BRG__NCCL_BY_NCCL;
    for (int r = 0; r < g->n_ranks; r++)
        all &= cards[r].way == (uint8_t)g->way;
    return all;
}

brg_status brg__nccl_direct_open(brg__nccl_group *g, const brg_nccl_options *o)
{
    near_card cards[BRG__NCCL_NEAR], mine = {.way = (uint8_t)g->way};
    if (!can_be(g))
        return BRG_OK;
    if (g->way != BRG__NCCL_BY_NCCL && !make_mine(g, &mine))
        mine.way = BRG__NCCL_BY_NCCL;
    BRG__NCCL_TRY(o->all_gather(o->user, cards, &mine, sizeof mine));
    bool is_on = agree(g, cards);
    if (is_on) {
        if (!open_theirs(g, cards))
            mine.way = BRG__NCCL_BY_NCCL;
        BRG__NCCL_TRY(o->all_gather(o->user, cards, &mine, sizeof mine));
        is_on = agree(g, cards);
    }
    g->direct.is_on = is_on;
    if (g->way != BRG__NCCL_BY_NCCL && !is_on) {
        const cudaError_t why = cudaGetLastError();
        g->host->log(BRG_LOG_INFO, "nccl",
                     "rank %d: no sums between GPUs without NCCL: %s", g->rank,
                     why == cudaSuccess ? "another rank has none"
                                        : cudaGetErrorString(why));
        brg__nccl_direct_close(g);
    }
    return BRG_OK;
}

/* ---- Ending ---------------------------------------------------------------------- */

static void raise_all(brg__nccl_desk *desk)
{
    for (int kind = 0; kind < BRG__NCCL_FLAG_KINDS; kind++)
        for (int slot = 0; slot < BRG__NCCL_SLOTS; slot++)
            for (int r = 0; r < BRG__NCCL_NEAR; r++)
                atomic_store(&desk->flags[kind][slot][r].is_up, 1);
}

static void *release(void *group)
{
    brg__nccl_group *g = group;
    while (!atomic_load(&g->direct.is_over)) {
        raise_all(brg__nccl_desk_of_mine(&g->board));
        (void)nanosleep(&(struct timespec){0, RELEASE_NS}, NULL);
    }
    return NULL;
}

/* Sums that are released have nothing to sum: they read a word in the GPU's
 * memory, since one in the host's is slow for a thousand blocks. That it comes
 * late, if at all, costs what is summed into its meaning, which it has lost. */
static void stop_sums(brg__nccl_group *g)
{
    brg__nccl_direct *d = &g->direct;
    brg__nccl_desk *desk = brg__nccl_desk_of_mine(&g->board);
    const uint64_t start = g->host->clock_ns();
    atomic_store(&desk->stop, 1);
    if (cudaMemcpyAsync(&d->turns->stop, &desk->stop, sizeof(uint32_t),
                        cudaMemcpyHostToDevice, d->rescue) != cudaSuccess)
        return;
    while (cudaStreamQuery(d->rescue) == cudaErrorNotReady &&
           g->host->clock_ns() - start < RESCUE_NS)
        (void)nanosleep(&(struct timespec){0, RELEASE_NS}, NULL);
}

/* A thread, since whoever ends the group may wait for the GPU meanwhile. */
void brg__nccl_direct_stop(brg__nccl_group *g)
{
    brg__nccl_direct *d = &g->direct;
    if (!d->is_on || d->is_releasing)
        return;
    stop_sums(g);
    d->is_releasing = pthread_create(&d->releaser, NULL, release, g) == 0;
    if (!d->is_releasing)
        raise_all(brg__nccl_desk_of_mine(&g->board));
}

bool brg__nccl_direct_gave_up(const brg__nccl_group *g)
{
    return g->direct.is_on &&
           atomic_load(&brg__nccl_desk_of_mine(&g->board)->gave_up) != 0;
}

static void free_event(cudaEvent_t event)
{
    if (event)
        (void)cudaEventDestroy(event);
}

static void free_stream(cudaStream_t stream)
{
    if (stream)
        (void)cudaStreamDestroy(stream);
}

static void free_queues(brg__nccl_direct *d)
{
    free_event(d->began);
    for (int k = 0; k < BRG__NCCL_SLOTS; k++) {
        free_event(d->credited[k]);
        free_event(d->copied[k]);
        free_event(d->summed[k]);
    }
    free_stream(d->credits);
    free_stream(d->copies);
    free_stream(d->rescue);
}

void brg__nccl_direct_close(brg__nccl_group *g)
{
    brg__nccl_direct *d = &g->direct;
    if (d->is_releasing) {
        (void)cudaStreamSynchronize(g->own);
        (void)cudaStreamSynchronize(d->copies);
        (void)cudaStreamSynchronize(d->credits);
        (void)cudaStreamSynchronize(g->compute); /* recorded calls */
        atomic_store(&d->is_over, true);
        (void)pthread_join(d->releaser, NULL);
    }
    for (int r = 0; r < g->n_ranks && r < BRG__NCCL_NEAR; r++)
        if (d->near[r] && r != g->rank)
            (void)cudaIpcCloseMemHandle(d->near[r]);
    free_queues(d);
    (void)cudaFree(d->turns);
    (void)cudaFree(d->memory);
    if (d->board)
        (void)cudaHostUnregister(g->board.desks);
    (void)cudaGetLastError();
    *d = (brg__nccl_direct){.is_on = false};
}

/* This rank's, as the GPU sees it. */
static brg__nccl_desk *desk_there(const brg__nccl_group *g)
{
    return (brg__nccl_desk *)(void *)g->direct.board + g->board.mine;
}

/* ---- Small sums -------------------------------------------------------------------- */

static size_t round_up(size_t n, size_t unit)
{
    return (n + unit - 1) / unit * unit;
}

static bool fits_turns(size_t n_turns, size_t most, size_t count, size_t each)
{
    const size_t nbytes = n_turns * BRG__NCCL_TURN_NBYTES;
    return count <= nbytes && /* no product wraps */
           most * round_up(count * each, LINE) <= nbytes;
}

/* Few, where the latency of flags is all that counts. */
static int n_blocks_for(size_t nbytes)
{
    const size_t each = nbytes <= (256 << 10) ? 16 << 10 : 32 << 10;
    const size_t n = brg__n_pieces(nbytes, each);
    return (int)(n < BRG__NCCL_PUSH_BLOCKS ? n : BRG__NCCL_PUSH_BLOCKS);
}

static brg_status push_piece(brg__nccl_group *g, const brg__nccl_near_sum *s,
                             brg__slice piece)
{
    const brg__nccl_direct *d = &g->direct;
    brg__nccl_desk *desk = desk_there(g);
    const size_t count = piece.end - piece.begin;
    brg__nccl_push_job job = {
        .sum = *s->job,
        .rank = g->rank,
        .n_ranks = g->n_ranks,
        .n_blocks = n_blocks_for(count * s->each),
        .turn_stride = BRG__NCCL_TURN_NBYTES,
        .turns = d->turns,
        .stop = (const uint32_t *)(void *)&desk->stop,
        .gave_up = (uint32_t *)(void *)&desk->gave_up,
        .limit_ns = g->timeout_ns + LIMIT_NS,
    };
    for (int r = 0; r < g->n_ranks; r++) {
        job.rooms[r] = d->near[r] + TURNS_AT;
        job.flags[r] = (uint64_t *)(void *)d->near[r];
        job.places[r] = s->places[r];
    }
    job.sum.own = s->send + piece.begin * s->each;
    job.sum.room = d->memory + TURNS_AT;
    job.sum.room_stride = round_up(count * s->each, LINE);
    job.sum.dst = s->recv + piece.begin * s->out_each;
    job.sum.count = count;
    return brg__nccl_check_cuda(
        g, (cudaError_t)brg__nccl_push_launch(&job, g->own), "a sum");
}

/* Equal pieces that fit into a turn. */
static brg_status sum_small(brg__nccl_group *g, const brg__nccl_near_sum *s)
{
    const size_t most = BRG__NCCL_TURN_NBYTES / s->most / LINE * LINE / s->each;
    const size_t n = brg__n_pieces(s->count, most);
    const size_t each =
        round_up(brg__n_pieces(s->count, n) * s->each, LINE) / s->each;
    for (size_t k = 0; k < brg__n_pieces(s->count, each); k++)
        BRG__NCCL_TRY(push_piece(g, s, brg__piece_of(s->count, each, k)));
    return BRG_OK;
}

/* ---- Large sums ---------------------------------------------------------------------- */

static CUdeviceptr flag_at(const brg__nccl_group *g, int owner,
                           brg__nccl_flag_kind kind, int slot, int from)
{
    const brg__nccl_desk *desk =
        (const brg__nccl_desk *)(const void *)g->direct.board;
    int i = 0;
    while (g->board.ranks[i] != owner)
        i++;
    return (CUdeviceptr)(uintptr_t)&desk[i].flags[kind][slot][from].is_up;
}

static brg_status queue_ops(brg__nccl_group *g, cudaStream_t stream, unsigned n,
                            CUstreamBatchMemOpParams *ops)
{
    const CUresult result = g->direct.queue_ops((CUstream)stream, n, ops, 0);
    if (result == CUDA_SUCCESS)
        return BRG_OK;
    return g->host->fail(BRG_ERR_COMM, __FILE__, __LINE__,
                         "rank %d: nccl: flags of a sum: CUresult %d", g->rank,
                         (int)result);
}

static CUstreamBatchMemOpParams write_op(CUdeviceptr at, uint32_t value)
{
    return (CUstreamBatchMemOpParams){
        .writeValue = {.operation = CU_STREAM_MEM_OP_WRITE_VALUE_32,
                       .address = at,
                       .value = value}};
}

static CUstreamBatchMemOpParams wait_op(CUdeviceptr at)
{
    return (CUstreamBatchMemOpParams){
        .waitValue = {.operation = CU_STREAM_MEM_OP_WAIT_VALUE_32,
                      .address = at,
                      .value = 1,
                      .flags = CU_STREAM_WAIT_VALUE_GEQ}};
}

/* For a flag of every other rank; lowers them. */
static brg_status await_flags(brg__nccl_group *g, cudaStream_t stream,
                              brg__nccl_flag_kind kind, int slot)
{
    CUstreamBatchMemOpParams ops[2 * BRG__NCCL_NEAR];
    unsigned n = 0;
    for (int r = 0; r < g->n_ranks; r++) {
        const CUdeviceptr flag = flag_at(g, g->rank, kind, slot, r);
        if (r == g->rank)
            continue;
        ops[n++] = wait_op(flag);
        ops[n++] = write_op(flag, 0);
    }
    return queue_ops(g, stream, n, ops);
}

static brg_status raise_flags(brg__nccl_group *g, cudaStream_t stream,
                              brg__nccl_flag_kind kind, int slot)
{
    CUstreamBatchMemOpParams ops[BRG__NCCL_NEAR];
    unsigned n = 0;
    for (int r = 0; r < g->n_ranks; r++)
        if (r != g->rank)
            ops[n++] = write_op(flag_at(g, r, kind, slot, g->rank), 1);
    return queue_ops(g, stream, n, ops);
}

typedef struct chunk {
    size_t begin, count, stride; /* elements, bytes between sources */
    int number, slot;
} chunk;

static brg_status copy_to_others(brg__nccl_group *g,
                                 const brg__nccl_near_sum *s, const chunk *c,
                                 cudaStream_t lane)
{
    const size_t slot_at = SLOTS_AT + (size_t)c->slot * BRG__NCCL_SLOT_NBYTES;
    for (int r = 0; r < g->n_ranks; r++) {
        char *to =
            g->direct.near[r] + slot_at + (size_t)s->places[r] * c->stride;
        const char *from = s->send + c->begin * s->each;
        for (int k = 0; r != g->rank && k < s->job->own_n; k++) {
            BRG__NCCL_TRY(brg__nccl_check_cuda(
                g,
                cudaMemcpyAsync(to, from, c->count * s->each,
                                cudaMemcpyDeviceToDevice, lane),
                "a part of a sum"));
            to += c->stride;
            from += s->job->own_stride;
        }
    }
    return BRG_OK;
}

static brg_status wait_event(brg__nccl_group *g, cudaStream_t stream,
                             cudaEvent_t event)
{
    return brg__nccl_check_cuda(g, cudaStreamWaitEvent(stream, event, 0),
                                "an event");
}

static brg_status record_event(brg__nccl_group *g, cudaEvent_t event,
                               cudaStream_t stream)
{
    return brg__nccl_check_cuda(g, cudaEventRecord(event, stream), "an event");
}

/* Behind the sum that last used the slot: where streams share a queue of the
 * GPU, no wait may come before what the other ranks wait for in turn. A stream
 * of its own waits for the credit, so that copies follow each other at once. */
static brg_status copy_chunk(brg__nccl_group *g, const brg__nccl_near_sum *s,
                             const chunk *c)
{
    brg__nccl_direct *d = &g->direct;
    BRG__NCCL_TRY(wait_event(g, d->credits,
                             c->number < BRG__NCCL_SLOTS ? d->began
                                                         : d->summed[c->slot]));
    BRG__NCCL_TRY(await_flags(g, d->credits, BRG__NCCL_CREDIT, c->slot));
    BRG__NCCL_TRY(record_event(g, d->credited[c->slot], d->credits));
    BRG__NCCL_TRY(wait_event(g, d->copies, d->credited[c->slot]));
    BRG__NCCL_TRY(copy_to_others(g, s, c, d->copies));
    return record_event(g, d->copied[c->slot], d->copies);
}

/* Behind the copy, which reads what may be overwritten here. */
static brg_status sum_chunk(brg__nccl_group *g, const brg__nccl_near_sum *s,
                            const chunk *c)
{
    const brg__nccl_direct *d = &g->direct;
    brg__nccl_sum_job job = *s->job;
    job.own = s->send + c->begin * s->each;
    job.room = d->memory + SLOTS_AT + (size_t)c->slot * BRG__NCCL_SLOT_NBYTES;
    job.room_stride = c->stride;
    job.dst = s->recv + c->begin * s->out_each;
    job.count = c->count;
    job.stop = &d->turns->stop;
    BRG__NCCL_TRY(wait_event(g, g->own, d->copied[c->slot]));
    BRG__NCCL_TRY(raise_flags(g, g->own, BRG__NCCL_DATA, c->slot));
    BRG__NCCL_TRY(await_flags(g, g->own, BRG__NCCL_DATA, c->slot));
    BRG__NCCL_TRY(brg__nccl_check_cuda(
        g, (cudaError_t)brg__nccl_sum_launch(&job, g->own), "a sum"));
    BRG__NCCL_TRY(raise_flags(g, g->own, BRG__NCCL_CREDIT, c->slot));
    return record_event(g, d->summed[c->slot], g->own);
}

/* Elements of a chunk: as few chunks as the slots allow, but two, so that one
 * is copied while the other is summed. */
static size_t chunk_count(const brg__nccl_near_sum *s)
{
    const size_t most = BRG__NCCL_SLOT_NBYTES / s->most / LINE * LINE / s->each;
    const size_t n = brg__n_pieces(s->count, most);
    const size_t each = brg__n_pieces(s->count, n < 2 ? 2 : n);
    return brg__slice_min(round_up(each * s->each, LINE) / s->each, most);
}

static brg_status sum_large(brg__nccl_group *g, const brg__nccl_near_sum *s)
{
    const size_t each = chunk_count(s), n = brg__n_pieces(s->count, each);
    BRG__NCCL_TRY(record_event(g, g->direct.began, g->own));
    for (size_t k = 0; k < n; k++) {
        const brg__slice piece = brg__piece_of(s->count, each, k);
        const chunk c = {.begin = piece.begin,
                         .count = piece.end - piece.begin,
                         .stride = round_up(each * s->each, LINE),
                         .number = (int)k,
                         .slot = (int)(k % BRG__NCCL_SLOTS)};
        BRG__NCCL_TRY(copy_chunk(g, s, &c));
        BRG__NCCL_TRY(sum_chunk(g, s, &c));
    }
    return BRG_OK;
}

/* ---- Which --------------------------------------------------------------------------- */

/* All sources go to all ranks, where NCCL's way is a slice to each and the sums
 * to all: that is more bytes among many, but quicker ones. */
bool brg__nccl_direct_takes(const brg__nccl_group *g, size_t n_src, size_t most,
                            size_t count, size_t each, size_t out_each)
{
    const size_t n = (size_t)g->n_ranks;
    if (!g->direct.is_on)
        return false;
    return fits_turns(1, most, count, each) ||
           (2 * n * n_src * each <= 3 * (n_src * each + n * out_each) &&
            most * LINE <= BRG__NCCL_TURN_NBYTES);
}

/* Copies leave the multiprocessors alone, which is worth nothing where nothing
 * else is to run on them, until they are the quicker ones. */
static bool by_kernel(const brg__nccl_group *g, const brg__nccl_near_sum *s)
{
    const size_t n_turns = s->is_last ? LAST_TURNS : 1;
    return g->way == BRG__NCCL_BY_KERNEL ||
           (g->way == BRG__NCCL_BY_SIZE &&
            fits_turns(n_turns, s->most, s->count, s->each));
}

brg_status brg__nccl_direct_sum(brg__nccl_group *g, const brg__nccl_near_sum *s)
{
    return by_kernel(g, s) ? sum_small(g, s) : sum_large(g, s);
}
