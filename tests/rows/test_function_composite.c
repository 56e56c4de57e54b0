/* SPDX-License-Identifier: Apache-2.0
 * Rows of the function suite: composite tensors inside functions, in eager
 * form. */
#include <brigade/composite.h>

#include "tests/rows/rows.h"

/* The second part carries what the first stands for, scaled. */
static brg_status wrap(brg_composite **out, brg_tensor *t)
{
    return brg_pair_create(out, t, brg_mul_scalar(t, 3));
}

/* Takes the wrapped tensor apart and gives another, built from its parts. */
static brg_status rewrap(brg_composite **out, const brg_composite *c)
{
    brg_tensor *parts[BRG_MAX_COMPOSITE_TENSORS], *swapped[2];
    size_t n;
    BRG_TRY(brg_composite_flatten(c, parts, &n));
    swapped[0] = brg_mul(parts[0], parts[1]);
    swapped[1] = parts[0];
    return brg_composite_unflatten(out, c, swapped, 2);
}

FORWARD(through_composites_forward)
{
    brg_composite *outer = NULL, *inner = NULL;
    brg_tensor *parts[BRG_MAX_COMPOSITE_TENSORS];
    size_t n;
    SAVE(ARG(0));
    brg_status status = wrap(&outer, ARG(0));
    if (status == BRG_OK)
        status = rewrap(&inner, outer);
    if (status == BRG_OK)
        status = brg_composite_flatten(inner, parts, &n);
    /* x * 3x, the intermediary composites gone */
    if (status == BRG_OK)
        out[0] = brg_value_tensor(parts[0]);
    brg_composite_release(inner);
    brg_composite_release(outer);
    return status;
}

BACKWARD(through_composites_backward)
{
    SAVED(x, 0);
    GRAD(0, brg_mul(g[0], brg_mul_scalar(x, 6)));
    return BRG_OK;
}

static void test_tensor_subclass_intermediary_input(void **state)
{
    (void)state;
    brg_function *f = function_of("FooFunction", through_composites_forward,
                                  through_composites_backward, 1);
    brg_tensor *x = leaf_from(1, BRG_SHAPE(4));
    brg_tensor *y = CALL(f, x);
    EXPECT_VALUES(y, 3, 12, 27, 48);
    backward_of_sum(y);
    EXPECT_VALUES(brg_tensor_grad(x), 6, 12, 18, 24);
    /* The same composites outside a function: recorded op by op. */
    brg_tensor *x2 = leaf_from(1, BRG_SHAPE(4)), *parts[2];
    brg_composite *outer, *inner;
    size_t n;
    assert_brg_ok(wrap(&outer, x2));
    assert_brg_ok(rewrap(&inner, outer));
    assert_brg_ok(brg_composite_flatten(inner, parts, &n));
    backward_of_sum(parts[0]);
    EXPECT_VALUES(brg_tensor_grad(x2), 6, 12, 18, 24);
    brg_composite_release(inner);
    brg_composite_release(outer);
    brg_function_release(f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        scoped_test(test_tensor_subclass_intermediary_input),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
