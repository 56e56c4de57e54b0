/* SPDX-License-Identifier: Apache-2.0
 * Kernels in memory: see kernels.h. */
#include "compile/fuse/kernels.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "compile/fuse/disk.h"
#include "compile/fuse/generate.h"
#include "compile/fuse/toolchain.h"
#include "core/base/env.h"
#include "core/base/error.h"
#include "core/base/log.h"

struct brg__kernels {
    brg__kernel_key key;
    void *handle; /* of dlopen */
    int refs;
    brg__kernels *next;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static brg__kernels *loaded;
/* The identity of the compiler that failed last: no other text is tried. */
static XXH64_hash_t failed_compiler;
static bool has_one_failed;
static brg__kernels_stats stats;

static bool is_same(brg__kernel_key a, brg__kernel_key b)
{
    return a.word[0] == b.word[0] && a.word[1] == b.word[1];
}

/* ---- Those there are ------------------------------------------------------------- */

static brg__kernels *find_loaded(brg__kernel_key key)
{
    pthread_mutex_lock(&lock);
    brg__kernels *k = loaded;
    while (k && !is_same(k->key, key))
        k = k->next;
    if (k) {
        k->refs++;
        stats.shared++;
    }
    pthread_mutex_unlock(&lock);
    return k;
}

static bool has_failed(XXH64_hash_t compiler)
{
    pthread_mutex_lock(&lock);
    bool found = has_one_failed && failed_compiler == compiler;
    pthread_mutex_unlock(&lock);
    return found;
}

static void note_failure(XXH64_hash_t compiler)
{
    brg__log(BRG_LOG_WARN, "compile",
             "fused groups are interpreted from now on: %s",
             brg_error_message());
    brg_error_clear();
    pthread_mutex_lock(&lock);
    failed_compiler = compiler;
    has_one_failed = true;
    stats.failed++;
    pthread_mutex_unlock(&lock);
}

void brg__kernels_forget_failures(void)
{
    pthread_mutex_lock(&lock);
    has_one_failed = false;
    pthread_mutex_unlock(&lock);
}

void brg__kernels_release(brg__kernels *kernels)
{
    if (!kernels)
        return;
    pthread_mutex_lock(&lock);
    bool is_last = --kernels->refs == 0;
    for (brg__kernels **at = &loaded; is_last && *at; at = &(*at)->next)
        if (*at == kernels) {
            *at = kernels->next;
            break;
        }
    pthread_mutex_unlock(&lock);
    if (!is_last)
        return;
    (void)dlclose(kernels->handle);
    brg__mem_free(kernels);
}

void brg__kernels_get_stats(brg__kernels_stats *filled)
{
    pthread_mutex_lock(&lock);
    *filled = stats;
    pthread_mutex_unlock(&lock);
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
    *k = (brg__kernels){.key = key, .refs = 1};
    k->handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!k->handle) {
        brg__mem_free(k);
        return BRG_FAIL(BRG_ERR_IO, "cannot load a kernel: %s", dlerror());
    }
    pthread_mutex_lock(&lock);
    k->next = loaded;
    loaded = k;
    stats.compiled += is_compiled;
    stats.from_disk += !is_compiled;
    pthread_mutex_unlock(&lock);
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
    XXH64_hash_t compiler = XXH3_64bits(identity, strlen(identity));
    brg_status status = BRG_OK;
    *out = find_loaded(key);
    if (!*out && !has_failed(compiler))
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
