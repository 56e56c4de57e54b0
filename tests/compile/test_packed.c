/* SPDX-License-Identifier: Apache-2.0
 * Saved tensors packed by hooks in a compiled backward: how often they are
 * unpacked, when they are freed, what a wrong unpack hook leads to. */
#include "tests/rows/both.h"

typedef struct packing {
    int n_unpack, n_free;
    bool is_wrong;
} packing;

static brg_status pack_it(brg_tensor *t, void **packed, void *user)
{
    (void)user;
    *packed = brg_retain(t);
    return BRG_OK;
}

static brg_status unpack_it(void *packed, brg_tensor **out, void *user)
{
    packing *p = user;
    p->n_unpack++;
    *out = p->is_wrong ? brg_ones(BRG_DTYPE_F32, BRG_SHAPE(7)) : packed;
    return *out ? BRG_OK : brg_error_code();
}

static void free_it(void *packed, void *user)
{
    ((packing *)user)->n_free++;
    brg_release(packed);
}

static brg_tensor *packed_loss(brg_tensor *x, packing *p)
{
    brg_pack_hooks hooks = BRG_PACK_HOOKS_INIT;
    hooks.pack = pack_it;
    hooks.unpack = unpack_it;
    hooks.free = free_it;
    hooks.user = p;
    assert_brg_ok(brg_pack_hooks_push(&hooks));
    brg_tensor *y = brg_sum_all(brg_mul(x, x)); /* saves x twice */
    assert_brg_ok(brg_pack_hooks_pop());
    return y;
}

static void test_packed__packed_tensors_of_a_retained_graph(void **state)
{
    (void)state;
    packing p = {0};
    brg_tensor *x = leaf_from(1, BRG_SHAPE(4)), *y = packed_loss(x, &p);
    brg_backward_options keep = BRG_BACKWARD_OPTIONS_INIT;
    keep.retain_graph = true;
    int scope;
    assert_brg_ok(brg_compile_begin(&scope, NULL));
    assert_brg_ok(brg_backward_with(&y, 1, &keep));
    assert_int_equal(p.n_free, 0);
    assert_brg_ok(brg_backward(y));
    assert_brg_ok(brg_compile_end(scope));
    assert_int_equal(p.n_unpack, 4);
    assert_int_equal(p.n_free, 2);
    assert_float_equal(element(brg_tensor_grad(x), 3), 16, 0);
    assert_int_equal(both_stats().captures, 2); /* then .grad is there */
    assert_brg_fails_with(brg_backward(y), BRG_ERR_STATE, "a second time");
}

static void test_packed__unpacked_is_something_else(void **state)
{
    (void)state;
    static packing p; /* the graph outlives this frame */
    p = (packing){.is_wrong = true};
    brg_tensor *x = leaf_from(1, BRG_SHAPE(4));
    int scope;
    assert_brg_ok(brg_compile_begin(&scope, NULL));
    assert_brg_fails_with(brg_backward(packed_loss(x, &p)), BRG_ERR_CALLBACK,
                          "another shape or dtype");
    p.is_wrong = false;
    assert_brg_ok(brg_backward(packed_loss(x, &p)));
    assert_brg_ok(brg_compile_end(scope));
    assert_float_equal(element(brg_tensor_grad(x), 3), 8, 0);
    assert_int_equal(both_stats().hits, 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        scoped_test(test_packed__packed_tensors_of_a_retained_graph),
        scoped_test(test_packed__unpacked_is_something_else),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
