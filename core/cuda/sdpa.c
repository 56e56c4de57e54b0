/* SPDX-License-Identifier: Apache-2.0
 * Attention through cuDNN's graphs: see dnn.h. Plans are kept per problem. */
#include "core/cuda/sdpa.h"

#include <math.h>
#include <string.h>

#define N_BUCKETS 64
#define MAX_HEAD 128
#define LEAST_ROWS 64
#define N_KEYS 36

#define dnn brg__sdpa_dnn

/* What tells problems apart. */
typedef struct key {
    int64_t at[N_KEYS];
} key;

typedef struct plan {
    struct plan *next;
    key k;
    bool is_usable;
    brg__sdpa_graph graph;
} plan;

/* ---- Plans ---------------------------------------------------------------------------- */

static void add_heads(key *k, int *n, const brg__cu_heads *h)
{
    k->at[(*n)++] = h->batch;
    k->at[(*n)++] = h->head;
    k->at[(*n)++] = h->row;
}

static key key_of(const brg__cu_attention *a, bool is_backward)
{
    key k = {{a->dtype, a->is_causal, is_backward, a->n_batch, a->n_heads, a->t,
              a->s, a->d, a->d_out}};
    int n = 9;
    add_heads(&k, &n, &a->q);
    add_heads(&k, &n, &a->k);
    add_heads(&k, &n, &a->v);
    add_heads(&k, &n, &a->out);
    if (is_backward) {
        add_heads(&k, &n, &a->g);
        add_heads(&k, &n, &a->gq);
        add_heads(&k, &n, &a->gk);
        add_heads(&k, &n, &a->gv);
    }
    return k;
}

/* From 9.6 on it clears the memory of the sum itself. */
static bool may_add_up(bool is_backward)
{
    return is_backward && !brg__cu_repeats() && dnn.cudnnGetVersion_() >= 90600;
}

/* Kept also when cuDNN declines, so that it is asked once. */
static plan *find_plan(brg__cu *cu, cudnnHandle_t handle,
                       const brg__cu_attention *a, bool is_backward)
{
    const key k = key_of(a, is_backward);
    plan **bucket =
        (plan **)cu->sdpa_plans + brg__cu_dnn_hash(k.at, N_KEYS) % N_BUCKETS;
    for (plan *p = *bucket; p; p = p->next)
        if (memcmp(&p->k, &k, sizeof k) == 0)
            return p;
    plan *p = brg__cu_host->alloc(sizeof *p, "a plan of attention");
    if (!p)
        return NULL;
    p->k = k;
    p->graph.adds_up = may_add_up(is_backward);
    p->is_usable = brg__sdpa_describe(&p->graph, handle, a, is_backward);
    if (!p->is_usable && p->graph.adds_up) {
        brg__sdpa_forget(&p->graph);
        p->graph.adds_up = false;
        p->is_usable = brg__sdpa_describe(&p->graph, handle, a, is_backward);
    }
    p->next = *bucket;
    *bucket = p;
    if (p->is_usable)
        return p;
    brg__sdpa_forget(&p->graph);
    brg__cu_host->log(BRG_LOG_INFO, "cuda",
                      "cuDNN declines attention%s of %lld heads of %lld, %lld "
                      "queries, %lld keys: plain products are used",
                      is_backward ? " (gradient)" : "", (long long)a->n_heads,
                      (long long)a->d, (long long)a->t, (long long)a->s);
    return p;
}

/* ---- Running --------------------------------------------------------------------------- */

typedef struct pack {
    int64_t n;
    int64_t uids[BRG__UID_OTHERS];
    void *at[BRG__UID_OTHERS];
    float scale, one, lowest; /* read when the plan is run */
} pack;

static void add(pack *p, int64_t uid, void *at)
{
    p->uids[p->n] = uid;
    p->at[p->n++] = at;
}

static void fill_pack(pack *p, const brg__cu_attention *a, bool is_backward)
{
    *p = (pack){.scale = (float)a->scale, .one = 1.0f, .lowest = -INFINITY};
    if (dnn.cudnnGetVersion_() < 91000)
        p->lowest = -3.4028234663852886e38f;
    add(p, BRG__UID_Q, a->q.at);
    add(p, BRG__UID_K, a->k.at);
    add(p, BRG__UID_V, a->v.at);
    add(p, BRG__UID_OUT, a->out.at);
    add(p, BRG__UID_STATS, a->lse);
    add(p, BRG__UID_SCALE, &p->scale);
    if (a->is_causal)
        add(p, BRG__UID_LOWEST, &p->lowest);
    if (!is_backward)
        return;
    add(p, BRG__UID_G, a->g.at);
    add(p, BRG__UID_GQ, a->gq.at);
    add(p, BRG__UID_GK, a->gk.at);
    add(p, BRG__UID_GV, a->gv.at);
    add(p, BRG__UID_DELTA, a->delta);
    add(p, BRG__UID_ONE, &p->one);
}

