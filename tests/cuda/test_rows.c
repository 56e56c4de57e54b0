/* SPDX-License-Identifier: Apache-2.0
 * What rows of ops make on a GPU at larger sizes, against the CPU and from run to
 * run. All outputs of those that have several: test_row_outputs.c. */
#include "tests/cuda/row_examples.h"

static void run_example(const example *e, brg_dtype dtype, double tolerance)
{
    brg_scope *scope = brg_scope_begin();
    brg_tensor *here[4], *there[4];
    brg_seed(11);
    for (int i = 0; i < e->n; i++) {
        here[i] = example_input(e, i, dtype);
        there[i] = assert_brg_some(brg_to(here[i], GPU));
    }
    brg_tensor *want = assert_brg_some(e->call(here));
    brg_tensor *got = assert_brg_some(e->call(there));
    assert_int_equal(brg_tensor_device(got).type, BRG_DEVICE_CUDA);
    double d = distance(got, want);
    if (d > tolerance) {
        print_error("%s, %s: off by %g, at most %g\n", e->name,
                    brg_dtype_name(dtype), d, tolerance);
        fail();
    }
    brg_scope_end(scope);
}

/* f16 has three bits more than bf16. */
static double tolerance_of(const example *e, int d)
{
    return d < 3 ? e->tolerance[d] : e->tolerance[2] / 4;
}

static void test_rows__at_larger_sizes(void **state)
{
    (void)state;
    for (size_t i = 0; i < N_EXAMPLES; i++)
        for (int d = 0; d < N_ALL_DTYPES; d++)
            run_example(&examples[i], all_dtypes[d],
                        tolerance_of(&examples[i], d));
}

/* The same of other batches, for which the quickest ways are looked for. */
static void test_rows__that_need_not_repeat(void **state)
{
    (void)state;
    static const char *const names[] = {"linear", "linear_gelu", "linear_add",
                                        "matmul_gelu_grad",
                                        "attention_grad_256"};
    assert_int_equal(setenv("BRG_CUDA_REPEATABLE", "0", 1), 0);
    for (size_t i = 0; i < N_EXAMPLES; i++)
        for (size_t k = 0; k < sizeof names / sizeof *names; k++) {
            example e = examples[i];
            if (strcmp(e.name, names[k]) != 0)
                continue;
            for (int x = 0; x < e.n; x++)
                e.shape[x][0] = e.ndim[x] == 3 ? 3 : e.shape[x][0];
            run_example(&e, BRG_DTYPE_F32, e.tolerance[1]);
            run_example(&e, BRG_DTYPE_BF16, e.tolerance[2]);
        }
    assert_int_equal(unsetenv("BRG_CUDA_REPEATABLE"), 0);
}

/* Cross entropy and its gradient at once have the bits of the two: of padding, of
 * rows that are ignored, with and without smoothing, of rows that lie on bounds of
 * 16 bytes and of others, of more rows than there are blocks. */
#define MOST_ROWS 700

static void check_both_entropies(brg_dtype dtype, int64_t width,
                                 double smoothing)
{
    const int64_t n = width == 20008 ? MOST_ROWS : 70;
    const int64_t shape[] = {n, width}, classes = width - width / 9;
    int64_t ids[MOST_ROWS];
    brg_attrs attrs = {.i = {0, classes}, .f = {smoothing, 0.75}};
    brg_scope *scope = brg_scope_begin();
    brg_tensor *x[] = {normal(dtype, 2, shape), brg_randint(0, classes, 1, &n)};
    brg_tensor *made[3], *both[3];
    assert_brg_ok(brg_tensor_read(x[1], ids, (size_t)n * sizeof *ids));
    attrs.i[0] = ids[0];
    for (int i = 0; i < 2; i++)
        x[i] = assert_brg_some(brg_to(x[i], GPU));
    assert_brg_ok(brg_op_apply(&brg__op_cross_entropy, 2, x, &attrs, made));
    brg_tensor *of[] = {brg_full_like(made[0], attrs.f[1]), x[0], x[1],
                        made[1]};
    assert_brg_ok(
        brg_op_apply(&brg__op_cross_entropy_grad, 4, of, &attrs, &made[2]));
    assert_brg_ok(
        brg_op_apply(&brg__op_cross_entropy_with_grad, 2, x, &attrs, both));
    for (int i = 0; i < 3; i++)
        if (distance(both[i], made[i]) != 0.0) {
            print_error("%s, %d columns: output %d differs\n",
                        brg_dtype_name(dtype), (int)width, i);
            fail();
        }
    brg_scope_end(scope);
}

static void test_rows__both_entropies_at_once(void **state)
{
    (void)state;
    static const brg_dtype dtypes[] = {BRG_DTYPE_F64, BRG_DTYPE_F32,
                                       BRG_DTYPE_F16, BRG_DTYPE_BF16};
    static const int64_t widths[] = {17, 40, 1003, 5008, 20008, 50304};
    brg_seed(brg_test_seed(23));
    for (int d = 0; d < 4; d++)
        for (int w = 0; w < 6; w++)
            for (int is_smooth = 0; is_smooth < 2; is_smooth++)
                check_both_entropies(dtypes[d], widths[w], 0.1 * is_smooth);
}

static void repeat(const example *e, brg_dtype dtype)
{
    brg_scope *scope = brg_scope_begin();
    brg_tensor *x[4];
    brg_seed(5);
    for (int k = 0; k < e->n; k++)
        x[k] = brg_to(example_input(e, k, dtype), GPU);
    brg_tensor *a = assert_brg_some(e->call(x));
    brg_tensor *b = assert_brg_some(e->call(x));
    if (distance(a, b) != 0.0) {
        print_error("%s, %s differs from run to run\n", e->name,
                    brg_dtype_name(dtype));
        fail();
    }
    brg_scope_end(scope);
}

static void test_rows__repeat_bit_for_bit(void **state)
{
    (void)state;
    for (size_t i = 0; i < N_EXAMPLES; i++) {
        repeat(&examples[i], BRG_DTYPE_F32);
        repeat(&examples[i], BRG_DTYPE_F16);
        repeat(&examples[i], BRG_DTYPE_BF16);
    }
}

int main(void)
{
    int missing = require_gpu();
    if (missing)
        return missing;
    const struct CMUnitTest tests[] = {
        gpu_test(test_rows__at_larger_sizes),
        gpu_test(test_rows__that_need_not_repeat),
        gpu_test(test_rows__both_entropies_at_once),
        gpu_test(test_rows__repeat_bit_for_bit),
    };
    return cmocka_run_group_tests_name("rows", tests, NULL, NULL);
}
