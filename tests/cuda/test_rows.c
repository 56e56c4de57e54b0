/* SPDX-License-Identifier: Apache-2.0
 * Rows of ops at sizes that the cases of op_cases.def are too small for (split
 * sums, long rows, large products). Every row in every mode is run on a GPU by
 * cuda/core_test_ops. */
#include "core/ops/op.h"
#include "tests/cuda/compare.h"

typedef struct example {
    const char *name;
    brg_tensor *(*call)(brg_tensor *const *x);
    int n;
    int ndim[4];
    int64_t shape[4][4];
    int64_t ids;         /* input 1 is ids below this, if not 0 */
    double tolerance[3]; /* f64, f32, bf16 */
} example;

static brg_tensor *first_of(const brg_op *op, int n, brg_tensor *const *in,
                            const brg_attrs *attrs, int which)
{
    brg_tensor *out[BRG_MAX_OP_OUTPUTS] = {0};
    return brg_op_apply(op, n, in, attrs, out) == BRG_OK ? out[which] : NULL;
}

#define CALL(name, ...)                                                        \
    static brg_tensor *call_##name(brg_tensor *const *x)                       \
    {                                                                          \
        return __VA_ARGS__;                                                    \
    }
CALL(sum_all, brg_sum_all(x[0]))
CALL(sum_rows, brg_sum(x[0], BRG_DIMS(0), false))
CALL(sum_lines, brg_sum(x[0], BRG_DIMS(1), false))
CALL(sum_middle, brg_sum(x[0], BRG_DIMS(1), false))
CALL(amax, brg_amax(x[0], 0, NULL, false))
CALL(var, brg_var(x[0], BRG_DIMS(0), 1.0, false))
CALL(argmax, brg_cast(brg_argmax(x[0], 1, false), BRG_DTYPE_F64))
CALL(softmax, brg_softmax(x[0], 1))
CALL(softmax_0, brg_softmax(x[0], 0))
CALL(log_softmax, brg_log_softmax(x[0], 1))
CALL(layer_norm, brg_layer_norm(x[0], x[1], x[2], 1, 1e-5))
CALL(matmul, brg_matmul(x[0], x[1]))
CALL(matmul_t, brg_matmul(brg_transpose(x[0], 0, 1), x[1]))
CALL(matmul_shared, brg_matmul(x[0], x[1]))
CALL(linear, brg_linear(x[0], x[1], x[2]))
CALL(contract, brg__call2(&brg__op_contract_rows, x[0], x[1], NULL))
CALL(add_bias, brg_add(x[0], x[1]))
CALL(gelu, brg_gelu(x[0]))
CALL(copy_t, brg_contiguous(brg_transpose(x[0], 0, 1)))
CALL(embedding, brg_embedding(x[0], x[1]))
CALL(embedding_grad,
     brg__call3(&brg__op_embedding_grad, x[2], x[1], x[0], NULL))
CALL(cross_entropy, brg_cross_entropy(x[0], x[1]))
CALL(mse, brg_mse(x[0], x[1]))
CALL(attention,
     brg_attention_qkv(x[0], 4,
                       &(brg_attention_options){
                           .struct_size = sizeof(brg_attention_options),
                           .is_causal = true}))
CALL(attention_all,
     brg_attention_qkv(x[0], 4,
                       &(brg_attention_options){
                           .struct_size = sizeof(brg_attention_options)}))
CALL(attention_apart,
     brg_scaled_dot_product_attention(
         x[0], x[1], x[2],
         &(brg_attention_options){.struct_size = sizeof(brg_attention_options),
                                  .is_causal = true}))
CALL(
    cross_entropy_padded,
    brg_cross_entropy_with(x[0], x[1],
                           &(brg_cross_entropy_options){
                               .struct_size = sizeof(brg_cross_entropy_options),
                               .label_smoothing = 0.1,
                               .n_classes = 5000}))
