/* SPDX-License-Identifier: Apache-2.0
 * Random numbers: the published answers of Philox, which number goes where,
 * moments, state, and the mask of dropout. */
#include <Random123/philox.h>
#include <math.h>

#include <brigade/autograd.h>
#include <brigade/ops.h>
#include <brigade/random.h>

#include "core/ops/isa.h"
#include "core/ops/random.h"
#include "tests/support/brg_test.h"

/* ---- Philox -------------------------------------------------------------- */

/* From the file kat_vectors of Random123: philox4x32, 10 rounds. */
static const struct {
    brg__random_block block;
    uint32_t answer[4];
} known[] = {
    {{{0, 0, 0, 0}, {0, 0}}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
    {{{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff},
      {0xffffffff, 0xffffffff}},
     {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
    {{{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
      {0xa4093822, 0x299f31d0}},
     {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
};

static void test_random__philox_gives_the_published_answers(void **state)
{
    (void)state;
    const brg__random_kernels *kernels = BRG__ISA_PICK(brg__random);
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        uint32_t words[BRG__RANDOM_WORDS];
        kernels->words(&known[i].block, words);
        assert_memory_equal(words, known[i].answer, sizeof known[i].answer);
    }
}

static uint32_t word_of(uint64_t seed, uint64_t offset, size_t k)
{
    uint64_t n = offset + k / 4;
    philox4x32_ctr_t counter = {{(uint32_t)n, (uint32_t)(n >> 32), 0, 0}};
    philox4x32_key_t key = {{(uint32_t)seed, (uint32_t)(seed >> 32)}};
    return philox4x32(counter, key).v[k % 4];
}

/* ---- Which number goes where --------------------------------------------- */

static void test_random__element_k_is_lane_k_mod_4_of_its_counter(void **state)
{
    (void)state;
    brg_scope *scope = brg_scope_begin();
    const uint64_t seed = 0x123456789abcdefu, offset = 0xfffffffeu;
    brg_random_set_state(&(brg_random_state){seed, offset});
    brg_tensor *t = brg_rand(BRG_DTYPE_F32, BRG_SHAPE(3, 67));
    const float *v = brg_tensor_data(assert_brg_some(t));
    for (size_t k = 0; k < 201; k++)
        assert_true(v[k] == (float)(word_of(seed, offset, k) >> 8) * 0x1p-24f);
    brg_random_state after;
    brg_random_get_state(&after);
    assert_int_equal(after.seed, seed);
    assert_int_equal(after.offset, offset + 51);
    brg_scope_end(scope);
}

static void test_random__same_numbers_in_any_memory_layout(void **state)
{
    (void)state;
    brg_scope *scope = brg_scope_begin();
    brg_tensor *row = brg_zeros(BRG_DTYPE_F32, BRG_SHAPE(35, 70));
    brg_tensor *memory = brg_zeros(BRG_DTYPE_F32, BRG_SHAPE(70, 35));
    brg_tensor *column =
        brg_as_strided(memory, BRG_SHAPE(35, 70), (const int64_t[]){1, 35}, 0);
    brg_seed(3);
    assert_brg_ok(brg_normal_(row, 1.0, 2.0));
    brg_seed(3);
    assert_brg_ok(brg_normal_(column, 1.0, 2.0));
    float a[35 * 70], b[35 * 70];
    assert_brg_ok(brg_tensor_read(row, a, sizeof a));
    assert_brg_ok(brg_tensor_read(column, b, sizeof b));
    assert_memory_equal(a, b, sizeof a);
    assert_int_equal(brg_tensor_version(row), 1);
    brg_scope_end(scope);
}

static void test_random__state_continues_a_sequence(void **state)
{
    (void)state;
    brg_scope *scope = brg_scope_begin();
    brg_random_state kept;
    brg_seed(17);
    assert_brg_some(brg_randn(BRG_DTYPE_F32, BRG_SHAPE(10)));
    brg_random_get_state(&kept);
    brg_tensor *a = brg_randn(BRG_DTYPE_F32, BRG_SHAPE(100));
    brg_random_set_state(&kept);
    brg_tensor *b = brg_randn(BRG_DTYPE_F32, BRG_SHAPE(100));
    assert_memory_equal(brg_tensor_data(a), brg_tensor_data(b), 400);
    brg_tensor *c = brg_randn(BRG_DTYPE_F32, BRG_SHAPE(100));
    assert_memory_not_equal(brg_tensor_data(b), brg_tensor_data(c), 400);
    brg_scope_end(scope);
}

/* Of the best set that there is here and the plain one. */
static void test_random__same_bits_in_all_instruction_sets(void **state)
{
    (void)state;
    const brg__random_kernels *best = BRG__ISA_PICK(brg__random);
    const brg__random_kernels *plain = &brg__random_base;
    const brg__random_unit unit = {0.3f, 1.7f, 24};
    const uint64_t seed = brg_test_seed(5);
    for (uint32_t k = 0; k < 20000; k++) {
        uint32_t words[BRG__RANDOM_WORDS];
        float want[BRG__RANDOM_WORDS], got[BRG__RANDOM_WORDS];
        brg__random_block block = {{k * BRG__RANDOM_COUNTERS, 0, 0, 0},
                                   {(uint32_t)seed, (uint32_t)(seed >> 32)}};
        plain->words(&block, words);
        plain->normal(words, want);
        best->normal(words, got);
        assert_memory_equal(got, want, sizeof want);
        plain->uniform(BRG__RANDOM_WORDS, words, &unit, want);
        best->uniform(BRG__RANDOM_WORDS, words, &unit, got);
        assert_memory_equal(got, want, sizeof want);
    }
}

/* ---- Distributions ------------------------------------------------------- */

typedef struct moments {
    double mean, variance, skewness, kurtosis, min, max;
} moments;

static moments moments_of(brg_tensor *t)
{
    brg_tensor *wide = brg_cast(assert_brg_some(t), BRG_DTYPE_F64);
    const double *v = brg_tensor_data(assert_brg_some(wide));
    size_t n = (size_t)brg_tensor_numel(wide);
    moments m = {.min = v[0], .max = v[0]};
    double sums[3] = {0};
    for (size_t i = 0; i < n; i++) {
        m.mean += v[i] / (double)n;
        m.min = fmin(m.min, v[i]);
        m.max = fmax(m.max, v[i]);
    }
    for (size_t i = 0; i < n; i++)
        for (int k = 0; k < 3; k++)
            sums[k] += pow(v[i] - m.mean, k + 2) / (double)n;
    m.variance = sums[0];
    m.skewness = sums[1] / pow(sums[0], 1.5);
    m.kurtosis = sums[2] / (sums[0] * sums[0]);
    return m;
}

static void test_random__moments(void **state)
{
    (void)state;
    brg_scope *scope = brg_scope_begin();
    brg_seed(brg_test_seed(99));
    for (int dtype = BRG_DTYPE_F64; dtype <= BRG_DTYPE_BF16; dtype++) {
        double coarse = dtype == BRG_DTYPE_BF16 ? 0.004 : 0.0;
        moments u =
            moments_of(brg_rand((brg_dtype)dtype, BRG_SHAPE(1000, 1000)));
        assert_true(fabs(u.mean - 0.5) < 0.002 + coarse);
        assert_true(fabs(u.variance - 1.0 / 12) < 0.001);
        assert_true(fabs(u.kurtosis - 1.8) < 0.01);
        assert_true(u.min >= 0.0 && u.min < 0.01 && u.max < 1.0 &&
                    u.max > 0.99);
        moments z =
            moments_of(brg_randn((brg_dtype)dtype, BRG_SHAPE(1000, 1000)));
        assert_true(fabs(z.mean) < 0.005);
        assert_true(fabs(z.variance - 1.0) < 0.01);
        assert_true(fabs(z.skewness) < 0.02);
        assert_true(fabs(z.kurtosis - 3.0) < 0.05);
        assert_true(z.max > 4.0 && z.max < 6.0);
    }
    brg_tensor *t = brg_empty(BRG_DTYPE_F32, BRG_SHAPE(300000));
    assert_brg_ok(brg_uniform_(t, -3.0, 5.0));
    moments u = moments_of(t);
    assert_true(fabs(u.mean - 1.0) < 0.03 && u.min >= -3.0 && u.max < 5.0);
    brg_scope_end(scope);
}

static void test_random__integers_and_permutations(void **state)
{
    (void)state;
    brg_scope *scope = brg_scope_begin();
    brg_seed(5);
    brg_tensor *t = assert_brg_some(brg_randint(-3, 4, BRG_SHAPE(7000)));
    const int64_t *v = brg_tensor_data(t);
    int counts[7] = {0};
    for (int i = 0; i < 7000; i++) {
        assert_true(v[i] >= -3 && v[i] < 4);
        counts[v[i] + 3]++;
    }
    for (int i = 0; i < 7; i++)
        assert_true(counts[i] > 850 && counts[i] < 1150);
    const int64_t *p = brg_tensor_data(assert_brg_some(brg_randperm(1000)));
    bool is_seen[1000] = {false};
    int n_fixed = 0;
    for (int64_t i = 0; i < 1000; i++) {
        assert_true(p[i] >= 0 && p[i] < 1000 && !is_seen[p[i]]);
        is_seen[p[i]] = true;
        n_fixed += p[i] == i;
    }
    assert_true(n_fixed < 8);
    assert_brg_some(brg_randperm(0));
    assert_brg_null_with(brg_randint(4, 4, BRG_SHAPE(1)), BRG_ERR_ARG,
                         "brg_randint");
    brg_scope_end(scope);
}

/* ---- Dropout ------------------------------------------------------------- */

static void test_random__dropout_has_one_mask_forward_and_backward(void **state)
{
    (void)state;
    brg_scope *scope = brg_scope_begin();
    brg_seed(8);
    brg_tensor *x = brg_ones(BRG_DTYPE_F32, BRG_SHAPE(50, 60));
    assert_brg_ok(brg_set_requires_grad(x, true));
    brg_tensor *y = assert_brg_some(brg_dropout(x, 0.25, true));
    brg_backward_options options = BRG_BACKWARD_OPTIONS_INIT;
    brg_tensor *g = brg_ones(BRG_DTYPE_F32, BRG_SHAPE(50, 60));
    options.grad_outputs = &g;
    assert_brg_ok(brg_backward_with(&y, 1, &options));
    const float *forward = brg_tensor_data(y);
    const float *backward = brg_tensor_data(brg_tensor_grad(x));
    int n_dropped = 0;
    for (size_t k = 0; k < 3000; k++) {
        bool is_dropped = word_of(8, 0, k) < 0x40000000u;
        assert_true(forward[k] == (is_dropped ? 0.0f : (float)(1 / 0.75)));
        assert_true(forward[k] == backward[k]);
        n_dropped += is_dropped;
    }
    assert_true(n_dropped > 650 && n_dropped < 850);
    brg_scope_end(scope);
}

static void test_random__dropout_at_its_ends(void **state)
{
    (void)state;
    brg_scope *scope = brg_scope_begin();
    brg_tensor *x = brg_ones(BRG_DTYPE_F32, BRG_SHAPE(50));
    assert_ptr_equal(brg_dropout(x, 0.5, false), x);
    assert_ptr_equal(brg_dropout(x, 0.0, true), x);
    const float *v = brg_tensor_data(brg_dropout(x, 1.0, true));
    for (int k = 0; k < 50; k++)
        assert_true(v[k] == 0.0f);
    assert_brg_null_with(brg_dropout(x, 1.5, true), BRG_ERR_ARG, "dropout");
    brg_tensor *whole = brg_ones(BRG_DTYPE_I64, BRG_SHAPE(5));
    assert_brg_null_with(brg_dropout(whole, 0.5, true), BRG_ERR_DTYPE,
                         "dropout");
    brg_scope_end(scope);
}

static void test_random__wrong_uses_are_refused(void **state)
{
    (void)state;
    brg_scope *scope = brg_scope_begin();
    assert_brg_null_with(brg_rand(BRG_DTYPE_I64, BRG_SHAPE(3)), BRG_ERR_DTYPE,
                         "brg_rand");
    brg_tensor *leaf = brg_ones(BRG_DTYPE_F32, BRG_SHAPE(3));
    assert_brg_ok(brg_set_requires_grad(leaf, true));
    assert_brg_fails_with(brg_normal_(leaf, 0, 1), BRG_ERR_STATE,
                          "brg_normal_");
    bool mode = brg_grad_mode_set(false);
    assert_brg_ok(brg_normal_(leaf, 0, 1));
    brg_grad_mode_set(mode);
    assert_brg_fails(brg_uniform_(leaf, 2, 1), BRG_ERR_ARG);
    brg_scope_end(scope);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_random__philox_gives_the_published_answers),
        cmocka_unit_test(test_random__element_k_is_lane_k_mod_4_of_its_counter),
        cmocka_unit_test(test_random__same_numbers_in_any_memory_layout),
        cmocka_unit_test(test_random__state_continues_a_sequence),
        cmocka_unit_test(test_random__same_bits_in_all_instruction_sets),
        cmocka_unit_test(test_random__moments),
        cmocka_unit_test(test_random__integers_and_permutations),
        cmocka_unit_test(
            test_random__dropout_has_one_mask_forward_and_backward),
        cmocka_unit_test(test_random__dropout_at_its_ends),
        cmocka_unit_test(test_random__wrong_uses_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
