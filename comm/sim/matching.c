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
           (size_t)world->n_ranks * sizeof(brg_call *); /* at the most */
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
    size_t n_events = (size_t)world->n_members + 1;
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

/* The number that comes next. */
static uint64_t *next_of(brg__sim_rank *rank, const brg_signature *signature)
{
    return &rank->next_seq[brg__coll_is_p2p((brg_coll)signature->coll)];
}

/* A number that has come before comes again: nothing follows from it. */
static bool is_known(brg__sim_rank *rank, const brg_signature *signature)
{
    return signature->seq < *next_of(rank, signature);
}

/* Of a rank without data: it goes with any pace, which then have to be one. */
static bool is_open(const brg_signature *signature)
{
    return signature->reducer != 0 && signature->pace == 0;
}

/* Those who were told of a mismatch have left again; their words stay. */
static void sign_in(brg__sim_meeting *meeting, const brg_signature *signature)
{
    const bool is_first = meeting->n_joined++ == 0;
    if (meeting->is_mismatch)
        return;
    if (is_first) {
        meeting->first = *signature;
    } else if (!brg__signatures_match(&meeting->first, signature)) {
        meeting->is_mismatch = true;
        meeting->other = *signature;
    } else if (is_open(&meeting->first)) {
        meeting->first = *signature;
    }
}

static brg_status join_meeting(brg__sim_rank *rank, brg_call *call,
                               const brg_signature *signature)
{
    brg__sim_world *world = rank->world;
    brg__sim_meeting *meeting = find_meeting(world, signature->seq);
    if (!meeting)
        meeting = open_meeting(world, signature->seq);
    if (!meeting)
        return BRG_ERR_NOMEM;
    sign_in(meeting, signature);
    meeting->calls[rank->seat] = call;
    meeting->at = call->mark[0] > meeting->at ? call->mark[0] : meeting->at;
    rank->n_calls++;
    rank->last = *signature;
    rank->last_at = call->mark[0];
    rank->has_last = true;
    if (meeting->n_joined == world->n_members && !meeting->is_mismatch)
        push_event(world, (brg__sim_event){.kind = BRG__SIM_RUN,
                                           .seat = -1,
                                           .at = meeting->at,
                                           .meeting = meeting});
    return BRG_OK;
}

/* ---- Point to point -------------------------------------------------------- */

static bool is_counterpart(const brg__sim_p2p *p, const brg__sim_rank *rank,
                           const brg_call *call)
{
    return !p->is_matched && p->seat == call->peer &&
           p->call->peer == rank->seat && p->call->coll != call->coll;
}

static void meet_peer(brg__sim_rank *rank, brg_call *call, brg__sim_p2p *peer)
{
    brg_signature mine, theirs;
    brg__call_sign(call, rank->seat, &mine);
    brg__call_sign(peer->call, peer->seat, &theirs);
    if (!brg__signatures_match(&mine, &theirs)) {
        brg__error_record kept;
        brg__error_save(&kept);
        (void)brg__fail_mismatch(&theirs, &mine);
        brg__error_save(&rank->verdict);
        brg__sim_member(rank->world, peer->seat)->verdict = rank->verdict;
        brg__error_restore(&kept);
        return;
    }
    bool is_send = call->coll == BRG_COLL_SEND;
    uint64_t a = call->mark[0], b = peer->call->mark[0];
    peer->is_matched = true;
    push_event(rank->world, (brg__sim_event){
                                .kind = BRG__SIM_COPY,
                                .seat = is_send ? rank->seat : peer->seat,
                                .at = a > b ? a : b,
                                .call = is_send ? call : peer->call,
                                .other = is_send ? peer->call : call,
                            });
}

