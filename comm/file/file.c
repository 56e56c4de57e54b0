/* SPDX-License-Identifier: Apache-2.0
 * The file backend: exchanges of all ranks, one at a time, and messages. */
#include "comm/file/group.h"

#include <dirent.h>
#include <string.h>
#include <unistd.h>

#include "comm/call.h"
#include "comm/local.h"
#include "comm/patterns/tree.h"
#include "comm/pg.h"
#include "comm/reduce_kernels.h"
#include "comm/registry.h"
#include "core/base/alloc.h"
#include "core/base/clock.h"

#define LOOK_NS 50000000u /* between two looks for ranks that are gone */
#define LEFT 1            /* in gone-<r>; else a brg_status */
#define CARDS_EVERY 16    /* polls in vain, between two looks at cards */
#define PAUSE_US 50
#define LONG_PAUSE_US 2000

static void part_path(const brg__file_group *g, uint64_t k, int rank,
                      char *path)
{
    snprintf(path, BRG__FILE_PATH + 64, "%s/c%llu-%d", g->run,
             (unsigned long long)k, rank);
}

static void message_path(const brg__file_group *g, uint64_t k, int from, int to,
                         char *path)
{
    snprintf(path, BRG__FILE_PATH + 64, "%s/m%llu-%d-%d", g->run,
             (unsigned long long)k, from, to);
}

static void gone_path(const brg__file_group *g, int rank, char *path)
{
    snprintf(path, BRG__FILE_PATH + 64, "%s/gone-%d", g->run, rank);
}

/* ---- Exchanges -------------------------------------------------------------------- */

/* Bytes that rank r gives. */
static size_t given_by(const brg__file_group *g, const brg_call *call, int r)
{
    switch (call->coll) {
    case BRG_COLL_REDUCE_SCATTER:
        return (size_t)g->n * call->nbytes;
    case BRG_COLL_BROADCAST:
        return r == call->peer ? call->nbytes : 0;
    case BRG_COLL_SUM_LEAVES:
        return call->count == 0
                   ? 0
                   : (brg__tree_n_parts(call->n_leaves, g->n, r) - 1) *
                             call->part_stride +
                         call->count * brg__partial_size(call->dtype);
    case BRG_COLL_BARRIER:
        return 0;
    default:
        return call->nbytes;
    }
}

static brg_status give(brg__file_group *g, const brg_call *call)
{
    char path[BRG__FILE_PATH + 64];
    brg_signature mine;
    brg__call_sign(call, g->rank, &mine);
    part_path(g, g->n_exchanged, g->rank, path);
    BRG_TRY(brg__file_write(g, path, &mine, sizeof mine, call->send,
                            given_by(g, call, g->rank)));
    g->has_given = true;
    return BRG_OK;
}

static brg_status take_from(brg__file_group *g, const brg_call *call, int r)
{
    char path[BRG__FILE_PATH + 64];
    brg__file_part *p = &g->parts[r];
    brg_signature mine;
    if (p->has_come)
        return BRG_OK;
    part_path(g, g->n_exchanged, r, path);
    BRG_TRY(brg__file_read(g, path, &p->signature, sizeof p->signature,
                           &p->data, &p->room, &p->has_come));
    if (!p->has_come)
        return BRG_OK;
    brg__call_sign(call, g->rank, &mine);
    return brg__signatures_match(&mine, &p->signature)
               ? BRG_OK
               : brg__fail_mismatch(&mine, &p->signature);
}

static bool have_all_come(const brg__file_group *g)
{
    for (int r = 0; r < g->n; r++)
        if (r != g->rank && !g->parts[r].has_come)
            return false;
    return true;
}

/* Results of the others, which nobody needs, go to one place. */
static brg_status carry_out(brg__file_group *g, brg_call *call)
{
    brg_call calls[BRG__LOCAL_MAX_RANKS];
    brg_call *each[BRG__LOCAL_MAX_RANKS];
    const size_t times = call->coll == BRG_COLL_ALL_GATHER ? (size_t)g->n : 1;
    BRG_TRY(brg__file_make_room(&g->scratch, &g->scratch_room,
                                times * call->nbytes + 1));
    for (int r = 0; r < g->n; r++) {
        calls[r] = *call;
        each[r] = r == g->rank ? call : &calls[r];
        calls[r].send = g->parts[r].data;
        calls[r].recv = g->scratch;
    }
    brg__local_run(each, g->n, 0);
    return BRG_OK;
}

