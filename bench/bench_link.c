/* SPDX-License-Identifier: Apache-2.0
 * A training step over a network that is the limit: the reducer beside what a
 * program would do with MPI alone, in turn, in one run.
 *
 *     alone     no communication
 *     sizes     brg_ddp, buckets by size
 *     measured  brg_ddp, buckets by measurement
 *     whole     the same, the step compiled as one plan
 *     whole_alone   such a step without communication
 *     blocking  all gradients in one MPI_Allreduce after the backward
 *     layers    MPI_Iallreduce of each gradient from its hook, all requests
 *               tested in each hook, waited for after the backward
 *     thread    the bare reducer; a thread of its own starts and polls, the
 *               hooks only mark
 *
 *   bench_link <model> thread         alone and thread
 *   bench_link <model> row            measured and whole, step after step, by rank
 *                                     0's clock: as bench/torch/step.py does
 *   bench_link <model> few [<file>]   alone, sizes and measured, and the link;
 *                                     the profile of the gradients to the file
 *   bench_link <model>                the others
 *
 * bench/link/run.sh makes the network and runs this. */
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <mpi.h>

#include <brigade/autograd.h>
#include <brigade/mpi.h>
#include <brigade/schedule.h>

#include "bench/bench.h"
#include "bench/models.h"

#define N_WARM_UP 2
#define N_UNTIL_MEASURED 8 /* buckets are chosen after six */
#define N_RECORDED 8
#define N_RECORDED_ALONE 20
#define N_ROUNDS_MIN (N_RECORDED + 2)
#define N_IN_ROW 40
#define MODEL_SECONDS 6.0
#define HELPER_PAUSE_US 100

typedef enum way {
    WAY_ALONE,
    WAY_BLOCKING,
    WAY_LAYERS,
    WAY_THREAD,
    WAY_SIZES,
    WAY_MEASURED,
    WAY_WHOLE,
    WAY_WHOLE_ALONE,
    N_WAYS
} way;

static const char *const way_names[N_WAYS] = {
    "alone", "blocking", "layers", "thread",
    "sizes", "measured", "whole",  "whole_alone"};

/* A model whose gradients the program itself sends: all ways but brg_ddp. */
typedef struct by_hand {
    bench_model model;
    way way;
    size_t n_bytes;
    float *flat; /* all gradients */
    MPI_Request requests[BENCH_MAX_PARAMS];
    int n_requests;
    /* of WAY_THREAD */
    pthread_t thread;
    brg_pg *pg;
    brg_reducer *reducer;
    atomic_int n_begun; /* steps: the helper polls until ... */
    atomic_int n_ended; /* ... this one has all its marks, */
    atomic_int n_done;  /* and then waits for it */
    atomic_bool is_over;
} by_hand;

typedef struct param_hook {
    by_hand *h;
    size_t i;
} param_hook;

static int world_size(void)
{
    int n;
    MPI_Comm_size(MPI_COMM_WORLD, &n);
    return n;
}

static bool is_first(void)
{
    int rank;
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    return rank == 0;
}

static double most(double value)
{
    double all;
    MPI_Allreduce(&value, &all, 1, MPI_DOUBLE, MPI_MAX, MPI_COMM_WORLD);
    return all;
}

static float *grad_of(const bench_model *m, size_t i)
{
    return brg_tensor_data(bench_some(brg_tensor_grad(m->p[i])));
}

static size_t count_of(const bench_model *m, size_t i)
{
    return (size_t)brg_tensor_numel(m->p[i]);
}

/* ---- By hand ------------------------------------------------------------------ */

