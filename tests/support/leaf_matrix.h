/* SPDX-License-Identifier: Apache-2.0
 * The networks and bucket sizes of the matrix of hashes. */
#ifndef BRG_TESTS_SUPPORT_LEAF_MATRIX_H
#define BRG_TESTS_SUPPORT_LEAF_MATRIX_H

#include "tests/support/brg_test.h"
#include "tests/support/leaf_train.h"

#define N_LEAF_CAPS 4
static const size_t leaf_caps[N_LEAF_CAPS] = {(size_t)64 << 10, (size_t)1 << 20,
                                              (size_t)25 << 20, SIZE_MAX};

/* 1.1 MB of gradients: long enough for buckets of every step. */
static const leaf_train leaf_small = {
    .n_steps = 100, .batch = 16, .n_leaves = 8, .n_hidden = 496};
/* 27.2 MB, so that each of the sizes makes other buckets; after the first of
 * the steps they are made anew. */
static const leaf_train leaf_large = {
    .n_steps = 3, .batch = 8, .n_leaves = 8, .n_hidden = 1830, .n_more = 1};

/* Each size of buckets was another plan. */
static inline void leaf_assert_plans(const int *n_buckets)
{
    for (int c = 1; c < N_LEAF_CAPS; c++)
        assert_in_range(n_buckets[c], 1, n_buckets[c - 1] - 1);
    assert_int_equal(n_buckets[N_LEAF_CAPS - 1], 1);
}

#endif
