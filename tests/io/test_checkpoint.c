/* SPDX-License-Identifier: Apache-2.0
 * A run that is stopped and resumed has the bits of one that went through. */
#include <float.h>

#include <brigade/autograd.h>
#include <brigade/io.h>
#include <brigade/ops.h>
#include <brigade/optim.h>
#include <brigade/random.h>

#include "tests/support/brg_test.h"
#include "tests/support/decimal_comma.h"
#include "tests/support/fail_alloc.h"
#include "tests/support/temp_dir.h"

#define N_SAMPLES 50
#define DIM 6

/* A small training run: linear regression with noise on its inputs. */
typedef struct run {
    brg_params *params;
    brg_tensor *w, *b, *seen;
    brg_optim *optim;
    brg_sampler *sampler;
    int64_t step;
} run;

static void run_init(run *r, brg_dtype dtype, bool is_adamw)
{
    *r = (run){0};
    brg_scope *scope = brg_scope_begin();
    assert_brg_ok(brg_params_create(&r->params));
    r->w = brg_zeros(dtype, BRG_SHAPE(1, DIM));
    r->b = brg_zeros(dtype, BRG_SHAPE(1));
    r->seen = brg_zeros(BRG_DTYPE_I64, BRG_SHAPE(1));
    assert_brg_ok(brg_normal_(r->w, 0, 1));
    assert_brg_ok(brg_params_add(r->params, "w", r->w, BRG_PARAM_TRAINED));
    assert_brg_ok(brg_params_add(r->params, "b", r->b, BRG_PARAM_TRAINED));
    assert_brg_ok(brg_params_add(r->params, "seen", r->seen, BRG_PARAM_BUFFER));
    brg_adamw_options adamw = BRG_ADAMW_OPTIONS_INIT;
    brg_sgd_options sgd = BRG_SGD_OPTIONS_INIT;
    sgd.momentum = 0.9;
    if (is_adamw)
        assert_brg_ok(brg_optim_create_adamw(&r->optim, r->params, &adamw));
    else
        assert_brg_ok(brg_optim_create_sgd(&r->optim, r->params, &sgd));
    brg_sampler_options options = BRG_SAMPLER_OPTIONS_INIT;
    options.n_samples = N_SAMPLES;
    options.global_batch = 8;
    options.seed = 4;
    options.shuffle = true;
    assert_brg_ok(brg_sampler_create(&r->sampler, &options));
    brg_scope_end(scope);
}

static void run_deinit(run *r)
{
    brg_sampler_destroy(r->sampler);
    brg_optim_destroy(r->optim);
    brg_params_destroy(r->params);
}

static void train_step(run *r, const brg_batch *batch)
{
    brg_scope *scope = brg_scope_begin();
    int64_t n = (int64_t)batch->n;
    brg_dtype dtype = brg_tensor_dtype(r->w);
    brg_tensor *x = brg_zeros(BRG_DTYPE_F32, BRG_SHAPE(n, DIM));
    float *at = brg_tensor_data(x);
    for (int64_t i = 0; i < n * DIM; i++)
        at[i] = (float)((batch->samples[i / DIM] * 31 + i % DIM * 7) % 13) / 13;
    x = brg_add(
        x, brg_mul_scalar(brg_randn(BRG_DTYPE_F32, BRG_SHAPE(n, DIM)), 0.01));
    brg_tensor *y = brg_linear(brg_cast(x, dtype), r->w, r->b);
    brg_tensor *loss = brg_mse(y, brg_ones(dtype, BRG_SHAPE(n, 1)));
    assert_brg_ok(brg_backward(loss));
    assert_brg_ok(brg_clip_grad_norm(NULL, r->params, 1.0, true));
    brg_lr_step schedule = {.lr = 0.05, .gamma = 0.5, .every = 7};
    assert_brg_ok(
        brg_optim_set_lr(r->optim, brg_lr_step_at(&schedule, r->step++)));
    assert_brg_ok(brg_optim_step(r->optim));
    assert_brg_ok(brg_optim_zero_grad(r->optim, false));
    ((int64_t *)brg_tensor_data(r->seen))[0] += n;
    brg_scope_end(scope);
}

