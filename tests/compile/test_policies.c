/* SPDX-License-Identifier: Apache-2.0
 * Which plans there are, for how long, and why: sizes, options, room for plans,
 * reasons, compiled functions. */
#include "compile/plan_cache.h"
#include "tests/compile/chains.h"

/* ---- Sizes ---------------------------------------------------------------------- */

static void test_policies__all_sizes_are_dynamic_in_a_scope(void **state)
{
    (void)state;
    int scope = begin_with((brg_compile_options)BRG_COMPILE_OPTIONS_INIT);
    for (int64_t n = 10; n <= 50; n += 10)
        backward_of_chain(3, n, 0);
    assert_brg_ok(brg_compile_end(scope));
    assert_int_equal(compile_stats().captures, 1);
    assert_int_equal(compile_stats().hits, 4);
    assert_int_equal(compile_stats().specialisations, 5);
}

static void test_policies__a_changed_size_is_dynamic_from_then_on(void **state)
{
    (void)state;
    brg_compile_options options = BRG_COMPILE_OPTIONS_INIT;
    options.dynamic = BRG_COMPILE_DYNAMIC_CHANGED;
    int scope = begin_with(options);
    backward_of_chain(3, 10, 0);
    backward_of_chain(3, 10, 0);
    assert_int_equal(compile_stats().captures, 1);
    backward_of_chain(3, 20, 0);
    assert_int_equal(compile_stats().captures, 2);
    brg_compile_record r;
    assert_true(brg_compile_get_record(0, &r));
    assert_int_equal(r.cause, BRG_COMPILE_CHANGED_SIZES);
    assert_int_equal(r.plan, 1);
    assert_true(r.n_changed > 0 && r.n_changed <= r.n_sizes);
    assert_non_null(strstr(r.text, "Cache miss due to "));
    assert_non_null(strstr(r.text, " changed tensor shapes (total of "));
    assert_non_null(strstr(r.text, "): sizes["));
    for (int64_t n = 10; n <= 90; n += 10)
        backward_of_chain(3, n, 0);
    assert_brg_ok(brg_compile_end(scope));
    assert_int_equal(compile_stats().captures, 2); /* however many sizes */
    char text[16];
    assert_int_equal(brg_compile_print(0, text, sizeof text), 0); /* gone */
    assert_true(brg_compile_print(1, text, sizeof text) > 0);
}

static brg_compile_record backward_of_sin(int64_t rows, int64_t columns)
{
    brg_compile_record r = {.n_sizes = 0};
    brg_scope *scope = brg_scope_begin();
    brg_tensor *x = leaf_from(1, BRG_SHAPE(rows, columns));
    assert_brg_ok(brg_backward(brg_sum_all(brg_sin(x))));
    brg_scope_end(scope);
    assert_true(brg_compile_get_record(0, &r));
    return r;
}

/* The text of a record, from the places of the sizes that are counted. */
static void check_changed(const brg_compile_record *r, const size_t *at)
{
    char want[256];
    int n = snprintf(want, sizeof want,
                     "Cache miss due to %zu changed tensor shapes (total of "
                     "%zu): ",
                     r->n_changed, r->n_sizes);
    for (size_t i = 0; i < r->n_changed; i++)
        n += snprintf(want + n, sizeof want - (size_t)n, "%ssizes[%zu]",
                      i ? ", " : "", at[i]);
    assert_string_equal(r->text, want);
}

/* What is dynamic already is not to blame for the next miss. */
static void test_policies__only_what_was_static_is_to_blame(void **state)
{
    (void)state;
    brg_compile_options options = BRG_COMPILE_OPTIONS_INIT;
    options.dynamic = BRG_COMPILE_DYNAMIC_CHANGED;
    int scope = begin_with(options);
    (void)backward_of_sin(10, 5);
    brg_compile_record rows = backward_of_sin(20, 5);
    brg_compile_record columns = backward_of_sin(30, 6);
    assert_brg_ok(brg_compile_end(scope));
    assert_int_equal(compile_stats().captures, 3);
    assert_int_equal(rows.cause, BRG_COMPILE_CHANGED_SIZES);
    assert_int_equal(columns.cause, BRG_COMPILE_CHANGED_SIZES);
    const size_t n = columns.n_sizes / 2;
    assert_int_equal(rows.n_changed, n);
    assert_int_equal(columns.n_changed, n);
    size_t even[16], odd[16];
    assert_in_range(n, 1, 16);
    for (size_t i = 0; i < n; i++) {
        even[i] = 2 * i;
        odd[i] = 2 * i + 1;
    }
    check_changed(&rows, even);
    check_changed(&columns, odd);
}

