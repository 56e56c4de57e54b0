/* SPDX-License-Identifier: Apache-2.0
 * Plans as text and as graphs: golden. */
#include "tests/compile/ir_build.h"

#include <brigade/autograd.h>
#include <brigade/ops.h>

static void make(brg__ir *ir)
{
    int g = ir_input(ir);
    int like = ir_value(
        ir,
        (brg__ir_value){.source = BRG__IR_FROM_SLOT, .visit = 2, .index = 1});
    int a = ir_op(ir, "mul", IN(g, g));
    int b = ir_op(ir, "sum_to_like", IN(a, like));
    ir_of(ir, BRG__IR_ACCUMULATE, 4, 0, IN(b));
    ir->nodes.at[0].segment = 3;
    ir->nodes.at[0].instance = 1;
    ir_reduction(ir, 4, 7, (brg__ir_bucket){.n_members = 1, .divisor = 2});
    int called = ir_of(ir, BRG__IR_CALL, 5, 2, IN(a, NO));
    ir_of(ir, BRG__IR_DELIVER, NO, 0, IN(called + 1));
}

static void test_ir_print__text(void **state)
{
    (void)state;
    brg__ir ir = {0};
    make(&ir);
    expect_plan(&ir, "v2 f32/2 = s2_1/mul(in0, in0)\n"
                     "v3 f32/2 = sum_to_like(v2, slot2.1)\n"
                     "accumulate@4(v3)\n"
                     "v4 token = pack@4[r0.p7]()\n"
                     "v5 token = all_reduce_start[r0.b0, scale 1/2](v4)\n"
                     "v6 token = wait[r0.b0](v5)\n"
                     "v7 token = write_back@4[r0.p7](v6)\n"
                     "v8 f32/2, v9 f32/2 = call@5(v2, none)\n"
                     "deliver(v9)\n");
    brg__ir_deinit(&ir);
}

static const char graph[] =
    "digraph plan {\n"
    "  node [shape=box];\n"
    "  n0 [label=\"s2_1/mul\"];\n"
    "  n0_0 [shape=plain, label=\"in0\"];\n"
    "  n0_0 -> n0 [label=\"f32/2\"];\n"
    "  n0_1 [shape=plain, label=\"in0\"];\n"
    "  n0_1 -> n0 [label=\"f32/2\"];\n"
    "  n1 [label=\"sum_to_like\"];\n"
    "  n0 -> n1 [label=\"v2 f32/2\"];\n"
    "  n1_1 [shape=plain, label=\"slot2.1\"];\n"
    "  n1_1 -> n1 [label=\"f32/2\"];\n"
    "  n2 [label=\"accumulate@4\", style=filled, fillcolor=lightgrey];\n"
    "  n1 -> n2 [label=\"v3 f32/2\"];\n"
    "  n3 [label=\"pack@4[r0.p7]\", style=filled, fillcolor=lightblue];\n"
    "  n2 -> n3 [style=dashed];\n"
    "  n4 [label=\"all_reduce_start[r0.b0, scale 1/2]\", style=filled, "
    "fillcolor=lightblue];\n"
    "  n3 -> n4 [label=\"v4 token\"];\n"
    "  n3 -> n4 [style=dashed];\n"
    "  n5 [label=\"wait[r0.b0]\", style=filled, fillcolor=lightblue];\n"
    "  n4 -> n5 [label=\"v5 token\"];\n"
    "  n4 -> n5 [style=dashed];\n"
    "  n6 [label=\"write_back@4[r0.p7]\", style=filled, "
    "fillcolor=lightblue];\n"
    "  n5 -> n6 [label=\"v6 token\"];\n"
    "  n5 -> n6 [style=dashed];\n"
    "  n7 [label=\"call@5\", style=filled, fillcolor=lightgrey];\n"
    "  n0 -> n7 [label=\"v2 f32/2\"];\n"
    "  n6 -> n7 [style=dashed];\n"
    "  n8 [label=\"deliver\", style=filled, fillcolor=lightgrey];\n"
    "  n7 -> n8 [label=\"v9 f32/2\"];\n"
    "  n7 -> n8 [style=dashed];\n"
    "}\n";

static void test_ir_print__graph(void **state)
{
    (void)state;
    brg__ir ir = {0};
    char text[4096];
    make(&ir);
    assert_true(brg__ir_print_dot(&ir, text, sizeof text) < sizeof text);
    assert_string_equal(text, graph);
    brg__ir_deinit(&ir);
}

/* A name that a user gave an op ends no string. */
static void test_ir_print__quotes_are_escaped(void **state)
{
    (void)state;
    brg__ir ir = {0};
    char text[512];
    brg_op odd = *brg_op_find("sin");
    odd.name = "a \"quoted\\ one";
    int x = ir_input(&ir);
    ir_op(&ir, "sin", IN(x));
    ir.nodes.at[0].op = &odd;
    assert_true(brg__ir_print_dot(&ir, text, sizeof text) < sizeof text);
    assert_non_null(strstr(text, "label=\"a \\\"quoted\\\\ one\""));
    brg__ir_deinit(&ir);
}

/* Cut where the room ends, terminated, and the length that all needs. */
static void test_ir_print__in_little_room(void **state)
{
    (void)state;
    brg__ir ir = {0};
    make(&ir);
    size_t (*const prints[])(const brg__ir *, char *,
                             size_t) = {brg__ir_print, brg__ir_print_dot};
    for (int k = 0; k < 2; k++) {
        char all[4096], some[100];
        size_t n = prints[k](&ir, all, sizeof all);
        assert_int_equal(n, strlen(all));
        assert_int_equal(prints[k](&ir, NULL, 0), n);
        for (size_t size = 1; size <= sizeof some; size++) {
            memset(some, '#', sizeof some);
            assert_int_equal(prints[k](&ir, some, size), n);
            assert_int_equal(strlen(some), size - 1);
            assert_memory_equal(some, all, size - 1);
            assert_true(size == sizeof some || some[size] == '#');
        }
    }
    brg__ir_deinit(&ir);
}

static void test_ir_print__of_a_plan(void **state)
{
    (void)state;
    int scope;
    char text[2048];
    brg_scope *values = brg_scope_begin();
    brg_tensor *w = brg_ones(BRG_DTYPE_F32, BRG_SHAPE(3));
    assert_brg_ok(brg_compile_reset());
    assert_brg_ok(brg_set_requires_grad(w, true));
    assert_brg_ok(brg_compile_begin(&scope, NULL));
    assert_brg_ok(brg_backward(brg_sum_all(brg_sin(w))));
    assert_int_equal(brg_compile_print_dot(1, text, sizeof text), 0);
    assert_true(brg_compile_print_dot(0, text, sizeof text) < sizeof text);
    assert_non_null(strstr(text, "label=\"accumulate@"));
    assert_brg_ok(brg_compile_end(scope));
    assert_brg_ok(brg_compile_reset());
    brg_scope_end(values);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ir_print__text),
        cmocka_unit_test(test_ir_print__graph),
        cmocka_unit_test(test_ir_print__quotes_are_escaped),
        cmocka_unit_test(test_ir_print__in_little_room),
        cmocka_unit_test(test_ir_print__of_a_plan),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
