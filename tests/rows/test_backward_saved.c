/* SPDX-License-Identifier: Apache-2.0
 * Rows of the backward suite: saved tensors and the hooks that pack them. */
#include <brigade/offload.h>

#include "tests/rows/both.h"
#include "tests/rows/rows.h"
#include "tests/support/fake_device.h"
#include "tests/support/temp_dir.h"

/* ---- Hooks that count ------------------------------------------------------------ */

typedef struct counts {
    int n_pack, n_unpack, n_free;
    int n_unpack_at_hook; /* when the hook of the loss ran */
    int n_hook;
} counts;

static brg_status count_pack(brg_tensor *t, void **packed, void *user)
{
    ((counts *)user)->n_pack++;
    *packed = brg_retain(t);
    return BRG_OK;
}

static brg_status count_unpack(void *packed, brg_tensor **out, void *user)
{
    ((counts *)user)->n_unpack++;
    *out = packed;
    return BRG_OK;
}

static void count_free(void *packed, void *user)
{
    ((counts *)user)->n_free++;
    brg_release(packed);
}

static brg_status loss_hook(brg_tensor *grad, brg_tensor **replacement,
                            void *user)
{
    (void)grad;
    (void)replacement;
    counts *c = user;
    c->n_hook++;
    c->n_unpack_at_hook = c->n_unpack;
    return BRG_OK;
}

static void test_saved_tensor_unpack_hook_ordering_body(yields *out)
{
    counts c = {0};
    brg_pack_hooks hooks = BRG_PACK_HOOKS_INIT;
    hooks.pack = count_pack;
    hooks.unpack = count_unpack;
    hooks.free = count_free;
    hooks.user = &c;
    brg_tensor *x = leaf_full(1, BRG_SHAPE(4));
    brg_tensor *y = brg_full(BRG_DTYPE_F32, BRG_SHAPE(4), 3);
    assert_brg_ok(brg_pack_hooks_push(&hooks));
    brg_tensor *loss = brg_sum_all(brg_mul(x, y));
    assert_brg_ok(brg_pack_hooks_pop());
    assert_brg_ok(brg_tensor_add_hook(NULL, loss, loss_hook, &c, NULL));
    assert_int_equal(c.n_pack, 1); /* only y: x has no part in x's gradient */
    assert_int_equal(c.n_unpack, 0);
    assert_brg_ok(brg_backward(loss));
    assert_int_equal(c.n_hook, 1);
    assert_int_equal(c.n_unpack_at_hook, 0);
    assert_int_equal(c.n_unpack, 1);
    assert_int_equal(c.n_pack, 1);
    assert_int_equal(c.n_free, 1);
    expect_all(brg_tensor_grad(x), 3);
    yield_grad(out, x);
}

/* In the plan: the hook of the loss, the gradient of the sum, then the unpack
 * right before what uses it. */
static void test_saved_tensor_unpack_hook_ordering(void **state)
{
    (void)state;
    run_both(test_saved_tensor_unpack_hook_ordering_body, 1);
    const char *text = plan_text(0);
    const char *hook = strstr(text, "tensor_hooks@");
    const char *unpack = strstr(text, "= unpack@");
    assert_non_null(hook);
    assert_non_null(unpack);
    assert_true(hook < unpack);
    const char *next = strchr(unpack, '\n');
    assert_non_null(next);
    assert_non_null(strstr(next, "= mul("));
    assert_true(strstr(next, "= mul(") < strchr(next + 1, '\n'));
    assert_null(strstr(next, "unpack@"));
}

/* ---- Offload ------------------------------------------------------------------------- */

FORWARD(matmul_forward)
{
    SAVE(ARG(0), ARG(1));
    OUT(0, brg_matmul(ARG(0), ARG(1)));
    return BRG_OK;
}

BACKWARD(matmul_backward)
{
    SAVED(a, 0);
    SAVED(b, 1);
    GRAD(0, brg_matmul(g[0], brg_transpose(b, 0, 1)));
    GRAD(1, brg_matmul(brg_transpose(a, 0, 1), g[0]));
    return BRG_OK;
}

static void offload_run(const brg_function *f, int64_t n, brg_tensor **grads)
{
    brg_tensor *x = leaf_from(0.5, BRG_SHAPE(n, 4));
    brg_tensor *w = leaf_from(-2, BRG_SHAPE(4, 3));
    brg_tensor *h = CALL(f, brg_mul_scalar(x, 0.5), brg_tanh(w));
    backward_of_sum(brg_mul(brg_sin(h), h));
    grads[0] = brg_tensor_grad(x);
    grads[1] = brg_tensor_grad(w);
}

/* Five sizes. */
static void offload_sizes(yields *y, const brg_offload_options *options)
{
    static const int64_t sizes[] = {10, 100, 10, 15, 20};
    brg_function *f = function_of("MatMul", matmul_forward, matmul_backward, 1);
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
        brg_tensor *got[2];
        if (options)
            assert_brg_ok(brg_offload_begin(options));
        offload_run(f, sizes[s], got);
        if (options)
            assert_brg_ok(brg_offload_end());
        assert_int_equal(temp_count(), 0);
        yield(y, got[0]);
        yield(y, got[1]);
    }
    brg_function_release(f);
}

static void offload_plain_body(yields *y)
{
    offload_sizes(y, NULL);
}

static void offload_host_body(yields *y)
{
    brg_offload_options options = BRG_OFFLOAD_OPTIONS_INIT;
    options.kind = BRG_OFFLOAD_HOST_MEMORY;
    offload_sizes(y, &options);
}

