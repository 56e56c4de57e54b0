/* SPDX-License-Identifier: Apache-2.0
 * IDX files: every type, plain and compressed; every way to be wrong. */
#include <brigade/io.h>

#include "tests/support/brg_test.h"
#include "tests/support/fail_alloc.h"
#include "tests/support/temp_dir.h"

/* 2 x 3 of u8 */
static const unsigned char bytes_2x3[] = {0, 0, 8, 2, 0, 0, 0, 2, 0,
                                          0, 0, 3, 1, 2, 3, 4, 5, 250};
#define N_2X3 sizeof bytes_2x3

static void check_2x3(const char *path)
{
    brg_tensor *t;
    assert_brg_ok(brg_idx_load(&t, path));
    assert_int_equal(brg_tensor_dtype(t), BRG_DTYPE_U8);
    assert_int_equal(brg_tensor_ndim(t), 2);
    assert_int_equal(brg_tensor_size(t, 0), 2);
    assert_int_equal(brg_tensor_size(t, 1), 3);
    assert_memory_equal(brg_tensor_data(t), bytes_2x3 + 12, 6);
    brg_release(t);
}

static void test_idx__plain_and_compressed(void **state)
{
    (void)state;
    check_2x3(temp_file("a.idx", bytes_2x3, N_2X3));
    check_2x3(temp_file_gz("a.idx.gz", bytes_2x3, N_2X3));
}

static void test_idx__other_types(void **state)
{
    (void)state;
    const unsigned char i8[] = {0, 0, 9, 1, 0, 0, 0, 2, 0xFF, 5};
    const unsigned char i16[] = {0, 0, 11, 1, 0, 0, 0, 2, 0xFF, 0xFE, 1, 2};
    const unsigned char i32[] = {0, 0, 12, 1, 0, 0, 0, 1, 0xFF, 0xFF, 0xFF, 9};
    const unsigned char f32[] = {0, 0, 13, 1, 0, 0, 0, 1, 0x3F, 0xC0, 0, 0};
    const unsigned char f64[] = {0,    0,    14, 1, 0, 0, 0, 1,
                                 0xC0, 0x04, 0,  0, 0, 0, 0, 0};
    brg_tensor *t;
    assert_brg_ok(brg_idx_load(&t, temp_file("b", i8, sizeof i8)));
    assert_int_equal(brg_tensor_dtype(t), BRG_DTYPE_I32);
    assert_int_equal(((int32_t *)brg_tensor_data(t))[0], -1);
    assert_int_equal(((int32_t *)brg_tensor_data(t))[1], 5);
    brg_release(t);
    assert_brg_ok(brg_idx_load(&t, temp_file("b", i16, sizeof i16)));
    assert_int_equal(((int32_t *)brg_tensor_data(t))[0], -2);
    assert_int_equal(((int32_t *)brg_tensor_data(t))[1], 258);
    brg_release(t);
    assert_brg_ok(brg_idx_load(&t, temp_file("b", i32, sizeof i32)));
    assert_int_equal(((int32_t *)brg_tensor_data(t))[0], -247);
    brg_release(t);
    assert_brg_ok(brg_idx_load(&t, temp_file("b", f32, sizeof f32)));
    assert_true(((float *)brg_tensor_data(t))[0] == 1.5f);
    brg_release(t);
    assert_brg_ok(brg_idx_load(&t, temp_file("b", f64, sizeof f64)));
    assert_true(((double *)brg_tensor_data(t))[0] == -2.5);
    brg_release(t);
}

static void test_idx__no_dims_and_empty(void **state)
{
    (void)state;
    const unsigned char scalar[] = {0, 0, 8, 0, 7};
    const unsigned char empty[] = {0, 0, 8, 1, 0, 0, 0, 0};
    brg_tensor *t;
    assert_brg_ok(brg_idx_load(&t, temp_file("c", scalar, sizeof scalar)));
    assert_int_equal(brg_tensor_ndim(t), 0);
    assert_int_equal(((uint8_t *)brg_tensor_data(t))[0], 7);
    brg_release(t);
    assert_brg_ok(brg_idx_load(&t, temp_file("c", empty, sizeof empty)));
    assert_int_equal(brg_tensor_numel(t), 0);
    brg_release(t);
}

