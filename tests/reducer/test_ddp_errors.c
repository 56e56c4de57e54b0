/* SPDX-License-Identifier: Apache-2.0
 * What goes wrong under a ddp, and that every rank hears of it: no hang, no
 * leak, and the next step works. */
#include "tests/support/brg_test.h"
#include "tests/support/ddp_model.h"
#include "tests/support/fail_alloc.h"

#include <brigade/function.h>
#include <brigade/ops.h>

#define N_SIZES 3
static const int sizes[N_SIZES] = {2, 3, 4};

static void run_sizes(brg_status (*fn)(brg_pg *pg, void *user), void *user)
{
    for (int i = 0; i < N_SIZES; i++)
        assert_brg_ok(brg_sim_run(sizes[i], NULL, fn, user));
}

/* A model in a ddp of many small buckets. */
static brg_status make(ddp_model *m, brg_pg *pg)
{
    brg_ddp_options options = BRG_DDP_OPTIONS_INIT;
    options.first_bucket_bytes = options.bucket_bytes = 64;
    brg_status status = ddp_model_init(m, pg);
    return status == BRG_OK ? ddp_model_wrap(m, &options) : status;
}

static brg_status works(ddp_model *m, int step)
{
    BRG_TRY(ddp_model_zero(m, false));
    BRG_TRY(ddp_model_backward(m, step, DDP_MODEL_ALL));
    return ddp_model_check(m, step, step + 1);
}

/* ---- Ranks that differ --------------------------------------------------------------- */

static brg_status differ_shape(ddp_model *m)
{
    m->params[7] = brg_ones(BRG_DTYPE_F32, BRG_SHAPE(2, 32));
    BRG_TRY(brg_tensor_set_name(m->params[7], "head"));
    return brg_set_requires_grad(m->params[7], true);
}

static brg_status differ_dtype(ddp_model *m)
{
    m->params[4] = brg_ones(BRG_DTYPE_F16, BRG_SHAPE(3, 4));
    BRG_TRY(brg_tensor_set_name(m->params[4], "fc2.weight"));
    return brg_set_requires_grad(m->params[4], true);
}

static brg_status differ_name(ddp_model *m)
{
    return brg_tensor_set_name(m->params[0], "wte");
}

static brg_status differ_layout(ddp_model *m)
{
    m->params[1] = brg_ones(BRG_DTYPE_F32, BRG_SHAPE(5, 7));
    BRG_TRY(brg_tensor_set_name(m->params[1], "fc1.weight"));
    return brg_set_requires_grad(m->params[1], true);
}

static brg_status differ_frozen(ddp_model *m)
{
    return brg_set_requires_grad(m->params[2], false);
}

static brg_status differ_count(ddp_model *m)
{
    m->params[7] = m->params[0];
    return BRG_OK;
}

static brg_status differ_buffer(ddp_model *m)
{
    m->buffer = brg_ones(BRG_DTYPE_I64, BRG_SHAPE(5));
    return brg_tensor_set_name(m->buffer, "ids");
}

static brg_status differ_null(ddp_model *m)
{
    m->params[3] = NULL;
    return BRG_OK;
}

typedef struct difference {
    brg_status (*apply)(ddp_model *m);
    brg_status code;
    const char *text;
} difference;

static const difference differences[] = {
    {differ_shape, BRG_ERR_MISMATCH,
     "brg_ddp_create: ranks disagree on parameter 7: rank 0 has head f32[2, "
     "33], rank 1 has head f32[2, 32]"},
    {differ_dtype, BRG_ERR_MISMATCH,
     "parameter 4: rank 0 has fc2.weight bf16[3, 4], rank 1 has fc2.weight "
     "f16[3, 4]"},
    {differ_name, BRG_ERR_MISMATCH,
     "rank 0 has embed f32[8, 15], rank 1 has wte f32[8, 15]"},
    {differ_layout, BRG_ERR_MISMATCH,
     "rank 0 has fc1.weight f32[5, 7] with strides [1, 5], rank 1 has "
     "fc1.weight f32[5, 7]"},
    {differ_frozen, BRG_ERR_MISMATCH,
     "rank 1 has fc1.bias f16[7] without gradient"},
    {differ_count, BRG_ERR_MISMATCH,
     "rank 0 has 8 parameters and 1 buffers, rank 1 has 7 and 1"},
    {differ_buffer, BRG_ERR_MISMATCH,
     "buffer 0: rank 0 has (no name) i64[4] without gradient, rank 1 has ids "
     "i64[5]"},
    {differ_null, BRG_ERR_PEER, "brg_ddp_create failed on rank 1: invalid"},
};

