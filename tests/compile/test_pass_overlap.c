/* SPDX-License-Identifier: Apache-2.0
 * Collectives started behind what they send, waited for before who reads them. */
#include "core/base/tracer.h"
#include "tests/compile/reductions.h"

/* What needs the result makes the plan wait, for this and what was put off
 * before it, and for no more. */
static void test_pass_overlap__waits_before_the_first_use(void **state)
{
    (void)state;
    brg__ir ir = {0};
    make(&ir, 0, 3, (const int[]){0, 1, 2}, (const int[]){1, 1, 1});
    assert_brg_ok(brg__pass_buckets(&ir));
    int written = BRG__IR_NONE;
    for (size_t at = 0; at < ir.nodes.n; at++)
        if (ir.nodes.at[at].kind == BRG__IR_WRITE_BACK &&
            ir.nodes.at[at].slot == 1)
            written = ir.nodes.at[at].first_out;
    ir_of(&ir, BRG__IR_CALL, 9, 0, IN(written));
    ir_op(&ir, "cos", IN(0));
    assert_brg_ok(brg__pass_overlap(&ir));
    expect_sequence(&ir, "p0 s0.0 p1 s0.1 p2 s0.2 w0.0 w0.1 w0.2 ");
    size_t call = 0, last_wait = 0;
    for (size_t at = 0; at < ir.nodes.n; at++) {
        if (ir.nodes.at[at].kind == BRG__IR_CALL)
            call = at;
        if (ir.nodes.at[at].kind == BRG__IR_WAIT)
            last_wait = at;
    }
    assert_true(call < last_wait);
    brg__ir_deinit(&ir);
}

/* A start that something has come to stand behind moves up again. */
static void test_pass_overlap__starts_behind_what_they_send(void **state)
{
    (void)state;
    brg__ir ir = {0};
    make(&ir, 0, 2, (const int[]){0, 1}, (const int[]){1, 1});
    assert_brg_ok(brg__pass_buckets(&ir));
    int order[32], n = 0, start = 0;
    for (size_t at = 0; at < ir.nodes.n; at++) /* bucket 0 as late as it can */
        if (ir.nodes.at[at].kind == BRG__IR_START &&
            ir.nodes.at[at].bucket.number == 0)
            start = (int)at;
    for (int at = 0; at < (int)ir.nodes.n; at++)
        if (at < start ||
            (ir.nodes.at[at].kind != BRG__IR_WAIT &&
             ir.nodes.at[at].kind != BRG__IR_WRITE_BACK && at != start &&
             ir.nodes.at[at].kind != BRG__IR_START))
            order[n++] = at;
    for (int at = start; at < (int)ir.nodes.n; at++)
        if (ir.nodes.at[at].kind == BRG__IR_START ||
            ir.nodes.at[at].kind == BRG__IR_WAIT ||
            ir.nodes.at[at].kind == BRG__IR_WRITE_BACK)
            order[n++] = at;
    assert_brg_ok(brg__ir_arrange(&ir, order, (size_t)n));
    expect_sequence(&ir, "p0 p1 s0.0 w0.0 s0.1 w0.1 ");
    assert_brg_ok(brg__pass_overlap(&ir));
    expect_sequence(&ir, "p0 s0.0 p1 s0.1 w0.0 w0.1 ");
    brg__ir_deinit(&ir);
}

/* In a whole step waits come before the backward ends, where an optimizer may
 * follow; other effects do not hold them. */
static void test_pass_overlap__waits_before_the_backward_ends(void **state)
{
    (void)state;
    static brg__effect copy = {.name = "copy_"};
    static brg__effect end = {.name = "backward_end", .ends_backward = true};
    static brg__effect step = {.name = "optim_step"};
    brg__effect *const effects[] = {&copy, &end, &step};
    brg__ir ir = {0};
    make(&ir, 0, 2, (const int[]){0, 1}, (const int[]){1, 1});
    for (int k = 0; k < 3; k++) {
        brg__ir_node node = {.kind = BRG__IR_EFFECT,
                             .effect = effects[k],
                             .lifted = BRG__IR_NONE,
                             .visit = BRG__IR_NONE};
        ir_node(&ir, node, 0, NULL, 0);
    }
    assert_brg_ok(brg__pass_buckets(&ir));
    assert_brg_ok(brg__pass_overlap(&ir));
    expect_plan(&ir, "v1 f32/2 = sin(in0)\n"
                     "accumulate@0(v1)\n"
                     "v2 token = pack@0[r0.p0]()\n"
                     "v11 token = all_reduce_start[r0.b0, scale 1/4](v2)\n"
                     "v6 f32/2 = sin(v1)\n"
                     "accumulate@1(v6)\n"
                     "v7 token = pack@1[r0.p1]()\n"
                     "v12 token = all_reduce_start[r0.b1, scale 1/4](v7)\n"
                     "copy_()\n"
                     "v4 token = wait[r0.b0](v11)\n"
                     "v5 token = write_back@0[r0.p0](v4)\n"
                     "v9 token = wait[r0.b1](v12)\n"
                     "v10 token = write_back@1[r0.p1](v9)\n"
                     "backward_end()\n"
                     "optim_step()\n");
    brg__ir_deinit(&ir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pass_overlap__waits_before_the_first_use),
        cmocka_unit_test(test_pass_overlap__starts_behind_what_they_send),
        cmocka_unit_test(test_pass_overlap__waits_before_the_backward_ends),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
