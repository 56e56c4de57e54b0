/* SPDX-License-Identifier: Apache-2.0
 * A recorded graph: its memory (graph_memory.c) and its launches (graph.c).
 *
 * Memory lies in chunks taken from the driver, cut into blocks. A block freed
 * while the graph is recorded serves what is recorded later: all of it runs in
 * the order in which it was recorded. One freed afterwards waits for the next
 * recording. */
#ifndef BRG_CORE_CUDA_GRAPH_H
#define BRG_CORE_CUDA_GRAPH_H

#include "core/cuda/cu.h"

typedef struct brg__cu_block {
    struct brg__cu_block *next; /* behind it in the chunk */
    char *at;
    size_t nbytes;
    bool is_used;
} brg__cu_block;

typedef struct brg__cu_chunk {
    struct brg__cu_chunk *next;
    char *at;
    size_t nbytes;
    brg__cu_block *first; /* covers all of it */
} brg__cu_chunk;

/* An optimizer's step of the recording. */
typedef struct brg__cu_step {
    struct brg__cu_step *next;
    brg_device_update *updates; /* with the numbers of the next launch */
    size_t n;
    double *numbers; /* 6 for each update: as they were sent */
    double *there;   /* the same on the device */
    bool is_sent;
} brg__cu_step;

/* What is to be done after the first launch. */
typedef struct brg__cu_later {
    struct brg__cu_later *next;
    void *fetch; /* NULL: `at` is to be freed */
    void *at;
    size_t nbytes;
} brg__cu_later;

struct brg__cu_graph {
    brg__cu_graph *next; /* of the GPU */
    cudaGraphExec_t exec;
    brg__cu_chunk *chunks;
    size_t n_used;       /* blocks */
    bool is_orphan;      /* freed, but for memory in use */
    brg_status given_up; /* while it was recorded, for what; or BRG_OK */
    char why[80];
    brg__cu_step *steps, **last_step;
    brg__cu_later *later, **last_later;
};

/* Before the recording ends: nothing of it is left out of the stream
 * (graph_join.c). */
brg_status brg__cu_graph_join(brg__cu *cu);

/* Puts it into the list of the GPU's graphs; takes it from there and frees it,
 * now or with its last block. */
void brg__cu_graph_enlist(brg__cu *cu, brg__cu_graph *g);
void brg__cu_graph_drop(brg__cu *cu, brg__cu_graph *g);
brg_status brg__cu_block_alloc(brg__cu *cu, brg__cu_graph *g, void **out,
                               size_t nbytes);
/* False: it is of no graph. */
bool brg__cu_block_free(brg__cu *cu, void *ptr);

#endif
