/* SPDX-License-Identifier: Apache-2.0
 * Plans, executables and segments for which there is no more room: one goes, be
 * it the one that runs, and another is captured in its place, with no memory at
 * any of the steps. What fails is BRG_ERR_NOMEM; what is called afterwards has
 * the bits of the eager call. */
#include "tests/compile/chains.h"
#include "tests/support/fail_alloc.h"

enum { SWEEP_MAX = 4000, N_VARIANTS = 16, N_EXECS = 16, N_PIECES = 64 };

/* ---- What is called ---------------------------------------------------------- */

/* y = scale sin(x w) tanh(x w).. with w of 4. */
typedef struct layer {
    brg_tensor *w;
    int n_ops;
    double scale;
    bool is_step, is_in_pieces;
    brg_compiled *c;
} layer;

static brg_status calls_layer(brg_tensor *const *in, size_t n_in,
                              brg_tensor **out, size_t n_out, void *user)
{
    const layer *l = user;
    double value;
    (void)n_in, (void)n_out;
    brg_tensor *h = brg_mul(in[0], l->w);
    for (int i = 0; h && i < l->n_ops; i++)
        h = i % 2 ? brg_sin(h) : brg_tanh(h);
    if (l->is_in_pieces)
        BRG_TRY(brg_tensor_item(brg_sum_all(brg_detach(h)), &value));
    out[0] = brg_sum_all(brg_mul_scalar(h, l->scale));
    if (!out[0])
        return brg_error_code();
    return l->is_step ? brg_backward(out[0]) : BRG_OK;
}

static void make_layer(layer *l, int n_ops, double scale,
                       const brg_compile_options *options)
{
    *l = (layer){
        .w = leaf_from(0.25, BRG_SHAPE(4)), .n_ops = n_ops, .scale = scale};
    if (options)
        assert_brg_ok(brg_compiled_create(&l->c, calls_layer, l, options));
}

/* With a gradient in l->w, which is fresh. */
static brg_status run_layer(layer *l, int64_t rows)
{
    brg_tensor *x = brg_full(BRG_DTYPE_F32, BRG_SHAPE(rows, 4), 0.375), *y;
    if (!x)
        return brg_error_code();
    BRG_TRY(l->c ? brg_compiled_call(l->c, &x, 1, &y, 1)
                 : calls_layer(&x, 1, &y, 1, l));
    return l->is_step ? BRG_OK : brg_backward(y);
}

/* It has the gradient that it has eagerly. */
static void check_layer(layer *l, int64_t rows)
{
    layer twin;
    make_layer(&twin, l->n_ops, l->scale, NULL);
    bool before = brg_compile_force_eager(true);
    assert_brg_ok(run_layer(&twin, rows));
    (void)brg_compile_force_eager(before);
    assert_brg_ok(brg_tensor_set_grad(l->w, NULL));
    assert_brg_ok(run_layer(l, rows));
    assert_memory_equal(brg_tensor_data(brg_tensor_grad(l->w)),
                        brg_tensor_data(brg_tensor_grad(twin.w)),
                        4 * sizeof(float));
    assert_brg_ok(brg_tensor_set_grad(l->w, NULL));
}

/* With n allocations; true if they suffice. Else it is told. */
static bool runs_with(layer *l, int64_t rows, int64_t n)
{
    brg_scope *scope = brg_scope_begin();
    brg_memory_trim();
    brg_error_clear();
    fail_alloc_arm(n);
    brg_status status = run_layer(l, rows);
    int64_t refused = fail_alloc_disarm();
    brg_scope_end(scope);
    assert_brg_ok(brg_tensor_set_grad(l->w, NULL));
    if (status == BRG_OK) {
        assert_int_equal(refused, 0);
        return true;
    }
    assert_int_equal(status, BRG_ERR_NOMEM);
    assert_int_equal(brg_error_code(), BRG_ERR_NOMEM);
    return false;
}

/* ---- No room, no memory ----------------------------------------------------------- */

