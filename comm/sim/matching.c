/* SPDX-License-Identifier: Apache-2.0
 * Who meets whom: collectives by sequence number, sends and recvs in order
 * between two ranks; and who waits in vain. */
#include "comm/sim/world.h"

#include <stdio.h>
#include <string.h>

#include "comm/call.h"
#include "comm/local.h"
#include "comm/trace.h"

/* ---- Meetings -------------------------------------------------------------- */

static size_t meeting_size(const brg__sim_world *world)
{
    return sizeof(brg__sim_meeting) +
           (size_t)world->n_ranks * sizeof(brg_call *);
}

static brg__sim_meeting *find_meeting(const brg__sim_world *world, uint64_t seq)
{
    for (size_t i = 0; i < world->open.n; i++)
        if (world->open.at[i]->seq == seq)
            return world->open.at[i];
    return NULL;
}

/* Also makes room for all the events that the meeting can give rise to, so
 * that nothing fails later. */
static brg__sim_meeting *open_meeting(brg__sim_world *world, uint64_t seq)
{
    size_t n_events = (size_t)world->n_ranks + 1;
    if (brg__array_reserve(&world->open, 1) != BRG_OK ||
        brg__array_reserve(&world->events, (world->open.n + 1) * n_events +
                                               world->p2p.n) != BRG_OK)
        return NULL;
    brg__sim_meeting *meeting = world->free_meetings;
    if (meeting)
        world->free_meetings = meeting->next_free;
    else
        meeting = brg__mem_alloc(meeting_size(world), "a simulated collective");
    if (!meeting)
        return NULL;
    memset(meeting, 0, meeting_size(world));
    meeting->seq = seq;
    world->open.at[world->open.n++] = meeting;
    return meeting;
}

static void close_meeting(brg__sim_world *world, brg__sim_meeting *meeting)
{
    size_t i = 0;
    while (world->open.at[i] != meeting)
        i++;
    world->open.at[i] = world->open.at[--world->open.n];
    meeting->next_free = world->free_meetings;
    world->free_meetings = meeting;
}

static void push_event(brg__sim_world *world, brg__sim_event event)
{
    world->events.at[world->events.n++] = event; /* room was reserved */
}

static brg_status join_meeting(brg__sim_rank *rank, brg_call *call)
{
    brg__sim_world *world = rank->world;
    brg__sim_meeting *meeting = find_meeting(world, call->seq);
    if (!meeting)
        meeting = open_meeting(world, call->seq);
    if (!meeting)
        return BRG_ERR_NOMEM;
    brg_signature signature;
    brg__call_sign(call, rank->rank, &signature);
    if (meeting->n_joined == 0)
        meeting->first = signature;
    else if (!meeting->is_mismatch &&
             !brg__signatures_match(&meeting->first, &signature)) {
        meeting->is_mismatch = true;
        meeting->other = signature;
    }
    meeting->calls[rank->rank] = call;
    meeting->n_joined++;
    meeting->at = call->mark[0] > meeting->at ? call->mark[0] : meeting->at;
    rank->n_calls++;
    rank->last = signature;
    rank->last_at = call->mark[0];
    rank->has_last = true;
    if (meeting->n_joined == world->n_ranks && !meeting->is_mismatch)
        push_event(world, (brg__sim_event){.kind = BRG__SIM_RUN,
                                           .rank = -1,
                                           .at = meeting->at,
                                           .meeting = meeting});
    return BRG_OK;
}

/* ---- Point to point -------------------------------------------------------- */

static bool is_counterpart(const brg__sim_p2p *p, const brg__sim_rank *rank,
                           const brg_call *call)
{
    return !p->is_matched && p->rank == call->peer &&
           p->call->peer == rank->rank && p->call->coll != call->coll;
}

