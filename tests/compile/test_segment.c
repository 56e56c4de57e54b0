/* SPDX-License-Identifier: Apache-2.0
 * Captured functions: segments and their backwards, eager and spliced into
 * compiled ones, against the function called directly. */
#include <brigade/optim.h>

#include "tests/compile/small_net.h"
#include "tests/support/plan_text.h"
#include "tests/support/values.h"

static brg_tensor *call(brg_compiled *c, brg_tensor *const *in, size_t n_in)
{
    brg_tensor *out[1] = {NULL};
    assert_brg_ok(brg_compiled_call(c, in, n_in, out, 1));
    return out[0];
}

static void test_segment__same_bits_as_eager(void **state)
{
    (void)state;
    net a = make_net(1), b = make_net(1);
    brg_compiled *c = compile_whole(net_loss, &b);
    for (int64_t batch = 3; batch < 7; batch++)
        for (int twice = 0; twice < 2; twice++) {
            brg_tensor *in[2], *loss;
            batch_of(batch, in);
            assert_brg_ok(net_loss(in, 2, &loss, 1, &a));
            brg_tensor *got = call(c, in, 2);
            expect_same_bits(loss, got);
            assert_string_equal(brg_grad_fn_name(got), "segment");
            assert_brg_ok(brg_backward(loss));
            assert_brg_ok(brg_backward(got));
            expect_same_grads(&a, &b);
        }
    assert_int_equal(compile_stats().functions, 4);
    assert_int_equal(compile_stats().function_hits, 4);
    assert_int_equal(compile_stats().function_fallbacks, 0);
    assert_int_equal(b.n_calls, 4);
    brg_compiled_destroy(c);
}

static void test_segment__spliced_into_a_compiled_backward(void **state)
{
    (void)state;
    net a = make_net(2), b = make_net(2);
    brg_compiled *c = compile_whole(net_loss, &b);
    static const uint64_t captures[] = {1, 2, 2, 2, 2};
    for (int64_t i = 0; i < 5; i++) {
        brg_tensor *in[2], *loss;
        batch_of(3 + i, in);
        assert_brg_ok(net_loss(in, 2, &loss, 1, &a));
        brg_tensor *got = call(c, in, 2);
        int scope;
        assert_brg_ok(brg_compile_begin(&scope, NULL));
        assert_brg_ok(brg_backward(brg_mul_scalar(got, 2.0)));
        assert_brg_ok(brg_compile_end(scope));
        assert_brg_ok(brg_backward(brg_mul_scalar(loss, 2.0)));
        expect_same_grads(&a, &b);
        /* a static segment, no gradients yet; then a dynamic one, with them */
        assert_int_equal(compile_stats().captures, captures[i]);
    }
    assert_int_equal(compile_stats().fallbacks, 0);
    const char *text = plan_text(0);
    assert_non_null(strstr(text, "_0/"));
    brg_compiled_destroy(c);
}

/* Three uses of one segment in one graph. */
static brg_status wave(brg_tensor *const *in, size_t n_in, brg_tensor **out,
                       size_t n_out, void *user)
{
    (void)n_in;
    (void)n_out;
    (void)user;
    out[0] = brg_mul(brg_sin(in[0]), brg_cos(in[0]));
    return out[0] ? BRG_OK : brg_error_code();
}

static void test_segment__thrice_in_one_graph(void **state)
{
    (void)state;
    brg_compiled *c = compile_whole(wave, NULL);
    for (int is_compiled = 0; is_compiled < 2; is_compiled++) {
        brg_tensor *x = leaf_from(0.5, BRG_SHAPE(5)), *y, *direct = x;
        for (int i = 0; i < 3; i++)
            assert_brg_ok(wave(&direct, 1, &direct, 1, NULL));
        assert_brg_ok(brg_backward(brg_sum_all(direct)));
        y = leaf_from(0.5, BRG_SHAPE(5));
        brg_tensor *h = y;
        for (int i = 0; i < 3; i++)
            h = call(c, &h, 1);
        expect_same_bits(direct, h);
        int scope;
        brg_compile_options options = BRG_COMPILE_OPTIONS_INIT;
        options.backend = BRG_COMPILE_BACKEND_EAGER; /* its names are kept */
        if (is_compiled)
            assert_brg_ok(brg_compile_begin(&scope, &options));
        assert_brg_ok(brg_backward(brg_sum_all(h)));
        if (is_compiled)
            assert_brg_ok(brg_compile_end(scope));
        expect_same_bits(brg_tensor_grad(x), brg_tensor_grad(y));
    }
    const char *text = plan_text(0);
    assert_non_null(strstr(text, "_0/"));
    assert_non_null(strstr(text, "_1/"));
    assert_non_null(strstr(text, "_2/"));
    brg_compiled_destroy(c);
}

