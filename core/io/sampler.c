/* SPDX-License-Identifier: Apache-2.0
 * The order of the samples. An epoch's order is a Fisher-Yates shuffle (D.
 * Knuth, The Art of Computer Programming, 3.4.2, algorithm P) whose draws come
 * from Philox4x32-10 (J. Salmon et al., "Parallel Random Numbers: As Easy as
 * 1, 2, 3") with the seed as key and (draw, epoch) as counter: nothing of it
 * depends on the rank, the world size or what was drawn before. */
#include <brigade/io.h>

#include <Random123/philox.h>

#include "core/base/alloc.h"
#include "core/base/error.h"
#include "core/base/options.h"

struct brg_sampler {
    brg_sampler_options options;
    brg_sampler_position position;
    int64_t order_epoch; /* whose order is there; -1: none yet */
    int64_t *order;
};

/* Draw i of an epoch: uniform in [0, n). The product's high half is biased by
 * less than n / 2^64. */
static int64_t draw(const brg_sampler *s, int64_t i, int64_t n)
{
    uint64_t seed = s->options.seed, epoch = (uint64_t)s->position.epoch;
    philox4x32_key_t key = {{(uint32_t)seed, (uint32_t)(seed >> 32)}};
    philox4x32_ctr_t counter = {{(uint32_t)i, (uint32_t)(i >> 32),
                                 (uint32_t)epoch, (uint32_t)(epoch >> 32)}};
    philox4x32_ctr_t r = philox4x32(counter, key);
    uint64_t bits = (uint64_t)r.v[1] << 32 | r.v[0];
    return (int64_t)(((unsigned __int128)bits * (uint64_t)n) >> 64);
}

static void make_order(brg_sampler *s)
{
    int64_t n = s->options.n_samples;
    for (int64_t i = 0; i < n; i++)
        s->order[i] = i;
    for (int64_t i = n - 1; s->options.shuffle && i > 0; i--) {
        int64_t j = draw(s, i, i + 1), kept = s->order[i];
        s->order[i] = s->order[j];
        s->order[j] = kept;
    }
    s->order_epoch = s->position.epoch;
}

static brg_status take_options(brg_sampler_options *o,
                               const brg_sampler_options *options)
{
    *o = (brg_sampler_options)BRG_SAMPLER_OPTIONS_INIT;
    BRG_CHECK_ARG(options, "brg_sampler_create: options is NULL");
    BRG_TRY(BRG_TAKE_OPTIONS(o, options, "brg_sampler_create",
                             BRG_SAMPLER_OPTIONS_INIT));
    BRG_CHECK_ARG(o->n_samples > 0 && o->global_batch > 0,
                  "brg_sampler_create: n_samples is %lld and global_batch "
                  "%lld, both must be positive",
                  (long long)o->n_samples, (long long)o->global_batch);
    BRG_CHECK_ARG(o->world_size >= 0 && o->rank >= 0 &&
                      o->rank < (o->world_size ? o->world_size : 1),
                  "brg_sampler_create: rank %d is not in a world of %d",
                  o->rank, o->world_size);
    BRG_CHECK_ARG(!o->drop_last || o->n_samples >= o->global_batch,
                  "brg_sampler_create: %lld samples fill no batch of %lld, and "
                  "drop_last leaves out what is not full",
                  (long long)o->n_samples, (long long)o->global_batch);
    return BRG_OK;
}

brg_status brg_sampler_create(brg_sampler **out,
                              const brg_sampler_options *options)
{
    BRG_CHECK_ARG(out, "brg_sampler_create: out is NULL");
    *out = NULL;
    brg_sampler_options o;
    BRG_TRY(take_options(&o, options));
    brg_sampler *s = BRG__NEW(brg_sampler);
    if (!s)
        return BRG_ERR_NOMEM;
    s->options = o;
    if (s->options.world_size == 0)
        s->options.world_size = 1;
    s->order_epoch = -1;
    s->order = brg__mem_alloc_array((size_t)o.n_samples, sizeof *s->order,
                                    "the order of samples");
    if (!s->order) {
        brg__mem_free(s);
        return BRG_ERR_NOMEM;
    }
    *out = s;
    return BRG_OK;
}

void brg_sampler_destroy(brg_sampler *sampler)
{
    if (!sampler)
        return;
    brg__mem_free(sampler->order);
    brg__mem_free(sampler);
}

/* ---- Batches ------------------------------------------------------------------ */

int64_t brg_sampler_n_batches(const brg_sampler *s)
{
    const brg_sampler_options *o = &s->options;
    int64_t full = o->n_samples / o->global_batch;
    bool has_tail = o->n_samples % o->global_batch != 0;
    return full + (has_tail && !o->drop_last);
}

static int64_t global_count(const brg_sampler *s, int64_t batch)
{
    if (batch < 0 || batch >= brg_sampler_n_batches(s))
        return 0;
    int64_t left = s->options.n_samples - batch * s->options.global_batch;
    return left < s->options.global_batch ? left : s->options.global_batch;
}

/* n samples over the ranks, as evenly as they go: the first n % world_size
 * ranks have one more. */
static int64_t slice_start(int64_t n, int rank, int world_size)
{
    int64_t more = n % world_size;
    return n / world_size * rank + (rank < more ? rank : more);
}

size_t brg_sampler_count(const brg_sampler *s, int64_t batch, int rank)
{
    int64_t n = global_count(s, batch);
    int world_size = s->options.world_size;
    if (rank < 0 || rank >= world_size)
        return 0;
    return (size_t)(slice_start(n, rank + 1, world_size) -
                    slice_start(n, rank, world_size));
}

bool brg_sampler_next(brg_sampler *s, brg_batch *filled)
{
    int64_t batch = s->position.batch;
    *filled = (brg_batch){.position = s->position};
    if (batch >= brg_sampler_n_batches(s)) {
        s->position = (brg_sampler_position){s->position.epoch + 1, 0};
        return false;
    }
    if (s->order_epoch != s->position.epoch)
        make_order(s);
    int rank = s->options.rank, world_size = s->options.world_size;
    int64_t n_global = global_count(s, batch);
    int64_t first = slice_start(n_global, rank, world_size);
    filled->n_global = (size_t)n_global;
    filled->first = (size_t)first;
    filled->n = brg_sampler_count(s, batch, rank);
    filled->samples = s->order + batch * s->options.global_batch + first;
    filled->weight = (double)filled->n * (double)world_size / (double)n_global;
    s->position.batch++;
    return true;
}

brg_sampler_position brg_sampler_tell(const brg_sampler *sampler)
{
    return sampler->position;
}

brg_status brg_sampler_seek(brg_sampler *s, brg_sampler_position position)
{
    BRG_CHECK_ARG(s, "brg_sampler_seek: sampler is NULL");
    int64_t n = brg_sampler_n_batches(s);
    BRG_CHECK_ARG(
        position.epoch >= 0 && position.batch >= 0 && position.batch <= n,
        "brg_sampler_seek: epoch %lld, batch %lld: an epoch has %lld "
        "batches",
        (long long)position.epoch, (long long)position.batch, (long long)n);
    s->position = position;
    return BRG_OK;
}
