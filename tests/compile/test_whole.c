/* SPDX-License-Identifier: Apache-2.0
 * What functions compiled whole may do, what they may not, and that parameters,
 * buffers and modes are those of the run. */
#include <brigade/autocast.h>
#include <brigade/compile.h>
#include <brigade/comm.h>
#include <brigade/function.h>
#include <brigade/optim.h>
#include <brigade/random.h>
#include <brigade/recompute.h>

#include "tests/autograd/graph.h"
#include "tests/support/values.h"

/* Calls fn twice, then its compiled form on the same input twice; the results of
 * the second calls and the gradients must be the same bits. */
static void check_same(brg_compiled_fn fn, void *user, brg_tensor *buffer)
{
    brg_tensor *grads[2], *values[2], *kept[2];
    for (int k = 0; k < 2; k++) {
        brg_compiled *c = k ? compile_whole(fn, user) : NULL;
        brg_tensor *x = leaf_from(0.25, BRG_SHAPE(3, 4)), *y;
        if (buffer)
            assert_brg_ok(brg_fill_(buffer, 1));
        brg_seed(3);
        for (int i = 0; i < 2; i++) {
            assert_brg_ok(c ? brg_compiled_call(c, &x, 1, &y, 1)
                            : fn(&x, 1, &y, 1, user));
            assert_brg_ok(brg_backward(brg_sum_all(y)));
        }
        values[k] = y;
        grads[k] = brg_tensor_grad(x);
        brg_retain(grads[k]);
        kept[k] = buffer ? brg_copy(buffer) : NULL;
        brg_compiled_destroy(c);
    }
    for (int i = 0; i < 12; i++) {
        assert_true(value_at(values[0], i) == value_at(values[1], i));
        assert_true(value_at(grads[0], i) == value_at(grads[1], i));
        if (buffer)
            assert_true(value_at(kept[0], i) == value_at(kept[1], i));
    }
    brg_release(grads[0]);
    brg_release(grads[1]);
    assert_int_equal(compile_stats().functions, 1);
    assert_int_equal(compile_stats().function_hits, 1);
}

/* ---- What may be done ---------------------------------------------------------------- */

FUNCTION(changes_buffer)
{
    brg_tensor *buffer = user;
    bool mode = brg_grad_mode_set(false);
    BRG_TRY(brg_mul_scalar_(buffer, 0.5));
    BRG_TRY(brg_add_(buffer, in[0], 0.5));
    brg_grad_mode_set(mode);
    brg_tensor *h = brg_mul(in[0], buffer); /* as changed */
    mode = brg_grad_mode_set(false);
    BRG_TRY(brg_copy_(buffer, h));
    brg_grad_mode_set(mode);
    out[0] = brg_add(h, brg_detach(buffer));
    return out[0] ? BRG_OK : brg_error_code();
}

static void test_whole__buffers_change_at_each_run(void **state)
{
    (void)state;
    /* The graph keeps the buffer's values at their use: not saved, copied. */
    brg_tensor *buffer = brg_ones(BRG_DTYPE_F32, BRG_SHAPE(3, 4));
    brg_compiled *c = compile_whole(changes_buffer, buffer);
    brg_tensor *x = brg_full(BRG_DTYPE_F32, BRG_SHAPE(3, 4), 3), *y;
    double want = 1;
    for (int i = 0; i < 3; i++) {
        assert_brg_ok(brg_compiled_call(c, &x, 1, &y, 1));
        want = 3 * (0.5 * want + 0.5 * 3);
        assert_float_equal(value_at(buffer, 11), want, 0);
        assert_float_equal(value_at(y, 11), 2 * want, 0);
    }
    assert_int_equal(compile_stats().function_hits, 2);
    brg_compiled_destroy(c);
}

static brg_status stretch(brg_tensor *const *in, brg_tensor **out, void *user)
{
    (void)user;
    out[0] = brg_dropout(brg_sin(brg_mul(in[0], in[0])), 0.25, true);
    return out[0] ? BRG_OK : brg_error_code();
}