static brg_status join_p2p(brg__sim_rank *rank, brg_call *call)
{
    brg__sim_world *world = rank->world;
    size_t n_events = (world->open.n + 1) * ((size_t)world->n_members + 1);
    BRG_TRY(brg__array_reserve(&world->p2p, 1));
    BRG_TRY(brg__array_reserve(&world->events, n_events + world->p2p.n + 1));
    bool is_matched = false;
    for (size_t i = 0; i < world->p2p.n && !is_matched; i++)
        if (is_counterpart(&world->p2p.at[i], rank, call)) {
            meet_peer(rank, call, &world->p2p.at[i]);
            is_matched = true;
        }
    world->p2p.at[world->p2p.n++] = (brg__sim_p2p){
        .seat = rank->seat, .is_matched = is_matched, .call = call};
    return BRG_OK;
}

static brg_status arrive(brg__sim_rank *rank, brg_call *call,
                         const brg_signature *signature)
{
    if (is_known(rank, signature))
        return BRG_OK;
    BRG_TRY(brg__coll_is_p2p(call->coll) ? join_p2p(rank, call)
                                         : join_meeting(rank, call, signature));
    *next_of(rank, signature) =
        signature->seq + 1; /* without memory: not yet */
    return BRG_OK;
}

brg_status brg__sim_join(brg__sim_rank *rank, brg_call *call)
{
    brg_signature signature;
    rank->world->n_idle = 0;
    brg__call_sign(call, rank->seat, &signature);
    return arrive(rank, call, &signature);
}

void brg__sim_repeat(brg__sim_rank *rank, const brg_call *call)
{
    brg__sim_world *world = rank->world;
    brg__sim_event event = {.kind = BRG__SIM_AGAIN,
                            .seat = rank->seat,
                            .at = call->mark[0] + BRG__SIM_POLL_NS};
    brg__call_sign(call, rank->seat, &event.again);
    /* Room that meetings count on is left to them. */
    size_t n_events = world->open.n * ((size_t)world->n_members + 1);
    if (brg__array_reserve(&world->events, n_events + world->p2p.n + 1) ==
        BRG_OK)
        push_event(world, event); /* else it comes once, as it may */
}

/* ---- Events ----------------------------------------------------------------- */

static void run_meeting(brg__sim_world *world, brg__sim_meeting *meeting)
{
    uint64_t begin =
        meeting->at > world->net_free ? meeting->at : world->net_free;
    brg__local_run(meeting->calls, world->n_members, world->node_size);
    meeting->has_run = true;
    world->net_free = begin + brg__sim_cost(world, meeting->calls[0]);
    for (int r = 0; r < world->n_members; r++)
        push_event(world, (brg__sim_event){.kind = BRG__SIM_TELL,
                                           .seat = r,
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
                                       .seat = event->seat,
                                       .at = at,
                                       .call = event->call});
    push_event(world, (brg__sim_event){.kind = BRG__SIM_TELL,
                                       .seat = event->call->peer,
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
        if (event->call->mark[1] && world->n_members > 1)
            corrupt(event->call);
        event->call->mark[0] = event->at;
        event->call->is_done = true;
        brg__record_complete_at(brg__work_of(event->call),
                                world->has_time ? event->at : 0);
    }
    if (!event->meeting)
        drop_p2p(world, event->call);
    else if (++event->meeting->n_told == world->n_members)
        close_meeting(world, event->meeting);
}

/* The call may be over and gone: only its number is looked at. */
static void come_again(brg__sim_world *world, const brg__sim_event *event)
{
    brg__sim_rank *rank = brg__sim_member(world, event->seat);
    if (is_known(rank, &event->again))
        return;
    (void)BRG_FAIL(BRG_ERR_INTERNAL, "a message came again before it came");
    brg__error_save(&rank->verdict);
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
    case BRG__SIM_AGAIN:
        come_again(world, &event);
        break;
    }
}

/* ---- Death ------------------------------------------------------------------ */

static bool is_of(const brg__sim_event *event, int seat)
{
    if (event->kind == BRG__SIM_RUN)
        return true; /* all ranks take part */
    return event->seat == seat ||
           (event->kind == BRG__SIM_COPY && event->call->peer == seat);
}

