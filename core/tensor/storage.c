/* SPDX-License-Identifier: Apache-2.0
 * Counted memory on a device. */
#include "core/base/alloc.h"
#include "core/base/error.h"
#include "core/base/tracer.h"
#include "core/tensor/device.h"
#include "core/tensor/tensor.h"

brg_status brg__storage_new(brg__storage **out, brg_device device,
                            size_t nbytes)
{
    *out = NULL;
    const brg_device_vtable *vtable;
    BRG_TRY(brg__device_find(device, &vtable));
    brg__storage *storage = brg__obj_alloc(sizeof *storage, "a storage");
    if (!storage)
        return BRG_ERR_NOMEM;
    brg__ref_init(&storage->refs);
    storage->device = device;
    storage->nbytes = nbytes;
    storage->born_in = brg__is_traced() ? brg__tracer_now->id : 0;
    if (nbytes > 0) {
        brg_status status = vtable->alloc(device, &storage->data, nbytes);
        if (status != BRG_OK) {
            brg__obj_free(storage, sizeof *storage);
            return status;
        }
    }
    *out = storage;
    return BRG_OK;
}

void brg__storage_retain(brg__storage *storage)
{
    if (storage)
        brg__ref_retain(&storage->refs);
}

void brg__storage_release(brg__storage *storage)
{
    if (!storage || !brg__ref_release(&storage->refs))
        return;
    const brg_device_vtable *vtable;
    if (storage->is_external) {
        if (storage->free_fn)
            storage->free_fn(storage->user);
    } else if (storage->data &&
               brg__device_find(storage->device, &vtable) == BRG_OK) {
        vtable->free(storage->device, storage->data, storage->nbytes);
    }
    brg__obj_free(storage, sizeof *storage);
}
