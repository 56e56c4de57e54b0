/* SPDX-License-Identifier: Apache-2.0
 * Tensors that a function makes and keeps beyond its call. Of one that was
 * captured they have no value: each use is an error, outside, in the function
 * itself and in the next capture. In pieces they are tensors. */
#include "tests/compile/chains.h"

typedef struct keeper {
    brg_tensor *w, *kept;
    bool is_alias, is_in_pieces, uses_it;
} keeper;

FUNCTION(keeps)
{
    keeper *k = user;
    double value;
    if (k->uses_it) {
        out[0] = brg_mul(in[0], k->kept);
        return out[0] ? BRG_OK : brg_error_code();
    }
    brg_tensor *h = brg_mul(in[0], k->w);
    if (k->is_in_pieces)
        BRG_TRY(brg_tensor_item(brg_sum_all(brg_detach(h)), &value));
    h = brg_tanh(h);
    brg_release(k->kept);
    k->kept = brg_retain(k->is_alias ? brg_detach(h) : h);
    out[0] = brg_mul(h, k->w);
    return out[0] ? BRG_OK : brg_error_code();
}

static void make(keeper *k, brg_compiled **c, bool is_full)
{
    brg_compile_options options = BRG_COMPILE_OPTIONS_INIT;
    options.whole = true;
    options.fullgraph = is_full;
    if (!k->w)
        k->w = leaf_from(1, BRG_SHAPE(4));
    assert_brg_ok(brg_compiled_create(c, keeps, k, &options));
}

static const char no_value[] = "has no value: give it back as a result";

#define assert_no_value(t)                                                     \
    do {                                                                       \
        assert_null(t);                                                        \
        assert_int_equal(brg_error_code(), BRG_ERR_STATE);                     \
        assert_non_null(strstr(brg_error_message(), no_value));                \
        brg_error_clear();                                                     \
    } while (0)

static void check_uses(keeper *k, brg_tensor *x)
{
    float values[4];
    double value;
    brg_tensor *both[2] = {x, k->kept};
    assert_no_value(brg_add(k->kept, x));
    assert_no_value(brg_mul(k->w, k->kept));
    assert_no_value(brg_reshape(k->kept, BRG_SHAPE(2, 2)));
    assert_no_value(brg_cat(both, 2, 0));
    assert_no_value(brg_sin(brg_detach(k->kept)));
    assert_int_equal(brg_backward(brg_sum_all(k->kept)), BRG_ERR_STATE);
    assert_null(brg_tensor_data(k->kept));
    assert_int_equal(brg_tensor_item(k->kept, &value), BRG_ERR_STATE);
    assert_int_equal(brg_tensor_read(k->kept, values, sizeof values),
                     BRG_ERR_STATE);
    assert_int_equal(brg_fill_(k->kept, 1), BRG_ERR_STATE);
}

static void test_kept__what_a_capture_left_has_no_value(void **state)
{
    (void)state;
    for (int alias = 0; alias < 2; alias++) {
        keeper k = {.is_alias = alias};
        brg_compiled *c, *d;
        brg_tensor *x = brg_full(BRG_DTYPE_F32, BRG_SHAPE(4), 0.5), *y;
        make(&k, &c, true);
        assert_brg_ok(brg_compiled_call(c, &x, 1, &y, 1));
        check_uses(&k, x);
        k.uses_it = true;
        make(&k, &d, false);
        assert_brg_fails_with(brg_compiled_call(d, &x, 1, &y, 1), BRG_ERR_STATE,
                              no_value);
        brg_compiled_destroy(d);
        make(&k, &d, true);
        assert_brg_fails_with(brg_compiled_call(d, &x, 1, &y, 1),
                              BRG_ERR_UNSUPPORTED, no_value);
        assert_brg_fails_with(brg_compiled_call(d, &k.kept, 1, &y, 1),
                              BRG_ERR_UNSUPPORTED, "fullgraph");
        brg_compiled_destroy(d);
        brg_compiled_destroy(c);
        brg_release(k.kept);
    }
}

/* In the next capture of the function itself: its symbol has a number there. */
static void
test_kept__another_capture_does_not_take_it_for_its_own(void **state)
{
    (void)state;
    keeper k = {0};
    brg_compiled *c;
    brg_tensor *x = brg_full(BRG_DTYPE_F32, BRG_SHAPE(4), 0.5), *y;
    make(&k, &c, false);
    assert_brg_ok(brg_compiled_call(c, &x, 1, &y, 1));
    k.uses_it = true;
    x = brg_full(BRG_DTYPE_F32, BRG_SHAPE(1, 4), 0.5);
    assert_brg_fails_with(brg_compiled_call(c, &x, 1, &y, 1), BRG_ERR_STATE,
                          no_value);
    k.uses_it = false;
    assert_brg_ok(brg_compiled_call(c, &x, 1, &y, 1));
    brg_compiled_destroy(c);
    brg_release(k.kept);
}

static void test_kept__in_pieces_it_is_a_tensor(void **state)
{
    (void)state;
    for (int alias = 0; alias < 2; alias++) {
        keeper k = {.is_in_pieces = true, .is_alias = alias};
        brg_compiled *c;
        brg_tensor *x = brg_full(BRG_DTYPE_F32, BRG_SHAPE(4), 0.5), *y;
        make(&k, &c, false);
        for (int i = 0; i < 3; i++) {
            assert_brg_ok(brg_compiled_call(c, &x, 1, &y, 1));
            brg_tensor *want = brg_tanh(brg_mul(x, k.w));
            for (int e = 0; e < 4; e++)
                assert_float_equal(element(k.kept, e), element(want, e), 0);
        }
        brg_compiled_destroy(c);
        brg_release(k.kept);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        scoped_test(test_kept__what_a_capture_left_has_no_value),
        scoped_test(test_kept__another_capture_does_not_take_it_for_its_own),
        scoped_test(test_kept__in_pieces_it_is_a_tensor),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