static brg_status differ_rank(brg_pg *pg, void *user)
{
    const difference *d = user;
    ddp_model m;
    BRG_TRY(ddp_model_init(&m, pg));
    brg_status status = m.rank == 1 ? d->apply(&m) : BRG_OK;
    bool is_cause = m.rank == 1 && d->code == BRG_ERR_PEER;
    if (status == BRG_OK)
        status = ranks_expect(ddp_model_wrap(&m, NULL),
                              is_cause ? BRG_ERR_ARG : d->code,
                              is_cause ? "parameter 3 is NULL" : d->text,
                              "brg_ddp_create", __LINE__);
    if (status == BRG_OK && m.ddp)
        status = BRG_ERR_INTERNAL;
    ddp_model_deinit(&m);
    BRG_TRY(status);
    BRG_TRY(make(&m, pg)); /* the group is as good as before */
    status = works(&m, 0);
    ddp_model_deinit(&m);
    return status;
}

static void test_ddp_errors__ranks_that_differ_all_hear_the_same(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof differences / sizeof differences[0]; i++) {
        difference d = differences[i];
        print_message("%s\n", d.text);
        run_sizes(differ_rank, &d);
    }
}

static void test_ddp_errors__bad_arguments(void **state)
{
    (void)state;
    brg_pg *pg;
    brg_ddp *ddp;
    ddp_model m;
    assert_brg_ok(brg_pg_create_self(&pg));
    assert_brg_ok(ddp_model_init(&m, pg));
    assert_brg_fails(brg_ddp_create(NULL, pg, m.params, 1, NULL, 0, NULL),
                     BRG_ERR_ARG);
    assert_brg_fails(brg_ddp_create(&ddp, NULL, m.params, 1, NULL, 0, NULL),
                     BRG_ERR_ARG);
    assert_brg_fails(brg_ddp_create(&ddp, pg, NULL, 1, NULL, 0, NULL),
                     BRG_ERR_ARG);
    assert_brg_fails(brg_ddp_create(&ddp, pg, m.params, 1, NULL, 1, NULL),
                     BRG_ERR_ARG);
    assert_brg_fails_with(brg_ddp_create(&ddp, pg, &m.buffer, 1, NULL, 0, NULL),
                          BRG_ERR_ARG,
                          "none of 1 parameters requires gradients");
    brg_tensor *computed = brg_neg(m.params[0]);
    assert_brg_fails_with(brg_ddp_create(&ddp, pg, &computed, 1, NULL, 0, NULL),
                          BRG_ERR_ARG, "computed by neg");
    brg_ddp_options options = {0};
    assert_brg_fails_with(ddp_model_wrap(&m, &options), BRG_ERR_ARG,
                          "struct_size");
    assert_null(m.ddp);
    brg_ddp_destroy(NULL);
    assert_brg_ok(ddp_model_wrap(&m, NULL));
    brg_reducer *inner = (brg_reducer *)(uintptr_t)brg_ddp_reducer(m.ddp);
    assert_brg_fails_with(brg_reducer_mark_ready(inner, 0), BRG_ERR_STATE,
                          "belongs to a brg_ddp");
    ddp_model_deinit(&m);
    brg_pg_destroy(pg);
}

/* ---- A backward that fails ---------------------------------------------------------------- */

