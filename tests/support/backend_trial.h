/* SPDX-License-Identifier: Apache-2.0
 * One collective on data that each rank can compute of every other, and what it
 * has to give: the reference of the backends' contract (backend_suite.c). */
#ifndef BRG_TESTS_SUPPORT_BACKEND_TRIAL_H
#define BRG_TESTS_SUPPORT_BACKEND_TRIAL_H

#include <brigade/ext/backend.h>

#define GUARD 64
#define GUARD_BYTE 0xA5

typedef struct suite {
    brg_pg *pg;
    int rank;
    int n;
    int node_size;
    unsigned char *send; /* room for the largest, each */
    unsigned char *recv;
    unsigned char *expected;
    const char *memory;
} suite;

/* One collective to check. */
typedef struct trial {
    brg_coll coll;
    size_t count;
    brg_dtype dtype;
    brg_reduce_op op;
    int root;
    bool in_place;
    uint64_t salt; /* makes every trial's data its own */
} trial;

/* Elements that a rank gives and gets. */
size_t trial_n_send(const suite *s, const trial *t);
size_t trial_n_recv(const suite *s, const trial *t);

/* `expected` = the rank's first n elements. */
void trial_values(const suite *s, const trial *t, int rank, size_t n);
/* The same of this rank, into `at` besides. */
void trial_fill(const suite *s, const trial *t, unsigned char *at, size_t n);
/* `expected` = what recv must hold. */
void trial_expect(const suite *s, const trial *t);

/* Where send and recv lie; in-place collectives share. */
void trial_place(const suite *s, const trial *t, unsigned char **send,
                 unsigned char **recv);
brg_status trial_start(const suite *s, const trial *t, brg_work **work,
                       void *recv, void *send);
/* Fails unless recv is as expected, and untouched behind. */
brg_status trial_compare(const suite *s, const trial *t,
                         const unsigned char *recv);

/* All of it, for one collective. */
brg_status trial_run(const suite *s, const trial *t);

#endif
