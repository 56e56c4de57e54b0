/* SPDX-License-Identifier: Apache-2.0
 * The leaves of the reproducible sum, on the side of one rank. */
#ifndef BRG_COMM_LEAVES_H
#define BRG_COMM_LEAVES_H

#include <brigade/comm.h>

/* BRG_ERR_ARG unless so many leaves can be shared by so many ranks. */
brg_status brg__leaves_check(uint32_t n_leaves, int rank, int world_size);

/* The i-th leaf of the run is in slot *top: how many times the topmost slot is
 * to be added to the one below it, which is the topmost then. */
uint32_t brg__leaf_n_adds(const brg_leaf_run *run, uint32_t i, uint32_t *top);

#endif