typedef struct room {
    brg_compile_options
        options; /* of the scope, if it has any, and functions */
    bool is_scoped;
    int n_full; /* so many sizes fill it */
    bool is_step, is_in_pieces;
} room;

/* One of two functions fills the room; then another size of the other comes,
 * with n allocations. */
static bool fills_and_comes(const room *r, int64_t n)
{
    layer l[2];
    int scope = 0;
    bool is_enough;
    brg_scope *tensors = brg_scope_begin();
    if (r->is_scoped)
        assert_brg_ok(brg_compile_begin(&scope, &r->options));
    for (int k = 0; k < 2; k++) {
        make_layer(&l[k], 2, 1 + 2 * k, r->options.whole ? &r->options : NULL);
        l[k].is_step = r->is_step;
        l[k].is_in_pieces = r->is_in_pieces;
    }
    for (int64_t rows = 2; rows < 2 + r->n_full; rows++)
        check_layer(&l[1], rows);
    check_layer(&l[0], 3);
    is_enough = runs_with(&l[1], 40 + n % 3, n);
    for (int k = 0; k < 2; k++) {
        check_layer(&l[k], 40 + n % 3);
        check_layer(&l[1 - k], 40 + n % 3);
        check_layer(&l[k], 3);
        check_layer(&l[1 - k], 2);
        brg_compiled_destroy(l[k].c);
        l[k].c = NULL;
    }
    if (r->is_scoped)
        assert_brg_ok(brg_compile_end(scope));
    brg_scope_end(tensors);
    assert_brg_ok(brg_compile_reset());
    return is_enough;
}

static void sweep(const room *r)
{
    int64_t n = 0;
    while (!fills_and_comes(r, n))
        assert_true((n += 1 + (n > 20 ? r->n_full / 4 : 0)) < SWEEP_MAX);
    assert_true(n > 10);
}

/* A function whose segment had no memory for its name has none of another's: a
 * compiled backward would take that one's plan. */
static void test_evictions__a_segment_has_a_name(void **state)
{
    (void)state;
    brg_compile_options options = BRG_COMPILE_OPTIONS_INIT;
    layer first, l;
    int scope;
    bool is_enough = false;
    options.whole = true;
    make_layer(&first, 2, 7, &options);
    assert_brg_ok(brg_compile_begin(&scope, NULL));
    check_layer(&first, 3);
    for (int64_t n = 0; !is_enough; n++) {
        make_layer(&l, 2, 3, &options);
        is_enough = runs_with(&l, 3, n);
        check_layer(&l, 3);
        check_layer(&first, 3);
        brg_compiled_destroy(l.c);
        assert_true(n < SWEEP_MAX);
    }
    assert_brg_ok(brg_compile_end(scope));
    brg_compiled_destroy(first.c);
}

static void test_evictions__of_plans(void **state)
{
    (void)state;
    for (int k = 0; k < 4; k++) {
        room r = {.options = BRG_COMPILE_OPTIONS_INIT, .is_scoped = true};
        r.options.max_plans = 1 + (size_t)(k / 2);
        r.options.dynamic =
            k % 2 ? BRG_COMPILE_DYNAMIC_CHANGED : BRG_COMPILE_DYNAMIC_ALL;
        r.n_full = 3;
        sweep(&r);
    }
}

static void test_evictions__of_executables(void **state)
{
    (void)state;
    room r = {.options = BRG_COMPILE_OPTIONS_INIT, .is_scoped = true};
    r.n_full = N_EXECS + 1;
    sweep(&r);
}

static void test_evictions__of_segments(void **state)
{
    (void)state;
    for (int k = 0; k < 4; k++) {
        room r = {.options = BRG_COMPILE_OPTIONS_INIT};
        r.options.whole = true;
        r.options.max_plans = 1;
        r.n_full = k < 2 ? N_VARIANTS + 1 : 1;
        r.is_scoped = k % 2;
        sweep(&r);
        r.is_step = true;
        sweep(&r);
    }
}

