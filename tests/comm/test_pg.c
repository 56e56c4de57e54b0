/* SPDX-License-Identifier: Apache-2.0
 * The front: groups of one, the fake group and its log, works, registry, and
 * running out of memory. */
#include <brigade/ext/backend.h>

#include "comm/pg.h"
#include "tests/support/backend_suite.h"
#include "tests/support/brg_test.h"

static brg_work *start(brg_pg *pg, float *x, size_t n)
{
    brg_work *work;
    assert_brg_ok(
        brg_all_reduce(pg, &work, x, n, BRG_DTYPE_F32, BRG_REDUCE_SUM));
    return work;
}

static brg_pg *make_fake(int rank, int n)
{
    brg_pg *pg;
    assert_brg_ok(brg_pg_create_fake(&pg, rank, n));
    return pg;
}

/* ---- A group of one ------------------------------------------------------------- */

static void test_self__keeps_the_contract(void **state)
{
    (void)state;
    brg_pg *pg;
    assert_brg_ok(brg_pg_create(&pg, "self", NULL));
    assert_string_equal(brg_pg_backend_name(pg), "self");
    assert_int_equal(brg_pg_world_size(pg), 1);
    assert_brg_ok(brg_suite_run(pg, 0));
    brg_pg_destroy(pg);
    assert_brg_ok(brg_pg_create_self(&pg));
#if !defined(__SANITIZE_ADDRESS__)
    assert_brg_ok(brg_suite_steady_state(pg));
#endif
    brg_pg_destroy(pg);
}

static void test_pg__counts_what_it_does(void **state)
{
    (void)state;
    brg_pg *pg = make_fake(0, 2);
    float x[8];
    brg_pg_stats stats;
    assert_brg_ok(brg_work_wait(start(pg, x, 8)));
    brg_pg_get_stats(pg, &stats);
    assert_int_equal(stats.n_collectives, 1);
    assert_int_equal(stats.n_bytes, 32);
    assert_true(stats.n_polls > 0);
    brg_pg_destroy(pg);
}

static void test_pg__null_is_an_error_or_nothing(void **state)
{
    (void)state;
    brg_work *work;
    brg_pg_destroy(NULL);
    brg_work_release(NULL);
    brg_pg_progress(NULL);
    assert_true(brg_work_test(NULL));
    assert_brg_fails(brg_work_wait(NULL), BRG_ERR_ARG);
    assert_brg_fails(brg_barrier(NULL, &work), BRG_ERR_ARG);
    assert_brg_fails(brg_pg_create(NULL, "self", NULL), BRG_ERR_ARG);
    assert_brg_fails(brg_pg_error(NULL), BRG_ERR_ARG);
    assert_int_equal(brg_pg_rank(NULL), -1);
}

static void test_pg__bad_arguments_name_rank_and_expectation(void **state)
{
    (void)state;
    brg_pg *pg = make_fake(1, 3);
    brg_work *work;
    _Alignas(8) char x[16];
    assert_brg_fails_with(brg_broadcast(pg, &work, x, 1, BRG_DTYPE_F32, 3),
                          BRG_ERR_ARG,
                          "rank 1: broadcast: root is 3, expected 0 to 2");
    assert_null(work);
    assert_brg_fails_with(
        brg_all_reduce(pg, &work, x, 1, (brg_dtype)99, BRG_REDUCE_SUM),
        BRG_ERR_ARG, "unknown dtype 99");
    assert_brg_fails_with(
        brg_all_reduce(pg, &work, x, 1, BRG_DTYPE_F32, (brg_reduce_op)9),
        BRG_ERR_ARG, "unknown reduction 9");
    assert_brg_fails_with(
        brg_all_reduce(pg, &work, x + 1, 1, BRG_DTYPE_F32, BRG_REDUCE_SUM),
        BRG_ERR_ARG, "aligned");
    assert_brg_fails_with(brg_all_gather(pg, &work, NULL, x, 1, BRG_DTYPE_F32),
                          BRG_ERR_ARG, "receive is NULL");
    assert_brg_ok(brg_pg_error(pg));
    assert_int_equal(brg_fake_n_calls(pg), 0);
    brg_pg_destroy(pg);
}

