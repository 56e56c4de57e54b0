/* SPDX-License-Identifier: Apache-2.0
 * Optimizer steps and clipping on sparse gradients, against the formulas
 * written out in doubles for the rows that a gradient has. */
#include <brigade/autograd.h>
#include <brigade/ops.h>
#include <brigade/optim.h>
#include <brigade/sparse.h>

#include <math.h>

#include "tests/support/brg_test.h"
#include "tests/support/fail_alloc.h"

#define N_ROWS 9
#define WIDTH 5
#define N (N_ROWS * WIDTH)
#define NNZ 6
#define N_STEPS 12

typedef struct model {
    brg_params *params;
    brg_tensor *w;
    double p[N], a[N], b[N]; /* the reference's, and its state */
} model;

static double at(const brg_tensor *t, size_t i)
{
    brg_scope *scope = brg_scope_begin();
    brg_tensor *wide = assert_brg_some(
        brg_cast(brg_detach((brg_tensor *)(uintptr_t)t), BRG_DTYPE_F64));
    double value = ((const double *)brg_tensor_data(wide))[i];
    brg_scope_end(scope);
    return value;
}

static void model_init(model *m, brg_dtype dtype, uint64_t *seed)
{
    double values[N];
    *m = (model){0};
    for (size_t i = 0; i < N; i++)
        values[i] = brg_test_uniform(seed, -1, 1);
    brg_tensor *wide =
        brg_from_data(BRG_DTYPE_F64, BRG_SHAPE(N_ROWS, WIDTH), values);
    m->w = assert_brg_some(brg_cast(wide, dtype));
    for (size_t i = 0; i < N; i++)
        m->p[i] = at(m->w, i);
    assert_brg_ok(brg_params_create(&m->params));
    assert_brg_ok(brg_params_add(m->params, "w", m->w, BRG_PARAM_TRAINED));
}

/* A new gradient of random rows, some twice, into g; uses[row] counts. */
static void new_grad(model *m, double *g, int *uses, uint64_t *seed)
{
    int64_t rows[NNZ];
    double values[NNZ * WIDTH];
    for (size_t k = 0; k < NNZ; k++)
        rows[k] = (int64_t)(brg_test_random(seed) % N_ROWS);
    for (size_t k = 0; k < NNZ * WIDTH; k++)
        values[k] = brg_test_uniform(seed, -1, 1);
    brg_tensor *wide =
        brg_from_data(BRG_DTYPE_F64, BRG_SHAPE(NNZ, WIDTH), values);
    brg_tensor *grad = brg_sparse_coo(
        brg_from_data(BRG_DTYPE_I64, BRG_SHAPE(1, NNZ), rows),
        brg_cast(wide, brg_tensor_dtype(m->w)), BRG_SHAPE(N_ROWS, WIDTH));
    assert_brg_ok(brg_tensor_set_grad(m->w, assert_brg_some(grad)));
    memset(uses, 0, N_ROWS * sizeof *uses);
    for (size_t k = 0; k < NNZ; k++)
        uses[rows[k]]++;
    brg_tensor *dense = brg_to_dense(grad);
    for (size_t i = 0; i < N; i++)
        g[i] = at(dense, i);
}

static void check_close(const model *m, double tolerance)
{
    for (size_t i = 0; i < N; i++) {
        double found = at(m->w, i), expected = m->p[i];
        if (fabs(found - expected) <= tolerance * (1 + fabs(expected)))
            continue;
        print_error("element %zu: expected %.17g, found %.17g\n", i, expected,
                    found);
        fail();
    }
}

static const double tolerances[] = {1e-13, 4e-6, 2e-3, 1.6e-2};

/* ---- Steps -------------------------------------------------------------------- */

