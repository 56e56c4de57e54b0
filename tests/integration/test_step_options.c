/* SPDX-License-Identifier: Apache-2.0
 * Whole steps under random options of a ddp beside the same steps run eagerly:
 * unused and frozen parameters, reductions off and on, ranks without data,
 * hooks with state, numbers that are not finite, sharded state, buffers on the
 * last bucket. After each step status, message, parameters, gradients, buffers
 * and state are the same bits, on 1 to 4 ranks; some of them may be eager.
 * BRG_TEST_SEED: the first case; BRG_TEST_CASES: how many. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/integration/step_model.h"

/* ---- A step ------------------------------------------------------------------- */

static brg_status update_buffers(const model *m, brg_tensor *h)
{
    bool mode = brg_grad_mode_set(false);
    brg_status s = brg_mul_scalar_(m->buffer[0], 0.5);
    if (s == BRG_OK)
        s = brg_add_(m->buffer[0], brg_mean(h, 1, (int[]){0}, false), 0.5);
    if (s == BRG_OK)
        s = brg_add_(m->buffer[1], brg_ones_like(m->buffer[1]), 1);
    brg_grad_mode_set(mode);
    return s;
}

static brg_status update(const model *m)
{
    BRG_TRY(brg_optim_step(m->optim));
    return brg_optim_zero_grad(m->optim, m->p->keeps_memory);
}

static brg_status forward(const model *m, brg_tensor *h, brg_tensor **out)
{
    for (int k = 0; k < m->n_used; k++)
        h = brg_tanh(brg_linear(h, m->w[k], m->w[N_LAYERS]));
    h = brg_mul(h, brg_cast(m->w[N_PARAMS - 1], BRG_DTYPE_F32));
    if (m->p->drops_out)
        h = brg_dropout(h, 0.25, true);
    if (!h)
        return brg_error_code();
    if (m->p->changes_buffer)
        BRG_TRY(update_buffers(m, h));
    *out = brg_mean_all(h);
    return *out ? BRG_OK : brg_error_code();
}

static brg_status read_value(const model *m, const brg_tensor *t)
{
    double value;
    return m->p->kind == IN_PIECES ? brg_tensor_item(t, &value) : BRG_OK;
}

static brg_status clip_and_update(const model *m)
{
    if (m->p->clips_inside)
        BRG_TRY(brg_clip_grad_norm(NULL, m->params, 0.125, false));
    return m->p->steps_inside ? update(m) : BRG_OK;
}

static brg_status body(brg_tensor *const *in, size_t n_in, brg_tensor **out,
                       size_t n_out, void *user)
{
    const model *m = user;
    (void)n_out;
    for (size_t i = 0; i < n_in; i++) {
        BRG_TRY(forward(m, in[i], &out[0]));
        BRG_TRY(read_value(m, out[0]));
        if (m->p->kind == SEGMENT)
            continue;
        BRG_TRY(brg_backward(out[0]));
    }
    return m->p->kind == SEGMENT ? BRG_OK : clip_and_update(m);
}

static brg_tensor *make_input(const model *m, int number, int i)
{
    float values[4 * DIM];
    int n = m->p->is_uneven ? 1 + (m->rank + number) % 4 : 3;
    for (size_t k = 0; k < 4 * DIM; k++)
        values[k] = (float)ranks_gradient(m->rank, number, (size_t)i, k);
    if (m->p->is_infinite && number == 5 && m->rank == 0)
        values[3] = INFINITY;
    return brg_from_data(BRG_DTYPE_F32, BRG_SHAPE(n, DIM), values);
}

static brg_status call(model *m, brg_tensor *const *x, brg_tensor **loss)
{
    size_t n = (size_t)m->n_inputs;
    brg_compile_options options = BRG_COMPILE_OPTIONS_INIT;
    int scope;
    options.backend = m->p->backend;
    if (m->step && m->p->kind != SEGMENT)
        return brg_compiled_call(m->step, x, n, loss, 1);
    if (m->p->kind != SEGMENT && !m->is_compiled)
        return body(x, n, loss, 1, m);
    if (m->is_compiled)
        BRG_TRY(brg_compile_begin(&scope, &options));
    brg_status status = BRG_OK;
    if (m->p->kind != SEGMENT)
        status = body(x, n, loss, 1, m);
    for (size_t i = 0; m->p->kind == SEGMENT && i < n && status == BRG_OK;
         i++) {
        status = m->step ? brg_compiled_call(m->step, x + i, 1, loss, 1)
                         : body(x + i, 1, loss, 1, m);
        if (status == BRG_OK)
            status = brg_backward(*loss);
    }
    if (m->is_compiled)
        BRG_TRY(brg_compile_end(scope));
    return status == BRG_OK && m->p->kind == SEGMENT ? clip_and_update(m)
                                                     : status;
}