/* ---- The fake group ----------------------------------------------------------------- */

static void test_fake__logs_every_call(void **state)
{
    (void)state;
    brg_pg *pg = make_fake(1, 4);
    float x[16] = {0};
    brg_work *works[3];
    brg_fake_call call;
    assert_brg_ok(
        brg_all_reduce(pg, &works[0], x, 5, BRG_DTYPE_F32, BRG_REDUCE_AVG));
    assert_brg_ok(brg_broadcast(pg, &works[1], x, 2, BRG_DTYPE_F32, 3));
    assert_brg_ok(brg_send(pg, &works[2], x, 7, BRG_DTYPE_I32, 2));
    for (int i = 0; i < 3; i++)
        assert_brg_ok(brg_work_wait(works[i]));
    assert_int_equal(brg_fake_n_calls(pg), 3);
    assert_brg_ok(brg_fake_call_at(pg, 0, &call));
    assert_string_equal(call.name, "all_reduce");
    assert_int_equal(call.count, 5);
    assert_int_equal(call.op, BRG_REDUCE_AVG);
    assert_int_equal(call.peer, -1);
    assert_brg_ok(brg_fake_call_at(pg, 2, &call));
    assert_string_equal(call.name, "send");
    assert_int_equal(call.dtype, BRG_DTYPE_I32);
    assert_int_equal(call.peer, 2);
    assert_brg_fails_with(brg_fake_call_at(pg, 3, &call), BRG_ERR_ARG,
                          "call 3 of 3");
    brg_pg_destroy(pg);
}

static void test_fake__moves_its_own_data(void **state)
{
    (void)state;
    brg_pg *pg = make_fake(1, 3);
    int32_t send[3] = {10, 11, 12}, recv[3] = {0};
    brg_work *work;
    assert_brg_ok(brg_all_gather(pg, &work, recv, send, 1, BRG_DTYPE_I32));
    assert_brg_ok(brg_work_wait(work));
    for (int i = 0; i < 3; i++)
        assert_int_equal(recv[i], 10);
    assert_brg_ok(brg_reduce_scatter(pg, &work, recv, send, 1, BRG_DTYPE_I32,
                                     BRG_REDUCE_SUM));
    assert_brg_ok(brg_work_wait(work));
    assert_int_equal(recv[0], 11);
    brg_pg_destroy(pg);
}

static void test_fake__fails_when_told_and_stays_failed(void **state)
{
    (void)state;
    brg_pg *pg = make_fake(2, 4);
    float x[4];
    brg_work *later;
    assert_brg_ok(brg_fake_fail_after(pg, 1));
    assert_brg_ok(brg_work_wait(start(pg, x, 4)));
    brg_work *bad = start(pg, x, 4);
    assert_brg_fails_with(brg_work_wait(bad), BRG_ERR_COMM,
                          "rank 2: all_reduce #1 (4 f32, sum)");
    assert_brg_fails_with(brg_barrier(pg, &later), BRG_ERR_COMM,
                          "all_reduce #1");
    assert_brg_fails(brg_pg_error(pg), BRG_ERR_COMM);
    assert_brg_ok(brg_fake_fail_after(pg, -1));
    assert_brg_ok(brg_work_wait(start(pg, x, 4)));
    brg_pg_destroy(pg);
}

static void test_fake__checks_its_place(void **state)
{
    (void)state;
    brg_pg *pg;
    assert_brg_fails_with(brg_pg_create_fake(&pg, 4, 4), BRG_ERR_ARG,
                          "rank is 4, expected 0 to 3");
    assert_brg_fails(brg_pg_create_fake(&pg, 0, 0), BRG_ERR_ARG);
    assert_brg_ok(brg_pg_create_self(&pg));
    assert_brg_fails_with(brg_fake_fail_after(pg, 0), BRG_ERR_ARG,
                          "not a fake");
    brg_pg_destroy(pg);
}

/* ---- Works ------------------------------------------------------------------------------ */

