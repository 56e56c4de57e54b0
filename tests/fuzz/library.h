/* SPDX-License-Identifier: Apache-2.0
 * The library's side of random programs: part of the fuzz tests. Each step is a
 * call of the library. */
#ifndef BRG_TESTS_FUZZ_LIBRARY_H
#define BRG_TESTS_FUZZ_LIBRARY_H

#include <brigade/function.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "core/base/clock.h"
#include "tests/autograd/graph.h"
#include "tests/fuzz/machine.h"

#define MAX_DIGESTS 4096

/* ---- Functions ----------------------------------------------------------------- */

static brg_status sin_forward(brg_context *ctx, const brg_value *args, size_t n,
                              brg_value *out)
{
    (void)n;
    out[0] = brg_value_tensor(brg_sin(args[0].as.tensor));
    return brg_context_save(ctx, &args[0].as.tensor, 1);
}

static brg_status sin_backward(brg_context *ctx, brg_tensor *const *g,
                               brg_tensor **gi, size_t *n)
{
    (void)n;
    brg_tensor *x;
    BRG_TRY(brg_context_saved(ctx, 0, &x));
    gi[0] = brg_mul(g[0], brg_mul_scalar(brg_cos(x), 2));
    return gi[0] ? BRG_OK : brg_error_code();
}

static brg_status pair_forward(brg_context *ctx, const brg_value *args,
                               size_t n, brg_value *out)
{
    (void)n;
    brg_tensor *x[] = {args[0].as.tensor, args[1].as.tensor};
    out[0] = brg_value_tensor(brg_mul(x[0], x[1]));
    out[1] = brg_value_tensor(brg_add(x[0], x[1]));
    return brg_context_save(ctx, x, 2);
}

static brg_status pair_backward(brg_context *ctx, brg_tensor *const *g,
                                brg_tensor **gi, size_t *n)
{
    (void)n;
    brg_tensor *a, *b;
    BRG_TRY(brg_context_saved(ctx, 0, &a));
    BRG_TRY(brg_context_saved(ctx, 1, &b));
    gi[0] = brg_add(brg_mul(g[0], b), g[1]);
    gi[1] = brg_add(brg_mul(g[0], a), g[1]);
    return gi[0] && gi[1] ? BRG_OK : brg_error_code();
}

static brg_status double_forward(brg_context *ctx, const brg_value *args,
                                 size_t n, brg_value *out)
{
    (void)n;
    out[0] = args[0];
    BRG_TRY(brg_mul_scalar_(args[0].as.tensor, 2));
    return brg_context_mark_dirty(ctx, &args[0].as.tensor, 1);
}

static brg_status double_backward(brg_context *ctx, brg_tensor *const *g,
                                  brg_tensor **gi, size_t *n)
{
    (void)ctx;
    (void)n;
    gi[0] = brg_mul_scalar(g[0], 2);
    return gi[0] ? BRG_OK : brg_error_code();
}

static brg_function *fn_sin, *fn_pair, *fn_double;

static void make_functions(brg_function_tracing tracing)
{
    brg_function_def def = BRG_FUNCTION_DEF_INIT;
    def.tracing = tracing;
    def.name = "sin";
    def.n_outputs = 1;
    def.forward = sin_forward;
    def.backward = sin_backward;
    assert_brg_ok(brg_function_create(&fn_sin, &def));
    def.name = "double";
    def.forward = double_forward;
    def.backward = double_backward;
    assert_brg_ok(brg_function_create(&fn_double, &def));
    def.name = "pair";
    def.n_outputs = 2;
    def.forward = pair_forward;
    def.backward = pair_backward;
    assert_brg_ok(brg_function_create(&fn_pair, &def));
}

static void free_functions(void)
{
    brg_function_release(fn_sin);
    brg_function_release(fn_pair);
    brg_function_release(fn_double);
}

/* ---- The library's side ----------------------------------------------------------- */

typedef struct fuzz fuzz;

/* The user pointer of a hook. */
typedef struct fuzz_hook {
    fuzz *f;
    const step *st;
    brg_hook *handle; /* NULL: removed, or none */
    int n_runs, n_destroyed;
} fuzz_hook;

