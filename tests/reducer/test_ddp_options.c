/* SPDX-License-Identifier: Apache-2.0
 * Options of a ddp two by two: a pair trains right (gradients of two
 * micro-batches, norm, what is not finite, buffers, the parameters that an
 * optimizer makes of them), eagerly and compiled, or is refused by an error that
 * names both. docs/features.md has the table. */
#include <math.h>

#include <brigade/autograd.h>
#include <brigade/comm_hook.h>
#include <brigade/ops.h>
#include <brigade/optim.h>
#include <brigade/shard.h>

#include "tests/support/brg_test.h"
#include "tests/support/compiled_run.h"
#include "tests/support/ranks.h"

#define N_PARAMS 5
#define N_STEPS 8 /* buckets by measurement are chosen after six */
#define N_MICRO 2 /* backwards of a step on each rank */
#define MAX_NUMEL 60
#define RATE 0.05
#define SPOILT 2 /* where a NaN is */

static const int64_t rows_of[N_PARAMS] = {3, 1, 10, 4, 2};
static const int64_t cols_of[N_PARAMS] = {5, 7, 6, 1, 8};

/* ---- The options ----------------------------------------------------------------- */

static brg_status hook_start(void *user, const brg_hook_bucket *b)
{
    (void)user;
    return brg_all_reduce(b->pg, b->work, b->data, b->count, b->dtype, b->op);
}

static brg_status hook_finish(void *user, const brg_hook_bucket *b)
{
    brg_work *work = *b->work;
    (void)user;
    *b->work = NULL;
    return brg_work_wait(work);
}

typedef struct choice {
    brg_pg *pg;
    brg_comm_hook *hook;
    bool is_compiled;
    brg_ddp_options options;
} choice;

static void set_hook(choice *c)
{
    c->options.hook = c->hook;
}

static void set_apart(choice *c)
{
    c->options.grads_apart = true;
}

static void set_static(choice *c)
{
    c->options.static_graph = true;
}

static void set_measured(choice *c)
{
    c->options.buckets = BRG_BUCKETS_MEASURED;
}

static void set_shard(choice *c)
{
    c->options.shard = true;
}

static void set_leaves(choice *c)
{
    c->options.reduction = BRG_REDUCTION_REPRODUCIBLE;
    c->options.n_leaves = N_MICRO * (uint32_t)brg_pg_world_size(c->pg);
}

static void set_norm(choice *c)
{
    c->options.measure_norm = true;
}

static void set_finite(choice *c)
{
    c->options.check_finite = true;
}

static void set_buffers(choice *c)
{
    c->options.sync_buffers = BRG_DDP_BUFFERS_AVERAGE;
}

static void set_unused(choice *c)
{
    c->options.allow_unused = true;
}

static void set_keep(choice *c)
{
    c->options.keep_order = true;
}

static void set_groups(choice *c)
{
    static const uint32_t groups[N_PARAMS] = {1, 0, 2, 1, 2};
    c->options.bucket_groups = groups;
    c->options.n_bucket_groups = 2;
}

static void set_sums(choice *c)
{
    c->options.accumulate_f32 = true;
}

static void set_sum(choice *c)
{
    c->options.sum = true;
}

enum {
    HOOK,
    APART,
    STATIC,
    MEASURED,
    SHARD,
    LEAVES,
    NORM,
    FINITE,
    BUFFERS,
    UNUSED,
    KEEP,
    GROUPS,
    SUMS,
    SUM,
    N_CHOICES
};

typedef struct choice_row {
    const char *word; /* of an error */
    void (*set)(choice *c);
    unsigned excludes; /* bits */
} choice_row;

