/* SPDX-License-Identifier: Apache-2.0
 * The order of samples: exact, the same at every world size, resumable. */
#include <brigade/io.h>

#include "tests/support/brg_test.h"
#include "tests/support/fail_alloc.h"

static brg_sampler *make(int64_t n, int64_t batch, int rank, int world_size,
                         bool shuffle, bool drop_last)
{
    brg_sampler_options options = BRG_SAMPLER_OPTIONS_INIT;
    options.n_samples = n;
    options.global_batch = batch;
    options.rank = rank;
    options.world_size = world_size;
    options.seed = 1234567890123u;
    options.shuffle = shuffle;
    options.drop_last = drop_last;
    brg_sampler *sampler;
    assert_brg_ok(brg_sampler_create(&sampler, &options));
    return sampler;
}

/* Appends the rest of the epoch to `order`; returns how many. */
static size_t drain(brg_sampler *sampler, int64_t *order)
{
    size_t n = 0;
    for (brg_batch batch; brg_sampler_next(sampler, &batch);)
        for (size_t i = 0; i < batch.n; i++)
            order[n++] = batch.samples[i];
    return n;
}

static void test_sampler__each_sample_once_an_epoch(void **state)
{
    (void)state;
    enum { N = 103 };
    brg_sampler *sampler = make(N, 10, 0, 1, true, false);
    int64_t order[2][N];
    for (int epoch = 0; epoch < 2; epoch++) {
        bool seen[N] = {false};
        assert_int_equal(drain(sampler, order[epoch]), N);
        for (int i = 0; i < N; i++) {
            assert_in_range(order[epoch][i], 0, N - 1);
            assert_false(seen[order[epoch][i]]);
            seen[order[epoch][i]] = true;
        }
    }
    assert_memory_not_equal(order[0], order[1], sizeof order[0]);
    assert_int_equal(brg_sampler_tell(sampler).epoch, 2);
    brg_sampler_destroy(sampler);
}

static void test_sampler__in_order_without_shuffle(void **state)
{
    (void)state;
    brg_sampler *sampler = make(7, 3, 0, 1, false, true);
    int64_t order[7];
    assert_int_equal(brg_sampler_n_batches(sampler), 2);
    assert_int_equal(drain(sampler, order), 6);
    for (int i = 0; i < 6; i++)
        assert_int_equal(order[i], i);
    brg_sampler_destroy(sampler);
}

/* Puts batch g of all ranks together. */
static void gather(brg_sampler **ranks, int world_size, int64_t *samples,
                   size_t *n_global, double *weights)
{
    size_t n = 0;
    *weights = 0;
    for (int rank = 0; rank < world_size; rank++) {
        brg_batch batch;
        assert_true(brg_sampler_next(ranks[rank], &batch));
        assert_int_equal(batch.first, n);
        assert_int_equal(
            batch.n, brg_sampler_count(ranks[0], batch.position.batch, rank));
        for (size_t i = 0; i < batch.n; i++)
            samples[n++] = batch.samples[i];
        *n_global = batch.n_global;
        *weights += batch.weight;
    }
    assert_int_equal(n, *n_global);
}

static void check_world(int world_size, bool drop_last)
{
    enum { N = 101, BATCH = 24 };
    brg_sampler *one = make(N, BATCH, 0, 1, true, drop_last);
    brg_sampler *ranks[8];
    for (int rank = 0; rank < world_size; rank++)
        ranks[rank] = make(N, BATCH, rank, world_size, true, drop_last);
    for (int64_t g = 0; g < 2 * brg_sampler_n_batches(one); g++) {
        if (g == brg_sampler_n_batches(one)) {
            brg_batch none;
            assert_false(brg_sampler_next(one, &none));
            for (int rank = 0; rank < world_size; rank++)
                assert_false(brg_sampler_next(ranks[rank], &none));
        }
        brg_batch batch;
        int64_t samples[BATCH];
        size_t n_global;
        double weights;
        assert_true(brg_sampler_next(one, &batch));
        gather(ranks, world_size, samples, &n_global, &weights);
        assert_int_equal(n_global, batch.n);
        assert_memory_equal(samples, batch.samples, n_global * sizeof *samples);
        assert_true(weights > world_size - 1e-9 && weights < world_size + 1e-9);
        assert_true(batch.weight == 1.0);
    }
    for (int rank = 0; rank < world_size; rank++)
        brg_sampler_destroy(ranks[rank]);
    brg_sampler_destroy(one);
}

static void test_sampler__same_batches_at_every_world_size(void **state)
{
    (void)state;
    const int sizes[] = {1, 2, 3, 4, 7, 8};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        check_world(sizes[i], false);
        check_world(sizes[i], true);
    }
}

