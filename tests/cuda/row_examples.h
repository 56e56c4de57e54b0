/* SPDX-License-Identifier: Apache-2.0
 * Rows of ops at sizes that the cases of op_cases.def are too small for (split
 * sums, long rows, large products). Every row in every mode is run on a GPU by
 * cuda/core_test_ops. */
#ifndef BRG_TESTS_CUDA_ROW_EXAMPLES_H
#define BRG_TESTS_CUDA_ROW_EXAMPLES_H

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

static inline brg_tensor *first_of(const brg_op *op, int n,
                                   brg_tensor *const *in,
                                   const brg_attrs *attrs, int which)
{
    brg_tensor *out[BRG_MAX_OP_OUTPUTS] = {0};
    return brg_op_apply(op, n, in, attrs, out) == BRG_OK ? out[which] : NULL;
}

#define CALL(name, ...)                                                        \
    static inline brg_tensor *call_##name(brg_tensor *const *x)                \
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
static inline brg_tensor *call_cross_entropy_grad(brg_tensor *const *x)
{
    const brg_attrs attrs = {.i = {-100, 4990}, .f = {0.1}};
    brg_tensor *made[BRG_MAX_OP_OUTPUTS] = {0};
    if (brg_op_apply(&brg__op_cross_entropy, 2, x, &attrs, made) != BRG_OK)
        return NULL;
    return brg__call(&brg__op_cross_entropy_grad, 4,
                     (brg_tensor *[]){made[0], x[0], x[1], made[1]}, &attrs);
}

/* The same at once, beside the log-sum-exps: of a loss whose gradient is 1.5. */
static inline brg_tensor *call_cross_entropy_with_grad(brg_tensor *const *x)
{
    const brg_attrs attrs = {.i = {-100, 4990}, .f = {0.1, 1.5}};
    brg_tensor *made[BRG_MAX_OP_OUTPUTS] = {0};
    return brg_op_apply(&brg__op_cross_entropy_with_grad, 2, x, &attrs, made) ==
                   BRG_OK
               ? made[2]
               : NULL;
}

/* Of qkv, out, lse, g. */
static inline brg_tensor *call_attention_grad(brg_tensor *const *x)
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
static inline brg_tensor *call_layer_norm_grad(brg_tensor *const *x)
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
static inline brg_tensor *both_of(const brg_op *op, int n, brg_tensor *const *x)
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
static inline brg_tensor *norm_grad_sum(brg_tensor *const *x, brg_tensor *add)
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

#define N_EXAMPLES (sizeof examples / sizeof *examples)
#define N_ALL_DTYPES 4
static const brg_dtype all_dtypes[N_ALL_DTYPES] = {
    BRG_DTYPE_F64, BRG_DTYPE_F32, BRG_DTYPE_BF16, BRG_DTYPE_F16};

static inline bool example_has_ids(const example *e, int i)
{
    return e->ids && i == 1;
}

/* Input i, drawn on the CPU. */
static inline brg_tensor *example_input(const example *e, int i,
                                        brg_dtype dtype)
{
    return example_has_ids(e, i)
               ? brg_randint(0, e->ids, e->ndim[i], e->shape[i])
               : normal(dtype, e->ndim[i], e->shape[i]);
}

#endif
