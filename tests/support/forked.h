/* SPDX-License-Identifier: Apache-2.0
 * Ranks of a group over NCCL as forked processes, without a launcher, so that
 * one may die. They return a status; the test asserts on what they came to.
 *
 * A test defines forked_prepare (before the ranks are forked) and forked_begin
 * (in each of them: sets `stream` and `device`, makes "nccl" known). */
#ifndef BRG_TESTS_SUPPORT_FORKED_H
#define BRG_TESTS_SUPPORT_FORKED_H

#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <brigade/nccl.h>

#include "core/base/clock.h"
#include "core/base/error.h"
#include "tests/support/brg_test.h"
#include "tests/support/ranks.h"

#define FORKED_MAX_RANKS 4
#define FORKED_LIMIT_S 60 /* a rank that takes longer hangs */
#define FORKED_NOTE 4096

typedef struct forked_result {
    bool is_killed; /* by a signal */
    brg_status status;
    char text[BRG_ERROR_TEXT_MAX];
} forked_result;

/* What the ranks share. */
typedef struct forked_world {
    _Atomic unsigned long noted[FORKED_MAX_RANKS];
    char notes[2][FORKED_MAX_RANKS][FORKED_NOTE];
    forked_result results[FORKED_MAX_RANKS];
} forked_world;

typedef struct forked_rank {
    int rank, n;
    const void *data; /* the test's */
    brg_device device;
    void *stream; /* cudaStream_t */
    forked_world *world;
    unsigned long n_gathers;
} forked_rank;

typedef brg_status (*forked_fn)(forked_rank *me);

static bool forked_prepare(void);
static brg_status forked_begin(forked_rank *me);

static inline void forked_sleep_ms(long ms)
{
    const struct timespec t = {ms / 1000, ms % 1000 * 1000000};
    (void)nanosleep(&t, NULL);
}

/* recv[r * nbytes ..] = rank r's send. */
static inline brg_status forked_gather(void *user, void *recv, const void *send,
                                       size_t nbytes)
{
    forked_rank *me = user;
    forked_world *w = me->world;
    const unsigned long k = ++me->n_gathers;
    const time_t start = time(NULL);
    RANK_CHECK(nbytes <= FORKED_NOTE, "%zu bytes", nbytes);
    memcpy(w->notes[k % 2][me->rank], send, nbytes);
    atomic_store(&w->noted[me->rank], k);
    for (int r = 0; r < me->n; r++) {
        while (atomic_load(&w->noted[r]) < k) {
            RANK_CHECK(time(NULL) - start < FORKED_LIMIT_S,
                       "rank %d did not come", r);
            sched_yield();
        }
        memcpy((char *)recv + (size_t)r * nbytes, w->notes[k % 2][r], nbytes);
    }
    return BRG_OK;
}

static inline brg_status forked_broadcast(void *user, void *data, size_t nbytes)
{
    char all[FORKED_MAX_RANKS * FORKED_NOTE];
    BRG_TRY(forked_gather(user, all, data, nbytes));
    memcpy(data, all, nbytes);
    return BRG_OK;
}

static inline brg_status forked_group(forked_rank *me, double timeout_s,
                                      brg_pg **out)
{
    brg_nccl_options nccl = {.struct_size = sizeof nccl,
                             .rank = me->rank,
                             .world_size = me->n,
                             .device = me->device,
                             .stream = me->stream,
                             .broadcast = forked_broadcast,
                             .all_gather = forked_gather,
                             .user = me};
    brg_pg_options options = BRG_PG_OPTIONS_INIT;
    options.timeout_s = timeout_s;
    options.backend_data = &nccl;
    return brg_pg_create(out, "nccl", &options);
}

static inline void forked_child(forked_fn fn, forked_rank *me)
{
    forked_result *result = &me->world->results[me->rank];
    for (int k = 1; k < NSIG; k++) /* cmocka's would go on as the parent */
        (void)signal(k, SIG_DFL);
    (void)alarm(FORKED_LIMIT_S);
    result->status = forked_begin(me);
    if (result->status == BRG_OK)
        result->status = fn(me);
    if (result->status != BRG_OK)
        snprintf(result->text, sizeof result->text, "%s", brg_error_message());
    _exit(0);
}

/* A rank that hangs may wait for one that has an error. */
static inline void forked_fail(const forked_world *world, int n, int rank,
                               int signal)
{
    for (int r = 0; r < n; r++)
        print_error("rank %d of %d: %s %s\n", r, n,
                    brg_status_name(world->results[r].status),
                    world->results[r].text);
    fail_msg("rank %d of %d: signal %d", rank, n, signal);
}

/* Every rank runs `fn`; results[r] is what it came to. */
static inline void forked_run(int n, forked_fn fn, const void *data,
                              forked_result *results)
{
    pid_t pids[FORKED_MAX_RANKS];
    forked_world *world = mmap(NULL, sizeof *world, PROT_READ | PROT_WRITE,
                               MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    assert_true(world != MAP_FAILED && forked_prepare());
    (void)fflush(NULL);
    for (int r = 0; r < n; r++) {
        forked_rank me = {.rank = r, .n = n, .data = data, .world = world};
        world->results[r].status = BRG_ERR_INTERNAL;
        pids[r] = fork();
        assert_true(pids[r] >= 0);
        if (pids[r] == 0)
            forked_child(fn, &me);
    }
    int bad = -1, signal = 0;
    for (int r = 0; r < n; r++) {
        int how = 0;
        assert_int_equal(waitpid(pids[r], &how, 0), pids[r]);
        world->results[r].is_killed = WIFSIGNALED(how);
        if (WIFSIGNALED(how) && WTERMSIG(how) != SIGKILL) {
            bad = r;
            signal = WTERMSIG(how);
        }
    }
    if (bad >= 0)
        forked_fail(world, n, bad, signal);
    memcpy(results, world->results, (size_t)n * sizeof *results);
    (void)munmap(world, sizeof *world);
}

/* All ranks succeed. */
static inline void forked_check(int n, forked_fn fn, const void *data)
{
    forked_result results[FORKED_MAX_RANKS];
    forked_run(n, fn, data, results);
    for (int r = 0; r < n; r++)
        if (results[r].status != BRG_OK)
            print_error("%d ranks, rank %d: %s\n", n, r, results[r].text);
    for (int r = 0; r < n; r++)
        assert_int_equal(results[r].status, BRG_OK);
}

static inline void forked_expect(const forked_result *result, brg_status code,
                                 const char *text)
{
    if (result->status != code || !strstr(result->text, text))
        print_error("expected %s with \"%s\", found %s: %s\n",
                    brg_status_name(code), text,
                    brg_status_name(result->status), result->text);
    assert_int_equal(result->status, code);
    assert_non_null(strstr(result->text, text));
}

#endif
