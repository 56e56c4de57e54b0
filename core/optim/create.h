/* SPDX-License-Identifier: Apache-2.0
 * What the rules' create functions share. */
#ifndef BRG_CORE_OPTIM_CREATE_H
#define BRG_CORE_OPTIM_CREATE_H

#include "core/base/error.h"
#include "core/optim/optim.h"

/* A copy of `blank` (rule and options) with slots and state for these ranges of
 * the trained tensors of `params` (NULL: all). */
brg_status brg__optim_create(brg_optim **out, const brg_optim *blank,
                             const brg_params *params,
                             const brg_optim_range *ranges, double lr,
                             double weight_decay, int decay_min_ndim);

/* Puts the slots in order, and makes and lists the state of all. */
brg_status brg__optim_make_state(brg_optim *optim);

#endif