FUNCTION(checkpoints)
{
    BRG_TRY(brg_recompute(out, stretch, NULL, in, 1, NULL));
    out[0] = brg_exp(out[0]);
    return out[0] ? BRG_OK : brg_error_code();
}

static void test_whole__checkpoints(void **state)
{
    (void)state;
    check_same(checkpoints, NULL, NULL);
}

FUNCTION(differentiates)
{
    brg_tensor *x = in[0], *y = brg_sum_all(brg_sin(brg_mul(x, x))), *grad;
    brg_backward_options options = BRG_BACKWARD_OPTIONS_INIT;
    options.create_graph = true;
    BRG_TRY(brg_grad(&grad, &y, 1, &x, 1, &options));
    out[0] = brg_mul(grad, brg_sin(x));
    return out[0] ? BRG_OK : brg_error_code();
}

static void test_whole__gradients_inside(void **state)
{
    (void)state;
    check_same(differentiates, NULL, NULL);
}

FUNCTION(casts)
{
    brg_autocast before, low = {true, BRG_DTYPE_BF16};
    BRG_TRY(brg_autocast_set(low, &before));
    brg_tensor *h = brg_matmul(in[0], brg_transpose(in[0], 0, 1));
    BRG_TRY(brg_autocast_set(before, NULL));
    out[0] = brg_matmul(brg_cast(h, BRG_DTYPE_F32), in[0]);
    return out[0] ? BRG_OK : brg_error_code();
}

static void test_whole__autocast_inside(void **state)
{
    (void)state;
    check_same(casts, NULL, NULL);
}

FUNCTION(calls_another)
{
    BRG_TRY(brg_compiled_call(user, in, 1, out, 1));
    out[0] = brg_mul(out[0], in[0]);
    return out[0] ? BRG_OK : brg_error_code();
}

static void test_whole__calls_another(void **state)
{
    (void)state;
    brg_compiled *inner = compile_whole(checkpoints, NULL);
    brg_compiled *c = compile_whole(calls_another, inner);
    brg_tensor *x = leaf_from(0.25, BRG_SHAPE(3, 4)), *y, *z;
    brg_seed(1);
    assert_brg_ok(checkpoints(&x, 1, &z, 1, NULL));
    brg_seed(1);
    assert_brg_ok(brg_compiled_call(c, &x, 1, &y, 1));
    for (int i = 0; i < 12; i++)
        assert_true(value_at(y, i) == value_at(brg_mul(z, x), i));
    assert_int_equal(compile_stats().functions,
                     1); /* the inner became a part of it */
    brg_compiled_destroy(c);
    brg_compiled_destroy(inner);
}

/* ---- What may not --------------------------------------------------------------------- */

FUNCTION(reads_item)
{
    double value;
    BRG_TRY(brg_tensor_item(brg_sum_all(in[0]), &value));
    out[0] = brg_mul_scalar(in[0], value);
    return out[0] ? BRG_OK : brg_error_code();
}

FUNCTION(reads_data)
{
    const float *at = brg_tensor_data(user); /* and does not look */
    out[0] = brg_mul_scalar(in[0], at ? (double)at[0] : 1.0);
    return out[0] ? BRG_OK : brg_error_code();
}

FUNCTION(brings_data)
{
    static const float data[12] = {1, 2, 3};
    out[0] =
        brg_add(in[0], brg_from_data(BRG_DTYPE_F32, BRG_SHAPE(3, 4), data));
    return out[0] ? BRG_OK : brg_error_code();
}

FUNCTION(draws)
{
    out[0] = brg_add(in[0], brg_rand(BRG_DTYPE_F32, BRG_SHAPE(3, 4)));
    return out[0] ? BRG_OK : brg_error_code();
}

FUNCTION(changes_own)
{
    brg_tensor *h = brg_mul_scalar(in[0], 2);
    BRG_TRY(brg_add_(h, in[0], 1));
    out[0] = h;
    return BRG_OK;
}

FUNCTION(adds_to_own)
{
    brg_tensor *sum = brg_zeros(BRG_DTYPE_F32, BRG_SHAPE(3, 4));
    bool mode = brg_grad_mode_set(false);
    brg_status status = brg_add_(sum, in[0], 1);
    brg_grad_mode_set(mode);
    BRG_TRY(status);
    out[0] = brg_mul(in[0], sum);
    return out[0] ? BRG_OK : brg_error_code();
}

