/* SPDX-License-Identifier: Apache-2.0
 * What the op cases do not reach: bits under any layout, special values,
 * casts, changes in place, plain access to values, printing. */
#include <math.h>

#include <brigade/autograd.h>
#include <brigade/ops.h>

#include "core/base/dtype.h"
#include "core/base/progress.h"
#include "core/ops/op.h"
#include "tests/support/brg_test.h"

static int open_scope(void **state)
{
    *state = brg_scope_begin();
    return *state ? 0 : -1;
}

static int close_scope(void **state)
{
    brg_scope_end(*state);
    return 0;
}

static brg_tensor *random_values(int ndim, const int64_t *shape)
{
    brg_tensor *t = assert_brg_some(brg_empty(BRG_DTYPE_F32, ndim, shape));
    float *v = brg_tensor_data(t);
    uint64_t seed = 21;
    for (int64_t i = 0; i < brg_tensor_numel(t); i++)
        v[i] = (float)brg_test_uniform(&seed, -4.0, 4.0);
    return t;
}

static void assert_values(const brg_tensor *t, const double *want, size_t n)
{
    assert_int_equal(brg_tensor_numel(t), n);
    brg_tensor *wide =
        brg_cast(brg_detach((brg_tensor *)(uintptr_t)t), BRG_DTYPE_F64);
    double got[64];
    assert_brg_ok(brg_tensor_read(assert_brg_some(wide), got, n * 8));
    for (size_t i = 0; i < n; i++)
        if (!(got[i] == want[i] || (got[i] != got[i] && want[i] != want[i]))) {
            print_error("element %zu is %.17g, expected %.17g\n", i, got[i],
                        want[i]);
            fail();
        }
}

/* ---- Bits ---------------------------------------------------------------- */

/* f(x) for x row-major, transposed, broadcast over a new dim, and at the end
 * of a longer row: the same bits. */
static void test_pointwise__bits_do_not_depend_on_layout(void **state)
{
    (void)state;
    brg_tensor *x = random_values(BRG_SHAPE(37, 53));
    float a[37 * 53], b[37 * 53];
    for (size_t i = 0; brg_op_at(i); i++) {
        const brg_op *op = brg_op_at(i);
        bool is_plain = op->pointwise && op != &brg__op_where &&
                        op != &brg__op_keep_if && op != &brg__op_keep_unless &&
                        op != &brg__op_cast;
        if (!is_plain)
            continue;
        brg_tensor *rows[3] = {x, x, x}, *columns[3];
        brg_tensor *copy = brg_copy(
            brg_as_strided(x, BRG_SHAPE(53, 37), (const int64_t[]){1, 53}, 0));
        for (int k = 0; k < 3; k++)
            columns[k] = brg_as_strided(copy, BRG_SHAPE(37, 53),
                                        (const int64_t[]){1, 37}, 0);
        brg_attrs attrs = {.f = {0.3, 0.7}};
        brg_tensor *y = brg__call(op, op->n_in, rows, &attrs);
        brg_tensor *z = brg__call(op, op->n_in, columns, &attrs);
        size_t n = brg_tensor_nbytes(assert_brg_some(y));
        assert_brg_ok(brg_tensor_read(y, a, n));
        assert_brg_ok(brg_tensor_read(assert_brg_some(z), b, n));
        if (memcmp(a, b, n) != 0) {
            print_error("%s\n", op->name);
            fail();
        }
    }
}

static int n_polls;

static void count_poll(void *user)
{
    (void)user;
    n_polls++;
}

static void test_pointwise__long_rows_are_whole_and_poll(void **state)
{
    (void)state;
    const int64_t n = 3 * 65536 + 17;
    brg_tensor *x = random_values(BRG_SHAPE(n));
    assert_brg_ok(brg__progress_register(count_poll, NULL));
    n_polls = 0;
    brg_tensor *y = brg_add(x, x);
    brg__progress_unregister(count_poll, NULL);
    assert_true(n_polls > 0);
    const float *from = brg_tensor_data(x);
    const float *to = brg_tensor_data(assert_brg_some(y));
    for (int64_t i = 0; i < n; i++)
        assert_true(to[i] == from[i] + from[i]);
}

/* ---- Special values ------------------------------------------------------ */