/* The gradients of one run in the order in which they are compared. */
typedef struct digest {
    XXH64_hash_t hash[MAX_DIGESTS];
    int n;
} digest;

struct fuzz {
    program p;
    machine m;
    uint64_t random;
    brg_tensor *t[MAX_SLOTS];
    bool is_saved[MAX_SLOTS];   /* by storage: a change would be an error */
    bool is_leaf[MAX_SLOTS];    /* by storage */
    fuzz_hook hooks[MAX_STEPS]; /* by step */
    brg_node *nodes[MAX_STEPS]; /* held: those of leaves live as long */
    digest *bits;               /* of each gradient compared, or NULL */
    char why[512];
};

static void shape64(const slot *s, int64_t *shape)
{
    for (int d = 0; d < s->rank; d++)
        shape[d] = s->shape[d];
}

#define FAIL(...) (snprintf(f->why, sizeof f->why, __VA_ARGS__), false)

#include "tests/fuzz/hooks.h"

static brg_tensor *emit_view(const fuzz *f, const step *st)
{
    brg_tensor *a = f->t[st->a];
    int64_t shape[MAX_RANK];
    const slot *s = &f->p.slots[st->out];
    shape64(s, shape);
    switch (st->kind) {
    case STEP_RESHAPE:
        return brg_reshape(a, s->rank, shape);
    case STEP_TRANSPOSE:
        return brg_transpose(a, st->i[0], st->i[1]);
    case STEP_SLICE:
        return brg_slice(a, st->i[0], st->i[1], BRG_TO_END, st->i[2]);
    case STEP_SELECT:
        return brg_select(a, st->i[0], st->i[1]);
    default:
        return brg_expand(a, s->rank, shape);
    }
}

static brg_tensor *emit_leaf(const fuzz *f, const step *st)
{
    int64_t shape[MAX_RANK];
    const slot *s = &f->p.slots[st->out];
    shape64(s, shape);
    brg_tensor *t =
        brg_from_data(BRG_DTYPE_F64, s->rank, shape, f->p.leaf[s->storage]);
    if (st->kind == STEP_LEAF)
        assert_brg_ok(brg_set_requires_grad(t, true));
    return t;
}

static brg_tensor *emit_inplace(fuzz *f, const step *st)
{
    brg_tensor *a = f->t[st->a];
    brg_status status = BRG_OK;
    if (st->kind == STEP_ADD_)
        status = brg_add_(a, f->t[st->b], st->f);
    else if (st->kind == STEP_SCALE_)
        status = brg_mul_scalar_(a, st->f);
    else if (st->kind == STEP_COPY_)
        status = brg_copy_(a, f->t[st->b]);
    else if (st->kind == STEP_FILL_)
        status = brg_fill_(a, st->f);
    else {
        brg_value arg = brg_value_tensor(a);
        brg_tensor *y = brg_function_call(fn_double, &arg, 1);
        if (y != a)
            return NULL;
    }
    return status == BRG_OK ? a : NULL;
}

static brg_tensor *emit_pair(fuzz *f, const step *st)
{
    brg_value args[2] = {brg_value_tensor(f->t[st->a]),
                         brg_value_tensor(f->t[st->b])};
    brg_value out[2];
    if (brg_function_apply(fn_pair, args, 2, out) != BRG_OK)
        return NULL;
    f->t[st->out2] = out[1].as.tensor;
    return out[0].as.tensor;
}

static brg_tensor *emit_no_grad_sin(brg_tensor *a)
{
    bool mode = brg_grad_mode_set(false);
    brg_tensor *y = brg_sin(a);
    brg_grad_mode_set(mode);
    return y;
}

