/* SPDX-License-Identifier: Apache-2.0
 * Component libraries: libbrigade_<name>.so, found and opened at run time. */
#ifndef BRG_CORE_BASE_COMPONENT_H
#define BRG_CORE_BASE_COMPONENT_H

#include <stdbool.h>

#include <brigade/status.h>

#define BRG__COMPONENT_NAME_MAX 32

/* 1 to 31 of a-z, 0-9, _. */
bool brg__component_is_name(const char *name);

/* *symbol: `prefix`<name> of libbrigade_<name>.so, from the folders of
 * BRG_BACKEND_PATH, then where the loader looks, then beside libbrigade. The library is never closed,
 * since objects point into it. `what` ("backend") is for messages. */
brg_status brg__component_open(void **symbol, const char *what,
                               const char *name, const char *prefix);

#endif
