/* SPDX-License-Identifier: Apache-2.0
 * Data-parallel backward: values, order, accumulation, unused parameters. */
#include <math.h>

#include <brigade/ops.h>

#include "core/base/error.h"
#include "tests/reducer/ddp_run.h"

static const size_t caps[] = {1, 128, 300, 0};
#define N_CAPS 4

/* ---- Values ----------------------------------------------------------------------- */

static brg_status five_steps(ddp_model *m, const run *r)
{
    brg_tensor *grads[DDP_MODEL_N] = {NULL};
    for (int step = 0; step < 5; step++) {
        BRG_TRY(ddp_model_backward(m, step, DDP_MODEL_ALL));
        BRG_TRY(ddp_model_check(m, step, step + 1));
        for (size_t i = 0; i < DDP_MODEL_N; i++) {
            brg_tensor *grad = brg_tensor_grad(m->params[i]);
            RANK_CHECK(!grads[i] || grads[i] == grad,
                       ".grad of %zu is another tensor", i);
            grads[i] = grad;
        }
        BRG_TRY(ddp_model_zero(m, r->keep_memory));
    }
    return BRG_OK;
}

static void test_ddp__averages_over_ranks(void **state)
{
    (void)state;
    uint64_t seed = brg_test_seed(21);
    for (size_t i = 0; i < N_CAPS; i++) {
        run r = make_run(five_steps, caps[i]);
        r.seed = seed + i;
        run_worlds(&r, 1);
        r.keep_memory = true;
        run_worlds(&r, 1);
        r.options.keep_order = true;
        run_worlds(&r, 1);
    }
}

static brg_status starts_equal(ddp_model *m, const run *r)
{
    (void)r;
    for (size_t i = 0; i < DDP_MODEL_N; i++) {
        double memory[DDP_MODEL_NUMEL] = {0};
        BRG_TRY(brg_tensor_read(m->params[i], memory,
                                brg_tensor_nbytes(m->params[i])));
        double value = ranks_load(memory, 0, brg_tensor_dtype(m->params[i]));
        RANK_CHECK(value == 0.25 * (double)i, "parameter %zu is %g", i, value);
        BRG_TRY(ranks_same_bits(m->pg, memory, sizeof memory));
        RANK_CHECK(!brg_tensor_grad(m->params[i]), "it has a gradient");
    }
    const int64_t *buffer = brg_tensor_data(m->buffer);
    RANK_CHECK(buffer[0] == 0 && buffer[3] == 0, "buffer %d", (int)buffer[0]);
    BRG_TRY(brg_fill_(m->buffer, m->rank + 5));
    BRG_TRY(brg_ddp_sync_buffers(m->ddp));
    RANK_CHECK(buffer[0] == 5 && buffer[3] == 5, "buffer %d", (int)buffer[0]);
    return BRG_OK;
}

static void test_ddp__starts_from_the_values_of_rank_0(void **state)
{
    (void)state;
    for (size_t i = 0; i < N_CAPS; i++) {
        run r = make_run(starts_equal, caps[i]);
        run_worlds(&r, 1);
    }
}

static brg_status sums(ddp_model *m, const run *r)
{
    (void)r;
    BRG_TRY(ddp_model_backward(m, 0, DDP_MODEL_ALL));
    brg_tensor *grad = brg_tensor_grad(m->params[7]);
    BRG_TRY(brg_mul_scalar_(grad, 1.0 / m->world_size));
    return ddp_model_check_param(m, 7, 0, 1, DDP_MODEL_EVERY_RANK);
}

static void test_ddp__can_sum(void **state)
{
    (void)state;
    run r = make_run(sums, 0);
    r.options.sum = true;
    run_worlds(&r, 1);
}

/* The second backward adds to an average: avg + avg of what is new. */
static brg_status adds_up(ddp_model *m, const run *r)
{
    (void)r;
    for (int step = 0; step < 3; step++) {
        BRG_TRY(ddp_model_backward(m, step, DDP_MODEL_ALL));
        BRG_TRY(ddp_model_check(m, 0, step + 1));
    }
    brg_reducer_stats stats;
    brg_ddp_get_stats(m->ddp, &stats);
    RANK_CHECK(stats.n_packed_bytes == 0,
               "%d bytes copied, though .grad is "
               "in the bucket",
               (int)stats.n_packed_bytes);
    return BRG_OK;
}

static void test_ddp__gradients_that_stay_add_up(void **state)
{
    (void)state;
    for (size_t i = 0; i < N_CAPS; i++) {
        run r = make_run(adds_up, caps[i]);
        run_worlds(&r, 1);
    }
}

