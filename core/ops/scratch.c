/* SPDX-License-Identifier: Apache-2.0
 * The calling thread's scratch memory: a few pieces that grow to the largest
 * request and stay, so that a steady step does not allocate. They count as
 * cached memory; brg_memory_trim and the end of the thread give them back. */
#include <pthread.h>
#include <stdatomic.h>

#include "core/base/alloc.h"
#include "core/ops/op.h"

#define N_SLOTS 4
#define GRANULE ((size_t)4096)

typedef struct scratch_piece {
    void *ptr;
    size_t nbytes;
} scratch_piece;

static _Thread_local scratch_piece pieces[N_SLOTS];
static _Thread_local bool is_registered;
static pthread_key_t exit_key;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void drop(scratch_piece *piece)
{
    if (!piece->ptr)
        return;
    brg__alloc_count_idle(0, piece->nbytes);
    brg__block_free(piece->ptr, piece->nbytes, BRG_CACHE_LINE);
    *piece = (scratch_piece){0};
}

static void trim(void)
{
    for (int i = 0; i < N_SLOTS; i++)
        drop(&pieces[i]);
}

static void on_thread_exit(void *unused)
{
    (void)unused;
    trim();
    is_registered = false;
}

static void set_up(void)
{
    (void)pthread_key_create(&exit_key, on_thread_exit);
    brg__alloc_set_scratch(trim);
}

void *brg__scratch(int slot, size_t nbytes, const char *what)
{
    scratch_piece *piece = &pieces[slot];
    if (piece->ptr && nbytes <= piece->nbytes)
        return piece->ptr;
    if (!is_registered) {
        pthread_once(&once, set_up);
        (void)pthread_setspecific(exit_key, &is_registered);
        is_registered = true;
    }
    drop(piece);
    size_t rounded = brg__round_up(nbytes ? nbytes : 1, GRANULE);
    if (rounded < nbytes) {
        (void)BRG_FAIL_NOMEM(what, nbytes);
        return NULL;
    }
    void *ptr = brg__block_alloc(rounded, BRG_CACHE_LINE, what);
    if (!ptr)
        return NULL;
    brg__alloc_count_idle(rounded, 0);
    *piece = (scratch_piece){ptr, rounded};
    return ptr;
}