/* Of logits, targets; 4990 classes. */
static brg_tensor *call_cross_entropy_grad(brg_tensor *const *x)
{
    const brg_attrs attrs = {.i = {-100, 4990}, .f = {0.1}};
    brg_tensor *made[BRG_MAX_OP_OUTPUTS] = {0};
    if (brg_op_apply(&brg__op_cross_entropy, 2, x, &attrs, made) != BRG_OK)
        return NULL;
    return brg__call(&brg__op_cross_entropy_grad, 4,
                     (brg_tensor *[]){made[0], x[0], x[1], made[1]}, &attrs);
}

/* The same at once, beside the log-sum-exps: of a loss whose gradient is 1.5. */
static brg_tensor *call_cross_entropy_with_grad(brg_tensor *const *x)
{
    const brg_attrs attrs = {.i = {-100, 4990}, .f = {0.1, 1.5}};
    brg_tensor *made[BRG_MAX_OP_OUTPUTS] = {0};
    return brg_op_apply(&brg__op_cross_entropy_with_grad, 2, x, &attrs, made) ==
                   BRG_OK
               ? made[2]
               : NULL;
}

/* Of qkv, out, lse, g. */
static brg_tensor *call_attention_grad(brg_tensor *const *x)
{
    const brg_attrs attrs = {.i = {true, 4}};
    brg_tensor *made[BRG_MAX_OP_OUTPUTS] = {0};
    if (brg_op_apply(&brg__op_attention_qkv, 1, x, &attrs, made) != BRG_OK)
        return NULL;
    return brg__call(&brg__op_attention_qkv_grad, 4,
                     (brg_tensor *[]){x[0], made[0], made[1], x[1]}, &attrs);
}
CALL(conv_grad_input, brg__call3(&brg__op_conv2d_grad_input, x[0], x[1], x[2],
                                 &(brg_attrs){.i = {1, 1, 1, 1, 1, 1, 2}}))
CALL(conv_grad_weight, brg__call3(&brg__op_conv2d_grad_weight, x[0], x[1], x[2],
                                  &(brg_attrs){.i = {1, 1, 1, 1, 1, 1, 2}}))
CALL(conv, brg_conv2d(x[0], x[1], x[2], NULL))
CALL(layer_norm_gw,
     first_of(&brg__op_layer_norm_grad, 5,
              (brg_tensor *[]){x[0], x[1], x[2],
                               brg_mean(x[1], BRG_DIMS(1), false),
                               brg_var(x[1], BRG_DIMS(1), 0.0, false)},
              &(brg_attrs){.i = {1}}, 1))

/* All outputs of the gradient in one row, each of the size of its spread. */
static brg_tensor *call_layer_norm_grad(brg_tensor *const *x)
{
    brg_tensor *out[BRG_MAX_OP_OUTPUTS] = {0};
    brg_tensor *in[] = {x[0], x[1], x[2], brg_mean(x[1], BRG_DIMS(1), false),
                        brg_var(x[1], BRG_DIMS(1), 0.0, false)};
    if (brg_op_apply(&brg__op_layer_norm_grad, 5, in, &(brg_attrs){.i = {1}},
                     out) != BRG_OK)
        return NULL;
    out[0] = brg_flatten(out[0], 0, -1);
    for (int i = 1; i < 3; i++)
        out[i] = brg_mul_scalar(out[i], 8.0);
    return brg_cat(out, 3, 0);
}

/* Both outputs of a merged row in one row of values. */
static brg_tensor *both_of(const brg_op *op, int n, brg_tensor *const *x)
{
    static const brg_attrs none;
    brg_tensor *out[BRG_MAX_OP_OUTPUTS] = {0};
    if (brg_op_apply(op, n, x, &none, out) != BRG_OK)
        return NULL;
    for (int i = 0; i < op->n_out; i++)
        out[i] = brg_flatten(out[i], 0, -1);
    return brg_cat(out, op->n_out, 0);
}
CALL(linear_gelu, both_of(&brg__op_linear_gelu, 3, x))
CALL(linear_add, both_of(&brg__op_linear_add, 4, x))
CALL(matmul_gelu_grad,
     brg__call3(&brg__op_matmul_gelu_grad, x[0], x[1], x[2], NULL))
