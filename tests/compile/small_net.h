/* SPDX-License-Identifier: Apache-2.0
 * A small network whose gradients two ways of running it are compared by. */
#ifndef BRG_TESTS_COMPILE_SMALL_NET_H
#define BRG_TESTS_COMPILE_SMALL_NET_H

#include <brigade/random.h>

#include "tests/autograd/graph.h"

typedef struct net {
    brg_tensor *w1, *b1, *w2, *b2;
    int n_calls;
} net;

static inline net make_net(uint64_t seed)
{
    net n = {0};
    brg_seed(seed);
    n.w1 = brg_randn(BRG_DTYPE_F32, BRG_SHAPE(16, 8));
    n.b1 = brg_randn(BRG_DTYPE_F32, BRG_SHAPE(16));
    n.w2 = brg_randn(BRG_DTYPE_F32, BRG_SHAPE(4, 16));
    n.b2 = brg_randn(BRG_DTYPE_F32, BRG_SHAPE(4));
    brg_tensor *all[] = {n.w1, n.b1, n.w2, n.b2};
    for (int i = 0; i < 4; i++)
        assert_brg_ok(brg_set_requires_grad(all[i], true));
    return n;
}

/* Data and classes of a batch: in[0] and in[1] of net_loss. */
static inline void batch_of(int64_t batch, brg_tensor **in)
{
    brg_seed((uint64_t)batch);
    in[0] = brg_randn(BRG_DTYPE_F32, BRG_SHAPE(batch, 8));
    in[1] = brg_randint(0, 4, BRG_SHAPE(batch));
}

static inline brg_status net_loss(brg_tensor *const *in, size_t n_in,
                                  brg_tensor **out, size_t n_out, void *user)
{
    net *n = user;
    (void)n_in;
    (void)n_out;
    n->n_calls++;
    brg_tensor *h = brg_tanh(brg_linear(in[0], n->w1, n->b1));
    h = brg_add(brg_relu(h), brg_mul(h, h));
    out[0] = brg_cross_entropy(brg_linear(h, n->w2, n->b2), in[1]);
    return out[0] ? BRG_OK : brg_error_code();
}

static inline brg_tensor *loss_of(net *n, int64_t batch)
{
    brg_tensor *in[2], *loss;
    batch_of(batch, in);
    assert_brg_ok(net_loss(in, 2, &loss, 1, n));
    return loss;
}

static inline void expect_same_bits(const brg_tensor *a, const brg_tensor *b)
{
    assert_non_null(a);
    assert_non_null(b);
    assert_int_equal(brg_tensor_nbytes(a), brg_tensor_nbytes(b));
    size_t nbytes = brg_tensor_nbytes(a);
    char *x = malloc(nbytes), *y = malloc(nbytes);
    assert_brg_ok(brg_tensor_read(a, x, nbytes));
    assert_brg_ok(brg_tensor_read(b, y, nbytes));
    assert_memory_equal(x, y, nbytes);
    free(x);
    free(y);
}

static inline void expect_same_grads(const net *a, const net *b)
{
    expect_same_bits(brg_tensor_grad(a->w1), brg_tensor_grad(b->w1));
    expect_same_bits(brg_tensor_grad(a->b1), brg_tensor_grad(b->b1));
    expect_same_bits(brg_tensor_grad(a->w2), brg_tensor_grad(b->w2));
    expect_same_bits(brg_tensor_grad(a->b2), brg_tensor_grad(b->b2));
}

#endif
