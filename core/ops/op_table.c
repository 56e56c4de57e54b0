/* SPDX-License-Identifier: Apache-2.0
 * The rows of ops.def as descriptors, and the list of them all. The pointwise
 * rows' descriptors are made in pointwise_table.c. */
#include "core/ops/op.h"

#include <string.h>

/* What other devices answered, one per row. */
#define BRG_UNARY(cls, name, ...) struct brg__op_slot brg__slot_##name;
#define BRG_BINARY(cls, name, ...) struct brg__op_slot brg__slot_##name;
#define BRG_TERNARY(cls, name, ...) struct brg__op_slot brg__slot_##name;
#define BRG_KERNEL(name, ...) static struct brg__op_slot brg__slot_##name;
#define BRG_KERNEL_NOGRAD(name, ...)                                           \
    static struct brg__op_slot brg__slot_##name;
#define BRG_VIEW(name, ...)
#include "core/ops/ops.def"
#include "core/ops/ops_undef.h"

/* The fields a row states come last, so that they win over the defaults. */
#define BRG__ROW_COMMON(op_name)                                               \
    .abi = BRG_OP_ABI, .struct_size = sizeof(brg_op), .name = #op_name,        \
    .n_out = 1, .n_diff_out = 1, .infer = brg__##op_name##_infer

#define BRG__ROW_KERNEL(op_name)                                               \
    BRG__ROW_COMMON(op_name),                                                  \
        .run = {[BRG_DEVICE_CPU] = brg__##op_name##_run},                      \
        .slot = &brg__slot_##op_name

#pragma GCC diagnostic ignored "-Woverride-init"

#define BRG_UNARY(cls, name, ...)
#define BRG_BINARY(cls, name, ...)
#define BRG_TERNARY(cls, name, ...)
#define BRG_KERNEL(op_name, ...)                                               \
    const brg_op brg__op_##op_name = {                                         \
        BRG__ROW_KERNEL(op_name), .vjp = brg__##op_name##_vjp, __VA_ARGS__};
#define BRG_KERNEL_NOGRAD(op_name, ...)                                        \
    const brg_op brg__op_##op_name = {BRG__ROW_KERNEL(op_name), __VA_ARGS__};
#define BRG_VIEW(op_name, ...)                                                 \
    const brg_op brg__op_##op_name = {BRG__ROW_COMMON(op_name),                \
                                      .vjp = brg__##op_name##_vjp,             \
                                      .flags = BRG_OP_VIEW, __VA_ARGS__};
#include "core/ops/ops.def"
#include "core/ops/ops_undef.h"

static const brg_op *const table[] = {
#define BRG_UNARY(cls, name, ...) &brg__op_##name,
#define BRG_BINARY(cls, name, ...) &brg__op_##name,
#define BRG_TERNARY(cls, name, ...) &brg__op_##name,
#define BRG_KERNEL(name, ...) &brg__op_##name,
#define BRG_KERNEL_NOGRAD(name, ...) &brg__op_##name,
#define BRG_VIEW(name, ...) &brg__op_##name,
#include "core/ops/ops.def"
#include "core/ops/ops_undef.h"
    NULL,
};

const brg_op *brg_op_at(size_t i)
{
    return i < sizeof table / sizeof *table ? table[i] : NULL;
}

const brg_op *brg_op_find(const char *name)
{
    for (size_t i = 0; table[i]; i++)
        if (strcmp(table[i]->name, name) == 0)
            return table[i];
    return NULL;
}
