/* SPDX-License-Identifier: Apache-2.0
 * Every check of a ddp's features that takes any group, parameters on the
 * thread's device: the ones that GPUs and made-up devices run alike.
 *
 *     FEATURE_LIST(X)     X(check) for each: brg_status check_<check>(brg_pg *) */
#ifndef BRG_TESTS_REDUCER_FEATURE_LIST_H
#define BRG_TESTS_REDUCER_FEATURE_LIST_H

#include "tests/reducer/ddp_feature_checks.h"
#include "tests/reducer/group_checks.h"
#include "tests/reducer/shard_checks.h"

#define FEATURE_LIST(X)                                                        \
    X(grads_apart)                                                             \
    X(unused_params)                                                           \
    X(accumulation)                                                            \
    X(static_graph)                                                            \
    X(static_accumulation)                                                     \
    X(join)                                                                    \
    X(buffers)                                                                 \
    X(freezing)                                                                \
    X(groups)                                                                  \
    X(clipping)                                                                \
    X(shard_bits)                                                              \
    X(shard_clipping)                                                          \
    X(shard_memory)                                                            \
    X(shard_errors)

#endif
