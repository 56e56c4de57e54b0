/* SPDX-License-Identifier: Apache-2.0
 * Short ways to write tensors and what they should hold. */
#ifndef BRG_TESTS_SUPPORT_VALUES_H
#define BRG_TESTS_SUPPORT_VALUES_H

#include <math.h>

#include <brigade/autograd.h>
#include <brigade/ops.h>

#include "tests/support/brg_test.h"

/* f32_values(BRG_SHAPE(2, 2), 1, 2, 3, 4) and the like. */
#define TENSOR_OF(dtype, type, shape, ...)                                     \
    (brg_tensor *)assert_brg_some(                                             \
        brg_from_data((dtype), shape, (const type[]){__VA_ARGS__}))

/* Every element of t as f64 is that of `want`, to `tolerance` (relative and
 * absolute); NaN equals NaN. */
#define assert_values(t, tolerance, ...)                                       \
    values__check((t), (tolerance), (const double[]){__VA_ARGS__},             \
                  sizeof((const double[]){__VA_ARGS__}) / sizeof(double),      \
                  __FILE__, __LINE__)

static inline double value_at(brg_tensor *t, int64_t i)
{
    brg_tensor *flat = brg_reshape(brg_detach(t), BRG_SHAPE(-1));
    double v = 0;
    assert_brg_ok(brg_tensor_item(brg_narrow(flat, 0, i, 1), &v));
    return v;
}

static inline void values__check(brg_tensor *t, double tolerance,
                                 const double *want, size_t n, const char *file,
                                 int line)
{
    if (!t)
        print_error("%s\n", brg_error_message());
    _assert_true(t != NULL, "a tensor", file, line);
    _assert_int_equal((uintmax_t)brg_tensor_numel(t), n, file, line);
    for (size_t i = 0; i < n; i++) {
        double v = value_at(t, (int64_t)i), w = want[i];
        bool is_same = v == w || (v != v && w != w) ||
                       fabs(v - w) <= tolerance * (1.0 + fabs(w));
        if (!is_same) {
            print_error("element %zu is %.9g, expected %.9g\n", i, v, w);
            _fail(file, line);
        }
    }
}

static inline void assert_shape_is(const brg_tensor *t, int ndim,
                                   const int64_t *shape)
{
    assert_non_null(t);
    assert_int_equal(brg_tensor_ndim(t), ndim);
    for (int d = 0; d < ndim; d++)
        assert_int_equal(brg_tensor_size(t, d), shape[d]);
}

/* Setup and teardown of a scope around each test. */
static inline int in_scope_setup(void **state)
{
    *state = brg_scope_begin();
    return *state ? 0 : -1;
}

static inline int in_scope_teardown(void **state)
{
    brg_scope_end(*state);
    return 0;
}

#define IN_SCOPE(test)                                                         \
    cmocka_unit_test_setup_teardown(test, in_scope_setup, in_scope_teardown)

#endif
