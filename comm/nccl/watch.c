/* SPDX-License-Identifier: Apache-2.0
 * The watch of a group: a thread that looks whether the other ranks of the
 * machine live and agree, and whether what was queued ends. See group.h. */
#include "comm/nccl/group.h"

#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#define LOOK_NS 50000000u         /* between two looks */
#define LEFT_GRACE_NS 1000000000u /* what a rank that left did may still come */
#define ENTERED_LOOKS 20          /* to get the lock from a call of NCCL's */

/* ---- Verdicts ------------------------------------------------------------------ */

static void describe_place(uint32_t place, char *text, size_t size)
{
    if (place == 0)
        snprintf(text, size, "not coalesced");
    else
        snprintf(text, size, "number %u of coalesced ones", (unsigned)place);
}

/* NCCL takes another way for calls that are launched together: all ranks must
 * begin and end at the same ones. */
static brg_status fail_pair(const brg__nccl_group *g,
                            const brg__nccl_said *mine,
                            const brg__nccl_said *theirs)
{
    char call[160], here[40], there[40];
    if (!g->host->signatures_match(&mine->call, &theirs->call))
        return g->host->fail_mismatch(&mine->call, &theirs->call);
    g->host->describe(&mine->call, call, sizeof call);
    describe_place(mine->place, here, sizeof here);
    describe_place(theirs->place, there, sizeof there);
    return g->host->fail(BRG_ERR_MISMATCH, __FILE__, __LINE__,
                         "rank %d: %s is %s, but %s on rank %d: expected "
                         "brg_coalesce_begin and brg_coalesce_end at the same "
                         "calls on all ranks",
                         (int)mine->call.rank, call, here, there,
                         (int)theirs->call.rank);
}

brg_status brg__nccl_heed(const brg__nccl_group *g)
{
    const brg__nccl_verdict *v = &g->verdict;
    const brg_status code =
        (brg_status)atomic_load_explicit(&v->code, memory_order_acquire);
    if (code == BRG_OK)
        return BRG_OK;
    if (v->has_pair)
        return fail_pair(g, &v->mine, &v->theirs);
    return g->host->fail(code, __FILE__, __LINE__, "%s", v->text);
}

static void BRG_PRINTF(3, 4)
    judge(brg__nccl_group *g, brg_status code, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    (void)vsnprintf(g->verdict.text, sizeof g->verdict.text, format, args);
    va_end(args);
    atomic_store_explicit(&g->verdict.code, code, memory_order_release);
}

static void wake(brg__nccl_watch *w, bool is_over)
{
    pthread_mutex_lock(&w->sleep_lock);
    w->is_woken = true;
    w->is_over |= is_over;
    pthread_cond_signal(&w->wake);
    pthread_mutex_unlock(&w->sleep_lock);
}

void brg__nccl_judge_pair(brg__nccl_group *g, const brg__nccl_said *mine,
                          const brg__nccl_said *theirs)
{
    pthread_mutex_lock(&g->lock);
    if (!brg__nccl_is_judged(g)) {
        g->verdict.mine = *mine;
        g->verdict.theirs = *theirs;
        g->verdict.has_pair = true;
        judge(g, BRG_ERR_MISMATCH, "ranks disagree");
    }
    pthread_mutex_unlock(&g->lock);
    wake(&g->watch, false);
}

/* ---- Beats: what was queued and may still run --------------------------------------- */

/* Under the lock, as all of beats. */
static void look_at_beat(brg__nccl_group *g, brg__nccl_beat *beat, uint64_t now)
{
    if (!beat->is_open || cudaEventQuery(beat->event) == cudaErrorNotReady) {
        (void)cudaGetLastError();
        return;
    }
    (void)cudaGetLastError();
    beat->is_open = false;
    g->watch.last_ns = now;
}

