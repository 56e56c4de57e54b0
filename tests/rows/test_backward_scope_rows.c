/* SPDX-License-Identifier: Apache-2.0
 * Rows of the backward suite: scopes, reset, logs, what the library links,
 * ops of other libraries, higher order. */
#include <sys/wait.h>
#include <unistd.h>

#include <brigade/debug.h>
#include <brigade/ext/op.h>

#include "tests/rows/both.h"

/* ---- Scopes ---------------------------------------------------------------------- */

static brg_tensor *small_loss(brg_tensor *x)
{
    return brg_sum_all(brg_mul(brg_sin(x), x));
}

static void test_nested_context_manager(void **state)
{
    (void)state;
    int outer, inner;
    assert_brg_ok(brg_compile_begin(&outer, NULL));
    assert_brg_ok(brg_compile_begin(&inner, NULL));
    assert_brg_ok(brg_compile_end(inner));
    assert_brg_ok(brg_compile_end(outer));
    assert_brg_ok(brg_compile_begin(&outer, NULL));
    assert_brg_ok(brg_compile_begin(&inner, NULL));
    assert_brg_fails_with(
        brg_compile_end(outer), BRG_ERR_STATE,
        "Nested Compiled Autograd Contexts must return before "
        "their parent context");
    assert_true(brg_compile_is_on()); /* as it was */
    assert_brg_ok(brg_compile_end(inner));
    assert_brg_ok(brg_compile_end(outer));
    assert_false(brg_compile_is_on());
}

static void test_reset(void **state)
{
    (void)state;
    brg_compile_options full = BRG_COMPILE_OPTIONS_INIT;
    full.fullgraph = true;
    int scope;
    char text[8];
    assert_brg_ok(brg_compile_begin(&scope, &full));
    assert_brg_ok(brg_backward(small_loss(leaf_from(1, BRG_SHAPE(3)))));
    assert_true(brg_compile_is_on());
    assert_int_equal(both_stats().captures, 1);
    assert_brg_ok(brg_compile_reset());
    assert_false(brg_compile_is_on());
    brg_compile_stats stats = both_stats(), none = {0};
    assert_memory_equal(&stats, &none, sizeof none);
    assert_string_equal(brg_compile_reason(), "");
    assert_int_equal(brg_compile_print(0, text, sizeof text), 0);
    /* No scope is left, no option of one, no plan, no runner. */
    assert_brg_fails(brg_compile_end(scope), BRG_ERR_STATE);
    assert_brg_ok(brg_backward(small_loss(leaf_from(1, BRG_SHAPE(3)))));
    assert_int_equal(both_stats().captures, 0);
    assert_brg_ok(brg_compile_begin(&scope, NULL));
    brg_tensor *x = leaf_from(1, BRG_SHAPE(3)), *loss = small_loss(x), *grad;
    brg_backward_options create = BRG_BACKWARD_OPTIONS_INIT;
    create.create_graph = true;
    assert_brg_ok(brg_grad(&grad, &loss, 1, &x, 1, &create));
    assert_brg_ok(brg_backward(small_loss(x)));
    assert_int_equal(both_stats().captures, 2); /* anew */
    assert_int_equal(both_stats().hits, 0);
    assert_brg_ok(brg_compile_end(scope));
}

static void test_optimize_assert_body(yields *y)
{
    brg_tensor *x = leaf_from(1, BRG_SHAPE(4)), *loss;
    int scope = 0;
    if (y->is_compiled)
        assert_brg_ok(brg_compile_begin(&scope, NULL));
    loss = small_loss(x);
    if (y->is_compiled)
        assert_brg_ok(brg_compile_end(scope));
    assert_brg_ok(brg_backward(loss)); /* outside */
    yield_grad(y, x);
}

/* Run without a scope around it: the body has its own. */
static void test_optimize_assert(void **state)
{
    (void)state;
    yields eager = {0}, configured = {.is_compiled = true};
    test_optimize_assert_body(&eager);
    test_optimize_assert_body(&configured);
    assert_int_equal(eager.n, configured.n);
    assert_memory_equal(eager.at, configured.at, eager.n);
    assert_int_equal(both_stats().captures, 0);
    assert_int_equal(both_stats().fallbacks, 0);
    free(eager.at);
    free(configured.at);
}

