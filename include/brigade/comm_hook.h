/* SPDX-License-Identifier: Apache-2.0
 * Communication hooks: what happens between the pack of a bucket and the wire,
 * in place of one all-reduce. */
#ifndef BRG_COMM_HOOK_H
#define BRG_COMM_HOOK_H

#include <brigade/comm.h>
#include <brigade/params.h>

BRG_BEGIN_DECLS

/* A hook is given to brg_reducer_create or brg_ddp_create in their options, on
 * every rank the same one (its name is compared). It serves one reducer at a
 * time, must outlive it, and is used by the reducer's thread. Eager and
 * compiled backwards run it alike. Buckets that a hook has nothing to do with
 * (its own rules say which) are all-reduced as they are. */
typedef struct brg_comm_hook brg_comm_hook;

BRG_API void brg_comm_hook_destroy(brg_comm_hook *hook);
/* The name with its settings, "powersgd rank 2". Borrowed. */
BRG_API const char *brg_comm_hook_name(const brg_comm_hook *hook);

/* What a hook remembers from step to step (errors fed back, warm starts), for
 * checkpoints: the i-th named tensor, NULL past the last. There once a reducer
 * was made with the hook; borrowed; may be written between steps. Names that
 * begin with "error/" differ between ranks: each rank keeps its own. The
 * state stays with the hook, so a reducer made later with the same parameters
 * (names and counts) goes on with it. It lies where the gradients do, and moves
 * to those of a later reducer (the count of PowerSGD's steps: in host memory). */
BRG_API size_t brg_comm_hook_state_count(const brg_comm_hook *hook);
BRG_API const brg_named_tensor *
brg_comm_hook_state_at(const brg_comm_hook *hook, size_t i);

/* ---- Those of the library ------------------------------------------------------ */

/* f32 and f64 gradients travel as `wire`, BRG_DTYPE_F16 or BRG_DTYPE_BF16:
 * rounded once before the sum, which is made in f32, and once after it. With
 * error_feedback, what the first rounding took is added to the next step's
 * gradient (one f32 an element, state "error/<name>"). On GPUs NCCL sums as
 * BRG_NCCL_WIDE_SUMS says. *out: owned. */
BRG_API BRG_NODISCARD brg_status brg_comm_hook_create_cast(brg_comm_hook **out,
                                                           brg_dtype wire,
                                                           bool error_feedback);

/* f32 and f64 gradients travel in 8 bits: blocks of 60 elements, each rounded
 * to a multiple of the block's max / 127, 64 bytes a block, so 3.75 times less
 * than f32. The sum over ranks is made in f32 and rounded to such a block
 * again, up or down by a dither whose errors have the mean 0 over steps; so is
 * the sum of a node of several ranks, between nodes. With error_feedback, what
 * the first rounding took is added to the next step's gradient (state
 * "error/<name>", one f32 an element; "steps"). An element that is not finite
 * is NaN in the result, alone, and leaves no error behind. Sums and averages
 * only; groups whose backend does not sum such blocks fail. On GPUs over NCCL
 * the bits are those of hosts. *out: owned. */
BRG_API BRG_NODISCARD brg_status brg_comm_hook_create_q8(brg_comm_hook **out,
                                                         bool error_feedback);

/* PowerSGD (T. Vogels, S. P. Karimireddy, M. Jaggi, "PowerSGD: Practical
 * Low-Rank Gradient Compression for Distributed Optimization", 2019,
 * algorithms 1 and 2). Of an f32 matrix M (n x m: brg_reducer_param.n_rows),
 *     M = gradient + error;  P = average(M Q), orthogonalised
 *     Q = average(M^T P);    gradient = P Q^T;  error = M - P Q^T
 * so that (n + m) rank numbers travel instead of n m, in two rounds. Vectors
 * and matrices that would save less than min_saving times go as they are. */
typedef struct brg_powersgd_options {
    size_t struct_size;
    int rank;
    int64_t start_step; /* the first steps, plain all-reduces */
    double min_saving;  /* of numbers sent, for a matrix to take part */
    bool no_warm_start; /* Q is drawn anew each step */
    bool no_error_feedback;
    uint64_t seed;
} brg_powersgd_options;

#define BRG_POWERSGD_OPTIONS_INIT                                              \
    BRG_INIT_WITH(brg_powersgd_options,                                        \
                  BRG_SET(rank, 1) BRG_SET(start_step, 0)                      \
                      BRG_SET(min_saving, 2.0))

/* `options` may be NULL. State: "error/<name>", "q/<name>" (m x rank),
 * "steps". *out: owned. */
