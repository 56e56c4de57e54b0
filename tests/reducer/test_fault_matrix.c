/* SPDX-License-Identifier: Apache-2.0
 * Ranks that do not do the same: each way is found in the step in which it
 * begins, on every rank, with the rank's name and the parameters'; nothing is
 * waited for long, and no weight is touched by what was mixed up. */
#include <brigade/compile.h>
#include <brigade/ops.h>

#include "core/base/clock.h"
#include "reducer/ddp.h"
#include "tests/support/brg_test.h"
#include "tests/support/ddp_model.h"

#define BAD_STEP 2
#define N_STEPS 5
#define CULPRIT 1

typedef struct fault {
    const char *name;
    /* Rank 1's part in step BAD_STEP instead of a backward, or before it. */
    brg_status (*act)(ddp_model *m, int step);
    brg_status code; /* of the others, and of rank 1, what their messages say */
    const char *text;
    brg_status own_code;
    const char *own_text;
} fault;

typedef struct matrix_case {
    const fault *fault;
    size_t cap;
    int n_errors;
    uint64_t weights; /* the hash after the last good step, of all ranks */
} matrix_case;

static brg_status barrier(brg_pg *pg)
{
    brg_work *work;
    BRG_TRY(brg_barrier(pg, &work));
    return brg_work_wait(work);
}

static brg_status skip_step(ddp_model *m, int step)
{
    (void)step;
    return barrier(m->pg);
}

/* The others are at the barrier that ends each step. */
static brg_status extra_step(ddp_model *m, int step)
{
    BRG_TRY(ddp_model_backward(m, step, DDP_MODEL_ALL));
    return ddp_model_backward(m, step, DDP_MODEL_ALL);
}

static brg_status no_sync_once(ddp_model *m, int step)
{
    (void)brg_ddp_set_sync(m->ddp, false);
    BRG_TRY(ddp_model_backward(m, step, DDP_MODEL_ALL));
    (void)brg_ddp_set_sync(m->ddp, true);
    return ddp_model_backward(m, step, DDP_MODEL_ALL);
}

static brg_status no_sync_for_good(ddp_model *m, int step)
{
    (void)brg_ddp_set_sync(m->ddp, false);
    BRG_TRY(ddp_model_backward(m, step, DDP_MODEL_ALL));
    return barrier(m->pg);
}

/* Two gradients of one bucket, of as many bytes with their gaps, have changed
 * places: every call looks alike. */
static brg_status other_plan(ddp_model *m, int step)
{
    brg_reducer *r = (brg_reducer *)brg_ddp_reducer(m->ddp);
    brg__plan_slot *a = &r->plan.slots[5], *b = &r->plan.slots[6];
    size_t offset = a->offset;
    if (a->bucket != b->bucket)
        return BRG_FAIL(BRG_ERR_INTERNAL, "the gradients lie apart");
    a->offset = b->offset;
    b->offset = offset;
    brg__reducer_lay_out(r);
    for (size_t i = 0; i < m->ddp->n_params; i++)
        brg__ddp_view_place(&m->ddp->params[i]);
    return ddp_model_backward(m, step, DDP_MODEL_ALL);
}

static brg_status other_plan_compiled(ddp_model *m, int step)
{
    int scope;
    BRG_TRY(brg_compile_begin(&scope, NULL));
    brg_status status = other_plan(m, step);
    brg_status ended = brg_compile_end(scope);
    return status == BRG_OK ? ended : status;
}

/* One whose digest in the calls is that of the others: the marks in the tail
 * tell, which is all that a backend without signatures has. */
static brg_status other_marks(ddp_model *m, int step)
{
    brg_reducer *r = (brg_reducer *)brg_ddp_reducer(m->ddp);
    r->plan_hash ^= (uint64_t)1 << 16;
    return ddp_model_backward(m, step, DDP_MODEL_ALL);
}

static const fault faults[] = {
    {"a step left out", skip_step, BRG_ERR_MISMATCH, "rank 1 called barrier",
     BRG_ERR_MISMATCH, "rank 1 called barrier"},
    {"a step too many", extra_step, BRG_ERR_MISMATCH,
     "rank 1 called all_reduce", BRG_ERR_MISMATCH, "bucket 0 ("},
    {"no sync in one backward", no_sync_once, BRG_ERR_MISMATCH,
     "out of step: rank 1 ", BRG_ERR_MISMATCH, "out of step: rank 1 "},
    {"no sync from now on", no_sync_for_good, BRG_ERR_MISMATCH,
     "rank 1 called barrier", BRG_ERR_MISMATCH, "rank 1 called barrier"},
    {"another plan", other_plan, BRG_ERR_MISMATCH, "rank 1 called all_reduce",
     BRG_ERR_MISMATCH, "bucket 0 ("},
    {"another plan, compiled", other_plan_compiled, BRG_ERR_MISMATCH,
     "reducer 1, plan ", BRG_ERR_MISMATCH, "rank 1 called all_reduce"},
    {"another plan, by its marks", other_marks, BRG_ERR_MISMATCH,
     "rank 1 has another bucket plan", BRG_ERR_MISMATCH,
     "rank 1 has another bucket plan"},
};
#define N_FAULTS (sizeof faults / sizeof faults[0])

/* What an optimizer does. */
static brg_status update(ddp_model *m)
{
    bool was = brg_grad_mode_set(false);
    brg_status status = BRG_OK;
    for (size_t i = 0; i < DDP_MODEL_N && status == BRG_OK; i++)
        status = brg_add_(m->params[i], brg_tensor_grad(m->params[i]), -0.25);
    (void)brg_grad_mode_set(was);
    return status;
}