static cudnnStatus_t execute(cudnnHandle_t handle, const plan *p, pack *values,
                             void *workspace)
{
    cudnnBackendDescriptor_t d = NULL;
    cudnnStatus_t status = dnn.cudnnBackendCreateDescriptor_(
        CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR, &d);
    if (status == CUDNN_STATUS_SUCCESS)
        status = dnn.cudnnBackendSetAttribute_(
            d, CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, CUDNN_TYPE_VOID_PTR,
            values->n, values->at);
    if (status == CUDNN_STATUS_SUCCESS)
        status = dnn.cudnnBackendSetAttribute_(
            d, CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, CUDNN_TYPE_INT64, values->n,
            values->uids);
    if (status == CUDNN_STATUS_SUCCESS)
        status = dnn.cudnnBackendSetAttribute_(
            d, CUDNN_ATTR_VARIANT_PACK_WORKSPACE, CUDNN_TYPE_VOID_PTR, 1,
            (const void *)&workspace);
    if (status == CUDNN_STATUS_SUCCESS)
        status = dnn.cudnnBackendFinalize_(d);
    if (status == CUDNN_STATUS_SUCCESS)
        status = dnn.cudnnBackendExecute_(handle, p->graph.run, d);
    if (d)
        (void)dnn.cudnnBackendDestroyDescriptor_(d);
    return status;
}

static bool is_aligned(const brg__cu_heads *h)
{
    return h->col == 1 && (uintptr_t)h->at % 16 == 0 && h->batch % 8 == 0 &&
           h->head % 8 == 0 && h->row % 8 == 0;
}

/* What the fused kernels take; before 9.16 they were wrong for some numbers of
 * keys that 128 does not divide. */
static bool fits(const brg__cu_attention *a, bool is_backward)
{
    bool good = (a->dtype == BRG_DTYPE_BF16 || a->dtype == BRG_DTYPE_F16) &&
                a->d % 8 == 0 && a->d <= MAX_HEAD && a->d_out % 8 == 0 &&
                a->d_out <= MAX_HEAD && a->t >= LEAST_ROWS &&
                a->s >= LEAST_ROWS && is_aligned(&a->q) && is_aligned(&a->k) &&
                is_aligned(&a->v) && is_aligned(&a->out);
    if (is_backward)
        good = good && is_aligned(&a->g) && is_aligned(&a->gq) &&
               is_aligned(&a->gk) && is_aligned(&a->gv);
    return good;
}

static bool is_whole(const brg__cu_attention *a)
{
    return (a->t % 128 == 0 && a->s % 128 == 0) ||
           dnn.cudnnGetVersion_() >= 91600;
}

static brg_status run_locked(brg__cu *cu, const brg__cu_attention *a,
                             bool is_backward, bool *is_done)
{
    cudnnHandle_t handle = brg__cu_dnn_handle(cu);
    if (!handle || !brg__sdpa_load() || !is_whole(a))
        return BRG_OK;
    if (!cu->sdpa_plans &&
        !(cu->sdpa_plans = brg__cu_host->alloc(N_BUCKETS * sizeof(plan *),
                                               "plans of attention")))
        return BRG_ERR_NOMEM;
    plan *p = find_plan(cu, handle, a, is_backward);
    if (!p || !p->is_usable)
        return p ? BRG_OK : BRG_ERR_NOMEM;
    brg__cu_temps temps = {.cu = cu, .op = "attention"};
    void *workspace;
    pack values;
    void *sum = NULL;
    BRG__CU_TRY(brg__cu_temp(&temps, &workspace, (size_t)p->graph.workspace));
    fill_pack(&values, a, is_backward);
    if (p->graph.adds_up) {
        const int64_t n = a->n_batch * a->n_heads * a->t * a->d;
        brg_status made = brg__cu_temp(&temps, &sum, (size_t)n * 4);
        if (made != BRG_OK) {
            brg__cu_temps_free(&temps);
            return made;
        }
        add(&values, BRG__UID_GQ_SUM, sum);
    }
    cudnnStatus_t status = execute(handle, p, &values, workspace);
    brg__cu_temps_free(&temps);
    if (status == CUDNN_STATUS_NOT_SUPPORTED) {
        p->is_usable = false;
        return BRG_OK;
    }
    *is_done = status == CUDNN_STATUS_SUCCESS;
    return *is_done ? BRG_OK
                    : BRG__CU_FAIL(BRG_ERR_DEVICE, "cuDNN: attention: error %d",
                                   (int)status);
}

brg_status brg__cu_dnn_attention(brg__cu *cu, const brg__cu_attention *a,
                                 bool is_backward, bool *is_done)
{
    *is_done = false;
    if (!fits(a, is_backward))
        return BRG_OK;
    pthread_mutex_lock(&cu->lock);
    brg_status status = run_locked(cu, a, is_backward, is_done);
    pthread_mutex_unlock(&cu->lock);
    return status;
}