static void test_segment__create_graph_is_refused(void **state)
{
    (void)state;
    brg_tensor *x = leaf_from(0.5, BRG_SHAPE(5));
    brg_compiled *c = compile_whole(wave, NULL);
    brg_tensor *y = brg_sum_all(call(c, &x, 1)), *grad;
    brg_backward_options options = BRG_BACKWARD_OPTIONS_INIT;
    options.create_graph = true;
    assert_brg_fails_with(brg_grad(&grad, &y, 1, &x, 1, &options),
                          BRG_ERR_STATE,
                          "does not currently support higher order gradients");
    assert_null(grad);
    brg_compiled_destroy(c); /* the graph keeps what it needs */
    assert_brg_ok(brg_grad(&grad, &y, 1, &x, 1, NULL));
}

/* ---- Results that are views, inputs, parameters ------------------------------------ */

static brg_status many(brg_tensor *const *in, size_t n_in, brg_tensor **out,
                       size_t n_out, void *user)
{
    (void)n_in;
    (void)n_out;
    brg_tensor *w = user, *h = brg_mul(in[0], w);
    out[0] = brg_transpose(h, 0, 1);
    out[1] = h;
    out[2] = in[0];
    out[3] = brg_narrow(in[0], 0, 1, 1);
    out[4] = brg_flatten(w, 0, -1);
    out[5] = brg_detach(h);
    out[6] = NULL;
    return out[5] ? BRG_OK : brg_error_code();
}

static brg_tensor *sum_of_many(brg_tensor **out)
{
    brg_tensor *sum = brg_sum_all(brg_mul(out[0], out[0]));
    for (int i = 1; i < 6; i++)
        sum = brg_add(sum, brg_sum_all(brg_exp(brg_mul_scalar(out[i], 0.1))));
    return sum;
}

static void test_segment__results_are_what_they_would_be(void **state)
{
    (void)state;
    brg_tensor *x = leaf_from(1, BRG_SHAPE(3, 4)), *want[7], *got[7];
    brg_tensor *w = leaf_from(2, BRG_SHAPE(3, 4));
    assert_brg_ok(many(&x, 1, want, 7, w));
    brg_compiled *c = compile_whole(many, w);
    assert_brg_ok(brg_compiled_call(c, &x, 1, got, 7));
    brg_compiled_destroy(c);
    for (int i = 0; i < 6; i++) {
        expect_same_bits(want[i], got[i]);
        assert_int_equal(brg_requires_grad(want[i]), brg_requires_grad(got[i]));
    }
    assert_ptr_equal(got[2], x);
    assert_null(got[6]);
    assert_true(brg_tensor_shares_storage(got[0], got[1]));
    assert_true(brg_tensor_shares_storage(got[3], x));
    assert_true(brg_tensor_shares_storage(got[4], w));
    assert_brg_ok(brg_backward(sum_of_many(want)));
    brg_tensor *gx = brg_copy(brg_tensor_grad(x));
    brg_tensor *gw = brg_copy(brg_tensor_grad(w));
    assert_brg_ok(brg_tensor_set_grad(x, NULL));
    assert_brg_ok(brg_tensor_set_grad(w, NULL));
    assert_brg_ok(brg_backward(sum_of_many(got)));
    for (int i = 0; i < 12; i++) {
        assert_float_equal(value_at(gx, i), value_at(brg_tensor_grad(x), i),
                           1e-5);
        assert_float_equal(value_at(gw, i), value_at(brg_tensor_grad(w), i),
                           1e-5);
    }
}

