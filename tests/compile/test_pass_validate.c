/* SPDX-License-Identifier: Apache-2.0
 * Which checks of gradients a plan keeps. */
#include "tests/compile/ir_build.h"
#include "tests/support/plan_text.h"

#include <brigade/autograd.h>
#include <brigade/compile.h>
#include <brigade/ops.h>

/* Gradient `i` of node `visit`. */
static int validate(brg__ir *ir, int visit, int i, bool is_by_rule, int grad)
{
    brg__ir_node check = {.kind = BRG__IR_VALIDATE,
                          .lifted = BRG__IR_NONE,
                          .visit = visit,
                          .slot = i,
                          .is_by_rule = is_by_rule};
    return ir_node(ir, check, 1, IN(grad));
}

static void test_pass_validate__what_an_op_made_is_known(void **state)
{
    (void)state;
    brg__ir ir = {0};
    int a = validate(&ir, 1, 0, true, ir_op(&ir, "sin", IN(ir_input(&ir))));
    int b = validate(&ir, 2, 0, true, ir_op(&ir, "cos", IN(a)));
    int same = validate(&ir, 2, 1, true, a); /* passed on as it came */
    int called = ir_of(&ir, BRG__IR_CALL, 3, 1, IN(b));
    ir_of(&ir, BRG__IR_ACCUMULATE, 4, 0, IN(same));
    ir_of(&ir, BRG__IR_ACCUMULATE, 5, 0,
          IN(validate(&ir, 3, 0, false, called)));
    expect_plan(&ir, "v1 f32/2 = sin(in0)\n"
                     "v2 f32/2 = validate@1[0](v1)\n"
                     "v3 f32/2 = cos(v2)\n"
                     "v4 f32/2 = validate@2[0](v3)\n"
                     "v5 f32/2 = validate@2[1](v2)\n"
                     "v6 f32/2 = call@3(v4)\n"
                     "accumulate@4(v5)\n"
                     "v7 f32/2 = validate@3[0](v6)\n"
                     "accumulate@5(v7)\n");
    assert_brg_ok(brg__pass_validate(&ir));
    expect_plan(&ir, "v1 f32/2 = sin(in0)\n"
                     "v3 f32/2 = cos(v1)\n"
                     "v6 f32/2 = call@3(v3)\n"
                     "accumulate@4(v1)\n"
                     "v7 f32/2 = validate@3[0](v6)\n"
                     "accumulate@5(v7)\n");
    assert_brg_ok(brg__pass_validate(&ir)); /* nothing more to do */
    assert_int_equal(ir.nodes.n, 6);
    brg__ir_deinit(&ir);
}

/* What the IR says of the gradient is not what it says of the slot. */
static void test_pass_validate__what_differs_is_checked(void **state)
{
    (void)state;
    for (int what = 0; what < 4; what++) {
        brg__ir ir = {0};
        int grad = ir_op(&ir, "sin", IN(ir_input(&ir)));
        int passed = validate(&ir, 1, 0, true, grad);
        ir_of(&ir, BRG__IR_ACCUMULATE, 2, 0, IN(passed));
        brg__ir_value *slot = &ir.values.at[passed];
        slot->dtype = what == 1 ? BRG_DTYPE_F64 : BRG_DTYPE_F32;
        slot->ndim = what == 2 ? 1 : 2;
        slot->ones = what == 3 ? 1 : 0;
        assert_brg_ok(brg__pass_validate(&ir));
        assert_int_equal(brg__ir_count(&ir, BRG__IR_VALIDATE), what > 0);
        assert_brg_ok(brg__ir_verify(&ir));
        brg__ir_deinit(&ir);
    }
}

/* Each gradient is checked and goes to its leaf as soon as it is made; a check
 * may fail, so it is no dead code. */
