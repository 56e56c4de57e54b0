/* SPDX-License-Identifier: Apache-2.0
 * One end of an MPI group.
 *
 * Ranks of a node share two kinds of memory: a control block of each rank, and
 * the regions that brg_pg_alloc hands out. A rank announces a collective by
 * filling line seq % RING of its block; when all lines of the node are there
 * the signatures are compared and the work begins, in order of seq:
 *
 *   small    data lies beside the lines; each rank sums all of it alone
 *   direct   data lies in regions; each rank sums its slice of all buffers and
 *            writes it to all
 *   staged   any other memory: in pieces through the bounce buffers
 *   spread   between nodes of several ranks, the other collectives but
 *            broadcast, in regions: each node sends its sums, or its data, once
 *            (spread.c)
 *   flat     between nodes, what is left: messages from rank to rank
 *
 * Between nodes, an all_reduce is direct or staged too: a slice is summed in
 * the node, then across nodes by the ranks at its place of each node, and the
 * result written to all buffers of the node, so that nothing is gathered. So is
 * a broadcast of some length: staged, by a rank of each other node for it.
 *
 * A collective is cut in phases. `done` of the control block says how far its
 * rank is: seq << PHASE_BITS | phases finished. Phase k may begin when every
 * rank of the node has finished phase k - 1. */
#ifndef BRG_COMM_MPI_GROUP_H
#define BRG_COMM_MPI_GROUP_H

#include <stdatomic.h>

#include <mpi.h>

#include <brigade/ext/backend.h>

#include "comm/patterns/slices.h"
#include "comm/patterns/tree.h"

#define RING 32            /* collectives announced and not finished */
#define SMALL_MAX 2048     /* bytes beside a line */
#define BOUNCE (256 << 10) /* bytes of one slot */
#define PHASE_BITS 24
#define STEP_NBYTES ((size_t)256 << 10) /* work of one poll, per buffer */
#define MAX_REGIONS 1024
#define CHECK_NS 50000000u /* between two looks at the peers */

/* ---- Shared memory ----------------------------------------------------------- */

typedef struct shared_line {
    _Alignas(64) _Atomic uint64_t stamp; /* seq + 1, last to be written */
    brg_signature signature;
    uint64_t offset;      /* of the data to send, in its region */
    uint64_t recv_offset; /* the same of the result of a sum_leaves, and of an
                             all_gather between nodes */
    uint32_t region;      /* 0: not in one */
    uint32_t recv_region;
    /* What this rank has heard of the other nodes: 2 (seq + 1), one more if
     * their data is direct; HAS_VERDICT. */
    _Atomic uint64_t heard;
} shared_line;

#define HAS_VERDICT UINT64_MAX

/* `gone`: negative when the rank has failed. */
#define LEFT 1  /* destroyed its end */
#define ENDED 2 /* its process ends without that */
#define DIED 3  /* as another rank of its node has seen */

/* `lost`, why a rank has failed: 0, or 1 + the rank of a process that has died,
 * or LOST. */
#define LOST (-1) /* nothing was heard of somebody for too long */

/* What ranks at one place of their nodes tell each other before a collective;
 * with a verdict, that there will be none. */
typedef struct header {
    brg_signature signature;
    int32_t verdict; /* brg_status; LEFT */
    int32_t culprit; /* rank */
    int32_t is_direct;
    int32_t lost;        /* see below */
    brg_signature other; /* the pair of a mismatch: signature and this */
} header;

typedef struct shared_rank {
    _Alignas(64) _Atomic uint64_t done;
    _Alignas(64) _Atomic int32_t gone; /* brg_status, or LEFT */
    int32_t pid;
    _Atomic int32_t lost; /* with a status in `gone`: see below */
    uint64_t born;        /* core/base/process.h; 0: not known */
    header verdict;       /* from another node: why this rank has failed */
    _Alignas(64) unsigned char place[BRG_PLACE_NBYTES]; /* what it does */
    shared_line lines[RING];
    _Alignas(4096) unsigned char small[RING][SMALL_MAX];
    unsigned char bounce[2][BOUNCE];
} shared_rank;

/* ---- Between nodes --------------------------------------------------------- */

/* Headers on their way: those of a collective go out while the one before it
 * moves its data, so that the link does not wait for them. */
typedef struct header_lane {
    header out;
    header *in; /* one per node */
    MPI_Request *requests;
    bool is_posted;
} header_lane;

/* Pieces on their way at once: many, so that the link has something to carry
 * while nobody polls. What their memory allows, from X_SLOTS_MIN on. */