static brg_status exponential(brg_tensor *const *in, size_t n_in,
                              brg_tensor **out, size_t n_out, void *user)
{
    (void)n_in;
    (void)n_out;
    (void)user;
    out[0] = brg_exp(in[0]);
    return out[0] ? BRG_OK : brg_error_code();
}

/* A result changed in place: its views know, and what is saved is checked. */
static void test_segment__results_changed_in_place(void **state)
{
    (void)state;
    brg_tensor *x = leaf_from(1, BRG_SHAPE(3, 4)), *out[7];
    brg_tensor *w = leaf_from(2, BRG_SHAPE(3, 4));
    brg_compiled *c = compile_whole(many, w);
    assert_brg_ok(brg_compiled_call(c, &x, 1, out, 7));
    brg_compiled_destroy(c);
    assert_brg_ok(brg_mul_scalar_(out[1], 3.0));
    assert_brg_ok(brg_backward(brg_sum_all(out[0])));
    assert_float_equal(value_at(brg_tensor_grad(x), 0), 3 * 2, 0);
    brg_compiled *d = compile_whole(exponential, NULL);
    brg_tensor *y = leaf_from(1, BRG_SHAPE(5)), *z = call(d, &y, 1);
    brg_tensor *sum = brg_sum_all(z);
    assert_brg_ok(brg_mul_scalar_(z, 2.0)); /* which its backward reads */
    assert_brg_fails_with(brg_backward(sum), BRG_ERR_MODIFIED,
                          "modified by an inplace operation");
    brg_compiled_destroy(d);
}

/* ---- Dropout ------------------------------------------------------------------------- */

static brg_status drop(brg_tensor *const *in, size_t n_in, brg_tensor **out,
                       size_t n_out, void *user)
{
    (void)n_in;
    (void)n_out;
    (void)user;
    out[0] =
        brg_mul(brg_dropout(in[0], 0.5, true), brg_dropout(in[0], 0.25, true));
    return out[0] ? BRG_OK : brg_error_code();
}

static void test_segment__dropout_draws_as_eager(void **state)
{
    (void)state;
    brg_compiled *c = compile_whole(drop, NULL);
    for (int is_compiled = 0; is_compiled < 2; is_compiled++) {
        brg_tensor *x = leaf_from(1, BRG_SHAPE(37)), *want[3];
        brg_tensor *y = leaf_from(1, BRG_SHAPE(37)), *got[3];
        brg_seed(5);
        for (int i = 0; i < 3; i++)
            assert_brg_ok(drop(&x, 1, &want[i], 1, NULL));
        brg_seed(5);
        for (int i = 0; i < 3; i++)
            got[i] = call(c, &y, 1);
        int scope;
        if (is_compiled)
            assert_brg_ok(brg_compile_begin(&scope, NULL));
        for (int i = 0; i < 3; i++) { /* not in the order of the calls */
            int k = (i + 1) % 3;
            expect_same_bits(want[k], got[k]);
            assert_brg_ok(brg_backward(brg_sum_all(got[k])));
            if (!is_compiled)
                assert_brg_ok(brg_backward(brg_sum_all(want[k])));
        }
        if (is_compiled) {
            assert_brg_ok(brg_compile_end(scope));
            for (int i = 0; i < 3; i++)
                assert_brg_ok(brg_backward(brg_sum_all(want[(i + 1) % 3])));
        }
        expect_same_bits(brg_tensor_grad(x), brg_tensor_grad(y));
    }
    brg_compiled_destroy(c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        scoped_test(test_segment__same_bits_as_eager),
        scoped_test(test_segment__spliced_into_a_compiled_backward),
        scoped_test(test_segment__thrice_in_one_graph),
        scoped_test(test_segment__create_graph_is_refused),
        scoped_test(test_segment__results_are_what_they_would_be),
        scoped_test(test_segment__results_changed_in_place),
        scoped_test(test_segment__dropout_draws_as_eager),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