static brg_status on_gradient(brg_tensor *leaf, void *user)
{
    const param_hook *p = user;
    by_hand *h = p->h;
    int flag;
    (void)leaf;
    if (h->way == WAY_LAYERS) {
        MPI_Iallreduce(MPI_IN_PLACE, grad_of(&h->model, p->i),
                       (int)count_of(&h->model, p->i), MPI_FLOAT, MPI_SUM,
                       MPI_COMM_WORLD, &h->requests[h->n_requests++]);
        MPI_Testall(h->n_requests, h->requests, &flag, MPI_STATUSES_IGNORE);
    }
    return h->way == WAY_THREAD ? brg_reducer_mark_ready(h->reducer, p->i)
                                : BRG_OK;
}

static void scale(float *values, size_t n)
{
    const float factor = 1.0f / (float)world_size();
    for (size_t k = 0; k < n; k++)
        values[k] *= factor;
}

static void reduce_flat(by_hand *h)
{
    float *at = h->flat;
    for (size_t i = 0; i < h->model.n_params; i++) {
        memcpy(at, grad_of(&h->model, i), count_of(&h->model, i) * sizeof *at);
        at += count_of(&h->model, i);
    }
    MPI_Allreduce(MPI_IN_PLACE, h->flat, (int)(at - h->flat), MPI_FLOAT,
                  MPI_SUM, MPI_COMM_WORLD);
    scale(h->flat, (size_t)(at - h->flat));
    at = h->flat;
    for (size_t i = 0; i < h->model.n_params; i++) {
        memcpy(grad_of(&h->model, i), at, count_of(&h->model, i) * sizeof *at);
        at += count_of(&h->model, i);
    }
}

static void finish_layers(by_hand *h)
{
    MPI_Waitall(h->n_requests, h->requests, MPI_STATUSES_IGNORE);
    h->n_requests = 0;
    for (size_t i = 0; i < h->model.n_params; i++)
        scale(grad_of(&h->model, i), count_of(&h->model, i));
}

static void finish_thread(by_hand *h)
{
    int step = atomic_fetch_add(&h->n_ended, 1) + 1;
    while (atomic_load(&h->n_done) < step)
        sched_yield();
}

static void step_by_hand(by_hand *h)
{
    bench_model *m = &h->model;
    brg_scope *scope = brg_scope_begin();
    bench_must(brg_optim_zero_grad(m->optim, true));
    brg_tensor *loss = m->loss(m);
    atomic_fetch_add(&h->n_begun, h->way == WAY_THREAD);
    bench_must(brg_backward(loss));
    if (h->way == WAY_BLOCKING)
        reduce_flat(h);
    if (h->way == WAY_LAYERS)
        finish_layers(h);
    if (h->way == WAY_THREAD)
        finish_thread(h);
    bench_must(brg_optim_step(m->optim));
    bench_must(brg_tensor_item(loss, &m->last_loss));
    brg_scope_end(scope);
}

static void init_by_hand(by_hand *h, const char *name, uint64_t seed)
{
    static param_hook hooks[BENCH_MAX_PARAMS];
    *h = (by_hand){.way = WAY_ALONE};
    bench_model *m = &h->model;
    bench_model_init(m, name, seed);
    for (size_t i = 0; i < m->n_params; i++) {
        brg_hook *unused;
        hooks[i] = (param_hook){h, i};
        h->n_bytes += count_of(m, i) * sizeof(float);
        bench_must(brg_tensor_add_post_accumulate_hook(
            &unused, m->p[i], on_gradient, &hooks[i], NULL));
    }
    h->flat = malloc(h->n_bytes);
    if (h->flat == NULL)
        bench_fail("out of memory");
    step_by_hand(h); /* gradients are there, and stay where they are */
}

/* ---- The helper thread ----------------------------------------------------------- */

static void open_reducer(by_hand *h)
{
    brg_reducer_param params[BENCH_MAX_PARAMS] = {{0}};
    const bench_model *m = &h->model;
    for (size_t i = 0; i < m->n_params; i++)
        params[i] = (brg_reducer_param){.grad = grad_of(m, i),
                                        .count = count_of(m, i),
                                        .dtype = BRG_DTYPE_F32};
    bench_must(brg_pg_create(&h->pg, "mpi", NULL));
    bench_must(
        brg_reducer_create(&h->reducer, h->pg, params, m->n_params, NULL));
}

