/* SPDX-License-Identifier: Apache-2.0
 * Checks and gradients for programs of many ranks. */
#include "tests/support/ranks.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/dtype.h"
#include "tests/support/brg_test.h"

const int ranks_worlds[6] = {1, 2, 3, 4, 7, 8};

void ranks_in_worlds(int smallest, const brg_sim_options *options,
                     brg_sim_rank_fn fn, void *user)
{
    for (int i = 0; i < N_RANKS_WORLDS; i++) {
        const int n = ranks_worlds[i];
        if (n >= smallest && brg_sim_run(n, options, fn, user) != BRG_OK)
            fail_msg("%d ranks: %s", n, brg_error_message());
    }
}

brg_status ranks_expect(brg_status status, brg_status code, const char *text,
                        const char *expr, int line)
{
    char message[300];
    snprintf(message, sizeof message, "%s", brg_error_message());
    RANK_CHECK(status == code, "line %d: %s gave %s, expected %s: %s", line,
               expr, brg_status_name(status), brg_status_name(code), message);
    RANK_CHECK(strstr(message, text), "line %d: %s: no \"%s\" in: %s", line,
               expr, text, message);
    return BRG_OK;
}

double ranks_gradient(int rank, int step, size_t i, size_t k)
{
    uint64_t state = (uint64_t)rank * 1000003 + (uint64_t)step * 10007 +
                     i * 131071 + k * 8191;
    return (double)(brg_test_random(&state) % 128) / 64.0 - 1.0;
}

double ranks_average(int n, int step, size_t i, size_t k)
{
    double sum = 0;
    for (int rank = 0; rank < n; rank++)
        sum += ranks_gradient(rank, step, i, k);
    return sum / n;
}

void ranks_store(void *data, size_t k, brg_dtype dtype, double value)
{
    if (dtype == BRG_DTYPE_F64)
        ((double *)data)[k] = value;
    else if (dtype == BRG_DTYPE_F32)
        ((float *)data)[k] = (float)value;
    else if (dtype == BRG_DTYPE_F16)
        ((uint16_t *)data)[k] = brg__f32_to_f16((float)value);
    else
        ((uint16_t *)data)[k] = brg__f32_to_bf16((float)value);
}

double ranks_load(const void *data, size_t k, brg_dtype dtype)
{
    if (dtype == BRG_DTYPE_F64)
        return ((const double *)data)[k];
    if (dtype == BRG_DTYPE_F32)
        return ((const float *)data)[k];
    if (dtype == BRG_DTYPE_F16)
        return brg__f16_to_f32(((const uint16_t *)data)[k]);
    return brg__bf16_to_f32(((const uint16_t *)data)[k]);
}

double ranks_epsilon(brg_dtype dtype)
{
    static const double epsilon[] = {1e-15, 1e-6, 1e-3, 8e-3};
    return epsilon[dtype];
}

brg_status ranks_same_bits(brg_pg *pg, const void *data, size_t nbytes)
{
    size_t n = (size_t)brg_pg_world_size(pg);
    char *all = malloc(n * nbytes + 1);
    if (!all)
        return BRG_ERR_NOMEM;
    brg_work *work;
    brg_status status =
        brg_all_gather(pg, &work, all, data, nbytes, BRG_DTYPE_U8);
    if (status == BRG_OK)
        status = brg_work_wait(work);
    for (size_t r = 1; status == BRG_OK && r < n; r++)
        if (memcmp(all, all + r * nbytes, nbytes) != 0)
            status =
                brg_error_set(BRG_ERR_INTERNAL, __FILE__, __LINE__,
                              "rank %zu and rank 0 differ in their bits", r);
    free(all);
    return status;
}

/* ---- Trainings and threads ---------------------------------------------------- */

typedef struct sim_training {
    ranks_training train;
    const void *how;
    uint64_t hash;
} sim_training;

static brg_status train_rank(brg_pg *pg, void *user)
{
    sim_training *t = user;
    uint64_t hash;
    BRG_TRY(t->train(pg, t->how, &hash));
    t->hash = hash; /* one rank at a time, all the same */
    return BRG_OK;
}

brg_status ranks_sim_training(int n, const brg_sim_options *options,
                              ranks_training train, const void *how,
                              uint64_t *hash)
{
    sim_training t = {.train = train, .how = how};
    BRG_TRY(brg_sim_run(n, options, train_rank, &t));
    *hash = t.hash;
    return BRG_OK;
}

typedef struct worker {
    brg_status (*share)(void *user, size_t k);
    void *user;
    size_t k;
    brg_status status;
} worker;

static void *work(void *arg)
{
    worker *w = arg;
    w->status = w->share(w->user, w->k);
    return NULL;
}

brg_status ranks_by_threads(size_t n, brg_status (*share)(void *user, size_t k),
                            brg_status (*meanwhile)(void *user), void *user)
{
    pthread_t threads[RANKS_MAX_THREADS];
    worker workers[RANKS_MAX_THREADS];
    for (size_t k = 0; k < n; k++) {
        workers[k] = (worker){.share = share, .user = user, .k = k};
        if (pthread_create(&threads[k], NULL, work, &workers[k]) != 0)
            abort();
    }
    brg_status status = meanwhile ? meanwhile(user) : BRG_OK;
    for (size_t k = 0; k < n; k++) {
        pthread_join(threads[k], NULL);
        status = status == BRG_OK ? workers[k].status : status;
    }
    return status;
}

/* ---- Counting malloc: the C library's own, with a counter before it ---------- */

static _Atomic uint64_t n_mallocs;

uint64_t ranks_n_mallocs(void)
{
    return atomic_load(&n_mallocs);
}

#if defined(__GLIBC__) && !defined(__SANITIZE_ADDRESS__) &&                    \
    !defined(__SANITIZE_THREAD__)
extern void *__libc_malloc(size_t nbytes);
extern void *__libc_calloc(size_t n, size_t nbytes);
extern void *__libc_realloc(void *ptr, size_t nbytes);
extern void *__libc_memalign(size_t alignment, size_t nbytes);

void *malloc(size_t nbytes)
{
    atomic_fetch_add(&n_mallocs, 1);
    return __libc_malloc(nbytes);
}

void *calloc(size_t n, size_t nbytes)
{
    atomic_fetch_add(&n_mallocs, 1);
    return __libc_calloc(n, nbytes);
}

void *realloc(void *ptr, size_t nbytes)
{
    atomic_fetch_add(&n_mallocs, 1);
    return __libc_realloc(ptr, nbytes);
}

int posix_memalign(void **out, size_t alignment, size_t nbytes)
{
    atomic_fetch_add(&n_mallocs, 1);
    *out = __libc_memalign(alignment, nbytes);
    return *out ? 0 : 12; /* ENOMEM */
}

void *aligned_alloc(size_t alignment, size_t nbytes)
{
    atomic_fetch_add(&n_mallocs, 1);
    return __libc_memalign(alignment, nbytes);
}
#endif