static void test_work__is_in_flight_until_polled(void **state)
{
    (void)state;
    brg_pg *pg = make_fake(0, 2);
    float x[4];
    brg_work *work = start(pg, x, 4);
    brg_pg_progress(pg);
    assert_true(brg_work_test(work));
    assert_brg_ok(brg_work_wait(work));
    brg_pg_destroy(pg);
}

static void test_work__released_ones_go_on(void **state)
{
    (void)state;
    brg_pg *pg = make_fake(0, 2);
    brg_memory_stats before, after;
    float x[4];
    assert_brg_ok(brg_work_wait(start(pg, x, 4))); /* makes room in the log */
    brg_memory_get_stats(&before);
    brg_work_release(start(pg, x, 4));
    brg_pg_progress(pg);
    brg_memory_get_stats(&after);
    assert_int_equal(after.in_use, before.in_use);
    brg_work_release(start(pg, x, 4)); /* freed with the group */
    brg_pg_destroy(pg);
}

static void test_work__outlives_its_group_with_an_error(void **state)
{
    (void)state;
    brg_pg *pg = make_fake(0, 2);
    float x[4];
    brg_work *a = start(pg, x, 4), *b = start(pg, x, 4);
    brg_pg_destroy(pg);
    assert_true(brg_work_test(a));
    assert_brg_fails_with(brg_work_wait(a), BRG_ERR_STATE, "destroyed");
    brg_work_release(b);
}

static void test_work__coalescing_is_checked(void **state)
{
    (void)state;
    brg_pg *pg = make_fake(0, 2);
    assert_brg_fails_with(brg_coalesce_end(pg), BRG_ERR_STATE, "no begin");
    assert_brg_ok(brg_coalesce_begin(pg));
    assert_brg_fails_with(brg_coalesce_begin(pg), BRG_ERR_STATE,
                          "begun already");
    assert_brg_ok(brg_coalesce_end(pg));
    brg_pg_destroy(pg);
}

/* ---- Registry --------------------------------------------------------------------------- */

static brg_status never_create(const brg_host *host,
                               const brg_pg_options *options, brg_group *out)
{
    (void)options;
    (void)out;
    return (host->fail)(BRG_ERR_UNSUPPORTED, __FILE__, __LINE__, "never");
}

static void test_registry__refuses_what_it_cannot_use(void **state)
{
    (void)state;
    brg_backend wrong = {.abi = BRG_BACKEND_ABI + 1,
                         .struct_size = sizeof wrong,
                         .name = "wrong",
                         .create = never_create};
    assert_brg_fails_with(brg_backend_register(&wrong), BRG_ERR_ABI,
                          "expected ABI 6");
    wrong.abi = BRG_BACKEND_ABI;
    wrong.name = "Not A Name";
    assert_brg_fails_with(brg_backend_register(&wrong), BRG_ERR_ARG,
                          "Not A Name");
    wrong.name = "self";
    assert_brg_fails_with(brg_backend_register(&wrong), BRG_ERR_STATE,
                          "another one");
    assert_brg_fails(brg_backend_register(NULL), BRG_ERR_ARG);
}

static void test_registry__registered_names_are_found(void **state)
{
    (void)state;
    static const brg_backend never = {.abi = BRG_BACKEND_ABI,
                                      .struct_size = sizeof never,
                                      .name = "never",
                                      .create = never_create};
    brg_pg *pg;
    assert_brg_ok(brg_backend_register(&never));
    assert_brg_ok(brg_backend_register(&never));
    assert_brg_ok(brg_backend_load("never"));
    assert_brg_fails_with(brg_pg_create(&pg, "never", NULL),
                          BRG_ERR_UNSUPPORTED, "never");
    assert_null(pg);
}

static void test_registry__says_what_it_tried(void **state)
{
    (void)state;
    brg_pg *pg;
    setenv("BRG_BACKEND_PATH", "/nowhere:/else", 1);
    assert_brg_fails_with(brg_pg_create(&pg, "missing", NULL),
                          BRG_ERR_NOT_FOUND, "/nowhere/libbrigade_missing.so");
    assert_non_null(strstr(brg_error_message(), "/else/libbrigade_missing.so"));
    unsetenv("BRG_BACKEND_PATH");
    assert_brg_fails(brg_backend_load("../evil"), BRG_ERR_ARG);
}

