/* SPDX-License-Identifier: Apache-2.0
 * Sparse tensors on another device against the same on the CPU. The file that
 * includes this defines HOME and THERE, two devices. */
#ifndef BRG_TESTS_SUPPORT_SPARSE_CASES_H
#define BRG_TESTS_SUPPORT_SPARSE_CASES_H

#include <math.h>

#include <brigade/brigade.h>

#include "tests/support/brg_test.h"
#include "tests/support/optim_rules.h"

#define N_ROWS 37
#define WIDTH 6
#define NNZ 80
#define N_BYTES (1 << 16)
#define N_STEPS 24

/* ---- What is compared -------------------------------------------------------- */

/* Made on the device that is set; of any dtype and shape. */
typedef brg_tensor *(*sparse_case)(brg_dtype dtype);

static inline brg_tensor *random_of(uint64_t seed, brg_dtype dtype, int ndim,
                                    const int64_t *shape)
{
    brg_seed(seed);
    return assert_brg_some(
        brg_cast(brg_randn(BRG_DTYPE_F32, ndim, shape), dtype));
}

static inline brg_tensor *ids_of(uint64_t seed, int ndim, const int64_t *shape,
                                 int64_t n)
{
    brg_seed(seed);
    return assert_brg_some(brg_randint(0, n, ndim, shape));
}

static inline brg_tensor *rows_of(uint64_t seed, brg_dtype dtype)
{
    brg_tensor *values = random_of(seed, dtype, BRG_SHAPE(NNZ, WIDTH));
    return assert_brg_some(
        brg_sparse_coo(ids_of(seed, BRG_SHAPE(1, NNZ), N_ROWS), values,
                       BRG_SHAPE(N_ROWS, WIDTH)));
}

static inline brg_tensor *places_of(brg_dtype dtype)
{
    brg_tensor *values = random_of(3, dtype, BRG_SHAPE(NNZ, 2));
    return assert_brg_some(brg_sparse_coo(ids_of(3, BRG_SHAPE(2, NNZ), 5),
                                          values, BRG_SHAPE(5, 7, 2)));
}

static inline brg_tensor *case_rows(brg_dtype dtype)
{
    return brg_to_dense(rows_of(1, dtype));
}

static inline brg_tensor *case_places(brg_dtype dtype)
{
    return brg_to_dense(places_of(dtype));
}

static inline brg_tensor *case_coalesced(brg_dtype dtype)
{
    return brg_sparse_values(brg_sparse_coalesce(places_of(dtype)));
}

static inline brg_tensor *case_coalesced_indices(brg_dtype dtype)
{
    return brg_sparse_indices(brg_sparse_coalesce(places_of(dtype)));
}

static inline brg_tensor *case_coalesced_to_dense(brg_dtype dtype)
{
    return brg_to_dense(brg_sparse_coalesce(rows_of(1, dtype)));
}

/* One row gets them all. */
static inline brg_tensor *case_one_row(brg_dtype dtype)
{
    brg_tensor *t = brg_sparse_coo(
        brg_full(BRG_DTYPE_I64, BRG_SHAPE(1, NNZ), 4),
        random_of(5, dtype, BRG_SHAPE(NNZ, WIDTH)), BRG_SHAPE(N_ROWS, WIDTH));
    return brg_to_dense(assert_brg_some(t));
}

static inline brg_tensor *case_scalars(brg_dtype dtype)
{
    brg_tensor *t =
        brg_sparse_coo(ids_of(7, BRG_SHAPE(1, NNZ), N_ROWS),
                       random_of(7, dtype, BRG_SHAPE(NNZ)), BRG_SHAPE(N_ROWS));
    return brg_sparse_values(brg_sparse_coalesce(assert_brg_some(t)));
}

static inline brg_tensor *case_scaled(brg_dtype dtype)
{
    return brg_to_dense(brg_sparse_mul_scalar(rows_of(1, dtype), 0.5));
}

static inline brg_tensor *case_cast(brg_dtype dtype)
{
    return brg_to_dense(brg_sparse_cast(rows_of(1, dtype), BRG_DTYPE_F64));
}

static inline brg_tensor *case_joined(brg_dtype dtype)
{
    return brg_to_dense(
        brg_sparse_add(brg_sparse_copy(rows_of(1, dtype)), rows_of(2, dtype)));
}

static inline brg_tensor *case_plus_dense(brg_dtype dtype)
{
    brg_tensor *x = random_of(9, dtype, BRG_SHAPE(N_ROWS, WIDTH));
    return brg_sparse_add(x, rows_of(1, dtype));
}

