/* SPDX-License-Identifier: Apache-2.0
 * What works with a ddp, once eagerly and once compiled, on every rank: the
 * same bits in the end, the same errors. Cells of the table in
 * docs/compiled.md. */
#include <stdlib.h>
#include <string.h>

#include <brigade/compile.h>
#include <brigade/ops.h>
#include <brigade/random.h>
#include <brigade/recompute.h>
#include <brigade/sparse.h>

#include "tests/support/brg_test.h"
#include "tests/support/compiled_run.h"
#include "tests/support/ddp_model.h"

#define N 6

/* ---- Two layers under a ddp --------------------------------------------------------- */

typedef struct layers {
    brg_pg *pg;
    brg_tensor *w[2];
    brg_ddp *ddp;
} layers;

typedef brg_status (*feature_fn)(layers *l, int step);

static brg_tensor *data_of(const layers *l, int step)
{
    float x[4 * N];
    for (int k = 0; k < 4 * N; k++)
        x[k] = (float)ranks_gradient(brg_pg_rank(l->pg), step, 9, (size_t)k);
    return brg_from_data(BRG_DTYPE_F32, BRG_SHAPE(4, N), x);
}

static brg_status make_layers(layers *l, brg_pg *pg,
                              const brg_ddp_options *options)
{
    l->pg = pg;
    brg_seed(11);
    for (int k = 0; k < 2; k++) {
        l->w[k] = brg_randn(BRG_DTYPE_F32, BRG_SHAPE(N, N));
        BRG_TRY(brg_set_requires_grad(l->w[k], true));
    }
    return brg_ddp_create(&l->ddp, pg, l->w, 2, NULL, 0, options);
}

/* Three steps of a feature; the gradients of each, one after the other. */
static brg_status run_feature(brg_pg *pg, feature_fn feature, bool is_compiled,
                              float *grads)
{
    layers l = {0};
    compiled_run run = {0};
    brg_ddp_options options = BRG_DDP_OPTIONS_INIT;
    options.first_bucket_bytes = options.bucket_bytes = 64;
    options.allow_unused = true;
    brg_scope *scope = brg_scope_begin();
    brg_status status = make_layers(&l, pg, &options);
    if (status == BRG_OK && is_compiled)
        status = compiled_begin(&run);
    for (int step = 0; status == BRG_OK && step < 3; step++) {
        for (int k = 0; status == BRG_OK && k < 2; k++)
            status = brg_tensor_set_grad(l.w[k], NULL);
        if (status == BRG_OK)
            status = feature(&l, step);
        for (int k = 0; status == BRG_OK && k < 2; k++, grads += N * N)
            if (brg_tensor_grad(l.w[k]))
                status = brg_tensor_read(brg_tensor_grad(l.w[k]), grads,
                                         N * N * sizeof *grads);
    }
    if (run.scope)
        status = compiled_end(&run, status);
    brg_ddp_destroy(l.ddp);
    brg_scope_end(scope);
    return status;
}

static brg_status feature_rank(brg_pg *pg, void *user)
{
    float eager[6 * N * N] = {0}, compiled[6 * N * N] = {0};
    BRG_TRY(run_feature(pg, *(feature_fn *)user, false, eager));
    BRG_TRY(run_feature(pg, *(feature_fn *)user, true, compiled));
    bool is_some = false;
    for (size_t k = 0; k < 6 * N * N; k++)
        is_some |= eager[k] != 0;
    RANK_CHECK(is_some, "no gradient at all");
    RANK_CHECK(memcmp(eager, compiled, sizeof eager) == 0,
               "compiled, the gradients differ");
    return ranks_same_bits(pg, compiled, sizeof compiled);
}

static void run_everywhere(feature_fn feature)
{
    for (int n = 1; n <= 4; n++)
        assert_brg_ok(brg_sim_run(n, NULL, feature_rank, &feature));
}

