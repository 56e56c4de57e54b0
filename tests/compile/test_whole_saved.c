/* SPDX-License-Identifier: Apache-2.0
 * Functions compiled whole, or in pieces, that save in ways of their own or draw
 * random numbers, against themselves (worlds.h). */
#include <brigade/offload.h>
#include <brigade/recompute.h>

#include "tests/compile/world_functions.h"

/* ---- Checkpoints ----------------------------------------------------------- */

FUNCTION(recompute_pieces)
{
    double v;
    BRG_TRY(brg_recompute(out, stretch, user, in, 1, NULL));
    BRG_TRY(brg_tensor_item(brg_mean_all(brg_detach(out[0])), &v));
    out[0] = brg_mul_scalar(out[0], v);
    DONE(out[0]);
}

FUNCTION(selective_pieces)
{
    double v;
    BRG_TRY(brg_tensor_item(brg_mean_all(brg_detach(in[0])), &v));
    BRG_TRY(selective(in, n_in, out, n_out, user));
    out[0] = brg_mul_scalar(out[0], v);
    DONE(out[0]);
}

FUNCTION(recompute_item)
{
    BRG_TRY(brg_recompute(out, item_stretch, user, in, 1, NULL));
    DONE(out[0]);
}

static void test_whole_saved__checkpoints(void **state)
{
    (void)state;
    CHECK(recompute, 1, 1);
    CHECK(selective, 1, 1);
    CHECK(reentrant, 1, 1, .in_pieces = true);
    CHECK(recompute_pieces, 1, 1, .in_pieces = true, .is_loose = true);
    CHECK(selective_pieces, 1, 1, .in_pieces = true, .is_loose = true);
    CHECK(recompute_item, 1, 1, .in_pieces = true, .is_loose = true);
}

/* ---- Pack hooks ------------------------------------------------------------ */

static brg_status pack_copy(brg_tensor *t, void **packed, void *user)
{
    float values[64];
    (void)user;
    BRG_TRY(brg_tensor_read(t, values, brg_tensor_nbytes(t)));
    brg_tensor *copy = brg_from_data(brg_tensor_dtype(t), brg_tensor_ndim(t),
                                     brg_tensor_shape(t), values);
    *packed = brg_retain(copy);
    DONE(copy);
}

static brg_status unpack_copy(void *packed, brg_tensor **out, void *user)
{
    (void)user;
    *out = packed;
    return BRG_OK;
}

static void free_copy(void *packed, void *user)
{
    (void)user;
    brg_release(packed);
}

static brg_status push_hooks(void)
{
    brg_pack_hooks hooks = BRG_PACK_HOOKS_INIT;
    hooks.pack = pack_copy;
    hooks.unpack = unpack_copy;
    hooks.free = free_copy;
    return brg_pack_hooks_push(&hooks);
}

FUNCTION(packs)
{
    brg_tensor *h = brg_sin(brg_mul(in[0], W->w[0]));
    BRG_TRY(push_hooks());
    h = brg_tanh(brg_mul(h, h));
    BRG_TRY(brg_pack_hooks_pop());
    out[0] = brg_mul(h, W->w[1]);
    DONE(out[0]);
}

FUNCTION(packs_and_fails)
{
    BRG_TRY(push_hooks());
    brg_tensor *h = brg_mul(in[0], in[0]);
    if (W->call % 2)
        return brg_error_set(BRG_ERR_CALLBACK, __FILE__, __LINE__, "as asked");
    BRG_TRY(brg_pack_hooks_pop());
    out[0] = brg_sin(h);
    DONE(out[0]);
}

/* What a call before left in force. */
static void pops_hooks(world *w, int i)
{
    (void)w;
    (void)i;
    while (brg_pack_hooks_pop() == BRG_OK)
        ;
}

static void test_whole_saved__pack_hooks(void **state)
{
    (void)state;
    CHECK(packs, 1, 1, .in_pieces = true);
    CHECK(packs_and_fails, 1, 1, .in_pieces = true, .may_fail = true,
          .between = pops_hooks);
    assert_brg_ok(push_hooks());
    CHECK(linear, 1, 1);
    assert_brg_ok(brg_pack_hooks_pop());
}

FUNCTION(dropouts)
{
    out[0] = brg_dropout(brg_mul(in[0], W->w[0]), 0.5, true);
    out[1] = brg_dropout(out[0], 0.25, true);
    out[2] = brg_dropout(in[0], 0.5, true);
    DONE(out[2]);
}

/* ---- Offload --------------------------------------------------------------- */