static void train(run *r, int n_steps)
{
    while (n_steps > 0) {
        brg_batch batch;
        if (!brg_sampler_next(r->sampler, &batch))
            continue;
        train_step(r, &batch);
        n_steps--;
    }
}

static brg_checkpoint describe(run *r)
{
    brg_checkpoint c = BRG_CHECKPOINT_INIT;
    c.params = r->params;
    c.optim = r->optim;
    c.step = r->step;
    c.position = brg_sampler_tell(r->sampler);
    return c;
}

static void resume(run *r, const char *path)
{
    brg_checkpoint c = describe(r);
    assert_brg_ok(brg_checkpoint_load(&c, path));
    assert_brg_ok(brg_sampler_seek(r->sampler, c.position));
    r->step = c.step;
}

static void check_equal(const run *a, const run *b)
{
    for (size_t i = 0; i < brg_params_count(a->params); i++) {
        const brg_tensor *x = brg_params_at(a->params, i)->tensor;
        const brg_tensor *y = brg_params_at(b->params, i)->tensor;
        assert_memory_equal(brg_tensor_data(x), brg_tensor_data(y),
                            brg_tensor_nbytes(x));
    }
    for (size_t i = 0; i < brg_optim_state_count(a->optim); i++) {
        const brg_tensor *x = brg_optim_state_at(a->optim, i)->tensor;
        const brg_tensor *y = brg_optim_state_at(b->optim, i)->tensor;
        assert_memory_equal(brg_tensor_data(x), brg_tensor_data(y),
                            brg_tensor_nbytes(x));
    }
    assert_true(brg_optim_lr(a->optim) == brg_optim_lr(b->optim));
}

static void check_resume(brg_dtype dtype, bool is_adamw)
{
    const char *path = temp_path("run.safetensors");
    run whole, resumed;
    brg_seed(12);
    run_init(&whole, dtype, is_adamw);
    train(&whole, 10); /* into the second epoch */
    brg_checkpoint c = describe(&whole);
    assert_brg_ok(brg_checkpoint_save(path, &c));
    train(&whole, 10);
    brg_seed(99);
    run_init(&resumed, dtype, is_adamw);
    resume(&resumed, path);
    assert_int_equal(resumed.step, 10);
    train(&resumed, 10);
    check_equal(&whole, &resumed);
    run_deinit(&whole);
    run_deinit(&resumed);
}

static void test_checkpoint__resumes_bit_for_bit(void **state)
{
    (void)state;
    check_resume(BRG_DTYPE_F32, true);
    check_resume(BRG_DTYPE_F32, false);
    check_resume(BRG_DTYPE_F64, true);
    check_resume(BRG_DTYPE_BF16, true);
}

static void test_checkpoint__items_and_numbers(void **state)
{
    (void)state;
    run r;
    run_init(&r, BRG_DTYPE_F32, true);
    brg_random_state random = {UINT64_MAX, 12345}, found;
    brg_random_set_state(&random);
    brg_checkpoint_item items[] = {{"text", "a \"b\"\n"}, {"best", "0.25"}};
    brg_checkpoint c = describe(&r);
    c.items = items;
    c.n_items = 2;
    c.step = INT64_MAX;
    c.position = (brg_sampler_position){3, 4};
    const char *path = temp_path("items");
    assert_brg_ok(brg_checkpoint_save(path, &c));
    brg_seed(0);
    brg_checkpoint_item wanted = {.key = "text"};
    brg_checkpoint back = describe(&r);
    back.items = &wanted;
    back.n_items = 1;
    assert_brg_ok(brg_checkpoint_load(&back, path));
    assert_string_equal(wanted.value, "a \"b\"\n");
    assert_true(back.step == INT64_MAX);
    assert_int_equal(back.position.epoch, 3);
    assert_int_equal(back.position.batch, 4);
    brg_random_get_state(&found);
    assert_true(found.seed == UINT64_MAX && found.offset == 12345);
    brg_seed(7);
    back.keep_seed = true;
    assert_brg_ok(brg_checkpoint_load(&back, path));
    brg_random_get_state(&found);
    assert_true(found.seed == 7 && found.offset == 12345);
    wanted.key = "none";
    assert_brg_fails_with(brg_checkpoint_load(&back, path), BRG_ERR_FORMAT,
                          "'user.none'");
    run_deinit(&r);
}

