/* SPDX-License-Identifier: Apache-2.0
 * A group of one rank on the device made for tests, which takes its memory; its
 * all-reduce changes nothing. */
#ifndef BRG_TESTS_SUPPORT_DEVICE_GROUP_H
#define BRG_TESTS_SUPPORT_DEVICE_GROUP_H

#include "comm/pg.h"
#include "tests/support/brg_test.h"
#include "tests/support/fake_device.h"

static brg_status group_alloc(void *group, void **out, size_t nbytes)
{
    (void)group;
    BRG_TRY(fake_alloc(THERE, out, nbytes));
    return fake_zero(THERE, *out, nbytes);
}

static void group_free(void *group, void *ptr)
{
    (void)group;
    fake_free(THERE, ptr, 0);
}

static inline brg_pg *group_here(void)
{
    brg_pg *pg;
    assert_brg_ok(brg_pg_create(&pg, "self", NULL));
    return pg;
}

static inline brg_pg *group_there(void)
{
    static brg_group_ops ops;
    brg_pg *pg = group_here();
    ops = *pg->end.ops;
    ops.alloc = group_alloc;
    ops.free = group_free;
    pg->end.ops = &ops;
    pg->end.device = THERE;
    return pg;
}

#endif
