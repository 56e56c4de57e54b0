/* SPDX-License-Identifier: Apache-2.0
 * Composites: objects made of several tensors that functions and ops take
 * apart and put together again, gradients flowing through the parts. */
#ifndef BRG_COMPOSITE_H
#define BRG_COMPOSITE_H

#include <brigade/ext/op.h>
#include <brigade/function.h>
#include <brigade/tensor.h>

BRG_BEGIN_DECLS

/* Immutable once made; any thread may hold and read one. */
typedef struct brg_composite brg_composite;

#define BRG_MAX_COMPOSITE_TENSORS 8

/* What a kind of composite is. Static: it outlives its composites. */
typedef struct brg_composite_class {
    size_t struct_size;
    const char *name;
    /* The parts that ops see, always in the same order: fills tensors[0..*n),
     * borrowed from the object. */
    brg_status (*flatten)(const void *object, brg_tensor **tensors, size_t *n);
    /* *out: a new object, owned, that retains these parts and for the rest is
     * like `like`. Fails if the parts do not fit. */
    brg_status (*unflatten)(void **out, const void *like,
                            brg_tensor *const *tensors, size_t n);
    void (*destroy)(void *object);
} brg_composite_class;

#define BRG_COMPOSITE_CLASS_INIT .struct_size = sizeof(brg_composite_class)

/* ---- Life --------------------------------------------------------------------- */

/* *out: owned, one reference. Takes `object` over, unless it fails. */
BRG_API BRG_NODISCARD brg_status brg_composite_create(
    brg_composite **out, const brg_composite_class *cls, void *object);
/* NULL is allowed. brg_composite_retain returns c. */
BRG_API brg_composite *brg_composite_retain(brg_composite *c);
BRG_API void brg_composite_release(brg_composite *c);

/* The object, borrowed from c; NULL with BRG_ERR_ARG if c is of another
 * class. */
BRG_API void *brg_composite_object(const brg_composite *c,
                                   const brg_composite_class *cls);

/* ---- Parts -------------------------------------------------------------------- */

/* Fills tensors[0..*n), room for BRG_MAX_COMPOSITE_TENSORS; borrowed from c. */
BRG_API BRG_NODISCARD brg_status brg_composite_flatten(const brg_composite *c,
                                                       brg_tensor **tensors,
                                                       size_t *n);
/* *out: owned; made of these parts (retained), for the rest like `like`. */
BRG_API BRG_NODISCARD brg_status
brg_composite_unflatten(brg_composite **out, const brg_composite *like,
                        brg_tensor *const *tensors, size_t n);
/* Whether a part does. */
BRG_API bool brg_composite_requires_grad(const brg_composite *c);

/* ---- Ops and functions of composites ----------------------------------------------
 * BRG_ERR_ARG for inputs of different classes or numbers of parts; otherwise
 * the errors of fn, op, function and the class. */

/* One part of the result from the same part of each input. */
typedef brg_status (*brg_composite_fn)(brg_tensor *const *parts, size_t n_parts,
                                       brg_tensor **result, void *user);

/* *out: owned; like in[0], each part being fn of the inputs' parts. All inputs
 * must be of one class and number of parts. Recorded as the ops that fn calls. */
BRG_API BRG_NODISCARD brg_status brg_composite_map(brg_composite **out,
                                                   brg_composite_fn fn,
                                                   void *user,
                                                   brg_composite *const *in,
                                                   size_t n_in);
/* The same with an op of one output. */
BRG_API BRG_NODISCARD brg_status brg_composite_map_op(brg_composite **out,
                                                      const brg_op *op,
                                                      brg_composite *const *in,
                                                      size_t n_in,
                                                      const brg_attrs *attrs);
/* One call of a custom function: its arguments are all parts of in[0], then of
 * in[1] and so on, its outputs the parts of *out, which is owned and like
 * in[0]. */
BRG_API BRG_NODISCARD brg_status
brg_composite_apply(brg_composite **out, const brg_function *function,
                    brg_composite *const *in, size_t n_in);

/* ---- Pairs: two tensors -------------------------------------------------------- */

BRG_API extern const brg_composite_class brg_pair_class;
BRG_API BRG_NODISCARD brg_status brg_pair_create(brg_composite **out,
                                                 brg_tensor *first,
                                                 brg_tensor *second);

/* ---- Jagged tensors: rows of different lengths ----------------------------------- */

/* One part, the values (all rows one after the other along dim 0); the offsets
 * (i64, one more than rows, from 0 up to the size of dim 0) are not for ops to
 * see and stay as they are. */
BRG_API extern const brg_composite_class brg_jagged_class;
BRG_API BRG_NODISCARD brg_status brg_jagged_create(brg_composite **out,
                                                   brg_tensor *values,
                                                   brg_tensor *offsets);
/* Borrowed from c; NULL if c is not jagged. */
BRG_API brg_tensor *brg_jagged_values(const brg_composite *c);
BRG_API brg_tensor *brg_jagged_offsets(const brg_composite *c);
/* -1 if c is not jagged. */
BRG_API int64_t brg_jagged_n_rows(const brg_composite *c);
/* Row i: a view of the values, borrowed from the scope. */
BRG_API brg_tensor *brg_jagged_row(const brg_composite *c, int64_t i);

BRG_END_DECLS

#endif
