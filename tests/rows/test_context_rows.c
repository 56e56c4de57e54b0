/* SPDX-License-Identifier: Apache-2.0
 * Rows of the suite `backward` on what a custom function leaves for its
 * backward, and what of it is in the key of a plan. */
#include "tests/rows/both.h"

static const int64_t five_sizes[] = {10, 100, 10, 20, 10};

#define COUNT(array) (sizeof(array) / sizeof *(array))

/* loss = sum(f(x)^2) of a random leaf; its gradient, which is
 * square x^2 + line x. */
static void step(yields *y, const brg_function *f, int64_t n, double square,
                 double line)
{
    brg_tensor *x = brg_randn(BRG_DTYPE_F32, BRG_SHAPE(n));
    assert_brg_ok(brg_set_requires_grad(x, true));
    brg_tensor *out = CALL(f, x);
    assert_brg_ok(brg_backward(brg_sum_all(brg_mul(out, out))));
    for (int64_t i = 0; i < n; i++) {
        double at = element(x, i);
        assert_float_equal(element(brg_tensor_grad(x), i),
                           square * at * at + line * at, 1e-4);
    }
    yield(y, out);
    yield_grad(y, x);
}

/* How plans meet the functions of this file. */
static brg_function_tracing tracing;

static brg_function *
traced(brg_status (*forward)(brg_context *, const brg_value *, size_t,
                             brg_value *),
       brg_status (*backward)(brg_context *, brg_tensor *const *, brg_tensor **,
                              size_t *))
{
    return function_traced(tracing, "CustomOp", forward, backward, 1);
}

/* In each of the three ways; untraceable, each plan is two pieces. */
static void run_all_ways(both_body body, uint64_t n_captures)
{
    for (tracing = BRG_FUNCTION_OPAQUE; tracing <= BRG_FUNCTION_UNTRACEABLE;
         tracing++) {
        bool is_split = tracing == BRG_FUNCTION_UNTRACEABLE;
        run_counted(body, n_captures, n_captures * (is_split ? 2 : 1));
        assert_int_equal(both_stats().splits, is_split ? n_captures : 0);
        /* Traced, its ops are in the plan. */
        assert_int_equal(plan_has(0, "call@"),
                         tracing != BRG_FUNCTION_TRACEABLE);
        assert_int_equal(plan_has(0, "split"), is_split);
    }
    tracing = BRG_FUNCTION_OPAQUE;
}

