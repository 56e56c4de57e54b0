/* SPDX-License-Identifier: Apache-2.0
 * What is checked of every case, one mode each. */
#include <brigade/autograd.h>
#include <brigade/device.h>

#include "tests/support/op_case.h"

#define MAX_LABEL 80

static const char *const layout_names[OP_N_LAYOUTS] = {
    "row-major", "transposed", "stepped", "expanded"};

static const brg_op *row_of(const op_case *c)
{
    const brg_op *op = brg_op_find(c->op);
    if (!op)
        op_fail(c, "table", "ops.def has no such row");
    return op;
}

/* ---- Values -------------------------------------------------------------- */

static void check_forward(const op_case *c, const op_shape *shapes,
                          brg_dtype dtype, op_layout layout)
{
    char where[MAX_LABEL];
    snprintf(where, sizeof where, "%s, %s", brg_dtype_name(dtype),
             layout_names[layout]);
    brg_scope *scope = brg_scope_begin();
    op_inputs in;
    op_values got, want;
    op_inputs_make(&in, c, shapes, dtype, layout);
    brg_tensor *y = c->call(in.x);
    if (!y)
        op_fail(c, where, "failed: %s", brg_error_message());
    op_read(&got, y);
    op_reference(&want, c, &in);
    op_compare(c, where, &got, &want, op_tolerance(c, dtype));
    free(got.v);
    free(want.v);
    op_inputs_free(&in, c);
    brg_scope_end(scope);
}

static void run_forward(const op_case *c)
{
    for (int dtype = 0; dtype < BRG_N_DTYPES; dtype++)
        if (op_allows(c, (brg_dtype)dtype))
            check_forward(c, c->in, (brg_dtype)dtype, OP_ROW_MAJOR);
}

static void run_layouts(const op_case *c)
{
    for (int dtype = 0; !c->no_layouts && dtype < BRG_N_DTYPES; dtype++)
        for (int layout = 1; layout < OP_N_LAYOUTS; layout++)
            if (op_allows(c, (brg_dtype)dtype))
                check_forward(c, c->in, (brg_dtype)dtype, (op_layout)layout);
}

/* The shapes of ZERO; pointwise cases get a first dim of size 0. */
static void run_zero_size(const op_case *c)
{
    op_shape shapes[OP_MAX_IN];
    memcpy(shapes, c->n_zero ? c->zero : c->in, sizeof shapes);
    if (c->n_zero == 0) {
        if (!c->is_scalar)
            return;
        for (int i = 0; i < c->n_in; i++)
            if (shapes[i].ndim > 0)
                shapes[i].size[shapes[i].ndim - 1] = 0;
    }
    for (int dtype = 0; dtype < BRG_N_DTYPES; dtype++)
        if (op_allows(c, (brg_dtype)dtype))
            check_forward(c, shapes, (brg_dtype)dtype, OP_ROW_MAJOR);
}

/* ---- Errors -------------------------------------------------------------- */

static void expect_error(const op_case *c, const char *where, brg_tensor *y,
                         brg_status code)
{
    if (y)
        op_fail(c, where, "succeeded, expected %s", brg_status_name(code));
    if (brg_error_code() != code)
        op_fail(c, where, "gave %s (%s), expected %s",
                brg_status_name(brg_error_code()), brg_error_message(),
                brg_status_name(code));
    if (!strstr(brg_error_message(), c->op))
        op_fail(c, where, "the message does not name the op: %s",
                brg_error_message());
}

static void check_wrong_dtype(const op_case *c, brg_dtype dtype)
{
    brg_scope *scope = brg_scope_begin();
    op_inputs in;
    op_inputs_make(&in, c, c->in, dtype, OP_ROW_MAJOR);
    brg_error_clear();
    expect_error(c, brg_dtype_name(dtype), c->call(in.x), BRG_ERR_DTYPE);
    op_inputs_free(&in, c);
    brg_scope_end(scope);
}

