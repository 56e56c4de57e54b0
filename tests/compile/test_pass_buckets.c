/* SPDX-License-Identifier: Apache-2.0
 * Reductions put together by buckets, started in order. */
#include "tests/compile/reductions.h"

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
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
