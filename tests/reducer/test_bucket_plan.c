/* SPDX-License-Identifier: Apache-2.0
 * The bucket plan: tables of sizes and what must come of them. */
#include "tests/support/brg_test.h"
#include "tests/support/fail_alloc.h"

#include "reducer/bucket_plan.h"

#define MIB ((size_t)1 << 20)
#define MAX_PARAMS 64

static const brg_device cpu = {BRG_DEVICE_CPU, 0};

typedef struct plan_case {
    const char *name;
    size_t n_params;
    size_t nbytes[MAX_PARAMS];
    brg_dtype dtype[MAX_PARAMS]; /* none: f32 */
    bool has_dtypes;
    uint32_t group[MAX_PARAMS];
    size_t limits[3];
    size_t n_limits;
    size_t n_tail;
    size_t n_shards;
    const char *text;
} plan_case;

static brg_status make(brg__plan *plan, const plan_case *c,
                       const uint32_t *order)
{
    brg__plan_param params[MAX_PARAMS];
    for (size_t i = 0; i < c->n_params; i++)
        params[i] = (brg__plan_param){
            c->nbytes[i], c->has_dtypes ? c->dtype[i] : BRG_DTYPE_F32, cpu,
            c->group[i]};
    return brg__plan_make(plan,
                          &(brg__plan_request){.params = params,
                                               .n_params = c->n_params,
                                               .order = order,
                                               .limits = c->limits,
                                               .n_limits = c->n_limits,
                                               .n_tail = c->n_tail,
                                               .is_tail_alone = c->n_shards > 0,
                                               .n_shards = c->n_shards});
}

