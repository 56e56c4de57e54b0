/* SPDX-License-Identifier: Apache-2.0
 * The thread's progress functions and their rate limit. */
#include "core/base/progress.h"

#include "core/base/clock.h"
#include "core/base/env.h"
#include "core/base/error.h"

#define MAX_FUNCTIONS 16
#define SHARE 50 /* a poll may cost 1/SHARE of the time */
/* Longest pause: a poll that took longer was interrupted, or did work. */
#define MAX_PAUSE_NS 10000000u

typedef struct progress_entry {
    brg__progress_fn fn;
    void *user;
} progress_entry;

_Thread_local int brg__progress_n;

static _Thread_local struct {
    progress_entry entries[MAX_FUNCTIONS];
    uint64_t next_ns;
    uint64_t least_ns;
    uint64_t n_polls;
    uint64_t spent_ns;
    bool is_polling; /* a progress function must not poll again */
} mine;

brg_status brg__progress_register(brg__progress_fn fn, void *user)
{
    if (brg__progress_n == MAX_FUNCTIONS)
        return BRG_FAIL(BRG_ERR_STATE,
                        "a thread can drive at most %d process groups",
                        MAX_FUNCTIONS);
    int64_t least_us = brg__env_int(BRG__ENV_POLL_US);
    mine.least_ns = least_us > 0 ? (uint64_t)least_us * 1000 : 0;
    mine.entries[brg__progress_n++] = (progress_entry){fn, user};
    return BRG_OK;
}

void brg__progress_unregister(brg__progress_fn fn, void *user)
{
    for (int i = 0; i < brg__progress_n; i++)
        if (mine.entries[i].fn == fn && mine.entries[i].user == user) {
            mine.entries[i] = mine.entries[--brg__progress_n];
            return;
        }
}

void brg__progress_poll_now(void)
{
    if (mine.is_polling)
        return;
    uint64_t start = brg__clock_ns();
    if (start < mine.next_ns)
        return;
    mine.is_polling = true;
    for (int i = 0; i < brg__progress_n; i++)
        mine.entries[i].fn(mine.entries[i].user);
    mine.is_polling = false;
    uint64_t end = brg__clock_ns();
    uint64_t pause = SHARE * (end - start);
    if (pause > MAX_PAUSE_NS)
        pause = MAX_PAUSE_NS;
    mine.next_ns = end + (pause > mine.least_ns ? pause : mine.least_ns);
    mine.n_polls++;
    mine.spent_ns += end - start;
}

void brg__progress_stats(uint64_t *n_polls, uint64_t *spent_ns)
{
    *n_polls = mine.n_polls;
    *spent_ns = mine.spent_ns;
}