static void *help(void *user)
{
    by_hand *h = user;
    const struct timespec pause = {0, HELPER_PAUSE_US * 1000};
    open_reducer(h);
    atomic_store(&h->n_done, 0);
    for (int step = 1;; step++) {
        while (atomic_load(&h->n_begun) < step && !atomic_load(&h->is_over))
            nanosleep(&pause, NULL);
        if (atomic_load(&h->is_over))
            break;
        while (atomic_load(&h->n_ended) < step) {
            bench_must(brg_reducer_poll(h->reducer));
            nanosleep(&pause, NULL);
        }
        bench_must(brg_reducer_wait(h->reducer));
        atomic_store(&h->n_done, step);
    }
    brg_reducer_destroy(h->reducer);
    brg_pg_destroy(h->pg);
    return NULL;
}

static void start_helper(by_hand *h)
{
    atomic_store(&h->n_done, -1);
    if (pthread_create(&h->thread, NULL, help, h) != 0)
        bench_fail("no thread");
    while (atomic_load(&h->n_done) < 0)
        sched_yield();
}

static void stop_helper(by_hand *h)
{
    atomic_store(&h->is_over, true);
    pthread_join(h->thread, NULL);
}

/* ---- All ways in turn --------------------------------------------------------------- */

typedef struct contest {
    by_hand by_hand;
    bench_model ddp[N_WAYS - WAY_SIZES];
    bool has[N_WAYS];
    double *times[N_WAYS];
    size_t n;
} contest;

static double time_step(contest *c, way w)
{
    double best = 0;
    MPI_Barrier(MPI_COMM_WORLD);
    const double start = bench_seconds();
    if (w >= WAY_SIZES) {
        (void)bench_model_time_as(&c->ddp[w - WAY_SIZES],
                                  w >= WAY_WHOLE ? BENCH_WHOLE : BENCH_EAGER,
                                  1);
    } else {
        c->by_hand.way = w;
        step_by_hand(&c->by_hand);
    }
    best = bench_seconds() - start;
    c->by_hand.way = WAY_ALONE;
    return most(best);
}

static void run_rounds(contest *c)
{
    for (int w = 0; w < N_WAYS; w++) {
        int n = w >= WAY_MEASURED ? N_UNTIL_MEASURED : N_WARM_UP;
        for (int i = 0; i < n && c->has[w]; i++)
            (void)time_step(c, (way)w);
    }
    const double end = most(bench_seconds() + MODEL_SECONDS);
    if (c->has[WAY_SIZES])
        bench_must(brg_ddp_record(c->ddp[0].ddp, N_RECORDED));
    while (c->n < N_ROUNDS_MIN ||
           (c->n < BENCH_MAX_PASSES && !(most(bench_seconds()) > end))) {
        for (int w = 0; w < N_WAYS; w++)
            if (c->has[w])
                c->times[w][c->n] = time_step(c, (way)w);
        c->n++;
    }
}

/* Of the times beside those of the same step without communication: the median
 * of the differences. */
static double over_alone(const contest *c, way w)
{
    const way alone = w >= WAY_WHOLE ? WAY_WHOLE_ALONE : WAY_ALONE;
    double values[BENCH_MAX_PASSES];
    for (size_t k = 0; k < c->n; k++)
        values[k] = c->times[w][k] - c->times[alone][k];
    return bench_median(values, c->n);
}

/* An all-reduce of ours with nothing beside it. */
static double time_transfer(brg_pg *pg, size_t n_bytes)
{
    enum { N = 9 };
    double values[N];
    void *data;
    bench_must(brg_pg_alloc(pg, &data, n_bytes));
    for (int i = -2; i < N; i++) { /* two to warm up */
        brg_work *work;
        MPI_Barrier(MPI_COMM_WORLD);
        const double start = bench_seconds();
        bench_must(brg_all_reduce(pg, &work, data, n_bytes / sizeof(float),
                                  BRG_DTYPE_F32, BRG_REDUCE_AVG));
        bench_must(brg_work_wait(work));
        values[i < 0 ? 0 : i] = most(bench_seconds() - start);
    }
    brg_pg_free(pg, data);
    return bench_median(values, N);
}

