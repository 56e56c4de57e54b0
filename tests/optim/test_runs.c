/* SPDX-License-Identifier: Apache-2.0
 * A step over many parameters is one list of runs: bits of one optimizer for
 * each parameter, whatever lies beside what. */
#include <brigade/autograd.h>
#include <brigade/optim.h>
#include <brigade/sparse.h>

#include "core/optim/optim.h"
#include "tests/support/brg_test.h"
#include "tests/support/fail_alloc.h"
#include "tests/support/fake_device.h"
#include "tests/support/ranks.h"

#define N 9
#define N_STEPS 6

typedef struct row {
    brg_dtype dtype;
    int64_t rows, columns;
} row;

/* Sizes of whole lines beside odd ones, and nothing. */
static const row rows[N] = {
    {BRG_DTYPE_F32, 8, 16}, {BRG_DTYPE_BF16, 3, 67}, {BRG_DTYPE_F32, 1, 1},
    {BRG_DTYPE_F16, 64, 1}, {BRG_DTYPE_F32, 5, 13},  {BRG_DTYPE_F64, 7, 9},
    {BRG_DTYPE_F32, 0, 4},  {BRG_DTYPE_BF16, 1, 32}, {BRG_DTYPE_F32, 32, 4},
};

typedef struct kind {
    bool is_adamw, nesterov;
    double momentum;
    int decay_min_ndim;
} kind;

static const kind kinds[] = {
    {.is_adamw = true},
    {.is_adamw = true, .decay_min_ndim = 2},
    {0},
    {.momentum = 0.9, .decay_min_ndim = 3},
    {.momentum = 0.9, .nesterov = true},
};
#define N_KINDS (sizeof kinds / sizeof kinds[0])

static brg_status make_optim(brg_optim **out, const brg_params *params,
                             const kind *k, const brg_optim_range *ranges)
{
    brg_sgd_options sgd = BRG_SGD_OPTIONS_INIT;
    brg_adamw_options adamw = BRG_ADAMW_OPTIONS_INIT;
    sgd.momentum = k->momentum;
    sgd.nesterov = k->nesterov;
    sgd.weight_decay = adamw.weight_decay = 0.03;
    sgd.decay_min_ndim = adamw.decay_min_ndim = k->decay_min_ndim;
    sgd.ranges = adamw.ranges = ranges;
    return k->is_adamw ? brg_optim_create_adamw(out, params, &adamw)
                       : brg_optim_create_sgd(out, params, &sgd);
}

static brg_tensor *make_param(size_t i, char *memory)
{
    const row *r = &rows[i];
    const int ndim = i % 3 == 2 ? 1 : 2;
    const int64_t shape[2] = {ndim == 1 ? r->rows * r->columns : r->rows,
                              r->columns};
    brg_tensor *t = memory ? brg_wrap(r->dtype, ndim, shape, memory, NULL, NULL)
                           : brg_zeros(r->dtype, ndim, shape);
    assert_non_null(t);
    for (size_t k = 0; k < (size_t)brg_tensor_numel(t); k++)
        ranks_store(brg_tensor_data(t), k, r->dtype,
                    ranks_gradient(0, 77, i, k));
    return t;
}

static void set_grad(brg_tensor *p, int step, size_t i, void *memory)
{
    const brg_dtype dtype = brg_tensor_dtype(p);
    const int ndim = brg_tensor_ndim(p);
    brg_tensor *g =
        memory ? brg_wrap(dtype, ndim, brg_tensor_shape(p), memory, NULL, NULL)
               : brg_zeros(dtype, ndim, brg_tensor_shape(p));
    assert_non_null(g);
    for (size_t k = 0; k < (size_t)brg_tensor_numel(p); k++)
        ranks_store(brg_tensor_data(g), k, dtype,
                    ranks_gradient(1, step, i, k));
    assert_brg_ok(brg_tensor_set_grad(p, g));
}

static void same_bits(const brg_tensor *a, const brg_tensor *b)
{
    assert_int_equal(brg_tensor_nbytes(a), brg_tensor_nbytes(b));
    if (brg_tensor_nbytes(a) > 0)
        assert_memory_equal(brg_tensor_data(a), brg_tensor_data(b),
                            brg_tensor_nbytes(a));
}

/* ---- Together and each by itself ------------------------------------------------- */

typedef struct pair {
    brg_params *together, *alone[N];
    brg_optim *optim, *each[N];
    brg_tensor *p[N], *q[N];
} pair;