static void test_evictions__of_pieces(void **state)
{
    (void)state;
    for (int k = 0; k < 2; k++) {
        room r = {.options = BRG_COMPILE_OPTIONS_INIT};
        r.options.whole = true;
        r.options.max_plans = 1;
        r.is_in_pieces = true;
        r.is_scoped = true;
        r.n_full = k ? N_PIECES + 1 : 1;
        sweep(&r);
    }
}

/* ---- While it runs ------------------------------------------------------------------- */

typedef struct crowd {
    layer *l, *other;
    int n_left;
} crowd;

/* Calls the function that runs with so many sizes that its segment goes. */
static brg_status fills_it(brg_tensor *grad, brg_tensor **replacement,
                           void *user)
{
    crowd *c = user;
    (void)grad, (void)replacement;
    if (c->n_left == 0)
        return BRG_OK;
    int n = c->n_left;
    brg_status status = BRG_OK;
    bool mode = brg_grad_mode_set(true);
    c->n_left = 0;
    for (int64_t rows = 0; rows < n && status == BRG_OK; rows++)
        status = run_layer(c->other, 50 + rows);
    (void)brg_grad_mode_set(mode);
    return status;
}

/* The same function over other parameters. */
static void check_crowd(bool is_step, bool is_scoped, int n)
{
    brg_compile_options options = BRG_COMPILE_OPTIONS_INIT;
    layer l, twin, other;
    int scope;
    options.whole = true;
    options.max_plans = 1;
    make_layer(&l, 3, 1, &options);
    make_layer(&other, 3, 1, NULL);
    make_layer(&twin, 3, 1, NULL);
    l.is_step = is_step;
    other.c = l.c; /* w is that of l: no gradient is taken of it inside */
    crowd c = {.l = &l, .other = &other};
    if (is_scoped)
        assert_brg_ok(brg_compile_begin(&scope, &options));
    check_layer(&l, 3);
    other.is_step = is_step;
    brg_tensor *hooked = l.w;
    brg_hook *hook;
    assert_brg_ok(brg_tensor_add_hook(&hook, hooked, fills_it, &c, NULL));
    for (int i = 0; i < 3; i++) {
        c.n_left = n;
        assert_brg_ok(run_layer(&l, 3));
        assert_int_equal(c.n_left, 0);
        bool before = brg_compile_force_eager(true);
        for (int64_t rows = 0; rows < n; rows++)
            assert_brg_ok(run_layer(&twin, 50 + rows));
        assert_brg_ok(run_layer(&twin, 3));
        (void)brg_compile_force_eager(before);
        assert_memory_equal(brg_tensor_data(brg_tensor_grad(l.w)),
                            brg_tensor_data(brg_tensor_grad(twin.w)),
                            4 * sizeof(float));
        assert_brg_ok(brg_tensor_set_grad(l.w, NULL));
        assert_brg_ok(brg_tensor_set_grad(twin.w, NULL));
    }
    brg_hook_remove(hook);
    check_layer(&l, 3);
    if (is_scoped)
        assert_brg_ok(brg_compile_end(scope));
    brg_compiled_destroy(l.c);
}

static void test_evictions__of_what_runs(void **state)
{
    (void)state;
    for (int k = 0; k < 4; k++)
        for (int n = 1; n < 20; n += 17) {
            print_message("    step %d, scoped %d, %d sizes\n", k % 2, k / 2,
                          n);
            check_crowd(k % 2, k / 2, n);
        }
}

int main(void)
{
    fail_alloc_install();
    const struct CMUnitTest tests[] = {
        scoped_test(test_evictions__a_segment_has_a_name), /* the first */
        scoped_test(test_evictions__of_segments),
        scoped_test(test_evictions__of_plans),
        scoped_test(test_evictions__of_executables),
        scoped_test(test_evictions__of_pieces),
        scoped_test(test_evictions__of_what_runs),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
