/* SPDX-License-Identifier: Apache-2.0
 * Matrix products through cuBLASLt: see gemm.h.
 *
 * The library counts columns first, so that c^T = b^T a^T is what it is asked
 * for. What it takes to describe a product, and the algorithm that was chosen,
 * are kept per problem, so that a repeated product costs one call. The choice is
 * the first of the library's heuristic or, where results need not repeat from
 * run to run, the quickest of its list, timed when the problem is met first. */
#include "core/cuda/gemm.h"

#include <cublasLt.h>
#include <string.h>

#define WORKSPACE ((size_t)32 << 20)
#define N_BUCKETS 256
#define MOST_TRIED 16
#define N_TIMED 4

/* What tells problems apart: plain memory, compared as bytes. */
typedef struct key {
    int64_t m, n, k, n_batch;
    int64_t ld[3], step[3];
    int32_t dtype, c_dtype, is_t[2], has_bias, alignment;
    int32_t has_add, epilogue;
} key;

typedef struct plan {
    struct plan *next;
    key k;
    cublasLtMatmulDesc_t desc;
    cublasLtMatrixLayout_t layout[3]; /* b, a, c in the order of this file */
    cublasLtMatmulAlgo_t algo;
    bool is_tuned, is_usable;
} plan;

/* ---- Names of errors ------------------------------------------------------------- */

static brg_status check(cublasStatus_t status, const char *what)
{
    if (status == CUBLAS_STATUS_SUCCESS)
        return BRG_OK;
    brg_status code =
        status == CUBLAS_STATUS_ALLOC_FAILED ? BRG_ERR_NOMEM : BRG_ERR_DEVICE;
    return BRG__CU_FAIL(code, "cuBLASLt: %s: %s", what,
                        cublasLtGetStatusString(status));
}

static brg_status begin(brg__cu *cu)
{
    if (cu->blas)
        return BRG_OK;
    cublasLtHandle_t handle;
    BRG__CU_TRY(check(cublasLtCreate(&handle), "a handle"));
    brg_status status =
        brg__cu_alloc(brg__cu_device(cu), &cu->blas_workspace, WORKSPACE);
    if (status == BRG_OK && !cu->blas_plans &&
        !(cu->blas_plans = brg__cu_host->alloc(N_BUCKETS * sizeof(plan *),
                                               "plans of products")))
        status = BRG_ERR_NOMEM;
    if (status != BRG_OK) {
        (void)cublasLtDestroy(handle);
        return status;
    }
    cu->blas = handle;
    return BRG_OK;
}

/* ---- Problems ---------------------------------------------------------------------- */

/* How the library can read a matrix: as rows of adjacent elements, which seen
 * columns first is already the transpose, or as columns, to be flipped. */
static bool read_as(const brg__cu_mat *m, int64_t rows, int64_t cols,
                    int32_t *is_t, int64_t *ld)
{
    *is_t = 0;
    *ld = rows == 1 ? cols : m->row;
    if ((m->col == 1 || cols == 1) && *ld >= cols)
        return true;
    *is_t = 1;
    *ld = cols == 1 ? rows : m->col;
    return (m->row == 1 || rows == 1) && *ld >= rows;
}

bool brg__cu_mat_is_usable(const brg__cu_mat *m, int64_t rows, int64_t cols)
{
    int32_t is_t;
    int64_t ld;
    return read_as(m, rows, cols, &is_t, &ld);
}

/* The largest power of two up to 256 that divides the address. */
static int32_t alignment_of(const void *p)
{
    uintptr_t at = (uintptr_t)p | 256u;
    return (int32_t)(at & (~at + 1));
}

static int32_t least(int32_t a, int32_t b)
{
    return a < b ? a : b;
}

static key key_of(const brg__cu_gemm *g)
{
    key k;
    memset(&k, 0, sizeof k);
    k.m = g->m;
    k.n = g->n;
    k.k = g->k;
    k.n_batch = g->n_batch;
    k.dtype = g->dtype;
    k.has_bias = g->bias != NULL;
    (void)read_as(&g->b, g->k, g->n, &k.is_t[0], &k.ld[0]);
    (void)read_as(&g->a, g->m, g->k, &k.is_t[1], &k.ld[1]);
    k.step[0] = g->n_batch > 1 ? g->b.batch : 0;
    k.step[1] = g->n_batch > 1 ? g->a.batch : 0;
    k.ld[2] = g->ldc ? g->ldc : g->n;
    k.step[2] = g->c_batch ? g->c_batch : g->m * g->n;
    k.c_dtype =
        g->c_is_wide && g->dtype != BRG_DTYPE_F64 ? BRG_DTYPE_F32 : g->dtype;
    k.alignment = least(alignment_of(g->c),
                        least(alignment_of(g->a.at), alignment_of(g->b.at)));
    k.has_add = g->add != NULL;
    k.epilogue = (int32_t)g->epilogue;
    const void *others[] = {g->bias, g->add, g->aux};
    for (int i = 0; i < 3; i++)
        if (others[i])
            k.alignment = least(k.alignment, alignment_of(others[i]));
    return k;
}

