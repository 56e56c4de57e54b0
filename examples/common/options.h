/* SPDX-License-Identifier: Apache-2.0
 * Options that all trainers share. A trainer's own argp parser has
 * options_argp as a child and hands it a train_options, filled with its
 * defaults, as input. */
#ifndef EXAMPLES_COMMON_OPTIONS_H
#define EXAMPLES_COMMON_OPTIONS_H

#include <argp.h>
#include <stdbool.h>
#include <stdint.h>

#include <brigade/reducer.h>

typedef struct train_options {
    const char *data;
    const char *backend; /* NULL: mpi if started by mpirun, else self */
    const char *device;  /* "cpu", "cuda", "cuda:1"; NULL: cpu */
    const char *checkpoint;
    const char *resume;
    const char *log_losses;
    const char *metrics;
    const char *trace; /* folder */
    const char *profile;
    const char *optimizer; /* "sgd" or "adamw" */
    int64_t epochs;
    int64_t batch;      /* all ranks together */
    int64_t steps;      /* 0: all of the epochs */
    int64_t eval_every; /* steps; 0: at the end of epochs only */
    int64_t loss_every; /* steps; on a GPU the host waits for the loss */
    int64_t seed;
    int64_t leaves; /* of the reproducible reduction; 0: the default one */
    double lr;
    bool is_reproducible;
    bool is_eval_only;
    bool is_compiled;      /* backward by a captured plan */
    bool is_step_compiled; /* or the whole step, */
    bool is_fused;         /* with kernels of its own */
    bool is_quiet;         /* no progress */
    brg_bucket_choice buckets;
} train_options;

extern const struct argp options_argp;

/* Parses; on a bad argument, --help or --version the process ends. Under
 * mpirun only the first rank prints. */
void options_parse(const struct argp *argp, int argc, char **argv, void *input);

/* The value of an option, or the end of the process with a message. */
int64_t options_int(const struct argp_state *state, const char *name,
                    const char *text, int64_t min, int64_t max);
double options_number(const struct argp_state *state, const char *name,
                      const char *text, double min, double max);
/* `names`: the allowed values, NULL at the end; returns the one given. */
const char *options_choice(const struct argp_state *state, const char *name,
                           const char *text, const char *const *names);

#endif
