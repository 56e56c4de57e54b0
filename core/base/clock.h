/* SPDX-License-Identifier: Apache-2.0
 * Monotonic time in nanoseconds. */
#ifndef BRG_CORE_BASE_CLOCK_H
#define BRG_CORE_BASE_CLOCK_H

#include <stdint.h>

uint64_t brg__clock_ns(void);

#endif