#define BIT(x) (1u << (x))
static const choice_row choices[N_CHOICES] = {
    [HOOK] = {"hook", set_hook, BIT(MEASURED) | BIT(SHARD) | BIT(LEAVES)},
    [APART] = {"grads_apart", set_apart, BIT(SHARD) | BIT(LEAVES) | BIT(SUMS)},
    [STATIC] = {"static_graph", set_static, BIT(LEAVES)},
    [MEASURED] = {"BRG_BUCKETS_MEASURED", set_measured,
                  BIT(HOOK) | BIT(SHARD) | BIT(LEAVES) | BIT(KEEP) |
                      BIT(GROUPS)},
    [SHARD] = {"shard", set_shard,
               BIT(HOOK) | BIT(APART) | BIT(MEASURED) | BIT(LEAVES)},
    [LEAVES] = {"BRG_REDUCTION_REPRODUCIBLE", set_leaves,
                BIT(HOOK) | BIT(APART) | BIT(STATIC) | BIT(MEASURED) |
                    BIT(SHARD)},
    [NORM] = {"measure_norm", set_norm, 0},
    [FINITE] = {"check_finite", set_finite, 0},
    [BUFFERS] = {"sync_buffers", set_buffers, 0},
    [UNUSED] = {"allow_unused", set_unused, 0},
    [KEEP] = {"keep_order", set_keep, BIT(MEASURED)},
    [GROUPS] = {"bucket_groups", set_groups, BIT(MEASURED)},
    [SUMS] = {"accumulate_f32", set_sums, BIT(APART)},
    [SUM] = {"sum", set_sum, 0},
};

/* ---- The model: loss = sum of p * x --------------------------------------------------- */

typedef struct model {
    brg_scope *scope;
    brg_params *list;
    brg_tensor *params[N_PARAMS];
    brg_tensor *buffer;
    brg_ddp *ddp;
    brg_optim *optim;
    double moved[N_PARAMS][MAX_NUMEL]; /* what the parameters have to lose */
} model;

/* Where f32 sums of micro-batches differ from others: two are of 16 bits. */
static brg_dtype dtype_of(const choice *c, size_t i)
{
    return c->options.accumulate_f32 && i % 2 ? BRG_DTYPE_BF16 : BRG_DTYPE_F32;
}

static brg_status model_init(model *m, const choice *c)
{
    *m = (model){.scope = brg_scope_begin()};
    BRG_TRY(brg_params_create(&m->list));
    for (size_t i = 0; i < N_PARAMS; i++) {
        m->params[i] = brg_full(dtype_of(c, i),
                                BRG_SHAPE(rows_of[i], cols_of[i]), (double)i);
        char name[] = {'p', (char)('0' + i), 0};
        BRG_TRY(brg_params_add(m->list, name, m->params[i], BRG_PARAM_TRAINED));
    }
    m->buffer = brg_full(BRG_DTYPE_F32, BRG_SHAPE(2), brg_pg_rank(c->pg));
    return m->buffer ? BRG_OK : brg_error_code();
}

static brg_status model_create_ddp(model *m, const choice *c)
{
    return brg_ddp_create(&m->ddp, c->pg, m->params, N_PARAMS, &m->buffer, 1,
                          &c->options);
}

static brg_status model_create_optim(model *m, const choice *c)
{
    brg_optim_range ranges[N_PARAMS];
    brg_sgd_options sgd = BRG_SGD_OPTIONS_INIT;
    sgd.lr = RATE;
    if (c->options.shard) {
        BRG_TRY(brg_ddp_shard(m->ddp, m->list, ranges, N_PARAMS));
        sgd.ranges = ranges;
    }
    return brg_optim_create_sgd(&m->optim, m->list, &sgd);
}

static void model_deinit(model *m)
{
    brg_optim_destroy(m->optim);
    brg_ddp_destroy(m->ddp);
    brg_params_destroy(m->list);
    brg_scope_end(m->scope);
}

/* ---- A step ----------------------------------------------------------------------- */

/* With allow_unused the first of several ranks has no gradient of one. */
static bool is_used(const choice *c, int rank, size_t i)
{
    return !c->options.allow_unused || i != 3 || rank > 0 ||
           brg_pg_world_size(c->pg) == 1;
}

