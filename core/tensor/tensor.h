/* SPDX-License-Identifier: Apache-2.0
 * The tensor object, its storage, and how both are made.
 *
 * A tensor is a view: sizes, strides and an offset into a storage. A *meta*
 * tensor has no storage: only its sizes and dtype are known (a gradient rule
 * gets one where it needs a shape but no values).
 *
 * What the gradient machinery knows of a tensor hangs behind `grad_info`,
 * whose first member is its destructor, so that this room need not know it. */
#ifndef BRG_CORE_TENSOR_TENSOR_H
#define BRG_CORE_TENSOR_TENSOR_H

#include <brigade/tensor.h>

#include "core/base/refcount.h"

typedef struct brg__storage {
    brg__refcount refs;
    _Atomic uint32_t version;
    brg_device device;
    void *data;
    size_t nbytes;
    void (*free_fn)(void *user); /* external memory; NULL: from the device */
    void *user;
    bool is_external;
    _Atomic uint64_t mark; /* of who looked last: compile/aliases.h */
    uint64_t born_in;      /* id of the capture that was under way, or 0 */
} brg__storage;

typedef struct brg__sparse brg__sparse; /* sparse.h */

typedef struct brg__grad_info {
    void (*destroy)(struct brg__grad_info *info);
} brg__grad_info;

struct brg_tensor {
    brg__refcount refs;
    uint8_t ndim;
    uint8_t dtype; /* brg_dtype */
    bool is_contiguous;
    brg_device device;
    int64_t numel;
    int64_t offset; /* of the first element, in elements */
    int64_t shape[BRG_MAX_DIMS];
    int64_t stride[BRG_MAX_DIMS];
    brg__storage *storage; /* NULL: meta, or sparse */
    brg__sparse *sparse;   /* NULL: dense */
    brg__grad_info *grad_info;
    /* The tensor this one is a recorded view of, itself no view; retained.
     * A change in place of either is a change of both. */
    brg_tensor *base;
    char *name;
    void *symbol; /* set while a capture runs: the value it stands for */
};

/* The symbol of a tensor that shows another's shape but has no values. The
 * value's number is in the low 32 bits of both. */
#define BRG__SYMBOL_SHAPE ((uintptr_t)1 << (8 * sizeof(uintptr_t) - 2))

static inline void *brg__symbol_of_shape(void *symbol)
{
    return (void *)((uintptr_t)symbol | BRG__SYMBOL_SHAPE);
}

/* The symbol of a gradient handed to a traceable function: whether it is
 * row-major may be asked, and the plan sees to it that it is. */
#define BRG__SYMBOL_GRADIENT ((uintptr_t)1 << (8 * sizeof(uintptr_t) - 3))

#define BRG_CPU ((brg_device){BRG_DEVICE_CPU, 0})

/* Sizes, strides and dtype of a tensor to be made. */
typedef struct brg__layout {
    brg_dtype dtype;
    brg_device device;
    int ndim;
    int64_t shape[BRG_MAX_DIMS];
    int64_t stride[BRG_MAX_DIMS];
    int64_t offset;
} brg__layout;

/* Checks a shape given by a user and lays it out row-major. */
brg_status brg__layout_init(brg__layout *layout, const char *op,
                            brg_dtype dtype, int ndim, const int64_t *shape);
/* The layout of an existing tensor. */
brg__layout brg__layout_of(const brg_tensor *t);
/* The same from the beginning of a storage; and row-major besides. */
brg__layout brg__layout_from_start(const brg_tensor *t);
brg__layout brg__layout_row_major(const brg_tensor *t);

/* Gives t the sizes, strides, dtype and device of the layout. */
void brg__tensor_lay_out(brg_tensor *t, const brg__layout *layout);

/* ---- Construction: the caller owns one reference --------------------------- */

/* Fresh memory for the layout (offset 0); values not set. */
brg_status brg__tensor_new(brg_tensor **out, const brg__layout *layout);
/* A view of `storage`, which is retained; NULL makes a meta tensor. */
brg_status brg__tensor_new_view(brg_tensor **out, const brg__layout *layout,
                                brg__storage *storage);
/* Sizes and dtype of t without its memory. */
brg_status brg__tensor_new_meta(brg_tensor **out, const brg_tensor *t);
/* Row-major memory of t's shape and dtype on that device; values not set. */
brg_status brg__tensor_new_like(brg_tensor **out, const brg_tensor *t,
                                brg_device device);
/* The same storage, no history. */
brg_status brg__tensor_new_alias(brg_tensor **out, const brg_tensor *t);

/* brg_empty on the CPU, whatever the thread's device. */
brg_tensor *brg__empty_host(brg_dtype dtype, int ndim, const int64_t *shape);

/* ---- Scopes ---------------------------------------------------------------- */

/* Hands the caller's reference to the innermost scope; returns t. On failure
 * (no scope, no memory) releases it and returns NULL. */
brg_tensor *brg__scope_adopt(brg_tensor *t);

/* ---- Storage --------------------------------------------------------------- */

brg_status brg__storage_new(brg__storage **out, brg_device device,
                            size_t nbytes);
void brg__storage_retain(brg__storage *storage);
void brg__storage_release(brg__storage *storage);

/* Set when a user asks a symbol for what only a tensor has: sizes, memory. */
extern _Thread_local bool brg__symbol_was_read;
/* Set when a user asks the symbol of a gradient whether it is row-major. */
extern _Thread_local bool brg__symbol_layout_was_asked;

/* ---- Small questions ------------------------------------------------------- */

static inline size_t brg__tensor_item_size(const brg_tensor *t)
{
    static const uint8_t sizes[BRG_N_DTYPES] = {8, 4, 2, 2, 8, 4, 1, 1};
    return sizes[t->dtype];
}

static inline void *brg__tensor_ptr(const brg_tensor *t)
{
    return (char *)t->storage->data +
           (size_t)t->offset * brg__tensor_item_size(t);
}

static inline bool brg__tensor_is_meta(const brg_tensor *t)
{
    return t->storage == NULL && t->sparse == NULL;
}

static inline bool brg__tensor_is_float(const brg_tensor *t)
{
    return t->dtype <= BRG_DTYPE_BF16;
}

/* "f32[64, 784]", with the name if there is one. Returns `text`. */
#define BRG_TENSOR_TEXT_MAX 256
char *brg__tensor_text(const brg_tensor *t, char text[BRG_TENSOR_TEXT_MAX]);

#endif