#define X_SLOTS_MIN 4
#define X_SLOTS_MAX 32
#define X_ROOM ((size_t)16 << 20)
/* Of partials, per slot: with MPI's header below 64 KiB, up to which Open MPI
 * sends over TCP without asking the receiver first, who may not be polling. */
#define X_NBYTES ((size_t)60 << 10)

typedef enum x_stage { X_FREE, X_PARTIALS, X_RESULTS } x_stage;

/* A piece of this rank's slice on its way between nodes. */
typedef struct x_slot {
    x_stage stage;
    brg__slice piece;        /* of the range */
    int n_open;              /* of its requests, in x_requests */
    unsigned char *partial;  /* this node's sums */
    unsigned char *received; /* other nodes' sums, one place per node */
    unsigned char *result;
} x_slot;

/* ---- The group -------------------------------------------------------------- */

/* The memory of all ranks of the node, side by side; see shm.c. */
typedef struct shm_map {
    unsigned char *at; /* NULL: none */
    size_t nbytes;
} shm_map;

/* What ranks tell each other before they share memory. */
typedef struct wish {
    uint64_t nbytes;
    int64_t reuse; /* index of a free region that would do, or -1 */
    int64_t error; /* an errno: this rank cannot */
} wish;

typedef struct shm_name {
    char text[32];
    int32_t error; /* an errno of who made it */
} shm_name;

/* An errno and whose it is, as MPI_2INT has it. */
typedef struct shm_vote {
    int error;
    int rank;
} shm_vote;

/* What non-blocking collectives of MPI read and write. One that was given up
 * may do so later, so this stays then. */
typedef struct shm_talk {
    bool is_open; /* one is under way, or was given up */
    shm_name name;
    shm_vote vote;
    shm_vote worst;
    wish wish;
    wish wishes[]; /* of all ranks */
} shm_talk;

typedef struct shm_region {
    shm_map map;
    size_t nbytes;
    bool is_free; /* given back; used again when all ranks agree */
    unsigned char *mine;
    unsigned char **base; /* of each rank of the node */
} shm_region;

typedef enum call_mode {
    MODE_UNDECIDED,
    MODE_SMALL,
    MODE_DIRECT,
    MODE_STAGED,
    MODE_SPREAD,
    MODE_FLAT
} call_mode;

/* A reduction of one slice, moved on step by step. */
typedef struct sum_range {
    brg_reduction reduction; /* count: of the whole slice */
    size_t at;               /* elements begun */
} sum_range;

/* The collective that this rank works on. */
typedef struct cursor {
    brg_call *call; /* NULL: none is announced */
    call_mode mode;
    uint32_t phase;
    bool is_node_ready; /* all lines of the node are there, and alike */
    bool sent_headers;
    bool has_headers; /* and all of the other nodes */
    bool is_begun;    /* of the phase: `range` or requests are set up */
    size_t at;        /* bytes or elements done in this phase */
    int n_requests;   /* of a flat collective */
    sum_range range;
} cursor;

/* The tree of the reproducible sum (leaves.c). */
#define LEAF_ROOM_ALL ((size_t)8 << 20)
#define LEAF_ROOM_MAX ((size_t)1 << 20)
#define LEAF_ROOM_MIN ((size_t)64 << 10)

typedef struct leaf_plan {
    uint32_t n_leaves; /* 0: none yet */
    uint32_t max_parts;
    size_t n_src;
    uint8_t *n_parts; /* of each rank */
    uint8_t *merges;  /* after each part of all ranks */
    const void **src; /* scratch: the parts, and further on */
    const void **src_at;
    size_t room; /* bytes for the parts of one rank, between nodes */
    unsigned char *in;
    MPI_Request *requests;
} leaf_plan;

/* The tree of the reproducible sum with nodes in the place of ranks. */
typedef struct spread_tree {
    bool is_there;     /* the ranks of every node follow each other */
    uint32_t n_leaves; /* 0: none yet */
    size_t max_parts;  /* of a node */
    size_t n_src;      /* parts of all nodes */
    uint8_t *n_parts;  /* of each node */
    uint8_t *merges;   /* after each part of all nodes */
    /* Of this node: part j is made of the parts of its ranks first[j] to
     * first[j + 1]. */
    size_t n_own;
    size_t first[BRG__TREE_MAX_PARTS + 1];
    uint8_t *n_rank_parts;
    uint8_t *own_merges;
    const void **src; /* scratch */
} spread_tree;