FUNCTION(looks_at_grad)
{
    out[0] = brg_mul_scalar(in[0], brg_tensor_grad(user) ? 2 : 3);
    return out[0] ? BRG_OK : brg_error_code();
}

FUNCTION(uses_computed)
{
    out[0] = brg_add(in[0], user);
    return out[0] ? BRG_OK : brg_error_code();
}

static void check_refused(brg_compiled_fn fn, void *user, const char *word)
{
    brg_tensor *x = leaf_from(1, BRG_SHAPE(3, 4)), *y, *want;
    brg_compiled *c = compile_whole(fn, user);
    for (int i = 0; i < 2; i++)
        assert_brg_fails_with(brg_compiled_call(c, &x, 1, &y, 1),
                              BRG_ERR_UNSUPPORTED, word);
    brg_compiled_destroy(c);
    uint64_t n = compile_stats().function_fallbacks;
    c = compile_loosely(fn, user);
    for (int i = 0; i < 2; i++) {
        brg_seed(1);
        assert_brg_ok(fn(&x, 1, &want, 1, user));
        brg_seed(1);
        assert_brg_ok(brg_compiled_call(c, &x, 1, &y, 1));
        assert_true(value_at(want, 5) == value_at(y, 5));
        assert_brg_ok(brg_backward(brg_sum_all(y)));
    }
    assert_int_equal(compile_stats().function_fallbacks, n + 2);
    assert_int_equal(compile_stats().functions, 0);
    brg_compiled_destroy(c);
}

static void test_whole__what_cannot_be_captured_is_named(void **state)
{
    (void)state;
    brg_tensor *w = leaf_from(2, BRG_SHAPE(3, 4));
    check_refused(reads_item, NULL, "brg_tensor_item");
    check_refused(reads_data, w, "brg_tensor_data");
    check_refused(brings_data, NULL, "brg_from_data");
    check_refused(draws, NULL, "brg_rand");
    check_refused(changes_own, NULL, "brg_add_");
    check_refused(adds_to_own, NULL, "brg_add_");
    check_refused(looks_at_grad, w, "brg_tensor_grad");
    check_refused(uses_computed, brg_mul_scalar(w, 2), "make it an input");
}

typedef struct gathers {
    brg_pg *pg;
} gathers;

FUNCTION(communicates)
{
    double mine = 1, all = 0;
    brg_work *work;
    BRG_TRY(brg_all_gather(((gathers *)user)->pg, &work, &all, &mine, 1,
                           BRG_DTYPE_F64));
    BRG_TRY(brg_work_wait(work));
    out[0] = brg_mul_scalar(in[0], all);
    return out[0] ? BRG_OK : brg_error_code();
}

static void test_whole__collectives_are_not_captured(void **state)
{
    (void)state;
    gathers g;
    assert_brg_ok(brg_pg_create_self(&g.pg));
    check_refused(communicates, &g, "all_gather");
    brg_pg_destroy(g.pg);
}

/* ---- Guards ------------------------------------------------------------------------------ */

FUNCTION(scales)
{
    out[0] = brg_mul(in[0], user);
    return out[0] ? BRG_OK : brg_error_code();
}

static void test_whole__parameters_that_change_kind(void **state)
{
    (void)state;
    brg_tensor *w = leaf_from(2, BRG_SHAPE(3, 4)), *y;
    brg_tensor *x = brg_ones(BRG_DTYPE_F32, BRG_SHAPE(3, 4));
    brg_compiled *c = compile_whole(scales, w);
    assert_brg_ok(brg_compiled_call(c, &x, 1, &y, 1));
    assert_true(brg_requires_grad(y));
    assert_brg_ok(brg_set_requires_grad(w, false));
    assert_brg_ok(brg_compiled_call(c, &x, 1, &y, 1));
    assert_false(brg_requires_grad(y));
    assert_int_equal(compile_stats().functions, 2);
    assert_brg_ok(brg_fill_(w, 7)); /* values are read at each run */
    assert_brg_ok(brg_compiled_call(c, &x, 1, &y, 1));
    assert_float_equal(value_at(y, 3), 7, 0);
    assert_int_equal(compile_stats().functions, 2);
    brg_compiled_destroy(c);
}

