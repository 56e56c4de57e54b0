/* SPDX-License-Identifier: Apache-2.0
 * Rows of the suite `backward` on stretches that backward runs again. */
#include <pthread.h>

#include <brigade/recompute.h>

#include "tests/rows/both.h"

/* ---- sin * cos --------------------------------------------------------------------- */

static int n_runs;

static brg_status sin_cos(brg_tensor *const *in, brg_tensor **out, void *user)
{
    (void)user;
    n_runs++;
    brg_tensor *c = brg_cos(in[0]); /* arguments have no order in C */
    out[0] = brg_mul(brg_sin(in[0]), c);
    return out[0] ? BRG_OK : brg_error_code();
}

static void simple(yields *y, bool is_reentrant)
{
    brg_recompute_options options = BRG_RECOMPUTE_OPTIONS_INIT;
    options.is_reentrant = is_reentrant;
    brg_tensor *x = brg_randn(BRG_DTYPE_F32, BRG_SHAPE(10, 10)), *out, *loss;
    assert_brg_ok(brg_set_requires_grad(x, true));
    n_runs = 0;
    assert_brg_ok(brg_recompute(&out, sin_cos, NULL, &x, 1, &options));
    loss = brg_sum_all(out);
    assert_int_equal(n_runs, 1);
    assert_brg_ok(brg_backward(loss));
    assert_int_equal(n_runs, 2);
    assert_float_equal(element(brg_tensor_grad(x), 7), cos(2 * element(x, 7)),
                       1e-5);
    yield(y, loss);
    yield_grad(y, x);
}

static void reentrant_body(yields *y)
{
    simple(y, true);
}

static void not_reentrant_body(yields *y)
{
    simple(y, false);
}

/* Each saved tensor is unpacked no sooner than it is needed, each gradient of a
 * node is validated before it is used. */
static const char simple_plan[] = "v2 f32/2 = unsqueeze(in0)\n"
                                  "v3 f32/2 = expand_like(v2, in1)\n"
                                  "v4 f32/2 = validate@0[0](v3)\n"
                                  "v5 f32/2 = unpack@1() split\n"
                                  "v6 f32/2 = unpack@1()\n"
                                  "v7 f32/2 = mul(v4, v6)\n"
                                  "v9 f32/2 = validate@1[0](v7)\n"
                                  "v8 f32/2 = mul(v4, v5)\n"
                                  "v10 f32/2 = validate@1[1](v8)\n"
                                  "v11 f32/2 = unpack@2()\n"
                                  "v12 f32/2 = cos(v11)\n"
                                  "v13 f32/2 = mul(v9, v12)\n"
                                  "v14 f32/2 = validate@2[0](v13)\n"
                                  "v15 f32/2 = unpack@3()\n"
                                  "v16 f32/2 = sin(v15)\n"
                                  "v17 f32/2 = mul(v10, v16)\n"
                                  "v18 f32/2 = neg(v17)\n"
                                  "v19 f32/2 = validate@3[0](v18)\n"
                                  "v20 f32/2 = add(v14, v19)\n"
                                  "accumulate@4(v20)\n"
                                  "final_callbacks()\n";

static void test_checkpointing_simple(void **state)
{
    (void)state;
    /* Before the stretch, the stretch, and behind it. */
    run_counted(reentrant_body, 1, 3);
    assert_int_equal(both_stats().splits, 1);
    assert_true(plan_has(0, " stretch split\n"));
    both_backend = BRG_COMPILE_BACKEND_EAGER;
    run_counted(not_reentrant_body, 1, 0);
    both_backend = BRG_COMPILE_BACKEND_DEFAULT;
    const char *text = plan_text(0);
    assert_string_equal(text, simple_plan);
}

/* ---- A policy -------------------------------------------------------------------------- */

static brg_recompute_choice matmuls_again(const brg_op *op, void *user)
{
    (void)user;
    return strcmp(op->name, "linear") == 0 ? BRG_RECOMPUTE_AGAIN
                                           : BRG_RECOMPUTE_SAVE;
}

/* in: x, then weight and bias of four layers. */
static brg_status four_layers(brg_tensor *const *in, brg_tensor **out,
                              void *user)
{
    n_runs++;
    brg_tensor *h = in[0];
    for (int i = 0; i < 4; i++) {
        h = brg_linear(h, in[1 + 2 * i], in[2 + 2 * i]);
        if (i < 3 && user)
            h = brg_sigmoid(h); /* kept */
    }
    out[0] = h;
    return h ? BRG_OK : brg_error_code();
}

