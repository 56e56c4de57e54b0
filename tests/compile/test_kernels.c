/* SPDX-License-Identifier: Apache-2.0
 * Kernels of groups: values against eager ops and f64, the cache on disk and
 * what may be wrong with it, compilers that fail. */
#include <fcntl.h>
#include <math.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "compile/fuse/kernels.h"
#include "core/base/clock.h"
#include "tests/compile/groups.h"
#include "tests/compile/kernel_cache.h"

#define N_GROUPS 24
#define MAX_ULPS 2 /* of an op's result, from its eager kernel */

/* ---- A cache of the test's own ---------------------------------------------------- */

static int fresh_cache(void **state)
{
    (void)state;
    fresh_kernel_cache();
    assert_int_equal(unsetenv("BRG_COMPILE_CC"), 0);
    assert_int_equal(unsetenv("BRG_COMPILE_DEBUG"), 0);
    assert_int_equal(unsetenv("BRG_COMPILE_TIMEOUT_S"), 0);
    return 0;
}

static int remove_cache(void **state)
{
    (void)state;
    return remove_kernel_cache();
}

#define cache_test(fn)                                                         \
    cmocka_unit_test_setup_teardown(fn, fresh_cache, remove_cache)

static brg__kernels_stats stats(void)
{
    brg__kernels_stats s;
    brg__kernels_get_stats(&s);
    return s;
}

static void set_compiler(const char *name, const char *script)
{
    const char *path = temp_file(name, script, strlen(script));
    assert_int_equal(chmod(path, 0700), 0);
    assert_int_equal(setenv("BRG_COMPILE_CC", path, 1), 0);
}

static const char *entry(void)
{
    return only_entry(".so");
}

/* ---- One small group ----------------------------------------------------------------- */

/* t1 = a0 * a1 + number; another number is another text. */
typedef struct one {
    brg_scope *scope;
    group_case g;
    group_run r;
    brg__kernels *kernels;
} one;

static void one_init(one *o, int n_more)
{
    memset(o, 0, sizeof *o);
    o->scope = brg_scope_begin();
    brg_seed(5);
    o->g = (group_case){.dtype = BRG_DTYPE_F32, .ndim = 2, .shape = {40, 50}};
    o->g.group = (brg__group){
        .n_in = 2, .n_ops = 2 + n_more, .n_out = 1, .ops = o->g.ops};
    for (int i = 0; i < 2; i++)
        o->g.in[i] = random_values(BRG_DTYPE_F32, 2, o->g.shape);
    for (int k = 0; k < 2 + n_more; k++) {
        o->g.group.ops[k] = (brg__group_op){
            k ? &brg__op_add_scalar : &brg__op_mul, .n_in = k ? 1 : 2,
            .in = {k ? k + 1 : 0, 1}, .attrs.f = {1.5},
            .out = k == 1 + n_more ? 0 : BRG__GROUP_NONE};
        call_op(&o->g, k);
    }
    prepare_group(&o->r, &o->g);
}

static void one_load(one *o)
{
    assert_brg_ok(brg__kernels_load(&o->kernels, &o->r.fused, 1));
}

static void one_check(one *o)
{
    run_group(&o->r, &o->g);
    const brg_tensor *want = o->g.want[o->g.group.n_ops - 1];
    assert_memory_equal(brg__tensor_ptr(o->r.out[0]), brg__tensor_ptr(want),
                        brg_tensor_nbytes(want));
}

static void one_deinit(one *o)
{
    brg__kernels_release(o->kernels);
    free_group_run(&o->r);
    brg_scope_end(o->scope);
}

/* Loads it anew: is it there, compiled or from disk? */
static void expect_load(unsigned long long n_compiled,
                        unsigned long long n_from_disk)
{
    one o;
    brg__kernels_stats before = stats();
    one_init(&o, 0);
    one_load(&o);
    assert_non_null(o.r.fused->compiled);
    one_check(&o);
    one_deinit(&o);
    assert_int_equal(stats().compiled - before.compiled, n_compiled);
    assert_int_equal(stats().from_disk - before.from_disk, n_from_disk);
}

/* It runs interpreted; the log says why. */
static void expect_interpreted(int n_more, const char *why)
{
    one o;
    one_init(&o, n_more);
    logged[0] = '\0';
    one_load(&o);
    assert_null(o.kernels);
    assert_null(o.r.fused->compiled);
    one_check(&o);
    one_deinit(&o);
    if (!strstr(logged, why))
        print_error("the log says: %s\n", logged);
    assert_non_null(strstr(logged, why));
}

