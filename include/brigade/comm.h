/* SPDX-License-Identifier: Apache-2.0
 * Process groups: asynchronous collectives among the ranks of a program. */
#ifndef BRG_COMM_H
#define BRG_COMM_H

#include <brigade/status.h>
#include <brigade/types.h>

BRG_BEGIN_DECLS

/* ---- Groups ---------------------------------------------------------------
 * A group belongs to one thread at a time. Every rank must submit the same
 * collectives in the same order. A call made with bad arguments fails at once
 * and leaves the group usable; a communication failure is sticky: every later
 * call on the group returns it. Messages name the rank. */

/* Options of brg_pg_create; zero means default. */
typedef struct brg_pg_options {
    size_t struct_size;
    double timeout_s;         /* of each wait; 0: what BRG_TIMEOUT_S says */
    const void *backend_data; /* borrowed; what the backend's header says */
} brg_pg_options;

#define BRG_PG_OPTIONS_INIT BRG_INIT(brg_pg_options)

/* Makes this process's end of a group through a backend: "mpi", "self" (a group
 * of one), "file" (file.h), "auto" (mpi where a launcher started this process, see
 * brg_launch_rank, else self), or what brg_backend_register named; a component
 * library is loaded if needed. *out: owned. Collective. */
BRG_API BRG_NODISCARD brg_status brg_pg_create(brg_pg **out,
                                               const char *backend,
                                               const brg_pg_options *options);

/* What mpirun or srun says of this process in its environment, before there is a
 * group: its rank; its number among the processes of this machine, by which it
 * may choose a GPU. -1: no launcher says so. */
BRG_API int brg_launch_rank(void);
BRG_API int brg_launch_local_rank(void);

/* A group of `world_size` in which only `rank` exists: all-reduce and
 * broadcast leave the data as it is, all-gather copies it to every slot, and
 * each call is logged (brg_fake_*). For tests of what is sent. *out: owned. */
BRG_API BRG_NODISCARD brg_status brg_pg_create_fake(brg_pg **out, int rank,
                                                    int world_size);

/* A group of one: collectives are local. *out: owned. */
BRG_API BRG_NODISCARD brg_status brg_pg_create_self(brg_pg **out);

/* Waits for nothing: works still in flight complete with an error. A group that
 * reducers (of a ddp, an averager) still use stays until the last of them is
 * destroyed, which the log mentions. NULL is allowed, and so is the group of a
 * simulated world: nothing happens. */
BRG_API void brg_pg_destroy(brg_pg *pg);

/* For the ranks of `pg` that are left when others have died, failed or ended,
 * after an error that their calls got: a group of these, with their old order.
 * Collective among them: returns when each has called it or is gone. `pg` is
 * over then, also where it had not failed, and is still to be destroyed. Fails
 * with BRG_ERR_UNSUPPORTED where the backend has nothing to do it with (`pg` is
 * as it was); MPI needs its fault tolerance (docs/failures.md). *out: owned. */
BRG_API BRG_NODISCARD brg_status brg_pg_shrink(brg_pg **out, brg_pg *pg);

BRG_API int brg_pg_rank(const brg_pg *pg);
BRG_API int brg_pg_world_size(const brg_pg *pg);
BRG_API const char *brg_pg_backend_name(const brg_pg *pg);

/* Host (or device) memory from which this group reduces fastest: MPI ranks of
 * one node share it. Zero-filled; aligned to 64 bytes. *out: owned by the
 * group, given back by brg_pg_free or with the group. Collective: every rank
 * asks for the same size in the same order. */
BRG_API BRG_NODISCARD brg_status brg_pg_alloc(brg_pg *pg, void **out,
                                              size_t nbytes);
BRG_API void brg_pg_free(brg_pg *pg, void *ptr);

/* ---- Collectives ----------------------------------------------------------
 * Each starts and returns; buffers must stay alive and untouched until the
 * work is done. *out: owned by the caller, until brg_work_wait or
 * brg_work_release; on failure NULL. Counts are in elements; 0 is allowed.
 * 16-bit floats are summed in f32 and rounded once; sums run in rank order,
 * so the bits are the same on every rank and every backend. AVG is the sum
 * times 1/world size, rounded once; of integers, the sum divided towards
 * zero. Integers wrap; bool is reduced as u8. NaN wins MIN and MAX. */

