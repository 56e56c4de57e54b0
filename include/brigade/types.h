/* SPDX-License-Identifier: Apache-2.0
 * Data types, devices, reduction ops and the names of the opaque objects. */
#ifndef BRG_TYPES_H
#define BRG_TYPES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <brigade/export.h>
#include <brigade/literal.h>

BRG_BEGIN_DECLS

/* X(NAME, value, text, bytes, is_float). */
#define BRG_DTYPE_MAP(X)                                                       \
    X(F64, 0, "f64", 8, 1)                                                     \
    X(F32, 1, "f32", 4, 1)                                                     \
    X(F16, 2, "f16", 2, 1)                                                     \
    X(BF16, 3, "bf16", 2, 1)                                                   \
    X(I64, 4, "i64", 8, 0)                                                     \
    X(I32, 5, "i32", 4, 0)                                                     \
    X(U8, 6, "u8", 1, 0)                                                       \
    X(BOOL, 7, "bool", 1, 0)

typedef enum brg_dtype {
#define BRG_DTYPE_ENUM(name, value, text, nbytes, is_float)                    \
    BRG_DTYPE_##name = value,
    BRG_DTYPE_MAP(BRG_DTYPE_ENUM)
#undef BRG_DTYPE_ENUM
} brg_dtype;

#define BRG_N_DTYPES 8

BRG_API const char *brg_dtype_name(brg_dtype dtype);
BRG_API size_t brg_dtype_size(brg_dtype dtype);
BRG_API bool brg_dtype_is_float(brg_dtype dtype);

typedef enum brg_device_type {
    BRG_DEVICE_CPU = 0,
    BRG_DEVICE_CUDA = 1
} brg_device_type;

#define BRG_N_DEVICE_TYPES 2

/* A device by value: its type and its index among those of the type. */
typedef struct brg_device {
    int16_t type;
    int16_t index;
} brg_device;

/* X(NAME, value, text). AVG is SUM / world size. */
#define BRG_REDUCE_MAP(X)                                                      \
    X(SUM, 0, "sum")                                                           \
    X(AVG, 1, "avg")                                                           \
    X(MIN, 2, "min")                                                           \
    X(MAX, 3, "max")                                                           \
    X(PROD, 4, "prod")

typedef enum brg_reduce_op {
#define BRG_REDUCE_ENUM(name, value, text) BRG_REDUCE_##name = value,
    BRG_REDUCE_MAP(BRG_REDUCE_ENUM)
#undef BRG_REDUCE_ENUM
} brg_reduce_op;

#define BRG_N_REDUCE_OPS 5

BRG_API const char *brg_reduce_op_name(brg_reduce_op op);

#define BRG_MAX_DIMS 8

typedef struct brg_tensor brg_tensor;
typedef struct brg_scope brg_scope;
typedef struct brg_op brg_op;
typedef struct brg_node brg_node;
typedef struct brg_pg brg_pg;
typedef struct brg_work brg_work;
typedef struct brg_backend brg_backend;
typedef struct brg_reducer brg_reducer;
typedef struct brg_ddp brg_ddp;

BRG_END_DECLS

#endif
