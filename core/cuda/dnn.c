/* SPDX-License-Identifier: Apache-2.0
 * Convolution through cuDNN: see dnn.h. Only algorithms whose results repeat
 * are taken, and f32 stays f32 (no TF32). Descriptors and the chosen algorithm
 * are kept per problem. */
#include "core/cuda/dnn.h"

#include <cudnn.h>
#include <dlfcn.h>
#include <string.h>

#define N_BUCKETS 64
#define N_KEYS 18

/* X(function): what is taken from libcudnn. */
#define FUNCTIONS(X)                                                           \
    X(cudnnCreate)                                                             \
    X(cudnnSetStream)                                                          \
    X(cudnnGetErrorString)                                                     \
    X(cudnnCreateTensorDescriptor)                                             \
    X(cudnnSetTensor4dDescriptor)                                              \
    X(cudnnDestroyTensorDescriptor)                                            \
    X(cudnnCreateFilterDescriptor)                                             \
    X(cudnnSetFilter4dDescriptor)                                              \
    X(cudnnDestroyFilterDescriptor)                                            \
    X(cudnnCreateConvolutionDescriptor)                                        \
    X(cudnnSetConvolution2dDescriptor)                                         \
    X(cudnnSetConvolutionGroupCount)                                           \
    X(cudnnSetConvolutionMathType)                                             \
    X(cudnnDestroyConvolutionDescriptor)                                       \
    X(cudnnGetConvolutionForwardAlgorithm_v7)                                  \
    X(cudnnGetConvolutionBackwardDataAlgorithm_v7)                             \
    X(cudnnGetConvolutionBackwardFilterAlgorithm_v7)                           \
    X(cudnnConvolutionForward)                                                 \
    X(cudnnConvolutionBackwardData)                                            \
    X(cudnnConvolutionBackwardFilter)                                          \
    X(cudnnAddTensor)

#define DECLARE(name) __typeof__(name) *name##_;
static struct {
    FUNCTIONS(DECLARE)
} dnn;
#undef DECLARE

/* What tells problems apart. */
typedef struct key {
    int64_t at[N_KEYS];
} key;

typedef struct plan {
    struct plan *next;
    key k;
    brg__cu_conv_kind kind;
    bool is_usable;
    cudnnTensorDescriptor_t x, y, bias;
    cudnnFilterDescriptor_t weight;
    cudnnConvolutionDescriptor_t conv;
    int algo;
    size_t workspace;
} plan;

typedef struct state {
    cudnnHandle_t handle;
    plan *plans[N_BUCKETS];
} state;

/* ---- Finding the library -------------------------------------------------------- */

/* Of all GPUs: found once, and loaded for good. */
static void *library;
static bool has_all;
static pthread_once_t once = PTHREAD_ONCE_INIT;

void *brg__cu_dnn_symbol(const char *name)
{
    return library ? dlsym(library, name) : NULL;
}

