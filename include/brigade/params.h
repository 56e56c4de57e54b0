/* SPDX-License-Identifier: Apache-2.0
 * The named tensors of a model: what optimizer, reducer and files share. */
#ifndef BRG_PARAMS_H
#define BRG_PARAMS_H

#include <brigade/status.h>
#include <brigade/types.h>

BRG_BEGIN_DECLS

/* A name and its tensor, both borrowed. */
typedef struct brg_named_tensor {
    const char *name;
    brg_tensor *tensor;
} brg_named_tensor;

/* Changed by the optimizer, or by the model itself (running statistics). */
typedef enum brg_param_kind {
    BRG_PARAM_TRAINED = 0,
    BRG_PARAM_BUFFER = 1
} brg_param_kind;

typedef struct brg_param {
    const char *name;
    brg_tensor *tensor;
    brg_param_kind kind;
} brg_param;

/* An ordered list of named tensors, one reference to each. One thread at a
 * time; the order of adding is the order of everything that follows from it,
 * so that ranks which build the same model agree. */
typedef struct brg_params brg_params;

/* *out: owned. */
BRG_API BRG_NODISCARD brg_status brg_params_create(brg_params **out);
BRG_API void brg_params_destroy(brg_params *params);

/* Retains `tensor` and gives it the name, which is copied. A trained one must
 * have a float dtype and is made to require gradients. Fails with
 * BRG_ERR_ARG if the name is empty or taken. */
BRG_API BRG_NODISCARD brg_status brg_params_add(brg_params *params,
                                                const char *name,
                                                brg_tensor *tensor,
                                                brg_param_kind kind);

BRG_API size_t brg_params_count(const brg_params *params);
/* The i-th, or NULL past the last; borrowed until the next change. */
BRG_API const brg_param *brg_params_at(const brg_params *params, size_t i);
/* The tensor of that name, borrowed from params; NULL if there is none. */
BRG_API brg_tensor *brg_params_find(const brg_params *params, const char *name);
/* The tensors of one kind, *n of them, in the order of adding: what brg_ddp
 * takes. Borrowed until the next change. */
BRG_API brg_tensor *const *brg_params_tensors(const brg_params *params,
                                              brg_param_kind kind, size_t *n);
/* Elements of all trained tensors together. */
BRG_API int64_t brg_params_numel(const brg_params *params);

BRG_END_DECLS

#endif
