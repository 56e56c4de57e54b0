/* SPDX-License-Identifier: Apache-2.0
 * Names and sizes of dtypes and reduce ops. */
#include "core/base/dtype.h"

typedef struct dtype_row {
    const char *name;
    size_t nbytes;
    bool is_float;
} dtype_row;

static const dtype_row rows[BRG_N_DTYPES] = {
#define DTYPE_ROW(id, value, text, nbytes, is_float)                           \
    [BRG_DTYPE_##id] = {text, nbytes, is_float},
    BRG_DTYPE_MAP(DTYPE_ROW)
#undef DTYPE_ROW
};

static bool is_known(brg_dtype dtype)
{
    return (unsigned)dtype < BRG_N_DTYPES;
}

const char *brg_dtype_name(brg_dtype dtype)
{
    if (dtype == BRG__DTYPE_Q8)
        return "q8 block";
    return is_known(dtype) ? rows[dtype].name : "unknown dtype";
}

size_t brg_dtype_size(brg_dtype dtype)
{
    if (dtype == BRG__DTYPE_Q8)
        return 64;
    return is_known(dtype) ? rows[dtype].nbytes : 0;
}

bool brg_dtype_is_float(brg_dtype dtype)
{
    return is_known(dtype) && rows[dtype].is_float;
}

const char *brg_reduce_op_name(brg_reduce_op op)
{
    switch (op) {
#define REDUCE_CASE(id, value, text)                                           \
    case BRG_REDUCE_##id:                                                      \
        return text;
        BRG_REDUCE_MAP(REDUCE_CASE)
#undef REDUCE_CASE
    }
    return "unknown reduction";
}