/* With check_finite the last step has a NaN, of the last rank. */
static bool is_spoilt(const choice *c, int step)
{
    return c->options.check_finite && step == N_STEPS - 1;
}

static brg_status backward(model *m, const choice *c, int step, int micro)
{
    const int rank = brg_pg_rank(c->pg);
    const bool spoils = is_spoilt(c, step) && micro == 0 &&
                        rank == brg_pg_world_size(c->pg) - 1;
    brg_scope *scope = brg_scope_begin();
    brg_tensor *loss = brg_zeros(BRG_DTYPE_F32, BRG_SCALAR);
    for (size_t i = 0; i < N_PARAMS; i++) {
        double x[MAX_NUMEL];
        if (!is_used(c, rank, i))
            continue;
        for (size_t k = 0; k < MAX_NUMEL; k++)
            x[k] = ranks_gradient(rank, N_MICRO * step + micro, i, k);
        x[0] = spoils && i == SPOILT ? (double)NAN : x[0];
        brg_tensor *input = brg_cast(
            brg_from_data(BRG_DTYPE_F64, BRG_SHAPE(rows_of[i], cols_of[i]), x),
            dtype_of(c, i));
        brg_tensor *term = brg_sum_all(brg_mul(m->params[i], input));
        loss = brg_add(loss, brg_cast(term, BRG_DTYPE_F32));
    }
    brg_status status = brg_backward(loss);
    brg_scope_end(scope);
    return status;
}

/* All micro-batches: leaves of the step, or all but the last without sync. */
static brg_status backwards(model *m, const choice *c, int step)
{
    uint32_t leaf;
    for (int micro = 0; micro < N_MICRO; micro++) {
        const bool is_last = micro == N_MICRO - 1;
        if (c->options.n_leaves)
            RANK_CHECK(brg_ddp_next_leaf(m->ddp, &leaf) == is_last,
                       "leaf %u is%s the last", leaf, is_last ? " not" : "");
        else
            (void)brg_ddp_set_sync(m->ddp, is_last);
        BRG_TRY(backward(m, c, step, micro));
    }
    return BRG_OK;
}

/* What the step makes of element k of gradient i. */
static double expected(const choice *c, int step, size_t i, size_t k)
{
    const int n = brg_pg_world_size(c->pg);
    const double parts = c->options.n_leaves ? n * N_MICRO : n;
    double sum = 0;
    for (int rank = 0; rank < n; rank++)
        for (int micro = 0; micro < N_MICRO && is_used(c, rank, i); micro++)
            sum += ranks_gradient(rank, N_MICRO * step + micro, i, k);
    return c->options.sum ? sum : sum / parts;
}

static size_t numel_of(size_t i)
{
    return (size_t)(rows_of[i] * cols_of[i]);
}

/* Halves are rounded before the norm is taken. */
static double norm_room(const choice *c)
{
    return c->options.accumulate_f32 ? 2e-3 : 1e-5;
}

/* Clips to half the norm; *factor: what that makes of each gradient. */
static brg_status clip(const model *m, const choice *c, int step,
                       double *factor)
{
    double squares = 0, norm;
    *factor = 1;
    if (!c->options.measure_norm)
        return BRG_OK;
    for (size_t i = 0; i < N_PARAMS; i++)
        for (size_t k = 0; k < numel_of(i); k++)
            squares += pow(expected(c, step, i, k), 2);
    BRG_TRY(brg_ddp_clip_grad_norm(m->ddp, sqrt(squares) / 2, &norm));
    *factor = 0.5;
    RANK_CHECK(fabs(norm / sqrt(squares) - 1) < norm_room(c),
               "step %d: the norm is %g, not %g", step, norm, sqrt(squares));
    return BRG_OK;
}

