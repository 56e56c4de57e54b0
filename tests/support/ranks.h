/* SPDX-License-Identifier: Apache-2.0
 * For code that runs on every rank of a world: checks that return a status
 * (only the main thread may assert), and gradients that every rank can
 * compute for every other. */
#ifndef BRG_TESTS_SUPPORT_RANKS_H
#define BRG_TESTS_SUPPORT_RANKS_H

#include <stdint.h>

#include <brigade/comm.h>

#define RANK_CHECK(cond, ...)                                                  \
    do {                                                                       \
        if (!(cond))                                                           \
            return brg_error_set(BRG_ERR_INTERNAL, __FILE__, __LINE__,         \
                                 __VA_ARGS__);                                 \
    } while (0)

/* The expression must fail with this code and a message that holds `text`. */
#define RANK_FAILS(expr, code, text)                                           \
    BRG_TRY(ranks_expect((expr), (code), (text), #expr, __LINE__))

brg_status ranks_expect(brg_status status, brg_status code, const char *text,
                        const char *expr, int line);

/* The sizes of world that every test should try. */
extern const int ranks_worlds[6];
#define N_RANKS_WORLDS 6
/* Runs fn in the simulated world of each of them that has at least `smallest`
 * ranks, with options (or NULL); fails the test as brg_sim_run does. */
void ranks_in_worlds(int smallest, const brg_sim_options *options,
                     brg_sim_rank_fn fn, void *user);

/* Element k of gradient i of this rank in this step, in [-1, 1): a multiple
 * of 1/64, so that sums of a few hundred are exact in f32. */
double ranks_gradient(int rank, int step, size_t i, size_t k);
/* Its average over the ranks [0, n). */
double ranks_average(int n, int step, size_t i, size_t k);

/* A number as an element of any float dtype, and back. */
void ranks_store(void *data, size_t k, brg_dtype dtype, double value);
double ranks_load(const void *data, size_t k, brg_dtype dtype);
/* What rounding to the dtype may cost, relatively. */
double ranks_epsilon(brg_dtype dtype);

/* All ranks hold the same bytes. Collective. */
brg_status ranks_same_bits(brg_pg *pg, const void *data, size_t nbytes);

/* A training, whose result is a hash, on the ranks of a simulated world. */
typedef brg_status (*ranks_training)(brg_pg *pg, const void *how,
                                     uint64_t *hash);
brg_status ranks_sim_training(int n, const brg_sim_options *options,
                              ranks_training train, const void *how,
                              uint64_t *hash);

/* Calls share(user, 0..n) on threads of their own, and on this one meanwhile
 * (or NULL). Fails as one of them does; a message is this thread's only. */
#define RANKS_MAX_THREADS 8
brg_status ranks_by_threads(size_t n, brg_status (*share)(void *user, size_t k),
                            brg_status (*meanwhile)(void *user), void *user);

/* Calls of malloc and its kin by this program so far; 0 where it cannot be
 * counted (sanitizers). */
uint64_t ranks_n_mallocs(void);

#endif
