/* SPDX-License-Identifier: Apache-2.0
 * A function compiled whole against itself: two worlds of the same tensors and
 * optimizers, in one of which it is called, in the other its compiled form. Call
 * after call results, gradients, parameters, buffers, random numbers and failures
 * are the same bits. */
#ifndef BRG_TESTS_COMPILE_WORLDS_H
#define BRG_TESTS_COMPILE_WORLDS_H

#include <math.h>

#include <brigade/autocast.h>
#include <brigade/optim.h>
#include <brigade/random.h>
#include <brigade/sparse.h>

#include "tests/autograd/graph.h"

enum { N_CALLS = 4, N_PARAMS = 4, MAX_RESULTS = 3 };

typedef struct world {
    brg_tensor *w[N_PARAMS]; /* f32: 3 x 4, 4, 4 x 4, and 6 x 4, a table */
    brg_tensor *buffer;      /* 3 x 4 */
    brg_tensor *flat;        /* 12 */
    brg_tensor *x[2];        /* inputs of the function, 3 x 4 */
    brg_tensor *ids;         /* rows of the table */
    brg_params *params, *second;
    brg_optim *sgd, *adam; /* of the first two parameters, of the others */
    brg_compiled *inner;
    int call;
} world;

typedef struct whole_case {
    brg_compiled_fn fn;
    size_t n_in, n_out;
    bool is_step;   /* the backward is inside; else it follows */
    bool in_pieces; /* it cannot be captured */
    bool may_fail;  /* eagerly, too */
    bool is_loose;  /* gradients may differ in the order of their sums */
    void (*between)(world *w, int call);
    brg_compiled_fn inner; /* what w->inner is compiled from */
} whole_case;

#define W ((world *)user)
#define DONE(t) return (t) ? BRG_OK : brg_error_code()

/* ---- Worlds ------------------------------------------------------------------ */

static inline brg_tensor *small(double first, int ndim, const int64_t *shape)
{
    brg_tensor *t =
        brg_detach(brg_mul_scalar(leaf_from(first, ndim, shape), 0.0625));
    assert_brg_ok(brg_set_requires_grad(t, true));
    return t;
}

static inline void make_optims(world *w)
{
    static const char *const names[N_PARAMS] = {"w0", "w1", "w2", "w3"};
    brg_sgd_options sgd = BRG_SGD_OPTIONS_INIT;
    brg_adamw_options adam = BRG_ADAMW_OPTIONS_INIT;
    sgd.momentum = 0.5;
    assert_brg_ok(brg_params_create(&w->params));
    assert_brg_ok(brg_params_create(&w->second));
    for (int k = 0; k < N_PARAMS; k++)
        assert_brg_ok(brg_params_add(k < 2 ? w->params : w->second, names[k],
                                     w->w[k], BRG_PARAM_TRAINED));
    assert_brg_ok(brg_optim_create_sgd(&w->sgd, w->params, &sgd));
    assert_brg_ok(brg_optim_create_adamw(&w->adam, w->second, &adam));
}

static inline void make_world(world *w)
{
    static const int64_t ids[5] = {1, 0, 5, 1, 2};
    *w = (world){.w = {small(-1, BRG_SHAPE(3, 4)), small(2, BRG_SHAPE(4)),
                       small(-3, BRG_SHAPE(4, 4)), small(4, BRG_SHAPE(6, 4))},
                 .x = {small(1, BRG_SHAPE(3, 4)), small(-2, BRG_SHAPE(3, 4))},
                 .buffer = brg_ones(BRG_DTYPE_F32, BRG_SHAPE(3, 4)),
                 .flat = brg_ones(BRG_DTYPE_F32, BRG_SHAPE(12)),
                 .ids = brg_from_data(BRG_DTYPE_I64, BRG_SHAPE(5), ids)};
    make_optims(w);
}