static void test_pointwise__nan_goes_through(void **state)
{
    (void)state;
    const float a[] = {NAN, 1, NAN, -0.0f}, b[] = {1, NAN, NAN, 0.0f};
    brg_tensor *x = brg_from_data(BRG_DTYPE_F32, BRG_SHAPE(4), a);
    brg_tensor *y = brg_from_data(BRG_DTYPE_F32, BRG_SHAPE(4), b);
    assert_values(brg_maximum(x, y), (double[]){NAN, NAN, NAN, 0}, 4);
    assert_values(brg_minimum(x, y), (double[]){NAN, NAN, NAN, 0}, 4);
    assert_values(brg_relu(x), (double[]){NAN, 1, NAN, 0}, 4);
    assert_values(brg_clamp(x, -0.5, 0.5), (double[]){NAN, 0.5, NAN, 0}, 4);
    assert_values(brg_is_nan(x), (double[]){1, 0, 1, 0}, 4);
    assert_values(brg_eq(x, x), (double[]){0, 1, 0, 1}, 4);
    assert_values(brg_ne(x, x), (double[]){1, 0, 1, 0}, 4);
}

static void test_pointwise__whole_numbers_divide_towards_zero(void **state)
{
    (void)state;
    const int64_t a[] = {7, -7, 7, 5, INT64_MIN}, b[] = {2, 2, -2, 0, -1};
    brg_tensor *x = brg_from_data(BRG_DTYPE_I64, BRG_SHAPE(5), a);
    brg_tensor *y = brg_from_data(BRG_DTYPE_I64, BRG_SHAPE(5), b);
    assert_values(brg_div(x, y), (double[]){3, -3, -3, 0, (double)INT64_MIN},
                  5);
    assert_brg_null_with(brg_mul_scalar(x, 0.5), BRG_ERR_DTYPE, "0.5");
    assert_values(brg_clamp(x, -HUGE_VAL, 6),
                  (double[]){6, -7, 6, 5, (double)INT64_MIN}, 5);
}

static void test_pointwise__errors_name_op_and_inputs(void **state)
{
    (void)state;
    brg_tensor *a = brg_ones(BRG_DTYPE_F32, BRG_SHAPE(2, 3));
    brg_tensor *b = brg_ones(BRG_DTYPE_F64, BRG_SHAPE(2, 3));
    brg_tensor *c = brg_ones(BRG_DTYPE_F32, BRG_SHAPE(2, 4));
    assert_brg_null_with(brg_add(a, b), BRG_ERR_DTYPE,
                         "f32[2, 3] and f64[2, 3]");
    assert_brg_null_with(brg_add(a, c), BRG_ERR_SHAPE,
                         "f32[2, 3] and f32[2, 4]");
    assert_brg_null_with(brg_where(a, a, a), BRG_ERR_DTYPE, "bool");
    assert_brg_null_with(brg_clamp(a, 2, 1), BRG_ERR_ARG, "clamp");
    assert_brg_null(brg_tanh(brg_add(a, c)), BRG_ERR_SHAPE);
    assert_brg_null(brg_cast(a, (brg_dtype)99), BRG_ERR_ARG);
}

/* ---- Casts --------------------------------------------------------------- */

static void test_pointwise__cast_carries_gradients_between_floats(void **state)
{
    (void)state;
    brg_tensor *x = brg_ones(BRG_DTYPE_F32, BRG_SHAPE(3));
    assert_brg_ok(brg_set_requires_grad(x, true));
    brg_tensor *y = brg_mul_scalar(brg_cast(x, BRG_DTYPE_BF16), 3.0);
    assert_int_equal(brg_tensor_dtype(assert_brg_some(y)), BRG_DTYPE_BF16);
    brg_tensor *g = brg_ones(BRG_DTYPE_BF16, BRG_SHAPE(3));
    brg_backward_options options = BRG_BACKWARD_OPTIONS_INIT;
    options.grad_outputs = &g;
    assert_brg_ok(brg_backward_with(&y, 1, &options));
    brg_tensor *grad = brg_tensor_grad(x);
    assert_int_equal(brg_tensor_dtype(assert_brg_some(grad)), BRG_DTYPE_F32);
    assert_values(grad, (double[]){3, 3, 3}, 3);
    assert_false(brg_requires_grad(brg_cast(x, BRG_DTYPE_I64)));
    assert_false(brg_requires_grad(brg_eq(x, x)));
    assert_ptr_equal(brg_cast(x, BRG_DTYPE_F32), x);
}

