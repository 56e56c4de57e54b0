/* SPDX-License-Identifier: Apache-2.0
 * Backends by name. */
#ifndef BRG_COMM_REGISTRY_H
#define BRG_COMM_REGISTRY_H

#include <brigade/ext/backend.h>

/* A registered backend, loading its component if need be. */
brg_status brg__backend_find(const char *name, const brg_backend **out);

/* What "auto" stands for here; any other name is itself. */
const char *brg__backend_choose(const char *name);

/* BRG_ERR_ABI unless this build can use it. */
brg_status brg__backend_check(const brg_backend *backend);

extern const brg_backend brg__backend_self;
extern const brg_backend brg__backend_file;

#endif
