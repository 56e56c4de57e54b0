/* SPDX-License-Identifier: Apache-2.0
 * Checks of the library's own mistakes, in three levels chosen by the build
 * option BRG_DEBUG: 1 cheap, 2 internal invariants, 3 expensive walks. */
#ifndef BRG_CORE_BASE_ASSERT_H
#define BRG_CORE_BASE_ASSERT_H

#include <assert.h>

#ifndef BRG_DEBUG
#define BRG_DEBUG 0
#endif

#if BRG_DEBUG >= 1
#define brg_assert(cond) assert(cond)
#else
#define brg_assert(cond) ((void)sizeof(cond))
#endif

#if BRG_DEBUG >= 2
#define brg_assert_internal(cond) assert(cond)
#else
#define brg_assert_internal(cond) ((void)sizeof(cond))
#endif

#if BRG_DEBUG >= 3
#define brg_assert_expensive(cond) assert(cond)
#else
#define brg_assert_expensive(cond) ((void)sizeof(cond))
#endif

#endif
