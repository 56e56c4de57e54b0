/* SPDX-License-Identifier: Apache-2.0
 * Optimizer steps against the published formulas, written out in plain C. */
#include <brigade/autograd.h>
#include <brigade/optim.h>
#include <brigade/tensor.h>

#include <math.h>

#include "core/base/dtype.h"
#include "core/tensor/tensor.h"
#include "tests/support/brg_test.h"
#include "tests/support/fail_alloc.h"

#define N 67 /* not a multiple of any vector */

/* One parameter in a scope of its own. */
typedef struct model {
    brg_scope *scope;
    brg_params *params;
    brg_optim *optim;
    uint64_t seed;
    brg_tensor *w;     /* (N) or (N, 1) */
    double g[N];       /* its gradient */
    double p[N];       /* the reference's */
    double a[N], b[N]; /* its state */
} model;

static double get(const brg_tensor *t, size_t i)
{
    const void *data = brg_tensor_data(t);
    switch (brg_tensor_dtype(t)) {
    case BRG_DTYPE_F64:
        return ((const double *)data)[i];
    case BRG_DTYPE_F32:
        return (double)((const float *)data)[i];
    case BRG_DTYPE_F16:
        return (double)brg__f16_to_f32(((const uint16_t *)data)[i]);
    default:
        return (double)brg__bf16_to_f32(((const uint16_t *)data)[i]);
    }
}

static void put(brg_tensor *t, size_t i, double x)
{
    void *data = brg_tensor_data(t);
    switch (brg_tensor_dtype(t)) {
    case BRG_DTYPE_F64:
        ((double *)data)[i] = x;
        break;
    case BRG_DTYPE_F32:
        ((float *)data)[i] = (float)x;
        break;
    case BRG_DTYPE_F16:
        ((uint16_t *)data)[i] = brg__f32_to_f16((float)x);
        break;
    default:
        ((uint16_t *)data)[i] = brg__f32_to_bf16((float)x);
    }
}

static void fill(brg_tensor *t, uint64_t *seed)
{
    for (size_t i = 0; i < (size_t)brg_tensor_numel(t); i++)
        put(t, i, brg_test_uniform(seed, -1, 1));
    brg_tensor_touch(t);
}

static void model_init(model *m, brg_dtype dtype, int ndim, uint64_t seed)
{
    *m = (model){.scope = brg_scope_begin(), .seed = seed};
    assert_brg_ok(brg_params_create(&m->params));
    m->w = brg_zeros(dtype, ndim, (const int64_t[]){N, 1});
    fill(m->w, &m->seed);
    for (size_t i = 0; i < N; i++)
        m->p[i] = get(m->w, i);
    assert_brg_ok(brg_params_add(m->params, "w", m->w, BRG_PARAM_TRAINED));
}

static void model_deinit(model *m)
{
    brg_optim_destroy(m->optim);
    brg_params_destroy(m->params);
    brg_scope_end(m->scope);
}

/* A new gradient; in g as the tensor holds it. */
static void new_grad(model *m)
{
    brg_tensor *grad = brg_zeros(brg_tensor_dtype(m->w), brg_tensor_ndim(m->w),
                                 brg_tensor_shape(m->w));
    fill(grad, &m->seed);
    for (size_t i = 0; i < N; i++)
        m->g[i] = get(grad, i);
    assert_brg_ok(brg_tensor_set_grad(m->w, grad));
}

static void check_close(const model *m, double tolerance)
{
    for (size_t i = 0; i < N; i++) {
        double found = get(m->w, i), expected = m->p[i];
        if (fabs(found - expected) <= tolerance * (1 + fabs(expected)))
            continue;
        print_error("element %zu: expected %.17g, found %.17g\n", i, expected,
                    found);
        fail();
    }
}

static double tolerance_of(brg_dtype dtype)
{
    static const double tolerances[] = {1e-13, 2e-6, 1e-3, 8e-3};
    return tolerances[dtype];
}

/* ---- SGD ------------------------------------------------------------------------- */

