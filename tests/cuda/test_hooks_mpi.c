/* SPDX-License-Identifier: Apache-2.0
 * Communication hooks with gradients on GPUs, one per rank, over NCCL: results
 * of the same hook on the CPU over MPI, state saved and loaded, steps launched
 * as one graph, hooks of the user's. */
#include "core/tensor/device.h"
#include "tests/cuda/gpu_ranks.h"
#include "tests/cuda/steps.h"
#include "tests/support/ranks.h"

/* ---- Hooks ------------------------------------------------------------------------ */

typedef enum hook_kind {
    F16_FED_BACK,
    BF16_FED_BACK,
    Q8,
    Q8_FED_BACK,
    POWERSGD,
    POWERSGD_COLD,
    OWN,
    N_HOOKS
} hook_kind;

static const char *const hook_names[N_HOOKS] = {
    "f16 fed back", "bf16 fed back", "q8",    "q8 fed back",
    "powersgd 4",   "powersgd cold", "user's"};

/* How far sums may be off: NCCL's own of 16 bits round by themselves, unless
 * BRG_NCCL_WIDE_SUMS=1; those of blocks are the CPU's; products of PowerSGD are
 * cuBLAS's. */
static const double allowed[N_HOOKS] = {5e-4, 4e-3, 0, 0, 1e-3, 1e-3, 1e-6};

static size_t own_wire_bytes(void *user, const brg_hook_bucket *b)
{
    (void)user;
    return b->count * brg_dtype_size(b->dtype);
}

static brg_status own_copy(const brg_hook_bucket *b, void *to, const void *from)
{
    return brg__device_copy(b->device, to, b->device, from,
                            b->count * brg_dtype_size(b->dtype));
}

static brg_status own_start(void *user, const brg_hook_bucket *b)
{
    void *stream = NULL;
    (void)user;
    if (b->device.type != BRG_DEVICE_CPU)
        BRG_TRY(brg_device_stream(b->device, &stream));
    RANK_CHECK(stream || b->device.type == BRG_DEVICE_CPU, "no stream");
    BRG_TRY(own_copy(b, b->wire, b->data));
    return brg_all_reduce(b->pg, b->work, b->wire, b->count, b->dtype, b->op);
}

static brg_status own_finish(void *user, const brg_hook_bucket *b)
{
    brg_work *work = *b->work;
    (void)user;
    *b->work = NULL;
    BRG_TRY(brg_work_wait(work));
    return own_copy(b, b->data, b->wire);
}

static brg_status own_version(void *user, uint64_t *version)
{
    (void)user;
    *version = 1;
    return BRG_OK;
}

static brg_comm_hook *make_hook(hook_kind which)
{
    brg_comm_hook *hook;
    brg_powersgd_options how = BRG_POWERSGD_OPTIONS_INIT;
    brg_comm_hook_ops own = {.struct_size = sizeof own,
                             .name = "copy",
                             .wire_bytes = own_wire_bytes,
                             .start = own_start,
                             .finish = own_finish,
                             .works_on_devices = true,
                             .version = own_version};
    how.rank = 4;
    how.min_saving = 1;
    how.no_warm_start = which == POWERSGD_COLD;
    if (which == OWN)
        assert_brg_ok(brg_comm_hook_create(&hook, &own, NULL));
    else if (which >= POWERSGD)
        assert_brg_ok(brg_comm_hook_create_powersgd(&hook, &how));
    else if (which >= Q8)
        assert_brg_ok(brg_comm_hook_create_q8(&hook, which == Q8_FED_BACK));
    else
        assert_brg_ok(brg_comm_hook_create_cast(
            &hook, which == F16_FED_BACK ? BRG_DTYPE_F16 : BRG_DTYPE_BF16,
            true));
    return hook;
}

/* ---- The same gradients here and there --------------------------------------------- */

#define N 6
#define N_HOOK_STEPS 7
#define BAD_STEP 3
#define RESUMED_STEP 5
static const size_t counts[N] = {150000, 70, 33, 100003, 130, 1};
static const size_t rows[N] = {500, 0, 0, 0, 13, 0};
static const brg_dtype dtypes[N] = {BRG_DTYPE_F32,  BRG_DTYPE_F64,
                                    BRG_DTYPE_BF16, BRG_DTYPE_F32,
                                    BRG_DTYPE_F32,  BRG_DTYPE_F32};

/* Results of all steps, one gradient behind the other, as f64. */
typedef struct results {
    double *at;
    size_t n;
} results;

