/* SPDX-License-Identifier: Apache-2.0
 * Functions compiled whole use parameters that are no inputs of theirs, through
 * custom functions, branches and loops, and ask for their gradients: the same
 * gradients as without compiling. */
#include <brigade/control.h>

#include "tests/compile/chains.h"
#include "tests/compile/functions.h"

typedef struct model {
    brg_function *product;
    brg_tensor *w;         /* a parameter, known by its address only */
    bool is_step, is_read; /* a value is read on the way: in pieces */
} model;

static brg_status forward(brg_context *ctx, const brg_value *args,
                          size_t n_args, brg_value *out)
{
    brg_tensor *both[] = {args[0].as.tensor, args[1].as.tensor};
    (void)n_args;
    BRG_TRY(brg_context_save(ctx, both, 2));
    out[0] = brg_value_tensor(brg_mul(both[0], both[1]));
    return out[0].as.tensor ? BRG_OK : brg_error_code();
}

static brg_status backward(brg_context *ctx, brg_tensor *const *g,
                           brg_tensor **gi, size_t *n)
{
    brg_tensor *saved[2];
    (void)n;
    for (size_t i = 0; i < 2; i++)
        BRG_TRY(brg_context_saved(ctx, i, &saved[i]));
    for (size_t i = 0; i < 2; i++)
        if (!(gi[i] = brg_mul_scalar(brg_mul(g[0], saved[1 - i]), 3)))
            return brg_error_code();
    return BRG_OK;
}

static brg_status ends(const model *m, brg_tensor **out)
{
    double value;
    if (!out[0])
        return brg_error_code();
    if (m->is_read)
        BRG_TRY(brg_tensor_item(brg_sum_all(brg_detach(out[0])), &value));
    out[0] = brg_sum_all(brg_sin(out[0]));
    return m->is_step ? brg_backward(out[0]) : BRG_OK;
}

FUNCTION(calls_function)
{
    const model *m = user;
    brg_value args[] = {brg_value_tensor(in[0]), brg_value_tensor(m->w)};
    out[0] = brg_function_call(m->product, args, 2);
    return ends(m, out);
}

FUNCTION(calls_function_of_parameters_only)
{
    const model *m = user;
    brg_value args[] = {brg_value_tensor(m->w), brg_value_tensor(m->w)};
    out[0] = brg_mul(in[0], brg_function_call(m->product, args, 2));
    return ends(m, out);
}

FUNCTION(multiplies)
{
    (void)user;
    out[0] = brg_mul(in[0], in[1]);
    return out[0] ? BRG_OK : brg_error_code();
}

FUNCTION(adds)
{
    (void)user;
    out[0] = brg_add(in[0], in[1]);
    return out[0] ? BRG_OK : brg_error_code();
}

FUNCTION(branches)
{
    const model *m = user;
    brg_tensor *both[] = {in[0], m->w};
    BRG_TRY(brg_cond(out, 1, brg_sum_all(brg_detach(in[0])),
                     (brg_region){multiplies, NULL}, (brg_region){adds, NULL},
                     both, 2));
    return ends(m, out);
}

FUNCTION(is_below)
{
    (void)user;
    brg_tensor *sum = brg_sum_all(brg_detach(in[0]));
    out[0] = brg_lt(sum, brg_full_like(sum, 50));
    return out[0] ? BRG_OK : brg_error_code();
}

FUNCTION(grows)
{
    (void)user;
    out[0] = brg_add(brg_mul_scalar(in[0], 2), in[1]);
    out[1] = in[1];
    return out[0] ? BRG_OK : brg_error_code();
}

FUNCTION(loops)
{
    const model *m = user;
    brg_tensor *both[] = {in[0], m->w};
    BRG_TRY(brg_while_loop(both, (brg_region){is_below, NULL},
                           (brg_region){grows, NULL}, both, 2));
    out[0] = both[0];
    return ends(m, out);
}

FUNCTION(asks_for_gradient)
{
    const model *m = user;
    brg_tensor *w = m->w, *grad;
    brg_tensor *y = brg_sum_all(brg_sin(brg_mul(in[0], w)));
    BRG_TRY(brg_grad(&grad, &y, 1, &w, 1, NULL));
    out[0] = grad ? brg_mul(in[0], brg_mul(grad, w)) : NULL;
    return ends(m, out);
}

/* Two calls, with the backward after each if it is not part of them. */
static void train(const model *m, brg_compiled_fn fn, brg_compiled *compiled,
                  double *grads)
{
    brg_tensor *x = leaf_from(0.125, BRG_SHAPE(6)), *y;
    for (int i = 0; i < 2; i++) {
        assert_brg_ok(compiled ? brg_compiled_call(compiled, &x, 1, &y, 1)
                               : fn(&x, 1, &y, 1, (void *)m));
        if (!m->is_step)
            assert_brg_ok(brg_backward(y));
    }
    for (int i = 0; i < 6; i++) {
        grads[i] = element(assert_brg_some(brg_tensor_grad(m->w)), i);
        grads[6 + i] = element(assert_brg_some(brg_tensor_grad(x)), i);
    }
}

static void check_kind(brg_compiled_fn fn, bool is_step, bool is_read)
{
    double grads[2][12];
    model m = {.is_step = is_step, .is_read = is_read};
    m.product =
        make_function("Product", 1, forward, backward, BRG_FUNCTION_TRACEABLE);
    for (int k = 0; k < 2; k++) {
        brg_compile_options options = BRG_COMPILE_OPTIONS_INIT;
        brg_compiled *c = NULL;
        options.whole = true;
        options.fullgraph = !is_read;
        m.w = leaf_from(0.5, BRG_SHAPE(6));
        if (k)
            assert_brg_ok(brg_compiled_create(&c, fn, &m, &options));
        train(&m, fn, c, grads[k]);
        brg_compiled_destroy(c);
    }
    brg_function_release(m.product);
    for (int i = 0; i < 12; i++)
        assert_true(grads[0][i] == grads[1][i] && grads[0][i] != 0);
}

static void check(brg_compiled_fn fn)
{
    for (int i = 0; i < 4; i++)
        check_kind(fn, i % 2, i / 2);
}

static void test_outside__in_a_custom_function(void **state)
{
    (void)state;
    check(calls_function);
    check(calls_function_of_parameters_only);
}

static void test_outside__in_a_branch_or_loop(void **state)
{
    (void)state;
    check(branches);
    check(loops);
}

static void test_outside__asked_for_by_grad(void **state)
{
    (void)state;
    check_kind(asks_for_gradient, true, false);
    check_kind(asks_for_gradient, false, false);
    check_kind(asks_for_gradient, true, true);
    check_kind(asks_for_gradient, false, true);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        scoped_test(test_outside__in_a_custom_function),
        scoped_test(test_outside__in_a_branch_or_loop),
        scoped_test(test_outside__asked_for_by_grad),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
