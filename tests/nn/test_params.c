/* SPDX-License-Identifier: Apache-2.0
 * The registry of named tensors, and its file. */
#include <brigade/autograd.h>
#include <brigade/io.h>
#include <brigade/params.h>
#include <brigade/tensor.h>

#include "tests/support/brg_test.h"
#include "tests/support/fail_alloc.h"
#include "tests/support/temp_dir.h"

static brg_params *make(float start)
{
    brg_params *params;
    assert_brg_ok(brg_params_create(&params));
    brg_scope *scope = brg_scope_begin();
    float values[6];
    for (int i = 0; i < 6; i++)
        values[i] = start + (float)i;
    assert_brg_ok(
        brg_params_add(params, "fc.weight",
                       brg_from_data(BRG_DTYPE_F32, BRG_SHAPE(2, 3), values),
                       BRG_PARAM_TRAINED));
    assert_brg_ok(brg_params_add(
        params, "fc.bias", brg_from_data(BRG_DTYPE_F32, BRG_SHAPE(2), values),
        BRG_PARAM_TRAINED));
    assert_brg_ok(brg_params_add(
        params, "norm.mean", brg_from_data(BRG_DTYPE_F64, BRG_SHAPE(2), values),
        BRG_PARAM_BUFFER));
    brg_scope_end(scope);
    return params;
}

static const float *weight_of(const brg_params *params)
{
    return brg_tensor_data(brg_params_find(params, "fc.weight"));
}

static void test_params__keeps_order_names_and_references(void **state)
{
    (void)state;
    brg_params *params = make(0);
    assert_int_equal(brg_params_count(params), 3);
    assert_string_equal(brg_params_at(params, 0)->name, "fc.weight");
    assert_string_equal(brg_params_at(params, 2)->name, "norm.mean");
    assert_null(brg_params_at(params, 3));
    assert_int_equal(brg_params_numel(params), 8);
    brg_tensor *weight = brg_params_find(params, "fc.weight");
    assert_true(brg_requires_grad(weight));
    assert_string_equal(brg_tensor_name(weight), "fc.weight");
    assert_false(brg_requires_grad(brg_params_find(params, "norm.mean")));
    assert_null(brg_params_find(params, "fc"));
    assert_null(brg_params_find(params, NULL));
    size_t n;
    brg_tensor *const *trained =
        brg_params_tensors(params, BRG_PARAM_TRAINED, &n);
    assert_int_equal(n, 2);
    assert_ptr_equal(trained[1], brg_params_find(params, "fc.bias"));
    brg_tensor *const *buffers =
        brg_params_tensors(params, BRG_PARAM_BUFFER, &n);
    assert_int_equal(n, 1);
    assert_ptr_equal(buffers[0], brg_params_find(params, "norm.mean"));
    brg_params_destroy(params);
    brg_params_destroy(NULL);
}

static void test_params__add_errors(void **state)
{
    (void)state;
    brg_params *params = make(0);
    brg_scope *scope = brg_scope_begin();
    brg_tensor *t = brg_zeros(BRG_DTYPE_F32, BRG_SHAPE(2));
    brg_tensor *ids = brg_zeros(BRG_DTYPE_I64, BRG_SHAPE(2));
    assert_brg_fails_with(
        brg_params_add(params, "fc.bias", t, BRG_PARAM_TRAINED), BRG_ERR_ARG,
        "'fc.bias' is taken");
    assert_brg_fails(brg_params_add(params, "", t, BRG_PARAM_TRAINED),
                     BRG_ERR_ARG);
    assert_brg_fails(brg_params_add(params, NULL, t, BRG_PARAM_TRAINED),
                     BRG_ERR_ARG);
    assert_brg_fails(brg_params_add(params, "x", NULL, BRG_PARAM_TRAINED),
                     BRG_ERR_ARG);
    assert_brg_fails(brg_params_add(NULL, "x", t, BRG_PARAM_TRAINED),
                     BRG_ERR_ARG);
    assert_brg_fails_with(brg_params_add(params, "x", ids, BRG_PARAM_TRAINED),
                          BRG_ERR_DTYPE, "'x' is i64");
    assert_brg_ok(brg_params_add(params, "ids", ids, BRG_PARAM_BUFFER));
    assert_int_equal(brg_params_count(params), 4);
    brg_scope_end(scope);
    brg_params_destroy(params);
}

/* ---- Files ------------------------------------------------------------------------- */

static void test_params__there_and_back(void **state)
{
    (void)state;
    brg_params *saved = make(1), *loaded = make(100);
    const char *path = temp_path("model.safetensors");
    assert_brg_ok(brg_params_save(path, saved));
    assert_brg_ok(brg_params_load(loaded, path, NULL));
    for (size_t i = 0; i < 3; i++) {
        const brg_tensor *a = brg_params_at(saved, i)->tensor;
        const brg_tensor *b = brg_params_at(loaded, i)->tensor;
        assert_memory_equal(brg_tensor_data(a), brg_tensor_data(b),
                            brg_tensor_nbytes(a));
    }
    assert_true(brg_requires_grad(brg_params_find(loaded, "fc.weight")));
    brg_params_destroy(saved);
    brg_params_destroy(loaded);
}

