/* SPDX-License-Identifier: Apache-2.0
 * Single ops against what limits them: memory-bound ones against memcpy of the
 * bytes they must read and write, attention against its matrix products. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <brigade/autograd.h>
#include <brigade/ops.h>
#include <brigade/optim.h>

#include "bench/bench.h"
#include "bench/gemm_shapes.h"

enum { N_PASSES = 21 };
#define PASS_SECONDS 0.01

/* ---- Cases --------------------------------------------------------------- */

#define MAX_INPUTS 3
#define WIDTH 128
#define ROWS 512

/* An op with inputs of given shapes; ids (whole numbers below n_ids) come in
 * place of input `ids_at`, if n_ids is not 0. */
typedef struct op_case {
    const char *name;
    brg_tensor *(*run)(brg_tensor *const *in);
    int64_t shape[MAX_INPUTS][BRG_MAX_DIMS]; /* ends with 0 */
    int64_t n_ids;
    int ids_at;
    bool is_attention;
} op_case;

static brg_tensor *run_add(brg_tensor *const *in)
{
    return brg_add(in[0], in[1]);
}

static brg_tensor *run_relu(brg_tensor *const *in)
{
    return brg_relu(in[0]);
}

static brg_tensor *run_gelu(brg_tensor *const *in)
{
    return brg_gelu(in[0]);
}

static brg_tensor *run_exp(brg_tensor *const *in)
{
    return brg_exp(in[0]);
}

static brg_tensor *run_softmax(brg_tensor *const *in)
{
    return brg_softmax(in[0], -1);
}

static brg_tensor *run_sum_rows(brg_tensor *const *in)
{
    return brg_sum(in[0], BRG_DIMS(0), false);
}

static brg_tensor *run_layer_norm(brg_tensor *const *in)
{
    return brg_layer_norm(in[0], in[1], in[2], 1, 1e-5);
}

static brg_tensor *run_cross_entropy(brg_tensor *const *in)
{
    return brg_cross_entropy(in[0], in[1]);
}

static brg_tensor *run_embedding(brg_tensor *const *in)
{
    return brg_embedding(in[0], in[1]);
}

static brg_tensor *run_max_pool(brg_tensor *const *in)
{
    brg_pool2d_options pool = BRG_POOL2D_OPTIONS_INIT;
    pool.kernel[0] = pool.kernel[1] = 2;
    return brg_max_pool2d(in[0], &pool);
}

static brg_tensor *run_attention(brg_tensor *const *in)
{
    brg_attention_options causal = BRG_ATTENTION_OPTIONS_INIT;
    causal.is_causal = true;
    return brg_attention_qkv(in[0], 4, &causal);
}

static const op_case cases[] = {
    {"add_64KB", run_add, {{ROWS / 4, WIDTH}, {ROWS / 4, WIDTH}}, 0, 0, false},
    {"add_1MB", run_add, {{2048, WIDTH}, {2048, WIDTH}}, 0, 0, false},
    {"add_64MB", run_add, {{1 << 17, WIDTH}, {1 << 17, WIDTH}}, 0, 0, false},
    {"add_bias", run_add, {{ROWS, 4 * WIDTH}, {4 * WIDTH}}, 0, 0, false},
    {"relu_1MB", run_relu, {{2048, WIDTH}}, 0, 0, false},
    {"relu_4.7MB", run_relu, {{64, 32, 24, 24}}, 0, 0, false},
    {"gelu_1MB", run_gelu, {{ROWS, 4 * WIDTH}}, 0, 0, false},
    {"exp_1MB", run_exp, {{ROWS, 4 * WIDTH}}, 0, 0, false},
    {"softmax", run_softmax, {{ROWS, 256}}, 0, 0, false},
    {"sum_rows", run_sum_rows, {{ROWS, 4 * WIDTH}}, 0, 0, false},
    {"layer_norm",
     run_layer_norm,
     {{ROWS, WIDTH}, {WIDTH}, {WIDTH}},
     0,
     0,
     false},
    {"cross_entropy", run_cross_entropy, {{ROWS, 256}, {ROWS}}, 256, 1, false},
    {"embedding", run_embedding, {{256, WIDTH}, {ROWS}}, 256, 1, false},
    {"max_pool", run_max_pool, {{64, 64, 24, 24}}, 0, 0, false},
    {"attention", run_attention, {{8, 64, 3 * WIDTH}}, 0, 0, true},
};

