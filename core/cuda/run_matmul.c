/* SPDX-License-Identifier: Apache-2.0
 * matmul, contract_rows and linear: from tensors to products. Operands whose
 * strides cuBLASLt does not take are copied first. */
#include "core/cuda/gemm.h"

#include <string.h>

#include "core/cuda/rows.h"

/* ---- matmul: i[0] a^T, i[1] b^T ------------------------------------------------- */

/* One operand: its last two dims, and what is left in front of them. */
typedef struct side {
    brg_tensor t; /* the tensor, or its row-major copy */
    brg__storage storage;
    bool is_t;
    int64_t rows, cols;
    brg__cu_mat mat;
} side;

static void set_matrix(side *s)
{
    const brg_tensor *t = &s->t;
    const int d = t->ndim;
    s->rows = d == 1 ? 1 : t->shape[d - 2];
    s->cols = t->shape[d - 1];
    s->mat = (brg__cu_mat){.at = brg__tensor_ptr(t),
                           .row = d == 1 ? s->cols : t->stride[d - 2],
                           .col = t->stride[d - 1]};
    if (!s->is_t)
        return;
    int64_t rows = s->rows, row = s->mat.row;
    s->rows = s->cols;
    s->cols = rows;
    s->mat.row = s->mat.col;
    s->mat.col = row;
}

static brg_status side_init(brg__cu_temps *temps, side *s, const brg_tensor *t,
                            bool is_t)
{
    s->t = *t;
    s->is_t = is_t;
    set_matrix(s);
    if (brg__cu_mat_is_usable(&s->mat, s->rows, s->cols))
        return BRG_OK;
    const void *at;
    BRG__CU_TRY(brg__cu_rows_of(temps, t, &at));
    s->storage = (brg__storage){.data = (void *)(uintptr_t)at};
    s->t.storage = &s->storage;
    s->t.offset = 0;
    int64_t step = 1;
    for (int d = t->ndim - 1; d >= 0; d--) {
        s->t.stride[d] = step;
        step *= t->shape[d];
    }
    set_matrix(s);
    return BRG_OK;
}

static int64_t batch_stride(const side *s, int d, int n)
{
    const int own = d - (n - (s->t.ndim > 2 ? s->t.ndim - 2 : 0));
    return own < 0 || s->t.shape[own] == 1 ? 0 : s->t.stride[own];
}

/* The batch dims of the result, outermost first. */
typedef struct batch {
    int n;
    int64_t size[BRG_MAX_DIMS], a[BRG_MAX_DIMS], b[BRG_MAX_DIMS];
} batch;

/* Inner dims become rows of one product where b is shared and they continue
 * the rows of a; the next one is the library's batch. */
static batch batch_of(const brg_tensor *out, side *a, const side *b)
{
    batch w = {.n = out->ndim > 2 ? out->ndim - 2 : 0};
    for (int d = 0; d < w.n; d++) {
        w.size[d] = out->shape[d];
        w.a[d] = batch_stride(a, d, w.n);
        w.b[d] = batch_stride(b, d, w.n);
    }
    for (; w.n > 0; w.n--) {
        const int d = w.n - 1;
        if (a->rows == 1 && !a->is_t && w.a[d] >= a->cols)
            a->mat.row = w.a[d];
        bool continues = w.b[d] == 0 && !a->is_t &&
                         (w.size[d] == 1 || w.a[d] == a->rows * a->mat.row);
        if (!continues)
            break;
        a->rows *= w.size[d];
    }
    return w;
}

static brg_status run_batches(brg__cu *cu, brg__cu_gemm *g, const batch *w,
                              int64_t item)
{
    const int last = w->n - 1;
    const char *a = g->a.at, *b = g->b.at;
    char *c = g->c;
    int64_t n_outer = 1, index[BRG_MAX_DIMS] = {0};
    g->n_batch = w->n > 0 ? w->size[last] : 1;
    g->a.batch = w->n > 0 ? w->a[last] : 0;
    g->b.batch = w->n > 0 ? w->b[last] : 0;
    for (int d = 0; d < last; d++)
        n_outer *= w->size[d];
    for (int64_t i = 0; i < n_outer; i++) {
        int64_t at_a = 0, at_b = 0;
        for (int d = 0; d < last; d++) {
            at_a += index[d] * w->a[d];
            at_b += index[d] * w->b[d];
        }
        g->a.at = a + at_a * item;
        g->b.at = b + at_b * item;
        g->c = c + i * g->n_batch * g->m * g->n * item;
        BRG__CU_TRY(brg__cu_gemm_run(cu, g));
        for (int d = last - 1; d >= 0 && ++index[d] == w->size[d]; d--)
            index[d] = 0;
    }
    return BRG_OK;
}

