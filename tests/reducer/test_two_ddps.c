/* SPDX-License-Identifier: Apache-2.0
 * Two ddps whose parameters meet in one backward: what ranks disagree on is not
 * mixed up, and a rank whose backward fails is named. */
#include <string.h>

#include <brigade/brigade.h>

#include "tests/support/brg_test.h"
#include "tests/support/ranks.h"

#define N 4                        /* parameters: two of each ddp */
#define LEN 40                     /* elements of each */
#define N_BUFFER ((int64_t)700000) /* too large for the last bucket */

typedef struct pair {
    brg_pg *pg;
    int rank;
    brg_tensor *params[N]; /* a, a, b, b */
    brg_tensor *buffers[2];
    brg_ddp *ddps[2];
    bool is_by_size, has_buffers;
    const size_t *order; /* of gradients */
    size_t failing;      /* of these */
} pair;

typedef struct run {
    brg_ddp_options options;
    bool has_buffers;
    const size_t *order;
    size_t failing;
    brg_status (*body)(pair *m);
} run;

static brg_status make(pair *m, const run *r)
{
    static const char *const names[] = {"a0", "a1", "b0", "b1"};
    for (size_t i = 0; i < N; i++) {
        m->params[i] = brg_ones(BRG_DTYPE_F32, BRG_SHAPE(LEN));
        BRG_TRY(brg_tensor_set_name(m->params[i], names[i]));
        BRG_TRY(brg_set_requires_grad(m->params[i], true));
    }
    for (size_t k = 0; k < 2; k++) {
        const double value = 10 * (double)k + m->rank;
        m->buffers[k] = brg_full(BRG_DTYPE_F32, BRG_SHAPE(N_BUFFER), value);
        RANK_CHECK(m->buffers[k], "no buffer");
        BRG_TRY(brg_ddp_create(&m->ddps[k], m->pg, m->params + 2 * k, 2,
                               m->buffers + k, r->has_buffers, &r->options));
    }
    return BRG_OK;
}

static brg_status on_rank(brg_pg *pg, void *user)
{
    const run *r = user;
    pair m = {.pg = pg,
              .rank = brg_pg_rank(pg),
              .is_by_size = r->options.buckets == BRG_BUCKETS_BY_SIZE,
              .has_buffers = r->has_buffers,
              .order = r->order,
              .failing = r->failing};
    brg_scope *scope = brg_scope_begin();
    brg_status status = make(&m, r);
    if (status == BRG_OK)
        status = r->body(&m);
    for (size_t k = 0; k < 2; k++)
        brg_ddp_destroy(m.ddps[k]);
    brg_scope_end(scope);
    return status;
}

/* Gradients arrive in this order. */
static brg_status backward(pair *m, const size_t *order)
{
    brg_scope *scope = brg_scope_begin();
    brg_tensor *loss = NULL;
    for (size_t k = N; k-- > 0;) { /* the newest first */
        brg_tensor *term = brg_sum_all(brg_square(m->params[order[k]]));
        loss = loss ? brg_add(loss, term) : term;
    }
    brg_status status = brg_backward(loss);
    brg_scope_end(scope);
    return status;
}

/* ---- Ranks that reach the ddps in another order ------------------------------------ */

static brg_status check_values(const brg_tensor *t, float value)
{
    RANK_CHECK(t, "no tensor");
    const float *data = brg_tensor_data(t);
    for (int64_t i = 0; i < brg_tensor_numel(t); i++)
        RANK_CHECK(data[i] == value, "element %d is %g, not %g", (int)i,
                   (double)data[i], (double)value);
    return BRG_OK;
}

/* Buckets start in one order, b's before a's, but the ddps are reached in
 * another. What they send at the end (arrivals, buffers) is as large for
 * both. */
static brg_status join_otherwise(pair *m)
{
    static const size_t orders[2][N] = {{1, 2, 3, 0}, {2, 1, 3, 0}};
    for (int step = 0; step < 3; step++) {
        BRG_TRY(backward(m, orders[m->rank == 0 ? 0 : 1]));
        for (size_t i = 0; i < N; i++) {
            BRG_TRY(check_values(brg_tensor_grad(m->params[i]), 2));
            BRG_TRY(brg_tensor_set_grad(m->params[i], NULL));
        }
        for (size_t k = 0; k < 2; k++) {
            brg_reducer_stats stats;
            brg_ddp_get_stats(m->ddps[k], &stats);
            /* of a the last parameter came first, as was guessed */
            RANK_CHECK((size_t)stats.n_rebuilds == (m->is_by_size ? k : 0),
                       "ddp %zu: %d rebuilds", k, (int)stats.n_rebuilds);
            if (m->has_buffers)
                BRG_TRY(check_values(m->buffers[k], 10 * (float)k));
        }
    }
    return BRG_OK;
}