/* .grad is the caller's, with other strides than its parameter: row-major where
 * that is not, transposed where it is. */
static brg_status set_other_layouts(ddp_model *m)
{
    for (size_t i = 0; i < DDP_MODEL_N; i++) {
        const brg_tensor *p = m->params[i];
        const int64_t *shape = brg_tensor_shape(p);
        bool turns = brg_tensor_ndim(p) == 2 && brg_tensor_is_contiguous(p);
        brg_tensor *grad =
            turns ? brg_transpose(brg_zeros(brg_tensor_dtype(p),
                                            BRG_SHAPE(shape[1], shape[0])),
                                  0, 1)
                  : brg_zeros(brg_tensor_dtype(p), brg_tensor_ndim(p), shape);
        BRG_TRY(brg_tensor_set_grad(m->params[i], grad));
    }
    return BRG_OK;
}

static brg_status lies_otherwise(ddp_model *m, const run *r)
{
    for (int step = 0; step < 4; step++) {
        brg_scope *scope = brg_scope_begin();
        brg_status status = set_other_layouts(m);
        brg_scope_end(scope);
        BRG_TRY(status);
        BRG_TRY(ddp_model_backward(m, step, DDP_MODEL_ALL));
        BRG_TRY(ddp_model_check(m, step, step + 1));
    }
    (void)r;
    return BRG_OK;
}

static void test_ddp__gradients_may_lie_otherwise(void **state)
{
    (void)state;
    for (size_t i = 0; i < N_CAPS; i++) {
        run r = make_run(lies_otherwise, caps[i]);
        run_worlds(&r, 1);
        r.options.grads_apart = true;
        run_worlds(&r, 1);
    }
}

/* ---- Accumulation -------------------------------------------------------------------- */

static brg_status accumulates(ddp_model *m, const run *r)
{
    for (int round = 0; round < 3; round++) {
        int first = round * 4;
        brg_pg_stats before, after;
        brg_pg_get_stats(m->pg, &before);
        RANK_CHECK(brg_ddp_set_sync(m->ddp, false), "it was off");
        for (int step = first; step < first + 3; step++)
            BRG_TRY(ddp_model_backward(m, step, DDP_MODEL_ALL));
        brg_pg_get_stats(m->pg, &after);
        RANK_CHECK(before.n_collectives == after.n_collectives,
                   "collectives while off");
        RANK_CHECK(!brg_ddp_set_sync(m->ddp, true), "it was on");
        BRG_TRY(ddp_model_backward(m, first + 3, DDP_MODEL_ALL));
        BRG_TRY(ddp_model_check(m, first, first + 4));
        BRG_TRY(ddp_model_zero(m, r->keep_memory));
    }
    return BRG_OK;
}

static void test_ddp__micro_batches_are_reduced_once(void **state)
{
    (void)state;
    for (size_t i = 0; i < N_CAPS; i++) {
        run r = make_run(accumulates, caps[i]);
        run_worlds(&r, 1);
        r.keep_memory = true;
        run_worlds(&r, 1);
    }
}

/* A parameter used in the first micro-batch only. */
static brg_status accumulates_partly(ddp_model *m, const run *r)
{
    (void)r;
    for (int round = 0; round < 2; round++) {
        (void)brg_ddp_set_sync(m->ddp, false);
        BRG_TRY(ddp_model_backward(m, 0, DDP_MODEL_ALL));
        (void)brg_ddp_set_sync(m->ddp, true);
        BRG_TRY(ddp_model_backward(m, 1, DDP_MODEL_ALL & ~(1u << 4)));
        BRG_TRY(ddp_model_check_param(m, 4, 0, 1, DDP_MODEL_EVERY_RANK));
        BRG_TRY(ddp_model_check_param(m, 3, 0, 2, DDP_MODEL_EVERY_RANK));
        BRG_TRY(ddp_model_zero(m, round == 0));
    }
    return BRG_OK;
}

static void test_ddp__a_parameter_of_an_earlier_micro_batch_counts(void **state)
{
    (void)state;
    run r = make_run(accumulates_partly, 1);
    run_worlds(&r, 1);
}

/* ---- Unused parameters ------------------------------------------------------------------ */

#define UNUSED 5

typedef struct unused_case {
    unsigned who; /* uses the parameter */
    bool is_allowed;
    char before; /* .grad: n NULL, o a tensor of its own, v the view */
} unused_case;

