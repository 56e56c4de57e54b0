/* SPDX-License-Identifier: Apache-2.0
 * Tensors as such: over the caller's memory, with sizes that cannot be, views
 * that leave their storage, values as text. */
#include <brigade/autograd.h>
#include <brigade/ops.h>

#include "tests/support/brg_test.h"
#include "tests/support/fail_alloc.h"

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

/* ---- Over memory of the caller's -------------------------------------------- */

static void count(void *user)
{
    ++*(int *)user;
}

static void test_tensor__over_memory_of_the_callers(void **state)
{
    (void)state;
    float data[] = {1, 2, 3, 4, 5, 6};
    int n_freed = 0;
    brg_scope *scope = brg_scope_begin();
    brg_tensor *t = assert_brg_some(
        brg_wrap(BRG_DTYPE_F32, BRG_SHAPE(2, 3), data, count, &n_freed));
    assert_ptr_equal(brg_tensor_data(t), data);
    brg_tensor *view = assert_brg_some(brg_slice(t, 0, 1, 2, 1));
    assert_brg_ok(brg_mul_scalar_(view, 10));
    assert_true(data[3] == 40 && data[5] == 60 && data[2] == 3);
    (void)brg_retain(view);
    brg_scope_end(scope);
    assert_int_equal(n_freed, 0); /* a view of it is still there */
    brg_release(view);
    assert_int_equal(n_freed, 1);
    /* without a function nobody is told */
    assert_brg_some(brg_wrap(BRG_DTYPE_F32, BRG_SHAPE(6), data, NULL, NULL));
}

static brg_status wrap(void *user)
{
    float data[4] = {0};
    int n_freed = 0;
    brg_scope *scope = brg_scope_begin();
    if (!scope)
        return BRG_ERR_NOMEM;
    brg_tensor *t =
        brg_wrap(BRG_DTYPE_F32, BRG_SHAPE(4), data, count, &n_freed);
    brg_status status = t ? BRG_OK : brg_error_code();
    brg_scope_end(scope);
    *(bool *)user &= n_freed == (t ? 1 : 0);
    return status;
}

/* What failed owns nothing: the caller frees. */
static void test_tensor__memory_stays_the_callers_on_failure(void **state)
{
    (void)state;
    float data[4] = {0};
    int n_freed = 0;
    bool is_right = true;
    assert_brg_null(
        brg_wrap(BRG_DTYPE_F32, BRG_SHAPE(-1), data, count, &n_freed),
        BRG_ERR_SHAPE);
    assert_brg_null_with(
        brg_wrap(BRG_DTYPE_F32, BRG_SHAPE(4), NULL, count, &n_freed),
        BRG_ERR_ARG, "data is NULL");
    assert_int_equal(n_freed, 0);
    (void)assert_oom_clean(wrap, &is_right);
    assert_true(is_right);
}

/* ---- Sizes and strides ----------------------------------------------------------- */

static void test_tensor__sizes_that_cannot_be(void **state)
{
    (void)state;
    const int64_t ones[BRG_MAX_DIMS + 1] = {0};
    const int64_t huge[] = {INT64_MAX, 2}, many[] = {INT64_MAX / 4};
    assert_brg_null_with(brg_empty((brg_dtype)99, BRG_SHAPE(1)), BRG_ERR_DTYPE,
                         "99 is not a dtype");
    assert_brg_null_with(brg_empty(BRG_DTYPE_F32, BRG_MAX_DIMS + 1, ones),
                         BRG_ERR_SHAPE, "dims");
    assert_brg_null(brg_empty(BRG_DTYPE_F32, -1, ones), BRG_ERR_SHAPE);
    assert_brg_null_with(brg_empty(BRG_DTYPE_F32, 1, NULL), BRG_ERR_ARG,
                         "shape is NULL");
    assert_brg_null_with(brg_empty(BRG_DTYPE_F32, BRG_SHAPE(3, -2)),
                         BRG_ERR_SHAPE, "[3, -2]");
    assert_brg_null_with(brg_empty(BRG_DTYPE_U8, 2, huge), BRG_ERR_SHAPE,
                         "too many elements");
    assert_brg_null_with(brg_empty(BRG_DTYPE_F64, 1, many), BRG_ERR_SHAPE,
                         "too many elements");
}