CALL(layer_norm_grad_add,
     first_of(&brg__op_layer_norm_grad_add, 6,
              (brg_tensor *[]){x[0], x[1], x[2],
                               brg_mean(x[1], BRG_DIMS(1), false),
                               brg_var(x[1], BRG_DIMS(1), 0.0, false), x[3]},
              &(brg_attrs){.i = {1}}, 0))

/* With what is added, if it is given: gx, and the sums over its rows; each of the
 * size of its spread. */
static brg_tensor *norm_grad_sum(brg_tensor *const *x, brg_tensor *add)
{
    brg_tensor *out[BRG_MAX_OP_OUTPUTS] = {0};
    brg_tensor *in[] = {x[0],
                        x[1],
                        x[2],
                        brg_mean(x[1], BRG_DIMS(1), false),
                        brg_var(x[1], BRG_DIMS(1), 0.0, false),
                        add};
    if (brg_op_apply(&brg__op_layer_norm_grad_sum, 6, in,
                     &(brg_attrs){.i = {1}}, out) != BRG_OK)
        return NULL;
    out[0] = brg_flatten(out[0], 0, -1);
    for (int i = 1; i < 4; i++)
        out[i] = brg_mul_scalar(out[i], 8.0);
    return brg_cat(out, 4, 0);
}
CALL(layer_norm_grad_sum, norm_grad_sum(x, x[3]))
CALL(layer_norm_grad_sum_alone, norm_grad_sum(x, NULL))

