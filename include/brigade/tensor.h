/* SPDX-License-Identifier: Apache-2.0
 * Tensors: strided views over counted storage, owned by scopes. */
#ifndef BRG_TENSOR_H
#define BRG_TENSOR_H

#include <brigade/status.h>
#include <brigade/types.h>

BRG_BEGIN_DECLS

/* ---- Scopes ----------------------------------------------------------------
 * Every function that returns a tensor returns it *borrowed*: it belongs to
 * the innermost scope of the calling thread, which releases it at its end.
 * Without an open scope such a function fails with BRG_ERR_STATE. A function
 * given a NULL tensor returns NULL and keeps the error that made it NULL, so
 * a model is written as one expression and checked once. */

/* Opens a scope inside the thread's innermost one. Borrowed by the thread;
 * NULL when out of memory. */
BRG_API brg_scope *brg_scope_begin(void);

/* Releases the scope's tensors and those of scopes still open inside it. */
BRG_API void brg_scope_end(brg_scope *scope);

/* Ends `scope` but keeps `t`, which now belongs to the scope outside it;
 * returns t. NULL (and the scope ended) if t is NULL or there is none. */
BRG_API brg_tensor *brg_scope_return(brg_scope *scope, brg_tensor *t);

/* One more reference, to be given back by brg_release; from any thread.
 * NULL is allowed. brg_retain returns t. */
BRG_API brg_tensor *brg_retain(brg_tensor *t);
BRG_API void brg_release(brg_tensor *t);

/* ---- Making tensors --------------------------------------------------------
 * Shapes are `int ndim, const int64_t *shape`; BRG_SHAPE(64, 784) writes both,
 * BRG_SCALAR is a tensor of no dimensions. Sizes may be 0. New tensors are
 * row-major, on the CPU, and do not require gradients. */

#define BRG_SHAPE(...) BRG_LIST(int64_t, __VA_ARGS__)
#define BRG_SCALAR 0, (const int64_t *)0

/* Values not set. */
BRG_API brg_tensor *brg_empty(brg_dtype dtype, int ndim, const int64_t *shape);
BRG_API brg_tensor *brg_zeros(brg_dtype dtype, int ndim, const int64_t *shape);
BRG_API brg_tensor *brg_ones(brg_dtype dtype, int ndim, const int64_t *shape);
/* Of an integer dtype: without the fraction. A number that does not fit (300 into
 * u8, 1e6 into f16) is an error. */
BRG_API brg_tensor *brg_full(brg_dtype dtype, int ndim, const int64_t *shape,
                             double value);
/* A copy of numel elements at `data`. */
BRG_API brg_tensor *brg_from_data(brg_dtype dtype, int ndim,
                                  const int64_t *shape, const void *data);

/* A tensor over memory of the caller's, which must hold numel elements.
 * `free_fn(user)` is called when the last view of it is gone; may be NULL. */
BRG_API brg_tensor *brg_wrap(brg_dtype dtype, int ndim, const int64_t *shape,
                             void *data, void (*free_fn)(void *user),
                             void *user);

/* Another tensor over the storage of t, cut off from its gradient history;
 * writes are seen by both. */
BRG_API brg_tensor *brg_detach(brg_tensor *t);

/* The same storage under any sizes and strides (in elements, offset from the
 * start of the storage), which must stay inside it. Detached. */
BRG_API brg_tensor *brg_as_strided(brg_tensor *t, int ndim,
                                   const int64_t *shape, const int64_t *strides,
                                   int64_t offset);

/* ---- Reading a tensor ------------------------------------------------------ */

BRG_API int brg_tensor_ndim(const brg_tensor *t);
/* ndim sizes, and strides in elements; borrowed from t. */
BRG_API const int64_t *brg_tensor_shape(const brg_tensor *t);
BRG_API const int64_t *brg_tensor_strides(const brg_tensor *t);
/* The size of one dimension; negative dims count from the end. -1 if there
 * is no such dimension. */
BRG_API int64_t brg_tensor_size(const brg_tensor *t, int dim);
BRG_API int64_t brg_tensor_numel(const brg_tensor *t);
BRG_API size_t brg_tensor_nbytes(const brg_tensor *t);
BRG_API brg_dtype brg_tensor_dtype(const brg_tensor *t);
BRG_API brg_device brg_tensor_device(const brg_tensor *t);
BRG_API bool brg_tensor_is_contiguous(const brg_tensor *t);

/* The first element; borrowed, valid while t lives. NULL for a tensor with no
 * memory. The caller who writes through it says so with brg_tensor_touch. */
BRG_API void *brg_tensor_data(const brg_tensor *t);

/* Changes made to the storage so far; views share the count. */
BRG_API uint32_t brg_tensor_version(const brg_tensor *t);
BRG_API void brg_tensor_touch(brg_tensor *t);

/* True if both are views of one storage. */
BRG_API bool brg_tensor_shares_storage(const brg_tensor *a,
                                       const brg_tensor *b);

/* The value of a tensor of one element, converted. */
BRG_API BRG_NODISCARD brg_status brg_tensor_item(const brg_tensor *t,
                                                 double *filled);
/* All elements in row-major order into `filled`, nbytes = numel * element. */
BRG_API BRG_NODISCARD brg_status brg_tensor_read(const brg_tensor *t,
                                                 void *filled, size_t nbytes);
/* The reverse: `data` into t, which counts as a change. Fails on a leaf that
 * requires gradients while they are being recorded. */
BRG_API BRG_NODISCARD brg_status brg_tensor_write(brg_tensor *t,
                                                  const void *data,
                                                  size_t nbytes);

/* A name for messages and checkpoints; copied. NULL name: none. */
BRG_API BRG_NODISCARD brg_status brg_tensor_set_name(brg_tensor *t,
                                                     const char *name);
BRG_API const char *brg_tensor_name(const brg_tensor *t);

/* "f32[64, 784]", and up to `max_items` values per dimension, into `filled`
 * (always terminated); returns the length that the whole text needs. */
BRG_API size_t brg_tensor_describe(const brg_tensor *t, char *filled,
                                   size_t size);
BRG_API size_t brg_tensor_print(const brg_tensor *t, int max_items,
                                char *filled, size_t size);

BRG_END_DECLS

#endif
