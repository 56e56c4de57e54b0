/* SPDX-License-Identifier: Apache-2.0
 * Windows of tokens from a mapped file. */
#include <brigade/io.h>

#include "tests/support/brg_test.h"
#include "tests/support/fail_alloc.h"
#include "tests/support/temp_dir.h"

static void test_text__bytes(void **state)
{
    (void)state;
    brg_scope *scope = brg_scope_begin();
    brg_text *text;
    assert_brg_ok(brg_text_open(&text, temp_file("a", "abcdefghij", 10), 1));
    assert_int_equal(brg_text_length(text), 10);
    brg_tensor *x = brg_empty(BRG_DTYPE_I64, BRG_SHAPE(2, 4));
    brg_tensor *y = brg_empty(BRG_DTYPE_I64, BRG_SHAPE(2, 4));
    const int64_t positions[] = {5, 0};
    uint32_t version = brg_tensor_version(x);
    assert_brg_ok(brg_text_read(text, x, y, positions));
    assert_true(brg_tensor_version(x) != version);
    for (int i = 0; i < 4; i++) {
        assert_int_equal(((int64_t *)brg_tensor_data(x))[i], 'f' + i);
        assert_int_equal(((int64_t *)brg_tensor_data(x))[4 + i], 'a' + i);
        assert_int_equal(((int64_t *)brg_tensor_data(y))[i], 'g' + i);
        assert_int_equal(((int64_t *)brg_tensor_data(y))[4 + i], 'b' + i);
    }
    brg_tensor *bytes = brg_empty(BRG_DTYPE_U8, BRG_SHAPE(1, 10));
    assert_brg_ok(brg_text_read(text, bytes, NULL, (int64_t[]){0}));
    assert_memory_equal(brg_tensor_data(bytes), "abcdefghij", 10);
    brg_tensor *wide = brg_empty(BRG_DTYPE_I32, BRG_SHAPE(1, 9));
    assert_brg_ok(brg_text_read(text, NULL, wide, (int64_t[]){0}));
    assert_int_equal(((int32_t *)brg_tensor_data(wide))[8], 'j');
    assert_brg_ok(brg_text_read(text, NULL, NULL, positions));
    brg_text_close(text);
    brg_scope_end(scope);
}

static void test_text__two_byte_tokens(void **state)
{
    (void)state;
    brg_scope *scope = brg_scope_begin();
    const unsigned char bytes[] = {1, 0, 0, 1, 0xFF, 0xFF, 2, 3};
    brg_text *text;
    assert_brg_ok(brg_text_open(&text, temp_file("b", bytes, 8), 2));
    assert_int_equal(brg_text_length(text), 4);
    brg_tensor *x = brg_empty(BRG_DTYPE_I64, BRG_SHAPE(1, 3));
    brg_tensor *y = brg_empty(BRG_DTYPE_I64, BRG_SHAPE(1, 3));
    assert_brg_ok(brg_text_read(text, x, y, (int64_t[]){0}));
    const int64_t expected[] = {1, 256, 65535, 770};
    assert_memory_equal(brg_tensor_data(x), expected, 24);
    assert_memory_equal(brg_tensor_data(y), expected + 1, 24);
    brg_tensor *u8 = brg_empty(BRG_DTYPE_U8, BRG_SHAPE(1, 3));
    assert_brg_fails(brg_text_read(text, u8, NULL, (int64_t[]){0}),
                     BRG_ERR_DTYPE);
    brg_text_close(text);
    brg_scope_end(scope);
}

static void test_text__open_errors(void **state)
{
    (void)state;
    brg_text *text = (brg_text *)state;
    assert_brg_fails_with(brg_text_open(&text, temp_path("none"), 1),
                          BRG_ERR_IO, "No such file");
    assert_null(text);
    assert_brg_fails(brg_text_open(&text, temp_path("none"), 3), BRG_ERR_ARG);
    assert_brg_fails_with(brg_text_open(&text, temp_file("c", "abc", 3), 2),
                          BRG_ERR_FORMAT, "has 3 bytes");
    assert_brg_fails(brg_text_open(&text, "/", 1), BRG_ERR_IO);
    assert_brg_ok(brg_text_open(&text, temp_file("c", "", 0), 2));
    assert_int_equal(brg_text_length(text), 0);
    brg_text_close(text);
    brg_text_close(NULL);
}

static void test_text__window_errors(void **state)
{
    (void)state;
    brg_scope *scope = brg_scope_begin();
    brg_text *text;
    assert_brg_ok(brg_text_open(&text, temp_file("d", "abcdef", 6), 1));
    brg_tensor *x = brg_empty(BRG_DTYPE_I64, BRG_SHAPE(2, 4));
    brg_tensor *y = brg_empty(BRG_DTYPE_I64, BRG_SHAPE(2, 3));
    brg_tensor *flat = brg_empty(BRG_DTYPE_I64, BRG_SHAPE(8));
    brg_tensor *real = brg_empty(BRG_DTYPE_F32, BRG_SHAPE(2, 4));
    int64_t positions[] = {0, 2};
    assert_brg_ok(brg_text_read(text, x, NULL, positions));
    assert_brg_fails_with(brg_text_read(text, NULL, x, positions), BRG_ERR_ARG,
                          "row 1");
    positions[1] = -1;
    assert_brg_fails(brg_text_read(text, x, NULL, positions), BRG_ERR_ARG);
    positions[1] = INT64_MAX;
    assert_brg_fails(brg_text_read(text, x, NULL, positions), BRG_ERR_ARG);
    assert_brg_fails(brg_text_read(text, x, y, positions), BRG_ERR_SHAPE);
    assert_brg_fails(brg_text_read(text, flat, y, positions), BRG_ERR_SHAPE);
    assert_brg_fails(brg_text_read(text, x, real, positions), BRG_ERR_DTYPE);
    assert_brg_fails(brg_text_read(text, x, NULL, NULL), BRG_ERR_ARG);
    brg_text_close(text);
    brg_scope_end(scope);
}

static brg_status open_and_close(void *path)
{
    brg_text *text;
    BRG_TRY(brg_text_open(&text, path, 1));
    brg_text_close(text);
    return BRG_OK;
}

static void test_text__out_of_memory(void **state)
{
    (void)state;
    char path[4096];
    snprintf(path, sizeof path, "%s", temp_file("e", "abc", 3));
    assert_int_equal(assert_oom_clean(open_and_close, path), 1);
}

int main(void)
{
    fail_alloc_install();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_text__bytes),
        cmocka_unit_test(test_text__two_byte_tokens),
        cmocka_unit_test(test_text__open_errors),
        cmocka_unit_test(test_text__window_errors),
        cmocka_unit_test(test_text__out_of_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
