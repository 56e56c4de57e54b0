/* SPDX-License-Identifier: Apache-2.0
 * Attention against plain loops in f64 and against its composition of other
 * ops; gradients; layouts; errors. */
#include "tests/core/dense.h"

typedef struct sizes {
    int64_t b, h, t, s, d, d_out;
    bool is_causal;
} sizes;

static const sizes all_sizes[] = {
    {2, 3, 5, 5, 4, 4, false},      {2, 3, 5, 5, 4, 4, true},
    {1, 2, 7, 3, 4, 6, false},      {1, 2, 7, 3, 4, 6, true},
    {1, 2, 3, 9, 8, 5, true},       {2, 2, 64, 64, 32, 32, true},
    {1, 1, 150, 150, 16, 16, true}, {1, 2, 150, 70, 8, 8, false},
    {1, 1, 70, 150, 8, 8, true},    {1, 1, 1, 1, 1, 1, true},
};

#define N_SIZES (sizeof all_sizes / sizeof *all_sizes)

/* One query row by one head: out (d_out) of q (d), k (s,d), v (s,d_out). */
static void attend_row(const double *q, const double *k, const double *v,
                       const sizes *z, int64_t seen, double *out)
{
    double score[256], top = -INFINITY, sum = 0;
    for (int64_t j = 0; j < seen; j++) {
        score[j] = 0;
        for (int64_t i = 0; i < z->d; i++)
            score[j] += q[i] * k[j * z->d + i];
        score[j] /= sqrt((double)z->d);
        top = fmax(top, score[j]);
    }
    for (int64_t j = 0; j < seen; j++)
        sum += score[j] = exp(score[j] - top);
    for (int64_t i = 0; i < z->d_out; i++) {
        out[i] = 0;
        for (int64_t j = 0; j < seen; j++)
            out[i] += score[j] / sum * v[j * z->d_out + i];
    }
}

static void attend(const sizes *z, const double *q, const double *k,
                   const double *v, double *out)
{
    for (int64_t i = 0; i < z->b * z->h * z->t; i++) {
        const int64_t head = i / z->t, row = i % z->t;
        const int64_t seen = z->is_causal && row + 1 < z->s ? row + 1 : z->s;
        attend_row(q + i * z->d, k + head * z->s * z->d,
                   v + head * z->s * z->d_out, z, seen, out + i * z->d_out);
    }
}

/* (b,h,rows,d) stored as (b,rows,h,d) if `is_view`. */
static brg_tensor *heads(uint64_t *seed, brg_dtype dtype, const int64_t s[4],
                         bool is_view)
{
    if (!is_view)
        return dense_random(seed, dtype, 4, s);
    return brg_transpose(
        dense_random(seed, dtype, BRG_SHAPE(s[0], s[2], s[1], s[3])), 1, 2);
}

static void fill_operands(const sizes *z, brg_dtype dtype, bool is_view,
                          brg_tensor *in[3])
{
    uint64_t seed = 31;
    const int64_t q[4] = {z->b, z->h, z->t, z->d};
    const int64_t k[4] = {z->b, z->h, z->s, z->d};
    const int64_t v[4] = {z->b, z->h, z->s, z->d_out};
    in[0] = heads(&seed, dtype, q, is_view);
    in[1] = heads(&seed, dtype, k, is_view);
    in[2] = heads(&seed, dtype, v, is_view);
}

static brg_tensor *attention_of(const sizes *z, brg_tensor *const *in)
{
    brg_attention_options o = BRG_ATTENTION_OPTIONS_INIT;
    o.is_causal = z->is_causal;
    return brg_scaled_dot_product_attention(in[0], in[1], in[2], &o);
}

static void check_sizes(const sizes *z, brg_dtype dtype, bool is_view)
{
    brg_scope *scope = brg_scope_begin();
    brg_tensor *in[3];
    fill_operands(z, dtype, is_view, in);
    double *expected =
        malloc((size_t)(z->b * z->h * z->t * z->d_out) * sizeof *expected);
    assert_non_null(expected);
    attend(z, dense_values(in[0]), dense_values(in[1]), dense_values(in[2]),
           expected);
    dense_check(attention_of(z, in), expected, dense_tolerance(dtype, 8));
    free(expected);
    brg_scope_end(scope);
}

static void test_attention__equals_loops(void **state)
{
    (void)state;
    for (size_t i = 0; i < N_SIZES; i++)
        for (int is_view = 0; is_view < 2; is_view++) {
            check_sizes(&all_sizes[i], BRG_DTYPE_F64, is_view);
            check_sizes(&all_sizes[i], BRG_DTYPE_F32, is_view);
            check_sizes(&all_sizes[i], BRG_DTYPE_F16, is_view);
            check_sizes(&all_sizes[i], BRG_DTYPE_BF16, is_view);
        }
}