static void pair_init(pair *m, const kind *k)
{
    assert_brg_ok(brg_params_create(&m->together));
    for (size_t i = 0; i < N; i++) {
        char name[8];
        snprintf(name, sizeof name, "p%zu", i);
        m->p[i] = make_param(i, NULL);
        m->q[i] = make_param(i, NULL);
        assert_brg_ok(
            brg_params_add(m->together, name, m->p[i], BRG_PARAM_TRAINED));
        assert_brg_ok(brg_params_create(&m->alone[i]));
        assert_brg_ok(
            brg_params_add(m->alone[i], name, m->q[i], BRG_PARAM_TRAINED));
        assert_brg_ok(make_optim(&m->each[i], m->alone[i], k, NULL));
    }
    assert_brg_ok(make_optim(&m->optim, m->together, k, NULL));
    assert_brg_ok(brg_optim_set_param(m->optim, "p4", 0.5, 0.25));
    assert_brg_ok(brg_optim_set_param(m->each[4], "p4", 0.5, 0.25));
}

static void pair_deinit(pair *m)
{
    brg_optim_destroy(m->optim);
    brg_params_destroy(m->together);
    for (size_t i = 0; i < N; i++) {
        brg_optim_destroy(m->each[i]);
        brg_params_destroy(m->alone[i]);
    }
}

/* In each step another parameter has no gradient, and one was written by
 * somebody else. */
static void pair_step(pair *m, int step)
{
    brg_tensor *other = m->p[(size_t)(step + 4) % N];
    for (size_t i = 0; i < N; i++) {
        if (i == (size_t)step % N)
            continue;
        set_grad(m->p[i], step, i, NULL);
        set_grad(m->q[i], step, i, NULL);
    }
    if (brg_tensor_numel(other) > 0)
        for (int k = 0; k < 2; k++) {
            brg_tensor *t = k ? other : m->q[(size_t)(step + 4) % N];
            ranks_store(brg_tensor_data(t), 0, brg_tensor_dtype(t), 0.375);
            brg_tensor_touch(t);
        }
    if (step == 3)
        assert_brg_ok(brg_optim_set_lr(m->optim, 0.05));
    assert_brg_ok(brg_optim_step(m->optim));
    assert_brg_ok(brg_optim_zero_grad(m->optim, step % 2));
    for (size_t i = 0; i < N; i++) {
        if (step == 3)
            assert_brg_ok(brg_optim_set_lr(m->each[i], 0.05));
        assert_brg_ok(brg_optim_step(m->each[i]));
        assert_brg_ok(brg_optim_zero_grad(m->each[i], step % 2));
        same_bits(m->p[i], m->q[i]);
    }
}

static void test_runs__bits_of_one_optimizer_a_parameter(void **state)
{
    (void)state;
    for (size_t k = 0; k < N_KINDS; k++) {
        brg_scope *scope = brg_scope_begin();
        pair m;
        pair_init(&m, &kinds[k]);
        for (int step = 0; step < N_STEPS; step++)
            pair_step(&m, step);
        size_t at = 1;
        for (size_t i = 0; i < N; i++)
            for (size_t j = 1; j < brg_optim_state_count(m.each[i]); j++) {
                const brg_named_tensor *a = brg_optim_state_at(m.optim, at++);
                const brg_named_tensor *b = brg_optim_state_at(m.each[i], j);
                assert_string_equal(a->name, b->name);
                same_bits(a->tensor, b->tensor);
            }
        assert_int_equal(at, brg_optim_state_count(m.optim));
        pair_deinit(&m);
        brg_scope_end(scope);
    }
}

/* ---- What lies side by side -------------------------------------------------------- */

#define N_SIDE 6
#define SIDE 48

/* Parameters from the end to the begin of one array, as buckets have them, and
 * so their gradients; b has the same apart from each other. */
typedef struct side {
    brg_params *params[2];
    brg_optim *optim[2];
    brg_tensor *p[2][N_SIDE];
    float memory[N_SIDE * SIDE], grads[N_SIDE * SIDE];
} side;

static void side_init(side *m, const kind *k, const brg_optim_range *ranges)
{
    for (int b = 0; b < 2; b++) {
        assert_brg_ok(brg_params_create(&m->params[b]));
        for (size_t i = 0; i < N_SIDE; i++) {
            char name[8];
            snprintf(name, sizeof name, "p%zu", i);
            brg_tensor *t =
                b ? brg_zeros(BRG_DTYPE_F32, BRG_SHAPE(SIDE))
                  : brg_wrap(BRG_DTYPE_F32, BRG_SHAPE(SIDE),
                             m->memory + (N_SIDE - 1 - i) * SIDE, NULL, NULL);
            for (size_t j = 0; j < SIDE; j++)
                ((float *)brg_tensor_data(t))[j] = (float)(i + j);
            m->p[b][i] = t;
            assert_brg_ok(
                brg_params_add(m->params[b], name, t, BRG_PARAM_TRAINED));
        }
        assert_brg_ok(make_optim(&m->optim[b], m->params[b], k, ranges));
    }
}

