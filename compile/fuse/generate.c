/* SPDX-License-Identifier: Apache-2.0
 * From groups to C: see generate.h. */
#include "compile/fuse/generate.h"

#include <string.h>

#include "compile/fuse/source.h"
#include "core/base/error.h"

#define put brg__source_put

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

/* ---- Loops of a kernel ---------------------------------------------------------
 * Functions like exp are long chains of dependent instructions. Several in one
 * loop leave the processor nothing to do beside them; in loops of their own the
 * elements overlap. So a kernel is cut into loops of bounded cost, and what a
 * later loop reads waits in the cache, in an array of a tile. */

#define LOOP_COST 28

static int cost_of(const brg_op *op)
{
    static const char *const cheap[] = {"FN(max)",   "FN(min)",  "FN(abs)",
                                        "FN(floor)", "FN(ceil)", "FN(rint)"};
    const char *fn = strstr(op->expr, "FN(");
    for (size_t i = 0; fn && i < sizeof cheap / sizeof *cheap; i++)
        if (strncmp(fn, cheap[i], strlen(cheap[i])) == 0)
            fn = NULL;
    bool divides = strchr(op->expr, '/') || strstr(op->expr, "FN(div)") ||
                   strstr(op->expr, "FN(sqrt)");
    return divides ? 6 : fn ? 24 : 1;
}

typedef struct layout {
    int loop[BRG__GROUP_MAX_OPS];     /* of each op */
    int export[BRG__GROUP_MAX_OPS];   /* its number, or NONE */
    bool is_kept[BRG__GROUP_MAX_OPS]; /* in an array, for later loops */
    int n_loops, n_exports;
} layout;

static void lay_out(layout *l, const brg__fused *f)
{
    int cost = 0;
    *l = (layout){.n_loops = 1};
    for (int k = 0; k < f->n_ops; k++) {
        l->export[k] = f->ops[k].is_export ? l->n_exports++ : BRG__GROUP_NONE;
        if (!f->ops[k].kernel)
            continue;
        int more = cost_of(f->group->ops[k].op);
        if (cost > 0 && cost + more > LOOP_COST) {
            l->n_loops++;
            cost = 0;
        }
        cost += more;
        l->loop[k] = l->n_loops - 1;
        for (int i = 0; i < f->group->ops[k].n_in; i++) {
            int from = f->ops[k].in[i] - f->n_loads;
            if (from >= 0 && l->loop[from] != l->loop[k] &&
                !f->ops[from].is_export)
                l->is_kept[from] = true;
        }
    }
}

static brg_status put_op(brg__source *t, const brg__fused *f, const layout *l,
                         int k)
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
    if (l->export[k] != BRG__GROUP_NONE)
        return put(t, "        o%d[i] = v%d;\n", l->export[k], op -> to);
    return l->is_kept[k] ? put(t, "        k%d[i] = v%d;\n", k, op->to)
                         : BRG_OK;
}

/* Register r, if this loop reads it and does not make it. */
static brg_status put_read(brg__source *t, const brg__fused *f, const layout *l,
                           int loop, int r)
{
    int made_by = r - f->n_loads;
    bool is_read = false;
    if (made_by >= 0 && (!f->ops[made_by].kernel || l->loop[made_by] >= loop))
        return BRG_OK;
    for (int k = 0; k < f->n_ops; k++)
        for (int i = 0; f->ops[k].kernel && i < f->group->ops[k].n_in; i++)
            is_read = is_read || (l->loop[k] == loop && f->ops[k].in[i] == r);
    if (!is_read)
        return BRG_OK;
    if (made_by < 0)
        return put(t, "        const T v%d = i%d[i];\n", r, r);
    if (l->export[made_by] != BRG__GROUP_NONE)
        return put(t, "        const T v%d = o%d[i];\n", r, l->export[made_by]);
    return put(t, "        const T v%d = k%d[i];\n", r, made_by);
}