static void test_two_ddps__may_be_reached_in_any_order(void **state)
{
    (void)state;
    run r = {.options = BRG_DDP_OPTIONS_INIT, .body = join_otherwise};
    for (int has_buffers = 0; has_buffers <= 1; has_buffers++) {
        r.has_buffers = has_buffers;
        r.options.buckets = BRG_BUCKETS_BY_SIZE;
        ranks_in_worlds(2, NULL, on_rank, &r);
        r.options.buckets = BRG_BUCKETS_MEASURED; /* no rebuild yet */
        ranks_in_worlds(2, NULL, on_rank, &r);
    }
}

/* Called for the wrong one on some rank. */
static brg_status sync_otherwise(pair *m)
{
    const int k = m->rank == 0 ? 0 : 1;
    RANK_FAILS(brg_ddp_sync_buffers(m->ddps[k]), BRG_ERR_MISMATCH,
               "called broadcast");
    RANK_CHECK(strstr(brg_error_message(), "reducer 1") &&
                   strstr(brg_error_message(), "reducer 2"),
               "%s", brg_error_message());
    return BRG_OK;
}

static void test_two_ddps__buffers_are_told_apart(void **state)
{
    (void)state;
    run r = {.options = BRG_DDP_OPTIONS_INIT,
             .has_buffers = true,
             .body = sync_otherwise};
    ranks_in_worlds(2, NULL, on_rank, &r);
}

/* ---- A rank whose backward fails ---------------------------------------------------- */

static brg_status refuse(brg_tensor *grad, brg_tensor **out, void *user)
{
    (void)grad;
    (void)out;
    (void)user;
    return brg_error_set(BRG_ERR_CALLBACK, __FILE__, __LINE__, "refused");
}

/* Rank 1 fails when gradient `failing` comes, and goes on with the next step.
 * Its own errors: of the hook, then of the group. The others' names it. */
static brg_status fail_at(pair *m)
{
    brg_hook *hook = NULL;
    if (m->rank == 1) {
        BRG_TRY(brg_tensor_add_hook(&hook, m->params[m->order[m->failing]],
                                    refuse, NULL, NULL));
        RANK_FAILS(backward(m, m->order), BRG_ERR_CALLBACK, "refused");
        brg_hook_remove(hook);
    }
    brg_status status = backward(m, m->order);
    if (m->rank != 1 && m->failing == 0)
        return status; /* it had not begun the step: all make it later */
    if (m->rank != 1)
        RANK_CHECK(status == BRG_ERR_MISMATCH || status == BRG_ERR_PEER,
                   "rank %d, failing %d: %s", m->rank, (int)m->failing,
                   brg_status_name(status));
    if (m->rank == 1)
        return BRG_OK;
    /* One that has heard it may have ended by now. */
    RANK_CHECK(strstr(brg_error_message(), "rank 1") ||
                   strstr(brg_error_message(), "which ended"),
               "%s", brg_error_message());
    if (status == BRG_ERR_PEER)
        return BRG_OK;
    const char *culprit = strstr(brg_error_message(), "rank 1 called");
    RANK_CHECK(culprit && strstr(culprit, "its backward has failed"),
               "rank %d, failing %d: %s", m->rank, (int)m->failing,
               brg_error_message());
    return BRG_OK;
}

static void test_two_ddps__a_rank_that_fails_is_named(void **state)
{
    static const size_t orders[][N] = {
        {1, 0, 3, 2}, {1, 3, 0, 2}, {1, 3, 2, 0}, {3, 2, 1, 0}};
    (void)state;
    run r = {.options = BRG_DDP_OPTIONS_INIT, .body = fail_at};
    for (size_t cap = 0; cap <= 100; cap += 100) /* one bucket, or two */
        for (size_t k = 0; k < 4; k++)
            for (r.failing = 0; r.failing < N; r.failing++) {
                r.options.first_bucket_bytes = r.options.bucket_bytes = cap;
                r.order = orders[k];
                ranks_in_worlds(2, NULL, on_rank, &r);
            }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_two_ddps__may_be_reached_in_any_order),
        cmocka_unit_test(test_two_ddps__buffers_are_told_apart),
        cmocka_unit_test(test_two_ddps__a_rank_that_fails_is_named),
    };
    return cmocka_run_group_tests_name("two_ddps", tests, NULL, NULL);
}