static size_t bucket_of(const key *k)
{
    const unsigned char *p = (const void *)k;
    uint64_t hash = 1469598103934665603u;
    for (size_t i = 0; i < sizeof *k; i++)
        hash = (hash ^ p[i]) * 1099511628211u;
    return (size_t)(hash % N_BUCKETS);
}

/* ---- Plans ------------------------------------------------------------------------- */

static cudaDataType_t type_of(int dtype)
{
    static const cudaDataType_t types[] = {CUDA_R_64F, CUDA_R_32F, CUDA_R_16F,
                                           CUDA_R_16BF};
    return types[dtype];
}

/* Operand i: 0 b, 1 a, 2 c. */
static brg_status set_layout(cublasLtMatrixLayout_t *out, const key *k, int i,
                             int64_t rows, int64_t cols)
{
    const int64_t ld = k->ld[i], step = k->step[i];
    const int dtype = i == 2 ? k->c_dtype : k->dtype;
    BRG__CU_TRY(
        check(cublasLtMatrixLayoutCreate(out, type_of(dtype), (uint64_t)rows,
                                         (uint64_t)cols, ld),
              "a layout"));
    if (k->n_batch == 1)
        return BRG_OK;
    int32_t n = (int32_t)k->n_batch;
    BRG__CU_TRY(
        check(cublasLtMatrixLayoutSetAttribute(
                  *out, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &n, sizeof n),
              "a layout"));
    return check(cublasLtMatrixLayoutSetAttribute(
                     *out, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &step,
                     sizeof step),
                 "a layout");
}

static brg_status set_flag(plan *p, cublasLtMatmulDescAttributes_t what,
                           int32_t value)
{
    return check(
        cublasLtMatmulDescSetAttribute(p->desc, what, &value, sizeof value),
        "a product");
}

static brg_status set_epilogue(plan *p)
{
    static const cublasLtEpilogue_t epilogues[][2] = {
        [BRG__CU_PLAIN] = {CUBLASLT_EPILOGUE_DEFAULT, CUBLASLT_EPILOGUE_BIAS},
        [BRG__CU_GELU] = {CUBLASLT_EPILOGUE_GELU_AUX,
                          CUBLASLT_EPILOGUE_GELU_AUX_BIAS},
        [BRG__CU_GELU_GRAD] = {CUBLASLT_EPILOGUE_DGELU,
                               CUBLASLT_EPILOGUE_DGELU}};
    const int64_t ld = p->k.n;
    BRG__CU_TRY(set_flag(p, CUBLASLT_MATMUL_DESC_EPILOGUE,
                         (int32_t)epilogues[p->k.epilogue][p->k.has_bias]));
    if (p->k.epilogue == BRG__CU_PLAIN)
        return BRG_OK;
    return check(
        cublasLtMatmulDescSetAttribute(
            p->desc, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, &ld, sizeof ld),
        "a product");
}

static brg_status describe(plan *p)
{
    const key *k = &p->k;
    bool is_f64 = k->dtype == BRG_DTYPE_F64;
    BRG__CU_TRY(
        check(cublasLtMatmulDescCreate(
                  &p->desc, is_f64 ? CUBLAS_COMPUTE_64F : CUBLAS_COMPUTE_32F,
                  is_f64 ? CUDA_R_64F : CUDA_R_32F),
              "a product"));
    BRG__CU_TRY(set_flag(p, CUBLASLT_MATMUL_DESC_TRANSA,
                         k->is_t[0] ? CUBLAS_OP_T : CUBLAS_OP_N));
    BRG__CU_TRY(set_flag(p, CUBLASLT_MATMUL_DESC_TRANSB,
                         k->is_t[1] ? CUBLAS_OP_T : CUBLAS_OP_N));
    BRG__CU_TRY(set_epilogue(p));
    BRG__CU_TRY(set_layout(&p->layout[0], k, 0, k->is_t[0] ? k->k : k->n,
                           k->is_t[0] ? k->n : k->k));
    BRG__CU_TRY(set_layout(&p->layout[1], k, 1, k->is_t[1] ? k->m : k->k,
                           k->is_t[1] ? k->k : k->m));
    return set_layout(&p->layout[2], k, 2, k->n, k->m);
}