/* Gradients with a history are cycles. */
static inline void free_world(world *w)
{
    for (int k = 0; k < N_PARAMS; k++)
        assert_brg_ok(brg_tensor_set_grad(w->w[k], NULL));
    for (int k = 0; k < 2; k++)
        if (w->x[k])
            assert_brg_ok(brg_tensor_set_grad(w->x[k], NULL));
    brg_optim_destroy(w->sgd);
    brg_optim_destroy(w->adam);
    brg_params_destroy(w->params);
    brg_params_destroy(w->second);
    brg_compiled_destroy(w->inner);
}

/* ---- Comparing ------------------------------------------------------------------ */

/* As near as one rounding to the dtype, or a few of f32. */
static inline bool is_near(brg_dtype dtype, brg_tensor *a, brg_tensor *b)
{
    double near = dtype == BRG_DTYPE_BF16  ? 0x1p-7
                  : dtype == BRG_DTYPE_F16 ? 0x1p-9
                                           : 1e-5;
    if (!brg_dtype_is_float(dtype))
        return false;
    a = brg_cast(a, BRG_DTYPE_F64);
    b = brg_cast(b, BRG_DTYPE_F64);
    const double *x = brg_tensor_data(a), *y = brg_tensor_data(b);
    for (int64_t i = 0; i < brg_tensor_numel(a); i++)
        if (!(fabs(x[i] - y[i]) <= near * (1 + fabs(x[i]))))
            return false;
    return true;
}

static inline void check_same(const char *what, brg_tensor *want,
                              brg_tensor *got, bool is_loose)
{
    if (!want && !got)
        return;
    if (!want || !got)
        fail_msg("%s: only the %s one is there", what,
                 want ? "eager" : "compiled");
    assert_int_equal(brg_tensor_is_sparse(want), brg_tensor_is_sparse(got));
    want = brg_to_dense(want);
    got = brg_to_dense(got);
    assert_int_equal(brg_tensor_dtype(want), brg_tensor_dtype(got));
    assert_int_equal(brg_tensor_ndim(want), brg_tensor_ndim(got));
    for (int d = 0; d < brg_tensor_ndim(want); d++)
        assert_int_equal(brg_tensor_size(want, d), brg_tensor_size(got, d));
    size_t n = brg_tensor_nbytes(want);
    void *a = malloc(n + 1), *b = malloc(n + 1);
    assert_brg_ok(brg_tensor_read(want, a, n));
    assert_brg_ok(brg_tensor_read(got, b, n));
    is_loose |= backend_of_run() == BRG_COMPILE_BACKEND_FUSED;
    bool is_same = memcmp(a, b, n) == 0 ||
                   (is_loose && is_near(brg_tensor_dtype(want), want, got));
    free(a);
    free(b);
    if (!is_same)
        fail_msg("%s: other values", what);
}

static inline void check_leaves(const whole_case *t, world *w)
{
    char what[32];
    for (int k = 0; k < N_PARAMS; k++) {
        snprintf(what, sizeof what, "parameter %d", k);
        check_same(what, w[0].w[k], w[1].w[k], t->is_loose);
        snprintf(what, sizeof what, "gradient %d", k);
        check_same(what, brg_tensor_grad(w[0].w[k]), brg_tensor_grad(w[1].w[k]),
                   t->is_loose);
    }
    for (int k = 0; k < 2; k++)
        check_same("gradient of an input", brg_tensor_grad(w[0].x[k]),
                   brg_tensor_grad(w[1].x[k]), t->is_loose);
    check_same("buffer", w[0].buffer, w[1].buffer, t->is_loose);
    check_same("flat buffer", w[0].flat, w[1].flat, t->is_loose);
}

/* Results of a step have no history. */
static inline void check_results(const whole_case *t, brg_tensor *const *want,
                                 brg_tensor *const *got)
{
    for (size_t j = 0; j < t->n_out; j++) {
        check_same("result", want[j], got[j], t->is_loose);
        if (t->is_step || !want[j])
            continue;
        assert_int_equal(brg_requires_grad(want[j]), brg_requires_grad(got[j]));
        check_same("gradient of a result", brg_tensor_grad(want[j]),
                   brg_tensor_grad(got[j]), t->is_loose);
    }
}

/* ---- Calls -------------------------------------------------------------------------- */

