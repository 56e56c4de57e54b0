/* SPDX-License-Identifier: Apache-2.0
 * Kernels in memory: see kernels.h. */
#include "compile/fuse/kernels.h"

#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

#include "compile/fuse/disk.h"
#include "compile/fuse/generate.h"
#include "compile/fuse/store.h"
#include "compile/fuse/toolchain.h"
#include "core/base/env.h"
#include "core/base/error.h"
#include "core/base/log.h"

struct brg__kernels {
    brg__stored base;
    void *handle; /* of dlopen */
};

static brg__store store = BRG__STORE_INIT;

static brg__kernels *find_loaded(brg__kernel_key key)
{
    return (brg__kernels *)brg__store_find(&store, BRG_CPU, key);
}

static void note_failure(uint64_t compiler)
{
    brg__log(BRG_LOG_WARN, "compile",
             "fused groups are interpreted from now on: %s",
             brg_error_message());
    brg_error_clear();
    (void)brg__store_note_failure(&store, compiler);
}

void brg__kernels_forget_failures(void)
{
    brg__store_forget_failure(&store);
}

void brg__kernels_release(brg__kernels *kernels)
{
    if (!kernels || !brg__store_drop(&store, &kernels->base))
        return;
    (void)dlclose(kernels->handle);
    brg__mem_free(kernels);
}

void brg__kernels_get_stats(brg__kernels_stats *filled)
{
    brg__store_get_stats(&store, filled);
}

/* ---- From disk or the compiler ---------------------------------------------------- */

static brg_status compile(const brg__disk_maker *self, const char *source,
                          const char *path, const char *object,
                          const char *words)
{
    (void)self;
    (void)source;
    return brg__toolchain_run(path, object, words);
}

static const brg__disk_maker shared_object = {".so", ".c", compile};

static brg_status open_object(brg__kernels **out,
                              const brg__disk_folder *folder,
                              brg__kernel_key key, bool is_compiled)
{
    char path[PATH_MAX];
    brg__disk_path(path, folder, key, shared_object.ending);
    brg__kernels *k = BRG__NEW(brg__kernels);
    if (!k)
        return BRG_ERR_NOMEM;
    *k = (brg__kernels){.base = {.key = key, .device = BRG_CPU}};
    k->handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!k->handle) {
        brg__mem_free(k);
        return BRG_FAIL(BRG_ERR_IO, "cannot load a kernel: %s", dlerror());
    }
    brg__store_add(&store, &k->base, is_compiled);
    *out = k;
    return BRG_OK;
}

static brg_status make(brg__kernels **out, const brg__disk_folder *folder,
                       brg__kernel_key key, const char *source)
{
    double seconds = brg__env_double(BRG__ENV_COMPILE_TIMEOUT_S);
    int fd = brg__disk_lock(folder, key, seconds);
    brg_status status = BRG_OK;
    *out = find_loaded(key); /* another thread was faster */
    bool is_made = *out || brg__disk_find(folder, key, &shared_object);
    if (!is_made)
        status = brg__disk_make(folder, key, &shared_object, source);
    if (status == BRG_OK && !*out)
        status = open_object(out, folder, key, !is_made);
    brg__disk_unlock(fd);
    return status;
}

static brg_status find_or_make(brg__kernels **out, brg__kernel_key key,
                               const char *source)
{
    brg__disk_folder folder;
    BRG_TRY(brg__disk_folder_open(&folder));
    brg_status status = brg__disk_find(&folder, key, &shared_object)
                            ? open_object(out, &folder, key, false)
                            : make(out, &folder, key, source);
    brg__disk_folder_close(&folder);
    return status;
}

/* ---- A plan's --------------------------------------------------------------------- */

static brg_status attach(const brg__kernels *k, brg__fused *const *fused,
                         size_t n, const int *kernel)
{
    for (size_t i = 0; i < n; i++) {
        char name[32];
        if (kernel[i] < 0)
            continue;
        snprintf(name, sizeof name, "brg_kernel_%d", kernel[i]);
        void *symbol = dlsym(k->handle, name);
        if (!symbol)
            return BRG_FAIL(BRG_ERR_INTERNAL, "a kernel's file lacks %s", name);
        memcpy(&fused[i]->compiled, &symbol, sizeof symbol);
    }
    return BRG_OK;
}

static brg_status load(brg__kernels **out, brg__fused *const *fused, size_t n,
                       int *kernel)
{
    char identity[BRG__TOOLCHAIN_TEXT], *source;
    if (!brg__toolchain_identity(identity))
        return BRG_OK;
    BRG_TRY(brg__generate(&source, fused, n, kernel));
    brg__kernel_key key = brg__disk_key(source, identity, BRG__KERNEL_ABI);
    uint64_t compiler = brg__store_hash(identity);
    brg_status status = BRG_OK;
    *out = find_loaded(key);
    if (!*out && !brg__store_has_failed(&store, compiler))
        status = find_or_make(out, key, source);
    if (status == BRG_OK && *out)
        status = attach(*out, fused, n, kernel);
    brg__mem_free(source);
    if (status != BRG_OK && status != BRG_ERR_NOMEM) {
        note_failure(compiler);
        status = BRG_OK;
    }
    return status;
}

brg_status brg__kernels_load(brg__kernels **out, brg__fused *const *fused,
                             size_t n)
{
    size_t n_some = 0;
    *out = NULL;
    brg__fused **some = brg__mem_alloc_array(n + 1, sizeof *some, "groups");
    int *kernel = brg__mem_alloc_array(n + 1, sizeof *kernel, "groups");
    brg_status status = some && kernel ? BRG_OK : BRG_ERR_NOMEM;
    for (size_t i = 0; status == BRG_OK && i < n; i++)
        if (fused[i] && !brg__generate_refuses(fused[i]))
            some[n_some++] = fused[i];
    if (n_some > 0)
        status = load(out, some, n_some, kernel);
    brg__mem_free(some);
    brg__mem_free(kernel);
    return status;
}