/* The library's list, best guess first; how many. */
static brg_status ask(brg__cu *cu, const plan *p,
                      cublasLtMatmulHeuristicResult_t *results, int most,
                      int *n)
{
    static const cublasLtMatmulPreferenceAttributes_t alignments[] = {
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES};
    cublasLtMatmulPreference_t preference;
    size_t workspace = WORKSPACE;
    uint32_t alignment = (uint32_t)p->k.alignment;
    *n = 0;
    BRG__CU_TRY(
        check(cublasLtMatmulPreferenceCreate(&preference), "a preference"));
    (void)cublasLtMatmulPreferenceSetAttribute(
        preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace,
        sizeof workspace);
    for (int i = 0; i < 4; i++)
        (void)cublasLtMatmulPreferenceSetAttribute(
            preference, alignments[i], &alignment, sizeof alignment);
    cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(
        cu->blas, p->desc, p->layout[0], p->layout[1], p->layout[2],
        p->layout[2], preference, most, results, n);
    (void)cublasLtMatmulPreferenceDestroy(preference);
    if (status != CUBLAS_STATUS_SUCCESS)
        *n = 0;
    return BRG_OK;
}

/* ---- Running ------------------------------------------------------------------------ */

static brg_status
set_pointer(const plan *p, cublasLtMatmulDescAttributes_t what, const void *at)
{
    if (!at)
        return BRG_OK;
    return check(cublasLtMatmulDescSetAttribute(p->desc, what, &at, sizeof at),
                 "a product");
}

/* The pointers are part of the description. */
static brg_status set_pointers(const plan *p, const brg__cu_gemm *g)
{
    BRG__CU_TRY(set_pointer(p, CUBLASLT_MATMUL_DESC_BIAS_POINTER, g->bias));
    return set_pointer(p, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, g->aux);
}

static cublasStatus_t multiply(brg__cu *cu, const plan *p,
                               const cublasLtMatmulAlgo_t *algo,
                               const brg__cu_gemm *g)
{
    static const float one_f32 = 1.0f, zero_f32 = 0.0f;
    static const double one_f64 = 1.0, zero_f64 = 0.0;
    const bool is_f64 = g->dtype == BRG_DTYPE_F64;
    const void *one = is_f64 ? (const void *)&one_f64 : &one_f32;
    const void *zero = is_f64 ? (const void *)&zero_f64 : &zero_f32;
    return cublasLtMatmul(
        cu->blas, p->desc, one, g->b.at, p->layout[0], g->a.at, p->layout[1],
        g->add ? one : zero, g->add ? g->add : g->c, p->layout[2], g->c,
        p->layout[2], algo, cu->blas_workspace, WORKSPACE, cu->stream);
}

/* ---- Choosing ------------------------------------------------------------------------ */

/* ms of a product; more than any if it does not run. */
static float time_of(brg__cu *cu, const plan *p,
                     const cublasLtMatmulAlgo_t *algo, const brg__cu_gemm *g,
                     cudaEvent_t events[2])
{
    const float never = 1e30f;
    float best = never;
    if (multiply(cu, p, algo, g) != CUBLAS_STATUS_SUCCESS)
        return never;
    for (int i = 0; i < N_TIMED; i++) {
        float ms;
        if (cudaEventRecord(events[0], cu->stream) != cudaSuccess ||
            multiply(cu, p, algo, g) != CUBLAS_STATUS_SUCCESS ||
            cudaEventRecord(events[1], cu->stream) != cudaSuccess ||
            cudaEventSynchronize(events[1]) != cudaSuccess ||
            cudaEventElapsedTime(&ms, events[0], events[1]) != cudaSuccess)
            return never;
        best = ms < best ? ms : best;
    }
    return best;
}