static brg_status run(model *m, int number, brg_tensor **loss)
{
    brg_random_state random = {.seed = 7 + (uint64_t)number};
    brg_tensor *x[16];
    brg_random_set_state(&random);
    m->number = number;
    *loss = NULL;
    for (int i = 0; i < m->n_inputs; i++) {
        x[i] = make_input(m, number, i);
        if (!x[i])
            return brg_error_code();
    }
    if (m->p->ddp.shard)
        BRG_TRY(brg_ddp_wait_params(m->ddp, NULL));
    BRG_TRY(call(m, x, loss));
    if (!m->p->steps_inside && !m->p->accumulates)
        BRG_TRY(update(m));
    if (m->p->ddp.shard)
        BRG_TRY(brg_ddp_gather_params(m->ddp));
    return BRG_OK;
}

/* Steps that went well, and those that failed; what plans had a part in. */
static _Atomic uint64_t n_steps[2], n_functions, n_buckets, n_hits;

/* ---- Comparing ------------------------------------------------------------------ */

static brg_status same(const char *what, size_t k, int number,
                       const brg_tensor *a, const brg_tensor *b)
{
    char x[512], y[512];
    RANK_CHECK(!a == !b, "step %d: %s %zu is only in the %s one", number, what,
               k, a ? "eager" : "whole");
    if (!a)
        return BRG_OK;
    size_t n = brg_tensor_nbytes(a);
    RANK_CHECK(n == brg_tensor_nbytes(b) && n <= sizeof x,
               "step %d: %s %zu has another size", number, what, k);
    BRG_TRY(brg_tensor_read(a, x, n));
    BRG_TRY(brg_tensor_read(b, y, n));
    float first[2];
    memcpy(first, x, sizeof(float));
    memcpy(first + 1, y, sizeof(float));
    RANK_CHECK(memcmp(x, y, n) == 0, "step %d: %s %zu has other bits: %g %g",
               number, what, k, (double)first[0], (double)first[1]);
    return BRG_OK;
}

static brg_status same_reducers(const model *a, const model *b, int number)
{
    brg_finite_info f[2] = {{0}};
    brg_reducer_stats s[2];
    bool is_finite = brg_ddp_grads_finite(a->ddp, &f[0]);
    RANK_CHECK(is_finite == brg_ddp_grads_finite(b->ddp, &f[1]) &&
                   f[0].n_ranks == f[1].n_ranks && f[0].rank == f[1].rank,
               "step %d: finite: %d of rank %d, param %zu; %d of rank %d, "
               "param %zu",
               number, f[0].all_finite, f[0].rank, f[0].param, f[1].all_finite,
               f[1].rank, f[1].param);
    double norms[2] = {brg_reducer_grad_norm(brg_ddp_reducer(a->ddp)),
                       brg_reducer_grad_norm(brg_ddp_reducer(b->ddp))};
    RANK_CHECK(!a->p->ddp.keep_order || norms[0] == norms[1] ||
                   (isnan(norms[0]) && isnan(norms[1])),
               "step %d: the norm is %.17g, %.17g", number, norms[0], norms[1]);
    brg_ddp_get_stats(a->ddp, &s[0]);
    brg_ddp_get_stats(b->ddp, &s[1]);
    RANK_CHECK(s[0].n_steps == s[1].n_steps &&
                   s[0].n_rebuilds == s[1].n_rebuilds,
               "step %d: %d and %d steps, %d and %d rebuilds", number,
               (int)s[0].n_steps, (int)s[1].n_steps, (int)s[0].n_rebuilds,
               (int)s[1].n_rebuilds);
    return BRG_OK;
}

static brg_status same_all(const model *a, const model *b, int number)
{
    for (size_t k = 0; k < N_PARAMS; k++) {
        BRG_TRY(same("parameter", k, number, a->w[k], b->w[k]));
        if (!a->p->ddp.shard)
            BRG_TRY(same("gradient", k, number, brg_tensor_grad(a->w[k]),
                         brg_tensor_grad(b->w[k])));
    }
    for (size_t k = 0; k < 2; k++)
        BRG_TRY(same("buffer", k, number, a->buffer[k], b->buffer[k]));
    for (size_t i = 0; i < brg_optim_state_count(a->optim); i++)
        BRG_TRY(same("state", i, number,
                     brg_optim_state_at(a->optim, i)->tensor,
                     brg_optim_state_at(b->optim, i)->tensor));
    return same_reducers(a, b, number);
}

