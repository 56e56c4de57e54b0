/* SPDX-License-Identifier: Apache-2.0
 * Safetensors: written and read back, and every header that is wrong. */
#include <brigade/autograd.h>
#include <brigade/io.h>
#include <brigade/ops.h>

#include <cjson/cJSON.h>
#include <errno.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tests/support/brg_test.h"
#include "tests/support/fail_alloc.h"
#include "tests/support/temp_dir.h"

/* A file of this header and n zero bytes of data. */
static const char *header_file(const char *header, size_t n)
{
    static unsigned char bytes[1 << 16];
    size_t length = strlen(header);
    memset(bytes, 0, sizeof bytes);
    for (int i = 0; i < 8; i++)
        bytes[i] = (unsigned char)((uint64_t)length >> (8 * i));
    memcpy(bytes + 8, header, length);
    return temp_file("header", bytes, 8 + length + n);
}

static void check_bad(const char *header, size_t n, brg_status code,
                      const char *text)
{
    brg_safetensors *file = (brg_safetensors *)&file;
    assert_brg_fails_with(brg_safetensors_open(&file, header_file(header, n)),
                          code, text);
    assert_null(file);
}

/* ---- There and back ------------------------------------------------------------ */

#define N_DTYPES BRG_N_DTYPES

static void test_safetensors__every_dtype_there_and_back(void **state)
{
    (void)state;
    brg_scope *scope = brg_scope_begin();
    uint64_t seed = brg_test_seed(3);
    uint64_t raw[6];
    brg_named_tensor list[N_DTYPES];
    for (int i = 0; i < N_DTYPES; i++) {
        for (int k = 0; k < 6; k++)
            raw[k] = brg_test_random(&seed);
        list[i].name = brg_dtype_name((brg_dtype)i);
        list[i].tensor = brg_from_data((brg_dtype)i, BRG_SHAPE(3, 2), raw);
    }
    const brg_key_value pairs[] = {{"format", "pt"}, {"a \"b\" \\", "\n\x01é"}};
    const char *path = temp_path("all.safetensors");
    assert_brg_ok(brg_safetensors_save(path, list, N_DTYPES, pairs, 2));
    brg_safetensors *file;
    assert_brg_ok(brg_safetensors_open(&file, path));
    assert_int_equal(brg_safetensors_count(file), N_DTYPES);
    assert_string_equal(brg_safetensors_metadata(file, "format"), "pt");
    assert_string_equal(brg_safetensors_metadata(file, "a \"b\" \\"),
                        "\n\x01é");
    assert_null(brg_safetensors_metadata(file, "none"));
    assert_string_equal(brg_safetensors_metadata_at(file, 0)->value, "pt");
    assert_null(brg_safetensors_metadata_at(file, 2));
    for (int i = 0; i < N_DTYPES; i++) {
        brg_tensor *t;
        assert_brg_ok(brg_safetensors_load(&t, file, list[i].name));
        assert_int_equal(brg_tensor_dtype(t), i);
        assert_int_equal(brg_tensor_size(t, 0), 3);
        assert_int_equal(brg_tensor_size(t, 1), 2);
        assert_string_equal(brg_tensor_name(t), list[i].name);
        assert_memory_equal(brg_tensor_data(t), brg_tensor_data(list[i].tensor),
                            brg_tensor_nbytes(t));
        brg_release(t);
    }
    brg_safetensors_close(file);
    brg_scope_end(scope);
}

/* Written and read through a row-major copy. */
static void test_safetensors__tensors_with_other_strides(void **state)
{
    (void)state;
    const float v[] = {1, 2, 3, 4, 5, 6}, turned[] = {1, 4, 2, 5, 3, 6};
    brg_scope *scope = brg_scope_begin();
    brg_tensor *rows = brg_from_data(BRG_DTYPE_F32, BRG_SHAPE(2, 3), v);
    brg_tensor *columns = brg_transpose(rows, 0, 1), *t;
    const brg_named_tensor list[] = {{"t", columns}};
    const char *path = temp_path("turned.safetensors");
    assert_brg_ok(brg_safetensors_save(path, list, 1, NULL, 0));
    brg_safetensors *file;
    assert_brg_ok(brg_safetensors_open(&file, path));
    assert_brg_ok(brg_safetensors_load(&t, file, "t"));
    assert_true(brg_tensor_is_contiguous(t));
    assert_memory_equal(brg_tensor_data(t), turned, sizeof turned);
    assert_brg_ok(brg_zero_(rows));
    assert_brg_ok(brg_set_requires_grad(rows, true)); /* not recorded */
    uint32_t version = brg_tensor_version(rows);
    assert_brg_ok(brg_safetensors_read(file, "t", columns));
    assert_memory_equal(brg_tensor_data(rows), v, sizeof v);
    assert_true(brg_tensor_version(rows) != version);
    assert_true(brg_grad_mode());
    brg_error_clear();
    assert_brg_fails_with(brg_safetensors_read(file, "t", NULL), BRG_ERR_ARG,
                          "filled");
    brg_release(t);
    brg_safetensors_close(file);
    brg_scope_end(scope);
}

