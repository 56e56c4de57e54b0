/* SPDX-License-Identifier: Apache-2.0
 * matmul and linear against plain loops in f64; gradients; layouts; errors. */
#include <brigade/random.h>

#include "core/base/progress.h"
#include "tests/core/dense.h"

static const brg_dtype floats[] = {BRG_DTYPE_F64, BRG_DTYPE_F32, BRG_DTYPE_F16,
                                   BRG_DTYPE_BF16};

static void product(const double *a, const double *b, int64_t m, int64_t n,
                    int64_t k, double *c)
{
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < n; j++) {
            double sum = 0;
            for (int64_t l = 0; l < k; l++)
                sum += a[i * k + l] * b[l * n + j];
            c[i * n + j] = sum;
        }
}

/* a (m,k) b (k,n), each stored plainly or transposed. */
static void check_product(brg_dtype dtype, const int64_t s[3], int flips)
{
    brg_scope *scope = brg_scope_begin();
    uint64_t seed = 7;
    const int64_t m = s[0], n = s[1], k = s[2];
    brg_tensor *a =
        flips & 1
            ? brg_transpose(dense_random(&seed, dtype, BRG_SHAPE(k, m)), 0, 1)
            : dense_random(&seed, dtype, BRG_SHAPE(m, k));
    brg_tensor *b =
        flips & 2
            ? brg_transpose(dense_random(&seed, dtype, BRG_SHAPE(n, k)), 0, 1)
            : dense_random(&seed, dtype, BRG_SHAPE(k, n));
    double *expected = malloc((size_t)(m * n + 1) * sizeof *expected);
    product(dense_values(a), dense_values(b), m, n, k, expected);
    dense_check(brg_matmul(a, b), expected, dense_tolerance(dtype, (double)k));
    free(expected);
    brg_scope_end(scope);
}

static void test_matmul__equals_loops_in_all_dtypes_and_layouts(void **state)
{
    (void)state;
    static const int64_t sizes[][3] = {
        {1, 1, 1},    {3, 5, 7},     {8, 32, 16},  {64, 64, 32}, {17, 33, 65},
        {1, 40, 30},  {40, 1, 30},   {9, 10, 300}, {70, 7, 1},   {200, 16, 9},
        {7, 530, 20}, {64, 96, 520}, {2, 300, 70}, {300, 2, 70}, {0, 4, 3},
        {4, 0, 3},    {4, 3, 0}};
    for (size_t d = 0; d < 4; d++)
        for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
            for (int flips = 0; flips < 4; flips++)
                check_product(floats[d], sizes[i], flips);
}

static void check_shape(brg_tensor *t, int ndim, const int64_t *shape)
{
    assert_brg_some(t);
    assert_int_equal(brg_tensor_ndim(t), ndim);
    for (int d = 0; d < ndim; d++)
        assert_int_equal(brg_tensor_size(t, d), shape[d]);
}

static void test_matmul__takes_vectors(void **state)
{
    (void)state;
    uint64_t seed = 1;
    brg_tensor *v = dense_random(&seed, BRG_DTYPE_F32, BRG_SHAPE(4));
    brg_tensor *a = dense_random(&seed, BRG_DTYPE_F32, BRG_SHAPE(3, 4));
    brg_tensor *b = dense_random(&seed, BRG_DTYPE_F32, BRG_SHAPE(2, 4, 5));
    check_shape(brg_matmul(v, v), 0, NULL);
    check_shape(brg_matmul(a, v), BRG_SHAPE(3));
    check_shape(brg_matmul(v, b), BRG_SHAPE(2, 5));
    double expected[3];
    product(dense_values(a), dense_values(v), 3, 1, 4, expected);
    dense_check(brg_matmul(a, v), expected, 1e-6);
    product(dense_values(v), dense_values(brg_select(b, 0, 1)), 1, 5, 4,
            (double[5]){0});
    double row[5];
    product(dense_values(v), dense_values(brg_select(b, 0, 1)), 1, 5, 4, row);
    dense_check(brg_select(brg_matmul(v, b), 0, 1), row, 1e-6);
}