static void meet_peer(brg__sim_rank *rank, brg_call *call, brg__sim_p2p *peer)
{
    brg_signature mine, theirs;
    brg__call_sign(call, rank->rank, &mine);
    brg__call_sign(peer->call, peer->rank, &theirs);
    if (!brg__signatures_match(&mine, &theirs)) {
        brg__error_record kept;
        brg__error_save(&kept);
        (void)brg__fail_mismatch(&theirs, &mine);
        brg__error_save(&rank->verdict);
        rank->world->ranks[peer->rank].verdict = rank->verdict;
        brg__error_restore(&kept);
        return;
    }
    bool is_send = call->coll == BRG_COLL_SEND;
    uint64_t a = call->mark[0], b = peer->call->mark[0];
    peer->is_matched = true;
    push_event(rank->world, (brg__sim_event){
                                .kind = BRG__SIM_COPY,
                                .rank = is_send ? rank->rank : peer->rank,
                                .at = a > b ? a : b,
                                .call = is_send ? call : peer->call,
                                .other = is_send ? peer->call : call,
                            });
}

static brg_status join_p2p(brg__sim_rank *rank, brg_call *call)
{
    brg__sim_world *world = rank->world;
    size_t n_events = (world->open.n + 1) * ((size_t)world->n_ranks + 1);
    BRG_TRY(brg__array_reserve(&world->p2p, 1));
    BRG_TRY(brg__array_reserve(&world->events, n_events + world->p2p.n + 1));
    bool is_matched = false;
    for (size_t i = 0; i < world->p2p.n && !is_matched; i++)
        if (is_counterpart(&world->p2p.at[i], rank, call)) {
            meet_peer(rank, call, &world->p2p.at[i]);
            is_matched = true;
        }
    world->p2p.at[world->p2p.n++] = (brg__sim_p2p){
        .rank = rank->rank, .is_matched = is_matched, .call = call};
    return BRG_OK;
}

brg_status brg__sim_join(brg__sim_rank *rank, brg_call *call)
{
    rank->world->n_idle = 0;
    return brg__coll_is_p2p(call->coll) ? join_p2p(rank, call)
                                        : join_meeting(rank, call);
}

/* ---- Events ----------------------------------------------------------------- */

static void run_meeting(brg__sim_world *world, brg__sim_meeting *meeting)
{
    uint64_t begin =
        meeting->at > world->net_free ? meeting->at : world->net_free;
    brg__local_run(meeting->calls, world->n_ranks, world->node_size);
    meeting->has_run = true;
    world->net_free = begin + brg__sim_cost(world, meeting->calls[0]);
    for (int r = 0; r < world->n_ranks; r++)
        push_event(world, (brg__sim_event){.kind = BRG__SIM_TELL,
                                           .rank = r,
                                           .at = world->net_free,
                                           .meeting = meeting,
                                           .call = meeting->calls[r]});
}

static void copy_message(brg__sim_world *world, const brg__sim_event *event)
{
    if (event->call->nbytes)
        memmove(event->other->recv, event->call->send, event->call->nbytes);
    for (size_t i = 0; i < world->p2p.n; i++) {
        brg__sim_p2p *p = &world->p2p.at[i];
        p->is_over |= p->call == event->call || p->call == event->other;
    }
    uint64_t at = event->at + brg__sim_cost(world, event->call);
    push_event(world, (brg__sim_event){.kind = BRG__SIM_TELL,
                                       .rank = event->rank,
                                       .at = at,
                                       .call = event->call});
    push_event(world, (brg__sim_event){.kind = BRG__SIM_TELL,
                                       .rank = event->call->peer,
                                       .at = at,
                                       .call = event->other});
}

static void drop_p2p(brg__sim_world *world, const brg_call *call)
{
    for (size_t i = 0; i < world->p2p.n; i++)
        if (world->p2p.at[i].call == call) {
            /* keep the order: messages between two ranks overtake nothing */
            memmove(&world->p2p.at[i], &world->p2p.at[i + 1],
                    (world->p2p.n - i - 1) * sizeof world->p2p.at[0]);
            world->p2p.n--;
            return;
        }
}

/* One bit of what the call has received, in the middle; of an f32, one of its
 * exponent. */
