/* SPDX-License-Identifier: Apache-2.0
 * Reductions put together by buckets, started in order, waited for late. */
#include "tests/compile/ir_build.h"

/* Leaves 0..n-1, whose gradients come in this order; bucket[k] of leaf k. */
static void make(brg__ir *ir, int reduction, int n, const int *bucket,
                 const int *n_members)
{
    int g = ir_input(ir);
    for (int k = 0; k < n; k++) {
        g = ir_op(ir, "sin", IN(g));
        ir_of(ir, BRG__IR_ACCUMULATE, k, 0, IN(g));
        ir_reduction(ir, k, k,
                     (brg__ir_bucket){.reduction = reduction,
                                      .number = bucket[k],
                                      .n_members = n_members[bucket[k]],
                                      .divisor = 4});
    }
}

static void test_pass_buckets__one_start_behind_the_last_gradient(void **state)
{
    (void)state;
    brg__ir ir = {0};
    make(&ir, 0, 3, (const int[]){0, 0, 1}, (const int[]){2, 1});
    assert_brg_ok(brg__pass_buckets(&ir));
    expect_plan(&ir, "v1 f32/2 = sin(in0)\n"
                     "accumulate@0(v1)\n"
                     "v2 token = pack@0[r0.p0]()\n"
                     "v6 f32/2 = sin(v1)\n"
                     "accumulate@1(v6)\n"
                     "v7 token = pack@1[r0.p1]()\n"
                     "v16 token = all_reduce_start[r0.b0, scale 1/4](v2, v7)\n"
                     "v4 token = wait[r0.b0](v16)\n"
                     "v5 token = write_back@0[r0.p0](v4)\n"
                     "v10 token = write_back@1[r0.p1](v4)\n"
                     "v11 f32/2 = sin(v6)\n"
                     "accumulate@2(v11)\n"
                     "v12 token = pack@2[r0.p2]()\n"
                     "v17 token = all_reduce_start[r0.b1, scale 1/4](v12)\n"
                     "v14 token = wait[r0.b1](v17)\n"
                     "v15 token = write_back@2[r0.p2](v14)\n");
    assert_brg_ok(brg__pass_overlap(&ir));
    expect_plan(&ir, "v1 f32/2 = sin(in0)\n"
                     "accumulate@0(v1)\n"
                     "v2 token = pack@0[r0.p0]()\n"
                     "v6 f32/2 = sin(v1)\n"
                     "accumulate@1(v6)\n"
                     "v7 token = pack@1[r0.p1]()\n"
                     "v16 token = all_reduce_start[r0.b0, scale 1/4](v2, v7)\n"
                     "v11 f32/2 = sin(v6)\n"
                     "accumulate@2(v11)\n"
                     "v12 token = pack@2[r0.p2]()\n"
                     "v17 token = all_reduce_start[r0.b1, scale 1/4](v12)\n"
                     "v4 token = wait[r0.b0](v16)\n"
                     "v5 token = write_back@0[r0.p0](v4)\n"
                     "v10 token = write_back@1[r0.p1](v4)\n"
                     "v14 token = wait[r0.b1](v17)\n"
                     "v15 token = write_back@2[r0.p2](v14)\n");
    brg__ir_deinit(&ir);
}

/* The kinds of the reduction nodes, by first letter and bucket. */
static void expect_sequence(const brg__ir *ir, const char *expected)
{
    char got[128];
    size_t n = 0;
    for (size_t at = 0; at < ir->nodes.n; at++) {
        const brg__ir_node *node = &ir->nodes.at[at];
        if (node->kind == BRG__IR_START || node->kind == BRG__IR_WAIT)
            n += (size_t)snprintf(got + n, sizeof got - n, "%c%d.%d ",
                                  node->kind == BRG__IR_START ? 's' : 'w',
                                  node->bucket.reduction, node->bucket.number);
        else if (node->kind == BRG__IR_PACK)
            n += (size_t)snprintf(got + n, sizeof got - n, "p%d ", node->slot);
    }
    assert_string_equal(got, expected);
}

