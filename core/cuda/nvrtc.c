/* SPDX-License-Identifier: Apache-2.0
 * NVRTC: see nvrtc.h. Its header need not be there: what is used has been the same
 * since CUDA 11. */
#include "core/cuda/nvrtc.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "core/cuda/cu.h"

typedef struct program program;

static struct {
    pthread_once_t once;
    bool is_there;
    char why[256];
    int (*version)(int *major, int *minor);
    int (*n_archs)(int *n);
    int (*archs)(int *archs);
    int (*create)(program **p, const char *source, const char *name,
                  int n_headers, const char *const *headers,
                  const char *const *names);
    int (*compile)(program *p, int n, const char *const *options);
    int (*destroy)(program **p);
    int (*binary_size)(program *p, size_t *n);
    int (*binary)(program *p, char *bytes);
    int (*log_size)(program *p, size_t *n);
    int (*log)(program *p, char *text);
    const char *(*error)(int result);
} nvrtc = {.once = PTHREAD_ONCE_INIT};

/* ---- Finding it -------------------------------------------------------------- */

static const struct {
    const char *name;
    void **to;
} functions[] = {
    {"nvrtcVersion", (void **)&nvrtc.version},
    {"nvrtcGetNumSupportedArchs", (void **)&nvrtc.n_archs},
    {"nvrtcGetSupportedArchs", (void **)&nvrtc.archs},
    {"nvrtcCreateProgram", (void **)&nvrtc.create},
    {"nvrtcCompileProgram", (void **)&nvrtc.compile},
    {"nvrtcDestroyProgram", (void **)&nvrtc.destroy},
    {"nvrtcGetCUBINSize", (void **)&nvrtc.binary_size},
    {"nvrtcGetCUBIN", (void **)&nvrtc.binary},
    {"nvrtcGetProgramLogSize", (void **)&nvrtc.log_size},
    {"nvrtcGetProgramLog", (void **)&nvrtc.log},
    {"nvrtcGetErrorString", (void **)&nvrtc.error},
};

static void look(void)
{
    char name[32];
    (void)snprintf(name, sizeof name, "libnvrtc.so.%d", CUDART_VERSION / 1000);
    void *library = dlopen(name, RTLD_NOW | RTLD_LOCAL); /* stays loaded */
    if (!library) {
        const char *words = dlerror();
        (void)snprintf(nvrtc.why, sizeof nvrtc.why, "NVRTC is not there: %s",
                       words ? words : name);
        return;
    }
    for (size_t i = 0; i < sizeof functions / sizeof *functions; i++) {
        *functions[i].to = dlsym(library, functions[i].name);
        if (*functions[i].to)
            continue;
        (void)snprintf(nvrtc.why, sizeof nvrtc.why, "%s lacks %s", name,
                       functions[i].name);
        return;
    }
    nvrtc.is_there = true;
}

static brg_status find_library(void)
{
    (void)pthread_once(&nvrtc.once, look);
    return nvrtc.is_there ? BRG_OK
                          : BRG__CU_FAIL(BRG_ERR_UNSUPPORTED, "%s", nvrtc.why);
}

/* ---- What it is ------------------------------------------------------------------ */

static const char *const options[] = {"--std=c++17", "-default-device"};
#define N_OPTIONS (sizeof options / sizeof *options)

static bool knows(int capability)
{
    enum { MOST = 128 };
    int n = 0, archs[MOST];
    if (nvrtc.n_archs(&n) != 0 || n > MOST || nvrtc.archs(archs) != 0)
        return false;
    for (int i = 0; i < n; i++)
        if (archs[i] == capability)
            return true;
    return false;
}

brg_status brg__cu_nvrtc_identity(int capability, char *text, size_t size)
{
    int major = 0, minor = 0;
    BRG__CU_TRY(find_library());
    (void)nvrtc.version(&major, &minor);
    if (!knows(capability))
        return BRG__CU_FAIL(BRG_ERR_UNSUPPORTED,
                            "NVRTC %d.%d makes no code for GPUs of compute "
                            "capability %d.%d",
                            major, minor, capability / 10, capability % 10);
    (void)snprintf(text, size, "NVRTC %d.%d, sm_%d", major, minor, capability);
    for (size_t i = 0; i < N_OPTIONS; i++) {
        const size_t n = strlen(text);
        (void)snprintf(text + n, size - n, " %s", options[i]);
    }
    return BRG_OK;
}

/* ---- Compiling --------------------------------------------------------------------- */

static brg_status fail_words(program *p, int result)
{
    size_t n = 0;
    char *words = NULL;
    if (nvrtc.log_size(p, &n) == 0 && n > 1)
        words = brg__cu_host->alloc(n + 1, "a compiler's words");
    if (words && nvrtc.log(p, words) != 0)
        words[0] = '\0';
    if (words)
        words[strcspn(words, "\n")] = '\0';
    brg_status status =
        BRG__CU_FAIL(BRG_ERR_UNSUPPORTED, "NVRTC: %s%s%s", nvrtc.error(result),
                     words && words[0] ? "; " : "", words ? words : "");
    brg__cu_host->free(words);
    return status;
}

static brg_status take_binary(program *p, void **cubin, size_t *nbytes)
{
    int result = nvrtc.binary_size(p, nbytes);
    if (result != 0 || *nbytes == 0)
        return fail_words(p, result);
    *cubin = brg__cu_host->alloc(*nbytes, "a compiled kernel");
    if (!*cubin)
        return BRG_ERR_NOMEM;
    result = nvrtc.binary(p, *cubin);
    if (result == 0)
        return BRG_OK;
    brg__cu_host->free(*cubin);
    *cubin = NULL;
    return fail_words(p, result);
}

brg_status brg__cu_nvrtc_compile(int capability, const char *source,
                                 void **cubin, size_t *nbytes)
{
    char arch[40];
    const char *all[N_OPTIONS + 1] = {arch};
    program *p = NULL;
    *cubin = NULL;
    *nbytes = 0;
    BRG__CU_TRY(find_library());
    (void)snprintf(arch, sizeof arch, "--gpu-architecture=sm_%d", capability);
    memcpy(all + 1, options, sizeof options);
    int result = nvrtc.create(&p, source, "brigade.cu", 0, NULL, NULL);
    if (result != 0)
        return BRG__CU_FAIL(BRG_ERR_UNSUPPORTED, "NVRTC: %s",
                            nvrtc.error(result));
    result = nvrtc.compile(p, (int)N_OPTIONS + 1, all);
    brg_status status =
        result == 0 ? take_binary(p, cubin, nbytes) : fail_words(p, result);
    (void)nvrtc.destroy(&p);
    return status;
}