/* Of each gradient what this rank is given: all, or its shard. */
static brg_status check_gradients(model *m, const choice *c, int step,
                                  double factor)
{
    brg_optim_range ranges[N_PARAMS];
    if (c->options.shard)
        BRG_TRY(brg_ddp_shard(m->ddp, m->list, ranges, N_PARAMS));
    for (size_t i = 0; i < N_PARAMS; i++) {
        const brg_dtype dtype = dtype_of(c, i);
        const double room = dtype == BRG_DTYPE_BF16 ? 0x1p-7
                            : factor < 1            ? norm_room(c)
                                                    : 1e-5;
        brg_tensor *grad = brg_tensor_grad(m->params[i]);
        size_t first = 0, last = numel_of(i);
        RANK_CHECK(grad, "step %d: no gradient %zu", step, i);
        if (c->options.shard) {
            first = ranges[i].first;
            last = first + ranges[i].n;
        }
        for (size_t k = 0; k < numel_of(i); k++) {
            const double want = factor * expected(c, step, i, k);
            const double got = ranks_load(brg_tensor_data(grad), k, dtype);
            m->moved[i][k] += RATE * want;
            RANK_CHECK(k < first || k >= last ||
                           fabs(got - want) < room * fmax(1, fabs(want)),
                       "step %d: gradient %zu[%zu] is %g, expected %g", step, i,
                       k, got, want);
        }
    }
    return BRG_OK;
}

static brg_status check_finite(const model *m, const choice *c, int step)
{
    brg_finite_info info;
    const int last = brg_pg_world_size(c->pg) - 1;
    const bool is_fine = brg_ddp_grads_finite(m->ddp, &info);
    RANK_CHECK(is_fine == !is_spoilt(c, step), "step %d: finite: %d", step,
               is_fine);
    RANK_CHECK(is_fine || (info.n_ranks == 1 && info.rank == last &&
                           info.param == SPOILT),
               "step %d: parameter %zu of rank %d (of %zu) is not finite", step,
               info.param, info.rank, info.n_ranks);
    return BRG_OK;
}

/* A buffer holds the ranks' mean, or what this rank has put there. */
static brg_status check_buffer(const model *m, const choice *c, int step)
{
    const double mean = (brg_pg_world_size(c->pg) - 1) / 2.0;
    const bool is_synced = c->options.sync_buffers != BRG_DDP_BUFFERS_LEAVE;
    const double want = step + (is_synced ? mean : brg_pg_rank(c->pg));
    const double got = ranks_load(brg_tensor_data(m->buffer), 1, BRG_DTYPE_F32);
    RANK_CHECK(fabs(got - want) < 1e-5, "step %d: the buffer is %g, not %g",
               step, got, want);
    return BRG_OK;
}

static brg_status update(const model *m, const choice *c)
{
    BRG_TRY(brg_optim_step(m->optim));
    if (!c->options.shard)
        return BRG_OK;
    BRG_TRY(brg_ddp_gather_params(m->ddp));
    return brg_ddp_wait_params(m->ddp, NULL);
}

/* Whole on every rank. */
static brg_status check_params(const model *m, const choice *c, int step)
{
    for (size_t i = 0; i < N_PARAMS; i++) {
        const brg_dtype dtype = dtype_of(c, i);
        const double room =
            (c->options.sum ? 4 : 1) * (dtype == BRG_DTYPE_BF16 ? 0.03 : 1e-4);
        for (size_t k = 0; k < numel_of(i); k++) {
            const double want = (double)i - m->moved[i][k];
            const double got =
                ranks_load(brg_tensor_data(m->params[i]), k, dtype);
            RANK_CHECK(fabs(got - want) < room,
                       "step %d: parameter %zu[%zu] is %g, expected %g", step,
                       i, k, got, want);
        }
    }
    return BRG_OK;
}

