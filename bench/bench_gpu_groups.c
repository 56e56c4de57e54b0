/* SPDX-License-Identifier: Apache-2.0
 * Chains of pointwise ops on a GPU, as functions: eager, compiled with their ops
 * one by one, and compiled into one kernel. All take turns; medians over rounds.
 *     bench_gpu_groups [rounds] */
#include <stdio.h>
#include <stdlib.h>

#include <brigade/brigade.h>

#include "bench/bench.h"

enum { EAGER, ONE_BY_ONE, FUSED, N_WAYS };
enum { N_CALLS = 50, MAX_ROUNDS = 200, N_OPS = 20 };

static const char *const names[N_WAYS] = {"eager", "one by one", "one kernel"};

/* Twenty ops over x, of two more operands; or a bias, GELU and a residual. */
static brg_status chain(brg_tensor *const *in, size_t n_in, brg_tensor **out,
                        size_t n_out, void *user)
{
    const int n_ops = *(const int *)user;
    brg_tensor *x = in[0];
    (void)n_in;
    (void)n_out;
    if (n_ops == 3)
        x = brg_add(brg_gelu(brg_add(x, in[1])), in[0]);
    for (int i = 0; i + 3 < n_ops; i += 4) {
        x = brg_mul_scalar(brg_add(x, in[1]), 0.75);
        x = brg_relu(brg_sub(x, in[0]));
    }
    out[0] = x;
    return x ? BRG_OK : brg_error_code();
}

static void call(int way, brg_compiled *const *compiled, brg_tensor *const *in,
                 int *n_ops)
{
    brg_tensor *out;
    brg_scope *scope = brg_scope_begin();
    bench_must(way == EAGER ? chain(in, 2, &out, 1, n_ops)
                            : brg_compiled_call(compiled[way], in, 2, &out, 1));
    brg_scope_end(scope);
}

static void measure(brg_dtype dtype, int64_t rows, int64_t cols, int n_ops,
                    int rounds)
{
    static double us[N_WAYS][MAX_ROUNDS];
    brg_compiled *compiled[N_WAYS] = {0};
    brg_scope *scope = brg_scope_begin();
    brg_tensor *in[2] = {
        bench_some(
            brg_cast(brg_randn(BRG_DTYPE_F32, BRG_SHAPE(rows, cols)), dtype)),
        bench_some(brg_cast(brg_randn(BRG_DTYPE_F32, BRG_SHAPE(cols)), dtype))};
    for (int way = ONE_BY_ONE; way < N_WAYS; way++) {
        brg_compile_options options = BRG_COMPILE_OPTIONS_INIT;
        options.whole = options.fullgraph = true;
        options.backend = way == FUSED ? BRG_COMPILE_BACKEND_FUSED
                                       : BRG_COMPILE_BACKEND_PASSES;
        bench_must(
            brg_compiled_create(&compiled[way], chain, &n_ops, &options));
    }
    for (int r = -2; r < rounds; r++)
        for (int way = 0; way < N_WAYS; way++) {
            bench_must(brg_device_synchronize(brg_device_get()));
            const double start = bench_seconds();
            for (int i = 0; i < N_CALLS; i++)
                call(way, compiled, in, &n_ops);
            bench_must(brg_device_synchronize(brg_device_get()));
            if (r >= 0)
                us[way][r] = 1e6 * (bench_seconds() - start) / N_CALLS;
        }
    const double eager = bench_median(us[EAGER], (size_t)rounds);
    for (int way = 0; way < N_WAYS; way++) {
        const double mine = bench_median(us[way], (size_t)rounds);
        printf("%2d ops, %s, %lld x %lld: %-10s %8.2f us  %5.2f x\n", n_ops,
               dtype == BRG_DTYPE_F32 ? "f32 " : "bf16", (long long)rows,
               (long long)cols, names[way], mine, eager / mine);
        brg_compiled_destroy(compiled[way]);
    }
    brg_scope_end(scope);
}

int main(int argc, char **argv)
{
    const int rounds = argc > 1 ? atoi(argv[1]) : 15;
    if (rounds < 1 || rounds > MAX_ROUNDS)
        bench_fail("usage: bench_gpu_groups [rounds]");
    bench_must(brg_device_load("cuda"));
    bench_must(brg_device_set((brg_device){BRG_DEVICE_CUDA, 0}));
    for (int is_16_bit = 0; is_16_bit < 2; is_16_bit++) {
        const brg_dtype dtype = is_16_bit ? BRG_DTYPE_BF16 : BRG_DTYPE_F32;
        measure(dtype, 1024, 1024, N_OPS, rounds);
        measure(dtype, 16384, 3072, N_OPS, rounds);
        measure(dtype, 16384, 3072, 3, rounds);
    }
    return 0;
}
