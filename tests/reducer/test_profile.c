/* SPDX-License-Identifier: Apache-2.0
 * Profiles: what is recorded of steps, their files, their groups. */
#include <brigade/schedule.h>

#include "tests/reducer/timed_step.h"
#include "tests/support/brg_test.h"
#include "tests/support/ranks.h"
#include "tests/support/temp_dir.h"

static brg_status profile_rank(brg_pg *pg, void *user)
{
    brg_reducer *r;
    brg_profile *p;
    uint64_t ns;
    BRG_TRY(timed_create(&r, pg, NULL));
    RANK_FAILS(brg_reducer_record(r, 1), BRG_ERR_ARG, "1 steps");
    BRG_TRY(brg_reducer_record(r, 3));
    RANK_FAILS(brg_reducer_get_profile(r, &p), BRG_ERR_STATE, "0 steps");
    for (int step = 0; step < 5; step++) {
        BRG_TRY(timed_step(pg, r, &ns));
        brg_sim_spend_ns(pg, 5000); /* the update */
    }
    BRG_TRY(brg_reducer_get_profile(r, &p));
    RANK_CHECK(p->n == N_GRADS, "%zu gradients", p->n);
    uint64_t at = 0;
    for (size_t k = 0; k < N_GRADS; k++) {
        const brg_profile_grad *g = &p->grads[k];
        size_t i = N_GRADS - 1 - k;
        at += k ? work_ns[k] : 0;
        RANK_CHECK(g->ready_ns == at, "gradient %zu was ready at %llu", i,
                   (unsigned long long)g->ready_ns);
        RANK_CHECK(g->nbytes == (4 * counts[i] + 63) / 64 * 64, "%zu: %llu", i,
                   (unsigned long long)g->nbytes);
    }
    RANK_CHECK(p->backward_ns == at, "backward");
    RANK_CHECK(p->step_ns == at + work_ns[0] + 5000, "a step takes %llu",
               (unsigned long long)p->step_ns);
    brg_status status = BRG_OK;
    if (brg_pg_rank(pg) == 0)
        status = brg_profile_write(p, user);
    brg_profile_destroy(p);
    brg_reducer_destroy(r);
    return status;
}

static void test_profile__is_written_and_read(void **state)
{
    (void)state;
    const char *path = temp_path("profile");
    brg_sim_options world = BRG_SIM_OPTIONS_INIT;
    world.bytes_per_s = 1e8;
    assert_brg_ok(brg_sim_run(2, &world, profile_rank, (void *)path));
    brg_profile *p;
    assert_brg_ok(brg_profile_read(&p, path));
    assert_int_equal(p->n, N_GRADS);
    assert_string_equal(p->grads[0].name, "parameter 6");
    assert_int_equal(p->grads[1].ready_ns, work_ns[1]);
    assert_int_equal(p->grads[0].dtype, BRG_DTYPE_F32);
    assert_true(p->tail_nbytes > 0);
    brg_profile_destroy(p);
    assert_brg_fails(brg_profile_read(&p, temp_path("none")), BRG_ERR_IO);
}

/* By a clock that goes on between two looks. */
static void test_profile__of_real_time(void **state)
{
    (void)state;
    enum { N = 3, N_RECORDED = 9 };
    const char *path = temp_path("profile");
    double grads[N] = {1, 2, 3};
    brg_reducer_param params[N];
    for (int i = 0; i < N; i++)
        params[i] = (brg_reducer_param){
            .grad = &grads[i], .count = 1, .dtype = BRG_DTYPE_F64};
    brg_pg *pg;
    brg_reducer *r;
    brg_profile *p;
    assert_brg_ok(brg_pg_create_self(&pg));
    assert_brg_ok(brg_reducer_create(&r, pg, params, N, NULL));
    assert_brg_ok(brg_reducer_record(r, N_RECORDED));
    for (int step = 0; step < N_RECORDED; step++) {
        for (size_t i = N; i-- > 0;)
            assert_brg_ok(brg_reducer_mark_ready(r, i));
        assert_brg_ok(brg_reducer_wait(r));
    }
    assert_brg_ok(brg_reducer_get_profile(r, &p));
    assert_true(p->grads[N - 1].ready_ns <= p->backward_ns);
    assert_brg_ok(brg_profile_write(p, path));
    brg_profile_destroy(p);
    assert_brg_ok(brg_profile_read(&p, path));
    brg_profile_destroy(p);
    brg_reducer_destroy(r);
    brg_pg_destroy(pg);
}

#define GROUPED(number)                                                        \
    "brigade-profile 1\nstep\t9\t9\t0\ngrad\tf32\t4\t2\ta\ngroup\t" number "\n"

