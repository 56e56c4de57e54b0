/* SPDX-License-Identifier: Apache-2.0
 * brigade plan: the buckets of the tensors in a safetensors file. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tools/commands.h"

static const char help[] =
    "usage: brigade plan [option...] <file.safetensors>\n"
    "Prints the buckets in which the gradients of the file's float tensors "
    "would travel,\nready from the last tensor to the first.\n"
    "  --first-bucket <bytes>  of the first bucket (1M)\n"
    "  --bucket <bytes>        of the others (25M)\n"
    "Bytes may end in K, M or G.\n";

typedef struct options {
    const char *path;
    size_t first;
    size_t others;
} options;

static int parse(int argc, char **argv, options *o)
{
    for (int i = 1; i < argc; i++) {
        size_t *nbytes = strcmp(argv[i], "--bucket") == 0         ? &o->others
                         : strcmp(argv[i], "--first-bucket") == 0 ? &o->first
                                                                  : NULL;
        if (nbytes) {
            if (++i == argc || !tool_parse_bytes(argv[i], nbytes))
                return tool_usage("plan", "expected bytes after",
                                  argv[i - (i < argc)]);
        } else if (argv[i][0] == '-' || o->path) {
            return tool_usage("plan", "unexpected argument", argv[i]);
        } else {
            o->path = argv[i];
        }
    }
    return o->path ? 0 : tool_usage("plan", "missing argument", "file");
}

/* Gradients of the float tensors, in the file's order. */
static size_t list_params(const brg_safetensors *file, brg_reducer_param *list)
{
    const brg_safetensors_info *info;
    size_t n = 0;
    for (size_t i = 0; (info = brg_safetensors_at(file, i)); i++)
        if (brg_dtype_is_float(info->dtype))
            list[n++] = (brg_reducer_param){
                .name = info->name,
                .count = info->nbytes / brg_dtype_size(info->dtype),
                .dtype = info->dtype};
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

static brg_status run(const options *o, const brg_safetensors *file,
                      brg_reducer_param *list)
{
    brg_pg *pg = NULL;
    brg_reducer *reducer = NULL;
    brg_reducer_options how = BRG_REDUCER_OPTIONS_INIT;
    how.first_bucket_bytes = o->first;
    how.bucket_bytes = o->others;
    brg_status status;
    BRG_TRY_GOTO(brg_pg_create_self(&pg), out);
    BRG_TRY_GOTO(
        brg_reducer_create(&reducer, pg, list, list_params(file, list), &how),
        out);
    BRG_TRY_GOTO(print_plan(reducer, list), out);
out:
    brg_reducer_destroy(reducer);
    brg_pg_destroy(pg);
    return status;
}

int tool_plan(int argc, char **argv)
{
    options o = {0};
    brg_safetensors *file;
    if (argc > 1 && strcmp(argv[1], "--help") == 0) {
        printf("%s", help);
        return 0;
    }
    int code = parse(argc, argv, &o);
    if (code != 0)
        return code;
    if (brg_safetensors_open(&file, o.path) != BRG_OK)
        return tool_fail("plan");
    size_t n = brg_safetensors_count(file);
    brg_reducer_param *list = calloc(n + 1, sizeof *list);
    if (!list)
        fprintf(stderr, "brigade plan: out of memory\n");
    code = list && run(&o, file, list) == BRG_OK ? 0 : 1;
    if (list && code != 0)
        tool_fail("plan");
    free(list);
    brg_safetensors_close(file);
    return code;
}