/* The link at its best: an all-reduce that is waited for, short and long. */
static double measure_best(brg_pg *pg, size_t n_bytes, brg_link *filled)
{
    const size_t little = 1024;
    const double transfer = time_transfer(pg, n_bytes);
    *filled = (brg_link){.n = 2};
    filled->at[0] = (brg_link_point){
        .nbytes = little, .ns = (uint64_t)(1e9 * time_transfer(pg, little))};
    filled->at[1] =
        (brg_link_point){.nbytes = n_bytes, .ns = (uint64_t)(1e9 * transfer)};
    return transfer;
}

/* Steps as predicted from ready times and the group's own measurement. */
static void print_predicted(const contest *c, const brg_profile *profile,
                            const brg_link *link, const char *prefix)
{
    for (int w = WAY_SIZES; w <= WAY_MEASURED; w++) {
        char name[32];
        uint32_t buckets[BENCH_MAX_PARAMS];
        brg_schedule s;
        brg_reducer_stats stats;
        double values[BENCH_MAX_PASSES];
        bench_must(w == WAY_SIZES
                       ? brg_schedule_by_size(buckets, profile, 0, 0)
                       : brg_schedule_choose(buckets, profile, link));
        bench_must(brg_schedule_predict(&s, profile, link, buckets));
        memcpy(values, c->times[WAY_ALONE], c->n * sizeof *values);
        snprintf(name, sizeof name, "%s_predicted", way_names[w]);
        bench_print(bench_name(prefix, name),
                    1e3 * bench_median(values, c->n) +
                        1e-6 * (double)(s.busy_ns + s.exposed_ns),
                    "ms");
        brg_ddp_get_stats(c->ddp[w - WAY_SIZES].ddp, &stats);
        snprintf(name, sizeof name, "%s_buckets", way_names[w]);
        bench_print(bench_name(prefix, name), (double)stats.n_buckets, "");
    }
}

/* What the reducer hid of what could be hidden: the transfer, less what the
 * best schedule on the link at its best would leave exposed. */
static void print_hidden(const contest *c, brg_pg *pg, const char *model)
{
    char prefix[40], name[32];
    uint32_t buckets[BENCH_MAX_PARAMS];
    brg_profile *profile;
    brg_link link, ideal;
    brg_schedule best;
    bench_must(brg_link_measure(pg, c->by_hand.n_bytes, &link));
    for (size_t k = 0; k < link.n; k++)
        link.at[k].busy_ns = 0; /* the profile's steps reduced, too */
    const double transfer = measure_best(pg, c->by_hand.n_bytes, &ideal);
    bench_must(
        brg_reducer_get_profile(brg_ddp_reducer(c->ddp[0].ddp), &profile));
    bench_must(brg_schedule_choose(buckets, profile, &ideal));
    bench_must(brg_schedule_predict(&best, profile, &ideal, buckets));
    snprintf(prefix, sizeof prefix, "link.%s", model);
    if (is_first()) {
        const double could = transfer - 1e-9 * (double)best.exposed_ns;
        print_predicted(c, profile, &link, prefix);
        bench_print(bench_name(prefix, "transfer"), 1e3 * transfer, "ms");
        bench_print(bench_name(prefix, "could_be_hidden"), 1e3 * could, "ms");
        for (int w = WAY_SIZES; w <= WAY_WHOLE; w++) {
            snprintf(name, sizeof name, "hidden_%s", way_names[w]);
            bench_print(bench_name(prefix, name),
                        100 * (transfer - over_alone(c, (way)w)) / could, "%");
        }
    }
    brg_profile_destroy(profile);
}

