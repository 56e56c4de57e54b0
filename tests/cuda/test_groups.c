/* SPDX-License-Identifier: Apache-2.0
 * Kernels of groups on a GPU against the same ops there, one by one: random
 * groups, each op, sums of columns, chains over operands of any layout, training;
 * a spoiled cache. */
#include "tests/compile/cuda_chain.h"
#include "tests/compile/cuda_groups.h"
#include "tests/compile/kernel_cache.h"
#include "tests/cuda/steps.h"

#define N_GROUPS 64
#define MAX_OFF 2.5 /* units of the last place, of an op that is no exact one */

/* ---- Groups ------------------------------------------------------------------- */

typedef struct there {
    group_case c; /* on the GPU */
    brg__cuda_group g;
    brg_tensor *results[BRG__GROUP_MAX_OPS];
    bool sums;
} there;

/* The case with its operands on the GPU, and what its ops make of them. */
static void there_init(there *t, const group_case *from)
{
    const char *why;
    memset(t, 0, sizeof *t);
    t->c = *from;
    t->c.group.ops = t->c.ops;
    assert_brg_ok(brg__cuda_group_init(&t->g, &t->c.group, t->c.in, &why));
    assert_null(why);
    for (int i = 0; i < t->c.group.n_in; i++)
        t->c.in[i] = assert_brg_some(brg_to(t->c.in[i], GPU));
    for (int k = 0; k < t->c.group.n_ops; k++) {
        call_op(&t->c, k);
        const brg_tensor *want = t->c.want[k];
        t->results[k] = assert_brg_some(
            brg_full((brg_dtype)want->dtype, want->ndim, want->shape, 77.0));
        t->results[k] = assert_brg_some(brg_to(t->results[k], GPU));
    }
}

static void there_run(there *t, brg__cuda_kernels *kernels)
{
    const brg__cuda_run run = {&t->g, kernels, GPU, t->c.in, t->results};
    assert_non_null(t->g.flat);
    t->sums = brg__cuda_sums(&run);
    assert_brg_ok(brg__cuda_launch(&run, t->sums));
}

static double off_by(const there *t, int k)
{
    return units_off(assert_brg_some(brg_to(t->results[k], CPU)),
                     assert_brg_some(brg_to(t->c.want[k], CPU)));
}

static brg__cuda_kernels *load(there *t, size_t n)
{
    brg__cuda_group *groups[256];
    brg__cuda_kernels *kernels;
    assert_true(n <= 256);
    for (size_t i = 0; i < n; i++)
        groups[i] = &t[i].g;
    assert_brg_ok(brg__cuda_kernels_load(&kernels, GPU, groups, n));
    if (!kernels)
        print_error("%s\n", logged);
    assert_non_null(kernels);
    return kernels;
}

static void test_groups__random(void **state)
{
    static there t[N_GROUPS];
    static const brg_dtype dtypes[] = {BRG_DTYPE_F32, BRG_DTYPE_BF16,
                                       BRG_DTYPE_F16, BRG_DTYPE_F64};
    int n = 0, n_exact = 0, n_same = 0;
    (void)state;
    uint64_t seed = brg_test_seed(51);
    brg_scope *scope = brg_scope_begin();
    for (int i = 0; i < N_GROUPS; i++) {
        static group_case c;
        chance chances = {seed + (uint64_t)i};
        brg_seed(chances.state);
        random_group(&chances, &c, dtypes[i % 4]);
        there_init(&t[i], &c);
    }
    brg__cuda_kernels *kernels = load(t, N_GROUPS);
    for (int i = 0; i < N_GROUPS; i++) {
        there_run(&t[i], kernels);
        for (int k = 0; k < t[i].c.group.n_ops; k++) {
            const brg__group_op *op = &t[i].c.group.ops[k];
            if (op->out == BRG__GROUP_NONE || op->is_sum)
                continue;
            const double off = off_by(&t[i], k);
            const bool exact = is_exact(&t[i].c.group, k);
            n++;
            n_exact += exact;
            n_same += off == 0;
            if (exact && off != 0)
                print_error("%s: off by %g\n", op->op->name, off);
            assert_true(!exact || off == 0);
        }
    }
    print_message("%d of %d results have the bits of ops, %d had to\n", n_same,
                  n, n_exact);
    brg__cuda_kernels_release(kernels);
    brg_scope_end(scope);
}

