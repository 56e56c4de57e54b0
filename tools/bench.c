/* SPDX-License-Identifier: Apache-2.0
 * brigade bench: all-reduces of this machine, from memory of the group, as a
 * bucket's are. Run it under mpirun for more than one rank. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "tools/commands.h"

const char tool_bench_help[] =
    "usage: [mpirun -n <ranks>] brigade bench [option...]\n"
    "Times all-reduces of f32 in memory of the group, as buckets are.\n"
    "  --min <bytes>     smallest (4K)\n"
    "  --max <bytes>     largest (64M)\n"
    "  --rounds <n>      repetitions of each, median taken (15)\n"
    "  --csv             comma-separated, with a head line\n"
    "Bytes may end in K, M or G.\n";

typedef struct options {
    size_t min;
    size_t max;
    size_t rounds;
    bool csv;
} options;

static int parse(int argc, char **argv, options *o)
{
    static const struct {
        const char *name;
        size_t offset;
    } sizes[] = {{"--min", offsetof(options, min)},
                 {"--max", offsetof(options, max)},
                 {"--rounds", offsetof(options, rounds)}};
    for (int i = 1; i < argc; i++) {
        size_t *value = NULL;
        for (size_t k = 0; k < 3; k++)
            if (strcmp(argv[i], sizes[k].name) == 0)
                value = (size_t *)(void *)((char *)o + sizes[k].offset);
        if (strcmp(argv[i], "--csv") == 0)
            o->csv = true;
        else if (!value)
            return tool_usage("bench", "unexpected argument", argv[i]);
        else if (++i == argc || !tool_parse_bytes(argv[i], value))
            return tool_usage("bench", "expected a number after", argv[i - 1]);
    }
    if (o->min > o->max || o->rounds > 1000)
        return tool_usage(
            "bench", "out of range:", o->min > o->max ? "--min" : "--rounds");
    return 0;
}

static double seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static brg_status wait_for(brg_status status, brg_work *work)
{
    return status == BRG_OK ? brg_work_wait(work) : status;
}

/* The slowest rank's time of one all-reduce. */
static brg_status time_once(brg_pg *pg, float *data, size_t count,
                            double *filled)
{
    brg_work *work = NULL;
    brg_status status = brg_barrier(pg, &work);
    BRG_TRY(wait_for(status, work));
    double start = seconds();
    status =
        brg_all_reduce(pg, &work, data, count, BRG_DTYPE_F32, BRG_REDUCE_AVG);
    BRG_TRY(wait_for(status, work));
    *filled = seconds() - start;
    status =
        brg_all_reduce(pg, &work, filled, 1, BRG_DTYPE_F64, BRG_REDUCE_MAX);
    return wait_for(status, work);
}

static brg_status run_size(brg_pg *pg, const options *o, float *data,
                           size_t nbytes)
{
    double times[1000], ignored;
    for (int warm = 0; warm < 3; warm++)
        BRG_TRY(time_once(pg, data, nbytes / sizeof *data, &ignored));
    for (size_t k = 0; k < o->rounds; k++)
        BRG_TRY(time_once(pg, data, nbytes / sizeof *data, &times[k]));
    qsort(times, o->rounds, sizeof *times, compare);
    double median = times[o->rounds / 2];
    if (brg_pg_rank(pg) == 0)
        printf(o->csv ? "%zu,%.3f,%.3f,%.4f\n" : "%12zu %14.3f %14.3f %10.4f\n",
               nbytes, 1e6 * median, 1e6 * times[0],
               1e-9 * (double)nbytes / median);
    return BRG_OK;
}

static brg_status run(brg_pg *pg, const options *o)
{
    void *data;
    BRG_TRY(brg_pg_alloc(pg, &data, o->max));
    if (brg_pg_rank(pg) == 0 && o->csv)
        printf("bytes,median_us,best_us,gb_per_s\n");
    else if (brg_pg_rank(pg) == 0)
        printf("%d ranks over %s\n%12s %14s %14s %10s\n", brg_pg_world_size(pg),
               brg_pg_backend_name(pg), "bytes", "median us", "best us",
               "GB/s");
    brg_status status = BRG_OK;
    for (size_t n = o->min; n <= o->max && status == BRG_OK; n *= 4)
        status = run_size(pg, o, data, n);
    brg_pg_free(pg, data);
    return status;
}

int tool_bench(int argc, char **argv)
{
    options o = {.min = 4096, .max = (size_t)64 << 20, .rounds = 15};
    brg_pg *pg = NULL;
    int code = parse(argc, argv, &o);
    if (code != 0)
        return code;
    brg_status status = brg_pg_create(&pg, "auto", NULL);
    if (status == BRG_OK)
        status = run(pg, &o);
    code = status == BRG_OK ? 0 : tool_fail("bench");
    brg_pg_destroy(pg);
    return code;
}
