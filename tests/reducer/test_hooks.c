/* SPDX-License-Identifier: Apache-2.0
 * Communication hooks in simulated worlds: values, state, hooks of the user's,
 * ranks that differ. */
#include "tests/reducer/q8_checks.h"

#include "core/base/dtype.h"
#include "tests/reducer/adasum_checks.h"
#include "tests/support/fail_alloc.h"

static brg_status all_hooks(brg_pg *pg, void *user)
{
    (void)user;
    BRG_TRY(check_hooks(pg));
    return check_powersgd(pg);
}

static brg_status not_finite(brg_pg *pg, void *user)
{
    (void)user;
    return check_not_finite(pg);
}

static brg_status in_8_bits(brg_pg *pg, void *user)
{
    (void)user;
    return check_q8(pg);
}

static void test_hooks__average_within_what_they_round(void **state)
{
    (void)state;
    ranks_in_worlds(1, NULL, all_hooks, NULL);
}

static brg_status adasum(brg_pg *pg, void *user)
{
    (void)user;
    BRG_TRY(check_adasum(pg));
    return check_adasum_of_sums(pg);
}

static void test_hooks__add_what_others_do_not_say(void **state)
{
    (void)state;
    ranks_in_worlds(1, NULL, adasum, NULL);
    assert_brg_ok(brg_sim_run(7, NULL, adasum, NULL));
}

static void test_hooks__leave_nothing_of_what_is_not_finite(void **state)
{
    (void)state;
    ranks_in_worlds(1, NULL, not_finite, NULL);
}

/* Nodes of one, two and three ranks, and all on one. */
static void test_hooks__train_in_8_bits(void **state)
{
    (void)state;
    for (int n = 1; n <= 4; n++)
        for (int node_size = 0; node_size < (n < 4 ? n : 4); node_size++) {
            brg_sim_options options = BRG_SIM_OPTIONS_INIT;
            options.node_size = node_size;
            assert_brg_ok(brg_sim_run(n, &options, in_8_bits, NULL));
        }
}

/* ---- What is sent ------------------------------------------------------------ */

/* Elements of all-reduces of this dtype in the last step of two. */
static size_t n_sent(brg_comm_hook *hook, brg_dtype dtype)
{
    brg_pg *pg;
    brg_reducer *reducer;
    static float weight[64 * 32], bias[64];
    brg_reducer_param params[2] = {
        {.name = "weight",
         .grad = weight,
         .count = 64 * 32,
         .dtype = BRG_DTYPE_F32,
         .n_rows = 64},
        {.name = "bias", .grad = bias, .count = 64, .dtype = BRG_DTYPE_F32}};
    brg_reducer_options options = BRG_REDUCER_OPTIONS_INIT;
    options.hook = hook;
    size_t from = 0, n = 0;
    assert_brg_ok(brg_pg_create_fake(&pg, 0, 2));
    assert_brg_ok(brg_reducer_create(&reducer, pg, params, 2, &options));
    for (int step = 0; step < 2; step++) {
        from = brg_fake_n_calls(pg);
        assert_brg_ok(brg_reducer_mark_ready(reducer, 0));
        assert_brg_ok(brg_reducer_mark_ready(reducer, 1));
        assert_brg_ok(brg_reducer_wait(reducer));
    }
    for (size_t i = from; i < brg_fake_n_calls(pg); i++) {
        brg_fake_call call;
        assert_brg_ok(brg_fake_call_at(pg, i, &call));
        n += call.dtype == dtype ? call.count : 0;
    }
    brg_reducer_destroy(reducer);
    brg_pg_destroy(pg);
    brg_comm_hook_destroy(hook);
    return n;
}

#define TAIL 16 /* padded, on its own */

