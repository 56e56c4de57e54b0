/* SPDX-License-Identifier: Apache-2.0
 * A map from pointers to small numbers, emptied in constant time and reused:
 * the engine's index of visited nodes. Open addressing, linear probing; a
 * slot is live when its generation is the map's. */
#ifndef BRG_CORE_BASE_MAP_H
#define BRG_CORE_BASE_MAP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <brigade/status.h>

typedef struct brg__map_slot {
    const void *key;
    uint32_t value;
    uint32_t generation;
} brg__map_slot;

typedef struct brg__map {
    brg__map_slot *slots;
    size_t capacity; /* a power of two, or 0 */
    size_t n;
    uint32_t generation;
} brg__map;

void brg__map_clear(brg__map *map);
void brg__map_deinit(brg__map *map);

/* The value of `key`, inserting `fresh` if it is not there. */
brg_status brg__map_put(brg__map *map, const void *key, uint32_t fresh,
                        uint32_t *value, bool *is_new);

static inline size_t brg__map_home(const brg__map *map, const void *key)
{
    uint64_t h = (uint64_t)(uintptr_t)key >> 6; /* objects are line-aligned */
    h *= 0x9E3779B97F4A7C15u;                   /* Fibonacci hashing */
    return (size_t)(h >> 20) & (map->capacity - 1);
}

/* The slot of `key`, or the free one where it would go; there is room. */
static inline brg__map_slot *brg__map_find(const brg__map *map, const void *key)
{
    size_t i = brg__map_home(map, key);
    while (map->slots[i].generation == map->generation &&
           map->slots[i].key != key)
        i = (i + 1) & (map->capacity - 1);
    return &map->slots[i];
}

/* The same at once, where it is called very often. */
static inline brg_status brg__map_add(brg__map *map, const void *key,
                                      uint32_t fresh, uint32_t *value,
                                      bool *is_new)
{
    if (2 * (map->n + 1) > map->capacity)
        return brg__map_put(map, key, fresh, value, is_new);
    brg__map_slot *slot = brg__map_find(map, key);
    *is_new = slot->generation != map->generation;
    if (*is_new) {
        *slot = (brg__map_slot){key, fresh, map->generation};
        map->n++;
    }
    *value = slot->value;
    return BRG_OK;
}

/* False if `key` is not there. */
bool brg__map_get(const brg__map *map, const void *key, uint32_t *value);

/* The same at once, where it is called very often. */
static inline bool brg__map_look(const brg__map *map, const void *key,
                                 uint32_t *value)
{
    if (map->capacity == 0)
        return false;
    const brg__map_slot *slot = brg__map_find(map, key);
    if (slot->generation != map->generation)
        return false;
    *value = slot->value;
    return true;
}

#endif