static void test_groups__each_op(void **state)
{
    enum { MOST = 200 };
    static there t[MOST];
    size_t n = 0;
    (void)state;
    brg_seed(brg_test_seed(3));
    brg_scope *scope = brg_scope_begin();
    for (size_t i = 0; brg_op_at(i / 2) && n < MOST; i++) {
        static group_case c;
        if (copied_op(&c, brg_op_at(i / 2),
                      i % 2 ? BRG_DTYPE_BF16 : BRG_DTYPE_F32))
            there_init(&t[n++], &c);
    }
    brg__cuda_kernels *kernels = load(t, n);
    for (size_t i = 0; i < n; i++) {
        there_run(&t[i], kernels);
        const brg_op *op = t[i].c.group.ops[0].op;
        const double off = off_by(&t[i], 1);
        const bool is_16_bit = t[i].c.dtype == BRG_DTYPE_BF16;
        const double most = is_exact_op(op) ? 0 : is_16_bit ? 1 : MAX_OFF;
        if (off > 0)
            print_message("%s: off by %g\n", op->name, off);
        assert_true(off <= most);
    }
    brg__cuda_kernels_release(kernels);
    brg_scope_end(scope);
}

static void test_groups__sums_of_columns(void **state)
{
    static const int64_t sizes[][2] = {{7, 8},      {300, 64},   {65, 520},
                                       {1000, 8},   {8192, 768}, {512, 512},
                                       {4096, 3072}};
    static const brg_dtype dtypes[] = {BRG_DTYPE_F32, BRG_DTYPE_BF16};
    (void)state;
    brg_seed(brg_test_seed(9));
    for (size_t i = 0; i < 14; i++) {
        static there t, again;
        group_case c;
        brg_scope *scope = brg_scope_begin();
        bias_group(&c, dtypes[i % 2]);
        memcpy(c.shape, sizes[i / 2], sizeof sizes[0]);
        for (int k = 0; k < 3; k++) {
            const bool is_row = k == 2 || (k == 1 && i % 3 == 2);
            c.in[k] = random_values(c.dtype, is_row ? 1 : 2,
                                    is_row ? c.shape + 1 : c.shape);
        }
        there_init(&t, &c);
        there_init(&again, &c);
        brg__cuda_kernels *kernels = load(&t, 1);
        brg__cuda_kernels *second = load(&again, 1);
        there_run(&t, kernels);
        assert_true(t.sums);
        assert_true(off_by(&t, 1) == 0);
        assert_true(off_by(&t, 2) <= 1);
        there_run(&again, second); /* the bits repeat; claims were 0 again */
        assert_true(units_off(assert_brg_some(brg_to(again.results[2], CPU)),
                              assert_brg_some(brg_to(t.results[2], CPU))) == 0);
        brg__cuda_kernels_release(kernels);
        brg__cuda_kernels_release(second);
        brg_scope_end(scope);
    }
}

/* ---- Functions ------------------------------------------------------------------ */

static void call_chain(brg_dtype dtype, int64_t rows, int64_t cols,
                       bool is_strided)
{
    brg_scope *scope = brg_scope_begin();
    brg_tensor *want;
    chain_call c;
    chain_begin(&c, dtype, rows, cols, is_strided, &want);
    for (int i = 0; i < 2; i++)
        assert_true(units_off(assert_brg_some(brg_to(chain_again(&c), CPU)),
                              assert_brg_some(brg_to(want, CPU))) == 0);
    chain_end(&c);
    brg_scope_end(scope);
}

static void test_groups__chains(void **state)
{
    (void)state;
    assert_brg_ok(brg_device_set(GPU));
    for_each_chain(call_chain);
    call_chain(BRG_DTYPE_F32, 1024, 1024, false);
    assert_brg_ok(brg_device_set(CPU));
    assert_string_equal(logged, "");
}

