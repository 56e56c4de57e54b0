/* SPDX-License-Identifier: Apache-2.0
 * The registered devices, and the caching allocator in front of the CPU's. */
#ifndef BRG_CORE_TENSOR_DEVICE_H
#define BRG_CORE_TENSOR_DEVICE_H

#include <brigade/ext/device.h>

/* Fails naming the device if none is registered. */
brg_status brg__device_find(brg_device device, const brg_device_vtable **out);
/* The same, and if it has no device of this index; `name`: of the call. */
brg_status brg__device_check(const char *name, brg_device device);

const char *brg__device_text(brg_device device, char text[24]);

/* Bytes between devices; CPU to CPU is a memcpy. */
brg_status brg__device_copy(brg_device to, void *dst, brg_device from,
                            const void *src, size_t nbytes);
brg_status brg__device_zero(brg_device device, void *ptr, size_t nbytes);

static inline bool brg__device_equal(brg_device a, brg_device b)
{
    return a.type == b.type && a.index == b.index;
}

/* The built-in device. */
extern const brg_device_vtable brg__device_cpu;

/* Slots of that (core/tensor/cargo.c). */
brg_status brg__cpu_cargo_load(brg_device device, const brg_device_cargo *cargo,
                               size_t n);
brg_status brg__cpu_cargo_unload(brg_device device,
                                 const brg_device_cargo *cargo, size_t n);

/* CPU blocks, kept in size classes for reuse (core/tensor/cache.c). */
brg_status brg__cache_alloc(brg_device device, void **out, size_t nbytes);
void brg__cache_free(brg_device device, void *ptr, size_t nbytes);

#endif
