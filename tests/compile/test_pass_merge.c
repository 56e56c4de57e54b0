/* SPDX-License-Identifier: Apache-2.0
 * Merging: what becomes one op, where it runs, and what stays apart. */
#include "tests/compile/ir_build.h"

#include "core/ops/op.h"

static void merge(brg__ir *ir, bool rounds_once)
{
    ir->wants_kernels = rounds_once;
    assert_brg_ok(brg__ir_verify(ir));
    assert_brg_ok(brg__pass_merge(ir));
}

/* ---- What follows a product ---------------------------------------------------- */

/* Both results may be read. */
static void test_pass_merge__linear_and_gelu(void **state)
{
    (void)state;
    brg__ir ir = {0};
    int x = ir_input(&ir), w = ir_input(&ir), b = ir_input(&ir);
    int y = ir_op(&ir, "linear", IN(x, w, b));
    int z = ir_op(&ir, "gelu", IN(y));
    int other = ir_op(&ir, "sin", IN(y));
    ir_of(&ir, BRG__IR_ACCUMULATE, 0, 0, IN(z));
    ir_of(&ir, BRG__IR_ACCUMULATE, 1, 0, IN(other));
    merge(&ir, true);
    expect_plan(&ir, "v6 f32/2, v7 f32/2 = linear_gelu(in0, in1, in2)\n"
                     "v5 f32/2 = sin(v7)\n"
                     "accumulate@0(v6)\n"
                     "accumulate@1(v5)\n");
    brg__ir_deinit(&ir);
}

static void test_pass_merge__linear_and_a_sum(void **state)
{
    (void)state;
    brg__ir ir = {0};
    int x = ir_input(&ir), w = ir_input(&ir), b = ir_input(&ir);
    int r = ir_op(&ir, "sin", IN(x));
    int y = ir_op(&ir, "linear", IN(x, w, b));
    int sum = ir_op(&ir, "add", IN(r, y));
    ir_of(&ir, BRG__IR_ACCUMULATE, 0, 0, IN(sum));
    merge(&ir, true);
    expect_plan(&ir, "v3 f32/2 = sin(in0)\n"
                     "v6 f32/2 = linear_add(in0, in1, in2, v3)\n"
                     "accumulate@0(v6)\n");
    brg__ir_deinit(&ir);
}

/* The product itself is wanted; what is added comes later, is of other sizes,
 * or may be changed in between. */
static void test_pass_merge__sums_that_stay_apart(void **state)
{
    (void)state;
    for (int k = 0; k < 4; k++) {
        brg__ir ir = {0};
        int x = ir_input(&ir), w = ir_input(&ir), b = ir_input(&ir);
        int r = ir_op(&ir, "sin", IN(x));
        int y = ir_op(&ir, "linear", IN(x, w, b));
        if (k == 0)
            ir_of(&ir, BRG__IR_ACCUMULATE, 1, 0, IN(y));
        if (k == 1)
            r = ir_op(&ir, "cos", IN(x));
        if (k == 2)
            ir.values.at[r].ones = 1;
        if (k == 3) {
            ir_of(&ir, BRG__IR_LEAF, 2, 0, IN(r));
            ir_of(&ir, BRG__IR_LEAF, 3, 0, IN(x));
        }
        int sum = ir_op(&ir, "add", IN(r, y));
        ir_of(&ir, BRG__IR_ACCUMULATE, 0, 0, IN(sum));
        size_t n = ir.nodes.n;
        merge(&ir, true);
        assert_int_equal(ir.nodes.n, n);
        brg__ir_deinit(&ir);
    }
}

/* They round less often than what they stand for. */
static void
test_pass_merge__products_stay_as_they_are_without_fused(void **state)
{
    (void)state;
    brg__ir ir = {0};
    int x = ir_input(&ir), w = ir_input(&ir), b = ir_input(&ir);
    int z = ir_op(&ir, "gelu", IN(ir_op(&ir, "linear", IN(x, w, b))));
    int sum = ir_op(&ir, "add", IN(x, ir_op(&ir, "linear", IN(z, w, b))));
    ir_of(&ir, BRG__IR_ACCUMULATE, 0, 0, IN(sum));
    merge(&ir, false);
    assert_int_equal(ir.nodes.n, 5);
    merge(&ir, true);
    assert_int_equal(ir.nodes.n, 3);
    brg__ir_deinit(&ir);
}

/* User code runs in between. */
static void test_pass_merge__a_gradient_through_gelu(void **state)
{
    (void)state;
    brg__ir ir = {0};
    int g = ir_input(&ir), w = ir_input(&ir), x = ir_input(&ir);
    int y = ir_op(&ir, "sin", IN(x));
    int gz = ir_op(&ir, "matmul", IN(g, w));
    int gw = ir_op(&ir, "contract_rows", IN(g, y));
    ir_of(&ir, BRG__IR_LEAF, 0, 0, IN(gw));
    int gy = ir_op(&ir, "gelu_grad", IN(gz, y));
    ir_of(&ir, BRG__IR_LEAF, 1, 0, IN(ir_op(&ir, "cos", IN(gy))));
    merge(&ir, true);
    expect_plan(&ir, "v3 f32/2 = sin(in2)\n"
                     "v8 f32/2 = matmul_gelu_grad(in0, in1, v3)\n"
                     "v5 f32/2 = contract_rows(in0, v3)\n"
                     "leaf@0(v5)\n"
                     "v7 f32/2 = cos(v8)\n"
                     "leaf@1(v7)\n");
    brg__ir_deinit(&ir);
}

