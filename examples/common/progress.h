/* SPDX-License-Identifier: Apache-2.0
 * What a run shows of itself: one line that is rewritten on a terminal, a
 * line every few seconds elsewhere; and the times that the result reports.
 * Every rank measures, rank 0 prints. */
#ifndef EXAMPLES_COMMON_PROGRESS_H
#define EXAMPLES_COMMON_PROGRESS_H

#include <stdbool.h>
#include <stdint.h>

#define PROGRESS_WARM_UP 2 /* steps left out of the means */

typedef struct progress {
    bool is_shown;
    bool is_terminal;
    bool is_line_open; /* a line without its end is on the terminal */
    int64_t n_steps;   /* of the whole run */
    int64_t step;
    int64_t n_samples_per_step;
    int64_t n_measured;
    uint64_t step_ns; /* of the steps of this run */
    uint64_t wait_ns; /* of which waiting for other ranks */
    uint64_t started_ns;
    uint64_t shown_ns;
    double recent_ns; /* a step, smoothed */
    double recent_wait;
} progress;

uint64_t now_ns(void);

void progress_begin(progress *p, bool is_shown, int64_t first_step,
                    int64_t n_steps, int64_t n_samples_per_step);

/* A step that took `step_ns`, of which `wait_ns` waiting, has ended. */
void progress_step(progress *p, uint64_t step_ns, uint64_t wait_ns, double loss,
                   int64_t epoch);

/* Prints a line of its own, below what is shown. */
void progress_line(progress *p, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

void progress_end(progress *p);

/* Mean over the measured steps. */
double progress_step_ms(const progress *p);
double progress_wait_share(const progress *p);

#endif