static void test_safetensors__listing_is_by_name(void **state)
{
    (void)state;
    brg_scope *scope = brg_scope_begin();
    brg_named_tensor list[] = {
        {"b", brg_zeros(BRG_DTYPE_F32, BRG_SHAPE(2, 0, 3))},
        {"c", brg_zeros(BRG_DTYPE_U8, BRG_SCALAR)},
        {"a", brg_zeros(BRG_DTYPE_I64, BRG_SHAPE(5))},
    };
    const char *path = temp_path("listing");
    assert_brg_ok(brg_safetensors_save(path, list, 3, NULL, 0));
    brg_safetensors *file;
    assert_brg_ok(brg_safetensors_open(&file, path));
    const char *names[] = {"a", "b", "c"};
    for (size_t i = 0; i < 3; i++)
        assert_string_equal(brg_safetensors_at(file, i)->name, names[i]);
    assert_null(brg_safetensors_at(file, 3));
    const brg_safetensors_info *info = brg_safetensors_find(file, "b");
    assert_int_equal(info->dtype, BRG_DTYPE_F32);
    assert_int_equal(info->ndim, 3);
    assert_int_equal(info->shape[2], 3);
    assert_int_equal(info->nbytes, 0);
    assert_int_equal(brg_safetensors_find(file, "c")->ndim, 0);
    assert_null(brg_safetensors_find(file, "d"));
    brg_safetensors_close(file);
    brg_scope_end(scope);
}

static void test_safetensors__tensors_are_aligned_in_the_file(void **state)
{
    (void)state;
    brg_scope *scope = brg_scope_begin();
    brg_named_tensor list[] = {
        {"u8", brg_ones(BRG_DTYPE_U8, BRG_SHAPE(3))},
        {"f64", brg_ones(BRG_DTYPE_F64, BRG_SHAPE(1))},
        {"f32", brg_ones(BRG_DTYPE_F32, BRG_SHAPE(3))},
    };
    const char *path = temp_path("aligned");
    assert_brg_ok(brg_safetensors_save(path, list, 3, NULL, 0));
    size_t nbytes;
    unsigned char *bytes = temp_read(path, &nbytes);
    assert_int_equal(bytes[0] % 8, 0);
    bytes[8 + bytes[0]] = 0;
    assert_non_null(strstr((char *)bytes + 8, "\"f64\":{\"dtype\":\"F64\","
                                              "\"shape\":[1],"
                                              "\"data_offsets\":[0,8]}"));
    assert_non_null(strstr((char *)bytes + 8, "\"data_offsets\":[8,20]"));
    assert_non_null(strstr((char *)bytes + 8, "\"data_offsets\":[20,23]"));
    free(bytes);
    brg_scope_end(scope);
}

static void test_safetensors__empty_file_of_tensors(void **state)
{
    (void)state;
    const char *path = temp_path("empty");
    assert_brg_ok(brg_safetensors_save(path, NULL, 0, NULL, 0));
    brg_safetensors *file;
    assert_brg_ok(brg_safetensors_open(&file, path));
    assert_int_equal(brg_safetensors_count(file), 0);
    assert_null(brg_safetensors_find(file, "a"));
    brg_safetensors_close(file);
    brg_safetensors_close(NULL);
}

/* ---- Reading into tensors -------------------------------------------------------- */

