/* SPDX-License-Identifier: Apache-2.0
 * Monotonic time in nanoseconds. */
#ifndef BRG_CORE_BASE_CLOCK_H
#define BRG_CORE_BASE_CLOCK_H

#include <stdint.h>

uint64_t brg__clock_ns(void);

/* The same time at less than half the cost, for records and polls: off by less
 * than a microsecond, and never running back on a thread. Not for signal
 * handlers. */
uint64_t brg__clock_quick_ns(void);

#endif