static brg_status finish(brg__file_group *g, brg_call *call)
{
    char path[BRG__FILE_PATH + 64];
    BRG_TRY(carry_out(g, call));
    if (g->n_exchanged > 0) {
        part_path(g, g->n_exchanged - 1, g->rank, path);
        (void)unlink(path);
    }
    g->n_exchanged++;
    g->has_given = false;
    for (int r = 0; r < g->n; r++)
        g->parts[r].has_come = false;
    g->queue = call->next;
    call->is_done = true;
    return BRG_OK;
}

static brg_status progress_exchanges(brg__file_group *g)
{
    while (g->queue) {
        brg_call *call = g->queue;
        if (!g->has_given)
            BRG_TRY(give(g, call));
        for (int r = 0; r < g->n; r++)
            if (r != g->rank)
                BRG_TRY(take_from(g, call, r));
        if (!have_all_come(g))
            return BRG_OK;
        BRG_TRY(finish(g, call));
    }
    return BRG_OK;
}

/* ---- Messages ------------------------------------------------------------------------ */

static brg_status send_message(brg__file_group *g, brg_call *call)
{
    char path[BRG__FILE_PATH + 64];
    brg_signature mine;
    brg__call_sign(call, g->rank, &mine);
    message_path(g, g->n_sent[call->peer], g->rank, call->peer, path);
    BRG_TRY(
        brg__file_write(g, path, &mine, sizeof mine, call->send, call->nbytes));
    g->n_sent[call->peer]++;
    call->is_done = true;
    return BRG_OK;
}

/* Straight into the caller's buffer once its size is known to fit. */
static brg_status try_recv(brg__file_group *g, brg_call *call)
{
    char path[BRG__FILE_PATH + 64];
    brg_signature mine, theirs;
    bool is_there;
    message_path(g, g->n_received[call->peer], call->peer, g->rank, path);
    BRG_TRY(brg__file_read(g, path, &theirs, sizeof theirs, &g->scratch,
                           &g->scratch_room, &is_there));
    if (!is_there)
        return BRG_OK;
    brg__call_sign(call, g->rank, &mine);
    if (mine.count != theirs.count || mine.dtype != theirs.dtype)
        return brg__fail_mismatch(&mine, &theirs);
    if (call->nbytes)
        memcpy(call->recv, g->scratch, call->nbytes);
    (void)unlink(path);
    g->n_received[call->peer]++;
    call->is_done = true;
    return BRG_OK;
}

/* Of those from one rank only the first may come. */
static bool is_first_of_peer(const brg__file_group *g, const brg_call *call)
{
    const brg_call *at = g->recvs;
    while (at != call && at->peer != call->peer)
        at = at->next;
    return at == call;
}

static brg_status progress_recvs(brg__file_group *g)
{
    for (brg_call **at = &g->recvs; *at;) {
        brg_call *call = *at;
        if (is_first_of_peer(g, call))
            BRG_TRY(try_recv(g, call));
        if (call->is_done)
            *at = call->next;
        else
            at = &call->next;
    }
    return BRG_OK;
}

/* ---- Ranks that are gone ---------------------------------------------------------------- */

static brg_status fail_gone(const brg__file_group *g, const brg_call *call,
                            int rank, const char *what)
{
    char text[120];
    brg__call_describe(call, text, sizeof text);
    return BRG_FAIL(BRG_ERR_PEER, "rank %d: %s waits for rank %d, which %s",
                    g->rank, text, rank, what);
}

/* What it gave before it went counts. */
static brg_status look_for(brg__file_group *g, brg_call *call, int rank)
{
    char path[BRG__FILE_PATH + 64];
    int32_t how = 0;
    bool is_gone;
    const bool is_recv = call->coll == BRG_COLL_RECV;
    gone_path(g, rank, path);
    /* What it says, it says before it ends: so first whether it lives. */
    const bool has_died = brg__file_has_died(g, &g->processes[rank]);
    BRG_TRY(brg__file_read(g, path, &how, sizeof how, NULL, NULL, &is_gone));
    if (!is_gone && !has_died)
        return BRG_OK;
    BRG_TRY(is_recv ? try_recv(g, call) : take_from(g, call, rank));
    if (is_recv ? call->is_done : g->parts[rank].has_come)
        return BRG_OK;
    return fail_gone(g, call, rank,
                     !is_gone      ? "has died"
                     : how == LEFT ? "has left the group"
                                   : "has failed");
}

static void drop_done(brg__file_group *g)
{
    for (brg_call **at = &g->recvs; *at;)
        if ((*at)->is_done)
            *at = (*at)->next;
        else
            at = &(*at)->next;
}

