/* SPDX-License-Identifier: Apache-2.0
 * brigade plan --simulate: what a step of a recorded model would take at other
 * world sizes, on other networks, with buckets by size and by choice. */
#include "tools/simulate.h"

#include <stdio.h>
#include <stdlib.h>

#include <brigade/schedule.h>

#include "tools/commands.h"

static void print_head(const brg_profile *p, const simulate_options *o)
{
    uint64_t nbytes = p->tail_nbytes;
    for (size_t i = 0; i < p->n; i++)
        nbytes += p->grads[i].nbytes;
    printf("%zu gradients, %.3f MB; a step without waits %.3f ms, its backward "
           "%.3f ms\n",
           p->n, 1e-6 * (double)nbytes, 1e-6 * (double)p->step_ns,
           1e-6 * (double)p->backward_ns);
    printf("%s, latency %g us, %g Gbit/s",
           o->algorithm == BRG_LINK_RING ? "ring"
                                         : "recursive halving and doubling",
           o->latency_us, o->gbit_per_s);
    if (o->host_gbit_per_s > 0)
        printf(", the computing thread %g Gbit/s", o->host_gbit_per_s);
    printf("\n");
    printf("%6s %10s | %7s %9s %9s %8s | %7s %9s %9s %8s\n", "ranks",
           "all-reduce", "by size", "exposed", "step", "speed-up", "chosen",
           "exposed", "step", "speed-up");
    printf("%6s %10s | %7s %9s %9s %8s | %7s %9s %9s %8s\n", "", "ms",
           "buckets", "ms", "ms", "", "buckets", "ms", "ms", "");
}

static void print_schedule(const brg_schedule *s, const brg_profile *p, int n)
{
    double step = (double)s->step_ns;
    printf(" | %7zu %9.3f %9.3f %8.2f", s->n_buckets,
           1e-6 * (double)s->exposed_ns, 1e-6 * step,
           step > 0 ? n * (double)p->step_ns / step : 0);
}

/* What the computing thread does for as many bytes as a rank sends. */
static brg_status add_busy(brg_link *link, const simulate_options *o, int n)
{
    brg_link host;
    if (o->host_gbit_per_s == 0)
        return BRG_OK;
    BRG_TRY(
        brg_link_of(&host, o->algorithm, n, 0, o->host_gbit_per_s * 1e9 / 8));
    for (size_t k = 0; k < link->n; k++)
        link->at[k].busy_ns = host.at[k].ns;
    return BRG_OK;
}

static brg_status print_row(const brg_profile *p, const simulate_options *o,
                            int n, uint32_t *buckets)
{
    brg_link link;
    brg_schedule by_size, chosen;
    BRG_TRY(brg_link_of(&link, o->algorithm, n, 1e3 * o->latency_us,
                        o->gbit_per_s * 1e9 / 8));
    BRG_TRY(add_busy(&link, o, n));
    BRG_TRY(brg_schedule_by_size(buckets, p, o->first, o->others));
    BRG_TRY(brg_schedule_predict(&by_size, p, &link, buckets));
    BRG_TRY(brg_schedule_choose(buckets, p, &link));
    BRG_TRY(brg_schedule_predict(&chosen, p, &link, buckets));
    printf("%6d %10.3f", n, 1e-6 * (double)chosen.transfer_ns);
    print_schedule(&by_size, p, n);
    print_schedule(&chosen, p, n);
    printf("\n");
    return BRG_OK;
}

/* The groups asked for instead of the profile's. */
static bool regroup(brg_profile_grad *grads, const brg_profile *p,
                    tool_groups *groups)
{
    for (size_t i = 0; i < p->n; i++) {
        grads[i] = p->grads[i];
        if (groups->n > 0)
            grads[i].group = tool_groups_join(groups, grads[i].name);
    }
    return tool_groups_check(groups);
}

static int print_table(const brg_profile *p, const simulate_options *o,
                       uint32_t *buckets)
{
    print_head(p, o);
    for (size_t k = 0; k < o->n_worlds; k++)
        if (print_row(p, o, o->worlds[k], buckets) != BRG_OK)
            return tool_fail("plan");
    return 0;
}

int tool_simulate(const char *path, simulate_options *o)
{
    brg_profile *p;
    int code = 1;
    if (brg_profile_read(&p, path) != BRG_OK)
        return tool_fail("plan");
    uint32_t *buckets = calloc(p->n, sizeof *buckets);
    brg_profile_grad *grads = calloc(p->n, sizeof *grads);
    if (!buckets || !grads) {
        fprintf(stderr, "brigade plan: out of memory\n");
    } else if (regroup(grads, p, &o->groups)) {
        brg_profile grouped = *p;
        grouped.grads = grads;
        code = print_table(&grouped, o, buckets);
    }
    free(grads);
    free(buckets);
    brg_profile_destroy(p);
    return code;
}