static const plan_case cases[] = {
    {.name = "one tensor",
     .n_params = 1,
     .nbytes = {100},
     .limits = {1000},
     .n_limits = 1,
     .text = "1 parameters, 1 buckets, 128 bytes\n"
             "bucket 0 f32, 128 bytes at 0: 0@0\n"},
    {.name = "four 2000 x 2000 under the default limits",
     .n_params = 4,
     .nbytes = {16000000, 16000000, 16000000, 16000000},
     .limits = {MIB, 25 * MIB},
     .n_limits = 2,
     .text = "4 parameters, 3 buckets, 64000000 bytes\n"
             "bucket 0 f32, 16000000 bytes at 0: 3@0\n"
             "bucket 1 f32, 32000000 bytes at 16000000: 2@16000000 "
             "1@32000000\n"
             "bucket 2 f32, 16000000 bytes at 48000000: 0@48000000\n"},
    {.name = "a limit is inclusive: reached is closed",
     .n_params = 4,
     .nbytes = {64, 64, 64, 64},
     .limits = {128},
     .n_limits = 1,
     .text = "4 parameters, 2 buckets, 256 bytes\n"
             "bucket 0 f32, 128 bytes at 0: 3@0 2@64\n"
             "bucket 1 f32, 128 bytes at 128: 1@128 0@192\n"},
    {.name = "with shards, buckets are cut evenly and the tail is apart",
     .n_params = 3,
     .nbytes = {64, 300, 64},
     .limits = {128},
     .n_limits = 1,
     .n_tail = 4,
     .n_shards = 3,
     .text = "3 parameters, 3 buckets, 640 bytes\n"
             "bucket 0 f32, 384 bytes at 0: 2@0 1@64\n"
             "bucket 1 f32, 192 bytes at 384: 0@384\n"
             "bucket 2 f32, 64 bytes at 576: tail@576\n"},
    {.name = "one byte less is not",
     .n_params = 4,
     .nbytes = {64, 64, 63, 64},
     .limits = {128},
     .n_limits = 1,
     .text = "4 parameters, 2 buckets, 256 bytes\n"
             "bucket 0 f32, 192 bytes at 0: 3@0 2@64 1@128\n"
             "bucket 1 f32, 64 bytes at 192: 0@192\n"},
    {.name = "a tensor is never split, the last limit repeats",
     .n_params = 5,
     .nbytes = {256, 256, 256, 256, 4096},
     .limits = {64, 512},
     .n_limits = 2,
     .text = "5 parameters, 3 buckets, 5120 bytes\n"
             "bucket 0 f32, 4096 bytes at 0: 4@0\n"
             "bucket 1 f32, 512 bytes at 4096: 3@4096 2@4352\n"
             "bucket 2 f32, 512 bytes at 4608: 1@4608 0@4864\n"},
    {.name = "limits go on for each dtype; complete first is first",
     .n_params = 4,
     .nbytes = {64, 64, 64, 64},
     .dtype = {BRG_DTYPE_F32, BRG_DTYPE_F16, BRG_DTYPE_F32, BRG_DTYPE_F16},
     .has_dtypes = true,
     .limits = {64, 1000},
     .n_limits = 2,
     .text = "4 parameters, 4 buckets, 256 bytes\n"
             "bucket 0 f16, 64 bytes at 0: 3@0\n"
             "bucket 1 f32, 64 bytes at 64: 2@64\n"
             "bucket 2 f16, 64 bytes at 128: 1@128\n"
             "bucket 3 f32, 64 bytes at 192: 0@192\n"},
    {.name = "an open bucket is numbered by its last tensor",
     .n_params = 3,
     .nbytes = {64, 64, 64},
     .dtype = {BRG_DTYPE_F32, BRG_DTYPE_BF16, BRG_DTYPE_F32},
     .has_dtypes = true,
     .limits = {1000},
     .n_limits = 1,
     .n_tail = 4,
     .text = "3 parameters, 2 buckets, 256 bytes\n"
             "bucket 0 bf16, 64 bytes at 0: 1@0\n"
             "bucket 1 f32, 192 bytes at 64: 2@64 0@128 tail@192\n"},
    {.name = "the tail has a bucket of its own if the last is not f32",
     .n_params = 2,
     .nbytes = {8, 64},
     .dtype = {BRG_DTYPE_F64, BRG_DTYPE_F32},
     .has_dtypes = true,
     .limits = {1000},
     .n_limits = 1,
     .n_tail = 3,
     .text = "2 parameters, 3 buckets, 192 bytes\n"
             "bucket 0 f32, 64 bytes at 0: 1@0\n"
             "bucket 1 f64, 64 bytes at 64: 0@64\n"
             "bucket 2 f32, 64 bytes at 128: tail@128\n"},
    {.name = "tensors without elements",
     .n_params = 3,
     .nbytes = {0, 4, 0},
     .limits = {1000},
     .n_limits = 1,
     .text = "3 parameters, 1 buckets, 64 bytes\n"
             "bucket 0 f32, 64 bytes at 0: 2@0 1@0 0@64\n"},
    {.name = "nothing",
     .limits = {1},
     .n_limits = 1,
     .text = "0 parameters, 0 buckets, 0 bytes\n"},
    {.name = "nothing but a tail",
     .limits = {1},
     .n_limits = 1,
     .n_tail = 17,
     .text = "0 parameters, 1 buckets, 128 bytes\n"
             "bucket 0 f32, 128 bytes at 0: tail@0\n"},
    {.name = "a group is not cut, and the others as if it were not there",
     .n_params = 6,
     .nbytes = {64, 64, 64, 64, 64, 64},
     .group = {1, 0, 1, 0, 1, 0},
     .limits = {64, 128},
     .n_limits = 2,
     .text = "6 parameters, 3 buckets, 384 bytes\n"
             "bucket 0 f32, 64 bytes at 0: 5@0\n"
             "bucket 1 f32, 128 bytes at 64: 3@64 1@128\n"
             "bucket 2 f32, 192 bytes at 192: 4@192 2@256 0@320\n"},
    {.name = "a group has a bucket for each dtype",
     .n_params = 5,
     .nbytes = {64, 64, 64, 64, 64},
     .dtype = {BRG_DTYPE_F32, BRG_DTYPE_F16, BRG_DTYPE_F32, BRG_DTYPE_F16,
               BRG_DTYPE_F32},
     .has_dtypes = true,
     .group = {1, 1, 1, 1, 2},
     .limits = {1},
     .n_limits = 1,
     .text = "5 parameters, 3 buckets, 320 bytes\n"
             "bucket 0 f32, 64 bytes at 0: 4@0\n"
             "bucket 1 f16, 128 bytes at 64: 3@64 1@128\n"
             "bucket 2 f32, 128 bytes at 192: 2@192 0@256\n"},
    {.name = "limit 0: each tensor alone",
     .n_params = 3,
     .nbytes = {4, 0, 4},
     .limits = {0},
     .n_limits = 1,
     .text = "3 parameters, 3 buckets, 128 bytes\n"
             "bucket 0 f32, 64 bytes at 0: 2@0\n"
             "bucket 1 f32, 0 bytes at 64: 1@64\n"
             "bucket 2 f32, 64 bytes at 64: 0@64\n"},
};