static void open_ddp(bench_model *m, const char *name, brg_pg *pg,
                     brg_bucket_choice buckets, uint64_t seed)
{
    brg_ddp_options options = BRG_DDP_OPTIONS_INIT;
    options.buckets = buckets;
    bench_model_init(m, name, seed);
    bench_must(
        brg_ddp_create(&m->ddp, pg, m->p, m->n_params, NULL, 0, &options));
}

/* Of steps without transfers, all ranks at once. */
static brg_profile *profile_alone(const char *model)
{
    bench_model m;
    brg_pg *self;
    brg_profile *profile;
    bench_must(brg_pg_create_self(&self));
    open_ddp(&m, model, self, BRG_BUCKETS_BY_SIZE, 1);
    for (int i = 0; i < N_WARM_UP; i++)
        bench_model_step(&m);
    bench_must(brg_ddp_record(m.ddp, N_RECORDED_ALONE));
    MPI_Barrier(MPI_COMM_WORLD);
    for (int i = 0; i <= N_RECORDED_ALONE; i++)
        bench_model_step(&m);
    bench_must(brg_reducer_get_profile(brg_ddp_reducer(m.ddp), &profile));
    bench_model_deinit(&m);
    brg_pg_destroy(self);
    return profile;
}

/* What predictions for other networks are made of (link/predict.sh). */
static void print_link(const contest *c, brg_pg *pg, const char *model,
                       const char *path)
{
    char prefix[40];
    brg_profile *profile = profile_alone(model);
    brg_link ends; /* a short all-reduce, and one of all gradients */
    brg_link polled;
    (void)measure_best(pg, c->by_hand.n_bytes, &ends);
    bench_must(brg_link_measure(pg, c->by_hand.n_bytes, &polled));
    snprintf(prefix, sizeof prefix, "link.%s", model);
    if (is_first()) {
        if (path != NULL)
            bench_must(brg_profile_write(profile, path));
        bench_print(
            bench_name(prefix, "busy"),
            1e-6 * (double)brg_link_busy_ns(&polled, c->by_hand.n_bytes), "ms");
        bench_print(bench_name(prefix, "short"), 1e-6 * (double)ends.at[0].ns,
                    "ms");
        bench_print(bench_name(prefix, "transfer"),
                    1e-6 * (double)ends.at[1].ns, "ms");
        bench_print(bench_name(prefix, "gradients"),
                    1e-6 * (double)c->by_hand.n_bytes, "MB");
    }
    brg_profile_destroy(profile);
}

/* The others' steps as multiples of one of ours, pass by pass. */
static void print_ratios(const contest *c, const char *prefix, way ours,
                         const char *suffix)
{
    for (int w = WAY_BLOCKING; w <= WAY_LAYERS && is_first(); w++) {
        char name[32];
        double values[BENCH_MAX_PASSES];
        if (!c->has[w])
            continue;
        for (size_t k = 0; k < c->n; k++)
            values[k] = c->times[w][k] / c->times[ours][k];
        snprintf(name, sizeof name, "%s_%s", way_names[w], suffix);
        bench_print(bench_name(prefix, name), bench_median(values, c->n), "x");
    }
}

static void print_times(contest *c, const char *model)
{
    char prefix[40], name[32];
    snprintf(prefix, sizeof prefix, "link.%s", model);
    if (c->has[WAY_MEASURED])
        print_ratios(c, prefix, WAY_MEASURED, "ratio");
    if (c->has[WAY_WHOLE])
        print_ratios(c, prefix, WAY_WHOLE, "whole_ratio");
    for (int w = 0; w < N_WAYS && is_first(); w++) {
        if (!c->has[w])
            continue;
        snprintf(name, sizeof name, "%s_over", way_names[w]);
        if (w != WAY_ALONE && w != WAY_WHOLE_ALONE)
            bench_print(bench_name(prefix, name), 1e3 * over_alone(c, (way)w),
                        "ms");
        double values[BENCH_MAX_PASSES];
        memcpy(values, c->times[w], c->n * sizeof *values);
        bench_print(bench_name(prefix, way_names[w]),
                    1e3 * bench_median(values, c->n), "ms");
    }
}

