/* SPDX-License-Identifier: Apache-2.0
 * Backwards on the device made for tests, judged for replay. */
#ifndef BRG_TESTS_COMPILE_REPLAYS_H
#define BRG_TESTS_COMPILE_REPLAYS_H

#include <brigade/brigade.h>

#include "tests/rows/both.h"
#include "tests/support/recording_device.h"

static inline ROW_UNUSED brg_tensor *there(brg_tensor *t)
{
    return assert_brg_some(brg_to(t, THERE));
}

static inline ROW_UNUSED brg_tensor *leaf_there(double value, int ndim,
                                                const int64_t *shape)
{
    brg_tensor *t =
        there(assert_brg_some(brg_full(BRG_DTYPE_F32, ndim, shape, value)));
    assert_brg_ok(brg_set_requires_grad(t, true));
    return t;
}

static inline ROW_UNUSED void backward_replayed(brg_tensor *loss)
{
    int scope;
    brg_compile_options options = BRG_COMPILE_OPTIONS_INIT;
    options.replay = true;
    assert_brg_ok(brg_compile_begin(&scope, &options));
    assert_brg_ok(brg_backward(loss));
    assert_brg_ok(brg_compile_end(scope));
}

static inline ROW_UNUSED void expect_grad_there(const brg_tensor *leaf,
                                                double value)
{
    brg_tensor *grad = assert_brg_some(brg_tensor_grad(leaf));
    assert_int_equal(brg_tensor_device(grad).type, BRG_DEVICE_CUDA);
    expect_all(brg_to(grad, HOME), value);
}

static inline ROW_UNUSED void expect_counts(uint64_t captures, uint64_t replays,
                                            uint64_t skips)
{
    brg_compile_stats stats = both_stats();
    assert_int_equal(stats.fallbacks, 0);
    assert_int_equal(stats.captures, captures);
    assert_int_equal(stats.replays, replays);
    assert_int_equal(stats.replay_skips, skips);
}

static inline ROW_UNUSED void expect_skip(const char *why)
{
    brg_compile_record record;
    assert_true(brg_compile_get_record(0, &record));
    assert_int_equal(record.cause, BRG_COMPILE_REPLAY_SKIP);
    assert_non_null(strstr(record.text, why));
}

static inline ROW_UNUSED void expect_launches(uint64_t recordings,
                                              uint64_t launches)
{
    brg_compile_stats stats = both_stats();
    assert_int_equal(stats.replay_recordings, recordings);
    assert_int_equal(stats.replay_launches, launches);
}

/* BRG_TEST_REPLAYS=cuda: the real one; tensors are made on the CPU first. */
static inline ROW_UNUSED int register_fake_device(void **state)
{
    const char *name = getenv("BRG_TEST_REPLAYS");
    (void)state;
    if (!name || strcmp(name, "cuda") != 0)
        return brg_device_register(BRG_DEVICE_CUDA, &recording_device);
    brg_status status = brg_device_load("cuda");
    if (status == BRG_OK)
        return 0;
    printf("SKIPPED, nothing was tested: %s\n", brg_error_message());
    exit(status == BRG_ERR_DEVICE ? BRG_TEST_SKIPPED : 1);
}

#endif
