/* SPDX-License-Identifier: Apache-2.0
 * Running something on the CPU and on the GPU and comparing what comes out. */
#ifndef BRG_TESTS_CUDA_COMPARE_H
#define BRG_TESTS_CUDA_COMPARE_H

#include <math.h>

#include <brigade/brigade.h>

#include "tests/support/brg_test.h"

#define CPU ((brg_device){BRG_DEVICE_CPU, 0})
#define GPU ((brg_device){BRG_DEVICE_CUDA, 0})

/* Loads the device, or says that nothing is tested; 0, or the exit status. */
static inline int require_gpu(void)
{
    brg_status status = brg_device_load("cuda");
    if (status == BRG_OK)
        return 0;
    printf("SKIPPED, nothing was tested: %s\n", brg_error_message());
    return status == BRG_ERR_DEVICE ? BRG_TEST_SKIPPED : 1;
}

/* ||a - b|| / ||b|| over all elements, as f64; fails on a NaN. */
static inline double distance(brg_tensor *a, brg_tensor *b)
{
    size_t n = (size_t)brg_tensor_numel(b);
    assert_int_equal(brg_tensor_numel(a), brg_tensor_numel(b));
    double *x = calloc(2 * n + 1, sizeof *x), *y = x + n;
    double diff = 0, all = 0;
    assert_non_null(x);
    brg_tensor *wide_a = assert_brg_some(brg_cast(a, BRG_DTYPE_F64));
    brg_tensor *wide_b = assert_brg_some(brg_cast(b, BRG_DTYPE_F64));
    assert_brg_ok(brg_tensor_read(wide_a, x, n * sizeof *x));
    assert_brg_ok(brg_tensor_read(wide_b, y, n * sizeof *y));
    for (size_t i = 0; i < n; i++) {
        diff += (x[i] - y[i]) * (x[i] - y[i]);
        all += y[i] * y[i];
    }
    free(x);
    double d = sqrt(diff) / (all > 0 ? sqrt(all) : 1.0);
    assert_true(d == d);
    return d;
}

/* ---- Tests in a scope of their own, that begin and end on the CPU ------------- */

static inline int begin_on_cpu(void **state)
{
    *state = brg_scope_begin();
    return brg_device_set(CPU);
}

static inline int end_on_cpu(void **state)
{
    int status = brg_device_set(CPU);
    brg_scope_end(*state);
    return status;
}

#define gpu_test(name)                                                         \
    cmocka_unit_test_setup_teardown(name, begin_on_cpu, end_on_cpu)

static inline brg_tensor *normal(brg_dtype dtype, int ndim,
                                 const int64_t *shape)
{
    return brg_cast(brg_randn(BRG_DTYPE_F32, ndim, shape), dtype);
}

#endif
