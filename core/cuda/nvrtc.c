/* SPDX-License-Identifier: Apache-2.0
 * NVRTC: see nvrtc.h. Its header need not be there: what is used has been the same
 * since CUDA 11. */
#include "core/cuda/nvrtc.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

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
    int (*set_callback)(program *p, int (*callback)(void *user, void *unused),
                        void *user); /* NULL: an older one */
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
    *(void **)&nvrtc.set_callback = dlsym(library, "nvrtcSetFlowCallback");
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

/* In a thread of its own, so that this one can move communication, and need not
 * wait for ever. Whoever is last frees it. */
typedef struct work {
    _Atomic int n_owners;
    _Atomic bool is_done;
    _Atomic bool is_abandoned;
    int capability;
    char *source;
    void *cubin;
    size_t nbytes;
    brg_status status;
    char why[400]; /* it failed */
} work;

static _Atomic int n_abandoned; /* that NVRTC is still at */

static void release(work *w)
{
    if (atomic_fetch_sub(&w->n_owners, 1) != 1)
        return;
    const bool was_abandoned = atomic_load(&w->is_abandoned);
    brg__cu_host->free(w->cubin);
    brg__cu_host->free(w->source);
    brg__cu_host->free(w);
    if (was_abandoned)
        atomic_fetch_sub(&n_abandoned, 1);
}

/* NVRTC asks between its passes: 1 has it stop. */
static int is_cancelled(void *user, void *unused)
{
    (void)unused;
    return atomic_load(&((work *)user)->is_abandoned);
}

static brg_status fail(work *w, program *p, int result)
{
    size_t n = 0;
    char *words = NULL;
    if (nvrtc.log_size(p, &n) == 0 && n > 1)
        words = brg__cu_host->alloc(n + 1, "a compiler's words");
    if (words && nvrtc.log(p, words) != 0)
        words[0] = '\0';
    if (words)
        words[strcspn(words, "\n")] = '\0';
    (void)snprintf(w->why, sizeof w->why, "NVRTC: %s%s%s", nvrtc.error(result),
                   words && words[0] ? "; " : "", words ? words : "");
    brg__cu_host->free(words);
    return BRG_ERR_UNSUPPORTED;
}

static brg_status take_binary(work *w, program *p)
{
    int result = nvrtc.binary_size(p, &w->nbytes);
    if (result != 0 || w->nbytes == 0)
        return fail(w, p, result);
    w->cubin = brg__cu_host->alloc(w->nbytes, "a compiled kernel");
    if (!w->cubin) {
        (void)snprintf(w->why, sizeof w->why,
                       "out of memory: %zu bytes for a compiled kernel",
                       w->nbytes);
        return BRG_ERR_NOMEM;
    }
    result = nvrtc.binary(p, w->cubin);
    return result == 0 ? BRG_OK : fail(w, p, result);
}

static brg_status compile(work *w)
{
    char arch[40];
    const char *all[N_OPTIONS + 1] = {arch};
    program *p = NULL;
    (void)snprintf(arch, sizeof arch, "--gpu-architecture=sm_%d",
                   w->capability);
    memcpy(all + 1, options, sizeof options);
    int result = nvrtc.create(&p, w->source, "brigade.cu", 0, NULL, NULL);
    if (result != 0) {
        (void)snprintf(w->why, sizeof w->why, "NVRTC: %s", nvrtc.error(result));
        return BRG_ERR_UNSUPPORTED;
    }
    if (nvrtc.set_callback)
        (void)nvrtc.set_callback(p, is_cancelled, w);
    result = nvrtc.compile(p, (int)N_OPTIONS + 1, all);
    brg_status status = result == 0 ? take_binary(w, p) : fail(w, p, result);
    (void)nvrtc.destroy(&p);
    return status;
}

static void *run(void *user)
{
    work *w = user;
    w->status = compile(w);
    atomic_store(&w->is_done, true);
    release(w);
    return NULL;
}

static double now(void)
{
    struct timespec t;
    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* False: it has taken too long. */
static bool await(const work *w, double seconds)
{
    const double end = now() + seconds;
    while (!atomic_load(&w->is_done)) {
        const struct timespec pause = {0, 1000000};
        if (now() > end)
            return false;
        brg__cu_host->poll();
        (void)nanosleep(&pause, NULL);
    }
    return true;
}

/* The caller's and the thread's. */
static brg_status start(work **out, int capability, const char *source,
                        pthread_t *thread)
{
    const size_t size = strlen(source) + 1;
    work *w = brg__cu_host->alloc(sizeof *w, "a compilation");
    *out = NULL;
    if (!w)
        return BRG_ERR_NOMEM;
    *w = (work){.n_owners = 1, .capability = capability};
    w->source = brg__cu_host->alloc(size, "the text of kernels");
    if (!w->source) {
        release(w);
        return BRG_ERR_NOMEM;
    }
    memcpy(w->source, source, size);
    atomic_store(&w->n_owners, 2);
    int e = pthread_create(thread, NULL, run, w);
    if (e == 0) {
        *out = w;
        return BRG_OK;
    }
    atomic_store(&w->n_owners, 1);
    release(w);
    return BRG__CU_FAIL(BRG_ERR_IO, "NVRTC: no thread for it: %s", strerror(e));
}

brg_status brg__cu_nvrtc_compile(int capability, const char *source,
                                 double seconds, void **cubin, size_t *nbytes)
{
    work *w;
    pthread_t thread;
    *cubin = NULL;
    *nbytes = 0;
    BRG__CU_TRY(find_library());
    if (atomic_load(&n_abandoned) > 0)
        return BRG__CU_FAIL(BRG_ERR_TIMEOUT,
                            "NVRTC is still at a source that took too long");
    BRG__CU_TRY(start(&w, capability, source, &thread));
    if (!await(w, seconds)) {
        atomic_fetch_add(&n_abandoned, 1);
        atomic_store(&w->is_abandoned, true);
        (void)pthread_detach(thread);
        release(w);
        return BRG__CU_FAIL(BRG_ERR_TIMEOUT, "NVRTC took longer than %g s",
                            seconds);
    }
    (void)pthread_join(thread, NULL);
    brg_status status = w->status;
    if (status == BRG_OK) {
        *cubin = w->cubin;
        *nbytes = w->nbytes;
        w->cubin = NULL;
    } else {
        (void)BRG__CU_FAIL(status, "%s", w->why);
    }
    release(w);
    return status;
}
