/* SPDX-License-Identifier: Apache-2.0
 * A function of 24 pointwise ops, which are one group: over a tensor, a row, a
 * column and a number, of any dtype, strided or not, on the thread's device. */
#ifndef BRG_TESTS_COMPILE_CUDA_CHAIN_H
#define BRG_TESTS_COMPILE_CUDA_CHAIN_H

#include <brigade/brigade.h>

#include "tests/support/brg_test.h"

static inline brg_status chain(brg_tensor *const *in, size_t n_in,
                               brg_tensor **out, size_t n_out, void *user)
{
    brg_tensor *x = in[0];
    (void)n_in;
    (void)n_out;
    (void)user;
    for (int i = 0; i < 4; i++) {
        x = brg_add(brg_mul_scalar(x, 0.75), in[1]);
        x = brg_maximum(x, in[2]);
        x = brg_where(brg_gt(x, in[3]), x, brg_neg(x));
    }
    out[0] = x;
    return x ? BRG_OK : brg_error_code();
}

typedef struct chain_call {
    brg_compiled *compiled;
    brg_tensor *in[4];
} chain_call;

/* *want: by eager ops. */
static inline void chain_begin_with(chain_call *c, brg_compile_backend backend,
                                    brg_dtype dtype, int64_t rows, int64_t cols,
                                    bool is_strided, brg_tensor **want)
{
    brg_compile_options options = BRG_COMPILE_OPTIONS_INIT;
    options.fullgraph = options.whole = true;
    options.backend = backend;
    brg_seed((uint64_t)(rows + cols));
    c->in[0] = brg_randn(BRG_DTYPE_F32, BRG_SHAPE(rows, cols));
    if (is_strided)
        c->in[0] = brg_transpose(
            brg_randn(BRG_DTYPE_F32, BRG_SHAPE(cols, rows)), 0, 1);
    c->in[1] = brg_randn(BRG_DTYPE_F32, BRG_SHAPE(cols));
    c->in[2] = brg_randn(BRG_DTYPE_F32, BRG_SHAPE(rows, 1));
    c->in[3] = brg_randn(BRG_DTYPE_F32, 0, NULL);
    for (int i = 0; i < 4; i++)
        c->in[i] = assert_brg_some(brg_cast(c->in[i], dtype));
    assert_brg_ok(chain(c->in, 4, want, 1, NULL));
    assert_brg_ok(brg_compiled_create(&c->compiled, chain, NULL, &options));
}

static inline void chain_begin(chain_call *c, brg_dtype dtype, int64_t rows,
                               int64_t cols, bool is_strided, brg_tensor **want)
{
    chain_begin_with(c, BRG_COMPILE_BACKEND_FUSED, dtype, rows, cols,
                     is_strided, want);
}

static inline brg_tensor *chain_again(const chain_call *c)
{
    brg_tensor *out;
    assert_brg_ok(brg_compiled_call(c->compiled, c->in, 4, &out, 1));
    return out;
}

static inline void chain_end(chain_call *c)
{
    brg_compiled_destroy(c->compiled);
}

/* Sizes of whole vectors, strided, with none in a row, with some left. */
static inline void for_each_chain(void (*check)(brg_dtype dtype, int64_t rows,
                                                int64_t cols, bool is_strided))
{
    static const brg_dtype dtypes[] = {BRG_DTYPE_F32, BRG_DTYPE_BF16,
                                       BRG_DTYPE_F16, BRG_DTYPE_F64};
    for (int i = 0; i < 4; i++) {
        check(dtypes[i], 6, 32, false);
        check(dtypes[i], 6, 32, true);
        check(dtypes[i], 5, 7, false);
        check(dtypes[i], 1, 1, false);
        check(dtypes[i], 1, 1003, false);
    }
}

#endif
