/* SPDX-License-Identifier: Apache-2.0
 * GPUs that are full, one per rank, the ranks started by mpirun: what does not
 * fit is named, in the forward, in the backward, for buckets and where a step is
 * recorded, and training goes on with a smaller batch. */
#include "tests/reducer/memory_checks.h"

#include "tests/cuda/gpu_ranks.h"

#define MIB ((int64_t)1 << 20)
#define WIDTH 1024
#define SMALL 256
#define N_LARGEST (128 * 1024)
#define N_TRIES 36 /* each with 5% less */

/* ---- Memory that others hold --------------------------------------------------------- */

#define MAX_PIECES 4096

typedef struct hog {
    brg_tensor *pieces[MAX_PIECES];
    int n;
} hog;

static brg_status take_all(hog *h, int64_t nbytes)
{
    while (h->n < MAX_PIECES) {
        brg_scope *scope = brg_scope_begin();
        brg_tensor *t = brg_empty(BRG_DTYPE_U8, BRG_SHAPE(nbytes));
        (void)brg_retain(t);
        brg_scope_end(scope);
        if (!t)
            return ranks_expect(brg_error_code(), BRG_ERR_NOMEM,
                                "out of memory on cuda:", "brg_empty",
                                __LINE__);
        h->pieces[h->n++] = t;
    }
    return BRG_OK;
}

static void give_back(hog *h, int64_t n)
{
    while (h->n > 0 && n-- > 0)
        brg_release(h->pieces[--h->n]);
    if (brg_device_synchronize(brg_device_get()) != BRG_OK)
        print_error("%s\n", brg_error_message());
}

/* All of the GPU but so many MiB. */
static brg_status fill(hog *h, int64_t left)
{
    h->n = 0;
    BRG_TRY(take_all(h, 2048 * MIB));
    give_back(h, 2); /* small pieces for more than is to be left */
    BRG_TRY(take_all(h, 32 * MIB));
    give_back(h, left / 32);
    return BRG_OK;
}

static void on_gpus(brg_status (*body)(brg_pg *pg))
{
    brg_pg *pg;
    assert_brg_ok(brg_nccl_create(&pg, over, mine()));
    assert_brg_ok(brg_device_set(mine()));
    brg_scope *scope = brg_scope_begin();
    assert_brg_ok(body(pg));
    brg_scope_end(scope);
    assert_brg_ok(brg_device_set(CPU));
    brg_pg_destroy(pg);
}

/* ---- Steps --------------------------------------------------------------------------- */

/* Of the same data and parameters. */
static brg_status small_loss(const memory_model *m, double *value)
{
    brg_scope *scope = brg_scope_begin();
    bool mode = brg_grad_mode_set(false);
    brg_tensor *loss = memory_loss(m, memory_data(m, 999, SMALL));
    (void)brg_grad_mode_set(mode);
    brg_status status = brg_tensor_item(loss, value);
    brg_scope_end(scope);
    return status;
}

/* Batches that shrink from one of which not even the forward fits. */
static brg_status shrinking_batches(memory_model *m)
{
    hog h;
    memory_result r;
    int n_of[3] = {0};
    int64_t n = N_LARGEST;
    for (int step = 0; step < 3; step++) { /* all that NCCL needs is there */
        BRG_TRY(memory_step(m, step, SMALL, SMALL, &r));
        RANK_CHECK(r == MEMORY_DONE, "step %d failed", step);
    }
    BRG_TRY(memory_same(m));
    BRG_TRY(fill(&h, 2048));
    brg_status status = BRG_OK;
    for (int k = 0; status == BRG_OK && k < N_TRIES; k++, n -= n / 20) {
        status = memory_step(m, 10 + k, n, SMALL, &r);
        n_of[r]++;
    }
    for (int step = 100; status == BRG_OK && step < 103; step++) {
        status = memory_step(m, step, SMALL, SMALL, &r);
        if (status == BRG_OK && r != MEMORY_DONE)
            status = brg_error_set(BRG_ERR_INTERNAL, __FILE__, __LINE__,
                                   "step %d failed", step);
    }
    double full = 0, empty = -1;
    if (status == BRG_OK)
        status = small_loss(m, &full);
    give_back(&h, MAX_PIECES);
    BRG_TRY(status);
    BRG_TRY(small_loss(m, &empty));
    RANK_CHECK(full == empty, "loss %.17g, with all memory %.17g", full, empty);
    printf("rank %d: %d steps made again, %d lost, %d as they were\n", rank,
           n_of[MEMORY_AGAIN], n_of[MEMORY_LOST], n_of[MEMORY_DONE]);
    RANK_CHECK(n_of[MEMORY_AGAIN] > 0 && n_of[MEMORY_LOST] > 0 &&
                   n_of[MEMORY_DONE] > 0,
               "%d made again, %d lost, %d done", n_of[MEMORY_AGAIN],
               n_of[MEMORY_LOST], n_of[MEMORY_DONE]);
    return memory_same(m);
}

