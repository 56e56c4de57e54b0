/* SPDX-License-Identifier: Apache-2.0
 * check_finite and measure_norm of gradients on GPUs, one per rank, the ranks
 * started by mpirun: what is not finite is named on all ranks, norms have the
 * bits of brg_clip_grad_norm, and neither makes the host wait. */
#include "tests/reducer/finite_ddp_checks.h"

#include "tests/cuda/gpu_ranks.h"

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

static void test_looks__every_kind_of_ddp(void **state)
{
    (void)state;
    on_gpus(check_finite_ddp);
}

static void test_looks__loss_scaling(void **state)
{
    (void)state;
    on_gpus(check_loss_scaling);
}

/* ---- Raw buffers ------------------------------------------------------------------ */

#define N_RAW 4
#define COUNT 20011 /* three pieces; not aligned */
static const brg_dtype dtypes[N_RAW] = {BRG_DTYPE_F32, BRG_DTYPE_F16,
                                        BRG_DTYPE_BF16, BRG_DTYPE_F64};
static const double largest[N_RAW] = {0x1.fffffep127, 65504, 0x1.FEp127,
                                      0x1.fffffffffffffp1023};

typedef struct raw {
    brg_reducer *reducer;
    brg_reducer_param params[N_RAW];
    brg_tensor *grads[N_RAW];
} raw;

/* `bad` at element k of gradient i of the ranks in `who`. */
static brg_status raw_step(raw *x, size_t i, int64_t k, unsigned who,
                           double bad)
{
    for (size_t p = N_RAW; p-- > 0;) {
        brg_scope *scope = brg_scope_begin();
        brg_status status = brg_fill_(x->grads[p], 0.5);
        if (status == BRG_OK && p == i && who >> rank & 1u)
            status = brg_fill_(brg_narrow(x->grads[p], 0, k, 1), bad);
        brg_scope_end(scope);
        BRG_TRY(status);
        BRG_TRY(brg_reducer_mark_ready(x->reducer, p));
    }
    return brg_reducer_wait(x->reducer);
}

static brg_status raw_expect(const raw *x, size_t n_bad, int bad, size_t param)
{
    brg_finite_info info;
    const bool all = brg_reducer_grads_finite(x->reducer, &info);
    RANK_CHECK(all == (n_bad == 0) && info.n_ranks == n_bad &&
                   info.rank == bad && info.param == param,
               "rank %d: %d: %zu ranks, rank %d, parameter %zu; expected %zu, "
               "%d, %zu",
               rank, all, info.n_ranks, info.rank, info.param, n_bad, bad,
               param);
    for (size_t i = 0; all && i < N_RAW; i++) {
        double high;
        brg_scope *scope = brg_scope_begin();
        brg_status status = brg_tensor_item(
            brg_amax(brg_abs(x->grads[i]), 0, NULL, false), &high);
        brg_scope_end(scope);
        BRG_TRY(status);
        RANK_CHECK(isfinite(high), "result %zu is not finite", i);
    }
    return BRG_OK;
}

/* As large as may be: the average is finite. */
static double highest(size_t i)
{
    const double ulp = 32; /* of the largest f16 */
    if (n_ranks == 1)
        return largest[i];
    if (dtypes[i] == BRG_DTYPE_F16)
        return largest[i] - 2 * n_ranks * ulp;
    return largest[i] * (1 - ldexp(1, -5)) / n_ranks;
}

static brg_status raw_steps(raw *x)
{
    static const int64_t places[] = {0, 1, 8191, 8192, COUNT - 1};
    const double bad[3] = {NAN, INFINITY, -INFINITY};
    for (size_t k = 0; k < N_RAW * 5; k++) {
        const int who = (int)k % n_ranks;
        BRG_TRY(
            raw_step(x, k % N_RAW, places[k / N_RAW], 1u << who, bad[k % 3]));
        BRG_TRY(raw_expect(x, 1, who, k % N_RAW));
    }
    for (size_t i = 0; i < N_RAW; i++) {
        BRG_TRY(raw_step(x, i, 77, ~0u, largest[i]));
        BRG_TRY(n_ranks == 1 ? raw_expect(x, 0, -1, SIZE_MAX)
                             : raw_expect(x, (size_t)n_ranks, -1, i));
        BRG_TRY(raw_step(x, i, 77, ~0u, highest(i)));
        BRG_TRY(raw_expect(x, 0, -1, SIZE_MAX));
    }
    return brg_reducer_confirm(x->reducer);
}

static brg_status raw_body(brg_pg *pg)
{
    for (int k = 0; k < 2; k++) {
        raw x;
        brg_reducer_options options = BRG_REDUCER_OPTIONS_INIT;
        options.check_finite = true;
        options.first_bucket_bytes = options.bucket_bytes = k ? 1 : 0;
        for (size_t i = 0; i < N_RAW; i++) {
            x.grads[i] = brg_empty(dtypes[i], BRG_SHAPE(COUNT));
            RANK_CHECK(x.grads[i], "gradient %zu", i);
            x.params[i] =
                (brg_reducer_param){.grad = brg_tensor_data(x.grads[i]),
                                    .count = COUNT,
                                    .dtype = dtypes[i],
                                    .device = mine()};
        }
        BRG_TRY(brg_reducer_create(&x.reducer, pg, x.params, N_RAW, &options));
        const brg_status status = raw_steps(&x);
        brg_reducer_destroy(x.reducer);
        BRG_TRY(status);
    }
    return BRG_OK;
}