static void side_deinit(side *m)
{
    for (int b = 0; b < 2; b++) {
        brg_optim_destroy(m->optim[b]);
        brg_params_destroy(m->params[b]);
    }
}

/* `without`: a parameter that gets no gradient. */
static void side_step(side *m, int step, size_t without, size_t n_runs)
{
    for (size_t i = 0; i < N_SIDE; i++) {
        if (i == without)
            continue;
        set_grad(m->p[0][i], step, i, m->grads + (N_SIDE - 1 - i) * SIDE);
        set_grad(m->p[1][i], step, i, NULL);
    }
    for (int b = 0; b < 2; b++) {
        assert_brg_ok(brg_optim_step(m->optim[b]));
        assert_brg_ok(brg_optim_zero_grad(m->optim[b], false));
    }
    assert_int_equal(m->optim[0]->n_runs, n_runs);
    for (size_t i = 0; i < N_SIDE; i++)
        same_bits(m->p[0][i], m->p[1][i]);
}

static void test_runs__what_lies_side_by_side_is_one(void **state)
{
    (void)state;
    for (size_t k = 0; k < N_KINDS; k++) {
        brg_scope *scope = brg_scope_begin();
        side m;
        side_init(&m, &kinds[k], NULL);
        side_step(&m, 0, N_SIDE, 1);
        side_step(&m, 1, 2, 2);      /* those on both sides of it */
        side_step(&m, 2, N_SIDE, 3); /* which is one step behind */
        for (int b = 0; b < 2; b++)
            assert_brg_ok(brg_optim_set_param(m.optim[b], "p0", 2, 0));
        side_step(&m, 3, N_SIDE, 4);
        side_deinit(&m);
        brg_scope_end(scope);
    }
}

/* The rank owns the end of one, all of some, the begin of another. */
static void test_runs__a_shard_is_one(void **state)
{
    (void)state;
    const brg_optim_range ranges[N_SIDE] = {{0, 0},  {0, 16},  {0, SIDE},
                                            {0, 48}, {16, 32}, {0, 0}};
    brg_scope *scope = brg_scope_begin();
    side m;
    side_init(&m, &kinds[0], ranges);
    for (int step = 0; step < 3; step++)
        side_step(&m, step, N_SIDE, 1);
    const brg_optim *optim = m.optim[0];
    const float *first = brg_tensor_data(optim->slots[4].state[0]);
    assert_ptr_equal(brg_tensor_data(optim->slots[3].state[0]), first + 32);
    assert_ptr_equal(brg_tensor_data(optim->slots[2].state[0]), first + 80);
    assert_ptr_equal(brg_tensor_data(optim->slots[1].state[0]), first + 128);
    assert_float_equal(m.memory[0], 5.0f, 0); /* p5 is another's */
    side_deinit(&m);
    brg_scope_end(scope);
}

/* Each has a version of its own, and lives as long as it is held. */
static void test_runs__state_outlives_its_optimizer(void **state)
{
    (void)state;
    brg_scope *scope = brg_scope_begin();
    side m;
    side_init(&m, &kinds[0], NULL);
    side_step(&m, 0, N_SIDE, 1);
    brg_tensor *kept = brg_retain(m.optim[0]->slots[3].state[0]);
    const uint32_t version = brg_tensor_version(kept);
    brg_tensor_touch(m.optim[0]->slots[2].state[0]);
    assert_int_equal(brg_tensor_version(kept), version);
    const float value = ((const float *)brg_tensor_data(kept))[SIDE - 1];
    assert_true(value != 0);
    side_deinit(&m);
    assert_float_equal(((const float *)brg_tensor_data(kept))[SIDE - 1], value,
                       0);
    brg_release(kept);
    brg_scope_end(scope);
}

/* ---- All or nothing ----------------------------------------------------------------- */

/* Two parameters before one whose gradient has to be prepared. */
typedef struct trio {
    brg_params *params;
    brg_optim *optim;
    brg_tensor *p[3];
} trio;