/* ---- Training --------------------------------------------------------------------- */

/* Kernels or ops: sums differ by how f64 is rounded, GELU by an ulp at most, and
 * ops that were merged round once less. An eps that keeps AdamW from making
 * whole steps out of gradients that are next to nothing. */
static void train(kind k, brg_dtype dtype, double most)
{
    static const model_options options = {.eps = 1e-3};
    static outcome want, got;
    for (way w = EAGER; w < N_WAYS; w++) {
        outcome *o = w == EAGER ? &want : &got;
        run_way(k, w, dtype, &options, o);
        check_counts(k, w, o);
        const double off = worst_of(o, &want);
        print_message("%s %s %s: off by %.2g, loss %.6f to %.6f; %d launches, "
                      "in 3 steps %d waits\n",
                      kind_names[k], dtype == BRG_DTYPE_F32 ? "f32" : "bf16",
                      way_names[w], off, o->losses[0], o->losses[N_STEPS - 1],
                      (int)o->stats.replay_launches, (int)o->counts.n_waits);
        assert_true(off <= most);
    }
    assert_string_equal(logged, "");
}

static void test_groups__training(void **state)
{
    brg__kernels_stats before, after;
    (void)state;
    brg__cuda_kernels_get_stats(&before);
    backend_of_ways = BRG_COMPILE_BACKEND_FUSED;
    train(MLP, BRG_DTYPE_F32, 1e-5);
    train(MLP, BRG_DTYPE_BF16, 0.05);
    train(CNN, BRG_DTYPE_F32, 1e-4);
    train(GPT, BRG_DTYPE_F32, 1e-4);
    train(GPT, BRG_DTYPE_BF16, 0.05);
    brg__cuda_kernels_get_stats(&after);
    assert_true(after.compiled > before.compiled);
    assert_int_equal(after.failed, before.failed);
}

/* ---- The cache ----------------------------------------------------------------------- */

static void test_groups__cache(void **state)
{
    brg__kernels_stats before, after;
    char command[5000];
    (void)state;
    for (int i = 0; i < 4; i++) {
        static there t;
        group_case c;
        brg_scope *scope = brg_scope_begin();
        if (i == 2) { /* all there is, spoiled */
            snprintf(command, sizeof command,
                     "for f in '%s'/*.cubin; do printf 0123456789 | dd of=$f "
                     "bs=1 seek=1000 conv=notrunc 2>/dev/null; done",
                     getenv("BRG_COMPILE_CACHE"));
            assert_int_equal(system(command), 0);
        }
        logged[0] = '\0';
        brg__cuda_kernels_get_stats(&before);
        brg_seed(1);
        bias_group(&c, BRG_DTYPE_F16);
        there_init(&t, &c);
        brg__cuda_kernels *kernels = load(&t, 1);
        there_run(&t, kernels);
        assert_true(off_by(&t, 1) == 0);
        brg__cuda_kernels_release(kernels);
        brg_scope_end(scope);
        brg__cuda_kernels_get_stats(&after);
        const bool is_made = i == 0 || i == 2;
        assert_int_equal(after.compiled - before.compiled, is_made);
        assert_int_equal(after.from_disk - before.from_disk, !is_made);
        assert_int_equal(strstr(logged, "is made again") != NULL, i == 2);
    }
    logged[0] = '\0';
}

/* An argument: a pattern of tests to run, for compute-sanitizer. */
int main(int argc, char **argv)
{
    int missing = require_gpu();
    if (missing)
        return missing;
    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    fresh_kernel_cache();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_groups__cache),
        cmocka_unit_test(test_groups__random),
        cmocka_unit_test(test_groups__each_op),
        cmocka_unit_test(test_groups__sums_of_columns),
        cmocka_unit_test(test_groups__chains),
        cmocka_unit_test(test_groups__training),
    };
    return cmocka_run_group_tests_name("groups", tests, NULL, NULL);
}