/* What spread.c keeps; nothing unless some node has several ranks. */
typedef struct spread_plan {
    int n_agents;  /* n_nodes - 1 */
    int n_clients; /* of this rank, in all other nodes */
    int *peers;    /* their ranks: agents, then clients */
    int n_slots;
    MPI_Request *requests;      /* of each slot, one a peer */
    int *n_open;                /* of each slot's */
    int *done;                  /* scratch, as many as requests */
    unsigned char *room;        /* X_NBYTES a request */
    unsigned char *own;         /* X_NBYTES */
    size_t n_over;              /* pieces of the call under way */
    x_stage stage[X_SLOTS_MAX]; /* of pieces of a sum_leaves */
    spread_tree tree;
} spread_plan;

typedef struct p2p_op {
    struct p2p_op *next;
    brg_call *call;
    MPI_Request announce;
    MPI_Request *data;
    size_t n_data;
    bool is_announced;
    brg_signature mine;
    brg_signature theirs;
} p2p_op;

typedef struct mpi_group {
    const brg_host *host;
    MPI_Comm world;
    MPI_Comm node;
    int rank;
    int n_ranks;
    int local; /* rank within the node */
    int n_local;
    int my_node;
    int n_nodes;
    bool is_split;   /* a node is not a machine, but a part of one */
    int n_places;    /* that every node has: the ranks of the smallest */
    int max_local;   /* ranks of the largest */
    int *rank_at;    /* [node_begin[node] + local] */
    int *node_begin; /* n_nodes + 1 */
    int exit_key;    /* attribute of MPI_COMM_SELF, noticed by MPI_Finalize */
    bool is_crowded; /* more ranks here than processors */
    bool is_dead;
    bool is_watching; /* the processes of the node */
    int32_t lost;
    uint64_t timeout_ns;
    uint64_t next_check_ns;

    shm_map control;
    shared_rank **shared; /* of each rank of the node */
    uint64_t *seen;       /* their `done`, as last read */
    shm_region regions[MAX_REGIONS];
    uint32_t n_regions;
    shm_talk *talk;

    brg_call *queue; /* not finished by this rank: cursor.call is the first */
    brg_call **queue_end;
    brg_call *unannounced; /* the tail of the queue that found no line */
    brg_call *finishing;   /* finished here, others still read or write */
    brg_call **finishing_end;
    cursor cursor;
    p2p_op *p2p;
    p2p_op **p2p_end;
    leaf_plan leaves;
    spread_plan spread;

    /* Scratch, sized for the group. */
    const void **src; /* of the cursor's reduction */
    void **dst;
    const void **src_at; /* the same, further on */
    void **dst_at;
    header verdict_out;
    header_lane lanes[2];
    int lane;              /* of the next headers that are looked at */
    MPI_Request *requests; /* of flat collectives: 2 per rank */
    int *request_ranks;    /* whom each of these is with, or of leaves' */
    unsigned char *flat;   /* FLAT_PIECE per rank, and partials per node */
    int n_slots;
    x_slot slots[X_SLOTS_MAX];
    MPI_Request *x_requests; /* 2 (n_nodes - 1) of each slot, one after the
                                other: all are tested by one call */
    int *x_done;             /* scratch, as many */
} mpi_group;

#define FLAT_PIECE ((size_t)64 << 10)

enum {
    TAG_HEADER = 1,
    TAG_FLAT,
    TAG_P2P_HEADER,
    TAG_P2P_DATA,
    TAG_FAREWELL,
    TAG_X
};

#define MPI_FAIL(g, code, ...)                                                 \
    (g)->host->fail((code), __FILE__, __LINE__, __VA_ARGS__)

