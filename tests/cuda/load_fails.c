/* SPDX-License-Identifier: Apache-2.0
 * With old_driver.c's library as the driver: libbrigade_cuda itself and the CUDA
 * runtime in it say so. */
#include <brigade/brigade.h>

#include "tests/support/brg_test.h"

static void test_load_fails__a_driver_that_is_too_old(void **state)
{
    (void)state;
    assert_brg_fails_with(brg_device_load("cuda"), BRG_ERR_DEVICE,
                          "the driver is too old: it supports CUDA 11.4, this "
                          "library was built with ");
    assert_int_equal(brg_device_count(BRG_DEVICE_CUDA), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_load_fails__a_driver_that_is_too_old),
    };
    return cmocka_run_group_tests_name("load_fails", tests, NULL, NULL);
}
