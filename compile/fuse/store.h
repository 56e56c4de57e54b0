/* SPDX-License-Identifier: Apache-2.0
 * Loaded kernels that executables share, and what failed: one store for the
 * CPU's, one for those of devices. */
#ifndef BRG_COMPILE_FUSE_STORE_H
#define BRG_COMPILE_FUSE_STORE_H

#include <pthread.h>

#include <brigade/types.h>

#include "compile/fuse/disk.h"
#include "compile/fuse/kernels.h"

/* At the beginning of what is loaded. */
typedef struct brg__stored {
    brg__kernel_key key;
    brg_device device;
    int refs;
    struct brg__stored *next;
} brg__stored;

typedef struct brg__store {
    pthread_mutex_t lock;
    brg__stored *first;
    /* Hash of the compiler that failed last: no other text is tried. */
    uint64_t failed;
    bool has_failed;
    brg__kernels_stats stats;
} brg__store;

#define BRG__STORE_INIT                                                        \
    {                                                                          \
        .lock = PTHREAD_MUTEX_INITIALIZER                                      \
    }

/* One more reference, or NULL. */
brg__stored *brg__store_find(brg__store *store, brg_device device,
                             brg__kernel_key key);
/* With its one reference. */
void brg__store_add(brg__store *store, brg__stored *stored, bool is_compiled);
/* True: it was the last reference, and the store no longer knows it. */
bool brg__store_drop(brg__store *store, brg__stored *stored);

uint64_t brg__store_hash(const char *text);
bool brg__store_has_failed(brg__store *store, uint64_t what);
/* False: it had failed before. */
bool brg__store_note_failure(brg__store *store, uint64_t what);
void brg__store_forget_failure(brg__store *store);
void brg__store_get_stats(brg__store *store, brg__kernels_stats *filled);

#endif