static brg_status hash_weights(const ddp_model *m, uint64_t *hash)
{
    *hash = 0;
    return brg__ddp_hash(hash, m->params, DDP_MODEL_N);
}

static brg_status step(ddp_model *m, const fault *f, int k)
{
    bool is_bad = m->rank == CULPRIT && k == BAD_STEP;
    BRG_TRY(ddp_model_zero(m, false));
    BRG_TRY(is_bad ? f->act(m, k) : ddp_model_backward(m, k, DDP_MODEL_ALL));
    BRG_TRY(barrier(m->pg));
    BRG_TRY(ddp_model_check(m, k, k + 1));
    return update(m);
}

/* All steps before are right, and this one fails before the weights change:
 * every rank still has those of the step before, bit for bit. */
static brg_status run_steps(ddp_model *m, matrix_case *c)
{
    const fault *f = c->fault;
    brg_status status = BRG_OK;
    uint64_t before = 0, after = 0;
    int k = 0;
    while (status == BRG_OK && k < N_STEPS) {
        uint64_t last = before;
        BRG_TRY(hash_weights(m, &before));
        RANK_CHECK(before != last, "step %d has changed no weight", k - 1);
        status = step(m, f, k++);
    }
    RANK_CHECK(k == BAD_STEP + 1, "rank %d: %s went on for %d steps", m->rank,
               f->name, k);
    BRG_TRY(hash_weights(m, &after));
    RANK_CHECK(after == before, "rank %d: %s has touched weights", m->rank,
               f->name);
    c->weights = c->n_errors == 0 ? after : c->weights;
    RANK_CHECK(after == c->weights, "rank %d: %s: other weights", m->rank,
               f->name);
    c->n_errors++;
    bool is_own = m->rank == CULPRIT;
    return ranks_expect(status, is_own ? f->own_code : f->code,
                        is_own ? f->own_text : f->text, f->name, __LINE__);
}

static brg_status run_rank(brg_pg *pg, void *user)
{
    matrix_case *c = user;
    ddp_model m;
    brg_ddp_options options = BRG_DDP_OPTIONS_INIT;
    options.first_bucket_bytes = options.bucket_bytes = c->cap;
    brg_status status = ddp_model_init(&m, pg);
    if (status == BRG_OK)
        status = ddp_model_wrap(&m, &options);
    if (status == BRG_OK)
        status = run_steps(&m, c);
    ddp_model_deinit(&m);
    return status;
}

static void test_faults__are_found_at_once_and_named(void **state)
{
    (void)state;
    for (size_t i = 0; i < N_FAULTS; i++)
        for (int n = 2; n <= 4; n++)
            for (uint64_t seed = 0; seed < 5; seed++) {
                matrix_case c = {.fault = &faults[i]};
                brg_sim_options options = BRG_SIM_OPTIONS_INIT;
                uint64_t start = brg__clock_ns();
                options.seed = seed;
                assert_brg_ok(brg_sim_run(n, &options, run_rank, &c));
                assert_int_equal(c.n_errors, n);
                assert_true(brg__clock_ns() - start < 1000000000u);
            }
}

/* Messages of calls that do not meet have the parameters of their bucket. */
static brg_status name_rank(brg_pg *pg, void *user)
{
    ddp_model m;
    brg_status status = ddp_model_init(&m, pg);
    (void)user;
    if (status == BRG_OK)
        status = ddp_model_wrap(&m, NULL);
    if (status == BRG_OK && m.rank == CULPRIT)
        status = barrier(pg);
    else if (status == BRG_OK)
        status = ddp_model_backward(&m, 0, DDP_MODEL_ALL);
    if (status != BRG_OK && m.rank != CULPRIT)
        status = ranks_expect(status, BRG_ERR_MISMATCH,
                              "bucket 0 (fc2.weight): ranks disagree", "a name",
                              __LINE__);
    else if (status != BRG_OK)
        status = BRG_OK;
    ddp_model_deinit(&m);
    return status;
}

static void test_faults__parameters_are_named(void **state)
{
    (void)state;
    assert_brg_ok(brg_sim_run(3, NULL, name_rank, NULL));
}

/* ---- No cost -------------------------------------------------------------------------- */

static brg_status count_rank(brg_pg *pg, void *user)
{
    ddp_model m;
    brg_pg_stats before, after;
    brg_status status = ddp_model_init(&m, pg);
    (void)user;
    if (status == BRG_OK)
        status = ddp_model_wrap(&m, NULL);
    for (int k = 0; k < 6 && status == BRG_OK; k++) {
        size_t n = brg_reducer_n_buckets(brg_ddp_reducer(m.ddp));
        brg_pg_get_stats(pg, &before);
        status = ddp_model_backward(&m, k, DDP_MODEL_ALL);
        brg_pg_get_stats(pg, &after);
        if (status == BRG_OK && k > 0 &&
            after.n_collectives - before.n_collectives != n)
            status = BRG_FAIL(BRG_ERR_INTERNAL,
                              "step %d: more than a call "
                              "for each bucket",
                              k);
        if (status == BRG_OK)
            status = ddp_model_zero(&m, false);
    }
    ddp_model_deinit(&m);
    return status;
}

static void test_faults__looking_for_them_sends_nothing(void **state)
{
    (void)state;
    assert_brg_ok(brg_sim_run(3, NULL, count_rank, NULL));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_faults__are_found_at_once_and_named),
        cmocka_unit_test(test_faults__parameters_are_named),
        cmocka_unit_test(test_faults__looking_for_them_sends_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
