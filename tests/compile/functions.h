/* SPDX-License-Identifier: Apache-2.0
 * Custom functions that tests of captures share. */
#ifndef BRG_TESTS_COMPILE_FUNCTIONS_H
#define BRG_TESTS_COMPILE_FUNCTIONS_H

#include <brigade/function.h>

#include "tests/autograd/graph.h"

static inline brg_status square_forward(brg_context *ctx, const brg_value *args,
                                        size_t n_args, brg_value *out)
{
    (void)n_args;
    BRG_TRY(brg_context_save(ctx, &args[0].as.tensor, 1));
    out[0] = brg_value_tensor(brg_square(args[0].as.tensor));
    return out[0].as.tensor ? BRG_OK : brg_error_code();
}

static inline brg_status square_backward(brg_context *ctx, brg_tensor *const *g,
                                         brg_tensor **gi, size_t *n)
{
    (void)n;
    brg_tensor *x;
    BRG_TRY(brg_context_saved(ctx, 0, &x));
    gi[0] = brg_mul(g[0], brg_mul_scalar(x, 2));
    return gi[0] ? BRG_OK : brg_error_code();
}

/* Changes its argument and gives it back. */
static inline brg_status double_forward(brg_context *ctx, const brg_value *args,
                                        size_t n_args, brg_value *out)
{
    (void)n_args;
    out[0] = args[0];
    BRG_TRY(brg_mul_scalar_(args[0].as.tensor, 2));
    return brg_context_mark_dirty(ctx, &args[0].as.tensor, 1);
}

static inline brg_status double_backward(brg_context *ctx, brg_tensor *const *g,
                                         brg_tensor **gi, size_t *n)
{
    (void)ctx;
    (void)n;
    gi[0] = brg_mul_scalar(g[0], 2);
    return gi[0] ? BRG_OK : brg_error_code();
}

typedef brg_status (*function_forward)(brg_context *, const brg_value *, size_t,
                                       brg_value *);
typedef brg_status (*function_backward)(brg_context *, brg_tensor *const *,
                                        brg_tensor **, size_t *);

static inline brg_function *make_function(const char *name, size_t n_outputs,
                                          function_forward forward,
                                          function_backward backward,
                                          brg_function_tracing tracing)
{
    return new_function(.name = name, .n_outputs = n_outputs,
                        .forward = forward, .backward = backward,
                        .tracing = tracing);
}

#endif