BRG_API BRG_NODISCARD brg_status brg_all_reduce(brg_pg *pg, brg_work **out,
                                                void *data, size_t count,
                                                brg_dtype dtype,
                                                brg_reduce_op op);

/* recv (count elements) = reduction over ranks of their send[rank * count..].
 * send holds count * world size elements and may contain recv in place. */
BRG_API BRG_NODISCARD brg_status
brg_reduce_scatter(brg_pg *pg, brg_work **out, void *recv, const void *send,
                   size_t count, brg_dtype dtype, brg_reduce_op op);

/* recv[r * count..] = rank r's send, for every r. send may be in place. */
BRG_API BRG_NODISCARD brg_status brg_all_gather(brg_pg *pg, brg_work **out,
                                                void *recv, const void *send,
                                                size_t count, brg_dtype dtype);

BRG_API BRG_NODISCARD brg_status brg_broadcast(brg_pg *pg, brg_work **out,
                                               void *data, size_t count,
                                               brg_dtype dtype, int root);

BRG_API BRG_NODISCARD brg_status brg_barrier(brg_pg *pg, brg_work **out);

/* Point to point: matched in order between each pair of ranks. */
BRG_API BRG_NODISCARD brg_status brg_send(brg_pg *pg, brg_work **out,
                                          const void *data, size_t count,
                                          brg_dtype dtype, int peer);
BRG_API BRG_NODISCARD brg_status brg_recv(brg_pg *pg, brg_work **out,
                                          void *data, size_t count,
                                          brg_dtype dtype, int peer);

/* ---- The reproducible sum ---------------------------------------------------
 * The sum of n_leaves arrays in one fixed binary tree: the bits do not depend
 * on how many ranks share the leaves, on how the elements are cut into calls,
 * or on the backend. */

/* A rank's part of it: leaves [first, first + n). A rank adds them up as far
 * as the tree has nodes inside its run, in slots: arrays of count elements of
 * the dtype, or of f32 for 16-bit floats. */
typedef struct brg_leaf_run {
    uint32_t n_leaves; /* of all ranks together */
    uint32_t first;
    uint32_t n;
    uint32_t n_parts; /* sums that remain, in the first slots; 1 where the run
                         is a node of the tree */
    uint32_t n_slots; /* enough for any rank */
} brg_leaf_run;

/* Runs differ by one leaf at most. Fails with BRG_ERR_ARG unless n_leaves is
 * from world_size to 4096. */
BRG_API BRG_NODISCARD brg_status brg_leaf_run_of(brg_leaf_run *filled,
                                                 uint32_t n_leaves, int rank,
                                                 int world_size);

/* The slot into which the i-th leaf of the run is to be written. Pure. */
BRG_API uint32_t brg_leaf_slot(const brg_leaf_run *run, uint32_t i);

/* The i-th leaf of the run is in its slot (slot k at slots + k * stride
 * bytes): adds what can be added. After the last one the first n_parts slots
 * hold the parts. */
BRG_API void brg_leaf_add(const brg_leaf_run *run, uint32_t i, void *slots,
                          size_t stride, size_t count, brg_dtype dtype);

/* The parts of a rank: of the dtype, or of f32 for 16-bit floats. */
typedef struct brg_leaf_parts {
    const void *data; /* borrowed: part k at data + k * stride bytes */
    size_t stride;
    uint32_t n_leaves; /* of all ranks together */
} brg_leaf_parts;

/* recv (count elements of dtype) = the sum of all leaves; AVG: times 1 /
 * n_leaves. Other ops are errors. recv may be the first part, in place, if
 * parts have the dtype; else it does not overlap them. Fastest where both are
 * in memory of brg_pg_alloc. Parts other than recv keep their contents. */
BRG_API BRG_NODISCARD brg_status brg_sum_leaves(brg_pg *pg, brg_work **out,
                                                void *recv,
                                                const brg_leaf_parts *parts,
                                                size_t count, brg_dtype dtype,
                                                brg_reduce_op op);

/* Several collectives as one submission: those started between begin and end
 * may be launched as one, at the latest by end, on all ranks the same ones. A
 * buffer that one of them writes is used by no other of them. None is waited
 * for before end (BRG_ERR_STATE, and the work is released). An end that fails is
 * one all the same; waits for what was not launched fail then. */
BRG_API BRG_NODISCARD brg_status brg_coalesce_begin(brg_pg *pg);
BRG_API BRG_NODISCARD brg_status brg_coalesce_end(brg_pg *pg);