static void run_row(brg_pg *pg, const char *name, bench_mode mode,
                    uint64_t seed)
{
    bench_model m;
    char prefix[40];
    double values[N_IN_ROW];
    open_ddp(&m, name, pg, BRG_BUCKETS_MEASURED, seed);
    for (int i = -N_UNTIL_MEASURED - N_WARM_UP; i < N_IN_ROW; i++) {
        values[i < 0 ? 0 : i] = bench_model_time_as(&m, mode, 1);
    }
    snprintf(prefix, sizeof prefix, "link.%s", name);
    if (is_first())
        bench_print(bench_name(prefix, mode == BENCH_WHOLE ? "whole_in_a_row"
                                                           : "in_a_row"),
                    1e3 * bench_median(values, N_IN_ROW), "ms");
    bench_model_deinit(&m);
}

/* file: of mode few, or NULL. */
static void run_contest(const char *name, const char *mode, brg_pg *pg,
                        uint64_t seed, const char *file)
{
    const bool has_thread = strcmp(mode, "thread") == 0;
    const bool is_few = strcmp(mode, "few") == 0;
    static contest c;
    static double times[N_WAYS][BENCH_MAX_PASSES];
    for (int w = 0; w < N_WAYS; w++) {
        c.times[w] = times[w];
        c.has[w] =
            w == WAY_ALONE || (is_few ? w == WAY_SIZES || w == WAY_MEASURED
                                      : (w == WAY_THREAD) == has_thread);
    }
    init_by_hand(&c.by_hand, name, seed);
    if (has_thread) {
        start_helper(&c.by_hand);
    } else {
        for (int w = WAY_SIZES; w <= (is_few ? WAY_MEASURED : WAY_WHOLE); w++)
            open_ddp(&c.ddp[w - WAY_SIZES], name, pg,
                     w == WAY_SIZES ? BRG_BUCKETS_BY_SIZE
                                    : BRG_BUCKETS_MEASURED,
                     seed);
        if (!is_few)
            bench_model_init(&c.ddp[WAY_WHOLE_ALONE - WAY_SIZES], name, seed);
    }
    run_rounds(&c);
    print_times(&c, name);
    if (has_thread) {
        stop_helper(&c.by_hand);
    } else {
        if (is_few)
            print_link(&c, pg, name, file);
        else
            print_hidden(&c, pg, name);
        for (int w = WAY_SIZES; w < N_WAYS; w++)
            if (c.has[w])
                bench_model_deinit(&c.ddp[w - WAY_SIZES]);
    }
    free(c.by_hand.flat);
    bench_model_deinit(&c.by_hand.model);
}

int main(int argc, char **argv)
{
    int level;
    const char *mode = argc > 2 ? argv[2] : "";
    bool has_thread = strcmp(mode, "thread") == 0;
    MPI_Init_thread(&argc, &argv, MPI_THREAD_MULTIPLE, &level);
    if (argc < 2 || (has_thread && level < MPI_THREAD_MULTIPLE))
        bench_fail("usage: bench_link <model> [thread|row|few [<file>]]; "
                   "threads need MPI_THREAD_MULTIPLE");
    brg_pg *pg = NULL;
    const uint64_t seed = is_first() ? 1 : 2;
    if (!has_thread)
        bench_must(brg_pg_create(&pg, "mpi", NULL));
    if (strcmp(mode, "row") == 0) {
        run_row(pg, argv[1], BENCH_EAGER, seed);
        run_row(pg, argv[1], BENCH_WHOLE, seed);
    } else {
        run_contest(argv[1], mode, pg, seed, argc > 3 ? argv[3] : NULL);
    }
    brg_pg_destroy(pg);
    MPI_Finalize();
    return 0;
}