/* Where the place is still taken, an older one is watched and says as much. */
static brg__nccl_beat *take_beat(brg__nccl_group *g, uint64_t now)
{
    brg__nccl_watch *w = &g->watch;
    brg__nccl_beat *beat = &w->beats[w->next];
    look_at_beat(g, beat, now);
    if (beat->is_open)
        return NULL;
    w->next = (w->next + 1) % BRG__NCCL_BEATS;
    beat->start_ns = now;
    return beat;
}

void brg__nccl_watch_call(brg__nccl_group *g, const brg_call *call, int n_calls)
{
    brg__nccl_beat *beat = take_beat(g, g->host->clock_ns());
    if (!beat)
        return;
    beat->n_launched = 0;
    beat->n_calls = n_calls;
    g->host->sign(call, g->rank, &beat->signature);
    beat->is_open = cudaEventRecord(beat->event, g->own) == cudaSuccess;
}

void brg__nccl_launched(void *group)
{
    brg__nccl_group *g = group;
    brg__nccl_desk *desk = brg__nccl_desk_of_mine(&g->board);
    pthread_mutex_lock(&g->lock);
    g->watch.n_launched++;
    if (desk)
        atomic_store(&desk->launched, g->watch.n_launched);
    brg__nccl_beat *beat = g->comm ? take_beat(g, g->host->clock_ns()) : NULL;
    if (beat) {
        beat->n_launched = g->watch.n_launched;
        beat->is_open = cudaEventRecord(beat->event, g->compute) == cudaSuccess;
    }
    pthread_mutex_unlock(&g->lock);
}

/* The oldest that has not ended; NULL: there is none. */
static const brg__nccl_beat *oldest_beat(brg__nccl_group *g, uint64_t now)
{
    brg__nccl_watch *w = &g->watch;
    const brg__nccl_beat *oldest = NULL;
    for (int i = 0; i < BRG__NCCL_BEATS; i++) {
        brg__nccl_beat *beat = &w->beats[i];
        look_at_beat(g, beat, now);
        if (beat->is_open && (!oldest || beat->start_ns < oldest->start_ns))
            oldest = beat;
    }
    return oldest;
}

/* For how long nothing has ended. */
static uint64_t age(const brg__nccl_group *g, const brg__nccl_beat *beat,
                    uint64_t now)
{
    uint64_t since =
        beat->start_ns > g->watch.last_ns ? beat->start_ns : g->watch.last_ns;
    return now > since ? now - since : 0;
}

/* ---- Words ------------------------------------------------------------------------------ */

static void describe_beat(const brg__nccl_group *g, const brg__nccl_beat *beat,
                          char *text, size_t size)
{
    if (beat->n_launched)
        snprintf(text, size, "launch %llu of a recorded step",
                 (unsigned long long)beat->n_launched);
    else
        g->host->describe(&beat->signature, text, size);
    const size_t n = strlen(text);
    if (!beat->n_launched && beat->n_calls > 1)
        snprintf(text + n, size - n, ", the first of %d coalesced ones,",
                 beat->n_calls);
}

/* " waits for rank 2, which has died", or the latter alone. */
static void judge_rank(brg__nccl_group *g, const brg__nccl_beat *beat, int desk,
                       const char *what)
{
    const int who = g->board.ranks[desk];
    char text[160];
    if (!beat) {
        judge(g, BRG_ERR_PEER, "rank %d: nccl: rank %d %s", g->rank, who, what);
        return;
    }
    describe_beat(g, beat, text, sizeof text);
    judge(g, BRG_ERR_PEER, "rank %d: %s waits for rank %d, which %s", g->rank,
          text, who, what);
}