static void corrupt(const brg_call *call)
{
    size_t at = call->nbytes / 2 | 3;
    if (call->recv && call->nbytes)
        ((unsigned char *)
             call->recv)[at < call->nbytes ? at : call->nbytes - 1] ^= 4;
}

static void tell(brg__sim_world *world, const brg__sim_event *event)
{
    if (event->call) {
        if (event->call->mark[1])
            corrupt(event->call);
        event->call->mark[0] = event->at;
        event->call->is_done = true;
        brg__record_complete_at(brg__work_of(event->call),
                                world->has_time ? event->at : 0);
    }
    if (!event->meeting)
        drop_p2p(world, event->call);
    else if (++event->meeting->n_told == world->n_ranks)
        close_meeting(world, event->meeting);
}

void brg__sim_happen(brg__sim_world *world, size_t i)
{
    brg__sim_event event = world->events.at[i];
    world->events.at[i] = world->events.at[--world->events.n];
    switch (event.kind) {
    case BRG__SIM_RUN:
        run_meeting(world, event.meeting);
        break;
    case BRG__SIM_COPY:
        copy_message(world, &event);
        break;
    case BRG__SIM_TELL:
        tell(world, &event);
        break;
    }
}

/* ---- Death ------------------------------------------------------------------ */

static bool is_of(const brg__sim_event *event, int rank)
{
    if (event->kind == BRG__SIM_RUN)
        return true; /* all ranks take part */
    return event->rank == rank ||
           (event->kind == BRG__SIM_COPY && event->call->peer == rank);
}

static void forget_events(brg__sim_rank *rank)
{
    brg__sim_world *world = rank->world;
    for (size_t i = 0; i < world->events.n;) {
        brg__sim_event *event = &world->events.at[i];
        if (!is_of(event, rank->rank)) {
            i++;
        } else if (event->kind == BRG__SIM_TELL && event->meeting) {
            event->call = NULL; /* its meeting still counts it */
            i++;
        } else {
            *event = world->events.at[--world->events.n];
        }
    }
}

void brg__sim_forget(brg__sim_rank *rank)
{
    brg__sim_world *world = rank->world;
    if (rank->is_dead)
        return;
    rank->is_dead = true;
    rank->death = ++world->n_dead;
    rank->waits_for = NULL;
    forget_events(rank);
    for (size_t i = 0; i < world->open.n; i++) {
        brg__sim_meeting *meeting = world->open.at[i];
        if (meeting->calls[rank->rank] && !meeting->has_run)
            meeting->n_joined--; /* it is never complete now */
        meeting->calls[rank->rank] = NULL;
    }
    for (size_t i = world->p2p.n; i-- > 0;)
        if (world->p2p.at[i].rank == rank->rank)
            drop_p2p(world, world->p2p.at[i].call);
}

/* The rank that this meeting needs and that will not come; of several, the one
 * that died first, since the others may have died of it. -1: none. */
static int missing_for_ever(const brg__sim_world *world,
                            const brg__sim_meeting *meeting)
{
    int found = -1;
    for (int r = 0; r < world->n_ranks && !meeting->has_run; r++) {
        const brg__sim_rank *rank = &world->ranks[r];
        if (!meeting->calls[r] && rank->is_dead &&
            (found < 0 || rank->death < world->ranks[found].death))
            found = r;
    }
    return found;
}

static brg_status fail_peer(const brg__sim_rank *rank, const brg_call *call,
                            const brg__sim_rank *peer)
{
    char text[120];
    brg__call_describe(call, text, sizeof text);
    return BRG_FAIL(BRG_ERR_PEER,
                    "rank %d: %s waits for rank %d, which %s after %llu "
                    "collectives",
                    rank->rank, text, peer->rank,
                    peer->has_died    ? "died"
                    : peer->has_ended ? "ended"
                                      : "failed",
                    (unsigned long long)peer->n_calls);
}

/* The first thing that will never complete, or neither. */
typedef struct doom {
    const brg__sim_meeting *meeting;
    const brg_call *call;
    int peer;
} doom;