/* ---- One case ------------------------------------------------------------ */

typedef struct op_run {
    const op_case *op;
    brg_tensor *in[MAX_INPUTS]; /* NULL past the last */
    brg_tensor *grad_out;
    size_t in_bytes, out_bytes;
    char *from, *to;       /* for memcpy */
    gemm_list products[2]; /* of attention: forward, backward */
} op_run;

static brg_tensor *make_input(const op_case *op, int i)
{
    int ndim = 0;
    while (op->shape[i][ndim] > 0)
        ndim++;
    brg_tensor *t = bench_random(1, (uint64_t)i + 1, ndim, op->shape[i]);
    if (op->n_ids == 0 || op->ids_at != i) {
        bench_must(brg_set_requires_grad(t, true));
        return t;
    }
    const double half = 0.5 * (double)op->n_ids;
    brg_tensor *ids =
        brg_cast(brg_add_scalar(brg_mul_scalar(t, half), half), BRG_DTYPE_I64);
    brg_release(t);
    return brg_retain(bench_some(ids));
}

static void op_run_init(op_run *r, const op_case *op)
{
    *r = (op_run){.op = op};
    brg_scope *scope = brg_scope_begin();
    for (int i = 0; i < MAX_INPUTS && op->shape[i][0] > 0; i++) {
        r->in[i] = make_input(op, i);
        r->in_bytes += brg_tensor_nbytes(r->in[i]);
    }
    brg_tensor *y = bench_some(op->run(r->in));
    r->out_bytes = brg_tensor_nbytes(y);
    r->grad_out = bench_random(1, 9, brg_tensor_ndim(y), brg_tensor_shape(y));
    brg_scope_end(scope);
    const size_t most = 2 * (r->in_bytes + r->out_bytes);
    r->from = calloc(most, 1);
    r->to = calloc(most, 1);
    if (r->from == NULL || r->to == NULL)
        bench_fail("out of memory");
    memset(r->from, 1, most);
    if (op->is_attention) {
        gemm_list_init_attention(&r->products[0], false);
        gemm_list_init_attention(&r->products[1], true);
    }
}

static void op_run_deinit(op_run *r)
{
    for (int i = 0; i < MAX_INPUTS; i++)
        brg_release(r->in[i]);
    brg_release(r->grad_out);
    free(r->from);
    free(r->to);
    gemm_list_deinit(&r->products[0]);
    gemm_list_deinit(&r->products[1]);
}

/* Seconds of one forward, or of one backward alone. */
static double time_op(op_run *r, bool is_backward, int n)
{
    double seconds = 0;
    const bool mode = brg_grad_mode_set(is_backward);
    for (int i = 0; i < n; i++) {
        brg_scope *scope = brg_scope_begin();
        double start = bench_seconds();
        brg_tensor *y = bench_some(r->op->run(r->in));
        if (is_backward) {
            brg_backward_options options = BRG_BACKWARD_OPTIONS_INIT;
            options.grad_outputs = &r->grad_out;
            start = bench_seconds();
            bench_must(brg_backward_with(&y, 1, &options));
        }
        seconds += bench_seconds() - start;
        for (int k = 0; k < MAX_INPUTS && is_backward; k++)
            if (r->in[k] != NULL && brg_requires_grad(r->in[k]))
                bench_must(brg_tensor_set_grad(r->in[k], NULL));
        brg_scope_end(scope);
    }
    brg_grad_mode_set(mode);
    return seconds / n;
}

/* Seconds of what no implementation can avoid: forward reads the inputs and
 * writes the output; backward reads those and writes the inputs' size. */
