/* SPDX-License-Identifier: Apache-2.0
 * A program outside the project, linked to an installed copy of the library.
 * An argument names a component to load at run time, and to sum over if it is
 * one of communication. */
#include <stdio.h>
#include <string.h>

#include <brigade/comm.h>
#include <brigade/device.h>
#include <brigade/ext/backend.h>
#include <brigade/runtime.h>
#include <brigade/version.h>

static int failed(const char *what)
{
    fprintf(stderr, "%s: %s\n", what, brg_error_message());
    return 1;
}

static int sum_over_ranks(const char *backend)
{
    brg_pg *pg = NULL;
    brg_work *work = NULL;
    if (brg_pg_create(&pg, backend, NULL) != BRG_OK)
        return failed("brg_pg_create");
    int n = brg_pg_world_size(pg);
    float x = (float)(brg_pg_rank(pg) + 1);
    if (brg_all_reduce(pg, &work, &x, 1, BRG_DTYPE_F32, BRG_REDUCE_SUM) !=
            BRG_OK ||
        brg_work_wait(work) != BRG_OK)
        return failed("brg_all_reduce");
    brg_pg_destroy(pg);
    printf("sum over %d ranks of %s: %g\n", n, backend, (double)x);
    return x == (float)(n * (n + 1) / 2) ? 0 : 1;
}

static int load_device(const char *name)
{
    brg_status status = brg_device_load(name);
    if (status == BRG_ERR_DEVICE)
        printf("no %s: %s\n", name, brg_error_message());
    return status == BRG_OK || status == BRG_ERR_DEVICE
               ? 0
               : failed("brg_device_load");
}

int main(int argc, char **argv)
{
    printf("%s", brg_build_info());
    if (strcmp(brg_version(), BRG_VERSION) != 0) {
        fprintf(stderr, "headers of %s, library %s\n", BRG_VERSION,
                brg_version());
        return 1;
    }
    if (argc > 1 && strcmp(argv[1], "cuda") == 0)
        return load_device(argv[1]);
    if (argc > 1 && strcmp(argv[1], "nccl") == 0)
        return brg_backend_load(argv[1]) == BRG_OK ? 0 : failed("nccl");
    return sum_over_ranks(argc > 1 ? argv[1] : "self");
}
