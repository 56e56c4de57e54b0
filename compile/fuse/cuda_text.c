/* SPDX-License-Identifier: Apache-2.0
 * The CUDA C of groups: see cuda_group.h. */
#include <string.h>

#include <compile/fuse/cuda_preamble_text.h>

#include "compile/fuse/cuda_group.h"
#include "compile/fuse/source.h"
#include "core/base/error.h"

#define put brg__source_put
#define NONE BRG__GROUP_NONE

typedef const brg__cuda_group group;

static const char *name_of(brg_dtype dtype)
{
    switch (dtype) {
    case BRG_DTYPE_F64:
        return "f64";
    case BRG_DTYPE_F32:
        return "f32";
    case BRG_DTYPE_F16:
        return "f16";
    case BRG_DTYPE_BF16:
        return "bf16";
    default:
        return "bool";
    }
}

static const char *type_of(group *g)
{
    return g->type == BRG__F64 ? "double" : "float";
}

static bool is_16_bit(brg_dtype dtype)
{
    return dtype == BRG_DTYPE_F16 || dtype == BRG_DTYPE_BF16;
}

/* ---- One element ------------------------------------------------------------- */

/* A result that may be a product, and is no 16 bits, is hidden from ops that
 * add: see generate.c. */
static bool is_hidden(group *g, int k)
{
    const char *expr = g->group->ops[k].op->expr;
    if (is_16_bit(g->result[k]) || (!strchr(expr, '*') && !strstr(expr, "FN(")))
        return false;
    for (int u = k + 1; u < g->group->n_ops; u++)
        for (int i = 0; !g->group->ops[u].is_sum && i < g->group->ops[u].n_in;
             i++)
            if (g->group->ops[u].in[i] == g->group->n_in + k &&
                strpbrk(g->group->ops[u].op->expr, "+-("))
                return true;
    return false;
}

static const char *quick_expr(group *g, int k)
{
    const char *name = g->group->ops[k].op->name;
    if (!is_16_bit(g->result[k]))
        return NULL;
    return strcmp(name, "gelu") == 0        ? "quick_gelu(a)"
           : strcmp(name, "gelu_grad") == 0 ? "quick_gelu_grad(a, b)"
                                            : NULL;
}

/* v<number>: an operand's value, or that of op number - n_in. */
static brg_status put_op(brg__source *t, group *g, int k)
{
    const brg__group_op *op = &g->group->ops[k];
    static const char names[BRG__GROUP_OP_MAX_IN] = {'a', 'b', 'c'};
    const char *quick = quick_expr(g, k), *T = type_of(g);
    const int to = g->group->n_in + k;
    BRG_TRY(put(t, "    %s v%d;\n    {\n", T, to));
    for (int i = 0; i < op->n_in; i++)
        BRG_TRY(put(t, "        const T %c = v%d;\n", names[i], op->in[i]));
    if (g->scalars[k] != NONE)
        BRG_TRY(put(t, "        const T *const p = s + %d;\n", g->scalars[k]));
    const char *hide = g->type == BRG__F64 ? "HIDE_f64(" : "HIDE_f32(";
    const bool hidden = is_hidden(g, k);
    BRG_TRY(put(t, "        v%d = %s(T)(%s)%s;\n    }\n", to,
                hidden ? hide : "", quick ? quick : op->op->expr,
                hidden ? ")" : ""));
    if (!is_16_bit(g->result[k]))
        return BRG_OK;
    const char *dtype = name_of(g->result[k]);
    return put(t, "    v%d = GET_%s(PUT_%s(v%d));\n", to, dtype, dtype, to);
}