BRG_API BRG_NODISCARD brg_status brg_comm_hook_create_powersgd(
    brg_comm_hook **out, const brg_powersgd_options *options);

/* Adasum (S. Maleki et al., "Scaling Distributed Training with Adaptive
 * Summation", 2020): gradients of f32, parameter by parameter, are added in
 * pairs of ranks, then pairs of these, rank r + 2^k to rank r:
 *     a + b - (a.b / 2 a.a) a - (a.b / 2 b.b) b
 * so equal ones become their average, orthogonal ones their sum. Other dtypes
 * are averaged; options.sum is refused in the first step. By one all-gather:
 * (world size - 1) times the bytes of a rank are received, and so much group
 * memory is taken. Not on GPUs. *out: owned. */
BRG_API BRG_NODISCARD brg_status
brg_comm_hook_create_adasum(brg_comm_hook **out);

/* ---- Hooks of your own ------------------------------------------------------------ */

typedef struct brg_hook_param {
    const char *name;
    size_t count;
    size_t n_rows; /* of a matrix; 0: none */
    brg_dtype dtype;
    brg_device device; /* of its gradients: the same of all */
} brg_hook_param;

/* One bucket; stays the same between two layouts. Parameter params[k] lies at
 * element offsets[k]; what is between them is zero and must be reduced to
 * zero. */
typedef struct brg_hook_bucket {
    brg_pg *pg;
    size_t index;
    brg_device device; /* of data and wire */
    void *data;
    size_t count; /* elements, gaps included */
    brg_dtype dtype;
    brg_reduce_op op; /* what is asked for: BRG_REDUCE_AVG or _SUM */
    size_t n_params;
    const uint32_t *params;
    const size_t *offsets;
    void *wire;      /* as many bytes as wire_bytes said: group memory */
    brg_work **work; /* the one collective in flight, if any */
} brg_hook_bucket;

/* All slots run on the reducer's thread and get `user` first. Every rank makes
 * the same calls for the same buckets in the same order, so collectives that
 * depend on sizes alone match. A slot that fails, by brg_error_set or by the
 * failure of a call, ends the step on this rank with its error; `start` must
 * then not have started anything. */
typedef struct brg_comm_hook_ops {
    size_t struct_size;
    const char *name; /* static; equal on all ranks, settings included */

    /* Optional. A reducer is made over these parameters: make the state. Not
     * collective. */
    brg_status (*attach)(void *user, const brg_hook_param *params, size_t n);

    /* Optional. Bytes of wire memory that a bucket of these contents needs;
     * `wire` and `work` are not set yet. Absent: 0. */
    size_t (*wire_bytes)(void *user, const brg_hook_bucket *bucket);

    /* Required. The gradients are in `data`: starts one collective and puts
     * its work into *bucket->work. */
    brg_status (*start)(void *user, const brg_hook_bucket *bucket);

    /* Optional. A second round: called for all buckets in order once all have
     * been started; may wait for *bucket->work and start another. */
    brg_status (*again)(void *user, const brg_hook_bucket *bucket);

    /* Required. Waits for *bucket->work (and sets it to NULL) and leaves the
     * result in `data`. */
    brg_status (*finish)(void *user, const brg_hook_bucket *bucket);

    /* Optional: the state; NULL past the last. */
    const brg_named_tensor *(*state_at)(void *user, size_t i);

    /* Optional. Frees `user`. */
    void (*destroy)(void *user);

    /* Where gradients are on a device, `data` and `wire` are its memory: true:
     * the slots queue their work there (brg_device_stream), behind which they
     * find the gradients; the group's collectives, and waits for them, are
     * ordered with that queue. Else such reducers refuse the hook. */
    bool works_on_devices;

    /* Optional, of hooks that work on devices. Compiled steps may be recorded
     * and launched again as one graph (compile.h, replay), without calls of the
     * slots. version: a number for what they would queue in the next step; while
     * it stays the same a recording may be launched. It fails
     * (BRG_ERR_UNSUPPORTED, saying why) if they have to be called; so they do
     * where it is absent. launched (optional): a recording was; does what the
     * slots do on the host. */
    brg_status (*version)(void *user, uint64_t *version);
    void (*launched)(void *user);
} brg_comm_hook_ops;

/* `ops` is copied. *out: owned; `user` is the hook's once this has succeeded. */
BRG_API BRG_NODISCARD brg_status brg_comm_hook_create(
    brg_comm_hook **out, const brg_comm_hook_ops *ops, void *user);

BRG_END_DECLS

#endif