static void check_adamw(brg_dtype dtype)
{
    uint64_t seed = brg_test_seed(3);
    brg_adamw_options o = BRG_ADAMW_OPTIONS_INIT;
    o.lr = 0.02;
    o.weight_decay = 0.1;
    brg_scope *scope = brg_scope_begin();
    model m;
    brg_optim *optim;
    double g[N];
    int uses[N_ROWS];
    model_init(&m, dtype, &seed);
    assert_brg_ok(brg_optim_create_adamw(&optim, m.params, &o));
    for (int t = 1; t <= N_STEPS; t++) {
        new_grad(&m, g, uses, &seed);
        assert_brg_ok(brg_optim_step(optim));
        for (size_t i = 0; i < N; i++) {
            if (!uses[i / WIDTH])
                continue;
            m.p[i] -= o.lr * o.weight_decay * m.p[i];
            m.a[i] = o.beta1 * m.a[i] + (1 - o.beta1) * g[i];
            m.b[i] = o.beta2 * m.b[i] + (1 - o.beta2) * g[i] * g[i];
            double mean = m.a[i] / (1 - pow(o.beta1, t));
            double root = sqrt(m.b[i] / (1 - pow(o.beta2, t)));
            m.p[i] -= o.lr * mean / (root + o.eps);
        }
        check_close(&m, tolerances[dtype]);
    }
    brg_optim_destroy(optim);
    brg_params_destroy(m.params);
    brg_scope_end(scope);
}

static void check_sgd(brg_dtype dtype, double momentum, bool nesterov)
{
    uint64_t seed = brg_test_seed(5);
    brg_sgd_options o = BRG_SGD_OPTIONS_INIT;
    o.lr = 0.05;
    o.weight_decay = 0.01;
    o.momentum = momentum;
    o.nesterov = nesterov;
    brg_scope *scope = brg_scope_begin();
    model m;
    brg_optim *optim;
    double g[N];
    int uses[N_ROWS];
    model_init(&m, dtype, &seed);
    assert_brg_ok(brg_optim_create_sgd(&optim, m.params, &o));
    for (int t = 1; t <= N_STEPS; t++) {
        new_grad(&m, g, uses, &seed);
        assert_brg_ok(brg_optim_step(optim));
        for (size_t i = 0; i < N; i++) {
            if (!uses[i / WIDTH])
                continue;
            double d = g[i] + o.weight_decay * m.p[i];
            m.a[i] = momentum * m.a[i] + d;
            if (momentum != 0)
                d = nesterov ? d + momentum * m.a[i] : m.a[i];
            m.p[i] -= o.lr * d;
        }
        check_close(&m, tolerances[dtype]);
    }
    brg_optim_destroy(optim);
    brg_params_destroy(m.params);
    brg_scope_end(scope);
}

static void test_sparse_step__adamw_updates_the_rows_of_the_gradient(void **s)
{
    (void)s;
    for (int dtype = BRG_DTYPE_F64; dtype <= BRG_DTYPE_BF16; dtype++)
        check_adamw((brg_dtype)dtype);
}

static void test_sparse_step__sgd_updates_the_rows_of_the_gradient(void **s)
{
    (void)s;
    for (int dtype = BRG_DTYPE_F64; dtype <= BRG_DTYPE_BF16; dtype++) {
        check_sgd((brg_dtype)dtype, 0, false);
        check_sgd((brg_dtype)dtype, 0.9, false);
        check_sgd((brg_dtype)dtype, 0.9, true);
    }
}

/* A row written by somebody else counts, though the gradient has others. */
static void test_sparse_step__master_copy_follows_rows_not_updated(void **s)
{
    (void)s;
    uint64_t seed = 1;
    brg_scope *scope = brg_scope_begin();
    model m;
    brg_optim *optim;
    brg_sgd_options o = BRG_SGD_OPTIONS_INIT;
    model_init(&m, BRG_DTYPE_BF16, &seed);
    assert_brg_ok(brg_optim_create_sgd(&optim, m.params, &o));
    brg_tensor *one = brg_ones(BRG_DTYPE_BF16, BRG_SHAPE(1, WIDTH));
    for (int64_t row = 0; row < 2; row++) {
        brg_tensor *grad =
            brg_sparse_coo(brg_from_data(BRG_DTYPE_I64, BRG_SHAPE(1, 1), &row),
                           one, BRG_SHAPE(N_ROWS, WIDTH));
        if (row == 0)
            assert_brg_ok(brg_fill_(brg_detach(m.w), 0.5));
        assert_brg_ok(brg_tensor_set_grad(m.w, grad));
        assert_brg_ok(brg_optim_step(optim));
    }
    assert_float_equal(at(m.w, WIDTH), 0.49, 2e-3);
    assert_float_equal(at(m.w, 2 * WIDTH), 0.5, 0);
    assert_brg_ok(brg_optim_zero_grad(optim, true));
    assert_null(brg_tensor_grad(m.w));
    brg_optim_destroy(optim);
    brg_params_destroy(m.params);
    brg_scope_end(scope);
}