static const example examples[] = {
    {"sum_all", call_sum_all, 1, {2}, {{1200, 1111}}, 0, {1e-12, 1e-5, 1e-2}},
    {"sum_rows", call_sum_rows, 1, {2}, {{5000, 300}}, 0, {1e-12, 1e-6, 5e-3}},
    {"sum_lines", call_sum_lines, 1, {2}, {{3, 70000}}, 0, {1e-12, 1e-6, 5e-3}},
    {"sum_middle",
     call_sum_middle,
     1,
     {3},
     {{7, 3000, 50}},
     0,
     {1e-12, 1e-6, 5e-3}},
    {"amax", call_amax, 1, {2}, {{1000, 999}}, 0, {0, 0, 0}},
    {"var", call_var, 1, {2}, {{3000, 40}}, 0, {1e-12, 1e-6, 5e-3}},
    {"argmax", call_argmax, 1, {2}, {{50, 3000}}, 0, {0, 0, 0}},
    {"softmax", call_softmax, 1, {2}, {{70, 5000}}, 0, {1e-12, 1e-6, 5e-3}},
    {"softmax_0", call_softmax_0, 1, {2}, {{3000, 70}}, 0, {1e-12, 1e-6, 5e-3}},
    {"log_softmax",
     call_log_softmax,
     1,
     {2},
     {{70, 5000}},
     0,
     {1e-12, 1e-6, 5e-3}},
    {"layer_norm",
     call_layer_norm,
     3,
     {2, 1, 1},
     {{900, 768}, {768}, {768}},
     0,
     {1e-12, 1e-6, 5e-3}},
    {"layer_norm_gw",
     call_layer_norm_gw,
     3,
     {2, 2, 1},
     {{3000, 100}, {3000, 100}, {100}},
     0,
     {1e-10, 1e-5, 1e-2}},
    {"layer_norm_grad",
     call_layer_norm_grad,
     3,
     {2, 2, 1},
     {{1500, 768}, {1500, 768}, {768}},
     0,
     {1e-10, 1e-5, 1e-2}},
    {"layer_norm_long",
     call_layer_norm,
     3,
     {2, 1, 1},
     {{70, 3000}, {3000}, {3000}},
     0,
     {1e-12, 1e-6, 5e-3}},
    {"linear_gelu",
     call_linear_gelu,
     3,
     {3, 2, 1},
     {{4, 130, 96}, {264, 96}, {264}},
     0,
     {1e-12, 1e-5, 1e-2}},
    {"linear_gelu_odd",
     call_linear_gelu,
     3,
     {3, 2, 1},
     {{4, 130, 96}, {203, 96}, {203}},
     0,
     {1e-12, 1e-5, 1e-2}},
    {"linear_add",
     call_linear_add,
     4,
     {3, 2, 1, 3},
     {{4, 130, 96}, {264, 96}, {264}, {4, 130, 264}},
     0,
     {1e-12, 1e-5, 1e-2}},
    {"matmul_gelu_grad",
     call_matmul_gelu_grad,
     3,
     {3, 2, 3},
     {{4, 130, 96}, {96, 264}, {4, 130, 264}},
     0,
     {1e-12, 1e-5, 1e-2}},
    {"matmul_gelu_grad_odd",
     call_matmul_gelu_grad,
     3,
     {3, 2, 3},
     {{4, 130, 96}, {96, 203}, {4, 130, 203}},
     0,
     {1e-12, 1e-5, 1e-2}},
    {"layer_norm_grad_add",
     call_layer_norm_grad_add,
     4,
     {2, 2, 1, 2},
     {{1500, 768}, {1500, 768}, {768}, {1500, 768}},
     0,
     {1e-10, 1e-5, 1e-2}},
    {"layer_norm_grad_sum",
     call_layer_norm_grad_sum,
     4,
     {2, 2, 1, 2},
     {{1500, 768}, {1500, 768}, {768}, {1500, 768}},
     0,
     {1e-10, 1e-5, 1e-2}},
    {"layer_norm_grad_sum_long",
     call_layer_norm_grad_sum,
     4,
     {2, 2, 1, 2},
     {{300, 2000}, {300, 2000}, {2000}, {300, 2000}},
     0,
     {1e-10, 1e-5, 1e-2}},
    {"layer_norm_grad_sum_odd",
     call_layer_norm_grad_sum,
     4,
     {2, 2, 1, 2},
     {{300, 203}, {300, 203}, {203}, {300, 203}},
     0,
     {1e-10, 1e-5, 1e-2}},
    {"layer_norm_grad_sum_alone",
     call_layer_norm_grad_sum_alone,
     3,
     {2, 2, 1},
     {{1500, 1024}, {1500, 1024}, {1024}},
     0,
     {1e-10, 1e-5, 1e-2}},
    {"sum_columns",
     call_sum_rows,
     1,
     {2},
     {{5000, 776}},
     0,
     {1e-12, 1e-6, 5e-3}},
    {"matmul",
     call_matmul,
     2,
     {2, 2},
     {{301, 517}, {517, 203}},
     0,
     {1e-12, 1e-6, 5e-3}},
    {"matmul_t",
     call_matmul_t,
     2,
     {2, 2},
     {{512, 300}, {512, 200}},
     0,
     {1e-12, 1e-6, 5e-3}},
    {"matmul_shared",
     call_matmul_shared,
     2,
     {3, 2},
     {{5, 64, 96}, {96, 128}},
     0,
     {1e-12, 1e-6, 5e-3}},
    {"linear",
     call_linear,
     3,
     {3, 2, 1},
     {{4, 100, 256}, {512, 256}, {512}},
     0,
     {1e-12, 1e-6, 5e-3}},
    {"contract",
     call_contract,
     2,
     {3, 3},
     {{4, 100, 64}, {4, 100, 96}},
     0,
     {1e-12, 1e-6, 5e-3}},
    {"add_bias", call_add_bias, 2, {2, 1}, {{3000, 700}, {700}}, 0, {0, 0, 0}},
    {"gelu", call_gelu, 1, {2}, {{3000, 701}}, 0, {1e-12, 1e-6, 5e-3}},
    {"copy_t", call_copy_t, 1, {2}, {{1003, 707}}, 0, {0, 0, 0}},
    {"embedding",
     call_embedding,
     2,
     {2, 1},
     {{1000, 96}, {700}},
     1000,
     {0, 0, 0}},
    {"embedding_grad",
     call_embedding_grad,
     3,
     {2, 1, 2},
     {{50, 96}, {5000}, {5000, 96}},
     50,
     {1e-14, 1e-6, 5e-3}},
    {"cross_entropy",
     call_cross_entropy,
     2,
     {2, 1},
     {{500, 5003}, {500}},
     5003,
     {1e-12, 1e-6, 5e-3}},
    {"cross_entropy_padded",
     call_cross_entropy_padded,
     2,
     {2, 1},
     {{500, 5008}, {500}},
     5000,
     {1e-12, 1e-6, 5e-3}},
    {"cross_entropy_grad",
     call_cross_entropy_grad,
     2,
     {2, 1},
     {{300, 5008}, {300}},
     4990,
     {1e-12, 1e-6, 5e-3}},
    {"cross_entropy_with_grad",
     call_cross_entropy_with_grad,
     2,
     {2, 1},
     {{300, 5008}, {300}},
     4990,
     {1e-12, 1e-6, 5e-3}},
    {"mse",
     call_mse,
     2,
     {2, 2},
     {{900, 1000}, {900, 1000}},
     0,
     {1e-12, 1e-6, 5e-3}},
    {"attention",
     call_attention,
     1,
     {3},
     {{2, 200, 3 * 4 * 64}},
     0,
     {1e-12, 1e-5, 1e-2}},
    {"attention_grad",
     call_attention_grad,
     2,
     {3, 3},
     {{2, 200, 3 * 4 * 64}, {2, 200, 4 * 64}},
     0,
     {1e-12, 1e-5, 2e-2}},
    {"attention_256",
     call_attention,
     1,
     {3},
     {{2, 256, 3 * 4 * 64}},
     0,
     {1e-12, 1e-5, 1e-2}},
    {"attention_all_256",
     call_attention_all,
     1,
     {3},
     {{2, 256, 3 * 4 * 64}},
     0,
     {1e-12, 1e-5, 1e-2}},
    {"attention_apart_384",
     call_attention_apart,
     3,
     {4, 4, 4},
     {{2, 3, 384, 128}, {2, 3, 384, 128}, {2, 3, 384, 128}},
     0,
     {1e-12, 1e-5, 1e-2}},
    {"attention_grad_256",
     call_attention_grad,
     2,
     {3, 3},
     {{2, 256, 3 * 4 * 64}, {2, 256, 4 * 64}},
     0,
     {1e-12, 1e-5, 2e-2}},
    {"conv_grad_input",
     call_conv_grad_input,
     3,
     {4, 4, 4},
     {{8, 32, 20, 20}, {32, 8, 3, 3}, {8, 16, 20, 20}},
     0,
     {1e-12, 1e-5, 1e-2}},
    {"conv_grad_weight",
     call_conv_grad_weight,
     3,
     {4, 4, 4},
     {{8, 32, 20, 20}, {8, 16, 20, 20}, {32, 8, 3, 3}},
     0,
     {1e-12, 1e-5, 1e-2}},
    {"conv",
     call_conv,
     3,
     {4, 4, 1},
     {{8, 16, 20, 20}, {32, 16, 3, 3}, {32}},
     0,
     {1e-12, 1e-5, 1e-2}},
};