static void test_bucket_plan__follows_the_table(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        brg__plan plan;
        char text[1024];
        print_message("%s\n", cases[i].name);
        assert_brg_ok(make(&plan, &cases[i], NULL));
        assert_int_equal(brg__plan_print(&plan, text, sizeof text),
                         strlen(cases[i].text));
        assert_string_equal(text, cases[i].text);
        brg__plan_deinit(&plan);
    }
}

static void test_bucket_plan__takes_an_order(void **state)
{
    (void)state;
    const plan_case c = {.n_params = 3,
                         .nbytes = {64, 64, 64},
                         .limits = {64, 1000},
                         .n_limits = 2};
    const uint32_t order[] = {1, 2, 0};
    brg__plan plan, other;
    char text[512];
    assert_brg_ok(make(&plan, &c, order));
    (void)brg__plan_print(&plan, text, sizeof text);
    assert_string_equal(text, "3 parameters, 2 buckets, 192 bytes\n"
                              "bucket 0 f32, 64 bytes at 0: 1@0\n"
                              "bucket 1 f32, 128 bytes at 64: 2@64 0@128\n");
    assert_brg_ok(make(&other, &c, NULL));
    assert_true(brg__plan_hash(&plan) != brg__plan_hash(&other));
    brg__plan_deinit(&other);
    assert_brg_ok(make(&other, &c, order));
    assert_true(brg__plan_hash(&plan) == brg__plan_hash(&other));
    brg__plan_deinit(&other);
    brg__plan_deinit(&plan);
}

static void test_bucket_plan__refuses_a_bad_order(void **state)
{
    (void)state;
    const plan_case c = {
        .n_params = 3, .nbytes = {4, 4, 4}, .limits = {64}, .n_limits = 1};
    const uint32_t twice[] = {1, 1, 0}, unknown[] = {0, 1, 3};
    brg__plan plan;
    assert_brg_fails_with(make(&plan, &c, twice), BRG_ERR_ARG, "parameter 1");
    assert_brg_fails_with(make(&plan, &c, unknown), BRG_ERR_ARG, "parameter 3");
}

static void test_bucket_plan__refuses_more_than_memory(void **state)
{
    (void)state;
    plan_case c = {.n_params = 2,
                   .nbytes = {SIZE_MAX / 2, SIZE_MAX / 2},
                   .limits = {64},
                   .n_limits = 1};
    brg__plan plan;
    assert_brg_fails_with(make(&plan, &c, NULL), BRG_ERR_ARG, "memory");
    c.nbytes[0] = c.nbytes[1] = SIZE_MAX;
    assert_brg_fails(make(&plan, &c, NULL), BRG_ERR_ARG);
    c.nbytes[0] = c.nbytes[1] = (size_t)1
                                << 40; /* large, but it is only a plan */
    assert_brg_ok(make(&plan, &c, NULL));
    assert_int_equal(plan.nbytes, (size_t)1 << 41);
    brg__plan_deinit(&plan);
}

/* ---- Properties over random plans --------------------------------------------- */

static void shuffle(uint32_t *order, size_t n, uint64_t *seed)
{
    for (size_t i = 0; i < n; i++)
        order[i] = (uint32_t)i;
    for (size_t i = n; i > 1; i--) {
        size_t k = brg_test_random(seed) % i;
        uint32_t t = order[i - 1];
        order[i - 1] = order[k];
        order[k] = t;
    }
}

