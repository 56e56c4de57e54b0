/* SPDX-License-Identifier: Apache-2.0
 * Groups by the interpreter: the bits of eager ops, whatever the group. */
#include "tests/compile/groups.h"

#define N_CASES 400

/* But for the sign of a NaN, which the ends of a vector loop may turn. */
static bool has_same_bits(const brg_tensor *want, const brg_tensor *got)
{
    const char *a = brg__tensor_ptr(want), *b = brg__tensor_ptr(got);
    const size_t item = brg__tensor_item_size(want);
    const brg_dtype dtype = (brg_dtype)want->dtype;
    for (int64_t i = 0; i < want->numel; i++) {
        const double x = brg__get_f64(a, dtype, i),
                     y = brg__get_f64(b, dtype, i);
        if (memcmp(a + (size_t)i * item, b + (size_t)i * item, item) != 0 &&
            !(x != x && y != y))
            return false;
    }
    return true;
}

static void expect_same(const group_case *g, const group_run *r, uint64_t seed)
{
    char text[4096];
    for (int k = 0; k < g->group.n_ops; k++) {
        int out = g->group.ops[k].out;
        if (out == BRG__GROUP_NONE)
            continue;
        const brg_tensor *want = g->want[k], *got = r->out[out];
        assert_true(
            brg__shape_equal(want->ndim, want->shape, got->ndim, got->shape));
        if (has_same_bits(want, got))
            continue;
        brg__text printed = brg__text_begin(text, sizeof text);
        brg__group_print(&g->group, &printed);
        print_error("seed %llu, dtype %s, %d dims [%d %d %d], result t%d "
                    "differs: %s\n",
                    (unsigned long long)seed, brg_dtype_name(g->dtype), g->ndim,
                    (int)g->shape[0], (int)g->shape[1], (int)g->shape[2], k,
                    text);
        fail();
    }
}

static void try_group(uint64_t seed, brg_dtype dtype)
{
    chance c = {seed};
    group_case g;
    group_run r = {0};
    brg_scope *scope = brg_scope_begin();
    brg_seed(seed);
    random_group(&c, &g, dtype);
    prepare_group(&r, &g);
    for (int i = 0; i < 2; i++) { /* nothing is left over from the first */
        run_group(&r, &g);
        expect_same(&g, &r, seed);
    }
    free_group_run(&r);
    brg_scope_end(scope);
}

static void test_fuse__random_groups_have_eager_bits(void **state)
{
    static const brg_dtype dtypes[] = {BRG_DTYPE_F32, BRG_DTYPE_F32,
                                       BRG_DTYPE_F64, BRG_DTYPE_BF16,
                                       BRG_DTYPE_F16};
    (void)state;
    uint64_t seed = brg_test_seed(20260712);
    for (int i = 0; i < N_CASES; i++)
        try_group(seed + (uint64_t)i, dtypes[i % 5]);
}

static void test_fuse__sums_of_dims(void **state)
{
    (void)state;
    int cut;
    /* 0b1: the first dim is summed, of three */
    assert_int_equal(brg__sum_of_dims(3, 0, 1, &cut), BRG__SUM_COLUMNS);
    assert_int_equal(cut, 1);
    assert_int_equal(brg__sum_of_dims(3, 0, 6, &cut), BRG__SUM_ROWS);
    assert_int_equal(cut, 1);
    assert_int_equal(brg__sum_of_dims(3, 0, 7, &cut), BRG__SUM_ROWS);
    assert_int_equal(cut, 0);
    assert_int_equal(brg__sum_of_dims(3, 0, 2, &cut), BRG__SUM_NOT);
    assert_int_equal(brg__sum_of_dims(3, 0, 5, &cut), BRG__SUM_NOT);
    /* dims of size 1 are on either side */
    assert_int_equal(brg__sum_of_dims(3, 1, 2, &cut), BRG__SUM_COLUMNS);
    assert_int_equal(cut, 2);
    assert_int_equal(brg__sum_of_dims(3, 0, 0, &cut), BRG__SUM_COLUMNS);
    assert_int_equal(cut, 0);
}

static void test_fuse__group_has_a_stable_text(void **state)
{
    (void)state;
    brg__group_op ops[3];
    brg__group g = {.n_in = 2, .n_ops = 3, .n_out = 2, .ops = ops};
    g.ops[0] = (brg__group_op){&brg__op_mul, .n_in = 2, .in = {0, 1},
                               .out = BRG__GROUP_NONE};
    g.ops[1] = (brg__group_op){&brg__op_relu, .n_in = 1, .in = {2}, .out = 0};
    g.ops[2] = (brg__group_op){&brg__op_sum, .is_sum = true, .n_in = 1,
                               .in = {3}, .out = 1};
    char text[256];
    brg__text printed = brg__text_begin(text, sizeof text), none = {0};
    brg__group_print(&g, &printed);
    assert_string_equal(
        text, "{t0 = mul(a0, a1); t1 = relu(t0) -> o0; t2 = sum(t1) -> o1}");
    assert_int_equal(printed.length, strlen(text));
    brg__group_print(&g, &none); /* only counted */
    assert_int_equal(none.length, printed.length);
    assert_brg_ok(brg__group_verify(&g));
}

static void test_fuse__verify_names_what_is_wrong(void **state)
{
    (void)state;
    brg__group_op ops[2];
    brg__group g = {.n_in = 1, .n_ops = 2, .n_out = 1, .ops = ops};
    g.ops[0] = (brg__group_op){&brg__op_neg, .n_in = 1, .in = {2}, .out = 0};
    g.ops[1] = (brg__group_op){&brg__op_neg, .n_in = 1, .in = {0},
                               .out = BRG__GROUP_NONE};
    assert_brg_fails_with(brg__group_verify(&g), BRG_ERR_INTERNAL,
                          "before it is made");
    g.ops[0].in[0] = 0;
    g.ops[1].out = 0;
    assert_brg_fails_with(brg__group_verify(&g), BRG_ERR_INTERNAL,
                          "gives output 0");
    g.ops[0].out = g.ops[1].out = BRG__GROUP_NONE;
    assert_brg_fails_with(brg__group_verify(&g), BRG_ERR_INTERNAL, "missing");
    g.ops[0].out = 0;
    g.ops[0].op = &brg__op_sum;
    g.ops[0].is_sum = true;
    g.ops[1].in[0] = 1;
    assert_brg_fails_with(brg__group_verify(&g), BRG_ERR_INTERNAL,
                          "a sum of its own group");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_fuse__random_groups_have_eager_bits),
        cmocka_unit_test(test_fuse__sums_of_dims),
        cmocka_unit_test(test_fuse__group_has_a_stable_text),
        cmocka_unit_test(test_fuse__verify_names_what_is_wrong),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