/* What the others have done of it, appended to the text. */
static void add_late(const brg__nccl_group *g, const brg__nccl_beat *beat,
                     char *text, size_t size)
{
    const brg__nccl_board *b = &g->board;
    size_t n = strlen(text);
    bool is_somebody = false;
    for (int i = 0; b->desks && i < b->n && n < size; i++) {
        const uint64_t launched = atomic_load(&b->desks[i].launched);
        const uint64_t started = atomic_load(&b->desks[i].started);
        brg__nccl_said last;
        char name[140] = "nothing";
        if (i == b->mine)
            continue;
        if (beat->n_launched ? launched >= beat->n_launched
                             : started > beat->signature.seq)
            continue;
        is_somebody = true;
        if (started > 0 && brg__nccl_board_read(b, i, started - 1, &last))
            g->host->describe(&last.call, name, sizeof name);
        if (beat->n_launched)
            n += (size_t)snprintf(text + n, size - n,
                                  "; rank %d has launched %llu (its last "
                                  "collective: %s)",
                                  b->ranks[i], (unsigned long long)launched,
                                  name);
        else
            n += (size_t)snprintf(text + n, size - n,
                                  "; rank %d has not started it (its last: %s)",
                                  b->ranks[i], name);
    }
    if (!is_somebody && n < size)
        snprintf(text + n, size - n, "; all ranks%s have started it",
                 b->desks && b->n == g->n_ranks ? "" : " that can be seen");
}

static bool is_p2p(const brg__nccl_beat *beat)
{
    return !beat->n_launched && (beat->signature.coll == BRG_COLL_SEND ||
                                 beat->signature.coll == BRG_COLL_RECV);
}

static void judge_late(brg__nccl_group *g, const brg__nccl_beat *beat)
{
    char call[160], who[240] = "";
    describe_beat(g, beat, call, sizeof call);
    if (is_p2p(beat))
        snprintf(who, sizeof who, "; rank %d has not come",
                 (int)beat->signature.peer);
    else
        add_late(g, beat, who, sizeof who);
    judge(g, BRG_ERR_TIMEOUT, "rank %d: %s timed out after %g s%s", g->rank,
          call, (double)g->timeout_ns * 1e-9, who);
}

/* ---- Looking ------------------------------------------------------------------------------ */

/* Calls that differ come first, then ranks that died, then those that failed:
 * what comes later may be for what came before. */
static bool find_dead(brg__nccl_group *g, const brg__nccl_beat *beat)
{
    const brg__nccl_board *b = &g->board;
    for (int i = 0; b->desks && i < b->n; i++) {
        if (i == b->mine || !brg__nccl_desk_died(&b->desks[i]))
            continue;
        judge_rank(g, beat, i, "has died");
        return true;
    }
    return false;
}

/* The desk of one that has failed, or -1. */
static int find_failed(const brg__nccl_group *g)
{
    const brg__nccl_board *b = &g->board;
    for (int i = 0; b->desks && i < b->n; i++)
        if (i != b->mine && atomic_load(&b->desks[i].gone) < 0)
            return i;
    return -1;
}

static bool judge_failed(brg__nccl_group *g, const brg__nccl_beat *beat,
                         int desk)
{
    char why[BRG__NCCL_WHY + 20];
    if (desk < 0)
        return false;
    snprintf(why, sizeof why, "has failed: %.*s", BRG__NCCL_WHY - 1,
             g->board.desks[desk].why);
    judge_rank(g, beat, desk, why);
    return true;
}

static bool find_left(brg__nccl_group *g, const brg__nccl_beat *beat,
                      uint64_t now)
{
    const brg__nccl_board *b = &g->board;
    if (!beat || age(g, beat, now) < LEFT_GRACE_NS)
        return false;
    for (int i = 0; b->desks && i < b->n; i++) {
        if (i == b->mine || atomic_load(&b->desks[i].gone) != BRG__NCCL_LEFT)
            continue;
        judge_rank(g, beat, i, "has left the group");
        return true;
    }
    return false;
}

static bool find_trouble_in_nccl(brg__nccl_group *g, const brg__nccl_beat *beat)
{
    ncclResult_t state = ncclSuccess;
    char text[160] = "the group";
    if (!g->comm || ncclCommGetAsyncError(g->comm, &state) != ncclSuccess ||
        state == ncclSuccess || state == ncclInProgress)
        return false;
    if (beat)
        describe_beat(g, beat, text, sizeof text);
    bool is_peer = state == ncclRemoteError || state == ncclSystemError;
    judge(g, is_peer ? BRG_ERR_PEER : BRG_ERR_COMM, "rank %d: nccl: %s: %s",
          g->rank, text, ncclGetErrorString(state));
    return true;
}