static void test_params__names_must_match_unless_allowed(void **state)
{
    (void)state;
    brg_params *small = make(1), *large = make(100);
    brg_scope *scope = brg_scope_begin();
    brg_tensor *extra = brg_zeros(BRG_DTYPE_F32, BRG_SHAPE(4));
    assert_brg_ok(brg_params_add(large, "head", extra, BRG_PARAM_TRAINED));
    const char *path_small = temp_path("small"),
               *path_large = temp_path("large");
    assert_brg_ok(brg_params_save(path_small, small));
    assert_brg_ok(brg_params_save(path_large, large));
    assert_brg_fails_with(brg_params_load(large, path_small, NULL),
                          BRG_ERR_NOT_FOUND,
                          "lacks 1 of 4 tensors, the first is 'head'");
    assert_brg_fails_with(brg_params_load(small, path_large, NULL),
                          BRG_ERR_FORMAT,
                          "1 unexpected tensors, the first is 'head'");
    assert_true(weight_of(large)[0] == 100 && weight_of(small)[0] == 1);
    brg_params_load_options options = BRG_PARAMS_LOAD_OPTIONS_INIT;
    options.allow_unexpected = true;
    assert_brg_ok(brg_params_load(small, path_large, &options));
    assert_true(weight_of(small)[0] == 100);
    options.allow_missing = true;
    brg_params *seven = make(7);
    assert_brg_ok(brg_params_save(path_small, seven));
    brg_params_destroy(seven);
    assert_brg_ok(brg_params_load(large, path_small, &options));
    assert_true(weight_of(large)[0] == 7);
    brg_scope_end(scope);
    brg_params_destroy(small);
    brg_params_destroy(large);
}

static void test_params__a_failed_load_changes_nothing(void **state)
{
    (void)state;
    brg_params *params = make(1), *other = make(50);
    const char *path = temp_path("other");
    /* The last tensor has another shape: found before the first is read. */
    brg_named_tensor list[3];
    brg_scope *scope = brg_scope_begin();
    for (size_t i = 0; i < 3; i++)
        list[i] = (brg_named_tensor){brg_params_at(other, i)->name,
                                     brg_params_at(other, i)->tensor};
    list[2].tensor = brg_zeros(BRG_DTYPE_F64, BRG_SHAPE(3));
    assert_brg_ok(brg_safetensors_save(path, list, 3, NULL, 0));
    assert_brg_fails_with(brg_params_load(params, path, NULL), BRG_ERR_SHAPE,
                          "'norm.mean'");
    list[2].tensor = brg_zeros(BRG_DTYPE_F32, BRG_SHAPE(2));
    assert_brg_ok(brg_safetensors_save(path, list, 3, NULL, 0));
    assert_brg_fails_with(brg_params_load(params, path, NULL), BRG_ERR_DTYPE,
                          "expected f64[2], found f32[2]");
    assert_true(weight_of(params)[0] == 1);
    assert_brg_fails(brg_params_load(params, temp_path("none"), NULL),
                     BRG_ERR_IO);
    brg_params_load_options options = {0};
    assert_brg_fails(brg_params_load(params, path, &options), BRG_ERR_ARG);
    assert_brg_fails(brg_params_load(NULL, path, NULL), BRG_ERR_ARG);
    assert_brg_fails(brg_params_save(path, NULL), BRG_ERR_ARG);
    brg_scope_end(scope);
    brg_params_destroy(params);
    brg_params_destroy(other);
}

/* ---- Out of memory ------------------------------------------------------------------ */

static brg_status make_save_load(void *path)
{
    brg_params *params = NULL;
    brg_status status = BRG_ERR_NOMEM;
    brg_scope *scope = brg_scope_begin();
    brg_tensor *w = scope ? brg_zeros(BRG_DTYPE_F32, BRG_SHAPE(5)) : NULL;
    if (!w)
        goto out;
    BRG_TRY_GOTO(brg_params_create(&params), out);
    BRG_TRY_GOTO(brg_params_add(params, "w", w, BRG_PARAM_TRAINED), out);
    BRG_TRY_GOTO(brg_params_save(path, params), out);
    status = brg_params_load(params, path, NULL);
out:
    brg_params_destroy(params);
    brg_scope_end(scope);
    return status;
}

static void test_params__out_of_memory(void **state)
{
    (void)state;
    char path[4096];
    snprintf(path, sizeof path, "%s", temp_path("oom"));
    assert_true(assert_oom_clean(make_save_load, path) > 10);
}

int main(void)
{
    fail_alloc_install();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_params__keeps_order_names_and_references),
        cmocka_unit_test(test_params__add_errors),
        cmocka_unit_test(test_params__there_and_back),
        cmocka_unit_test(test_params__names_must_match_unless_allowed),
        cmocka_unit_test(test_params__a_failed_load_changes_nothing),
        cmocka_unit_test(test_params__out_of_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
