/* SPDX-License-Identifier: Apache-2.0
 * What decides which plan a backward needs, and what does not: each case is a
 * backward of two kinds, run in turn. Gradients are those of eager backwards. */
#include "tests/rows/both.h"
#include "tests/support/plain_pack.h"

typedef void (*variant)(yields *y, int k);

static variant now;

static void in_turn(yields *y)
{
    for (int k = 0; k < 3; k++)
        now(y, k % 2);
}

typedef struct named_variant {
    const char *name;
    variant run;
} named_variant;

static void check_all(const named_variant *all, size_t n, uint64_t n_captures)
{
    for (size_t i = 0; i < n; i++) {
        print_message("  %s\n", all[i].name);
        now = all[i].run;
        run_both(in_turn, n_captures);
    }
}

static void finish(yields *y, brg_tensor *out, const brg_tensor *leaf)
{
    assert_brg_ok(brg_backward(brg_sum_all(out)));
    yield_grad(y, leaf);
}

#define X4 leaf_from(1, BRG_SHAPE(4))

/* ---- Ops and graph ---------------------------------------------------------------- */

static void another_op(yields *y, int k)
{
    brg_tensor *x = X4;
    finish(y, k ? brg_sin(x) : brg_exp(x), x);
}

static void attributes_of_an_op(yields *y, int k)
{
    brg_tensor *x = X4;
    finish(y, brg_mul_scalar(x, 2 + k), x);
}

static void one_tensor_or_two(yields *y, int k)
{
    brg_tensor *x = X4, *z = leaf_from(1, BRG_SHAPE(4));
    finish(y, brg_mul(x, k ? x : z), x);
}

static void operands_in_another_order(yields *y, int k)
{
    brg_tensor *x = X4, *z = leaf_from(2, BRG_SHAPE(4)), *s = brg_sin(x);
    finish(y, k ? brg_div(s, z) : brg_div(z, s), x);
}

static void dtypes(yields *y, int k)
{
    brg_tensor *x =
        brg_full(k ? BRG_DTYPE_F32 : BRG_DTYPE_F64, BRG_SHAPE(4), 0.5);
    assert_brg_ok(brg_set_requires_grad(x, true));
    finish(y, brg_sin(x), x);
}

static void number_of_dims(yields *y, int k)
{
    brg_tensor *x = k ? X4 : leaf_from(1, BRG_SHAPE(2, 2));
    finish(y, brg_sin(x), x);
}

static void dims_of_size_1(yields *y, int k)
{
    brg_tensor *x = leaf_from(1, BRG_SHAPE(2, 3));
    brg_tensor *z = leaf_from(2, BRG_SHAPE(2, k ? 1 : 3));
    finish(y, brg_mul(x, z), z);
}

static void who_requires_gradients(yields *y, int k)
{
    brg_tensor *x = X4, *z = leaf_from(2, BRG_SHAPE(4));
    assert_brg_ok(brg_set_requires_grad(z, k == 1));
    finish(y, brg_mul(x, z), x);
    yield_grad(y, z);
}

/* ---- What is asked for -------------------------------------------------------------- */

static void a_gradient_is_there(yields *y, int k)
{
    brg_tensor *x = X4;
    if (k)
        assert_brg_ok(
            brg_tensor_set_grad(x, brg_ones(BRG_DTYPE_F32, BRG_SHAPE(4))));
    finish(y, brg_sin(x), x);
}

static void chosen_leaves(yields *y, int k)
{
    brg_tensor *x = X4, *z = leaf_from(2, BRG_SHAPE(4));
    brg_backward_options options = BRG_BACKWARD_OPTIONS_INIT;
    brg_tensor *loss = brg_sum_all(brg_mul(x, z));
    options.inputs = k ? &x : &z;
    options.n_inputs = 1;
    assert_brg_ok(brg_backward_with(&loss, 1, &options));
    yield_grad(y, x);
    yield_grad(y, z);
}

static void outputs_or_leaves(yields *y, int k)
{
    brg_tensor *x = X4, *loss = brg_sum_all(brg_sin(x)), *grad;
    if (k) {
        assert_brg_ok(brg_backward(loss));
        yield_grad(y, x);
        return;
    }
    assert_brg_ok(brg_grad(&grad, &loss, 1, &x, 1, NULL));
    yield(y, grad);
}

static void recorded_or_not(yields *y, int k)
{
    brg_tensor *x = X4, *loss = brg_sum_all(brg_sin(x)), *grad;
    brg_backward_options options = BRG_BACKWARD_OPTIONS_INIT;
    options.create_graph = k == 1;
    assert_brg_ok(brg_grad(&grad, &loss, 1, &x, 1, &options));
    assert_int_equal(brg_requires_grad(grad), k);
    yield(y, grad);
}

static void two_losses_or_one(yields *y, int k)
{
    brg_tensor *x = X4;
    brg_tensor *losses[] = {brg_sum_all(brg_sin(x)), brg_sum_all(brg_exp(x))};
    assert_brg_ok(brg_backward_with(losses, 1 + (size_t)k, NULL));
    yield_grad(y, x);
}