/* The last of several inputs that should agree is of another dtype. */
static void check_mixed_dtypes(const op_case *c)
{
    int last = -1, n_free = 0;
    for (int i = 0; i < c->n_in; i++)
        if (!c->is_fixed[i]) {
            last = i;
            n_free++;
        }
    bool has_both = op_allows(c, BRG_DTYPE_F32) && op_allows(c, BRG_DTYPE_F64);
    if (n_free < 2 || c->allows_mixed || !has_both)
        return;
    brg_scope *scope = brg_scope_begin();
    op_case other = *c;
    other.is_fixed[last] = true;
    other.fixed[last] = BRG_DTYPE_F64;
    op_inputs in;
    op_inputs_make(&in, &other, c->in, BRG_DTYPE_F32, OP_ROW_MAJOR);
    brg_error_clear();
    expect_error(c, "f32 and f64", c->call(in.x), BRG_ERR_DTYPE);
    op_inputs_free(&in, c);
    brg_scope_end(scope);
}

static bool has_free_input(const op_case *c)
{
    for (int i = 0; i < c->n_in; i++)
        if (!c->is_fixed[i])
            return true;
    return false;
}

static void run_wrong_dtype(const op_case *c)
{
    bool is_strict = has_free_input(c) && !c->allows_others;
    for (int dtype = 0; dtype < BRG_N_DTYPES; dtype++)
        if (!op_allows(c, (brg_dtype)dtype) && is_strict)
            check_wrong_dtype(c, (brg_dtype)dtype);
    check_mixed_dtypes(c);
}

static void run_wrong_shape(const op_case *c)
{
    op_shape shapes[OP_MAX_IN];
    memcpy(shapes, c->bad, sizeof shapes);
    if (c->n_bad == 0) {
        if (!c->is_scalar || c->n_in < 2)
            return;
        for (int i = 0; i < c->n_in; i++)
            shapes[i] = (op_shape){2, {2, 3 + i}};
    }
    brg_scope *scope = brg_scope_begin();
    op_inputs in;
    brg_dtype dtype =
        op_allows(c, BRG_DTYPE_F32) ? BRG_DTYPE_F32 : BRG_DTYPE_I64;
    op_inputs_make(&in, c, shapes, dtype, OP_ROW_MAJOR);
    brg_error_clear();
    expect_error(c, "wrong shapes", c->call(in.x), BRG_ERR_SHAPE);
    op_inputs_free(&in, c);
    brg_scope_end(scope);
}

/* A row of ops.def, of which the case is or which it calls before it, and both
 * devices. */
static bool names_devices(const char *message)
{
    char name[64];
    const char *end = strchr(message, ':');
    snprintf(name, sizeof name, "%.*s", end ? (int)(end - message) : 0,
             message);
    return brg_op_find(name) && strstr(message, "cpu:0") &&
           strstr(message, "cuda:0");
}

/* Of several inputs one is on another device. */
static void check_elsewhere(const op_case *c, brg_dtype dtype, int i)
{
    const brg_device gpu = {BRG_DEVICE_CUDA, 0}, cpu = {BRG_DEVICE_CPU, 0};
    const bool is_there = brg_device_get().type == BRG_DEVICE_CUDA;
    char where[MAX_LABEL];
    snprintf(where, sizeof where, "input %d elsewhere", i);
    brg_scope *scope = brg_scope_begin();
    op_inputs in;
    op_inputs_make(&in, c, c->in, dtype, OP_ROW_MAJOR);
    in.x[i] = assert_brg_some(brg_to(in.x[i], is_there ? cpu : gpu));
    brg_error_clear();
    if (c->call(in.x) || brg_error_code() != BRG_ERR_DEVICE ||
        !names_devices(brg_error_message()))
        op_fail(c, where, "gave %s (%s), expected an error with both devices",
                brg_status_name(brg_error_code()), brg_error_message());
    op_inputs_free(&in, c);
    brg_scope_end(scope);
}

