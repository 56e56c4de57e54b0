/* SPDX-License-Identifier: Apache-2.0
 * What the C files of this room share: one context per GPU, errors, and
 * tensors as kernels take them.
 *
 * The room uses no symbol of libbrigade, only its tables and the structs of
 * core/tensor (docs/adr/0005-cuda-component.md). Each GPU has one stream that
 * all kernels, copies and allocations of the process go to, in order. */
#ifndef BRG_CORE_CUDA_CU_H
#define BRG_CORE_CUDA_CU_H

#include <pthread.h>
#include <stdatomic.h>

#include <cuda_runtime_api.h>

#include <brigade/ext/device.h>

#include "core/cuda/kernels.h"
#include "core/tensor/tensor.h"

#define BRG__CU_MAX_DEVICES 16

typedef struct brg__cu_graph brg__cu_graph;

/* Of a GPU: one thread at a time records. */
typedef struct brg__cu_graphs {
    pthread_mutex_t lock; /* of the graphs' memory */
    brg__cu_graph *first; /* all there are */
    _Atomic int n;
    _Atomic(brg__cu_graph *) recording; /* what is queued goes there */
} brg__cu_graphs;
/* Pinned memory that a copy to the GPU goes through. */
#define BRG__CU_N_SLOTS 8
typedef struct brg__cu_slot {
    void *at;
    cudaEvent_t event; /* when the copy is over */
} brg__cu_slot;

typedef struct brg__cu {
    int index;
    bool is_ready;
    brg__cu_queue queue; /* what launchers take */
    cudaStream_t stream;
    brg__cu_fault *fault; /* as the host sees it */
    pthread_mutex_t lock; /* of what follows */
    void *blas;           /* cublasLtHandle_t, or NULL before its first use */
    void *blas_workspace;
    void *blas_plans; /* chosen algorithms (gemm.c) */
    void *dnn;        /* of dnn.c, or NULL */
    void *sdpa_plans; /* of sdpa.c, or NULL */
    bool dnn_is_tried;
    brg__cu_graphs graphs; /* graph.c */
    _Atomic uint64_t n_waits, n_allocs, n_launches;
    brg__cu_slot slots[BRG__CU_N_SLOTS];
    int next_slot;
} brg__cu;

/* The library's side, set when the component is loaded. */
extern const brg_device_host *brg__cu_host;

#define BRG__CU_FAIL(code, ...)                                                \
    brg__cu_host->fail((code), __FILE__, __LINE__, __VA_ARGS__)

#define BRG__CU_TRY(expr)                                                      \
    do {                                                                       \
        brg_status cu_try_ = (expr);                                           \
        if (cu_try_ != BRG_OK)                                                 \
            return cu_try_;                                                    \
    } while (0)

/* An error of the CUDA runtime, named; BRG_OK for cudaSuccess. */
brg_status brg__cu_check(int error, const char *what);

/* The GPU's context, made at the first use; current in the calling thread. */
brg_status brg__cu_enter(brg_device device, brg__cu **out);

/* False if the user does without results that repeat bit for bit from run to
 * run, for speed (context.c). */
bool brg__cu_repeats(void);

/* ---- Memory (memory.c) ------------------------------------------------------- */

brg_status brg__cu_alloc(brg_device device, void **out, size_t nbytes);
void brg__cu_free(brg_device device, void *ptr, size_t nbytes);

/* What nothing uses goes from the pool to the driver. */
void brg__cu_pool_trim(const brg__cu *cu);

/* The slots of the table (memory.c). */
brg_status brg__cu_fetch(brg_device device, void **fetch, const void *src,
                         size_t nbytes);
brg_status brg__cu_fetched(brg_device device, void *fetch, const void **out);
void brg__cu_fetch_free(brg_device device, void *fetch);

/* ---- Generated kernels (run_kernels.c) ------------------------------------------ */

brg_status brg__cu_kernel_compiler(brg_device device,
                                   brg_device_compiler *filled);
brg_status brg__cu_kernel_compile(brg_device device, const char *source,
                                  double seconds, void **binary,
                                  size_t *nbytes);
brg_status brg__cu_kernel_load(brg_device device, const void *binary,
                               size_t nbytes, void **module);
brg_status brg__cu_kernel_find(brg_device device, void *module,
                               const char *name, void **kernel);
brg_status brg__cu_kernel_launch(brg_device device,
                                 const brg_device_launch *launch);
void brg__cu_kernel_unload(brg_device device, void *module);

/* ---- Graphs (graph.c) ---------------------------------------------------------- */

brg_status brg__cu_graph_record(brg_device device, void **graph);
brg_status brg__cu_graph_recorded(brg_device device, void *graph);
void brg__cu_graph_updates(brg_device device, void *graph, size_t i,
                           brg_device_update **updates, size_t *n);
brg_status brg__cu_graph_launch(brg_device device, void *graph);
void brg__cu_graph_free(brg_device device, void *graph);

static inline brg__cu_graph *brg__cu_recording(brg__cu *cu)
{
    return atomic_load_explicit(&cu->graphs.recording, memory_order_relaxed);
}

/* Memory of the graph that is being recorded; *out NULL: the driver has no more,
 * and nothing is recorded now. */
