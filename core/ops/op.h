/* SPDX-License-Identifier: Apache-2.0
 * What the families of ops share: row macros, the emitter, small checks.
 *
 * A family file defines, for each of its rows in ops.def,
 *     static/extern brg_status brg__<op>_infer(brg_op_call *)
 *     brg_status brg__<op>_run(brg_op_call *)
 *     brg_status brg__<op>_vjp(brg_vjp *)      (rows with a gradient)
 * and the public function brg_<op>, which packs its arguments and calls
 * brg_op_apply. op_table.c declares these from the rows and makes the
 * descriptors. */
#ifndef BRG_CORE_OPS_OP_H
#define BRG_CORE_OPS_OP_H

#include <brigade/ext/op.h>

#include "core/base/error.h"
#include "core/tensor/shape.h"
#include "core/tensor/tensor.h"

/* ---- Descriptors: brg__op_<name>, defined in op_table.c ---------------------- */

#define BRG__POINTWISE(name)                                                   \
    extern const brg_op brg__op_##name;                                        \
    extern struct brg__op_slot brg__slot_##name;
#define BRG_UNARY(cls, name, ...) BRG__POINTWISE(name)
#define BRG_BINARY(cls, name, ...) BRG__POINTWISE(name)
#define BRG_TERNARY(cls, name, ...) BRG__POINTWISE(name)
#define BRG_KERNEL(name, ...)                                                  \
    extern const brg_op brg__op_##name;                                        \
    brg_status brg__##name##_infer(brg_op_call *call);                         \
    brg_status brg__##name##_run(brg_op_call *call);                           \
    brg_status brg__##name##_vjp(brg_vjp *v);
#define BRG_KERNEL_NOGRAD(name, ...)                                           \
    extern const brg_op brg__op_##name;                                        \
    brg_status brg__##name##_infer(brg_op_call *call);                         \
    brg_status brg__##name##_run(brg_op_call *call);
#define BRG_VIEW(name, ...)                                                    \
    extern const brg_op brg__op_##name;                                        \
    brg_status brg__##name##_infer(brg_op_call *call);                         \
    brg_status brg__##name##_vjp(brg_vjp *v);
#include "core/ops/ops.def"
#include "core/ops/ops_undef.h"
#undef BRG__POINTWISE

/* ---- The emitter --------------------------------------------------------------
 * Where a call goes once its arguments are known: the eager emitter runs it
 * now, a capture records it. One per thread. */

typedef struct brg__emitter brg__emitter;
struct brg__emitter {
    /* Fills call->info and call->out (borrowed from the scope). */
    brg_status (*emit)(brg__emitter *self, brg_op_call *call);
};

extern brg__emitter brg__eager_emitter;
/* What emitters make outputs by: the device of a call's inputs, and the layout of
 * an output as infer has described it. */
brg_device brg__call_device(const brg_op_call *call);
brg__layout brg__out_layout(const brg_out_info *info, brg_device device);

/* NULL: the eager one. Returns the one before. */
brg__emitter *brg__emitter_set(brg__emitter *emitter);
brg__emitter *brg__emitter_get(void);

/* Gives a call of dropout on n elements, captured once and run again, random
 * numbers of its own (random.c). */
void brg__dropout_redraw(brg_attrs *attrs, int64_t n);

/* ---- Kernels of other devices ----------------------------------------------------
 * What a device answered when it was first asked for the kernel of a row
 * (brg_op.slot). */
typedef brg_status (*brg__run_fn)(brg_op_call *call);

struct brg__op_slot {
    _Atomic(brg__run_fn) run[BRG_N_DEVICE_TYPES];
};

/* Fails naming op and device if there is none. */
brg_status brg__kernel_find(const brg_op *op, brg_device device,
                            brg__run_fn *out);

/* True if there is one. */
bool brg__kernel_exists(const brg_op *op, brg_device device);

/* ---- Placement ------------------------------------------------------------------
 * Memory that is waiting for a result: the engine offers a leaf's place in a
 * bucket while it calls the rule that makes the leaf's gradient, and the first
 * output of those sizes that is made for this gradient (brg_vjp_select) is
 * written there instead of being copied there later. A guess that misses, an
 * intermediate result of the same gradient, costs nothing but the copy. An op
 * that makes all gradients of a rule at once takes each of them. */
typedef struct brg__placement {
    brg_tensor *homes[BRG_MAX_OP_INPUTS]; /* borrowed, row-major; or NULL */
    bool is_open;                         /* some home is there */
    int selected;                         /* the gradient being made, or -1 */
    bool is_row; /* output j is gradient selected + j */
} brg__placement;

extern _Thread_local brg__placement brg__offered;

/* brg_op_apply of an op whose output j is the gradient of the rule's input j. */
brg_status brg__apply_grads(const brg_op *op, int n_in, brg_tensor *const *in,
                            const brg_attrs *attrs, brg_tensor **out);

