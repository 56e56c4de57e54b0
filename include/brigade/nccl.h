/* SPDX-License-Identifier: Apache-2.0
 * The NCCL backend: what brg_pg_create(&pg, "nccl", ...) takes. */
#ifndef BRG_NCCL_H
#define BRG_NCCL_H

#include <brigade/comm.h>
#include <brigade/device.h>

BRG_BEGIN_DECLS

/* One GPU per rank. Collectives run on a stream of high priority, behind what
 * is queued on the device when they start; brg_work_wait makes what is queued
 * next wait for them and returns: the host waits for nothing. Buffers in host
 * memory are taken too: they are copied, and waiting for them is waiting.
 *
 * What NCCL does differently from the other backends: sums are in NCCL's order
 * (and of 16-bit floats rounded at each step, unless BRG_NCCL_WIDE_SUMS is 1:
 * sums of f16 overflow where a partial sum does; averages do not, their numbers
 * are divided first), and a NaN does not win MIN and MAX. brg_sum_leaves has the
 * bits that it has everywhere. Sums that BRG_NCCL_SUMS takes from NCCL are in
 * the order of the ranks, of 16-bit floats in f32.
 *
 * Between brg_coalesce_begin and brg_coalesce_end collectives are kept, then
 * launched as one: for many small ones, whose launches are what takes time. Sums
 * that BRG_NCCL_SUMS takes from NCCL, reproducible ones too, are launched by
 * themselves, behind those before them.
 *
 * A thread of the group looks, 20 times a second, whether the ranks of this
 * machine are alive and make the same calls (those of other machines: only what
 * NCCL notices), and whether what was queued ends within the time-out, which
 * counts from the start of a call, or from the end of the one before it. If not,
 * what runs is ended, so that no wait of the host for the GPU lasts for ever,
 * and the next call of the group fails with BRG_ERR_PEER, BRG_ERR_MISMATCH or
 * BRG_ERR_TIMEOUT, which names the rank and the call. What was queued behind has
 * used sums without a meaning by then.
 *
 * Recorded steps that hold calls of a group (`replay`, compile.h) must be
 * destroyed before it. */

/* backend_data of brg_pg_options. */
typedef struct brg_nccl_options {
    size_t struct_size;
    int rank;
    int world_size;
    brg_device device; /* this rank's GPU */
    void *stream;      /* its queue, a cudaStream_t: brg_device_stream */
    /* How the ranks find each other. Sends `nbytes` at `data` from rank 0 to
     * all. */
    brg_status (*broadcast)(void *user, void *data, size_t nbytes);
    /* recv[r * nbytes ..] = rank r's send. NULL: the ranks know nothing of each
     * other, so errors name none of them. */
    brg_status (*all_gather)(void *user, void *recv, const void *send,
                             size_t nbytes);
    void *user; /* used while the group is made */
} brg_nccl_options;

/* These two over another group: one of MPI, or of files (file.h). */
static inline brg_status brg_nccl_broadcast_over(void *pg, void *data,
                                                 size_t nbytes)
{
    brg_work *work;
    brg_status status =
        brg_broadcast((brg_pg *)pg, &work, data, nbytes, BRG_DTYPE_U8, 0);
    return status == BRG_OK ? brg_work_wait(work) : status;
}

static inline brg_status
brg_nccl_all_gather_over(void *pg, void *recv, const void *send, size_t nbytes)
{
    brg_work *work;
    brg_status status =
        brg_all_gather((brg_pg *)pg, &work, recv, send, nbytes, BRG_DTYPE_U8);
    return status == BRG_OK ? brg_work_wait(work) : status;
}

/* The NCCL group of the ranks of `over`, each on its `device`. Collective.
 * *out: owned. */
static inline brg_status brg_nccl_create(brg_pg **out, brg_pg *over,
                                         brg_device device)
{
    brg_nccl_options nccl = {sizeof(brg_nccl_options),
                             brg_pg_rank(over),
                             brg_pg_world_size(over),
                             device,
                             NULL,
                             brg_nccl_broadcast_over,
                             brg_nccl_all_gather_over,
                             over};
    brg_pg_options options = {sizeof(brg_pg_options), 0, &nccl};
    brg_status status = brg_device_stream(device, &nccl.stream);
    return status == BRG_OK ? brg_pg_create(out, "nccl", &options) : status;
}

/* The backend, for programs that link it: brg_backend_register takes it.
 * brg_pg_create finds it by name otherwise. */
BRG_API const brg_backend *brg_comm_nccl(void);

BRG_END_DECLS

#endif
