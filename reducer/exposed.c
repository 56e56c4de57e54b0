/* SPDX-License-Identifier: Apache-2.0
 * Communication that a backward did not hide, by the clock of a device: read
 * where its queue begins to wait for buckets, and where it goes on. */
#include <brigade/ddp.h>

#include "core/base/error.h"
#include "core/tensor/device.h"
#include "reducer/ddp.h"

#define CLOCK_BYTES (2 * sizeof(uint64_t))

brg_status brg_reducer_measure_exposed(brg_reducer *r)
{
    char text[24];
    void *clocks;
    BRG_CHECK_ARG(r, "brg_reducer_measure_exposed: the reducer is NULL");
    const brg_device_vtable *vtable = r->tail.vtable;
    if (!vtable || !vtable->clock)
        return BRG_FAIL(BRG_ERR_UNSUPPORTED,
                        "brg_reducer_measure_exposed: %s has no clock on its "
                        "queue; wait_ns of brg_reducer_stats is what the host "
                        "waits",
                        brg__device_text(r->device, text));
    r->clock_failure.code = BRG_OK;
    if (r->clocks)
        return BRG_OK;
    BRG_TRY(vtable->alloc(r->device, &clocks, CLOCK_BYTES));
    const brg_status status = vtable->fill_zero(r->device, clocks, CLOCK_BYTES);
    if (status == BRG_OK)
        r->clocks = clocks;
    else
        vtable->free(r->device, clocks, CLOCK_BYTES);
    return status;
}

/* Without its clock the step is as good as before. */
void brg__exposed_mark(brg_reducer *r, bool is_end)
{
    brg__error_record kept;
    if (!r->clocks || r->clock_failure.code != BRG_OK)
        return;
    brg__error_save(&kept);
    if (r->tail.vtable->clock(r->device, r->clocks + is_end) != BRG_OK)
        brg__error_save(&r->clock_failure);
    brg__error_restore(&kept);
}

void brg__exposed_free(brg_reducer *r)
{
    if (r->clocks)
        r->tail.vtable->free(r->device, r->clocks, CLOCK_BYTES);
    r->clocks = NULL;
}

brg_status brg_reducer_exposed_ns(const brg_reducer *r, uint64_t *ns)
{
    uint64_t clocks[2] = {0};
    BRG_CHECK_ARG(ns, "brg_reducer_exposed_ns: ns is NULL");
    *ns = 0;
    if (!r || !r->clocks)
        return BRG_FAIL(BRG_ERR_STATE,
                        "brg_reducer_exposed_ns: the reducer is NULL or "
                        "brg_reducer_measure_exposed was not called");
    if (r->clock_failure.code != BRG_OK) {
        brg__error_restore(&r->clock_failure);
        return brg__error_prefix("rank %d: brg_reducer_exposed_ns: nothing is "
                                 "measured since the clock failed: ",
                                 r->rank);
    }
    BRG_TRY(
        brg__device_copy(BRG_CPU, clocks, r->device, r->clocks, CLOCK_BYTES));
    *ns = clocks[1] > clocks[0] ? clocks[1] - clocks[0] : 0;
    return BRG_OK;
}

brg_status brg_ddp_measure_exposed(brg_ddp *ddp)
{
    BRG_CHECK_ARG(ddp, "brg_ddp_measure_exposed: the ddp is NULL");
    return brg_reducer_measure_exposed(ddp->reducer);
}

brg_status brg_ddp_exposed_ns(const brg_ddp *ddp, uint64_t *ns)
{
    BRG_CHECK_ARG(ddp, "brg_ddp_exposed_ns: the ddp is NULL");
    return brg_reducer_exposed_ns(ddp->reducer, ns);
}