static brg_status run_sides(brg__cu_temps *temps, const brg_op_call *call)
{
    const brg_tensor *out = call->out[0];
    side a, b;
    BRG__CU_TRY(side_init(temps, &a, call->in[0], call->attrs->i[0] != 0));
    BRG__CU_TRY(side_init(temps, &b, call->in[1], call->attrs->i[1] != 0));
    const batch w = batch_of(out, &a, &b);
    brg__cu_gemm g = {.dtype = out->dtype,
                      .m = a.rows,
                      .n = b.cols,
                      .k = a.cols,
                      .a = a.mat,
                      .b = b.mat,
                      .c = brg__tensor_ptr(out)};
    return run_batches(temps->cu, &g, &w, (int64_t)brg__tensor_item_size(out));
}

brg_status brg__cu_run_matmul(brg_op_call *call)
{
    brg__cu_temps temps = {.op = call->op->name};
    const brg_tensor *out = call->out[0];
    BRG__CU_TRY(brg__cu_enter(out->device, &temps.cu));
    if (out->numel == 0)
        return BRG_OK;
    if (call->in[0]->numel == 0)
        return brg__cu_zero(temps.cu, out);
    brg_status status = run_sides(&temps, call);
    return brg__cu_temps_end(&temps, status);
}

/* ---- All leading dims as one ---------------------------------------------------- */

/* t as (rows, cols), cols the last dim: as it lies, or copied. */
static brg_status flat(brg__cu_temps *temps, const brg_tensor *t,
                       brg__cu_mat *mat)
{
    const int last = t->ndim - 1;
    int64_t rows = 1, step = 0;
    bool is_one = true;
    for (int d = last - 1; d >= 0; d--) {
        if (t->shape[d] == 1)
            continue;
        is_one = is_one && (rows == 1 || t->stride[d] == rows * step);
        step = rows == 1 ? t->stride[d] : step;
        rows *= t->shape[d];
    }
    *mat = (brg__cu_mat){.at = brg__tensor_ptr(t),
                         .row = rows == 1 ? t->shape[last] : step,
                         .col = t->stride[last]};
    if (is_one && brg__cu_mat_is_usable(mat, rows, t->shape[last]))
        return BRG_OK;
    *mat = (brg__cu_mat){.row = t->shape[last], .col = 1};
    return brg__cu_rows_of(temps, t, &mat->at);
}

static brg__cu_mat flipped(brg__cu_mat m)
{
    return (brg__cu_mat){.at = m.at, .row = m.col, .col = m.row};
}

/* out (i,j) = sum over rows of a (..,i) b (..,j) */
brg_status brg__cu_run_contract_rows(brg_op_call *call)
{
    brg__cu_temps temps = {.op = call->op->name};
    const brg_tensor *a = call->in[0], *b = call->in[1], *out = call->out[0];
    BRG__CU_TRY(brg__cu_enter(out->device, &temps.cu));
    if (out->numel == 0)
        return BRG_OK;
    if (a->numel == 0)
        return brg__cu_zero(temps.cu, out);
    brg__cu_gemm g = {.dtype = out->dtype,
                      .m = out->shape[0],
                      .n = out->shape[1],
                      .k = a->numel / out->shape[0],
                      .n_batch = 1,
                      .c = brg__tensor_ptr(out)};
    brg_status status = flat(&temps, a, &g.a);
    g.a = flipped(g.a);
    if (status == BRG_OK)
        status = flat(&temps, b, &g.b);
    if (status == BRG_OK)
        status = brg__cu_gemm_run(temps.cu, &g);
    return brg__cu_temps_end(&temps, status);
}

/* ---- linear: x w^T + bias --------------------------------------------------------- */

/* Where the library cannot add a bias itself. */
static brg_status add_bias(brg__cu *cu, const brg_tensor *out,
                           const brg_tensor *bias)
{
    const brg_tensor *in[] = {out, bias};
    return brg__cu_apply(cu, BRG__CU_ROW_add, in, out, NULL);
}

/* The product; its bias where the library adds it. */
static brg_status linear_of(brg__cu_temps *temps, const brg_op_call *call,
                            brg__cu_gemm *g)
{
    const brg_tensor *x = call->in[0], *w = call->in[1];
    const brg_tensor *out = call->out[0];
    *g = (brg__cu_gemm){.dtype = out->dtype,
                        .m = x->numel / w->shape[1],
                        .n = w->shape[0],
                        .k = w->shape[1],
                        .n_batch = 1,
                        .c = brg__tensor_ptr(out)};
    BRG__CU_TRY(flat(temps, x, &g->a));
    BRG__CU_TRY(flat(temps, w, &g->b));
    g->b = flipped(g->b);
    return out->dtype != BRG_DTYPE_F64
               ? brg__cu_rows_of(temps, call->in[2], &g->bias)
               : BRG_OK;
}

static brg_status run_linear(brg__cu_temps *temps, const brg_op_call *call)
{
    brg__cu_gemm g;
    BRG__CU_TRY(linear_of(temps, call, &g));
    BRG__CU_TRY(brg__cu_gemm_run(temps->cu, &g));
    return call->in[2] && !g.bias
               ? add_bias(temps->cu, call->out[0], call->in[2])
               : BRG_OK;
}

