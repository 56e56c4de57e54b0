/* SPDX-License-Identifier: Apache-2.0
 * The compiled backward with reductions inside: on every rank the gradients
 * are those of the eager one, bit for bit, and the first bucket leaves before
 * the last gradient exists. */
#include <string.h>

#include <brigade/compile.h>

#include "tests/reducer/hook_checks.h"
#include "tests/support/brg_test.h"
#include "tests/support/ddp_model.h"
#include "tests/support/ddp_train.h"

static brg_status train_compiled(brg_pg *pg, void *user)
{
    int scope;
    BRG_TRY(brg_compile_begin(&scope, NULL));
    brg_status status = ddp_train_check(pg, user);
    brg_compile_stats stats;
    brg_compile_get_stats(&stats);
    BRG_TRY(brg_compile_end(scope));
    BRG_TRY(status);
    RANK_CHECK(stats.captures > 0 && stats.hits > 0 && stats.fallbacks == 0,
               "%d captures, %d hits, %d fallbacks", (int)stats.captures,
               (int)stats.hits, (int)stats.fallbacks);
    return BRG_OK;
}

static void train(ddp_train how)
{
    ranks_in_worlds(1, NULL, train_compiled, &how);
}

static void test_compiled_ddp__trains_like_one_rank(void **state)
{
    (void)state;
    train((ddp_train){.n_steps = 6, .n_micro = 1});
    train((ddp_train){.n_steps = 6, .n_micro = 1, .cap = 1, .adamw = true});
    train((ddp_train){.n_steps = 4, .n_micro = 3, .keep_memory = true});
}

static brg_status same_grads(const ddp_model *a, const ddp_model *b)
{
    char x[DDP_MODEL_NUMEL * 8], y[DDP_MODEL_NUMEL * 8];
    for (size_t i = 0; i < DDP_MODEL_N; i++) {
        brg_tensor *ga = brg_tensor_grad(a->params[i]);
        brg_tensor *gb = brg_tensor_grad(b->params[i]);
        RANK_CHECK(ga && gb, "parameter %zu has no gradient", i);
        size_t nbytes = brg_tensor_nbytes(ga);
        BRG_TRY(brg_tensor_read(ga, x, nbytes));
        BRG_TRY(brg_tensor_read(gb, y, nbytes));
        RANK_CHECK(memcmp(x, y, nbytes) == 0,
                   "parameter %zu: the bits differ on rank %d", i, a->rank);
    }
    return BRG_OK;
}

static brg_status compiled_backward(ddp_model *m, int step)
{
    int scope;
    BRG_TRY(brg_compile_begin(&scope, NULL));
    brg_status status = ddp_model_backward(m, step, DDP_MODEL_ALL);
    BRG_TRY(brg_compile_end(scope));
    return status;
}

static brg_status compare_steps(ddp_model *eager, ddp_model *compiled,
                                bool is_exact, uint64_t *n_early)
{
    for (int step = 0; step < 5; step++) {
        BRG_TRY(ddp_model_zero(eager, step % 2));
        BRG_TRY(ddp_model_zero(compiled, step % 2));
        BRG_TRY(ddp_model_backward(eager, step, DDP_MODEL_ALL));
        BRG_TRY(compiled_backward(compiled, step));
        BRG_TRY(same_grads(eager, compiled));
        if (is_exact)
            BRG_TRY(ddp_model_check(compiled, step, step + 1));
        brg_reducer_stats by_engine, by_plan;
        brg_ddp_get_stats(eager->ddp, &by_engine);
        brg_ddp_get_stats(compiled->ddp, &by_plan);
        RANK_CHECK(by_plan.n_early == by_engine.n_early,
                   "%d buckets left early, %d in the eager backward",
                   (int)by_plan.n_early, (int)by_engine.n_early);
        *n_early += by_plan.n_early;
    }
    return BRG_OK;
}

/* `hooks`: one for each of the two, or NULL. */
static brg_status compare_hooked(brg_pg *pg, brg_comm_hook *const *hooks)
{
    brg_ddp_options options = BRG_DDP_OPTIONS_INIT;
    options.first_bucket_bytes = options.bucket_bytes = 200;
    ddp_model eager = {0}, compiled = {0};
    uint64_t n_early = 0;
    BRG_TRY(ddp_model_init(&eager, pg));
    BRG_TRY(ddp_model_init(&compiled, pg));
    options.hook = hooks ? hooks[0] : NULL;
    brg_status status = ddp_model_wrap(&eager, &options);
    options.hook = hooks ? hooks[1] : NULL;
    if (status == BRG_OK)
        status = ddp_model_wrap(&compiled, &options);
    if (status == BRG_OK)
        status = compare_steps(&eager, &compiled, !hooks, &n_early);
    ddp_model_deinit(&compiled);
    ddp_model_deinit(&eager);
    BRG_TRY(status);
    RANK_CHECK(n_early > 0, "no bucket left before the last gradient");
    return BRG_OK;
}

/* Behind the last kind: Adasum. */
static brg_status make_kind(brg_comm_hook **out, int kind)
{
    return kind < N_HOOK_KINDS ? make_hook(out, (hook_kind)kind)
                               : brg_comm_hook_create_adasum(out);
}

static brg_status compare_rank(brg_pg *pg, void *user)
{
    (void)user;
    BRG_TRY(compare_hooked(pg, NULL));
    for (int kind = 0; kind <= N_HOOK_KINDS; kind++) {
        brg_comm_hook *hooks[2] = {NULL, NULL};
        brg_status status = make_kind(&hooks[0], kind);
        if (status == BRG_OK)
            status = make_kind(&hooks[1], kind);
        if (status == BRG_OK)
            status = compare_hooked(pg, hooks);
        brg_comm_hook_destroy(hooks[0]);
        brg_comm_hook_destroy(hooks[1]);
        BRG_TRY(status);
    }
    return BRG_OK;
}

static void test_compiled_ddp__same_bits_as_eager(void **state)
{
    (void)state;
    ranks_in_worlds(1, NULL, compare_rank, NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_compiled_ddp__trains_like_one_rank),
        cmocka_unit_test(test_compiled_ddp__same_bits_as_eager),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