/* ---- Hooks ----------------------------------------------------------------------------- */

static brg_status double_it(brg_tensor *grad, brg_tensor **replacement,
                            void *user)
{
    *replacement = brg_mul_scalar(grad, user ? *(double *)user : 2);
    return *replacement ? BRG_OK : brg_error_code();
}

static brg_status keep_it(brg_tensor *grad, brg_tensor **replacement,
                          void *user)
{
    (void)grad, (void)replacement, (void)user;
    return BRG_OK;
}

static brg_status look(brg_tensor *leaf, void *user)
{
    (void)leaf, (void)user;
    return BRG_OK;
}

static void number_of_hooks(yields *y, int k)
{
    brg_tensor *x = X4, *s = brg_sin(x);
    for (int i = 0; i <= k; i++)
        assert_brg_ok(brg_tensor_add_hook(NULL, s, double_it, NULL, NULL));
    finish(y, brg_exp(s), x);
}

static void where_a_hook_hangs(yields *y, int k)
{
    brg_tensor *x = X4, *s = brg_sin(x);
    assert_brg_ok(brg_tensor_add_hook(NULL, k ? s : x, double_it, NULL, NULL));
    finish(y, brg_exp(s), x);
}

static void kinds_of_hooks(yields *y, int k)
{
    brg_tensor *x = X4;
    if (k)
        assert_brg_ok(
            brg_tensor_add_post_accumulate_hook(NULL, x, look, NULL, NULL));
    else
        assert_brg_ok(brg_tensor_add_hook(NULL, x, keep_it, NULL, NULL));
    finish(y, brg_sin(x), x);
}

static void retained_gradients(yields *y, int k)
{
    brg_tensor *x = X4, *s = brg_sin(x);
    if (k)
        assert_brg_ok(brg_retain_grad(s));
    finish(y, brg_exp(s), x);
    yield_grad(y, s);
}

static void what_a_hook_does(yields *y, int k)
{
    brg_tensor *x = X4, *s = brg_sin(x);
    assert_brg_ok(
        brg_tensor_add_hook(NULL, s, k ? double_it : keep_it, NULL, NULL));
    finish(y, brg_exp(s), x);
}

static void data_of_a_hook(yields *y, int k)
{
    static double factors[] = {3, 5};
    brg_tensor *x = X4, *s = brg_sin(x);
    assert_brg_ok(brg_tensor_add_hook(NULL, s, double_it, &factors[k], NULL));
    finish(y, brg_exp(s), x);
}

/* ---- Functions -------------------------------------------------------------------------- */

static brg_value attribute;
static int n_saved;
static bool is_materializing;

FORWARD(any_forward)
{
    brg_tensor *both[2] = {ARG(0), ARG(0)};
    BRG_TRY(brg_context_save(ctx, both, (size_t)n_saved));
    brg_context_set_materialize_grads(ctx, is_materializing);
    if (attribute.kind != BRG_VALUE_NONE)
        BRG_TRY(brg_context_set(ctx, "a", attribute));
    OUT(0, brg_sin(ARG(0)));
    return BRG_OK;
}

BACKWARD(any_backward)
{
    brg_value a = attribute.kind == BRG_VALUE_NONE ? brg_value_int(1)
                                                   : brg_context_get(ctx, "a");
    double factor = a.kind == BRG_VALUE_INT     ? (double)a.as.integer
                    : a.kind == BRG_VALUE_FLOAT ? a.as.real
                    : a.kind == BRG_VALUE_BOOL  ? 1 + a.as.truth
                                                : 1;
    GRAD(0, brg_mul_scalar(g[0], factor));
    return BRG_OK;
}

/* One function for all, or (is_new) one of its own. */
static void through_function(yields *y, bool is_new)
{
    static brg_function *shared;
    if (!shared)
        shared = function_of("Any", any_forward, any_backward, 1);
    brg_function *f =
        is_new ? function_of("Any", any_forward, any_backward, 1) : shared;
    brg_tensor *x = X4;
    finish(y, CALL(f, x), x);
    if (is_new)
        brg_function_release(f);
}

static void with_attribute(yields *y, brg_value a)
{
    attribute = a;
    through_function(y, false);
    attribute = (brg_value){.kind = BRG_VALUE_NONE};
}

static void functions_of_one_code(yields *y, int k)
{
    static brg_function *two[2];
    if (!two[k])
        two[k] = function_of("Any", any_forward, any_backward, 1);
    brg_tensor *x = X4;
    finish(y, CALL(two[k], x), x);
}

static void number_of_saved(yields *y, int k)
{
    n_saved = k;
    through_function(y, false);
    n_saved = 0;
}

static void materializing(yields *y, int k)
{
    is_materializing = k == 1;
    through_function(y, false);
}

static void a_truth(yields *y, int k)
{
    with_attribute(y, brg_value_bool(k == 1));
}

static void a_string(yields *y, int k)
{
    with_attribute(y, brg_value_string(k ? "on" : "off"));
}

static void a_whole_number(yields *y, int k)
{
    with_attribute(y, brg_value_int(3 + k));
}

static void a_real_number(yields *y, int k)
{
    with_attribute(y, brg_value_float(0.5 + k));
}