/* ---- Values ------------------------------------------------------------------------------ */

static bool is_exact(const brg__group *g)
{
    for (int k = 0; k < g->n_ops; k++)
        if (!g->ops[k].is_sum && !is_exact_op(g->ops[k].op))
            return false;
    return true;
}

/* Exactly equal, NaNs apart. */
static bool is_equal(const brg_tensor *a, const brg_tensor *b)
{
    for (int64_t i = 0; i < a->numel; i++) {
        double x = brg__get_f64(brg__storage_base(a), (brg_dtype)a->dtype,
                                a->offset + i);
        double y = brg__get_f64(brg__storage_base(b), (brg_dtype)b->dtype,
                                b->offset + i);
        if (x != y && !(x != x && y != y))
            return false;
    }
    return true;
}

/* Groups of any ops differ where eager expressions are contracted otherwise:
 * rarely, and not at all in groups of exact ops. */
static void test_kernels__random_groups(void **state)
{
    static group_case g[N_GROUPS];
    static group_run r[N_GROUPS];
    brg__fused *fused[N_GROUPS];
    brg__kernels *kernels;
    (void)state;
    uint64_t seed = brg_test_seed(77);
    brg_scope *scope = brg_scope_begin();
    for (int i = 0; i < N_GROUPS; i++) {
        chance c = {seed + (uint64_t)i};
        brg_seed(c.state);
        memset(&r[i], 0, sizeof r[i]);
        random_group(&c, &g[i], i % 4 == 3 ? BRG_DTYPE_F64 : BRG_DTYPE_F32);
        prepare_group(&r[i], &g[i]);
        fused[i] = r[i].fused;
    }
    assert_brg_ok(brg__kernels_load(&kernels, fused, N_GROUPS));
    assert_non_null(kernels);
    int n = 0, n_equal = 0;
    for (int i = 0; i < N_GROUPS; i++) {
        assert_non_null(fused[i]->compiled);
        run_group(&r[i], &g[i]);
        for (int k = 0; k < g[i].group.n_ops; k++) {
            int out = g[i].group.ops[k].out;
            if (out == BRG__GROUP_NONE)
                continue;
            bool same = is_equal(g[i].want[k], r[i].out[out]);
            n++;
            n_equal += same;
            if (is_exact(&g[i].group))
                assert_true(same);
        }
    }
    print_message("%d of %d results have the eager bits\n", n_equal, n);
    assert_true(n_equal >= n - n / 10);
    brg__kernels_release(kernels);
    for (int i = 0; i < N_GROUPS; i++)
        free_group_run(&r[i]);
    brg_scope_end(scope);
}

static int64_t ordered(float x)
{
    int32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits < 0 ? (int64_t)INT32_MIN - bits : bits;
}

static int64_t ulps_between(const brg_tensor *a, const brg_tensor *b)
{
    const float *x = brg__tensor_ptr(a), *y = brg__tensor_ptr(b);
    int64_t most = 0;
    for (int64_t i = 0; i < a->numel; i++) {
        int64_t d = ordered(x[i]) - ordered(y[i]);
        d = d < 0 ? -d : d;
        if (d > most && !(x[i] != x[i] && y[i] != y[i]))
            most = d;
    }
    return most;
}

