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

/* False if `key` is not there. */
bool brg__map_get(const brg__map *map, const void *key, uint32_t *value);

#endif