typedef struct trainer {
    hook_kind which;
    brg_device device;
    brg_pg *pg;
    brg_comm_hook *hook;
    brg_reducer *reducer;
    brg_tensor *grads[N];
} trainer;

static void open_trainer(trainer *t, hook_kind which, brg_pg *pg,
                         brg_device device)
{
    static const char *const names[N] = {"weight", "b", "c", "d", "wide", "e"};
    brg_reducer_param params[N] = {{0}};
    brg_reducer_options options = BRG_REDUCER_OPTIONS_INIT;
    *t = (trainer){.which = which, .device = device, .pg = pg};
    assert_brg_ok(brg_device_set(device));
    for (size_t i = 0; i < N; i++) {
        t->grads[i] = assert_brg_some(
            brg_zeros(dtypes[i], BRG_SHAPE((int64_t)counts[i])));
        params[i] = (brg_reducer_param){.name = names[i],
                                        .grad = brg_tensor_data(t->grads[i]),
                                        .count = counts[i],
                                        .n_rows = rows[i],
                                        .dtype = dtypes[i],
                                        .device = device};
    }
    options.hook = t->hook = make_hook(which);
    /* Where in a bucket an element lies decides on last bits of NCCL's sums of
     * 16 bits: a run that goes on is to have the buckets it had. */
    options.keep_order = true;
    options.first_bucket_bytes = 700000; /* two buckets and the tail */
    options.bucket_bytes = 700000;
    assert_brg_ok(brg_reducer_create(&t->reducer, pg, params, N, &options));
    assert_brg_ok(brg_device_set(CPU));
}

static void close_trainer(trainer *t)
{
    brg_reducer_destroy(t->reducer);
    brg_comm_hook_destroy(t->hook);
}

/* All in a new one but the state, which goes through host memory. */
static void resume(trainer *t)
{
    trainer next;
    open_trainer(&next, t->which, t->pg, t->device);
    const size_t n = brg_comm_hook_state_count(t->hook);
    assert_int_equal(brg_comm_hook_state_count(next.hook), n);
    for (size_t i = 0; i < n; i++) {
        brg_tensor *from = brg_comm_hook_state_at(t->hook, i)->tensor;
        const size_t nbytes = brg_tensor_nbytes(from);
        void *bytes = malloc(nbytes);
        assert_brg_ok(brg_tensor_read(from, bytes, nbytes));
        assert_brg_ok(brg_tensor_write(
            brg_comm_hook_state_at(next.hook, i)->tensor, bytes, nbytes));
        free(bytes);
    }
    close_trainer(t);
    *t = next;
}

static void fill(trainer *t, int step)
{
    for (size_t i = 0; i < N; i++) {
        const size_t nbytes = counts[i] * brg_dtype_size(dtypes[i]);
        void *bytes = malloc(nbytes);
        for (size_t k = 0; k < counts[i]; k++)
            ranks_store(bytes, k, dtypes[i],
                        ranks_gradient(rank, step, i, k) / 3);
        if (step == BAD_STEP && rank == n_ranks - 1 && i < 2)
            ranks_store(bytes, 5, dtypes[i], i ? (double)NAN : INFINITY);
        assert_brg_ok(brg_tensor_write(t->grads[i], bytes, nbytes));
        free(bytes);
    }
}

/* The host waits for nothing, nothing is taken from the driver. */
static void reduce(trainer *t, bool is_steady)
{
    brg_device_counts before, after;
    assert_brg_ok(brg_device_get_counts(t->device, &before));
    for (size_t i = 0; i < N; i++)
        assert_brg_ok(brg_reducer_mark_ready(t->reducer, i));
    assert_brg_ok(brg_reducer_wait(t->reducer));
    assert_brg_ok(brg_device_get_counts(t->device, &after));
    if (!is_steady)
        return;
    assert_int_equal(after.n_waits, before.n_waits);
    assert_int_equal(after.n_allocs, before.n_allocs);
    assert_int_equal(after.reserved, before.reserved);
}

static void keep(trainer *t, results *r)
{
    for (size_t i = 0; i < N; i++) {
        const size_t nbytes = counts[i] * brg_dtype_size(dtypes[i]);
        void *bytes = malloc(nbytes);
        assert_brg_ok(brg_tensor_read(t->grads[i], bytes, nbytes));
        for (size_t k = 0; k < counts[i]; k++)
            r->at[r->n++] = ranks_load(bytes, k, dtypes[i]);
        free(bytes);
    }
}

