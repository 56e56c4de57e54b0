/* SPDX-License-Identifier: Apache-2.0
 * Kernels of groups for devices: their text, run on the host, against eager ops;
 * the cache on disk; devices that fail. No GPU is needed: tests/cuda has one. */
#include <math.h>

#include "compile/fuse/cuda_group.h"
#include "tests/compile/cuda_groups.h"
#include "tests/compile/kernel_cache.h"
#include "tests/support/compiling_device.h"

#define N_GROUPS 24
/* Of an op that is no exact one: eager kernels contract 1 - b b. */
#define MAX_OFF 4

static int fresh(void **state)
{
    (void)state;
    fresh_kernel_cache();
    memset(&compiling, 0, sizeof compiling);
    brg__cuda_kernels_forget_failures();
    return 0;
}

static int clean(void **state)
{
    (void)state;
    return remove_kernel_cache();
}

#define fresh_test(fn) cmocka_unit_test_setup_teardown(fn, fresh, clean)

static brg__kernels_stats stats(void)
{
    brg__kernels_stats s;
    brg__cuda_kernels_get_stats(&s);
    return s;
}

/* ---- A group that runs on the device ---------------------------------------------- */

typedef struct there {
    brg__cuda_group g;
    brg_tensor in[BRG__GROUP_MAX_IN]; /* as they lie, but on the device */
    brg_tensor *operands[BRG__GROUP_MAX_IN];
    brg_tensor *results[BRG__GROUP_MAX_OPS];
    bool sums;
} there;

static void there_init(there *t, group_case *c)
{
    const char *why;
    memset(t, 0, sizeof *t);
    for (int i = 0; i < c->group.n_in; i++) {
        memcpy(&t->in[i], c->in[i], sizeof t->in[i]);
        t->in[i].device = THERE;
        t->operands[i] = &t->in[i];
    }
    assert_brg_ok(brg__group_verify(&c->group));
    assert_brg_ok(brg__cuda_group_init(&t->g, &c->group, c->in, &why));
    if (why)
        print_error("%s\n", why);
    assert_null(why);
    for (int k = 0; k < c->group.n_ops; k++) {
        const brg_tensor *want = c->want[k];
        t->results[k] = assert_brg_some(
            brg_empty((brg_dtype)want->dtype, want->ndim, want->shape));
        memset(brg_tensor_data(t->results[k]), 0x5A,
               brg_tensor_nbytes(t->results[k]));
    }
}

static void there_run(there *t, brg__cuda_kernels *kernels)
{
    const brg__cuda_run run = {&t->g, kernels, THERE, t->operands, t->results};
    assert_non_null(t->g.flat);
    t->sums = brg__cuda_sums(&run);
    assert_brg_ok(brg__cuda_launch(&run, t->sums));
}

/* ---- Text ---------------------------------------------------------------------------- */