#define TRACED_ROW(name, n_captures)                                           \
    static void name(void **state)                                             \
    {                                                                          \
        (void)state;                                                           \
        run_all_ways(name##_body, (n_captures));                               \
    }

/* ---- Identity -------------------------------------------------------------------- */

FORWARD(identity_forward)
{
    OUT(0, brg_mul_scalar(ARG(0), 1));
    return BRG_OK;
}

BACKWARD(identity_backward)
{
    GRAD(0, g[0]);
    return BRG_OK;
}

static brg_function *identity(void)
{
    return traced(identity_forward, identity_backward);
}

static void basic_body(yields *y)
{
    brg_function *f = identity();
    for (size_t i = 0; i < COUNT(five_sizes); i++)
        step(y, f, five_sizes[i], 0, 2);
    brg_function_release(f);
}

static void test_autograd_cpp_node_basic(void **state)
{
    (void)state;
    run_all_ways(basic_body, 1);
    assert_int_equal(both_stats().hits, 4);
}

/* A backward that no capture could look into: it counts. */
static int n_untraceable;

BACKWARD(counting_backward)
{
    n_untraceable++;
    GRAD(0, g[0]);
    return BRG_OK;
}

static void non_traceable_body(yields *y)
{
    brg_function *f = function_traced(BRG_FUNCTION_UNTRACEABLE, "CustomOp",
                                      identity_forward, counting_backward, 1);
    n_untraceable = 0;
    for (size_t i = 0; i < COUNT(five_sizes); i++)
        step(y, f, five_sizes[i], 0, 2);
    assert_int_equal(n_untraceable, 5); /* once a step, never in a capture */
    brg_function_release(f);
}

static void test_autograd_cpp_node_non_traceable(void **state)
{
    (void)state;
    run_counted(non_traceable_body, 1, 2);
}

static void one_function_body(yields *y)
{
    brg_function *f = identity();
    for (int i = 0; i < 4; i++)
        step(y, f, 10, 0, 2);
    brg_function_release(f);
}

static void two_functions_body(yields *y)
{
    brg_function *f[] = {identity(), identity()};
    assert_true(brg_function_id(f[0]) != brg_function_id(f[1]));
    for (int i = 0; i < 4; i++)
        step(y, f[i % 2], 10, 0, 2);
    brg_function_release(f[0]);
    brg_function_release(f[1]);
}

static void test_autograd_cpp_node_id(void **state)
{
    (void)state;
    run_both(one_function_body, 1);
    run_both(two_functions_body, 2);
    assert_int_equal(both_stats().hits, 2);
}

/* ---- What is saved depends on the call --------------------------------------------- */

static int n_call;
static const char *entry_name;

FORWARD(varying_forward)
{
    n_call++;
    if (n_call == 2)
        SAVE(ARG(0), ARG(0), ARG(0));
    else
        SAVE(ARG(0), ARG(0));
    if (n_call == 3)
        brg_context_set_materialize_grads(ctx, false);
    BRG_TRY(brg_context_set(ctx, entry_name, brg_value_int(n_call)));
    OUT(0, brg_mul_scalar(ARG(0), 2));
    return BRG_OK;
}

BACKWARD(varying_backward)
{
    SAVED(x, 0);
    brg_tensor *grad = brg_mul(g[0], x);
    for (size_t i = 1; i < brg_context_n_saved(ctx); i++) {
        SAVED(more, i);
        grad = brg_add(grad, more);
    }
    GRAD(0, grad);
    return BRG_OK;
}

static void varying_body(yields *y)
{
    brg_function *f = traced(varying_forward, varying_backward);
    n_call = 0;
    entry_name = "call";
    for (int i = 0; i < 4; i++)
        step(y, f, 10 + i, 4, i == 1 ? 2 : 1); /* one more saved */
    brg_function_release(f);
}

static void names_body(yields *y)
{
    static const char *const names[] = {"call", "again", "call"};
    brg_function *f = traced(varying_forward, varying_backward);
    n_call = 10;
    for (size_t i = 0; i < COUNT(names); i++) {
        entry_name = names[i];
        step(y, f, 10, 4, 1);
    }
    brg_function_release(f);
}

static void test_autograd_cpp_node_data_dependent(void **state)
{
    (void)state;
    run_all_ways(varying_body, 3);
    assert_int_equal(both_stats().hits, 1); /* the fourth: the first plan */
    run_both(names_body, 2);
}

/* ---- Attributes of every kind -------------------------------------------------------- */

typedef struct bag {
    int64_t n_aux;
    int64_t integer;
    bool truth;
    const char *word;
} bag;

static bag given;

FORWARD(bag_forward)
{
    brg_tensor *aux = brg_full(BRG_DTYPE_F32, BRG_SHAPE(given.n_aux), 0.5);
    brg_value words[] = {brg_value_string("a"), brg_value_string(given.word)};
    brg_value entry[] = {brg_value_string("key"), brg_value_float(0.25)};
    brg_value entries[] = {brg_value_list(entry, 2)};
    SAVE(ARG(0), ARG(1));
    BRG_TRY(brg_context_set(ctx, "aux", brg_value_tensor(aux)));
    BRG_TRY(brg_context_set(ctx, "truth", brg_value_bool(given.truth)));
    BRG_TRY(brg_context_set(ctx, "integer", brg_value_int(given.integer)));
    BRG_TRY(brg_context_set(ctx, "words", brg_value_list(words, 2)));
    BRG_TRY(brg_context_set(ctx, "dict", brg_value_list(entries, 1)));
    OUT(0, brg_mul(ARG(0), ARG(1)));
    return BRG_OK;
}

/* x + y + sum(aux) + integer: the bag as forward left it. */
BACKWARD(bag_backward)
{
    SAVED(x, 0);
    SAVED(y, 1);
    brg_tensor *aux = brg_context_get(ctx, "aux").as.tensor;
    brg_value words = brg_context_get(ctx, "words");
    brg_value dict = brg_context_get(ctx, "dict");
    if (brg_context_get(ctx, "truth").as.truth != given.truth ||
        words.as.list.n != 2 ||
        strcmp(words.as.list.items[1].as.text, given.word) != 0 ||
        dict.as.list.items[0].as.list.items[1].as.real != 0.25)
        return brg_error_set(BRG_ERR_INTERNAL, __FILE__, __LINE__, "the bag");
    brg_tensor *sum = brg_add(brg_add(x, y), brg_sum_all(aux));
    brg_tensor *integer = brg_context_get_tensor(ctx, "integer", BRG_DTYPE_F32);
    GRAD(0, brg_mul(g[0], brg_add(sum, integer)));
    GRAD(1, brg_mul(g[0], x));
    return BRG_OK;
}

static void bag_step(yields *y, const brg_function *f, int64_t n, bag what)
{
    given = what;
    brg_tensor *x = brg_randn(BRG_DTYPE_F32, BRG_SHAPE(n));
    brg_tensor *w = brg_randn(BRG_DTYPE_F32, BRG_SHAPE(n));
    assert_brg_ok(brg_set_requires_grad(x, true));
    assert_brg_ok(brg_set_requires_grad(w, true));
    assert_brg_ok(brg_backward(brg_sum_all(CALL(f, x, w))));
    for (int64_t i = 0; i < n; i++)
        assert_float_equal(element(brg_tensor_grad(x), i),
                           element(x, i) + element(w, i) +
                               0.5 * (double)what.n_aux + (double)what.integer,
                           1e-4);
    yield_grad(y, x);
    yield_grad(y, w);
}

static brg_function *bag_function(void)
{
    return traced(bag_forward, bag_backward);
}

static void bag_sizes_body(yields *y)
{
    brg_function *f = bag_function();
    for (size_t i = 0; i < COUNT(five_sizes); i++)
        bag_step(y, f, five_sizes[i],
                 (bag){2 + (int64_t)i, 3 + (int64_t)i, true, "b"});
    brg_function_release(f);
}

static void bag_constants_body(yields *y)
{
    brg_function *f = bag_function();
    bag_step(y, f, 10, (bag){2, 3, true, "b"});
    bag_step(y, f, 10, (bag){2, 3, false, "b"}); /* a truth */
    bag_step(y, f, 10, (bag){2, 3, false, "c"}); /* a word of a list */
    bag_step(y, f, 10, (bag){2, 9, true, "b"});
    brg_function_release(f);
}

static void test_autograd_cpp_node_saved_basic(void **state)
{
    (void)state;
    run_all_ways(bag_sizes_body, 1);
    run_all_ways(bag_constants_body, 3);
}

/* ---- Attributes that the plan reads at run time ----------------------------------------- */

FORWARD(flat_forward)
{
    brg_tensor *flat = brg_reshape(ARG(0), BRG_SHAPE(brg_tensor_numel(ARG(0))));
    BRG_TRY(brg_context_set(ctx, "flat", brg_value_tensor(flat)));
    OUT(0, brg_mul_scalar(ARG(0), 3));
    return BRG_OK;
}

BACKWARD(flat_backward)
{
    brg_tensor *flat = brg_context_get(ctx, "flat").as.tensor;
    GRAD(0, brg_add(brg_mul_scalar(g[0], 3), brg_sum_all(flat)));
    return BRG_OK;
}

static void test_autograd_cpp_node_saved_dynamic_body(yields *y)
{
    static const int64_t sizes[] = {10, 30, 10, 20, 10};
    brg_function *f = traced(flat_forward, flat_backward);
    for (size_t i = 0; i < COUNT(sizes); i++) {
        brg_tensor *x = brg_randn(BRG_DTYPE_F32, BRG_SHAPE(sizes[i], 2));
        assert_brg_ok(brg_set_requires_grad(x, true));
        assert_brg_ok(brg_backward(brg_sum_all(CALL(f, x))));
        expect_all(brg_tensor_grad(x), 3 + item(brg_sum_all(brg_detach(x))));
        yield_grad(y, x);
    }
    brg_function_release(f);
}
TRACED_ROW(test_autograd_cpp_node_saved_dynamic, 1)

FORWARD(number_forward)
{
    BRG_TRY(brg_context_set(ctx, "number", args[1]));
    OUT(0, brg_mul_scalar(ARG(0), 2));
    return BRG_OK;
}

BACKWARD(number_backward)
{
    brg_tensor *number = brg_context_get_tensor(ctx, "number", BRG_DTYPE_F32);
    GRAD(0, brg_mul(g[0], number));
    return BRG_OK;
}

static void numbers(yields *y, const brg_value *values, size_t n)
{
    brg_function *f = traced(number_forward, number_backward);
    for (size_t i = 0; i < n; i++) {
        brg_value out;
        brg_tensor *x = leaf_from(1, BRG_SHAPE(10));
        assert_brg_ok(APPLY(f, &out, brg_value_tensor(x), values[i]));
        assert_brg_ok(brg_backward(brg_sum_all(out.as.tensor)));
        expect_all(brg_tensor_grad(x), values[i].kind == BRG_VALUE_INT
                                           ? (double)values[i].as.integer
                                           : values[i].as.real);
        yield_grad(y, x);
    }
    brg_function_release(f);
}

static void test_autograd_cpp_node_saved_float_body(yields *y)
{
    const brg_value values[] = {brg_value_float(1.1), brg_value_float(2.2),
                                brg_value_float(3.3), brg_value_float(1.1)};
    numbers(y, values, COUNT(values));
}
TRACED_ROW(test_autograd_cpp_node_saved_float, 1)

static void test_autograd_cpp_node_saved_int_body(yields *y)
{
    const brg_value values[] = {brg_value_int(1), brg_value_int(2),
                                brg_value_int(3), brg_value_int(1)};
    numbers(y, values, COUNT(values));
}
TRACED_ROW(test_autograd_cpp_node_saved_int, 1)

int main(void)
{
    const struct CMUnitTest tests[] = {
        scoped_test(test_autograd_cpp_node_basic),
        scoped_test(test_autograd_cpp_node_data_dependent),
        scoped_test(test_autograd_cpp_node_id),
        scoped_test(test_autograd_cpp_node_non_traceable),
        scoped_test(test_autograd_cpp_node_saved_basic),
        scoped_test(test_autograd_cpp_node_saved_dynamic),
        scoped_test(test_autograd_cpp_node_saved_float),
        scoped_test(test_autograd_cpp_node_saved_int),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
