/* SPDX-License-Identifier: Apache-2.0
 * brigade plan: the buckets of the tensors in a safetensors file; arguments of
 * its simulation (simulate.c). */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tools/commands.h"
#include "tools/simulate.h"

const char tool_plan_help[] =
    "usage: brigade plan [option...] <file.safetensors>\n"
    "       brigade plan --simulate [option...] <profile>\n"
    "Prints the buckets in which the gradients of the file's float tensors "
    "would travel,\nready from the last tensor to the first.\n"
    "  --first-bucket <bytes>  of the first bucket (1M)\n"
    "  --bucket <bytes>        of the others (25M; on GPUs 60M is used)\n"
    "  --group <pattern>       gradients with such names share a bucket; a "
    "group "
    "for\n"
    "                          each --group\n"
    "Bytes may end in K, M or G; a pattern is one of the shell's.\n\n"
    "With --simulate: what a step of the model that a trainer has profiled\n"
    "(--profile of the example trainers) would take at other world sizes and "
    "on other\nnetworks, with buckets by these sizes and with the best ones.\n"
    "  --simulate              the file is a profile\n"
    "  --ranks <n,n...>        world sizes (2,4,8,16,32,64)\n"
    "  --latency <us>          of a message (50)\n"
    "  --bandwidth <Gbit/s>    each way (1)\n"
    "  --host <Gbit/s>         at which the computing thread copies and adds "
    "what is\n"
    "                          sent; for a profile of one rank alone (no "
    "time)\n"
    "  --algorithm <name>      ring or halving (ring)\n";

typedef struct options {
    const char *path;
    bool is_simulated;
    bool has_network; /* options that only a simulation has */
    simulate_options s;
} options;

static bool parse_number(const char *text, double min, double *filled)
{
    char *end;
    *filled = strtod(text, &end);
    return end != text && *end == '\0' && *filled >= min && *filled < 1e12;
}

static bool parse_worlds(const char *text, simulate_options *s)
{
    for (s->n_worlds = 0; s->n_worlds < SIMULATE_MAX_WORLDS;) {
        char *end;
        long n = strtol(text, &end, 10);
        if (end == text || n < 1 || n > 1 << 20 || (*end && *end != ','))
            return false;
        s->worlds[s->n_worlds++] = (int)n;
        if (!*end)
            return true;
        text = end + 1;
    }
    return false;
}

static bool parse_algorithm(const char *text, brg_link_algorithm *filled)
{
    *filled = strcmp(text, "ring") == 0 ? BRG_LINK_RING : BRG_LINK_HALVING;
    return *filled == BRG_LINK_RING || strcmp(text, "halving") == 0;
}

/* What the option wants if its value is none of that; NULL: it was good, or
 * *is_known is false. */
static const char *parse_value(options *o, const char *name, const char *value,
                               bool *is_known)
{
    simulate_options *s = &o->s;
    *is_known = true;
    if (strcmp(name, "--bucket") == 0)
        return tool_parse_bytes(value, &s->others) ? NULL : "bytes";
    if (strcmp(name, "--first-bucket") == 0)
        return tool_parse_bytes(value, &s->first) ? NULL : "bytes";
    if (strcmp(name, "--group") == 0)
        return *value && tool_groups_add(&s->groups, value)
                   ? NULL
                   : "a pattern, for at most 64 groups,";
    o->has_network = true;
    if (strcmp(name, "--ranks") == 0)
        return parse_worlds(value, s) ? NULL : "numbers of ranks";
    if (strcmp(name, "--latency") == 0)
        return parse_number(value, 0, &s->latency_us) ? NULL : "microseconds";
    if (strcmp(name, "--bandwidth") == 0)
        return parse_number(value, 1e-9, &s->gbit_per_s) ? NULL : "Gbit/s";
    if (strcmp(name, "--host") == 0)
        return parse_number(value, 1e-9, &s->host_gbit_per_s) ? NULL : "Gbit/s";
    if (strcmp(name, "--algorithm") == 0)
        return parse_algorithm(value, &s->algorithm) ? NULL : "ring or halving";
    *is_known = false;
    return NULL;
}

static int parse_option(options *o, int argc, char **argv, int *i)
{
    bool is_known;
    char wanted[64];
    const char *name = argv[*i];
    if (strcmp(name, "--simulate") == 0) {
        o->is_simulated = true;
        return 0;
    }
    const char *value = *i + 1 < argc ? argv[*i + 1] : "";
    const char *what = parse_value(o, name, value, &is_known);
    if (!is_known)
        return tool_usage("plan", "unexpected argument", name);
    ++*i;
    if (!what)
        return 0;
    snprintf(wanted, sizeof wanted, "expected %s after", what);
    return tool_usage("plan", wanted, name);
}

