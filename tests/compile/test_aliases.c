/* SPDX-License-Identifier: Apache-2.0
 * Backwards that read the memory of a gradient which they add to: what is read
 * is what an eager backward reads, so no plan, which moves accumulation, serves
 * them. */
#include "tests/compile/chains.h"
#include "tests/compile/functions.h"

/* a, b, seen -> a * b; gradients: 2 g for a, then seen * sum(g) for b, by a
 * product that is not fused with the other. */
static brg_status forward(brg_context *ctx, const brg_value *args,
                          size_t n_args, brg_value *out)
{
    (void)n_args;
    BRG_TRY(brg_context_save(ctx, &args[2].as.tensor, 1));
    out[0] = brg_value_tensor(brg_mul(args[0].as.tensor, args[1].as.tensor));
    return out[0].as.tensor ? BRG_OK : brg_error_code();
}

static brg_status backward(brg_context *ctx, brg_tensor *const *g,
                           brg_tensor **gi, size_t *n)
{
    (void)n;
    brg_tensor *seen;
    BRG_TRY(brg_context_saved(ctx, 0, &seen));
    gi[0] = brg_mul_scalar(g[0], 2);
    brg_tensor *sum =
        brg_unsqueeze(brg_sum(g[0], 1, (const int[]){0}, true), 0);
    gi[1] = brg_squeeze(brg_matmul(brg_unsqueeze(seen, 1), sum), 1);
    return gi[1] ? BRG_OK : brg_error_code();
}

static brg_tensor *reads(brg_function *f, brg_tensor *a, brg_tensor *b,
                         brg_tensor *seen)
{
    brg_value args[] = {brg_value_tensor(a), brg_value_tensor(b),
                        brg_value_tensor(seen)};
    return assert_brg_some(
        brg_sum_all(assert_brg_some(brg_function_call(f, args, 3))));
}

static brg_function *make_reader(void)
{
    return make_function("Reads", 1, forward, backward, BRG_FUNCTION_TRACEABLE);
}

/* The gradient of b is what lay in the other's .grad before this backward. */
static void check(brg_function *f, bool is_view)
{
    brg_tensor *a = leaf_from(1, BRG_SHAPE(4)), *b = leaf_from(2, BRG_SHAPE(4));
    brg_tensor *old = brg_full(BRG_DTYPE_F32, BRG_SHAPE(4), 5);
    assert_brg_ok(brg_tensor_set_grad(a, old));
    brg_tensor *seen = brg_tensor_grad(a);
    if (is_view)
        seen = brg_reshape(brg_reshape(seen, BRG_SHAPE(2, 2)), BRG_SHAPE(4));
    assert_brg_ok(brg_backward(reads(f, a, b, seen)));
    for (int i = 0; i < 4; i++) {
        assert_float_equal(element(brg_tensor_grad(a), i), 5 + 2, 0);
        assert_float_equal(element(brg_tensor_grad(b), i), 4 * 5, 0);
    }
}

static void test_aliases__a_gradient_that_the_rule_reads(void **state)
{
    (void)state;
    brg_function *f = make_reader();
    check(f, false);
    int scope = begin_with((brg_compile_options)BRG_COMPILE_OPTIONS_INIT);
    check(f, false);
    check(f, true);
    assert_int_equal(compile_stats().captures, 0);
    assert_int_equal(compile_stats().fallbacks, 2);
    /* The same backward that reads another tensor has its plan. */
    brg_tensor *a = leaf_from(1, BRG_SHAPE(4)), *b = leaf_from(2, BRG_SHAPE(4));
    assert_brg_ok(brg_tensor_set_grad(
        a, assert_brg_some(brg_full(BRG_DTYPE_F32, BRG_SHAPE(4), 5))));
    for (int i = 0; i < 2; i++)
        assert_brg_ok(brg_backward(
            reads(f, a, b, brg_full(BRG_DTYPE_F32, BRG_SHAPE(4), 5))));
    assert_float_equal(element(brg_tensor_grad(b), 0), 2 * 4 * 5, 0);
    assert_int_equal(compile_stats().captures, 2); /* b has none, then one */
    assert_int_equal(compile_stats().fallbacks, 2);
    assert_brg_ok(brg_compile_end(scope));
    brg_function_release(f);
}

/* ---- In a step --------------------------------------------------------------------- */

typedef struct model {
    brg_function *f;
    brg_tensor *a, *b;
} model;

/* in: a tensor that the backward reads. */
static brg_status trains(brg_tensor *const *in, size_t n_in, brg_tensor **out,
                         size_t n_out, void *user)
{
    model *m = user;
    (void)n_in;
    (void)n_out;
    brg_tensor *before = brg_mul_scalar(in[0], 3);
    BRG_TRY(brg_backward(reads(m->f, m->a, m->b, in[0])));
    out[0] = brg_add(before, brg_mul_scalar(in[0], 3));
    return out[0] ? BRG_OK : brg_error_code();
}

static void test_aliases__a_gradient_that_a_step_is_given(void **state)
{
    (void)state;
    model m = {.f = make_reader()};
    brg_compile_options options = BRG_COMPILE_OPTIONS_INIT;
    brg_compiled *c;
    options.whole = true;
    assert_brg_ok(brg_compiled_create(&c, trains, &m, &options));
    m.a = leaf_from(1, BRG_SHAPE(4));
    m.b = leaf_from(2, BRG_SHAPE(4));
    assert_brg_ok(brg_tensor_set_grad(
        m.a, assert_brg_some(brg_full(BRG_DTYPE_F32, BRG_SHAPE(4), 5))));
    brg_tensor *out, *seen = brg_full(BRG_DTYPE_F32, BRG_SHAPE(4), 5);
    double in_b = 0, in_a = 5;
    for (int i = 0; i < 4; i++) {
        /* Another tensor, then its own gradient; and once more. */
        brg_tensor *in = i % 2 ? brg_tensor_grad(m.a) : seen;
        double was = i % 2 ? in_a : 5;
        in_a += 2;
        in_b += 4 * was;
        assert_brg_ok(brg_compiled_call(c, &in, 1, &out, 1));
        assert_float_equal(element(brg_tensor_grad(m.a), 0), in_a, 0);
        assert_float_equal(element(brg_tensor_grad(m.b), 0), in_b, 0);
        assert_float_equal(element(out, 0), 3 * was + 3 * (i % 2 ? in_a : 5),
                           0);
    }
    assert_int_equal(compile_stats().functions, 1);
    assert_int_equal(compile_stats().function_fallbacks, 2);
    brg_compiled_destroy(c);
    brg_function_release(m.f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        scoped_test(test_aliases__a_gradient_that_the_rule_reads),
        scoped_test(test_aliases__a_gradient_that_a_step_is_given),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
