/* SPDX-License-Identifier: Apache-2.0
 * The contract that every backend must pass, written against the public API.
 *
 * Every rank runs the same checks and returns a status, so that the suite
 * serves ranks that are threads as well as ranks that are processes. Results
 * are compared with a reference that each rank computes alone, element by
 * element in rank order, from the inputs of all ranks. */
#ifndef BRG_TESTS_SUPPORT_BACKEND_SUITE_H
#define BRG_TESTS_SUPPORT_BACKEND_SUITE_H

#include <brigade/comm.h>

/* Everything. `node_size`: sums run within nodes of so many ranks first, the
 * last one of what remains; 0: all ranks are on one node. */
brg_status brg_suite_run(brg_pg *pg, int node_size);

/* For groups whose memory is not the host's: all but that memory. */
brg_status brg_suite_run_on_host(brg_pg *pg);

/* The reproducible sum: every element as the definition of the tree has it,
 * and so alike for every world size (leaves_suite.c). */
brg_status brg_suite_leaves(brg_pg *pg);
/* For groups whose memory is not the host's. */
brg_status brg_suite_leaves_on_host(brg_pg *pg);

/* A steady start and wait asks for no memory. */
brg_status brg_suite_steady_state(brg_pg *pg);

/* A call of one rank that differs fails on every rank (world size > 1). The
 * group is dead afterwards. `which`: 0 count, 1 dtype, 2 op, 3 collective. */
brg_status brg_suite_mismatch(brg_pg *pg, int which, int odd_rank);

/* Fails unless `status` is `code` and the message holds `text`. */
brg_status brg_suite_expect(brg_status status, brg_status code,
                            const char *text, const char *what);

#endif