static void test_hooks__send_less(void **state)
{
    (void)state;
    brg_comm_hook *hook;
    size_t all = 64 * 32 + 64;
    assert_int_equal(n_sent(NULL, BRG_DTYPE_F32), all + TAIL);
    assert_brg_ok(brg_comm_hook_create_cast(&hook, BRG_DTYPE_BF16, true));
    assert_int_equal(n_sent(hook, BRG_DTYPE_BF16), all);
    assert_brg_ok(brg_comm_hook_create_cast(&hook, BRG_DTYPE_F16, false));
    assert_int_equal(n_sent(hook, BRG_DTYPE_F32), TAIL);
    assert_brg_ok(brg_comm_hook_create_q8(&hook, true));
    assert_int_equal(n_sent(hook, BRG__DTYPE_Q8), 35 + 2); /* of 64 bytes */
    assert_brg_ok(brg_comm_hook_create_q8(&hook, false));
    assert_int_equal(n_sent(hook, BRG_DTYPE_F32), TAIL);
    brg_powersgd_options how = BRG_POWERSGD_OPTIONS_INIT;
    how.rank = 3;
    assert_brg_ok(brg_comm_hook_create_powersgd(&hook, &how));
    assert_int_equal(n_sent(hook, BRG_DTYPE_F32), (64 + 32) * 3 + 64 + TAIL);
    how.start_step = 2; /* both steps are plain */
    assert_brg_ok(brg_comm_hook_create_powersgd(&hook, &how));
    assert_int_equal(n_sent(hook, BRG_DTYPE_F32), all + TAIL);
    how.start_step = 1;
    assert_brg_ok(brg_comm_hook_create_powersgd(&hook, &how));
    assert_int_equal(n_sent(hook, BRG_DTYPE_F32), (64 + 32) * 3 + 64 + TAIL);
    how.min_saving = 100;
    assert_brg_ok(brg_comm_hook_create_powersgd(&hook, &how));
    assert_int_equal(n_sent(hook, BRG_DTYPE_F32), all + TAIL);
}

/* ---- Error feedback ------------------------------------------------------------- */

/* A gradient that bf16 cannot hold: how far the mean of 64 steps is off. */
static double mean_error(bool fed_back)
{
    brg_pg *pg;
    brg_reducer *reducer;
    brg_comm_hook *hook;
    double g[3] = {1.00390625, -0.3000001, 1e-3}, mean[3] = {0}, worst = 0;
    float grad[3];
    brg_reducer_param param = {
        .grad = grad, .count = 3, .dtype = BRG_DTYPE_F32};
    brg_reducer_options options = BRG_REDUCER_OPTIONS_INIT;
    assert_brg_ok(brg_pg_create_self(&pg));
    assert_brg_ok(brg_comm_hook_create_cast(&hook, BRG_DTYPE_BF16, fed_back));
    options.hook = hook;
    assert_brg_ok(brg_reducer_create(&reducer, pg, &param, 1, &options));
    for (int step = 0; step < 64; step++) {
        for (int k = 0; k < 3; k++)
            grad[k] = (float)g[k];
        assert_brg_ok(brg_reducer_mark_ready(reducer, 0));
        assert_brg_ok(brg_reducer_wait(reducer));
        for (int k = 0; k < 3; k++)
            mean[k] += (double)grad[k] / 64;
    }
    for (int k = 0; k < 3; k++)
        worst = fmax(worst, fabs(mean[k] - g[k]) / fabs(g[k]));
    brg_reducer_destroy(reducer);
    brg_comm_hook_destroy(hook);
    brg_pg_destroy(pg);
    return worst;
}

static void test_hooks__fed_back_errors_cancel_over_steps(void **state)
{
    (void)state;
    assert_true(mean_error(false) > 1e-3);
    assert_true(mean_error(true) < 1e-4);
}

/* ---- State ------------------------------------------------------------------------ */

static brg_status copy_state(const brg_comm_hook *to, const brg_comm_hook *from)
{
    for (size_t i = 0; i < brg_comm_hook_state_count(from); i++) {
        const brg_named_tensor *a = brg_comm_hook_state_at(to, i);
        const brg_named_tensor *b = brg_comm_hook_state_at(from, i);
        RANK_CHECK(strcmp(a->name, b->name) == 0, "%s is not %s", a->name,
                   b->name);
        BRG_TRY(brg_tensor_write(a->tensor, brg_tensor_data(b->tensor),
                                 brg_tensor_nbytes(b->tensor)));
    }
    return BRG_OK;
}

