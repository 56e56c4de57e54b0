/* SPDX-License-Identifier: Apache-2.0
 * conv2d against plain loops in f64: every geometry; gradients; errors. */
#include "tests/core/dense.h"

typedef struct geometry {
    int64_t n, c, h, w;
    int64_t o, kh, kw;
    int64_t stride[2], padding[2], dilation[2], groups;
} geometry;

static const geometry geometries[] = {
    /* n c h w  o kh kw  stride padding dilation groups */
    {2, 3, 7, 6, 4, 3, 3, {1, 1}, {0, 0}, {1, 1}, 1},
    {2, 3, 7, 6, 5, 3, 3, {1, 1}, {1, 1}, {1, 1}, 1},
    {1, 1, 9, 9, 2, 5, 3, {1, 1}, {2, 1}, {1, 1}, 1},
    {2, 4, 8, 7, 6, 3, 2, {2, 1}, {1, 0}, {1, 1}, 2},
    {1, 2, 9, 10, 3, 3, 3, {2, 3}, {2, 1}, {1, 1}, 1},
    {1, 2, 9, 10, 3, 3, 2, {1, 1}, {2, 1}, {2, 3}, 1},
    {2, 6, 6, 5, 6, 3, 3, {1, 1}, {1, 1}, {1, 1}, 6},
    {1, 3, 5, 5, 6, 3, 3, {2, 2}, {1, 1}, {1, 1}, 3},
    {3, 2, 4, 4, 3, 1, 1, {1, 1}, {0, 0}, {1, 1}, 1},
    {1, 2, 4, 4, 3, 1, 1, {1, 1}, {2, 1}, {1, 1}, 1},
    {1, 2, 3, 3, 2, 3, 3, {1, 1}, {3, 4}, {1, 1}, 1},
    {1, 2, 3, 4, 2, 3, 4, {1, 1}, {0, 0}, {1, 1}, 1},
    {2, 9, 12, 40, 17, 3, 3, {1, 1}, {1, 1}, {1, 1}, 1},
    {2, 16, 9, 35, 20, 2, 5, {1, 1}, {0, 2}, {2, 1}, 2},
    {0, 2, 5, 5, 3, 3, 3, {1, 1}, {1, 1}, {1, 1}, 1},
};

#define N_GEOMETRIES (sizeof geometries / sizeof *geometries)

static int64_t out_size(const geometry *s, int axis)
{
    const int64_t size = axis ? s->w : s->h, kernel = axis ? s->kw : s->kh;
    return (size + 2 * s->padding[axis] - s->dilation[axis] * (kernel - 1) -
            1) /
               s->stride[axis] +
           1;
}

static brg_conv2d_options options_of(const geometry *s)
{
    brg_conv2d_options o = BRG_CONV2D_OPTIONS_INIT;
    for (int axis = 0; axis < 2; axis++) {
        o.stride[axis] = s->stride[axis];
        o.padding[axis] = s->padding[axis];
        o.dilation[axis] = s->dilation[axis];
    }
    o.groups = s->groups;
    return o;
}

/* Visits every product of the sum: y[at_y] gets x[at_x] * w[at_w]. */
typedef void (*term_fn)(int64_t at_y, int64_t at_x, int64_t at_w, void *user);

static void each_tap(const geometry *s, int64_t at_y, const int64_t y[4],
                     term_fn fn, void *user)
{
    const int64_t group_c = s->c / s->groups, group_o = s->o / s->groups;
    for (int64_t c = 0; c < group_c; c++)
        for (int64_t ky = 0; ky < s->kh; ky++)
            for (int64_t kx = 0; kx < s->kw; kx++) {
                const int64_t iy =
                    y[2] * s->stride[0] - s->padding[0] + ky * s->dilation[0];
                const int64_t ix =
                    y[3] * s->stride[1] - s->padding[1] + kx * s->dilation[1];
                if (iy < 0 || iy >= s->h || ix < 0 || ix >= s->w)
                    continue;
                const int64_t ic = y[1] / group_o * group_c + c;
                fn(at_y, ((y[0] * s->c + ic) * s->h + iy) * s->w + ix,
                   ((y[1] * group_c + c) * s->kh + ky) * s->kw + kx, user);
            }
}

