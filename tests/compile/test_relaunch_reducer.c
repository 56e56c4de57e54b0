/* SPDX-License-Identifier: Apache-2.0
 * Steps of a reducer that are launched again (launched_steps.h): its buckets,
 * looks, hooks and micro-batches. */
#include "reducer/ddp.h"
#include "tests/compile/launched_steps.h"

/* Packing and reductions are part of the launch; the reducer counts its steps
 * and asks after each what the one before came to. */
static void test_relaunch__with_a_reducer(void **state)
{
    (void)state;
    for (int first = 0; first < 2; first++) {
        brg_compile_stats s =
            check(&(variant){.has_ddp = true, .zeroes_first = first});
        assert_int_equal(s.replay_skips, 0);
        assert_int_equal(s.replay_recordings, 1);
        assert_int_equal(s.replay_launches, N_STEPS - 3);
    }
}

/* Buffers go with each launch. */
static void test_relaunch__with_buffers(void **state)
{
    (void)state;
    for (int sync = 1; sync <= 2; sync++) {
        n_loads = n_unloads = 0;
        brg_compile_stats s =
            check(&(variant){.has_ddp = true, .sync = (brg_ddp_buffers)sync});
        assert_int_equal(s.replay_skips, 0);
        assert_int_equal(s.replay_launches, N_STEPS - 3);
        assert_int_equal(n_loads, 2 * N_STEPS); /* eager and compiled */
        assert_int_equal(n_unloads, 2 * N_STEPS);
    }
}

/* In one step a gradient is infinite; nothing is updated in this training. */
static brg_status end_with_nothing(model *m)
{
    (void)m;
    return BRG_OK;
}

/* Looks are part of the launch, too: each step has its own norm, and the bad
 * one, and no other, is said to be so. */
static void test_relaunch__gradients_are_looked_at(void **state)
{
    (void)state;
    brg_compile_stats s = check(
        &(variant){.has_ddp = true, .looks = true, .end = end_with_nothing});
    assert_int_equal(s.replay_skips, 0);
    assert_int_equal(s.replay_recordings, 1);
    assert_int_equal(s.replay_launches, N_STEPS - 3);
}

/* The host counts steps, and hears before the next one that one was left out. */
static void test_relaunch__steps_that_may_be_left_out(void **state)
{
    (void)state;
    for (int is_adamw = 0; is_adamw < 2; is_adamw++) {
        brg_compile_stats s = check(&(variant){
            .has_ddp = true, .may_skip = true, .is_adamw = is_adamw});
        assert_int_equal(s.replay_skips, 0);
        assert_int_equal(s.replay_recordings, 1);
        assert_int_equal(s.replay_launches, N_STEPS - 3);
    }
}

static brg_status make_cast(brg_comm_hook **out)
{
    return brg_comm_hook_create_cast(out, BRG_DTYPE_BF16, false);
}

static brg_status make_fed_back(brg_comm_hook **out)
{
    return brg_comm_hook_create_cast(out, BRG_DTYPE_BF16, true);
}

static brg_status make_q8(brg_comm_hook **out)
{
    return brg_comm_hook_create_q8(out, true);
}

static brg_status make_powersgd(brg_comm_hook **out, int64_t start, bool cold)
{
    brg_powersgd_options options = BRG_POWERSGD_OPTIONS_INIT;
    options.min_saving = 1;
    options.start_step = start;
    options.no_warm_start = cold;
    return brg_comm_hook_create_powersgd(out, &options);
}

static brg_status make_warm(brg_comm_hook **out)
{
    return make_powersgd(out, 0, false);
}

static brg_status make_later(brg_comm_hook **out)
{
    return make_powersgd(out, 4, false);
}

static brg_status make_cold(brg_comm_hook **out)
{
    return make_powersgd(out, 0, true);
}