/* ---- Clipping ------------------------------------------------------------------- */

static void test_sparse_step__clipping_sees_the_sums(void **s)
{
    (void)s;
    uint64_t seed = brg_test_seed(8);
    for (int dtype = BRG_DTYPE_F64; dtype <= BRG_DTYPE_F32; dtype++) {
        brg_scope *scope = brg_scope_begin();
        model m;
        double g[N], norm, sum = 0;
        int uses[N_ROWS];
        model_init(&m, (brg_dtype)dtype, &seed);
        new_grad(&m, g, uses, &seed);
        brg_tensor *grad = brg_tensor_grad(m.w);
        for (size_t i = 0; i < N; i++)
            sum += g[i] * g[i];
        assert_brg_ok(brg_clip_grad_norm(&norm, m.params, 0.5, true));
        assert_float_equal(norm, sqrt(sum), 1e-6);
        assert_ptr_equal(brg_tensor_grad(m.w), grad);
        brg_tensor *dense = brg_to_dense(grad);
        for (size_t i = 0; i < N; i++)
            assert_float_equal(at(dense, i), g[i] * 0.5 / sqrt(sum), 1e-6);
        assert_brg_ok(brg_clip_grad_value(m.params, 0.01));
        dense = brg_to_dense(grad);
        for (size_t i = 0; i < N; i++)
            assert_true(fabs(at(dense, i)) <= 0.0100001);
        brg_params_destroy(m.params);
        brg_scope_end(scope);
    }
}

/* ---- Memory ---------------------------------------------------------------------- */

static brg_status train(brg_params *params, brg_optim *optim, brg_tensor *w)
{
    brg_embedding_options options = BRG_EMBEDDING_OPTIONS_INIT;
    options.sparse_grad = true;
    brg_tensor *ids =
        brg_from_data(BRG_DTYPE_I64, BRG_SHAPE(4), (int64_t[]){3, 1, 3, 8});
    brg_tensor *y = brg_embedding_with(w, ids, &options);
    BRG_TRY(brg_backward(brg_sum_all(brg_square(y))));
    BRG_TRY(brg_clip_grad_norm(NULL, params, 0.1, true));
    return brg_optim_step(optim);
}

static brg_status create_and_train(void *user)
{
    (void)user;
    brg_adamw_options o = BRG_ADAMW_OPTIONS_INIT;
    brg_params *params = NULL;
    brg_optim *optim = NULL;
    brg_scope *scope = brg_scope_begin();
    brg_status status = scope ? brg_params_create(&params) : BRG_ERR_NOMEM;
    brg_tensor *w = brg_ones(BRG_DTYPE_F32, BRG_SHAPE(N_ROWS, WIDTH));
    if (status == BRG_OK)
        status = brg_params_add(params, "w", w, BRG_PARAM_TRAINED);
    if (status == BRG_OK)
        status = brg_optim_create_adamw(&optim, params, &o);
    if (status == BRG_OK)
        status = train(params, optim, w);
    brg_optim_destroy(optim);
    brg_params_destroy(params);
    brg_scope_end(scope);
    return status;
}

static void test_sparse_step__out_of_memory_leaves_nothing(void **s)
{
    (void)s;
    assert_oom_clean(create_and_train, NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(
            test_sparse_step__adamw_updates_the_rows_of_the_gradient),
        cmocka_unit_test(
            test_sparse_step__sgd_updates_the_rows_of_the_gradient),
        cmocka_unit_test(
            test_sparse_step__master_copy_follows_rows_not_updated),
        cmocka_unit_test(test_sparse_step__clipping_sees_the_sums),
        cmocka_unit_test(test_sparse_step__out_of_memory_leaves_nothing),
    };
    fail_alloc_install();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