static void test_hooks__a_run_goes_on_from_saved_state(void **state)
{
    (void)state;
    brg_pg *pg;
    matrix_run whole, resumed;
    brg_powersgd_options how = BRG_POWERSGD_OPTIONS_INIT;
    assert_brg_ok(brg_pg_create_self(&pg));
    assert_brg_ok(matrix_begin(&whole, pg, &how, false));
    assert_int_equal(brg_comm_hook_state_count(whole.hook), 3);
    assert_string_equal(brg_comm_hook_state_at(whole.hook, 0)->name, "steps");
    assert_string_equal(brg_comm_hook_state_at(whole.hook, 1)->name,
                        "error/weight");
    assert_string_equal(brg_comm_hook_state_at(whole.hook, 2)->name,
                        "q/weight");
    assert_null(brg_comm_hook_state_at(whole.hook, 3));
    for (int step = 0; step < 3; step++)
        assert_brg_ok(matrix_step(&whole, 0, false));
    assert_brg_ok(matrix_begin(&resumed, pg, &how, false));
    assert_brg_ok(copy_state(resumed.hook, whole.hook));
    for (int step = 0; step < 3; step++) {
        assert_brg_ok(matrix_step(&whole, 0, false));
        assert_brg_ok(matrix_step(&resumed, 0, false));
        assert_memory_equal(whole.gradient, resumed.gradient,
                            sizeof whole.gradient);
    }
    matrix_end(&resumed);
    matrix_end(&whole);
    brg_pg_destroy(pg);
}

/* The q8 hook's, whose steps turn its dither, too. */
static brg_status resume_in_8_bits(brg_pg *pg, void *user)
{
    (void)user;
    q8_run whole, resumed;
    brg_status status = q8_begin(&whole, pg, true, true, false, 0);
    for (int step = 0; step < 3 && status == BRG_OK; step++)
        status = q8_step(&whole, q8_thirds);
    if (status == BRG_OK)
        status = q8_begin(&resumed, pg, true, true, false, 0);
    if (status != BRG_OK)
        return status; /* the process ends */
    status = copy_state(resumed.hook, whole.hook);
    for (int step = 0; step < 3 && status == BRG_OK; step++) {
        status = q8_step(&whole, q8_thirds);
        if (status == BRG_OK)
            status = q8_step(&resumed, q8_thirds);
        if (memcmp(whole.memory, resumed.memory,
                   Q8_N_PARAMS * sizeof *whole.memory) != 0)
            status = brg_error_set(BRG_ERR_INTERNAL, __FILE__, __LINE__,
                                   "step %d differs", step);
    }
    q8_end(&resumed);
    q8_end(&whole);
    return status;
}

static void test_hooks__resume_in_8_bits(void **state)
{
    (void)state;
    for (int n = 1; n <= 4; n++)
        assert_brg_ok(brg_sim_run(n, NULL, resume_in_8_bits, NULL));
}

static void test_hooks__serve_one_reducer_and_keep_their_state(void **state)
{
    (void)state;
    brg_pg *pg;
    trainer a, b;
    brg_comm_hook *hook;
    brg_reducer_options options = BRG_REDUCER_OPTIONS_INIT;
    assert_brg_ok(brg_pg_create_self(&pg));
    assert_brg_ok(make_hook(&hook, HOOK_BF16_FED_BACK));
    assert_string_equal(brg_comm_hook_name(hook),
                        "cast bf16 with error feedback");
    options.hook = hook;
    trainer_init(&a, pg);
    trainer_init(&b, pg);
    assert_brg_ok(trainer_create(&a, &options));
    assert_brg_fails_with(trainer_create(&b, &options), BRG_ERR_STATE,
                          "serves another reducer already");
    assert_brg_ok(mark_all(&a, 0, 1));
    assert_brg_ok(brg_reducer_wait(a.reducer));
    size_t n = brg_comm_hook_state_count(hook);
    assert_int_equal(n, 5); /* f32 and f64 */
    const float *error =
        brg_tensor_data(brg_comm_hook_state_at(hook, 0)->tensor);
    float sum = 0, again = 0;
    for (size_t k = 0; k < counts[0]; k++)
        sum += error[k] * error[k];
    brg_reducer_destroy(a.reducer);
    assert_brg_ok(trainer_create(&b, &options));
    assert_int_equal(brg_comm_hook_state_count(hook), n);
    error = brg_tensor_data(brg_comm_hook_state_at(hook, 0)->tensor);
    for (size_t k = 0; k < counts[0]; k++)
        again += error[k] * error[k];
    assert_true(sum == again);
    brg_reducer_destroy(b.reducer);
    brg_comm_hook_destroy(hook);
    brg_pg_destroy(pg);
}

