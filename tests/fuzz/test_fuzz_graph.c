/* SPDX-License-Identifier: Apache-2.0
 * Random graphs: pointwise ops, products, reductions, views, changes in place
 * of tensors and views, hooks of all kinds, custom functions, detached parts,
 * shared sub-graphs; values and gradients against the machine's (machine.h).
 *
 * Each program runs eagerly, then compiled, twice: its gradients are also equal
 * bit for bit.
 *
 * BRG_TEST_SEED repeats a program (the message says which); BRG_FUZZ_SECONDS
 * is how long to go on, 4 by default; with BRG_TEST_KERNELS=1 plans have their
 * kernels in C, whose bits may be others. */
#include <brigade/compile.h>

#include "tests/fuzz/library.h"

static uint64_t n_hits; /* of plans, in all */

/* ---- Comparing ----------------------------------------------------------------------- */

static bool close_to(double a, double b, double scale)
{
    return fabs(a - b) <= 1e-8 * (1 + scale);
}

static bool compare_values(fuzz *f, int s)
{
    dual x[MAX_NUMEL];
    double y[MAX_NUMEL];
    const int n = numel_of(&f->p.slots[s]);
    load(&f->m, s, &f->p.slots[s], x);
    if (brg_tensor_numel(f->t[s]) != n ||
        brg_tensor_read(f->t[s], y, (size_t)n * sizeof *y) != BRG_OK)
        return FAIL("%%%d has %lld elements, expected %d", s,
                    (long long)brg_tensor_numel(f->t[s]), n);
    for (int i = 0; i < n; i++)
        if (!close_to(x[i].v, y[i], fabs(x[i].v)))
            return FAIL("%%%d, element %d: %.17g, expected %.17g", s, i, y[i],
                        x[i].v);
    return true;
}

/* The derivative of the loss by each element of a leaf, or of what step
 * `kept` keeps the gradient of. */
static void derivatives(fuzz *f, int s, int kept, double *want)
{
    const slot *of = &f->p.slots[s];
    f->m.seed_storage = kept < 0 ? of->storage : -1;
    f->m.seed_step = kept;
    for (int i = 0; i < numel_of(of); i++) {
        f->m.seed_element = i;
        want[i] = run_program(&f->m).t;
    }
    f->m.seed_storage = f->m.seed_step = -1;
}

static bool compare_grad(fuzz *f, int s, const brg_tensor *grad,
                         const double *want)
{
    const int n = numel_of(&f->p.slots[s]);
    double got[MAX_NUMEL] = {0}, scale = 0;
    if (grad && brg_tensor_read(grad, got, (size_t)n * sizeof *got) != BRG_OK)
        return FAIL("gradient of %%%d: %s", s, brg_error_message());
    if (f->bits && f->bits->n < MAX_DIGESTS)
        f->bits->hash[f->bits->n++] =
            XXH64(got, (size_t)n * sizeof *got, grad != NULL);
    for (int i = 0; i < n; i++)
        scale = fmax(scale, fabs(want[i]));
    for (int i = 0; i < n; i++)
        if (!close_to(got[i], want[i], scale))
            return FAIL("gradient of %%%d, element %d: %.17g, expected %.17g",
                        s, i, got[i], want[i]);
    return true;
}

/* ---- Backward -------------------------------------------------------------------------- */

static int leaves_of(const fuzz *f, int *leaves)
{
    int n = 0;
    for (int k = 0; k < f->p.n_steps; k++)
        if (f->p.steps[k].kind == STEP_LEAF)
            leaves[n++] = f->p.steps[k].out;
    return n;
}