/* (2,1,3,4) x (5,4,2): every batch pair by itself. */
static void test_matmul__broadcasts_batches(void **state)
{
    (void)state;
    uint64_t seed = 2;
    brg_tensor *a = dense_random(&seed, BRG_DTYPE_F32, BRG_SHAPE(2, 1, 3, 4));
    brg_tensor *b = dense_random(&seed, BRG_DTYPE_F32, BRG_SHAPE(5, 4, 2));
    brg_tensor *c = brg_matmul(a, b);
    check_shape(c, BRG_SHAPE(2, 5, 3, 2));
    for (int i = 0; i < 2; i++)
        for (int j = 0; j < 5; j++) {
            double expected[6];
            product(dense_values(a) + i * 12, dense_values(b) + j * 8, 3, 2, 4,
                    expected);
            dense_check(brg_select(brg_select(c, 0, i), 0, j), expected, 1e-6);
        }
}

/* A view whose batches cannot be merged, and one that starts inside. */
static void test_matmul__reads_strided_views(void **state)
{
    (void)state;
    uint64_t seed = 3;
    brg_tensor *x = dense_random(&seed, BRG_DTYPE_F32, BRG_SHAPE(3, 6, 2, 5));
    brg_tensor *a = brg_permute(x, 4, (const int[]){0, 2, 1, 3});
    brg_tensor *b = brg_slice(
        dense_random(&seed, BRG_DTYPE_F32, BRG_SHAPE(11, 14)), 0, 1, 11, 2);
    b = brg_slice(b, 1, 3, 13, 3);
    const double *av = dense_values(a), *bv = dense_values(b);
    double expected[3 * 2 * 6 * 4];
    for (int i = 0; i < 6; i++)
        product(av + i * 30, bv, 6, 4, 5, expected + i * 24);
    dense_check(brg_matmul(a, b), expected, 1e-6);
}

static brg_status matmul_fn(brg_tensor *const *in, brg_tensor **out, void *user)
{
    (void)user;
    out[0] = brg_matmul(in[0], in[1]);
    return out[0] ? BRG_OK : brg_error_code();
}

static brg_status flipped_fn(brg_tensor *const *in, brg_tensor **out,
                             void *user)
{
    (void)user;
    out[0] =
        brg_matmul(brg_transpose(in[0], -1, -2), brg_transpose(in[1], -1, -2));
    return out[0] ? BRG_OK : brg_error_code();
}

static void test_matmul__gradients_match_differences(void **state)
{
    (void)state;
    uint64_t seed = 4;
    const brg_dtype f64 = BRG_DTYPE_F64;
    brg_tensor *cases[][2] = {{dense_random(&seed, f64, BRG_SHAPE(3, 4)),
                               dense_random(&seed, f64, BRG_SHAPE(4, 2))},
                              {dense_random(&seed, f64, BRG_SHAPE(2, 3, 4)),
                               dense_random(&seed, f64, BRG_SHAPE(4, 2))},
                              {dense_random(&seed, f64, BRG_SHAPE(2, 1, 3, 4)),
                               dense_random(&seed, f64, BRG_SHAPE(3, 4, 2))},
                              {dense_random(&seed, f64, BRG_SHAPE(4)),
                               dense_random(&seed, f64, BRG_SHAPE(4, 2))},
                              {dense_random(&seed, f64, BRG_SHAPE(2, 4)),
                               dense_random(&seed, f64, BRG_SHAPE(4))},
                              {dense_random(&seed, f64, BRG_SHAPE(4)),
                               dense_random(&seed, f64, BRG_SHAPE(3, 4, 2))},
                              {dense_random(&seed, f64, BRG_SHAPE(4)),
                               dense_random(&seed, f64, BRG_SHAPE(4))}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        dense_gradcheck(matmul_fn, NULL, cases[i], 2);
        dense_gradgradcheck(matmul_fn, NULL, cases[i], 2);
    }
    brg_tensor *flipped[] = {dense_random(&seed, f64, BRG_SHAPE(2, 4, 3)),
                             dense_random(&seed, f64, BRG_SHAPE(2, 4))};
    dense_gradcheck(flipped_fn, NULL, flipped, 2);
    dense_gradgradcheck(flipped_fn, NULL, flipped, 2);
}