static int parse(int argc, char **argv, options *o)
{
    for (int i = 1; i < argc; i++) {
        int code = 0;
        if (argv[i][0] == '-')
            code = parse_option(o, argc, argv, &i);
        else if (o->path)
            code = tool_usage("plan", "unexpected argument", argv[i]);
        else
            o->path = argv[i];
        if (code != 0)
            return code;
    }
    if (o->has_network && !o->is_simulated)
        return tool_usage("plan", "a network is simulated: missing",
                          "--simulate");
    return o->path ? 0 : tool_usage("plan", "missing argument", "file");
}

/* Gradients of the float tensors, in the file's order, and the groups that they
 * are in; the optimizer's state in a checkpoint has none. */
static size_t list_params(const brg_safetensors *file, brg_reducer_param *list,
                          uint32_t *groups, tool_groups *patterns)
{
    static const char state[] = "optim/";
    const brg_safetensors_info *info;
    size_t n = 0;
    bool is_checkpoint = brg_safetensors_metadata(file, "brigade.checkpoint");
    for (size_t i = 0; (info = brg_safetensors_at(file, i)); i++)
        if (brg_dtype_is_float(info->dtype) &&
            !(is_checkpoint &&
              strncmp(info->name, state, strlen(state)) == 0)) {
            groups[n] = tool_groups_join(patterns, info->name);
            list[n++] = (brg_reducer_param){
                .name = info->name,
                .count = info->nbytes / brg_dtype_size(info->dtype),
                .dtype = info->dtype};
        }
    return n;
}

static brg_status print_plan(const brg_reducer *reducer,
                             const brg_reducer_param *list)
{
    brg_reducer_stats stats;
    brg_reducer_get_stats(reducer, &stats);
    printf("%zu gradients in %zu buckets, %llu bytes a step\n", stats.n_params,
           stats.n_buckets, (unsigned long long)stats.n_bytes);
    for (size_t k = 0; k < stats.n_buckets; k++) {
        brg_bucket_info info;
        BRG_TRY(brg_reducer_get_bucket(reducer, k, &info));
        printf("bucket %zu: %s, %zu bytes\n", k, brg_dtype_name(info.dtype),
               info.nbytes);
        for (size_t i = 0; i < info.n_params; i++) {
            const brg_reducer_param *p = &list[info.params[i]];
            printf("  %s (%zu)\n", p->name, p->count);
        }
    }
    return BRG_OK;
}

static brg_status run(const options *o, const brg_reducer_param *list, size_t n,
                      const uint32_t *groups)
{
    brg_pg *pg = NULL;
    brg_reducer *reducer = NULL;
    brg_reducer_options how = BRG_REDUCER_OPTIONS_INIT;
    how.first_bucket_bytes = o->s.first;
    how.bucket_bytes = o->s.others;
    how.bucket_groups = o->s.groups.n > 0 ? groups : NULL;
    how.n_bucket_groups = o->s.groups.n;
    brg_status status;
    BRG_TRY_GOTO(brg_pg_create_self(&pg), out);
    BRG_TRY_GOTO(brg_reducer_create(&reducer, pg, list, n, &how), out);
    BRG_TRY_GOTO(print_plan(reducer, list), out);
out:
    brg_reducer_destroy(reducer);
    brg_pg_destroy(pg);
    return status;
}

static int plan_file(options *o, const brg_safetensors *file)
{
    int code = 1;
    size_t n = brg_safetensors_count(file);
    brg_reducer_param *list = calloc(n + 1, sizeof *list);
    uint32_t *groups = calloc(n + 1, sizeof *groups);
    if (!list || !groups) {
        fprintf(stderr, "brigade plan: out of memory\n");
    } else {
        n = list_params(file, list, groups, &o->s.groups);
        if (tool_groups_check(&o->s.groups))
            code = run(o, list, n, groups) == BRG_OK ? 0 : tool_fail("plan");
    }
    free(groups);
    free(list);
    return code;
}

int tool_plan(int argc, char **argv)
{
    options o = {.s = {.latency_us = 50,
                       .gbit_per_s = 1,
                       .worlds = {2, 4, 8, 16, 32, 64},
                       .n_worlds = 6}};
    brg_safetensors *file;
    int code = parse(argc, argv, &o);
    if (code != 0)
        return code;
    if (o.is_simulated)
        return tool_simulate(o.path, &o.s);
    if (brg_safetensors_open(&file, o.path) != BRG_OK)
        return tool_fail("plan");
    code = plan_file(&o, file);
    brg_safetensors_close(file);
    return code;
}