static brg_status put_body(brg__source *t, group *g)
{
    BRG_TRY(put(t, "(const T *s, uint64_t zero"));
    for (int i = 0; i < g->n_loads; i++)
        BRG_TRY(put(t, ", T v%d", g->load[i]));
    for (int i = 0; i < g->n_stores; i++)
        BRG_TRY(put(t, ", T *r%d", i));
    BRG_TRY(put(t, ")\n{\n"));
    for (int k = 0; k < g->group->n_ops; k++)
        if (!g->group->ops[k].is_sum)
            BRG_TRY(put_op(t, g, k));
    for (int i = 0; i < g->n_stores; i++)
        BRG_TRY(put(t, "    *r%d = v%d;\n", i, g->group->n_in + g->store[i]));
    return put(t, "}\n");
}

/* ---- Parameters: cuda_run.c fills them in this order ----------------------------- */

static brg_status put_params(brg__source *t, group *g)
{
    const int d = BRG_MAX_DIMS, in = g->n_loads;
    BRG_TRY(put(t, "typedef struct {\n"));
    if (in > 0)
        BRG_TRY(put(t,
                    "    const void *in[%d];\n    int64_t kind[%d];\n"
                    "    int64_t stride[%d][%d];\n",
                    in, in, in, d));
    if (g->n_stores > 0)
        BRG_TRY(put(t, "    void *out[%d];\n", g->n_stores));
    BRG_TRY(put(t, "    int64_t shape[%d];\n    int64_t ndim, n, rows, cols;\n",
                d));
    if (g->has_columns)
        BRG_TRY(put(t,
                    "    void *sum[%d];\n    double scale[%d];\n"
                    "    int64_t splits;\n    double *partials;\n",
                    g->n_sums, g->n_sums));
    BRG_TRY(put(t, "    uint64_t zero;\n"));
    return put(t, "    T s[%d];\n} PARAMS;\n", g->n_scalars + 1);
}

/* ---- Pieces of kernels --------------------------------------------------------------- */

static brg_status put_loads(brg__source *t, group *g)
{
    for (int i = 0; i < g->n_loads; i++) {
        const char *dtype = name_of(g->operand[g->load[i]]);
        BRG_TRY(put(t,
                    "        const %s_%d x%d = load_%s_%d(k.in[%d], "
                    "k.kind[%d], i, row, col);\n",
                    dtype, g->width, i, dtype, g->width, i, i));
    }
    return BRG_OK;
}

/* Calls the body; `at` is what an element of operand i is read by. */
static brg_status put_call(brg__source *t, group *g, const char *indent,
                           const char *at)
{
    for (int i = 0; i < g->n_stores; i++)
        BRG_TRY(put(t, "%sT r%d;\n", indent, i));
    BRG_TRY(put(t, "%sBODY(k.s, k.zero", indent));
    for (int i = 0; i < g->n_loads; i++) {
        BRG_TRY(put(t, ", GET_%s(", name_of(g->operand[g->load[i]])));
        for (const char *c = at; *c; c++)
            BRG_TRY(*c == '#'   ? put(t, "%d", i)
                    : *c == '$' ? put(t, "%s", name_of(g->operand[g->load[i]]))
                                : put(t, "%c", *c));
        BRG_TRY(put(t, ")"));
    }
    for (int i = 0; i < g->n_stores; i++)
        BRG_TRY(put(t, ", &r%d", i));
    return put(t, ");\n");
}

/* Elements of a row that a block takes; each thread joins some splits of one. */
static int columns_of(group *g)
{
    return BRG__CUDA_COLUMNS * g->width;
}

static int groups_of(group *g)
{
    return BRG__CUDA_THREADS / columns_of(g);
}

static bool sums_in_f32(group *g, int s)
{
    const int from = g->group->ops[g->sum[s]].in[0];
    return is_16_bit(from < g->group->n_in ? g->operand[from]
                                           : g->result[from - g->group->n_in]);
}

/* In kernels that make the sums, what is only summed is not stored. */
static bool is_stored(group *g, int i, bool sums)
{
    return !sums || g->group->ops[g->store[i]].out != NONE;
}

