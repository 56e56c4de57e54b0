/* SPDX-License-Identifier: Apache-2.0
 * For authors of devices: memory, copies, streams and events. */
#ifndef BRG_EXT_DEVICE_H
#define BRG_EXT_DEVICE_H

#include <brigade/status.h>
#include <brigade/types.h>

BRG_BEGIN_DECLS

#define BRG_DEVICE_ABI 1

/* One device type. Registered once, never unregistered; any thread may call. */
typedef struct brg_device_vtable {
    uint32_t abi;
    size_t struct_size;
    const char *name;

    /* Required. Memory of a tensor, at least 64-byte aligned; *out NULL on
     * failure. Size 0 never reaches it. */
    brg_status (*alloc)(brg_device device, void **out, size_t nbytes);
    /* Required. Gets the size that alloc got; cannot fail. */
    void (*free)(brg_device device, void *ptr, size_t nbytes);

    /* Required. Ordered after the work already queued on the current stream;
     * returns before it is done unless one side is host memory. */
    brg_status (*copy)(brg_device to, void *dst, brg_device from,
                       const void *src, size_t nbytes);
    brg_status (*fill_zero)(brg_device device, void *ptr, size_t nbytes);

    /* (optional) Absent: the device works in the calling thread, so streams
     * and events have nothing to order. */
    brg_status (*synchronize)(brg_device device);
    brg_status (*event_record)(brg_device device, void **event);
    brg_status (*event_wait)(brg_device device, void *event);
    void (*event_free)(brg_device device, void *event);
} brg_device_vtable;

BRG_API BRG_NODISCARD brg_status
brg_device_register(brg_device_type type, const brg_device_vtable *vtable);

BRG_END_DECLS

#endif