static void test_matmul__names_what_is_wrong(void **state)
{
    (void)state;
    brg_tensor *a = brg_zeros(BRG_DTYPE_F32, BRG_SHAPE(2, 3));
    brg_tensor *b = brg_zeros(BRG_DTYPE_F32, BRG_SHAPE(4, 2));
    assert_brg_null_with(brg_matmul(a, b), BRG_ERR_SHAPE, "matmul: b");
    assert_brg_null_with(
        brg_matmul(a, brg_zeros(BRG_DTYPE_F64, BRG_SHAPE(3, 2))), BRG_ERR_DTYPE,
        "matmul");
    brg_tensor *ints = brg_zeros(BRG_DTYPE_I32, BRG_SHAPE(2, 2));
    assert_brg_null_with(brg_matmul(ints, ints), BRG_ERR_DTYPE, "matmul: a");
    assert_brg_null(brg_matmul(a, brg_zeros(BRG_DTYPE_F32, BRG_SCALAR)),
                    BRG_ERR_SHAPE);
    assert_brg_null_with(
        brg_matmul(brg_zeros(BRG_DTYPE_F32, BRG_SHAPE(2, 2, 3)),
                   brg_zeros(BRG_DTYPE_F32, BRG_SHAPE(3, 3, 2))),
        BRG_ERR_SHAPE, "broadcast");
}

/* ---- linear ------------------------------------------------------------------ */

static void check_linear(brg_dtype dtype, bool has_bias)
{
    brg_scope *scope = brg_scope_begin();
    uint64_t seed = 5;
    brg_tensor *x = dense_random(&seed, dtype, BRG_SHAPE(3, 5, 40));
    brg_tensor *w = dense_random(&seed, dtype, BRG_SHAPE(37, 40));
    brg_tensor *b = has_bias ? dense_random(&seed, dtype, BRG_SHAPE(37)) : NULL;
    const double *xv = dense_values(x), *wv = dense_values(w);
    const double *bv = dense_values(b);
    double expected[15 * 37];
    for (int i = 0; i < 15; i++)
        for (int j = 0; j < 37; j++) {
            double sum = bv ? bv[j] : 0;
            for (int k = 0; k < 40; k++)
                sum += xv[i * 40 + k] * wv[j * 40 + k];
            expected[i * 37 + j] = sum;
        }
    dense_check(brg_linear(x, w, b), expected, dense_tolerance(dtype, 40));
    brg_tensor *other = brg_transpose(
        brg_cast(brg_transpose(brg_cast(x, BRG_DTYPE_F64), 0, 1), dtype), 0, 1);
    dense_check(brg_linear(other, w, b), expected, dense_tolerance(dtype, 40));
    brg_scope_end(scope);
}

static void test_linear__equals_loops(void **state)
{
    (void)state;
    for (size_t d = 0; d < 4; d++) {
        check_linear(floats[d], true);
        check_linear(floats[d], false);
    }
}

static brg_status linear_fn(brg_tensor *const *in, brg_tensor **out, void *user)
{
    out[0] = brg_linear(in[0], in[1], user ? in[2] : NULL);
    return out[0] ? BRG_OK : brg_error_code();
}

static void test_linear__gradients_match_differences(void **state)
{
    (void)state;
    uint64_t seed = 6;
    const brg_dtype f64 = BRG_DTYPE_F64;
    int with_bias = 1;
    brg_tensor *x[] = {dense_random(&seed, f64, BRG_SHAPE(5, 4)),
                       dense_random(&seed, f64, BRG_SHAPE(2, 3, 4)),
                       dense_random(&seed, f64, BRG_SHAPE(4))};
    for (size_t i = 0; i < sizeof x / sizeof *x; i++) {
        brg_tensor *in[] = {x[i], dense_random(&seed, f64, BRG_SHAPE(3, 4)),
                            dense_random(&seed, f64, BRG_SHAPE(3))};
        dense_gradcheck(linear_fn, &with_bias, in, 3);
        dense_gradcheck(linear_fn, NULL, in, 2);
        dense_gradgradcheck(linear_fn, NULL, in, 2);
    }
}