static void test_checkpoint__parameters_alone(void **state)
{
    (void)state;
    run a, b;
    run_init(&a, BRG_DTYPE_F32, true);
    run_init(&b, BRG_DTYPE_F32, true);
    brg_checkpoint c = describe(&a);
    const char *path = temp_path("alone");
    assert_brg_ok(brg_checkpoint_save(path, &c));
    assert_brg_ok(brg_params_load(b.params, path, NULL));
    check_equal(&a, &b);
    brg_checkpoint no_optim = describe(&b);
    no_optim.optim = NULL;
    assert_brg_ok(brg_checkpoint_load(&no_optim, path));
    assert_brg_ok(brg_params_save(path, a.params));
    assert_brg_fails_with(brg_checkpoint_load(&no_optim, path), BRG_ERR_FORMAT,
                          "not a complete checkpoint");
    run_deinit(&a);
    run_deinit(&b);
}

/* ---- Errors ------------------------------------------------------------------------- */

static void test_checkpoint__another_optimizer(void **state)
{
    (void)state;
    run adamw, sgd;
    run_init(&adamw, BRG_DTYPE_F32, true);
    run_init(&sgd, BRG_DTYPE_F32, false);
    const char *path = temp_path("optim");
    brg_checkpoint a = describe(&adamw), s = describe(&sgd);
    assert_brg_ok(brg_checkpoint_save(path, &a));
    assert_brg_fails_with(brg_checkpoint_load(&s, path), BRG_ERR_FORMAT,
                          "'adamw', expected sgd");
    brg_checkpoint none = describe(&sgd);
    none.optim = NULL;
    assert_brg_ok(brg_checkpoint_save(path, &none));
    assert_brg_fails_with(brg_checkpoint_load(&s, path), BRG_ERR_FORMAT,
                          "'brigade.optim'");
    run_deinit(&adamw);
    run_deinit(&sgd);
}

static void test_checkpoint__another_model_changes_nothing(void **state)
{
    (void)state;
    run f32, f64;
    brg_seed(1);
    run_init(&f32, BRG_DTYPE_F32, true);
    run_init(&f64, BRG_DTYPE_F64, true);
    const char *path = temp_path("model");
    brg_checkpoint a = describe(&f32), b = describe(&f64);
    assert_brg_ok(brg_checkpoint_save(path, &a));
    double before = ((double *)brg_tensor_data(f64.w))[0];
    assert_brg_fails_with(brg_checkpoint_load(&b, path), BRG_ERR_DTYPE,
                          "expected f64[1, 6], found f32[1, 6]");
    assert_true(((double *)brg_tensor_data(f64.w))[0] == before);
    run_deinit(&f32);
    run_deinit(&f64);
}

static void test_checkpoint__damaged_file(void **state)
{
    (void)state;
    run r;
    run_init(&r, BRG_DTYPE_F32, true);
    brg_checkpoint c = describe(&r);
    const char *path = temp_path("damaged");
    assert_brg_ok(brg_checkpoint_save(path, &c));
    size_t n;
    char *bytes = temp_read(path, &n);
    for (size_t cut = 0; cut < n; cut++)
        assert_brg_fails(brg_checkpoint_load(&c, temp_file("cut", bytes, cut)),
                         BRG_ERR_FORMAT);
    const char *wrong[] = {
        "\"brigade.step\":\"0\"",       "\"brigade.step\":\"x\"",
        "\"brigade.lr\":\"0x",          "\"brigade.lr\":\"zx",
        "\"brigade.checkpoint\":\"1\"", "\"brigade.checkpoint\":\"2\"",
        "\"brigade.batch\":\"0\"",      "\"brigade.batch\":\"-\""};
    for (size_t i = 0; i < 8; i += 2) {
        bytes[n] = 0;
        char *copy = malloc(n);
        memcpy(copy, bytes, n);
        char *at = memmem(copy, n, wrong[i], strlen(wrong[i]));
        assert_non_null(at);
        memcpy(at, wrong[i + 1], strlen(wrong[i + 1]));
        assert_brg_fails_with(
            brg_checkpoint_load(&c, temp_file("wrong", copy, n)),
            BRG_ERR_FORMAT, "expected");
        free(copy);
    }
    free(bytes);
    assert_brg_fails(brg_checkpoint_load(&c, temp_path("none")), BRG_ERR_IO);
    run_deinit(&r);
}

