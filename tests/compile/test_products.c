/* SPDX-License-Identifier: Apache-2.0
 * Products of plans with kernels: values against loops in f64, which sizes and
 * layouts are taken. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "compile/products.h"
#include "tests/support/brg_test.h"

static const brg__gemm_maker *products;

/* The build or the processor may have none. */
static int find(void **state)
{
    (void)state;
    products = brg__products();
    return 0;
}

static bool is_taken(const brg__gemm *g)
{
    return products && products->run(products, g);
}

/* ---- One product ------------------------------------------------------------- */

enum {
    A_TURNED = 1,
    B_TURNED = 2,
    BIASED = 4,
    ADDED = 8,
    SCALED = 16,
    ALL = 32
};

/* Everything that it needs, with guards behind rows and end of c. */
typedef struct product {
    brg__gemm g;
    float *a, *b, *bias, *c;
    double *want;
    size_t n_c;
} product;

static float *values(uint64_t *seed, size_t n)
{
    float *v = malloc((n + 1) * sizeof *v);
    assert_non_null(v);
    for (size_t i = 0; i < n; i++)
        v[i] = (float)brg_test_uniform(seed, -1, 1);
    return v;
}

static void product_init(product *p, uint64_t *seed, const int64_t size[3],
                         int how)
{
    const int64_t m = size[0], n = size[1], k = size[2], gap = 3;
    *p = (product){.n_c = (size_t)(m * (n + gap))};
    p->a = values(seed, (size_t)(m * k));
    p->b = values(seed, (size_t)(k * n));
    p->bias = values(seed, (size_t)n);
    p->c = values(seed, p->n_c);
    p->g = (brg__gemm){.dtype = BRG_DTYPE_F32,
                       .accumulate = (how & ADDED) != 0,
                       .m = m,
                       .n = n,
                       .k = k,
                       .alpha = how & SCALED ? 0.5 : 1.0,
                       .bias = how & BIASED && !(how & ADDED) ? p->bias : NULL,
                       .c = p->c,
                       .ldc = n + gap};
    p->g.a = how & A_TURNED ? brg__mat_of(p->a, 1, m) : brg__mat_of(p->a, k, 1);
    p->g.b = how & B_TURNED ? brg__mat_of(p->b, 1, k) : brg__mat_of(p->b, n, 1);
}

static void product_deinit(product *p)
{
    free(p->a);
    free(p->b);
    free(p->bias);
    free(p->c);
    free(p->want);
}

static double at(const brg__mat *a, int64_t i, int64_t j)
{
    return (double)((const float *)a->at)[i * a->row + j * a->col];
}

static void expect(product *p)
{
    const brg__gemm *g = &p->g;
    p->want = malloc(p->n_c * sizeof *p->want);
    assert_non_null(p->want);
    for (size_t i = 0; i < p->n_c; i++)
        p->want[i] = (double)p->c[i];
    for (int64_t i = 0; i < g->m; i++)
        for (int64_t j = 0; j < g->n; j++) {
            double sum = 0;
            for (int64_t l = 0; l < g->k; l++)
                sum += at(&g->a, i, l) * at(&g->b, l, j);
            sum *= g->alpha;
            if (g->bias)
                sum += (double)((const float *)g->bias)[j];
            double *to = &p->want[i * g->ldc + j];
            *to = g->accumulate ? *to + sum : sum;
        }
}

/* Gaps between rows are as they were: want holds them too. */
static void check(const product *p)
{
    const double most = 4e-7 * (8 + sqrt((double)p->g.k) * 4);
    for (size_t i = 0; i < p->n_c; i++)
        if (!(fabs((double)p->c[i] - p->want[i]) <= most))
            fail_msg("(%lld,%lld,%lld): element %zu is %g, not %g",
                     (long long)p->g.m, (long long)p->g.n, (long long)p->g.k, i,
                     (double)p->c[i], p->want[i]);
}

static bool run_one(const int64_t size[3], int how, uint64_t seed)
{
    product p;
    product_init(&p, &seed, size, how);
    expect(&p);
    const bool taken = is_taken(&p.g);
    if (!taken)
        assert_brg_ok(brg__gemm_run(&p.g));
    check(&p);
    product_deinit(&p);
    return taken;
}

