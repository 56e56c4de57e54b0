/* SPDX-License-Identifier: Apache-2.0
 * Calls of CUDA counted from outside of the library, by whichever part of the
 * process they are made (CUPTI's callbacks, found when a test asks): what makes
 * the host wait, and what asks the driver for memory or gives it back. */
#ifndef BRG_TESTS_CUDA_OUTSIDE_H
#define BRG_TESTS_CUDA_OUTSIDE_H

#include <dlfcn.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

typedef struct outside {
    _Atomic long n_waits;     /* of the thread that began */
    _Atomic long n_elsewhere; /* of other threads */
    _Atomic long n_memory;    /* but for pools in the order of a stream */
    char first[64];           /* of either, but elsewhere */
} outside;

#if defined BRG_TEST_CUPTI && __has_include(<cupti.h>)

#include <cupti.h>

static struct {
    outside *counts;
    pthread_t thread;
    CUpti_SubscriberHandle subscriber;
    void *library;
} outside_now;

static inline bool outside_is(const char *name, const char *const *prefixes)
{
    for (; *prefixes; prefixes++)
        if (strncmp(name, *prefixes, strlen(*prefixes)) == 0)
            return true;
    return false;
}

static inline bool outside_is_wait(const char *name)
{
    static const char *const waits[] = {
        "cuStreamSynchronize",   "cuCtxSynchronize",
        "cuEventSynchronize",    "cudaStreamSynchronize",
        "cudaEventSynchronize",  "cudaDeviceSynchronize",
        "cudaThreadSynchronize", NULL};
    static const char *const copies[] = {"cuMemcpy", "cudaMemcpy", NULL};
    return outside_is(name, waits) ||
           (outside_is(name, copies) && !strstr(name, "Async"));
}

static inline bool outside_is_memory(const char *name)
{
    static const char *const calls[] = {"cuMemAlloc",
                                        "cuMemHostAlloc",
                                        "cuMemFree",
                                        "cuMemCreate",
                                        "cuMemRelease",
                                        "cuMemHostRegister",
                                        "cudaMalloc",
                                        "cudaHostAlloc",
                                        "cudaFree",
                                        "cuModuleLoad",
                                        "cuLibraryLoad",
                                        "cuModuleUnload",
                                        "cuMemPoolTrim",
                                        "cudaHostRegister",
                                        "cuLibraryUnload",
                                        "cudaMemPoolTrim",
                                        NULL};
    return outside_is(name, calls) && !strstr(name, "Async");
}

static void CUPTIAPI outside_see(void *user, CUpti_CallbackDomain domain,
                                 CUpti_CallbackId id, const void *data)
{
    const CUpti_CallbackData *call = data;
    outside *o = user;
    (void)domain;
    (void)id;
    if (call->callbackSite != CUPTI_API_ENTER || !call->functionName)
        return;
    const bool waits = outside_is_wait(call->functionName);
    if (!waits && !outside_is_memory(call->functionName))
        return;
    if (waits && !pthread_equal(pthread_self(), outside_now.thread)) {
        atomic_fetch_add(&o->n_elsewhere, 1);
        return;
    }
    if (atomic_fetch_add(waits ? &o->n_waits : &o->n_memory, 1) == 0)
        snprintf(o->first, sizeof o->first, "%s", call->functionName);
}

/* False: nothing is counted, and why is printed. */
static inline bool outside_begin(outside *o)
{
    CUptiResult (*subscribe)(CUpti_SubscriberHandle *, CUpti_CallbackFunc,
                             void *);
    CUptiResult (*enable)(uint32_t, CUpti_SubscriberHandle,
                          CUpti_CallbackDomain);
    memset(o, 0, sizeof *o);
    outside_now.thread = pthread_self();
    if (!outside_now.library)
        outside_now.library = dlopen(BRG_TEST_CUPTI, RTLD_NOW);
    if (!outside_now.library) {
        printf("not counted from outside: %s\n", dlerror());
        return false;
    }
    *(void **)&subscribe = dlsym(outside_now.library, "cuptiSubscribe");
    *(void **)&enable = dlsym(outside_now.library, "cuptiEnableDomain");
    int error = subscribe(&outside_now.subscriber, outside_see, o);
    if (error == CUPTI_SUCCESS)
        error = enable(1, outside_now.subscriber, CUPTI_CB_DOMAIN_RUNTIME_API);
    if (error == CUPTI_SUCCESS)
        error = enable(1, outside_now.subscriber, CUPTI_CB_DOMAIN_DRIVER_API);
    if (error != CUPTI_SUCCESS)
        printf("not counted from outside: error %d of CUPTI\n", error);
    return error == CUPTI_SUCCESS;
}

static inline void outside_end(void)
{
    CUptiResult (*unsubscribe)(CUpti_SubscriberHandle);
    *(void **)&unsubscribe = dlsym(outside_now.library, "cuptiUnsubscribe");
    (void)unsubscribe(outside_now.subscriber);
}

#else

static inline bool outside_begin(outside *o)
{
    memset(o, 0, sizeof *o);
    printf("not counted from outside: built without CUPTI\n");
    return false;
}

static inline void outside_end(void)
{
}

#endif
#endif