static void selective(yields *y, void *with_sigmoid)
{
    brg_recompute_options options = BRG_RECOMPUTE_OPTIONS_INIT;
    options.policy = matmuls_again;
    brg_tensor *in[9], *out;
    in[0] = brg_randn(BRG_DTYPE_F32, BRG_SHAPE(4, 10));
    for (int i = 1; i < 9; i++) {
        in[i] = i % 2 ? brg_randn(BRG_DTYPE_F32, BRG_SHAPE(10, 10))
                      : brg_randn(BRG_DTYPE_F32, BRG_SHAPE(10));
        assert_brg_ok(brg_set_requires_grad(in[i], true));
    }
    n_runs = 0;
    assert_brg_ok(
        brg_recompute(&out, four_layers, with_sigmoid, in, 9, &options));
    assert_brg_ok(brg_backward(brg_sum_all(out)));
    assert_in_range(n_runs, 1, 2);
    brg_tensor *grads[9];
    for (int i = 1; i < 9; i++) {
        yield_grad(y, in[i]);
        grads[i] = brg_tensor_grad(in[i]);
        brg_retain(grads[i]);
        assert_brg_ok(brg_tensor_set_grad(in[i], NULL));
    }
    if (!y->is_compiled) { /* and what no checkpoint gives */
        assert_brg_ok(four_layers(in, &out, with_sigmoid));
        assert_brg_ok(brg_backward(brg_sum_all(out)));
        for (int i = 1; i < 9; i++)
            for (int64_t k = 0; k < brg_tensor_numel(grads[i]); k++)
                assert_float_equal(element(grads[i], k),
                                   element(brg_tensor_grad(in[i]), k), 0);
    }
    for (int i = 1; i < 9; i++)
        brg_release(grads[i]);
}

static void linear_body(yields *y)
{
    selective(y, NULL);
}

static void sigmoid_body(yields *y)
{
    static int yes = 1;
    selective(y, &yes);
}

/* Each layer unpacks its recomputed input for itself: four cuts. */
static void test_checkpointing_sac(void **state)
{
    (void)state;
    run_counted(linear_body, 1, 5);
    assert_int_equal(both_stats().splits, 4);
    run_both(sigmoid_body, 1);
}

/* ---- Re-entrant checkpoints, many steps, many threads ---------------------------------------- */

enum { N_STEPS = 12, N_THREADS = 4, N_BLOCKS = 3, WIDTH = 8 };

typedef struct soak_net {
    brg_tensor *w[N_BLOCKS];
    bool is_checkpointed;
    int n_runs;
} soak_net;

typedef struct soak_block {
    soak_net *net;
    int i;
} soak_block;

/* Compiled whole; one for all threads. */
static brg_compiled *soak_compiled;

static brg_status soak_pointwise(brg_tensor *const *in, size_t n_in,
                                 brg_tensor **out, size_t n_out, void *user)
{
    (void)n_in;
    (void)n_out;
    (void)user;
    out[0] = brg_add(in[0], brg_gelu(brg_dropout(in[1], 0.25, true)));
    return out[0] ? BRG_OK : brg_error_code();
}

static brg_status soak_stretch(brg_tensor *const *in, brg_tensor **out,
                               void *user)
{
    soak_block *b = user;
    b->net->n_runs++;
    brg_tensor *args[2] = {in[0], brg_linear(in[0], in[1], NULL)};
    if (!args[1])
        return brg_error_code();
    return b->net->is_checkpointed
               ? brg_compiled_call(soak_compiled, args, 2, out, 1)
               : soak_pointwise(args, 2, out, 1, NULL);
}

/* Two blocks in a checkpoint, each a checkpoint itself. */
static brg_status soak_pair(brg_tensor *const *in, brg_tensor **out, void *user)
{
    soak_block *blocks = user;
    brg_recompute_options options = BRG_RECOMPUTE_OPTIONS_INIT;
    options.is_reentrant = true;
    brg_tensor *inner[2] = {in[0], in[1]};
    BRG_TRY(
        brg_recompute(&inner[0], soak_stretch, &blocks[0], inner, 2, &options));
    inner[1] = in[2];
    return brg_recompute(out, soak_stretch, &blocks[1], inner, 2, &options);
}

