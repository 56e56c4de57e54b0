/* SPDX-License-Identifier: Apache-2.0
 * The thread's progress functions and their rate limit. */
#include "core/base/progress.h"

#include "core/base/clock.h"
#include "core/base/env.h"
#include "core/base/error.h"

#define MAX_FUNCTIONS 16
#define SHARE 50 /* a poll may cost 1/SHARE of the time */
/* Longest pause, whatever a poll costs. */
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
    uint64_t idle_ns; /* a poll in vain; 0: not known */
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
    mine.idle_ns = 0;
    return BRG_OK;
}

void brg__progress_unregister(brg__progress_fn fn, void *user)
{
    for (int i = 0; i < brg__progress_n; i++)
        if (mine.entries[i].fn == fn && mine.entries[i].user == user) {
            mine.entries[i] = mine.entries[--brg__progress_n];
            mine.idle_ns = 0;
            return;
        }
}

/* The cheapest poll of late: one that costs more has worked, or was
 * interrupted, unless all do. */
static void learn_cost(uint64_t ns)
{
    uint64_t more = mine.idle_ns + mine.idle_ns / 256 + 1;
    mine.idle_ns = mine.idle_ns == 0 || ns < more ? ns + 1 : more;
}

void brg__progress_poll_now(void)
{
    if (mine.is_polling)
        return;
    uint64_t start = brg__clock_quick_ns();
    if (start < mine.next_ns)
        return;
    mine.is_polling = true;
    for (int i = 0; i < brg__progress_n; i++)
        mine.entries[i].fn(mine.entries[i].user);
    mine.is_polling = false;
    uint64_t end = brg__clock_quick_ns();
    learn_cost(end - start);
    uint64_t pause = SHARE * mine.idle_ns;
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
