/* SPDX-License-Identifier: Apache-2.0
 * Pack hooks that keep what they are given. */
#ifndef BRG_TESTS_SUPPORT_PLAIN_PACK_H
#define BRG_TESTS_SUPPORT_PLAIN_PACK_H

#include <brigade/autograd.h>
#include <brigade/tensor.h>

static inline brg_status plain_pack(brg_tensor *t, void **packed, void *user)
{
    (void)user;
    *packed = brg_retain(t);
    return BRG_OK;
}

static inline brg_status plain_unpack(void *packed, brg_tensor **out,
                                      void *user)
{
    (void)user;
    *out = packed;
    return BRG_OK;
}

static inline void plain_free(void *packed, void *user)
{
    (void)user;
    brg_release(packed);
}

#endif