/* ---- Tests --------------------------------------------------------------------- */

static void test_products__equal_loops(void **state)
{
    (void)state;
    static const int64_t sizes[][3] = {
        {8, 512, 784},   {8, 10, 512},   {7, 48, 200},    {33, 64, 300},
        {1, 32, 40},     {2, 16, 1},     {5, 32, 16},     {12, 32, 17},
        {25, 80, 33},    {64, 96, 5},    {200, 128, 512}, {31, 160, 513},
        {100, 64, 1100}, {450, 32, 530}, {512, 784, 8},   {37, 33, 64}};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        /* of large ones each pair of layouts, each with another ending */
        const bool is_large = sizes[i][0] * sizes[i][1] * sizes[i][2] > 1000000;
        for (int how = 0; how < ALL; how += is_large ? 9 : 1)
            (void)run_one(sizes[i], how, 11 + i);
    }
}

static void test_products__equal_loops_at_any_size(void **state)
{
    (void)state;
    uint64_t seed = brg_test_seed(1);
    int n_taken = 0;
    for (int i = 0; i < 400; i++) {
        const int64_t size[3] = {1 + (int64_t)(brg_test_random(&seed) % 70),
                                 (1 + (int64_t)(brg_test_random(&seed) % 12)) *
                                     (brg_test_random(&seed) % 4 ? 16 : 5),
                                 1 + (int64_t)(brg_test_random(&seed) % 300)};
        n_taken += run_one(size, (int)(brg_test_random(&seed) % ALL), seed);
    }
    if (products)
        assert_true(n_taken > 100);
}

/* What the models are made of is taken, in both layouts. */
static void test_products__take_what_layers_need(void **state)
{
    (void)state;
    if (!products)
        skip();
    assert_true(run_one((const int64_t[]){8, 512, 784}, B_TURNED | BIASED, 1));
    assert_true(run_one((const int64_t[]){512, 784, 64}, A_TURNED, 2));
    assert_true(run_one((const int64_t[]){64, 384, 128}, 0, 3));
    assert_false(run_one((const int64_t[]){1, 512, 512}, 0, 4));
    assert_false(run_one((const int64_t[]){40, 512, 1024}, 0, 5));
    assert_false(run_one((const int64_t[]){40, 512, 784}, B_TURNED, 6));
    assert_false(run_one((const int64_t[]){40, 10, 512}, B_TURNED, 7));
}

static void test_products__have_the_same_bits_each_time(void **state)
{
    (void)state;
    product p, q;
    for (int how = 0; how < ALL; how++) {
        uint64_t seed = 3, again = 3;
        const int64_t size[3] = {45, 96, 600};
        product_init(&p, &seed, size, how);
        product_init(&q, &again, size, how);
        const brg__gemm_maker *before = brg__gemm_swap(products);
        assert_brg_ok(brg__gemm_run(&p.g));
        assert_brg_ok(brg__gemm_run(&q.g));
        assert_ptr_equal(brg__gemm_swap(before), products);
        assert_memory_equal(p.c, q.c, p.n_c * sizeof *p.c);
        product_deinit(&p);
        product_deinit(&q);
    }
}

static void test_products__leave_other_dtypes_and_strides(void **state)
{
    (void)state;
    uint64_t seed = 1;
    product p;
    product_init(&p, &seed, (const int64_t[]){32, 16, 64}, 0);
    p.g.b =
        brg__mat_of(p.b, 32, 2); /* every other column of one twice as wide */
    p.g.k = 16;
    assert_false(is_taken(&p.g));
    p.g.dtype = BRG_DTYPE_F64;
    assert_false(is_taken(&p.g));
    product_deinit(&p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_products__equal_loops),
        cmocka_unit_test(test_products__equal_loops_at_any_size),
        cmocka_unit_test(test_products__take_what_layers_need),
        cmocka_unit_test(test_products__have_the_same_bits_each_time),
        cmocka_unit_test(test_products__leave_other_dtypes_and_strides),
    };
    return cmocka_run_group_tests(tests, find, NULL);
}