static const char golden[] =
    "\n#define T float\n"
    "#define FN(name) brg__f32_##name\n"
    "#define PARAMS brg_params_0\n"
    "#define BODY brg_body_0\n"
    "#define FLAT brg_flat_0\n"
    "#define ANY brg_any_0\n"
    "#define COLUMNS brg_columns_0\n"
    "typedef struct {\n"
    "    const void *in[2];\n"
    "    int64_t kind[2];\n"
    "    int64_t stride[2][8];\n"
    "    void *out[1];\n"
    "    int64_t shape[8];\n"
    "    int64_t ndim, n, rows, cols;\n"
    "    void *sum[1];\n"
    "    double scale[1];\n"
    "    int64_t splits;\n"
    "    double *partials;\n"
    "    uint64_t zero;\n"
    "    T s[3];\n"
    "} PARAMS;\n"
    "DEVICE void BODY(const T *s, uint64_t zero, T v0, T v1, T *r0)\n"
    "{\n"
    "    float v3;\n"
    "    {\n"
    "        const T a = v0;\n"
    "        const T b = v1;\n"
    "        v3 = HIDE_f32((T)(a * b));\n"
    "    }\n"
    "    float v4;\n"
    "    {\n"
    "        const T a = v3;\n"
    "        const T *const p = s + 0;\n"
    "        v4 = (T)(a + p[0]);\n"
    "    }\n"
    "    *r0 = v4;\n"
    "}\n"
    "KERNEL(FLAT)(PARAM PARAMS k)\n"
    "{\n"
    "    const uint32_t n = (uint32_t)(k.n / 4);\n"
    "    const uint32_t per_row = (uint32_t)(k.cols / 4);\n"
    "    for (uint32_t i = blockIdx.x * 256u + threadIdx.x; i < n;\n"
    "         i += gridDim.x * 256u) {\n"
    "        const uint32_t row = k.rows > 1 ? i / per_row : 0;\n"
    "        const uint32_t col = i - row * per_row;\n"
    "        const f32_4 x0 = load_f32_4(k.in[0], k.kind[0], i, row, col);\n"
    "        const f32_4 x1 = load_f32_4(k.in[1], k.kind[1], i, row, col);\n"
    "        f32_4 y0;\n"
    "        UNROLL for (int j = 0; j < 4; j++)\n"
    "        {\n"
    "            T r0;\n"
    "            BODY(k.s, k.zero, GET_f32(x0.at[j]), GET_f32(x1.at[j]), "
    "&r0);\n"
    "            y0.at[j] = PUT_f32(r0);\n"
    "        }\n"
    "        ((f32_4 *)k.out[0])[i] = y0;\n"
    "    }\n";

/* The rest of it is run by the tests that follow. */
static void test_cuda_groups__text(void **state)
{
    group_case c[2];
    there t[2];
    int kernel[2];
    char *text;
    (void)state;
    brg_seed(1);
    brg_scope *scope = brg_scope_begin();
    brg__cuda_group *groups[2] = {&t[0].g, &t[1].g};
    for (int i = 0; i < 2; i++) {
        bias_group(&c[i], BRG_DTYPE_F32);
        there_init(&t[i], &c[i]);
    }
    assert_brg_ok(brg__cuda_text(&text, groups, 2, kernel));
    const char *at = strstr(text, "\n#define T float\n");
    assert_non_null(at);
    if (strncmp(at, golden, strlen(golden)) != 0)
        print_error("%s\n", at);
    assert_memory_equal(at, golden, strlen(golden));
    assert_int_equal(kernel[0], 0); /* equal groups share kernels */
    assert_int_equal(kernel[1], 0);
    assert_null(strstr(at + 16, "#define T "));
    brg__mem_free(text);
    bias_group(&c[1], BRG_DTYPE_BF16); /* sizes do not count, dtypes do */
    there_init(&t[1], &c[1]);
    assert_brg_ok(brg__cuda_text(&text, groups, 2, kernel));
    assert_int_equal(kernel[1], 1);
    assert_non_null(strstr(text, "v3 = GET_bf16(PUT_bf16(v3));"));
    brg__mem_free(text);
    brg_scope_end(scope);
}

/* ---- Values ---------------------------------------------------------------------------- */

/* Exact ops have the eager bits; others, one or two in a row, are near. */
static int check_case(const group_case *c, const there *t)
{
    int n_exact = 0;
    for (int k = 0; k < c->group.n_ops; k++) {
        const brg__group_op *op = &c->group.ops[k];
        if (op->out == BRG__GROUP_NONE || op->is_sum || !is_exact(&c->group, k))
            continue;
        const double off = units_off(t->results[k], c->want[k]);
        if (off != 0) {
            char text[4096];
            brg__text printed = brg__text_begin(text, sizeof text);
            brg__group_print(&c->group, &printed);
            print_error("op %d, %s: off by %g in %s\n", k, op->op->name, off,
                        text);
        }
        assert_true(off == 0);
        n_exact++;
    }
    return n_exact;
}

