/* SPDX-License-Identifier: Apache-2.0
 * Branches, loops, maps and scans: values and gradients against plain C, and
 * in functions compiled whole against themselves. */
#include <brigade/control.h>

#include "tests/autograd/graph.h"
#include "tests/support/values.h"

#define REGION(name)                                                           \
    static brg_status name(                                                    \
        brg_tensor *const *in, __attribute__((unused)) size_t n_in,            \
        brg_tensor **out, __attribute__((unused)) size_t n_out,                \
        __attribute__((unused)) void *user)

#define GIVE(j, expr)                                                          \
    do {                                                                       \
        if (!(out[j] = (expr)))                                                \
            return brg_error_code();                                           \
    } while (0)

/* ---- The pieces ------------------------------------------------------------------------ */

REGION(doubled)
{
    GIVE(0, brg_mul_scalar(in[0], 2));
    return BRG_OK;
}

REGION(squared)
{
    GIVE(0, brg_mul(in[0], in[0]));
    return BRG_OK;
}

REGION(is_small)
{
    brg_tensor *limit = brg_full_like(in[1], 10);
    GIVE(0, brg_lt(in[1], limit));
    return BRG_OK;
}

/* x, n -> x * w, n + 1 */
REGION(multiply)
{
    GIVE(0, brg_mul(in[0], in[2]));
    GIVE(1, brg_add_scalar(in[1], 1));
    GIVE(2, in[2]);
    return BRG_OK;
}

REGION(scaled_row)
{
    GIVE(0, brg_mul(in[0], in[1]));
    GIVE(1, brg_sum_all(in[0]));
    return BRG_OK;
}

/* carry, x -> carry * x + x, its square */
REGION(fold)
{
    GIVE(0, brg_add(brg_mul(in[0], in[1]), in[1]));
    GIVE(1, brg_mul(out[0], out[0]));
    return BRG_OK;
}

/* ---- Functions of them: x -> one result; results in place of inputs ---------------------------------------------------- */

REGION(with_cond)
{
    brg_tensor *sum = brg_sum_all(in[0]);
    brg_tensor *is_positive = brg_gt(sum, brg_zeros_like(sum));
    out[0] = in[0];
    return brg_cond(out, 1, is_positive, (brg_region){doubled, NULL},
                    (brg_region){squared, NULL}, out, 1);
}

REGION(with_loop)
{
    brg_tensor *n = brg_full_like(brg_sum_all(in[0]), 6);
    brg_tensor *state[3] = {in[0], n, in[1]};
    BRG_TRY(brg_while_loop(state, (brg_region){is_small, NULL},
                           (brg_region){multiply, NULL}, state, 3));
    out[0] = state[0];
    return BRG_OK;
}

REGION(with_map)
{
    brg_tensor *rows[2] = {in[0], in[1]};
    BRG_TRY(
        brg_map(rows, 2, (brg_region){scaled_row, NULL}, rows, 1, &rows[1], 1));
    brg_tensor *sums = brg_unsqueeze(rows[1], 1);
    GIVE(0, brg_add(rows[0], sums));
    return BRG_OK;
}

REGION(with_scan)
{
    brg_tensor *carry = brg_select(in[1], 0, 0), *rows;
    BRG_TRY(brg_scan(&carry, 1, &rows, 1, (brg_region){fold, NULL}, in, 1));
    GIVE(0, brg_add(rows, carry));
    return BRG_OK;
}

/* ---- Against plain C ------------------------------------------------------------------------ */

static brg_tensor *leaf(double first, int64_t rows)
{
    brg_tensor *t = leaf_from(first, BRG_SHAPE(rows, 2));
    bool mode = brg_grad_mode_set(false);
    assert_brg_ok(brg_mul_scalar_(t, 0.25));
    brg_grad_mode_set(mode);
    return t;
}

static void test_control__cond(void **state)
{
    (void)state;
    brg_tensor *x = leaf(1, 2), *y = leaf(-8, 2), *out;
    assert_brg_ok(with_cond(&x, 1, &out, 1, NULL));
    assert_values(out, 0, 0.5, 1, 1.5, 2);
    assert_brg_ok(brg_backward(brg_sum_all(out)));
    assert_values(brg_tensor_grad(x), 0, 2, 2, 2, 2);
    assert_brg_ok(with_cond(&y, 1, &out, 1, NULL));
    assert_values(out, 0, 4, 3.0625, 2.25, 1.5625);
    assert_brg_ok(brg_backward(brg_sum_all(out)));
    assert_values(brg_tensor_grad(y), 0, -4, -3.5, -3, -2.5);
}