static void forget_events(brg__sim_rank *rank)
{
    brg__sim_world *world = rank->world;
    for (size_t i = 0; i < world->events.n;) {
        brg__sim_event *event = &world->events.at[i];
        if (!is_of(event, rank->seat)) {
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
        if (meeting->calls[rank->seat] && !meeting->has_run)
            meeting->n_joined--; /* it is never complete now */
        meeting->calls[rank->seat] = NULL;
    }
    for (size_t i = world->p2p.n; i-- > 0;)
        if (world->p2p.at[i].seat == rank->seat)
            drop_p2p(world, world->p2p.at[i].call);
}

void brg__sim_clear(brg__sim_world *world)
{
    while (world->open.n > 0)
        close_meeting(world, world->open.at[0]);
    world->events.n = 0;
    world->p2p.n = 0;
}

/* The rank that this meeting needs and that will not come; of several, the one
 * that died first, since the others may have died of it. -1: none. */
static int missing_for_ever(const brg__sim_world *world,
                            const brg__sim_meeting *meeting)
{
    int found = -1;
    for (int r = 0; r < world->n_members && !meeting->has_run; r++) {
        const brg__sim_rank *rank = brg__sim_member(world, r);
        if (!meeting->calls[r] && rank->is_dead &&
            (found < 0 || rank->death < brg__sim_member(world, found)->death))
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
                    rank->seat, text, peer->seat,
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
        const brg_call *call = meeting->calls[rank->seat];
        if (!call || (d.meeting && d.meeting->seq < meeting->seq))
            continue;
        int peer = missing_for_ever(world, meeting);
        if (meeting->is_mismatch || peer >= 0)
            d = (doom){meeting, call, peer};
    }
    for (size_t i = 0; i < world->p2p.n && !d.call; i++) {
        const brg__sim_p2p *p = &world->p2p.at[i];
        if (p->seat == rank->seat && !p->call->is_done && !p->is_over &&
            brg__sim_member(world, p->call->peer)->is_dead)
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
    return fail_peer(rank, d.call, brg__sim_member(rank->world, d.peer));
}

/* ---- Time-outs -------------------------------------------------------------- */

/* By what it has started: a rank that has failed since counts as it stood. */
static const char *owes(const brg__sim_rank *rank, const brg_call *call,
                        uint64_t now)
{
    if (brg__coll_is_p2p(call->coll))
        return rank->seat == call->peer ? "has not come" : NULL;
    if (!rank->has_last || rank->last.seq < call->seq)
        return "has not started it";
    bool is_late = rank->world->has_time && rank->last.seq == call->seq &&
                   rank->last_at > now;
    return is_late ? "has started it, but is late" : NULL;
}

void brg__sim_look(void *group, const brg_call *call, int rank,
                   brg_peer *filled)
{
    const brg__sim_rank *mine = ((const brg__sim_end *)group)->rank;
    const brg__sim_rank *peer = brg__sim_member(mine->world, rank);
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
        snprintf(text, size, "rank %d ended", rank->seat);
    } else if (rank->is_shrinking) {
        snprintf(text, size, "rank %d waits for the ranks that are left",
                 rank->seat);
    } else if (rank->waits_for) {
        brg__call_describe(rank->waits_for, call, sizeof call);
        snprintf(text, size, "rank %d waits for %s%s", rank->seat, call,
                 rank->lost == rank->waits_for ? ", which was lost" : "");
    } else {
        snprintf(text, size, "rank %d polls", rank->seat);
    }
}

void brg__sim_deadlock(brg__sim_world *world)
{
    char text[BRG_ERROR_TEXT_MAX] = "";
    for (int r = 0; r < world->n_members; r++) {
        size_t n = strlen(text);
        if (n + 2 >= sizeof text)
            break;
        if (n)
            n += (size_t)snprintf(text + n, sizeof text - n, ", ");
        describe_rank(brg__sim_member(world, r), text + n, sizeof text - n);
    }
    brg__error_record kept;
    brg__error_save(&kept);
    (void)BRG_FAIL(BRG_ERR_TIMEOUT, "no rank can go on: %s", text);
    for (int r = 0; r < world->n_ranks; r++)
        if (!world->ranks[r].has_ended && !world->ranks[r].is_shrinking)
            brg__error_save(&world->ranks[r].verdict);
    brg__error_restore(&kept);
}
