/* SPDX-License-Identifier: Apache-2.0
 * From groups to C: see generate.h. */
#include "compile/fuse/generate.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <compile/fuse/vmath_text.h>

#include "core/base/error.h"

/* ---- Text ------------------------------------------------------------------- */

typedef BRG__ARRAY(char) text;

static brg_status put(text *t, const char *format, ...) BRG_PRINTF(2, 3);

static brg_status put(text *t, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    int n = vsnprintf(NULL, 0, format, args);
    va_end(args);
    if (n < 0)
        return BRG_FAIL(BRG_ERR_INTERNAL, "text of a kernel");
    BRG_TRY(brg__array_reserve(t, (size_t)n + 1));
    va_start(args, format);
    (void)vsnprintf(t->at + t->n, (size_t)n + 1, format, args);
    va_end(args);
    t->n += (size_t)n;
    return BRG_OK;
}

static brg_status put_bytes(text *t, const char *bytes, size_t n)
{
    BRG_TRY(brg__array_reserve(t, n + 1));
    memcpy(t->at + t->n, bytes, n);
    t->n += n;
    t->at[t->n] = '\0';
    return BRG_OK;
}

/* ---- One kernel -------------------------------------------------------------- */

const char *brg__generate_refuses(const brg__fused *fused)
{
    int n_ops = 0;
    for (int k = 0; k < fused->n_ops; k++) {
        n_ops += fused->ops[k].kernel != NULL;
        if (fused->ops[k].is_rounded)
            return "values are rounded to 16 bits";
    }
    return n_ops == 0 ? "it holds sums only" : NULL;
}

/* Compilers make one rounding of a product and a sum that reads it: a result
 * that may be a product is hidden from the ops that add. */
static bool is_hidden(const brg__fused *f, int k)
{
    const char *expr = f->group->ops[k].op->expr;
    if (!strchr(expr, '*') && !strstr(expr, "FN("))
        return false;
    for (int u = k + 1; u < f->n_ops; u++)
        for (int i = 0; f->ops[u].kernel && i < f->group->ops[u].n_in; i++)
            if (f->ops[u].in[i] == f->ops[k].to &&
                strpbrk(f->group->ops[u].op->expr, "+-("))
                return true;
    return false;
}

static brg_status put_op(text *t, const brg__fused *f, int k, int *n_exports)
{
    const brg__fused_op *op = &f->ops[k];
    const brg__group_op *from = &f->group->ops[k];
    static const char names[BRG__GROUP_OP_MAX_IN] = {'a', 'b', 'c'};
    BRG_TRY(put(t, "        T v%d;\n        {\n", op->to));
    for (int i = 0; i < from->n_in; i++)
        BRG_TRY(put(t, "            const T %c = v%d;\n", names[i], op->in[i]));
    if (strstr(from->op->expr, "p["))
        BRG_TRY(put(t, "            const T *const p = s + %d;\n", 2 * k));
    BRG_TRY(put(t, "            v%d = %s(T)(%s)%s;\n        }\n", op->to,
                is_hidden(f, k) ? "HIDE(" : "", from->op->expr,
                is_hidden(f, k) ? ")" : ""));
    if (op->is_export)
        BRG_TRY(put(t, "        o%d[i] = v%d;\n", (*n_exports)++, op->to));
    return BRG_OK;
}

static int count_exports(const brg__fused *f)
{
    int n = 0;
    for (int k = 0; k < f->n_ops; k++)
        n += f->ops[k].is_export;
    return n;
}