/* Which of the list is the quickest on these operands. The host waits. */
static int quickest(brg__cu *cu, const plan *p,
                    const cublasLtMatmulHeuristicResult_t *results, int n,
                    const brg__cu_gemm *g)
{
    cudaEvent_t events[2] = {NULL, NULL};
    int best = 0;
    if (cudaEventCreate(&events[0]) == cudaSuccess &&
        cudaEventCreate(&events[1]) == cudaSuccess) {
        float least = time_of(cu, p, &results[0].algo, g, events);
        for (int i = 1; i < n; i++) {
            const float ms = time_of(cu, p, &results[i].algo, g, events);
            best = ms < least ? i : best;
            least = ms < least ? ms : least;
        }
    }
    for (int i = 0; i < 2; i++)
        if (events[i])
            (void)cudaEventDestroy(events[i]);
    (void)cudaGetLastError(); /* an algorithm that did not run is left out */
    return best;
}

/* Timing waits, so a problem that is met first while a graph is recorded has
 * the heuristic's choice until it is met again. */
static brg_status choose(brg__cu *cu, plan *p, const brg__cu_gemm *g)
{
    cublasLtMatmulHeuristicResult_t results[MOST_TRIED];
    const bool may_wait = !brg__cu_recording(cu);
    const int most = may_wait && !brg__cu_repeats() ? MOST_TRIED : 1;
    int n;
    BRG__CU_TRY(ask(cu, p, results, most, &n));
    p->is_usable = n > 0;
    p->is_tuned = may_wait;
    if (n == 0)
        return BRG_OK;
    int best = 0;
    if (n > 1) {
        BRG__CU_TRY(brg__cu_begin_wait(cu));
        BRG__CU_TRY(set_pointers(p, g));
        best = quickest(cu, p, results, n, g);
    }
    p->algo = results[best].algo;
    return BRG_OK;
}

static void plan_free(plan *p)
{
    for (int i = 0; i < 3; i++)
        if (p->layout[i])
            (void)cublasLtMatrixLayoutDestroy(p->layout[i]);
    if (p->desc)
        (void)cublasLtMatmulDescDestroy(p->desc);
    brg__cu_host->free(p);
}

/* Under the lock. */
static brg_status find_plan(brg__cu *cu, const brg__cu_gemm *g, plan **out)
{
    const key k = key_of(g);
    plan **bucket = (plan **)cu->blas_plans + bucket_of(&k);
    for (*out = *bucket; *out; *out = (*out)->next)
        if (memcmp(&(*out)->k, &k, sizeof k) == 0)
            return (*out)->is_tuned || brg__cu_recording(cu)
                       ? BRG_OK
                       : choose(cu, *out, g);
    plan *p = brg__cu_host->alloc(sizeof *p, "a plan of a product");
    if (!p)
        return BRG_ERR_NOMEM;
    p->k = k;
    brg_status status = describe(p);
    if (status == BRG_OK)
        status = choose(cu, p, g);
    if (status != BRG_OK) {
        plan_free(p);
        return status;
    }
    p->next = *bucket;
    *bucket = p;
    *out = p;
    return BRG_OK;
}

/* Under the lock: what changes from call to call is part of the plan's
 * description, and the workspace is used by one product after another. */
static brg_status run_locked(brg__cu *cu, const brg__cu_gemm *g, bool *is_done)
{
    plan *p;
    BRG__CU_TRY(begin(cu));
    BRG__CU_TRY(find_plan(cu, g, &p));
    if (!p->is_usable)
        return BRG_OK;
    BRG__CU_TRY(set_pointers(p, g));
    *is_done = true;
    return check(multiply(cu, p, &p->algo, g), "a product");
}

brg_status brg__cu_gemm_try(brg__cu *cu, const brg__cu_gemm *g, bool *is_done)
{
    *is_done = false;
    pthread_mutex_lock(&cu->lock);
    brg_status status = run_locked(cu, g, is_done);
    pthread_mutex_unlock(&cu->lock);
    return status;
}

brg_status brg__cu_gemm_run(brg__cu *cu, const brg__cu_gemm *g)
{
    bool is_done;
    BRG__CU_TRY(brg__cu_gemm_try(cu, g, &is_done));
    if (is_done)
        return BRG_OK;
    return BRG__CU_FAIL(
        BRG_ERR_UNSUPPORTED,
        "cuBLASLt has no algorithm for a product of (%lld,%lld) and "
        "(%lld,%lld), dtype %d%s",
        (long long)g->m, (long long)g->k, (long long)g->k, (long long)g->n,
        g->dtype, g->bias ? ", with a bias" : "");
}