static brg_status put_vectors(brg__source *t, group *g, bool sums)
{
    for (int i = 0; i < g->n_stores; i++)
        if (is_stored(g, i, sums))
            BRG_TRY(put(t, "        %s_%d y%d;\n",
                        name_of(g->result[g->store[i]]), g->width, i));
    BRG_TRY(put(t, "        UNROLL for (int j = 0; j < %d; j++)\n        {\n",
                g->width));
    BRG_TRY(put_call(t, g, "            ", "x#.at[j]"));
    for (int i = 0; i < g->n_stores; i++)
        if (is_stored(g, i, sums))
            BRG_TRY(put(t, "            y%d.at[j] = PUT_%s(r%d);\n", i,
                        name_of(g->result[g->store[i]]), i));
    for (int s = 0; sums && s < g->n_sums; s++) {
        const int from = g->group->ops[g->sum[s]].in[0];
        for (int i = 0; i < g->n_loads; i++)
            if (g->load[i] == from)
                BRG_TRY(put(t, "            few%d[j] += GET_%s(x%d.at[j]);\n",
                            s, name_of(g->operand[from]), i));
        for (int i = 0; i < g->n_stores; i++)
            if (g->group->n_in + g->store[i] == from)
                BRG_TRY(put(t, "            few%d[j] += r%d;\n", s, i));
    }
    BRG_TRY(put(t, "        }\n"));
    for (int i = 0; i < g->n_stores; i++)
        if (is_stored(g, i, sums))
            BRG_TRY(put(t, "        ((%s_%d *)k.out[%d])[i] = y%d;\n",
                        name_of(g->result[g->store[i]]), g->width, i, i));
    return BRG_OK;
}

static brg_status put_elements(brg__source *t, group *g, const char *indent,
                               const char *at)
{
    for (int i = 0; i < g->n_stores; i++) {
        const char *dtype = name_of(g->result[g->store[i]]);
        BRG_TRY(put(t, "%s((E_%s *)k.out[%d])[%s] = PUT_%s(r%d);\n", indent,
                    dtype, i, at, dtype, i));
    }
    return BRG_OK;
}

/* ---- Kernels ----------------------------------------------------------------------------- */

static brg_status put_flat(brg__source *t, group *g)
{
    const int v = g->width, threads = BRG__CUDA_THREADS;
    BRG_TRY(put(t,
                "KERNEL(FLAT)(PARAM PARAMS k)\n{\n"
                "    const uint32_t n = (uint32_t)(k.n / %d);\n"
                "    const uint32_t per_row = (uint32_t)(k.cols / %d);\n"
                "    for (uint32_t i = blockIdx.x * %du + threadIdx.x; i < n;\n"
                "         i += gridDim.x * %du) {\n"
                "        const uint32_t row = k.rows > 1 ? i / per_row : 0;\n"
                "        const uint32_t col = i - row * per_row;\n",
                v, v, threads, threads));
    BRG_TRY(put_loads(t, g));
    BRG_TRY(put_vectors(t, g, false));
    BRG_TRY(put(t,
                "    }\n    const int64_t i = (int64_t)n * %d + threadIdx.x;\n"
                "    if (blockIdx.x == 0 && i < k.n) {\n",
                v));
    BRG_TRY(put_call(t, g, "        ",
                     "((const E_$ *)k.in[#])[k.kind[#] == WHOLE ? i : 0]"));
    BRG_TRY(put_elements(t, g, "        ", "i"));
    return put(t, "    }\n}\n");
}