static brg_offload_kind offload_kind;

static brg_status begin_offload(size_t min_bytes)
{
    brg_offload_options o = BRG_OFFLOAD_OPTIONS_INIT;
    o.kind = offload_kind;
    o.min_bytes = min_bytes;
    return brg_offload_begin(&o);
}

FUNCTION(offloads)
{
    brg_tensor *h = brg_sin(brg_mul(in[0], W->w[0]));
    BRG_TRY(begin_offload(0));
    h = brg_matmul(brg_tanh(brg_mul(h, h)), W->w[2]);
    BRG_TRY(brg_offload_end());
    out[0] = brg_mul(brg_exp(h), W->w[1]);
    out[1] = h;
    DONE(out[0]);
}

FUNCTION(offloads_views)
{
    BRG_TRY(begin_offload(40));
    brg_tensor *h = brg_transpose(brg_mul(in[0], W->w[0]), 0, 1);
    h = brg_mul(h, brg_narrow(h, 0, 0, 4));
    out[0] = brg_mul(brg_cast(brg_cast(h, BRG_DTYPE_BF16), BRG_DTYPE_F32), h);
    BRG_TRY(brg_offload_end());
    DONE(out[0]);
}

FUNCTION(offloads_twice)
{
    BRG_TRY(begin_offload(0));
    brg_tensor *h = brg_sin(brg_mul(in[0], W->w[0]));
    BRG_TRY(push_hooks());
    h = brg_mul(h, h);
    BRG_TRY(brg_pack_hooks_pop());
    BRG_TRY(begin_offload(1 << 20));
    h = brg_mul(h, h);
    BRG_TRY(brg_offload_end());
    h = brg_mul(h, h);
    BRG_TRY(brg_offload_end());
    out[0] = h;
    DONE(out[0]);
}

FUNCTION(offloads_in_pieces)
{
    double v;
    brg_tensor *h = brg_sin(brg_mul(in[0], W->w[0]));
    BRG_TRY(begin_offload(0));
    h = brg_tanh(brg_mul(h, h));
    BRG_TRY(brg_tensor_item(brg_mean_all(brg_detach(h)), &v));
    h = brg_mul_scalar(brg_mul(h, h), v);
    BRG_TRY(brg_offload_end());
    out[0] = brg_mul(h, W->w[1]);
    DONE(out[0]);
}

FUNCTION(offloads_recompute)
{
    BRG_TRY(begin_offload(0));
    BRG_TRY(brg_recompute(out, stretch, user, in, 1, NULL));
    out[0] = brg_mul(brg_exp(out[0]), out[0]);
    BRG_TRY(brg_offload_end());
    DONE(out[0]);
}

static brg_status offloading_stretch(brg_tensor *const *in, brg_tensor **out,
                                     void *user)
{
    BRG_TRY(begin_offload(0));
    brg_tensor *h = brg_mul(brg_matmul(in[0], W->w[2]), W->w[1]);
    out[0] = brg_dropout(brg_sin(brg_mul(h, h)), 0.25, true);
    return brg_offload_end();
}

FUNCTION(recompute_offloads)
{
    BRG_TRY(brg_recompute(out, offloading_stretch, user, in, 1, NULL));
    out[0] = brg_exp(out[0]);
    DONE(out[0]);
}

FUNCTION(reentrant_offloads)
{
    brg_recompute_options o = BRG_RECOMPUTE_OPTIONS_INIT;
    o.is_reentrant = true;
    BRG_TRY(brg_recompute(out, offloading_stretch, user, in, 1, &o));
    out[0] = brg_exp(out[0]);
    DONE(out[0]);
}

FUNCTION(left_open)
{
    BRG_TRY(begin_offload(0));
    out[0] = brg_sin(brg_mul(in[0], in[0]));
    DONE(out[0]);
}

static void ends_offload(world *w, int i)
{
    (void)w;
    (void)i;
    while (brg_offload_end() == BRG_OK)
        ;
}

FUNCTION(no_folder)
{
    brg_offload_options o = BRG_OFFLOAD_OPTIONS_INIT;
    o.kind = BRG_OFFLOAD_DISK;
    o.folder = W->call % 2 ? "/none/such" : NULL;
    brg_tensor *h = brg_mul(in[0], in[0]);
    BRG_TRY(brg_offload_begin(&o));
    h = brg_mul(h, h);
    BRG_TRY(brg_offload_end());
    out[0] = h;
    DONE(out[0]);
}