static void test_control__while_loop(void **state)
{
    (void)state;
    brg_tensor *in[2] = {leaf(1, 1), leaf(4, 1)}, *out; /* 4 rounds: x w^4 */
    assert_brg_ok(with_loop(in, 2, &out, 1, NULL));
    assert_values(out, 1e-6, 0.25, 0.5 * 1.25 * 1.25 * 1.25 * 1.25);
    assert_brg_ok(brg_backward(brg_sum_all(out)));
    assert_values(brg_tensor_grad(in[0]), 1e-6, 1, pow(1.25, 4));
    assert_values(brg_tensor_grad(in[1]), 1e-6, 4 * 0.25,
                  4 * 0.5 * pow(1.25, 3));
}

static void test_control__map(void **state)
{
    (void)state;
    brg_tensor *w = leaf_from(2, BRG_SHAPE(2)), *out;
    brg_tensor *in[2] = {leaf_from(1, BRG_SHAPE(3, 2)), w};
    assert_brg_ok(with_map(in, 2, &out, 1, NULL));
    assert_values(out, 0, 2 + 3, 6 + 3, 6 + 7, 12 + 7, 10 + 11, 18 + 11);
    assert_brg_ok(brg_backward(brg_sum_all(out)));
    assert_values(brg_tensor_grad(in[0]), 0, 4, 5, 4, 5, 4, 5);
    assert_values(brg_tensor_grad(w), 0, 1 + 3 + 5, 2 + 4 + 6);
}

static void test_control__scan(void **state)
{
    (void)state;
    brg_tensor *in[2] = {leaf_from(1, BRG_SHAPE(3, 1)),
                         leaf_from(1, BRG_SHAPE(1, 1))},
               *out;
    assert_brg_ok(with_scan(in, 2, &out, 1, NULL));
    /* carries: 1 + 1 = 2, 2 * 2 + 2 = 6, 6 * 3 + 3 = 21 */
    assert_values(out, 0, 4 + 21, 36 + 21, 441 + 21);
    assert_brg_ok(brg_backward(brg_sum_all(out)));
    /* d/dc0: 2 c1 + 2 c2 x2 + (2 c3 + 3) x2 x3 times x1 */
    assert_values(brg_tensor_grad(in[1]), 0, 4 + 24 + 45 * 6);
}

/* ---- Compiled whole ----------------------------------------------------------------------------- */

static void expect_same(brg_tensor *a, brg_tensor *b)
{
    for (int64_t i = 0; i < brg_tensor_numel(a); i++)
        assert_true(value_at(a, i) == value_at(b, i));
}

static void check_compiled(brg_region_fn fn, int64_t rows, const char *word)
{
    brg_compiled *c = compile_whole(fn, NULL);
    char text[16384];
    for (int i = 0; i < 4; i++) {
        /* Signs, and with them branches, alternate. */
        double first = i % 2 ? -9 : 1;
        brg_tensor *in[2] = {leaf(first, rows), leaf(4, 1)}, *want, *got;
        brg_tensor *same[2] = {leaf(first, rows), leaf(4, 1)};
        if (fn == with_map) {
            in[1] = brg_select(in[1], 0, 0);
            same[1] = brg_select(same[1], 0, 0);
        }
        assert_brg_ok(fn(in, 2, &want, 1, NULL));
        assert_brg_ok(brg_compiled_call(c, same, 2, &got, 1));
        expect_same(want, got);
        assert_brg_ok(brg_backward(brg_sum_all(brg_mul(want, want))));
        int scope;
        if (i >= 2)
            assert_brg_ok(brg_compile_begin(&scope, NULL));
        assert_brg_ok(brg_backward(brg_sum_all(brg_mul(got, got))));
        if (i >= 2)
            assert_brg_ok(brg_compile_end(scope));
        expect_same(brg_tensor_grad(in[0]), brg_tensor_grad(same[0]));
    }
    assert_true(brg_compiled_print(c, 0, text, sizeof text) < sizeof text);
    assert_int_equal(strstr(text, word) != NULL,
                     fn == with_cond || fn == with_loop);
    brg_compile_stats stats;
    brg_compile_get_stats(&stats);
    assert_int_equal(stats.functions, 1);
    assert_int_equal(stats.function_hits, 3);
    brg_compiled_destroy(c);
}

