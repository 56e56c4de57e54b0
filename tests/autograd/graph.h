/* SPDX-License-Identifier: Apache-2.0
 * Small pieces that the autograd tests share. */
#ifndef BRG_TESTS_AUTOGRAD_GRAPH_H
#define BRG_TESTS_AUTOGRAD_GRAPH_H

#include <brigade/autograd.h>
#include <brigade/compile.h>
#include <brigade/function.h>
#include <brigade/ops.h>

#include "tests/support/brg_test.h"

/* Each test runs inside a scope of its own; with BRG_TEST_COMPILED=1 in the
 * environment also inside a compile scope: the eager suite must hold for
 * compiled backwards too, but for what DIVERGES_WHEN_COMPILED says. */
static inline bool is_compiled_run(void)
{
    const char *text = getenv("BRG_TEST_COMPILED");
    return text && strcmp(text, "1") == 0;
}

/* Ends a test of what a compiled backward does differently, and why. */
#define DIVERGES_WHEN_COMPILED(why)                                            \
    do {                                                                       \
        if (is_compiled_run()) {                                               \
            print_message("diverges when compiled: %s\n", (why));              \
            skip();                                                            \
        }                                                                      \
    } while (0)

static inline int scope_setup(void **state)
{
    int scope;
    if (brg_compile_reset() != BRG_OK ||
        (is_compiled_run() && brg_compile_begin(&scope, NULL) != BRG_OK))
        return -1;
    *state = brg_scope_begin();
    return *state ? 0 : -1;
}

static inline int scope_teardown(void **state)
{
    brg_scope_end(*state);
    return brg_compile_reset() == BRG_OK ? 0 : -1;
}

#define scoped_test(fn)                                                        \
    cmocka_unit_test_setup_teardown(fn, scope_setup, scope_teardown)

/* An f32 leaf that requires gradients, filled with value, value + 1, ... */
static inline brg_tensor *leaf_from(double value, int ndim,
                                    const int64_t *shape)
{
    brg_tensor *t = assert_brg_some(brg_empty(BRG_DTYPE_F32, ndim, shape));
    float *at = brg_tensor_data(t);
    for (int64_t i = 0; i < brg_tensor_numel(t); i++)
        at[i] = (float)(value + (double)i);
    assert_brg_ok(brg_set_requires_grad(t, true));
    return t;
}

static inline double item(const brg_tensor *t)
{
    double value = 0;
    assert_non_null(t);
    assert_brg_ok(brg_tensor_item(t, &value));
    return value;
}

/* Element i in row-major order. */
static inline double element(const brg_tensor *t, int64_t i)
{
    assert_non_null(t);
    size_t nbytes = brg_tensor_nbytes(t);
    float *values = malloc(nbytes + 1);
    assert_brg_ok(brg_tensor_read(t, values, nbytes));
    double value = values[i];
    free(values);
    return value;
}

/* ---- Compiled ----------------------------------------------------------------- */

/* FUNCTION(name) { ... }: a function to be compiled, from in[] to out[]. */
#define FUNCTION(name)                                                         \
    static brg_status name(__attribute__((unused)) brg_tensor *const *in,      \
                           __attribute__((unused)) size_t n_in,                \
                           __attribute__((unused)) brg_tensor **out,           \
                           __attribute__((unused)) size_t n_out,               \
                           __attribute__((unused)) void *user)

/* As a whole, or an error. */
static inline brg_compiled *compile_whole(brg_compiled_fn fn, void *user)
{
    brg_compile_options options = BRG_COMPILE_OPTIONS_INIT;
    options.whole = options.fullgraph = true;
    brg_compiled *c;
    assert_brg_ok(brg_compiled_create(&c, fn, user, &options));
    return c;
}

/* As a whole, or in pieces. */
static inline brg_compiled *compile_loosely(brg_compiled_fn fn, void *user)
{
    brg_compile_options options = BRG_COMPILE_OPTIONS_INIT;
    options.whole = true;
    brg_compiled *c;
    assert_brg_ok(brg_compiled_create(&c, fn, user, &options));
    return c;
}

static inline brg_compile_stats compile_stats(void)
{
    brg_compile_stats stats;
    brg_compile_get_stats(&stats);
    return stats;
}

/* With BRG_TEST_KERNELS=1 in the environment groups of plans are kernels in C,
 * whose bits may be others. */
static inline brg_compile_backend backend_of_run(void)
{
    return getenv("BRG_TEST_KERNELS") ? BRG_COMPILE_BACKEND_FUSED
                                      : BRG_COMPILE_BACKEND_DEFAULT;
}

/* brg_backward, eager or by a plan. */
static inline brg_status backward_as(brg_tensor *loss, bool is_planned)
{
    brg_compile_options options = BRG_COMPILE_OPTIONS_INIT;
    int scope;
    options.backend = backend_of_run();
    if (is_planned)
        BRG_TRY(brg_compile_begin(&scope, &options));
    brg_status status = brg_backward(loss);
    if (is_planned)
        BRG_TRY(brg_compile_end(scope));
    return status;
}

/* ---- Custom functions --------------------------------------------------------- */

/* new_function(.name = "Square", .n_outputs = 1, ...). */
#define new_function(...)                                                      \
    function_from((brg_function_def){.struct_size = sizeof(brg_function_def),  \
                                     __VA_ARGS__})

static inline brg_function *function_from(brg_function_def def)
{
    brg_function *function;
    assert_brg_ok(brg_function_create(&function, &def));
    return function;
}

#endif