static void test_pass_validate__the_other_passes_know_it(void **state)
{
    (void)state;
    brg__ir ir = {0};
    int g = ir_input(&ir);
    int first = ir_op(&ir, "sin", IN(g)), second = ir_op(&ir, "cos", IN(g));
    int a = validate(&ir, 1, 0, false, first);
    int b = validate(&ir, 1, 1, false, second);
    validate(&ir, 1, 2, false, ir_op(&ir, "neg", IN(g)));
    ir_of(&ir, BRG__IR_ACCUMULATE, 2, 0, IN(a));
    ir_of(&ir, BRG__IR_ACCUMULATE, 3, 0, IN(b));
    assert_brg_ok(brg__passes_run(&ir, BRG_COMPILE_BACKEND_EAGER));
    expect_plan(&ir, "v1 f32/2 = sin(in0)\n"
                     "v3 f32/2 = validate@1[0](v1)\n"
                     "accumulate@2(v3)\n"
                     "v2 f32/2 = cos(in0)\n"
                     "v4 f32/2 = validate@1[1](v2)\n"
                     "accumulate@3(v4)\n"
                     "v5 f32/2 = neg(in0)\n"
                     "v6 f32/2 = validate@1[2](v5)\n");
    assert_brg_ok(brg__passes_run(&ir, BRG_COMPILE_BACKEND_PASSES));
    assert_int_equal(brg__ir_count(&ir, BRG__IR_VALIDATE), 3);
    brg__ir_deinit(&ir);
}

static void test_pass_validate__verification_knows_it(void **state)
{
    (void)state;
    brg__ir ir = {0};
    int g = ir_input(&ir);
    ir_of(&ir, BRG__IR_VALIDATE, 1, 1, IN(g, g));
    assert_brg_fails_with(brg__ir_verify(&ir), BRG_ERR_INTERNAL,
                          "node 0 validates 2 gradients into 1");
    brg__ir_deinit(&ir);
}

/* ---- Of a graph --------------------------------------------------------------- */

static void expect_plan_of(brg_compile_backend backend, const char *expected)
{
    int scope;
    brg_compile_options options = BRG_COMPILE_OPTIONS_INIT;
    options.backend = backend;
    brg_scope *values = brg_scope_begin();
    brg_tensor *w = brg_ones(BRG_DTYPE_F32, BRG_SHAPE(3));
    brg_tensor *x = brg_ones(BRG_DTYPE_F32, BRG_SHAPE(2, 3));
    assert_brg_ok(brg_compile_reset());
    assert_brg_ok(brg_set_requires_grad(w, true));
    assert_brg_ok(brg_compile_begin(&scope, &options));
    assert_brg_ok(brg_backward(brg_sum_all(brg_mul(brg_sin(w), x))));
    const char *text = plan_text(0);
    assert_string_equal(text, expected);
    assert_brg_ok(brg_compile_end(scope));
    assert_brg_ok(brg_compile_reset());
    brg_scope_end(values);
}

/* A check behind each gradient of each node; with passes, none is left. */
static void test_pass_validate__of_a_graph(void **state)
{
    (void)state;
    expect_plan_of(BRG_COMPILE_BACKEND_EAGER,
                   "v2 f32/2 = unsqueeze(in0)\n"
                   "v3 f32/2 = expand_like(v2, in1)\n"
                   "v4 f32/2 = validate@0[0](v3)\n"
                   "v6 f32/2 = mul(v4, in2)\n"
                   "v8 f32/1 = sum_to_like(v6, slot2.0)\n"
                   "v9 f32/1 = validate@1[0](v8)\n"
                   "v11 f32/1 = cos(in3)\n"
                   "v12 f32/1 = mul(v9, v11)\n"
                   "v13 f32/1 = validate@2[0](v12)\n"
                   "accumulate@3(v13)\n"
                   "final_callbacks()\n");
    expect_plan_of(BRG_COMPILE_BACKEND_PASSES,
                   "v2 f32/2 = unsqueeze(in0)\n"
                   "v3 f32/2 = expand_like(v2, in1)\n"
                   "v14 f32/1 = fused(v3, in2, slot2.0) {t0 = mul(a0, a1); "
                   "t1 = sum_to_like(t0, a2) -> o0}\n"
                   "v15 f32/1 = fused(in3, v14) {t0 = cos(a0); "
                   "t1 = mul(a1, t0) -> o0}\n"
                   "accumulate@3(v15)\n"
                   "final_callbacks()\n");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pass_validate__what_an_op_made_is_known),
        cmocka_unit_test(test_pass_validate__what_differs_is_checked),
        cmocka_unit_test(test_pass_validate__the_other_passes_know_it),
        cmocka_unit_test(test_pass_validate__verification_knows_it),
        cmocka_unit_test(test_pass_validate__of_a_graph),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