/* The size 1 has a plan of its own, which teaches the next. */
static void test_policies__one_then_others_is_two_captures(void **state)
{
    (void)state;
    brg_compile_options options = BRG_COMPILE_OPTIONS_INIT;
    options.dynamic = BRG_COMPILE_DYNAMIC_CHANGED;
    int scope = begin_with(options);
    for (int round = 0; round < 2; round++)
        for (int64_t n = 1; n <= 4; n++)
            backward_of_chain(3, n, 0);
    assert_brg_ok(brg_compile_end(scope));
    assert_int_equal(compile_stats().captures, 2);
    assert_int_equal(compile_stats().hits, 6);
}

/* ---- Room ------------------------------------------------------------------------- */

static void test_policies__the_least_recently_used_plan_goes(void **state)
{
    (void)state;
    brg_compile_options options = BRG_COMPILE_OPTIONS_INIT;
    options.max_plans = 3;
    int scope = begin_with(options);
    for (int n_ops = 1; n_ops <= 3; n_ops++)
        backward_of_chain(n_ops, 4, 0);
    backward_of_chain(1, 4, 0); /* now 2 is the oldest */
    assert_int_equal(compile_stats().evictions, 0);
    backward_of_chain(4, 4, 0);
    assert_int_equal(compile_stats().evictions, 1);
    assert_int_equal(compile_stats().captures, 4);
    backward_of_chain(1, 4, 0);
    backward_of_chain(3, 4, 0);
    assert_int_equal(compile_stats().captures, 4);
    backward_of_chain(2, 4, 0);
    assert_int_equal(compile_stats().captures, 5);
    assert_int_equal(compile_stats().evictions, 2);
    char text[16];
    assert_int_equal(brg_compile_print(1, text, sizeof text), 0);
    assert_brg_ok(brg_compile_end(scope));
}

static void test_policies__the_least_recently_used_sizes_go(void **state)
{
    (void)state;
    int scope = begin_with((brg_compile_options)BRG_COMPILE_OPTIONS_INIT);
    for (int64_t n = 2; n < 2 + BRG__MAX_EXECS; n++)
        backward_of_chain(2, n, 0);
    backward_of_chain(2, 2, 0);
    assert_int_equal(compile_stats().specialisations, BRG__MAX_EXECS);
    backward_of_chain(2, 100, 0); /* in the place of 3 */
    backward_of_chain(2, 2, 0);
    backward_of_chain(2, 100, 0);
    assert_int_equal(compile_stats().specialisations, BRG__MAX_EXECS + 1);
    backward_of_chain(2, 3, 0);
    assert_int_equal(compile_stats().specialisations, BRG__MAX_EXECS + 2);
    assert_int_equal(compile_stats().captures, 1);
    assert_brg_ok(brg_compile_end(scope));
}

/* ---- Collisions ------------------------------------------------------------------- */

/* Every hash is 0: keys and sizes decide alone. */
static void test_policies__colliding_hashes_are_told_apart(void **state)
{
    (void)state;
    brg__hash_mask = 0;
    int scope = begin_with((brg_compile_options)BRG_COMPILE_OPTIONS_INIT);
    for (int round = 0; round < 3; round++)
        for (uint32_t i = 0; i < 40; i++) {
            /* Chains of five ops, each of which is one of two. */
            int64_t n = 2 + (i * 7) % 5;
            backward_of_chain(5, n, i % 20);
        }
    assert_brg_ok(brg_compile_end(scope));
    brg__hash_mask = UINT64_MAX;
    assert_int_equal(compile_stats().captures, 20);
    assert_int_equal(compile_stats().hits, 100);
}

/* ---- Reasons ------------------------------------------------------------------------ */

