/* SPDX-License-Identifier: Apache-2.0
 * The binary tree of the reproducible sum: pure arithmetic.
 *
 *   leaves     0  1  2  3  4  5  6        a node covers [i << l, (i + 1) << l),
 *              \__/  \__/  \__/  |        cut at the number of leaves; one
 *                \____/      \___/        without a right half is its left
 *                    \_________/
 *
 * The tree depends on the number of leaves alone. A rank that holds the leaves
 * [begin, end) sums the nodes that lie inside its run: these are its parts, and
 * no sum of another shape is ever made. Parts of all ranks, put side by side
 * in the order of the leaves, are summed on by the same rule, in a stack: a
 * part is pushed, then the two topmost are added while they are the halves of
 * a node. */
#ifndef BRG_COMM_PATTERNS_TREE_H
#define BRG_COMM_PATTERNS_TREE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define BRG__TREE_MAX_LEAVES 4096
#define BRG__TREE_MAX_PARTS 24 /* of one run: two of each size below */
#define BRG__TREE_MAX_DEPTH 26 /* of a stack */

/* Leaves [begin, end). */
typedef struct brg__run {
    uint32_t begin;
    uint32_t end;
} brg__run;

/* The run of rank r of n. Runs differ by one leaf at most. */
static inline brg__run brg__run_of(uint32_t n_leaves, int n, int r)
{
    uint64_t leaves = n_leaves, ranks = (uint64_t)n, rank = (uint64_t)r;
    return (brg__run){(uint32_t)(leaves * rank / ranks),
                      (uint32_t)(leaves * (rank + 1) / ranks)};
}

typedef struct brg__tree_stack {
    uint32_t n_leaves;
    uint32_t n;
    uint32_t max; /* the most that n was */
    brg__run at[BRG__TREE_MAX_DEPTH];
} brg__tree_stack;

static inline bool brg__tree_are_halves(uint32_t n_leaves, brg__run left,
                                        brg__run right)
{
    uint32_t size = left.end - left.begin, whole = left.begin + 2 * size;
    return left.end == right.begin && left.begin % (2 * size) == 0 &&
           right.end == (whole < n_leaves ? whole : n_leaves);
}

/* Pushes a node, and returns how many additions of the two topmost follow. */
static inline uint32_t brg__tree_push(brg__tree_stack *s, brg__run node)
{
    uint32_t n_merges = 0;
    s->at[s->n++] = node;
    s->max = s->n > s->max ? s->n : s->max;
    while (s->n > 1 && brg__tree_are_halves(s->n_leaves, s->at[s->n - 2],
                                            s->at[s->n - 1])) {
        s->at[s->n - 2].end = s->at[s->n - 1].end;
        s->n--;
        n_merges++;
    }
    return n_merges;
}

/* All leaves of a run, one by one; what is left are its parts. */
static inline brg__tree_stack brg__tree_sum_run(uint32_t n_leaves, brg__run run)
{
    brg__tree_stack s = {.n_leaves = n_leaves};
    for (uint32_t i = run.begin; i < run.end; i++)
        (void)brg__tree_push(&s, (brg__run){i, i + 1});
    return s;
}

/* The end of the largest node that begins at `begin` and ends by `end`. */
static inline uint32_t brg__tree_node_end(uint32_t n_leaves, uint32_t begin,
                                          uint32_t end)
{
    uint32_t size = 1;
    while (begin % (2 * size) == 0 && begin + size < end) {
        uint32_t whole = begin + 2 * size;
        if ((whole < n_leaves ? whole : n_leaves) > end)
            break;
        size *= 2;
    }
    return begin + size < end ? begin + size : end;
}

/* The same parts without the way to them: the largest nodes, from the left. */
static inline brg__tree_stack brg__tree_parts(uint32_t n_leaves, brg__run run)
{
    brg__tree_stack s = {.n_leaves = n_leaves};
    for (uint32_t at = run.begin; at < run.end; at = s.at[s.n++].end)
        s.at[s.n] = (brg__run){at, brg__tree_node_end(n_leaves, at, run.end)};
    s.max = s.n;
    return s;
}

/* How many parts rank r of n has. */
static inline uint32_t brg__tree_n_parts(uint32_t n_leaves, int n, int r)
{
    return brg__tree_parts(n_leaves, brg__run_of(n_leaves, n, r)).n;
}

static inline uint32_t brg__tree_max_parts(uint32_t n_leaves, int n)
{
    uint32_t most = 0;
    for (int r = 0; r < n; r++) {
        uint32_t n_parts = brg__tree_n_parts(n_leaves, n, r);
        most = n_parts > most ? n_parts : most;
    }
    return most;
}

/* Fills, for every part of every rank in order, how many additions follow it;
 * n_parts gets the parts of each rank. Both have room for all: n and
 * n * BRG__TREE_MAX_PARTS. Returns the number of parts. */
static inline size_t brg__tree_plan(uint32_t n_leaves, int n, uint8_t *n_parts,
                                    uint8_t *merges)
{
    brg__tree_stack all = {.n_leaves = n_leaves};
    size_t total = 0;
    for (int r = 0; r < n; r++) {
        brg__tree_stack own =
            brg__tree_parts(n_leaves, brg__run_of(n_leaves, n, r));
        n_parts[r] = (uint8_t)own.n;
        for (uint32_t k = 0; k < own.n; k++)
            merges[total++] = (uint8_t)brg__tree_push(&all, own.at[k]);
    }
    return total;
}

#endif