/* sums[s]: what .grad of slot s should be so far; adds this backward's. */
static bool add_expected(fuzz *f, double (*sums)[MAX_NUMEL])
{
    for (int k = 0; k < f->p.n_steps; k++) {
        const step *st = &f->p.steps[k];
        const int kept = is_kept(f, st) ? k : -1;
        if (st->kind != STEP_LEAF && kept < 0)
            continue;
        double want[MAX_NUMEL], *sum = sums[st->out];
        const int n = numel_of(&f->p.slots[st->out]);
        derivatives(f, st->out, kept, want);
        for (int i = 0; i < n; i++)
            sum[i] += want[i];
        if (kept < 0 && !run_leaf_hooks(f, st, want, sum))
            return false;
        if (!compare_grad(f, st->out, brg_tensor_grad(f->t[st->out]), sum))
            return false;
    }
    return true;
}

/* .grad of every leaf and of what keeps it, after each of `times` backwards. */
static bool check_backward(fuzz *f, brg_tensor *loss, int times)
{
    static double sums[MAX_SLOTS][MAX_NUMEL];
    brg_backward_options options = BRG_BACKWARD_OPTIONS_INIT;
    memset(sums, 0, sizeof sums);
    for (int i = 1; i <= times; i++) {
        options.retain_graph = i < times;
        before_backward(f);
        if (brg_backward_with(&loss, 1, &options) != BRG_OK)
            return FAIL("backward: %s", brg_error_message());
        if (!check_hooks(f, NULL) || !add_expected(f, sums))
            return false;
        after_backward(f);
    }
    return true;
}

static void forget_kept_gradients(fuzz *f)
{
    for (int k = 0; k < f->p.n_steps; k++)
        if (f->p.steps[k].kind == STEP_RETAIN)
            assert_brg_ok(brg_tensor_set_grad(f->t[f->p.steps[k].a], NULL));
}

/* brg_grad of some leaves, twice; then all by backward. */
static bool check_grad(fuzz *f, brg_tensor *loss, bool create_graph)
{
    int leaves[MAX_SLOTS], n_wanted = 0;
    bool is_wanted[MAX_SLOTS] = {false};
    double want[MAX_NUMEL];
    const int n = leaves_of(f, leaves);
    brg_tensor *wanted[MAX_SLOTS], *grads[MAX_SLOTS];
    for (int i = 0; i < n; i++)
        if (loss_weight(&f->p, 1000 + i) != 0 || i == n - 1) {
            is_wanted[leaves[i]] = true;
            leaves[n_wanted] = leaves[i];
            wanted[n_wanted++] = f->t[leaves[i]];
        }
    brg_backward_options options = BRG_BACKWARD_OPTIONS_INIT;
    options.retain_graph = true;
    options.create_graph = create_graph;
    for (int round = 0; round < 2; round++) {
        before_backward(f);
        if (brg_grad(grads, &loss, 1, wanted, (size_t)n_wanted, &options) !=
            BRG_OK)
            return FAIL("brg_grad: %s", brg_error_message());
        if (!check_hooks(f, is_wanted))
            return false;
        f->m.is_capturing = true;
        for (int i = 0; i < n_wanted; i++) {
            derivatives(f, leaves[i], -1, want);
            if (!compare_grad(f, leaves[i], grads[i], want))
                return false;
        }
        f->m.is_capturing = false;
        after_backward(f);
    }
    forget_kept_gradients(f);
    return check_backward(f, loss, 1);
}

/* ---- The oracle itself ------------------------------------------------------------------- */

static bool has_plain_gradient(const program *p)
{
    for (int k = 0; k < p->n_steps; k++) {
        const step_kind kind = p->steps[k].kind;
        if (is_hook(kind) || kind == STEP_DETACH || kind == STEP_RELU ||
            kind == STEP_NO_GRAD_SIN || kind == STEP_FN_SIN)
            return false;
    }
    return p->n_steps <= 30;
}