static void test_control__cond_compiled(void **state)
{
    (void)state;
    check_compiled(with_cond, 2, "cond(");
}

static void test_control__while_loop_compiled(void **state)
{
    (void)state;
    check_compiled(with_loop, 1, "while_loop(");
}

static void test_control__map_compiled(void **state)
{
    (void)state;
    check_compiled(with_map, 3, "map(");
}

static void test_control__scan_compiled(void **state)
{
    (void)state;
    check_compiled(with_scan, 3, "scan(");
}

/* ---- Bad input -------------------------------------------------------------------------------------- */

REGION(longer)
{
    GIVE(0, brg_cat((brg_tensor *[]){in[0], in[0]}, 2, 0));
    GIVE(1, in[1]);
    GIVE(2, in[2]);
    return BRG_OK;
}

REGION(nothing)
{
    (void)in;
    (void)out;
    return BRG_OK;
}

REGION(closes_over)
{
    GIVE(0, brg_mul(in[0], user));
    return BRG_OK;
}

REGION(cond_over_parameter)
{
    brg_tensor *sum = brg_sum_all(in[0]);
    return brg_cond(out, 1, sum, (brg_region){closes_over, user},
                    (brg_region){squared, NULL}, in, 1);
}

REGION(cond_over_value)
{
    brg_tensor *sum = brg_sum_all(in[0]), *h = brg_exp(in[0]);
    return brg_cond(out, 1, sum, (brg_region){closes_over, h},
                    (brg_region){squared, NULL}, in, 1);
}

static void expect_refused(brg_region_fn fn, void *user, brg_status code,
                           const char *word)
{
    brg_compiled *c = compile_whole(fn, user);
    brg_tensor *x = leaf(1, 2), *out;
    assert_brg_fails_with(brg_compiled_call(c, &x, 1, &out, 1), code, word);
    brg_compiled_destroy(c);
}

static void test_control__bad_input(void **state)
{
    (void)state;
    brg_tensor *x = leaf(1, 2), *out[3];
    const brg_region ok = {squared, NULL}, none = {nothing, NULL};
    assert_brg_fails_with(brg_cond(out, 1, x, ok, ok, &x, 1), BRG_ERR_SHAPE,
                          "expected one element");
    assert_null(out[0]);
    assert_brg_fails_with(brg_cond(out, 1, NULL, ok, ok, &x, 1), BRG_ERR_ARG,
                          "brg_cond");
    assert_brg_fails_with(brg_cond(out, 1, brg_sum_all(x), none, none, &x, 1),
                          BRG_ERR_ARG, "a branch");
    assert_brg_fails_with(brg_while_loop(out, (brg_region){is_small, NULL},
                                         (brg_region){longer, NULL},
                                         (brg_tensor *[]){x, brg_sum_all(x), x},
                                         3),
                          BRG_ERR_SHAPE, "brg_while_loop: value 0");
    assert_brg_fails_with(
        brg_map(out, 1, ok, (brg_tensor *[]){x, brg_sum_all(x)}, 2, NULL, 0),
        BRG_ERR_SHAPE, "xs[1]");
}

static void test_control__refused_in_a_capture(void **state)
{
    (void)state;
    brg_tensor *w = leaf(1, 2);
    expect_refused(cond_over_parameter, w, BRG_ERR_UNSUPPORTED, "a parameter");
    expect_refused(cond_over_value, NULL, BRG_ERR_UNSUPPORTED,
                   "beside its inputs");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        scoped_test(test_control__cond),
        scoped_test(test_control__while_loop),
        scoped_test(test_control__map),
        scoped_test(test_control__scan),
        scoped_test(test_control__cond_compiled),
        scoped_test(test_control__while_loop_compiled),
        scoped_test(test_control__map_compiled),
        scoped_test(test_control__scan_compiled),
        scoped_test(test_control__bad_input),
        scoped_test(test_control__refused_in_a_capture),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