static void test_idx__missing_file(void **state)
{
    (void)state;
    brg_tensor *t = (brg_tensor *)state;
    assert_brg_fails_with(brg_idx_load(&t, temp_path("none")), BRG_ERR_IO,
                          "No such file");
    assert_null(t);
    assert_brg_fails(brg_idx_load(&t, ""), BRG_ERR_ARG);
    assert_brg_fails(brg_idx_load(&t, NULL), BRG_ERR_ARG);
    assert_brg_fails(brg_idx_load(NULL, "x"), BRG_ERR_ARG);
    assert_brg_fails_with(brg_idx_load(&t, "/"), BRG_ERR_IO, "regular");
}

static void test_idx__not_idx(void **state)
{
    (void)state;
    brg_tensor *t;
    assert_brg_fails_with(brg_idx_load(&t, temp_file("d", "hello world", 11)),
                          BRG_ERR_FORMAT, "not an IDX file");
    unsigned char bad[N_2X3];
    memcpy(bad, bytes_2x3, N_2X3);
    bad[2] = 0x0A;
    assert_brg_fails_with(brg_idx_load(&t, temp_file("d", bad, N_2X3)),
                          BRG_ERR_FORMAT, "00 00 0a");
    bad[2] = 8;
    bad[3] = 9;
    assert_brg_fails_with(brg_idx_load(&t, temp_file("d", bad, N_2X3)),
                          BRG_ERR_FORMAT, "9 dims");
}

static void test_idx__truncated_at_every_byte(void **state)
{
    (void)state;
    brg_tensor *t;
    for (size_t n = 0; n < N_2X3; n++)
        assert_brg_fails_with(brg_idx_load(&t, temp_file("e", bytes_2x3, n)),
                              BRG_ERR_FORMAT, "truncated");
    assert_brg_fails_with(
        brg_idx_load(&t, temp_file_gz("e", bytes_2x3, N_2X3 - 2)),
        BRG_ERR_FORMAT, "expected 6 bytes of data, found 4");
}

static void test_idx__longer_than_its_header_says(void **state)
{
    (void)state;
    unsigned char longer[N_2X3 + 1] = {0};
    memcpy(longer, bytes_2x3, N_2X3);
    brg_tensor *t;
    assert_brg_fails_with(brg_idx_load(&t, temp_file("f", longer, N_2X3 + 1)),
                          BRG_ERR_FORMAT, "goes on after the expected 6");
}

static void test_idx__huge_header_asks_for_no_memory(void **state)
{
    (void)state;
    unsigned char huge[] = {0,    0,    8,    2,    0xFF, 0xFF,
                            0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF};
    brg_tensor *t;
    assert_brg_fails_with(brg_idx_load(&t, temp_file("g", huge, sizeof huge)),
                          BRG_ERR_FORMAT, "cannot hold");
    assert_brg_fails_with(
        brg_idx_load(&t, temp_file_gz("g", huge, sizeof huge)), BRG_ERR_FORMAT,
        "cannot hold");
}

static void test_idx__compressed_and_damaged(void **state)
{
    (void)state;
    size_t nbytes;
    unsigned char *good =
        temp_read(temp_file_gz("h.gz", bytes_2x3, N_2X3), &nbytes);
    brg_tensor *t;
    for (size_t n = 11; n < nbytes; n++) /* cut off */
        assert_brg_fails(brg_idx_load(&t, temp_file("h", good, n)),
                         BRG_ERR_FORMAT);
    for (size_t i = 10; i < nbytes; i++) { /* one byte wrong */
        good[i] ^= 0x55;
        assert_brg_fails(brg_idx_load(&t, temp_file("h", good, nbytes)),
                         BRG_ERR_FORMAT);
        good[i] ^= 0x55;
    }
    free(good);
}

static void test_idx__damaged_headers_never_crash(void **state)
{
    (void)state;
    uint64_t seed = brg_test_seed(11);
    unsigned char bytes[N_2X3];
    for (int i = 0; i < 3000; i++) {
        memcpy(bytes, bytes_2x3, N_2X3);
        for (int k = 0; k < 3; k++)
            bytes[brg_test_random(&seed) % 12] =
                (unsigned char)(brg_test_random(&seed) % 16);
        brg_tensor *t;
        if (brg_idx_load(&t, temp_file("i", bytes, N_2X3)) == BRG_OK)
            brg_release(t);
        else
            assert_null(t);
    }
}

static brg_status load_and_release(void *path)
{
    brg_tensor *t;
    BRG_TRY(brg_idx_load(&t, path));
    brg_release(t);
    return BRG_OK;
}