static inline brg_tensor *case_onto_columns(brg_dtype dtype)
{
    brg_tensor *x = random_of(9, dtype, BRG_SHAPE(WIDTH, N_ROWS));
    assert_brg_ok(brg_add_(brg_transpose(x, 0, 1), rows_of(1, dtype), 1.0));
    return x;
}

static inline brg_tensor *case_copied(brg_dtype dtype)
{
    brg_tensor *x = random_of(9, dtype, BRG_SHAPE(N_ROWS, WIDTH));
    assert_brg_ok(brg_copy_(x, rows_of(2, dtype)));
    return x;
}

/* A part of the tensor that it is added to. */
static inline brg_tensor *case_own_values(brg_dtype dtype)
{
    brg_tensor *x = random_of(9, dtype, BRG_SHAPE(N_ROWS, WIDTH));
    brg_tensor *t = brg_sparse_coo(ids_of(1, BRG_SHAPE(1, N_ROWS), N_ROWS), x,
                                   BRG_SHAPE(N_ROWS, WIDTH));
    assert_brg_ok(brg_add_(x, assert_brg_some(t), 1.0));
    return x;
}

static inline brg_tensor *case_appended(brg_dtype dtype)
{
    brg_tensor *t = brg_sparse_copy(rows_of(1, dtype));
    assert_brg_ok(brg_add_(assert_brg_some(t), rows_of(2, dtype), -2.0));
    assert_int_equal(brg_sparse_nnz(t), 2 * NNZ);
    return brg_sparse_values(brg_sparse_coalesce(t));
}

static inline brg_tensor *case_gradient_of_values(brg_dtype dtype)
{
    brg_tensor *values = random_of(3, dtype, BRG_SHAPE(NNZ, 2));
    assert_brg_ok(brg_set_requires_grad(values, true));
    brg_tensor *t = brg_sparse_coo(ids_of(3, BRG_SHAPE(2, NNZ), 5), values,
                                   BRG_SHAPE(5, 7, 2));
    brg_tensor *scaled = brg_mul_scalar(brg_to_dense(t), 3.0);
    assert_brg_ok(brg_backward(brg_sum_all(scaled)));
    return brg_tensor_grad(values);
}

static inline brg_tensor *looked_up(brg_dtype dtype, brg_dtype id_dtype,
                                    bool is_sparse, int64_t padding)
{
    brg_embedding_options options = BRG_EMBEDDING_OPTIONS_INIT;
    brg_tensor *w = random_of(4, dtype, BRG_SHAPE(N_ROWS, WIDTH));
    options.sparse_grad = is_sparse;
    options.padding_idx = padding;
    assert_brg_ok(brg_set_requires_grad(w, true));
    for (int k = 0; k < 2; k++) { /* the second is added */
        brg_tensor *ids = brg_cast(
            ids_of(4 + (uint64_t)k, BRG_SHAPE(4, 20), N_ROWS), id_dtype);
        brg_tensor *rows =
            assert_brg_some(brg_embedding_with(w, ids, &options));
        assert_brg_ok(brg_backward(brg_sum_all(
            brg_mul(rows, random_of(6, dtype, BRG_SHAPE(4, 20, WIDTH))))));
    }
    brg_tensor *grad = assert_brg_some(brg_tensor_grad(w));
    assert_int_equal(brg_tensor_is_sparse(grad), is_sparse);
    return grad;
}

static inline brg_tensor *case_embedding(brg_dtype dtype)
{
    return brg_to_dense(looked_up(dtype, BRG_DTYPE_I64, true, -1));
}

static inline brg_tensor *case_padded(brg_dtype dtype)
{
    return brg_to_dense(looked_up(dtype, BRG_DTYPE_I32, true, 4));
}

/* In a plan, whose ops run one by one. */
static inline brg_tensor *case_compiled(brg_dtype dtype)
{
    int scope;
    brg_compile_options options = BRG_COMPILE_OPTIONS_INIT;
    brg_compile_stats before, after;
    brg_compile_get_stats(&before);
    assert_brg_ok(brg_compile_begin(&scope, &options));
    brg_tensor *grad = looked_up(dtype, BRG_DTYPE_I64, true, 4);
    assert_brg_ok(brg_compile_end(scope));
    brg_compile_get_stats(&after);
    assert_int_equal(after.fallbacks, before.fallbacks);
    return brg_to_dense(grad);
}

static inline brg_tensor *case_padded_dense(brg_dtype dtype)
{
    return looked_up(dtype, BRG_DTYPE_I64, false, 4);
}

static inline brg_tensor *case_padded_coalesced(brg_dtype dtype)
{
    brg_tensor *t = looked_up(dtype, BRG_DTYPE_I64, true, 4);
    return brg_sparse_indices(brg_sparse_coalesce(t));
}

/* ---- Comparing ------------------------------------------------------------------ */