static brg_status steps_body(brg_pg *pg)
{
    memory_model m;
    brg_status status = memory_make(&m, pg, WIDTH);
    if (status == BRG_OK)
        status = shrinking_batches(&m);
    memory_free(&m);
    return status;
}

static void test_memory__a_smaller_batch_goes_on(void **state)
{
    (void)state;
    on_gpus(steps_body);
}

/* ---- Recordings ---------------------------------------------------------------------- */

#define N_STEPS 8

static brg_status losses_of(memory_model *m, brg_compiled *compiled,
                            double losses[N_STEPS])
{
    for (int step = 0; step < N_STEPS; step++) {
        brg_scope *scope = brg_scope_begin();
        brg_tensor *x = memory_data(m, step, 16 * SMALL), *loss = NULL;
        brg_status status = compiled
                                ? brg_compiled_call(compiled, &x, 1, &loss, 1)
                                : memory_whole_step(&x, 1, &loss, 1, m);
        if (status == BRG_OK)
            status = brg_tensor_item(loss, &losses[step]);
        brg_scope_end(scope);
        BRG_TRY(status);
    }
    return BRG_OK;
}

/* left: MiB that others leave; 0: all. */
static brg_status run_steps(brg_pg *pg, bool is_compiled, int64_t left,
                            double losses[N_STEPS])
{
    memory_model m;
    hog h = {.n = 0};
    brg_compiled *compiled = NULL;
    brg_compile_options options = BRG_COMPILE_OPTIONS_INIT;
    options.fullgraph = options.whole = options.replay = true;
    BRG_TRY(brg_compile_reset());
    brg_status status = memory_make(&m, pg, WIDTH);
    if (status == BRG_OK && is_compiled)
        status =
            brg_compiled_create(&compiled, memory_whole_step, &m, &options);
    if (status == BRG_OK && left > 0)
        status = fill(&h, left);
    if (status == BRG_OK)
        status = losses_of(&m, compiled, losses);
    give_back(&h, MAX_PIECES);
    brg_compiled_destroy(compiled);
    memory_free(&m);
    return status;
}

/* The graph has memory of its own: with less and less left it is launched, then
 * not, and the step stays what it is as long as it fits op by op. */
static brg_status recordings_body(brg_pg *pg)
{
    static const int64_t left[] = {0, 1024, 768, 640};
    double want[N_STEPS], got[N_STEPS];
    BRG_TRY(run_steps(pg, false, 0, want));
    for (size_t i = 0; i < sizeof left / sizeof *left; i++) {
        brg_compile_stats stats;
        BRG_TRY(run_steps(pg, true, left[i], got));
        brg_compile_get_stats(&stats);
        printf("rank %d, %d MiB left: %d launches, %d skips\n", rank,
               (int)left[i], (int)stats.replay_launches,
               (int)stats.replay_skips);
        RANK_CHECK(memcmp(want, got, sizeof want) == 0, "%d MiB: other losses",
                   (int)left[i]);
        RANK_CHECK(i > 0 || stats.replay_launches > 0, "nothing was launched");
        RANK_CHECK(stats.replay_launches > 0 || stats.replay_skips > 0,
                   "neither launched nor given up");
    }
    return BRG_OK;
}

static void test_memory__recordings(void **state)
{
    (void)state;
    if (n_ranks > 1)
        skip(); /* ranks may run short in different ops of a step */
    on_gpus(recordings_body);
}

/* ---- Buckets ------------------------------------------------------------------------- */

#define N_LARGE (192 * MIB) /* 768 MiB */

/* They do not fit; then what tensors have given back is taken. */
static brg_status buckets_body(brg_pg *pg)
{
    hog h;
    brg_tensor *p[2];
    BRG_TRY(memory_two_params(p, 1000));
    BRG_TRY(memory_wrap(pg, p)); /* all that NCCL needs is there */
    BRG_TRY(memory_two_params(p, N_LARGE));
    BRG_TRY(fill(&h, 512));
    brg_status status = memory_buckets_told(memory_wrap(pg, p));
    give_back(&h, MAX_PIECES);
    BRG_TRY(status);
    return memory_wrap(pg, p);
}

static void test_memory__buckets(void **state)
{
    (void)state;
    on_gpus(buckets_body);
}

int main(int argc, char **argv)
{
    int status = gpu_ranks_begin(argc, argv);
    if (status)
        return status;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_memory__a_smaller_batch_goes_on),
        cmocka_unit_test(test_memory__recordings),
        cmocka_unit_test(test_memory__buckets),
    };
    return gpu_ranks_end(
        cmocka_run_group_tests_name("memory", tests, NULL, NULL));
}