/* Memory from outside is read behind the leaf's code, as it was. */
static void test_pass_merge__what_may_be_changed_stays_behind(void **state)
{
    (void)state;
    brg__ir ir = {0};
    int g = ir_input(&ir), w = ir_input(&ir), y = ir_input(&ir);
    int gz = ir_op(&ir, "matmul", IN(g, w));
    ir_of(&ir, BRG__IR_LEAF, 0, 0, IN(g));
    ir_of(&ir, BRG__IR_LEAF, 1, 0, IN(ir_op(&ir, "gelu_grad", IN(gz, y))));
    size_t n = ir.nodes.n;
    merge(&ir, true);
    assert_int_equal(ir.nodes.n, n);
    brg__ir_deinit(&ir);
}

/* ---- Those with the same bits ----------------------------------------------------- */

static void test_pass_merge__a_gradient_that_meets_a_norms(void **state)
{
    (void)state;
    for (int k = 0; k < 3; k++) {
        brg__ir ir = {0};
        int g = ir_input(&ir), x = ir_input(&ir), w = ir_input(&ir);
        int mean = ir_input(&ir), rstd = ir_input(&ir);
        int r = k == 2 ? ir_of(&ir, BRG__IR_CALL, 9, 1, IN(g))
                       : ir_op(&ir, "sin", IN(g));
        int gx = ir_op(&ir, "layer_norm_grad", IN(g, x, w, mean, rstd));
        int sum = k == 1 ? ir_op(&ir, "add", IN(gx, r))
                         : ir_of(&ir, BRG__IR_ADD, NO, 1, IN(r, gx));
        ir_of(&ir, BRG__IR_LEAF, 0, 0, IN(gx + 1));
        ir_of(&ir, BRG__IR_LEAF, 1, 0, IN(sum));
        merge(&ir, false);
        if (k < 2)
            expect_plan(&ir, "v5 f32/2 = sin(in0)\n"
                             "v10 f32/2, v11 f32/2, v12 f32/2 = "
                             "layer_norm_grad_add(in0, in1, in2, in3, in4, "
                             "v5)\n"
                             "leaf@0(v11)\n"
                             "leaf@1(v10)\n");
        else /* a function may give no gradient: the sum is then the other */
            assert_int_equal(ir.nodes.n, 5);
        brg__ir_deinit(&ir);
    }
}

/* Of the norm's gradient, or of what it meets; a bias of one element, or of two dims,
 * is no sum over the rows. */
static void test_pass_merge__a_norms_gradient_and_its_sum(void **state)
{
    (void)state;
    for (int k = 0; k < 5; k++) {
        brg__ir ir = {0};
        int g = ir_input(&ir), x = ir_input(&ir), w = ir_input(&ir);
        int mean = ir_input(&ir), rstd = ir_input(&ir), bias = ir_input(&ir);
        ir.values.at[bias].ndim = k == 2 ? 2 : 1;
        ir.values.at[bias].ones = k == 3;
        int r = ir_op(&ir, "sin", IN(g));
        int gx = ir_op(&ir, "layer_norm_grad", IN(g, x, w, mean, rstd));
        ir.nodes.at[ir.nodes.n - 1].attrs.i[0] = 1;
        int all = k == 1 ? gx : ir_of(&ir, BRG__IR_ADD, NO, 1, IN(r, gx));
        ir_of(&ir, BRG__IR_LEAF, 0, 0, IN(gx + 1));
        int sum = ir_op(&ir, "sum_to_like", IN(all, bias));
        ir_of(&ir, BRG__IR_LEAF, 1, 0, IN(all));
        ir_of(&ir, BRG__IR_LEAF, 2, 0, IN(sum));
        merge(&ir, k != 4);
        if (k == 0)
            expect_plan(&ir, "v6 f32/2 = sin(in0)\n"
                             "v12 f32/2, v13 f32/2, v14 f32/2, v15 f32/2 = "
                             "layer_norm_grad_sum(in0, in1, in2, in3, in4, "
                             "v6)\n"
                             "leaf@0(v13)\n"
                             "leaf@1(v12)\n"
                             "leaf@2(v15)\n");
        else if (k == 1)
            expect_plan(&ir, "v6 f32/2 = sin(in0)\n"
                             "v11 f32/2, v12 f32/2, v13 f32/2, v14 f32/2 = "
                             "layer_norm_grad_sum(in0, in1, in2, in3, in4, "
                             "none)\n"
                             "leaf@0(v12)\n"
                             "leaf@1(v11)\n"
                             "leaf@2(v14)\n");
        else
            assert_true(ir.nodes.at[1].op == &brg__op_layer_norm_grad_add);
        brg__ir_deinit(&ir);
    }
}

