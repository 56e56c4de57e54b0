/* SPDX-License-Identifier: Apache-2.0
 * Help for the tests of matrix products, convolution, pooling and attention:
 * random tensors, their values as doubles, comparison with references that
 * are computed in f64. */
#ifndef BRG_TESTS_CORE_DENSE_H
#define BRG_TESTS_CORE_DENSE_H

#include <math.h>

#include <brigade/autograd.h>
#include <brigade/ops.h>

#include "tests/support/brg_test.h"

/* Uniform in [-1, 1), rounded to the dtype; not a leaf that needs grads. */
static inline brg_tensor *dense_random(uint64_t *seed, brg_dtype dtype,
                                       int ndim, const int64_t *shape)
{
    brg_tensor *t = assert_brg_some(brg_empty(BRG_DTYPE_F64, ndim, shape));
    double *x = brg_tensor_data(t);
    for (int64_t i = 0; i < brg_tensor_numel(t); i++)
        x[i] = brg_test_uniform(seed, -1.0, 1.0);
    if (dtype == BRG_DTYPE_F64)
        return t;
    return assert_brg_some(brg_cast(t, dtype));
}

/* The values in row-major order as doubles, of a tensor that lives in the
 * scope. NULL is passed on. */
static inline const double *dense_values(brg_tensor *t)
{
    if (!t)
        return NULL;
    brg_tensor *wide = assert_brg_some(brg_cast(t, BRG_DTYPE_F64));
    brg_tensor *copy = assert_brg_some(
        brg_empty(BRG_DTYPE_F64, brg_tensor_ndim(t), brg_tensor_shape(t)));
    assert_brg_ok(
        brg_tensor_read(wide, brg_tensor_data(copy), brg_tensor_nbytes(copy)));
    return brg_tensor_data(copy);
}

/* About the error of a sum of `depth` products of numbers below 1. */
static inline double dense_tolerance(brg_dtype dtype, double depth)
{
    const double eps = dtype == BRG_DTYPE_F64   ? 1e-15
                       : dtype == BRG_DTYPE_F32 ? 2.4e-7
                       : dtype == BRG_DTYPE_F16 ? 1e-3
                                                : 8e-3;
    return 4 * eps * (1 + sqrt(depth));
}

static inline void dense_check(brg_tensor *got, const double *expected,
                               double tolerance)
{
    const double *x = dense_values(assert_brg_some(got));
    for (int64_t i = 0; i < brg_tensor_numel(got); i++)
        if (!(fabs(x[i] - expected[i]) <=
              tolerance * (1 + fabs(expected[i])))) {
            char text[128];
            brg_tensor_describe(got, text, sizeof text);
            fail_msg("%s: element %lld is %.9g, expected %.9g", text,
                     (long long)i, x[i], expected[i]);
        }
}

/* Gradients of fn at inputs, all of which are f64 and become leaves. */
static inline void dense_gradcheck(brg_gradcheck_fn fn, void *user,
                                   brg_tensor *const *inputs, size_t n)
{
    for (size_t i = 0; i < n; i++)
        assert_brg_ok(brg_set_requires_grad(inputs[i], true));
    assert_brg_ok(brg_gradcheck(fn, user, inputs, n, NULL));
}

/* The same for the gradients themselves: gradcheck of
 * sum over i of <grad of <fn, w> by input i, input i>. `fn` has one output. */
typedef struct dense_twice {
    brg_gradcheck_fn fn;
    void *user;
    size_t n;
} dense_twice;

static inline brg_status dense_grad_fn(brg_tensor *const *inputs,
                                       brg_tensor **outputs, void *user)
{
    const dense_twice *d = user;
    brg_tensor *y = NULL, *grads[8] = {0}, *leaves[8];
    const bool mode = brg_grad_mode_set(true); /* off for the differences */
    for (size_t i = 0; i < d->n; i++) {
        leaves[i] = mode ? inputs[i] : brg_detach(inputs[i]);
        if (!mode)
            BRG_TRY(brg_set_requires_grad(leaves[i], true));
    }
    BRG_TRY(d->fn(leaves, &y, d->user));
    brg_tensor *loss = brg_sum_all(brg_mul(y, brg_sin(y)));
    brg_backward_options options = BRG_BACKWARD_OPTIONS_INIT;
    options.create_graph = true;
    BRG_TRY(brg_grad(grads, &loss, 1, leaves, d->n, &options));
    brg_tensor *sum = NULL;
    for (size_t i = 0; i < d->n; i++) {
        brg_tensor *term = brg_sum_all(brg_mul(grads[i], brg_cos(leaves[i])));
        sum = sum ? brg_add(sum, term) : term;
    }
    brg_grad_mode_set(mode);
    outputs[0] = sum;
    return sum ? BRG_OK : brg_error_code();
}

static inline void dense_gradgradcheck(brg_gradcheck_fn fn, void *user,
                                       brg_tensor *const *inputs, size_t n)
{
    dense_twice d = {fn, user, n};
    for (size_t i = 0; i < n; i++)
        assert_brg_ok(brg_set_requires_grad(inputs[i], true));
    assert_brg_ok(brg_gradcheck(dense_grad_fn, &d, inputs, n, NULL));
}

static inline int dense_setup(void **state)
{
    *state = brg_scope_begin();
    return *state ? 0 : -1;
}

static inline int dense_teardown(void **state)
{
    brg_scope_end(*state);
    return 0;
}

#define DENSE_TEST(fn)                                                         \
    cmocka_unit_test_setup_teardown(fn, dense_setup, dense_teardown)

#endif
