/* SPDX-License-Identifier: Apache-2.0
 * GPUs that cannot be used: none, a driver that is too old, kernels for others.
 * The texts say what was found, what was expected and what to do. */
#include <brigade/cuda.h>

#include "core/cuda/cu.h"
#include "tests/nccl/forked.h"

static brg_status load(const brg_device_vtable **table)
{
    brg_device_type type;
    return brg_device_cuda(brg_device_host_get(), &type, table);
}

static void expect(brg_status status, const char *const *texts)
{
    assert_int_equal(status, BRG_ERR_DEVICE);
    assert_int_equal(brg_error_code(), BRG_ERR_DEVICE);
    for (; *texts; texts++)
        if (!strstr(brg_error_message(), *texts))
            fail_msg("expected \"%s\" in: %s", *texts, brg_error_message());
}

#define EXPECT(status, ...)                                                    \
    expect((status), (const char *[]){__VA_ARGS__, NULL})

static void expect_no_load(int error, int driver, const char *const *texts)
{
    const brg_device_vtable *table;
    fake_gpu_set_none(error, driver);
    expect(load(&table), texts);
    assert_null(table);
    fake_gpu_set_none(0, CUDART_VERSION);
    assert_brg_ok(load(&table)); /* it may come */
    assert_non_null(table);
}

#define EXPECT_NO_LOAD(error, driver, ...)                                     \
    expect_no_load((error), (driver), (const char *[]){__VA_ARGS__, NULL})

static void test_no_gpu__no_driver(void **state)
{
    (void)state;
    char expected[40];
    snprintf(expected, sizeof expected, "expected one that supports CUDA %d;",
             CUDART_VERSION / 1000);
    EXPECT_NO_LOAD(cudaErrorInsufficientDriver, 0,
                   "no NVIDIA driver was found (libcuda.so.1)", expected,
                   "install it, or stay on the CPU");
}

static void test_no_gpu__a_driver_that_is_too_old(void **state)
{
    (void)state;
    char built[60];
    snprintf(built, sizeof built, "this library was built with %d.%d;",
             CUDART_VERSION / 1000, CUDART_VERSION % 1000 / 10);
    EXPECT_NO_LOAD(cudaErrorInsufficientDriver, 11080,
                   "the driver is too old: it supports CUDA 11.8, ", built,
                   "install a driver that supports CUDA");
}

static void test_no_gpu__none_to_be_seen(void **state)
{
    (void)state;
    (void)setenv("CUDA_VISIBLE_DEVICES", "7", 1);
    EXPECT_NO_LOAD(cudaErrorNoDevice, CUDART_VERSION,
                   "the driver finds no GPU (CUDA_VISIBLE_DEVICES is \"7\")",
                   "expected at least one", "nvidia-smi");
    (void)unsetenv("CUDA_VISIBLE_DEVICES");
    EXPECT_NO_LOAD(cudaErrorNoDevice, CUDART_VERSION,
                   "the driver finds no GPU; expected at least one");
}

static void test_no_gpu__another_trouble_of_the_driver(void **state)
{
    (void)state;
    EXPECT_NO_LOAD(cudaErrorSystemNotReady, CUDART_VERSION,
                   "looking for GPUs: ");
}

/* Told when the GPU is first used, and again, until it is another. */
static void test_no_gpu__kernels_for_other_gpus(void **state)
{
    static const int errors[] = {cudaErrorNoKernelImageForDevice,
                                 cudaErrorInvalidDeviceFunction};
    const brg_device_vtable *table;
    const brg_device gpu = {BRG_DEVICE_CUDA, 2};
    void *stream;
    (void)state;
    assert_brg_ok(load(&table));
    for (int i = 0; i < 2; i++) {
        fake_gpu_set_kernels(errors[i], 86);
        EXPECT(table->stream(gpu, &stream),
               "cuda:2 has compute capability 8.6, this library was built for ",
               "build it with -DBRG_CUDA_ARCHITECTURES=86 (");
    }
    fake_gpu_set_kernels(cudaErrorLaunchFailure, 86);
    EXPECT(table->stream(gpu, &stream), "the kernels of this library: ");
    fake_gpu_set_kernels(0, 90);
    assert_brg_ok(table->stream(gpu, &stream));
}

/* More blocks than there can be: refused by CUDA, and said so. */
static void test_no_gpu__more_rows_than_a_launch_takes(void **state)
{
    (void)state;
    assert_int_equal(brg__cu_grid(1), 1);
    assert_int_equal(brg__cu_grid(INT32_MAX), INT32_MAX);
    assert_int_equal(brg__cu_grid((int64_t)INT32_MAX + 1), 0);
    assert_int_equal(brg__cu_grid(((int64_t)1 << 32) + 5), 0);
    assert_brg_fails_with(
        brg__cu_check(cudaErrorInvalidConfiguration, "softmax"),
        BRG_ERR_UNSUPPORTED,
        "softmax: a launch of a size that the GPU does not take; tensors may "
        "have up to 2147483647 rows");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_no_gpu__no_driver),
        cmocka_unit_test(test_no_gpu__a_driver_that_is_too_old),
        cmocka_unit_test(test_no_gpu__none_to_be_seen),
        cmocka_unit_test(test_no_gpu__another_trouble_of_the_driver),
        cmocka_unit_test(test_no_gpu__kernels_for_other_gpus),
        cmocka_unit_test(test_no_gpu__more_rows_than_a_launch_takes),
    };
    return cmocka_run_group_tests_name("no_gpu", tests, NULL, NULL);
}