static void check_invariants(const brg__plan *plan, const plan_case *c)
{
    bool seen[MAX_PARAMS] = {false};
    size_t end = 0;
    assert_int_equal(plan->n_params, c->n_params);
    for (size_t k = 0; k < plan->n_buckets; k++) {
        const brg__plan_bucket *b = &plan->buckets[k];
        assert_int_equal(b->offset, end);
        assert_int_equal(b->nbytes % BRG__PLAN_ALIGN, 0);
        size_t at = b->offset;
        for (size_t i = 0; i < b->n_params; i++) {
            uint32_t p = plan->order[b->first + i];
            const brg__plan_slot *slot = &plan->slots[p];
            assert_false(seen[p]);
            seen[p] = true;
            assert_int_equal(slot->bucket, k);
            assert_true(slot->offset >= at);
            assert_int_equal(slot->offset % BRG__PLAN_ALIGN, 0);
            assert_int_equal(b->dtype, c->dtype[p]);
            assert_int_equal(c->group[p], c->group[plan->order[b->first]]);
            assert_int_equal(slot->nbytes, c->nbytes[p]);
            at = slot->offset + slot->nbytes;
        }
        end = b->offset + b->nbytes;
        assert_true(at <= end);
    }
    assert_int_equal(end, plan->nbytes);
    for (size_t i = 0; i < c->n_params; i++)
        assert_true(seen[i]);
    for (size_t i = 0; i < c->n_params; i++)
        for (size_t k = 0; k < i; k++)
            if (c->group[i] && c->group[i] == c->group[k] &&
                c->dtype[i] == c->dtype[k])
                assert_int_equal(plan->slots[i].bucket, plan->slots[k].bucket);
    assert_true(plan->tail_offset + plan->n_tail * 4 <= plan->nbytes);
    assert_int_equal(plan->buckets[plan->n_buckets - 1].dtype, BRG_DTYPE_F32);
}

static void test_bucket_plan__keeps_its_invariants(void **state)
{
    (void)state;
    static const brg_dtype dtypes[] = {BRG_DTYPE_F32, BRG_DTYPE_F16,
                                       BRG_DTYPE_F64};
    uint64_t seed = brg_test_seed(7);
    for (int round = 0; round < 500; round++) {
        plan_case c = {.has_dtypes = true, .n_limits = 3};
        uint32_t order[MAX_PARAMS];
        c.n_params = 1 + brg_test_random(&seed) % MAX_PARAMS;
        c.n_tail = c.n_params + 1;
        for (size_t i = 0; i < c.n_params; i++) {
            c.dtype[i] = dtypes[brg_test_random(&seed) % 3];
            c.nbytes[i] =
                brg_test_random(&seed) % 300 * brg_dtype_size(c.dtype[i]);
        }
        for (size_t i = 0; i < c.n_params && round % 2; i++)
            c.group[i] = (uint32_t)(brg_test_random(&seed) % 5);
        for (size_t k = 0; k < 3; k++)
            c.limits[k] = brg_test_random(&seed) % 2000;
        shuffle(order, c.n_params, &seed);
        brg__plan plan, first;
        assert_brg_ok(make(&plan, &c, order));
        check_invariants(&plan, &c);
        assert_brg_ok(make(&first, &c, NULL));
        assert_int_equal(first.nbytes, plan.nbytes);
        brg__plan_deinit(&first);
        brg__plan_deinit(&plan);
    }
}

static brg_status make_and_free(void *user)
{
    brg__plan plan;
    BRG_TRY(make(&plan, user, NULL));
    brg__plan_deinit(&plan);
    return BRG_OK;
}

static void test_bucket_plan__runs_out_of_memory_cleanly(void **state)
{
    (void)state;
    plan_case c = cases[4];
    assert_oom_clean(make_and_free, &c);
}

int main(void)
{
    fail_alloc_install();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bucket_plan__follows_the_table),
        cmocka_unit_test(test_bucket_plan__takes_an_order),
        cmocka_unit_test(test_bucket_plan__refuses_a_bad_order),
        cmocka_unit_test(test_bucket_plan__refuses_more_than_memory),
        cmocka_unit_test(test_bucket_plan__keeps_its_invariants),
        cmocka_unit_test(test_bucket_plan__runs_out_of_memory_cleanly),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
