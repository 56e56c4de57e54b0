/* SPDX-License-Identifier: Apache-2.0
 * Gradients marked by threads that do not own the reducer.
 *
 *     claim(i)    any thread: true once a step and gradient, so that marking
 *                 twice is found without a lock
 *     put(i)      the thread that claimed i, after it has filled the slot, or
 *                 failed to
 *     take        the owner: the next one that was put
 *
 * A gradient is put at most once a step, so a row of n places is enough: a
 * writer draws a place by counting up, the owner reads places in order. */
#ifndef BRG_REDUCER_INBOX_H
#define BRG_REDUCER_INBOX_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <brigade/status.h>

/* With a gradient: its slot could not be filled. */
#define BRG__INBOX_FAILED ((uint64_t)1 << 32)

/* What was put. */
typedef struct brg__inbox_mark {
    size_t i;
    bool is_good;
} brg__inbox_mark;

typedef struct brg__inbox {
    size_t n;
    _Atomic(uint8_t) *claims;  /* by gradient: it was marked in this step */
    _Atomic(uint64_t) *places; /* gradient + 1, BRG__INBOX_FAILED; 0: nothing
                                  yet */
    _Atomic(size_t) n_put;
    size_t n_taken; /* the owner's */
} brg__inbox;

brg_status brg__inbox_init(brg__inbox *inbox, size_t n);
void brg__inbox_deinit(brg__inbox *inbox);

static inline bool brg__inbox_claim(brg__inbox *inbox, size_t i)
{
    return !atomic_exchange_explicit(&inbox->claims[i], 1,
                                     memory_order_acq_rel);
}

static inline bool brg__inbox_is_claimed(const brg__inbox *inbox, size_t i)
{
    return atomic_load_explicit(&inbox->claims[i], memory_order_acquire) != 0;
}

void brg__inbox_put(brg__inbox *inbox, size_t i, bool is_good);

/* False if there is none. */
bool brg__inbox_take_next(brg__inbox *inbox, brg__inbox_mark *mark);

static inline bool brg__inbox_take(brg__inbox *inbox, brg__inbox_mark *mark)
{
    return atomic_load_explicit(&inbox->n_put, memory_order_relaxed) !=
               inbox->n_taken &&
           brg__inbox_take_next(inbox, mark);
}

/* For the next step. */
void brg__inbox_clear(brg__inbox *inbox);

#endif
