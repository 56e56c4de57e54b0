/* SPDX-License-Identifier: Apache-2.0
 * For authors of devices: memory, copies, events, kernels.
 *
 * A component library (libbrigade_<name>.so) may be loaded into a program that
 * holds libbrigade as a shared or as a static library, so it uses none of its
 * symbols: it exports brg_device_<name>, and calls back through the
 * brg_device_host that it is given. */
#ifndef BRG_EXT_DEVICE_H
#define BRG_EXT_DEVICE_H

#include <brigade/device.h>
#include <brigade/ext/compress.h>
#include <brigade/ext/op.h>
#include <brigade/ext/random.h>
#include <brigade/ext/sparse.h>
#include <brigade/runtime.h>
#include <brigade/status.h>
#include <brigade/types.h>

BRG_BEGIN_DECLS

#define BRG_DEVICE_ABI 10

/* ---- What the library lends ------------------------------------------------ */

typedef struct brg_device_host {
    uint32_t abi;
    size_t struct_size;
    /* The calling thread's error record; returns `code`. */
    brg_status (*fail)(brg_status code, const char *file, int line,
                       const char *format, ...) BRG_PRINTF(4, 5);
    void (*log)(brg_log_level level, const char *area, const char *format, ...)
        BRG_PRINTF(3, 4);
    /* Zero-filled host memory, counted; NULL with a record set. */
    void *(*alloc)(size_t nbytes, const char *what);
    void (*free)(void *ptr);
    /* Moves the communication that waits for this thread. */
    void (*poll)(void);
} brg_device_host;

BRG_API const brg_device_host *brg_device_host_get(void);

/* ---- One parameter of an optimizer's step ---------------------------------- */

typedef enum brg_update_rule {
    /* d = g + wd p; b = momentum b + keep d; p -= lr (b, or nesterov:
     * d + momentum b; without b: d).  f = {lr, momentum, keep, wd} */
    BRG_UPDATE_SGD,
    BRG_UPDATE_SGD_NESTEROV,
    /* m = b1 m + (1 - b1) g; v = b2 v + (1 - b2) g g;
     * p = decay p - size m / (sqrt(v) root + eps).
     * f = {decay, b1, b2, size, root, eps} */
    BRG_UPDATE_ADAMW
} brg_update_rule;

/* Row-major arrays of `numel` elements on the device. */
typedef struct brg_device_update {
    brg_update_rule rule;
    brg_dtype dtype; /* of param and grad; the rest is f64 for f64, else f32 */
    size_t numel;
    void *param;
    const void *grad;
    void *state[2]; /* NULL: the rule has none */
    void *master;   /* of 16-bit parameters, else NULL */
    bool follows;   /* where master does not round to param, it takes param */
    /* On the device; if it is not NULL, and not 0, nothing is changed. */
    const float *found_inf;
    double f[6];
    size_t slot; /* of the optimizer */
    /* On the device, or NULL: grad is multiplied by it, and rounded, first. */
    const double *factor;
} brg_device_update;

/* ---- One tensor among numbers that ranks add ------------------------------- */

/* Its elements in row-major order, at `row`, on the device:
 *
 *     n_sets 0      their values, of floats but f64
 *     1             pieces of 16 bits of each, the low ones first, as integers
 *                   (1, 1, 2, 4 of elements of 1, 2, 4, 8 bytes)
 *     more          such sets, numel times the pieces of an element apart */
typedef struct brg_device_cargo {
    void *at;
    float *row;
    brg_dtype dtype;
    uint32_t n_sets;
    float scale; /* of what is taken back */
    size_t numel;
    int ndim;
    int64_t shape[BRG_MAX_DIMS];
    int64_t stride[BRG_MAX_DIMS]; /* of elements */
} brg_device_cargo;

/* ---- Kernels made while the program runs ------------------------------------- */

#define BRG_DEVICE_COMPILER_TEXT 256

typedef struct brg_device_compiler {
    /* What decides what comes out of a source besides it: compiler, version,
     * options, kind of device. */
    char identity[BRG_DEVICE_COMPILER_TEXT];
    int n_units; /* multiprocessors */
} brg_device_compiler;

/* A kernel on so many blocks of so many threads (x, y); params[i] points to its
 * i-th parameter. */
typedef struct brg_device_launch {
    void *kernel;
    uint32_t blocks[2];
    uint32_t threads[2];
    void **params;
} brg_device_launch;

/* ---- What is in gradients ---------------------------------------------------- */

#define BRG_DEVICE_PIECE 8192 /* elements of one partial sum */

