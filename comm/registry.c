/* SPDX-License-Identifier: Apache-2.0
 * Backends by name: built in, registered, or loaded from a component
 * library. A loaded library is never unloaded, since groups point into it. */
#include "comm/registry.h"

#include <pthread.h>
#include <string.h>

#include "core/base/component.h"
#include "core/base/error.h"

#define MAX_BACKENDS 16

static struct {
    pthread_mutex_t lock;
    const brg_backend *rows[MAX_BACKENDS];
    size_t n;
} known = {.lock = PTHREAD_MUTEX_INITIALIZER,
           .rows = {&brg__backend_self, &brg__backend_file},
           .n = 2};

static const brg_backend *find_known(const char *name)
{
    const brg_backend *found = NULL;
    pthread_mutex_lock(&known.lock);
    for (size_t i = 0; i < known.n && !found; i++)
        if (strcmp(known.rows[i]->name, name) == 0)
            found = known.rows[i];
    pthread_mutex_unlock(&known.lock);
    return found;
}

brg_status brg__backend_check(const brg_backend *backend)
{
    BRG_CHECK_ARG(backend, "the backend is NULL");
    if (backend->abi != BRG_BACKEND_ABI ||
        backend->struct_size < sizeof(brg_backend))
        return BRG_FAIL(BRG_ERR_ABI,
                        "backend: ABI %u with %zu bytes, expected ABI %u with "
                        "%zu; build it against this version's headers",
                        backend->abi, backend->struct_size, BRG_BACKEND_ABI,
                        sizeof(brg_backend));
    BRG_CHECK_ARG(brg__component_is_name(backend->name),
                  "backend: name \"%s\" is not 1 to %d of a-z, 0-9, _",
                  backend->name ? backend->name : "(null)",
                  BRG__COMPONENT_NAME_MAX - 1);
    BRG_CHECK_ARG(backend->create, "backend %s: create is NULL", backend->name);
    return BRG_OK;
}

static brg_status add(const brg_backend *backend)
{
    if (known.n == MAX_BACKENDS)
        return BRG_FAIL(BRG_ERR_STATE, "backend %s: %d are registered, no room",
                        backend->name, MAX_BACKENDS);
    for (size_t i = 0; i < known.n; i++)
        if (strcmp(known.rows[i]->name, backend->name) == 0)
            return known.rows[i] == backend
                       ? BRG_OK
                       : BRG_FAIL(BRG_ERR_STATE,
                                  "backend %s: another one has this name",
                                  backend->name);
    known.rows[known.n++] = backend;
    return BRG_OK;
}

brg_status brg_backend_register(const brg_backend *backend)
{
    BRG_TRY(brg__backend_check(backend));
    pthread_mutex_lock(&known.lock);
    brg_status status = add(backend);
    pthread_mutex_unlock(&known.lock);
    return status;
}

brg_status brg_backend_load(const char *name)
{
    BRG_CHECK_ARG(brg__component_is_name(name),
                  "brg_backend_load: \"%s\" is not 1 to %d of a-z, 0-9, _",
                  name ? name : "(null)", BRG__COMPONENT_NAME_MAX - 1);
    if (find_known(name))
        return BRG_OK;
    void *symbol;
    BRG_TRY(brg__component_open(&symbol, "backend", name, "brg_comm_"));
    brg_comm_fn get = NULL;
    *(void **)&get = symbol;
    return brg_backend_register(get());
}

brg_status brg__backend_find(const char *name, const brg_backend **out)
{
    *out = find_known(name);
    if (*out)
        return BRG_OK;
    BRG_TRY(brg_backend_load(name));
    *out = find_known(name);
    if (!*out)
        return BRG_FAIL(BRG_ERR_NOT_FOUND,
                        "libbrigade_%s.so registers another name than %s", name,
                        name);
    return BRG_OK;
}
