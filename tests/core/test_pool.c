/* SPDX-License-Identifier: Apache-2.0
 * Pooling against plain loops; gradients; ties, NaN, padding; errors. */
#include "tests/core/dense.h"

typedef brg_tensor *(*pool_fn)(brg_tensor *x, const brg_pool2d_options *o);

typedef struct geometry {
    int64_t n, c, h, w;
    int64_t kernel[2], stride[2], padding[2];
    bool exclude_padding;
    pool_fn pool;
} geometry;

#define GEOMETRIES(pool)                                                       \
    {2, 3, 8, 8, {2, 2}, {2, 2}, {0, 0}, false, pool},                         \
        {2, 3, 7, 9, {2, 2}, {2, 2}, {0, 0}, false, pool},                     \
        {1, 2, 6, 70, {2, 2}, {2, 2}, {0, 0}, false, pool},                    \
        {2, 3, 7, 9, {3, 2}, {1, 2}, {1, 1}, false, pool},                     \
        {1, 2, 7, 9, {3, 3}, {2, 2}, {1, 1}, true, pool},                      \
        {1, 1, 20, 19, {18, 17}, {1, 1}, {0, 0}, false, pool},                 \
    {                                                                          \
        0, 2, 4, 4, {2, 2}, {2, 2}, {0, 0}, false, pool                        \
    }

static const geometry geometries[] = {GEOMETRIES(brg_max_pool2d),
                                      GEOMETRIES(brg_avg_pool2d)};

#define N_GEOMETRIES (sizeof geometries / sizeof *geometries)

static brg_pool2d_options options_of(const geometry *s)
{
    brg_pool2d_options o = BRG_POOL2D_OPTIONS_INIT;
    for (int axis = 0; axis < 2; axis++) {
        o.kernel[axis] = s->kernel[axis];
        o.stride[axis] = s->stride[axis];
        o.padding[axis] = s->padding[axis];
    }
    o.exclude_padding = s->exclude_padding;
    return o;
}

static int64_t out_size(const geometry *s, int axis)
{
    const int64_t size = axis ? s->w : s->h;
    return (size + 2 * s->padding[axis] - s->kernel[axis]) / s->stride[axis] +
           1;
}

static double window_value(const geometry *s, const double *plane, int64_t oy,
                           int64_t ox)
{
    double top = -INFINITY, sum = 0, n = 0;
    for (int64_t ky = 0; ky < s->kernel[0]; ky++)
        for (int64_t kx = 0; kx < s->kernel[1]; kx++) {
            const int64_t y = oy * s->stride[0] - s->padding[0] + ky;
            const int64_t x = ox * s->stride[1] - s->padding[1] + kx;
            if (y < 0 || y >= s->h || x < 0 || x >= s->w)
                continue;
            n++;
            sum += plane[y * s->w + x];
            top = fmax(top, plane[y * s->w + x]);
        }
    if (!s->exclude_padding)
        n = (double)(s->kernel[0] * s->kernel[1]);
    return s->pool == brg_max_pool2d ? top : sum / n;
}

static void check_geometry(const geometry *s, brg_dtype dtype)
{
    brg_scope *scope = brg_scope_begin();
    uint64_t seed = 21;
    brg_tensor *x =
        dense_random(&seed, dtype, BRG_SHAPE(s->n, s->c, s->h, s->w));
    const int64_t oh = out_size(s, 0), ow = out_size(s, 1);
    const double *v = dense_values(x);
    double *expected =
        calloc((size_t)(s->n * s->c * oh * ow + 1), sizeof *expected);
    for (int64_t i = 0; i < s->n * s->c * oh * ow; i++)
        expected[i] = window_value(s, v + i / (oh * ow) * s->h * s->w,
                                   i / ow % oh, i % ow);
    const brg_pool2d_options options = options_of(s);
    dense_check(s->pool(x, &options), expected, dense_tolerance(dtype, 9));
    brg_tensor *view =
        brg_transpose(brg_reshape(brg_transpose(x, 2, 3), 4,
                                  brg_tensor_shape(brg_transpose(x, 2, 3))),
                      2, 3);
    dense_check(s->pool(view, &options), expected, dense_tolerance(dtype, 9));
    free(expected);
    brg_scope_end(scope);
}

static void test_pool2d__equals_loops_in_every_geometry(void **state)
{
    (void)state;
    for (size_t i = 0; i < N_GEOMETRIES; i++) {
        check_geometry(&geometries[i], BRG_DTYPE_F64);
        check_geometry(&geometries[i], BRG_DTYPE_F32);
        check_geometry(&geometries[i], BRG_DTYPE_F16);
        check_geometry(&geometries[i], BRG_DTYPE_BF16);
    }
}

