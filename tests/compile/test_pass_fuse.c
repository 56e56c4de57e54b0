/* SPDX-License-Identifier: Apache-2.0
 * Which ops become one node, and where it runs; undefined operands and sizes
 * that do not fit, against eager backwards. */
#include <brigade/function.h>

#include "tests/autograd/graph.h"
#include "tests/compile/ir_build.h"

/* ---- Plans made by hand ---------------------------------------------------------- */

static void test_pass_fuse__chain_and_fan(void **state)
{
    (void)state;
    brg__ir ir = {0};
    int g = ir_input(&ir), x = ir_input(&ir);
    int a = ir_op(&ir, "mul", IN(g, x)), b = ir_op(&ir, "sin", IN(a));
    int c = ir_op(&ir, "cos", IN(a));
    ir_of(&ir, BRG__IR_ACCUMULATE, 1, 0, IN(b));
    ir_of(&ir, BRG__IR_ACCUMULATE, 2, 0, IN(c));
    assert_brg_ok(brg__pass_fuse(&ir));
    assert_brg_ok(brg__ir_verify(&ir));
    expect_plan(&ir, "v5 f32/2, v6 f32/2 = fused(in0, in1) {t0 = mul(a0, a1); "
                     "t1 = sin(t0) -> o0; t2 = cos(t0) -> o1}\n"
                     "accumulate@1(v5)\n"
                     "accumulate@2(v6)\n");
    brg__ir_deinit(&ir);
}

/* The product needs the first op and makes what the last one needs. */
static void test_pass_fuse__not_around_a_product(void **state)
{
    (void)state;
    brg__ir ir = {0};
    int g = ir_input(&ir), w = ir_input(&ir);
    int a = ir_op(&ir, "sin", IN(g)), b = ir_op(&ir, "cos", IN(a));
    int m = ir_op(&ir, "matmul", IN(b, w));
    int c = ir_op(&ir, "add", IN(b, m)), d = ir_op(&ir, "neg", IN(c));
    ir_of(&ir, BRG__IR_ACCUMULATE, 1, 0, IN(d));
    assert_brg_ok(brg__pass_fuse(&ir));
    assert_brg_ok(brg__ir_verify(&ir));
    expect_plan(&ir,
                "v7 f32/2 = fused(in0) {t0 = sin(a0); t1 = cos(t0) -> o0}\n"
                "v4 f32/2 = matmul(v7, in1)\n"
                "v8 f32/2 = fused(v7, v4) {t0 = add(a0, a1); t1 = neg(t0) -> "
                "o0}\n"
                "accumulate@1(v8)\n");
    brg__ir_deinit(&ir);
}

/* A sum over what a group makes comes along, in front of the product. */
static void test_pass_fuse__sums_move_up(void **state)
{
    (void)state;
    brg__ir ir = {0};
    int g = ir_input(&ir), y = ir_input(&ir), w = ir_input(&ir);
    int a = ir_op(&ir, "relu_grad", IN(g, y));
    int m = ir_op(&ir, "matmul", IN(a, w)), s = ir_op(&ir, "sum", IN(a));
    ir.nodes.at[ir.nodes.n - 1].attrs.i[0] = 1;
    ir_of(&ir, BRG__IR_ACCUMULATE, 1, 0, IN(m));
    ir_of(&ir, BRG__IR_ACCUMULATE, 2, 0, IN(s));
    assert_brg_ok(brg__pass_fuse(&ir));
    assert_brg_ok(brg__ir_verify(&ir));
    expect_plan(&ir, "v6 f32/2, v7 f32/2 = fused(in0, in1) {t0 = relu_grad(a0, "
                     "a1) -> o0; t1 = sum(t0) -> o1}\n"
                     "v4 f32/2 = matmul(v6, in2)\n"
                     "accumulate@1(v4)\n"
                     "accumulate@2(v7)\n");
    brg__ir_deinit(&ir);
}

