/* SPDX-License-Identifier: Apache-2.0
 * Random options of a ddp, and the model that is trained under them. See
 * test_step_options.c. */
#ifndef BRG_TESTS_INTEGRATION_STEP_MODEL_H
#define BRG_TESTS_INTEGRATION_STEP_MODEL_H

#include <brigade/autograd.h>
#include <brigade/comm_hook.h>
#include <brigade/compile.h>
#include <brigade/ddp.h>
#include <brigade/nn.h>
#include <brigade/ops.h>
#include <brigade/optim.h>
#include <brigade/random.h>
#include <brigade/shard.h>

#include "tests/support/brg_test.h"
#include "tests/support/ranks.h"

enum { DIM = 6, N_LAYERS = 4, N_PARAMS = N_LAYERS + 2, N_STEPS = 9 };

typedef enum hook_kind {
    NO_HOOK,
    CAST_HOOK,
    POWERSGD_HOOK,
    OWN_HOOK, /* sums or averages, by turns */
    N_HOOK_KINDS
} hook_kind;

typedef enum run_kind {
    WHOLE,
    IN_PIECES,
    BACKWARD, /* alone */
    SEGMENT,  /* forward, and the backward by a plan */
    N_RUN_KINDS
} run_kind;

/* What a case is, the same on every rank. */
typedef struct plan {
    uint64_t seed;
    brg_ddp_options ddp;
    hook_kind hook;
    run_kind kind;
    brg_compile_backend backend;
    bool is_mixed;  /* ranks are eager, or have other backends and room */
    bool is_twice;  /* two backwards a step */
    bool has_two;   /* ddps, each of every other parameter */
    bool is_remade; /* the ddp, with other options */
    bool is_adam, steps_inside, clips_inside, drops_out, changes_buffer;
    bool has_leaf_hook, accumulates, freezes, joins, is_infinite, fails;
    bool keeps_memory;
    bool is_uneven;    /* batches */
    bool is_one_short; /* the last rank uses one layer less */
    int n_unused;      /* layers, on every rank */
} plan;

typedef struct model {
    const plan *p;
    brg_pg *pg;
    int rank;
    brg_tensor *w[N_PARAMS]; /* the layers, a bias, one in bf16 */
    brg_tensor *buffer[2];   /* f32, i64 */
    brg_params *params;
    brg_optim *optim;
    brg_optim_range range[N_PARAMS];
    brg_comm_hook *hook;
    brg_ddp *ddp, *second;
    brg_compiled *step;
    bool is_compiled;
    int n_used, n_inputs;
    int number;             /* of the step */
    int n_starts, fails_at; /* of the own hook */
} model;

/* ---- Making ------------------------------------------------------------------ */

static inline int pick(uint64_t *c, int n)
{
    return (int)(brg_test_random(c) % (uint64_t)n);
}

static inline brg_ddp_options random_options(uint64_t *c)
{
    static const size_t caps[] = {64, 300, 0};
    brg_ddp_options o = BRG_DDP_OPTIONS_INIT;
    o.first_bucket_bytes = caps[pick(c, 3)];
    o.bucket_bytes = caps[pick(c, 3)];
    o.sum = pick(c, 4) == 0;
    o.allow_unused = pick(c, 2);
    o.keep_order = pick(c, 2);
    o.measure_norm = pick(c, 3) == 0;
    o.check_finite = pick(c, 3) == 0;
    o.static_graph = pick(c, 3) == 0;
    o.grads_apart = pick(c, 6) == 0;
    o.shard = pick(c, 6) == 0;
    o.sync_buffers = (brg_ddp_buffers)pick(c, 3);
    if (!o.shard && pick(c, 8) == 0) {
        o.reduction = BRG_REDUCTION_REPRODUCIBLE;
        o.n_leaves = 12;
    }
    return o;
}

/* What does not go together, or is not the same thing twice. */
static inline void settle(plan *p)
{
    brg_ddp_options *o = &p->ddp;
    bool has_leaves = o->n_leaves > 0;
    if (o->shard || has_leaves) {
        p->hook = NO_HOOK;
        o->grads_apart = p->accumulates = p->joins = p->freezes = false;
        p->is_twice = p->has_two = false;
        o->static_graph &= !has_leaves;
        p->keeps_memory &= !has_leaves;
        p->is_remade &= !o->shard;
    }
    p->has_two &= p->hook == NO_HOOK; /* it serves one */
    if (p->has_two) { /* all ranks have to come to both in the same order */
        p->n_unused = 0;
        p->is_one_short = p->is_mixed = p->fails = false;
        p->joins = p->freezes = false;
    }
    if (p->joins)
        p->is_remade = p->freezes = p->is_twice = false;
    if (p->hook != NO_HOOK && p->kind != WHOLE)
        p->fails = false; /* what it feeds back is of what had come so far */
}