static inline size_t read_case(sparse_case fn, brg_dtype dtype,
                               brg_device device, void *bytes)
{
    assert_brg_ok(brg_device_set(device));
    brg_tensor *t = assert_brg_some(fn(dtype));
    const size_t n = brg_tensor_nbytes(t);
    assert_false(brg_tensor_is_sparse(t));
    assert_int_equal(brg_tensor_device(t).type, device.type);
    assert_true(n > 0 && n <= N_BYTES);
    assert_brg_ok(brg_tensor_read(t, bytes, n));
    assert_brg_ok(brg_device_set(HOME));
    return n;
}

static inline void check_same_bits(const char *name, sparse_case fn)
{
    static char want[N_BYTES], got[N_BYTES];
    for (int dtype = BRG_DTYPE_F64; dtype <= BRG_DTYPE_BF16; dtype++) {
        brg_scope *scope = brg_scope_begin();
        const size_t n = read_case(fn, (brg_dtype)dtype, HOME, want);
        assert_int_equal(read_case(fn, (brg_dtype)dtype, THERE, got), n);
        if (memcmp(want, got, n) != 0)
            fail_msg("%s differs in %s", name,
                     brg_dtype_name((brg_dtype)dtype));
        brg_scope_end(scope);
    }
}

static void test_sparse_there__has_the_bits_of_the_cpu(void **state)
{
    (void)state;
#define SAME(name) check_same_bits(#name, case_##name)
    SAME(rows);
    SAME(places);
    SAME(coalesced);
    SAME(coalesced_indices);
    SAME(coalesced_to_dense);
    SAME(one_row);
    SAME(scalars);
    SAME(scaled);
    SAME(cast);
    SAME(joined);
    SAME(plus_dense);
    SAME(onto_columns);
    SAME(copied);
    SAME(own_values);
    SAME(appended);
    SAME(gradient_of_values);
    SAME(embedding);
    SAME(padded);
    SAME(padded_dense);
    SAME(compiled);
    SAME(padded_coalesced);
#undef SAME
}

static void test_sparse_there__padding_lies_nowhere(void **state)
{
    (void)state;
    int64_t at[80], n = 0;
    assert_brg_ok(brg_device_set(THERE));
    brg_embedding_options options = BRG_EMBEDDING_OPTIONS_INIT;
    brg_tensor *w = random_of(4, BRG_DTYPE_F32, BRG_SHAPE(5, WIDTH));
    brg_tensor *ids = ids_of(4, BRG_SHAPE(80), 5);
    options.sparse_grad = true;
    options.padding_idx = 2;
    assert_brg_ok(brg_set_requires_grad(w, true));
    assert_brg_ok(
        brg_backward(brg_sum_all(brg_embedding_with(w, ids, &options))));
    brg_tensor *grad = brg_tensor_grad(w);
    assert_int_equal(brg_sparse_nnz(grad), 80);
    assert_brg_ok(brg_tensor_read(brg_sparse_indices(grad), at, sizeof at));
    for (int i = 0; i < 80; i++)
        n += at[i] == BRG_SPARSE_NO_PLACE;
    assert_in_range(n, 1, 79);
    assert_int_equal(brg_sparse_nnz(brg_sparse_coalesce(grad)), 4);
}

/* ---- Optimizers ------------------------------------------------------------------- */

static inline brg_tensor *no_rows(brg_dtype dtype)
{
    return assert_brg_some(brg_sparse_coo(
        brg_zeros(BRG_DTYPE_I64, BRG_SHAPE(1, 0)),
        brg_zeros(dtype, BRG_SHAPE(0, WIDTH)), BRG_SHAPE(N_ROWS, WIDTH)));
}

/* A table after six steps, into `to`. Gradients, some of them clipped, have
 * duplicates or padding; the fourth, behind a write of somebody else, has no
 * entries. */
static inline void stepped_table(optim_rule r, brg_dtype dtype,
                                 brg_device device, double to[N_ROWS * WIDTH])
{
    brg_params *params;
    assert_brg_ok(brg_device_set(device));
    brg_tensor *w = random_of(4, dtype, BRG_SHAPE(N_ROWS, WIDTH));
    assert_brg_ok(brg_params_create(&params));
    assert_brg_ok(brg_params_add(params, "w", w, BRG_PARAM_TRAINED));
    brg_optim *optim = make_optim(params, r);
    for (uint64_t step = 0; step < 6; step++) {
        brg_tensor *grad = rows_of(20 + step, dtype);
        if (step == 5)
            grad = looked_up(dtype, BRG_DTYPE_I64, true, 4);
        if (step == 3)
            grad = no_rows(dtype);
        if (step == 3)
            assert_brg_ok(brg_fill_(brg_select(brg_detach(w), 0, 2), 0.25));
        assert_brg_ok(brg_tensor_set_grad(w, grad));
        if (step >= 4)
            assert_brg_ok(brg_clip_grad_norm(NULL, params, 2.0, false));
        assert_brg_ok(brg_optim_step(optim));
    }
    brg_tensor *wide = assert_brg_some(brg_cast(w, BRG_DTYPE_F64));
    assert_brg_ok(brg_tensor_read(wide, to, N_ROWS * WIDTH * sizeof *to));
    assert_brg_ok(brg_device_set(HOME));
    brg_optim_destroy(optim);
    brg_params_destroy(params);
}