/* ---- Packed ----------------------------------------------------------------------------- */

static brg_tensor *packed_exp(brg_tensor *x, bool is_packed)
{
    brg_pack_hooks hooks = BRG_PACK_HOOKS_INIT;
    hooks.pack = plain_pack;
    hooks.unpack = plain_unpack;
    hooks.free = plain_free;
    if (is_packed)
        assert_brg_ok(brg_pack_hooks_push(&hooks));
    brg_tensor *out = brg_sin(x);
    if (is_packed)
        assert_brg_ok(brg_pack_hooks_pop());
    return out;
}

static void packed_or_not(yields *y, int k)
{
    brg_tensor *x = X4;
    finish(y, packed_exp(x, k == 1), x);
}

static void packed_objects(yields *y, int k)
{
    brg_tensor *x = leaf_from(1 + k, BRG_SHAPE(4));
    finish(y, packed_exp(x, true), x);
}

/* ---- What changes from run to run -------------------------------------------------------- */

static void sizes(yields *y, int k)
{
    brg_tensor *x = leaf_from(1, BRG_SHAPE(3 + k, 5 - k));
    finish(y, brg_sin(x), x);
}

static void strides(yields *y, int k)
{
    brg_tensor *x = leaf_from(1, BRG_SHAPE(3, 3));
    brg_tensor *c = brg_ones(BRG_DTYPE_F32, BRG_SHAPE(3, 3));
    finish(y, brg_mul(x, k ? brg_transpose(c, 0, 1) : c), x);
}

static void tensors_and_values(yields *y, int k)
{
    brg_tensor *x = leaf_from(1 + k, BRG_SHAPE(4));
    finish(y, brg_sin(x), x);
}

static void graphs_that_are_kept(yields *y, int k)
{
    brg_tensor *x = X4, *loss = brg_sum_all(brg_sin(x));
    brg_backward_options options = BRG_BACKWARD_OPTIONS_INIT;
    options.retain_graph = k == 1;
    assert_brg_ok(brg_backward_with(&loss, 1, &options));
    yield_grad(y, x);
}

/* ---- Tests --------------------------------------------------------------------------------- */

#define CASE(fn)                                                               \
    {                                                                          \
#fn, fn                                                                \
    }
#define N_OF(array) (sizeof(array) / sizeof *(array))

static void test_key__what_is_in_it(void **state)
{
    (void)state;
    static const named_variant all[] = {
        CASE(another_op),
        CASE(attributes_of_an_op),
        CASE(one_tensor_or_two),
        CASE(operands_in_another_order),
        CASE(dtypes),
        CASE(number_of_dims),
        CASE(dims_of_size_1),
        CASE(who_requires_gradients),
        CASE(a_gradient_is_there),
        CASE(chosen_leaves),
        CASE(outputs_or_leaves),
        CASE(recorded_or_not),
        CASE(two_losses_or_one),
        CASE(number_of_hooks),
        CASE(where_a_hook_hangs),
        CASE(kinds_of_hooks),
        CASE(retained_gradients),
        CASE(functions_of_one_code),
        CASE(number_of_saved),
        CASE(materializing),
        CASE(a_truth),
        CASE(a_string),
        CASE(packed_or_not),
    };
    check_all(all, N_OF(all), 2);
}

static void test_key__what_is_not(void **state)
{
    (void)state;
    static const named_variant all[] = {
        CASE(sizes),
        CASE(strides),
        CASE(tensors_and_values),
        CASE(what_a_hook_does),
        CASE(data_of_a_hook),
        CASE(a_whole_number),
        CASE(a_real_number),
        CASE(packed_objects),
        CASE(graphs_that_are_kept),
    };
    check_all(all, N_OF(all), 1);
}

static void backward_with(brg_compile_dynamic dynamic,
                          brg_compile_backend backend)
{
    int scope;
    brg_compile_options options = BRG_COMPILE_OPTIONS_INIT;
    options.dynamic = dynamic;
    options.backend = backend;
    assert_brg_ok(brg_compile_begin(&scope, &options));
    brg_tensor *x = X4;
    assert_brg_ok(brg_backward(brg_sum_all(brg_sin(x))));
    assert_brg_ok(brg_compile_end(scope));
}

static void test_key__how_it_is_to_run(void **state)
{
    (void)state;
    for (int round = 0; round < 2; round++) {
        backward_with(BRG_COMPILE_DYNAMIC_ALL, BRG_COMPILE_BACKEND_EAGER);
        backward_with(BRG_COMPILE_DYNAMIC_ALL, BRG_COMPILE_BACKEND_PASSES);
        backward_with(BRG_COMPILE_DYNAMIC_ALL, BRG_COMPILE_BACKEND_FUSED);
        backward_with(BRG_COMPILE_DYNAMIC_CHANGED, BRG_COMPILE_BACKEND_PASSES);
    }
    assert_int_equal(both_stats().captures, 4);
    assert_int_equal(both_stats().hits, 4);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        scoped_test(test_key__what_is_in_it),
        scoped_test(test_key__what_is_not),
        scoped_test(test_key__how_it_is_to_run),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
