/* SPDX-License-Identifier: Apache-2.0
 * The tail of the last bucket, and what follows from it.
 *
 *     used[0] used[1] ... used[n-1] failed shadows      f32, 0 or 1
 *     mark[0] mark[0]^2 mark[1] ...             below 31, and their squares
 *     infinite rank parameter                   0 or 1; and if 1, which
 *     buffers                                   see cargo.c
 *
 * After the reduction a flag is a count of ranks, and a mark is alike on all n
 * of them (but for shadows) if and only if n times the sum of its squares is the
 * square of its sum. If one rank has gradients that are not finite, the last two
 * are its own; parameters up to 2^22 come through an average. The sums are the
 * same on every rank, so if they tell of an error all ranks exchange their notes
 * (flags and marks as bytes) and name the same parameters and ranks. */
#include <math.h>
#include <string.h>

#include "comm/pg.h"
#include "core/base/text.h"
#include "reducer/leaves.h"

static float *tail_of(const brg_reducer *r)
{
    return (float *)(void *)(r->arena + r->plan.tail_offset);
}

float *brg__tail_cargo(const brg_reducer *r)
{
    return tail_of(r) + BRG__N_TAIL(r);
}

/* Mark k of this rank: what it did since the last step; pieces of its plan's
 * hash. */
static uint8_t mark_of(const brg_reducer *r, size_t k)
{
    uint64_t value = r->pace;
    if (k > 0)
        value = r->plan_hash >> 16 * (k - 1);
    return (uint8_t)(value % BRG__MARK_BASE);
}

void brg__tail_fill(const brg_reducer *r, float *tail)
{
    for (size_t i = 0; i < r->n_params; i++)
        tail[i] = r->members[i].is_used;
    tail[r->n_params] = r->has_failed;
    tail[r->n_params + 1] = r->is_shadow;
    for (size_t k = 0; k < BRG__N_MARKS; k++) {
        float mark = r->is_shadow ? 0 : mark_of(r, k);
        tail[r->n_params + 2 + 2 * k] = mark;
        tail[r->n_params + 3 + 2 * k] = mark * mark;
    }
    const uint32_t found = r->finite.own;
    float *finite = tail + BRG__TAIL_FINITE(r);
    finite[0] = found > 0;
    finite[1] = found > 0 ? (float)r->rank : 0;
    finite[2] = found > 0 ? (float)(found - 1) : 0;
}

brg_status brg__tail_write(brg_reducer *r)
{
    if (r->tail.vtable)
        BRG_TRY(brg__device_tail_write(r, tail_of(r)));
    else
        brg__tail_fill(r, tail_of(r));
    return r->n_cargo > 0 ? r->load(r->loads_of, brg__tail_cargo(r)) : BRG_OK;
}

/* ---- Blame ------------------------------------------------------------------- */

static brg_status exchange_notes(brg_reducer *r)
{
    size_t n = BRG__N_NOTES(r);
    uint8_t *mine = r->notes + n * (size_t)r->world_size;
    for (size_t i = 0; i < r->n_params; i++)
        mine[i] = r->members[i].is_used;
    mine[r->n_params] = r->has_failed;
    mine[r->n_params + 1] = r->is_shadow;
    for (size_t k = 0; k < BRG__N_MARKS; k++)
        mine[r->n_params + 2 + k] = mark_of(r, k);
    brg_work *work;
    brg__reducer_sign(r);
    brg_status status =
        brg_all_gather(r->pg, &work, r->notes, mine, n, BRG_DTYPE_U8);
    brg__reducer_unsign(r);
    BRG_TRY(status);
    return brg_work_wait(work);
}

/* Rank k has this note, and data. */
static bool is_meant(const brg_reducer *r, int k, size_t i, uint8_t value)
{
    const uint8_t *notes = r->notes + (size_t)k * BRG__N_NOTES(r);
    return notes[i] == value && !notes[r->n_params + 1];
}

/* "rank 2" or "ranks 0, 2 and 9 more": those whose note i is `value`. */
static void add_ranks(brg__text *text, const brg_reducer *r, size_t i,
                      uint8_t value)
{
    size_t n = 0, n_shown = 0;
    for (int k = 0; k < r->world_size; k++)
        n += is_meant(r, k, i, value);
    brg__text_add(text, n == 1 ? "rank" : "ranks");
    for (int k = 0; k < r->world_size && n_shown < 8; k++)
        if (is_meant(r, k, i, value))
            brg__text_add(text, "%s %d", n_shown++ ? "," : "", k);
    if (n > n_shown)
        brg__text_add(text, " and %zu more", n - n_shown);
}

/* The mark that fewest ranks have; of equal numbers the one of later ranks. */
static uint8_t find_odd_mark(const brg_reducer *r, size_t i)
{
    uint8_t odd = 0;
    int n_odd = r->world_size + 1;
    for (int k = r->world_size; k-- > 0;) {
        uint8_t value = r->notes[(size_t)k * BRG__N_NOTES(r) + i];
        int n = 0;
        for (int other = 0; other < r->world_size; other++)
            n += is_meant(r, other, i, value);
        if (n > 0 && n < n_odd) {
            n_odd = n;
            odd = value;
        }
    }
    return odd;
}