typedef struct outcome {
    brg_status status;
    char text[512];
    brg_tensor *loss; /* owned */
} outcome;

static void run_noting(model *m, int number, outcome *o)
{
    static const char of_node[] = "backward of accumulate: "; /* eagerly only */
    brg_scope *scope = brg_scope_begin();
    o->status = run(m, number, &o->loss);
    const char *said = o->status == BRG_OK ? "" : brg_error_message();
    if (strncmp(said, of_node, sizeof of_node - 1) == 0)
        said += sizeof of_node - 1;
    snprintf(o->text, sizeof o->text, "%s", said);
    brg_retain(o->loss);
    brg_scope_end(scope);
}

/* The same step of both; what a step that failed left has no meaning. */
static brg_status step_both(model *m, int number)
{
    outcome o[2];
    for (int k = 0; k < 2; k++)
        run_noting(&m[k], number, &o[k]);
    brg_status compared = same("loss", 0, number, o[0].loss, o[1].loss);
    for (int k = 0; k < 2; k++)
        brg_release(o[k].loss);
    RANK_CHECK(o[0].status == o[1].status && strcmp(o[0].text, o[1].text) == 0,
               "rank %d, step %d: eager %s: %s; whole %s: %s", m->rank, number,
               brg_status_name(o[0].status), o[0].text,
               brg_status_name(o[1].status), o[1].text);
    n_steps[o[0].status != BRG_OK]++;
    if (o[0].status != BRG_OK)
        return BRG_OK;
    BRG_TRY(compared);
    for (int k = 0; k < 2 && m->p->ddp.shard; k++)
        BRG_TRY(brg_ddp_wait_params(m[k].ddp, NULL));
    return same_all(&m[0], &m[1], number);
}

/* ---- What happens between steps --------------------------------------------------- */

static brg_status halve(brg_tensor *grad, brg_tensor **replacement, void *user)
{
    (void)user;
    *replacement = brg_mul_scalar(grad, 0.5);
    return *replacement ? BRG_OK : brg_error_code();
}

static brg_status refuse(brg_tensor *grad, brg_tensor **replacement, void *user)
{
    (void)grad, (void)replacement, (void)user;
    return brg_error_set(BRG_ERR_CALLBACK, __FILE__, __LINE__, "as asked");
}

static brg_status freeze(model *m, int number)
{
    if (!m->p->freezes || number % 3 != 1)
        return BRG_OK;
    BRG_TRY(brg_set_requires_grad(m->w[0], number % 2));
    return brg_ddp_refresh(m->ddp);
}

/* At the same address, perhaps. */
static brg_status remake(model *m)
{
    brg_ddp_options options = m->p->ddp;
    options.sum = !options.sum;
    options.keep_order = !options.keep_order;
    brg_ddp_destroy(m->ddp);
    brg_ddp_destroy(m->second);
    m->ddp = m->second = NULL;
    return make_ddp(m, options);
}

static brg_status drop_grads(model *m)
{
    for (size_t k = 0; k < N_PARAMS; k++)
        BRG_TRY(brg_tensor_set_grad(m->w[k], NULL));
    return BRG_OK;
}

static brg_status prepare(model *m, int number)
{
    const plan *p = m->p;
    if (p->accumulates)
        (void)brg_ddp_set_sync(m->ddp, number % 3 == 2);
    if (p->accumulates && m->second)
        (void)brg_ddp_set_sync(m->second, number % 3 == 2);
    if (p->is_remade && number == 5)
        BRG_TRY(remake(m));
    if (p->has_leaf_hook && number == 4)
        BRG_TRY(brg_tensor_add_hook(NULL, m->w[1], halve, NULL, NULL));
    if (number == 6)
        BRG_TRY(brg_optim_set_lr(m->optim, 0.25));
    return freeze(m, number);
}

static brg_status drop_both(model *m)
{
    BRG_TRY(drop_grads(&m[0]));
    return drop_grads(&m[1]);
}

/* A hook at a leaf fails on rank 0. */
static brg_status fail_at_leaf(model *m)
{
    brg_hook *hook[2] = {NULL};
    for (int k = 0; k < 2 && m->rank == 0; k++)
        BRG_TRY(brg_tensor_add_hook(&hook[k], m[k].w[2], refuse, NULL, NULL));
    brg_status status = step_both(m, 40);
    for (int k = 0; k < 2; k++)
        brg_hook_remove(hook[k]);
    return status == BRG_OK ? drop_both(m) : status;
}