/* Bucket 1 is full first, and waits for bucket 0, as on every other rank. */
static void test_pass_buckets__start_in_the_order_of_their_numbers(void **state)
{
    (void)state;
    brg__ir ir = {0};
    make(&ir, 0, 4, (const int[]){1, 0, 1, 0}, (const int[]){2, 2});
    assert_brg_ok(brg__pass_buckets(&ir));
    assert_brg_ok(brg__pass_overlap(&ir));
    expect_sequence(&ir, "p0 p1 p2 p3 s0.0 s0.1 w0.0 w0.1 ");
    brg__ir_deinit(&ir);
}

/* A bucket of which a gradient is missing, and those after it, are started when
 * the backward ends; the ones before it are not held up. */
static void test_pass_buckets__unfinished_ones_are_left_alone(void **state)
{
    (void)state;
    brg__ir ir = {0};
    make(&ir, 0, 3, (const int[]){0, 1, 2}, (const int[]){1, 2, 1});
    assert_brg_ok(brg__pass_buckets(&ir));
    assert_brg_ok(brg__pass_overlap(&ir));
    expect_sequence(&ir, "p0 s0.0 p1 p2 w0.0 ");
    size_t n_write_backs = 0;
    for (size_t at = 0; at < ir.nodes.n; at++)
        n_write_backs += ir.nodes.at[at].kind == BRG__IR_WRITE_BACK;
    assert_int_equal(n_write_backs, 1);
    brg__ir_deinit(&ir);
}

/* Two reducers, of another group or divisor: each its own buckets. */
static void test_pass_buckets__reducers_do_not_mix(void **state)
{
    (void)state;
    brg__ir ir = {0};
    make(&ir, 0, 2, (const int[]){0, 0}, (const int[]){2});
    make(&ir, 1, 2, (const int[]){0, 0}, (const int[]){2});
    assert_brg_ok(brg__pass_buckets(&ir));
    assert_brg_ok(brg__pass_overlap(&ir));
    expect_sequence(&ir, "p0 p1 s0.0 p0 p1 s1.0 w0.0 w1.0 ");
    brg__ir_deinit(&ir);
}

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

/* What a wrong pass would make of a reduction is found. */
static void test_pass_buckets__verification_knows_reductions(void **state)
{
    (void)state;
    brg__ir ir = {0};
    make(&ir, 0, 2, (const int[]){0, 1}, (const int[]){1, 1});
    assert_brg_ok(brg__ir_verify(&ir));
    int starts[2], n = 0;
    for (size_t at = 0; at < ir.nodes.n; at++)
        if (ir.nodes.at[at].kind == BRG__IR_START)
            starts[n++] = (int)at;
    int *operand = ir.operands.at + ir.nodes.at[starts[1]].first_in;
    int kept = *operand;
    *operand = brg__ir_in(&ir, &ir.nodes.at[starts[0]])[0];
    assert_brg_fails_with(brg__ir_verify(&ir), BRG_ERR_INTERNAL,
                          "of bucket 1 of reduction 0, follows a node of "
                          "bucket 0 of reduction 0");
    *operand = kept;
    assert_brg_ok(brg__ir_verify(&ir));
    ir_op(&ir, "sin", IN(kept));
    assert_brg_fails_with(brg__ir_verify(&ir), BRG_ERR_INTERNAL,
                          "computes with token");
    brg__ir_deinit(&ir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pass_buckets__one_start_behind_the_last_gradient),
        cmocka_unit_test(
            test_pass_buckets__start_in_the_order_of_their_numbers),
        cmocka_unit_test(test_pass_buckets__unfinished_ones_are_left_alone),
        cmocka_unit_test(test_pass_buckets__reducers_do_not_mix),
        cmocka_unit_test(test_pass_buckets__verification_knows_reductions),
        cmocka_unit_test(test_pass_overlap__waits_before_the_first_use),
        cmocka_unit_test(test_pass_overlap__starts_behind_what_they_send),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
