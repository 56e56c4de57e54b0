/* SPDX-License-Identifier: Apache-2.0
 * Out of memory at every allocation of a training step: model, ddp, optimizer,
 * forward, backward, update. Each failure is a clean error and loses nothing;
 * the step can be taken again, with the result that it would have had. */
#include "tests/support/brg_test.h"
#include "tests/support/fail_alloc.h"
#include "tests/support/ranks.h"
#include "tests/support/small_models.h"

#include <brigade/random.h>

#define SWEEP_MAX 10000

/* The kinds of models, eager, then compiled. */
#define N_WAYS (2 * N_SMALL_KINDS)

static brg_status init(small_model *m, int way, brg_pg *pg)
{
    BRG_TRY(small_model_init(m, (small_kind)(way % N_SMALL_KINDS), pg));
    return way < N_SMALL_KINDS ? BRG_OK : small_model_compile(m, true);
}

/* ---- From nothing to the end of the second step ----------------------------- */

static brg_status train_rank(brg_pg *pg, void *user)
{
    const int *way = user;
    small_model m;
    brg_status status = init(&m, *way, pg);
    for (int step = 0; status == BRG_OK && step < 2; step++)
        status = small_model_step(&m, step);
    small_model_deinit(&m);
    return status;
}

static brg_status train_alone(void *user)
{
    brg_pg *pg;
    BRG_TRY(brg_pg_create_self(&pg));
    brg_status status = train_rank(pg, user);
    brg_pg_destroy(pg);
    return status;
}

static void test_oom_step__whole_life(void **state)
{
    (void)state;
    for (int way = 0; way < N_WAYS; way++)
        assert_true(assert_oom_clean(train_alone, &way) > 40);
}

typedef struct world {
    int way;
    brg_status status[2];
} world;

static brg_status train_in_world(brg_pg *pg, void *user)
{
    world *w = user;
    brg_status *status = &w->status[brg_pg_rank(pg)];
    *status = train_rank(pg, &w->way);
    return *status;
}

/* A rank that is refused memory tells the other, which may end first: then
 * its error is that of the run. */
static brg_status train_sim(void *user)
{
    world *w = user;
    w->status[0] = w->status[1] = BRG_OK;
    brg_status status = brg_sim_run(2, NULL, train_in_world, w);
    for (int rank = 0; status == BRG_ERR_PEER && rank < 2; rank++)
        if (w->status[rank] == BRG_ERR_NOMEM)
            return brg_error_set(BRG_ERR_NOMEM, __FILE__, __LINE__,
                                 "rank %d was refused memory", rank);
    return status;
}

static void test_oom_step__two_ranks(void **state)
{
    (void)state;
    for (int way = 0; way < N_WAYS; way++) {
        world w = {.way = way};
        assert_true(assert_oom_clean(train_sim, &w) > 40);
    }
}

/* ---- One step of a model that lives on ---------------------------------------- */

static void assert_same_params(const small_model *a, const small_model *b,
                               int64_t n)
{
    for (size_t i = 0; i < brg_params_count(a->params); i++) {
        const brg_param *p = brg_params_at(a->params, i);
        const brg_param *q = brg_params_at(b->params, i);
        if (p->kind == BRG_PARAM_TRAINED &&
            memcmp(brg_tensor_data(p->tensor), brg_tensor_data(q->tensor),
                   brg_tensor_nbytes(p->tensor)) != 0)
            fail_msg("%s: %s differs after a step that failed at allocation "
                     "%d was taken again",
                     small_model_name(a->kind), p->name, (int)n);
    }
}

/* One step of m with n allocations allowed; true if they suffice. If not,
 * nothing has changed, and the step is taken again. */
static bool step_until_done(small_model *m, int64_t n)
{
    brg_random_state random;
    brg_random_get_state(&random);
    brg_error_clear();
    brg_memory_trim();
    fail_alloc_arm(n);
    brg_status status = small_model_step(m, 0);
    int64_t refused = fail_alloc_disarm();
    if (status == BRG_OK) {
        assert_int_equal(refused, 0);
        return true;
    }
    assert_int_equal(status, BRG_ERR_NOMEM);
    assert_int_equal(brg_error_code(), BRG_ERR_NOMEM);
    assert_true(brg_error_message()[0] != '\0');
    assert_brg_ok(brg_optim_zero_grad(m->optim, false));
    brg_random_set_state(&random);
    assert_brg_ok(small_model_step(m, 0));
    return false;
}

/* A new model takes one step undisturbed, and one with n allocations allowed;
 * its twin takes two. */
static bool train_twice(int way, brg_pg *pg, int64_t n)
{
    small_model m, undisturbed;
    brg_random_state random;
    assert_brg_ok(init(&undisturbed, way, pg));
    assert_brg_ok(init(&m, way, pg));
    brg_random_get_state(&random);
    assert_brg_ok(small_model_step(&m, 0));
    bool was_enough = step_until_done(&m, n);
    brg_random_set_state(&random);
    for (int i = 0; i < 2; i++)
        assert_brg_ok(small_model_step(&undisturbed, 0));
    assert_same_params(&m, &undisturbed, n);
    small_model_deinit(&m);
    small_model_deinit(&undisturbed);
    return was_enough;
}

static void test_oom_step__a_failed_step_can_be_repeated(void **state)
{
    (void)state;
    brg_pg *pg;
    assert_brg_ok(brg_pg_create_self(&pg));
    for (int way = 0; way < N_WAYS; way++) {
        int n = 0;
        while (!train_twice(way, pg, n))
            assert_true(++n < SWEEP_MAX);
        assert_true(n > 10);
    }
    brg_pg_destroy(pg);
}

int main(void)
{
    fail_alloc_install();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_oom_step__whole_life),
        cmocka_unit_test(test_oom_step__two_ranks),
        cmocka_unit_test(test_oom_step__a_failed_step_can_be_repeated),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
