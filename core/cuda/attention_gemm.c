/* SPDX-License-Identifier: Apache-2.0
 * Attention by matrix products, for many rows: the scores of one image of the
 * batch at a time are written out in f32 (f64), between two products forward
 * and five backward. The plain kernels keep no scores but use no matrix units;
 * they are for few rows. */
#include "core/cuda/attention.h"

#include "core/cuda/gemm.h"

#define LEAST_ROWS 96

static bool is_close(const brg__cu_heads *h)
{
    return h->col == 1 && h->row > 0;
}

bool brg__cu_attention_by_products(const brg__cu_attention *a, bool is_backward)
{
    bool fits = a->t >= LEAST_ROWS && a->s >= LEAST_ROWS && is_close(&a->q) &&
                is_close(&a->k) && is_close(&a->v) && is_close(&a->out);
    if (!is_backward)
        return fits;
    return fits && is_close(&a->g) && is_close(&a->gq) && is_close(&a->gk) &&
           is_close(&a->gv);
}

static int64_t item_of(int dtype)
{
    return dtype == BRG_DTYPE_F64 ? 8 : dtype == BRG_DTYPE_F32 ? 4 : 2;
}

/* Element (i, j) of all heads of image b, or of its transpose. */
static brg__cu_mat mat_of(const brg__cu_attention *a, const brg__cu_heads *h,
                          int64_t b)
{
    const char *at = (const char *)h->at + b * h->batch * item_of(a->dtype);
    return (brg__cu_mat){at, h->row, h->col, h->head};
}

static brg__cu_mat flipped(brg__cu_mat m)
{
    return (brg__cu_mat){m.at, m.col, m.row, m.batch};
}

/* A product of all heads into wide scores. */
static brg_status to_scores(brg__cu *cu, const brg__cu_attention *a, void *c,
                            brg__cu_mat x, brg__cu_mat y, int64_t k)
{
    const brg__cu_gemm g = {.dtype = a->dtype,
                            .c_is_wide = true,
                            .m = a->t,
                            .n = a->s,
                            .k = k,
                            .n_batch = a->n_heads,
                            .a = x,
                            .b = flipped(y),
                            .c = c};
    return brg__cu_gemm_run(cu, &g);
}

/* A product of all heads into the rows of an operand of image b. */
static brg_status to_heads(brg__cu *cu, const brg__cu_attention *a,
                           const brg__cu_heads *to, int64_t b,
                           const brg__cu_gemm *sizes)
{
    brg__cu_gemm g = *sizes;
    g.dtype = a->dtype;
    g.n_batch = a->n_heads;
    g.c = (char *)to->at + b * to->batch * item_of(a->dtype);
    g.ldc = to->row;
    g.c_batch = to->head;
    return brg__cu_gemm_run(cu, &g);
}

/* Probabilities (or their gradients) of one image as the left operand. */
static brg__cu_mat left(const brg__cu_attention *a, const void *p)
{
    return (brg__cu_mat){p, a->s, 1, a->t * a->s};
}

typedef struct scratch {
    brg__cu_temps temps;
    void *scores, *dp, *p, *ds;
} scratch;

static brg_status get_scratch(scratch *s, brg__cu *cu,
                              const brg__cu_attention *a, bool is_backward)
{
    const size_t n = (size_t)(a->n_heads * a->t * a->s);
    const size_t wide = a->dtype == BRG_DTYPE_F64 ? 8 : 4;
    const size_t item = (size_t)item_of(a->dtype);
    *s = (scratch){.temps = {.cu = cu, .op = "attention"}};
    BRG__CU_TRY(brg__cu_temp(&s->temps, &s->scores, n * wide));
    BRG__CU_TRY(brg__cu_temp(&s->temps, &s->p, n * item));
    if (!is_backward)
        return BRG_OK;
    BRG__CU_TRY(brg__cu_temp(&s->temps, &s->dp, n * wide));
    return brg__cu_temp(&s->temps, &s->ds, n * item);
}

