/* SPDX-License-Identifier: Apache-2.0
 * Rows that stand for several (core/ops/merged.c) on a GPU, beside those that they
 * stand for: queued one behind the other, in turns; medians over rounds, us of a
 * call. Sizes are those of GPT-2 124M, 16 x 1024 tokens, bf16.
 *     bench_gpu_merged [rounds] */
#include <stdio.h>
#include <stdlib.h>

#include <brigade/brigade.h>
#include <brigade/ext/op.h>

#include "bench/bench.h"

enum { APART, MERGED, N_WAYS };
enum { N_CALLS = 20, MAX_ROUNDS = 200, TOKENS = 16 * 1024 };

typedef struct example {
    const char *name;
    void (*apart)(brg_tensor *const *in);
    void (*merged)(brg_tensor *const *in);
    void (*make)(brg_tensor **in);
} example;

static void apply(const char *name, int n_in, brg_tensor *const *in,
                  const brg_attrs *attrs, brg_tensor **out)
{
    const brg_op *op = brg_op_find(name);
    if (!op)
        bench_fail(name);
    bench_must(brg_op_apply(op, n_in, in, attrs, out));
}

static brg_tensor *normal(int64_t rows, int64_t cols)
{
    return bench_some(brg_cast(brg_randn(BRG_DTYPE_F32, BRG_SHAPE(rows, cols)),
                               BRG_DTYPE_BF16));
}

/* ---- Cross entropy: logits, targets ------------------------------------------------ */

static const brg_attrs entropy = {.i = {-100, 50257}, .f = {0, 1}};

static void make_logits(brg_tensor **in)
{
    in[0] = normal(TOKENS, 50304);
    in[1] = bench_some(brg_randint(0, 50257, BRG_SHAPE(TOKENS)));
}

static void entropy_apart(brg_tensor *const *in)
{
    brg_tensor *out[2], *grad;
    apply("cross_entropy", 2, in, &entropy, out);
    brg_tensor *of[] = {bench_some(brg_ones_like(out[0])), in[0], in[1],
                        out[1]};
    apply("cross_entropy_grad", 4, of, &entropy, &grad);
}

static void entropy_merged(brg_tensor *const *in)
{
    brg_tensor *out[3];
    apply("cross_entropy_with_grad", 2, in, &entropy, out);
}

/* ---- Layer norm's gradient: g, x, w, mean, rstd, what is added, a bias ------------- */

static const brg_attrs last_dim = {.i = {1}};

static void make_norm(brg_tensor **in)
{
    for (int i = 0; i < 6; i++)
        in[i] = i < 2 || i == 5 ? normal(TOKENS, 768) : NULL;
    in[2] = bench_some(brg_ones(BRG_DTYPE_BF16, BRG_SHAPE(768)));
    for (int i = 3; i < 5; i++)
        in[i] = bench_some(
            brg_full(BRG_DTYPE_F32, 1, (const int64_t[]){TOKENS}, i - 3.0));
    in[6] = in[2];
}

static void norm_add_apart(brg_tensor *const *in)
{
    brg_tensor *out[3], *all;
    apply("layer_norm_grad", 5, in, &last_dim, out);
    apply("add", 2, (brg_tensor *[]){in[5], out[0]}, NULL, &all);
}

static void norm_add_merged(brg_tensor *const *in)
{
    brg_tensor *out[3];
    apply("layer_norm_grad_add", 6, in, &last_dim, out);
}

static void norm_sum_apart(brg_tensor *const *in)
{
    brg_tensor *out[3], *sum;
    apply("layer_norm_grad_add", 6, in, &last_dim, out);
    apply("sum_to_like", 2, (brg_tensor *[]){out[0], in[6]}, NULL, &sum);
}

static void norm_sum_merged(brg_tensor *const *in)
{
    brg_tensor *out[4];
    apply("layer_norm_grad_sum", 6, in, &last_dim, out);
}

/* ---- Measuring --------------------------------------------------------------------- */

static const example examples[] = {
    {"cross_entropy_with_grad", entropy_apart, entropy_merged, make_logits},
    {"layer_norm_grad_add", norm_add_apart, norm_add_merged, make_norm},
    {"layer_norm_grad_sum", norm_sum_apart, norm_sum_merged, make_norm},
};

static double time_calls(const example *e, int way, brg_tensor *const *in)
{
    const brg_device device = brg_device_get();
    bench_must(brg_device_synchronize(device));
    const double start = bench_seconds();
    for (int i = 0; i < N_CALLS; i++) {
        brg_scope *scope = brg_scope_begin();
        (way == APART ? e->apart : e->merged)(in);
        brg_scope_end(scope);
    }
    bench_must(brg_device_synchronize(device));
    return 1e6 * (bench_seconds() - start) / N_CALLS;
}

static void measure(const example *e, int rounds)
{
    static double us[N_WAYS][MAX_ROUNDS];
    brg_tensor *in[BRG_MAX_OP_INPUTS];
    brg_scope *scope = brg_scope_begin();
    e->make(in);
    for (int r = -2; r < rounds; r++)
        for (int way = 0; way < N_WAYS; way++) {
            const double one = time_calls(e, way, in);
            if (r >= 0)
                us[way][r] = one;
        }
    const double apart = bench_median(us[APART], (size_t)rounds);
    const double merged = bench_median(us[MERGED], (size_t)rounds);
    printf("%-28s apart %8.1f us, merged %8.1f us: %.3f x\n", e->name, apart,
           merged, apart / merged);
    fflush(stdout);
    brg_scope_end(scope);
}

int main(int argc, char **argv)
{
    const int rounds = argc > 1 ? atoi(argv[1]) : 15;
    if (rounds < 1 || rounds > MAX_ROUNDS)
        bench_fail("usage: bench_gpu_merged [rounds]");
    bench_must(brg_device_load("cuda"));
    bench_must(brg_device_set((brg_device){BRG_DEVICE_CUDA, 0}));
    for (size_t i = 0; i < sizeof examples / sizeof *examples; i++)
        measure(&examples[i], rounds);
    return 0;
}