static void trio_init(trio *m, brg_device device)
{
    static const char *const names[] = {"a", "b", "last"};
    assert_brg_ok(brg_params_create(&m->params));
    for (size_t i = 0; i < 3; i++) {
        brg_tensor *t = brg_ones(BRG_DTYPE_F32, BRG_SHAPE(3, 2));
        if (i == 2)
            t = assert_brg_some(brg_to(t, device));
        m->p[i] = t;
        assert_brg_ok(
            brg_params_add(m->params, names[i], t, BRG_PARAM_TRAINED));
    }
    assert_brg_ok(make_optim(&m->optim, m->params, &kinds[0], NULL));
    for (size_t i = 0; i < 2; i++)
        assert_brg_ok(brg_tensor_set_grad(
            m->p[i], brg_ones(BRG_DTYPE_F32, BRG_SHAPE(3, 2))));
}

static void trio_deinit(trio *m)
{
    brg_optim_destroy(m->optim);
    brg_params_destroy(m->params);
}

static void assert_nothing_changed(const trio *m)
{
    const int64_t *steps =
        brg_tensor_data(brg_optim_state_at(m->optim, 0)->tensor);
    for (size_t i = 0; i < 3; i++)
        assert_int_equal(steps[i], 0);
    for (size_t i = 0; i < 2; i++)
        for (size_t k = 0; k < 6; k++)
            assert_float_equal(((const float *)brg_tensor_data(m->p[i]))[k], 1,
                               0);
}

/* A sparse one with duplicates; a strided one. */
static brg_tensor *awkward_grad(bool is_sparse)
{
    brg_tensor *values = brg_ones(BRG_DTYPE_F32, BRG_SHAPE(2, 2));
    brg_tensor *wide = brg_ones(BRG_DTYPE_F32, BRG_SHAPE(2, 3));
    return assert_brg_some(
        is_sparse ? brg_sparse_coo(brg_from_data(BRG_DTYPE_I64, BRG_SHAPE(1, 2),
                                                 (const int64_t[]){1, 1}),
                                   values, BRG_SHAPE(3, 2))
                  : brg_as_strided(wide, BRG_SHAPE(3, 2),
                                   (const int64_t[]){1, 3}, 0));
}

static void test_runs__out_of_memory_changes_nothing(void **state)
{
    (void)state;
    for (int is_sparse = 0; is_sparse < 2; is_sparse++) {
        brg_scope *scope = brg_scope_begin();
        trio m;
        trio_init(&m, HOME);
        assert_brg_ok(brg_tensor_set_grad(m.p[2], awkward_grad(is_sparse)));
        int n_failed = 0;
        for (int64_t n = 0;; n++) {
            brg_memory_trim();
            fail_alloc_arm(n);
            brg_status status = brg_optim_step(m.optim);
            fail_alloc_disarm();
            if (status == BRG_OK)
                break;
            assert_int_equal(status, BRG_ERR_NOMEM);
            assert_nothing_changed(&m);
            n_failed++;
        }
        assert_true(n_failed > 0);
        trio_deinit(&m);
        brg_scope_end(scope);
    }
}

static void test_runs__a_refusal_of_a_device_changes_nothing(void **state)
{
    (void)state;
    brg_scope *scope = brg_scope_begin();
    trio m;
    trio_init(&m, THERE);
    brg_tensor *wide = brg_to(brg_ones(BRG_DTYPE_F32, BRG_SHAPE(2, 3)), THERE);
    brg_tensor *strided =
        brg_as_strided(wide, BRG_SHAPE(3, 2), (const int64_t[]){1, 3}, 0);
    assert_brg_ok(brg_tensor_set_grad(m.p[2], assert_brg_some(strided)));
    assert_brg_fails_with(brg_optim_step(m.optim), BRG_ERR_UNSUPPORTED,
                          "the gradient of 'last'");
    assert_nothing_changed(&m);
    assert_brg_ok(brg_tensor_set_grad(
        m.p[2], brg_to(brg_ones(BRG_DTYPE_F32, BRG_SHAPE(3, 2)), THERE)));
    assert_brg_ok(brg_optim_step(m.optim));
    assert_int_equal(seen.n_updates, 1);
    assert_int_equal(seen.update.slot, 2);
    assert_true(((const float *)brg_tensor_data(m.p[0]))[0] != 1);
    trio_deinit(&m);
    brg_scope_end(scope);
}

int main(void)
{
    fail_alloc_install();
    if (brg_device_register(BRG_DEVICE_CUDA, &fake) != BRG_OK)
        return 1;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_runs__bits_of_one_optimizer_a_parameter),
        cmocka_unit_test(test_runs__what_lies_side_by_side_is_one),
        cmocka_unit_test(test_runs__a_shard_is_one),
        cmocka_unit_test(test_runs__state_outlives_its_optimizer),
        cmocka_unit_test(test_runs__out_of_memory_changes_nothing),
        cmocka_unit_test(test_runs__a_refusal_of_a_device_changes_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
