/* SPDX-License-Identifier: Apache-2.0
 * What a communication backend fills in, and what the library lends it. */
#ifndef BRG_EXT_BACKEND_H
#define BRG_EXT_BACKEND_H

#include <brigade/comm.h>
#include <brigade/runtime.h>

BRG_BEGIN_DECLS

/* A component library may be loaded into a program that holds libbrigade as
 * a shared or as a static library, so it uses none of its symbols: it exports
 * one function, brg_comm_<name>, and calls back through brg_host. See
 * docs/adding-a-backend.md. */

#define BRG_BACKEND_ABI 6

/* ---- Calls ----------------------------------------------------------------
 * X(NAME, value, text, send, recv, reduces, peer): how many times `count`
 * elements each buffer holds (W: world size), whether `op` counts, and what
 * the word for `peer` is (NULL: there is none). */
#define BRG_COLL_MAP(X)                                                        \
    X(ALL_REDUCE, 0, "all_reduce", 1, 1, true, NULL)                           \
    X(REDUCE_SCATTER, 1, "reduce_scatter", BRG_COLL_W, 1, true, NULL)          \
    X(ALL_GATHER, 2, "all_gather", 1, BRG_COLL_W, false, NULL)                 \
    X(BROADCAST, 3, "broadcast", 1, 1, false, "root")                          \
    X(BARRIER, 4, "barrier", 0, 0, false, NULL)                                \
    X(SEND, 5, "send", 1, 0, false, "peer")                                    \
    X(RECV, 6, "recv", 0, 1, false, "peer")                                    \
    X(SUM_LEAVES, 7, "sum_leaves", 1, 1, true, NULL)

#define BRG_COLL_W (-1)
#define BRG_N_COLLS 8

typedef enum brg_coll {
#define BRG_COLL_ENUM(name, value, text, send, recv, reduces, peer)            \
    BRG_COLL_##name = value,
    BRG_COLL_MAP(BRG_COLL_ENUM)
#undef BRG_COLL_ENUM
} brg_coll;

#define BRG_PACE_FAILED 0x80u /* in this backward or the one before */

/* One started collective. The library owns it and keeps it until the backend
 * has set `is_done` or was told to abort; arguments are checked already. */
typedef struct brg_call {
    brg_coll coll;
    brg_dtype dtype;
    brg_reduce_op op;
    int peer;         /* root, source or destination; -1: none */
    uint64_t seq;     /* place among this group's collectives, from 0; send
                         and recv count apart from them */
    const void *send; /* equal to recv where a call has one buffer */
    void *recv;
    size_t count;
    size_t nbytes; /* count x size of the dtype */
    /* Of sum_leaves: `send` holds the parts of this rank, partials, one every
     * part_stride bytes. A divisor of AVG is n_leaves. */
    uint32_t n_leaves;
    size_t part_stride;
    /* Of a reducer's bucket: which reducer of this group (from 1; 0: none of
     * them), 1 + how often it was switched off and on since its last step (0:
     * not said; plus BRG_PACE_FAILED, not compared, once its backward has
     * failed) and a digest of its plan, so that calls which only look alike do
     * not meet. */
    uint8_t reducer;
    uint8_t pace;
    uint16_t plan;
    int32_t bucket; /* -1: none */
    bool is_done;   /* set by the backend, last */
    bool is_last;   /* of a reducer's step: no gradients are computed beside it;
                       alike on all ranks, a hint for what is quickest */

    /* The backend's own; zero at the start. */
    struct brg_call *next;
    void *state;
    uint64_t mark[4];
} brg_call;

/* What a peer says its call is, for comparing; a plain record that can be
 * sent as bytes. */
typedef struct brg_signature {
    uint64_t seq;
    uint64_t count;
    int8_t coll;
    int8_t dtype;
    int8_t op;
    uint8_t reducer;
    uint16_t n_leaves;
    uint16_t plan;
    int32_t peer;
    int32_t rank;
    int32_t bucket;
    uint32_t pace; /* compared where both say it */
} brg_signature;