static void run_example(const example *e, brg_dtype dtype, double tolerance)
{
    brg_scope *scope = brg_scope_begin();
    brg_tensor *here[4], *there[4];
    brg_seed(11);
    for (int i = 0; i < e->n; i++) {
        here[i] = e->ids && i == 1
                      ? brg_randint(0, e->ids, e->ndim[i], e->shape[i])
                      : normal(dtype, e->ndim[i], e->shape[i]);
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

#define N_EXAMPLES (sizeof examples / sizeof *examples)
#define N_ALL_DTYPES 4
static const brg_dtype all_dtypes[N_ALL_DTYPES] = {
    BRG_DTYPE_F64, BRG_DTYPE_F32, BRG_DTYPE_BF16, BRG_DTYPE_F16};

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

/* ---- All outputs --------------------------------------------------------------------- */

/* Forward and backward of what examples call in one direction only. */
static brg_tensor *backward_of(brg_tensor *y)
{
    return y && brg_backward(brg_sum_all(brg_mul(y, y))) == BRG_OK ? y : NULL;
}

static brg_tensor *call_batch_norm(brg_tensor *const *x)
{
    const brg_batch_norm_options o = {.struct_size = sizeof o,
                                      .training = true};
    /* of its squares the gradient would be 0, but for rounding */
    return backward_of(
        brg_sin(brg_batch_norm(x[0], x[1], x[2], NULL, NULL, &o)));
}

static brg_tensor *call_max_pool(brg_tensor *const *x)
{
    const brg_pool2d_options o = {.struct_size = sizeof o, .kernel = {3, 2}};
    return backward_of(brg_max_pool2d(x[0], &o));
}

CALL(targets, brg__call2(&brg__op_cross_entropy_targets, x[0], x[1],
                         &(brg_attrs){.i = {-100}}))
CALL(attention_both, backward_of(call_attention_apart(x)))

/* Tolerances are those of more_tolerance. */
static const example more[] = {
    {.name = "batch_norm",
     .call = call_batch_norm,
     .n = 3,
     .ndim = {4, 1, 1},
     .shape = {{16, 40, 19, 21}, {40}, {40}}},
    {.name = "max_pool",
     .call = call_max_pool,
     .n = 1,
     .ndim = {4},
     .shape = {{9, 17, 50, 61}}},
    {.name = "targets",
     .call = call_targets,
     .n = 2,
     .ndim = {2, 1},
     .shape = {{300, 5003}, {300}},
     .ids = 5003},
    {.name = "attention_both",
     .call = call_attention_both,
     .n = 3,
     .ndim = {4, 4, 4},
     .shape = {{2, 3, 256, 64}, {2, 3, 256, 64}, {2, 3, 256, 64}}},
    {.name = "attention_both_short", /* neither cuDNN nor products */
     .call = call_attention_both,
     .n = 3,
     .ndim = {4, 4, 4},
     .shape = {{2, 3, 40, 64}, {2, 3, 40, 64}, {2, 3, 40, 64}}},
};
static const double more_tolerance[N_ALL_DTYPES] = {1e-10, 1e-4, 2e-2, 5e-3};

#define MAX_MET 32
/* Rows with several outputs that were run. */
static const brg_op *met[MAX_MET];
static const char *running;
static double most;

static void note_met(const brg_op *op)
{
    int i = 0;
    while (met[i] && met[i] != op)
        i++;
    assert_true(i < MAX_MET - 1);
    met[i] = op;
}

static void check_outputs(const brg_op_call *call, brg_tensor *const *here)
{
    brg_tensor *want[BRG_MAX_OP_OUTPUTS] = {0};
    assert_brg_ok(brg_op_apply(call->op, call->n_in, here, call->attrs, want));
    note_met(call->op);
    for (int j = 0; j < call->n_out; j++) {
        const double d = distance(call->out[j], want[j]);
        if (d <= most)
            continue;
        print_error("%s: output %d of %s is off by %g, at most %g\n", running,
                    j, call->op->name, d, most);
        fail();
    }
}

/* What is run on the GPU is run on the CPU too, with the same inputs. */
static brg_status emit_both(brg__emitter *self, brg_op_call *call)
{
    brg_tensor *here[BRG_MAX_OP_INPUTS] = {0};
    const bool is_checked = call->op->n_out > 1;
    brg__emitter *before = brg__emitter_set(NULL);
    const bool mode = brg_grad_mode_set(false);
    for (int i = 0; is_checked && i < call->n_in; i++)
        if (call->in[i])
            here[i] = assert_brg_some(brg_to(brg_detach(call->in[i]), CPU));
    (void)brg_grad_mode_set(mode);
    brg_status status = brg__eager_emitter.emit(self, call);
    (void)brg_grad_mode_set(false);
    if (status == BRG_OK && is_checked)
        check_outputs(call, here);
    (void)brg_grad_mode_set(mode);
    (void)brg__emitter_set(before);
    return status;
}

static void run_outputs(const example *e, brg_dtype dtype, double tolerance)
{
    static brg__emitter both = {emit_both};
    brg_scope *scope = brg_scope_begin();
    brg_tensor *x[4];
    brg_seed(7);
    for (int i = 0; i < e->n; i++) {
        const bool is_ids = e->ids && i == 1;
        x[i] = is_ids ? brg_randint(0, e->ids, e->ndim[i], e->shape[i])
                      : normal(dtype, e->ndim[i], e->shape[i]);
        x[i] = assert_brg_some(brg_to(x[i], GPU));
        if (!is_ids)
            assert_brg_ok(brg_set_requires_grad(x[i], true));
    }
    running = e->name;
    most = tolerance;
    (void)brg__emitter_set(&both);
    (void)assert_brg_some(e->call(x));
    (void)brg__emitter_set(NULL);
    brg_scope_end(scope);
}

static void test_rows__all_outputs(void **state)
{
    (void)state;
    for (int d = 0; d < N_ALL_DTYPES; d++) {
        for (size_t i = 0; i < N_EXAMPLES; i++)
            run_outputs(&examples[i], all_dtypes[d], more_tolerance[d]);
        for (size_t i = 0; i < sizeof more / sizeof *more; i++)
            run_outputs(&more[i], all_dtypes[d], more_tolerance[d]);
    }
    for (size_t i = 0; brg_op_at(i); i++) {
        const brg_op *op = brg_op_at(i);
        int k = 0;
        while (met[k] && met[k] != op)
            k++;
        if (op->n_out > 1 && !(op->flags & BRG_OP_SPARSE) && !met[k])
            fail_msg("no example runs %s", op->name);
    }
}

/* The same of other batches, for which the quickest ways are looked for. */
static void test_rows__that_need_not_repeat(void **state)
{
    (void)state;
    static const char *const names[] = {"linear", "linear_gelu", "linear_add",
                                        "matmul_gelu_grad",
                                        "attention_grad_256"};
    assert_int_equal(setenv("BRG_CUDA_REPEATABLE", "0", 1), 0);
    for (size_t i = 0; i < sizeof examples / sizeof *examples; i++)
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
 * 16 bytes and of others. */
static void check_both_entropies(brg_dtype dtype, int64_t width,
                                 double smoothing)
{
    const int64_t n = 70, shape[] = {n, width}, classes = width - width / 9;
    int64_t ids[70];
    brg_attrs attrs = {.i = {0, classes}, .f = {smoothing, 0.75}};
    brg_scope *scope = brg_scope_begin();
    brg_tensor *x[] = {normal(dtype, 2, shape), brg_randint(0, classes, 1, &n)};
    brg_tensor *made[3], *both[3];
    assert_brg_ok(brg_tensor_read(x[1], ids, sizeof ids));
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
        x[k] = brg_to(e->ids && k == 1
                          ? brg_randint(0, e->ids, e->ndim[k], e->shape[k])
                          : normal(dtype, e->ndim[k], e->shape[k]),
                      GPU);
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
        gpu_test(test_rows__all_outputs),
        gpu_test(test_rows__that_need_not_repeat),
        gpu_test(test_rows__both_entropies_at_once),
        gpu_test(test_rows__repeat_bit_for_bit),
    };
    return cmocka_run_group_tests_name("rows", tests, NULL, NULL);
}