/* Errors fed back and counts of steps, too, are those of eager steps. */
static void test_relaunch__with_communication_hooks(void **state)
{
    (void)state;
    static const struct {
        brg_status (*make)(brg_comm_hook **out);
        uint64_t n_recordings;
    } hooks[] = {{make_cast, 1}, {make_fed_back, 1}, {make_q8, 1},
                 {make_warm, 1}, {make_later, 2},    {make_cold, 0}};
    for (size_t i = 0; i < sizeof hooks / sizeof *hooks; i++) {
        const uint64_t n = hooks[i].n_recordings;
        brg_compile_stats s =
            check(&(variant){.has_ddp = true, .hook = hooks[i].make});
        assert_int_equal(s.replay_recordings, n);
        assert_int_equal(s.replay_launches, n ? N_STEPS - 2 - n : 0);
    }
}

/* ---- Micro-batches ------------------------------------------------------------------- */

/* Steps since the last one in which reductions went off and on: 2 n times. */
static void add_micro_batches(model *m, int n)
{
    for (int i = 0; i < n; i++) {
        brg_scope *scope = brg_scope_begin();
        assert_true(brg_ddp_set_sync(m->ddp, false));
        brg_tensor *x = there(brg_randn(BRG_DTYPE_F32, BRG_SHAPE(2, 5)));
        brg_tensor *h = brg_relu(brg_linear(x, m->p[0], m->p[1]));
        assert_brg_ok(brg_backward(
            brg_mean_all(brg_square(brg_linear(h, m->p[2], m->p[3])))));
        assert_false(brg_ddp_set_sync(m->ddp, true));
        brg_scope_end(scope);
    }
}

/* What the last reduction said of this rank's switches. */
static float said_of_switches(const model *m)
{
    const brg_reducer *r = brg_ddp_reducer(m->ddp);
    const float *tail = (const void *)(r->arena + r->plan.tail_offset);
    return tail[r->n_params + 2];
}

/* However many there are before a step, it is launched and tells the others. */
static void test_relaunch__behind_micro_batches(void **state)
{
    (void)state;
    static history h[2];
    assert_brg_ok(brg_compile_reset());
    for (int is_compiled = 0; is_compiled < 2; is_compiled++) {
        model m;
        model_make(&m, true);
        m.keeps = true;
        distribute(&m, group_there(), BRG_DDP_BUFFERS_LEAVE);
        brg_compiled *compiled = is_compiled ? compile(&m) : NULL;
        for (int k = 0; k < N_STEPS; k++) {
            brg_seed(700 + (uint64_t)k);
            add_micro_batches(&m, k % 3);
            one_step(&m, compiled, k, 3 + k % 2, &h[is_compiled]);
            assert_true(said_of_switches(&m) == (float)(2 * (k % 3)));
        }
        read_all(&h[is_compiled], &m);
        brg_compiled_destroy(compiled);
        end_distribution(&m);
        model_free(&m);
    }
    assert_memory_equal(&h[0], &h[1], sizeof h[0]);
    assert_int_equal(compile_stats().replay_skips, 0);
    assert_int_equal(compile_stats().replay_recordings, 2);
    assert_int_equal(compile_stats().replay_launches, N_STEPS - 6);
}

/* Steps of plans all the same; the host copies the gradients in them. */
static void test_relaunch__a_group_on_the_host(void **state)
{
    (void)state;
    for (int first = 0; first < 2; first++) {
        brg_compile_stats s = check(&(variant){.has_ddp = true,
                                               .is_on_host = true,
                                               .zeroes_first = first,
                                               .sync = (brg_ddp_buffers)first});
        assert_int_equal(s.replay_recordings, 0);
        assert_int_equal(s.replay_launches, 0);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        scoped_test(test_relaunch__with_a_reducer),
        scoped_test(test_relaunch__with_buffers),
        scoped_test(test_relaunch__gradients_are_looked_at),
        scoped_test(test_relaunch__steps_that_may_be_left_out),
        scoped_test(test_relaunch__with_communication_hooks),
        scoped_test(test_relaunch__behind_micro_batches),
        scoped_test(test_relaunch__a_group_on_the_host),
    };
    return cmocka_run_group_tests(tests, register_recording_device, NULL);
}