static void test_linear__takes_empty_batches(void **state)
{
    (void)state;
    brg_tensor *w = brg_ones(BRG_DTYPE_F32, BRG_SHAPE(3, 4));
    brg_tensor *b = brg_ones(BRG_DTYPE_F32, BRG_SHAPE(3));
    assert_brg_ok(brg_set_requires_grad(w, true));
    assert_brg_ok(brg_set_requires_grad(b, true));
    brg_tensor *y = brg_linear(brg_zeros(BRG_DTYPE_F32, BRG_SHAPE(0, 4)), w, b);
    check_shape(y, BRG_SHAPE(0, 3));
    assert_brg_ok(brg_backward(brg_sum_all(y)));
    const double zeros[12] = {0};
    dense_check(brg_tensor_grad(w), zeros, 0);
    dense_check(brg_tensor_grad(b), zeros, 0);
}

static void test_linear__names_what_is_wrong(void **state)
{
    (void)state;
    brg_tensor *x = brg_zeros(BRG_DTYPE_F32, BRG_SHAPE(2, 3));
    brg_tensor *w = brg_zeros(BRG_DTYPE_F32, BRG_SHAPE(4, 3));
    assert_brg_null_with(
        brg_linear(x, brg_zeros(BRG_DTYPE_F32, BRG_SHAPE(4, 5)), NULL),
        BRG_ERR_SHAPE, "linear: x");
    assert_brg_null_with(
        brg_linear(x, w, brg_zeros(BRG_DTYPE_F32, BRG_SHAPE(3))), BRG_ERR_SHAPE,
        "linear: bias");
    assert_brg_null_with(
        brg_linear(x, brg_zeros(BRG_DTYPE_F64, BRG_SHAPE(4, 3)), NULL),
        BRG_ERR_DTYPE, "linear");
}

static void count_poll(void *user)
{
    ++*(int *)user;
}

/* A large product is cut into rows while a group wants to be polled: by those
 * cuts no bit changes. */
static void test_matmul__is_the_same_with_polls_between(void **state)
{
    (void)state;
    enum { M = 1000, N = 520, K = 800 };
    static const brg_dtype dtypes[] = {BRG_DTYPE_F32, BRG_DTYPE_F64};
    int n_polls = 0;
    for (int kind = 0; kind < 8; kind++) {
        brg_dtype dtype = dtypes[kind / 4];
        bool ta = kind & 1, tb = kind & 2;
        brg_tensor *a = brg_rand(dtype, BRG_SHAPE(ta ? K : M, ta ? M : K));
        brg_tensor *b = brg_rand(dtype, BRG_SHAPE(tb ? N : K, tb ? K : N));
        if (ta)
            a = brg_transpose(a, 0, 1);
        if (tb)
            b = brg_transpose(b, 0, 1);
        brg_tensor *alone = assert_brg_some(brg_matmul(a, b));
        assert_brg_ok(brg__progress_register(count_poll, &n_polls));
        brg_tensor *polled = brg_matmul(a, b);
        brg__progress_unregister(count_poll, &n_polls);
        assert_brg_some(polled);
        assert_memory_equal(brg_tensor_data(alone), brg_tensor_data(polled),
                            brg_tensor_nbytes(alone));
    }
    assert_true(n_polls > 0);
}

static void test_num_threads__must_be_positive(void **state)
{
    (void)state;
    assert_brg_fails(brg_set_num_threads(0), BRG_ERR_ARG);
    assert_brg_ok(brg_set_num_threads(1));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        DENSE_TEST(test_matmul__equals_loops_in_all_dtypes_and_layouts),
        DENSE_TEST(test_matmul__takes_vectors),
        DENSE_TEST(test_matmul__broadcasts_batches),
        DENSE_TEST(test_matmul__reads_strided_views),
        DENSE_TEST(test_matmul__gradients_match_differences),
        DENSE_TEST(test_matmul__names_what_is_wrong),
        DENSE_TEST(test_linear__equals_loops),
        DENSE_TEST(test_linear__gradients_match_differences),
        DENSE_TEST(test_linear__takes_empty_batches),
        DENSE_TEST(test_linear__names_what_is_wrong),
        DENSE_TEST(test_matmul__is_the_same_with_polls_between),
        DENSE_TEST(test_num_threads__must_be_positive),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
