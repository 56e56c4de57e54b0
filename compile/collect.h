/* SPDX-License-Identifier: Apache-2.0
 * Collect: what a backward is, as bytes, and what it brings.
 *
 *   key      everything that decides which plan it needs: the root, then one
 *            record for each node of the graph (its op and attributes, dtypes
 *            and dims, which gradients are there, which hooks), then which dims
 *            are 1, which broadcast; no sizes, no addresses
 *   sizes    of what it brings and of the graph's slots
 *   strides  of what it brings; with the sizes they decide the executable
 *   inputs   the tensors themselves, each once: what nodes saved, and the
 *            gradients of the roots
 *
 * Done on every backward, so nothing here allocates in a steady step. */
#ifndef BRG_COMPILE_COLLECT_H
#define BRG_COMPILE_COLLECT_H

#include "core/autograd/engine.h"

typedef struct brg__bytes {
    unsigned char *at;
    size_t n;
    size_t capacity;
} brg__bytes;

/* How the plan is to be made: beside the graph, part of the key. */
typedef struct brg__collect_mode {
    uint8_t dynamic; /* brg_compile_dynamic */
    uint8_t backend; /* brg_compile_backend */
} brg__collect_mode;

typedef BRG__ARRAY(int64_t) brg__ints;

/* A reducer whose hooks were met. */
typedef struct brg__reduction {
    const brg__reduction_ops *ops;
    void *self;
    bool is_needed; /* this backward accumulates into one of its leaves */
} brg__reduction;

typedef struct brg__collected {
    brg__collect_mode mode;
    brg__bytes key;
    size_t n_structure;        /* bytes of the key before the ones */
    BRG__ARRAY(uint32_t) ends; /* of each record in the key */
    brg__bytes ones;
    brg__ints sizes;
    brg__ints strides;
    BRG__ARRAY(brg_tensor *) inputs; /* retained */
    brg__map index;                  /* tensor -> input */
    /* Of each saved tensor of each visit, in order: its input, or NONE. */
    BRG__ARRAY(int) saved_input;
    BRG__ARRAY(int) first_saved; /* of each visit */
    BRG__ARRAY(int) root_input;  /* of each buffer of the task, or NONE */
    BRG__ARRAY(brg__reduction) reductions;
    BRG__ARRAY(brg__reduction_member) members; /* that this backward makes */
    uint64_t mark;           /* of the gradients that this backward adds to */
    bool is_sparse;          /* a tensor or a .grad of it */
    bool is_elsewhere;       /* something is not on the CPU */
    bool records_graph;      /* create_graph */
    const char *unsupported; /* why no plan can serve; NULL: it can */
} brg__collected;

brg_status brg__collect(brg__collected *c, const brg__task *task,
                        brg__collect_mode mode);
/* Which of the reductions is `self`, or NONE. */
int brg__collected_reduction(const brg__collected *c, const void *self);
/* Lets go of the inputs; keeps the memory. */
void brg__collected_clear(brg__collected *c);
void brg__collected_deinit(brg__collected *c);

#endif
