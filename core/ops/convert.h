/* SPDX-License-Identifier: Apache-2.0
 * Elements of any dtype to and from the types that kernels compute in: f64 in
 * f64; f32, f16 and bf16 in f32; integers and bool in i64. */
#ifndef BRG_CORE_OPS_CONVERT_H
#define BRG_CORE_OPS_CONVERT_H

#include <stddef.h>
#include <stdint.h>

#include "core/tensor/tensor.h"

typedef enum brg__ctype { BRG__F32, BRG__F64, BRG__I64 } brg__ctype;

#define BRG__N_CTYPES 3

static inline brg__ctype brg__ctype_of(brg_dtype dtype)
{
    static const uint8_t types[BRG_N_DTYPES] = {BRG__F64, BRG__F32, BRG__F32,
                                                BRG__F32, BRG__I64, BRG__I64,
                                                BRG__I64, BRG__I64};
    return (brg__ctype)types[dtype];
}

/* True if elements of the dtype are elements of the compute type. */
static inline bool brg__is_native(brg_dtype dtype, brg__ctype type)
{
    static const uint8_t native[BRG__N_CTYPES] = {BRG_DTYPE_F32, BRG_DTYPE_F64,
                                                  BRG_DTYPE_I64};
    return native[type] == dtype;
}

static inline size_t brg__ctype_size(brg__ctype type)
{
    return type == BRG__F32 ? 4 : 8;
}

/* n elements at `from`, `stride` elements apart (0: the same one), to n
 * compute elements in a row; and back. */
typedef void (*brg__load_fn)(void *to, const void *from, int64_t stride,
                             size_t n);
typedef void (*brg__store_fn)(void *to, int64_t stride, const void *from,
                              size_t n);

/* Loads exist from each dtype to its compute type and from bool to all;
 * stores from each compute type to all dtypes. Floats go to integers towards
 * zero (out of range: any value), to 16 bits rounding to nearest even, to bool
 * as "not zero"; integers wrap. */
typedef struct brg__convert_kernels {
    brg__load_fn load[BRG_N_DTYPES][BRG__N_CTYPES];
    brg__store_fn store[BRG__N_CTYPES][BRG_N_DTYPES];
} brg__convert_kernels;

extern const brg__convert_kernels brg__convert_base;
extern const brg__convert_kernels brg__convert_avx2;
extern const brg__convert_kernels brg__convert_avx512;

/* Those of the processor. */
const brg__convert_kernels *brg__convert(void);

/* n contiguous elements, dtype to dtype. */
void brg__convert_row(void *to, brg_dtype to_dtype, const void *from,
                      brg_dtype from_dtype, size_t n);

/* dst[i] = src[i], any strides and dtypes; src broadcasts to dst's shape. The
 * two must not overlap, unless they are the same elements in the same order.
 * Both on the CPU. */
void brg__copy_strided(const brg_tensor *dst, const brg_tensor *src);

#endif
