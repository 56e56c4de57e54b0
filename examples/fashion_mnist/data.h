/* SPDX-License-Identifier: Apache-2.0
 * Fashion-MNIST (or any data set of its form): the whole set in memory as
 * bytes, batches as normalised f32. */
#ifndef EXAMPLES_FASHION_MNIST_DATA_H
#define EXAMPLES_FASHION_MNIST_DATA_H

#include <brigade/io.h>
#include <brigade/ops.h>

#define N_CLASSES 10
#define IMAGE_SIZE 28

typedef struct dataset {
    brg_tensor *images; /* u8 (n, 28, 28) */
    brg_tensor *labels; /* u8 (n) */
    int64_t n;
} dataset;

/* Reads <folder>/<prefix>-images-idx3-ubyte[.gz] and the labels beside it;
 * prefix is "train" or "t10k". Freed by dataset_free, also after a failure. */
BRG_NODISCARD brg_status dataset_load(dataset *out, const char *folder,
                                      const char *prefix);
void dataset_free(dataset *data);

/* The samples `rows`: images as f32 (n, 1, 28, 28) of mean 0 and variance 1,
 * labels as i64 (n). Borrowed from the scope. */
BRG_NODISCARD brg_status dataset_batch(const dataset *data, const int64_t *rows,
                                       size_t n, brg_tensor **images,
                                       brg_tensor **labels);

#endif
