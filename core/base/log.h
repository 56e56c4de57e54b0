/* SPDX-License-Identifier: Apache-2.0
 * Logging through the user's sink. */
#ifndef BRG_CORE_BASE_LOG_H
#define BRG_CORE_BASE_LOG_H

#include <brigade/runtime.h>

/* `area` is the room that speaks ("reducer"). Does nothing without a sink. */
void brg__log(brg_log_level level, const char *area, const char *format, ...)
    BRG_PRINTF(3, 4);

#endif