static void test_policies__a_miss_names_the_first_new_node(void **state)
{
    (void)state;
    brg_compile_record first, second, third;
    int scope = begin_with((brg_compile_options)BRG_COMPILE_OPTIONS_INIT);
    backward_of_chain(2, 4, 0);
    assert_true(brg_compile_get_record(0, &first));
    assert_int_equal(first.cause, BRG_COMPILE_NEW_NODE);
    assert_int_equal(first.plan, 0);
    assert_int_equal(first.call, 0);
    assert_string_equal(first.node, "GraphRoot");
    char want[256];
    snprintf(want, sizeof want,
             "Cache miss due to new autograd node: GraphRoot (NodeCall 0) with "
             "key size %zu, previous key sizes=[]",
             first.key_size);
    assert_string_equal(first.text, want);
    assert_string_equal(brg_compile_reason(), want);
    /* The sum is the same; the last op of the chain is another. */
    backward_of_chain(2, 4, 2);
    assert_true(brg_compile_get_record(0, &second));
    assert_int_equal(second.plan, 1);
    assert_int_equal(second.call, 2);
    assert_string_equal(second.node, "exp");
    assert_int_equal(second.n_siblings, 0); /* no exp was there */
    /* The same ops, but the leaf has a gradient already. */
    brg_tensor *x = leaf_from(1, BRG_SHAPE(4));
    for (int k = 0; k < 2; k++)
        assert_brg_ok(brg_backward(brg_sum_all(chain(x, 2, 0))));
    assert_true(brg_compile_get_record(0, &third));
    assert_string_equal(third.node, "accumulate");
    assert_int_equal(third.call, 4);
    assert_int_equal(third.n_siblings, 1);
    snprintf(want, sizeof want, "previous key sizes=[%zu]", third.key_size);
    assert_non_null(strstr(third.text, want));
    assert_false(brg_compile_get_record(3, &third));
    assert_brg_ok(brg_compile_end(scope));
}

typedef struct counted {
    int n_lines, n_misses;
} counted;

static void count_message(brg_log_level level, const char *area,
                          const char *message, void *user)
{
    (void)level;
    counted *c = user;
    c->n_lines += strcmp(area, "compile") == 0;
    c->n_misses += strncmp(message, "Cache miss", 10) == 0;
}

/* How much is logged is settled where the scope begins. */
static void test_policies__log_level_is_that_of_the_scope(void **state)
{
    (void)state;
    brg_log_level before = brg_get_log_level();
    counted c = {0};
    brg_set_log_sink(count_message, &c);
    brg_set_log_level(BRG_LOG_WARN);
    int scope = begin_with((brg_compile_options)BRG_COMPILE_OPTIONS_INIT);
    brg_set_log_level(BRG_LOG_DEBUG);
    backward_of_chain(1, 4, 0);
    assert_int_equal(c.n_lines, 0);
    assert_brg_ok(brg_compile_end(scope));
    scope = begin_with((brg_compile_options)BRG_COMPILE_OPTIONS_INIT);
    for (int64_t n = 10; n <= 12; n++)
        backward_of_chain(2, n, 0);
    assert_true(c.n_lines > 1);
    assert_int_equal(c.n_misses, 1);
    assert_brg_ok(brg_compile_end(scope));
    brg_set_log_level(before);
    brg_set_log_sink(NULL, NULL);
}

/* ---- Options ------------------------------------------------------------------------- */

static void test_policies__options_are_checked(void **state)
{
    (void)state;
    int scope;
    brg_compile_options options = {0};
    assert_brg_fails_with(brg_compile_begin(&scope, &options), BRG_ERR_ARG,
                          "struct_size");
    options = (brg_compile_options)BRG_COMPILE_OPTIONS_INIT;
    options.dynamic = (brg_compile_dynamic)7;
    assert_brg_fails_with(brg_compile_begin(&scope, &options), BRG_ERR_ARG,
                          "dynamic is 7");
    options = (brg_compile_options)BRG_COMPILE_OPTIONS_INIT;
    options.backend = (brg_compile_backend)9;
    assert_brg_fails_with(brg_compile_begin(&scope, &options), BRG_ERR_ARG,
                          "backend is 9");
    assert_false(brg_compile_is_on());
    assert_brg_fails(brg_compile_end(1), BRG_ERR_STATE);
}

static void test_policies__forced_eager_scopes_do_nothing(void **state)
{
    (void)state;
    assert_false(brg_compile_force_eager(true));
    int scope = begin_with((brg_compile_options)BRG_COMPILE_OPTIONS_INIT);
    assert_false(brg_compile_is_on());
    backward_of_chain(2, 4, 0);
    brg_compile_stats none = {0}, now = compile_stats();
    assert_memory_equal(&now, &none, sizeof none);
    assert_true(brg_compile_force_eager(false));
    assert_true(brg_compile_is_on());
    backward_of_chain(2, 4, 0);
    assert_int_equal(compile_stats().captures, 1);
    assert_brg_ok(brg_compile_end(scope));
}