static void test_safetensors__read_checks_shape_and_dtype(void **state)
{
    (void)state;
    brg_scope *scope = brg_scope_begin();
    float values[] = {1, 2, 3, 4, 5, 6};
    brg_named_tensor entry = {
        "w", brg_from_data(BRG_DTYPE_F32, BRG_SHAPE(2, 3), values)};
    const char *path = temp_path("read");
    assert_brg_ok(brg_safetensors_save(path, &entry, 1, NULL, 0));
    brg_safetensors *file;
    assert_brg_ok(brg_safetensors_open(&file, path));
    brg_tensor *same = brg_zeros(BRG_DTYPE_F32, BRG_SHAPE(2, 3));
    brg_tensor *other = brg_zeros(BRG_DTYPE_F32, BRG_SHAPE(3, 2));
    brg_tensor *wide = brg_zeros(BRG_DTYPE_F64, BRG_SHAPE(2, 3));
    uint32_t version = brg_tensor_version(same);
    assert_brg_ok(brg_safetensors_read(file, "w", same));
    assert_memory_equal(brg_tensor_data(same), values, sizeof values);
    assert_true(brg_tensor_version(same) != version);
    assert_brg_fails_with(brg_safetensors_read(file, "w", other), BRG_ERR_SHAPE,
                          "expected f32[3, 2], found f32[2, 3]");
    assert_brg_fails_with(brg_safetensors_read(file, "w", wide), BRG_ERR_DTYPE,
                          "'w'");
    assert_brg_fails_with(brg_safetensors_read(file, "v", same),
                          BRG_ERR_NOT_FOUND, "'v'");
    brg_tensor *t = same;
    assert_brg_fails(brg_safetensors_load(&t, file, "v"), BRG_ERR_NOT_FOUND);
    assert_null(t);
    brg_safetensors_close(file);
    brg_scope_end(scope);
}

/* ---- Files that are wrong ---------------------------------------------------------- */

static void test_safetensors__not_such_a_file(void **state)
{
    (void)state;
    brg_safetensors *file;
    assert_brg_fails_with(brg_safetensors_open(&file, temp_path("none")),
                          BRG_ERR_IO, "No such file");
    assert_brg_fails_with(brg_safetensors_open(&file, temp_file("a", "", 0)),
                          BRG_ERR_FORMAT, "has 0 bytes");
    assert_brg_fails(brg_safetensors_open(&file, temp_file("a", "1234567", 7)),
                     BRG_ERR_FORMAT);
    assert_brg_fails_with(
        brg_safetensors_open(
            &file, temp_file("a", "\xff\xff\xff\xff\xff\xff\xff\xff{}", 10)),
        BRG_ERR_FORMAT, "header has 18446744073709551615 bytes");
    assert_brg_fails(
        brg_safetensors_open(&file, temp_file("a", "\x03\0\0\0\0\0\0\0{}", 10)),
        BRG_ERR_FORMAT);
    check_bad("", 0, BRG_ERR_FORMAT, "not JSON");
    check_bad("{\"a\":", 0, BRG_ERR_FORMAT, "not JSON");
    check_bad("[1]", 0, BRG_ERR_FORMAT, "not a JSON object");
    check_bad("{} x", 0, BRG_ERR_FORMAT, "follows");
}

#define ENTRY(name, dtype, shape, offsets)                                     \
    "\"" name "\":{\"dtype\":\"" dtype "\",\"shape\":[" shape                  \
    "],\"data_offsets\":[" offsets "]}"

static void test_safetensors__wrong_fields(void **state)
{
    (void)state;
    check_bad("{\"a\":3}", 0, BRG_ERR_FORMAT, "'a' is not an object");
    check_bad("{\"a\":{}}", 0, BRG_ERR_FORMAT, "'a' has no dtype");
    check_bad("{\"a\":{\"dtype\":\"F32\"}}", 0, BRG_ERR_FORMAT, "no shape");
    check_bad("{\"a\":{\"dtype\":\"F32\",\"shape\":[]}}", 0, BRG_ERR_FORMAT,
              "data_offsets");
    check_bad("{" ENTRY("a", "F8", "1", "0,1") "}", 1, BRG_ERR_UNSUPPORTED,
              "dtype 'F8'");
    check_bad("{" ENTRY("a", "U8", "-1", "0,1") "}", 1, BRG_ERR_FORMAT,
              "size of tensor 'a'");
    check_bad("{" ENTRY("a", "U8", "1.5", "0,1") "}", 1, BRG_ERR_FORMAT,
              "size of tensor 'a'");
    check_bad("{" ENTRY("a", "U8", "\"1\"", "0,1") "}", 1, BRG_ERR_FORMAT,
              "size of tensor 'a'");
    check_bad("{" ENTRY("a", "U8", "1e300", "0,1") "}", 1, BRG_ERR_FORMAT,
              "size of tensor 'a'");
    check_bad("{" ENTRY("a", "U8", "1,1,1,1,1,1,1,1,1", "0,1") "}", 1,
              BRG_ERR_FORMAT, "more than 8 dims");
    check_bad("{" ENTRY("a", "F64", "4294967296,4294967296", "0,1") "}", 1,
              BRG_ERR_FORMAT, "too many elements");
    check_bad("{" ENTRY("a", "U8", "1", "0,1,2") "}", 1, BRG_ERR_FORMAT,
              "data_offsets");
    check_bad("{" ENTRY("a", "U8", "1", "1,0") "}", 1, BRG_ERR_FORMAT,
              "bytes 1 to 0");
    check_bad("{" ENTRY("a", "F32", "2", "0,4") "}", 4, BRG_ERR_FORMAT,
              "expected 8 bytes, its offsets span 4");
}

