/* SPDX-License-Identifier: Apache-2.0
 * Rows of the backward suite: a plan takes over what a backward brings, as one
 * vector, and lets each tensor go after its last use. */
#include <brigade/composite.h>
#include <brigade/debug.h>

#include "compile/capture.h"
#include "compile/plan.h"
#include "tests/rows/both.h"

/* ---- A runner that lets the test see the vector --------------------------------- */

typedef struct boxed {
    brg__runner base;
    brg__collected c;
    size_t n_brought; /* before the run */
    size_t n_left;    /* after it */
    size_t n_watched; /* inputs in that memory */
} boxed;

static boxed box;
static const void *watched;

static brg_status run_boxed(brg__runner *self, brg__task *task)
{
    boxed *b = (boxed *)self;
    brg__ir ir = {0};
    brg__exec *exec = NULL;
    brg_status status = brg__collect(&b->c, task, (brg__collect_mode){0});
    if (status == BRG_OK)
        status = brg__capture_task(&ir, task, &b->c);
    if (status == BRG_OK)
        status = brg__exec_create(&exec, &ir, task, &b->c);
    b->n_brought = b->c.inputs.n;
    for (size_t i = 0; i < b->c.inputs.n; i++)
        b->n_watched += brg_tensor_data(b->c.inputs.at[i]) == watched;
    if (status == BRG_OK)
        status = brg__exec_run(exec, task, &b->c);
    b->n_left = b->c.inputs.n;
    brg__exec_destroy(exec);
    brg__ir_deinit(&ir);
    brg__collected_deinit(&b->c);
    b->c = (brg__collected){0};
    return status;
}

static void backward_boxed(brg_tensor *loss)
{
    box = (boxed){.base.run = run_boxed};
    brg__runner *before = brg__runner_set(&box.base);
    assert_brg_ok(brg_backward(loss));
    brg__runner_set(before);
    assert_true(box.n_brought > 0);
    assert_int_equal(box.n_left, 0);
}

static uint64_t in_use(void)
{
    brg_memory_stats stats;
    brg_memory_get_stats(&stats);
    return stats.in_use;
}

/* ---- A call late in the backward --------------------------------------------------- */

typedef struct memory {
    uint64_t first; /* when the hook of the loss ran */
    uint64_t late;  /* in the first function of the forward */
} memory;

static brg_status note_first(brg_tensor *grad, brg_tensor **replacement,
                             void *user)
{
    (void)grad;
    (void)replacement;
    ((memory *)user)->first = in_use();
    return BRG_OK;
}

FORWARD(late_forward)
{
    OUT(0, brg_mul_scalar(ARG(0), 2));
    return BRG_OK;
}

BACKWARD(late_backward)
{
    ((memory *)brg_context_user(ctx))->late = in_use();
    GRAD(0, brg_mul_scalar(g[0], 2));
    return BRG_OK;
}

static brg_function *late_function(memory *m)
{
    return new_function(.name = "Late", .n_outputs = 1, .forward = late_forward,
                        .backward = late_backward, .user = m);
}

/* rows x the small tensor h. */
static brg_tensor *widen(brg_tensor *h, int64_t rows)
{
    return brg_mul_scalar(brg_expand(h, BRG_SHAPE(rows, 1000)), 0.001);
}

/* The loss of a graph that alone holds its activations; owned. */
static brg_tensor *loss_of_graph(brg_tensor *(*make)(brg_tensor *h),
                                 brg_tensor *x, const brg_function *f,
                                 memory *m)
{
    brg_scope *scope = brg_scope_begin();
    brg_tensor *loss = brg_retain(assert_brg_some(make(CALL(f, x))));
    assert_brg_ok(brg_tensor_add_hook(NULL, loss, note_first, m, NULL));
    brg_scope_end(scope);
    return loss;
}

/* Eagerly, compiled and boxed: at the late call `nbytes` of activations are
 * gone that were there when the backward started. */