/* Each op in a group with a copy of its result, all of them compiled at once. */
static void test_kernels__each_op_is_within_its_ulps(void **state)
{
    enum { MOST = 96 };
    static group_case g[MOST];
    static group_run r[MOST];
    brg__fused *fused[MOST];
    brg__kernels *kernels;
    size_t n = 0;
    (void)state;
    brg_seed(brg_test_seed(3));
    brg_scope *scope = brg_scope_begin();
    for (size_t i = 0; brg_op_at(i) && n < MOST; i++) {
        const brg_op *op = brg_op_at(i);
        const brg__pw_row *row = op->pointwise;
        if (!brg__group_takes(op) || row->cls == BRG__PW_COND ||
            row->cls == BRG__PW_CAST || !brg__pw_kernel(op, BRG__F32) ||
            strstr(op->name, "logical"))
            continue;
        group_case *c = &g[n];
        *c = (group_case){.dtype = BRG_DTYPE_F32, .ndim = 1, .shape = {5000}};
        c->group = (brg__group){
            .n_in = op->n_in, .n_ops = 2, .n_out = 1, .ops = c->ops};
        for (int k = 0; k < op->n_in; k++)
            c->in[k] = random_values(BRG_DTYPE_F32, 1, c->shape);
        c->group.ops[0] =
            (brg__group_op){op, .n_in = op->n_in, .in = {0, 1, 2},
                            .attrs.f = {0.75, 1.25}, .out = BRG__GROUP_NONE};
        call_op(c, 0);
        bool is_float = brg__tensor_is_float(c->want[0]);
        c->group.ops[1] = (brg__group_op){
            is_float ? &brg__op_copy : &brg__op_keep_if, .n_in = 2 - is_float,
            .in = {op->n_in, 0}, .out = 0};
        call_op(c, 1);
        memset(&r[n], 0, sizeof r[n]);
        prepare_group(&r[n], c);
        fused[n] = r[n].fused;
        n++;
    }
    assert_in_range(n, 40, MOST - 1);
    assert_brg_ok(brg__kernels_load(&kernels, fused, n));
    assert_non_null(kernels);
    for (size_t i = 0; i < n; i++) {
        run_group(&r[i], &g[i]);
        assert_non_null(fused[i]->compiled);
        int64_t ulps = ulps_between(g[i].want[1], r[i].out[0]);
        const brg_op *op = g[i].group.ops[0].op;
        if (ulps > (is_exact_op(op) ? 0 : MAX_ULPS))
            print_error("%s: %d ulps\n", op->name, (int)ulps);
        assert_true(ulps <= (is_exact_op(op) ? 0 : MAX_ULPS));
        free_group_run(&r[i]);
    }
    brg__kernels_release(kernels);
    brg_scope_end(scope);
}

/* A chain against the same in f64, which no kernel of f32 made. */
static void test_kernels__chain_against_f64(void **state)
{
    one o;
    (void)state;
    one_init(&o, 0);
    o.g.group.ops[1].op = &brg__op_gelu;
    call_op(&o.g, 1);
    one_load(&o);
    assert_non_null(o.r.fused->compiled);
    run_group(&o.r, &o.g);
    const float *a = brg__tensor_ptr(o.g.in[0]),
                *b = brg__tensor_ptr(o.g.in[1]);
    const float *y = brg__tensor_ptr(o.r.out[0]);
    for (int64_t i = 0; i < o.r.out[0]->numel; i++) {
        double x = (double)a[i] * (double)b[i];
        double u = 1.5957691216057308 * x * (1 + 0.044715 * x * x);
        double want = x / (1 + exp(-u));
        assert_true(fabs(y[i] - want) <= 4e-6 * (fabs(want) + 1e-3));
    }
    one_deinit(&o);
}

/* ---- The cache ------------------------------------------------------------------------------ */

static void test_kernels__cache_is_used(void **state)
{
    (void)state;
    expect_load(1, 0);
    assert_string_not_equal(entry(), "");
    expect_load(0, 1);
    /* two at a time share it */
    one a, b;
    one_init(&a, 0);
    one_init(&b, 0);
    one_load(&a);
    brg__kernels_stats before = stats();
    one_load(&b);
    assert_ptr_equal(a.kernels, b.kernels);
    assert_int_equal(stats().shared - before.shared, 1);
    one_deinit(&b);
    one_check(&a);
    one_deinit(&a);
}

static void test_kernels__corrupt_entry_is_made_again(void **state)
{
    (void)state;
    expect_load(1, 0);
    survive_damage(".so", expect_load);
}

static void load_another(void)
{
    one o;
    one_init(&o, 3);
    one_load(&o);
    one_deinit(&o);
}

/* What a hash is for. */
static void test_kernels__foreign_entry_is_made_again(void **state)
{
    (void)state;
    expect_load(1, 0);
    exchange_entry(".so", load_another);
    expect_load(1, 0);
    assert_non_null(strstr(logged, "is made again"));
}

static void test_kernels__entry_that_others_may_write(void **state)
{
    (void)state;
    expect_load(1, 0);
    assert_int_equal(chmod(entry(), 0666), 0);
    logged[0] = '\0';
    expect_load(1, 0);
    assert_non_null(strstr(logged, "others may write it"));
    if (geteuid() != 0)
        return;
    assert_int_equal(chown(entry(), 1, 1), 0);
    logged[0] = '\0';
    expect_load(1, 0);
    assert_non_null(strstr(logged, "somebody else"));
}