static void test_safetensors__truncated_overlapping_or_doubled(void **state)
{
    (void)state;
    check_bad("{" ENTRY("a", "F32", "2", "0,8") "}", 7, BRG_ERR_FORMAT,
              "the data has 7: truncated");
    check_bad("{" ENTRY("a", "F32", "2", "0,8") "}", 9, BRG_ERR_FORMAT,
              "need 8 bytes of data, found 9");
    check_bad(
        "{" ENTRY("a", "U8", "4", "0,4") "," ENTRY("b", "U8", "4", "2,6") "}",
        6, BRG_ERR_FORMAT, "'b' begins at byte 2 and overlaps");
    check_bad(
        "{" ENTRY("a", "U8", "4", "0,4") "," ENTRY("b", "U8", "4", "6,10") "}",
        10, BRG_ERR_FORMAT, "'b' begins at byte 6 after a gap");
    check_bad(
        "{" ENTRY("a", "U8", "4", "0,4") "," ENTRY("a", "U8", "4", "4,8") "}",
        8, BRG_ERR_FORMAT, "'a' is there twice");
}

static void test_safetensors__wrong_metadata(void **state)
{
    (void)state;
    check_bad("{\"__metadata__\":[]}", 0, BRG_ERR_FORMAT, "not an object");
    check_bad("{\"__metadata__\":{\"k\":1}}", 0, BRG_ERR_FORMAT, "'k'");
    check_bad("{\"__metadata__\":{\"k\":\"1\",\"k\":\"2\"}}", 0, BRG_ERR_FORMAT,
              "'k' twice");
    check_bad("{\"__metadata__\":{\"k\":\"1\"},\"__metadata__\":{}}", 0,
              BRG_ERR_FORMAT, "two __metadata__");
}

static void test_safetensors__deep_nesting(void **state)
{
    (void)state;
    static char deep[50001];
    memset(deep, '[', sizeof deep - 1);
    check_bad(deep, 0, BRG_ERR_FORMAT, "not JSON");
    memcpy(deep, "{\"a\":", 5);
    check_bad(deep, 0, BRG_ERR_FORMAT, "not JSON");
}

/* A good file with some bytes changed, cut or inserted: it opens and every
 * tensor can be read, or it is refused. */
static void mutate(unsigned char *bytes, size_t *n, uint64_t *seed)
{
    static const char likely[] = "0123456789,:[]{}\"-.eE F32";
    for (size_t k = 1 + brg_test_random(seed) % 4; k > 0 && *n > 0; k--) {
        size_t i = brg_test_random(seed) % *n;
        uint64_t pick = brg_test_random(seed);
        unsigned char c = pick & 1 ? (unsigned char)(pick >> 8)
                                   : (unsigned char)likely[(pick >> 8) % 25];
        switch (brg_test_random(seed) % 8) {
        case 0:
            *n = i;
            break;
        case 1:
            memmove(bytes + i, bytes + i + 1, *n - i - 1);
            (*n)--;
            break;
        case 2:
            memmove(bytes + i + 1, bytes + i, *n - i);
            bytes[i] = c;
            (*n)++;
            break;
        default:
            bytes[i] = c;
        }
    }
}

static void try_to_read(const char *path, int *n_good)
{
    brg_safetensors *file;
    if (brg_safetensors_open(&file, path) != BRG_OK) {
        assert_null(file);
        assert_true(brg_error_message()[0] != '\0');
        return;
    }
    (*n_good)++;
    for (size_t i = 0; i < brg_safetensors_count(file); i++) {
        brg_tensor *t;
        const char *name = brg_safetensors_at(file, i)->name;
        assert_brg_ok(brg_safetensors_load(&t, file, name));
        brg_release(t);
    }
    brg_safetensors_close(file);
}