static void test_looks__raw_buffers(void **state)
{
    (void)state;
    on_gpus(raw_body);
}

/* ---- Norms ------------------------------------------------------------------------ */

#define N_PARAMS 250 /* more than one launch takes */

typedef struct model {
    brg_params *params;
    brg_tensor *list[N_PARAMS];
    brg_ddp *ddp;
} model;

static brg_status model_make(model *m, brg_pg *pg, size_t bucket)
{
    brg_ddp_options options = BRG_DDP_OPTIONS_INIT;
    options.measure_norm = options.check_finite = true;
    options.first_bucket_bytes = options.bucket_bytes = bucket;
    BRG_TRY(brg_params_create(&m->params));
    for (int i = 0; i < N_PARAMS; i++) {
        static const brg_dtype kinds[3] = {BRG_DTYPE_F32, BRG_DTYPE_BF16,
                                           BRG_DTYPE_F16};
        char name[16];
        snprintf(name, sizeof name, "p%d", i);
        brg_seed(50 + (uint64_t)i);
        m->list[i] = brg_cast(
            brg_randn(BRG_DTYPE_F32, BRG_SHAPE(i % 7 ? 97 + i : 30011)),
            kinds[i % 3]);
        BRG_TRY(brg_set_requires_grad(m->list[i], true));
        BRG_TRY(brg_params_add(m->params, name, m->list[i], BRG_PARAM_TRAINED));
    }
    return brg_ddp_create(&m->ddp, pg, m->list, N_PARAMS, NULL, 0, &options);
}

#define SPOILT (-1)

/* The gradient of each parameter p of rank r in step s is (1 + r) (1 + s) p;
 * infinite if the step is SPOILT. */
static brg_status model_backward(model *m, int step)
{
    brg_scope *scope = brg_scope_begin();
    brg_tensor *loss = NULL;
    brg_status status = BRG_OK;
    for (int i = 0; i < N_PARAMS && status == BRG_OK; i++) {
        brg_tensor *p = m->list[i];
        status = brg_tensor_set_grad(p, NULL);
        brg_tensor *term = brg_sum_all(brg_mul(p, brg_detach(p)));
        term = brg_cast(term, BRG_DTYPE_F32);
        loss = loss ? brg_add(loss, term) : term;
    }
    if (status == BRG_OK)
        status = brg_backward(brg_mul_scalar(
            loss,
            step == SPOILT ? INFINITY : (double)((1 + rank) * (1 + step))));
    brg_scope_end(scope);
    return status;
}

static brg_status read_one(brg_tensor *t, float *values, size_t *n)
{
    const size_t numel = (size_t)brg_tensor_numel(t);
    brg_scope *scope = brg_scope_begin();
    brg_status status = brg_tensor_read(brg_cast(brg_detach(t), BRG_DTYPE_F32),
                                        values + *n, numel * sizeof *values);
    brg_scope_end(scope);
    *n += numel;
    return status;
}

static brg_status gradients(const model *m, float *values, size_t *n)
{
    *n = 0;
    for (int i = 0; i < N_PARAMS; i++)
        BRG_TRY(read_one(brg_tensor_grad(m->list[i]), values, n));
    return BRG_OK;
}

static brg_status read_params(const model *m, float *values)
{
    size_t n = 0;
    for (int i = 0; i < N_PARAMS; i++)
        BRG_TRY(read_one(m->list[i], values, &n));
    return BRG_OK;
}

#define MAX_VALUES 1200000
static float by_ddp[MAX_VALUES], by_all[MAX_VALUES];

/* The same factor, from norms with the same bits. */
static brg_status clip_alike(model *m, int step, double *norm)
{
    double want, left;
    size_t n;
    BRG_TRY(model_backward(m, step));
    BRG_TRY(brg_clip_grad_norm(&want, m->params, 1e30, false)); /* measures */
    *norm = brg_reducer_grad_norm(brg_ddp_reducer(m->ddp));
    RANK_CHECK(*norm == want && want > 0, "the norm is %.17g, not %.17g", *norm,
               want);
    BRG_TRY(brg_ddp_clip_grad_norm(m->ddp, want / 3, &left));
    RANK_CHECK(left == want, "the norm is %.17g, not %.17g", left, want);
    BRG_TRY(gradients(m, by_ddp, &n));
    BRG_TRY(model_backward(m, step));
    BRG_TRY(brg_clip_grad_norm(NULL, m->params, want / 3, false));
    BRG_TRY(gradients(m, by_all, &n));
    RANK_CHECK(memcmp(by_ddp, by_all, n * sizeof *by_ddp) == 0,
               "clipped in other bits");
    return BRG_OK;
}

