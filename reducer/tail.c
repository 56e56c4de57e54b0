/* SPDX-License-Identifier: Apache-2.0
 * The tail of the last bucket, and what follows from it.
 *
 *     used[0] used[1] ... used[n-1] failed shadows      f32, 0 or 1
 *
 * After the reduction each is a count of ranks. The counts are the same on
 * every rank, so if they tell of an error all ranks exchange their notes
 * (the same flags as bytes) and name the same parameters and ranks. */
#include <math.h>
#include <string.h>

#include "reducer/leaves.h"
#include "reducer/text.h"

static float *tail_of(const brg_reducer *r)
{
    return (float *)(void *)(r->arena + r->plan.tail_offset);
}

void brg__tail_write(brg_reducer *r)
{
    float *tail = tail_of(r);
    for (size_t i = 0; i < r->n_params; i++)
        tail[i] = r->members[i].is_used;
    tail[r->n_params] = r->has_failed;
    tail[r->n_params + 1] = r->is_shadow;
}

/* ---- Blame ------------------------------------------------------------------- */

static brg_status exchange_notes(brg_reducer *r)
{
    size_t n = BRG__N_TAIL(r);
    uint8_t *mine = r->notes + n * (size_t)r->world_size;
    for (size_t i = 0; i < r->n_params; i++)
        mine[i] = r->members[i].is_used;
    mine[r->n_params] = r->has_failed;
    mine[r->n_params + 1] = r->is_shadow;
    brg_work *work;
    BRG_TRY(brg_all_gather(r->pg, &work, r->notes, mine, n, BRG_DTYPE_U8));
    return brg_work_wait(work);
}

/* Rank k has this note, and data. */
static bool is_meant(const brg_reducer *r, int k, size_t i, uint8_t value)
{
    const uint8_t *notes = r->notes + (size_t)k * BRG__N_TAIL(r);
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

static uint32_t count_of(const brg_reducer *r, float reduced)
{
    float n =
        r->options.sum ? reduced : reduced * (float)brg__reducer_divisor(r);
    return n > 0 ? (uint32_t)lroundf(n) : 0;
}

brg_status brg__tail_judge(brg_reducer *r)
{
    const float *tail = tail_of(r);
    bool is_missing = false;
    uint32_t n_failed = count_of(r, tail[r->n_params]);
    r->n_shadows = count_of(r, tail[r->n_params + 1]);
    for (size_t i = 0; i < r->n_params; i++) {
        r->members[i].n_used = count_of(r, tail[i]);
        is_missing |=
            r->members[i].n_used < (uint32_t)r->world_size - r->n_shadows;
    }
    is_missing &= !r->options.allow_unused;
    if (n_failed == 0 && !is_missing)
        return BRG_OK;
    BRG_TRY(exchange_notes(r));
    if (r->has_failed)
        return BRG_OK; /* its own error says more */
    return n_failed > 0 ? blame_failed(r) : blame_missing(r);
}
