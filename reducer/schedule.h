/* SPDX-License-Identifier: Apache-2.0
 * Inside of include/brigade/schedule.h: what is recorded of steps, and the
 * choice of buckets on all ranks. */
#ifndef BRG_REDUCER_SCHEDULE_H
#define BRG_REDUCER_SCHEDULE_H

#include <brigade/schedule.h>

#include "reducer/reducer.h"

/* Bytes and ns (73 years) below this: so that sums of a few fit. */
#define BRG__SCHEDULE_MOST ((uint64_t)1 << 61)

/* Sorts the values; the middle one, of an even number the upper. n > 0. */
uint64_t brg__median(uint64_t *values, size_t n);

/* Fills closes[place]: the parts that brg_schedule_choose takes. */
brg_status brg__schedule_parts(bool *closes, const brg_profile *profile,
                               const brg_link *link);

/* The buckets of a plan over the profile's gradients: limits and groups, or
 * closes. */
brg_status brg__schedule_plan(uint32_t *buckets, const brg_profile *profile,
                              const size_t limits[2], const bool *closes);

/* All-reduces that brg_link_measure has in flight at once. */
#define BRG__LINK_WORKS 4

/* Can buckets be chosen by measurement? If not: by size where the program left
 * it open, else BRG_ERR_UNSUPPORTED. */
brg_status brg__measured_check(brg_reducer *r);

/* Collective: measures and decides; arrivals and closes are filled alike on all
 * ranks. *is_settled: false if a rank has no memory for it. */
brg_status brg__measured_choose(brg_reducer *r, bool *is_settled);

/* True in *all if `mine` is on every rank. Collective. */
brg_status brg__reducer_agree(brg_reducer *r, bool mine, bool *all);

#endif
