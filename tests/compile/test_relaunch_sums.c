/* SPDX-License-Identifier: Apache-2.0
 * Micro-batches of 16-bit gradients added up in f32, before steps that a device
 * is told to do again: the gradients have the bits of eager steps. On a device
 * made for tests. */
#include "reducer/ddp.h"
#include "tests/compile/replays.h"
#include "tests/support/device_group.h"

#define N_STEPS 9
#define N_PARAMS 2

typedef struct model {
    brg_tensor *p[N_PARAMS];
    brg_params *params;
    brg_optim *optim; /* changes nothing: it drops gradients */
    brg_pg *pg;
    brg_ddp *ddp;
} model;

static brg_tensor *random_there(int64_t rows, int64_t cols)
{
    brg_tensor *t = brg_randn(BRG_DTYPE_F32, BRG_SHAPE(rows, cols));
    return there(brg_cast(t, BRG_DTYPE_BF16));
}

static void model_make(model *m)
{
    brg_sgd_options sgd = BRG_SGD_OPTIONS_INIT;
    brg_ddp_options options = BRG_DDP_OPTIONS_INIT;
    brg_seed(3);
    assert_brg_ok(brg_params_create(&m->params));
    for (int i = 0; i < N_PARAMS; i++) {
        m->p[i] = brg_retain(i ? random_there(3, 6) : random_there(6, 5));
        assert_brg_ok(brg_set_requires_grad(m->p[i], true));
        assert_brg_ok(brg_params_add(m->params, i ? "q" : "p", m->p[i],
                                     BRG_PARAM_TRAINED));
    }
    assert_brg_ok(brg_optim_create_sgd(&m->optim, m->params, &sgd));
    options.first_bucket_bytes = options.bucket_bytes = 64;
    options.accumulate_f32 = options.measure_norm = true;
    m->pg = group_there();
    assert_brg_ok(
        brg_ddp_create(&m->ddp, m->pg, m->p, N_PARAMS, NULL, 0, &options));
}

static void model_free(model *m)
{
    brg_ddp_destroy(m->ddp);
    brg_pg_destroy(m->pg);
    brg_optim_destroy(m->optim);
    brg_params_destroy(m->params);
    for (int i = 0; i < N_PARAMS; i++)
        brg_release(m->p[i]);
}

static brg_tensor *loss_of(const model *m, brg_tensor *x)
{
    brg_tensor *h = brg_relu(brg_linear(x, m->p[0], NULL));
    return brg_mean_all(brg_square(brg_linear(h, m->p[1], NULL)));
}

static brg_status step(brg_tensor *const *in, size_t n_in, brg_tensor **out,
                       size_t n_out, void *user)
{
    model *m = user;
    (void)n_in;
    (void)n_out;
    out[0] = loss_of(m, in[0]);
    BRG_TRY(out[0] ? brg_backward(out[0]) : brg_error_code());
    return brg_optim_zero_grad(m->optim, false);
}

static void micro_batches(const model *m, int n)
{
    assert_true(brg_ddp_set_sync(m->ddp, false));
    for (int i = 0; i < n; i++)
        assert_brg_ok(brg_backward(loss_of(m, random_there(4, 5))));
    assert_false(brg_ddp_set_sync(m->ddp, true));
}

/* Of each step: the norm and the bytes of the reduced gradients. */
typedef struct history {
    double norm[N_STEPS];
    unsigned char grads[N_STEPS][2 * (6 * 5 + 3 * 6)];
} history;

static void keep(const model *m, int k, history *h)
{
    const brg_reducer *r = brg_ddp_reducer(m->ddp);
    size_t at = 0;
    h->norm[k] = brg_reducer_grad_norm(r);
    for (size_t i = 0; i < r->n_params; i++) {
        memcpy(h->grads[k] + at, r->members[i].slot, r->members[i].nbytes);
        at += r->members[i].nbytes;
    }
    assert_int_equal(at, sizeof h->grads[k]);
}

static void run(int (*n_before)(int k), bool is_compiled, history *h)
{
    model m;
    brg_compiled *c = NULL;
    brg_compile_options options = BRG_COMPILE_OPTIONS_INIT;
    options.fullgraph = options.whole = options.replay = true;
    brg_scope *all = brg_scope_begin();
    model_make(&m);
    if (is_compiled)
        assert_brg_ok(brg_compiled_create(&c, step, &m, &options));
    for (int k = 0; k < N_STEPS; k++) {
        brg_scope *scope = brg_scope_begin();
        brg_seed(20 + (uint64_t)k);
        micro_batches(&m, n_before(k));
        brg_tensor *x = random_there(4, 5), *out;
        assert_brg_ok(c ? brg_compiled_call(c, &x, 1, &out, 1)
                        : step(&x, 1, &out, 1, &m));
        keep(&m, k, h);
        brg_scope_end(scope);
    }
    assert_brg_ok(brg_ddp_confirm(m.ddp));
    brg_compiled_destroy(c);
    model_free(&m);
    brg_scope_end(all);
}

static brg_compile_stats check(int (*n_before)(int k))
{
    static history eager, launched;
    const int64_t before = seen.n_blocks;
    memset(&eager, 0, sizeof eager);
    memset(&launched, 0, sizeof launched);
    assert_brg_ok(brg_compile_reset());
    run(n_before, false, &eager);
    run(n_before, true, &launched);
    assert_memory_equal(&eager, &launched, sizeof eager);
    assert_true(eager.norm[0] > 0 && eager.norm[0] != eager.norm[1]);
    assert_int_equal(seen.n_blocks, before);
    assert_int_equal(both_stats().function_fallbacks, 0);
    return both_stats();
}

static int always_two(int k)
{
    (void)k;
    return 2;
}

static int none(int k)
{
    (void)k;
    return 0;
}

static int some(int k)
{
    return k < 2 ? 1 : k < 6 ? 0 : 1 + k % 2;
}

static void test_relaunch_sums__behind_micro_batches(void **state)
{
    (void)state;
    for (int i = 0; i < 2; i++) {
        const brg_compile_stats s = check(i ? none : always_two);
        assert_int_equal(s.replay_skips, 0);
        assert_int_equal(s.replay_recordings, 1);
        assert_int_equal(s.replay_launches, N_STEPS - 3);
    }
}

/* A step that finds no sum is another one than a step that does. */
static void test_relaunch_sums__now_and_then(void **state)
{
    (void)state;
    const brg_compile_stats s = check(some);
    assert_int_equal(s.replay_skips, 0);
    assert_int_equal(s.replay_recordings, 2);
    assert_int_equal(s.replay_launches, N_STEPS - 2 - 2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        scoped_test(test_relaunch_sums__behind_micro_batches),
        scoped_test(test_relaunch_sums__now_and_then),
    };
    return cmocka_run_group_tests(tests, register_fake_device, NULL);
}