static void test_pointwise__every_pair_of_dtypes_casts(void **state)
{
    (void)state;
    for (int from = 0; from < BRG_N_DTYPES; from++)
        for (int to = 0; to < BRG_N_DTYPES; to++) {
            brg_tensor *x = brg_full((brg_dtype)from, BRG_SHAPE(3, 700), 3.0);
            brg_tensor *t = brg_as_strided(x, BRG_SHAPE(700, 3),
                                           (const int64_t[]){1, 700}, 0);
            bool is_truth = from == BRG_DTYPE_BOOL || to == BRG_DTYPE_BOOL;
            double value = is_truth ? 1.0 : 3.0, got;
            for (int k = 0; k < 2; k++) {
                brg_tensor *y = brg_cast(k ? t : x, (brg_dtype)to);
                for (int64_t i = 0; i < 2100; i += 419) {
                    brg_tensor *one =
                        brg_as_strided(brg_contiguous(y), BRG_SCALAR, NULL, i);
                    assert_brg_ok(brg_tensor_item(one, &got));
                    assert_true(got == value);
                }
            }
        }
}

/* ---- In place ------------------------------------------------------------ */

static void test_pointwise__changes_in_place(void **state)
{
    (void)state;
    const float v[] = {1, 2, 3, 4, 5, 6};
    brg_tensor *x = brg_from_data(BRG_DTYPE_F32, BRG_SHAPE(2, 3), v);
    brg_tensor *row = brg_full(BRG_DTYPE_F32, BRG_SHAPE(3), 10.0);
    assert_brg_ok(brg_add_(x, row, 0.5));
    assert_values(x, (double[]){6, 7, 8, 9, 10, 11}, 6);
    assert_int_equal(brg_tensor_version(x), 1);
    assert_brg_ok(brg_mul_scalar_(x, 2.0));
    assert_values(x, (double[]){12, 14, 16, 18, 20, 22}, 6);
    brg_tensor *column =
        brg_as_strided(x, BRG_SHAPE(2), (const int64_t[]){3}, 1);
    assert_brg_ok(brg_fill_(column, -1.0));
    assert_values(x, (double[]){12, -1, 16, 18, -1, 22}, 6);
    assert_brg_ok(brg_zero_(column));
    assert_brg_ok(brg_copy_(x, brg_full(BRG_DTYPE_I64, BRG_SCALAR, 7.0)));
    assert_values(x, (double[]){7, 7, 7, 7, 7, 7}, 6);
    assert_int_equal(brg_tensor_version(x), 5);
}

static void test_pointwise__overlapping_memory_is_read_first(void **state)
{
    (void)state;
    const float v[] = {1, 2, 3, 4};
    brg_tensor *x = brg_from_data(BRG_DTYPE_F32, BRG_SHAPE(4), v);
    const int64_t one[] = {1};
    brg_tensor *head = brg_as_strided(x, BRG_SHAPE(3), one, 0);
    brg_tensor *tail = brg_as_strided(x, BRG_SHAPE(3), one, 1);
    assert_brg_ok(brg_copy_(tail, head));
    assert_values(x, (double[]){1, 1, 2, 3}, 4);
    assert_brg_ok(brg_add_(head, tail, 1.0));
    assert_values(x, (double[]){2, 3, 5, 3}, 4);
    assert_brg_ok(brg_add_(x, x, 1.0));
    assert_values(x, (double[]){4, 6, 10, 6}, 4);
    brg_tensor *first = brg_as_strided(x, BRG_SCALAR, NULL, 0);
    assert_brg_ok(brg_add_(x, first, 1.0));
    assert_values(x, (double[]){8, 10, 14, 10}, 4);
}

static void test_pointwise__in_place_refusals(void **state)
{
    (void)state;
    brg_tensor *x = brg_ones(BRG_DTYPE_F32, BRG_SHAPE(3));
    assert_brg_ok(brg_set_requires_grad(x, true));
    brg_tensor *y = brg_ones(BRG_DTYPE_F32, BRG_SHAPE(4));
    assert_brg_fails_with(brg_mul_scalar_(x, 2.0), BRG_ERR_STATE, "leaf");
    assert_brg_fails_with(brg_tensor_write(x, "0123456789ab", 12),
                          BRG_ERR_STATE, "leaf");
    bool mode = brg_grad_mode_set(false);
    assert_brg_ok(brg_mul_scalar_(x, 2.0));
    assert_brg_fails_with(brg_add_(x, y, 1.0), BRG_ERR_SHAPE, "broadcast");
    brg_tensor *z = brg_ones(BRG_DTYPE_F64, BRG_SHAPE(3));
    assert_brg_fails_with(brg_add_(x, z, 1.0), BRG_ERR_DTYPE, "f64");
    brg_tensor *wide =
        brg_as_strided(y, BRG_SHAPE(2, 4), (const int64_t[]){0, 1}, 0);
    assert_brg_fails_with(brg_fill_(wide, 1.0), BRG_ERR_ARG, "share memory");
    assert_brg_fails(brg_copy_(x, brg_add(x, y)), BRG_ERR_SHAPE);
    brg_grad_mode_set(mode);
}