static brg_status put_any(brg__source *t, group *g)
{
    const int threads = BRG__CUDA_THREADS;
    BRG_TRY(put(t,
                "KERNEL(ANY)(PARAM PARAMS k)\n{\n"
                "    for (int64_t i = blockIdx.x * (int64_t)%d + threadIdx.x;\n"
                "         i < k.n; i += gridDim.x * (int64_t)%d) {\n"
                "        int64_t rest = i",
                threads, threads));
    for (int i = 0; i < g->n_loads; i++)
        BRG_TRY(put(t, ", at%d = 0", i));
    BRG_TRY(put(t, ";\n        for (int d = (int)k.ndim - 1; d >= 0; d--) {\n"
                   "            const int64_t q = quotient(rest, k.shape[d]);\n"
                   "            const int64_t index = rest - q * k.shape[d];\n"
                   "            rest = q;\n"));
    for (int i = 0; i < g->n_loads; i++)
        BRG_TRY(put(t, "            at%d += index * k.stride[%d][d];\n", i, i));
    BRG_TRY(put(t, "        }\n"));
    BRG_TRY(put_call(t, g, "        ", "((const E_$ *)k.in[#])[at#]"));
    BRG_TRY(put_elements(t, g, "        ", "i"));
    return put(t, "    }\n}\n");
}

/* Rows that a thread reads before it uses them: what is in flight together. */
static int batch_of(group *g)
{
    return g->n_loads <= 2 ? 4 : 2;
}

/* The values of 16 bits of a batch are added in f32 first. */
static brg_status put_batches(brg__source *t, group *g)
{
    const int batch = batch_of(g), depth = BRG__CUDA_DEPTH;
    for (int i = 0; i < g->n_loads; i++)
        BRG_TRY(put(t, "        %s_%d batch%d[%d];\n",
                    name_of(g->operand[g->load[i]]), g->width, i, batch));
    for (int s = 0; s < g->n_sums; s++)
        BRG_TRY(put(t, "        %s few%d[%d] = {0};\n",
                    sums_in_f32(g, s) ? "float" : "double", s, g->width));
    BRG_TRY(put(t,
                "        UNROLL for (int u = 0; u < %d; u++)\n        {\n"
                "            const int64_t next = r + %d * u;\n"
                "            const int64_t row = next < to ? next : to - 1;\n"
                "            const int64_t i = row * per_row + col;\n",
                batch, depth));
    for (int i = 0; i < g->n_loads; i++) {
        const char *dtype = name_of(g->operand[g->load[i]]);
        BRG_TRY(put(t,
                    "            batch%d[u] = ((const %s_%d "
                    "*)k.in[%d])[k.kind[%d] == ROW ? col : i];\n",
                    i, dtype, g->width, i, i));
    }
    BRG_TRY(put(t,
                "        }\n"
                "        UNROLL for (int u = 0; u < %d; u++)\n        {\n"
                "        const int64_t i = (r + %d * u) * per_row + col;\n"
                "        if (r + %d * u >= to)\n            break;\n",
                batch, depth, depth));
    for (int i = 0; i < g->n_loads; i++)
        BRG_TRY(put(t, "        const %s_%d x%d = batch%d[u];\n",
                    name_of(g->operand[g->load[i]]), g->width, i, i));
    BRG_TRY(put_vectors(t, g, true));
    BRG_TRY(put(t, "        }\n"));
    for (int s = 0; s < g->n_sums; s++)
        BRG_TRY(put(t,
                    "        UNROLL for (int j = 0; j < %d; j++) sum%d[j] += "
                    "few%d[j];\n",
                    g->width, s, s));
    return BRG_OK;
}

/* What a block's columns come to: its share, or by its last split the sum of
 * all shares, in their order. */