static brg_status pool(brg_tensor *const *in, brg_tensor **out, void *user)
{
    const geometry *s = user;
    const brg_pool2d_options options = options_of(s);
    out[0] = s->pool(in[0], &options);
    return out[0] ? BRG_OK : brg_error_code();
}

static void test_pool2d__gradients_match_differences(void **state)
{
    (void)state;
    uint64_t seed = 22;
    for (size_t i = 0; i < N_GEOMETRIES; i++) {
        geometry s = geometries[i];
        brg_tensor *in[] = {
            dense_random(&seed, BRG_DTYPE_F64, BRG_SHAPE(s.n, s.c, s.h, s.w))};
        if (s.n == 0)
            continue;
        dense_gradcheck(pool, &s, in, 1);
        dense_gradgradcheck(pool, &s, in, 1);
    }
}

/* f32 gradients come from other kernels than f64 ones. */
static void test_pool2d__gradients_agree_between_dtypes(void **state)
{
    (void)state;
    uint64_t seed = 23;
    for (size_t i = 0; i < N_GEOMETRIES; i++) {
        const geometry *s = &geometries[i];
        const brg_pool2d_options options = options_of(s);
        brg_tensor *x = dense_random(&seed, BRG_DTYPE_F32,
                                     BRG_SHAPE(s->n, s->c, s->h, s->w));
        brg_tensor *leaves[] = {x, brg_cast(x, BRG_DTYPE_F64)};
        for (int k = 0; k < 2; k++) {
            assert_brg_ok(brg_set_requires_grad(leaves[k], true));
            brg_tensor *y = assert_brg_some(s->pool(leaves[k], &options));
            assert_brg_ok(brg_backward(brg_sum_all(brg_mul(y, y))));
        }
        dense_check(brg_tensor_grad(x),
                    dense_values(brg_tensor_grad(leaves[1])), 1e-5);
    }
}

static void test_max_pool2d__keeps_nan_and_gives_ties_to_the_first(void **state)
{
    (void)state;
    const float data[] = {1, 1, NAN, 2, 1, 1, 3, 4};
    brg_tensor *x = brg_from_data(BRG_DTYPE_F32, BRG_SHAPE(1, 1, 2, 4), data);
    assert_brg_ok(brg_set_requires_grad(x, true));
    brg_pool2d_options o = BRG_POOL2D_OPTIONS_INIT;
    o.kernel[0] = o.kernel[1] = 2;
    brg_tensor *y = assert_brg_some(brg_max_pool2d(x, &o));
    const float *v = brg_tensor_data(y);
    assert_true(v[0] == 1);
    assert_true(isnan(v[1]));
    assert_brg_ok(brg_backward(brg_sum_all(y)));
    const double expected[] = {1, 0, 1, 0, 0, 0, 0, 0};
    dense_check(brg_tensor_grad(x), expected, 0);
}

static void test_pool2d__names_what_is_wrong(void **state)
{
    (void)state;
    brg_tensor *x = brg_zeros(BRG_DTYPE_F32, BRG_SHAPE(1, 1, 4, 4));
    brg_pool2d_options o = BRG_POOL2D_OPTIONS_INIT;
    assert_brg_null_with(brg_max_pool2d(x, &o), BRG_ERR_ARG, "max_pool2d");
    o.kernel[0] = o.kernel[1] = 2;
    o.padding[0] = 2;
    assert_brg_null_with(brg_avg_pool2d(x, &o), BRG_ERR_ARG, "avg_pool2d");
    o.padding[0] = 0;
    o.kernel[1] = 5;
    assert_brg_null_with(brg_avg_pool2d(x, &o), BRG_ERR_SHAPE, "avg_pool2d: x");
    brg_tensor *flat = brg_zeros(BRG_DTYPE_F32, BRG_SHAPE(4, 4));
    assert_brg_null(brg_max_pool2d(flat, &o), BRG_ERR_SHAPE);
    brg_tensor *ints = brg_zeros(BRG_DTYPE_I64, BRG_SHAPE(1, 1, 8, 8));
    assert_brg_null(brg_max_pool2d(ints, &o), BRG_ERR_DTYPE);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        DENSE_TEST(test_pool2d__equals_loops_in_every_geometry),
        DENSE_TEST(test_pool2d__gradients_match_differences),
        DENSE_TEST(test_pool2d__gradients_agree_between_dtypes),
        DENSE_TEST(test_max_pool2d__keeps_nan_and_gives_ties_to_the_first),
        DENSE_TEST(test_pool2d__names_what_is_wrong),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
