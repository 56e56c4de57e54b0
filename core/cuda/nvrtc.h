/* SPDX-License-Identifier: Apache-2.0
 * CUDA C compiled at run time, by NVRTC; no GPU is needed for it. The library is
 * looked for when it is first needed, where the loader looks. */
#ifndef BRG_CORE_CUDA_NVRTC_H
#define BRG_CORE_CUDA_NVRTC_H

#include <stddef.h>

#include <brigade/status.h>

/* "NVRTC <version>, <options>"; fails if the library is missing or knows no GPU of
 * that compute capability (90: Hopper). */
brg_status brg__cu_nvrtc_identity(int capability, char *text, size_t size);

/* *cubin: machine code for that capability; memory of the host's table. The
 * record of a failure has the compiler's first words. The host is polled
 * meanwhile. BRG_ERR_TIMEOUT after so many seconds: NVRTC is asked to stop (from
 * CUDA 12.8 on it does soon) and left alone; until it has, every call fails so. */
brg_status brg__cu_nvrtc_compile(int capability, const char *source,
                                 double seconds, void **cubin, size_t *nbytes);

#endif
