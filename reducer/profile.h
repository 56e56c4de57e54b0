/* SPDX-License-Identifier: Apache-2.0
 * What is recorded of steps, and profiles made of it.
 *
 *     begin        a step's first gradient: how long was it since the last one
 *     gradient     one look at the clock
 *     end          a good step is a row; another is recorded over */
#ifndef BRG_REDUCER_PROFILE_H
#define BRG_REDUCER_PROFILE_H

#include "reducer/schedule.h"

/* Room for n_steps; recording begins when is_on is set. */
brg_status brg__recording_prepare(brg_reducer *r, size_t n_steps);
void brg__recording_deinit(brg_reducer *r);

void brg__recording_begin(brg_reducer *r);
void brg__recording_gradient(brg_reducer *r, size_t i);
void brg__recording_end(brg_reducer *r);

/* Medians by parameter, then that of the backward's end; n_params + 1. Of one
 * step at least. */
void brg__recording_medians(const brg_reducer *r, int64_t *ready_ns);
/* Median of a step less its wait; 0: not known yet. */
uint64_t brg__recording_step_ns(const brg_reducer *r);

/* Its memory is one block. */
typedef struct brg__profile {
    brg_profile public;
    char *names;
    brg_profile_grad grads[];
} brg__profile;

/* n gradients, all zero, and room for their names. */
brg_status brg__profile_new(brg__profile **out, size_t n, size_t names_size);

/* Of those times: the order of the parameters, and the profile. */
brg_status brg__profile_order(const brg_reducer *r, const int64_t *ready_ns,
                              uint32_t *order);
brg_status brg__profile_make(brg__profile **out, const brg_reducer *r,
                             const int64_t *ready_ns, const uint32_t *order);

#endif