static void test_cuda_groups__random_groups(void **state)
{
    static group_case c[N_GROUPS];
    static there t[N_GROUPS];
    static const brg_dtype dtypes[] = {BRG_DTYPE_F32, BRG_DTYPE_BF16,
                                       BRG_DTYPE_F16, BRG_DTYPE_F64};
    brg__cuda_group *groups[N_GROUPS];
    brg__cuda_kernels *kernels;
    int n_exact = 0;
    (void)state;
    uint64_t seed = brg_test_seed(51);
    brg_scope *scope = brg_scope_begin();
    for (int i = 0; i < N_GROUPS; i++) {
        chance chances = {seed + (uint64_t)i};
        brg_seed(chances.state);
        random_group(&chances, &c[i], dtypes[i % 4]);
        there_init(&t[i], &c[i]);
        groups[i] = &t[i].g;
    }
    assert_brg_ok(brg__cuda_kernels_load(&kernels, THERE, groups, N_GROUPS));
    if (!kernels)
        print_error("%s\n", logged);
    assert_non_null(kernels);
    for (int i = 0; i < N_GROUPS; i++) {
        there_run(&t[i], kernels);
        n_exact += check_case(&c[i], &t[i]);
    }
    print_message("%d results with the eager bits\n", n_exact);
    assert_true(n_exact >= N_GROUPS / 2);
    brg__cuda_kernels_release(kernels);
    brg_scope_end(scope);
}

/* Each op, in f32 and in 16 bits, with a copy of its result. */
static void test_cuda_groups__each_op(void **state)
{
    enum { MOST = 200 };
    static group_case c[MOST];
    static there t[MOST];
    brg__cuda_group *groups[MOST];
    brg__cuda_kernels *kernels;
    size_t n = 0;
    (void)state;
    brg_seed(brg_test_seed(3));
    brg_scope *scope = brg_scope_begin();
    for (size_t i = 0; brg_op_at(i / 2) && n < MOST; i++) {
        if (!copied_op(&c[n], brg_op_at(i / 2),
                       i % 2 ? BRG_DTYPE_BF16 : BRG_DTYPE_F32))
            continue;
        there_init(&t[n], &c[n]);
        groups[n] = &t[n].g;
        n++;
    }
    assert_in_range(n, 80, MOST - 1);
    assert_brg_ok(brg__cuda_kernels_load(&kernels, THERE, groups, n));
    assert_non_null(kernels);
    for (size_t i = 0; i < n; i++) {
        there_run(&t[i], kernels);
        const brg_op *op = c[i].group.ops[0].op;
        const double most = is_exact_op(op)                ? 0
                            : c[i].dtype == BRG_DTYPE_BF16 ? 1
                                                           : MAX_OFF;
        const double off = units_off(t[i].results[1], c[i].want[1]);
        if (off > most)
            print_error("%s: off by %g\n", op->name, off);
        assert_true(off <= most);
    }
    brg__cuda_kernels_release(kernels);
    brg_scope_end(scope);
}

/* ---- Sums -------------------------------------------------------------------------------- */

/* Rounded once, from f64. */
static void check_sums(const brg_tensor *got, const brg_tensor *values)
{
    const int64_t cols = values->shape[1];
    brg_tensor *want = assert_brg_some(
        brg_zeros((brg_dtype)got->dtype, got->ndim, got->shape));
    for (int64_t c = 0; c < cols; c++) {
        double sum = 0;
        for (int64_t r = 0; r < values->shape[0]; r++)
            sum += element(values, r * cols + c);
        brg__put_f64(brg__storage_base(want), (brg_dtype)want->dtype, c, sum);
    }
    assert_true(units_off(got, want) == 0);
}