static void check_freed(brg_tensor *(*make)(brg_tensor *h), uint64_t nbytes)
{
    memory m = {0};
    brg_function *f = late_function(&m);
    brg_tensor *want = NULL;
    for (int way = 0; way < 3; way++) {
        brg_tensor *x = leaf_full(0.5, BRG_SHAPE(1000));
        brg_tensor *loss = loss_of_graph(make, x, f, &m);
        int scope;
        m = (memory){0};
        if (way == 1)
            assert_brg_ok(brg_compile_begin(&scope, NULL));
        if (way == 2)
            backward_boxed(loss);
        else
            assert_brg_ok(brg_backward(loss));
        if (way == 1)
            assert_brg_ok(brg_compile_end(scope));
        assert_true(m.first > nbytes);
        if (way > 0) /* an eager gradient may be as large */
            assert_true(m.late + nbytes <= m.first + 20000);
        if (way == 0)
            want = brg_tensor_grad(x);
        else
            for (int64_t i = 0; i < 1000; i++)
                assert_float_equal(element(brg_tensor_grad(x), i),
                                   element(want, i), 0);
        brg_release(loss);
    }
    assert_int_equal(both_stats().captures, 1);
    brg_function_release(f);
}

static brg_tensor *one_activation(brg_tensor *h)
{
    return brg_sum_all(brg_exp(widen(h, 1000))); /* 4 MB, saved */
}

static void test_free_activation_memory(void **state)
{
    (void)state;
    check_freed(one_activation, 4000000);
}

static brg_status exp_part(brg_tensor *const *parts, size_t n_parts,
                           brg_tensor **result, void *user)
{
    (void)n_parts;
    (void)user;
    *result = brg_exp(parts[0]);
    return *result ? BRG_OK : brg_error_code();
}

/* A pair of 400 KB each, and 400 KB dense. */
static brg_tensor *pair_and_dense(brg_tensor *h)
{
    brg_composite *pair, *mapped;
    brg_tensor *parts[BRG_MAX_COMPOSITE_TENSORS];
    size_t n;
    assert_brg_ok(brg_pair_create(&pair, widen(h, 100), widen(h, 100)));
    assert_brg_ok(brg_composite_map(&mapped, exp_part, NULL, &pair, 1));
    assert_brg_ok(brg_composite_flatten(mapped, parts, &n));
    assert_int_equal(n, 2);
    brg_tensor *dense = brg_sum_all(brg_exp(widen(h, 100)));
    brg_tensor *sum = brg_add(brg_sum_all(parts[0]), brg_sum_all(parts[1]));
    brg_tensor *loss = brg_add(sum, dense);
    brg_composite_release(mapped);
    brg_composite_release(pair);
    return loss;
}

static void test_free_activation_memory_subclass(void **state)
{
    (void)state;
    check_freed(pair_and_dense, 1200000);
}

/* ---- One vector ---------------------------------------------------------------------- */

static brg_tensor *three_layers(brg_tensor *x, brg_tensor **w)
{
    brg_tensor *h = x;
    for (int k = 0; k < 3; k++)
        h = brg_tanh(brg_linear(h, w[k], NULL));
    return brg_sum_all(h);
}

static brg_status three_compiled(brg_tensor *const *in, size_t n_in,
                                 brg_tensor **out, size_t n_out, void *user)
{
    (void)n_in;
    (void)n_out;
    (void)user;
    brg_tensor *w[3] = {in[1], in[2], in[3]};
    out[0] = three_layers(in[0], w);
    return out[0] ? BRG_OK : brg_error_code();
}

static void test_dynamo_boxed(void **state)
{
    (void)state;
    brg_tensor *w[3];
    for (int k = 0; k < 3; k++)
        w[k] = leaf_from(k, BRG_SHAPE(4, 4));
    brg_tensor *x = leaf_full(0.1, BRG_SHAPE(2, 4)), *out;
    backward_boxed(three_layers(x, w));
    for (int k = 0; k < 3; k++)
        assert_non_null(brg_tensor_grad(w[k]));
    /* The forward has its inputs one by one, its backward again one vector. */
    brg_compiled *c = compile_whole(three_compiled, NULL);
    brg_tensor *in[4] = {x, w[0], w[1], w[2]};
    char text[8192];
    assert_brg_ok(brg_compiled_call(c, in, 4, &out, 1));
    assert_true(brg_compiled_print(c, 0, text, sizeof text) < sizeof text);
    for (int k = 0; k < 4; k++) {
        char name[8];
        snprintf(name, sizeof name, "in%d", k);
        assert_non_null(strstr(text, name));
        assert_brg_ok(brg_tensor_set_grad(in[k], NULL));
    }
    backward_boxed(out);
    for (int k = 0; k < 3; k++)
        assert_non_null(brg_tensor_grad(w[k]));
    brg_compiled_destroy(c);
}

