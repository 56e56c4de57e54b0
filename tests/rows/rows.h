/* SPDX-License-Identifier: Apache-2.0
 * What the tests of the specification's rows share: short forms for writing a
 * custom function, and for comparing its values and gradients. */
#ifndef BRG_TESTS_ROWS_ROWS_H
#define BRG_TESTS_ROWS_ROWS_H

#include <math.h>

#include <brigade/function.h>

#include "tests/autograd/graph.h"

#define ROW_UNUSED __attribute__((unused))

/* ---- Writing functions -------------------------------------------------------- */

#define FORWARD(name)                                                          \
    static brg_status name(ROW_UNUSED brg_context *ctx,                        \
                           ROW_UNUSED const brg_value *args,                   \
                           ROW_UNUSED size_t n_args, brg_value *out)
#define BACKWARD(name)                                                         \
    static brg_status name(ROW_UNUSED brg_context *ctx,                        \
                           ROW_UNUSED brg_tensor *const *g,                    \
                           ROW_UNUSED brg_tensor **gi, ROW_UNUSED size_t *n)

/* The i-th argument as a tensor. */
#define ARG(i) (args[i].as.tensor)
/* Stores an expression and stops if it failed. */
#define OUT(j, expr)                                                           \
    do {                                                                       \
        out[j] = brg_value_tensor(expr);                                       \
        if (!out[j].as.tensor)                                                 \
            return brg_error_code();                                           \
    } while (0)
#define GRAD(i, expr)                                                          \
    do {                                                                       \
        if (!(gi[i] = (expr)))                                                 \
            return brg_error_code();                                           \
    } while (0)
#define SAVE(...)                                                              \
    BRG_TRY(brg_context_save(ctx, (brg_tensor *[]){__VA_ARGS__},               \
                             sizeof((brg_tensor *[]){__VA_ARGS__}) /           \
                                 sizeof(brg_tensor *)))
/* Declares `name` as the i-th saved tensor. */
#define SAVED(name, i)                                                         \
    brg_tensor *name;                                                          \
    BRG_TRY(brg_context_saved(ctx, i, &name))

typedef brg_status (*row_forward)(brg_context *, const brg_value *, size_t,
                                  brg_value *);
typedef brg_status (*row_backward)(brg_context *, brg_tensor *const *,
                                   brg_tensor **, size_t *);

/* A function that plans meet in this way. */
static inline ROW_UNUSED brg_function *
function_traced(brg_function_tracing tracing, const char *name,
                row_forward forward, row_backward backward, size_t n_outputs)
{
    return new_function(.name = name, .forward = forward, .backward = backward,
                        .n_outputs = n_outputs, .tracing = tracing);
}

static inline ROW_UNUSED brg_function *function_of(const char *name,
                                                   row_forward forward,
                                                   row_backward backward,
                                                   size_t n_outputs)
{
    return new_function(.name = name, .forward = forward, .backward = backward,
                        .n_outputs = n_outputs);
}

/* Calls f with tensor arguments. */
#define CALL(f, ...)                                                           \
    row_call((f), (brg_tensor *[]){__VA_ARGS__},                               \
             sizeof((brg_tensor *[]){__VA_ARGS__}) / sizeof(brg_tensor *))

static inline ROW_UNUSED brg_tensor *
row_call(const brg_function *f, brg_tensor *const *tensors, size_t n)
{
    brg_value args[BRG_MAX_FUNCTION_ARGS];
    for (size_t i = 0; i < n; i++)
        args[i] = brg_value_tensor(tensors[i]);
    return assert_brg_some(brg_function_call(f, args, n));
}

/* Calls f with any values into out[]. */
#define APPLY(f, out, ...)                                                     \
    brg_function_apply(                                                        \
        (f), (const brg_value[]){__VA_ARGS__},                                 \
        sizeof((const brg_value[]){__VA_ARGS__}) / sizeof(brg_value), (out))

/* ---- Comparing ------------------------------------------------------------------- */

static inline ROW_UNUSED void expect_all(const brg_tensor *t, double value)
{
    assert_non_null(t);
    for (int64_t i = 0; i < brg_tensor_numel(t); i++)
        assert_float_equal(element(t, i), value, 1e-5 + 1e-5 * fabs(value));
}

static inline ROW_UNUSED void expect_values(const brg_tensor *t,
                                            const double *v)
{
    assert_non_null(t);
    for (int64_t i = 0; i < brg_tensor_numel(t); i++)
        assert_float_equal(element(t, i), v[i], 1e-5 + 1e-5 * fabs(v[i]));
}

#define EXPECT_VALUES(t, ...) expect_values((t), (const double[]){__VA_ARGS__})

/* A leaf of ones times value. */
static inline ROW_UNUSED brg_tensor *leaf_full(double value, int ndim,
                                               const int64_t *shape)
{
    brg_tensor *t =
        assert_brg_some(brg_full(BRG_DTYPE_F32, ndim, shape, value));
    assert_brg_ok(brg_set_requires_grad(t, true));
    return t;
}

static inline ROW_UNUSED void backward_of_sum(brg_tensor *y)
{
    assert_brg_ok(brg_backward(brg_sum_all(y)));
}

#endif