static void test_idx__out_of_memory(void **state)
{
    (void)state;
    char path[4096];
    snprintf(path, sizeof path, "%s",
             temp_file("j", bytes_2x3, sizeof bytes_2x3));
    assert_true(assert_oom_clean(load_and_release, path) > 0);
}

/* ---- Rows ---------------------------------------------------------------------- */

static void test_rows__scaled_into_floats(void **state)
{
    (void)state;
    brg_scope *scope = brg_scope_begin();
    uint8_t bytes[3 * 300];
    for (int i = 0; i < 900; i++)
        bytes[i] = (uint8_t)(i * 7);
    brg_tensor *table = brg_from_data(BRG_DTYPE_U8, BRG_SHAPE(3, 300), bytes);
    brg_tensor *batch = brg_empty(BRG_DTYPE_F32, BRG_SHAPE(2, 3, 100));
    int64_t rows[] = {2, 0};
    assert_brg_ok(brg_rows_read(batch, table, rows, 2, 1.0 / 255, -0.5));
    const float *at = brg_tensor_data(batch);
    for (int i = 0; i < 300; i++) {
        assert_true(at[i] == (float)(bytes[600 + i] * (1.0 / 255) - 0.5));
        assert_true(at[300 + i] == (float)(bytes[i] * (1.0 / 255) - 0.5));
    }
    brg_tensor *wide = brg_empty(BRG_DTYPE_F64, BRG_SHAPE(2, 300));
    assert_brg_ok(brg_rows_read(wide, table, rows, 2, 0.5, 1));
    for (int i = 0; i < 300; i++)
        assert_true(((double *)brg_tensor_data(wide))[i] ==
                    bytes[600 + i] * 0.5 + 1);
    brg_tensor *labels = brg_empty(BRG_DTYPE_I64, BRG_SHAPE(2));
    int32_t numbers[] = {5, -6, 7};
    brg_tensor *answers = brg_from_data(BRG_DTYPE_I32, BRG_SHAPE(3), numbers);
    rows[1] = 1;
    assert_brg_ok(brg_rows_read(labels, answers, rows, 2, 1, 0));
    assert_int_equal(((int64_t *)brg_tensor_data(labels))[0], 7);
    assert_int_equal(((int64_t *)brg_tensor_data(labels))[1], -6);
    brg_scope_end(scope);
}

static void test_rows__errors(void **state)
{
    (void)state;
    brg_scope *scope = brg_scope_begin();
    brg_tensor *table = brg_zeros(BRG_DTYPE_U8, BRG_SHAPE(3, 4));
    brg_tensor *batch = brg_empty(BRG_DTYPE_F32, BRG_SHAPE(2, 4));
    brg_tensor *half = brg_empty(BRG_DTYPE_F16, BRG_SHAPE(2, 4));
    int64_t rows[] = {0, 3};
    assert_brg_fails_with(brg_rows_read(batch, table, rows, 2, 1, 0),
                          BRG_ERR_ARG, "rows[1] is 3");
    assert_brg_fails(brg_rows_read(batch, table, rows, 1, 1, 0), BRG_ERR_SHAPE);
    assert_brg_fails(brg_rows_read(half, table, rows, 2, 1, 0), BRG_ERR_DTYPE);
    assert_brg_fails(brg_rows_read(batch, table, NULL, 2, 1, 0), BRG_ERR_ARG);
    assert_brg_fails(brg_rows_read(NULL, table, rows, 2, 1, 0), BRG_ERR_ARG);
    brg_scope_end(scope);
}

int main(void)
{
    fail_alloc_install();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_idx__plain_and_compressed),
        cmocka_unit_test(test_idx__other_types),
        cmocka_unit_test(test_idx__no_dims_and_empty),
        cmocka_unit_test(test_idx__missing_file),
        cmocka_unit_test(test_idx__not_idx),
        cmocka_unit_test(test_idx__truncated_at_every_byte),
        cmocka_unit_test(test_idx__longer_than_its_header_says),
        cmocka_unit_test(test_idx__huge_header_asks_for_no_memory),
        cmocka_unit_test(test_idx__compressed_and_damaged),
        cmocka_unit_test(test_idx__damaged_headers_never_crash),
        cmocka_unit_test(test_idx__out_of_memory),
        cmocka_unit_test(test_rows__scaled_into_floats),
        cmocka_unit_test(test_rows__errors),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