/* ---- Work ----------------------------------------------------------------- */

/* Moves the group's messages and says whether this work is done. An error of
 * the work counts as done. NULL counts as done. */
BRG_API bool brg_work_test(brg_work *work);

/* Waits until done, releases the work whatever comes, and returns its status;
 * the caller's error record gets its message. */
BRG_API BRG_NODISCARD brg_status brg_work_wait(brg_work *work);

/* Gives up the handle; the collective goes on. NULL is allowed. */
BRG_API void brg_work_release(brg_work *work);

/* Moves messages without waiting; what the engine calls between nodes. */
BRG_API void brg_pg_progress(brg_pg *pg);

/* The group's sticky error, or BRG_OK; copied to the caller's record. */
BRG_API BRG_NODISCARD brg_status brg_pg_error(brg_pg *pg);

/* Counters of this end since creation. */
typedef struct brg_pg_stats {
    uint64_t n_collectives;
    uint64_t n_bytes; /* sum of the payloads given to collectives */
    uint64_t wait_ns; /* spent inside brg_work_wait, less what was over at
                          once */
    uint64_t n_polls; /* calls of progress */
} brg_pg_stats;

BRG_API void brg_pg_get_stats(const brg_pg *pg, brg_pg_stats *filled);

/* ---- The fake group's log -------------------------------------------------- */

typedef struct brg_fake_call {
    const char *name; /* "all_reduce", ... */
    size_t count;
    brg_dtype dtype;
    brg_reduce_op op;
    int peer; /* root, source or destination; -1 where there is none */
} brg_fake_call;

BRG_API size_t brg_fake_n_calls(const brg_pg *pg);
BRG_API brg_status brg_fake_call_at(const brg_pg *pg, size_t i,
                                    brg_fake_call *filled);
/* The n-th collective from now (0: the next) starts, but its wait fails with
 * BRG_ERR_COMM, and so does every call after it. -1: none does, and a group
 * that has failed works again. */
BRG_API brg_status brg_fake_fail_after(brg_pg *pg, int64_t n);

/* ---- The simulated world ---------------------------------------------------
 * n ranks in one process with true sums. Each rank runs on a thread of its
 * own, but only one at a time: a scheduler passes the turn at communication
 * points, in an order drawn from the seed, so a run repeats exactly. */

typedef struct brg_sim_options {
    size_t struct_size;
    uint64_t seed;
    int node_size; /* ranks per simulated node, what remains on the last; 0:
                      all on one */
    /* Of virtual time, faults and replays: sim.h. */
    uint64_t latency_ns;                /* of one message */
    double bytes_per_s;                 /* 0: no time passes for them */
    const struct brg_sim_fault *faults; /* borrowed */
    size_t n_faults;
    const char *replay;   /* the first choices, "0.2.1", as messages of failures
                           give them; NULL: all by the seed */
    double timeout_s;     /* of each wait, in virtual time; 0: BRG_TIMEOUT_S */
    size_t trace_records; /* kept of each rank; 0: 256 */
    const struct brg_sim_arrival *arrivals; /* borrowed */
    size_t n_arrivals;
} brg_sim_options;

#define BRG_SIM_OPTIONS_INIT BRG_INIT(brg_sim_options)

/* One rank's program. `pg` is borrowed: the world destroys it. */
typedef brg_status (*brg_sim_rank_fn)(brg_pg *pg, void *user);

/* Runs `fn` on every rank and returns when all have ended. The first failing
 * rank's status is returned, with "seed s: rank r: " before its message, which
 * repeats the run; a rank that
 * ends early, or waits for ranks that have ended, makes the others' waits fail
 * with BRG_ERR_PEER instead of hanging. */
BRG_API BRG_NODISCARD brg_status brg_sim_run(int world_size,
                                             const brg_sim_options *options,
                                             brg_sim_rank_fn fn, void *user);

/* ---- Backends -------------------------------------------------------------- */

/* Makes a backend known by its name; `backend` must stay valid. */
BRG_API BRG_NODISCARD brg_status
brg_backend_register(const brg_backend *backend);

/* Loads libbrigade_<name> and registers what it exports. Does nothing if the
 * name is known already. */
BRG_API BRG_NODISCARD brg_status brg_backend_load(const char *name);

BRG_END_DECLS

#endif