/* The composition, with the gradients that autograd derives. */
static brg_tensor *composed(const sizes *z, brg_tensor *const *in)
{
    brg_tensor *scores = brg_mul_scalar(
        brg_matmul(in[0], brg_transpose(in[1], 2, 3)), 1 / sqrt((double)z->d));
    if (z->is_causal)
        scores = brg_add(brg_tril(scores, 0),
                         brg_triu(brg_full_like(scores, -INFINITY), 1));
    return brg_matmul(brg_softmax(scores, -1), in[2]);
}

static void gradients(brg_tensor *y, brg_tensor *const *in, bool is_recorded,
                      brg_tensor *grads[3])
{
    brg_backward_options o = BRG_BACKWARD_OPTIONS_INIT;
    o.create_graph = is_recorded;
    brg_tensor *loss = brg_sum_all(brg_mul(y, brg_sin(y)));
    assert_brg_ok(brg_grad(grads, &loss, 1, in, 3, &o));
}

static void check_gradients(const sizes *z, brg_dtype dtype)
{
    brg_scope *scope = brg_scope_begin();
    brg_tensor *in[3], *expected[3], *fused[3], *recorded[3];
    fill_operands(z, dtype, true, in);
    for (int i = 0; i < 3; i++) {
        in[i] = brg_detach(in[i]);
        assert_brg_ok(brg_set_requires_grad(in[i], true));
    }
    gradients(composed(z, in), in, false, expected);
    gradients(attention_of(z, in), in, false, fused);
    gradients(attention_of(z, in), in, true, recorded);
    const double tolerance = dense_tolerance(dtype, 60);
    for (int i = 0; i < 3; i++) {
        const double *want = dense_values(brg_detach(expected[i]));
        dense_check(brg_detach(fused[i]), want, tolerance);
        dense_check(brg_detach(recorded[i]), want, tolerance);
    }
    brg_scope_end(scope);
}

static void
test_attention__gradients_equal_those_of_the_composition(void **state)
{
    (void)state;
    for (size_t i = 0; i < N_SIZES; i++) {
        check_gradients(&all_sizes[i], BRG_DTYPE_F64);
        check_gradients(&all_sizes[i], BRG_DTYPE_F32);
    }
}

static brg_status attention_fn(brg_tensor *const *in, brg_tensor **out,
                               void *user)
{
    out[0] = attention_of(user, in);
    return out[0] ? BRG_OK : brg_error_code();
}

static void test_attention__gradients_match_differences(void **state)
{
    (void)state;
    for (size_t i = 0; i < 5; i++) {
        sizes z = all_sizes[i];
        brg_tensor *in[3];
        fill_operands(&z, BRG_DTYPE_F64, false, in);
        dense_gradcheck(attention_fn, &z, in, 3);
        if (i % 2 == 1)
            dense_gradgradcheck(attention_fn, &z, in, 3);
    }
}

/* ---- The fused projection ------------------------------------------------------- */

/* qkv (b,t,3*h*d) by way of q, k and v. */
static brg_tensor *unfused(brg_tensor *qkv, int64_t n_heads, bool is_causal)
{
    const int64_t b = brg_tensor_size(qkv, 0), t = brg_tensor_size(qkv, 1);
    const int64_t d = brg_tensor_size(qkv, 2) / 3 / n_heads;
    brg_tensor *x =
        brg_permute(brg_reshape(qkv, BRG_SHAPE(b, t, 3, n_heads, d)), 5,
                    (const int[]){2, 0, 3, 1, 4});
    brg_attention_options o = BRG_ATTENTION_OPTIONS_INIT;
    o.is_causal = is_causal;
    brg_tensor *y = brg_scaled_dot_product_attention(
        brg_select(x, 0, 0), brg_select(x, 0, 1), brg_select(x, 0, 2), &o);
    return brg_reshape(brg_transpose(y, 1, 2), BRG_SHAPE(b, t, n_heads * d));
}

static brg_tensor *fused(brg_tensor *qkv, int64_t n_heads, bool is_causal)
{
    brg_attention_options o = BRG_ATTENTION_OPTIONS_INIT;
    o.is_causal = is_causal;
    return brg_attention_qkv(qkv, n_heads, &o);
}

