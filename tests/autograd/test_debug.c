/* SPDX-License-Identifier: Apache-2.0
 * Anomaly mode, places of op calls, observers. */
#define BRG_TRACE_CALLS
#include <brigade/places.h>

#include "tests/autograd/graph.h"

#define CHECKS_AT_THE_ENDS                                                     \
    "a plan is checked for NaN at its ends, not after each of its steps"

static void test_debug__anomaly_names_op_output_and_place(void **state)
{
    (void)state;
    DIVERGES_WHEN_COMPILED(CHECKS_AT_THE_ENDS);
    brg_tensor *x = leaf_from(0, BRG_SHAPE(2)), *w = leaf_from(1, BRG_SHAPE(2));
    int line = __LINE__ + 1;
    brg_tensor *root = brg_sqrt(brg_mul_scalar(x, -1));
    brg_tensor *y = brg_sum_all(brg_mul(root, w));
    brg_backward_options keep = BRG_BACKWARD_OPTIONS_INIT;
    keep.retain_graph = true;
    assert_brg_ok(brg_backward_with(&y, 1, &keep));
    assert_false(brg_anomaly_mode_set(true));
    char place[64];
    snprintf(place, sizeof place, "test_debug.c:%d", line);
    assert_brg_fails_with(brg_backward_with(&y, 1, &keep), BRG_ERR_NAN,
                          "returned nan values in its 1-th output");
    /* w's gradient is the NaN root; without w the sqrt itself is named. */
    brg_tensor *only_x = brg_sum_all(root);
    assert_brg_fails_with(brg_backward(only_x), BRG_ERR_NAN,
                          "Function 'sqrt' returned nan values in its 0-th");
    assert_non_null(strstr(brg_error_message(), place));
    assert_true(brg_anomaly_mode_set(false));
}

static void test_debug__places_of_nested_calls(void **state)
{
    (void)state;
    DIVERGES_WHEN_COMPILED(CHECKS_AT_THE_ENDS);
    brg_tensor *x = leaf_from(0, BRG_SHAPE(1));
    int line = __LINE__ + 1;
    brg_tensor *y = brg_sum_all(brg_div(brg_mul(x, x), brg_mul(x, x)));
    char place[64];
    snprintf(place, sizeof place, "test_debug.c:%d", line);
    brg_anomaly_mode_set(true);
    assert_brg_fails_with(brg_backward(y), BRG_ERR_NAN, "Function 'div'");
    assert_non_null(strstr(brg_error_message(), place));
    brg_anomaly_mode_set(false);
}

typedef struct log {
    char text[256];
} log;

static brg_status note(const brg_observation *o, void *user)
{
    log *l = user;
    size_t n = strlen(l->text);
    snprintf(l->text + n, sizeof l->text - n, "%s ", o->name);
    if (!brg_mul_scalar(o->out[0], 1)) /* not observed itself */
        return brg_error_code();
    return BRG_OK;
}

static brg_status refuse(const brg_observation *o, void *user)
{
    (void)user;
    return brg_error_set(BRG_ERR_CALLBACK, __FILE__, __LINE__, "no %s here",
                         o->name);
}

static void test_debug__observers_see_forward_and_backward(void **state)
{
    (void)state;
    log inner = {""}, outer = {""};
    brg_tensor *x = leaf_from(2, BRG_SHAPE(2));
    assert_brg_ok(brg_observer_push(note, &outer));
    assert_brg_ok(brg_observer_push(note, &inner));
    brg_tensor *y = brg_sum_all(brg_tanh(x));
    assert_string_equal(inner.text, "tanh sum ");
    assert_brg_ok(brg_backward(y));
    assert_non_null(strstr(inner.text, "tanh_grad"));
    assert_string_equal(inner.text, outer.text);
    assert_brg_ok(brg_observer_pop());
    assert_brg_ok(brg_observer_push(refuse, NULL));
    assert_brg_null_with(brg_exp(x), BRG_ERR_CALLBACK, "no exp here");
    assert_brg_ok(brg_observer_pop());
    assert_brg_ok(brg_observer_pop());
    assert_brg_fails(brg_observer_pop(), BRG_ERR_STATE);
    assert_non_null(brg_exp(x));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        scoped_test(test_debug__anomaly_names_op_output_and_place),
        scoped_test(test_debug__places_of_nested_calls),
        scoped_test(test_debug__observers_see_forward_and_backward),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
