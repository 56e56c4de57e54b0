/* SPDX-License-Identifier: Apache-2.0
 * The pointer map: see map.h. */
#include "core/base/map.h"

#include "core/base/alloc.h"
#include "core/base/error.h"

static brg_status grow(brg__map *map)
{
    brg__map old = *map;
    map->capacity = old.capacity ? 2 * old.capacity : 64;
    map->slots = brg__mem_alloc_array(map->capacity, sizeof *map->slots,
                                      "a pointer map");
    if (!map->slots) {
        *map = old;
        return BRG_ERR_NOMEM;
    }
    map->generation = 1;
    for (size_t i = 0; i < old.capacity; i++)
        if (old.slots[i].generation == old.generation) {
            brg__map_slot *slot = brg__map_find(map, old.slots[i].key);
            *slot = old.slots[i];
            slot->generation = 1;
        }
    brg__mem_free(old.slots);
    return BRG_OK;
}

void brg__map_clear(brg__map *map)
{
    map->n = 0;
    map->generation++;
    if (map->generation != 0 || !map->slots)
        return;
    for (size_t i = 0; i < map->capacity; i++)
        map->slots[i].generation = 0; /* the counter wrapped */
    map->generation = 1;
}

void brg__map_deinit(brg__map *map)
{
    brg__mem_free(map->slots);
    *map = (brg__map){0};
}

brg_status brg__map_put(brg__map *map, const void *key, uint32_t fresh,
                        uint32_t *value, bool *is_new)
{
    if (2 * (map->n + 1) > map->capacity)
        BRG_TRY(grow(map));
    return brg__map_add(map, key, fresh, value, is_new);
}

bool brg__map_get(const brg__map *map, const void *key, uint32_t *value)
{
    return brg__map_look(map, key, value);
}
