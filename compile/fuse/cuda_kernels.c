/* SPDX-License-Identifier: Apache-2.0
 * Kernels of devices in memory, from disk or the device's compiler. They are
 * kept on disk as those of the CPU are (disk.h). */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "compile/fuse/cuda_group.h"
#include "compile/fuse/store.h"
#include "core/base/env.h"
#include "core/base/error.h"
#include "core/base/log.h"
#include "core/tensor/device.h"

struct brg__cuda_kernels {
    brg__stored base;
    const brg_device_vtable *vtable;
    void *module;
    uint64_t compiler; /* hash of its identity */
    int n_units;
};

/* What failed may also be why there is no compiler. */
static brg__store store = BRG__STORE_INIT;

/* Said once: what fails is the same for all that follows. */
static void note_failure(brg_device device, uint64_t what)
{
    char text[24];
    if (brg__store_note_failure(&store, what))
        brg__log(BRG_LOG_WARN, "compile",
                 "ops of fused groups run one by one on %s from now on: %s",
                 brg__device_text(device, text), brg_error_message());
    brg_error_clear();
}

void brg__cuda_kernels_failed(const brg__cuda_kernels *kernels)
{
    note_failure(kernels->base.device, kernels->compiler);
}

void brg__cuda_kernels_forget_failures(void)
{
    brg__store_forget_failure(&store);
}

void brg__cuda_kernels_release(brg__cuda_kernels *kernels)
{
    if (!kernels || !brg__store_drop(&store, &kernels->base))
        return;
    kernels->vtable->kernel_unload(kernels->base.device, kernels->module);
    brg__mem_free(kernels);
}

int brg__cuda_kernels_units(const brg__cuda_kernels *kernels)
{
    return kernels->n_units;
}

void brg__cuda_kernels_get_stats(brg__kernels_stats *filled)
{
    brg__store_get_stats(&store, filled);
}

/* ---- From disk or the compiler ---------------------------------------------------- */

typedef struct maker {
    brg__disk_maker base;
    brg_device device;
    const brg_device_vtable *vtable;
} maker;

static brg_status write_file(const char *path, const char *bytes, size_t n)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    bool is_written = fd >= 0;
    while (is_written && n > 0) {
        ssize_t done = write(fd, bytes, n);
        is_written = done > 0 || (done < 0 && errno == EINTR);
        bytes += done > 0 ? done : 0;
        n -= done > 0 ? (size_t)done : 0;
    }
    int e = errno;
    if (fd >= 0 && close(fd) < 0 && is_written) {
        is_written = false;
        e = errno;
    }
    return is_written
               ? BRG_OK
               : BRG_FAIL(BRG_ERR_IO, "writing %s: %s", path, strerror(e));
}

static brg_status compile(const brg__disk_maker *self, const char *source,
                          const char *path, const char *object,
                          const char *words)
{
    const maker *m = (const maker *)self;
    void *binary = NULL;
    size_t nbytes = 0;
    (void)path;
    (void)words; /* a failure's are in the record */
    brg_status status = m->vtable->kernel_compile(
        m->device, source, brg__env_double(BRG__ENV_COMPILE_TIMEOUT_S), &binary,
        &nbytes);
    if (status == BRG_OK)
        status = write_file(object, binary, nbytes);
    brg__mem_free(binary);
    return status;
}

/* *binary: from disk, if need be made there first. */
static brg_status find_or_make(const maker *m, brg__kernel_key key,
                               const char *source, void **binary,
                               size_t *nbytes, bool *is_compiled)
{
    brg__disk_folder folder;
    brg_status status = BRG_OK;
    BRG_TRY(brg__disk_folder_open(&folder));
    *binary = brg__disk_read(&folder, key, &m->base, nbytes);
    if (!*binary) {
        int fd = brg__disk_lock(&folder, key,
                                brg__env_double(BRG__ENV_COMPILE_TIMEOUT_S));
        *binary = brg__disk_read(&folder, key, &m->base, nbytes);
        *is_compiled = !*binary;
        if (!*binary)
            status = brg__disk_make(&folder, key, &m->base, source);
        if (status == BRG_OK && !*binary)
            *binary = brg__disk_read(&folder, key, &m->base, nbytes);
        brg__disk_unlock(fd);
    }
    brg__disk_folder_close(&folder);
    if (status == BRG_OK && !*binary)
        return BRG_FAIL(BRG_ERR_IO, "a kernel's file is gone");
    return status;
}

