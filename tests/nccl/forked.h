/* SPDX-License-Identifier: Apache-2.0
 * Ranks of a group over NCCL as forked processes, on the GPUs of fake_gpu.h.
 * They return a status; the test asserts on what they came to. */
#ifndef BRG_TESTS_NCCL_FORKED_H
#define BRG_TESTS_NCCL_FORKED_H

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cuda_runtime_api.h>

#include <brigade/nccl.h>

#include "core/base/clock.h"
#include "core/base/error.h"
#include "tests/nccl/fake_gpu.h"
#include "tests/support/brg_test.h"
#include "tests/support/ranks.h"

#define FORKED_LIMIT_S 60 /* a rank that takes longer hangs */

typedef struct forked_rank {
    int rank, n;
    const void *data; /* the test's */
    cudaStream_t compute;
} forked_rank;

typedef brg_status (*forked_fn)(forked_rank *me);

typedef struct forked_result {
    bool is_killed; /* by a signal */
    brg_status status;
    char text[BRG_ERROR_TEXT_MAX];
} forked_result;

static inline brg_status forked_broadcast(void *user, void *data, size_t nbytes)
{
    const forked_rank *me = user;
    char all[FAKE_MAX_RANKS * 4096];
    RANK_CHECK(nbytes <= 4096 &&
                   fake_gather(me->rank, me->n, all, data, nbytes),
               "a broadcast failed");
    memcpy(data, all, nbytes);
    return BRG_OK;
}

static inline brg_status forked_gather(void *user, void *recv, const void *send,
                                       size_t nbytes)
{
    const forked_rank *me = user;
    RANK_CHECK(fake_gather(me->rank, me->n, recv, send, nbytes),
               "a gather failed");
    return BRG_OK;
}

static inline brg_status forked_group(forked_rank *me, double timeout_s,
                                      brg_pg **out)
{
    brg_nccl_options nccl = {.struct_size = sizeof nccl,
                             .rank = me->rank,
                             .world_size = me->n,
                             .device = {BRG_DEVICE_CUDA, (int16_t)me->rank},
                             .stream = (void *)me->compute,
                             .broadcast = forked_broadcast,
                             .all_gather = forked_gather,
                             .user = me};
    brg_pg_options options = BRG_PG_OPTIONS_INIT;
    options.timeout_s = timeout_s;
    options.backend_data = &nccl;
    return brg_pg_create(out, "nccl", &options);
}

static inline void forked_child(forked_fn fn, forked_rank *me,
                                forked_result *result)
{
    for (int k = 1; k < NSIG;
         k++) /* cmocka's would go on in the parent's name */
        (void)signal(k, SIG_DFL);
    (void)alarm(FORKED_LIMIT_S);
    (void)cudaStreamCreateWithFlags(&me->compute, 0);
    result->status = brg_backend_register(brg_comm_nccl());
    if (result->status == BRG_OK)
        result->status = fn(me);
    if (result->status != BRG_OK)
        snprintf(result->text, sizeof result->text, "%s", brg_error_message());
    _exit(0);
}

/* Every rank runs `fn`; results[r] is what it came to. */
static inline void forked_run(int n, forked_fn fn, const void *data,
                              forked_result *results)
{
    pid_t pids[FAKE_MAX_RANKS];
    forked_result *shared =
        mmap(NULL, (size_t)n * sizeof *shared, PROT_READ | PROT_WRITE,
             MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    assert_true(shared != MAP_FAILED && fake_gpu_init());
    (void)fflush(NULL);
    for (int r = 0; r < n; r++) {
        forked_rank me = {.rank = r, .n = n, .data = data};
        shared[r].status = BRG_ERR_INTERNAL;
        pids[r] = fork();
        assert_true(pids[r] >= 0);
        if (pids[r] == 0)
            forked_child(fn, &me, &shared[r]);
    }
    for (int r = 0; r < n; r++) {
        int how = 0;
        assert_int_equal(waitpid(pids[r], &how, 0), pids[r]);
        shared[r].is_killed = WIFSIGNALED(how);
        assert_true(!WIFSIGNALED(how) || WTERMSIG(how) == SIGKILL);
    }
    memcpy(results, shared, (size_t)n * sizeof *shared);
    (void)munmap(shared, (size_t)n * sizeof *shared);
}

/* All ranks succeed. */
static inline void forked_check(int n, forked_fn fn, const void *data)
{
    forked_result results[FAKE_MAX_RANKS];
    forked_run(n, fn, data, results);
    for (int r = 0; r < n; r++) {
        if (results[r].status != BRG_OK)
            print_error("%d ranks, rank %d: %s\n", n, r, results[r].text);
        assert_int_equal(results[r].status, BRG_OK);
    }
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
