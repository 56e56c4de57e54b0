/* SPDX-License-Identifier: Apache-2.0
 * brigade info: the build, the backends and devices that can be loaded, the
 * environment. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tools/commands.h"

const char tool_info_help[] =
    "usage: brigade info\n"
    "Prints key=value lines: version and build, backends and devices that can "
    "be\nloaded here (and why not), and the environment variables that the "
    "library reads.\n";

static void print_backend(const char *name)
{
    bool is_there = brg_backend_load(name) == BRG_OK;
    printf("backend.%s=%s\n", name, is_there ? "yes" : "no");
    if (!is_there)
        printf("backend.%s.why=%s\n", name, brg_error_message());
}

static void print_devices(void)
{
    printf("device.cpu=%d\n", brg_device_count(BRG_DEVICE_CPU));
    bool is_there = brg_device_load("cuda") == BRG_OK;
    printf("device.cuda=%d\n",
           is_there ? brg_device_count(BRG_DEVICE_CUDA) : 0);
    if (!is_there)
        printf("device.cuda.why=%s\n", brg_error_message());
}

static void print_environment(void)
{
    const brg_env_info *row;
    for (size_t i = 0; (row = brg_env_at(i)); i++) {
        const char *value = getenv(row->name);
        printf("%s=%s%s\n", row->name, value ? value : row->default_value,
               value ? "" : "  (default)");
    }
}

int tool_info(int argc, char **argv)
{
    if (argc > 1)
        return tool_usage("info", "unexpected argument", argv[1]);
    printf("%s", brg_build_info());
    printf("backend.self=yes\nbackend.sim=yes\n");
    print_backend("mpi");
    print_backend("nccl");
    print_devices();
    print_environment();
    return 0;
}