/* Counts and items that do not fit: nothing of the file is taken. */
static void test_checkpoint__values_that_do_not_fit(void **state)
{
    static const char *const steps[][2] = {
        {"9223372036854775808", "at most 2^63 - 1"},
        {"18446744073709551616", "whole number"},
        {"-1", "whole number"},
        {"+1", "whole number"},
        {" 1", "whole number"},
        {"1 ", "whole number"}};
    (void)state;
    run r;
    run_init(&r, BRG_DTYPE_F32, true);
    char longer[sizeof(((brg_checkpoint_item *)0)->value) + 1];
    memset(longer, 'x', sizeof longer);
    longer[sizeof longer - 1] = '\0';
    brg_checkpoint_item item = {"key", "mine"};
    brg_checkpoint c = describe(&r);
    c.step = 77;
    c.optim = NULL;
    c.items = &item;
    c.n_items = 1;
    const char *path = temp_path("not_fitting");
    brg_key_value pairs[] = {
        {"brigade.checkpoint", "1"}, {"brigade.step", ""},
        {"brigade.epoch", "0"},      {"brigade.batch", "0"},
        {"brigade.seed", "0"},       {"brigade.draws", "0"},
        {"user.key", "theirs"}};
    for (size_t k = 0; k < sizeof steps / sizeof *steps; k++) {
        pairs[1].value = steps[k][0];
        assert_brg_ok(brg_safetensors_save(path, NULL, 0, pairs, 7));
        assert_brg_fails_with(brg_checkpoint_load(&c, path), BRG_ERR_FORMAT,
                              steps[k][1]);
    }
    pairs[1].value = "1";
    pairs[6].value = longer;
    assert_brg_ok(brg_safetensors_save(path, NULL, 0, pairs, 7));
    assert_brg_fails_with(brg_checkpoint_load(&c, path), BRG_ERR_FORMAT,
                          "a shorter text");
    assert_string_equal(item.value, "mine");
    assert_int_equal(c.step, 77);
    run_deinit(&r);
}

static void test_checkpoint__wrong_arguments(void **state)
{
    (void)state;
    run r;
    run_init(&r, BRG_DTYPE_F32, true);
    brg_checkpoint c = describe(&r), blank = {0};
    brg_checkpoint_item twice[] = {{"a", "1"}, {"a", "2"}};
    brg_checkpoint_item endless = {.key = "a"};
    memset(endless.value, 'x', sizeof endless.value);
    assert_brg_fails(brg_checkpoint_save("x", NULL), BRG_ERR_ARG);
    assert_brg_fails(brg_checkpoint_save("x", &blank), BRG_ERR_ARG);
    assert_brg_fails(brg_checkpoint_load(&blank, "x"), BRG_ERR_ARG);
    c.items = twice;
    c.n_items = 2;
    assert_brg_fails_with(brg_checkpoint_save("x", &c), BRG_ERR_ARG,
                          "'a' is there twice");
    c.items = &endless;
    c.n_items = 1;
    assert_brg_fails_with(brg_checkpoint_save("x", &c), BRG_ERR_ARG,
                          "does not end");
    c.items = NULL;
    assert_brg_fails(brg_checkpoint_save("x", &c), BRG_ERR_ARG);
    c.n_items = 0;
    int64_t *const counts[] = {&c.step, &c.position.epoch, &c.position.batch};
    for (size_t k = 0; k < 3; k++) { /* could not be loaded again */
        *counts[k] = -1;
        assert_brg_fails_with(brg_checkpoint_save("x", &c), BRG_ERR_ARG,
                              "negative");
        *counts[k] = 0;
    }
    run_deinit(&r);
}

