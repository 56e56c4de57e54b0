/* SPDX-License-Identifier: Apache-2.0
 * For benchmarks under mpirun: plain MPI beside the library, and how fast two
 * cores can talk at all. All calls are collective. */
#ifndef BRG_BENCH_RANKS_H
#define BRG_BENCH_RANKS_H

#include <stddef.h>

#include <brigade/comm.h>

#include "bench/bench.h"
#include "bench/models.h"

/* Starts MPI and makes the library's group over it; fails unless there are
 * two ranks at least. */
brg_pg *bench_ranks_begin(int *argc, char ***argv);
void bench_ranks_end(brg_pg *pg);

void bench_barrier(void);
double bench_max(double value); /* over ranks */

/* Seconds of one step, from n; the slower rank counts. */
double bench_ranks_time(bench_model *m, int n_steps);
/* Passes of n steps of a and of b in turn, for so long. */
void bench_ranks_pairs(bench_pairs *pairs, bench_model *a, bench_model *b,
                       int n_steps, double seconds);
/* Each model, or the one that the program's first argument names. */
void bench_ranks_models(brg_pg *pg, int argc, char **argv,
                        void (*run)(brg_pg *pg, const char *model));

/* Two processes bounce a cache line: ns there and back. */
double bench_round_trip_ns(void);

/* The floor of a two-rank all-reduce: both ranks read their half of both
 * buffers, add, and write it to both, without waiting for each other. */
typedef struct bench_floor bench_floor;
bench_floor *bench_floor_create(size_t max_bytes);
void bench_floor_destroy(bench_floor *floor);
void bench_floor_run(const bench_floor *floor, size_t nbytes);

#endif