static double time_bound(op_run *r, bool is_backward, int n)
{
    const size_t touched = (is_backward ? 2 : 1) * r->in_bytes + r->out_bytes;
    const double start = bench_seconds();
    for (int i = 0; i < n; i++) {
        if (r->op->is_attention) {
            gemm_list_run(&r->products[is_backward]);
        } else {
            memcpy(r->to, r->from, touched / 2);
            __asm__ volatile("" ::"r"(r->to) : "memory");
        }
    }
    return (bench_seconds() - start) / n;
}

static void run_case(op_run *r, bool is_backward)
{
    const int n = 1 + (int)(PASS_SECONDS / time_op(r, is_backward, 2));
    bench_pairs pairs = {0};
    for (int pass = 0; pass < N_PASSES; pass++) {
        const double before = bench_switches();
        const double op = time_op(r, is_backward, n);
        const double bound = time_bound(r, is_backward, n);
        bench_pairs_add(&pairs, op, bound, bench_switches() - before);
    }
    char prefix[64];
    snprintf(prefix, sizeof(prefix), "ops.%s.%s", r->op->name,
             is_backward ? "backward" : "forward");
    bench_print(prefix, 1e6 * bench_pairs_a(&pairs), "us");
    bench_print(bench_name(prefix, "to_bound"), bench_pairs_ratio(&pairs, 0.5),
                "x");
}

/* ---- Optimizers ---------------------------------------------------------- */

/* An update of n numbers against memcpy of the `n_streams` arrays it reads and
 * writes. */
static void run_optim(const char *name, brg_optim *optim, size_t n,
                      int n_streams)
{
    const size_t half = n * sizeof(float) * (size_t)n_streams / 2;
    char *from = calloc(half, 1), *to = calloc(half, 1);
    if (from == NULL || to == NULL)
        bench_fail("out of memory");
    memset(from, 1, half);
    bench_pairs pairs = {0};
    for (int pass = -1; pass < N_PASSES; pass++) {
        const double before = bench_switches();
        const double start = bench_seconds();
        bench_must(brg_optim_step(optim));
        const double middle = bench_seconds();
        memcpy(to, from, half);
        __asm__ volatile("" ::"r"(to) : "memory");
        if (pass >= 0)
            bench_pairs_add(&pairs, middle - start, bench_seconds() - middle,
                            bench_switches() - before);
    }
    bench_print(name, 1e6 * bench_pairs_a(&pairs), "us");
    bench_print(bench_name(name, "to_bound"), bench_pairs_ratio(&pairs, 0.5),
                "x");
    brg_optim_destroy(optim);
    free(from);
    free(to);
}

static void run_optims(size_t n)
{
    brg_params *params;
    brg_optim *optim;
    brg_tensor *p = bench_random(1, 1, BRG_SHAPE((int64_t)n));
    brg_tensor *g = bench_random(1, 2, BRG_SHAPE((int64_t)n));
    bench_must(brg_params_create(&params));
    bench_must(brg_params_add(params, "p", p, BRG_PARAM_TRAINED));
    bench_must(brg_tensor_set_grad(p, g));
    const brg_sgd_options sgd = BRG_SGD_OPTIONS_INIT;
    bench_must(brg_optim_create_sgd(&optim, params, &sgd));
    run_optim("ops.sgd_16MB", optim, n, 3);
    const brg_adamw_options adamw = BRG_ADAMW_OPTIONS_INIT;
    bench_must(brg_optim_create_adamw(&optim, params, &adamw));
    run_optim("ops.adamw_16MB", optim, n, 7);
    brg_params_destroy(params);
    brg_release(p);
    brg_release(g);
}

int main(int argc, char **argv)
{
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        if (argc > 1 && strcmp(argv[1], cases[i].name) != 0)
            continue;
        op_run r;
        brg_scope *scope = brg_scope_begin();
        op_run_init(&r, &cases[i]);
        run_case(&r, false);
        run_case(&r, true);
        op_run_deinit(&r);
        brg_scope_end(scope);
    }
    if (argc < 2)
        run_optims((size_t)4 << 20);
    return 0;
}