brg_status brg__cu_run_linear(brg_op_call *call)
{
    brg__cu_temps temps = {.op = call->op->name};
    const brg_tensor *out = call->out[0];
    BRG__CU_TRY(brg__cu_enter(out->device, &temps.cu));
    if (out->numel == 0)
        return BRG_OK;
    if (call->in[1]->shape[1] == 0) {
        BRG__CU_TRY(brg__cu_zero(temps.cu, out));
        return call->in[2] ? add_bias(temps.cu, out, call->in[2]) : BRG_OK;
    }
    brg_status status = run_linear(&temps, call);
    return brg__cu_temps_end(&temps, status);
}

/* ---- Products and what follows them (core/ops/merged.c) ----------------------------- */

/* The library writes and reads whole vectors of what it keeps, and has no
 * epilogues in f64. */
static bool has_epilogue(const brg_tensor *out)
{
    return out->dtype != BRG_DTYPE_F64 && out->shape[out->ndim - 1] % 8 == 0;
}

static brg_status try_linear(const brg_op_call *call, bool *is_done)
{
    brg__cu_temps temps = {.op = call->op->name};
    brg__cu_gemm g;
    const brg_tensor *out = call->out[0];
    const bool has_gelu = call->n_out > 1;
    *is_done = false;
    if (out->numel == 0 || call->in[0]->numel == 0 || !has_epilogue(out))
        return BRG_OK;
    BRG__CU_TRY(brg__cu_enter(out->device, &temps.cu));
    brg_status status = linear_of(&temps, call, &g);
    if (has_gelu) {
        g.epilogue = BRG__CU_GELU;
        g.aux = brg__tensor_ptr(call->out[1]);
    } else if (status == BRG_OK) {
        status = brg__cu_rows_of(&temps, call->in[3], &g.add);
    }
    if (status == BRG_OK)
        status = brg__cu_gemm_try(temps.cu, &g, is_done);
    return brg__cu_temps_end(&temps, status);
}

/* out[0] = row(a, b) of the tensors that were made. */
static brg_status finish_with(int row, const brg_tensor *a, const brg_tensor *b,
                              const brg_tensor *out)
{
    brg__cu *cu;
    BRG__CU_TRY(brg__cu_enter(out->device, &cu));
    return brg__cu_apply(cu, row, (const brg_tensor *[]){a, b}, out, NULL);
}

brg_status brg__cu_run_linear_gelu(brg_op_call *call)
{
    bool is_done;
    BRG__CU_TRY(try_linear(call, &is_done));
    if (is_done)
        return BRG_OK;
    brg_op_call linear = *call;
    linear.out[0] = call->out[1];
    BRG__CU_TRY(brg__cu_run_linear(&linear));
    return finish_with(BRG__CU_ROW_gelu, call->out[1], NULL, call->out[0]);
}

brg_status brg__cu_run_linear_add(brg_op_call *call)
{
    bool is_done;
    BRG__CU_TRY(try_linear(call, &is_done));
    if (is_done)
        return BRG_OK;
    BRG__CU_TRY(brg__cu_run_linear(call));
    return finish_with(BRG__CU_ROW_add, call->out[0], call->in[3],
                       call->out[0]);
}

static brg_status try_gelu_grad(const brg_op_call *call, bool *is_done)
{
    brg__cu_temps temps = {.op = call->op->name};
    const brg_tensor *w = call->in[1], *out = call->out[0];
    const bool is_t = call->attrs->i[1] != 0;
    const void *y = NULL;
    *is_done = false;
    if (out->numel == 0 || w->numel == 0 || w->ndim != 2 || call->attrs->i[0] ||
        !has_epilogue(out))
        return BRG_OK;
    BRG__CU_TRY(brg__cu_enter(out->device, &temps.cu));
    const int64_t n = out->shape[out->ndim - 1];
    brg__cu_gemm g = {.dtype = out->dtype,
                      .m = out->numel / n,
                      .n = n,
                      .k = w->shape[is_t ? 1 : 0],
                      .n_batch = 1,
                      .c = brg__tensor_ptr(out),
                      .epilogue = BRG__CU_GELU_GRAD};
    brg_status status = flat(&temps, call->in[0], &g.a);
    if (status == BRG_OK)
        status = flat(&temps, w, &g.b);
    g.b = is_t ? flipped(g.b) : g.b;
    if (status == BRG_OK)
        status = brg__cu_rows_of(&temps, call->in[2], &y);
    g.aux = (void *)(uintptr_t)y;
    if (status == BRG_OK)
        status = brg__cu_gemm_try(temps.cu, &g, is_done);
    return brg__cu_temps_end(&temps, status);
}

brg_status brg__cu_run_matmul_gelu_grad(brg_op_call *call)
{
    bool is_done;
    BRG__CU_TRY(try_gelu_grad(call, &is_done));
    if (is_done)
        return BRG_OK;
    BRG__CU_TRY(brg__cu_run_matmul(call));
    return finish_with(BRG__CU_ROW_gelu_grad, call->out[0], call->in[2],
                       call->out[0]);
}
