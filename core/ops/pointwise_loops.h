/* SPDX-License-Identifier: Apache-2.0
 * The loops of all pointwise rows for one compute type, and their table.
 * pointwise_kernels.c includes this once per type, having defined
 *   T                       the type
 *   PW_NAME(name)           a loop's name
 *   PW_TABLE                the table's name
 *   PW_SCALAR(x)            a scalar of the call (double) as T
 *   LOOP_<cls>, SLOT_<cls>  whether rows of a class have loops of this type
 *   FN(name), K(x)          see ops.def */
#define PW_LOOP(name, n_in, value)                                             \
    static void PW_NAME(name)(size_t n, void *out, const void *const *in,      \
                              const double *scalars)                           \
    {                                                                          \
        T *y_at = out;                                                         \
        const T *a_at = in[0];                                                 \
        const T *b_at = (n_in) > 1 ? in[1] : NULL;                             \
        const T *c_at = (n_in) > 2 ? in[2] : NULL;                             \
        const T p[2] = {PW_SCALAR(scalars[0]), PW_SCALAR(scalars[1])};         \
        (void)p;                                                               \
        BRG__INDEPENDENT for (size_t i = 0; i < n; i++)                        \
        {                                                                      \
            const T a = a_at[i];                                               \
            const T b = (n_in) > 1 ? b_at[i] : 0;                              \
            const T c = (n_in) > 2 ? c_at[i] : 0;                              \
            (void)a;                                                           \
            (void)b;                                                           \
            (void)c;                                                           \
            y_at[i] = (T)(value);                                              \
        }                                                                      \
    }
#define PW_SLOT(name) [BRG__PW_##name] = PW_NAME(name),
#define PW_SKIP(...)

#define FWD(...) __VA_ARGS__
#define BRG_UNARY(cls, name, fwd, ...) LOOP_##cls(name, 1, fwd)
#define BRG_BINARY(cls, name, fwd, ...) LOOP_##cls(name, 2, fwd)
#define BRG_TERNARY(cls, name, fwd, ...) LOOP_##cls(name, 3, fwd)
#define BRG_KERNEL(name, ...)
#define BRG_KERNEL_NOGRAD(name, ...)
#define BRG_VIEW(name, ...)
#include "core/ops/ops.def"
#include "core/ops/ops_undef.h"
#undef FWD

#define BRG_UNARY(cls, name, ...) SLOT_##cls(name)
#define BRG_BINARY(cls, name, ...) SLOT_##cls(name)
#define BRG_TERNARY(cls, name, ...) SLOT_##cls(name)
#define BRG_KERNEL(name, ...)
#define BRG_KERNEL_NOGRAD(name, ...)
#define BRG_VIEW(name, ...)
const brg__pw_table PW_TABLE = {
#include "core/ops/ops.def"
};
#include "core/ops/ops_undef.h"

#undef PW_LOOP
#undef PW_SLOT
#undef PW_SKIP
