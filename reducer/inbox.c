/* SPDX-License-Identifier: Apache-2.0
 * Marks of other threads. See inbox.h. */
#include "reducer/inbox.h"

#include "core/base/alloc.h"

brg_status brg__inbox_init(brg__inbox *inbox, size_t n)
{
    inbox->n = n;
    inbox->claims =
        brg__mem_alloc_array(n, sizeof *inbox->claims, "marks of gradients");
    inbox->places =
        brg__mem_alloc_array(n, sizeof *inbox->places, "marks of gradients");
    return inbox->claims && inbox->places ? BRG_OK : BRG_ERR_NOMEM;
}

void brg__inbox_deinit(brg__inbox *inbox)
{
    brg__mem_free(inbox->claims);
    brg__mem_free(inbox->places);
    *inbox = (brg__inbox){0};
}

void brg__inbox_put(brg__inbox *inbox, size_t i, bool is_good)
{
    size_t place =
        atomic_fetch_add_explicit(&inbox->n_put, 1, memory_order_relaxed);
    /* Releases what this thread wrote into the slot. */
    atomic_store_explicit(&inbox->places[place],
                          (uint64_t)i + 1 + (is_good ? 0 : BRG__INBOX_FAILED),
                          memory_order_release);
}

bool brg__inbox_take_next(brg__inbox *inbox, brg__inbox_mark *mark)
{
    if (inbox->n_taken == inbox->n)
        return false;
    uint64_t found = atomic_load_explicit(&inbox->places[inbox->n_taken],
                                          memory_order_acquire);
    if (found == 0)
        return false;
    inbox->n_taken++;
    mark->is_good = (found & BRG__INBOX_FAILED) == 0;
    mark->i = (size_t)(found & ~BRG__INBOX_FAILED) - 1;
    return true;
}

void brg__inbox_clear(brg__inbox *inbox)
{
    for (size_t i = 0; i < inbox->n; i++)
        atomic_store_explicit(&inbox->claims[i], 0, memory_order_relaxed);
    for (size_t i = 0; i < inbox->n_taken; i++)
        atomic_store_explicit(&inbox->places[i], 0, memory_order_relaxed);
    atomic_store_explicit(&inbox->n_put, 0, memory_order_relaxed);
    inbox->n_taken = 0;
}