static void run_mixed_devices(const op_case *c)
{
    int dtype = BRG_DTYPE_F32;
    while (!op_allows(c, (brg_dtype)dtype))
        dtype = (dtype + 1) % BRG_N_DTYPES;
    if (brg_device_count(BRG_DEVICE_CUDA) == 0)
        op_fail(c, "devices", "the program has registered none but the CPU");
    for (int i = 0; c->n_in > 1 && i < c->n_in; i++)
        check_elsewhere(c, (brg_dtype)dtype, i);
}

/* ---- Gradients ----------------------------------------------------------- */

/* Which inputs are differentiated, and the others, held constant. */
typedef struct subject {
    const op_case *c;
    op_inputs in;
    int which[OP_MAX_IN];
    size_t n;
} subject;

static bool has_gradient(const op_case *c)
{
    return row_of(c)->vjp && !c->no_gradient && op_allows(c, BRG_DTYPE_F64);
}

static void subject_make(subject *s, const op_case *c, brg_dtype dtype,
                         op_layout layout)
{
    *s = (subject){.c = c};
    op_inputs_make(&s->in, c, c->in, dtype, layout);
    for (int i = 0; i < c->n_in; i++) {
        bool is_constant = (row_of(c)->no_grad_in >> i) & 1u;
        if (is_constant || !brg__tensor_is_float(s->in.x[i]))
            continue;
        assert_brg_ok(brg_set_requires_grad(s->in.x[i], true));
        s->which[s->n++] = i;
    }
}

static brg_tensor *subject_call(const subject *s, brg_tensor *const *inputs)
{
    brg_tensor *x[OP_MAX_IN];
    memcpy(x, s->in.x, sizeof x);
    for (size_t k = 0; k < s->n; k++)
        x[s->which[k]] = inputs[k];
    return s->c->call(x);
}

static void subject_inputs(const subject *s, brg_tensor **inputs)
{
    for (size_t k = 0; k < s->n; k++)
        inputs[k] = s->in.x[s->which[k]];
}

static brg_status first_order(brg_tensor *const *inputs, brg_tensor **outputs,
                              void *user)
{
    outputs[0] = subject_call(user, inputs);
    return outputs[0] ? BRG_OK : brg_error_code();
}

static void check_gradient(const op_case *c, op_layout layout)
{
    brg_scope *scope = brg_scope_begin();
    subject s;
    brg_tensor *inputs[OP_MAX_IN];
    subject_make(&s, c, BRG_DTYPE_F64, layout);
    subject_inputs(&s, inputs);
    if (brg_gradcheck(first_order, &s, inputs, s.n, NULL) != BRG_OK)
        op_fail(c, layout_names[layout], "%s", brg_error_message());
    op_inputs_free(&s.in, c);
    brg_scope_end(scope);
}

static void run_gradient(const op_case *c)
{
    if (!has_gradient(c))
        return;
    check_gradient(c, OP_ROW_MAJOR);
    if (!c->no_layouts)
        check_gradient(c, OP_TRANSPOSED);
}

/* A direction for the output, a constant of the case. */
static brg_tensor *direction(const brg_tensor *y)
{
    uint64_t state = 7;
    double *v = calloc((size_t)y->numel + 1, sizeof *v);
    assert_non_null(v);
    for (int64_t i = 0; i < y->numel; i++)
        v[i] = brg_test_uniform(&state, -1.0, 1.0);
    brg_tensor *g = brg_from_data(BRG_DTYPE_F64, y->ndim, y->shape, v);
    free(v);
    g = brg_cast(assert_brg_some(g), (brg_dtype)y->dtype);
    return brg_to(g, y->device);
}

