/* SPDX-License-Identifier: Apache-2.0
 * One rank has no memory for its buckets: no rank has a reducer then, all know
 * whose fault it was, and may try again. */
#include <stdlib.h>

#include <brigade/autograd.h>
#include <brigade/ddp.h>
#include <brigade/ops.h>

#include "tests/support/brg_test.h"
#include "tests/support/ranks.h"

#define LARGE ((size_t)1 << 20)

static _Thread_local bool is_short; /* ranks are threads */

static void *short_alloc(void *user, size_t nbytes, size_t alignment)
{
    void *ptr = NULL;
    (void)user;
    if (is_short && nbytes >= LARGE)
        return NULL;
    return posix_memalign(&ptr, alignment, nbytes) == 0 ? ptr : NULL;
}

static void short_free(void *user, void *ptr, size_t nbytes, size_t alignment)
{
    (void)user;
    (void)nbytes;
    (void)alignment;
    free(ptr);
}

static brg_status try_raw(brg_pg *pg, bool fails)
{
    static float grads[4][LARGE];
    brg_reducer *r;
    brg_reducer_param param = {.name = "w",
                               .grad = grads[brg_pg_rank(pg)],
                               .count = LARGE,
                               .dtype = BRG_DTYPE_F32};
    is_short = fails;
    brg_status status = brg_reducer_create(&r, pg, &param, 1, NULL);
    is_short = false;
    BRG_TRY(status);
    status = brg_reducer_mark_ready(r, 0);
    if (status == BRG_OK)
        status = brg_reducer_wait(r);
    brg_reducer_destroy(r);
    return status;
}

static brg_status try_ddp(brg_pg *pg, bool fails)
{
    brg_ddp *ddp;
    brg_scope *scope = brg_scope_begin();
    brg_tensor *w = brg_zeros(BRG_DTYPE_F32, BRG_SHAPE(LARGE));
    BRG_TRY(w ? BRG_OK : brg_error_code());
    brg_status status = brg_set_requires_grad(w, true);
    is_short = fails;
    if (status == BRG_OK)
        status = brg_ddp_create(&ddp, pg, &w, 1, NULL, 0, NULL);
    is_short = false;
    if (status == BRG_OK)
        brg_ddp_destroy(ddp);
    brg_scope_end(scope);
    return status;
}

typedef brg_status (*attempt)(brg_pg *pg, bool fails);

static brg_status rank_of(brg_pg *pg, void *user)
{
    attempt attempt_once = *(attempt *)user;
    bool fails = brg_pg_rank(pg) == 1;
    brg_status status = ranks_expect(
        attempt_once(pg, fails), fails ? BRG_ERR_NOMEM : BRG_ERR_PEER,
        fails ? "memory of a group" : "rank 1 has no memory for its buckets",
        "create", __LINE__);
    return status == BRG_OK ? attempt_once(pg, false) : status;
}

static void test_short__rank_fails_all(void **state)
{
    (void)state;
    attempt attempts[] = {try_raw, try_ddp};
    for (int i = 0; i < 2; i++)
        for (int n = 2; n <= 4; n++)
            assert_brg_ok(brg_sim_run(n, NULL, rank_of, &attempts[i]));
}

int main(void)
{
    static const brg_allocator allocator = {
        .struct_size = sizeof(brg_allocator),
        .alloc = short_alloc,
        .free = short_free,
    };
    if (brg_set_allocator(&allocator) != BRG_OK)
        return 1;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_short__rank_fails_all),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