/* Whichever is waited for: one of a rank that is gone ends the group. */
static brg_status look_for_senders(brg__file_group *g)
{
    for (brg_call *call = g->recvs; call; call = call->next)
        if (is_first_of_peer(g, call))
            BRG_TRY(look_for(g, call, call->peer));
    drop_done(g);
    return BRG_OK;
}

static brg_status file_idle(void *group, brg_call *call, uint64_t n)
{
    brg__file_group *g = group;
    const uint64_t now = brg__clock_ns();
    (void)call;
    brg__file_sleep_us(n < 100 ? PAUSE_US : LONG_PAUSE_US);
    if (now - g->looked_ns < LOOK_NS)
        return BRG_OK;
    g->looked_ns = now;
    for (int r = 0; r < g->n && g->queue; r++)
        if (r != g->rank && !g->parts[r].has_come)
            BRG_TRY(look_for(g, g->queue, r));
    return look_for_senders(g);
}

static void file_look(void *group, const brg_call *call, int rank,
                      brg_peer *filled)
{
    const brg__file_group *g = group;
    filled->is_visible = call->coll != BRG_COLL_SEND;
    filled->has_come = call->coll == BRG_COLL_RECV
                           ? rank != call->peer
                           : g->queue == call && g->parts[rank].has_come;
    filled->owes = filled->has_come ? NULL : "has not started it";
}

/* ---- Slots -------------------------------------------------------------------------------- */

static void append(brg_call **at, brg_call *call)
{
    while (*at)
        at = &(*at)->next;
    call->next = NULL;
    *at = call;
}

static brg_status file_progress(void *group)
{
    brg__file_group *g = group;
    BRG_TRY(progress_recvs(g));
    return progress_exchanges(g);
}

static brg_status file_start(void *group, brg_call *call)
{
    brg__file_group *g = group;
    if (call->coll == BRG_COLL_SEND)
        return send_message(g, call);
    if (call->coll != BRG_COLL_RECV && !g->queue)
        BRG_TRY(give(g, call));
    append(call->coll == BRG_COLL_RECV ? &g->recvs : &g->queue, call);
    return BRG_OK;
}

static void say_gone(const brg__file_group *g, int32_t how)
{
    char path[BRG__FILE_PATH + 64];
    brg__error_record kept;
    brg__error_save(&kept);
    gone_path(g, g->rank, path);
    (void)brg__file_write(g, path, &how, sizeof how, NULL, 0);
    brg__error_restore(&kept);
}

static void file_abort(void *group, brg_status why)
{
    brg__file_group *g = group;
    g->queue = g->recvs = NULL;
    g->failed = why;
    say_gone(g, why);
}

/* One that failed while all met says so on its card. */
static bool is_over(const brg__file_group *g, int rank)
{
    char path[BRG__FILE_PATH + 64];
    brg__error_record kept;
    gone_path(g, rank, path);
    if (access(path, F_OK) == 0)
        return true;
    brg__error_save(&kept);
    const brg_status status = brg__file_check_card(g, rank);
    brg__error_restore(&kept);
    return (status != BRG_OK && status != BRG_ERR_IO) ||
           brg__file_has_died(g, &g->processes[rank]);
}

/* The last one takes away what is left. */
static void clean_up(const brg__file_group *g)
{
    char path[BRG__FILE_PATH + NAME_MAX + 64];
    for (int r = 0; r < g->n; r++)
        if (!is_over(g, r))
            return;
    DIR *folder = opendir(g->run);
    for (struct dirent *e; folder && (e = readdir(folder));) {
        snprintf(path, sizeof path, "%s/%s", g->run, e->d_name);
        (void)unlink(path); /* of . and .. it is refused */
    }
    if (folder)
        (void)closedir(folder);
    (void)rmdir(g->run);
}

static void free_group(brg__file_group *g)
{
    for (int r = 0; r < g->n && g->parts; r++)
        brg__mem_free(g->parts[r].data);
    brg__mem_free(g->parts);
    brg__mem_free(g->nonces);
    brg__mem_free(g->processes);
    brg__mem_free(g->n_sent);
    brg__mem_free(g->n_received);
    brg__mem_free(g->scratch);
    brg__mem_free(g);
}

static void file_destroy(void *group)
{
    brg__file_group *g = group;
    if (g->failed == BRG_OK)
        say_gone(g, LEFT);
    clean_up(g);
    free_group(g);
}

static const brg_group_ops file_ops = {
    .abi = BRG_BACKEND_ABI,
    .struct_size = sizeof(brg_group_ops),
    .start = file_start,
    .progress = file_progress,
    .idle = file_idle,
    .look = file_look,
    .abort = file_abort,
    .destroy = file_destroy,
};

/* ---- Making ------------------------------------------------------------------------------- */