static brg_status step_fn(brg_tensor *const *in, size_t n_in, brg_tensor **out,
                          size_t n_out, void *user)
{
    (void)in, (void)n_in, (void)out, (void)n_out, (void)user;
    return brg_backward(small_loss(leaf_from(1, BRG_SHAPE(4))));
}

/* The function compiled, or called as it is. */
static void train_once(bool compiles)
{
    brg_compiled *compiled;
    if (!compiles) {
        assert_brg_ok(step_fn(NULL, 0, NULL, 0, NULL));
        return;
    }
    assert_brg_ok(brg_compiled_create(&compiled, step_fn, NULL, NULL));
    assert_brg_ok(brg_compiled_call(compiled, NULL, 0, NULL, 0));
    brg_compiled_destroy(compiled);
}

static void test_multiple_torch_compile(void **state)
{
    (void)state;
    train_once(false);
    assert_int_equal(both_stats().captures, 0);
    train_once(true);
    assert_int_equal(both_stats().captures, 1);
    train_once(false); /* nothing leaked out of the call */
    assert_int_equal(both_stats().captures + both_stats().hits, 1);
    assert_brg_ok(brg_compile_reset());
    train_once(false);
    assert_int_equal(both_stats().captures, 0);
}

/* ---- In a process of its own ------------------------------------------------------- */

static int train_and_reset(void)
{
    for (int round = 0; round < 2; round++) {
        int token;
        brg_scope *scope = brg_scope_begin();
        brg_tensor *x = brg_ones(BRG_DTYPE_F32, BRG_SHAPE(4));
        if (!scope || brg_set_requires_grad(x, true) != BRG_OK ||
            brg_compile_begin(&token, NULL) != BRG_OK ||
            brg_backward(small_loss(x)) != BRG_OK || !brg_tensor_grad(x) ||
            both_stats().captures != 1 || brg_compile_end(token) != BRG_OK ||
            brg_compile_reset() != BRG_OK)
            return 1;
        brg_scope_end(scope);
    }
    return 0;
}

static void test_dynamo_flaky_segfault(void **state)
{
    (void)state;
    for (int k = 0; k < 3; k++) {
        (void)fflush(NULL);
        pid_t child = fork();
        assert_true(child >= 0);
        if (child == 0)
            _exit(train_and_reset());
        int status = -1;
        assert_int_equal(waitpid(child, &status, 0), child);
        assert_true(WIFEXITED(status));
        assert_int_equal(WEXITSTATUS(status), 0);
    }
}

/* ---- Logs ------------------------------------------------------------------------------ */

typedef struct messages {
    char text[16384];
    size_t n;
} messages;

static void keep_message(brg_log_level level, const char *area,
                         const char *message, void *user)
{
    messages *m = user;
    if (strcmp(area, "compile") == 0)
        m->n += (size_t)snprintf(m->text + m->n, sizeof m->text - m->n,
                                 "%d %s\n", (int)level, message);
}

static void two_backwards_body(yields *y)
{
    brg_tensor *x = leaf_from(1, BRG_SHAPE(4));
    for (int k = 0; k < 2; k++) {
        assert_brg_ok(brg_tensor_set_grad(x, NULL));
        assert_brg_ok(brg_backward(small_loss(x)));
    }
    yield_grad(y, x);
}

static void log_at(brg_log_level level, messages *m)
{
    brg_log_level before = brg_get_log_level();
    *m = (messages){.n = 0};
    brg_set_log_sink(keep_message, m);
    brg_set_log_level(level);
    run_both(two_backwards_body, 1);
    brg_set_log_level(before);
    brg_set_log_sink(NULL, NULL);
}

