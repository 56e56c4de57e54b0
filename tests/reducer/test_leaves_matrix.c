/* SPDX-License-Identifier: Apache-2.0
 * brg-test: slow
 * One hash of the weights after 100 steps, for all worlds and the bucket sizes
 * of real models: 1.1 MB of gradients. */
#include "tests/support/brg_test.h"
#include "tests/support/leaf_train.h"

static void test_leaves__one_hash_after_100_steps(void **state)
{
    (void)state;
    static const int worlds[] = {1, 2, 3, 4, 6, 8};
    static const size_t caps[] = {(size_t)64 << 10, (size_t)1 << 20,
                                  (size_t)25 << 20, SIZE_MAX};
    leaf_train how = {
        .n_steps = 100, .batch = 16, .n_leaves = 8, .n_hidden = 496};
    uint64_t expected = 0, hash;
    for (size_t c = 0; c < 4; c++)
        for (size_t i = 0; i < 6; i++) {
            how.cap = caps[c];
            assert_brg_ok(leaf_train_sim(worlds[i], i + 7 * c, &how, &hash));
            print_message("%d ranks, buckets of %zu: %016llx\n", worlds[i],
                          caps[c], (unsigned long long)hash);
            expected = expected ? expected : hash;
            assert_int_equal(hash, expected);
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_leaves__one_hash_after_100_steps),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
