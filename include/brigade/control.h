/* SPDX-License-Identifier: Apache-2.0
 * Control flow over tensors: branches, loops, maps and scans whose bodies are
 * functions of the caller. Written with other ops, so gradients flow as through
 * those; in a function that is compiled whole, a branch or loop whose course
 * depends on values is one call of the plan, decided when the plan runs. */
#ifndef BRG_CONTROL_H
#define BRG_CONTROL_H

#include <brigade/status.h>
#include <brigade/types.h>

BRG_BEGIN_DECLS

#define BRG_MAX_REGION 16 /* tensors in, and out */

/* Fills outputs[0..n_outputs), borrowed from the scope, from its inputs. */
typedef brg_status (*brg_region_fn)(brg_tensor *const *inputs, size_t n_inputs,
                                    brg_tensor **outputs, size_t n_outputs,
                                    void *user);

/* A body. In a function compiled whole, all values of that function that it
 * uses, and all tensors that should get gradients, must be inputs of it. */
typedef struct brg_region {
    brg_region_fn fn;
    void *user;
} brg_region;

/* All fill outputs borrowed from the scope, and NULL on failure; outputs may be
 * the array of the inputs. */

/* outputs = predicate ? then(inputs) : otherwise(inputs). predicate: one
 * element, true if it is not 0. Only the branch taken runs; in a function
 * compiled whole both must give the same shapes and dtypes. */
BRG_API BRG_NODISCARD brg_status brg_cond(brg_tensor **outputs,
                                          size_t n_outputs,
                                          brg_tensor *predicate,
                                          brg_region then, brg_region otherwise,
                                          brg_tensor *const *inputs,
                                          size_t n_inputs);

/* outputs = inputs; while condition(outputs): outputs = body(outputs). The
 * condition has one output of one element; shapes and dtypes stay. */
BRG_API BRG_NODISCARD brg_status brg_while_loop(brg_tensor **outputs,
                                                brg_region condition,
                                                brg_region body,
                                                brg_tensor *const *inputs,
                                                size_t n);

/* outputs[j][i] = fn(xs[0][i], xs[1][i], ..., others...)[j] for each index i
 * of dim 0, which all xs share and which is at least 1. */
BRG_API BRG_NODISCARD brg_status brg_map(brg_tensor **outputs, size_t n_outputs,
                                         brg_region fn, brg_tensor *const *xs,
                                         size_t n_xs, brg_tensor *const *others,
                                         size_t n_others);

/* The same with values carried from index to index:
 *     carry..., outputs[..][i] = fn(carry..., xs[..][i])
 * carry[0..n_carry) comes in as the first values and ends as the last; shapes
 * and dtypes stay. */
BRG_API BRG_NODISCARD brg_status brg_scan(brg_tensor **carry, size_t n_carry,
                                          brg_tensor **outputs,
                                          size_t n_outputs, brg_region fn,
                                          brg_tensor *const *xs, size_t n_xs);

BRG_END_DECLS

#endif
