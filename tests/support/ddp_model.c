/* SPDX-License-Identifier: Apache-2.0
 * A model whose gradients are known exactly. */
#include "tests/support/ddp_model.h"

#include <math.h>
#include <string.h>

#include <brigade/ops.h>

#include "tests/support/brg_test.h"

typedef struct row {
    const char *name; /* NULL: none */
    brg_dtype dtype;
    int ndim;
    int64_t shape[2];
    char layout; /* r row-major, t transposed, g with gaps */
} row;

static const row rows[DDP_MODEL_N] = {
    {"embed", BRG_DTYPE_F32, 2, {8, 15}, 'r'},
    {"fc1.weight", BRG_DTYPE_F32, 2, {5, 7}, 't'},
    {"fc1.bias", BRG_DTYPE_F16, 1, {7}, 'r'},
    {"norm", BRG_DTYPE_F64, 1, {9}, 'r'},
    {"fc2.weight", BRG_DTYPE_BF16, 2, {3, 4}, 'r'},
    {"fc2.bias", BRG_DTYPE_F32, 1, {6}, 'g'},
    {NULL, BRG_DTYPE_F32, 0, {0}, 'r'},
    {"head", BRG_DTYPE_F32, 2, {2, 33}, 'r'},
};

/* ---- Making ------------------------------------------------------------------- */

static brg_tensor *make_tensor(const row *r, double value)
{
    if (r->layout == 't')
        return brg_as_strided(
            brg_full(r->dtype, BRG_SHAPE(r->shape[0] * r->shape[1]), value), 2,
            r->shape, (const int64_t[]){1, r->shape[0]}, 0);
    if (r->layout == 'g')
        return brg_as_strided(
            brg_full(r->dtype, BRG_SHAPE(2 * r->shape[0]), value), 1, r->shape,
            (const int64_t[]){2}, 0);
    return brg_full(r->dtype, r->ndim, r->shape, value);
}

brg_status ddp_model_init(ddp_model *m, brg_pg *pg)
{
    *m = (ddp_model){.pg = pg,
                     .rank = brg_pg_rank(pg),
                     .world_size = brg_pg_world_size(pg),
                     .seed = 1};
    m->scope = brg_scope_begin();
    if (!m->scope)
        return BRG_ERR_NOMEM;
    for (size_t i = 0; i < DDP_MODEL_N; i++) {
        m->params[i] = make_tensor(&rows[i], m->rank + 0.25 * (double)i);
        if (!m->params[i])
            return brg_error_code();
        BRG_TRY(brg_set_requires_grad(m->params[i], true));
        BRG_TRY(brg_tensor_set_name(m->params[i], rows[i].name));
    }
    m->buffer = brg_full(BRG_DTYPE_I64, BRG_SHAPE(4), m->rank);
    return m->buffer ? BRG_OK : brg_error_code();
}

brg_status ddp_model_wrap(ddp_model *m, const brg_ddp_options *options)
{
    return brg_ddp_create(&m->ddp, m->pg, m->params, DDP_MODEL_N, &m->buffer, 1,
                          options);
}

void ddp_model_deinit(ddp_model *m)
{
    brg_ddp_destroy(m->ddp);
    if (m->scope)
        brg_scope_end(m->scope);
    *m = (ddp_model){0};
}

/* ---- Running ---------------------------------------------------------------------- */

static brg_tensor *make_input(const ddp_model *m, int step, size_t i)
{
    double memory[DDP_MODEL_NUMEL]; /* room for any dtype */
    const row *r = &rows[i];
    int64_t numel = brg_tensor_numel(m->params[i]);
    for (int64_t k = 0; k < numel; k++)
        ranks_store(memory, (size_t)k, r->dtype,
                    ranks_gradient(m->rank, step, i, (size_t)k));
    return brg_from_data(r->dtype, r->ndim, r->shape, memory);
}

brg_tensor *ddp_model_loss(ddp_model *m, int step, unsigned mask)
{
    uint64_t seed = m->seed + (uint64_t)(m->rank * 77 + step);
    size_t order[DDP_MODEL_N];
    for (size_t i = 0; i < DDP_MODEL_N; i++)
        order[i] = i;
    for (size_t i = DDP_MODEL_N; i > 1; i--) {
        size_t k = brg_test_random(&seed) % i, swap = order[i - 1];
        order[i - 1] = order[k];
        order[k] = swap;
    }
    brg_tensor *loss = brg_zeros(BRG_DTYPE_F32, BRG_SCALAR);
    for (size_t k = 0; k < DDP_MODEL_N; k++) {
        size_t i = order[k];
        if (!(mask >> i & 1))
            continue;
        brg_tensor *term = brg_mul(m->params[i], make_input(m, step, i));
        loss = brg_add(loss, brg_sum_all(brg_cast(term, BRG_DTYPE_F32)));
    }
    return loss;
}

brg_status ddp_model_backward(ddp_model *m, int step, unsigned mask)
{
    brg_scope *scope = brg_scope_begin();
    if (!scope)
        return BRG_ERR_NOMEM;
    brg_status status = brg_backward(ddp_model_loss(m, step, mask));
    brg_scope_end(scope);
    return status;
}

brg_status ddp_model_zero(ddp_model *m, bool keep_memory)
{
    for (size_t i = 0; i < DDP_MODEL_N; i++) {
        brg_tensor *grad = brg_tensor_grad(m->params[i]);
        if (!keep_memory)
            BRG_TRY(brg_tensor_set_grad(m->params[i], NULL));
        else if (grad)
            BRG_TRY(brg_zero_(grad));
    }
    return BRG_OK;
}

/* ---- Checking --------------------------------------------------------------------- */

brg_status ddp_model_check_param(const ddp_model *m, size_t i, int first,
                                 int last, unsigned who)
{
    double memory[DDP_MODEL_NUMEL] = {0};
    brg_dtype dtype = rows[i].dtype;
    brg_tensor *grad = brg_tensor_grad(m->params[i]);
    RANK_CHECK(grad, "rank %d: parameter %zu has no gradient", m->rank, i);
    size_t nbytes = brg_tensor_nbytes(grad);
    BRG_TRY(brg_tensor_read(grad, memory, nbytes));
    for (size_t k = 0; k < nbytes / brg_dtype_size(dtype); k++) {
        double expected = 0, found = ranks_load(memory, k, dtype);
        for (int rank = 0; rank < m->world_size; rank++)
            for (int step = first; step < last && who >> rank & 1; step++)
                expected += ranks_gradient(rank, step, i, k) / m->world_size;
        RANK_CHECK(fabs(expected - found) <=
                       (last - first) * ranks_epsilon(dtype),
                   "rank %d: gradient %zu[%zu] is %.9g, expected %.9g", m->rank,
                   i, k, found, expected);
    }
    return ranks_same_bits(m->pg, memory, nbytes);
}

brg_status ddp_model_check(const ddp_model *m, int first, int last)
{
    for (size_t i = 0; i < DDP_MODEL_N; i++)
        BRG_TRY(ddp_model_check_param(m, i, first, last, DDP_MODEL_EVERY_RANK));
    return BRG_OK;
}