/* A hook may change what it is handed: who read it before still does. */
static void test_pass_fuse__sides_of_hooks_are_kept(void **state)
{
    (void)state;
    brg__ir ir = {0};
    int g = ir_input(&ir), w = ir_input(&ir);
    int p = ir_op(&ir, "matmul", IN(g, w));
    int a = ir_op(&ir, "sin", IN(p));
    int h = ir_of(&ir, BRG__IR_TENSOR_HOOKS, 1, 1, IN(p));
    int m = ir_op(&ir, "matmul", IN(h, w));
    int c = ir_op(&ir, "add", IN(a, m)); /* would take a behind the hook */
    ir_of(&ir, BRG__IR_ACCUMULATE, 1, 0, IN(c));
    const char *same = "v2 f32/2 = matmul(in0, in1)\n"
                       "v3 f32/2 = sin(v2)\n"
                       "v4 f32/2 = tensor_hooks@1(v2)\n"
                       "v5 f32/2 = matmul(v4, in1)\n"
                       "v6 f32/2 = add(v3, v5)\n"
                       "accumulate@1(v6)\n";
    expect_plan(&ir, same);
    assert_brg_ok(brg__pass_fuse(&ir));
    assert_brg_ok(brg__ir_verify(&ir));
    expect_plan(&ir, same);
    brg__ir_deinit(&ir);
}

/* Code behind an accumulation may change parameters, which are inputs. */
static void test_pass_fuse__inputs_are_not_read_later(void **state)
{
    (void)state;
    brg__ir ir = {0};
    int g = ir_input(&ir), w = ir_input(&ir);
    int a = ir_op(&ir, "mul", IN(g, w));
    ir_of(&ir, BRG__IR_ACCUMULATE, 1, 0, IN(g));
    int m = ir_op(&ir, "matmul", IN(g, g));
    int c = ir_op(&ir, "add", IN(a, m));
    ir_of(&ir, BRG__IR_ACCUMULATE, 2, 0, IN(c));
    size_t n = ir.nodes.n;
    assert_brg_ok(brg__pass_fuse(&ir));
    assert_brg_ok(brg__ir_verify(&ir));
    assert_int_equal(ir.nodes.n, n);
    assert_int_equal(ir.groups.n, 0);
    brg__ir_deinit(&ir);
}

/* Of what a sum is made like only the shape is read, which no code changes. */
static void test_pass_fuse__sums_move_past_accumulations(void **state)
{
    (void)state;
    brg__ir ir = {0};
    int g = ir_input(&ir), w = ir_input(&ir), bias = ir_input(&ir);
    int p = ir_op(&ir, "matmul", IN(g, w)), q = ir_op(&ir, "matmul", IN(w, g));
    int a = ir_op(&ir, "add", IN(p, q));
    ir_of(&ir, BRG__IR_ACCUMULATE, 1, 0, IN(g));
    ir_of(&ir, BRG__IR_ACCUMULATE, 2, 0, IN(ir_op(&ir, "matmul", IN(a, w))));
    int s = ir_op(&ir, "sum_to_like", IN(a, bias));
    ir.values.at[bias].ones = 1;
    ir_of(&ir, BRG__IR_ACCUMULATE, 3, 0, IN(s));
    assert_brg_ok(brg__pass_fuse(&ir));
    assert_brg_ok(brg__ir_verify(&ir));
    expect_plan(&ir, "v3 f32/2 = matmul(in0, in1)\n"
                     "v4 f32/2 = matmul(in1, in0)\n"
                     "v8 f32/2, v9 f32/2 = fused(v3, v4, in2) {t0 = add(a0, "
                     "a1) -> o0; t1 = sum_to_like(t0, a2) -> o1}\n"
                     "accumulate@1(in0)\n"
                     "v6 f32/2 = matmul(v8, in1)\n"
                     "accumulate@2(v6)\n"
                     "accumulate@3(v9)\n");
    brg__ir_deinit(&ir);
}

/* More ops, operands and results than one group holds. */
static void test_pass_fuse__large_graphs_are_cut(void **state)
{
    (void)state;
    brg__ir ir = {0};
    int v = ir_input(&ir);
    for (int i = 0; i < 200; i++) {
        int other = i % 5 == 0 ? ir_input(&ir) : v;
        v = ir_op(&ir, "add", IN(v, other));
        if (i % 7 == 0)
            ir_of(&ir, BRG__IR_ACCUMULATE, i, 0, IN(v));
    }
    ir_of(&ir, BRG__IR_ACCUMULATE, 200, 0, IN(v));
    assert_brg_ok(brg__pass_fuse(&ir));
    assert_brg_ok(brg__ir_verify(&ir));
    size_t n_ops = 0;
    for (size_t at = 0; at < ir.nodes.n; at++)
        n_ops += ir.nodes.at[at].kind == BRG__IR_OP;
    for (size_t k = 0; k < ir.groups.n; k++)
        n_ops += (size_t)ir.groups.at[k]->n_ops;
    assert_int_equal(n_ops, 200);
    assert_true(ir.groups.n > 3);
    brg__ir_deinit(&ir);
}

/* ---- Undefined operands ------------------------------------------------------------ */