static brg_status gradients(const subject *s, brg_tensor *const *inputs,
                            bool again, brg_tensor **grads)
{
    brg_tensor *y = subject_call(s, inputs);
    if (!y)
        return brg_error_code();
    brg_tensor *g = direction(y);
    brg_backward_options options = BRG_BACKWARD_OPTIONS_INIT;
    options.grad_outputs = &g;
    options.create_graph = again;
    BRG_TRY(brg_grad(grads, &y, 1, inputs, s->n, &options));
    for (size_t k = 0; k < s->n; k++)
        if (!grads[k] &&
            !(grads[k] = brg_zeros((brg_dtype)inputs[k]->dtype, inputs[k]->ndim,
                                   inputs[k]->shape)))
            return brg_error_code();
    return BRG_OK;
}

static void compare_grads(const op_case *c, const char *where,
                          brg_tensor *const *got, brg_tensor *const *want,
                          size_t n, double tolerance)
{
    for (size_t k = 0; k < n; k++) {
        char label[MAX_LABEL];
        snprintf(label, sizeof label, "%s, gradient %zu", where, k);
        op_values a, b;
        op_read(&a, got[k]);
        op_read(&b, want[k]);
        op_compare(c, label, &a, &b, tolerance);
        free(a.v);
        free(b.v);
    }
}

/* The gradient of one input, the others requiring one or not. */
static void check_alone(const op_case *c, subject *all, size_t k,
                        brg_tensor *want, bool again)
{
    brg_tensor *inputs[OP_MAX_IN], *grad;
    subject_inputs(all, inputs);
    subject one = *all;
    one.n = 1;
    one.which[0] = all->which[k];
    assert_brg_ok(gradients(&one, &inputs[k], again, &grad));
    compare_grads(c, "of several", &grad, &want, 1, 0);
    for (size_t i = 0; i < all->n; i++)
        assert_brg_ok(brg_set_requires_grad(inputs[i], i == k));
    if (gradients(&one, &inputs[k], again, &grad) != BRG_OK)
        op_fail(c, "one gradient alone", "%s", brg_error_message());
    compare_grads(c, "alone", &grad, &want, 1, 0);
    for (size_t i = 0; i < all->n; i++)
        assert_brg_ok(brg_set_requires_grad(inputs[i], true));
}

/* What is saved suffices, whichever gradients are asked for (.saves_for). */
static void run_one_gradient(const op_case *c)
{
    if (!has_gradient(c))
        return;
    for (int again = 0; again <= !c->no_second; again++) {
        brg_scope *scope = brg_scope_begin();
        subject s;
        brg_tensor *inputs[OP_MAX_IN], *grads[OP_MAX_IN];
        subject_make(&s, c, BRG_DTYPE_F64, OP_ROW_MAJOR);
        subject_inputs(&s, inputs);
        assert_brg_ok(gradients(&s, inputs, again, grads));
        for (size_t k = 0; k < s.n; k++)
            check_alone(c, &s, k, grads[k], again);
        op_inputs_free(&s.in, c);
        brg_scope_end(scope);
    }
}

/* The gradient rule for first order equals the one that is differentiated. */
static void run_fused_gradient(const op_case *c)
{
    if (!has_gradient(c) || c->no_second)
        return;
    brg_scope *scope = brg_scope_begin();
    subject s;
    brg_tensor *inputs[OP_MAX_IN], *fused[OP_MAX_IN], *composed[OP_MAX_IN];
    subject_make(&s, c, BRG_DTYPE_F64, OP_ROW_MAJOR);
    subject_inputs(&s, inputs);
    assert_brg_ok(gradients(&s, inputs, false, fused));
    assert_brg_ok(gradients(&s, inputs, true, composed));
    compare_grads(c, "first order against second", fused, composed, s.n,
                  op_tolerance(c, BRG_DTYPE_F64));
    op_inputs_free(&s.in, c);
    brg_scope_end(scope);
}

/* The first gradients as functions of the inputs. */
static brg_status second_order(brg_tensor *const *inputs, brg_tensor **outputs,
                               void *user)
{
    const subject *s = user;
    brg_tensor *own[OP_MAX_IN];
    bool mode = brg_grad_mode_set(true);
    for (size_t k = 0; k < s->n; k++) {
        own[k] = inputs[k];
        if (brg_requires_grad(own[k]))
            continue;
        own[k] = brg_detach(inputs[k]);
        assert_brg_ok(brg_set_requires_grad(own[k], true));
    }
    brg_status status = gradients(s, own, true, outputs);
    brg_grad_mode_set(mode);
    return status;
}