/* ---- Reduction on host memory ----------------------------------------------
 * dst[each][i] = src[0][i] op src[1][i] op ..., in that order. A dst may be
 * one of the src; otherwise they do not overlap. A sum over several levels is
 * made of partials: 16-bit floats stay f32 until the last level rounds. */
typedef struct brg_reduction {
    const void *const *src;
    void *const *dst;
    size_t n_src;
    size_t n_dst;
    size_t count;
    brg_dtype dtype;
    brg_reduce_op op;
    int divisor;      /* of AVG; used when the result is no partial */
    bool src_partial; /* src holds partials (see partial_size) */
    bool dst_partial;
    /* Not NULL: a tree instead of that order. Results are kept in a stack:
     * src[k] is pushed, then merges[k] times the two newest become one, older
     * op newer. One is left at the end. */
    const uint8_t *merges;
} brg_reduction;

/* ---- What the library lends ------------------------------------------------ */

typedef struct brg_host {
    uint32_t abi;
    size_t struct_size;

    /* The calling thread's error record; returns `code`. */
    brg_status (*fail)(brg_status code, const char *file, int line,
                       const char *format, ...) BRG_PRINTF(4, 5);
    /* Records that `theirs` is not what `mine` expects; BRG_ERR_MISMATCH. */
    brg_status (*fail_mismatch)(const brg_signature *mine,
                                const brg_signature *theirs);
    void (*log)(brg_log_level level, const char *area, const char *format, ...)
        BRG_PRINTF(3, 4);

    /* Zero-filled, aligned to 64 bytes, counted; NULL with a record set. */
    void *(*alloc)(size_t nbytes, const char *what);
    void (*free)(void *ptr);

    uint64_t (*clock_ns)(void);
    /* The text of a BRG_ environment variable, or its default. */
    const char *(*env)(const char *name);

    void (*sign)(const brg_call *call, int rank, brg_signature *filled);
    bool (*signatures_match)(const brg_signature *a, const brg_signature *b);
    /* "all_reduce #3 (1024 f32, sum)" into `text`. */
    void (*describe)(const brg_signature *signature, char *text, size_t size);

    void (*reduce)(const brg_reduction *reduction);
    /* Bytes of one partial of this dtype. */
    size_t (*partial_size)(brg_dtype dtype);
    /* For the trace: the call has come to a brg_trace_stage. */
    void (*progressed)(const brg_call *call, int stage);
} brg_host;

/* How another rank stands to a call, as far as this process can see. Comes in
 * as zeros. */
#define BRG_PLACE_NBYTES 192
typedef struct brg_peer {
    bool is_visible;    /* false: nothing is known of it */
    const char *owes;   /* "has not started it"; NULL: it has done its part */
    bool has_come;      /* it has started it, or done its part */
    bool has_last;      /* it has started a collective: */
    brg_signature last; /* the newest of them */
    const void *place;  /* its brg_group.place; NULL: not readable here */
    uint64_t now_ns;    /* on the clock of what is there; 0: the machine's */
} brg_peer;

/* ---- What a backend provides -----------------------------------------------
 * A group is driven by one thread at a time. A slot that fails sets the
 * record through host->fail. After a failure of a communication code (COMM,
 * MISMATCH, TIMEOUT, PEER, INTERNAL) the library calls abort and then nothing
 * but destroy; any other code leaves the group as it was. */
struct brg_group;