static bool find_given_up(brg__nccl_group *g, const brg__nccl_beat *beat)
{
    char text[160] = "a sum";
    if (!brg__nccl_direct_gave_up(g))
        return false;
    if (beat)
        describe_beat(g, beat, text, sizeof text);
    judge(g, BRG_ERR_TIMEOUT, "rank %d: nccl: %s: its kernel gave up waiting",
          g->rank, text);
    return true;
}

/* Under the lock: the verdict, if there is something. */
static void look(brg__nccl_group *g)
{
    const uint64_t now = g->host->clock_ns();
    const brg__nccl_beat *beat = oldest_beat(g, now);
    brg__nccl_said mine, theirs;
    if (brg__nccl_is_judged(g))
        return;
    /* Before the calls are compared: one that failed for them had made its own. */
    const int failed = find_failed(g);
    if (brg__nccl_board_find(g, &mine, &theirs)) {
        g->verdict.mine = mine;
        g->verdict.theirs = theirs;
        g->verdict.has_pair = true;
        judge(g, BRG_ERR_MISMATCH, "ranks disagree");
        return;
    }
    if (find_dead(g, beat) || judge_failed(g, beat, failed) ||
        find_trouble_in_nccl(g, beat) || find_left(g, beat, now) ||
        find_given_up(g, beat))
        return;
    if (beat && age(g, beat, now) > g->timeout_ns)
        judge_late(g, beat);
}

/* ---- Ending what runs ------------------------------------------------------- */

void brg__nccl_say_gone(brg__nccl_group *g, int32_t gone, const char *why)
{
    brg__nccl_desk *desk = brg__nccl_desk_of_mine(&g->board);
    if (!desk || atomic_load(&desk->gone) != 0)
        return;
    snprintf(desk->why, sizeof desk->why, "%s", why);
    atomic_store(&desk->gone, gone);
}

/* What is on the GPU ends at once; the rest of it waits until graphs that hold
 * calls of the communicator are gone, which is up to the group's thread. So no
 * other thread does this, and none is kept from the lock meanwhile. */
static void end_all(brg__nccl_group *g)
{
    brg__nccl_direct_stop(g);
    pthread_mutex_lock(&g->lock);
    brg__nccl_say_gone(g, atomic_load(&g->verdict.code), g->verdict.text);
    ncclComm_t comm = g->comm;
    g->comm = NULL;
    pthread_mutex_unlock(&g->lock);
    if (comm)
        (void)ncclCommAbort(comm);
}

/* The group's thread does not come out of a call of NCCL's. */
static void end_from_outside(brg__nccl_group *g)
{
    brg__nccl_direct_stop(g);
    brg__nccl_say_gone(g, atomic_load(&g->verdict.code), g->verdict.text);
#if NCCL_VERSION_CODE >= NCCL_VERSION(2, 28, 7)
    (void)ncclCommRevoke(g->comm, 0); /* its thread still uses it */
#else
    ncclComm_t comm = g->comm;
    (void)ncclCommAbort(comm);
    pthread_mutex_lock(&g->lock);
    g->comm = NULL;
    pthread_mutex_unlock(&g->lock);
#endif
}

void brg__nccl_fail(brg__nccl_group *g, brg_status code)
{
    pthread_mutex_lock(&g->lock);
    if (!brg__nccl_is_judged(g))
        judge(g, code, "rank %d: a call of its group failed", g->rank);
    brg__nccl_say_gone(g, atomic_load(&g->verdict.code), g->verdict.text);
    pthread_mutex_unlock(&g->lock);
    wake(&g->watch, false);
}

/* ---- The thread ------------------------------------------------------------------- */

