/* SPDX-License-Identifier: Apache-2.0
 * How ranks find each other in a folder in which an earlier run may have left
 * anything.
 *
 * Each rank draws a number that nobody had before and writes it on a card,
 * again and again. When it has a card of every rank it adds a digest of all
 * their numbers. It has met them when all cards have its own digest: theirs
 * hold this run's number of it, so they are of this run. A card that changes
 * while one looks is of a rank that lives; what it says is believed at once. */
#include "comm/file/group.h"

#include <errno.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#include "core/base/alloc.h"
#include "core/base/clock.h"
#include "core/base/text.h"

#define CARD_MAGIC UINT64_C(0x3164726163677262) /* "brgcard1" */
#define BEAT_NS 100000000u
#define PAUSE_US 2000

typedef struct card {
    uint64_t magic, nonce;
    uint64_t agreed; /* digest; 0: not all have come */
    uint64_t beat;
    int32_t rank, world_size;
    int32_t status; /* brg_status: has given up, for this reason: */
    int32_t unused;
    char why[320];
    brg__file_process process;
} card;

/* What this rank has seen of another. */
typedef struct seen {
    card now; /* nonce 0: none */
    uint64_t first_nonce, first_beat;
    bool is_known, is_live;
} seen;

typedef struct meeting {
    brg__file_group *g;
    card mine;
    seen *others;
    uint64_t start_ns, wrote_ns;
} meeting;

static void card_path(const brg__file_group *g, int rank, char *path)
{
    snprintf(path, BRG__FILE_PATH, "%s/rank-%d", g->folder, rank);
}

static uint64_t draw(void)
{
    uint64_t drawn = 0;
    if (getrandom(&drawn, sizeof drawn, 0) != (ssize_t)sizeof drawn)
        drawn = brg__clock_ns() * 0x9E3779B97F4A7C15u + (uint64_t)getpid();
    return drawn ? drawn : 1;
}

static brg_status write_card(meeting *m)
{
    char path[BRG__FILE_PATH];
    card_path(m->g, m->g->rank, path);
    m->mine.beat++;
    m->wrote_ns = brg__clock_ns();
    return brg__file_write(m->g, path, &m->mine, sizeof m->mine, NULL, 0);
}

static brg_status read_card(const meeting *m, int rank, card *filled)
{
    char path[BRG__FILE_PATH];
    bool is_there;
    card_path(m->g, rank, path);
    BRG_TRY(brg__file_read(m->g, path, filled, sizeof *filled, NULL, NULL,
                           &is_there));
    if (!is_there || filled->magic != CARD_MAGIC || filled->rank != rank)
        *filled = (card){.magic = 0};
    filled->why[sizeof filled->why - 1] = '\0';
    return BRG_OK;
}

/* ---- What is wrong ---------------------------------------------------------------- */

/* The other process learns it from the card that this one leaves. */
static brg_status check_mine(meeting *m)
{
    card there;
    BRG_TRY(read_card(m, m->g->rank, &there));
    if (there.nonce == m->mine.nonce || there.nonce == 0)
        return BRG_OK;
    return BRG_FAIL(BRG_ERR_ARG,
                    "rank %d: file: two processes are rank %d (%d and %d) in "
                    "%s: expected each number once, and a folder for each run",
                    m->g->rank, m->g->rank, (int)m->mine.process.pid,
                    (int)there.process.pid, m->g->folder);
}

static brg_status fail_as(const brg__file_group *g, const card *theirs)
{
    return BRG_FAIL(theirs->status == BRG_ERR_ARG ? BRG_ERR_ARG : BRG_ERR_PEER,
                    "rank %d: file: rank %d has failed: %s", g->rank,
                    (int)theirs->rank, theirs->why);
}

static brg_status check_live(const meeting *m, int rank)
{
    const seen *s = &m->others[rank];
    if (s->now.status != BRG_OK)
        return fail_as(m->g, &s->now);
    if (s->now.world_size != m->g->n)
        return BRG_FAIL(BRG_ERR_ARG,
                        "rank %d: file: rank %d is one of %d ranks, this one "
                        "of %d: expected one number",
                        m->g->rank, rank, (int)s->now.world_size, m->g->n);
    if (brg__file_has_died(m->g, &s->now.process))
        return BRG_FAIL(BRG_ERR_PEER, "rank %d: file: rank %d has died",
                        m->g->rank, rank);
    return BRG_OK;
}

static brg_status fail_late(const meeting *m)
{
    char who[400];
    brg__text text = brg__text_begin(who, sizeof who);
    for (int r = 0; r < m->g->n; r++) {
        const seen *s = &m->others[r];
        if (r == m->g->rank || s->is_live)
            continue;
        brg__text_add(&text, "; rank %d has not come", r);
        if (s->now.nonce)
            brg__text_add(&text, " (its card is of an earlier run%s%s)",
                          s->now.status != BRG_OK ? ", or has failed: " : "",
                          s->now.why);
    }
    if (text.length == 0)
        brg__text_add(&text,
                      "; all ranks have come, but do not see each other");
    return BRG_FAIL(BRG_ERR_TIMEOUT,
                    "rank %d: file: timed out after %g s in %s%s", m->g->rank,
                    (double)m->g->timeout_ns * 1e-9, m->g->folder, who);
}