static void test_safetensors__mutated_files_never_crash(void **state)
{
    (void)state;
    const char header[] = "{\"__metadata__\":{\"step\":\"12\"}," ENTRY(
        "a", "F32", "2,3",
        "0,24") "," ENTRY("b", "U8", "5", "24,29") "," ENTRY("c.weight", "BF16",
                                                             "2", "29,33") "}";
    size_t n_original;
    unsigned char *original = temp_read(header_file(header, 33), &n_original);
    uint64_t seed = brg_test_seed(5);
    int n_good = 0;
    for (int i = 0; i < 8000; i++) {
        unsigned char bytes[512];
        size_t n = n_original;
        memcpy(bytes, original, n);
        mutate(bytes, &n, &seed);
        if (i % 2 == 0 && n >= 8) { /* keep the length right */
            memcpy(bytes, original, 8);
            bytes[0] = (unsigned char)(bytes[0] + n - n_original);
        }
        try_to_read(temp_file("mutated", bytes, n), &n_good);
    }
    assert_in_range(n_good, 10, 7000);
    free(original);
}

/* ---- Writing ------------------------------------------------------------------------ */

static void test_safetensors__save_checks_its_arguments(void **state)
{
    (void)state;
    brg_scope *scope = brg_scope_begin();
    brg_tensor *t = brg_zeros(BRG_DTYPE_F32, BRG_SHAPE(2));
    brg_named_tensor twice[] = {{"a", t}, {"a", t}};
    brg_named_tensor unnamed = {"", t}, null = {"a", NULL};
    brg_named_tensor reserved = {"__metadata__", t};
    brg_key_value pairs[] = {{"k", "v"}, {"k", "w"}};
    const char *path = temp_path("bad");
    size_t n = temp_count();
    assert_brg_fails_with(brg_safetensors_save(path, twice, 2, NULL, 0),
                          BRG_ERR_ARG, "'a' is there twice");
    assert_brg_fails(brg_safetensors_save(path, &unnamed, 1, NULL, 0),
                     BRG_ERR_ARG);
    assert_brg_fails(brg_safetensors_save(path, &null, 1, NULL, 0),
                     BRG_ERR_ARG);
    assert_brg_fails(brg_safetensors_save(path, &reserved, 1, NULL, 0),
                     BRG_ERR_ARG);
    assert_brg_fails(brg_safetensors_save(path, NULL, 1, NULL, 0), BRG_ERR_ARG);
    assert_brg_fails_with(brg_safetensors_save(path, twice, 1, pairs, 2),
                          BRG_ERR_ARG, "'k' twice");
    assert_brg_fails(brg_safetensors_save("", twice, 1, NULL, 0), BRG_ERR_ARG);
    assert_brg_fails_with(brg_safetensors_save("/nowhere/x", twice, 1, NULL, 0),
                          BRG_ERR_IO, "No such file");
    assert_int_equal(temp_count(), n);
    brg_scope_end(scope);
}

static void test_safetensors__a_failed_save_keeps_the_old_file(void **state)
{
    (void)state;
    brg_scope *scope = brg_scope_begin();
    brg_named_tensor entry = {"a", brg_zeros(BRG_DTYPE_F32, BRG_SHAPE(2))};
    const char *path = temp_path("kept");
    assert_brg_ok(brg_safetensors_save(path, &entry, 1, NULL, 0));
    size_t n = temp_count(), n_old, n_new;
    char *old = temp_read(path, &n_old);
    entry.tensor = brg_ones(BRG_DTYPE_F32, BRG_SHAPE(20000));
    for (int i = 0; i < 4; i++) {
        brg_memory_trim();
        fail_alloc_arm(i);
        brg_status status = brg_safetensors_save(path, &entry, 1, NULL, 0);
        fail_alloc_disarm();
        assert_int_equal(status, BRG_ERR_NOMEM);
        assert_int_equal(temp_count(), n);
    }
    const char *taken = temp_path("folder");
    assert_int_equal(mkdir(taken, 0777), 0);
    assert_brg_fails_with(brg_safetensors_save(taken, &entry, 1, NULL, 0),
                          BRG_ERR_IO, "cannot replace");
    assert_int_equal(rmdir(taken), 0);
    assert_int_equal(temp_count(), n);
    char *now = temp_read(path, &n_new);
    assert_int_equal(n_new, n_old);
    assert_memory_equal(now, old, n_old);
    free(now);
    free(old);
    brg_scope_end(scope);
}