static brg_status put_joins(brg__source *t, group *g)
{
    for (int s = 0; s < g->n_sums; s++) {
        const char *dtype = name_of(g->result[g->sum[s]]);
        BRG_TRY(put(t,
                    "    SYNC();\n"
                    "    UNROLL for (int j = 0; j < %d; j++)\n"
                    "        part[threadIdx.y][threadIdx.x * %d + j] = "
                    "sum%d[j];\n"
                    "    SYNC();\n"
                    "    if (is_first) {\n"
                    "        double all = 0;\n"
                    "        UNROLL for (int d = 0; d < %d; d++) all += "
                    "part[d][t];\n"
                    "        if (k.splits > 1)\n"
                    "            k.partials[(%d * k.splits + blockIdx.y) * "
                    "k.cols + column] = all;\n"
                    "        else\n"
                    "            ((E_%s *)k.sum[%d])[column] = PUT_%s(all * "
                    "k.scale[%d]);\n"
                    "    }\n",
                    g->width, g->width, s, BRG__CUDA_DEPTH, s, dtype, s, dtype,
                    s));
    }
    BRG_TRY(put(t, "    if (k.splits == 1 || !is_last_split("
                   "(uint32_t)k.splits))\n        return;\n"));
    for (int s = 0; s < g->n_sums; s++) {
        const char *dtype = name_of(g->result[g->sum[s]]);
        BRG_TRY(put(t,
                    "    {\n"
                    "        double all = 0;\n"
                    "        if (column < k.cols)\n"
                    "            UNROLL_8 for (int64_t r = group; r < "
                    "k.splits; r += %d)\n"
                    "                all += OF_OTHERS(&k.partials[(%d * "
                    "k.splits + r) * k.cols + column]);\n"
                    "        SYNC();\n"
                    "        part[group][t %% %d] = all;\n"
                    "        SYNC();\n"
                    "        all = 0;\n"
                    "        UNROLL for (int d = 0; d < %d; d++) all += "
                    "part[d][t %% %d];\n"
                    "        if (is_first)\n"
                    "            ((E_%s *)k.sum[%d])[column] = PUT_%s(all * "
                    "k.scale[%d]);\n"
                    "    }\n",
                    groups_of(g), s, columns_of(g), groups_of(g), columns_of(g),
                    dtype, s, dtype, s));
    }
    return BRG_OK;
}

static brg_status put_columns(brg__source *t, group *g)
{
    const int v = g->width;
    BRG_TRY(put(t,
                "KERNEL(COLUMNS)(PARAM PARAMS k)\n{\n"
                "    SHARED double part[%d][%d];\n"
                "    const uint32_t per_row = (uint32_t)(k.cols / %d);\n"
                "    const uint32_t col = blockIdx.x * %du + threadIdx.x;\n"
                "    const uint32_t t = threadIdx.y * %du + threadIdx.x;\n"
                "    const uint32_t group = t / %du;\n"
                "    const int64_t column = blockIdx.x * (int64_t)%d + t %% "
                "%du;\n"
                "    const bool is_there = col < per_row;\n"
                "    const bool is_first = group == 0 && column < k.cols;\n"
                "    const int64_t from = k.rows * blockIdx.y / k.splits;\n"
                "    const int64_t to = k.rows * (blockIdx.y + 1) / "
                "k.splits;\n",
                BRG__CUDA_DEPTH, columns_of(g), v, BRG__CUDA_COLUMNS,
                BRG__CUDA_COLUMNS, columns_of(g), columns_of(g),
                columns_of(g)));
    for (int s = 0; s < g->n_sums; s++)
        BRG_TRY(put(t, "    double sum%d[%d] = {0};\n", s, v));
    BRG_TRY(put(t,
                "    for (int64_t r = from + threadIdx.y; is_there && r < to; "
                "r += %d) {\n",
                batch_of(g) * BRG__CUDA_DEPTH));
    BRG_TRY(put_batches(t, g));
    BRG_TRY(put(t, "    }\n"));
    BRG_TRY(put_joins(t, g));
    return put(t, "}\n");
}

/* Without names, so that equal ones are found. */
static brg_status put_kernels(brg__source *t, group *g)
{
    BRG_TRY(put_params(t, g));
    BRG_TRY(put(t, "DEVICE void BODY"));
    BRG_TRY(put_body(t, g));
    BRG_TRY(put_flat(t, g));
    BRG_TRY(put_any(t, g));
    return g->has_columns ? put_columns(t, g) : BRG_OK;
}

/* ---- All of them --------------------------------------------------------------------------- */

