/* SPDX-License-Identifier: Apache-2.0
 * A ddp over a group on the host, its parameters on a device whose memory the
 * host may not touch: every feature, the bits of the host, and how often
 * something crosses. Under mpirun: tests/mpi/test_staged_mpi.c; on GPUs:
 * tests/cuda/test_staged_mpi.c. */
#include "tests/reducer/staged_checks.h"
#include "tests/reducer/made_up_device.h"

#define STAGED_TEST(name)                                                      \
    static brg_status name##_staged(world *w, const run *r)                    \
    {                                                                          \
        (void)r;                                                               \
        return check_##name(w->pg);                                            \
    }                                                                          \
    static void test_device_staged__##name(void **state)                       \
    {                                                                          \
        (void)state;                                                           \
        run r = make_run(name##_staged);                                       \
        r.is_bare = r.is_on_host = true;                                       \
        run_worlds(&r);                                                        \
    }

STAGED_LIST(STAGED_TEST)

/* In a steady step each gradient crosses twice, and nothing else does; no memory
 * is taken. */
static brg_status steady(world *w, const run *r)
{
    tally before, after;
    (void)r;
    for (int step = 0; step < 3; step++)
        BRG_TRY(step_of(w, step));
    for (int step = 3; step < 6; step++) {
        brg_status status = zero(w);
        if (status == BRG_OK)
            status = take_tally(w->pg, &before);
        if (status == BRG_OK)
            status = backward(w, step, ALL);
        if (status == BRG_OK)
            status = take_tally(w->pg, &after);
        BRG_TRY(status);
        BRG_TRY(check(w, step));
        RANK_CHECK(after.n_crossings - before.n_crossings ==
                       (2 + 1) * N_PARAMS * w->n,
                   "%d crossings", after.n_crossings - before.n_crossings);
    }
    return BRG_OK;
}

static void test_device_staged__each_gradient_crosses_twice(void **state)
{
    (void)state;
    run r = make_run(steady);
    r.is_on_host = true;
    run_worlds(&r);
}

/* ---- Failures --------------------------------------------------------------------- */

static int n_good_copies; /* towards the device of rank 0, until one fails */

static brg_status failing_copy(brg_device to, void *dst, brg_device from,
                               const void *src, size_t nbytes)
{
    const bool is_back =
        to.type == BRG_DEVICE_CUDA && to.index == 0 && from.type == HOME.type;
    if (is_back && n_good_copies-- == 0)
        return brg_error_set(BRG_ERR_DEVICE, __FILE__, __LINE__, "no way back");
    return fake_copy(to, dst, from, src, nbytes);
}

/* One that does not come back is the error of its rank alone, whose next step is
 * good; the others' steps all are. */
static brg_status loses_one(world *w, const run *r)
{
    (void)r;
    BRG_TRY(step_of(w, 0));
    BRG_TRY(step_of(w, 1));
    brg_work *work;
    if (w->rank == 0)
        n_good_copies = N_PARAMS + 1; /* constants of the model go first */
    BRG_TRY(brg_barrier(w->pg, &work));
    BRG_TRY(brg_work_wait(work));
    BRG_TRY(zero(w));
    if (w->rank == 0)
        RANK_FAILS(backward(w, 2, ALL), BRG_ERR_DEVICE, "no way back");
    else
        BRG_TRY(step_of(w, 2));
    return step_of(w, 3);
}

static void test_device_staged__a_way_back_that_fails(void **state)
{
    (void)state;
    run r = make_run(loses_one);
    r.is_on_host = true;
    n_good_copies = INT32_MAX;
    fake.copy = failing_copy;
    run_worlds(&r);
    fake.copy = fake_copy;
}

#define LISTED(name) TEST(test_device_staged__##name),

int main(void)
{
    const struct CMUnitTest tests[] = {
        STAGED_LIST(LISTED)
            TEST(test_device_staged__each_gradient_crosses_twice),
        TEST(test_device_staged__a_way_back_that_fails),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
