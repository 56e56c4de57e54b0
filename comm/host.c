/* SPDX-License-Identifier: Apache-2.0
 * The table of functions that backends call the library through. */
#include <string.h>

#include "comm/call.h"
#include "comm/reduce_kernels.h"
#include "comm/trace.h"
#include "core/base/alloc.h"
#include "core/base/clock.h"
#include "core/base/env.h"
#include "core/base/error.h"
#include "core/base/log.h"

static const char *env_by_name(const char *name)
{
    const brg_env_info *row;
    for (size_t i = 0; (row = brg_env_at(i)) != NULL; i++)
        if (strcmp(row->name, name) == 0)
            return brg__env_text((brg__env_name)i);
    return "";
}

static const brg_host host = {
    .abi = BRG_BACKEND_ABI,
    .struct_size = sizeof(brg_host),
    .fail = brg_error_set,
    .fail_mismatch = brg__fail_mismatch,
    .log = brg__log,
    .alloc = brg__mem_alloc,
    .free = brg__mem_free,
    .clock_ns = brg__clock_ns,
    .env = env_by_name,
    .sign = brg__call_sign,
    .signatures_match = brg__signatures_match,
    .describe = brg__signature_describe,
    .reduce = brg__reduce,
    .partial_size = brg__partial_size,
    .progressed = brg__record_progressed,
};

const brg_host *brg_host_get(void)
{
    return &host;
}