/* What .grad holds before, alike on every rank. */
static brg_status prepare_grad(ddp_model *m, const unused_case *c)
{
    brg_tensor *p = m->params[UNUSED];
    if (c->before == 'v') {
        BRG_TRY(ddp_model_backward(m, 0, DDP_MODEL_ALL));
        BRG_TRY(ddp_model_zero(m, true));
        return brg_fill_(brg_tensor_grad(p), 0.1);
    }
    return c->before == 'n' ? BRG_OK
                            : brg_tensor_set_grad(p, brg_full_like(p, 0.1));
}

static brg_status check_unused(ddp_model *m, const unused_case *c,
                               const brg_tensor *before)
{
    brg_tensor *after = brg_tensor_grad(m->params[UNUSED]);
    unsigned everyone = (1u << m->world_size) - 1;
    if (c->before == 'n' && (c->who & everyone))
        return ddp_model_check_param(m, UNUSED, 1, 2, c->who);
    if (!(c->who & everyone)) {
        RANK_CHECK(before == after, "an unused .grad was replaced");
        float value = 0.1f, found = 0.1f;
        if (after)
            found = *(float *)brg_tensor_data(after);
        RANK_CHECK(value == found, "it holds %.9g", found);
    }
    return BRG_OK;
}

static brg_status unused_rank(brg_pg *pg, void *user)
{
    const unused_case *c = user;
    brg_ddp_options options = BRG_DDP_OPTIONS_INIT;
    options.allow_unused = c->is_allowed;
    options.bucket_bytes = options.first_bucket_bytes = 100;
    ddp_model m;
    BRG_TRY(ddp_model_init(&m, pg));
    brg_status status = ddp_model_wrap(&m, &options);
    if (status == BRG_OK)
        status = prepare_grad(&m, c);
    brg_tensor *before = brg_tensor_grad(m.params[UNUSED]);
    unsigned mask = DDP_MODEL_ALL;
    if (!(c->who >> m.rank & 1))
        mask &= ~(1u << UNUSED);
    for (int round = 0; status == BRG_OK && round < 2; round++) {
        bool is_error = !c->is_allowed && (c->who | ~0u << m.world_size) != ~0u;
        status = ddp_model_backward(&m, 1, mask);
        if (is_error)
            status = ranks_expect(status, BRG_ERR_STATE,
                                  "no gradient in this step for fc2.bias on "
                                  "rank",
                                  "backward", __LINE__);
        else if (status == BRG_OK && round == 0)
            status = check_unused(&m, c, before);
    }
    if (status == BRG_OK) /* and on as if nothing had been */
        status = ddp_model_zero(&m, false);
    if (status == BRG_OK)
        status = ddp_model_backward(&m, 2, DDP_MODEL_ALL);
    if (status == BRG_OK)
        status = ddp_model_check(&m, 2, 3);
    ddp_model_deinit(&m);
    return status;
}

static void test_ddp__unused_parameters(void **state)
{
    (void)state;
    for (int n = 1; n <= 3; n++)
        for (unsigned who = 0; who < 1u << n; who++)
            for (int k = 0; k < 6; k++) {
                unused_case c = {who, k % 2 == 0, "nov"[k / 2]};
                assert_brg_ok(brg_sim_run(n, NULL, unused_rank, &c));
            }
}

/* ---- Overlap ----------------------------------------------------------------------------- */

static brg_status overlaps(ddp_model *m, const run *r)
{
    (void)r;
    for (int step = 0; step < 3; step++) {
        BRG_TRY(ddp_model_backward(m, 0, DDP_MODEL_ALL));
        BRG_TRY(ddp_model_zero(m, false));
    }
    brg_reducer_stats stats;
    brg_ddp_get_stats(m->ddp, &stats);
    RANK_CHECK(stats.n_buckets >= DDP_MODEL_N && stats.n_steps == 3,
               "%zu buckets", stats.n_buckets);
    if (m->rank == 0) { /* the order is its own, rebuilt */
        RANK_CHECK(stats.n_early == DDP_MODEL_N - 1,
                   "%zu buckets started early", stats.n_early);
        RANK_CHECK(stats.first_launch_ns < stats.last_ready_ns, "no overlap");
    }
    brg_bucket_info info;
    BRG_TRY(brg_reducer_get_bucket(brg_ddp_reducer(m->ddp), 1, &info));
    RANK_CHECK(info.launch_ns > 0 && info.done_ns >= info.launch_ns &&
                   info.n_params == 1,
               "bucket 1 from %d to %d ns", (int)info.launch_ns,
               (int)info.done_ns);
    return BRG_OK;
}

