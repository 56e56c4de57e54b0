/* SPDX-License-Identifier: Apache-2.0
 * All outputs on a GPU of every row that has several, against the CPU: in each
 * call of such a row that the examples lead to. */
#include "tests/cuda/row_examples.h"

/* Forward and backward of what examples call in one direction only. */
static brg_tensor *backward_of(brg_tensor *y)
{
    return y && brg_backward(brg_sum_all(brg_mul(y, y))) == BRG_OK ? y : NULL;
}

static brg_tensor *call_batch_norm(brg_tensor *const *x)
{
    const brg_batch_norm_options o = {.struct_size = sizeof o,
                                      .training = true};
    /* of its squares the gradient would be 0, but for rounding */
    return backward_of(
        brg_sin(brg_batch_norm(x[0], x[1], x[2], NULL, NULL, &o)));
}

static brg_tensor *call_max_pool(brg_tensor *const *x)
{
    const brg_pool2d_options o = {.struct_size = sizeof o, .kernel = {3, 2}};
    return backward_of(brg_max_pool2d(x[0], &o));
}

CALL(targets, brg__call2(&brg__op_cross_entropy_targets, x[0], x[1],
                         &(brg_attrs){.i = {-100}}))
CALL(attention_both, backward_of(call_attention_apart(x)))

/* Tolerances are those of more_tolerance. */
static const example more[] = {
    {.name = "batch_norm",
     .call = call_batch_norm,
     .n = 3,
     .ndim = {4, 1, 1},
     .shape = {{16, 40, 19, 21}, {40}, {40}}},
    {.name = "max_pool",
     .call = call_max_pool,
     .n = 1,
     .ndim = {4},
     .shape = {{9, 17, 50, 61}}},
    {.name = "targets",
     .call = call_targets,
     .n = 2,
     .ndim = {2, 1},
     .shape = {{300, 5003}, {300}},
     .ids = 5003},
    {.name = "attention_both",
     .call = call_attention_both,
     .n = 3,
     .ndim = {4, 4, 4},
     .shape = {{2, 3, 256, 64}, {2, 3, 256, 64}, {2, 3, 256, 64}}},
    {.name = "attention_both_short", /* neither cuDNN nor products */
     .call = call_attention_both,
     .n = 3,
     .ndim = {4, 4, 4},
     .shape = {{2, 3, 40, 64}, {2, 3, 40, 64}, {2, 3, 40, 64}}},
};
static const double more_tolerance[N_ALL_DTYPES] = {1e-10, 1e-4, 2e-2, 5e-3};

#define MAX_MET 32
/* Rows with several outputs that were run. */
static const brg_op *met[MAX_MET];
static const char *running;
static double most;

static void note_met(const brg_op *op)
{
    int i = 0;
    while (met[i] && met[i] != op)
        i++;
    assert_true(i < MAX_MET - 1);
    met[i] = op;
}

static void check_outputs(const brg_op_call *call, brg_tensor *const *here)
{
    brg_tensor *want[BRG_MAX_OP_OUTPUTS] = {0};
    assert_brg_ok(brg_op_apply(call->op, call->n_in, here, call->attrs, want));
    note_met(call->op);
    for (int j = 0; j < call->n_out; j++) {
        const double d = distance(call->out[j], want[j]);
        if (d <= most)
            continue;
        print_error("%s: output %d of %s is off by %g, at most %g\n", running,
                    j, call->op->name, d, most);
        fail();
    }
}

/* What is run on the GPU is run on the CPU too, with the same inputs. */
static brg_status emit_both(brg__emitter *self, brg_op_call *call)
{
    brg_tensor *here[BRG_MAX_OP_INPUTS] = {0};
    const bool is_checked = call->op->n_out > 1;
    brg__emitter *before = brg__emitter_set(NULL);
    const bool mode = brg_grad_mode_set(false);
    for (int i = 0; is_checked && i < call->n_in; i++)
        if (call->in[i])
            here[i] = assert_brg_some(brg_to(brg_detach(call->in[i]), CPU));
    (void)brg_grad_mode_set(mode);
    brg_status status = brg__eager_emitter.emit(self, call);
    (void)brg_grad_mode_set(false);
    if (status == BRG_OK && is_checked)
        check_outputs(call, here);
    (void)brg_grad_mode_set(mode);
    (void)brg__emitter_set(before);
    return status;
}

static void run_outputs(const example *e, brg_dtype dtype, double tolerance)
{
    static brg__emitter both = {emit_both};
    brg_scope *scope = brg_scope_begin();
    brg_tensor *x[4];
    brg_seed(7);
    for (int i = 0; i < e->n; i++) {
        x[i] = assert_brg_some(brg_to(example_input(e, i, dtype), GPU));
        if (!example_has_ids(e, i))
            assert_brg_ok(brg_set_requires_grad(x[i], true));
    }
    running = e->name;
    most = tolerance;
    (void)brg__emitter_set(&both);
    (void)assert_brg_some(e->call(x));
    (void)brg__emitter_set(NULL);
    brg_scope_end(scope);
}

static void test_rows__all_outputs(void **state)
{
    (void)state;
    for (int d = 0; d < N_ALL_DTYPES; d++) {
        for (size_t i = 0; i < N_EXAMPLES; i++)
            run_outputs(&examples[i], all_dtypes[d], more_tolerance[d]);
        for (size_t i = 0; i < sizeof more / sizeof *more; i++)
            run_outputs(&more[i], all_dtypes[d], more_tolerance[d]);
    }
    for (size_t i = 0; brg_op_at(i); i++) {
        const brg_op *op = brg_op_at(i);
        int k = 0;
        while (met[k] && met[k] != op)
            k++;
        if (op->n_out > 1 && !(op->flags & BRG_OP_SPARSE) && !met[k])
            fail_msg("no example runs %s", op->name);
    }
}
int main(void)
{
    int missing = require_gpu();
    if (missing)
        return missing;
    const struct CMUnitTest tests[] = {gpu_test(test_rows__all_outputs)};
    return cmocka_run_group_tests_name("rows", tests, NULL, NULL);
}