#define FEATURE(name)                                                          \
    static void name(void **state)                                             \
    {                                                                          \
        (void)state;                                                           \
        run_everywhere(name##_step);                                           \
    }

/* ---- Features -------------------------------------------------------------------------- */

static brg_tensor *output_of(const layers *l, int step)
{
    brg_tensor *h = brg_tanh(brg_linear(data_of(l, step), l->w[0], NULL));
    return brg_linear(h, l->w[1], NULL);
}

static brg_status stretch(brg_tensor *const *in, brg_tensor **out, void *user)
{
    (void)user;
    out[0] = brg_dropout(brg_tanh(brg_linear(in[0], in[1], NULL)), 0.5, true);
    return out[0] ? BRG_OK : brg_error_code();
}

static brg_status checkpoint(layers *l, int step, bool is_reentrant)
{
    brg_recompute_options options = BRG_RECOMPUTE_OPTIONS_INIT;
    options.is_reentrant = is_reentrant;
    brg_tensor *in[2] = {data_of(l, step), l->w[0]}, *h = NULL;
    brg_seed((uint64_t)step);
    BRG_TRY(brg_recompute(&h, stretch, NULL, in, 2, &options));
    return brg_backward(brg_sum_all(brg_linear(h, l->w[1], NULL)));
}

static brg_status test_captured_features__checkpoints_step(layers *l, int step)
{
    return checkpoint(l, step, false);
}
FEATURE(test_captured_features__checkpoints)

static brg_status test_captured_features__reentrant_checkpoints_step(layers *l,
                                                                     int step)
{
    return checkpoint(l, step, true);
}
FEATURE(test_captured_features__reentrant_checkpoints)

/* Gradients of gradients: reduced values carry no history. */
static brg_status test_captured_features__create_graph_step(layers *l, int step)
{
    brg_tensor *loss = brg_sum_all(brg_square(output_of(l, step))), *grad[2];
    brg_backward_options options = BRG_BACKWARD_OPTIONS_INIT;
    options.create_graph = true;
    BRG_TRY(brg_grad(grad, &loss, 1, l->w, 2, &options));
    brg_tensor *penalty = brg_add(brg_sum_all(brg_square(grad[0])),
                                  brg_sum_all(brg_square(grad[1])));
    return brg_backward(brg_add(loss, penalty));
}
FEATURE(test_captured_features__create_graph)

/* brg_grad touches no leaf and sends nothing. */
static brg_status test_captured_features__brg_grad_step(layers *l, int step)
{
    brg_reducer_stats before, after;
    brg_tensor *loss = brg_sum_all(brg_square(output_of(l, step))), *grad[2];
    brg_ddp_get_stats(l->ddp, &before);
    BRG_TRY(brg_grad(grad, &loss, 1, l->w, 2, NULL));
    brg_ddp_get_stats(l->ddp, &after);
    RANK_CHECK(!brg_tensor_grad(l->w[0]) && after.n_steps == before.n_steps,
               "brg_grad reduced gradients");
    return brg_backward(brg_sum_all(output_of(l, step)));
}
FEATURE(test_captured_features__brg_grad)

/* One weight used twice: one gradient, reduced once. */
static brg_status test_captured_features__shared_weights_step(layers *l,
                                                              int step)
{
    brg_tensor *h = brg_tanh(output_of(l, step));
    return brg_backward(brg_sum_all(brg_linear(h, l->w[0], NULL)));
}
FEATURE(test_captured_features__shared_weights)

/* Two losses, one backward each, the first without reduction. */
static brg_status test_captured_features__accumulation_step(layers *l, int step)
{
    brg_ddp_set_sync(l->ddp, false);
    brg_status status = brg_backward(brg_sum_all(output_of(l, step)));
    brg_ddp_set_sync(l->ddp, true);
    BRG_TRY(status);
    return brg_backward(brg_sum_all(output_of(l, step + 10)));
}
FEATURE(test_captured_features__accumulation)

/* A weight that this rank, or none, uses, from step to step another. */
static brg_status test_captured_features__changing_graphs_step(layers *l,
                                                               int step)
{
    int which = (brg_pg_rank(l->pg) + step) % 2;
    return brg_backward(
        brg_sum_all(brg_linear(data_of(l, step), l->w[which], NULL)));
}
FEATURE(test_captured_features__changing_graphs)

/* Sparse gradients, turned dense in their buckets. */
static brg_status test_captured_features__sparse_gradients_step(layers *l,
                                                                int step)
{
    brg_embedding_options options = BRG_EMBEDDING_OPTIONS_INIT;
    options.sparse_grad = true;
    int64_t ids[] = {step, brg_pg_rank(l->pg) % N, 5};
    brg_tensor *rows = brg_embedding_with(
        l->w[0], brg_from_data(BRG_DTYPE_I64, BRG_SHAPE(3), ids), &options);
    return brg_backward(brg_sum_all(brg_linear(rows, l->w[1], NULL)));
}
FEATURE(test_captured_features__sparse_gradients)

/* A backward inside a hook of a backward that reduces. */
static brg_status inner(brg_tensor *grad, brg_tensor **replacement, void *user)
{
    (void)grad, (void)replacement;
    bool mode = brg_grad_mode_set(true);
    brg_tensor *x = user;
    brg_status status = brg_backward(brg_sum_all(brg_mul(x, x)));
    brg_grad_mode_set(mode);
    return status;
}

static brg_status test_captured_features__backward_inside_step(layers *l,
                                                               int step)
{
    brg_tensor *x = brg_ones(BRG_DTYPE_F32, BRG_SHAPE(2));
    BRG_TRY(brg_set_requires_grad(x, true));
    brg_tensor *y = output_of(l, step);
    BRG_TRY(brg_tensor_add_hook(NULL, y, inner, x, NULL));
    BRG_TRY(brg_backward(brg_sum_all(y)));
    const float *at = brg_tensor_data(brg_tensor_grad(x));
    RANK_CHECK(at[0] == 2, "the inner gradient is %g", (double)at[0]);
    return BRG_OK;
}
FEATURE(test_captured_features__backward_inside)

/* ---- Errors on every rank -------------------------------------------------------------------- */

/* A plan that calls a hook cannot know what that brings: it differs from the
 * eager backward in nothing. Of others see test_captured_reducer.c. */
static brg_status keep_gradient(brg_tensor *grad, brg_tensor **replacement,
                                void *user)
{
    (void)grad, (void)replacement, (void)user;
    return BRG_OK;
}

static brg_status missing_rank(brg_pg *pg, void *user)
{
    const bool *is_compiled = user;
    ddp_model m = {0};
    brg_ddp_options options = BRG_DDP_OPTIONS_INIT;
    options.first_bucket_bytes = options.bucket_bytes = 64;
    int token = 0;
    brg_status status = ddp_model_init(&m, pg);
    if (status == BRG_OK)
        status = ddp_model_wrap(&m, &options);
    if (status == BRG_OK && *is_compiled)
        status = brg_compile_begin(&token, NULL);
    if (status == BRG_OK)
        status =
            brg_tensor_add_hook(NULL, m.params[3], keep_gradient, NULL, NULL);
    unsigned mine = m.rank == 0 ? DDP_MODEL_ALL & ~2u : DDP_MODEL_ALL;
    if (status == BRG_OK)
        status = ranks_expect(ddp_model_backward(&m, 0, mine), BRG_ERR_STATE,
                              "fc1.weight on rank 0", "backward", __LINE__);
    if (status == BRG_OK)
        status = ddp_model_zero(&m, false);
    if (status == BRG_OK)
        status = ddp_model_backward(&m, 1, DDP_MODEL_ALL);
    if (status == BRG_OK)
        status = ddp_model_check(&m, 1, 2);
    if (token && brg_compile_end(token) != BRG_OK)
        status = BRG_ERR_INTERNAL;
    ddp_model_deinit(&m);
    return status;
}

static void test_captured_features__a_missing_gradient_is_named(void **state)
{
    (void)state;
    for (int n = 1; n <= 4; n++)
        for (int k = 0; k < 2; k++) {
            bool is_compiled = k == 1;
            assert_brg_ok(brg_sim_run(n, NULL, missing_rank, &is_compiled));
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_captured_features__checkpoints),
        cmocka_unit_test(test_captured_features__reentrant_checkpoints),
        cmocka_unit_test(test_captured_features__create_graph),
        cmocka_unit_test(test_captured_features__brg_grad),
        cmocka_unit_test(test_captured_features__shared_weights),
        cmocka_unit_test(test_captured_features__accumulation),
        cmocka_unit_test(test_captured_features__changing_graphs),
        cmocka_unit_test(test_captured_features__sparse_gradients),
        cmocka_unit_test(test_captured_features__backward_inside),
        cmocka_unit_test(test_captured_features__a_missing_gradient_is_named),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