/* ---- Looking ------------------------------------------------------------------------ */

static brg_status look_at(meeting *m, int rank)
{
    seen *s = &m->others[rank];
    BRG_TRY(read_card(m, rank, &s->now));
    if (s->now.nonce && !s->is_known) {
        s->first_nonce = s->now.nonce;
        s->first_beat = s->now.beat;
    }
    s->is_live |=
        s->now.nonce && s->is_known &&
        (s->now.nonce != s->first_nonce || s->now.beat != s->first_beat);
    s->is_known = true;
    return s->is_live && s->now.nonce ? check_live(m, rank) : BRG_OK;
}

/* 0: a card is missing. */
static uint64_t digest(const meeting *m)
{
    uint64_t h = (uint64_t)m->g->n;
    for (int r = 0; r < m->g->n; r++) {
        const uint64_t nonce =
            r == m->g->rank ? m->mine.nonce : m->others[r].now.nonce;
        if (nonce == 0)
            return 0;
        h = (h ^ nonce) * UINT64_C(0x9E3779B97F4A7C15);
        h ^= h >> 29;
    }
    return h ? h : 1;
}

/* Kept where a card goes away again: others may have gone on with this. */
static void agree(meeting *m)
{
    brg__file_group *g = m->g;
    m->mine.agreed = digest(m);
    if (m->mine.agreed == 0 || m->mine.agreed == g->id)
        return;
    g->id = m->mine.agreed;
    for (int r = 0; r < g->n; r++) {
        const card *c = r == g->rank ? &m->mine : &m->others[r].now;
        g->nonces[r] = c->nonce;
        g->processes[r] = c->process;
    }
}

static bool all_agree(const meeting *m)
{
    bool all = m->mine.agreed != 0;
    for (int r = 0; all && r < m->g->n; r++)
        all = r == m->g->rank || m->others[r].now.agreed == m->mine.agreed;
    return all;
}

/* Until all have met. */
static brg_status look_until_all_agree(meeting *m)
{
    BRG_TRY(write_card(m));
    for (;;) {
        BRG_TRY(check_mine(m));
        for (int r = 0; r < m->g->n; r++)
            if (r != m->g->rank)
                BRG_TRY(look_at(m, r));
        const uint64_t before = m->mine.agreed, now = brg__clock_ns();
        agree(m);
        if (m->mine.agreed != before || now - m->wrote_ns > BEAT_NS)
            BRG_TRY(write_card(m));
        if (all_agree(m))
            return BRG_OK;
        if (now - m->start_ns > m->g->timeout_ns)
            return fail_late(m);
        brg__file_sleep_us(PAUSE_US);
    }
}

/* The others need not wait. */
static void say_why(meeting *m, brg_status status)
{
    brg__error_record kept;
    brg__error_save(&kept);
    m->mine.status = status;
    snprintf(m->mine.why, sizeof m->mine.why, "%s", brg_error_message());
    (void)write_card(m);
    brg__error_restore(&kept);
}

brg_status brg__file_meet(brg__file_group *g)
{
    meeting m = {.g = g, .start_ns = brg__clock_ns()};
    g->nonce = draw();
    m.mine = (card){.magic = CARD_MAGIC,
                    .nonce = g->nonce,
                    .rank = g->rank,
                    .world_size = g->n};
    brg__file_name_process(&m.mine.process);
    g->processes[g->rank] = m.mine.process;
    BRG_TRY(brg__file_make_folder(g, g->folder));
    m.others = brg__mem_alloc_array((size_t)g->n, sizeof *m.others,
                                    "ranks of a group");
    if (!m.others)
        return BRG_ERR_NOMEM;
    const brg_status status = look_until_all_agree(&m);
    if (status != BRG_OK)
        say_why(&m, status);
    brg__mem_free(m.others);
    return status;
}

void brg__file_part_from_meeting(const brg__file_group *g, brg_status status)
{
    char path[BRG__FILE_PATH];
    meeting m = {.g = (brg__file_group *)(uintptr_t)g};
    brg__error_record kept;
    brg__error_save(&kept);
    card_path(g, g->rank, path);
    const bool is_mine =
        read_card(&m, g->rank, &m.mine) == BRG_OK && m.mine.nonce == g->nonce;
    brg__error_restore(&kept);
    if (is_mine && status == BRG_OK)
        (void)unlink(path);
    else if (is_mine)
        say_why(&m, status);
}

brg_status brg__file_check_card(const brg__file_group *g, int rank)
{
    const meeting m = {.g = (brg__file_group *)(uintptr_t)g};
    card there;
    BRG_TRY(read_card(&m, rank, &there));
    return there.nonce == g->nonces[rank] && there.status != BRG_OK
               ? fail_as(g, &there)
               : BRG_OK;
}