static brg_status new_kernels(brg__cuda_kernels **out, const maker *m,
                              const brg_device_compiler *compiler,
                              brg__kernel_key key, const char *source)
{
    void *binary = NULL;
    size_t nbytes = 0;
    bool is_compiled = false;
    brg__cuda_kernels *k = BRG__NEW(brg__cuda_kernels);
    if (!k)
        return BRG_ERR_NOMEM;
    *k = (brg__cuda_kernels){.base = {.key = key, .device = m->device},
                             .vtable = m->vtable,
                             .compiler = brg__store_hash(compiler->identity),
                             .n_units = compiler->n_units};
    brg_status status =
        find_or_make(m, key, source, &binary, &nbytes, &is_compiled);
    if (status == BRG_OK)
        status = m->vtable->kernel_load(m->device, binary, nbytes, &k->module);
    brg__mem_free(binary);
    if (status != BRG_OK) {
        brg__mem_free(k);
        return status;
    }
    brg__store_add(&store, &k->base, is_compiled);
    *out = k;
    return BRG_OK;
}

/* ---- A plan's --------------------------------------------------------------------- */

static brg_status find(const brg__cuda_kernels *k, const char *prefix,
                       int number, void **out)
{
    char name[40];
    snprintf(name, sizeof name, "%s%d", prefix, number);
    return k->vtable->kernel_find(k->base.device, k->module, name, out);
}

static brg_status attach(const brg__cuda_kernels *k,
                         brg__cuda_group *const *groups, size_t n,
                         const int *kernel)
{
    brg_status status = BRG_OK;
    for (size_t i = 0; status == BRG_OK && i < n; i++) {
        brg__cuda_group *g = groups[i];
        status = find(k, "brg_flat_", kernel[i], &g->flat);
        if (status == BRG_OK)
            status = find(k, "brg_any_", kernel[i], &g->any);
        if (status == BRG_OK && g->has_columns)
            status = find(k, "brg_columns_", kernel[i], &g->columns);
    }
    for (size_t i = 0; status != BRG_OK && i < n; i++)
        groups[i]->flat = groups[i]->any = groups[i]->columns = NULL;
    return status;
}

static brg_status load(brg__cuda_kernels **out, const maker *m,
                       const brg_device_compiler *compiler,
                       brg__cuda_group *const *groups, size_t n, int *kernel)
{
    char *source;
    BRG_TRY(brg__cuda_text(&source, groups, n, kernel));
    brg__kernel_key key =
        brg__disk_key(source, compiler->identity, BRG__CUDA_KERNEL_ABI);
    brg_status status = BRG_OK;
    *out = (brg__cuda_kernels *)brg__store_find(&store, m->device, key);
    if (!*out)
        status = new_kernels(out, m, compiler, key, source);
    brg__mem_free(source);
    if (status == BRG_OK)
        status = attach(*out, groups, n, kernel);
    if (status != BRG_OK) {
        brg__cuda_kernels_release(*out);
        *out = NULL;
    }
    return status;
}

brg_status brg__cuda_kernels_load(brg__cuda_kernels **out, brg_device device,
                                  brg__cuda_group *const *groups, size_t n)
{
    maker m = {.base = {".cubin", ".cu", compile}, .device = device};
    brg_device_compiler compiler;
    *out = NULL;
    BRG_TRY(brg__device_find(device, &m.vtable));
    if (n == 0 || !m.vtable->kernel_compiler)
        return BRG_OK;
    memset(&compiler, 0, sizeof compiler);
    if (m.vtable->kernel_compiler(device, &compiler) != BRG_OK) {
        note_failure(device, brg__store_hash(brg_error_message()));
        return BRG_OK;
    }
    const uint64_t what = brg__store_hash(compiler.identity);
    if (brg__store_has_failed(&store, what))
        return BRG_OK;
    int *kernel = brg__mem_alloc_array(n, sizeof *kernel, "groups");
    if (!kernel)
        return BRG_ERR_NOMEM;
    brg_status status = load(out, &m, &compiler, groups, n, kernel);
    brg__mem_free(kernel);
    if (status == BRG_OK || status == BRG_ERR_NOMEM)
        return status;
    note_failure(device, what);
    return BRG_OK;
}
