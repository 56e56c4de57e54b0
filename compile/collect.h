/* SPDX-License-Identifier: Apache-2.0
 * Collect: what a backward is, as bytes, and what it brings.
 *
 *   key     everything that decides which plan it needs: the graph's nodes,
 *           their ops and attributes, dtypes and dims, which gradients are
 *           there, which hooks; no sizes, no addresses
 *   sizes   sizes and strides of what it brings, which decide the executable
 *   inputs  the tensors themselves, each once: what nodes saved, and the
 *           gradients of the roots
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

typedef struct brg__collected {
    brg__bytes key;
    brg__bytes sizes;
    BRG__ARRAY(brg_tensor *) inputs; /* retained */
    brg__map index;                  /* tensor -> input */
    BRG__ARRAY(int)
    saved_input;                 /* of each saved tensor of each visit, in
                                        order: its input, or NONE */
    BRG__ARRAY(int) first_saved; /* of each visit */
    BRG__ARRAY(int) root_input;  /* of each buffer of the task, or NONE */
    const char *unsupported;     /* why no plan can serve; NULL: it can */
} brg__collected;

brg_status brg__collect(brg__collected *c, const brg__task *task);
/* Lets go of the inputs; keeps the memory. */
void brg__collected_clear(brg__collected *c);
void brg__collected_deinit(brg__collected *c);

#endif
