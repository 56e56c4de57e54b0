/* SPDX-License-Identifier: Apache-2.0
 * Do all ranks mean the same parameters? One all-gather of 64 bytes a rank
 * when they do; when not, the lists are exchanged and every rank finds the
 * same first difference. */
#ifndef BRG_REDUCER_VERIFY_H
#define BRG_REDUCER_VERIFY_H

#include <brigade/comm.h>

#define BRG__DESCRIPTOR_NAME 72

/* One tensor; a plain record that can be sent as bytes (no padding). */
typedef struct brg__descriptor {
    int64_t shape[BRG_MAX_DIMS];
    int64_t strides[BRG_MAX_DIMS];
    uint64_t name_hash;
    int16_t dtype;
    int16_t device;
    int16_t ndim;
    int16_t requires_grad;
    uint64_t group;                  /* of the user's; 0: none */
    char name[BRG__DESCRIPTOR_NAME]; /* cut, terminated */
} brg__descriptor;

void brg__descriptor_set_name(brg__descriptor *d, const char *name);

/* Options that are on or off. */
enum {
    BRG__FLAG_SUM = 1 << 0,
    BRG__FLAG_ALLOW_UNUSED = 1 << 1,
    BRG__FLAG_KEEP_ORDER = 1 << 2,
    BRG__FLAG_STATIC_GRAPH = 1 << 3,
    BRG__FLAG_BROADCAST_BUFFERS = 1 << 4,
    BRG__FLAG_AVERAGE_BUFFERS = 1 << 5,
    BRG__FLAG_SHARD = 1 << 6,
    BRG__FLAG_MEASURED = 1 << 7,
    BRG__FLAG_CHECK_FINITE = 1 << 8,
    BRG__FLAG_ACCUMULATE_F32 = 1 << 9
};
#define BRG__FLAG_NAMES                                                        \
    "sum", "allow_unused", "keep_order", "static_graph",                       \
        "sync_buffers BROADCAST", "sync_buffers AVERAGE", "shard",             \
        "buckets MEASURED", "check_finite", "accumulate_f32"

typedef struct brg__agreement {
    const char *what;               /* "brg_ddp_create" */
    const brg__descriptor *tensors; /* parameters, then buffers */
    size_t n_params;
    size_t n_buffers;
    size_t caps[2];
    const char *caps_name; /* NULL: "bucket sizes" */
    uint32_t flags;        /* BRG__FLAG_... */
    uint32_t n_leaves;     /* 0: the default reduction */
    uint64_t hook;         /* which communication hook; 0: none */
    /* What this rank has come to already: if it failed, it says so to the
     * others instead of leaving them waiting. */
    brg_status status;
} brg__agreement;

/* Collective. BRG_OK if all ranks agree and none has failed. Its own status
 * on a rank that has; BRG_ERR_PEER on the others; BRG_ERR_MISMATCH, with the
 * same words, on every rank if something differs. */
brg_status brg__verify_ranks(brg_pg *pg, const brg__agreement *mine);

#endif