static void test_ddp__buckets_start_before_the_last_gradient(void **state)
{
    (void)state;
    run r = make_run(overlaps, 1);
    run_worlds(&r, 1);
}

/* What a step sends: all-reduces of the buckets in order, and nothing else,
 * used counts and all. */
static void test_ddp__sends_nothing_but_buckets(void **state)
{
    (void)state;
    brg_pg *pg;
    ddp_model m;
    brg_ddp_options options = BRG_DDP_OPTIONS_INIT;
    options.allow_unused = true;
    options.first_bucket_bytes = options.bucket_bytes = 200;
    assert_brg_ok(brg_pg_create_fake(&pg, 1, 3));
    assert_brg_ok(ddp_model_init(&m, pg));
    assert_brg_ok(ddp_model_wrap(&m, &options));
    assert_brg_ok(ddp_model_backward(&m, 0, DDP_MODEL_ALL)); /* rebuilds */
    const brg_reducer *r = brg_ddp_reducer(m.ddp);
    for (int step = 1; step < 4; step++) {
        size_t from = brg_fake_n_calls(pg);
        assert_brg_ok(ddp_model_backward(&m, step, DDP_MODEL_ALL >> step));
        assert_int_equal(brg_fake_n_calls(pg) - from, brg_reducer_n_buckets(r));
        for (size_t k = 0; k < brg_reducer_n_buckets(r); k++) {
            brg_fake_call call;
            brg_bucket_info info;
            assert_brg_ok(brg_fake_call_at(pg, from + k, &call));
            assert_brg_ok(brg_reducer_get_bucket(r, k, &info));
            assert_string_equal(call.name, "all_reduce");
            assert_int_equal(call.op, BRG_REDUCE_AVG);
            assert_int_equal(call.dtype, info.dtype);
            assert_int_equal(call.count * brg_dtype_size(call.dtype),
                             info.nbytes);
        }
    }
    ddp_model_deinit(&m);
    brg_pg_destroy(pg);
}

/* ---- Which tensors --------------------------------------------------------------------------- */

static brg_status repeated_rank(brg_pg *pg, void *user)
{
    (void)user;
    ddp_model m;
    BRG_TRY(ddp_model_init(&m, pg));
    brg_tensor *list[5] = {m.params[0], m.params[7], m.params[0], m.buffer,
                           m.params[7]};
    brg_status status = brg_fill_(m.buffer, m.rank + 3);
    if (status == BRG_OK)
        status = brg_ddp_create(&m.ddp, pg, list, 5, NULL, 0, NULL);
    brg_reducer_stats stats;
    brg_ddp_get_stats(m.ddp, &stats);
    if (status == BRG_OK)
        status = ddp_model_backward(&m, 0, 1u | 1u << 7);
    if (status == BRG_OK)
        status = ddp_model_check_param(&m, 7, 0, 1, DDP_MODEL_EVERY_RANK);
    int64_t frozen = *(int64_t *)brg_tensor_data(m.buffer);
    ddp_model_deinit(&m);
    BRG_TRY(status);
    RANK_CHECK(stats.n_params == 2, "%zu parameters", stats.n_params);
    RANK_CHECK(frozen == 3, "a frozen parameter is %d", (int)frozen);
    return BRG_OK;
}

static void test_ddp__a_tensor_given_twice_counts_once(void **state)
{
    (void)state;
    ranks_in_worlds(1, NULL, repeated_rank, NULL);
}

/* ---- One weight under two names ------------------------------------------------------ */

#define TIED_ROWS 3
#define TIED_COLUMNS 5
#define TIED_NUMEL (TIED_ROWS * TIED_COLUMNS)
#define TIED_RATE 0.25

/* loss = sum(a x0) + sum(b x1), where b is a transposed. */
static brg_status tied_backward(brg_tensor *a, brg_tensor *b, int rank,
                                int step)
{
    float x[2][TIED_NUMEL];
    for (size_t i = 0; i < 2; i++)
        for (size_t k = 0; k < TIED_NUMEL; k++)
            x[i][k] = (float)ranks_gradient(rank, step, i, k);
    brg_scope *scope = brg_scope_begin();
    brg_tensor *first =
        brg_mul(a, brg_from_data(BRG_DTYPE_F32,
                                 BRG_SHAPE(TIED_ROWS, TIED_COLUMNS), x[0]));
    brg_tensor *second =
        brg_mul(b, brg_from_data(BRG_DTYPE_F32,
                                 BRG_SHAPE(TIED_COLUMNS, TIED_ROWS), x[1]));
    brg_status status =
        brg_backward(brg_add(brg_sum_all(first), brg_sum_all(second)));
    brg_scope_end(scope);
    return status;
}