/* ---- A parameter that is an input too -------------------------------------------------- */

typedef struct leaf_seen {
    double grad;
    size_t n_left;
    int n;
} leaf_seen;

static brg_status see_leaf(brg_tensor *leaf, void *user)
{
    leaf_seen *s = user;
    s->n++;
    s->grad = element(brg_tensor_grad(leaf), 0);
    s->n_left = box.c.inputs.n;
    return BRG_OK;
}

/* Only the graph holds the parameter, and the vector, which has been emptied
 * when its gradient is written. */
static void test_inputs_aliasing_bytecode_attr_mutations(void **state)
{
    (void)state;
    leaf_seen s = {.n_left = 99};
    brg_scope *scope = brg_scope_begin();
    brg_tensor *param = leaf_full(3, BRG_SHAPE(4));
    brg_tensor *activation = brg_full(BRG_DTYPE_F32, BRG_SHAPE(4), 5);
    assert_brg_ok(
        brg_tensor_add_post_accumulate_hook(NULL, param, see_leaf, &s, NULL));
    brg_tensor *loss = brg_retain(assert_brg_some(
        brg_sum_all(brg_mul(brg_mul(param, param), activation))));
    brg_scope_end(scope);
    backward_boxed(loss);
    assert_true(box.n_brought >= 3); /* with the gradient of the loss */
    assert_int_equal(s.n, 1);
    assert_int_equal(s.n_left, 0);
    assert_float_equal(s.grad, 30, 0);
    brg_release(loss);
}

/* ---- An input that a call after all others reads ----------------------------------------------- */

typedef struct trailing {
    size_t n_left; /* in the vector, in the last call */
    int n_observed;
    double seen;
} trailing;

static trailing trail;

static brg_status observe(const brg_observation *observation, void *user)
{
    (void)observation;
    ++*(int *)user;
    return BRG_OK;
}

FORWARD(first_forward)
{
    SAVE(ARG(1));
    OUT(0, brg_mul(ARG(0), ARG(1)));
    return BRG_OK;
}

/* The first of the forward: the last call of the backward. */
BACKWARD(last_backward)
{
    SAVED(activation, 0);
    trail.n_left = box.c.inputs.n;
    trail.seen = element(activation, 0);
    GRAD(0, brg_mul(g[0], activation));
    return BRG_OK;
}

/* The activation is an input of two products and of the last call; only the
 * graph and the vector hold it. */
static void test_inputs_aliasing_bytecode_stack_restore(void **state)
{
    (void)state;
    for (int is_boxed = 0; is_boxed < 2; is_boxed++) {
        trail = (trailing){.n_left = 99};
        brg_scope *scope = brg_scope_begin();
        brg_function *f = function_of("First", first_forward, last_backward, 1);
        brg_tensor *param = brg_retain(leaf_full(3, BRG_SHAPE(4)));
        brg_tensor *activation =
            assert_brg_some(brg_full(BRG_DTYPE_F32, BRG_SHAPE(4), 5));
        brg_tensor *loss = brg_retain(assert_brg_some(brg_sum_all(brg_mul(
            brg_mul(CALL(f, param, activation), activation), activation))));
        watched = brg_tensor_data(activation);
        brg_scope_end(scope);
        assert_brg_ok(brg_observer_push(observe, &trail.n_observed));
        if (is_boxed)
            backward_boxed(loss);
        else
            assert_brg_ok(brg_backward(loss));
        assert_brg_ok(brg_observer_pop());
        assert_true(trail.n_observed > 0);
        assert_float_equal(trail.seen, 5, 0);
        expect_all(brg_tensor_grad(param), 125);
        if (is_boxed) {
            assert_true(box.n_brought >= 2);
            assert_int_equal(box.n_watched, 1); /* one input for two uses */
            assert_int_equal(trail.n_left, 0);
        }
        brg_release(loss);
        brg_release(param);
        brg_function_release(f);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        scoped_test(test_dynamo_boxed),
        scoped_test(test_free_activation_memory),
        scoped_test(test_free_activation_memory_subclass),
        scoped_test(test_inputs_aliasing_bytecode_attr_mutations),
        scoped_test(test_inputs_aliasing_bytecode_stack_restore),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