static doom find_doom(const brg__sim_rank *rank)
{
    const brg__sim_world *world = rank->world;
    doom d = {.peer = -1};
    for (size_t i = 0; i < world->open.n; i++) {
        const brg__sim_meeting *meeting = world->open.at[i];
        const brg_call *call = meeting->calls[rank->rank];
        if (!call || (d.meeting && d.meeting->seq < meeting->seq))
            continue;
        int peer = missing_for_ever(world, meeting);
        if (meeting->is_mismatch || peer >= 0)
            d = (doom){meeting, call, peer};
    }
    for (size_t i = 0; i < world->p2p.n && !d.call; i++) {
        const brg__sim_p2p *p = &world->p2p.at[i];
        if (p->rank == rank->rank && !p->call->is_done && !p->is_over &&
            world->ranks[p->call->peer].is_dead)
            d = (doom){NULL, p->call, p->call->peer};
    }
    return d;
}

bool brg__sim_is_doomed(const brg__sim_rank *rank)
{
    return rank->verdict.code != BRG_OK || find_doom(rank).call != NULL;
}

brg_status brg__sim_check(brg__sim_rank *rank)
{
    if (rank->verdict.code != BRG_OK) {
        brg__error_restore(&rank->verdict);
        return rank->verdict.code;
    }
    doom d = find_doom(rank);
    if (!d.call)
        return BRG_OK;
    if (d.meeting && d.meeting->is_mismatch)
        return brg__fail_mismatch(&d.meeting->first, &d.meeting->other);
    return fail_peer(rank, d.call, &rank->world->ranks[d.peer]);
}

/* ---- Time-outs -------------------------------------------------------------- */

/* By what it has started: a rank that has failed since counts as it stood. */
static const char *owes(const brg__sim_rank *rank, const brg_call *call,
                        uint64_t now)
{
    if (brg__coll_is_p2p(call->coll))
        return rank->rank == call->peer ? "has not come" : NULL;
    if (!rank->has_last || rank->last.seq < call->seq)
        return "has not started it";
    bool is_late = rank->world->has_time && rank->last.seq == call->seq &&
                   rank->last_at > now;
    return is_late ? "has started it, but is late" : NULL;
}

void brg__sim_look(void *group, const brg_call *call, int rank,
                   brg_peer *filled)
{
    const brg__sim_rank *mine = group;
    const brg__sim_rank *peer = &mine->world->ranks[rank];
    const char *owed = owes(peer, call, mine->clock);
    *filled = (brg_peer){.is_visible = true,
                         .owes = owed,
                         .has_come = !owed,
                         .has_last = peer->has_last,
                         .last = peer->last,
                         .place = &peer->place,
                         .now_ns = mine->world->has_time ? mine->clock : 0};
}

/* ---- Deadlock ---------------------------------------------------------------- */

static void describe_rank(const brg__sim_rank *rank, char *text, size_t size)
{
    char call[120];
    if (rank->has_ended) {
        snprintf(text, size, "rank %d ended", rank->rank);
    } else if (rank->waits_for) {
        brg__call_describe(rank->waits_for, call, sizeof call);
        snprintf(text, size, "rank %d waits for %s%s", rank->rank, call,
                 rank->lost == rank->waits_for ? ", which was lost" : "");
    } else {
        snprintf(text, size, "rank %d polls", rank->rank);
    }
}

void brg__sim_deadlock(brg__sim_world *world)
{
    char text[BRG_ERROR_TEXT_MAX] = "";
    for (int r = 0; r < world->n_ranks; r++) {
        size_t n = strlen(text);
        if (n + 2 >= sizeof text)
            break;
        if (n)
            n += (size_t)snprintf(text + n, sizeof text - n, ", ");
        describe_rank(&world->ranks[r], text + n, sizeof text - n);
    }
    brg__error_record kept;
    brg__error_save(&kept);
    (void)BRG_FAIL(BRG_ERR_TIMEOUT, "no rank can go on: %s", text);
    for (int r = 0; r < world->n_ranks; r++)
        if (!world->ranks[r].has_ended)
            brg__error_save(&world->ranks[r].verdict);
    brg__error_restore(&kept);
}