static void test_registry__options_are_checked(void **state)
{
    (void)state;
    brg_pg *pg;
    brg_pg_options options = {0};
    assert_brg_fails_with(brg_pg_create(&pg, "self", &options), BRG_ERR_ARG,
                          "struct_size");
    options = (brg_pg_options)BRG_PG_OPTIONS_INIT;
    options.timeout_s = -1;
    assert_brg_fails_with(brg_pg_create(&pg, "self", &options), BRG_ERR_ARG,
                          "timeout_s is -1");
}

/* ---- Out of memory -------------------------------------------------------------------------- */

static int64_t budget;

static void *scarce_alloc(void *user, size_t nbytes, size_t alignment)
{
    (void)user;
    if (budget-- <= 0)
        return NULL;
    void *ptr;
    return posix_memalign(&ptr, alignment, nbytes) == 0 ? ptr : NULL;
}

static void scarce_free(void *user, void *ptr, size_t nbytes, size_t alignment)
{
    (void)user;
    (void)nbytes;
    (void)alignment;
    free(ptr);
}

/* A whole life of a group; with too little memory it fails cleanly. */
static brg_status live(brg_pg *pg)
{
    brg_work *work;
    float *data;
    BRG_TRY(brg_pg_alloc(pg, (void **)&data, 64));
    for (int i = 0; i < 20; i++) {
        BRG_TRY(
            brg_all_reduce(pg, &work, data, 16, BRG_DTYPE_F32, BRG_REDUCE_SUM));
        BRG_TRY(brg_work_wait(work));
    }
    return BRG_OK;
}

static brg_status live_alone(void)
{
    brg_pg *pg;
    BRG_TRY(brg_pg_create_fake(&pg, 0, 2));
    brg_status status = live(pg);
    brg_pg_destroy(pg);
    return status;
}

static brg_status live_in_world(brg_pg *pg, void *user)
{
    (void)user;
    return live(pg);
}

static void sweep(bool is_world)
{
    const brg_allocator scarce = {.struct_size = sizeof scarce,
                                  .alloc = scarce_alloc,
                                  .free = scarce_free};
    brg_status status = BRG_ERR_NOMEM;
    assert_brg_ok(brg_set_allocator(&scarce));
    for (int64_t n = 0; status != BRG_OK; n++) {
        assert_true(n < 1000);
        budget = n;
        status =
            is_world ? brg_sim_run(3, NULL, live_in_world, NULL) : live_alone();
        if (status != BRG_OK)
            assert_int_equal(status, BRG_ERR_NOMEM);
    }
    assert_brg_ok(brg_set_allocator(NULL)); /* fails if anything leaked */
}

static void test_pg__runs_out_of_memory_cleanly(void **state)
{
    (void)state;
    sweep(false);
}

static void test_sim__runs_out_of_memory_cleanly(void **state)
{
    (void)state;
    sweep(true);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_self__keeps_the_contract),
        cmocka_unit_test(test_pg__counts_what_it_does),
        cmocka_unit_test(test_pg__null_is_an_error_or_nothing),
        cmocka_unit_test(test_pg__bad_arguments_name_rank_and_expectation),
        cmocka_unit_test(test_fake__logs_every_call),
        cmocka_unit_test(test_fake__moves_its_own_data),
        cmocka_unit_test(test_fake__fails_when_told_and_stays_failed),
        cmocka_unit_test(test_fake__checks_its_place),
        cmocka_unit_test(test_work__is_in_flight_until_polled),
        cmocka_unit_test(test_work__released_ones_go_on),
        cmocka_unit_test(test_work__outlives_its_group_with_an_error),
        cmocka_unit_test(test_work__coalescing_is_checked),
        cmocka_unit_test(test_registry__refuses_what_it_cannot_use),
        cmocka_unit_test(test_registry__registered_names_are_found),
        cmocka_unit_test(test_registry__says_what_it_tried),
        cmocka_unit_test(test_registry__options_are_checked),
        cmocka_unit_test(test_pg__runs_out_of_memory_cleanly),
        cmocka_unit_test(test_sim__runs_out_of_memory_cleanly),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
