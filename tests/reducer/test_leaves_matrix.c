/* SPDX-License-Identifier: Apache-2.0
 * brg-test: slow
 * One hash of the weights, for all worlds and bucket sizes: after 100 steps of
 * a small network, and after a few of one that each size cuts differently. */
#include "tests/support/leaf_matrix.h"

static void check(const leaf_train *network)
{
    static const int worlds[] = {1, 2, 3, 4, 6, 8};
    leaf_train how = *network;
    uint64_t expected = 0, hash;
    for (size_t i = 0; i < 6; i++) {
        int n_buckets[N_LEAF_CAPS] = {0};
        for (size_t c = 0; c < N_LEAF_CAPS; c++) {
            how.cap = leaf_caps[c];
            how.n_buckets = &n_buckets[c];
            assert_brg_ok(leaf_train_sim(worlds[i], i + 7 * c, &how, &hash));
            print_message("%d ranks, buckets of %zu (%d): %016llx\n", worlds[i],
                          how.cap, n_buckets[c], (unsigned long long)hash);
            expected = expected ? expected : hash;
            assert_int_equal(hash, expected);
        }
        if (network == &leaf_large)
            leaf_assert_plans(n_buckets);
    }
}

static void test_leaves__one_hash_after_100_steps(void **state)
{
    (void)state;
    check(&leaf_small);
}

static void test_leaves__one_hash_of_four_plans(void **state)
{
    (void)state;
    check(&leaf_large);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_leaves__one_hash_after_100_steps),
        cmocka_unit_test(test_leaves__one_hash_of_four_plans),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
