/* SPDX-License-Identifier: Apache-2.0
 * Component libraries: see component.h. Global binding, since MPI libraries
 * open plug-ins of their own that look for the MPI library's symbols. */
#include "core/base/component.h"

#include <dlfcn.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "core/base/env.h"
#include "core/base/error.h"

bool brg__component_is_name(const char *name)
{
    size_t n = name ? strspn(name, "abcdefghijklmnopqrstuvwxyz0123456789_") : 0;
    return n > 0 && n < BRG__COMPONENT_NAME_MAX && name[n] == '\0';
}

typedef struct attempt {
    void *library;
    char reasons[BRG_ERROR_TEXT_MAX / 2]; /* why each place failed */
} attempt;

static void try_open(attempt *a, const char *path)
{
    a->library = dlopen(path, RTLD_NOW | RTLD_GLOBAL);
    if (a->library)
        return;
    const char *reason = dlerror();
    size_t n = strlen(a->reasons);
    snprintf(a->reasons + n, sizeof a->reasons - n, "%s%s", n ? "; " : "",
             reason ? reason : path);
}

/* Beside the library (or program) that this is part of. The loader does that
 * too, by the library's RUNPATH, but not for a sanitizer's dlopen. */
static void try_beside(attempt *a, const char *name)
{
    static const char here = 0;
    Dl_info self;
    char path[PATH_MAX];
    const char *slash =
        dladdr(&here, &self) ? strrchr(self.dli_fname, '/') : NULL;
    if (!slash)
        return;
    int used = snprintf(path, sizeof path, "%.*s/libbrigade_%s.so",
                        (int)(slash - self.dli_fname), self.dli_fname, name);
    if (used > 0 && (size_t)used < sizeof path && access(path, R_OK) == 0)
        try_open(a, path);
}

static void try_places(attempt *a, const char *name)
{
    const char *at = brg__env_text(BRG__ENV_BACKEND_PATH);
    char path[PATH_MAX];
    while (*at && !a->library) {
        size_t n = strcspn(at, ":");
        int used = snprintf(path, sizeof path, "%.*s/libbrigade_%s.so", (int)n,
                            at, name);
        if (n > 0 && used > 0 && (size_t)used < sizeof path)
            try_open(a, path);
        at += n + (at[n] == ':');
    }
    if (a->library)
        return;
    snprintf(path, sizeof path, "libbrigade_%s.so", name);
    try_open(a, path);
    if (!a->library)
        try_beside(a, name);
}

brg_status brg__component_open(void **symbol, const char *what,
                               const char *name, const char *prefix)
{
    attempt a = {0};
    *symbol = NULL;
    try_places(&a, name);
    if (!a.library)
        return BRG_FAIL(BRG_ERR_NOT_FOUND,
                        "%s %s is not registered, and libbrigade_%s.so was not "
                        "found: %s",
                        what, name, name, a.reasons);
    char text[2 * BRG__COMPONENT_NAME_MAX];
    snprintf(text, sizeof text, "%s%s", prefix, name);
    *symbol = dlsym(a.library, text);
    if (*symbol)
        return BRG_OK;
    dlclose(a.library);
    return BRG_FAIL(BRG_ERR_ABI, "libbrigade_%s.so does not export %s", name,
                    text);
}