static void test_logs(void **state)
{
    (void)state;
    static messages m;
    log_at(BRG_LOG_INFO, &m);
    /* The node and its number: the fourth that collection met. */
    assert_non_null(strstr(m.text, "plan 0: accumulate@3("));
    assert_null(strstr(m.text, "Cache miss"));
    assert_null(strstr(m.text, "(NodeCall"));
    log_at(BRG_LOG_DEBUG, &m);
    assert_non_null(strstr(m.text, "plan 0: accumulate@3("));
    assert_non_null(strstr(m.text, "Cache miss due to new autograd node"));
    assert_non_null(strstr(m.text, "plan 0: @3 is accumulate (NodeCall 4)"));
    assert_non_null(strstr(m.text, " nodes dropped that nobody needs"));
    assert_null(strstr(strstr(m.text, "Cache miss") + 1, "Cache miss"));
    log_at(BRG_LOG_WARN, &m);
    assert_int_equal(m.n, 0);
}

static brg_status count_ops(const brg_observation *observation, void *user)
{
    (void)observation;
    ++*(int *)user;
    return BRG_OK;
}

/* Another level, an observer of ops, then a capture. */
static void test_logging_tensor_flaky(void **state)
{
    (void)state;
    brg_log_level before = brg_get_log_level();
    int n_ops = 0;
    brg_set_log_level(BRG_LOG_DEBUG);
    run_both(two_backwards_body, 1);
    brg_set_log_level(BRG_LOG_OFF);
    assert_brg_ok(brg_observer_push(count_ops, &n_ops));
    run_both(two_backwards_body, 1);
    assert_brg_ok(brg_observer_pop());
    brg_set_log_level(before);
    assert_true(n_ops > 0);
}

/* ---- What is linked ------------------------------------------------------------------------ */

/* Lines of `readelf options file` that hold one of the words. */
static int count_lines(const char *options, const char *file,
                       const char *const *words)
{
    char command[512], line[1024];
    assert_true(snprintf(command, sizeof command, "readelf -W %s '%s'", options,
                         file) < (int)sizeof command);
    FILE *pipe = popen(command, "r");
    assert_non_null(pipe);
    int n = 0, n_lines = 0;
    while (fgets(line, sizeof line, pipe)) {
        n_lines++;
        for (const char *const *word = words; *word; word++)
            n += strstr(line, *word) != NULL;
    }
    assert_int_equal(pclose(pipe), 0);
    assert_true(n_lines > 5);
    return n;
}

static const char *const foreign_libraries[] = {
    "[libmpi", "[libopen-rte", "[libnccl", "[libcuda", "[libcublas", NULL};
static const char *const foreign_symbols[] = {" MPI_", " ompi_",  " nccl",
                                              " cuda", " cublas", NULL};

/* This program: it includes <brigade/ext/op.h>, defines an op of its own and
 * links the library. */
static void test_hipify_not_loaded_with_import_cpp_extension(void **state)
{
    (void)state;
    char path[400];
    ssize_t n = readlink("/proc/self/exe", path, sizeof path - 1);
    assert_true(n > 0);
    path[n] = '\0';
    assert_int_equal(count_lines("--dynamic", path, foreign_libraries), 0);
    assert_int_equal(count_lines("--dyn-syms", path, foreign_symbols), 0);
}

/* The shared library, two folders up from this program. */
static void test_hipify_not_loaded_with_import_torch(void **state)
{
    (void)state;
    char path[420];
    ssize_t n = readlink("/proc/self/exe", path, 400);
    assert_true(n > 0);
    path[n] = '\0';
    for (int up = 0; up < 2; up++)
        *strrchr(path, '/') = '\0';
    strcat(path, "/libbrigade.so");
    assert_int_equal(count_lines("--dynamic", path, foreign_libraries), 0);
    assert_int_equal(count_lines("--dyn-syms", path, foreign_symbols), 0);
    const char *const needed[] = {"(NEEDED)", NULL};
    assert_true(count_lines("--dynamic", path, needed) > 0);
}

/* ---- An op of another library --------------------------------------------------------------- */

static brg_status cube_infer(brg_op_call *call)
{
    const brg_tensor *x = call->in[0];
    brg_out_info *info = &call->info[0];
    info->dtype = brg_tensor_dtype(x);
    info->ndim = brg_tensor_ndim(x);
    memcpy(info->shape, brg_tensor_shape(x),
           (size_t)info->ndim * sizeof *info->shape);
    return BRG_OK;
}