/* A limit on file sizes stands for a full disk. */
static void test_safetensors__full_disk(void **state)
{
    (void)state;
    brg_scope *scope = brg_scope_begin();
    brg_named_tensor entry = {"a", brg_zeros(BRG_DTYPE_F32, BRG_SHAPE(9000))};
    const char *path = temp_path("full");
    size_t n = temp_count();
    struct rlimit before, small;
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
    small = before;
    small.rlim_cur = 4096;
    void (*handler)(int) = signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
    brg_error_clear();
    brg_status status = brg_safetensors_save(path, &entry, 1, NULL, 0);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &before), 0);
    signal(SIGXFSZ, handler);
    assert_int_equal(status, BRG_ERR_IO);
    assert_non_null(strstr(brg_error_message(), "cannot write"));
    assert_int_equal(temp_count(), n);
    brg_scope_end(scope);
}

/* ---- Out of memory ------------------------------------------------------------------ */

static brg_status save_and_load(void *path)
{
    brg_scope *scope = brg_scope_begin();
    if (!scope)
        return brg_error_code();
    brg_status status = BRG_ERR_NOMEM;
    brg_safetensors *file = NULL;
    brg_tensor *t = NULL;
    brg_named_tensor list[] = {
        {"a", brg_zeros(BRG_DTYPE_F32, BRG_SHAPE(20))},
        {"b", brg_zeros(BRG_DTYPE_U8, BRG_SHAPE(3))},
    };
    const brg_key_value pair = {"key", "value"};
    if (!list[0].tensor || !list[1].tensor)
        goto out;
    BRG_TRY_GOTO(brg_safetensors_save(path, list, 2, &pair, 1), out);
    BRG_TRY_GOTO(brg_safetensors_open(&file, path), out);
    status = brg_safetensors_load(&t, file, "a");
out:
    brg_release(t);
    brg_safetensors_close(file);
    brg_scope_end(scope);
    return status;
}

static void test_safetensors__out_of_memory(void **state)
{
    (void)state;
    char path[4096];
    snprintf(path, sizeof path, "%s", temp_path("oom"));
    assert_true(assert_oom_clean(save_and_load, path) > 10);
}

static int json_budget;

static void *json_alloc(size_t nbytes)
{
    if (json_budget-- > 0)
        return malloc(nbytes);
    errno = ENOMEM;
    return NULL;
}

static void test_safetensors__json_parser_out_of_memory(void **state)
{
    (void)state;
    const char *path = header_file("{" ENTRY("a", "U8", "1,3", "0,3") "}", 3);
    cJSON_Hooks hooks = {json_alloc, free};
    cJSON_InitHooks(&hooks);
    brg_status status = BRG_ERR_NOMEM;
    int n = 0;
    for (; status == BRG_ERR_NOMEM && n < 100; n++) {
        brg_safetensors *file;
        json_budget = n;
        status = brg_safetensors_open(&file, path);
        brg_safetensors_close(file);
    }
    cJSON_InitHooks(NULL);
    assert_brg_ok(status);
    assert_in_range(n, 5, 50);
}

int main(void)
{
    fail_alloc_install();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_safetensors__every_dtype_there_and_back),
        cmocka_unit_test(test_safetensors__tensors_with_other_strides),
        cmocka_unit_test(test_safetensors__listing_is_by_name),
        cmocka_unit_test(test_safetensors__tensors_are_aligned_in_the_file),
        cmocka_unit_test(test_safetensors__empty_file_of_tensors),
        cmocka_unit_test(test_safetensors__read_checks_shape_and_dtype),
        cmocka_unit_test(test_safetensors__not_such_a_file),
        cmocka_unit_test(test_safetensors__wrong_fields),
        cmocka_unit_test(test_safetensors__truncated_overlapping_or_doubled),
        cmocka_unit_test(test_safetensors__wrong_metadata),
        cmocka_unit_test(test_safetensors__deep_nesting),
        cmocka_unit_test(test_safetensors__mutated_files_never_crash),
        cmocka_unit_test(test_safetensors__save_checks_its_arguments),
        cmocka_unit_test(test_safetensors__a_failed_save_keeps_the_old_file),
        cmocka_unit_test(test_safetensors__full_disk),
        cmocka_unit_test(test_safetensors__out_of_memory),
        cmocka_unit_test(test_safetensors__json_parser_out_of_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