static void test_kernels__link_is_no_entry(void **state)
{
    char path[4200], other[4200];
    (void)state;
    expect_load(1, 0);
    snprintf(path, sizeof path, "%s", entry());
    snprintf(other, sizeof other, "%s/elsewhere", cache);
    assert_int_equal(rename(path, other), 0);
    assert_int_equal(symlink(other, path), 0);
    expect_load(1, 0);
    expect_load(0, 1);
}

/* What a process leaves that is killed while it compiles: files with other
 * names, and a lock that dies with it. */
static void test_kernels__killed_writer(void **state)
{
    (void)state;
    pid_t pid = fork();
    if (pid == 0) {
        set_compiler("cc-sleeps", "#!/bin/sh\n"
                                  "test \"$1\" = --version && exec echo slow\n"
                                  "exec sleep 20\n");
        one o;
        one_init(&o, 0);
        one_load(&o);
        _exit(0);
    }
    assert_true(pid > 0);
    char command[5000];
    snprintf(command, sizeof command,
             "for i in $(seq 100); do ls '%s'/*.c >/dev/null 2>&1 && exit 0; "
             "sleep 0.05; done; exit 1",
             cache);
    assert_int_equal(system(command), 0);
    assert_int_equal(kill(pid, SIGKILL), 0);
    assert_int_equal(waitpid(pid, NULL, 0), pid);
    uint64_t start = brg__clock_ns();
    expect_load(1, 0);
    assert_true(brg__clock_ns() - start < UINT64_C(15000000000));
    expect_load(0, 1);
}

static bool is_there(const char *name)
{
    char path[4300];
    snprintf(path, sizeof path, "%s/%s", cache, name);
    return access(path, F_OK) == 0;
}

/* The folder may be the user's own: what is no leftover stays, however old. */
static void test_kernels__only_leftovers_are_removed(void **state)
{
    static const char key[] = "0123456789abcdef0123456789abcdef";
    char command[14000], left[64], mine[64];
    (void)state;
    snprintf(left, sizeof left, "%s.1.0.c", key);
    snprintf(mine, sizeof mine, "%s0.1.c", key);
    snprintf(command, sizeof command,
             "mkdir -m 700 '%s' && cd '%s' && touch -d '2 hours ago' "
             "data.tar.gz %s %s",
             cache, cache, left, mine);
    assert_int_equal(system(command), 0);
    expect_load(1, 0);
    assert_true(is_there("data.tar.gz"));
    assert_true(is_there(mine));
    assert_false(is_there(left));
}

/* Ranks that start together: all have the kernel, and it is whole. */
static void test_kernels__many_writers(void **state)
{
    enum { N = 4 };
    pid_t pid[N];
    (void)state;
    for (int i = 0; i < N; i++) {
        pid[i] = fork();
        assert_true(pid[i] >= 0);
        if (pid[i] > 0)
            continue;
        one o;
        unsigned long long before = stats().compiled;
        one_init(&o, 0);
        bool is_ok = brg__kernels_load(&o.kernels, &o.r.fused, 1) == BRG_OK &&
                     o.r.fused->compiled;
        _exit(is_ok ? (int)(stats().compiled - before) : 100);
    }
    int n_compiled = 0;
    for (int i = 0; i < N; i++) {
        int status;
        assert_int_equal(waitpid(pid[i], &status, 0), pid[i]);
        assert_true(WIFEXITED(status));
        assert_in_range(WEXITSTATUS(status), 0, 1);
        n_compiled += WEXITSTATUS(status);
    }
    assert_int_equal(n_compiled, 1);
    expect_load(0, 1);
}

/* The folder's name is a file's: kernels are not kept, but there. */
static void test_kernels__cache_that_cannot_be_written(void **state)
{
    (void)state;
    FILE *file = fopen(cache, "w");
    assert_non_null(file);
    fclose(file);
    logged[0] = '\0';
    expect_load(1, 0);
    assert_non_null(strstr(logged, "kernels are not kept"));
    logged[0] = '\0';
    expect_load(1, 0);
    assert_null(strstr(logged, "kernels are not kept")); /* said once */
}

static void test_kernels__cache_that_others_may_write(void **state)
{
    (void)state;
    assert_int_equal(mkdir(cache, 0700), 0);
    assert_int_equal(chmod(cache, 0777), 0);
    expect_load(1, 0);
    assert_string_equal(entry(), "");
}

