/* SPDX-License-Identifier: Apache-2.0
 * The other half of brigade plan. */
#ifndef TOOLS_SIMULATE_H
#define TOOLS_SIMULATE_H

#include <brigade/schedule.h>

#include "tools/groups.h"

#define SIMULATE_MAX_WORLDS 32

typedef struct simulate_options {
    size_t first; /* bytes of buckets by size */
    size_t others;
    tool_groups groups; /* none: those of the profile */
    double latency_us;
    double gbit_per_s;
    double host_gbit_per_s; /* 0: its work takes no time */
    brg_link_algorithm algorithm;
    int worlds[SIMULATE_MAX_WORLDS];
    size_t n_worlds;
} simulate_options;

/* Reads the profile and prints the table; the exit code. */
int tool_simulate(const char *path, simulate_options *options);

#endif