/* Without the name, so that equal ones are found. */
static brg_status put_kernel(text *t, const brg__fused *f)
{
    BRG_TRY(put(t, "(size_t n, void *const *out, const void *const *in,\n"
                   "    const double *scalars)\n{\n"));
    BRG_TRY(put(t, "    T s[%d];\n", 2 * f->n_ops));
    BRG_TRY(put(t,
                "    for (int k = 0; k < %d; k++)\n"
                "        s[k] = (T)scalars[k];\n",
                2 * f->n_ops));
    BRG_TRY(put(t, "    const U zero = (U)scalars[%d];\n", 2 * f->n_ops));
    for (int i = 0; i < count_exports(f); i++)
        BRG_TRY(put(t, "    T *restrict const o%d = out[%d];\n", i, i));
    for (int i = 0; i < f->n_loads; i++)
        BRG_TRY(put(t, "    const T *const i%d = in[%d];\n", i, i));
    BRG_TRY(put(t, "    INDEPENDENT for (size_t i = 0; i < n; i++)\n    {\n"));
    for (int i = 0; i < f->n_loads; i++)
        BRG_TRY(put(t, "        const T v%d = i%d[i];\n", i, i));
    int n_exports = 0;
    for (int k = 0; k < f->n_ops; k++)
        if (f->ops[k].kernel)
            BRG_TRY(put_op(t, f, k, &n_exports));
    return put(t, "    }\n}\n");
}

/* ---- All of them --------------------------------------------------------------- */

static brg_status put_preamble(text *t)
{
    BRG_TRY(put(t, "/* Kernels of a plan; ABI %d. */\n#include <stddef.h>\n",
                BRG__KERNEL_ABI));
    BRG_TRY(put_bytes(t, brg__vmath_text, sizeof brg__vmath_text - 1));
    return put(t, "%s",
               "\n#define K(x) ((T)(x))\n"
               "#if defined(__GNUC__) && !defined(__clang__)\n"
               "#define INDEPENDENT _Pragma(\"GCC ivdep\")\n"
               "#else\n#define INDEPENDENT\n#endif\n"
               "/* Its bits, by a number that only the caller knows is 0. */\n"
               "#define HIDE(x) UNBITS(BITS(x) ^ zero)\n");
}

static brg_status put_named(text *t, const brg__fused *f, const text *body,
                            int number)
{
    bool is_f64 = f->type == BRG__F64;
    BRG_TRY(
        put(t,
            "\n#define T %s\n#define U %s\n#define FN(name) brg__%s_##name\n"
            "#define BITS brg__vm_bits%s\n#define UNBITS brg__vm_%s\n",
            is_f64 ? "double" : "float", is_f64 ? "uint64_t" : "uint32_t",
            is_f64 ? "f64" : "f32", is_f64 ? "64" : "",
            is_f64 ? "double" : "float"));
    BRG_TRY(put(t, "void brg_kernel_%d", number));
    BRG_TRY(put_bytes(t, body->at, body->n));
    return put(t, "#undef T\n#undef U\n#undef FN\n#undef BITS\n"
                  "#undef UNBITS\n");
}

static bool is_same(const text *a, const text *b)
{
    return a->n == b->n && memcmp(a->at, b->at, a->n) == 0;
}

/* bodies[i]: the text of kernel i's parameters and body. */
static brg_status put_all(text *t, text *bodies, brg__fused *const *fused,
                          size_t n, int *kernel)
{
    int n_kernels = 0;
    BRG_TRY(put_preamble(t));
    for (size_t i = 0; i < n; i++) {
        kernel[i] = -1;
        if (!fused[i])
            continue;
        BRG_TRY(put_kernel(&bodies[i], fused[i]));
        for (size_t k = 0; k < i && kernel[i] < 0; k++)
            if (fused[k] && fused[k]->type == fused[i]->type &&
                is_same(&bodies[k], &bodies[i]))
                kernel[i] = kernel[k];
        if (kernel[i] >= 0)
            continue;
        kernel[i] = n_kernels++;
        BRG_TRY(put_named(t, fused[i], &bodies[i], kernel[i]));
    }
    return BRG_OK;
}

brg_status brg__generate(char **out, brg__fused *const *fused, size_t n,
                         int *kernel)
{
    text t = {0};
    *out = NULL;
    text *bodies =
        brg__mem_alloc_array(n + 1, sizeof *bodies, "text of kernels");
    if (!bodies)
        return BRG_ERR_NOMEM;
    brg_status status = put_all(&t, bodies, fused, n, kernel);
    for (size_t i = 0; i < n; i++)
        brg__array_deinit(&bodies[i]);
    brg__mem_free(bodies);
    if (status == BRG_OK)
        *out = t.at;
    else
        brg__array_deinit(&t);
    return status;
}