static inline brg_status backward_of(brg_tensor *const *out, size_t n,
                                     bool is_planned)
{
    brg_tensor *loss = NULL;
    for (size_t j = 0; j < n; j++) {
        if (!out[j] || !brg_requires_grad(out[j]))
            continue;
        brg_tensor *part =
            brg_cast(brg_mean_all(brg_mul(out[j], out[j])), BRG_DTYPE_F64);
        loss = loss ? brg_add(loss, part) : part;
    }
    return loss ? backward_as(loss, is_planned) : BRG_OK;
}

/* c: of the second world; NULL: eagerly, what it calls, too. */
static inline brg_status call_in(const whole_case *t, world *w, brg_compiled *c,
                                 bool is_planned, brg_tensor **out)
{
    bool before = brg_compile_force_eager(!c);
    brg_status status = c ? brg_compiled_call(c, w->x, t->n_in, out, t->n_out)
                          : t->fn(w->x, t->n_in, out, t->n_out, w);
    if (status == BRG_OK && !t->is_step)
        status = backward_of(out, t->n_out, c && is_planned);
    (void)brg_compile_force_eager(before);
    return status;
}

static inline void check_calls(const whole_case *t, world *w, brg_compiled *c,
                               bool is_planned)
{
    brg_random_state random[2] = {{.seed = 7}, {.seed = 7}};
    for (int i = 0; i < N_CALLS; i++) {
        brg_tensor *out[2][MAX_RESULTS] = {{0}};
        brg_status status[2];
        char text[2][256];
        for (int k = 0; k < 2; k++) {
            w[k].call = i;
            if (t->between)
                t->between(&w[k], i);
            brg_random_set_state(&random[k]);
            status[k] = call_in(t, &w[k], k ? c : NULL, is_planned, out[k]);
            snprintf(text[k], sizeof text[k], "%s", brg_error_message());
            brg_random_get_state(&random[k]);
        }
        if (status[0] != status[1])
            fail_msg("call %d: eager %d %s, compiled %d %s", i, status[0],
                     text[0], status[1], text[1]);
        if (status[0] != BRG_OK && !t->may_fail)
            fail_msg("call %d: %s", i, text[0]);
        if (status[0] != BRG_OK)
            continue;
        assert_memory_equal(&random[0], &random[1], sizeof random[0]);
        check_results(t, out[0], out[1]);
        check_leaves(t, w);
    }
}

/* With the backward that follows eager, or compiled. */
static inline void check_in(const whole_case *t, bool is_planned)
{
    world w[2];
    brg_compile_options options = BRG_COMPILE_OPTIONS_INIT;
    brg_compile_stats stats;
    brg_compiled *c;
    options.whole = true;
    options.backend = backend_of_run();
    brg_scope *scope = brg_scope_begin();
    for (int k = 0; k < 2; k++) {
        make_world(&w[k]);
        if (t->inner)
            assert_brg_ok(
                brg_compiled_create(&w[k].inner, t->inner, &w[k], &options));
    }
    assert_brg_ok(brg_compiled_create(&c, t->fn, &w[1], &options));
    check_calls(t, w, c, is_planned);
    (void)brg_grad_mode_set(true);
    assert_brg_ok(brg_autocast_set((brg_autocast){0}, NULL));
    brg_compile_get_stats(&stats);
    assert_int_equal(stats.function_fallbacks > 0, t->in_pieces);
    brg_compiled_destroy(c);
    free_world(&w[0]);
    free_world(&w[1]);
    brg_scope_end(scope);
    assert_brg_ok(brg_compile_reset());
}

static inline void check_whole(const whole_case *t)
{
    check_in(t, false);
    if (!t->is_step)
        check_in(t, true);
}

/* CHECK(function, inputs, results, .is_step = true, ..) */
#define CHECK(function, inputs, ...)                                           \
    do {                                                                       \
        print_message("    %s\n", #function);                                  \
        check_whole(&(whole_case){                                             \
            .fn = (function), .n_in = (inputs), .n_out = __VA_ARGS__});        \
    } while (0)

#endif