static void test_profile__damaged_ones_are_refused(void **state)
{
    (void)state;
    static const char *const texts[] = {
        "",
        "brigade-profile 2\nstep\t1\t1\t0\ngrad\tf32\t4\t0\ta\n",
        "brigade-profile 1\ngrad\tf32\t4\t0\ta\n",
        "brigade-profile 1\nstep\t1\t1\t0\n",
        "brigade-profile 1\nstep\t1\t1\t0\ngrad\tf31\t4\t0\ta\n",
        "brigade-profile 1\nstep\t1\t1\t0\ngrad\tf32\t4\n",
        "brigade-profile 1\nstep\t1\t1\t0\ngrad\tf32\t4\t2\ta\n",
        ("brigade-profile 1\nstep\t9\t9\t0\ngrad\tf32\t4\t2\ta\n"
         "grad\tf32\t4\t1\tb\n"),
        "brigade-profile 1\nstep\t9\t-1\t0\ngrad\tf32\t4\t2\ta\n",
        "brigade-profile 1\nstep\t-9\t9\t0\ngrad\tf32\t4\t2\ta\n",
        "brigade-profile 1\nstep\t9\t9\t-1\ngrad\tf32\t4\t2\ta\n",
        "brigade-profile 1\nstep\t9\t9\t0\ngrad\tf32\t-4\t2\ta\n",
        "brigade-profile 1\nstep\t9\t9\t0\ngrad\tf32\t4\t2\ta\nnothing\n"};
    for (size_t k = 0; k < sizeof texts / sizeof texts[0]; k++) {
        brg_profile *p;
        const char *path = temp_file("damaged", texts[k], strlen(texts[k]));
        assert_brg_fails_with(brg_profile_read(&p, path), BRG_ERR_FORMAT,
                              "is no profile");
        assert_null(p);
    }
}

/* ---- Groups -------------------------------------------------------------------------- */

static const uint32_t bucket_groups[N_GRADS] = {0, 2, 0, 1, 0, 2, 1};

/* Which bucket of the reducer's each gradient of the profile is in. */
static brg_status read_buckets(const brg_reducer *r, uint32_t *buckets)
{
    brg_reducer_stats stats;
    brg_reducer_get_stats(r, &stats);
    for (size_t k = 0; k < stats.n_buckets; k++) {
        brg_bucket_info info;
        BRG_TRY(brg_reducer_get_bucket(r, k, &info));
        for (size_t j = 0; j < info.n_params; j++)
            buckets[N_GRADS - 1 - info.params[j]] = (uint32_t)k;
    }
    return BRG_OK;
}

static brg_status check_groups(const brg_reducer *r, const brg_profile *p,
                               const brg_reducer_options *options)
{
    const brg_link none = {.n = 1}; /* takes no time */
    uint32_t buckets[N_GRADS], predicted[N_GRADS];
    BRG_TRY(read_buckets(r, buckets));
    BRG_TRY(brg_schedule_by_size(predicted, p, options->first_bucket_bytes,
                                 options->bucket_bytes));
    for (size_t k = 0; k < N_GRADS; k++) {
        RANK_CHECK(p->grads[k].group == bucket_groups[N_GRADS - 1 - k],
                   "gradient %zu is in group %u", k, p->grads[k].group);
        RANK_CHECK(buckets[k] == predicted[k],
                   "gradient %zu is in bucket %u, predicted %u", k, buckets[k],
                   predicted[k]);
    }
    /* Nothing is exposed by sending all at the end, and groups do not count. */
    BRG_TRY(brg_schedule_choose(predicted, p, &none));
    for (size_t k = 0; k < N_GRADS; k++)
        RANK_CHECK(predicted[k] == 0, "gradient %zu is in bucket %u", k,
                   predicted[k]);
    return BRG_OK;
}

static brg_status grouped_rank(brg_pg *pg, void *user)
{
    brg_reducer_options options = BRG_REDUCER_OPTIONS_INIT;
    brg_reducer *r;
    brg_profile *p, *again = NULL;
    uint64_t ns;
    options.first_bucket_bytes = 1000;
    options.bucket_bytes = 200000;
    options.bucket_groups = bucket_groups;
    options.n_bucket_groups = 2;
    BRG_TRY(timed_create(&r, pg, &options));
    BRG_TRY(brg_reducer_record(r, 3));
    for (int step = 0; step < 4; step++)
        BRG_TRY(timed_step(pg, r, &ns));
    BRG_TRY(brg_reducer_get_profile(r, &p));
    brg_status status = check_groups(r, p, &options);
    if (status == BRG_OK && brg_pg_rank(pg) == 0) {
        status = brg_profile_write(p, user);
        if (status == BRG_OK)
            status = brg_profile_read(&again, user);
        if (status == BRG_OK)
            status = check_groups(r, again, &options);
    }
    brg_profile_destroy(again);
    brg_profile_destroy(p);
    brg_reducer_destroy(r);
    return status;
}

static void test_profile__groups_have_the_reducers_buckets(void **state)
{
    (void)state;
    assert_brg_ok(
        brg_sim_run(2, NULL, grouped_rank, (void *)temp_path("grouped")));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_profile__is_written_and_read),
        cmocka_unit_test(test_profile__of_real_time),
        cmocka_unit_test(test_profile__damaged_ones_are_refused),
        cmocka_unit_test(test_profile__groups_have_the_reducers_buckets),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