/* While the group's thread is inside NCCL it has the lock: connecting to ranks
 * that do not come may take for ever. True: it did not come out. */
static bool look_from_outside(brg__nccl_group *g, int n_looks)
{
    if (n_looks < ENTERED_LOOKS)
        return false;
    if (!brg__nccl_is_judged(g))
        (void)find_dead(g, NULL);
    if (!brg__nccl_is_judged(g))
        (void)judge_failed(g, NULL, find_failed(g));
    if (!brg__nccl_is_judged(g) && (uint64_t)n_looks * LOOK_NS > g->timeout_ns)
        judge(g, BRG_ERR_TIMEOUT,
              "rank %d: nccl: a call of NCCL has not come back within %g s: "
              "some rank has not made it",
              g->rank, (double)g->timeout_ns * 1e-9);
    return brg__nccl_is_judged(g);
}

/* False: the group is being destroyed. */
static bool sleep_a_while(brg__nccl_watch *w)
{
    struct timespec until;
    (void)clock_gettime(CLOCK_REALTIME, &until);
    until.tv_nsec += LOOK_NS;
    until.tv_sec += until.tv_nsec / 1000000000;
    until.tv_nsec %= 1000000000;
    pthread_mutex_lock(&w->sleep_lock);
    if (!w->is_woken)
        (void)pthread_cond_timedwait(&w->wake, &w->sleep_lock, &until);
    w->is_woken = false;
    bool is_over = w->is_over;
    pthread_mutex_unlock(&w->sleep_lock);
    return !is_over;
}

/* A program that ends with groups of its own left takes CUDA and NCCL away from
 * under the thread. */
static _Atomic bool is_exiting;
static pthread_once_t exit_once = PTHREAD_ONCE_INIT;

static void note_exit(void)
{
    is_exiting = true;
}

static void await_exit(void)
{
    (void)atexit(note_exit);
}

static void *watch(void *group)
{
    brg__nccl_group *g = group;
    int n_looks = 0; /* in vain */
    (void)cudaSetDevice(g->device);
    while (!brg__nccl_is_judged(g) && sleep_a_while(&g->watch)) {
        if (is_exiting)
            return NULL;
        if (pthread_mutex_trylock(&g->lock) == 0) {
            n_looks = 0;
            look(g);
            pthread_mutex_unlock(&g->lock);
        } else if (look_from_outside(g, ++n_looks)) {
            end_from_outside(g);
        }
    }
    if (brg__nccl_is_judged(g))
        end_all(g);
    return NULL;
}

brg_status brg__nccl_watch_start(brg__nccl_group *g)
{
    brg__nccl_watch *w = &g->watch;
    for (int i = 0; i < BRG__NCCL_BEATS; i++)
        BRG__NCCL_TRY(brg__nccl_check_cuda(
            g,
            cudaEventCreateWithFlags(&w->beats[i].event,
                                     cudaEventDisableTiming),
            "an event"));
    (void)pthread_once(&exit_once, await_exit);
    sigset_t all, before; /* signals are the program's threads' */
    (void)sigfillset(&all);
    (void)pthread_sigmask(SIG_BLOCK, &all, &before);
    const int failed = pthread_create(&w->thread, NULL, watch, g);
    (void)pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (failed)
        return g->host->fail(BRG_ERR_NOMEM, __FILE__, __LINE__,
                             "rank %d: nccl: no thread for the watch", g->rank);
    w->is_running = true;
    return BRG_OK;
}

void brg__nccl_watch_stop(brg__nccl_group *g)
{
    brg__nccl_watch *w = &g->watch;
    if (w->is_running) {
        wake(w, true);
        (void)pthread_join(w->thread, NULL);
    }
    w->is_running = false;
    for (int i = 0; i < BRG__NCCL_BEATS; i++) {
        if (w->beats[i].event)
            (void)cudaEventDestroy(w->beats[i].event);
        w->beats[i].event = NULL;
    }
}