/* Where the statistics of image b begin. */
static void *stats_of(const brg__cu_attention *a, void *stats, int64_t b)
{
    const int64_t wide = a->dtype == BRG_DTYPE_F64 ? 8 : 4;
    return (char *)stats + b * a->n_heads * a->t * wide;
}

static brg__cu_scores scores_of(const brg__cu_attention *a, const scratch *s,
                                int64_t b)
{
    return (brg__cu_scores){.dtype = a->dtype,
                            .rows = a->n_heads * a->t,
                            .t = a->t,
                            .s = a->s,
                            .scale = a->scale,
                            .is_causal = a->is_causal,
                            .scores = s->scores,
                            .dp = s->dp,
                            .p = s->p,
                            .ds = s->ds,
                            .lse = stats_of(a, a->lse, b),
                            .delta =
                                a->delta ? stats_of(a, a->delta, b) : NULL};
}

static brg_status forward_image(brg__cu *cu, const brg__cu_attention *a,
                                const scratch *s, int64_t b)
{
    const brg__cu_scores scores = scores_of(a, s, b);
    BRG__CU_TRY(to_scores(cu, a, s->scores, mat_of(a, &a->q, b),
                          mat_of(a, &a->k, b), a->d));
    BRG__CU_TRY(brg__cu_check(brg__cu_scores_softmax(&cu->queue, &scores),
                              "attention"));
    const brg__cu_gemm g = {.m = a->t,
                            .n = a->d_out,
                            .k = a->s,
                            .a = left(a, s->p),
                            .b = mat_of(a, &a->v, b)};
    return to_heads(cu, a, &a->out, b, &g);
}

brg_status brg__cu_attention_products_forward(brg__cu *cu,
                                              const brg__cu_attention *a)
{
    scratch s;
    brg_status status = get_scratch(&s, cu, a, false);
    for (int64_t b = 0; status == BRG_OK && b < a->n_batch; b++)
        status = forward_image(cu, a, &s, b);
    return brg__cu_temps_end(&s.temps, status);
}

static brg_status backward_image(brg__cu *cu, const brg__cu_attention *a,
                                 const scratch *s, int64_t b)
{
    const brg__cu_scores scores = scores_of(a, s, b);
    const brg__cu_mat q = mat_of(a, &a->q, b), k = mat_of(a, &a->k, b);
    const brg__cu_mat g = mat_of(a, &a->g, b);
    BRG__CU_TRY(to_scores(cu, a, s->scores, q, k, a->d));
    BRG__CU_TRY(to_scores(cu, a, s->dp, g, mat_of(a, &a->v, b), a->d_out));
    BRG__CU_TRY(brg__cu_check(brg__cu_scores_grad(&cu->queue, &scores),
                              "attention_grad"));
    const brg__cu_gemm gq = {
        .m = a->t, .n = a->d, .k = a->s, .a = left(a, s->ds), .b = k};
    const brg__cu_gemm gk = {
        .m = a->s, .n = a->d, .k = a->t, .a = flipped(left(a, s->ds)), .b = q};
    const brg__cu_gemm gv = {.m = a->s,
                             .n = a->d_out,
                             .k = a->t,
                             .a = flipped(left(a, s->p)),
                             .b = g};
    BRG__CU_TRY(to_heads(cu, a, &a->gq, b, &gq));
    BRG__CU_TRY(to_heads(cu, a, &a->gk, b, &gk));
    return to_heads(cu, a, &a->gv, b, &gv);
}

brg_status brg__cu_attention_products_backward(brg__cu *cu,
                                               const brg__cu_attention *a)
{
    scratch s;
    BRG__CU_TRY(brg__cu_check(brg__cu_attention_delta(&cu->queue, a),
                              "attention_grad"));
    brg_status status = get_scratch(&s, cu, a, true);
    for (int64_t b = 0; status == BRG_OK && b < a->n_batch; b++)
        status = backward_image(cu, a, &s, b);
    return brg__cu_temps_end(&s.temps, status);
}