/* With another locale's decimal point no other program could read it. */
static void test_checkpoint__rates_have_no_decimal_point(void **state)
{
    static const double rates[] = {0.0,       0.1,    3e-4,    1.0,
                                   0x1p-1074, 1e-310, DBL_MAX, DBL_MIN};
    (void)state;
    run r;
    run_init(&r, BRG_DTYPE_F32, true);
    brg_checkpoint c = describe(&r);
    const char *path = temp_path("rates");
    for (size_t k = 0; k < sizeof rates / sizeof *rates; k++) {
        brg_safetensors *file;
        assert_brg_ok(brg_optim_set_lr(r.optim, rates[k]));
        assert_brg_ok(brg_checkpoint_save(path, &c));
        assert_brg_ok(brg_safetensors_open(&file, path));
        const char *text = brg_safetensors_metadata(file, "brigade.lr");
        assert_int_equal(strspn(text, "0123456789abcdefxp-"), strlen(text));
        brg_safetensors_close(file);
        assert_brg_ok(brg_optim_set_lr(r.optim, 2.0));
        assert_brg_ok(brg_checkpoint_load(&c, path));
        assert_true(brg_optim_lr(r.optim) == rates[k]);
    }
    run_deinit(&r);
}

static void test_checkpoint__same_file_in_any_locale(void **state)
{
    (void)state;
    run r;
    run_init(&r, BRG_DTYPE_F32, true);
    assert_brg_ok(brg_optim_set_lr(r.optim, 0.1));
    brg_checkpoint c = describe(&r);
    const char *point = temp_path("point"), *comma = temp_path("comma");
    size_t n, n_comma;
    assert_brg_ok(brg_checkpoint_save(point, &c));
    use_decimal_comma();
    assert_brg_ok(brg_checkpoint_save(comma, &c));
    assert_brg_ok(brg_optim_set_lr(r.optim, 2.0));
    assert_brg_ok(brg_checkpoint_load(&c, point));
    use_decimal_point();
    assert_true(brg_optim_lr(r.optim) == 0.1);
    void *a = temp_read(point, &n), *b = temp_read(comma, &n_comma);
    assert_int_equal(n_comma, n);
    assert_memory_equal(a, b, n);
    free(a);
    free(b);
    run_deinit(&r);
}

/* ---- Out of memory ------------------------------------------------------------------- */

typedef struct oom {
    run r;
    char path[4096];
} oom;

static brg_status save_and_load(void *user)
{
    oom *o = user;
    brg_checkpoint_item item = {"key", "value"};
    brg_checkpoint c = describe(&o->r);
    c.items = &item;
    c.n_items = 1;
    BRG_TRY(brg_checkpoint_save(o->path, &c));
    return brg_checkpoint_load(&c, o->path);
}

static void test_checkpoint__out_of_memory(void **state)
{
    (void)state;
    oom o;
    run_init(&o.r, BRG_DTYPE_F32, true);
    snprintf(o.path, sizeof o.path, "%s", temp_path("oom"));
    assert_true(assert_oom_clean(save_and_load, &o) > 20);
    run_deinit(&o.r);
}

int main(void)
{
    fail_alloc_install();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_checkpoint__resumes_bit_for_bit),
        cmocka_unit_test(test_checkpoint__items_and_numbers),
        cmocka_unit_test(test_checkpoint__parameters_alone),
        cmocka_unit_test(test_checkpoint__another_optimizer),
        cmocka_unit_test(test_checkpoint__another_model_changes_nothing),
        cmocka_unit_test(test_checkpoint__damaged_file),
        cmocka_unit_test(test_checkpoint__values_that_do_not_fit),
        cmocka_unit_test(test_checkpoint__wrong_arguments),
        cmocka_unit_test(test_checkpoint__rates_have_no_decimal_point),
        cmocka_unit_test(test_checkpoint__same_file_in_any_locale),
        cmocka_unit_test(test_checkpoint__out_of_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