/* ---- Hooks of the user's ------------------------------------------------------------- */

typedef struct own {
    char log[400];
    size_t fail_at; /* which call; 0: none */
    size_t n_calls;
    size_t extra; /* elements too many */
    size_t wire;  /* bytes; 0: what it needs */
    bool forgets; /* asked again, it wants less */
    size_t n_asked;
    bool sends_nothing;
} own;

static brg_status note(own *o, const char *what, const brg_hook_bucket *b)
{
    size_t n = strlen(o->log);
    snprintf(o->log + n, sizeof o->log - n, "%s%zu ", what, b->index);
    if (++o->n_calls == o->fail_at)
        return brg_error_set(BRG_ERR_CALLBACK, __FILE__, __LINE__,
                             "the hook broke");
    return BRG_OK;
}

static size_t own_wire_bytes(void *user, const brg_hook_bucket *b)
{
    own *o = user;
    if (o->wire && o->n_asked++ >= 1)
        return o->wire;
    return o->forgets && o->n_asked++ >= 4
               ? 0
               : (b->count + 8) * brg_dtype_size(b->dtype);
}

static brg_status own_start(void *user, const brg_hook_bucket *b)
{
    own *o = user;
    BRG_TRY(note(o, "s", b));
    if (o->sends_nothing)
        return BRG_OK;
    memcpy(b->wire, b->data, b->count * brg_dtype_size(b->dtype));
    return brg_all_reduce(b->pg, b->work, b->wire, b->count + o->extra,
                          b->dtype, b->op);
}

static brg_status own_again(void *user, const brg_hook_bucket *b)
{
    return note(user, "a", b);
}

static brg_status own_finish(void *user, const brg_hook_bucket *b)
{
    brg_work *work = *b->work;
    BRG_TRY(note(user, "f", b));
    *b->work = NULL;
    BRG_TRY(brg_work_wait(work));
    memcpy(b->data, b->wire, b->count * brg_dtype_size(b->dtype));
    return BRG_OK;
}

static brg_status own_hook(brg_comm_hook **out, own *o, const char *name)
{
    brg_comm_hook_ops ops = {.struct_size = sizeof ops,
                             .name = name,
                             .wire_bytes = own_wire_bytes,
                             .start = own_start,
                             .again = own_again,
                             .finish = own_finish};
    return brg_comm_hook_create(out, &ops, o);
}

static brg_status own_body(brg_pg *pg, void *user)
{
    own o = *(const own *)user;
    trainer t;
    brg_comm_hook *hook;
    brg_reducer_options options = BRG_REDUCER_OPTIONS_INIT;
    options.first_bucket_bytes = options.bucket_bytes = 1100;
    options.keep_order = true;
    BRG_TRY(own_hook(&hook, &o, "copy"));
    options.hook = hook;
    trainer_init(&t, pg);
    brg_status status = trainer_create(&t, &options);
    for (int step = 0; step < 2 && status == BRG_OK; step++) {
        o.log[0] = 0;
        status = run_step(&t, step, 1);
    }
    brg_reducer_destroy(t.reducer);
    brg_comm_hook_destroy(hook);
    BRG_TRY(status);
    /* f32, bf16 and f16, f64: four buckets and the tail. */
    RANK_CHECK(strcmp(o.log, "s0 s1 s2 s3 a0 a1 a2 a3 f0 f1 f2 f3 ") == 0,
               "calls were %s", o.log);
    return BRG_OK;
}

static void test_hooks__of_the_users_own(void **state)
{
    (void)state;
    own o = {.fail_at = 0};
    ranks_in_worlds(1, NULL, own_body, &o);
}

