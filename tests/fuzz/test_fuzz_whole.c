/* SPDX-License-Identifier: Apache-2.0
 * Random programs as functions compiled whole: some leaves are inputs, some are
 * known by their address only; the backward is inside or follows, eagerly or by
 * a plan; what cannot be captured in one piece runs in pieces. Results and
 * gradients are those of the function itself, call after call; bit for bit if it
 * was captured in one.
 *
 * BRG_TEST_SEED, BRG_FUZZ_SECONDS and BRG_TEST_KERNELS as in test_fuzz_graph.c.
 */
#include <brigade/compile.h>
#include <brigade/offload.h>

/* Hooks are not for here. */
#pragma GCC diagnostic ignored "-Wunused-function"
#include "tests/fuzz/library.h"

enum { N_CALLS = 3 };

typedef enum run_kind {
    KIND_SEGMENT,          /* the backward follows, eagerly */
    KIND_SEGMENT_AND_PLAN, /* it follows, compiled */
    KIND_STEP,             /* it is inside */
    N_KINDS
} run_kind;

/* A program and one side of it: as it is, or compiled. */
typedef struct side {
    fuzz *f;
    run_kind kind;
    brg_tensor *leaf[MAX_SLOTS]; /* by step: leaves and constants */
    brg_tensor *inputs[MAX_STEPS];
    size_t n_inputs;
} side;

static uint64_t n_functions, n_pieces, n_hits;

static uint64_t bits_of(const fuzz *f, int k)
{
    uint64_t x = (f->p.seed * 131 + (uint64_t)k) * 0x9E3779B97F4A7C15u;
    return x >> 32;
}

static bool is_source(const step *st)
{
    return st->kind == STEP_LEAF || st->kind == STEP_CONSTANT;
}

static bool is_input(const fuzz *f, int k)
{
    return is_source(&f->p.steps[k]) && bits_of(f, k) % 2;
}

static bool is_changed(const fuzz *f, int storage)
{
    for (int k = 0; k < f->p.n_steps; k++)
        if (is_inplace(f->p.steps[k].kind) &&
            f->p.slots[f->p.steps[k].out].storage == storage)
            return true;
    return false;
}

/* Of every third program stretches offload what they save. */
static brg_status turn_offload(const fuzz *f, int k, int *depth)
{
    brg_offload_options o = BRG_OFFLOAD_OPTIONS_INIT;
    uint64_t bits = bits_of(f, k + MAX_STEPS);
    if (f->p.seed % 3 != 0 || bits % 11 != 0)
        return BRG_OK;
    if (bits % 2 == 0 && *depth > 0) {
        --*depth;
        return brg_offload_end();
    }
    if (bits % 2 == 0 || *depth == 2)
        return BRG_OK;
    o.kind = bits / 32 % 2 ? BRG_OFFLOAD_DISK : BRG_OFFLOAD_HOST_MEMORY;
    o.min_bytes = bits / 64 % 100;
    ++*depth;
    return brg_offload_begin(&o);
}

/* The program from its sources on. Those changed in place are copied, so that
 * each call begins with the same. */
static brg_status runs(brg_tensor *const *in, size_t n_in, brg_tensor **out,
                       size_t n_out, void *user)
{
    side *s = user;
    fuzz *f = s->f;
    size_t i = 0;
    int depth = 0;
    (void)n_in;
    (void)n_out;
    for (int k = 0; k < f->p.n_steps; k++) {
        const step *st = &f->p.steps[k];
        if (is_hook(st->kind))
            continue;
        BRG_TRY(turn_offload(f, k, &depth));
        if (!is_source(st))
            f->t[st->out] = emit(f, st);
        else
            f->t[st->out] = is_input(f, k) ? in[i++] : s->leaf[k];
        if (is_source(st) && is_changed(f, f->p.slots[st->out].storage))
            f->t[st->out] = brg_copy(f->t[st->out]);
        if (!f->t[st->out])
            return brg_error_code();
    }
    while (depth-- > 0)
        BRG_TRY(brg_offload_end());
    out[0] = loss_of(f);
    if (!out[0])
        return brg_error_code();
    return s->kind == KIND_STEP ? brg_backward(out[0]) : BRG_OK;
}

static void make_side(side *s, fuzz *f, run_kind kind)
{
    *s = (side){.f = f, .kind = kind};
    for (int k = 0; k < f->p.n_steps; k++) {
        if (!is_source(&f->p.steps[k]))
            continue;
        s->leaf[k] = emit_leaf(f, &f->p.steps[k]);
        if (is_input(f, k))
            s->inputs[s->n_inputs++] = s->leaf[k];
    }
}

