/* SPDX-License-Identifier: Apache-2.0
 * For authors of ops: one row describes an op completely. The library's own
 * ops are rows of the same kind (core/ops/ops.def). */
#ifndef BRG_EXT_OP_H
#define BRG_EXT_OP_H

#include <brigade/tensor.h>

BRG_BEGIN_DECLS

#define BRG_OP_ABI 2
#define BRG_MAX_OP_INPUTS 8
#define BRG_MAX_OP_OUTPUTS 4

/* What an op is told besides its tensors. `i` is structure (dims, strides of
 * a window, flags): two calls that differ in it are different calls. `f` are
 * scalars: values, like those of a tensor. */
typedef struct brg_attrs {
    int64_t i[12];
    double f[4];
} brg_attrs;

/* Sizes and dtype of one output, filled by `infer`. */
typedef struct brg_out_info {
    brg_dtype dtype;
    int ndim;
    int64_t shape[BRG_MAX_DIMS];
    /* A view op also says: a view of input `view_of`, with these strides and
     * this offset (in elements, from the start of the storage). */
    bool is_view;
    int view_of;
    int64_t stride[BRG_MAX_DIMS];
    int64_t offset;
    /* A sparse tensor: `run` makes it, as one borrowed from the scope. */
    bool is_sparse;
    /* Not where the inputs are, but on `device`. */
    bool is_elsewhere;
    brg_device device;
} brg_out_info;

/* One call of an op on its way from arguments to results. */
typedef struct brg_op_call {
    const brg_op *op;
    int n_in;
    int n_out;
    brg_tensor *const *in; /* NULL where an optional input is absent */
    const brg_attrs *attrs;
    brg_tensor *out[BRG_MAX_OP_OUTPUTS]; /* borrowed from the scope */
    brg_out_info info[BRG_MAX_OP_OUTPUTS];
} brg_op_call;

/* The gradient rule's view of a recorded call. `in` and `out` hold what the
 * row saves: the tensor, a meta tensor (shape and dtype only), or NULL. */
typedef struct brg_vjp {
    const brg_op *op;
    const brg_attrs *attrs;
    int n_in;
    int n_out;
    brg_tensor *const *in;
    brg_tensor *const *out;
    brg_tensor *const *grad_out; /* of differentiable outputs; NULL: zero */
    brg_tensor *grad_in[BRG_MAX_OP_INPUTS]; /* to fill; borrowed (scope) */
    uint32_t needs;                         /* bit i: grad_in[i] is wanted */
    /* The result will be differentiated again: use differentiable ops only. */
    bool is_differentiable;
} brg_vjp;

static inline bool brg_vjp_needs(const brg_vjp *v, int i)
{
    return (v->needs >> i) & 1u;
}

/* Says which gradient the following ops make (-1: none in particular), so
 * that its result may be written where it will be wanted. */
BRG_API void brg_vjp_select(int i);

/* grad_in[i] = expr, if it is wanted; returns from the rule if it fails. */
#define BRG_VJP_SET(v, i, expr)                                                \
    do {                                                                       \
        if (brg_vjp_needs((v), (i))) {                                         \
            brg_vjp_select(i);                                                 \
            (v)->grad_in[i] = (expr);                                          \
            brg_vjp_select(-1);                                                \
            if ((v)->grad_in[i] == NULL)                                       \
                return brg_error_code();                                       \
        }                                                                      \
    } while (0)

/* Which tensors the gradient rule needs. */
#define BRG_SAVE_NONE 0u
#define BRG_SAVE_IN(i) (1u << (i))
#define BRG_SAVE_OUT(j) (1u << (8 + (j)))
#define BRG_SAVE_IN_META(i) (1u << (16 + (i)))
#define BRG_SAVE_OUT_META(j) (1u << (24 + (j)))

typedef enum brg_op_flags {
    BRG_OP_POINTWISE = 1 << 0, /* out[k] depends on in[..][k] only */
    BRG_OP_VIEW = 1 << 1,      /* outputs share an input's storage */
    BRG_OP_IMPURE = 1 << 2,    /* draws random numbers or has other effects */
    BRG_OP_INPLACE = 1 << 3,   /* writes into input 0, which it returns */
    BRG_OP_SPARSE = 1 << 4,    /* takes sparse inputs; others need not look */
    BRG_OP_PRODUCTS = 1 << 5   /* spends its time in matrix products */
} brg_op_flags;

/* What autocast does with the op's float inputs (autocast.h). */
typedef enum brg_op_autocast {
    BRG_AUTOCAST_WIDEST = 0, /* makes them equal */
    BRG_AUTOCAST_LOW,
    BRG_AUTOCAST_F32,
    BRG_AUTOCAST_NEVER
} brg_op_autocast;

struct brg_op {
    uint32_t abi;       /* BRG_OP_ABI */
    size_t struct_size; /* sizeof(brg_op) */
    const char *name;   /* static */
    int n_in;
    uint32_t optional; /* bit i: input i may be absent (NULL) */
    int n_out;
    int n_diff_out;      /* outputs that can carry gradients: the first ones */
    uint32_t flags;      /* brg_op_flags */
    uint32_t saves;      /* BRG_SAVE_* */
    uint32_t no_grad_in; /* bit i: input i never gets a gradient */
    /* (optional) Which of `saves` grad_in[i] needs: the rest is not saved when
     * only other inputs require gradients. All zero: each needs all. */
    uint32_t saves_for[BRG_MAX_OP_INPUTS];
    brg_op_autocast autocast;

    /* Required. Checks the inputs (naming op, tensor, expected, found) and
     * fills call->info. Pure. */
    brg_status (*infer)(brg_op_call *call);
    /* Required on a device that the op is used on, unless it is a view: fills
     * call->out, whose memory is there and row-major. Inputs may have any
     * strides and zero elements. */
    brg_status (*run[BRG_N_DEVICE_TYPES])(brg_op_call *call);
    /* (optional) Absent: the outputs never require gradients. Sets grad_in by
     * calling ops; results may have a broadcast shape, the engine sums. */
    brg_status (*vjp)(brg_vjp *v);
    /* (optional) For pointwise ops: the expression of the value in C, over
     * a, b, c (inputs) and p[0].. (scalars). Absent: cannot be fused. */
    const char *expr;
    /* Private to the library; zero in user ops. */
    const void *pointwise;
    struct brg__op_slot *slot;
};

/* Calls an op: runs it and, when gradients are recorded and an input requires
 * one, records it. out[0..n_out) become borrowed from the innermost scope, or
 * all NULL on failure. A required input that is NULL keeps the earlier error.
 * attrs may be NULL (all zero). Any thread; the row is static and unchanging.
 * BRG_ERR_ABI for a row of another version, BRG_ERR_ARG for a wrong number of
 * inputs, otherwise what the row's functions return. */
BRG_API brg_status brg_op_apply(const brg_op *op, int n_in,
                                brg_tensor *const *in, const brg_attrs *attrs,
                                brg_tensor **out);

/* The library's own op of that name, or NULL. */
BRG_API const brg_op *brg_op_find(const char *name);
/* The i-th of the library's ops, or NULL past the last. */
BRG_API const brg_op *brg_op_at(size_t i);

BRG_END_DECLS

#endif