/* The machine's derivatives against differences of its values. */
static bool check_machine(fuzz *f)
{
    if (!has_plain_gradient(&f->p))
        return true;
    const slot *leaf = &f->p.slots[0];
    f->m.seed_storage = leaf->storage;
    f->m.seed_element = numel_of(leaf) - 1;
    double derivative = run_program(&f->m).t;
    f->m.nudge = 1e-5;
    double above = run_program(&f->m).v;
    f->m.nudge = -1e-5;
    double below = run_program(&f->m).v;
    f->m.nudge = 0;
    double difference = (above - below) / 2e-5;
    if (fabs(difference - derivative) > 1e-4 * (1 + fabs(derivative)))
        return FAIL("the machine's derivative %.9g, differences %.9g",
                    derivative, difference);
    return true;
}

/* ---- One program ---------------------------------------------------------------------------- */

static bool run_program_of(fuzz *f, uint64_t seed, int n_steps, digest *bits)
{
    memset(f, 0, sizeof *f);
    f->bits = bits;
    f->random = f->p.seed = seed;
    f->m.p = &f->p;
    f->m.seed_storage = f->m.seed_step = -1;
    f->m.passes = 1;
    brg_scope *scope = brg_scope_begin();
    bool is_right = generate(f, n_steps);
    for (int s = 0; is_right && s < f->p.n_slots; s++)
        is_right = compare_values(f, s);
    brg_tensor *loss = is_right ? loss_of(f) : NULL;
    if (is_right && !loss)
        is_right = FAIL("the loss: %s", brg_error_message());
    if (is_right && brg_requires_grad(loss)) {
        if (seed % 4 < 2)
            is_right = check_backward(f, loss, 1 + (int)(seed % 2));
        else
            is_right = check_grad(f, loss, seed % 4 == 3);
    }
    is_right = is_right && check_machine(f);
    release_hooks(f);
    brg_scope_end(scope);
    return is_right && check_destroyed(f);
}

/* In one scope twice: a plan is captured, then found. */
static bool run_compiled(fuzz *f, uint64_t seed, int n_steps, digest *bits)
{
    int scope;
    brg_compile_options options = BRG_COMPILE_OPTIONS_INIT;
    options.backend = getenv("BRG_TEST_KERNELS") ? BRG_COMPILE_BACKEND_FUSED
                                                 : BRG_COMPILE_BACKEND_PASSES;
    bool is_right = true;
    assert_brg_ok(brg_compile_begin(&scope, &options));
    for (int k = 0; is_right && k < 2; k++) {
        bits[k].n = 0;
        is_right = run_program_of(f, seed, n_steps, &bits[k]);
    }
    brg_compile_stats stats;
    brg_compile_get_stats(&stats);
    n_hits += stats.hits;
    assert_brg_ok(brg_compile_end(scope));
    assert_brg_ok(brg_compile_reset());
    return is_right;
}

/* Eagerly and compiled, to the bit; with kernels in C, whose bits are others,
 * both against the machine only. */
static bool run_one(fuzz *f, uint64_t seed, int n_steps)
{
    static digest eager, compiled[2];
    eager.n = 0;
    if (!run_program_of(f, seed, n_steps, &eager) ||
        !run_compiled(f, seed, n_steps, compiled))
        return false;
    for (int k = 0; !getenv("BRG_TEST_KERNELS") && k < 2; k++) {
        if (compiled[k].n != eager.n)
            return FAIL("%d gradients compiled, %d eagerly", compiled[k].n,
                        eager.n);
        for (int i = 0; i < eager.n; i++)
            if (compiled[k].hash[i] != eager.hash[i])
                return FAIL("the bits of gradient %d differ, run %d of a plan",
                            i, k);
    }
    return true;
}

static void test_fuzz__random_graphs(void **state)
{
    (void)state;
    make_functions(BRG_FUNCTION_OPAQUE);
    int n;
    bool is_right = run_many(run_one, 20000, 4, &n);
    printf("%d programs, %llu backwards by plans made before\n", n,
           (unsigned long long)n_hits);
    free_functions();
    assert_true(is_right);
    if (n > 8) /* of one program there may be no backward */
        assert_true(n_hits > 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_fuzz__random_graphs),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