static brg_status soak_forward(soak_net *net, soak_block *blocks, brg_tensor *x,
                               brg_tensor **y)
{
    brg_recompute_options options = BRG_RECOMPUTE_OPTIONS_INIT;
    options.is_reentrant = true;
    brg_tensor *in[3] = {x, net->w[0], NULL};
    if (!net->is_checkpointed) {
        for (int i = 0; i < N_BLOCKS; i++) {
            in[1] = net->w[i];
            BRG_TRY(soak_stretch(in, &in[0], &blocks[i]));
        }
        *y = in[0];
        return BRG_OK;
    }
    BRG_TRY(brg_recompute(&in[0], soak_stretch, &blocks[0], in, 2, &options));
    in[1] = net->w[1];
    in[2] = net->w[2];
    return brg_recompute(y, soak_pair, &blocks[1], in, 3, &options);
}

static brg_status soak_step(soak_net *net, uint64_t seed)
{
    soak_block blocks[N_BLOCKS];
    for (int i = 0; i < N_BLOCKS; i++)
        blocks[i] = (soak_block){net, i};
    brg_seed(seed);
    brg_scope *scope = brg_scope_begin();
    brg_tensor *x = brg_randn(BRG_DTYPE_F32, BRG_SHAPE(5, WIDTH)), *y;
    brg_status status = x ? brg_set_requires_grad(x, true) : brg_error_code();
    if (status == BRG_OK)
        status = soak_forward(net, blocks, x, &y);
    if (status == BRG_OK)
        status = brg_backward(brg_mean_all(brg_square(y)));
    for (int i = 0; i < N_BLOCKS && status == BRG_OK; i++) {
        bool mode = brg_grad_mode_set(false);
        status = brg_add_(net->w[i], brg_tensor_grad(net->w[i]), -0.1);
        brg_grad_mode_set(mode);
        if (status == BRG_OK)
            status = brg_tensor_set_grad(net->w[i], NULL);
    }
    brg_scope_end(scope);
    return status;
}

/* Trains a network with checkpoints beside one without: the same weights, bit
 * for bit, after each step. Off the main thread: returns a status. */
static brg_status soak(uint64_t seed)
{
    soak_net nets[2] = {{.is_checkpointed = true}, {.n_runs = 0}};
    brg_status status = BRG_OK;
    for (int k = 0; k < 2; k++) {
        brg_seed(seed);
        for (int i = 0; i < N_BLOCKS && status == BRG_OK; i++) {
            nets[k].w[i] = brg_randn(BRG_DTYPE_F32, BRG_SHAPE(WIDTH, WIDTH));
            status = nets[k].w[i] ? brg_set_requires_grad(nets[k].w[i], true)
                                  : brg_error_code();
        }
    }
    for (uint64_t step = 0; step < N_STEPS && status == BRG_OK; step++) {
        for (int k = 0; k < 2 && status == BRG_OK; k++)
            status = soak_step(&nets[k], seed * 100 + step);
        for (int i = 0; i < N_BLOCKS && status == BRG_OK; i++)
            if (memcmp(brg_tensor_data(nets[0].w[i]),
                       brg_tensor_data(nets[1].w[i]),
                       WIDTH * WIDTH * sizeof(float)) != 0)
                status = brg_error_set(BRG_ERR_MISMATCH, __FILE__, __LINE__,
                                       "weights of block %d differ", i);
    }
    /* Blocks inside one checkpoint run twice, those inside two three times. */
    if (status == BRG_OK && (nets[0].n_runs != N_STEPS * (2 + 3 + 3) ||
                             nets[1].n_runs != N_STEPS * N_BLOCKS))
        status = brg_error_set(BRG_ERR_MISMATCH, __FILE__, __LINE__,
                               "%d runs of blocks", nets[0].n_runs);
    return status;
}

static void *soak_thread(void *seed)
{
    brg_scope *scope = brg_scope_begin();
    brg_status status = soak((uint64_t)(uintptr_t)seed);
    if (status != BRG_OK)
        fprintf(stderr, "soak: %s\n", brg_error_message());
    brg_scope_end(scope);
    return (void *)(intptr_t)status;
}

static void test_issue106555(void **state)
{
    (void)state;
    soak_compiled = compile_whole(soak_pointwise, NULL);
    assert_brg_ok(soak(1));
    pthread_t threads[N_THREADS];
    for (uintptr_t i = 0; i < N_THREADS; i++)
        assert_int_equal(
            pthread_create(&threads[i], NULL, soak_thread, (void *)(i + 2)), 0);
    for (int i = 0; i < N_THREADS; i++) {
        void *status;
        pthread_join(threads[i], &status);
        assert_int_equal((int)(intptr_t)status, BRG_OK);
    }
    brg_compiled_destroy(soak_compiled);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        scoped_test(test_checkpointing_sac),
        scoped_test(test_checkpointing_simple),
        scoped_test(test_issue106555),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
