/* SPDX-License-Identifier: Apache-2.0
 * Options of a ddp two by two: a pair trains right, or is refused by an error
 * that names both. docs/features.md has the table. */
#include <math.h>

#include <brigade/autograd.h>
#include <brigade/comm_hook.h>
#include <brigade/ops.h>
#include <brigade/shard.h>

#include "tests/support/brg_test.h"
#include "tests/support/ranks.h"

#define N_PARAMS 5
#define N_STEPS 8 /* buckets by measurement are chosen after six */
#define MAX_NUMEL 60

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
    c->options.n_leaves = (uint32_t)brg_pg_world_size(c->pg);
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
} model;

static brg_status model_init(model *m, brg_pg *pg)
{
    *m = (model){.scope = brg_scope_begin()};
    BRG_TRY(brg_params_create(&m->list));
    for (size_t i = 0; i < N_PARAMS; i++) {
        m->params[i] = brg_full(BRG_DTYPE_F32,
                                BRG_SHAPE(rows_of[i], cols_of[i]), (double)i);
        char name[] = {'p', (char)('0' + i), 0};
        BRG_TRY(brg_params_add(m->list, name, m->params[i], BRG_PARAM_TRAINED));
    }
    m->buffer = brg_full(BRG_DTYPE_F32, BRG_SHAPE(2), brg_pg_rank(pg));
    return m->buffer ? BRG_OK : brg_error_code();
}

static void model_deinit(model *m)
{
    brg_ddp_destroy(m->ddp);
    brg_params_destroy(m->list);
    brg_scope_end(m->scope);
}

static brg_status backward(model *m, int rank, int step)
{
    brg_scope *scope = brg_scope_begin();
    brg_tensor *loss = brg_zeros(BRG_DTYPE_F32, BRG_SCALAR);
    for (size_t i = 0; i < N_PARAMS; i++) {
        float x[MAX_NUMEL];
        for (size_t k = 0; k < MAX_NUMEL; k++)
            x[k] = (float)ranks_gradient(rank, step, i, k);
        brg_tensor *input =
            brg_from_data(BRG_DTYPE_F32, BRG_SHAPE(rows_of[i], cols_of[i]), x);
        loss = brg_add(loss, brg_sum_all(brg_mul(m->params[i], input)));
    }
    brg_status status = brg_backward(loss);
    brg_scope_end(scope);
    return status;
}

/* Of each gradient what this rank is given: all, or its shard. */
static brg_status check(const model *m, const choice *c, int step)
{
    int n = brg_pg_world_size(c->pg);
    double scale = c->options.sum ? n : 1;
    brg_optim_range ranges[N_PARAMS];
    if (c->options.shard)
        BRG_TRY(brg_ddp_shard(m->ddp, m->list, ranges, N_PARAMS));
    for (size_t i = 0; i < N_PARAMS; i++) {
        const float *grad = brg_tensor_data(brg_tensor_grad(m->params[i]));
        size_t first = 0, last = (size_t)(rows_of[i] * cols_of[i]);
        if (c->options.shard) {
            first = ranges[i].first;
            last = first + ranges[i].n;
        }
        for (size_t k = first; k < last; k++) {
            double expected = scale * ranks_average(n, step, i, k);
            RANK_CHECK(fabs(grad[k] - expected) < 1e-5 * fmax(1, scale),
                       "step %d: gradient %zu[%zu] is %g, expected %g", step, i,
                       k, (double)grad[k], expected);
        }
    }
    return BRG_OK;
}

static brg_status train(model *m, const choice *c)
{
    for (int step = 0; step < N_STEPS; step++) {
        for (size_t i = 0; i < N_PARAMS; i++)
            BRG_TRY(brg_tensor_set_grad(m->params[i], NULL));
        BRG_TRY(backward(m, brg_pg_rank(c->pg), step));
        BRG_TRY(check(m, c, step));
    }
    return BRG_OK;
}

/* ---- Two by two --------------------------------------------------------------------- */

static brg_status refuse(model *m, const choice *c, int a, int b)
{
    brg_status status = brg_ddp_create(&m->ddp, c->pg, m->params, N_PARAMS,
                                       &m->buffer, 1, &c->options);
    RANK_CHECK(status == BRG_ERR_ARG || status == BRG_ERR_UNSUPPORTED,
               "%s with %s: %s", choices[a].word, choices[b].word,
               brg_status_name(status));
    RANK_CHECK(strstr(brg_error_message(), choices[a].word) &&
                   strstr(brg_error_message(), choices[b].word),
               "%s with %s: \"%s\"", choices[a].word, choices[b].word,
               brg_error_message());
    return BRG_OK;
}

static brg_status try_pair(choice *c, int a, int b)
{
    model m;
    c->options = (brg_ddp_options)BRG_DDP_OPTIONS_INIT;
    c->options.first_bucket_bytes = c->options.bucket_bytes = 200;
    choices[a].set(c);
    choices[b].set(c);
    brg_status status = model_init(&m, c->pg);
    bool is_refused = choices[a].excludes >> b & 1;
    if (status == BRG_OK && is_refused)
        status = refuse(&m, c, a, b);
    else if (status == BRG_OK)
        status = brg_ddp_create(&m.ddp, c->pg, m.params, N_PARAMS, &m.buffer, 1,
                                &c->options);
    if (status == BRG_OK && !is_refused)
        status = train(&m, c);
    if (status != BRG_OK)
        print_message("%s with %s\n", choices[a].word, choices[b].word);
    model_deinit(&m);
    return status;
}

static brg_status all_pairs(brg_pg *pg, void *user)
{
    choice c = {.pg = pg};
    brg_comm_hook_ops ops = {.struct_size = sizeof ops,
                             .name = "plain",
                             .start = hook_start,
                             .finish = hook_finish};
    (void)user;
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
    for (int n = 1; n <= 4; n++)
        assert_brg_ok(brg_sim_run(n, NULL, all_pairs, NULL));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ddp_options__every_pair_trains_or_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
