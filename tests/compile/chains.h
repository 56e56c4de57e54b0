/* SPDX-License-Identifier: Apache-2.0
 * What tests of compiled backwards share: chains of small ops whose gradients
 * are compared with the eager ones. */
#ifndef BRG_TESTS_COMPILE_CHAINS_H
#define BRG_TESTS_COMPILE_CHAINS_H

#include <brigade/compile.h>
#include <brigade/runtime.h>

#include "tests/autograd/graph.h"

#define CHAIN_UNUSED __attribute__((unused))

static inline CHAIN_UNUSED int begin_with(brg_compile_options options)
{
    int scope;
    assert_brg_ok(brg_compile_begin(&scope, &options));
    return scope;
}

/* n ops; bit i of `which`: the i-th is exp, not tanh. */
static inline CHAIN_UNUSED brg_tensor *chain(brg_tensor *x, int n,
                                             uint32_t which)
{
    for (int i = 0; i < n; i++)
        x = which >> i & 1u ? brg_exp(x) : brg_tanh(x);
    return assert_brg_some(x);
}

/* The gradient of a chain's sum, as is set, and eagerly: the same bits. */
static inline CHAIN_UNUSED void backward_of_chain(int n_ops, int64_t n,
                                                  uint32_t which)
{
    brg_tensor *a = leaf_from(0.01, BRG_SHAPE(n));
    brg_tensor *b = leaf_from(0.01, BRG_SHAPE(n));
    int scope;
    assert_brg_ok(brg_backward(brg_sum_all(chain(a, n_ops, which))));
    assert_brg_ok(brg_compile_disable_begin(&scope));
    assert_brg_ok(brg_backward(brg_sum_all(chain(b, n_ops, which))));
    assert_brg_ok(brg_compile_end(scope));
    for (int64_t i = 0; i < n; i++) {
        double x = element(brg_tensor_grad(a), i);
        double y = element(brg_tensor_grad(b), i);
        assert_memory_equal(&x, &y, sizeof x);
    }
}

#endif