static brg_status check_options(const brg_file_options *o)
{
    BRG_CHECK_ARG(
        o && o->struct_size >= sizeof *o && o->folder && *o->folder,
        "file: backend_data must be a brg_file_options with a folder");
    BRG_CHECK_ARG(
        o->world_size >= 1 && o->world_size <= BRG__LOCAL_MAX_RANKS &&
            o->rank >= 0 && o->rank < o->world_size,
        "file: rank %d of %d, expected 0 to world_size - 1 of 1 to %d", o->rank,
        o->world_size, BRG__LOCAL_MAX_RANKS);
    BRG_CHECK_ARG(strlen(o->folder) < PATH_MAX,
                  "rank %d: file: the folder's name is too long", o->rank);
    return BRG_OK;
}

static brg_status fill_group(brg__file_group *g, const brg_pg_options *options)
{
    const brg_file_options *o = options->backend_data;
    const size_t n = (size_t)o->world_size;
    g->rank = o->rank;
    g->n = o->world_size;
    g->timeout_ns = (uint64_t)(options->timeout_s * 1e9);
    snprintf(g->folder, sizeof g->folder, "%s", o->folder);
    g->parts = brg__mem_alloc_array(n, sizeof *g->parts, "a group");
    g->nonces = brg__mem_alloc_array(n, sizeof *g->nonces, "a group");
    g->processes = brg__mem_alloc_array(n, sizeof *g->processes, "a group");
    g->n_sent = brg__mem_alloc_array(n, sizeof *g->n_sent, "a group");
    g->n_received = brg__mem_alloc_array(n, sizeof *g->n_received, "a group");
    return g->parts && g->nonces && g->processes && g->n_sent && g->n_received
               ? BRG_OK
               : BRG_ERR_NOMEM;
}

/* A rank that fails when this one has met it has only its card to say so. */
static brg_status check_cards(const brg__file_group *g)
{
    for (int r = 0; r < g->n; r++)
        if (r != g->rank)
            BRG_TRY(brg__file_check_card(g, r));
    return BRG_OK;
}

/* So that none takes its card away, or the whole run, before all have read
 * it. */
static brg_status await_all(brg__file_group *g)
{
    brg_call call = {.coll = BRG_COLL_BARRIER,
                     .dtype = BRG_DTYPE_U8,
                     .peer = -1,
                     .bucket = -1};
    const uint64_t start = brg__clock_ns();
    BRG_TRY(file_start(g, &call));
    for (uint64_t n = 1; !call.is_done; n++) {
        BRG_TRY(file_progress(g));
        if (call.is_done)
            break;
        if (n % CARDS_EVERY == 0)
            BRG_TRY(check_cards(g));
        BRG_TRY(file_idle(g, &call, n));
        if (brg__clock_ns() - start > g->timeout_ns)
            return BRG_FAIL(BRG_ERR_TIMEOUT,
                            "rank %d: file: timed out after %g s: not all "
                            "ranks went on when they had met",
                            g->rank, (double)g->timeout_ns * 1e-9);
    }
    return BRG_OK;
}

static brg_status go_on(brg__file_group *g)
{
    BRG_TRY(brg__file_make_folder(g, g->run));
    return await_all(g);
}

static brg_status open_group(brg__file_group *g, const brg_pg_options *options)
{
    BRG_TRY(fill_group(g, options));
    brg_status status = brg__file_meet(g);
    snprintf(g->run, sizeof g->run, "%s/run-%016llx", g->folder,
             (unsigned long long)g->id);
    if (status == BRG_OK) {
        status = go_on(g);
        brg__file_part_from_meeting(g, status);
    }
    if (status != BRG_OK && g->id) { /* others may have made the folder */
        say_gone(g, status);
        clean_up(g);
    }
    return status;
}

static brg_status file_create(const brg_host *host,
                              const brg_pg_options *options, brg_group *filled)
{
    (void)host;
    BRG_TRY(check_options(options->backend_data));
    brg__file_group *g = BRG__NEW(brg__file_group);
    if (!g)
        return BRG_ERR_NOMEM;
    const brg_status status = open_group(g, options);
    if (status != BRG_OK) {
        free_group(g);
        return status;
    }
    *filled = (brg_group){.ops = &file_ops,
                          .group = g,
                          .rank = g->rank,
                          .world_size = g->n,
                          .sums_leaves = true,
                          .sums_blocks = true};
    return BRG_OK;
}

const brg_backend brg__backend_file = {
    .abi = BRG_BACKEND_ABI,
    .struct_size = sizeof(brg_backend),
    .name = "file",
    .create = file_create,
};