static brg_status put_preamble(brg__source *t)
{
    BRG_TRY(put(t, "/* Kernels of a plan; ABI %d. */\n", BRG__CUDA_KERNEL_ABI));
    BRG_TRY(put(t, "%s",
                "#ifndef CUDA_HOST\n"
                "typedef unsigned char uint8_t;\n"
                "typedef unsigned short uint16_t;\n"
                "typedef int int32_t;\n"
                "typedef unsigned int uint32_t;\n"
                "typedef long int64_t;\n"
                "typedef unsigned long uint64_t;\n"
                "#define INFINITY __int_as_float(0x7F800000)\n"
                "#define NAN __int_as_float(0x7FFFFFFF)\n"
                "#define KERNEL(name) extern \"C\" __global__ void "
                "__launch_bounds__(256) name\n"
                "#define DEVICE static __device__ __forceinline__\n"
                "#define SHARED __shared__\n"
                "#define GLOBAL static __device__\n"
                "#define PARAM const __grid_constant__\n"
                "#define ALIGNED(n) __align__(n)\n"
                "#define UNROLL _Pragma(\"unroll\")\n"
                "#define UNROLL_8 _Pragma(\"unroll 8\")\n"
                "#define OF_OTHERS(p) __ldcg(p)\n"
                "#define SYNC() __syncthreads()\n"
                "#define FENCE() __threadfence()\n"
                "#define ADD_ONE(p) atomicAdd(p, 1u)\n"
                "#endif\n"));
    BRG_TRY(brg__source_put_vmath(t));
    BRG_TRY(put(t, "\n"));
    return brg__source_put_bytes(t, brg__cuda_preamble_text,
                                 sizeof brg__cuda_preamble_text - 1);
}

static brg_status put_named(brg__source *t, group *g, const brg__source *body,
                            int number)
{
    static const char *const names[] = {
        "PARAMS",    "brg_params_", "BODY",     "brg_body_", "FLAT",
        "brg_flat_", "ANY",         "brg_any_", "COLUMNS",   "brg_columns_"};
    BRG_TRY(put(t, "\n#define T %s\n#define FN(name) brg__%s_##name\n",
                type_of(g), g->type == BRG__F64 ? "f64" : "f32"));
    for (size_t i = 0; i < sizeof names / sizeof *names; i += 2)
        BRG_TRY(put(t, "#define %s %s%d\n", names[i], names[i + 1], number));
    BRG_TRY(brg__source_put_bytes(t, body->at, body->n));
    BRG_TRY(put(t, "#undef T\n#undef FN\n"));
    for (size_t i = 0; i < sizeof names / sizeof *names; i += 2)
        BRG_TRY(put(t, "#undef %s\n", names[i]));
    return BRG_OK;
}

typedef struct asked {
    brg__cuda_group *const *groups;
    size_t n;
    int *kernel;
} asked;

static brg_status put_all(brg__source *t, brg__source *bodies, void *user)
{
    const asked *a = user;
    int n_kernels = 0;
    BRG_TRY(put_preamble(t));
    for (size_t i = 0; i < a->n; i++) {
        a->kernel[i] = -1;
        BRG_TRY(put_kernels(&bodies[i], a->groups[i]));
        for (size_t k = 0; k < i && a->kernel[i] < 0; k++)
            if (a->groups[k]->type == a->groups[i]->type &&
                brg__source_equal(&bodies[k], &bodies[i]))
                a->kernel[i] = a->kernel[k];
        if (a->kernel[i] >= 0)
            continue;
        a->kernel[i] = n_kernels++;
        BRG_TRY(put_named(t, a->groups[i], &bodies[i], a->kernel[i]));
    }
    return BRG_OK;
}

brg_status brg__cuda_text(char **out, brg__cuda_group *const *groups, size_t n,
                          int *kernel)
{
    asked a = {groups, n, kernel};
    return brg__source_make(out, n, put_all, &a);
}
