/* SPDX-License-Identifier: Apache-2.0
 * A device of which a copy, or an allocation, fails: whatever asked for it says
 * so, and gives back what it held, on the device and on the host. Every copy
 * and allocation of a body fails once, and every allocation of the host's. */
#include <brigade/brigade.h>

#include "core/ops/op.h"
#include "core/tensor/device.h"
#include "tests/support/brg_test.h"
#include "tests/support/fail_alloc.h"
#include "tests/support/fake_device.h"
#include "tests/support/temp_dir.h"

typedef brg_status (*body_fn)(void);

#define MAX_FAULTS 2000
#define TRY_TENSOR(t)                                                          \
    do {                                                                       \
        if (!(t))                                                              \
            return brg_error_code();                                           \
    } while (0)

/* ---- Sweeps -------------------------------------------------------------------- */

static brg_status run(body_fn body)
{
    brg_device before = brg_device_get();
    brg_scope *scope = brg_scope_begin();
    if (!scope)
        return BRG_ERR_NOMEM;
    seen.n_copies = seen.n_allocs = 0;
    brg_status status = body();
    brg_scope_end(scope);
    assert_brg_ok(brg_device_set(before));
    return status;
}

/* `failing` counts up until the body gets through; NULL: the host's. Returns
 * the number of runs that failed. */
static int64_t sweep(body_fn body, int64_t *failing, brg_status expected)
{
    for (int64_t n = failing ? 1 : 0;; n++) {
        brg_memory_stats before, after;
        brg_memory_trim();
        brg_memory_get_stats(&before);
        brg_error_clear();
        if (failing)
            *failing = n;
        else
            fail_alloc_arm(n);
        brg_status status = run(body);
        int64_t n_refused = fail_alloc_disarm();
        seen.failing_copy = seen.failing_alloc = 0;
        brg_memory_get_stats(&after);
        if (after.in_use != before.in_use || seen.n_blocks != 0)
            fail_msg("fault %lld: %lld bytes and %lld blocks were lost; %s",
                     (long long)n, (long long)(after.in_use - before.in_use),
                     (long long)seen.n_blocks, brg_error_message());
        bool is_through = failing == &seen.failing_copy ? seen.n_copies < n
                          : failing                     ? seen.n_allocs < n
                                                        : n_refused == 0;
        if (is_through) {
            assert_int_equal(status, BRG_OK);
            return failing ? n - 1 : n;
        }
        if (status != expected || brg_error_code() != expected ||
            brg_error_message()[0] == '\0')
            fail_msg("fault %lld: %s: %s", (long long)n,
                     brg_status_name(status), brg_error_message());
        assert_true(n < MAX_FAULTS);
    }
}

static void sweep_all(body_fn body)
{
    assert_brg_ok(run(body)); /* what stays for good is there */
    int64_t copies = sweep(body, &seen.failing_copy, BRG_ERR_DEVICE);
    int64_t allocs = sweep(body, &seen.failing_alloc, BRG_ERR_NOMEM);
    int64_t host = sweep(body, NULL, BRG_ERR_NOMEM);
    print_message("%lld copies, %lld and %lld allocations there and here\n",
                  (long long)copies, (long long)allocs, (long long)host);
    assert_true(allocs > 0 && host > 0);
}

/* ---- Bodies --------------------------------------------------------------------- */

static brg_tensor *values_there(int64_t rows, int64_t columns)
{
    float v[64];
    for (int i = 0; i < 64; i++)
        v[i] = 0.1f * (float)(i % 7);
    return brg_to(brg_from_data(BRG_DTYPE_F32, BRG_SHAPE(rows, columns), v),
                  THERE);
}

static brg_status train(void)
{
    brg_tensor *x = values_there(4, 3), *w = values_there(2, 3);
    TRY_TENSOR(x && w);
    BRG_TRY(brg_set_requires_grad(w, true));
    for (int step = 0; step < 2; step++) {
        brg_tensor *y = brg_linear(x, w, NULL);
        y = brg_softmax(brg_tanh(brg_transpose(y, 0, 1)), -1);
        BRG_TRY(brg_backward(brg_mean_all(brg_square(y))));
    }
    double v;
    return brg_tensor_item(brg_sum_all(brg_tensor_grad(w)), &v);
}

static brg_status checkpointed(brg_tensor *const *in, brg_tensor **out,
                               void *user)
{
    (void)user;
    out[0] = brg_mul(brg_dropout(in[0], 0.5, true), brg_exp(in[0]));
    return out[0] ? BRG_OK : brg_error_code();
}

static brg_status recompute(void)
{
    brg_tensor *x = values_there(4, 3), *y = NULL;
    TRY_TENSOR(x);
    BRG_TRY(brg_set_requires_grad(x, true));
    BRG_TRY(brg_recompute(&y, checkpointed, NULL, &x, 1, NULL));
    return brg_backward(brg_sum_all(y));
}