static void offload_disk_body(yields *y)
{
    brg_offload_options options = BRG_OFFLOAD_OPTIONS_INIT;
    options.kind = BRG_OFFLOAD_DISK;
    options.folder = temp_path(".");
    offload_sizes(y, &options);
}

/* The values of a run without offload, eagerly and in one plan for all sizes,
 * where what ops saved comes back by unpack steps. */
static void check_offload(both_body body)
{
    yields want = run_one(offload_plain_body, false);
    yields got = run_one(body, false);
    assert_int_equal(want.n, got.n);
    assert_memory_equal(want.at, got.at, want.n);
    free(want.at);
    free(got.at);
    run_both(body, 1);
    const char *text = plan_text(0);
    assert_non_null(strstr(text, "= unpack@"));
    assert_non_null(strstr(text, "call@"));
}

/* ---- To another device and back ------------------------------------------------------ */

static brg_status move_pack(brg_tensor *t, void **packed, void *user)
{
    (void)user;
    *packed = brg_retain(brg_to(t, THERE));
    return *packed ? BRG_OK : brg_error_code();
}

static brg_status move_unpack(void *packed, brg_tensor **out, void *user)
{
    if (brg_tensor_device(packed).type != THERE.type)
        return brg_error_set(BRG_ERR_INTERNAL, __FILE__, __LINE__, "moved");
    ++*(int *)user;
    *out = brg_to(packed, HOME);
    return *out ? BRG_OK : brg_error_code();
}

static void move_free(void *packed, void *user)
{
    (void)user;
    brg_release(packed);
}

static void moved_body(yields *y)
{
    static const int64_t sizes[] = {10, 100, 10, 15, 20};
    int n_unpacked = 0;
    brg_pack_hooks hooks = BRG_PACK_HOOKS_INIT;
    hooks.pack = move_pack;
    hooks.unpack = move_unpack;
    hooks.free = move_free;
    hooks.user = &n_unpacked;
    brg_function *f = function_traced(BRG_FUNCTION_TRACEABLE, "MatMul",
                                      matmul_forward, matmul_backward, 1);
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
        brg_tensor *x = leaf_from(0.5, BRG_SHAPE(sizes[s], 4));
        brg_tensor *w = leaf_from(-2, BRG_SHAPE(4, 3));
        assert_brg_ok(brg_pack_hooks_push(&hooks));
        brg_tensor *loss = brg_sum_all(CALL(f, x, w));
        assert_brg_ok(brg_pack_hooks_pop());
        assert_int_equal(seen.n_blocks, 2); /* x and w are there */
        assert_brg_ok(brg_backward(loss));
        assert_int_equal(n_unpacked, 2 * (int)(s + 1));
        assert_int_equal(seen.n_blocks, 0);
        yield_grad(y, x);
        yield_grad(y, w);
    }
    brg_function_release(f);
}

/* Each unpack, of one saved tensor of the function, stands right before what
 * uses it. */
static void check_golden_moved(void)
{
    const char *text = plan_text(0);
    const char *nodes = strstr(text, "\nv2");
    assert_non_null(nodes);
    assert_string_equal(nodes, "\nv2 f32/2 = unsqueeze(in0)\n"
                               "v3 f32/2 = expand_like(v2, in1)\n"
                               "v6 f32/2 = unpack@1()\n"
                               "v7 f32/2 = permute(v6)\n"
                               "v8 f32/2 = matmul(v3, v7)\n"
                               "v11 f32/2 = validate@1[0](v8)\n"
                               "accumulate@2(v11)\n"
                               "v5 f32/2 = unpack@1()\n"
                               "v9 f32/2 = permute(v5)\n"
                               "v10 f32/2 = matmul(v9, v3)\n"
                               "v12 f32/2 = validate@1[1](v10)\n"
                               "accumulate@3(v12)\n"
                               "final_callbacks()\n");
}

static void test_cpu_offloading(void **state)
{
    (void)state;
    check_offload(offload_host_body);
    assert_brg_ok(brg_device_register(BRG_DEVICE_CUDA, &fake));
    run_both(moved_body, 1);
    assert_int_equal(both_stats().hits, 4);
    assert_int_equal(both_stats().splits, 0);
    check_golden_moved();
}

/* One load, in a function: the plan is cut there. */
static void one_load_body(yields *y)
{
    static const int64_t sizes[] = {10, 100, 10, 15, 20};
    brg_offload_options options = BRG_OFFLOAD_OPTIONS_INIT;
    options.kind = BRG_OFFLOAD_DISK;
    options.folder = temp_path(".");
    brg_function *f = function_of("MatMul", matmul_forward, matmul_backward, 1);
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
        brg_tensor *x = leaf_from(0.5, BRG_SHAPE(sizes[s], 4));
        brg_tensor *w = leaf_from(-2, BRG_SHAPE(4, 3));
        assert_brg_ok(brg_offload_begin(&options));
        brg_tensor *loss = brg_sum_all(CALL(f, x, w));
        assert_brg_ok(brg_offload_end());
        assert_brg_ok(brg_backward(loss));
        yield_grad(y, x);
        yield_grad(y, w);
    }
    brg_function_release(f);
}

static void test_disk_offloading(void **state)
{
    (void)state;
    check_offload(offload_disk_body);
    assert_true(both_stats().splits > 0);
    run_counted(one_load_body, 1, 2);
    assert_int_equal(both_stats().splits, 1);
    assert_int_equal(both_stats().hits, 4);
    /* In host memory nothing is cut. */
    run_both(offload_host_body, 1);
    assert_int_equal(both_stats().splits, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        scoped_test(test_cpu_offloading),
        scoped_test(test_disk_offloading),
        scoped_test(test_saved_tensor_unpack_hook_ordering),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