static brg_status cube_run(brg_op_call *call)
{
    const float *x = brg_tensor_data(call->in[0]);
    float *y = brg_tensor_data(call->out[0]);
    for (int64_t i = 0; i < brg_tensor_numel(call->in[0]); i++)
        y[i] = x[i] * x[i] * x[i];
    return BRG_OK;
}

static brg_status cube_vjp(brg_vjp *v)
{
    BRG_VJP_SET(
        v, 0, brg_mul(v->grad_out[0], brg_mul_scalar(brg_square(v->in[0]), 3)));
    return BRG_OK;
}

static const brg_op cube = {
    .abi = BRG_OP_ABI,
    .struct_size = sizeof(brg_op),
    .name = "test.cube",
    .n_in = 1,
    .n_out = 1,
    .n_diff_out = 1,
    .saves = BRG_SAVE_IN(0),
    .infer = cube_infer,
    .run[BRG_DEVICE_CPU] = cube_run,
    .vjp = cube_vjp,
};

static brg_tensor *cube_of(brg_tensor *x)
{
    brg_tensor *out;
    return brg_op_apply(&cube, 1, &x, NULL, &out) == BRG_OK ? out : NULL;
}

static void test_graph_break_custom_op_body(yields *y)
{
    brg_compile_options full = BRG_COMPILE_OPTIONS_INIT;
    full.fullgraph = true;
    int scope = 0;
    if (y->is_compiled)
        assert_brg_ok(brg_compile_begin(&scope, &full));
    brg_tensor *x = leaf_from(1, BRG_SHAPE(4));
    backward_of_sum(cube_of(brg_mul_scalar(x, 2)));
    EXPECT_VALUES(brg_tensor_grad(x), 24, 96, 216, 384);
    yield_grad(y, x);
    if (y->is_compiled)
        assert_brg_ok(brg_compile_end(scope));
}

static void test_graph_break_custom_op(void **state)
{
    (void)state;
    run_both(test_graph_break_custom_op_body, 1);
    const char *text = plan_text(0);
    assert_null(strstr(text, "call@")); /* its rule is in the plan */
    assert_non_null(strstr(text, "= square("));
}

/* ---- Higher order ----------------------------------------------------------------------------- */

/* Four orders of x^3. */
static void higher_orders_body(yields *y)
{
    brg_backward_options create = BRG_BACKWARD_OPTIONS_INIT;
    create.create_graph = true;
    static const double want[4] = {12, 12, 6, 0};
    for (int round = 0; round < 2; round++) {
        brg_tensor *x = leaf_full(2, BRG_SCALAR);
        brg_tensor *f = brg_pow_scalar(x, 3);
        for (int order = 0; order < 4; order++) {
            brg_tensor *grad;
            assert_brg_ok(brg_grad(&grad, &f, 1, &x, 1, &create));
            assert_float_equal(item(grad), want[order], 1e-5);
            yield(y, grad);
            /* A constant too is to stay a function of x. */
            f = brg_add(grad, brg_mul_scalar(x, 0));
        }
        if (y->is_compiled) { /* run again: nothing is captured */
            assert_int_equal(both_stats().captures, 4);
            assert_int_equal(both_stats().hits, 4 * round);
        }
    }
}

static void test_higher_order_gradients(void **state)
{
    (void)state;
    run_both(higher_orders_body, 4);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        scoped_test(test_dynamo_flaky_segfault),
        scoped_test(test_graph_break_custom_op),
        scoped_test(test_higher_order_gradients),
        scoped_test(test_hipify_not_loaded_with_import_cpp_extension),
        scoped_test(test_hipify_not_loaded_with_import_torch),
        scoped_test(test_logging_tensor_flaky),
        scoped_test(test_logs),
        scoped_test(test_multiple_torch_compile),
        scoped_test(test_nested_context_manager),
        scoped_test(test_optimize_assert),
        scoped_test(test_reset),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