/* From the third step on. */
static brg_status waits_for_nothing(model *m)
{
    brg_device_counts before = {0}, after;
    for (int step = 0; step < 8; step++) {
        if (step == 3)
            BRG_TRY(brg_device_get_counts(mine(), &before));
        BRG_TRY(model_backward(m, step));
        BRG_TRY(brg_ddp_clip_grad_norm(m->ddp, 1e-3, NULL));
    }
    BRG_TRY(brg_device_get_counts(mine(), &after));
    RANK_CHECK(after.n_waits == before.n_waits, "%d waits",
               (int)(after.n_waits - before.n_waits));
    RANK_CHECK(brg_ddp_grads_finite(m->ddp, NULL), "they are not finite");
    return brg_ddp_confirm(m->ddp);
}

static brg_status norm_body(brg_pg *pg)
{
    double norms[2] = {0};
    for (int k = 0; k < 2; k++) {
        model m = {0};
        brg_status status = model_make(&m, pg, k ? 0 : 30000);
        for (int step = 0; status == BRG_OK && step < 3; step++)
            status = clip_alike(&m, step, &norms[k]);
        if (status == BRG_OK)
            status = waits_for_nothing(&m);
        brg_ddp_destroy(m.ddp);
        brg_params_destroy(m.params);
        BRG_TRY(status);
    }
    RANK_CHECK(norms[0] == norms[1], "other buckets, another norm");
    BRG_TRY(ranks_same_bits(over, norms, sizeof norms));
    if (rank == 0)
        printf("%d ranks: norm %.9g\n", n_ranks, norms[0]);
    return BRG_OK;
}

static void test_looks__clipping_by_the_norm_of_buckets(void **state)
{
    (void)state;
    on_gpus(norm_body);
}

/* ---- Steps that are left out ------------------------------------------------------ */

#define N_TRAIN_STEPS 10

static bool is_bad(int step)
{
    return step == 0 || step == 4 || step == 5;
}

static brg_status train_step(model *m, brg_optim *optim, int step, bool asks)
{
    const bool spoils = is_bad(step) && rank == step % n_ranks;
    BRG_TRY(model_backward(m, spoils ? SPOILT : step));
    BRG_TRY(brg_scale_grad(m->params, 0.01));
    if (!asks || brg_ddp_grads_finite(m->ddp, NULL))
        BRG_TRY(brg_optim_step(optim));
    return brg_optim_zero_grad(optim, false);
}

/* The host asks before each step, or the GPU leaves out the bad ones. */
static brg_status train(model *m, bool asks, float *values)
{
    brg_optim *optim;
    brg_device_counts before = {0}, after;
    BRG_TRY(brg_optim_create_adamw(&optim, m->params, NULL));
    brg_status status =
        asks ? BRG_OK
             : brg_optim_set_found_inf(optim, brg_ddp_found_inf(m->ddp));
    for (int step = 0; status == BRG_OK && step < N_TRAIN_STEPS; step++) {
        if (step == 3)
            status = brg_device_get_counts(mine(), &before);
        if (status == BRG_OK)
            status = train_step(m, optim, step, asks);
    }
    if (status == BRG_OK)
        status = brg_device_get_counts(mine(), &after);
    (void)brg_optim_state_at(optim, 0); /* what became of the last step */
    const int n = (int)brg_optim_n_skipped(optim);
    brg_optim_destroy(optim);
    BRG_TRY(status);
    RANK_CHECK(n == (asks ? 0 : 3), "%d steps were left out", n);
    RANK_CHECK(asks || after.n_waits == before.n_waits, "%d waits",
               (int)(after.n_waits - before.n_waits));
    return read_params(m, values);
}

static brg_status left_out_body(brg_pg *pg)
{
    memset(by_ddp, 0, sizeof by_ddp);
    memset(by_all, 0, sizeof by_all);
    for (int k = 0; k < 2; k++) {
        model m = {0};
        brg_status status = model_make(&m, pg, 30000);
        if (status == BRG_OK)
            status = train(&m, k == 0, k == 0 ? by_all : by_ddp);
        brg_ddp_destroy(m.ddp);
        brg_params_destroy(m.params);
        BRG_TRY(status);
    }
    RANK_CHECK(memcmp(by_ddp, by_all, sizeof by_ddp) == 0, "other bits");
    for (size_t i = 0; i < MAX_VALUES; i++)
        RANK_CHECK(isfinite(by_ddp[i]), "a bad step was made");
    return ranks_same_bits(over, by_ddp, sizeof by_ddp);
}

static void test_looks__bad_steps_are_left_out(void **state)
{
    (void)state;
    on_gpus(left_out_body);
}

int main(int argc, char **argv)
{
    int status = gpu_ranks_begin(argc, argv);
    if (status)
        return status;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_looks__every_kind_of_ddp),
        cmocka_unit_test(test_looks__loss_scaling),
        cmocka_unit_test(test_looks__raw_buffers),
        cmocka_unit_test(test_looks__clipping_by_the_norm_of_buckets),
        cmocka_unit_test(test_looks__bad_steps_are_left_out),
    };
    return gpu_ranks_end(
        cmocka_run_group_tests_name("looks", tests, NULL, NULL));
}