/* An MPI call's result as a status. */
#define MPI_CHECK(g, call)                                                     \
    do {                                                                       \
        int rc_ = (call);                                                      \
        if (rc_ != MPI_SUCCESS)                                                \
            return brg__mpi_fail((g), rc_, #call, __FILE__, __LINE__);         \
    } while (0)

brg_status brg__mpi_fail(const mpi_group *g, int rc, const char *what,
                         const char *file, int line);

static inline uint64_t phase_mark(uint64_t seq, uint64_t phase)
{
    return seq << PHASE_BITS | phase;
}

/* Of a rank without data: it goes with any pace. */
static inline bool is_open(const brg_signature *s)
{
    return s->reducer != 0 && s->pace == 0;
}

static inline int rank_in(const mpi_group *g, int node, int local)
{
    return g->rank_at[g->node_begin[node] + local];
}

static inline int size_of_node(const mpi_group *g, int node)
{
    return g->node_begin[node + 1] - g->node_begin[node];
}

/* Ranks past the last place have no peers and reduce nothing: what one of
 * another place hears, they hear from it. */
static inline bool has_place(const mpi_group *g)
{
    return g->local < g->n_places;
}

/* What the rank at `local` reduces of count elements. */
static inline brg__slice slice_at(const mpi_group *g, size_t count,
                                  size_t nbytes, int local)
{
    if (local >= g->n_places)
        return (brg__slice){0, 0};
    return brg__slice_of(count, nbytes, (size_t)g->n_places, (size_t)local);
}

static inline shared_line *line_of(const mpi_group *g, int local, uint64_t seq)
{
    return &g->shared[local]->lines[seq % RING];
}

/* ---- world.c: MPI itself, topology, memory ------------------------------------ */

brg_status brg__mpi_world_init(mpi_group *g, const void *comm);
void brg__mpi_world_deinit(mpi_group *g);
/* Tells the others that this rank takes no part any more: LEFT, ENDED or a
 * status. */
void brg__mpi_say_gone(mpi_group *g, int32_t how);
/* The group fails for somebody, as `lost` says (0: for nobody). MPI is not
 * finalised at exit then, which would wait for them. */
void brg__mpi_lose(mpi_group *g, int32_t lost);
const char *brg__mpi_gone_words(int32_t how);
brg_status brg__mpi_region_alloc(void *group, void **out, size_t nbytes);
void brg__mpi_region_free(void *group, void *ptr);
/* Fills region and offset of a line; region 0 if `ptr` is in none. */
void brg__mpi_region_find(const mpi_group *g, const void *ptr, size_t nbytes,
                          shared_line *line);

/* Waits while the others may still be in collectives that need this rank; ends
 * with an error when one has died, or time is up. Buffers are those of `talk`. */
brg_status brg__mpi_wait_moving(mpi_group *g, MPI_Request *request,
                                const char *what);

/* ---- shm.c: memory of the node; collective over the group ----------------------- */

/* `nbytes` zeros of each rank; base[] gets where they lie here. All ranks fail
 * if one has no memory. */
brg_status brg__mpi_shm_make(mpi_group *g, size_t nbytes, const char *what,
                             shm_map *made, unsigned char **base);
/* By this rank alone. */
void brg__mpi_shm_drop(shm_map *made);
/* BRG_ERR_NOMEM: this rank has none, an errno says why. */
brg_status brg__mpi_fail_memory(const mpi_group *g, const char *what,
                                size_t nbytes, int rank, int error);

/* ---- alive.c: the processes of the node --------------------------------------- */

/* All control blocks are filled. */
void brg__mpi_watch(mpi_group *g);
bool brg__mpi_has_died(const mpi_group *g, int local);
/* Sets `lost` if a process of the node has died. */
void brg__mpi_find_dead(mpi_group *g);

/* ---- shrink.c, mpi.c: slots of brg_group_ops ----------------------------------- */

brg_status brg__mpi_shrink(void *group, brg_group *filled);
brg_status brg__mpi_create(const brg_host *host, const brg_pg_options *options,
                           brg_group *filled);
void brg__mpi_abort(void *group, brg_status why);

/* ---- node.c: announcing, phases ------------------------------------------------ */

void brg__mpi_announce(mpi_group *g, brg_call *call);
brg_status brg__mpi_node_progress(mpi_group *g);
/* True when every rank of the node has finished `mark`. */
bool brg__mpi_all_reached(mpi_group *g, uint64_t mark);

/* ---- collectives.c: the work of each mode; *is_over: this rank has done it ------ */

brg_status brg__mpi_run_small(mpi_group *g, brg_call *call);
brg_status brg__mpi_run_direct(mpi_group *g, brg_call *call, bool *is_over);
brg_status brg__mpi_run_staged(mpi_group *g, brg_call *call, bool *is_over);
size_t brg__mpi_staged_phases(mpi_group *g, const brg_call *call);
/* Where the data of a rank of this node lies in this process, of a call in
 * regions. */
unsigned char *brg__mpi_data_of(const mpi_group *g, const brg_call *call,
                                int local);

/* ---- leaves.c: the reproducible sum, in each mode ---------------------------------- */

brg_status brg__mpi_leaves_init(mpi_group *g);
void brg__mpi_leaves_deinit(mpi_group *g);
/* Bytes: the most that any rank has to give; from the first to the end of the
 * last part of this one. */
size_t brg__mpi_leaves_payload(const mpi_group *g, const brg_call *call);
size_t brg__mpi_leaves_extent(const mpi_group *g, const brg_call *call);
void brg__mpi_leaves_alone(mpi_group *g, brg_call *call);
void brg__mpi_leaves_put_small(mpi_group *g, const brg_call *call);
void brg__mpi_leaves_run_small(mpi_group *g, brg_call *call);
void brg__mpi_leaves_begin_direct(mpi_group *g, const brg_call *call);
/* Staged: elements of a piece; putting one in, its sum, taking that out. */
size_t brg__mpi_leaves_piece(mpi_group *g, const brg_call *call);
void brg__mpi_leaves_put_piece(mpi_group *g, const brg_call *call, size_t k);
void brg__mpi_leaves_begin_staged(mpi_group *g, const brg_call *call, size_t k);
void brg__mpi_leaves_take(mpi_group *g, brg_call *call, size_t k);
brg_status brg__mpi_leaves_run_flat(mpi_group *g, brg_call *call,
                                    bool *is_over);

/* ---- across.c: between nodes ---------------------------------------------------- */

brg_status brg__mpi_across_init(mpi_group *g);
void brg__mpi_across_deinit(mpi_group *g);
/* *is_direct: in, of this node; out, once it is over, of all nodes. */
brg_status brg__mpi_exchange_headers(mpi_group *g, const brg_call *call,
                                     bool *is_direct, bool *is_over);
/* Sends those of a call that comes next, unless they are under way. */
brg_status brg__mpi_send_headers(mpi_group *g, const brg_call *call,
                                 bool is_direct);
/* The failure that another node's verdict tells of. */
brg_status brg__mpi_heed(mpi_group *g, const header *verdict);
void brg__mpi_send_verdict(mpi_group *g, const header *verdict);
/* n requests of nothing; NULL with a record set. */
MPI_Request *brg__mpi_alloc_requests(const mpi_group *g, size_t n);
/* Gives up what is still posted. */
void brg__mpi_across_cancel(mpi_group *g);
/* The next request of a flat collective, with this rank. */
MPI_Request *brg__mpi_next_request(mpi_group *g, MPI_Request *requests,
                                   int rank);
/* Whether the collective under way waits for a message of this rank. */
bool brg__mpi_awaits(const mpi_group *g, int rank);
/* One step of the cursor's range, through other nodes where there are any. */
brg_status brg__mpi_range_step(mpi_group *g, bool *is_over);
brg_status brg__mpi_run_flat(mpi_group *g, brg_call *call, bool *is_over);

bool brg__mpi_has_come(MPI_Request request);

/* ---- spread.c: between nodes, each node's data once -------------------------------- */

brg_status brg__mpi_spread_init(mpi_group *g);
void brg__mpi_spread_deinit(mpi_group *g);
void brg__mpi_spread_cancel(mpi_group *g);
/* Whether this call is; a broadcast is staged then. */
bool brg__mpi_is_spread(const mpi_group *g, const brg_call *call, bool direct);
brg_status brg__mpi_run_spread(mpi_group *g, brg_call *call, bool *is_over);
/* Of a broadcast: who fills its bounce buffer in this node. Sends n bytes at
 * the root's, or receives them at the one of such a rank: requests of the
 * cursor. */
int brg__mpi_root_here(const mpi_group *g, const brg_call *call);
brg_status brg__mpi_relay(mpi_group *g, const brg_call *call, void *at,
                          size_t n);
bool brg__mpi_spread_awaits(const mpi_group *g, int rank);
/* Starts n bytes from, or to, the i-th peer, for a slot; where they may lie;
 * tests what is under way. */
brg_status brg__mpi_spread_post(mpi_group *g, size_t slot, int i, bool is_in,
                                void *at, size_t n);
unsigned char *brg__mpi_spread_room(const mpi_group *g, size_t slot, int i);
brg_status brg__mpi_spread_test(mpi_group *g);

/* ---- spread_leaves.c: the reproducible sum so --------------------------------------- */

brg_status brg__mpi_spread_leaves_init(mpi_group *g);
void brg__mpi_spread_leaves_deinit(mpi_group *g);
brg_status brg__mpi_spread_leaves(mpi_group *g, brg_call *call, bool *is_over);

/* ---- p2p.c ------------------------------------------------------------------------ */

brg_status brg__mpi_p2p_start(mpi_group *g, brg_call *call);
brg_status brg__mpi_p2p_progress(mpi_group *g);
void brg__mpi_p2p_cancel(mpi_group *g);
void brg__mpi_cancel(MPI_Request *requests, size_t n);

#endif
