/* SPDX-License-Identifier: Apache-2.0
 * Indexing beyond op_cases_shape.def: ids out of range, repeated ids, 16-bit
 * sums, index dtypes. */
#include "tests/support/values.h"

static brg_tensor *table(void)
{
    return assert_brg_some(
        brg_reshape(brg_arange(BRG_DTYPE_F32, 0, 8, 1), BRG_SHAPE(4, 2)));
}

static void test_index__names_an_id_out_of_range(void **state)
{
    (void)state;
    brg_tensor *w = table();
    brg_tensor *high = TENSOR_OF(BRG_DTYPE_I64, int64_t, BRG_SHAPE(3), 0, 3, 4);
    brg_tensor *low = TENSOR_OF(BRG_DTYPE_I32, int32_t, BRG_SHAPE(2), -1, 0);
    assert_brg_null_with(
        brg_embedding(w, high), BRG_ERR_ARG,
        "embedding: id 4 at position 2 is out of range [0, 4)");
    assert_brg_null_with(brg_embedding(w, low), BRG_ERR_ARG,
                         "id -1 at position 0");
    assert_brg_null_with(brg_index_select(w, 0, high), BRG_ERR_ARG, "id 4");
    assert_brg_null_with(brg_index_select(w, 1, high), BRG_ERR_ARG, "id 3");
    assert_brg_null_with(brg_one_hot(high, 4, BRG_DTYPE_F32), BRG_ERR_ARG,
                         "id 4");
    brg_tensor *grid = TENSOR_OF(BRG_DTYPE_I64, int64_t, BRG_SHAPE(1, 2), 0, 9);
    assert_brg_null_with(brg_gather(w, 0, grid), BRG_ERR_ARG, "id 9");
    brg_tensor *none = brg_empty(BRG_DTYPE_F32, BRG_SHAPE(0, 2));
    assert_brg_null(brg_embedding(none, low), BRG_ERR_ARG);
}

static void test_index__wants_whole_numbers(void **state)
{
    (void)state;
    brg_tensor *w = table();
    assert_brg_null_with(brg_embedding(w, w), BRG_ERR_DTYPE, "i64 or i32");
    assert_brg_null(brg_gather(w, 0, w), BRG_ERR_DTYPE);
    assert_brg_null(brg_one_hot(w, 3, BRG_DTYPE_F32), BRG_ERR_DTYPE);
    brg_tensor *ids = TENSOR_OF(BRG_DTYPE_I32, int32_t, BRG_SHAPE(2), 3, 0);
    assert_values(brg_embedding(w, ids), 0, 6, 7, 0, 1);
    assert_values(brg_index_select(w, 0, brg_select(ids, 0, 0)), 0, 6, 7);
}

static void test_embedding__adds_up_repeated_ids(void **state)
{
    (void)state;
    brg_tensor *ids = brg_zeros(BRG_DTYPE_I64, BRG_SHAPE(1000));
    for (int d = 0; d <= BRG_DTYPE_BF16; d++) {
        brg_tensor *w = brg_ones((brg_dtype)d, BRG_SHAPE(3, 2));
        assert_brg_ok(brg_set_requires_grad(w, true));
        assert_brg_ok(brg_backward(brg_sum_all(brg_embedding(w, ids))));
        assert_values(brg_tensor_grad(w), 0, 1000, 1000, 0, 0, 0, 0);
    }
}