/* The communication hook does. */
static brg_status fail_at_start(model *m)
{
    for (int k = 0; k < 2 && m->rank == 0; k++)
        m[k].fails_at = m[k].n_starts;
    BRG_TRY(step_both(m, 41));
    return drop_both(m);
}

static brg_status both(model *m)
{
    const plan *p = m->p;
    bool has_leaves = p->ddp.n_leaves > 0;
    for (int number = 0; number < N_STEPS; number++) {
        for (int k = 0; k < 2; k++)
            BRG_TRY(prepare(&m[k], number));
        BRG_TRY(step_both(m, number));
        if (p->fails && number == 3)
            BRG_TRY(fail_at_leaf(m));
        if (p->fails && number == 4 && p->hook == OWN_HOOK && !p->accumulates)
            BRG_TRY(fail_at_start(m));
        if (p->ddp.shard || number == 7 || (has_leaves && !p->steps_inside))
            BRG_TRY(drop_both(m));
    }
    return BRG_OK;
}

/* Rank r has r batches fewer than the first. */
static brg_status both_until_over(model *m, int n_ranks)
{
    int n_mine = N_STEPS - (n_ranks - 1 - m->rank);
    bool is_over[2] = {false};
    for (int number = 0; !is_over[0]; number++) {
        if (number < n_mine) {
            BRG_TRY(step_both(m, number));
            continue;
        }
        for (int k = 0; k < 2; k++) {
            m[k].number = number;
            BRG_TRY(brg_ddp_join(m[k].ddp, &is_over[k]));
            if (!is_over[k])
                BRG_TRY(update(&m[k]));
        }
        RANK_CHECK(is_over[0] == is_over[1], "one has joined");
    }
    return same_all(&m[0], &m[1], N_STEPS);
}

static brg_status compile(model *m)
{
    const plan *p = m->p;
    brg_compile_options options = BRG_COMPILE_OPTIONS_INIT;
    options.whole = true;
    options.fullgraph = p->kind != IN_PIECES;
    options.backend = p->backend;
    m->is_compiled = !p->is_mixed || m->rank % 2;
    if (p->is_mixed)
        options.max_plans = 1 + (size_t)m->rank;
    if (p->is_mixed && m->rank > 2)
        options.backend = BRG_COMPILE_BACKEND_EAGER;
    return p->kind == BACKWARD || !m->is_compiled
               ? BRG_OK
               : brg_compiled_create(&m->step, body, m, &options);
}

static brg_status case_rank(brg_pg *pg, void *user)
{
    const plan *p = user;
    model m[2] = {{0}};
    brg_scope *scope = brg_scope_begin();
    brg_status status = brg_compile_reset();
    for (int k = 0; k < 2 && status == BRG_OK; k++)
        status = model_init(&m[k], pg, p);
    if (status == BRG_OK)
        status = compile(&m[1]);
    if (status == BRG_OK)
        status = p->joins ? both_until_over(m, brg_pg_world_size(pg)) : both(m);
    brg_compile_stats stats;
    brg_compile_get_stats(&stats);
    n_functions += stats.functions;
    n_buckets += stats.buckets;
    n_hits += stats.function_hits;
    model_deinit(&m[1]);
    model_deinit(&m[0]);
    brg_scope_end(scope);
    return status;
}

static void test_step_options__random_options(void **state)
{
    (void)state;
    const char *given = getenv("BRG_TEST_SEED"),
               *many = getenv("BRG_TEST_CASES");
    uint64_t first = given ? strtoull(given, NULL, 0) : 1;
    int n_cases = many ? atoi(many) : 60, n_failed = 0;
    for (int i = 0; i < n_cases; i++) {
        plan p;
        make_plan(&p, first + (uint64_t)i);
        for (int n = 1; n <= 4; n++) {
            brg_status status = brg_sim_run(n, NULL, case_rank, &p);
            if (status == BRG_OK)
                continue;
            print_plan(&p, n);
            n_failed++;
            break;
        }
    }
    print_message("%d cases: %llu steps, %llu that failed; %llu functions with "
                  "%llu reductions, %llu calls by them\n",
                  n_cases, (unsigned long long)n_steps[0],
                  (unsigned long long)n_steps[1],
                  (unsigned long long)n_functions,
                  (unsigned long long)n_buckets, (unsigned long long)n_hits);
    assert_int_equal(n_failed, 0);
    if (n_cases >= 20)
        assert_true(n_steps[0] > 1000 && n_steps[1] > 0 && n_functions > 100 &&
                    n_buckets > 100 && n_hits > 500);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_step_options__random_options),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
