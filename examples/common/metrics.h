/* SPDX-License-Identifier: Apache-2.0
 * A file of comma-separated values, one line a step, for spreadsheets and
 * plots. */
#ifndef EXAMPLES_COMMON_METRICS_H
#define EXAMPLES_COMMON_METRICS_H

#include <stdint.h>

#include <brigade/status.h>

typedef struct metrics metrics;

typedef struct metrics_row {
    int64_t step;
    int64_t epoch;
    double loss;
    double lr;
    double step_ms;
    double wait_ms; /* of it, for other ranks */
} metrics_row;

/* `path` NULL: *out is NULL, to which writing does nothing. A file that is
 * there is replaced; the head line is written at once. */
brg_status metrics_open(metrics **out, const char *path);

/* Each row reaches the file at once, so that a run can be watched. */
brg_status metrics_write(metrics *m, const metrics_row *row);

void metrics_close(metrics *m);

#endif