static void test_tensor__views_stay_inside_their_storage(void **state)
{
    (void)state;
    brg_tensor *t = brg_zeros(BRG_DTYPE_F32, BRG_SHAPE(6));
    const struct {
        int64_t shape[2], strides[2], offset;
        bool is_good;
    } cases[] = {
        {{2, 3}, {3, 1}, 0, true},
        {{2, 3}, {3, 1}, 1, false},
        {{2, 3}, {-3, 1}, 3, true},
        {{2, 3}, {-3, 1}, 2, false},
        {{2, 3}, {-3, -1}, 5, true},
        {{6, 100}, {1, 0}, 0, true},
        {{2, 2}, {1, INT64_MAX}, 1, false},
        {{3, 1}, {INT64_MAX, 1}, 0, false},
        {{3, 1}, {INT64_MIN / 2, 1}, 0, false},
        {{1, 1}, {1, 1}, 6, false},
        {{1, 1}, {1, 1}, -1, false},
        {{3, 0}, {1, 1}, 6, true},
        {{3, 0}, {1, 1}, 7, false},
        {{0, 3}, {1, 1}, INT64_MIN, false},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        brg_tensor *view = brg_as_strided(t, 2, cases[i].shape,
                                          cases[i].strides, cases[i].offset);
        assert_int_equal(view != NULL, cases[i].is_good);
        if (!view)
            assert_int_equal(brg_error_code(), BRG_ERR_SHAPE);
    }
    assert_brg_null_with(brg_as_strided(t, 2, cases[0].shape, NULL, 0),
                         BRG_ERR_ARG, "strides is NULL");
    assert_null(brg_as_strided(NULL, 2, cases[0].shape, cases[0].strides, 0));
}

/* ---- As text ------------------------------------------------------------------------ */

static void test_tensor__every_dtype_as_text(void **state)
{
    (void)state;
    static const struct {
        brg_dtype dtype;
        double value;
        const char *text;
    } cases[] = {
        {BRG_DTYPE_F64, 0.1, "f64[] 0.1"},
        {BRG_DTYPE_F32, -2.5, "f32[] -2.5"},
        {BRG_DTYPE_F16, 1.5, "f16[] 1.5"},
        {BRG_DTYPE_BF16, -0.75, "bf16[] -0.75"},
        {BRG_DTYPE_I64, -0x1p53, "i64[] -9007199254740992"},
        {BRG_DTYPE_I32, -7, "i32[] -7"},
        {BRG_DTYPE_U8, 255, "u8[] 255"},
        {BRG_DTYPE_BOOL, 0, "bool[] false"},
    };
    char text[64];
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        brg_tensor *t = assert_brg_some(
            brg_full(cases[i].dtype, BRG_SCALAR, cases[i].value));
        brg_tensor_print(t, 1, text, sizeof text);
        assert_string_equal(text, cases[i].text);
    }
    assert_int_equal(brg_tensor_describe(NULL, text, sizeof text), 4);
    assert_string_equal(text, "NULL");
}

#define TEST(name)                                                             \
    cmocka_unit_test_setup_teardown(test_tensor__##name, open_scope,           \
                                    close_scope)

int main(void)
{
    fail_alloc_install();
    const struct CMUnitTest tests[] = {
        TEST(over_memory_of_the_callers),
        TEST(memory_stays_the_callers_on_failure),
        TEST(sizes_that_cannot_be),
        TEST(views_stay_inside_their_storage),
        TEST(every_dtype_as_text),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