static inline void make_plan(plan *p, uint64_t seed)
{
    uint64_t c[] = {seed};
    for (int i = 0; i < 4; i++)
        (void)brg_test_random(c);
    *p = (plan){.seed = seed, .ddp = random_options(c)};
    p->hook = pick(c, 3) ? NO_HOOK : (hook_kind)pick(c, N_HOOK_KINDS);
    p->kind = pick(c, 2) ? WHOLE : (run_kind)pick(c, N_RUN_KINDS);
    p->backend =
        pick(c, 3) ? BRG_COMPILE_BACKEND_PASSES : BRG_COMPILE_BACKEND_EAGER;
    p->is_mixed = pick(c, 5) == 0;
    p->is_twice = pick(c, 5) == 0;
    p->has_two = pick(c, 5) == 0;
    p->is_remade = pick(c, 5) == 0;
    p->is_adam = pick(c, 2);
    p->steps_inside = pick(c, 2);
    p->clips_inside = pick(c, 4) == 0;
    p->drops_out = pick(c, 3) == 0;
    p->changes_buffer = pick(c, 2);
    p->has_leaf_hook = pick(c, 5) == 0;
    p->accumulates = pick(c, 4) == 0;
    p->freezes = pick(c, 4) == 0;
    p->joins = pick(c, 4) == 0;
    p->is_infinite = pick(c, 4) == 0;
    p->fails = pick(c, 5) == 0;
    p->keeps_memory = pick(c, 2);
    p->is_uneven = pick(c, 2);
    p->is_one_short = p->ddp.allow_unused && pick(c, 2);
    p->n_unused = p->ddp.allow_unused ? pick(c, 2) : 0;
    settle(p);
}

static inline void print_plan(const plan *p, int n)
{
    const brg_ddp_options *o = &p->ddp;
    const struct {
        const char *name;
        int value;
    } rows[] = {{"ranks", n},
                {"first cap", (int)o->first_bucket_bytes},
                {"cap", (int)o->bucket_bytes},
                {"sum", o->sum},
                {"allow_unused", o->allow_unused},
                {"keep_order", o->keep_order},
                {"measure_norm", o->measure_norm},
                {"check_finite", o->check_finite},
                {"static_graph", o->static_graph},
                {"grads_apart", o->grads_apart},
                {"shard", o->shard},
                {"sync_buffers", (int)o->sync_buffers},
                {"leaves", (int)o->n_leaves},
                {"hook", (int)p->hook},
                {"kind", (int)p->kind},
                {"backend", (int)p->backend},
                {"mixed", p->is_mixed},
                {"twice", p->is_twice},
                {"two ddps", p->has_two},
                {"remade", p->is_remade},
                {"adam", p->is_adam},
                {"steps inside", p->steps_inside},
                {"clips", p->clips_inside},
                {"drops out", p->drops_out},
                {"buffer", p->changes_buffer},
                {"leaf hook", p->has_leaf_hook},
                {"accumulates", p->accumulates},
                {"freezes", p->freezes},
                {"joins", p->joins},
                {"infinite", p->is_infinite},
                {"fails", p->fails},
                {"keeps memory", p->keeps_memory},
                {"uneven", p->is_uneven},
                {"one short", p->is_one_short},
                {"unused", p->n_unused}};
    print_message("BRG_TEST_SEED=%llu:", (unsigned long long)p->seed);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        if (rows[i].value)
            print_message(" %s %d", rows[i].name, rows[i].value);
    print_message("\n    %s\n", brg_error_message());
}

static inline brg_status make_params(model *m)
{
    float values[DIM * DIM];
    char name[16];
    BRG_TRY(brg_params_create(&m->params));
    for (size_t k = 0; k < N_PARAMS; k++) {
        int ndim = k < N_LAYERS ? 2 : 1;
        for (size_t i = 0; i < DIM * DIM; i++)
            values[i] = (float)ranks_gradient(0, 0, k, i) / 4;
        m->w[k] =
            brg_from_data(BRG_DTYPE_F32, ndim, (int64_t[]){DIM, DIM}, values);
        if (k == N_PARAMS - 1)
            m->w[k] = brg_cast(m->w[k], BRG_DTYPE_BF16);
        if (!m->w[k])
            return brg_error_code();
        snprintf(name, sizeof name, "w%zu", k);
        BRG_TRY(brg_tensor_set_name(m->w[k], name));
        BRG_TRY(brg_set_requires_grad(m->w[k], true));
        BRG_TRY(brg_params_add(m->params, name, m->w[k], BRG_PARAM_TRAINED));
    }
    m->buffer[0] = brg_full(BRG_DTYPE_F32, BRG_SHAPE(DIM), m->rank);
    m->buffer[1] = brg_full(BRG_DTYPE_I64, BRG_SHAPE(2), m->rank);
    return m->buffer[1] ? BRG_OK : brg_error_code();
}

