/* SPDX-License-Identifier: Apache-2.0
 * Running the passes: see passes.h. */
#include "compile/passes/passes.h"

#include <string.h>

#include "core/base/env.h"
#include "core/base/error.h"
#include "core/base/log.h"

typedef struct pass {
    const char *name;
    brg_status (*run)(brg__ir *ir);
    brg_compile_backend backend;
    const char *why;
} pass;

static const pass passes[] = {
#define BRG_PASS(name, backend, why)                                           \
    {#name, brg__pass_##name, BRG_COMPILE_BACKEND_##backend, why},
#include "compile/passes/passes.def"
#undef BRG_PASS
};

static void dump(const brg__ir *ir, const pass *after, size_t n_before)
{
    if (brg__env_int(BRG__ENV_COMPILE_DUMP) == 0)
        return;
    if (after)
        brg__log(BRG_LOG_INFO, "compile",
                 "after pass %s (%s), %zu of %zu nodes:", after->name,
                 after->why, ir->nodes.n, n_before);
    else
        brg__log(BRG_LOG_INFO, "compile", "captured, %zu nodes:", ir->nodes.n);
    brg__ir_log(ir, BRG_LOG_INFO, "  ");
}

/* On a device groups are kernels made for it, or nothing. */
static bool has_groups(const brg__ir *ir)
{
    return !ir->is_loose || (ir->is_there && ir->wants_kernels);
}

brg_status brg__passes_run(brg__ir *ir, brg_compile_backend backend)
{
    BRG_TRY(brg__ir_verify(ir));
    dump(ir, NULL, 0);
    ir->wants_kernels = backend == BRG_COMPILE_BACKEND_FUSED;
    for (size_t i = 0; i < sizeof passes / sizeof *passes; i++) {
        size_t n_before = ir->nodes.n;
        if (passes[i].backend > backend ||
            (passes[i].run == brg__pass_merge && !ir->is_there) ||
            (passes[i].run == brg__pass_fuse && !has_groups(ir)))
            continue;
        brg_status status = passes[i].run(ir);
        if (status == BRG_OK)
            status = brg__ir_verify(ir);
        if (status != BRG_OK)
            return brg__error_prefix("pass %s: ", passes[i].name);
        dump(ir, &passes[i], n_before);
    }
    return BRG_OK;
}