static void run_second_order(const op_case *c)
{
    if (!has_gradient(c) || c->no_second)
        return;
    brg_scope *scope = brg_scope_begin();
    subject s;
    brg_tensor *inputs[OP_MAX_IN], *grads[OP_MAX_IN];
    subject_make(&s, c, BRG_DTYPE_F64, OP_ROW_MAJOR);
    subject_inputs(&s, inputs);
    assert_brg_ok(gradients(&s, inputs, true, grads));
    bool depends = false; /* linear ops have constant gradients */
    for (size_t k = 0; k < s.n; k++)
        depends = depends || brg_requires_grad(grads[k]);
    brg_gradcheck_options options = BRG_GRADCHECK_OPTIONS_INIT;
    options.n_outputs = s.n;
    if (depends &&
        brg_gradcheck(second_order, &s, inputs, s.n, &options) != BRG_OK)
        op_fail(c, "second order", "%s", brg_error_message());
    op_inputs_free(&s.in, c);
    brg_scope_end(scope);
}

/* Gradients in the smaller dtypes are those of f64 at the same values. */
static void check_small_gradient(const op_case *c, brg_dtype dtype)
{
    brg_scope *scope = brg_scope_begin();
    subject s, exact;
    brg_tensor *inputs[OP_MAX_IN], *grads[OP_MAX_IN];
    brg_tensor *exact_inputs[OP_MAX_IN], *exact_grads[OP_MAX_IN];
    subject_make(&s, c, dtype, OP_ROW_MAJOR);
    subject_inputs(&s, inputs);
    assert_brg_ok(gradients(&s, inputs, false, grads));
    exact = s;
    for (int i = 0; i < c->n_in; i++)
        if (!c->is_fixed[i] && brg__tensor_is_float(s.in.x[i]))
            exact.in.x[i] = brg_cast(brg_detach(s.in.x[i]), BRG_DTYPE_F64);
    for (size_t k = 0; k < s.n; k++) {
        if ((brg_dtype)grads[k]->dtype != (brg_dtype)inputs[k]->dtype)
            op_fail(c, brg_dtype_name(dtype), "gradient %zu is of dtype %s", k,
                    brg_dtype_name((brg_dtype)grads[k]->dtype));
        exact_inputs[k] = exact.in.x[s.which[k]];
        assert_brg_ok(brg_set_requires_grad(exact_inputs[k], true));
    }
    assert_brg_ok(gradients(&exact, exact_inputs, false, exact_grads));
    compare_grads(c, brg_dtype_name(dtype), grads, exact_grads, s.n,
                  4 * op_tolerance(c, dtype));
    op_inputs_free(&s.in, c);
    brg_scope_end(scope);
}

static void run_small_gradients(const op_case *c)
{
    if (!has_gradient(c))
        return;
    for (int dtype = BRG_DTYPE_F32; dtype <= BRG_DTYPE_BF16; dtype++)
        if (op_allows(c, (brg_dtype)dtype))
            check_small_gradient(c, (brg_dtype)dtype);
}

const op_mode op_modes[] = {
    {"forward", run_forward},
    {"layouts", run_layouts},
    {"zero_size", run_zero_size},
    {"wrong_dtype", run_wrong_dtype},
    {"wrong_shape", run_wrong_shape},
    {"mixed_devices", run_mixed_devices},
    {"gradient", run_gradient},
    {"one_gradient", run_one_gradient},
    {"fused_gradient", run_fused_gradient},
    {"second_order", run_second_order},
    {"small_gradients", run_small_gradients},
};
const size_t op_n_modes = sizeof op_modes / sizeof *op_modes;