/* What an optimizer over both makes of the one weight. */
static brg_status tied_update(brg_tensor *const *tied, double *expected,
                              int n_ranks, int step)
{
    bool was = brg_grad_mode_set(false);
    brg_status status = BRG_OK;
    for (int i = 0; i < 2 && status == BRG_OK; i++)
        status = brg_add_(tied[i], brg_tensor_grad(tied[i]), -TIED_RATE);
    (void)brg_grad_mode_set(was);
    for (size_t k = 0; k < TIED_NUMEL; k++) {
        size_t row = k / TIED_COLUMNS, column = k % TIED_COLUMNS;
        expected[k] -= TIED_RATE * (ranks_average(n_ranks, step, 0, k) +
                                    ranks_average(n_ranks, step, 1,
                                                  column * TIED_ROWS + row));
    }
    return status;
}

static brg_status tied_steps(brg_pg *pg, brg_tensor *const *tied)
{
    float found[TIED_NUMEL];
    double expected[TIED_NUMEL];
    for (size_t k = 0; k < TIED_NUMEL; k++)
        expected[k] = 1; /* rank 0's */
    for (int step = 0; step < 4; step++) {
        BRG_TRY(tied_backward(tied[0], tied[1], brg_pg_rank(pg), step));
        BRG_TRY(tied_update(tied, expected, brg_pg_world_size(pg), step));
        BRG_TRY(brg_tensor_read(tied[0], found, sizeof found));
        for (size_t k = 0; k < TIED_NUMEL; k++)
            RANK_CHECK(fabs((double)found[k] - expected[k]) < 1e-5,
                       "step %d: weight %zu is %g, expected %g", step, k,
                       (double)found[k], expected[k]);
        BRG_TRY(ranks_same_bits(pg, found, sizeof found));
        for (int i = 0; i < 2; i++)
            BRG_TRY(brg_tensor_set_grad(tied[i], NULL));
    }
    return BRG_OK;
}

static brg_status tied_rank(brg_pg *pg, void *user)
{
    const brg_ddp_options *options = user;
    brg_scope *scope = brg_scope_begin();
    brg_ddp *ddp = NULL;
    brg_tensor *tied[2];
    tied[0] = brg_full(BRG_DTYPE_F32, BRG_SHAPE(TIED_ROWS, TIED_COLUMNS),
                       1 + brg_pg_rank(pg));
    tied[1] = brg_detach(brg_transpose(tied[0], 0, 1));
    brg_status status = brg_set_requires_grad(tied[0], true);
    if (status == BRG_OK)
        status = brg_set_requires_grad(tied[1], true);
    if (status == BRG_OK && !brg_tensor_shares_storage(tied[0], tied[1]))
        status = BRG_FAIL(BRG_ERR_INTERNAL, "they are two weights");
    if (status == BRG_OK)
        status = brg_ddp_create(&ddp, pg, tied, 2, NULL, 0, options);
    if (status == BRG_OK)
        status = tied_steps(pg, tied);
    brg_ddp_destroy(ddp);
    brg_scope_end(scope);
    return status;
}

static void test_ddp__tied_weights_stay_alike(void **state)
{
    (void)state;
    brg_ddp_options options = BRG_DDP_OPTIONS_INIT;
    ranks_in_worlds(1, NULL, tied_rank, &options);
    options.first_bucket_bytes = options.bucket_bytes = 1;
    ranks_in_worlds(1, NULL, tied_rank, &options);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ddp__averages_over_ranks),
        cmocka_unit_test(test_ddp__starts_from_the_values_of_rank_0),
        cmocka_unit_test(test_ddp__can_sum),
        cmocka_unit_test(test_ddp__gradients_that_stay_add_up),
        cmocka_unit_test(test_ddp__gradients_may_lie_otherwise),
        cmocka_unit_test(test_ddp__micro_batches_are_reduced_once),
        cmocka_unit_test(
            test_ddp__a_parameter_of_an_earlier_micro_batch_counts),
        cmocka_unit_test(test_ddp__unused_parameters),
        cmocka_unit_test(test_ddp__buckets_start_before_the_last_gradient),
        cmocka_unit_test(test_ddp__sends_nothing_but_buckets),
        cmocka_unit_test(test_ddp__a_tensor_given_twice_counts_once),
        cmocka_unit_test(test_ddp__tied_weights_stay_alike),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
