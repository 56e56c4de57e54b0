/* SPDX-License-Identifier: Apache-2.0
 * Kernels that plans generate: compiled by NVRTC, loaded and launched by the
 * driver, which is there where the CUDA runtime works. */
#include <cuda.h>
#include <dlfcn.h>
#include <stdio.h>

#include "core/cuda/cu.h"
#include "core/cuda/nvrtc.h"

/* X(member, name in libcuda) */
#define FUNCTIONS(X)                                                           \
    X(load, cuModuleLoadData)                                                  \
    X(find, cuModuleGetFunction)                                               \
    X(launch, cuLaunchKernel)                                                  \
    X(unload, cuModuleUnload)                                                  \
    X(error, cuGetErrorString)

static struct {
    pthread_once_t once;
    bool is_there;
#define DECLARE(member, name) __typeof__(name) *member;
    FUNCTIONS(DECLARE)
#undef DECLARE
} driver = {.once = PTHREAD_ONCE_INIT};

static void look(void)
{
    void *library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    if (!library)
        return;
#define LOAD(member, name)                                                     \
    *(void **)&driver.member = dlsym(library, #name);                          \
    if (!driver.member)                                                        \
        return;
    FUNCTIONS(LOAD)
#undef LOAD
    driver.is_there = true;
}

static brg_status check(CUresult result, const char *what)
{
    const char *words = NULL;
    if (result == CUDA_SUCCESS)
        return BRG_OK;
    (void)driver.error(result, &words);
    return BRG__CU_FAIL(BRG_ERR_DEVICE, "%s: %s (%d)", what,
                        words ? words : "an unknown error", (int)result);
}

static brg_status capability_of(const brg__cu *cu, int *capability)
{
    int major = 0, minor = 0;
    BRG__CU_TRY(
        brg__cu_check(cudaDeviceGetAttribute(
                          &major, cudaDevAttrComputeCapabilityMajor, cu->index),
                      "cuda: the device"));
    BRG__CU_TRY(
        brg__cu_check(cudaDeviceGetAttribute(
                          &minor, cudaDevAttrComputeCapabilityMinor, cu->index),
                      "cuda: the device"));
    *capability = 10 * major + minor;
    return BRG_OK;
}

brg_status brg__cu_kernel_compiler(brg_device device,
                                   brg_device_compiler *filled)
{
    brg__cu *cu;
    int capability;
    BRG__CU_TRY(brg__cu_enter(device, &cu));
    (void)pthread_once(&driver.once, look);
    if (!driver.is_there)
        return BRG__CU_FAIL(BRG_ERR_UNSUPPORTED,
                            "libcuda.so.1 cannot be opened by name");
    BRG__CU_TRY(capability_of(cu, &capability));
    filled->n_units = cu->queue.n_sm;
    return brg__cu_nvrtc_identity(capability, filled->identity,
                                  sizeof filled->identity);
}

brg_status brg__cu_kernel_compile(brg_device device, const char *source,
                                  double seconds, void **binary, size_t *nbytes)
{
    brg__cu *cu;
    int capability;
    BRG__CU_TRY(brg__cu_enter(device, &cu));
    BRG__CU_TRY(capability_of(cu, &capability));
    return brg__cu_nvrtc_compile(capability, source, seconds, binary, nbytes);
}

brg_status brg__cu_kernel_load(brg_device device, const void *binary,
                               size_t nbytes, void **module)
{
    brg__cu *cu;
    (void)nbytes;
    *module = NULL;
    BRG__CU_TRY(brg__cu_enter(device, &cu));
    return check(driver.load((CUmodule *)module, binary),
                 "cuda: loading kernels");
}

brg_status brg__cu_kernel_find(brg_device device, void *module,
                               const char *name, void **kernel)
{
    brg__cu *cu;
    *kernel = NULL;
    BRG__CU_TRY(brg__cu_enter(device, &cu));
    return check(driver.find((CUfunction *)kernel, module, name), name);
}

brg_status brg__cu_kernel_launch(brg_device device, const brg_device_launch *l)
{
    brg__cu *cu;
    BRG__CU_TRY(brg__cu_enter(device, &cu));
    return check(driver.launch(l->kernel, l->blocks[0], l->blocks[1], 1,
                               l->threads[0], l->threads[1], 1, 0,
                               (CUstream)cu->stream, l->params, NULL),
                 "cuda: launching a group's kernel");
}

/* What is queued may still need it; what is being recorded cannot, since its plan
 * is there. */
void brg__cu_kernel_unload(brg_device device, void *module)
{
    brg__cu *cu;
    if (!module || brg__cu_enter(device, &cu) != BRG_OK)
        return;
    if (!brg__cu_recording(cu))
        (void)cudaStreamSynchronize(cu->stream);
    (void)driver.unload(module);
}