static brg_status half_forward(brg_context *ctx, const brg_value *args,
                               size_t n, brg_value *out)
{
    (void)ctx;
    (void)n;
    out[0] = brg_value_tensor(brg_add(args[0].as.tensor, args[1].as.tensor));
    return out[0].as.tensor ? BRG_OK : brg_error_code();
}

/* No gradient for the first argument. */
static brg_status half_backward(brg_context *ctx, brg_tensor *const *g,
                                brg_tensor **gi, size_t *n)
{
    (void)ctx;
    (void)n;
    gi[1] = brg_mul_scalar(g[0], 3);
    return gi[1] ? BRG_OK : brg_error_code();
}

static brg_function *make_half(void)
{
    return new_function(.name = "half", .n_outputs = 1, .forward = half_forward,
                        .backward = half_backward);
}

typedef struct leaves {
    brg_tensor *a, *b, *c;
} leaves;

static leaves make_leaves(int64_t rows)
{
    return (leaves){leaf_from(0.25, BRG_SHAPE(rows, 3)),
                    leaf_from(0.5, BRG_SHAPE(3)),
                    leaf_from(0.75, BRG_SHAPE(rows, 3))};
}

static void expect_same(const brg_tensor *x, const brg_tensor *y)
{
    const brg_tensor *a = brg_tensor_grad(x), *b = brg_tensor_grad(y);
    assert_int_equal(a != NULL, b != NULL);
    if (a)
        assert_memory_equal(brg_tensor_data((brg_tensor *)(uintptr_t)a),
                            brg_tensor_data((brg_tensor *)(uintptr_t)b),
                            brg_tensor_nbytes(a));
}

static void compare(brg_tensor *(*loss_of)(const leaves *l), int64_t rows)
{
    int scope;
    leaves eager = make_leaves(rows), plan = make_leaves(rows);
    assert_brg_ok(brg_backward(loss_of(&eager)));
    assert_brg_ok(brg_compile_begin(&scope, NULL));
    assert_brg_ok(brg_backward(loss_of(&plan)));
    assert_brg_ok(brg_compile_end(scope));
    expect_same(eager.a, plan.a);
    expect_same(eager.b, plan.b);
    expect_same(eager.c, plan.c);
}

static brg_function *half;

/* a's chain gets no gradient at all. */
static brg_tensor *undefined_chain(const leaves *l)
{
    brg_tensor *h = brg_tanh(brg_mul(brg_sin(l->a), l->b));
    brg_value args[2] = {brg_value_tensor(h), brg_value_tensor(l->c)};
    return brg_sum_all(brg_function_call(half, args, 2));
}

/* It meets one that does, in the middle of the chain. */
static brg_tensor *half_undefined_chain(const leaves *l)
{
    brg_tensor *h = brg_tanh(brg_mul(brg_sin(l->a), l->b));
    brg_value args[2] = {brg_value_tensor(h), brg_value_tensor(l->c)};
    brg_tensor *y = brg_function_call(half, args, 2);
    return brg_sum_all(brg_add(y, brg_mul(h, h)));
}

static void test_pass_fuse__undefined_operands(void **state)
{
    (void)state;
    half = make_half();
    for (int64_t rows = 2; rows < 6; rows++) {
        compare(undefined_chain, rows);
        compare(half_undefined_chain, rows);
    }
    brg_function_release(half);
}

/* A slice to the end has one row for some sizes and broadcasts there. */
static brg_tensor *slice_chain(const leaves *l)
{
    brg_tensor *tail = brg_slice(l->a, 0, 1, BRG_TO_END, 1);
    brg_tensor *h = brg_mul(brg_tanh(tail), l->b);
    return brg_sum_all(brg_mul(brg_add(h, brg_sigmoid(h)), tail));
}

static void test_pass_fuse__sizes_that_become_one(void **state)
{
    (void)state;
    static const int64_t rows[] = {4, 2, 7, 3, 2};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        compare(slice_chain, rows[i]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pass_fuse__chain_and_fan),
        cmocka_unit_test(test_pass_fuse__not_around_a_product),
        cmocka_unit_test(test_pass_fuse__sums_move_up),
        cmocka_unit_test(test_pass_fuse__sides_of_hooks_are_kept),
        cmocka_unit_test(test_pass_fuse__inputs_are_not_read_later),
        cmocka_unit_test(test_pass_fuse__sums_move_past_accumulations),
        cmocka_unit_test(test_pass_fuse__large_graphs_are_cut),
        scoped_test(test_pass_fuse__undefined_operands),
        scoped_test(test_pass_fuse__sizes_that_become_one),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