static bool call(side *s, brg_compiled *c, brg_tensor **loss)
{
    fuzz *f = s->f;
    brg_status status =
        c ? brg_compiled_call(c, s->inputs, s->n_inputs, loss, 1)
          : runs(s->inputs, s->n_inputs, loss, 1, s);
    if (status != BRG_OK)
        return FAIL("the call: %s", brg_error_message());
    if (s->kind == KIND_STEP)
        return true;
    bool is_planned = c && s->kind == KIND_SEGMENT_AND_PLAN;
    status = backward_as(*loss, is_planned);
    return status == BRG_OK || FAIL("backward: %s", brg_error_message());
}

/* Pieces add gradients in another order; what only their other results reach
 * gets zeros where it would get nothing. Kernels in C round otherwise. */
static bool is_same(const brg_tensor *a, const brg_tensor *b)
{
    double x[MAX_NUMEL] = {0}, y[MAX_NUMEL] = {0}, scale = 1;
    brg_compile_stats stats;
    if (!b)
        return !a;
    size_t n = (size_t)brg_tensor_numel(b);
    if (a)
        assert_brg_ok(brg_tensor_read(a, x, n * sizeof *x));
    assert_brg_ok(brg_tensor_read(b, y, n * sizeof *y));
    brg_compile_get_stats(&stats);
    if (stats.function_pieces == 0 &&
        backend_of_run() != BRG_COMPILE_BACKEND_FUSED)
        return a && memcmp(x, y, sizeof x) == 0;
    for (size_t i = 0; i < n; i++)
        scale = fmax(scale, fabs(x[i]));
    for (size_t i = 0; i < n; i++)
        if (!(fabs(x[i] - y[i]) <= 1e-10 * scale))
            return false;
    return true;
}

static bool compare(fuzz *f, const side *a, const side *b, int i)
{
    for (int k = 0; k < f->p.n_steps; k++) {
        const step *st = &f->p.steps[k];
        if (st->kind != STEP_LEAF)
            continue;
        const brg_tensor *x = brg_tensor_grad(a->leaf[k]);
        const brg_tensor *y = brg_tensor_grad(b->leaf[k]);
        if (!is_same(x, y))
            return FAIL("kind %d, call %d: the gradient of %%%d%s %s", a->kind,
                        i, st->out, is_input(f, k) ? "" : " (from outside)",
                        !y ? "is missing" : "is another");
    }
    return true;
}

static bool run_as(fuzz *f, run_kind kind)
{
    side eager, compiled;
    brg_tensor *losses[2];
    brg_compiled *c;
    brg_compile_options options = BRG_COMPILE_OPTIONS_INIT;
    brg_compile_stats stats;
    bool is_right = true;
    options.whole = true;
    options.backend = backend_of_run();
    make_side(&eager, f, kind);
    make_side(&compiled, f, kind);
    assert_brg_ok(brg_compiled_create(&c, runs, &compiled, &options));
    for (int i = 0; is_right && i < N_CALLS; i++) {
        is_right = call(&eager, NULL, &losses[0]) &&
                   call(&compiled, c, &losses[1]) &&
                   compare(f, &eager, &compiled, i);
        if (is_right && !is_same(losses[0], losses[1]))
            is_right = FAIL("kind %d, call %d: the result is another", kind, i);
    }
    brg_compile_get_stats(&stats);
    n_functions += stats.functions;
    n_pieces += stats.function_pieces;
    n_hits += stats.function_hits;
    brg_compiled_destroy(c);
    assert_brg_ok(brg_compile_reset());
    return is_right;
}

/* The program is made on the way of running it once. */
static bool run_one(fuzz *f, uint64_t seed, int n_steps)
{
    memset(f, 0, sizeof *f);
    f->random = f->p.seed = seed;
    f->m.p = &f->p;
    f->m.seed_storage = f->m.seed_step = -1;
    f->m.passes = 1;
    brg_scope *scope = brg_scope_begin();
    make_functions(seed % 2 ? BRG_FUNCTION_TRACEABLE : BRG_FUNCTION_OPAQUE);
    bool is_right = generate(f, n_steps);
    brg_tensor *loss = is_right ? loss_of(f) : NULL;
    bool has_gradient = loss && brg_requires_grad(loss);
    release_hooks(f);
    for (int k = 0; is_right && has_gradient && k < N_KINDS; k++)
        is_right = run_as(f, (run_kind)k);
    brg_scope_end(scope);
    free_functions();
    return is_right;
}

static void test_fuzz_whole__random_functions(void **state)
{
    (void)state;
    int n;
    bool is_right = run_many(run_one, 30000, 3, &n);
    printf(
        "%d programs: %llu captured whole, %llu pieces, %llu calls by them\n",
        n, (unsigned long long)n_functions, (unsigned long long)n_pieces,
        (unsigned long long)n_hits);
    assert_true(is_right);
    if (n > 16)
        assert_true(n_functions > 0 && n_pieces > 0 && n_hits > 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_fuzz_whole__random_functions),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
