/* SPDX-License-Identifier: Apache-2.0
 * Loading and checking the data set, making batches. */
#include "data.h"

#include <inttypes.h>
#include <stdio.h>
#include <unistd.h>

#include <brigade/device.h>
#include <brigade/ops.h>

/* Of the pixels of the training images, as parts of 255. */
#define PIXEL_MEAN 0.2860
#define PIXEL_DEVIATION 0.3530

static brg_status load_file(brg_tensor **out, const char *folder,
                            const char *name)
{
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    if (access(path, F_OK) != 0)
        snprintf(path, sizeof path, "%s/%s.gz", folder, name);
    if (access(path, F_OK) != 0)
        return brg_error_set(BRG_ERR_IO, __FILE__, __LINE__,
                             "no file %s (Debian package dataset-fashion-mnist;"
                             " --data names another folder)",
                             path);
    return brg_idx_load(out, path);
}

static brg_status check_images(const dataset *data, const char *folder,
                               const char *prefix)
{
    const brg_tensor *t = data->images;
    if (brg_tensor_dtype(t) != BRG_DTYPE_U8 || brg_tensor_ndim(t) != 3 ||
        brg_tensor_size(t, 1) != IMAGE_SIZE ||
        brg_tensor_size(t, 2) != IMAGE_SIZE) {
        char found[128];
        brg_tensor_describe(t, found, sizeof found);
        return brg_error_set(BRG_ERR_FORMAT, __FILE__, __LINE__,
                             "%s images in %s are %s, expected u8[n, 28, 28]",
                             prefix, folder, found);
    }
    return BRG_OK;
}

static brg_status check_labels(const dataset *data, const char *folder,
                               const char *prefix)
{
    const brg_tensor *t = data->labels;
    if (brg_tensor_dtype(t) != BRG_DTYPE_U8 || brg_tensor_ndim(t) != 1 ||
        brg_tensor_size(t, 0) != data->n)
        return brg_error_set(BRG_ERR_FORMAT, __FILE__, __LINE__,
                             "%s data in %s: %" PRId64 " images, %" PRId64
                             " labels, expected one byte for each image",
                             prefix, folder, data->n, brg_tensor_numel(t));
    const uint8_t *labels = brg_tensor_data(t);
    for (int64_t i = 0; i < data->n; i++) {
        if (labels[i] >= N_CLASSES)
            return brg_error_set(BRG_ERR_FORMAT, __FILE__, __LINE__,
                                 "%s label %" PRId64
                                 " in %s is %d, expected 0 to %d",
                                 prefix, i, folder, labels[i], N_CLASSES - 1);
    }
    return BRG_OK;
}

brg_status dataset_load(dataset *out, const char *folder, const char *prefix)
{
    char name[64];
    *out = (dataset){0};
    snprintf(name, sizeof name, "%s-images-idx3-ubyte", prefix);
    BRG_TRY(load_file(&out->images, folder, name));
    BRG_TRY(check_images(out, folder, prefix));
    out->n = brg_tensor_size(out->images, 0);
    snprintf(name, sizeof name, "%s-labels-idx1-ubyte", prefix);
    BRG_TRY(load_file(&out->labels, folder, name));
    return check_labels(out, folder, prefix);
}

void dataset_free(dataset *data)
{
    brg_release(data->images);
    brg_release(data->labels);
    *data = (dataset){0};
}

/* On the CPU, where the data are. */
static brg_status read_batch(const dataset *data, const int64_t *rows, size_t n,
                             brg_tensor **images, brg_tensor **labels)
{
    int64_t count = (int64_t)n;
    brg_tensor *pixels =
        brg_empty(BRG_DTYPE_F32, BRG_SHAPE(count, IMAGE_SIZE, IMAGE_SIZE));
    *labels = brg_empty(BRG_DTYPE_I64, BRG_SHAPE(count));
    *images = brg_reshape(pixels, BRG_SHAPE(count, 1, IMAGE_SIZE, IMAGE_SIZE));
    if (*images == NULL || *labels == NULL)
        return brg_error_code();
    BRG_TRY(brg_rows_read(pixels, data->images, rows, n,
                          1.0 / (255.0 * PIXEL_DEVIATION),
                          -PIXEL_MEAN / PIXEL_DEVIATION));
    return brg_rows_read(*labels, data->labels, rows, n, 1.0, 0.0);
}

brg_status dataset_batch(const dataset *data, const int64_t *rows, size_t n,
                         brg_tensor **images, brg_tensor **labels)
{
    brg_device device = brg_device_get();
    BRG_TRY(brg_device_set((brg_device){BRG_DEVICE_CPU, 0}));
    brg_status status = read_batch(data, rows, n, images, labels);
    BRG_TRY(brg_device_set(device));
    BRG_TRY(status);
    *images = brg_to(*images, device);
    *labels = brg_to(*labels, device);
    return *images != NULL && *labels != NULL ? BRG_OK : brg_error_code();
}
