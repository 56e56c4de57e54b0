/* SPDX-License-Identifier: Apache-2.0
 * A training step over a network that is the limit, with each communication
 * hook in turn beside a step without one: its time, and what this host sends.
 *
 * bench/hooks/run.sh makes the network and runs this. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <mpi.h>

#include <brigade/comm_hook.h>
#include <brigade/mpi.h>

#include "bench/bench.h"
#include "bench/models.h"

#define N_WARM_UP 3
#define N_ROUNDS 25

typedef enum kind { NONE, BF16, Q8, POWERSGD, N_KINDS } kind;

static const char *const kind_names[N_KINDS] = {"none", "bf16", "q8",
                                                "powersgd"};

typedef struct contest {
    bench_model models[N_KINDS];
    brg_comm_hook *hooks[N_KINDS];
    double times[N_KINDS][N_ROUNDS];
    double sent[N_KINDS][N_ROUNDS]; /* bytes */
} contest;

static bool is_first(void)
{
    int rank;
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    return rank == 0;
}

/* Bytes that have left this host so far, by any device but the loopback. */
static double bytes_sent(void)
{
    char line[512], name[64];
    double total = 0, sent;
    FILE *file = fopen("/proc/net/dev", "r");
    if (!file)
        bench_fail("no /proc/net/dev");
    while (fgets(line, sizeof line, file))
        if (sscanf(line, " %63[^:]: %*f %*f %*f %*f %*f %*f %*f %*f %lf", name,
                   &sent) == 2 &&
            strcmp(name, "lo") != 0)
            total += sent;
    (void)fclose(file);
    return total;
}

static void make_hook(brg_comm_hook **out, kind k)
{
    brg_powersgd_options options = BRG_POWERSGD_OPTIONS_INIT;
    options.rank = 4;
    *out = NULL;
    if (k == BF16)
        bench_must(brg_comm_hook_create_cast(out, BRG_DTYPE_BF16, true));
    if (k == Q8)
        bench_must(brg_comm_hook_create_q8(out, true));
    if (k == POWERSGD)
        bench_must(brg_comm_hook_create_powersgd(out, &options));
}

static void time_step(contest *c, kind k, int round)
{
    MPI_Barrier(MPI_COMM_WORLD);
    const double sent = bytes_sent(), start = bench_seconds();
    bench_model_step(&c->models[k]);
    double took = bench_seconds() - start;
    MPI_Allreduce(MPI_IN_PLACE, &took, 1, MPI_DOUBLE, MPI_MAX, MPI_COMM_WORLD);
    c->times[k][round < 0 ? 0 : round] = took;
    c->sent[k][round < 0 ? 0 : round] = bytes_sent() - sent;
}

static void print_kind(contest *c, kind k, const char *prefix)
{
    char name[40];
    double ratios[N_ROUNDS], values[N_ROUNDS];
    for (int i = 0; i < N_ROUNDS; i++)
        ratios[i] = c->times[NONE][i] / c->times[k][i];
    memcpy(values, c->times[k], sizeof values);
    bench_print(bench_name(prefix, kind_names[k]),
                1e3 * bench_median(values, N_ROUNDS), "ms");
    snprintf(name, sizeof name, "%s_sent", kind_names[k]);
    bench_print(bench_name(prefix, name),
                1e-6 * bench_median(c->sent[k], N_ROUNDS), "MB");
    if (k == NONE)
        return;
    snprintf(name, sizeof name, "%s_gain", kind_names[k]);
    bench_print(bench_name(prefix, name), bench_median(ratios, N_ROUNDS), "x");
}

static void run(brg_pg *pg, const char *model, uint64_t seed)
{
    static contest c;
    char prefix[40];
    for (int k = 0; k < N_KINDS; k++) {
        bench_model *m = &c.models[k];
        brg_ddp_options options = BRG_DDP_OPTIONS_INIT;
        make_hook(&c.hooks[k], (kind)k);
        options.hook = c.hooks[k];
        options.bucket_bytes = 1 << 20;
        bench_model_init(m, model, seed);
        bench_must(
            brg_ddp_create(&m->ddp, pg, m->p, m->n_params, NULL, 0, &options));
    }
    for (int round = -N_WARM_UP; round < N_ROUNDS; round++)
        for (int k = 0; k < N_KINDS; k++)
            time_step(&c, (kind)k, round);
    snprintf(prefix, sizeof prefix, "hooks.%s", model);
    for (int k = 0; k < N_KINDS; k++) {
        if (is_first())
            print_kind(&c, (kind)k, prefix);
        bench_model_deinit(&c.models[k]);
        brg_comm_hook_destroy(c.hooks[k]);
    }
}

int main(int argc, char **argv)
{
    brg_pg *pg;
    MPI_Init(&argc, &argv);
    bench_must(brg_pg_create(&pg, "mpi", NULL));
    const uint64_t seed = is_first() ? 1 : 2;
    run(pg, "cnn", seed);
    run(pg, "gpt", seed);
    brg_pg_destroy(pg);
    MPI_Finalize();
    return 0;
}