static void each_term(const geometry *s, term_fn fn, void *user)
{
    const int64_t oh = out_size(s, 0), ow = out_size(s, 1);
    for (int64_t i = 0; i < s->n * s->o * oh * ow; i++) {
        const int64_t y[4] = {i / (ow * oh * s->o), i / (ow * oh) % s->o,
                              i / ow % oh, i % ow};
        each_tap(s, i, y, fn, user);
    }
}

typedef struct values {
    const double *x, *w, *g;
    double *y, *gx, *gw;
} values;

static void forward_term(int64_t y, int64_t x, int64_t w, void *user)
{
    values *v = user;
    v->y[y] += v->x[x] * v->w[w];
}

static void backward_term(int64_t y, int64_t x, int64_t w, void *user)
{
    values *v = user;
    v->gx[x] += v->g[y] * v->w[w];
    v->gw[w] += v->g[y] * v->x[x];
}

static void fill_bias(const geometry *s, const double *bias, double *y)
{
    const int64_t plane = out_size(s, 0) * out_size(s, 1);
    for (int64_t i = 0; i < s->n * s->o * plane; i++)
        y[i] = bias[i / plane % s->o];
}

static double *zeros(int64_t n)
{
    double *x = calloc((size_t)n + 1, sizeof *x);
    assert_non_null(x);
    return x;
}

/* Forward and all gradients; with flips the image is a transposed view. */
static void check_geometry(const geometry *s, brg_dtype dtype, bool flips)
{
    brg_scope *scope = brg_scope_begin();
    uint64_t seed = 11;
    const int64_t oh = out_size(s, 0), ow = out_size(s, 1);
    const double depth = (double)(s->c / s->groups * s->kh * s->kw);
    brg_tensor *x =
        flips ? brg_transpose(dense_random(&seed, dtype,
                                           BRG_SHAPE(s->n, s->c, s->w, s->h)),
                              2, 3)
              : dense_random(&seed, dtype, BRG_SHAPE(s->n, s->c, s->h, s->w));
    brg_tensor *w = dense_random(
        &seed, dtype, BRG_SHAPE(s->o, s->c / s->groups, s->kh, s->kw));
    brg_tensor *b = dense_random(&seed, dtype, BRG_SHAPE(s->o));
    brg_tensor *g = dense_random(&seed, dtype, BRG_SHAPE(s->n, s->o, oh, ow));
    brg_tensor *in[] = {x = brg_detach(x), w, b};
    for (int i = 0; i < 3; i++)
        assert_brg_ok(brg_set_requires_grad(in[i], true));
    values v = {.x = dense_values(brg_detach(x)),
                .w = dense_values(brg_detach(w)),
                .g = dense_values(g),
                .y = zeros(s->n * s->o * oh * ow),
                .gx = zeros(s->n * s->c * s->h * s->w),
                .gw = zeros(brg_tensor_numel(w))};
    fill_bias(s, dense_values(brg_detach(b)), v.y);
    each_term(s, forward_term, &v);
    each_term(s, backward_term, &v);
    const brg_conv2d_options options = options_of(s);
    brg_tensor *y = brg_conv2d(x, w, b, &options);
    dense_check(brg_detach(assert_brg_some(y)), v.y,
                dense_tolerance(dtype, depth));
    brg_backward_options back = BRG_BACKWARD_OPTIONS_INIT;
    back.grad_outputs = &g;
    assert_brg_ok(brg_backward_with(&y, 1, &back));
    const double pixels = (double)(s->n * oh * ow);
    dense_check(brg_tensor_grad(x), v.gx,
                dense_tolerance(dtype, depth / (double)s->c * (double)s->o));
    dense_check(brg_tensor_grad(w), v.gw, dense_tolerance(dtype, pixels));
    free(v.y);
    free(v.gx);
    free(v.gw);
    brg_scope_end(scope);
}