static results train(hook_kind which, brg_pg *pg, brg_device device,
                     bool is_resumed)
{
    results r = {.n = 0};
    trainer t;
    size_t n = 0;
    for (size_t i = 0; i < N; i++)
        n += counts[i];
    r.at = malloc(n * N_HOOK_STEPS * sizeof *r.at);
    assert_non_null(r.at);
    brg_scope *scope = brg_scope_begin();
    open_trainer(&t, which, pg, device);
    for (int step = 0; step < N_HOOK_STEPS; step++) {
        if (is_resumed && step == RESUMED_STEP)
            resume(&t);
        fill(&t, step);
        reduce(&t, step > 2 && !is_resumed);
        keep(&t, &r);
    }
    close_trainer(&t);
    brg_scope_end(scope);
    return r;
}

/* The largest difference; what is not finite must be so on both sides. */
static double difference(const results *got, const results *want)
{
    double worst = 0;
    assert_int_equal(got->n, want->n);
    for (size_t i = 0; i < want->n; i++) {
        if (isfinite(want->at[i]) && isfinite(got->at[i]))
            worst = fmax(worst, fabs(got->at[i] - want->at[i]));
        else if (isfinite(want->at[i]) != isfinite(got->at[i]))
            return INFINITY;
    }
    return worst;
}

static void check_kind(hook_kind which, brg_pg *pg)
{
    results here = train(which, over, CPU, false);
    results there = train(which, pg, mine(), false);
    results again = train(which, pg, mine(), false);
    results resumed = train(which, pg, mine(), true);
    const double off = difference(&there, &here);
    printf("%s, %d ranks: off by %.2g\n", hook_names[which], n_ranks, off);
    const char *wide = getenv("BRG_NCCL_WIDE_SUMS");
    const bool is_wide = wide && strcmp(wide, "1") == 0;
    assert_true(off <=
                (is_wide && which <= BF16_FED_BACK ? 0 : allowed[which]));
    assert_true(difference(&again, &there) == 0);
    assert_true(difference(&resumed, &there) == 0);
    free(here.at);
    free(there.at);
    free(again.at);
    free(resumed.at);
}

static void test_hooks__equal_those_of_the_cpu(void **state)
{
    (void)state;
    brg_pg *pg;
    assert_brg_ok(brg_nccl_create(&pg, over, mine()));
    for (int which = 0; which < N_HOOKS; which++)
        check_kind((hook_kind)which, pg);
    brg_pg_destroy(pg);
}

/* ---- Steps launched as one graph ------------------------------------------------------ */

static void run(hook_kind which, way w, brg_pg *pg, outcome *o)
{
    model m;
    brg_ddp *ddp;
    size_t n = 0;
    brg_ddp_options options = BRG_DDP_OPTIONS_INIT;
    options.first_bucket_bytes = 4096;
    options.bucket_bytes = 16384;
    options.hook = make_hook(which);
    memset(o, 0, sizeof *o);
    brg_scope *scope = brg_scope_begin();
    assert_brg_ok(brg_device_set(mine()));
    model_init(&m, MLP, BRG_DTYPE_F32, &plain);
    brg_tensor *const *tensors =
        brg_params_tensors(m.params, BRG_PARAM_TRAINED, &n);
    assert_brg_ok(brg_ddp_create(&ddp, pg, tensors, n, NULL, 0, &options));
    run_steps(&m, w, BRG_DTYPE_F32, rank, n_ranks, o);
    assert_brg_ok(brg_ddp_confirm(ddp));
    brg_ddp_destroy(ddp);
    brg_comm_hook_destroy(options.hook);
    model_free(&m);
    assert_brg_ok(brg_device_set(CPU));
    brg_scope_end(scope);
}

static void test_hooks__in_launched_steps(void **state)
{
    (void)state;
    static const hook_kind kinds[] = {BF16_FED_BACK, Q8_FED_BACK, POWERSGD,
                                      OWN};
    static outcome want, got;
    brg_pg *pg;
    assert_brg_ok(brg_nccl_create(&pg, over, mine()));
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        run(kinds[i], EAGER, pg, &want);
        run(kinds[i], LAUNCHED, pg, &got);
        printf("%s: ", hook_names[kinds[i]]);
        check_bits(MLP, LAUNCHED, &got, &want);
        check_counts(MLP, LAUNCHED, &got);
        assert_int_equal(got.counts.n_waits, 0);
    }
    brg_pg_destroy(pg);
}

int main(int argc, char **argv)
{
    int status = gpu_ranks_begin(argc, argv);
    if (status)
        return status;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_hooks__equal_those_of_the_cpu),
        cmocka_unit_test(test_hooks__in_launched_steps),
    };
    return gpu_ranks_end(
        cmocka_run_group_tests_name("hooks", tests, NULL, NULL));
}