static void test_whole__modes_are_part_of_the_key(void **state)
{
    (void)state;
    brg_tensor *w = leaf_from(2, BRG_SHAPE(3, 4)), *y;
    brg_tensor *x = brg_ones(BRG_DTYPE_F32, BRG_SHAPE(3, 4));
    brg_compiled *c = compile_whole(scales, w);
    int scope;
    for (int i = 0; i < 4; i++) {
        bool mode = brg_grad_mode_set(i % 2);
        assert_brg_ok(brg_compiled_call(c, &x, 1, &y, 1));
        assert_int_equal(brg_requires_grad(y), i % 2);
        brg_grad_mode_set(mode);
    }
    assert_int_equal(compile_stats().functions, 2);
    assert_brg_ok(brg_compile_disable_begin(&scope));
    assert_brg_ok(brg_compiled_call(c, &x, 1, &y, 1));
    assert_brg_ok(brg_compile_end(scope));
    assert_string_equal(brg_grad_fn_name(y), "mul");
    brg_compiled_destroy(c);
}

/* ---- Views held across an effect ------------------------------------------------------------ */

FUNCTION(reads_view_twice)
{
    brg_tensor *view = brg_reshape(user, BRG_SHAPE(3, 4));
    brg_tensor *before = brg_mul(view, view);
    bool mode = brg_grad_mode_set(false);
    brg_status status = brg_mul_scalar_(user, 3);
    brg_grad_mode_set(mode);
    BRG_TRY(status);
    brg_tensor *after = brg_mul(view, view);
    out[0] = brg_mul(in[0], brg_add(before, after));
    return out[0] ? BRG_OK : brg_error_code();
}

static void test_whole__a_view_shows_what_changed_behind_it(void **state)
{
    (void)state;
    brg_tensor *buffer = brg_ones(BRG_DTYPE_F32, BRG_SHAPE(12));
    check_same(reads_view_twice, buffer, buffer);
}

typedef struct alias {
    brg_tensor *base;
} alias;

FUNCTION(reads_alias_twice)
{
    brg_tensor *before = brg_mul(in[0], in[0]);
    BRG_TRY(brg_mul_scalar_(((alias *)user)->base, 3));
    brg_tensor *after = brg_mul(in[0], in[0]);
    out[0] = brg_add(before, after);
    return out[0] ? BRG_OK : brg_error_code();
}

static void test_whole__an_input_may_be_a_view_of_what_changes(void **state)
{
    (void)state;
    alias a = {brg_ones(BRG_DTYPE_F32, BRG_SHAPE(12))};
    brg_tensor *x = brg_reshape(a.base, BRG_SHAPE(3, 4)), *y;
    brg_compiled *c = compile_whole(reads_alias_twice, &a);
    for (int i = 0; i < 2; i++) {
        assert_brg_ok(brg_fill_(a.base, 2));
        assert_brg_ok(brg_compiled_call(c, &x, 1, &y, 1));
        assert_float_equal(value_at(y, 5), 4 + 36, 0);
    }
    assert_int_equal(compile_stats().function_hits, 1);
    brg_compiled_destroy(c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        scoped_test(test_whole__buffers_change_at_each_run),
        scoped_test(test_whole__checkpoints),
        scoped_test(test_whole__gradients_inside),
        scoped_test(test_whole__autocast_inside),
        scoped_test(test_whole__calls_another),
        scoped_test(test_whole__what_cannot_be_captured_is_named),
        scoped_test(test_whole__collectives_are_not_captured),
        scoped_test(test_whole__parameters_that_change_kind),
        scoped_test(test_whole__modes_are_part_of_the_key),
        scoped_test(test_whole__a_view_shows_what_changed_behind_it),
        scoped_test(test_whole__an_input_may_be_a_view_of_what_changes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