static void load_functions(void)
{
    library = dlopen("libcudnn.so.9", RTLD_NOW | RTLD_LOCAL);
    if (!library)
        return;
#define LOAD(name)                                                             \
    *(void **)&dnn.name##_ = brg__cu_dnn_symbol(#name);                        \
    if (!dnn.name##_)                                                          \
        return;
    FUNCTIONS(LOAD)
#undef LOAD
    has_all = true;
}

/* Under the lock; tried once per GPU. */
static state *state_of(brg__cu *cu)
{
    if (cu->dnn_is_tried)
        return cu->dnn;
    cu->dnn_is_tried = true;
    cudnnHandle_t handle;
    (void)pthread_once(&once, load_functions);
    if (!has_all || dnn.cudnnCreate_(&handle) != CUDNN_STATUS_SUCCESS ||
        dnn.cudnnSetStream_(handle, cu->stream) != CUDNN_STATUS_SUCCESS) {
        brg__cu_host->log(BRG_LOG_INFO, "cuda",
                          "cuDNN 9 was not found: convolutions and "
                          "attention use plain kernels");
        return NULL;
    }
    state *s = brg__cu_host->alloc(sizeof *s, "plans of convolutions");
    if (s)
        s->handle = handle;
    cu->dnn = s;
    return s;
}

void *brg__cu_dnn_handle(brg__cu *cu)
{
    const state *s = state_of(cu);
    return s ? s->handle : NULL;
}

/* ---- Plans ----------------------------------------------------------------------- */

static cudnnDataType_t type_of(int dtype)
{
    static const cudnnDataType_t types[] = {CUDNN_DATA_DOUBLE, CUDNN_DATA_FLOAT,
                                            CUDNN_DATA_HALF,
                                            CUDNN_DATA_BFLOAT16};
    return types[dtype];
}

static bool set_tensor(cudnnTensorDescriptor_t *t, const brg__cu_conv *v,
                       const int64_t size[4])
{
    return dnn.cudnnCreateTensorDescriptor_(t) == CUDNN_STATUS_SUCCESS &&
           dnn.cudnnSetTensor4dDescriptor_(
               *t, CUDNN_TENSOR_NCHW, type_of(v->dtype), (int)size[0],
               (int)size[1], (int)size[2],
               (int)size[3]) == CUDNN_STATUS_SUCCESS;
}

static bool set_conv(plan *p, const brg__cu_conv *v)
{
    bool is_f64 = v->dtype == BRG_DTYPE_F64, is_f32 = v->dtype == BRG_DTYPE_F32;
    return dnn.cudnnCreateConvolutionDescriptor_(&p->conv) ==
               CUDNN_STATUS_SUCCESS &&
           dnn.cudnnSetConvolution2dDescriptor_(
               p->conv, (int)v->padding[0], (int)v->padding[1],
               (int)v->stride[0], (int)v->stride[1], (int)v->dilation[0],
               (int)v->dilation[1], CUDNN_CROSS_CORRELATION,
               is_f64 ? CUDNN_DATA_DOUBLE : CUDNN_DATA_FLOAT) ==
               CUDNN_STATUS_SUCCESS &&
           dnn.cudnnSetConvolutionGroupCount_(p->conv, (int)v->groups) ==
               CUDNN_STATUS_SUCCESS &&
           dnn.cudnnSetConvolutionMathType_(
               p->conv,
               is_f64 || is_f32 ? CUDNN_FMA_MATH : CUDNN_TENSOR_OP_MATH) ==
               CUDNN_STATUS_SUCCESS;
}

static bool describe(plan *p, const brg__cu_conv *v)
{
    const int64_t x[4] = {v->n, v->c, v->h, v->w};
    const int64_t y[4] = {v->n, v->o, v->oh, v->ow};
    const int64_t bias[4] = {1, v->o, 1, 1};
    return set_tensor(&p->x, v, x) && set_tensor(&p->y, v, y) &&
           set_tensor(&p->bias, v, bias) && set_conv(p, v) &&
           dnn.cudnnCreateFilterDescriptor_(&p->weight) ==
               CUDNN_STATUS_SUCCESS &&
           dnn.cudnnSetFilter4dDescriptor_(p->weight, type_of(v->dtype),
                                           CUDNN_TENSOR_NCHW, (int)v->o,
                                           (int)(v->c / v->groups), (int)v->kh,
                                           (int)v->kw) == CUDNN_STATUS_SUCCESS;
}

/* The first of the heuristic's list that repeats its results. */
#define PICK(results, n)                                                       \
    for (int i = 0; i < (n); i++)                                              \
        if ((results)[i].status == CUDNN_STATUS_SUCCESS &&                     \
            (results)[i].determinism == CUDNN_DETERMINISTIC) {                 \
            p->algo = (int)(results)[i].algo;                                  \
            p->workspace = (results)[i].memory;                                \
            return true;                                                       \
        }

static bool choose(plan *p, cudnnHandle_t handle)
{
    int n = 0;
    if (p->kind == BRG__CU_CONV_FORWARD) {
        cudnnConvolutionFwdAlgoPerf_t found[8];
        if (dnn.cudnnGetConvolutionForwardAlgorithm_v7_(
                handle, p->x, p->weight, p->conv, p->y, 8, &n, found) ==
            CUDNN_STATUS_SUCCESS)
            PICK(found, n)
    } else if (p->kind == BRG__CU_CONV_INPUT) {
        cudnnConvolutionBwdDataAlgoPerf_t found[8];
        if (dnn.cudnnGetConvolutionBackwardDataAlgorithm_v7_(
                handle, p->weight, p->y, p->conv, p->x, 8, &n, found) ==
            CUDNN_STATUS_SUCCESS)
            PICK(found, n)
    } else {
        cudnnConvolutionBwdFilterAlgoPerf_t found[8];
        if (dnn.cudnnGetConvolutionBackwardFilterAlgorithm_v7_(
                handle, p->x, p->y, p->conv, p->weight, 8, &n, found) ==
            CUDNN_STATUS_SUCCESS)
            PICK(found, n)
    }
    return false;
}

static key key_of(brg__cu_conv_kind kind, const brg__cu_conv *v)
{
    return (key){{kind, v->dtype, v->n, v->c, v->h, v->w, v->o, v->kh, v->kw,
                  v->oh, v->ow, v->groups, v->stride[0], v->stride[1],
                  v->padding[0], v->padding[1], v->dilation[0],
                  v->dilation[1]}};
}

/* Kept also when cuDNN declines, so that it is asked once. */
static plan *find_plan(state *s, brg__cu_conv_kind kind, const brg__cu_conv *v)
{
    const key k = key_of(kind, v);
    plan **bucket = &s->plans[brg__cu_dnn_hash(k.at, N_KEYS) % N_BUCKETS];
    for (plan *p = *bucket; p; p = p->next)
        if (memcmp(&p->k, &k, sizeof k) == 0)
            return p;
    plan *p = brg__cu_host->alloc(sizeof *p, "a plan of a convolution");
    if (!p)
        return NULL;
    p->k = k;
    p->kind = kind;
    p->is_usable = describe(p, v) && choose(p, s->handle);
    p->next = *bucket;
    *bucket = p;
    return p;
}

/* ---- Running ------------------------------------------------------------------------ */

static cudnnStatus_t add_bias(cudnnHandle_t handle, const plan *p,
                              const brg__cu_conv *v)
{
    static const float one_f32 = 1.0f;
    static const double one_f64 = 1.0;
    const void *one =
        v->dtype == BRG_DTYPE_F64 ? (const void *)&one_f64 : &one_f32;
    return dnn.cudnnAddTensor_(handle, one, p->bias, v->bias, one, p->y, v->y);
}

static cudnnStatus_t launch(cudnnHandle_t handle, const plan *p,
                            const brg__cu_conv *v, void *workspace)
{
    static const float f32[2] = {1.0f, 0.0f};
    static const double f64[2] = {1.0, 0.0};
    bool is_f64 = v->dtype == BRG_DTYPE_F64;
    const void *one = is_f64 ? (const void *)&f64[0] : &f32[0];
    const void *zero = is_f64 ? (const void *)&f64[1] : &f32[1];
    if (p->kind == BRG__CU_CONV_INPUT)
        return dnn.cudnnConvolutionBackwardData_(
            handle, one, p->weight, v->weight, p->y, v->y, p->conv,
            (cudnnConvolutionBwdDataAlgo_t)p->algo, workspace, p->workspace,
            zero, p->x, v->x);
    if (p->kind == BRG__CU_CONV_WEIGHT)
        return dnn.cudnnConvolutionBackwardFilter_(
            handle, one, p->x, v->x, p->y, v->y, p->conv,
            (cudnnConvolutionBwdFilterAlgo_t)p->algo, workspace, p->workspace,
            zero, p->weight, v->weight);
    cudnnStatus_t status = dnn.cudnnConvolutionForward_(
        handle, one, p->x, v->x, p->weight, v->weight, p->conv,
        (cudnnConvolutionFwdAlgo_t)p->algo, workspace, p->workspace, zero, p->y,
        v->y);
    return status == CUDNN_STATUS_SUCCESS && v->bias ? add_bias(handle, p, v)
                                                     : status;
}

static brg_status run_locked(brg__cu *cu, brg__cu_conv_kind kind,
                             const brg__cu_conv *v, bool *is_done)
{
    state *s = state_of(cu);
    plan *p = s ? find_plan(s, kind, v) : NULL;
    if (!p || !p->is_usable)
        return BRG_OK;
    brg__cu_temps temps = {.cu = cu, .op = "a convolution"};
    void *workspace;
    BRG__CU_TRY(brg__cu_temp(&temps, &workspace, p->workspace));
    cudnnStatus_t status = launch(s->handle, p, v, workspace);
    brg__cu_temps_free(&temps);
    if (status == CUDNN_STATUS_NOT_SUPPORTED) {
        p->is_usable = false;
        return BRG_OK;
    }
    *is_done = status == CUDNN_STATUS_SUCCESS;
    return *is_done ? BRG_OK
                    : BRG__CU_FAIL(BRG_ERR_DEVICE, "cuDNN: a convolution: %s",
                                   dnn.cudnnGetErrorString_(status));
}

brg_status brg__cu_dnn_conv(brg__cu *cu, brg__cu_conv_kind kind,
                            const brg__cu_conv *v, bool *is_done)
{
    *is_done = false;
    pthread_mutex_lock(&cu->lock);
    brg_status status = run_locked(cu, kind, v, is_done);
    pthread_mutex_unlock(&cu->lock);
    return status;
}
