/* SPDX-License-Identifier: Apache-2.0
 * Features of a ddp whose parameters are on a device: the checks that run on the
 * CPU, on one whose memory the host may not touch. On GPUs they are in
 * tests/cuda/test_features_mpi.c. */
#include "tests/reducer/feature_list.h"
#include "tests/reducer/made_up_device.h"

#define DEVICE_TEST(name)                                                      \
    static brg_status name##_there(world *w, const run *r)                     \
    {                                                                          \
        (void)r;                                                               \
        return check_##name(w->pg);                                            \
    }                                                                          \
    static void test_device_ddp__##name(void **state)                          \
    {                                                                          \
        (void)state;                                                           \
        run r = make_run(name##_there);                                        \
        r.is_bare = true;                                                      \
        run_worlds(&r);                                                        \
    }

FEATURE_LIST(DEVICE_TEST)

#define LISTED(name) TEST(test_device_ddp__##name),

int main(void)
{
    const struct CMUnitTest tests[] = {FEATURE_LIST(LISTED)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