static brg_status layer(size_t i, brg_tensor *x, brg_tensor **y, void *user)
{
    *y = brg_tanh(brg_linear(x, W->w[2], i % 2 ? W->w[1] : NULL));
    DONE(*y);
}

FUNCTION(recompute_chain_layers)
{
    BRG_TRY(begin_offload(0));
    out[0] = brg_recompute_chain(layer, user, 9, 0, in[0]);
    BRG_TRY(brg_offload_end());
    DONE(out[0]);
}

#define STEP_OF(name)                                                          \
    FUNCTION(name##_step)                                                      \
    {                                                                          \
        BRG_TRY(name(in, n_in, out, n_out, user));                             \
        out[0] = brg_mean_all(brg_square(out[0]));                             \
        BRG_TRY(brg_backward(out[0]));                                         \
        return brg_optim_step(W->sgd);                                         \
    }
FUNCTION(stretchy)
{
    out[0] = brg_tanh(brg_linear(in[0], W->w[2], W->w[1]));
    DONE(out[0]);
}

STEP_OF(offloads)
STEP_OF(offloads_views)
STEP_OF(offloads_twice)
STEP_OF(offloads_in_pieces)
STEP_OF(offloads_recompute)
STEP_OF(recompute_offloads)
STEP_OF(reentrant_offloads)
STEP_OF(left_open)
STEP_OF(no_folder)
STEP_OF(recompute_chain_layers)
STEP_OF(stretchy)

static void test_whole_saved__offload(void **state)
{
    (void)state;
    for (int k = 0; k < 2; k++) {
        offload_kind = k ? BRG_OFFLOAD_DISK : BRG_OFFLOAD_HOST_MEMORY;
        CHECK(offloads, 1, 2, .in_pieces = true);
        CHECK(offloads_views, 1, 1, .in_pieces = true);
        CHECK(offloads_twice, 1, 1, .in_pieces = true);
        CHECK(offloads_in_pieces, 1, 1, .in_pieces = true, .is_loose = true);
        CHECK(offloads_recompute, 1, 1, .in_pieces = true, .is_loose = true);
        CHECK(recompute_offloads, 1, 1, .in_pieces = true, .is_loose = true);
        CHECK(reentrant_offloads, 1, 1, .in_pieces = true);
        CHECK(recompute_chain_layers, 1, 1, .in_pieces = true,
              .is_loose = true);
        CHECK(left_open, 1, 1, .in_pieces = true, .between = ends_offload);
        ends_offload(NULL, 0);
        CHECK(no_folder, 1, 1, .in_pieces = true, .may_fail = true,
              .between = ends_offload);
        CHECK(offloads_step, 1, 1, .is_step = true, .in_pieces = true,
              .is_loose = true);
        CHECK(offloads_views_step, 1, 1, .is_step = true, .in_pieces = true,
              .is_loose = true);
        CHECK(offloads_twice_step, 1, 1, .is_step = true, .in_pieces = true);
        CHECK(offloads_in_pieces_step, 1, 1, .is_step = true, .in_pieces = true,
              .is_loose = true);
        CHECK(offloads_recompute_step, 1, 1, .is_step = true, .in_pieces = true,
              .is_loose = true);
        CHECK(recompute_offloads_step, 1, 1, .is_step = true, .in_pieces = true,
              .is_loose = true);
        CHECK(reentrant_offloads_step, 1, 1, .is_step = true,
              .in_pieces = true);
        CHECK(recompute_chain_layers_step, 1, 1, .is_step = true,
              .in_pieces = true, .is_loose = true);
        CHECK(left_open_step, 1, 1, .is_step = true, .in_pieces = true,
              .between = ends_offload);
        ends_offload(NULL, 0);
        CHECK(no_folder_step, 1, 1, .is_step = true, .in_pieces = true,
              .may_fail = true, .between = ends_offload);
        /* Around it. */
        assert_brg_ok(begin_offload(0));
        CHECK(linear, 1, 1);
        CHECK(selective, 1, 1);
        CHECK(dropouts, 1, 3);
        CHECK(recompute_pieces, 1, 1, .in_pieces = true, .is_loose = true);
        CHECK(offloads_in_pieces, 1, 1, .in_pieces = true, .is_loose = true);
        CHECK(stretchy_step, 1, 1, .is_step = true);
        CHECK(packs, 1, 1, .in_pieces = true);
        assert_brg_ok(brg_offload_end());
    }
}

/* ---- Random numbers -------------------------------------------------------- */

FUNCTION(same_mask)
{
    out[0] = brg_dropout(brg_mul(in[0], W->w[0]), 0.5, true);
    out[1] = brg_dropout(out[0], 0.25, true);
    brg_random_state s;
    brg_random_get_state(&s);
    brg_tensor *a = brg_dropout(in[0], 0.5, true);
    brg_random_set_state(&s);
    out[2] = brg_add(a, brg_dropout(in[0], 0.5, true));
    DONE(out[2]);
}

FUNCTION(dropout_dead)
{
    if (!brg_dropout(in[0], 0.5, true))
        return brg_error_code();
    out[0] = brg_dropout(brg_mul(in[0], W->w[0]), 0.5, true);
    DONE(out[0]);
}

FUNCTION(dropout_pieces)
{
    double v;
    if (!brg_dropout(in[0], 0.5, true))
        return brg_error_code();
    out[0] = brg_dropout(brg_mul(in[0], W->w[0]), 0.5, true);
    BRG_TRY(brg_tensor_item(brg_sum_all(brg_detach(out[0])), &v));
    brg_tensor *r = brg_rand(BRG_DTYPE_F32, BRG_SHAPE(3, 4));
    out[1] = brg_dropout(brg_mul(out[0], r), 0.5, true);
    brg_random_state s;
    brg_random_get_state(&s);
    brg_tensor *a = brg_dropout(in[0], 0.5, true);
    brg_random_set_state(&s);
    out[2] = brg_add(a, brg_dropout(in[0], 0.5, true));
    DONE(out[2]);
}

FUNCTION(random_reset)
{
    static const brg_random_state fixed = {.seed = 99};
    brg_random_state s;
    brg_random_get_state(&s);
    brg_random_set_state(&fixed);
    out[0] = brg_dropout(brg_mul(in[0], W->w[0]), 0.5, true);
    brg_random_set_state(&s);
    out[1] = brg_dropout(in[0], 0.5, true);
    DONE(out[1]);
}

FUNCTION(random_reset_pieces)
{
    double v;
    BRG_TRY(random_reset(in, n_in, out, n_out, user));
    BRG_TRY(brg_tensor_item(brg_sum_all(brg_detach(out[0])), &v));
    return random_reset(in, n_in, out, n_out, user);
}

static void test_whole_saved__random_numbers(void **state)
{
    (void)state;
    CHECK(same_mask, 1, 3, .in_pieces = true, .is_loose = true);
    CHECK(dropouts, 1, 3);
    CHECK(dropout_dead, 1, 1);
    CHECK(dropout_pieces, 1, 3, .in_pieces = true, .is_loose = true);
    CHECK(random_reset, 1, 2, .in_pieces = true);
    CHECK(random_reset_pieces, 1, 2, .in_pieces = true, .is_loose = true);
}

FUNCTION(normalizes)
{
    brg_batch_norm_options o = BRG_BATCH_NORM_OPTIONS_INIT;
    o.training = true;
    out[0] = brg_batch_norm(
        brg_dropout(in[0], 0.5, true), NULL, NULL,
        brg_select(brg_reshape(W->flat, BRG_SHAPE(3, 4)), 0, 0),
        brg_select(brg_reshape(W->flat, BRG_SHAPE(3, 4)), 0, 1), &o);
    out[1] = brg_batch_norm(in[0], W->w[1], NULL, NULL, NULL, &o);
    DONE(out[1]);
}

/* The graph before the call has saved what the function reads. */
static void test_whole_saved__reading_is_no_change(void **state)
{
    (void)state;
    CHECK(normalizes, 1, 2);
    world w;
    brg_tensor *out[2];
    brg_compile_options options = BRG_COMPILE_OPTIONS_INIT;
    brg_compiled *c;
    options.whole = true;
    make_world(&w);
    assert_brg_ok(brg_compiled_create(&c, normalizes, &w, &options));
    for (int i = 0; i < 2; i++) {
        brg_tensor *before = brg_mul(w.x[0], brg_mul(w.w[1], w.x[0]));
        assert_brg_ok(brg_compiled_call(c, w.x, 1, out, 2));
        assert_brg_ok(brg_backward(brg_sum_all(brg_add(before, out[1]))));
    }
    brg_compiled_destroy(c);
    free_world(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        scoped_test(test_whole_saved__checkpoints),
        scoped_test(test_whole_saved__pack_hooks),
        scoped_test(test_whole_saved__offload),
        scoped_test(test_whole_saved__random_numbers),
        scoped_test(test_whole_saved__reading_is_no_change),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
