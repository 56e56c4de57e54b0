/* SPDX-License-Identifier: Apache-2.0
 * What plans need: no more memory at their peak than eager backwards, fewer
 * bytes read and written when ops are fused, nothing asked for when steady. */
#include "tests/support/fail_alloc.h"
#include "tests/support/ranks.h"
#include "tests/support/temp_dir.h"
#include "tests/autograd/graph.h"

enum { ROWS = 512, COLS = 256, N_LAYERS = 6 };

typedef struct deep {
    brg_tensor *w[N_LAYERS], *b[N_LAYERS], *x;
} deep;

static brg_tensor *filled_leaf(double value, int ndim)
{
    brg_tensor *t = brg_ones(BRG_DTYPE_F32, ndim, (int64_t[]){COLS, COLS});
    t = assert_brg_some(brg_mul_scalar(t, value));
    assert_brg_ok(brg_set_requires_grad(t, true));
    return t;
}

static deep make_deep(void)
{
    deep d;
    for (int i = 0; i < N_LAYERS; i++) {
        d.w[i] = filled_leaf(1.0 / COLS, 2);
        d.b[i] = filled_leaf(0.1, 1);
    }
    d.x = brg_ones(BRG_DTYPE_F32, BRG_SHAPE(ROWS, COLS));
    return d;
}

static void step(deep *d)
{
    brg_scope *scope = brg_scope_begin();
    brg_tensor *h = d->x;
    for (int i = 0; i < N_LAYERS; i++) {
        brg_tensor *t = brg_tanh(brg_linear(h, d->w[i], d->b[i]));
        h = brg_add(brg_mul(t, t), brg_mul_scalar(h, 0.5));
    }
    assert_brg_ok(brg_backward(brg_mean_all(h)));
    brg_scope_end(scope);
    for (int i = 0; i < N_LAYERS; i++) {
        assert_brg_ok(brg_tensor_set_grad(d->w[i], NULL));
        assert_brg_ok(brg_tensor_set_grad(d->b[i], NULL));
    }
}

/* Bytes above what is held between steps. */
static uint64_t peak_of_step(deep *d, uint64_t *held)
{
    brg_memory_stats s;
    for (int i = 0; i < 3; i++)
        step(d);
    brg_memory_get_stats(&s);
    *held = s.in_use;
    brg_memory_reset_peak();
    step(d);
    brg_memory_get_stats(&s);
    return s.peak - *held;
}

static int begin(brg_compile_backend backend)
{
    int scope;
    brg_compile_options options = BRG_COMPILE_OPTIONS_INIT;
    options.backend = backend;
    assert_brg_ok(brg_compile_begin(&scope, &options));
    return scope;
}

static void test_plan_memory__peak_is_not_above_eager(void **state)
{
    (void)state;
    deep d = make_deep();
    uint64_t held[3], peak[3];
    peak[0] = peak_of_step(&d, &held[0]);
    for (int k = 1; k < 3; k++) {
        int scope = begin(k == 1 ? BRG_COMPILE_BACKEND_EAGER
                                 : BRG_COMPILE_BACKEND_PASSES);
        peak[k] = peak_of_step(&d, &held[k]);
        assert_brg_ok(brg_compile_end(scope));
    }
    print_message("peak of a step: eager %d, plan %d, fused plan %d bytes; "
                  "plans hold %d bytes\n",
                  (int)peak[0], (int)peak[1], (int)peak[2],
                  (int)(held[2] - held[0]));
    /* what lists of the run add is small */
    assert_true(peak[1] <= peak[0] + 16384);
    assert_true(peak[2] <= peak[0] + 16384);
    assert_true(held[2] - held[0] < 4 * ROWS * COLS); /* one activation */
}

static brg_compile_stats moved_by(brg_compile_backend backend)
{
    brg_compile_stats before, after;
    deep d = make_deep();
    int scope = begin(backend);
    step(&d);
    brg_compile_get_stats(&before);
    step(&d);
    brg_compile_get_stats(&after);
    assert_brg_ok(brg_compile_end(scope));
    after.bytes_moved -= before.bytes_moved;
    after.bytes_unfused -= before.bytes_unfused;
    return after;
}

static void test_plan_memory__fused_plans_move_fewer_bytes(void **state)
{
    (void)state;
    brg_compile_stats plain = moved_by(BRG_COMPILE_BACKEND_EAGER);
    brg_compile_stats fused = moved_by(BRG_COMPILE_BACKEND_PASSES);
    assert_int_equal(plain.bytes_moved, plain.bytes_unfused);
    assert_true(fused.bytes_unfused <= plain.bytes_unfused);
    /* each layer: two products with mul, tanh_grad, adds, a sum */
    assert_true(fused.bytes_moved < fused.bytes_unfused * 3 / 4);
    assert_true(fused.bytes_moved > fused.bytes_unfused / 8);
}

static void check_steady(brg_compile_backend backend)
{
    brg_memory_stats before, after;
    deep d = make_deep();
    int scope = begin(backend);
    for (int i = 0; i < 5; i++)
        step(&d);
    brg_memory_get_stats(&before);
    uint64_t n_mallocs = ranks_n_mallocs();
    for (int i = 0; i < 5; i++)
        step(&d);
    n_mallocs = ranks_n_mallocs() - n_mallocs;
    brg_memory_get_stats(&after);
    assert_brg_ok(brg_compile_end(scope));
    assert_int_equal(after.n_allocs - before.n_allocs, 0);
    assert_int_equal(n_mallocs, 0);
}

static void test_plan_memory__steady_plans_ask_for_none(void **state)
{
    (void)state;
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    skip(); /* objects are not cached, so that each is seen */
#endif
    char command[4200];
    assert_int_equal(setenv("BRG_COMPILE_CACHE", temp_path("kernels"), 1), 0);
    check_steady(BRG_COMPILE_BACKEND_EAGER);
    check_steady(BRG_COMPILE_BACKEND_PASSES);
    check_steady(BRG_COMPILE_BACKEND_FUSED);
    snprintf(command, sizeof command, "rm -rf '%s'", temp_path("kernels"));
    assert_int_equal(system(command), 0);
}

int main(void)
{
    fail_alloc_install();
    const struct CMUnitTest tests[] = {
        scoped_test(test_plan_memory__peak_is_not_above_eager),
        scoped_test(test_plan_memory__fused_plans_move_fewer_bytes),
        scoped_test(test_plan_memory__steady_plans_ask_for_none),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