static brg_tensor *emit(fuzz *f, const step *st)
{
    brg_tensor *a = st->a >= 0 ? f->t[st->a] : NULL;
    brg_tensor *b = st->b >= 0 ? f->t[st->b] : NULL;
    const brg_value arg = brg_value_tensor(a);
    if (makes_view(st->kind))
        return emit_view(f, st);
    switch (st->kind) {
    case STEP_LEAF:
    case STEP_CONSTANT:
        return emit_leaf(f, st);
    case STEP_COPY:
        return brg_copy(a);
    case STEP_SIN:
        return brg_sin(a);
    case STEP_TANH:
        return brg_tanh(a);
    case STEP_SIGMOID:
        return brg_sigmoid(a);
    case STEP_RELU:
        return brg_relu(a);
    case STEP_SQUARE:
        return brg_square(a);
    case STEP_NEG:
        return brg_neg(a);
    case STEP_SCALE:
        return brg_mul_scalar(a, st->f);
    case STEP_SHIFT:
        return brg_add_scalar(a, st->f);
    case STEP_ADD:
        return brg_add(a, b);
    case STEP_SUB:
        return brg_sub(a, b);
    case STEP_MUL:
        return brg_mul(a, b);
    case STEP_DIV:
        return brg_div(a, b);
    case STEP_MATMUL:
        return brg_matmul(a, b);
    case STEP_SUM:
        return brg_sum(a, 1, &st->i[0], st->i[1]);
    case STEP_MEAN:
        return brg_mean(a, 1, &st->i[0], st->i[1]);
    case STEP_SOFTMAX:
        return brg_softmax(a, -1);
    case STEP_CAT:
        return brg_cat((brg_tensor *[]){a, b}, 2, st->i[0]);
    case STEP_DETACH:
        return brg_detach(a);
    case STEP_NO_GRAD_SIN:
        return emit_no_grad_sin(a);
    case STEP_FN_SIN:
        return brg_function_call(fn_sin, &arg, 1);
    case STEP_FN_PAIR:
        return emit_pair(f, st);
    case STEP_RETAIN:
        return brg_retain_grad(a) == BRG_OK ? a : NULL;
    default:
        return is_hook(st->kind) ? emit_hook(f, st) : emit_inplace(f, st);
    }
}

static brg_tensor *loss_of(const fuzz *f)
{
    brg_tensor *loss = brg_zeros(BRG_DTYPE_F64, BRG_SCALAR);
    for (int s = 0; s < f->p.n_slots; s++) {
        const double w = loss_weight(&f->p, s);
        if (w != 0)
            loss = brg_add(loss, brg_mul_scalar(brg_mean_all(f->t[s]), w));
    }
    return loss;
}

#include "tests/fuzz/generate.h"

/* ---- Many programs ---------------------------------------------------------------- */

/* Whether the program of this seed, with so many steps, does what it should;
 * f->why if not. */
typedef bool (*fuzz_run)(fuzz *f, uint64_t seed, int n_steps);

/* The shortest beginning of the program that fails. */
static void report(fuzz *f, fuzz_run run, uint64_t seed, int n_steps)
{
    for (int n = 1; n <= n_steps; n++)
        if (!run(f, seed, n)) {
            print_program(&f->p);
            printf("%s\nrepeat with BRG_TEST_SEED=%llu BRG_FUZZ_SECONDS=0\n",
                   f->why, (unsigned long long)seed);
            return;
        }
    printf("seed %llu failed once only\n", (unsigned long long)seed);
}

/* From the seed on (or BRG_TEST_SEED) for so long (or BRG_FUZZ_SECONDS). */
static bool run_many(fuzz_run run, uint64_t first, double seconds, int *n)
{
    static const int sizes[] = {6, 10, 16, 25, 40, 60, 100, 300};
    const char *asked = getenv("BRG_FUZZ_SECONDS");
    uint64_t seed = brg_test_seed(first);
    uint64_t end =
        brg__clock_ns() + (uint64_t)((asked ? atof(asked) : seconds) * 1e9);
    fuzz *f = malloc(sizeof *f);
    bool is_right;
    assert_non_null(f);
    *n = 0;
    do {
        int size = sizes[seed / 4 % (sizeof sizes / sizeof *sizes)];
        is_right = run(f, seed, size);
        if (!is_right)
            report(f, run, seed, size);
        seed++;
        ++*n;
    } while (is_right && brg__clock_ns() < end);
    free(f);
    return is_right;
}

#endif