static brg_status fail_if_told(brg_tensor *leaf, void *user)
{
    (void)leaf;
    if (!*(bool *)user)
        return BRG_OK;
    return brg_error_set(BRG_ERR_CALLBACK, __FILE__, __LINE__, "told to fail");
}

static void note_versions(const ddp_model *m, uint64_t *filled)
{
    for (size_t i = 0; i < DDP_MODEL_N; i++) {
        const brg_tensor *grad = brg_tensor_grad(m->params[i]);
        filled[i] = grad ? brg_tensor_version(grad) : 0;
    }
}

/* What buckets do to gradients is seen by whoever saved them, in a step that
 * fails as well. */
static brg_status all_are_newer(const ddp_model *m, const uint64_t *before)
{
    uint64_t now[DDP_MODEL_N];
    note_versions(m, now);
    for (size_t i = 0; i < DDP_MODEL_N; i++)
        if (now[i] <= before[i])
            return brg_error_set(BRG_ERR_INTERNAL, __FILE__, __LINE__,
                                 "gradient %zu counts as unchanged", i);
    return BRG_OK;
}

/* The hook of parameter i fails on the last rank. */
static brg_status fail_hook_rank(brg_pg *pg, void *user)
{
    const size_t i = *(const size_t *)user;
    ddp_model m;
    brg_hook *hook = NULL;
    bool must_fail = false;
    brg_status status = make(&m, pg);
    int last = m.world_size - 1;
    if (status == BRG_OK)
        status = brg_tensor_add_post_accumulate_hook(
            &hook, m.params[i], fail_if_told, &must_fail, NULL);
    for (int step = 0; status == BRG_OK && step < 3; step++) {
        uint64_t before[DDP_MODEL_N];
        must_fail = m.rank == last;
        note_versions(&m, before);
        status = ddp_model_backward(&m, step, DDP_MODEL_ALL);
        char text[60];
        snprintf(text, sizeof text, "backward failed on rank %d", last);
        if (must_fail)
            status = ranks_expect(status, BRG_ERR_CALLBACK, "told to fail",
                                  "backward", __LINE__);
        else if (status != BRG_OK) /* unless all was sent by then */
            status =
                ranks_expect(status, BRG_ERR_PEER, text, "backward", __LINE__);
        must_fail = false;
        if (status == BRG_OK && step > 0)
            status = all_are_newer(&m, before);
        if (status == BRG_OK)
            status = works(&m, step);
    }
    brg_hook_remove(hook);
    ddp_model_deinit(&m);
    return status;
}

static void
test_ddp_errors__a_failing_hook_ends_the_step_everywhere(void **state)
{
    (void)state;
    for (size_t i = 0; i < DDP_MODEL_N; i++)
        run_sizes(fail_hook_rank, &i);
}

static brg_status fail_callback(void *user)
{
    (void)user;
    return brg_error_set(BRG_ERR_CALLBACK, __FILE__, __LINE__,
                         "callback failed");
}

static brg_status queue_failure(brg_tensor *grad, brg_tensor **replacement,
                                void *user)
{
    (void)grad;
    (void)replacement;
    return *(bool *)user ? brg_queue_final_callback(fail_callback, NULL)
                         : BRG_OK;
}

/* A final callback before that of the ddp fails, on rank 0. */
static brg_status fail_callback_rank(brg_pg *pg, void *user)
{
    (void)user;
    ddp_model m;
    brg_hook *hooks[DDP_MODEL_N] = {NULL};
    bool must_fail = false;
    brg_status status = make(&m, pg);
    for (size_t i = 0; status == BRG_OK && i < DDP_MODEL_N; i++)
        status = brg_tensor_add_hook(&hooks[i], m.params[i], queue_failure,
                                     &must_fail, NULL);
    must_fail = m.rank == 0;
    if (status == BRG_OK)
        status = ddp_model_backward(&m, 0, DDP_MODEL_ALL);
    if (must_fail)
        status = ranks_expect(status, BRG_ERR_CALLBACK, "callback failed",
                              "backward", __LINE__);
    must_fail = false; /* all was sent before: the others know nothing */
    if (status == BRG_OK)
        status = works(&m, 1);
    for (size_t i = 0; i < DDP_MODEL_N; i++)
        brg_hook_remove(hooks[i]);
    ddp_model_deinit(&m);
    return status;
}