static void test_hooks__a_failure_is_named(void **state)
{
    (void)state;
    own o = {.fail_at = 2};
    assert_brg_fails_with(brg_sim_run(1, NULL, own_body, &o), BRG_ERR_CALLBACK,
                          "hook 'copy', the start of bucket 1: the hook "
                          "broke");
    o.fail_at = 6;
    assert_brg_fails_with(brg_sim_run(1, NULL, own_body, &o), BRG_ERR_CALLBACK,
                          "the second round of bucket 1: the hook broke");
    o.fail_at = 9;
    assert_brg_fails_with(brg_sim_run(1, NULL, own_body, &o), BRG_ERR_CALLBACK,
                          "the end of bucket 0: the hook broke");
    o = (own){.sends_nothing = true};
    assert_brg_fails_with(brg_sim_run(1, NULL, own_body, &o), BRG_ERR_CALLBACK,
                          "hook 'copy' started nothing for bucket 0");
}

static brg_status wrong_size_body(brg_pg *pg, void *user)
{
    (void)user;
    own o = {.extra = brg_pg_rank(pg) == 1 ? 3 : 0};
    RANK_FAILS(own_body(pg, &o), BRG_ERR_MISMATCH, "ranks disagree");
    return BRG_OK;
}

static void test_hooks__sizes_that_differ_fail_on_every_rank(void **state)
{
    (void)state;
    for (int n = 2; n <= 4; n++)
        assert_brg_ok(brg_sim_run(n, NULL, wrong_size_body, NULL));
}

/* Of a second bucket: more than there is, and more than a number can say with
 * that of the first. */
static void test_hooks__sizes_of_no_sense_are_refused(void **state)
{
    (void)state;
    static const size_t sizes[] = {SIZE_MAX, SIZE_MAX - 200, SIZE_MAX / 2 + 1};
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        own o = {.wire = sizes[i]};
        assert_brg_fails_with(brg_sim_run(1, NULL, own_body, &o),
                              BRG_ERR_CALLBACK, "hook 'copy' wants");
    }
    own o = {.forgets = true}; /* each is asked once, for its own place */
    assert_brg_ok(brg_sim_run(2, NULL, own_body, &o));
}

static brg_status differ_body(brg_pg *pg, void *user)
{
    (void)user;
    trainer t;
    own o = {.fail_at = 0};
    brg_comm_hook *hook;
    brg_reducer_options options = BRG_REDUCER_OPTIONS_INIT;
    trainer_init(&t, pg);
    BRG_TRY(own_hook(&hook, &o, t.rank == 1 ? "other" : "copy"));
    options.hook = hook;
    brg_status status = trainer_create(&t, &options);
    brg_comm_hook_destroy(hook);
    RANK_FAILS(status, BRG_ERR_MISMATCH, "communication hook");
    return BRG_OK;
}

static void test_hooks__that_differ_between_ranks_are_found(void **state)
{
    (void)state;
    for (int n = 2; n <= 4; n++)
        assert_brg_ok(brg_sim_run(n, NULL, differ_body, NULL));
}

static void test_hooks__refuse_bad_arguments(void **state)
{
    (void)state;
    brg_comm_hook *hook;
    brg_comm_hook_ops ops = {.struct_size = sizeof ops, .name = "x"};
    brg_powersgd_options how = BRG_POWERSGD_OPTIONS_INIT;
    assert_brg_fails_with(brg_comm_hook_create(&hook, &ops, NULL), BRG_ERR_ARG,
                          "start and finish are required");
    ops.name = NULL;
    assert_brg_fails_with(brg_comm_hook_create(&hook, &ops, NULL), BRG_ERR_ARG,
                          "needs a name");
    assert_brg_fails_with(
        brg_comm_hook_create_cast(&hook, BRG_DTYPE_I32, false), BRG_ERR_ARG,
        "expected f16 or bf16");
    how.rank = 0;
    assert_brg_fails_with(brg_comm_hook_create_powersgd(&hook, &how),
                          BRG_ERR_ARG, "rank 0");
    how = (brg_powersgd_options)BRG_POWERSGD_OPTIONS_INIT;
    how.min_saving = 0.5;
    assert_brg_fails_with(brg_comm_hook_create_powersgd(&hook, &how),
                          BRG_ERR_ARG, "min_saving");
    assert_null(hook);
    brg_comm_hook_destroy(NULL);
}