static brg_status train(model *m, const choice *c)
{
    double factor;
    BRG_TRY(model_create_optim(m, c));
    for (int step = 0; step < N_STEPS; step++) {
        for (size_t i = 0; i < N_PARAMS; i++)
            BRG_TRY(brg_tensor_set_grad(m->params[i], NULL));
        BRG_TRY(brg_fill_(m->buffer, step + brg_pg_rank(c->pg)));
        BRG_TRY(backwards(m, c, step));
        BRG_TRY(check_buffer(m, c, step));
        BRG_TRY(check_finite(m, c, step));
        if (is_spoilt(c, step))
            break;
        BRG_TRY(clip(m, c, step, &factor));
        BRG_TRY(check_gradients(m, c, step, factor));
        BRG_TRY(update(m, c));
        BRG_TRY(check_params(m, c, step));
    }
    return BRG_OK;
}

/* ---- Two by two --------------------------------------------------------------------- */

static brg_status refuse(model *m, const choice *c, int a, int b)
{
    brg_status status = model_create_ddp(m, c);
    RANK_CHECK(status == BRG_ERR_ARG || status == BRG_ERR_UNSUPPORTED,
               "%s with %s: %s", choices[a].word, choices[b].word,
               brg_status_name(status));
    RANK_CHECK(strstr(brg_error_message(), choices[a].word) &&
                   strstr(brg_error_message(), choices[b].word),
               "%s with %s: \"%s\"", choices[a].word, choices[b].word,
               brg_error_message());
    return BRG_OK;
}

/* None of its backwards runs eagerly. */
static brg_status train_compiled(model *m, const choice *c)
{
    compiled_run run;
    BRG_TRY(compiled_begin(&run));
    return compiled_end(&run, train(m, c));
}

static brg_status try_pair(choice *c, int a, int b)
{
    model m;
    c->options = (brg_ddp_options)BRG_DDP_OPTIONS_INIT;
    c->options.first_bucket_bytes = c->options.bucket_bytes = 200;
    choices[a].set(c);
    choices[b].set(c);
    brg_status status = model_init(&m, c);
    bool is_refused = choices[a].excludes >> b & 1;
    if (status == BRG_OK && is_refused)
        status = refuse(&m, c, a, b);
    else if (status == BRG_OK)
        status = model_create_ddp(&m, c);
    if (status == BRG_OK && !is_refused)
        status = c->is_compiled ? train_compiled(&m, c) : train(&m, c);
    if (status != BRG_OK)
        print_message("%s with %s\n", choices[a].word, choices[b].word);
    model_deinit(&m);
    return status;
}

static brg_status all_pairs(brg_pg *pg, void *user)
{
    choice c = {.pg = pg, .is_compiled = *(const bool *)user};
    brg_comm_hook_ops ops = {.struct_size = sizeof ops,
                             .name = "plain",
                             .start = hook_start,
                             .finish = hook_finish};
    BRG_TRY(brg_comm_hook_create(&c.hook, &ops, NULL));
    brg_status status = BRG_OK;
    for (int a = 0; a < N_CHOICES; a++)
        for (int b = a; b < N_CHOICES && status == BRG_OK; b++)
            status = try_pair(&c, a, b);
    brg_comm_hook_destroy(c.hook);
    return status;
}

static void test_ddp_options__every_pair_trains_or_is_refused(void **state)
{
    (void)state;
    for (int a = 0; a < N_CHOICES; a++)
        for (int b = 0; b < N_CHOICES; b++)
            assert_int_equal(choices[a].excludes >> b & 1,
                             choices[b].excludes >> a & 1);
    bool is_compiled = false;
    for (int n = 1; n <= 4; n++)
        assert_brg_ok(brg_sim_run(n, NULL, all_pairs, &is_compiled));
}

static void test_ddp_options__every_pair_trains_compiled(void **state)
{
    (void)state;
    bool is_compiled = true;
    for (int n = 1; n <= 3; n++)
        assert_brg_ok(brg_sim_run(n, NULL, all_pairs, &is_compiled));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ddp_options__every_pair_trains_or_is_refused),
        cmocka_unit_test(test_ddp_options__every_pair_trains_compiled),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