/* ---- Compiled functions ---------------------------------------------------------------- */

typedef struct step {
    int64_t n;
    int n_calls;
    bool opens_scope;
    brg_status fails_with;
} step;

static brg_status train_step(brg_tensor *const *in, size_t n_in,
                             brg_tensor **out, size_t n_out, void *user)
{
    step *s = user;
    s->n_calls++;
    int scope;
    if (s->opens_scope)
        BRG_TRY(brg_compile_disable_begin(&scope));
    if (s->fails_with != BRG_OK)
        return s->fails_with;
    assert_int_equal(n_in, 0);
    assert_null(in);
    assert_int_equal(n_out, 1);
    assert_null(out[0]);
    out[0] = assert_brg_some(
        brg_sum_all(chain(leaf_from(1, BRG_SHAPE(s->n)), 2, 0)));
    return brg_backward(out[0]);
}

static void test_policies__a_compiled_function_binds_its_options(void **state)
{
    (void)state;
    step s = {.n = 10};
    brg_compile_options options = BRG_COMPILE_OPTIONS_INIT;
    brg_compiled *compiled;
    brg_tensor *loss = NULL;
    assert_brg_ok(brg_compiled_create(&compiled, train_step, &s, &options));
    options.max_plans = 1; /* read when it was made */
    for (s.n = 10; s.n <= 12; s.n++)
        assert_brg_ok(brg_compiled_call(compiled, NULL, 0, &loss, 1));
    assert_non_null(loss);
    assert_false(brg_compile_is_on());
    assert_int_equal(compile_stats().captures, 2); /* static, then dynamic */
    backward_of_chain(2, 4, 0);                    /* outside */
    assert_int_equal(compile_stats().captures, 2);
    /* Not where it is disabled around it. */
    int scope;
    assert_brg_ok(brg_compile_disable_begin(&scope));
    s.n = 7;
    assert_brg_ok(brg_compiled_call(compiled, NULL, 0, &loss, 1));
    assert_brg_ok(brg_compile_end(scope));
    assert_int_equal(compile_stats().captures + compile_stats().hits, 3);
    assert_int_equal(s.n_calls, 4);
    brg_compiled_destroy(compiled);
    brg_compiled_destroy(NULL);
}

static void test_policies__a_compiled_function_leaves_no_scope(void **state)
{
    (void)state;
    step s = {.n = 3, .opens_scope = true};
    brg_compiled *compiled;
    brg_tensor *loss;
    assert_brg_fails(brg_compiled_create(&compiled, NULL, NULL, NULL),
                     BRG_ERR_ARG);
    assert_null(compiled);
    assert_brg_ok(brg_compiled_create(&compiled, train_step, &s, NULL));
    assert_brg_fails_with(brg_compiled_call(compiled, NULL, 0, &loss, 1),
                          BRG_ERR_STATE, "left scopes of its own open");
    int scope = begin_with((brg_compile_options)BRG_COMPILE_OPTIONS_INIT);
    assert_true(brg_compile_is_on());
    s.fails_with = BRG_ERR_CALLBACK; /* its own failure comes first */
    assert_int_equal(brg_compiled_call(compiled, NULL, 0, &loss, 1),
                     BRG_ERR_CALLBACK);
    assert_true(brg_compile_is_on());
    assert_brg_ok(brg_compile_end(scope));
    brg_compiled_destroy(compiled);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        scoped_test(test_policies__all_sizes_are_dynamic_in_a_scope),
        scoped_test(test_policies__a_changed_size_is_dynamic_from_then_on),
        scoped_test(test_policies__only_what_was_static_is_to_blame),
        scoped_test(test_policies__one_then_others_is_two_captures),
        scoped_test(test_policies__the_least_recently_used_plan_goes),
        scoped_test(test_policies__the_least_recently_used_sizes_go),
        scoped_test(test_policies__colliding_hashes_are_told_apart),
        scoped_test(test_policies__a_miss_names_the_first_new_node),
        scoped_test(test_policies__log_level_is_that_of_the_scope),
        scoped_test(test_policies__options_are_checked),
        scoped_test(test_policies__forced_eager_scopes_do_nothing),
        scoped_test(test_policies__a_compiled_function_binds_its_options),
        scoped_test(test_policies__a_compiled_function_leaves_no_scope),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
