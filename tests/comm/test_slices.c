/* SPDX-License-Identifier: Apache-2.0
 * Slices and pieces of ranges cover them once, in order, aligned. */
#include "comm/patterns/slices.h"
#include "tests/support/brg_test.h"

static void check_cover(size_t count, size_t nbytes, size_t n)
{
    size_t at = 0;
    for (size_t i = 0; i < n; i++) {
        brg__slice s = brg__slice_of(count, nbytes, n, i);
        assert_int_equal(s.begin, at);
        assert_true(s.end >= s.begin && s.end <= count);
        assert_true(s.begin == count ||
                    s.begin * nbytes % BRG__SLICE_LINE == 0);
        at = s.end;
    }
    assert_int_equal(at, count);
}

static void test_slices__cover_the_range_once(void **state)
{
    (void)state;
    static const size_t counts[] = {0, 1, 15, 16, 17, 1000, 65536, 1234567};
    static const size_t sizes[] = {1, 2, 4, 8};
    for (size_t c = 0; c < 8; c++)
        for (size_t s = 0; s < 4; s++)
            for (size_t n = 1; n <= 9; n++)
                check_cover(counts[c], sizes[s], n);
}

static void test_slices__large_ones_begin_on_pages(void **state)
{
    (void)state;
    brg__slice s = brg__slice_of((size_t)1 << 20, 4, 3, 1);
    assert_int_equal(s.begin * 4 % BRG__SLICE_PAGE, 0);
    assert_int_equal(s.end * 4 % BRG__SLICE_PAGE, 0);
}

static void test_slices__are_even(void **state)
{
    (void)state;
    for (size_t n = 1; n <= 8; n++)
        for (size_t i = 0; i < n; i++) {
            brg__slice s = brg__slice_of(100000, 4, n, i);
            size_t share = 100000 / n; /* give or take a page of f32 */
            assert_in_range(s.end - s.begin, share - 1024, share + 1024);
        }
}

static void test_pieces__cover_the_range_once(void **state)
{
    (void)state;
    for (size_t count = 0; count < 50; count++)
        for (size_t limit = 1; limit < 12; limit++) {
            size_t at = 0, n = brg__n_pieces(count, limit);
            for (size_t k = 0; k < n; k++) {
                brg__slice s = brg__piece_of(count, limit, k);
                assert_int_equal(s.begin, at);
                assert_true(s.end > s.begin && s.end - s.begin <= limit);
                at = s.end;
            }
            assert_int_equal(at, count);
            brg__slice past = brg__piece_of(count, limit, n);
            assert_int_equal(past.begin, past.end);
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_slices__cover_the_range_once),
        cmocka_unit_test(test_slices__large_ones_begin_on_pages),
        cmocka_unit_test(test_slices__are_even),
        cmocka_unit_test(test_pieces__cover_the_range_once),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