static void
test_ddp_errors__a_failing_callback_keeps_ranks_in_step(void **state)
{
    (void)state;
    run_sizes(fail_callback_rank, NULL);
}

/* ---- Marked twice ---------------------------------------------------------------------------- */

typedef struct nested {
    brg_tensor *leaf;
    bool is_inside;
} nested;

/* A backward inside the backward reaches the same parameter. */
static brg_status backward_again(brg_tensor *grad, brg_tensor **replacement,
                                 void *user)
{
    (void)grad;
    (void)replacement;
    nested *n = user;
    if (n->is_inside)
        return BRG_OK;
    n->is_inside = true;
    bool mode = brg_grad_mode_set(true);
    brg_tensor *loss = brg_sum_all(n->leaf);
    brg_grad_mode_set(mode);
    brg_status status = brg_backward(loss);
    n->is_inside = false;
    return status;
}

static brg_status twice_rank(brg_pg *pg, void *user)
{
    (void)user;
    ddp_model m;
    brg_hook *hook = NULL;
    brg_status status = make(&m, pg);
    nested n = {.leaf = m.params[7]};
    if (status == BRG_OK)
        status =
            brg_tensor_add_hook(&hook, m.params[7], backward_again, &n, NULL);
    if (status == BRG_OK)
        status = ranks_expect(
            ddp_model_backward(&m, 0, DDP_MODEL_ALL), BRG_ERR_STATE,
            "Expected to mark a variable ready only once: head (bucket",
            "backward", __LINE__);
    brg_hook_remove(hook);
    if (status == BRG_OK)
        status = works(&m, 1);
    ddp_model_deinit(&m);
    return status;
}

static void test_ddp_errors__marked_twice(void **state)
{
    (void)state;
    run_sizes(twice_rank, NULL);
}

/* ---- Undefined gradients ------------------------------------------------------------------------ */

static brg_status sum_forward(brg_context *ctx, const brg_value *args,
                              size_t n_args, brg_value *outputs)
{
    (void)ctx;
    (void)n_args;
    outputs[0] = brg_value_tensor(brg_sum_all(args[0].as.tensor));
    return outputs[0].as.tensor ? BRG_OK : brg_error_code();
}

static brg_status no_gradient(brg_context *ctx, brg_tensor *const *grad_out,
                              brg_tensor **grad_in, size_t *n_grad_in)
{
    (void)ctx;
    (void)grad_out;
    (void)n_grad_in;
    grad_in[0] = NULL;
    return BRG_OK;
}

static brg_status backward_undefined(ddp_model *m, const brg_function *fn)
{
    brg_scope *scope = brg_scope_begin();
    brg_tensor *loss = ddp_model_loss(m, 0, DDP_MODEL_ALL & ~(1u << 7));
    brg_value arg = brg_value_tensor(m->params[7]);
    loss = brg_add(loss, brg_function_call(fn, &arg, 1));
    brg_status status = brg_backward(loss);
    brg_scope_end(scope);
    return status;
}