static brg_status put_loop(brg__source *t, const brg__fused *f, const layout *l,
                           int loop)
{
    BRG_TRY(put(t, "    INDEPENDENT for (size_t i = 0; i < n; i++)\n    {\n"));
    for (int r = 0; r < f->n_loads + f->n_ops; r++)
        BRG_TRY(put_read(t, f, l, loop, r));
    for (int k = 0; k < f->n_ops; k++)
        if (f->ops[k].kernel && l->loop[k] == loop)
            BRG_TRY(put_op(t, f, l, k));
    return put(t, "    }\n");
}

/* Without the name, so that equal ones are found. */
static brg_status put_kernel(brg__source *t, const brg__fused *f)
{
    layout l;
    lay_out(&l, f);
    BRG_TRY(put(t, "(size_t n, void *const *out, const void *const *in,\n"
                   "    const double *scalars)\n{\n"));
    BRG_TRY(put(t, "    T s[%d];\n", 2 * f->n_ops));
    BRG_TRY(put(t,
                "    for (int k = 0; k < %d; k++)\n"
                "        s[k] = (T)scalars[k];\n",
                2 * f->n_ops));
    BRG_TRY(put(t, "    const U zero = (U)scalars[%d];\n", 2 * f->n_ops));
    for (int i = 0; i < l.n_exports; i++)
        BRG_TRY(put(t, "    T *restrict const o%d = out[%d];\n", i, i));
    for (int i = 0; i < f->n_loads; i++)
        BRG_TRY(put(t, "    const T *const i%d = in[%d];\n", i, i));
    for (int k = 0; k < f->n_ops; k++)
        if (l.is_kept[k])
            BRG_TRY(put(t, "    T k%d[%d / sizeof(T)];\n", k, BRG__TILE_BYTES));
    for (int loop = 0; loop < l.n_loops; loop++)
        BRG_TRY(put_loop(t, f, &l, loop));
    return put(t, "}\n");
}

/* ---- All of them --------------------------------------------------------------- */

static brg_status put_preamble(brg__source *t)
{
    BRG_TRY(put(t, "/* Kernels of a plan; ABI %d. */\n#include <stddef.h>\n",
                BRG__KERNEL_ABI));
    BRG_TRY(brg__source_put_vmath(t));
    return put(t, "%s",
               "\n#define K(x) ((T)(x))\n"
               "#if defined(__GNUC__) && !defined(__clang__)\n"
               "#define INDEPENDENT _Pragma(\"GCC ivdep\")\n"
               "#else\n#define INDEPENDENT\n#endif\n"
               "/* Its bits, by a number that only the caller knows is 0. */\n"
               "#define HIDE(x) UNBITS(BITS(x) ^ zero)\n");
}

static brg_status put_named(brg__source *t, const brg__fused *f,
                            const brg__source *body, int number)
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
    BRG_TRY(brg__source_put_bytes(t, body->at, body->n));
    return put(t, "#undef T\n#undef U\n#undef FN\n#undef BITS\n"
                  "#undef UNBITS\n");
}

typedef struct asked {
    brg__fused *const *fused;
    size_t n;
    int *kernel;
} asked;

/* bodies[i]: the text of kernel i's parameters and body. */
static brg_status put_all(brg__source *t, brg__source *bodies, void *user)
{
    const asked *a = user;
    int n_kernels = 0;
    BRG_TRY(put_preamble(t));
    for (size_t i = 0; i < a->n; i++) {
        a->kernel[i] = -1;
        if (!a->fused[i])
            continue;
        BRG_TRY(put_kernel(&bodies[i], a->fused[i]));
        for (size_t k = 0; k < i && a->kernel[i] < 0; k++)
            if (a->fused[k] && a->fused[k]->type == a->fused[i]->type &&
                brg__source_equal(&bodies[k], &bodies[i]))
                a->kernel[i] = a->kernel[k];
        if (a->kernel[i] >= 0)
            continue;
        a->kernel[i] = n_kernels++;
        BRG_TRY(put_named(t, a->fused[i], &bodies[i], a->kernel[i]));
    }
    return BRG_OK;
}

brg_status brg__generate(char **out, brg__fused *const *fused, size_t n,
                         int *kernel)
{
    asked a = {fused, n, kernel};
    return brg__source_make(out, n, put_all, &a);
}