/* ---- Calling ops from the library's own functions ------------------------------ */

/* One output; NULL on failure. */
static inline brg_tensor *brg__call(const brg_op *op, int n_in,
                                    brg_tensor *const *in,
                                    const brg_attrs *attrs)
{
    brg_tensor *out[BRG_MAX_OP_OUTPUTS] = {0};
    return brg_op_apply(op, n_in, in, attrs, out) == BRG_OK ? out[0] : NULL;
}

static inline brg_tensor *brg__call1(const brg_op *op, brg_tensor *x,
                                     const brg_attrs *attrs)
{
    return brg__call(op, 1, (brg_tensor *[]){x}, attrs);
}

static inline brg_tensor *brg__call2(const brg_op *op, brg_tensor *a,
                                     brg_tensor *b, const brg_attrs *attrs)
{
    return brg__call(op, 2, (brg_tensor *[]){a, b}, attrs);
}

static inline brg_tensor *brg__call3(const brg_op *op, brg_tensor *a,
                                     brg_tensor *b, brg_tensor *c,
                                     const brg_attrs *attrs)
{
    return brg__call(op, 3, (brg_tensor *[]){a, b, c}, attrs);
}

/* ---- Shape rules and checks for infer functions (infer.c) ---------------------- */

/* Output j has the shape (and dtype) of t. */
void brg__infer_like(brg_op_call *call, int j, const brg_tensor *t);
/* Output j has this dtype and shape. */
void brg__infer_shape(brg_op_call *call, int j, brg_dtype dtype, int ndim,
                      const int64_t *shape);
/* A view of input 0: fills is_view, stride and offset from it; the caller
 * changes them. */
void brg__infer_view(brg_op_call *call, const brg_tensor *of);

/* Fail naming the op, the input's position, its description, and what was
 * expected. `what` names the input ("weight"). */
brg_status brg__check_float(const brg_op_call *call, int i, const char *what);
brg_status brg__check_dtype(const brg_op_call *call, int i, const char *what,
                            brg_dtype expected);
brg_status brg__check_same_dtype(const brg_op_call *call, int i, int k);
brg_status brg__check_ndim(const brg_op_call *call, int i, const char *what,
                           int ndim);
/* The general form: op, input, its description, then the formatted words. */
brg_status brg__fail_input(brg_status code, const brg_op_call *call, int i,
                           const char *what, const char *format, ...)
    BRG_PRINTF(5, 6);

/* ---- Numbers given by the caller (number.c) --------------------------------------
 * What elements are set to: a fraction of it is cut off for integer dtypes, which
 * it must fit into then; of float dtypes only infinities become infinite. */
brg_status brg__check_value(const char *what, brg_dtype dtype, double value);
/* What integer tensors are added to or multiplied by must be whole and of their
 * range; negative numbers too, by which u8 is subtracted from. */
brg_status brg__check_operand(const char *what, brg_dtype dtype, double value);
/* Between which elements are kept: results of integer dtypes must fit. */
brg_status brg__check_bounds(const char *what, brg_dtype dtype, double lo,
                             double hi);

/* ---- Changing tensors in place (core/autograd/inplace.c) --------------------------
 * Around the change of dst: begin checks that it is allowed and says whether
 * the gradients must know; record tells them that dst is now op(in), in[0]
 * being dst as it was. */
brg_status brg__inplace_begin(const char *name, brg_tensor *dst,
                              brg_tensor *src, bool *is_recorded);
brg_status brg__inplace_record(const brg_op *op, int n_in,
                               brg_tensor *const *in, const brg_attrs *attrs);

/* ---- Help for run functions ------------------------------------------------------ */

/* On whichever devices the tensors are (anywhere.c); nothing is recorded.
 * dst = src of any strides and dtypes, broadcast to dst's shape. */
brg_status brg__copy_now(const brg_tensor *dst, const brg_tensor *src);
/* A row-major copy where t lies; the caller owns it. */
brg_status brg__copy_new(brg_tensor **out, const brg_tensor *t);
/* dst = value, any strides. */
brg_status brg__fill_now(const brg_tensor *dst, double value);
/* out = op(in...) of a pointwise row; out may be in[0]. All on one device. */
brg_status brg__pointwise_now(const brg_op *op, const brg_tensor *const *in,
                              const brg_tensor *out, const double *p);
/* The tensor, made on the CPU, on the thread's device; borrowed. */
brg_tensor *brg__to_current(brg_tensor *t);

/* t itself if it is row-major, else a row-major copy, borrowed from the scope;
 * NULL when out of memory. Not recorded. */
brg_tensor *brg__contiguous_now(brg_tensor *t);

/* Scratch memory of the calling thread that stays allocated between calls;
 * `slot` 0..3 are distinct pieces. NULL when out of memory. Valid until the
 * next request for the same slot on this thread. */
void *brg__scratch(int slot, size_t nbytes, const char *what);

#endif