static inline brg_status own_start(void *user, const brg_hook_bucket *b)
{
    model *m = user;
    if (m->n_starts++ == m->fails_at)
        return brg_error_set(BRG_ERR_CALLBACK, __FILE__, __LINE__, "no start");
    return brg_all_reduce(b->pg, b->work, b->data, b->count, b->dtype,
                          m->number % 2 ? BRG_REDUCE_SUM : BRG_REDUCE_AVG);
}

static inline brg_status own_finish(void *user, const brg_hook_bucket *b)
{
    (void)user;
    brg_work *work = *b->work;
    *b->work = NULL;
    return brg_work_wait(work);
}

static inline brg_status make_hook(model *m, brg_ddp_options *options)
{
    brg_comm_hook_ops ops = {.struct_size = sizeof ops,
                             .name = "own",
                             .start = own_start,
                             .finish = own_finish};
    if (m->p->hook == OWN_HOOK && !m->hook)
        BRG_TRY(brg_comm_hook_create(&m->hook, &ops, m));
    brg_powersgd_options powersgd = BRG_POWERSGD_OPTIONS_INIT;
    powersgd.rank = 2;
    powersgd.min_saving = 1;
    if (m->p->hook == CAST_HOOK && !m->hook)
        BRG_TRY(brg_comm_hook_create_cast(&m->hook, BRG_DTYPE_F16, true));
    if (m->p->hook == POWERSGD_HOOK && !m->hook)
        BRG_TRY(brg_comm_hook_create_powersgd(&m->hook, &powersgd));
    options->hook = m->hook;
    return BRG_OK;
}

static inline brg_status make_optim(model *m)
{
    brg_sgd_options sgd = BRG_SGD_OPTIONS_INIT;
    brg_adamw_options adam = BRG_ADAMW_OPTIONS_INIT;
    sgd.momentum = 0.5;
    if (m->p->ddp.shard) {
        BRG_TRY(brg_ddp_shard(m->ddp, m->params, m->range, N_PARAMS));
        sgd.ranges = adam.ranges = m->range;
    }
    return m->p->is_adam ? brg_optim_create_adamw(&m->optim, m->params, &adam)
                         : brg_optim_create_sgd(&m->optim, m->params, &sgd);
}

static inline brg_status make_ddp(model *m, brg_ddp_options options)
{
    brg_tensor *part[2][N_PARAMS];
    size_t n[2] = {0};
    BRG_TRY(make_hook(m, &options));
    for (size_t k = 0; k < N_PARAMS; k++) {
        size_t which = m->p->has_two ? k % 2 : 0;
        part[which][n[which]++] = m->w[k];
    }
    if (m->p->has_two)
        BRG_TRY(brg_ddp_create(&m->second, m->pg, part[1], n[1], NULL, 0,
                               &options));
    return brg_ddp_create(&m->ddp, m->pg, part[0], n[0], m->buffer, 2,
                          &options);
}

static inline brg_status model_init(model *m, brg_pg *pg, const plan *p)
{
    int first, n_ranks = brg_pg_world_size(pg);
    *m = (model){.p = p,
                 .rank = brg_pg_rank(pg),
                 .pg = pg,
                 .n_inputs = p->is_twice ? 2 : 1,
                 .fails_at = -1};
    first = m->rank * (int)p->ddp.n_leaves / n_ranks;
    if (p->ddp.n_leaves)
        m->n_inputs = (m->rank + 1) * (int)p->ddp.n_leaves / n_ranks - first;
    bool is_last = m->rank == brg_pg_world_size(pg) - 1;
    m->n_used = N_LAYERS - p->n_unused - (p->is_one_short && is_last);
    BRG_TRY(make_params(m));
    BRG_TRY(make_ddp(m, p->ddp));
    return make_optim(m);
}

static inline void model_deinit(model *m)
{
    brg_compiled_destroy(m->step);
    brg_optim_destroy(m->optim);
    brg_ddp_destroy(m->ddp);
    brg_ddp_destroy(m->second);
    brg_comm_hook_destroy(m->hook);
    brg_params_destroy(m->params);
}

#endif