static void test_conv2d__equals_loops_in_every_geometry(void **state)
{
    (void)state;
    for (size_t i = 0; i < N_GEOMETRIES; i++)
        for (int flips = 0; flips < 2; flips++) {
            check_geometry(&geometries[i], BRG_DTYPE_F64, flips);
            check_geometry(&geometries[i], BRG_DTYPE_F32, flips);
        }
}

static void test_conv2d__takes_16_bit_floats(void **state)
{
    (void)state;
    for (size_t i = 0; i < N_GEOMETRIES; i += 3) {
        check_geometry(&geometries[i], BRG_DTYPE_F16, false);
        check_geometry(&geometries[i], BRG_DTYPE_BF16, true);
    }
}

static brg_status conv_fn(brg_tensor *const *in, brg_tensor **out, void *user)
{
    const brg_conv2d_options options = options_of(user);
    out[0] = brg_conv2d(in[0], in[1], in[2], &options);
    return out[0] ? BRG_OK : brg_error_code();
}

static void test_conv2d__gradients_match_differences(void **state)
{
    (void)state;
    uint64_t seed = 12;
    for (size_t i = 0; i < 12; i++) {
        geometry s = geometries[i];
        brg_tensor *in[] = {
            dense_random(&seed, BRG_DTYPE_F64, BRG_SHAPE(s.n, s.c, s.h, s.w)),
            dense_random(&seed, BRG_DTYPE_F64,
                         BRG_SHAPE(s.o, s.c / s.groups, s.kh, s.kw)),
            dense_random(&seed, BRG_DTYPE_F64, BRG_SHAPE(s.o))};
        dense_gradcheck(conv_fn, &s, in, 3);
        if (i % 4 == 3)
            dense_gradgradcheck(conv_fn, &s, in, 3);
    }
}

static void test_conv2d__names_what_is_wrong(void **state)
{
    (void)state;
    brg_tensor *x = brg_zeros(BRG_DTYPE_F32, BRG_SHAPE(1, 4, 5, 5));
    brg_tensor *w = brg_zeros(BRG_DTYPE_F32, BRG_SHAPE(6, 4, 3, 3));
    brg_conv2d_options o = BRG_CONV2D_OPTIONS_INIT;
    o.groups = 2;
    assert_brg_null_with(brg_conv2d(x, w, NULL, &o), BRG_ERR_SHAPE,
                         "conv2d: weight");
    o.groups = -1;
    assert_brg_null(brg_conv2d(x, w, NULL, &o), BRG_ERR_ARG);
    assert_brg_null_with(
        brg_conv2d(x, w, brg_zeros(BRG_DTYPE_F32, BRG_SHAPE(5)), NULL),
        BRG_ERR_SHAPE, "conv2d: bias");
    brg_tensor *tiny = brg_zeros(BRG_DTYPE_F32, BRG_SHAPE(1, 4, 2, 5));
    assert_brg_null_with(brg_conv2d(tiny, w, NULL, NULL), BRG_ERR_SHAPE,
                         "conv2d: x");
    brg_tensor *flat = brg_zeros(BRG_DTYPE_F32, BRG_SHAPE(4, 5));
    assert_brg_null(brg_conv2d(flat, w, NULL, NULL), BRG_ERR_SHAPE);
    assert_brg_null(brg_conv2d(brg_zeros(BRG_DTYPE_I32, BRG_SHAPE(1, 4, 5, 5)),
                               w, NULL, NULL),
                    BRG_ERR_DTYPE);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        DENSE_TEST(test_conv2d__equals_loops_in_every_geometry),
        DENSE_TEST(test_conv2d__takes_16_bit_floats),
        DENSE_TEST(test_conv2d__gradients_match_differences),
        DENSE_TEST(test_conv2d__names_what_is_wrong),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