static void test_embedding__gradient_has_the_same_bits_each_time(void **state)
{
    (void)state;
    uint64_t seed = brg_test_seed(31);
    brg_tensor *g = brg_empty(BRG_DTYPE_F32, BRG_SHAPE(500, 19));
    brg_tensor *ids = brg_empty(BRG_DTYPE_I64, BRG_SHAPE(500));
    for (int64_t i = 0; i < 500 * 19; i++)
        ((float *)brg_tensor_data(g))[i] =
            (float)brg_test_uniform(&seed, -1, 1);
    for (int64_t i = 0; i < 500; i++)
        ((int64_t *)brg_tensor_data(ids))[i] =
            (int64_t)(brg_test_random(&seed) % 7);
    float sums[7 * 19] = {0};
    for (int64_t i = 0; i < 500 * 19; i++)
        sums[((int64_t *)brg_tensor_data(ids))[i / 19] * 19 + i % 19] +=
            ((float *)brg_tensor_data(g))[i];
    brg_tensor *zero = brg_zeros(BRG_DTYPE_F32, BRG_SHAPE(7, 19));
    brg_tensor *y = brg_index_add(zero, 0, ids, g);
    assert_non_null(y);
    assert_memory_equal(brg_tensor_data(y), sums, sizeof sums);
}

static void test_index_add__checks_its_shapes(void **state)
{
    (void)state;
    brg_tensor *w = table();
    brg_tensor *ids = TENSOR_OF(BRG_DTYPE_I64, int64_t, BRG_SHAPE(2), 1, 1);
    brg_tensor *src = brg_ones(BRG_DTYPE_F32, BRG_SHAPE(2, 2));
    assert_values(brg_index_add(w, 0, ids, src), 0, 0, 1, 4, 5, 4, 5, 6, 7);
    assert_brg_null(brg_index_add(w, 1, ids, src), BRG_ERR_SHAPE);
    assert_brg_null(brg_index_add(w, 0, ids, w), BRG_ERR_SHAPE);
    assert_brg_null(brg_index_add(w, 2, ids, src), BRG_ERR_SHAPE);
    assert_brg_null(brg_scatter_add(w, 0, ids, src), BRG_ERR_SHAPE);
}

static void test_scatter_add__has_both_gradients(void **state)
{
    (void)state;
    brg_tensor *x = table();
    x = brg_copy(x);
    brg_tensor *src = brg_ones(BRG_DTYPE_F32, BRG_SHAPE(2, 2));
    assert_brg_ok(brg_set_requires_grad(x, true));
    assert_brg_ok(brg_set_requires_grad(src, true));
    brg_tensor *ids =
        TENSOR_OF(BRG_DTYPE_I64, int64_t, BRG_SHAPE(2, 2), 1, 0, 1, 3);
    brg_tensor *y = brg_scatter_add(x, 0, ids, src);
    assert_values(y, 0, 0, 2, 4, 3, 4, 5, 6, 8);
    assert_brg_ok(brg_backward(brg_sum_all(brg_mul(y, table()))));
    assert_values(brg_tensor_grad(x), 0, 0, 1, 2, 3, 4, 5, 6, 7);
    assert_values(brg_tensor_grad(src), 0, 2, 1, 2, 7);
}

static void test_one_hot__in_any_dtype(void **state)
{
    (void)state;
    brg_tensor *ids = TENSOR_OF(BRG_DTYPE_I64, int64_t, BRG_SHAPE(2), 2, 0);
    for (int d = 0; d < BRG_N_DTYPES; d++)
        assert_values(brg_one_hot(ids, 3, (brg_dtype)d), 0, 0, 0, 1, 1, 0, 0);
    assert_brg_null(brg_one_hot(ids, -1, BRG_DTYPE_F32), BRG_ERR_ARG);
    assert_brg_null(brg_one_hot(ids, 3, (brg_dtype)99), BRG_ERR_ARG);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        IN_SCOPE(test_index__names_an_id_out_of_range),
        IN_SCOPE(test_index__wants_whole_numbers),
        IN_SCOPE(test_embedding__adds_up_repeated_ids),
        IN_SCOPE(test_embedding__gradient_has_the_same_bits_each_time),
        IN_SCOPE(test_index_add__checks_its_shapes),
        IN_SCOPE(test_scatter_add__has_both_gradients),
        IN_SCOPE(test_one_hot__in_any_dtype),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