static brg_status undefined_rank(brg_pg *pg, void *user)
{
    bool is_allowed = *(const bool *)user;
    brg_ddp_options options = BRG_DDP_OPTIONS_INIT;
    options.allow_unused = is_allowed;
    options.bucket_bytes = options.first_bucket_bytes = 64;
    brg_function_def def = BRG_FUNCTION_DEF_INIT;
    def.name = "silent";
    def.n_outputs = 1;
    def.forward = sum_forward;
    def.backward = no_gradient;
    brg_function *fn;
    BRG_TRY(brg_function_create(&fn, &def));
    ddp_model m;
    brg_status status = ddp_model_init(&m, pg);
    if (status == BRG_OK)
        status = ddp_model_wrap(&m, &options);
    for (int k = 0; status == BRG_OK && k < 2; k++) {
        /* rank 0 gets one, or nobody */
        status = m.rank == 0 && k == 0
                     ? ddp_model_backward(&m, 0, DDP_MODEL_ALL)
                     : backward_undefined(&m, fn);
        bool is_missing = !brg_tensor_grad(m.params[7]);
        if (!is_allowed)
            status = ranks_expect(status, BRG_ERR_STATE, "head on rank",
                                  "backward", __LINE__);
        else if (status == BRG_OK && k == 0)
            status = ddp_model_check_param(&m, 7, 0, 1, 1u);
        else if (status == BRG_OK && !is_missing)
            status = BRG_ERR_INTERNAL;
        if (status == BRG_OK)
            status = ddp_model_zero(&m, false);
    }
    ddp_model_deinit(&m);
    brg_function_release(fn);
    return status;
}

static void test_ddp_errors__undefined_gradients_are_unused(void **state)
{
    (void)state;
    bool is_allowed = false;
    run_sizes(undefined_rank, &is_allowed);
    is_allowed = true;
    run_sizes(undefined_rank, &is_allowed);
}

/* ---- Ranks and groups that go ---------------------------------------------------------------------- */

static brg_status leave_rank(brg_pg *pg, void *user)
{
    (void)user;
    ddp_model m;
    brg_status status = make(&m, pg);
    if (status == BRG_OK)
        status = works(&m, 0);
    if (status == BRG_OK && m.rank != 1) {
        status = ranks_expect(ddp_model_backward(&m, 1, DDP_MODEL_ALL),
                              BRG_ERR_PEER, "rank 1", "backward", __LINE__);
        if (status == BRG_OK)
            status = ranks_expect(ddp_model_backward(&m, 2, DDP_MODEL_ALL),
                                  BRG_ERR_PEER, "rank 1", "backward", __LINE__);
    }
    ddp_model_deinit(&m);
    return status;
}

static void test_ddp_errors__a_rank_that_leaves_is_named(void **state)
{
    (void)state;
    run_sizes(leave_rank, NULL);
}

static void test_ddp_errors__a_collective_that_fails(void **state)
{
    (void)state;
    for (int64_t nth = 0; nth < 8; nth++) {
        brg_pg *pg;
        ddp_model m;
        assert_brg_ok(brg_pg_create_fake(&pg, 0, 2));
        assert_brg_ok(make(&m, pg));
        assert_brg_ok(brg_fake_fail_after(pg, nth));
        assert_brg_fails(ddp_model_backward(&m, 0, DDP_MODEL_ALL),
                         BRG_ERR_COMM);
        assert_brg_fails(ddp_model_backward(&m, 0, DDP_MODEL_ALL),
                         BRG_ERR_COMM);
        assert_brg_ok(brg_fake_fail_after(pg, -1));
        assert_brg_ok(ddp_model_zero(&m, false));
        assert_brg_ok(ddp_model_backward(&m, 0, DDP_MODEL_ALL));
        ddp_model_deinit(&m);
        brg_pg_destroy(pg);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ddp_errors__ranks_that_differ_all_hear_the_same),
        cmocka_unit_test(test_ddp_errors__bad_arguments),
        cmocka_unit_test(
            test_ddp_errors__a_failing_hook_ends_the_step_everywhere),
        cmocka_unit_test(
            test_ddp_errors__a_failing_callback_keeps_ranks_in_step),
        cmocka_unit_test(test_ddp_errors__marked_twice),
        cmocka_unit_test(test_ddp_errors__undefined_gradients_are_unused),
        cmocka_unit_test(test_ddp_errors__a_rank_that_leaves_is_named),
        cmocka_unit_test(test_ddp_errors__a_collective_that_fails),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