static void test_sampler__uneven_tail(void **state)
{
    (void)state;
    brg_sampler *sampler = make(18, 8, 3, 4, false, false);
    assert_int_equal(brg_sampler_n_batches(sampler), 3);
    const size_t expected[] = {1, 1, 0, 0}; /* of the last 2 */
    for (int rank = 0; rank < 4; rank++) {
        assert_int_equal(brg_sampler_count(sampler, 0, rank), 2);
        assert_int_equal(brg_sampler_count(sampler, 2, rank), expected[rank]);
    }
    assert_int_equal(brg_sampler_count(sampler, 3, 0), 0);
    assert_int_equal(brg_sampler_count(sampler, 0, 4), 0);
    brg_batch batch;
    assert_brg_ok(brg_sampler_seek(sampler, (brg_sampler_position){0, 2}));
    assert_true(brg_sampler_next(sampler, &batch));
    assert_int_equal(batch.n, 0);
    assert_int_equal(batch.n_global, 2);
    assert_true(batch.weight == 0.0);
    brg_sampler_destroy(sampler);
}

static void test_sampler__resumes_where_it_stood(void **state)
{
    (void)state;
    brg_sampler *whole = make(50, 8, 1, 2, true, false);
    brg_sampler *resumed = make(50, 8, 1, 2, true, false);
    int64_t order[50], expected[50], found[50];
    drain(whole, order);
    brg_batch batch;
    for (int i = 0; i < 3; i++)
        assert_true(brg_sampler_next(whole, &batch));
    brg_sampler_position position = brg_sampler_tell(whole);
    assert_int_equal(position.epoch, 1);
    assert_int_equal(position.batch, 3);
    assert_brg_ok(brg_sampler_seek(resumed, position));
    size_t n = drain(whole, expected);
    assert_int_equal(drain(resumed, found), n);
    assert_memory_equal(found, expected, n * sizeof *found);
    assert_brg_ok(brg_sampler_seek(resumed, (brg_sampler_position){0, 7}));
    assert_false(brg_sampler_next(resumed, &batch));
    assert_int_equal(brg_sampler_tell(resumed).epoch, 1);
    brg_sampler_destroy(whole);
    brg_sampler_destroy(resumed);
}

/* Where each sample lands in 3000 epochs: about as often everywhere. */
static void test_sampler__shuffles_evenly(void **state)
{
    (void)state;
    enum { N = 6, EPOCHS = 3000 };
    int seen[N][N] = {{0}};
    brg_sampler *sampler = make(N, N, 0, 1, true, false);
    for (int epoch = 0; epoch < EPOCHS; epoch++) {
        int64_t order[N];
        drain(sampler, order);
        for (int i = 0; i < N; i++)
            seen[i][order[i]]++;
    }
    for (int i = 0; i < N; i++) /* 500 each, deviation about 20 */
        for (int k = 0; k < N; k++)
            assert_in_range(seen[i][k], 400, 600);
    brg_sampler_destroy(sampler);
}

static void test_sampler__errors(void **state)
{
    (void)state;
    brg_sampler *sampler;
    brg_sampler_options options = BRG_SAMPLER_OPTIONS_INIT;
    assert_brg_fails(brg_sampler_create(&sampler, NULL), BRG_ERR_ARG);
    assert_brg_fails(brg_sampler_create(&sampler, &options), BRG_ERR_ARG);
    options.n_samples = 5;
    options.global_batch = 8;
    options.drop_last = true;
    assert_brg_fails_with(brg_sampler_create(&sampler, &options), BRG_ERR_ARG,
                          "drop_last");
    options.drop_last = false;
    options.rank = 2;
    options.world_size = 2;
    assert_brg_fails_with(brg_sampler_create(&sampler, &options), BRG_ERR_ARG,
                          "rank 2");
    options.rank = 1;
    assert_brg_ok(brg_sampler_create(&sampler, &options));
    assert_brg_fails_with(
        brg_sampler_seek(sampler, (brg_sampler_position){0, 2}), BRG_ERR_ARG,
        "1 batches");
    assert_brg_fails(brg_sampler_seek(sampler, (brg_sampler_position){-1, 0}),
                     BRG_ERR_ARG);
    brg_sampler_destroy(sampler);
    brg_sampler_destroy(NULL);
}

static brg_status create_and_destroy(void *user)
{
    (void)user;
    brg_sampler_options options = BRG_SAMPLER_OPTIONS_INIT;
    options.n_samples = 100;
    options.global_batch = 8;
    brg_sampler *sampler;
    BRG_TRY(brg_sampler_create(&sampler, &options));
    brg_sampler_destroy(sampler);
    return BRG_OK;
}

static void test_sampler__out_of_memory(void **state)
{
    (void)state;
    assert_int_equal(assert_oom_clean(create_and_destroy, NULL), 2);
}

int main(void)
{
    fail_alloc_install();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sampler__each_sample_once_an_epoch),
        cmocka_unit_test(test_sampler__in_order_without_shuffle),
        cmocka_unit_test(test_sampler__same_batches_at_every_world_size),
        cmocka_unit_test(test_sampler__uneven_tail),
        cmocka_unit_test(test_sampler__resumes_where_it_stood),
        cmocka_unit_test(test_sampler__shuffles_evenly),
        cmocka_unit_test(test_sampler__errors),
        cmocka_unit_test(test_sampler__out_of_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
