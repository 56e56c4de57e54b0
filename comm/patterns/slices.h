/* SPDX-License-Identifier: Apache-2.0
 * Who owns which part of a range: pure arithmetic.
 *
 *   count elements of nbytes each, cut among n owners:
 *   |--- owner 0 ---|--- owner 1 ---|-- owner 2 --|
 *                   ^ multiples of a cache line, of a page where slices are
 *                     large, so that two owners never write one line */
#ifndef BRG_COMM_PATTERNS_SLICES_H
#define BRG_COMM_PATTERNS_SLICES_H

#include <stddef.h>

#define BRG__SLICE_LINE ((size_t)64)
#define BRG__SLICE_PAGE ((size_t)4096)

/* Elements [begin, end). */
typedef struct brg__slice {
    size_t begin;
    size_t end;
} brg__slice;

static inline size_t brg__slice_min(size_t a, size_t b)
{
    return a < b ? a : b;
}

/* The slice of owner i of n. Sizes differ by one unit at most, so late owners
 * may have nothing of a small range. nbytes divides 64. */
static inline brg__slice brg__slice_of(size_t count, size_t nbytes, size_t n,
                                       size_t i)
{
    size_t total = count * nbytes;
    size_t unit =
        total / n >= 16 * BRG__SLICE_PAGE ? BRG__SLICE_PAGE : BRG__SLICE_LINE;
    size_t n_units = total / unit + (total % unit != 0);
    size_t each = n_units / n, more = n_units % n;
    size_t first = i * each + brg__slice_min(i, more);
    size_t last = first + each + (i < more);
    size_t per_unit = unit / nbytes;
    return (brg__slice){brg__slice_min(first * per_unit, count),
                        brg__slice_min(last * per_unit, count)};
}

/* The k-th piece of at most `limit` elements; empty past the end. */
static inline brg__slice brg__piece_of(size_t count, size_t limit, size_t k)
{
    size_t begin = brg__slice_min(k * limit, count);
    return (brg__slice){begin, begin + brg__slice_min(limit, count - begin)};
}

static inline size_t brg__n_pieces(size_t count, size_t limit)
{
    return count / limit + (count % limit != 0);
}

#endif