static void sgd_reference(model *m, const brg_sgd_options *o, int t)
{
    for (size_t i = 0; i < N; i++) {
        double d = m->g[i] + o->weight_decay * m->p[i];
        if (o->momentum != 0) {
            m->a[i] =
                t == 1 ? d : o->momentum * m->a[i] + (1 - o->dampening) * d;
            d = o->nesterov ? d + o->momentum * m->a[i] : m->a[i];
        }
        m->p[i] -= o->lr * d;
    }
}

static void check_sgd(brg_dtype dtype, const brg_sgd_options *options)
{
    model m;
    model_init(&m, dtype, 1, 17);
    assert_brg_ok(brg_optim_create_sgd(&m.optim, m.params, options));
    assert_string_equal(brg_optim_kind(m.optim), "sgd");
    for (int t = 1; t <= 5; t++) {
        new_grad(&m);
        assert_brg_ok(brg_optim_step(m.optim));
        sgd_reference(&m, options, t);
    }
    check_close(&m, tolerance_of(dtype));
    model_deinit(&m);
}

static void test_optim__sgd_follows_its_formula(void **state)
{
    (void)state;
    const brg_sgd_options cases[] = {
        {sizeof(brg_sgd_options), 0.1, 0, 0, 0, false, 0, NULL},
        {sizeof(brg_sgd_options), 0.1, 0, 0, 0.01, false, 0, NULL},
        {sizeof(brg_sgd_options), 0.1, 0.9, 0, 0, false, 0, NULL},
        {sizeof(brg_sgd_options), 0.1, 0.9, 0.5, 0.01, false, 0, NULL},
        {sizeof(brg_sgd_options), 0.1, 0.9, 0, 0.01, true, 0, NULL},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        for (int dtype = BRG_DTYPE_F64; dtype <= BRG_DTYPE_BF16; dtype++)
            check_sgd((brg_dtype)dtype, &cases[i]);
}

/* ---- AdamW ----------------------------------------------------------------------- */

static void adamw_reference(model *m, const brg_adamw_options *o, int t)
{
    double c1 = 1 - pow(o->beta1, t), c2 = 1 - pow(o->beta2, t);
    for (size_t i = 0; i < N; i++) {
        const double g = m->g[i];
        m->p[i] -= o->lr * o->weight_decay * m->p[i];
        m->a[i] = o->beta1 * m->a[i] + (1 - o->beta1) * g;
        m->b[i] = o->beta2 * m->b[i] + (1 - o->beta2) * g * g;
        m->p[i] -= o->lr * (m->a[i] / c1) / (sqrt(m->b[i] / c2) + o->eps);
    }
}

static void check_adamw(brg_dtype dtype, const brg_adamw_options *options)
{
    model m;
    model_init(&m, dtype, 2, 23);
    assert_brg_ok(brg_optim_create_adamw(&m.optim, m.params, options));
    for (int t = 1; t <= 20; t++) {
        new_grad(&m);
        assert_brg_ok(brg_optim_step(m.optim));
        adamw_reference(&m, options, t);
    }
    check_close(&m, tolerance_of(dtype));
    model_deinit(&m);
}

static void test_optim__adamw_follows_its_formula(void **state)
{
    (void)state;
    brg_adamw_options options = BRG_ADAMW_OPTIONS_INIT;
    for (int dtype = BRG_DTYPE_F64; dtype <= BRG_DTYPE_BF16; dtype++) {
        options.lr = 0.01;
        options.weight_decay = 0.1;
        check_adamw((brg_dtype)dtype, &options);
        options.beta1 = options.beta2 = options.weight_decay = 0;
        options.eps = 0.5;
        check_adamw((brg_dtype)dtype, &options);
        options = (brg_adamw_options)BRG_ADAMW_OPTIONS_INIT;
    }
}

/* ---- Master weights ---------------------------------------------------------------- */

static void test_optim__small_steps_add_up_in_bf16(void **state)
{
    (void)state;
    brg_scope *scope = brg_scope_begin();
    brg_params *params;
    assert_brg_ok(brg_params_create(&params));
    brg_tensor *w = brg_zeros(BRG_DTYPE_BF16, BRG_SHAPE(1));
    put(w, 0, 1.0);
    assert_brg_ok(brg_params_add(params, "w", w, BRG_PARAM_TRAINED));
    brg_sgd_options options = BRG_SGD_OPTIONS_INIT;
    options.lr = 1.0 / 4096; /* a sixteenth of the spacing at 1 */
    brg_optim *optim;
    assert_brg_ok(brg_optim_create_sgd(&optim, params, &options));
    brg_tensor *grad = brg_zeros(BRG_DTYPE_BF16, BRG_SHAPE(1));
    put(grad, 0, -1.0);
    assert_brg_ok(brg_tensor_set_grad(w, grad));
    for (int i = 0; i < 256; i++)
        assert_brg_ok(brg_optim_step(optim));
    assert_true(get(w, 0) == 1.0625);
    put(w, 0, 3.0); /* somebody else writes: the master copy follows */
    brg_tensor_touch(w);
    assert_brg_ok(brg_optim_step(optim));
    const brg_named_tensor *master = brg_optim_state_at(optim, 1);
    assert_string_equal(master->name, "master/w");
    assert_true(get(master->tensor, 0) == 3.0 + 1.0 / 4096);
    put(w, 0, 3.0); /* the same bits: it stays */
    brg_tensor_touch(w);
    assert_brg_ok(brg_optim_step(optim));
    assert_true(get(master->tensor, 0) == 3.0 + 2.0 / 4096);
    brg_optim_destroy(optim);
    brg_params_destroy(params);
    brg_scope_end(scope);
}

/* ---- Which parameters, which options ------------------------------------------------- */

static void test_optim__skips_what_has_no_gradient(void **state)
{
    (void)state;
    brg_scope *scope = brg_scope_begin();
    brg_params *params;
    assert_brg_ok(brg_params_create(&params));
    brg_tensor *a = brg_zeros(BRG_DTYPE_F32, BRG_SHAPE(2));
    brg_tensor *b = brg_zeros(BRG_DTYPE_F32, BRG_SHAPE(2));
    brg_tensor *mean = brg_zeros(BRG_DTYPE_F32, BRG_SHAPE(2));
    assert_brg_ok(brg_params_add(params, "a", a, BRG_PARAM_TRAINED));
    assert_brg_ok(brg_params_add(params, "mean", mean, BRG_PARAM_BUFFER));
    assert_brg_ok(brg_params_add(params, "b", b, BRG_PARAM_TRAINED));
    brg_adamw_options options = BRG_ADAMW_OPTIONS_INIT;
    brg_optim *optim;
    assert_brg_ok(brg_optim_create_adamw(&optim, params, &options));
    assert_int_equal(brg_optim_state_count(optim), 5);
    const char *names[] = {"steps", "exp_avg/a", "exp_avg_sq/a", "exp_avg/b",
                           "exp_avg_sq/b"};
    for (size_t i = 0; i < 5; i++)
        assert_string_equal(brg_optim_state_at(optim, i)->name, names[i]);
    assert_null(brg_optim_state_at(optim, 5));
    brg_tensor *grad = brg_zeros(BRG_DTYPE_F32, BRG_SHAPE(2));
    put(grad, 0, 1.0);
    assert_brg_ok(brg_tensor_set_grad(b, grad));
    uint32_t version_a = brg_tensor_version(a),
             version_b = brg_tensor_version(b);
    assert_brg_ok(brg_optim_step(optim));
    assert_int_equal(brg_tensor_version(a), version_a);
    assert_true(brg_tensor_version(b) != version_b);
    const int64_t *steps =
        brg_tensor_data(brg_optim_state_at(optim, 0)->tensor);
    assert_int_equal(steps[0], 0);
    assert_int_equal(steps[1], 1);
    assert_true(fabs(get(b, 0) + 1e-3) < 1e-6);
    brg_optim_destroy(optim);
    brg_params_destroy(params);
    brg_scope_end(scope);
}

static void count_warnings(brg_log_level level, const char *area,
                           const char *message, void *user)
{
    assert_int_equal(level, BRG_LOG_WARN);
    assert_string_equal(area, "optim");
    assert_non_null(strstr(message, "none of 1 parameters has a gradient"));
    ++*(int *)user;
}

/* A loop that forgot its backward, or clears the gradients before the step. */
static void test_optim__warns_where_nothing_has_a_gradient(void **state)
{
    (void)state;
    int n_warnings = 0;
    model m;
    model_init(&m, BRG_DTYPE_F32, 1, 6);
    assert_brg_ok(brg_optim_create_sgd(&m.optim, m.params, NULL));
    assert_true(brg_optim_lr(m.optim) == 0.01);
    brg_set_log_sink(count_warnings, &n_warnings);
    assert_brg_ok(brg_optim_step(m.optim));
    assert_brg_ok(brg_optim_step(m.optim));
    brg_set_log_sink(NULL, NULL);
    assert_int_equal(n_warnings, 1);
    brg_optim_destroy(m.optim);
    assert_brg_ok(brg_optim_create_adamw(&m.optim, m.params, NULL));
    assert_true(brg_optim_lr(m.optim) == 1e-3);
    model_deinit(&m);
}

static void test_optim__decay_and_rate_by_parameter(void **state)
{
    (void)state;
    brg_scope *scope = brg_scope_begin();
    brg_params *params;
    assert_brg_ok(brg_params_create(&params));
    brg_tensor *t[3];
    const char *names[] = {"w", "bias", "slow"};
    for (int i = 0; i < 3; i++) {
        t[i] =
            brg_zeros(BRG_DTYPE_F64, i == 1 ? 1 : 2, (const int64_t[]){1, 1});
        put(t[i], 0, 1.0);
        assert_brg_ok(
            brg_params_add(params, names[i], t[i], BRG_PARAM_TRAINED));
        brg_tensor *grad = brg_zeros(BRG_DTYPE_F64, brg_tensor_ndim(t[i]),
                                     brg_tensor_shape(t[i]));
        assert_brg_ok(brg_tensor_set_grad(t[i], grad));
    }
    brg_sgd_options options = BRG_SGD_OPTIONS_INIT;
    options.lr = 0.5;
    options.weight_decay = 0.5;
    options.decay_min_ndim = 2;
    brg_optim *optim;
    assert_brg_ok(brg_optim_create_sgd(&optim, params, &options));
    assert_brg_ok(brg_optim_set_param(optim, "slow", 0.5, 1.0));
    assert_brg_fails_with(brg_optim_set_param(optim, "none", 1, 0),
                          BRG_ERR_NOT_FOUND, "'none'");
    assert_brg_fails(brg_optim_set_param(optim, "w", -1, 0), BRG_ERR_ARG);
    assert_brg_ok(brg_optim_step(optim));
    assert_true(get(t[0], 0) == 0.75);
    assert_true(get(t[1], 0) == 1.0);
    assert_true(get(t[2], 0) == 0.75);
    assert_true(brg_optim_lr(optim) == 0.5);
    assert_brg_ok(brg_optim_set_lr(optim, 0.0));
    assert_brg_ok(brg_optim_step(optim));
    assert_true(get(t[0], 0) == 0.75);
    assert_brg_fails(brg_optim_set_lr(optim, NAN), BRG_ERR_ARG);
    assert_brg_fails(brg_optim_set_lr(optim, -1), BRG_ERR_ARG);
    brg_optim_destroy(optim);
    brg_params_destroy(params);
    brg_scope_end(scope);
}

static void test_optim__zero_grad(void **state)
{
    (void)state;
    model m;
    model_init(&m, BRG_DTYPE_F32, 1, 1);
    assert_brg_ok(brg_optim_create_sgd(&m.optim, m.params, NULL));
    new_grad(&m);
    brg_tensor *grad = brg_tensor_grad(m.w);
    assert_brg_ok(brg_optim_zero_grad(m.optim, true));
    assert_ptr_equal(brg_tensor_grad(m.w), grad);
    for (size_t i = 0; i < N; i++)
        assert_true(get(grad, i) == 0);
    assert_brg_ok(brg_optim_zero_grad(m.optim, false));
    assert_null(brg_tensor_grad(m.w));
    assert_brg_ok(brg_optim_zero_grad(m.optim, true));
    assert_null(brg_tensor_grad(m.w));
    model_deinit(&m);
}

/* A gradient with other strides counts by its elements. */
static void test_optim__strided_gradient(void **state)
{
    (void)state;
    brg_scope *scope = brg_scope_begin();
    brg_params *params;
    assert_brg_ok(brg_params_create(&params));
    brg_tensor *w = brg_zeros(BRG_DTYPE_F32, BRG_SHAPE(2, 3));
    assert_brg_ok(brg_params_add(params, "w", w, BRG_PARAM_TRAINED));
    brg_tensor *base = brg_zeros(BRG_DTYPE_F32, BRG_SHAPE(3, 2));
    for (size_t i = 0; i < 6; i++)
        put(base, i, (double)i);
    brg_tensor *grad =
        brg_as_strided(base, BRG_SHAPE(2, 3), (const int64_t[]){1, 2}, 0);
    assert_brg_ok(brg_tensor_set_grad(w, grad));
    brg_sgd_options options = BRG_SGD_OPTIONS_INIT;
    options.lr = 1;
    brg_optim *optim;
    assert_brg_ok(brg_optim_create_sgd(&optim, params, &options));
    assert_brg_ok(brg_optim_step(optim));
    const double expected[] = {0, -2, -4, -1, -3, -5};
    for (size_t i = 0; i < 6; i++)
        assert_true(get(w, i) == expected[i]);
    brg_optim_destroy(optim);
    brg_params_destroy(params);
    brg_scope_end(scope);
}

/* ---- Memory ------------------------------------------------------------------------- */

static void test_optim__a_step_allocates_nothing(void **state)
{
    (void)state;
    for (int dtype = BRG_DTYPE_F64; dtype <= BRG_DTYPE_BF16; dtype++) {
        model m;
        model_init(&m, (brg_dtype)dtype, 1, 1);
        assert_brg_ok(brg_optim_create_adamw(&m.optim, m.params, NULL));
        new_grad(&m);
        brg_memory_stats before, after;
        brg_memory_get_stats(&before);
        for (int i = 0; i < 10; i++)
            assert_brg_ok(brg_optim_step(m.optim));
        brg_memory_get_stats(&after);
        assert_int_equal(after.n_allocs, before.n_allocs);
        assert_int_equal(after.n_requests, before.n_requests);
        model_deinit(&m);
    }
}

static brg_status create_and_step(void *user)
{
    const brg_dtype *dtype = user;
    brg_params *params = NULL;
    brg_optim *optim = NULL;
    brg_status status = BRG_ERR_NOMEM;
    brg_scope *scope = brg_scope_begin();
    brg_tensor *w = scope ? brg_zeros(*dtype, BRG_SHAPE(5)) : NULL;
    brg_tensor *grad = w ? brg_zeros(*dtype, BRG_SHAPE(5)) : NULL;
    if (!grad)
        goto out;
    brg_adamw_options options = BRG_ADAMW_OPTIONS_INIT;
    BRG_TRY_GOTO(brg_params_create(&params), out);
    BRG_TRY_GOTO(brg_params_add(params, "w", w, BRG_PARAM_TRAINED), out);
    BRG_TRY_GOTO(brg_tensor_set_grad(w, grad), out);
    BRG_TRY_GOTO(brg_optim_create_adamw(&optim, params, &options), out);
    status = brg_optim_step(optim);
out:
    brg_optim_destroy(optim);
    brg_params_destroy(params);
    brg_scope_end(scope);
    return status;
}

static void test_optim__out_of_memory(void **state)
{
    (void)state;
    brg_dtype dtypes[] = {BRG_DTYPE_F32, BRG_DTYPE_BF16};
    for (int i = 0; i < 2; i++)
        assert_true(assert_oom_clean(create_and_step, &dtypes[i]) > 10);
}

/* ---- Errors -------------------------------------------------------------------------- */

/* Two optimizers with a part each do what one with all of it does, and touch
 * nothing else; 16-bit ones have their master copies in parts too. */
static void check_ranges(brg_dtype dtype, bool is_sgd)
{
    const brg_optim_range ranges[2] = {{0, 29}, {29, N - 29}};
    model m, whole;
    brg_optim *parts[2];
    brg_sgd_options sgd = BRG_SGD_OPTIONS_INIT;
    brg_adamw_options adamw = BRG_ADAMW_OPTIONS_INIT;
    sgd.momentum = 0.9;
    model_init(&m, dtype, 1, 5);
    model_init(&whole, dtype, 1, 5);
    for (int k = 0; k < 3; k++) {
        brg_optim **out = k < 2 ? &parts[k] : &whole.optim;
        brg_params *params = k < 2 ? m.params : whole.params;
        sgd.ranges = adamw.ranges = k < 2 ? &ranges[k] : NULL;
        assert_brg_ok(is_sgd ? brg_optim_create_sgd(out, params, &sgd)
                             : brg_optim_create_adamw(out, params, &adamw));
    }
    assert_int_equal(brg_tensor_numel(brg_optim_state_at(parts[0], 1)->tensor),
                     29);
    assert_ptr_equal(brg_optim_state_param(parts[0], 1), m.w);
    assert_null(brg_optim_state_param(parts[0], 0));
    for (int t = 1; t <= 4; t++) {
        new_grad(&m);
        new_grad(&whole);
        double last = get(m.w, N - 1);
        assert_brg_ok(brg_optim_step(parts[0]));
        assert_true(get(m.w, N - 1) == last);
        assert_brg_ok(brg_optim_step(parts[1]));
        assert_brg_ok(brg_optim_step(whole.optim));
        assert_memory_equal(brg_tensor_data(m.w), brg_tensor_data(whole.w),
                            brg_tensor_nbytes(m.w));
    }
    for (int k = 0; k < 2; k++)
        brg_optim_destroy(parts[k]);
    model_deinit(&whole);
    model_deinit(&m);
}

static void test_optim__parts_make_up_the_whole(void **state)
{
    (void)state;
    for (int dtype = BRG_DTYPE_F64; dtype <= BRG_DTYPE_BF16; dtype++) {
        check_ranges((brg_dtype)dtype, false);
        check_ranges((brg_dtype)dtype, true);
    }
}

static void test_optim__a_range_must_be_inside(void **state)
{
    (void)state;
    model m;
    brg_adamw_options adamw = BRG_ADAMW_OPTIONS_INIT;
    adamw.ranges = &(brg_optim_range){N - 3, 4};
    model_init(&m, BRG_DTYPE_F32, 1, 5);
    assert_brg_fails_with(brg_optim_create_adamw(&m.optim, m.params, &adamw),
                          BRG_ERR_ARG, "the range of 4 elements from 64");
    model_deinit(&m);
}

static void test_optim__wrong_options(void **state)
{
    (void)state;
    brg_params *params;
    brg_optim *optim = (brg_optim *)state;
    assert_brg_ok(brg_params_create(&params));
    brg_sgd_options sgd = BRG_SGD_OPTIONS_INIT;
    assert_brg_fails(brg_optim_create_sgd(&optim, NULL, &sgd), BRG_ERR_ARG);
    assert_null(optim);
    sgd.nesterov = true;
    assert_brg_fails_with(brg_optim_create_sgd(&optim, params, &sgd),
                          BRG_ERR_ARG, "nesterov needs momentum");
    sgd.nesterov = false;
    sgd.lr = -1;
    assert_brg_fails_with(brg_optim_create_sgd(&optim, params, &sgd),
                          BRG_ERR_ARG, "lr -1");
    brg_adamw_options adamw = BRG_ADAMW_OPTIONS_INIT;
    adamw.beta1 = 1.0;
    assert_brg_fails_with(brg_optim_create_adamw(&optim, params, &adamw),
                          BRG_ERR_ARG, "beta1 1");
    adamw = (brg_adamw_options)BRG_ADAMW_OPTIONS_INIT;
    adamw.eps = -1;
    assert_brg_fails(brg_optim_create_adamw(&optim, params, &adamw),
                     BRG_ERR_ARG);
    adamw = (brg_adamw_options)BRG_ADAMW_OPTIONS_INIT;
    assert_brg_ok(brg_optim_create_adamw(&optim, params, &adamw));
    assert_brg_ok(brg_optim_step(optim)); /* of nothing */
    brg_optim_destroy(optim);
    brg_optim_destroy(NULL);
    brg_params_destroy(params);
}

/* The public functions do not let it come to this: reach inside. */
static void test_optim__a_changed_parameter_is_named(void **state)
{
    (void)state;
    model m;
    model_init(&m, BRG_DTYPE_F32, 1, 1);
    assert_brg_ok(brg_optim_create_sgd(&m.optim, m.params, NULL));
    new_grad(&m);
    m.w->shape[0] = N - 1;
    assert_brg_fails_with(brg_optim_step(m.optim), BRG_ERR_STATE,
                          "'w' is now f32[66]");
    m.w->shape[0] = N;
    brg_tensor *grad = brg_tensor_grad(m.w);
    grad->dtype = BRG_DTYPE_I32;
    assert_brg_fails_with(brg_optim_step(m.optim), BRG_ERR_DTYPE,
                          "gradient of 'w' is i32[67], expected f32");
    grad->dtype = BRG_DTYPE_F32;
    grad->shape[0] = 3;
    assert_brg_fails_with(brg_optim_step(m.optim), BRG_ERR_SHAPE,
                          "gradient of 'w'");
    grad->shape[0] = N;
    assert_brg_ok(brg_optim_step(m.optim));
    model_deinit(&m);
}

static void test_optim__row_major_parameters_only(void **state)
{
    (void)state;
    brg_scope *scope = brg_scope_begin();
    brg_params *params;
    assert_brg_ok(brg_params_create(&params));
    brg_tensor *base = brg_zeros(BRG_DTYPE_F32, BRG_SHAPE(3, 2));
    brg_tensor *t =
        brg_as_strided(base, BRG_SHAPE(2, 3), (const int64_t[]){1, 2}, 0);
    assert_brg_ok(brg_params_add(params, "turned", t, BRG_PARAM_TRAINED));
    brg_sgd_options options = BRG_SGD_OPTIONS_INIT;
    brg_optim *optim;
    assert_brg_fails_with(brg_optim_create_sgd(&optim, params, &options),
                          BRG_ERR_SHAPE, "'turned'");
    brg_params_destroy(params);
    brg_scope_end(scope);
}

int main(void)
{
    fail_alloc_install();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_optim__sgd_follows_its_formula),
        cmocka_unit_test(test_optim__adamw_follows_its_formula),
        cmocka_unit_test(test_optim__small_steps_add_up_in_bf16),
        cmocka_unit_test(test_optim__skips_what_has_no_gradient),
        cmocka_unit_test(test_optim__warns_where_nothing_has_a_gradient),
        cmocka_unit_test(test_optim__decay_and_rate_by_parameter),
        cmocka_unit_test(test_optim__zero_grad),
        cmocka_unit_test(test_optim__strided_gradient),
        cmocka_unit_test(test_optim__a_step_allocates_nothing),
        cmocka_unit_test(test_optim__out_of_memory),
        cmocka_unit_test(test_optim__parts_make_up_the_whole),
        cmocka_unit_test(test_optim__a_range_must_be_inside),
        cmocka_unit_test(test_optim__wrong_options),
        cmocka_unit_test(test_optim__a_changed_parameter_is_named),
        cmocka_unit_test(test_optim__row_major_parameters_only),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
