/* SPDX-License-Identifier: Apache-2.0
 * Devices: where tensors live, and moving them between.
 *
 *     BRG_TRY(brg_device_load("cuda"));
 *     brg_device_set((brg_device){BRG_DEVICE_CUDA, 0});
 *     ... parameters and activations are on the GPU from here on ...
 *     brg_tensor *x = brg_to(batch, brg_device_get());
 *
 * Work on a GPU is queued: a call returns before it is done. Reading values
 * (brg_tensor_item, brg_tensor_read, brg_to the CPU) waits for it, and reports
 * what went wrong on the way (an id out of range). */
#ifndef BRG_DEVICE_H
#define BRG_DEVICE_H

#include <brigade/status.h>
#include <brigade/types.h>

BRG_BEGIN_DECLS

/* Makes the devices of a component available ("cuda": libbrigade_cuda.so, from
 * the folders of BRG_BACKEND_PATH, then where the loader looks); once is
 * enough. BRG_ERR_NOT_FOUND without the library, BRG_ERR_DEVICE if it finds no
 * usable device: the message says why. */
BRG_API BRG_NODISCARD brg_status brg_device_load(const char *name);

/* How many devices of this type can be used: 1 CPU; 0 until loaded. */
BRG_API int brg_device_count(brg_device_type type);

/* Where the calling thread makes new tensors (brg_empty, brg_zeros,
 * brg_from_data, brg_rand, layers, ...): at first the CPU. Results of ops are
 * where their inputs are. BRG_ERR_DEVICE if there is no such device. */
BRG_API BRG_NODISCARD brg_status brg_device_set(brg_device device);
BRG_API brg_device brg_device_get(void);

/* t on that device: t itself if it is there, else a copy; its gradient is
 * copied back. */
BRG_API brg_tensor *brg_to(brg_tensor *t, brg_device device);

/* Waits for what is queued on the device. */
BRG_API BRG_NODISCARD brg_status brg_device_synchronize(brg_device device);

/* What the process has done on a device so far, to see that a step does none of
 * what it should not: the differences over it are 0. */
typedef struct brg_device_counts {
    uint64_t n_waits;  /* times the host waited for queued work */
    uint64_t n_allocs; /* pieces of memory handed out, most of them reused */
    uint64_t n_graphs; /* launches of recorded graphs */
    size_t reserved;   /* bytes taken from the driver (cudaMalloc) */
} brg_device_counts;

/* All 0 where the device does not count. */
BRG_API BRG_NODISCARD brg_status
brg_device_get_counts(brg_device device, brg_device_counts *filled);

/* The device's own handle of its queue, borrowed (CUDA: a cudaStream_t); NULL
 * where work is done at once. */
BRG_API BRG_NODISCARD brg_status brg_device_stream(brg_device device,
                                                   void **out);

/* "cpu", "cuda" or "cuda:1" as a device; BRG_ERR_ARG for other texts. */
BRG_API BRG_NODISCARD brg_status brg_device_parse(brg_device *out,
                                                  const char *text);

BRG_END_DECLS

#endif