brg_status brg__cu_graph_alloc(brg__cu *cu, void **out, size_t nbytes);
/* Takes the memory back if a graph holds it or is being recorded; else false. */
bool brg__cu_graph_take_back(brg__cu *cu, void *ptr);
/* A fetch to be made after the launch. */
brg_status brg__cu_graph_fetch(brg__cu *cu, void *fetch, const void *src,
                               size_t nbytes);
/* That fetch waits for the launch. */
bool brg__cu_graph_is_later(const brg__cu_graph *g, const void *fetch);
/* Records an optimizer's step. */
brg_status brg__cu_graph_update(brg__cu *cu, const brg_device_update *updates,
                                size_t n);
/* What the host is about to do cannot be recorded: all so far runs, and the
 * rest as without a graph. BRG_OK where nothing is being recorded. */
brg_status brg__cu_graph_give_up(brg__cu *cu, const char *why);
/* Taken from the driver for graphs. */
size_t brg__cu_graph_bytes(brg__cu *cu);
/* Before any wait of the host: counts it. */
brg_status brg__cu_begin_wait(brg__cu *cu);

/* Pieces of memory of one call, freed together when what was queued is done.
 * Zero-initialised; brg__cu_temps_free takes any state. */
#define BRG__CU_MAX_TEMPS 8
typedef struct brg__cu_temps {
    brg__cu *cu;
    const char *op; /* of that, for errors */
    int n;
    void *at[BRG__CU_MAX_TEMPS];
} brg__cu_temps;

brg_status brg__cu_temp(brg__cu_temps *temps, void **out, size_t nbytes);
void brg__cu_temps_free(brg__cu_temps *temps);
/* On the device of the call's output. */
brg_status brg__cu_temps_begin(brg__cu_temps *temps, const brg_op_call *call);
/* Frees them; returns status. */
brg_status brg__cu_temps_end(brg__cu_temps *temps, brg_status status);

/* ---- Tensors ------------------------------------------------------------------- */

/* out = row(in...) of a pointwise row (run_pointwise.c). */
brg_status brg__cu_apply(brg__cu *cu, int row, const brg_tensor *const *in,
                         const brg_tensor *out, const double *p);

/* Zeros in all of t, whose memory has no gaps. */
brg_status brg__cu_zero(brg__cu *cu, const brg_tensor *t);

/* The elements of t in a row: its own memory, or a copy among the temps.
 * NULL tensors give NULL. */
brg_status brg__cu_rows_of(brg__cu_temps *temps, const brg_tensor *t,
                           const void **out);
/* The same, as elements of that dtype. */
brg_status brg__cu_rows_as(brg__cu_temps *temps, const brg_tensor *t,
                           brg_dtype dtype, const void **out);

static inline brg_device brg__cu_device(const brg__cu *cu)
{
    return (brg_device){BRG_DEVICE_CUDA, (int16_t)cu->index};
}

/* Copies from pageable memory, which is read before the call returns; 8 MiB at a
 * time without a wait for the queue (staging.c). */
brg_status brg__cu_stage(brg__cu *cu, void *dst, const void *src,
                         size_t nbytes);
/* Waits for the queue and for nbytes of the GPU's memory (context.c). */
brg_status brg__cu_read(brg__cu *cu, void *host, const void *src,
                        size_t nbytes);

/* Slots of the table (run_clip.c). */
brg_status brg__cu_run_clip(brg_device device, const brg_device_update *grads,
                            size_t n, double max_norm, double *norm);
brg_status brg__cu_run_clip_factor(brg_device device,
                                   const brg_device_update *grads, size_t n,
                                   double max_norm, double *to);

/* The slot of the table (run_sparse.c). */
brg_status brg__cu_run_sparse(brg_device device, const brg_sparse_job *job);

/* Slots of the table (run_cargo.c). */
brg_status brg__cu_run_cargo_load(brg_device device,
                                  const brg_device_cargo *cargo, size_t n);
brg_status brg__cu_run_cargo_unload(brg_device device,
                                    const brg_device_cargo *cargo, size_t n);

/* Others (run_look.c). */
brg_status brg__cu_run_look(brg_device device, const brg_device_array *arrays,
                            size_t n, uint64_t *found);
brg_status brg__cu_run_look_tell(brg_device device, const uint64_t *found,
                                 int rank, float *to);
brg_status brg__cu_run_norm_squares(brg_device device,
                                    const brg_device_array *arrays, size_t n,
                                    double *partials);
brg_status brg__cu_run_norm_add(brg_device device, const double *partials,
                                size_t n, double *total);
brg_status brg__cu_run_clock(brg_device device, uint64_t *to);
brg_status brg__cu_run_norm_clip(brg_device device,
                                 const brg_device_array *arrays, size_t n,
                                 const double *total, double max_norm);

/* ---- Kernels of rows, by file ----------------------------------------------------- */

typedef brg_status (*brg__cu_run_fn)(brg_op_call *call);

#define X(name) brg_status brg__cu_run_##name(brg_op_call *call);
#include "core/cuda/kernels.def"
#undef X

brg_status brg__cu_run_pointwise(brg_op_call *call);

/* The kernel of a row by its name and flags (table.c). */
brg__cu_run_fn brg__cu_kernel(const brg_op *op);

#endif