/* The loss is read, too. */
static void test_pass_merge__a_backward_from_a_cross_entropy(void **state)
{
    (void)state;
    brg__ir ir = {0};
    int x = ir_input(&ir), t = ir_input(&ir);
    int y = ir_op(&ir, "sin", IN(x));
    int loss = ir_op(&ir, "cross_entropy", IN(y, t));
    int g = ir_op(&ir, "full_like", IN(loss));
    ir.nodes.at[ir.nodes.n - 1].attrs.f[0] = 0.5;
    int gy = ir_op(&ir, "cross_entropy_grad", IN(g, y, t, loss + 1));
    ir_of(&ir, BRG__IR_LEAF, 0, 0, IN(gy));
    ir_of(&ir, BRG__IR_ACCUMULATE, 0, 0, IN(loss));
    merge(&ir, false);
    expect_plan(&ir, "v2 f32/2 = sin(in0)\n"
                     "v7 f32/2, v8 f32/2, v9 f32/2 = "
                     "cross_entropy_with_grad(v2, in1)\n"
                     "leaf@0(v9)\n"
                     "accumulate@0(v7)\n");
    assert_true(ir.nodes.at[1].attrs.f[1] == 0.5);
    brg__ir_deinit(&ir);
}

/* What the backward begins with is the number that a tensor of the loss's dtype
 * would hold. */
static void test_pass_merge__a_seed_is_rounded_to_the_loss(void **state)
{
    (void)state;
    brg__ir ir = {0};
    int x = ir_input(&ir), t = ir_input(&ir);
    int loss = ir_op(&ir, "cross_entropy", IN(x, t));
    int g = ir_op(&ir, "full_like", IN(loss));
    ir.values.at[loss].dtype = BRG_DTYPE_BF16;
    ir.nodes.at[ir.nodes.n - 1].attrs.f[0] = 0.1;
    int gx = ir_op(&ir, "cross_entropy_grad", IN(g, x, t, loss + 1));
    ir_of(&ir, BRG__IR_LEAF, 0, 0, IN(gx));
    merge(&ir, false);
    assert_true(ir.nodes.at[0].op == &brg__op_cross_entropy_with_grad);
    assert_true(ir.nodes.at[0].attrs.f[1] == 0.10009765625);
    brg__ir_deinit(&ir);
}

/* What the backward begins with is not known, or not the loss; the losses differ;
 * code of the user runs in between, which may change the targets. */
static void test_pass_merge__cross_entropies_that_stay_apart(void **state)
{
    (void)state;
    for (int k = 0; k < 6; k++) {
        brg__ir ir = {0};
        int x = ir_input(&ir), t = ir_input(&ir), other = ir_input(&ir);
        int y = ir_op(&ir, "sin", IN(x));
        int loss = ir_op(&ir, "cross_entropy", IN(y, t));
        int g = k == 0   ? other
                : k == 1 ? ir_op(&ir, "sin", IN(loss))
                         : ir_op(&ir, "full_like", IN(k == 2 ? other : loss));
        if (k == 3)
            ir_of(&ir, BRG__IR_LEAF, 1, 0, IN(other));
        int gy = ir_op(&ir, "cross_entropy_grad",
                       IN(g, k == 4 ? x : y, t, loss + 1));
        if (k == 5)
            ir.nodes.at[ir.nodes.n - 1].attrs.f[0] = 0.1;
        ir_of(&ir, BRG__IR_LEAF, 0, 0, IN(gy));
        size_t n = ir.nodes.n;
        merge(&ir, true);
        assert_int_equal(ir.nodes.n, n);
        for (size_t i = 0; i < n; i++)
            assert_true(ir.nodes.at[i].op != &brg__op_cross_entropy_with_grad);
        brg__ir_deinit(&ir);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pass_merge__linear_and_gelu),
        cmocka_unit_test(test_pass_merge__linear_and_a_sum),
        cmocka_unit_test(test_pass_merge__sums_that_stay_apart),
        cmocka_unit_test(
            test_pass_merge__products_stay_as_they_are_without_fused),
        cmocka_unit_test(test_pass_merge__a_gradient_through_gelu),
        cmocka_unit_test(test_pass_merge__what_may_be_changed_stays_behind),
        cmocka_unit_test(test_pass_merge__a_gradient_that_meets_a_norms),
        cmocka_unit_test(test_pass_merge__a_norms_gradient_and_its_sum),
        cmocka_unit_test(test_pass_merge__a_backward_from_a_cross_entropy),
        cmocka_unit_test(test_pass_merge__a_seed_is_rounded_to_the_loss),
        cmocka_unit_test(test_pass_merge__cross_entropies_that_stay_apart),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