static brg_status offload(void)
{
    brg_offload_options options = BRG_OFFLOAD_OPTIONS_INIT;
    options.kind = BRG_OFFLOAD_DISK;
    options.folder = temp_path(".");
    options.min_bytes = 1;
    brg_tensor *x = values_there(4, 3);
    TRY_TENSOR(x);
    BRG_TRY(brg_set_requires_grad(x, true));
    BRG_TRY(brg_offload_begin(&options));
    brg_tensor *y = brg_exp(brg_transpose(brg_mul_scalar(x, 2), 0, 1));
    brg_status status = y ? BRG_OK : brg_error_code();
    assert_brg_ok(brg_offload_end());
    return status == BRG_OK ? brg_backward(brg_sum_all(y)) : status;
}

/* Between the memories, with strides on both sides. */
static brg_status move(void)
{
    const float v[] = {1, 2, 3, 4, 5, 6};
    brg_tensor *there = values_there(2, 3), *back;
    brg_tensor *home = brg_from_data(BRG_DTYPE_F32, BRG_SHAPE(3, 2), v);
    TRY_TENSOR(there && home);
    brg_tensor *turned = brg_transpose(there, 0, 1);
    TRY_TENSOR(turned);
    BRG_TRY(brg_copy_(turned, home));
    TRY_TENSOR(back = brg_transpose(home, 0, 1));
    BRG_TRY(brg_copy_(back, there));
    BRG_TRY(brg_normal_(turned, 0, 1));
    brg_tensor *wide = brg_to(brg_cast(turned, BRG_DTYPE_F64), HOME);
    TRY_TENSOR(wide);
    float read[6];
    return brg_tensor_read(turned, read, sizeof read);
}

static brg_status made_there(void)
{
    BRG_TRY(brg_device_set(THERE));
    brg_tensor *t = brg_randn(BRG_DTYPE_F32, BRG_SHAPE(5));
    TRY_TENSOR(t && brg_arange(BRG_DTYPE_I64, 0, 5, 1));
    TRY_TENSOR(brg_randint(0, 9, BRG_SHAPE(4)) && brg_randperm(6));
    TRY_TENSOR(brg_full(BRG_DTYPE_F64, BRG_SHAPE(2, 2), 1.5));
    TRY_TENSOR(brg_cat((brg_tensor *[]){t, t}, 2, 0));
    return BRG_OK;
}

/* To and from files: the parameters keep what they had, or have all. */
static brg_status file(void)
{
    const char *path = temp_path("there.safetensors");
    brg_tensor *t = values_there(2, 3), *loaded = NULL;
    TRY_TENSOR(t);
    brg_tensor *turned = brg_transpose(t, 0, 1);
    TRY_TENSOR(turned);
    const brg_named_tensor list[] = {{"t", t}, {"turned", turned}};
    BRG_TRY(brg_safetensors_save(path, list, 2, NULL, 0));
    brg_safetensors *opened;
    BRG_TRY(brg_safetensors_open(&opened, path));
    brg_status status = brg_safetensors_read(opened, "turned", turned);
    if (status == BRG_OK)
        status = brg_safetensors_load(&loaded, opened, "t");
    brg_release(loaded);
    brg_safetensors_close(opened);
    return status;
}

static brg_status optimize_with(brg_params *params, brg_optim **optim)
{
    brg_adamw_options adamw = BRG_ADAMW_OPTIONS_INIT;
    brg_tensor *w = values_there(2, 3);
    TRY_TENSOR(w);
    BRG_TRY(brg_params_add(params, "w", w, BRG_PARAM_TRAINED));
    BRG_TRY(brg_optim_create_adamw(optim, params, &adamw));
    BRG_TRY(brg_backward(brg_sum_all(brg_square(w))));
    BRG_TRY(brg_optim_step(*optim));
    brg_checkpoint c = BRG_CHECKPOINT_INIT;
    c.params = params;
    c.optim = *optim;
    BRG_TRY(brg_checkpoint_save(temp_path("run"), &c));
    return brg_checkpoint_load(&c, temp_path("run"));
}

static brg_status optimize(void)
{
    brg_params *params;
    brg_optim *optim = NULL;
    BRG_TRY(brg_params_create(&params));
    brg_status status = optimize_with(params, &optim);
    brg_optim_destroy(optim);
    brg_params_destroy(params);
    return status;
}

#define FAULT_TEST(name)                                                       \
    static void test_device_faults__##name(void **state)                       \
    {                                                                          \
        (void)state;                                                           \
        sweep_all(name);                                                       \
    }

FAULT_TEST(train)
FAULT_TEST(recompute)
FAULT_TEST(offload)
FAULT_TEST(move)
FAULT_TEST(made_there)
FAULT_TEST(file)
FAULT_TEST(optimize)

int main(void)
{
    fail_alloc_install();
    if (brg_device_register(BRG_DEVICE_CUDA, &fake) != BRG_OK)
        return 1;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_device_faults__train),
        cmocka_unit_test(test_device_faults__recompute),
        cmocka_unit_test(test_device_faults__offload),
        cmocka_unit_test(test_device_faults__move),
        cmocka_unit_test(test_device_faults__made_there),
        cmocka_unit_test(test_device_faults__file),
        cmocka_unit_test(test_device_faults__optimize),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