typedef struct brg_group_ops {
    uint32_t abi;
    size_t struct_size;

    /* Required. Begins the call and returns; may set is_done at once. Calls
     * arrive in order of seq. */
    brg_status (*start)(void *group, brg_call *call);

    /* Required. Moves what can be moved without waiting, a bounded amount
     * of it, and sets is_done of what has ended. */
    brg_status (*progress)(void *group);

    /* Optional. Returns once the call is done. Absent: the library polls
     * `progress` until the time-out. */
    brg_status (*wait)(void *group, brg_call *call);

    /* Optional. Called after each poll in vain while waiting; n counts them
     * from 1. May fail, for example because a peer is gone. Absent:
     * sched_yield. */
    brg_status (*idle)(void *group, brg_call *call, uint64_t n);

    /* Optional. Says what the call waits for, for the message of a time-out.
     * Absent: nothing is said. */
    void (*explain)(void *group, const brg_call *call, char *text, size_t size);

    /* Optional. How this rank (another than the group's own) stands to the
     * call, for the same message. Absent: nothing is known. */
    void (*look)(void *group, const brg_call *call, int rank, brg_peer *filled);

    /* Optional. The device has been given again, as one piece, what it recorded
     * of calls of this group (ext/device.h, graph_launch). Cannot fail. */
    void (*launched)(void *group);

    /* Optional. The group has failed with this code: forget all calls, touch no
     * buffer of theirs again, let the peers know. Absent: nothing to do. */
    void (*abort)(void *group, brg_status why);

    /* Optional, both or neither. Memory as brg_pg_alloc says; `out` NULL: this
     * rank has no memory to keep it, so fail with BRG_ERR_NOMEM, having told
     * the others where they wait for each other. Absent: ordinary memory of the
     * library. */
    brg_status (*alloc)(void *group, void **out, size_t nbytes);
    void (*free)(void *group, void *ptr);

    /* Optional, both or neither. Calls started in between may be held back
     * until end: none is waited for before. An end that fails is one all the
     * same. Absent: each is started at once. */
    brg_status (*coalesce_begin)(void *group);
    brg_status (*coalesce_end)(void *group);

    /* Optional. The group's own time, for worlds in which no real time passes.
     * Absent: brg_host.clock_ns. */
    uint64_t (*clock_ns)(void *group);

    /* Optional. The group is over, whether it had failed or not (as `abort`):
     * fills an end of one of the ranks that are left, in their old order.
     * Every one of them calls it; returns when all have. BRG_ERR_UNSUPPORTED
     * leaves the group as it was. Absent: unsupported. */
    brg_status (*shrink)(void *group, struct brg_group *filled);

    /* Required. Frees the group; calls in flight are forgotten. */
    void (*destroy)(void *group);
} brg_group_ops;

/* One end of a group, as `create` fills it. */
typedef struct brg_group {
    const brg_group_ops *ops; /* static */
    void *group;              /* first argument of every slot */
    int rank;
    int world_size;
    bool wants_polls; /* progress is worth calling while the thread computes */
    bool sums_leaves; /* start takes sum_leaves */
    /* Where memory of `alloc` lies. Not the CPU: buffers there are taken, in
     * the order of the device's queue, and buffers in host memory too. */
    brg_device device;
    /* Optional: BRG_PLACE_NBYTES zeros, aligned to 64, in memory that the peers
     * can read, valid until destroy. The library writes there what this rank
     * does. */
    void *place;
    /* start takes all_reduces (sum, average) of a dtype that is none of
     * BRG_DTYPE_MAP: blocks of 8-bit numbers, 64 bytes each, which only
     * host->reduce can sum, partials as large as they. */
    bool sums_blocks;
    /* On how many machines its ranks are, which reach each other by a network;
     * 0: not known. */
    int n_machines;
} brg_group;

struct brg_backend {
    uint32_t abi; /* BRG_BACKEND_ABI */
    size_t struct_size;
    const char *name;
    /* `options` is complete: never NULL, timeout_s set. `host` stays valid.
     * On failure nothing is kept. */
    brg_status (*create)(const brg_host *host, const brg_pg_options *options,
                         brg_group *filled);
};

/* What the library lends, for backends linked into the program's tests. */
BRG_API const brg_host *brg_host_get(void);

/* The type of the function that a component exports as brg_comm_<name>. */
typedef const brg_backend *(*brg_comm_fn)(void);

BRG_END_DECLS

#endif
