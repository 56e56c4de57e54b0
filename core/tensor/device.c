/* SPDX-License-Identifier: Apache-2.0
 * The table of devices, and the CPU as its first row. */
#include "core/tensor/device.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <brigade/device.h>

#include "core/base/alloc.h"
#include "core/base/component.h"
#include "core/base/error.h"
#include "core/base/log.h"
#include "core/base/progress.h"
#include "core/tensor/tensor.h"

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
    .cargo_load = brg__cpu_cargo_load,
    .cargo_unload = brg__cpu_cargo_unload,
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
    if ((unsigned)device.type >= BRG_N_DEVICE_TYPES)
        return BRG_FAIL(BRG_ERR_DEVICE, "%d is not a type of device",
                        (int)device.type);
    if (!*out)
        return BRG_FAIL(BRG_ERR_DEVICE,
                        "device %s is not available: call brg_device_load "
                        "first",
                        brg__device_text(device, text));
    return BRG_OK;
}

/* ---- Loading ---------------------------------------------------------------- */

static void poll(void)
{
    brg__progress_poll();
}

static const brg_device_host host = {
    .abi = BRG_DEVICE_ABI,
    .struct_size = sizeof(brg_device_host),
    .fail = brg_error_set,
    .log = brg__log,
    .alloc = brg__mem_alloc,
    .free = brg__mem_free,
    .poll = poll,
};

const brg_device_host *brg_device_host_get(void)
{
    return &host;
}

static int type_of(const char *name)
{
    for (int i = 0; i < BRG_N_DEVICE_TYPES; i++)
        if (name && strcmp(name, type_names[i]) == 0)
            return i;
    return -1;
}

brg_status brg_device_load(const char *name)
{
    int known = type_of(name);
    if (known >= 0 && atomic_load(&table[known]))
        return BRG_OK;
    BRG_CHECK_ARG(brg__component_is_name(name),
                  "brg_device_load: \"%s\" is not 1 to %d of a-z, 0-9, _",
                  name ? name : "(null)", BRG__COMPONENT_NAME_MAX - 1);
    void *symbol;
    BRG_TRY(brg__component_open(&symbol, "device", name, "brg_device_"));
    brg_device_fn get = NULL;
    *(void **)&get = symbol;
    brg_device_type type;
    const brg_device_vtable *vtable;
    BRG_TRY(get(&host, &type, &vtable));
    return brg_device_register(type, vtable);
}

/* ---- Asking and choosing ------------------------------------------------------ */

int brg_device_count(brg_device_type type)
{
    const brg_device_vtable *vtable =
        (unsigned)type < BRG_N_DEVICE_TYPES ? atomic_load(&table[type]) : NULL;
    if (!vtable)
        return 0;
    return vtable->count ? vtable->count() : 1;
}

brg_status brg__device_check(const char *name, brg_device device)
{
    const brg_device_vtable *vtable;
    BRG_TRY(brg__device_find(device, &vtable));
    int n = brg_device_count((brg_device_type)device.type);
    char text[24];
    if (device.index < 0 || device.index >= n)
        return BRG_FAIL(BRG_ERR_DEVICE, "%s: there is no %s, only %d of these",
                        name, brg__device_text(device, text), n);
    return BRG_OK;
}

static _Thread_local brg_device current;

brg_status brg_device_set(brg_device device)
{
    BRG_TRY(brg__device_check("brg_device_set", device));
    current = device;
    return BRG_OK;
}

brg_device brg_device_get(void)
{
    return current;
}

brg_status brg_device_synchronize(brg_device device)
{
    BRG_TRY(brg__device_check("brg_device_synchronize", device));
    const brg_device_vtable *vtable;
    BRG_TRY(brg__device_find(device, &vtable));
    return vtable->synchronize ? vtable->synchronize(device) : BRG_OK;
}

brg_status brg_device_stream(brg_device device, void **out)
{
    BRG_CHECK_ARG(out, "brg_device_stream: out is NULL");
    *out = NULL;
    BRG_TRY(brg__device_check("brg_device_stream", device));
    const brg_device_vtable *vtable;
    BRG_TRY(brg__device_find(device, &vtable));
    return vtable->stream ? vtable->stream(device, out) : BRG_OK;
}

brg_status brg_device_get_counts(brg_device device, brg_device_counts *filled)
{
    BRG_CHECK_ARG(filled, "brg_device_get_counts: filled is NULL");
    *filled = (brg_device_counts){0};
    BRG_TRY(brg__device_check("brg_device_get_counts", device));
    const brg_device_vtable *vtable;
    BRG_TRY(brg__device_find(device, &vtable));
    return vtable->counts ? vtable->counts(device, filled) : BRG_OK;
}

brg_status brg_device_parse(brg_device *out, const char *text)
{
    BRG_CHECK_ARG(text, "brg_device_parse: the text is NULL");
    size_t n = strcspn(text, ":");
    char name[24] = "";
    if (n < sizeof name)
        memcpy(name, text, n);
    int type = type_of(name);
    char *end = (char *)text + n;
    long index = text[n] == ':' ? strtol(text + n + 1, &end, 10) : 0;
    bool is_whole = *end == '\0' && end != text + n + 1;
    BRG_CHECK_ARG(type >= 0 && is_whole && index >= 0 && index < INT16_MAX,
                  "\"%s\" is no device: expected cpu, cuda or cuda:<number>",
                  text);
    *out = (brg_device){(int16_t)type, (int16_t)index};
    return BRG_OK;
}

/* ---- Bytes ---------------------------------------------------------------------- */

/* The table of the side that is not the CPU, if one is not. */
static brg_status find_mover(brg_device a, brg_device b,
                             const brg_device_vtable **out)
{
    return brg__device_find(a.type != BRG_DEVICE_CPU ? a : b, out);
}

brg_status brg__device_copy(brg_device to, void *dst, brg_device from,
                            const void *src, size_t nbytes)
{
    const brg_device_vtable *vtable;
    if (nbytes == 0)
        return BRG_OK;
    BRG_TRY(find_mover(to, from, &vtable));
    return vtable->copy(to, dst, from, src, nbytes);
}

brg_status brg__device_zero(brg_device device, void *ptr, size_t nbytes)
{
    const brg_device_vtable *vtable;
    if (nbytes == 0)
        return BRG_OK;
    BRG_TRY(brg__device_find(device, &vtable));
    return vtable->fill_zero(device, ptr, nbytes);
}
