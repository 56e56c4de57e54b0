/* SPDX-License-Identifier: Apache-2.0
 * Loaded kernels: see store.h. */
#include "compile/fuse/store.h"

#include <string.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "core/tensor/device.h"

brg__stored *brg__store_find(brg__store *store, brg_device device,
                             brg__kernel_key key)
{
    pthread_mutex_lock(&store->lock);
    brg__stored *s = store->first;
    while (s && (!brg__device_equal(s->device, device) ||
                 memcmp(&s->key, &key, sizeof key) != 0))
        s = s->next;
    if (s) {
        s->refs++;
        store->stats.shared++;
    }
    pthread_mutex_unlock(&store->lock);
    return s;
}

void brg__store_add(brg__store *store, brg__stored *stored, bool is_compiled)
{
    pthread_mutex_lock(&store->lock);
    stored->refs = 1;
    stored->next = store->first;
    store->first = stored;
    store->stats.compiled += is_compiled;
    store->stats.from_disk += !is_compiled;
    pthread_mutex_unlock(&store->lock);
}

bool brg__store_drop(brg__store *store, brg__stored *stored)
{
    pthread_mutex_lock(&store->lock);
    bool is_last = --stored->refs == 0;
    for (brg__stored **at = &store->first; is_last && *at; at = &(*at)->next)
        if (*at == stored) {
            *at = stored->next;
            break;
        }
    pthread_mutex_unlock(&store->lock);
    return is_last;
}

uint64_t brg__store_hash(const char *text)
{
    return XXH3_64bits(text, strlen(text));
}

bool brg__store_has_failed(brg__store *store, uint64_t what)
{
    pthread_mutex_lock(&store->lock);
    bool found = store->has_failed && store->failed == what;
    pthread_mutex_unlock(&store->lock);
    return found;
}

bool brg__store_note_failure(brg__store *store, uint64_t what)
{
    pthread_mutex_lock(&store->lock);
    bool is_new = !store->has_failed || store->failed != what;
    store->failed = what;
    store->has_failed = true;
    store->stats.failed++;
    pthread_mutex_unlock(&store->lock);
    return is_new;
}

void brg__store_forget_failure(brg__store *store)
{
    pthread_mutex_lock(&store->lock);
    store->has_failed = false;
    pthread_mutex_unlock(&store->lock);
}

void brg__store_get_stats(brg__store *store, brg__kernels_stats *filled)
{
    pthread_mutex_lock(&store->lock);
    *filled = store->stats;
    pthread_mutex_unlock(&store->lock);
}