/* Created, used and destroyed with ever more memory, until it is enough. */
static brg_status make_and_step(void *user)
{
    for (int kind = 0; kind < N_HOOK_KINDS; kind++) {
        trainer t;
        brg_comm_hook *hook;
        brg_reducer_options options = BRG_REDUCER_OPTIONS_INIT;
        options.keep_order = true;
        BRG_TRY(make_hook(&hook, (hook_kind)kind));
        options.hook = hook;
        trainer_init(&t, user);
        brg_status status = trainer_create(&t, &options);
        if (status == BRG_OK)
            status = mark_all(&t, 0, 1);
        if (status == BRG_OK)
            status = brg_reducer_wait(t.reducer);
        brg_reducer_destroy(t.reducer);
        brg_comm_hook_destroy(hook);
        BRG_TRY(status);
    }
    return BRG_OK;
}

static void test_hooks__run_out_of_memory_cleanly(void **state)
{
    (void)state;
    brg_pg *pg;
    assert_brg_ok(brg_pg_create_self(&pg));
    assert_oom_clean(make_and_step, pg);
    brg_pg_destroy(pg);
}

static brg_status steady_steps(brg_pg *pg, hook_kind kind)
{
    trainer t;
    brg_comm_hook *hook;
    brg_memory_stats before = {0}, after = {0};
    brg_reducer_options options = BRG_REDUCER_OPTIONS_INIT;
    BRG_TRY(make_hook(&hook, kind));
    options.hook = hook;
    trainer_init(&t, pg);
    brg_status status = trainer_create(&t, &options);
    for (int step = 0; step < 6 && status == BRG_OK; step++) {
        if (step == 3)
            brg_memory_get_stats(&before);
        status = mark_all(&t, step, 1);
        if (status == BRG_OK)
            status = brg_reducer_wait(t.reducer);
    }
    brg_memory_get_stats(&after);
    brg_reducer_destroy(t.reducer);
    brg_comm_hook_destroy(hook);
    BRG_TRY(status);
    RANK_CHECK(before.n_allocs == after.n_allocs, "%d allocations",
               (int)(after.n_allocs - before.n_allocs));
    return BRG_OK;
}

static void test_hooks__a_steady_step_allocates_nothing(void **state)
{
    (void)state;
    brg_pg *pg;
    assert_brg_ok(brg_pg_create_self(&pg));
    for (int kind = 0; kind < N_HOOK_KINDS; kind++)
        assert_brg_ok(steady_steps(pg, (hook_kind)kind));
    brg_pg_destroy(pg);
}

int main(void)
{
    fail_alloc_install();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_hooks__average_within_what_they_round),
        cmocka_unit_test(test_hooks__add_what_others_do_not_say),
        cmocka_unit_test(test_hooks__leave_nothing_of_what_is_not_finite),
        cmocka_unit_test(test_hooks__train_in_8_bits),
        cmocka_unit_test(test_hooks__send_less),
        cmocka_unit_test(test_hooks__fed_back_errors_cancel_over_steps),
        cmocka_unit_test(test_hooks__a_run_goes_on_from_saved_state),
        cmocka_unit_test(test_hooks__resume_in_8_bits),
        cmocka_unit_test(test_hooks__serve_one_reducer_and_keep_their_state),
        cmocka_unit_test(test_hooks__of_the_users_own),
        cmocka_unit_test(test_hooks__a_failure_is_named),
        cmocka_unit_test(test_hooks__sizes_that_differ_fail_on_every_rank),
        cmocka_unit_test(test_hooks__sizes_of_no_sense_are_refused),
        cmocka_unit_test(test_hooks__that_differ_between_ranks_are_found),
        cmocka_unit_test(test_hooks__refuse_bad_arguments),
        cmocka_unit_test(test_hooks__run_out_of_memory_cleanly),
        cmocka_unit_test(test_hooks__a_steady_step_allocates_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