/* Elements in a row on the device. */
typedef struct brg_device_array {
    void *data;
    brg_dtype dtype;
    size_t numel;
    uint64_t limit, mark; /* of look */
    size_t place;         /* of norm_squares: of its first partial sum */
} brg_device_array;

/* ---- The device ------------------------------------------------------------ */

/* One device type. Registered once, never unregistered; any thread may call. */
typedef struct brg_device_vtable {
    uint32_t abi;
    size_t struct_size;
    const char *name;

    /* Required. Memory of a tensor, at least 64-byte aligned; *out NULL on
     * failure. Size 0 never reaches it. */
    brg_status (*alloc)(brg_device device, void **out, size_t nbytes);
    /* Required. Gets the size that alloc got; cannot fail. Queued work may
     * still use the memory. */
    void (*free)(brg_device device, void *ptr, size_t nbytes);

    /* Required. Ordered after the work already queued on the device; returns
     * before it is done unless one side is host memory. */
    brg_status (*copy)(brg_device to, void *dst, brg_device from,
                       const void *src, size_t nbytes);
    brg_status (*fill_zero)(brg_device device, void *ptr, size_t nbytes);

    /* (optional) Absent: the device works in the calling thread, so streams
     * and events have nothing to order. *event is made if it is NULL;
     * event_wait makes what is queued next wait for it. */
    brg_status (*synchronize)(brg_device device);
    brg_status (*event_record)(brg_device device, void **event);
    brg_status (*event_wait)(brg_device device, void *event);
    void (*event_free)(brg_device device, void *event);

    /* (optional) How many devices there are. Absent: one. */
    int (*count)(void);
    /* (optional) The kernel of one of the library's ops on this device, or
     * NULL. Absent: only ops that bring their own (brg_op.run) work. Outputs
     * are row-major, but for pointwise rows and full_like, which are also used
     * to write into strided memory, in place of an input or not. */
    brg_status (*(*kernel)(const brg_op *op))(brg_op_call *call);
    /* (optional) Changes all parameters of a step at once. Absent: optimizers
     * refuse parameters there. */
    brg_status (*update)(brg_device device, const brg_device_update *updates,
                         size_t n);
    /* (optional) Multiplies n gradients, of which dtype, numel and grad are
     * read, by min(1, max_norm / (norm + 1e-6)), norm being the Euclidean one of
     * all together; if it is not finite they stay. Waits only to fill *norm (may
     * be NULL). Absent: gradient by gradient, waiting for each. */
    brg_status (*clip)(brg_device device, const brg_device_update *grads,
                       size_t n, double max_norm, double *norm);
    /* (optional) to[0..2] (on the device) = that norm and that factor, which
     * update takes, then; it does to gradients what clip does. */
    brg_status (*clip_factor)(brg_device device, const brg_device_update *grads,
                              size_t n, double max_norm, double *to);
    /* (optional, all or none) Tensors that go along with gradients. cargo_load
     * writes values, or one set, at row. cargo_unload takes scale times what is
     * there, pieces rounded to integers: from one set the bits, from more (of
     * floats) the average, added in their order in f64 for f64, else in f32.
     * Absent: such tensors are sent one by one. */
    brg_status (*cargo_load)(brg_device device, const brg_device_cargo *cargo,
                             size_t n);
    brg_status (*cargo_unload)(brg_device device, const brg_device_cargo *cargo,
                               size_t n);
    /* (optional) Its own handle of the queue of kernels (a cudaStream_t). */
    brg_status (*stream)(brg_device device, void **out);
    /* (optional) Are the first and the last of `nbytes` bytes memory of this
     * device, as far as can be told? For checks of debug builds. */
    bool (*holds)(brg_device device, const void *ptr, size_t nbytes);

    /* (optional, all or none) Values that the host looks at later. fetch queues
     * a copy of `nbytes`, the same in each call, into host memory that belongs
     * to *fetch (made if it is NULL). fetched: *out is that memory once the
     * copy is there, until then NULL; it does not wait. Absent: waited for. */
    brg_status (*fetch)(brg_device device, void **fetch, const void *src,
                        size_t nbytes);
    brg_status (*fetched)(brg_device device, void *fetch, const void **out);
    void (*fetch_free)(brg_device device, void *fetch);

    /* (optional, all or none) What is queued, recorded once and launched again
     * and again with the same addresses. Absent: nothing is replayed.
     *
     *     record    what the calling thread queues from now on is written down
     *               instead of run; memory that alloc gives meanwhile belongs
     *               to *graph (made if it is NULL, else it records anew and
     *               keeps what is still in use)
     *     recorded  ends that; a failure says what could not be written down
     *               (BRG_ERR_NOMEM: there was no memory for it): all has run
     *               then, and there is nothing to launch
     *     updates   what the i-th call of update was given (*n 0: there was
     *               none); the numbers in f[] may be changed and go with the
     *               next launch
     *     launch    queues it all
     *
     * Memory of others that was freed meanwhile is given back after the first
     * launch, and fetches are made after it. Memory of the graph lives until it
     * is freed, if need be after graph_free. */
    brg_status (*graph_record)(brg_device device, void **graph);
    brg_status (*graph_recorded)(brg_device device, void *graph);
    void (*graph_updates)(brg_device device, void *graph, size_t i,
                          brg_device_update **updates, size_t *n);
    brg_status (*graph_launch)(brg_device device, void *graph);
    void (*graph_free)(brg_device device, void *graph);

    /* (optional, all or none) Kernels that plans generate in CUDA C. Absent:
     * their groups of ops run one by one.
     *
     *     compiler  fails if there is none, saying what is missing
     *     compile   *binary: memory of brg_device_host.alloc, for load; if the
     *               compiler refuses the source, its words are in the record;
     *               BRG_ERR_TIMEOUT after so many seconds. Uses no device
     *     load      *module: a binary on the device
     *     find      *kernel: one of its kernels (extern "C")
     *     launch    queues it; it may be recorded
     *     unload    what is queued still runs */
    brg_status (*kernel_compiler)(brg_device device,
                                  brg_device_compiler *filled);
    brg_status (*kernel_compile)(brg_device device, const char *source,
                                 double seconds, void **binary, size_t *nbytes);
    brg_status (*kernel_load)(brg_device device, const void *binary,
                              size_t nbytes, void **module);
    brg_status (*kernel_find)(brg_device device, void *module, const char *name,
                              void **kernel);
    brg_status (*kernel_launch)(brg_device device,
                                const brg_device_launch *launch);
    void (*kernel_unload)(brg_device device, void *module);

    /* (optional, all or none) For a reducer; nothing waits. Absent: its
     * check_finite and measure_norm are refused.
     *
     *     look          *found (uint64_t, on the device) = the largest of itself
     *                   and the marks of the arrays of floats with an element
     *                   whose bits, without the sign's, are above `limit`
     *     look_tell     to[0..2] (f32, on the device) = {1, rank, the lower half
     *                   of *found, less 1}; zeros if *found is 0
     *     norm_squares  partials[place + k] (f64, on the device) = the sum of
     *                   squares of the k-th BRG_DEVICE_PIECE elements
     *     norm_add      *total (f64, on the device) = the sum of partials[0..n),
     *                   in an order that n alone decides
     *     norm_clip     multiplies floats by min(1, max_norm /
     *                   (sqrt(*total) + 1e-6)), if *total is finite */
    brg_status (*look)(brg_device device, const brg_device_array *arrays,
                       size_t n, uint64_t *found);
    brg_status (*look_tell)(brg_device device, const uint64_t *found, int rank,
                            float *to);
    brg_status (*norm_squares)(brg_device device,
                               const brg_device_array *arrays, size_t n,
                               double *partials);
    brg_status (*norm_add)(brg_device device, const double *partials, size_t n,
                           double *total);
    brg_status (*norm_clip)(brg_device device, const brg_device_array *arrays,
                            size_t n, const double *total, double max_norm);

    /* (optional) One pass over the gradients of a bucket; waits for nothing and
     * may be recorded. Absent: hooks that compress are refused there. */
    brg_status (*compress)(brg_device device, const brg_compress_job *job);
    /* (optional) Random numbers; waits for nothing. What is being recorded is given
     * up: the next launch needs others. Absent: drawn on the CPU and copied. */
    brg_status (*draw)(brg_device device, const brg_draw *draw);
    /* (optional) Waits for nothing. Absent: there are no sparse tensors there. */
    brg_status (*sparse)(brg_device device, const brg_sparse_job *job);
    /* (optional) Queues the writing of its clock, in ns, to `to` there. */
    brg_status (*clock)(brg_device device, uint64_t *to);
    /* (optional) What it has done so far. */
    brg_status (*counts)(brg_device device, brg_device_counts *filled);
} brg_device_vtable;

BRG_API BRG_NODISCARD brg_status
brg_device_register(brg_device_type type, const brg_device_vtable *vtable);

/* The type of the function that a component exports as brg_device_<name>: its
 * type and table; fails if there is no usable device. `host` stays valid. */
typedef brg_status (*brg_device_fn)(const brg_device_host *host,
                                    brg_device_type *type,
                                    const brg_device_vtable **out);

BRG_END_DECLS

#endif