static void test_kernels__debug_folder(void **state)
{
    char folder[4200], command[9000];
    (void)state;
    snprintf(folder, sizeof folder, "%s/debug/inside", cache);
    assert_int_equal(setenv("BRG_COMPILE_DEBUG", folder, 1), 0);
    expect_load(1, 0);
    snprintf(
        command, sizeof command,
        "grep -q brg_kernel_0 '%s'/*.c && grep -q 'compiled in' '%s'/*.log",
        folder, folder);
    assert_int_equal(system(command), 0);
}

/* ---- Compilers -------------------------------------------------------------------------------- */

static void test_kernels__no_compiler(void **state)
{
    (void)state;
    assert_int_equal(setenv("BRG_COMPILE_CC", "brg-there-is-none", 1), 0);
    expect_interpreted(0, "brg-there-is-none");
    logged[0] = '\0';
    expect_interpreted(1, ""); /* said once */
    assert_string_equal(logged, "");
    assert_int_equal(setenv("BRG_COMPILE_CC", "", 1), 0);
    expect_interpreted(0, "");
    assert_string_equal(logged, "");
}

static void test_kernels__compiler_that_fails(void **state)
{
    (void)state;
    set_compiler("cc-fails", "#!/bin/sh\n"
                             "test \"$1\" = --version && exec echo failing 1\n"
                             "echo 'x.c:1: error: no such luck' >&2\nexit 1\n");
    char folder[4200], command[13000];
    snprintf(folder, sizeof folder, "%s/debug", cache);
    assert_int_equal(setenv("BRG_COMPILE_DEBUG", folder, 1), 0);
    const unsigned long long before = stats().failed;
    expect_interpreted(0, "no such luck");
    for (int n_more = 0; n_more < 3; n_more++) { /* no text is tried again */
        expect_interpreted(n_more, "");
        assert_string_equal(logged, "");
    }
    assert_int_equal(stats().failed, before + 1);
    snprintf(command, sizeof command,
             "grep -q 'failed after .*status 1' '%s'/*.log && "
             "grep -q 'no such luck' '%s'/*.log && "
             "! grep -q 'compiled in' '%s'/*.log",
             folder, folder, folder);
    assert_int_equal(system(command), 0);
    brg__kernels_forget_failures();
    expect_interpreted(1, "no such luck");
}

static void test_kernels__compiler_that_makes_nothing(void **state)
{
    (void)state;
    set_compiler("cc-empty", "#!/bin/sh\n"
                             "test \"$1\" = --version && exec echo empty 1\n"
                             "exit 0\n");
    expect_interpreted(0, "made no");
}

static void test_kernels__compiler_that_makes_rubbish(void **state)
{
    (void)state;
    set_compiler("cc-rubbish",
                 "#!/bin/sh\n"
                 "test \"$1\" = --version && exec echo rubbish 1\n"
                 "while test \"$1\" != -o; do shift; done\n"
                 "echo rubbish > \"$2\"\n");
    expect_interpreted(0, "cannot load");
}

static void test_kernels__compiler_that_takes_too_long(void **state)
{
    (void)state;
    set_compiler("cc-slow", "#!/bin/sh\n"
                            "test \"$1\" = --version && exec echo slow 1\n"
                            "sleep 30\n");
    assert_int_equal(setenv("BRG_COMPILE_TIMEOUT_S", "0.3", 1), 0);
    uint64_t start = brg__clock_ns();
    expect_interpreted(0, "longer than");
    expect_interpreted(1, ""); /* said, and waited for, once */
    assert_string_equal(logged, "");
    assert_true(brg__clock_ns() - start < UINT64_C(10000000000));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cache_test(test_kernels__random_groups),
        cache_test(test_kernels__each_op_is_within_its_ulps),
        cache_test(test_kernels__chain_against_f64),
        cache_test(test_kernels__cache_is_used),
        cache_test(test_kernels__corrupt_entry_is_made_again),
        cache_test(test_kernels__foreign_entry_is_made_again),
        cache_test(test_kernels__entry_that_others_may_write),
        cache_test(test_kernels__link_is_no_entry),
        cache_test(test_kernels__killed_writer),
        cache_test(test_kernels__only_leftovers_are_removed),
        cache_test(test_kernels__many_writers),
        cache_test(test_kernels__cache_that_cannot_be_written),
        cache_test(test_kernels__cache_that_others_may_write),
        cache_test(test_kernels__debug_folder),
        cache_test(test_kernels__no_compiler),
        cache_test(test_kernels__compiler_that_fails),
        cache_test(test_kernels__compiler_that_makes_nothing),
        cache_test(test_kernels__compiler_that_makes_rubbish),
        cache_test(test_kernels__compiler_that_takes_too_long),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