static brg_status blame_mark(brg_reducer *r, size_t k)
{
    char names[120];
    brg__text text = brg__text_begin(names, sizeof names);
    size_t i = r->n_params + 2 + k;
    add_ranks(&text, r, i, find_odd_mark(r, i));
    if (k > 0)
        return BRG_FAIL(BRG_ERR_MISMATCH,
                        "rank %d: the gradients of %s and %zu more were mixed "
                        "up: %s has another bucket plan than the other ranks",
                        r->rank, brg__member_name(r, 0), r->n_params - 1,
                        names);
    return BRG_FAIL(BRG_ERR_MISMATCH,
                    "rank %d: the ranks that reduce %s and %zu more are out of "
                    "step: %s had brg_ddp_set_sync off for other backwards "
                    "than the other ranks",
                    r->rank, brg__member_name(r, 0), r->n_params - 1, names);
}

static brg_status blame_failed(brg_reducer *r)
{
    char names[120];
    brg__text text = brg__text_begin(names, sizeof names);
    add_ranks(&text, r, r->n_params, 1);
    return BRG_FAIL(BRG_ERR_PEER,
                    "rank %d: backward failed on %s, so this step was given "
                    "up on every rank",
                    r->rank, names);
}

static brg_status blame_missing(brg_reducer *r)
{
    char names[320];
    brg__text text = brg__text_begin(names, sizeof names);
    size_t n_missing = 0;
    for (size_t i = 0; i < r->n_params; i++) {
        if (r->members[i].n_used == (uint32_t)r->world_size - r->n_shadows)
            continue;
        if (n_missing++ >= 4)
            continue;
        brg__text_add(&text, "%s%s on ", n_missing > 1 ? "; " : "",
                      brg__member_name(r, i));
        add_ranks(&text, r, i, 0);
    }
    if (n_missing > 4)
        brg__text_add(&text, "; and %zu more", n_missing - 4);
    return BRG_FAIL(BRG_ERR_STATE,
                    "no gradient in this step for %s. If parameters may be "
                    "left out, set options.allow_unused",
                    names);
}

/* ---- Judgement ---------------------------------------------------------------- */

uint32_t brg__tail_number(const brg_reducer *r, float reduced)
{
    float n =
        r->options.sum ? reduced : reduced * (float)brg__reducer_divisor(r);
    return n > 0 ? (uint32_t)lroundf(n) : 0;
}

/* The first mark that is not alike on all ranks; BRG__N_MARKS: all are. */
static size_t find_mark(const brg_reducer *r, const float *tail)
{
    size_t k = 0;
    uint64_t n = (uint64_t)r->world_size - r->n_shadows;
    for (; k < BRG__N_MARKS; k++) {
        uint64_t sum = brg__tail_number(r, tail[r->n_params + 2 + 2 * k]);
        uint64_t squares = brg__tail_number(r, tail[r->n_params + 3 + 2 * k]);
        if (n * squares != sum * sum)
            break;
    }
    return k;
}

brg__tail_counts brg__tail_count(brg_reducer *r, const float *tail)
{
    bool is_missing = false;
    uint32_t n_failed = brg__tail_number(r, tail[r->n_params]);
    r->n_shadows = brg__tail_number(r, tail[r->n_params + 1]);
    for (size_t i = 0; i < r->n_params; i++) {
        r->members[i].n_used = brg__tail_number(r, tail[i]);
        is_missing |=
            r->members[i].n_used < (uint32_t)r->world_size - r->n_shadows;
    }
    is_missing &= !r->options.allow_unused;
    const float *finite = tail + BRG__TAIL_FINITE(r);
    brg__finite_end(r, brg__tail_number(r, finite[0]),
                    brg__tail_number(r, finite[1]),
                    brg__tail_number(r, finite[2]));
    return (brg__tail_counts){n_failed, is_missing, find_mark(r, tail)};
}

brg_status brg__tail_judge(brg_reducer *r)
{
    if (r->tail.vtable)
        return brg__device_tail_judge(r, tail_of(r));
    const brg__tail_counts found = brg__tail_count(r, tail_of(r));
    if (found.n_failed == 0 && !found.is_missing && found.mark == BRG__N_MARKS)
        return BRG_OK;
    BRG_TRY(exchange_notes(r));
    if (r->has_failed)
        return BRG_OK; /* its own error says more */
    if (found.mark < BRG__N_MARKS)
        return blame_mark(r, found.mark);
    return found.n_failed > 0 ? blame_failed(r) : blame_missing(r);
}

brg_status brg__device_tail_launched(brg_reducer *r)
{
    r->tail.is_ready = false;
    brg__pg_launched(r->pg, r->tail.n_calls);
    return brg__device_tail_next(r, tail_of(r));
}
