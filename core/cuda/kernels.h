/* SPDX-License-Identifier: Apache-2.0
 * What the C files of this room call of the .cu files, in words both know.
 *
 * Launchers queue their kernels on the stream and return the cudaError_t of
 * the launch. Sizes are positive. Row-major arrays are given by pointer and
 * dtype; anything else by a view. */
#ifndef BRG_CORE_CUDA_KERNELS_H
#define BRG_CORE_CUDA_KERNELS_H

#include <stdbool.h>
#include <stdint.h>

#define BRG__CU_DIMS 8

#ifdef __cplusplus
extern "C" {
#endif

/* The first id out of range that a kernel met; in pinned host memory. Who may
 * write it is settled in device memory, where atomics are sure to work. */
typedef struct brg__cu_fault {
    int *claim; /* of the device: 0 free, 1 taken */
    int is_set;
    int op; /* brg__cu_fault_op */
    int64_t id, at, size;
} brg__cu_fault;

typedef enum brg__cu_fault_op {
    BRG__CU_FAULT_INDEX_SELECT,
    BRG__CU_FAULT_EMBEDDING,
    BRG__CU_FAULT_GATHER,
    BRG__CU_FAULT_ONE_HOT,
    BRG__CU_FAULT_SPARSE_COO,
    BRG__CU_FAULT_EMBEDDING_GRAD,
    BRG__CU_FAULT_CROSS_ENTROPY
} brg__cu_fault_op;

/* Where kernels go. */
typedef struct brg__cu_queue {
    void *stream;         /* cudaStream_t */
    brg__cu_fault *fault; /* as the device sees it */
    int n_sm;
} brg__cu_queue;

/* Blocks of a launch. 0, which CUDA refuses, where no launch takes so many. */
static inline unsigned brg__cu_grid(int64_t n_blocks)
{
    return n_blocks > INT32_MAX ? 0 : (unsigned)n_blocks;
}

/* Whether the current GPU can run the kernels of this library: an error if they
 * were compiled for none of its kind (misc.cu). */
int brg__cu_try_kernels(void);

/* ---- Pointwise (pointwise_*.cu) ------------------------------------------------ */

typedef struct brg__cu_operand {
    void *at;
    int dtype;
    int64_t stride[BRG__CU_DIMS]; /* 0 where broadcast */
} brg__cu_operand;

/* The operands [0] = out, [1..] = inputs, over merged dims. */
typedef struct brg__cu_pointwise {
    int row;   /* brg__cu_row */
    int ctype; /* 0 f32, 1 f64, 2 i64 */
    int n_in;
    int ndim;
    bool is_packed; /* all row-major, of one dtype that is 2 or 4 byte float */
    int64_t n;
    int64_t shape[BRG__CU_DIMS];
    brg__cu_operand operand[4];
    double p[2];
} brg__cu_pointwise;

int brg__cu_pointwise_launch(const brg__cu_queue *q,
                             const brg__cu_pointwise *problem);

/* Every element = value. */
int brg__cu_fill(const brg__cu_queue *q, const brg__cu_pointwise *out,
                 double value);

/* ---- Reductions (reduce.cu) ------------------------------------------------------ */

typedef enum brg__cu_reduce_kind {
    BRG__CU_SUM,
    BRG__CU_MAX,
    BRG__CU_MIN,
    BRG__CU_VAR,
    BRG__CU_ARGMAX,
    BRG__CU_ARGMIN
} brg__cu_reduce_kind;

/* out[k] = scale * reduce over r of x[k, r]; the dims of k and of r merged. */
typedef struct brg__cu_reduce {
    brg__cu_reduce_kind kind;
    const void *x;
    void *out; /* row-major over k */
    int dtype, out_dtype;
    int n_kept, n_reduced;
    int64_t kept, reduced; /* element counts */
    int64_t kept_shape[BRG__CU_DIMS], kept_stride[BRG__CU_DIMS];
    int64_t reduced_shape[BRG__CU_DIMS], reduced_stride[BRG__CU_DIMS];
    double scale;
    int n_splits;   /* of the reduced elements; > 1: partials */
    void *partials; /* n_splits * kept values of 8 bytes */
} brg__cu_reduce;

/* How many splits pay; the caller brings the memory for the partials. */
int brg__cu_reduce_splits(const brg__cu_queue *q, const brg__cu_reduce *r);
int brg__cu_reduce_launch(const brg__cu_queue *q, const brg__cu_reduce *r);

/* ---- Rows (rows.cu, layer_norm.cu): row-major (rows, n) ------------------------------------------ */

/* Lines along the middle of (outer, n, inner). */
typedef struct brg__cu_lines {
    int dtype;
    int64_t outer, n, inner;
    bool is_log;
} brg__cu_lines;

int brg__cu_softmax(const brg__cu_queue *q, const brg__cu_lines *l,
                    const void *x, void *y);
int brg__cu_softmax_grad(const brg__cu_queue *q, const brg__cu_lines *l,
                         const void *g, const void *y, void *gx);

/* mean and rstd are f64 for f64, else f32; w and b may be NULL. */
typedef struct brg__cu_norm {
    int dtype;
    int64_t rows, n;
    double eps;
    const void *x, *w, *b, *g;
    const void *add; /* to the rounded gx; or NULL */
    void *y, *mean, *rstd;
    void *gx, *gw, *gb;
    void *sum; /* of gx over the rows; or NULL: none */
    int n_splits;
    void *partials; /* room for n_splits * 3 * n doubles */
} brg__cu_norm;

int brg__cu_layer_norm(const brg__cu_queue *q, const brg__cu_norm *a);
/* Of the complete problem but `partials`. */
int brg__cu_layer_norm_splits(const brg__cu_queue *q, const brg__cu_norm *a);
/* Whether its gradient can be summed on the way: else `sum` must be NULL. */
bool brg__cu_layer_norm_has_sum(const brg__cu_norm *a);
int brg__cu_layer_norm_grad(const brg__cu_queue *q, const brg__cu_norm *a);

/* x (n, channels, inner). */
typedef struct brg__cu_batch_norm {
    int dtype;
    int stats_dtype[2]; /* of running_mean, running_var */
    int64_t n, channels, inner;
    bool is_training;
    double momentum, eps;
    const void *x, *w, *b, *g;
    void *running_mean, *running_var;
    void *y, *mean, *rstd, *gx, *gw, *gb;
} brg__cu_batch_norm;

int brg__cu_batch_norm_launch(const brg__cu_queue *q,
                              const brg__cu_batch_norm *a);
int brg__cu_batch_norm_grad_launch(const brg__cu_queue *q,
                                   const brg__cu_batch_norm *a);

/* Losses. targets i64 or i32; lse f64 for f64, else f32. `scratch`: 2 rows + 1
 * doubles. */
typedef struct brg__cu_entropy {
    int dtype, target_dtype, loss_dtype;   /* of loss and of g */
    int64_t rows, width, classes, ignored; /* width: classes and padding */
    double smoothing;
    double seed; /* the gradient of the loss if g is NULL */
    const void *logits, *targets, *g;
    void *loss, *lse, *out, *weight;
    double *scratch;
} brg__cu_entropy;

int brg__cu_cross_entropy(const brg__cu_queue *q, const brg__cu_entropy *a);
int brg__cu_cross_entropy_grad(const brg__cu_queue *q,
                               const brg__cu_entropy *a);
/* Both at once, of rows > 0: the bits of the two. */
int brg__cu_cross_entropy_with_grad(const brg__cu_queue *q,
                                    const brg__cu_entropy *a);
int brg__cu_cross_entropy_targets(const brg__cu_queue *q,
                                  const brg__cu_entropy *a);

/* scratch: BRG__CU_MSE_BLOCKS doubles. */
#define BRG__CU_MSE_BLOCKS 512
typedef struct brg__cu_mse {
    int dtype;
    int64_t n;
    const void *a, *b, *g;
    void *out;
    double *scratch;
} brg__cu_mse;

int brg__cu_mse_launch(const brg__cu_queue *q, const brg__cu_mse *m);
int brg__cu_mse_grad_launch(const brg__cu_queue *q, const brg__cu_mse *m);

/* ---- Indices (index.cu) ------------------------------------------------------------ */

/* x (outer, size, inner), y (outer, n, inner); ids (n), or for gather
 * (outer, n, inner). */
typedef struct brg__cu_index {
    int op; /* brg__cu_fault_op */
    int dtype, id_dtype;
    int64_t outer, size, inner, n;
    const void *x, *ids;
    void *y;
} brg__cu_index;

int brg__cu_take_slices(const brg__cu_queue *q, const brg__cu_index *a);
int brg__cu_take_elements(const brg__cu_queue *q, const brg__cu_index *a);
/* y (outer, size, inner) = sums of x (outer, n, inner), in order of the ids.
 * scratch: brg__cu_add_slices_scratch bytes. */
uint64_t brg__cu_add_slices_scratch(const brg__cu_index *a);
int brg__cu_add_slices(const brg__cu_queue *q, const brg__cu_index *a,
                       void *scratch);
/* scratch: room for y in f32 if y has 16 bits, else NULL. */
int brg__cu_add_elements(const brg__cu_queue *q, const brg__cu_index *a,
                         void *scratch);
/* y (n, size), of y_dtype `dtype`. */
int brg__cu_one_hot(const brg__cu_queue *q, const brg__cu_index *a);

/* ---- Others (misc.cu) ---------------------------------------------------------------- */

typedef struct brg__cu_tril {
    int item; /* bytes */
    int64_t n, rows, cols, diagonal;
    bool is_upper;
    const void *x;
    void *y;
} brg__cu_tril;

int brg__cu_tril_launch(const brg__cu_queue *q, const brg__cu_tril *a);

typedef struct brg__cu_dropout {
    int dtype;
    int64_t n;
    uint64_t seed, offset;
    const uint64_t *from; /* on the device: these two, to which the offset is
                             added; or NULL */
    double p;
    const void *x;
    void *y;
} brg__cu_dropout;

int brg__cu_dropout_launch(const brg__cu_queue *q, const brg__cu_dropout *a);

typedef struct brg__cu_pool {
    int dtype;
    int64_t planes, h, w, oh, ow;
    int64_t kernel[2], stride[2], padding[2];
    bool exclude_padding, is_wide;
    const void *x;
    void *y;
    void *which;
} brg__cu_pool;

int brg__cu_pool_max(const brg__cu_queue *q, const brg__cu_pool *p);
int brg__cu_pool_put(const brg__cu_queue *q, const brg__cu_pool *p);
int brg__cu_pool_take(const brg__cu_queue *q, const brg__cu_pool *p);
int brg__cu_pool_avg(const brg__cu_queue *q, const brg__cu_pool *p);
int brg__cu_pool_avg_grad(const brg__cu_queue *q, const brg__cu_pool *p);

/* The plain convolution, used where cuDNN is absent or declines. */
typedef struct brg__cu_conv {
    int dtype;
    int64_t n, c, h, w, o, kh, kw, oh, ow, groups;
    int64_t stride[2], padding[2], dilation[2];
    void *x, *weight, *y; /* y: output or its gradient */
    const void *bias;
} brg__cu_conv;

int brg__cu_conv_forward(const brg__cu_queue *q, const brg__cu_conv *v);
int brg__cu_conv_grad_input(const brg__cu_queue *q, const brg__cu_conv *v);
int brg__cu_conv_grad_weight(const brg__cu_queue *q, const brg__cu_conv *v);

/* ---- Attention (attention.cu) ---------------------------------------------------------- */

typedef struct brg__cu_heads {
    void *at;
    int64_t batch, head, row, col;
} brg__cu_heads;

typedef struct brg__cu_attention {
    int dtype;
    int64_t n_batch, n_heads, t, s, d, d_out;
    double scale;
    bool is_causal;
    brg__cu_heads q, k, v, out, g, gq, gk, gv;
    void *lse;
    void *delta; /* of the gradient: one value of lse's type per query */
} brg__cu_attention;

/* d and d_out at most this. */
#define BRG__CU_HEAD_MAX 256
int brg__cu_attention_forward(const brg__cu_queue *q,
                              const brg__cu_attention *a);
int brg__cu_attention_backward(const brg__cu_queue *q,
                               const brg__cu_attention *a);

/* Scores of (heads, t) rows by s keys, wide (f64 for f64, else f32); p and ds
 * have `dtype`. */
typedef struct brg__cu_scores {
    int dtype;
    int64_t rows, t, s;
    double scale;
    bool is_causal;
    const void *scores, *dp;
    void *p, *ds;
    void *lse;
    const void *delta;
} brg__cu_scores;

int brg__cu_scores_softmax(const brg__cu_queue *q, const brg__cu_scores *a);
int brg__cu_scores_grad(const brg__cu_queue *q, const brg__cu_scores *a);
int brg__cu_attention_delta(const brg__cu_queue *q, const brg__cu_attention *a);

/* ---- Clipping (clip.cu) ------------------------------------------------------------------- */

struct brg_device_update;
/* Bytes for n gradients. */
uint64_t brg__cu_clip_scratch(const struct brg_device_update *grads,
                              uint64_t n);
/* to[0] = the norm, to[1] = min(1, max_norm / (norm + 1e-6)), or 1 if the norm is
 * not finite; partials: scratch. */
int brg__cu_clip_factor(const brg__cu_queue *q,
                        const struct brg_device_update *grads, uint64_t n,
                        double max_norm, double *partials, double *to);
/* Scales the gradients by min(1, max_norm / (norm + 1e-6)) if their norm is
 * finite; scratch[0] = the norm. */
int brg__cu_clip(const brg__cu_queue *q, const struct brg_device_update *grads,
                 uint64_t n, double max_norm, double *scratch);

/* ---- Buffers beside gradients (cargo.cu) ------------------------------------------------- */

struct brg_device_cargo;
int brg__cu_cargo(const brg__cu_queue *q, const struct brg_device_cargo *cargo,
                  uint64_t n, bool is_load);

/* ---- Gradients of a reducer (look.cu, clip.cu): see ext/device.h ---------------------------- */

struct brg_device_array;
int brg__cu_look(const brg__cu_queue *q, const struct brg_device_array *arrays,
                 uint64_t n, uint64_t *found);
int brg__cu_look_tell(const brg__cu_queue *q, const uint64_t *found, int rank,
                      float *to);
int brg__cu_clock(const brg__cu_queue *q, uint64_t *to);
int brg__cu_norm_squares(const brg__cu_queue *q,
                         const struct brg_device_array *arrays, uint64_t n,
                         double *partials);
int brg__cu_norm_add(const brg__cu_queue *q, const double *partials, uint64_t n,
                     double *total);
int brg__cu_norm_clip(const brg__cu_queue *q,
                      const struct brg_device_array *arrays, uint64_t n,
                      const double *total, double max_norm);

/* ---- Communication hooks (compress.cu) ------------------------------------------------------ */

struct brg_compress_job;
int brg__cu_compress(const brg__cu_queue *q,
                     const struct brg_compress_job *job);

/* ---- Random numbers (random.cu) ---------------------------------------------------------- */

struct brg_draw;
int brg__cu_draw(const brg__cu_queue *q, const struct brg_draw *draw);

/* ---- Sparse tensors (sparse.cu): see ext/sparse.h ----------------------------------------- */

struct brg_sparse_job;
/* Bytes for ORDER; 0 for others. */
uint64_t brg__cu_sparse_scratch(const struct brg_sparse_job *job);
int brg__cu_sparse(const brg__cu_queue *q, const struct brg_sparse_job *job,
                   void *scratch);

/* ---- Recorded graphs (fills.cu) ---------------------------------------------------------- */

/* Fills of few bytes in a graph that is not instantiated yet become kernels. */
void brg__cu_graph_fills(void *graph);

/* ---- Optimizers (optim.cu) --------------------------------------------------------------- */

/* numbers: on the device, f[] of each update one after another; NULL: those of
 * the updates. */
int brg__cu_update(const brg__cu_queue *q,
                   const struct brg_device_update *updates, uint64_t n,
                   const double *numbers);
/* to[i] = from[i], which is read before the call returns. */
int brg__cu_store(const brg__cu_queue *q, double *to, const double *from,
                  uint64_t n);
/* The same with bytes; n <= BRG__CU_BY_VALUE. */
#define BRG__CU_BY_VALUE 512
int brg__cu_store_bytes(const brg__cu_queue *q, void *to, const void *from,
                        uint64_t n);

#ifdef __cplusplus
}
#endif

#endif