/* ---- Values -------------------------------------------------------------- */

static void test_pointwise__values_go_in_and_out(void **state)
{
    (void)state;
    const float v[] = {1, 2, 3, 4, 5, 6};
    float got[6];
    double one;
    brg_tensor *x = brg_zeros(BRG_DTYPE_F32, BRG_SHAPE(3, 2));
    brg_tensor *t =
        brg_as_strided(x, BRG_SHAPE(2, 3), (const int64_t[]){1, 2}, 0);
    assert_brg_ok(brg_tensor_write(t, v, sizeof v));
    assert_values(x, (double[]){1, 4, 2, 5, 3, 6}, 6);
    assert_int_equal(brg_tensor_version(x), 1);
    assert_brg_ok(brg_tensor_read(t, got, sizeof got));
    assert_memory_equal(got, v, sizeof v);
    assert_brg_fails_with(brg_tensor_read(t, got, 20), BRG_ERR_ARG, "24");
    assert_brg_fails_with(brg_tensor_item(t, &one), BRG_ERR_SHAPE, "one");
    assert_brg_ok(
        brg_tensor_item(brg_full(BRG_DTYPE_BF16, BRG_SHAPE(1), 2.5), &one));
    assert_true(one == 2.5);
    assert_values(brg_full(BRG_DTYPE_I32, BRG_SHAPE(2), -3.7),
                  (double[]){-3, -3}, 2);
}

static void test_pointwise__contiguous_copies_only_if_needed(void **state)
{
    (void)state;
    brg_tensor *x = random_values(BRG_SHAPE(4, 5));
    assert_ptr_equal(brg_contiguous(x), x);
    brg_tensor *t =
        brg_as_strided(x, BRG_SHAPE(5, 4), (const int64_t[]){1, 5}, 0);
    brg_tensor *y = assert_brg_some(brg_contiguous(t));
    assert_true(brg_tensor_is_contiguous(y));
    assert_false(brg_tensor_shares_storage(x, y));
    assert_false(brg_tensor_shares_storage(x, brg_copy(x)));
    assert_null(brg_contiguous(NULL));
}

static void test_pointwise__prints_values(void **state)
{
    (void)state;
    char text[256];
    const float v[] = {1, 2.5f, -3, 4, 5, 6};
    brg_tensor *x = brg_from_data(BRG_DTYPE_F32, BRG_SHAPE(2, 3), v);
    brg_tensor_print(x, 6, text, sizeof text);
    assert_string_equal(text, "f32[2, 3]\n[[1, 2.5, -3],\n [4, 5, 6]]");
    brg_tensor *t = brg_full(BRG_DTYPE_I64, BRG_SHAPE(9), 4.0);
    brg_tensor_print(t, 3, text, sizeof text);
    assert_string_equal(text, "i64[9] [4, 4, ..., 4]");
    size_t whole = brg_tensor_print(t, 3, text, 8);
    assert_int_equal(whole, strlen("i64[9] [4, 4, ..., 4]"));
    assert_string_equal(text, "i64[9] ");
    brg_tensor_print(brg_ones(BRG_DTYPE_BOOL, BRG_SCALAR), 3, text,
                     sizeof text);
    assert_string_equal(text, "bool[] true");
    brg_tensor_print(brg_ones(BRG_DTYPE_F16, BRG_SHAPE(0, 2)), 3, text,
                     sizeof text);
    assert_string_equal(text, "f16[0, 2]\n[]");
}

#define TEST(name)                                                             \
    cmocka_unit_test_setup_teardown(test_pointwise__##name, open_scope,        \
                                    close_scope)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(bits_do_not_depend_on_layout),
        TEST(long_rows_are_whole_and_poll),
        TEST(nan_goes_through),
        TEST(whole_numbers_divide_towards_zero),
        TEST(errors_name_op_and_inputs),
        TEST(cast_carries_gradients_between_floats),
        TEST(every_pair_of_dtypes_casts),
        TEST(changes_in_place),
        TEST(overlapping_memory_is_read_first),
        TEST(in_place_refusals),
        TEST(values_go_in_and_out),
        TEST(contiguous_copies_only_if_needed),
        TEST(prints_values),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
