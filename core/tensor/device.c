/* SPDX-License-Identifier: Apache-2.0
 * The table of devices, and the CPU as its first row. */
#include "core/tensor/device.h"

#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#include "core/base/error.h"

static brg_status cpu_copy(brg_device to, void *dst, brg_device from,
                           const void *src, size_t nbytes)
{
    (void)to;
    (void)from;
    memcpy(dst, src, nbytes);
    return BRG_OK;
}

static brg_status cpu_fill_zero(brg_device device, void *ptr, size_t nbytes)
{
    (void)device;
    memset(ptr, 0, nbytes);
    return BRG_OK;
}

const brg_device_vtable brg__device_cpu = {
    .abi = BRG_DEVICE_ABI,
    .struct_size = sizeof(brg_device_vtable),
    .name = "cpu",
    .alloc = brg__cache_alloc,
    .free = brg__cache_free,
    .copy = cpu_copy,
    .fill_zero = cpu_fill_zero,
};

static _Atomic(const brg_device_vtable *) table[BRG_N_DEVICE_TYPES] = {
    &brg__device_cpu};

static const char *const type_names[BRG_N_DEVICE_TYPES] = {"cpu", "cuda"};

const char *brg__device_text(brg_device device, char text[24])
{
    const char *name = (unsigned)device.type < BRG_N_DEVICE_TYPES
                           ? type_names[device.type]
                           : "unknown";
    snprintf(text, 24, "%s:%d", name, device.index);
    return text;
}

brg_status brg_device_register(brg_device_type type,
                               const brg_device_vtable *vtable)
{
    BRG_CHECK_ARG((unsigned)type < BRG_N_DEVICE_TYPES,
                  "brg_device_register: unknown device type %d", (int)type);
    BRG_CHECK_ARG(vtable, "brg_device_register: vtable is NULL");
    if (vtable->abi != BRG_DEVICE_ABI ||
        vtable->struct_size < sizeof(brg_device_vtable))
        return BRG_FAIL(BRG_ERR_ABI,
                        "device %s was built for interface %u, this library "
                        "has %u",
                        vtable->name, vtable->abi, BRG_DEVICE_ABI);
    atomic_store(&table[type], vtable);
    return BRG_OK;
}

brg_status brg__device_find(brg_device device, const brg_device_vtable **out)
{
    char text[24];
    *out = (unsigned)device.type < BRG_N_DEVICE_TYPES
               ? atomic_load(&table[device.type])
               : NULL;
    if (!*out)
        return BRG_FAIL(BRG_ERR_DEVICE,
                        "device %s is not available: its component is not "
                        "loaded",
                        brg__device_text(device, text));
    return BRG_OK;
}