static void check_qkv(brg_dtype dtype, int64_t t, bool is_causal)
{
    brg_scope *scope = brg_scope_begin();
    uint64_t seed = 32;
    brg_tensor *x = dense_random(&seed, dtype, BRG_SHAPE(2, t, 3 * 4 * 8));
    assert_brg_ok(brg_set_requires_grad(x, true));
    brg_tensor *a = unfused(x, 4, is_causal), *b = fused(x, 4, is_causal);
    const double tolerance = dense_tolerance(dtype, 30);
    dense_check(brg_detach(b), dense_values(brg_detach(a)), tolerance);
    brg_tensor *loss[] = {brg_sum_all(brg_mul(a, brg_sin(a))),
                          brg_sum_all(brg_mul(b, brg_sin(b)))};
    brg_tensor *grad_a = NULL, *grad_b = NULL;
    assert_brg_ok(brg_grad(&grad_a, &loss[0], 1, &x, 1, NULL));
    assert_brg_ok(brg_grad(&grad_b, &loss[1], 1, &x, 1, NULL));
    dense_check(grad_b, dense_values(grad_a), tolerance);
    brg_scope_end(scope);
}

static void test_attention_qkv__equals_attention_of_its_parts(void **state)
{
    (void)state;
    static const brg_dtype dtypes[] = {BRG_DTYPE_F64, BRG_DTYPE_F32,
                                       BRG_DTYPE_F16, BRG_DTYPE_BF16};
    for (size_t i = 0; i < 4; i++) {
        check_qkv(dtypes[i], 5, false);
        check_qkv(dtypes[i], 64, true);
        check_qkv(dtypes[i], 100, true);
    }
}

static brg_status qkv_fn(brg_tensor *const *in, brg_tensor **out, void *user)
{
    (void)user;
    out[0] = fused(in[0], 2, true);
    return out[0] ? BRG_OK : brg_error_code();
}

static void test_attention_qkv__gradients_match_differences(void **state)
{
    (void)state;
    uint64_t seed = 33;
    brg_tensor *x = dense_random(&seed, BRG_DTYPE_F64, BRG_SHAPE(2, 4, 18));
    dense_gradcheck(qkv_fn, NULL, &x, 1);
    dense_gradgradcheck(qkv_fn, NULL, &x, 1);
}

static void test_attention__takes_empty_tensors(void **state)
{
    (void)state;
    brg_tensor *q = brg_ones(BRG_DTYPE_F32, BRG_SHAPE(2, 2, 3, 4));
    brg_tensor *none = brg_ones(BRG_DTYPE_F32, BRG_SHAPE(2, 2, 0, 4));
    brg_tensor *y =
        assert_brg_some(brg_scaled_dot_product_attention(q, none, none, NULL));
    const double zeros[48] = {0};
    dense_check(y, zeros, 0);
    assert_brg_some(brg_scaled_dot_product_attention(none, q, q, NULL));
    brg_tensor *x = brg_ones(BRG_DTYPE_F32, BRG_SHAPE(0, 5, 24));
    assert_brg_ok(brg_set_requires_grad(x, true));
    y = assert_brg_some(brg_attention_qkv(x, 2, NULL));
    assert_int_equal(brg_tensor_size(y, 2), 8);
    assert_brg_ok(brg_backward(brg_sum_all(y)));
}

static void test_attention__names_what_is_wrong(void **state)
{
    (void)state;
    brg_tensor *q = brg_ones(BRG_DTYPE_F32, BRG_SHAPE(2, 2, 3, 4));
    brg_tensor *k = brg_ones(BRG_DTYPE_F32, BRG_SHAPE(2, 2, 5, 4));
    brg_tensor *odd = brg_ones(BRG_DTYPE_F32, BRG_SHAPE(2, 2, 5, 3));
    brg_tensor *flat = brg_ones(BRG_DTYPE_F32, BRG_SHAPE(2, 5, 4));
    assert_brg_null_with(brg_scaled_dot_product_attention(q, odd, k, NULL),
                         BRG_ERR_SHAPE, "attention: k");
    assert_brg_null_with(brg_scaled_dot_product_attention(q, k, q, NULL),
                         BRG_ERR_SHAPE, "attention: v");
    assert_brg_null_with(brg_scaled_dot_product_attention(q, flat, k, NULL),
                         BRG_ERR_SHAPE, "attention: k");
    assert_brg_null(
        brg_scaled_dot_product_attention(
            q, k, brg_ones(BRG_DTYPE_F64, BRG_SHAPE(2, 2, 5, 4)), NULL),
        BRG_ERR_DTYPE);
    assert_brg_null_with(brg_attention_qkv(flat, 2, NULL), BRG_ERR_SHAPE,
                         "attention_qkv: qkv");
    assert_brg_null(brg_attention_qkv(flat, 0, NULL), BRG_ERR_ARG);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        DENSE_TEST(test_attention__equals_loops),
        DENSE_TEST(test_attention__gradients_equal_those_of_the_composition),
        DENSE_TEST(test_attention__gradients_match_differences),
        DENSE_TEST(test_attention_qkv__equals_attention_of_its_parts),
        DENSE_TEST(test_attention_qkv__gradients_match_differences),
        DENSE_TEST(test_attention__takes_empty_tensors),
        DENSE_TEST(test_attention__names_what_is_wrong),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