static void test_sparse_there__optimizers_step_as_on_the_cpu(void **state)
{
    (void)state;
    static const double tolerance[] = {1e-13, 2e-6, 2e-3, 1.6e-2};
    for (optim_rule r = SGD; r <= ADAMW; r++)
        for (int dtype = BRG_DTYPE_F64; dtype <= BRG_DTYPE_BF16; dtype++) {
            static double want[N_ROWS * WIDTH], got[N_ROWS * WIDTH];
            brg_scope *scope = brg_scope_begin();
            stepped_table(r, (brg_dtype)dtype, HOME, want);
            stepped_table(r, (brg_dtype)dtype, THERE, got);
            for (int i = 0; i < N_ROWS * WIDTH; i++)
                if (!(fabs(got[i] - want[i]) <=
                      tolerance[dtype] * (1 + fabs(want[i]))))
                    fail_msg("rule %d, %s: element %d is %.9g, expected %.9g",
                             (int)r, brg_dtype_name((brg_dtype)dtype), i,
                             got[i], want[i]);
            brg_scope_end(scope);
        }
}

/* ---- Training ---------------------------------------------------------------------- */

/* Losses of the steps of a table with padding, whose rows are classified. */
static inline void train_table(brg_device device, double losses[N_STEPS])
{
    brg_params *params;
    brg_embedding_options options = BRG_EMBEDDING_OPTIONS_INIT;
    assert_brg_ok(brg_device_set(device));
    brg_tensor *table = random_of(1, BRG_DTYPE_F32, BRG_SHAPE(N_ROWS, WIDTH));
    brg_tensor *w = random_of(2, BRG_DTYPE_F32, BRG_SHAPE(WIDTH, 9));
    options.sparse_grad = true;
    options.padding_idx = 0;
    assert_brg_ok(brg_set_requires_grad(table, true));
    assert_brg_ok(brg_params_create(&params));
    assert_brg_ok(brg_params_add(params, "table", table, BRG_PARAM_TRAINED));
    brg_optim *optim = make_optim(params, ADAMW);
    for (uint64_t step = 0; step < N_STEPS; step++) {
        brg_scope *scope = brg_scope_begin();
        brg_tensor *ids = ids_of(step % 3, BRG_SHAPE(16), N_ROWS);
        brg_tensor *targets = ids_of(50 + step % 3, BRG_SHAPE(16), 9);
        brg_tensor *rows = brg_embedding_with(table, ids, &options);
        brg_tensor *loss = brg_cross_entropy(brg_matmul(rows, w), targets);
        assert_brg_ok(brg_optim_zero_grad(optim, false));
        assert_brg_ok(brg_backward(assert_brg_some(loss)));
        assert_true(brg_tensor_is_sparse(brg_tensor_grad(table)));
        assert_brg_ok(brg_optim_step(optim));
        assert_brg_ok(brg_tensor_item(loss, &losses[step]));
        brg_scope_end(scope);
    }
    assert_brg_ok(brg_device_set(HOME));
    brg_optim_destroy(optim);
    brg_params_destroy(params);
}

static void test_sparse_there__training_equals_the_cpu(void **state)
{
    (void)state;
    double want[N_STEPS], got[N_STEPS];
    train_table(HOME, want);
    train_table(THERE, got);
    for (int i = 0; i < N_STEPS; i++)
        assert_float_equal(got[i], want[i], 1e-3);
    assert_true(want[N_STEPS - 1] < 0.7 * want[0]);
}

/* ---- Errors ------------------------------------------------------------------------- */

static void test_sparse_there__mixed_devices_are_named(void **state)
{
    (void)state;
    brg_tensor *here = brg_zeros(BRG_DTYPE_F32, BRG_SHAPE(N_ROWS, WIDTH));
    assert_brg_ok(brg_device_set(THERE));
    assert_brg_fails_with(brg_add_(here, rows_of(1, BRG_DTYPE_F32), 1.0),
                          BRG_ERR_DEVICE, "different devices");
    assert_brg_null_with(brg_sparse_add(here, rows_of(1, BRG_DTYPE_F32)),
                         BRG_ERR_DEVICE, "cuda:0");
}

#endif