/* Rows of many sizes: those of no block, of some, of several splits. */
static void test_cuda_groups__sums_of_columns(void **state)
{
    static const int64_t sizes[][2] = {{1, 8},    {7, 8},    {300, 64},
                                       {65, 520}, {1000, 8}, {33, 256}};
    static const brg_dtype dtypes[] = {BRG_DTYPE_F32, BRG_DTYPE_BF16};
    (void)state;
    brg_seed(brg_test_seed(9));
    for (size_t i = 0; i < 12; i++) {
        group_case c;
        there t;
        brg__cuda_kernels *kernels;
        brg__cuda_group *groups[] = {&t.g};
        brg_scope *scope = brg_scope_begin();
        bias_group(&c, dtypes[i % 2]);
        memcpy(c.shape, sizes[i / 2], sizeof sizes[0]);
        for (int k = 0; k < 3; k++) {
            const bool is_row = k == 2 || (k == 1 && i % 3 == 2);
            c.in[k] = random_values(c.dtype, is_row ? 1 : 2,
                                    is_row ? c.shape + 1 : c.shape);
        }
        for (int k = 0; k < 3; k++)
            call_op(&c, k);
        there_init(&t, &c);
        assert_brg_ok(brg__cuda_kernels_load(&kernels, THERE, groups, 1));
        assert_non_null(kernels);
        for (int again = 0; again < 3; again++) { /* claims are 0 again */
            for (int k = 1; k < 3; k++)
                memset(brg_tensor_data(t.results[k]), 0x5A,
                       brg_tensor_nbytes(t.results[k]));
            there_run(&t, kernels);
            assert_true(t.sums || c.shape[0] == 1);
            assert_true(units_off(t.results[1], c.want[1]) == 0);
            if (t.sums)
                check_sums(t.results[2], c.want[1]);
        }
        brg__cuda_kernels_release(kernels);
        brg_scope_end(scope);
    }
}

/* ---- The cache ------------------------------------------------------------------------- */

static void load_one(unsigned long long n_compiled,
                     unsigned long long n_from_disk)
{
    group_case c;
    there t;
    brg__cuda_kernels *kernels;
    brg__cuda_group *groups[] = {&t.g};
    brg__kernels_stats before = stats();
    brg_scope *scope = brg_scope_begin();
    brg_seed(4);
    bias_group(&c, BRG_DTYPE_F32);
    there_init(&t, &c);
    assert_brg_ok(brg__cuda_kernels_load(&kernels, THERE, groups, 1));
    assert_non_null(kernels);
    there_run(&t, kernels);
    assert_true(units_off(t.results[1], c.want[1]) == 0);
    brg__cuda_kernels_release(kernels);
    brg_scope_end(scope);
    assert_int_equal(stats().compiled - before.compiled, n_compiled);
    assert_int_equal(stats().from_disk - before.from_disk, n_from_disk);
}

static void test_cuda_groups__cache(void **state)
{
    (void)state;
    load_one(1, 0);
    load_one(0, 1);
    survive_damage(".cubin", load_one);
    assert_int_equal(compiling.n_loaded, compiling.n_unloaded);
}

static void load_another(void)
{
    group_case c;
    there t;
    brg__cuda_kernels *kernels;
    brg__cuda_group *groups[] = {&t.g};
    brg_scope *scope = brg_scope_begin();
    bias_group(&c, BRG_DTYPE_F16);
    there_init(&t, &c);
    assert_brg_ok(brg__cuda_kernels_load(&kernels, THERE, groups, 1));
    brg__cuda_kernels_release(kernels);
    brg_scope_end(scope);
}

/* What the key in a record is for. */
static void test_cuda_groups__foreign_entry(void **state)
{
    (void)state;
    load_one(1, 0);
    exchange_entry(".cubin", load_another);
    load_one(1, 0);
    assert_non_null(strstr(logged, "its content is not what its record says"));
}

int main(void)
{
    assert_brg_ok(brg_device_register(BRG_DEVICE_CUDA, compiling_device()));
    const struct CMUnitTest tests[] = {
        fresh_test(test_cuda_groups__text),
        fresh_test(test_cuda_groups__random_groups),
        fresh_test(test_cuda_groups__each_op),
        fresh_test(test_cuda_groups__sums_of_columns),
        fresh_test(test_cuda_groups__cache),
        fresh_test(test_cuda_groups__foreign_entry),
    };
    return cmocka_run_group_tests_name("cuda_groups", tests, NULL, NULL);
}
