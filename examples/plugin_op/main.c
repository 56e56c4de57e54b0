/* SPDX-License-Identifier: Apache-2.0
 * Loads an op from a shared object and uses it like any other: values, first
 * and second derivatives against differences, and training. */
#include <dlfcn.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include <brigade/brigade.h>

#include "examples/plugin_op/hypot.h"

static const brg_op *op;

static brg_tensor *hypot_of(brg_tensor *a, brg_tensor *b)
{
    const brg_attrs attrs = {.f = {0.01}};
    brg_tensor *y = NULL;
    if (brg_op_apply(op, 2, (brg_tensor *[]){a, b}, &attrs, &y) != BRG_OK)
        return NULL;
    return y;
}

static bool fails(const char *what)
{
    fprintf(stderr, "%s: %s\n", what, brg_error_message());
    return false;
}

static bool load(const char *path)
{
    void *handle = dlopen(path, RTLD_NOW);
    plugin_op_fn get;
    if (handle)
        *(void **)&get = dlsym(handle, PLUGIN_HYPOT_NAME);
    if (!handle || !get) {
        fprintf(stderr, "%s\n", dlerror());
        return false;
    }
    op = get();
    return true; /* stays loaded: recorded calls point to the op */
}

/* ---- Gradients -------------------------------------------------------------- */

static brg_status first_order(brg_tensor *const *in, brg_tensor **out,
                              void *user)
{
    (void)user;
    out[0] = hypot_of(in[0], in[1]);
    return out[0] ? BRG_OK : brg_error_code();
}

/* The gradient of the sum of squares, as a function of the inputs. */
static brg_status second_order(brg_tensor *const *in, brg_tensor **out,
                               void *user)
{
    (void)user;
    brg_tensor *y = brg_sum_all(brg_sin(hypot_of(in[0], in[1])));
    brg_backward_options options = BRG_BACKWARD_OPTIONS_INIT;
    options.create_graph = true;
    if (brg_grad_mode())
        return brg_grad(out, &y, 1, in, 2, &options);
    /* Differences ask without recording: record for the inner gradient. */
    brg_tensor *x[2] = {brg_copy(in[0]), brg_copy(in[1])};
    (void)brg_grad_mode_set(true);
    brg_status status = brg_set_requires_grad(x[0], true);
    if (status == BRG_OK)
        status = brg_set_requires_grad(x[1], true);
    y = brg_sum_all(brg_sin(hypot_of(x[0], x[1])));
    if (status == BRG_OK)
        status = brg_grad(out, &y, 1, x, 2, NULL);
    (void)brg_grad_mode_set(false);
    return status;
}

static bool check_gradients(void)
{
    brg_tensor *x[2];
    for (int i = 0; i < 2; i++) {
        x[i] = brg_transpose(brg_randn(BRG_DTYPE_F64, BRG_SHAPE(3, 4)), 0, 1);
        if (brg_set_requires_grad(x[i] = brg_detach(x[i]), true) != BRG_OK)
            return fails("inputs");
    }
    brg_gradcheck_options options = BRG_GRADCHECK_OPTIONS_INIT;
    if (brg_gradcheck(first_order, NULL, x, 2, &options) != BRG_OK)
        return fails("first order");
    options.n_outputs = 2;
    if (brg_gradcheck(second_order, NULL, x, 2, &options) != BRG_OK)
        return fails("second order");
    return true;
}

/* ---- Training: two numbers whose hypotenuse is 5 -------------------------------- */

static bool train(void)
{
    brg_tensor *a = brg_full(BRG_DTYPE_F32, BRG_SHAPE(1), 1);
    brg_tensor *b = brg_full(BRG_DTYPE_F32, BRG_SHAPE(1), 2);
    if (brg_set_requires_grad(a, true) != BRG_OK ||
        brg_set_requires_grad(b, true) != BRG_OK)
        return fails("parameters");
    brg_tensor *both[2] = {a, b};
    double length = 0;
    for (int step = 0; step < 200; step++) {
        brg_scope *scope = brg_scope_begin();
        brg_tensor *y = brg_sum_all(hypot_of(a, b));
        brg_status status = brg_backward(brg_square(brg_add_scalar(y, -5)));
        bool mode = brg_grad_mode_set(false);
        for (int i = 0; i < 2 && status == BRG_OK; i++) {
            status = brg_add_(both[i], brg_tensor_grad(both[i]), -0.05);
            if (status == BRG_OK)
                status = brg_tensor_set_grad(both[i], NULL);
        }
        (void)brg_grad_mode_set(mode);
        if (status == BRG_OK)
            status = brg_tensor_item(y, &length);
        brg_scope_end(scope);
        if (status != BRG_OK)
            return fails("training");
    }
    printf("the hypotenuse is %.4f\n", length);
    return fabs(length - 5) < 1e-3;
}

int main(int argc, char **argv)
{
    if (argc != 2) {
        fprintf(stderr, "usage: %s <shared object>\n", argv[0]);
        return EXIT_FAILURE;
    }
    if (!load(argv[1]))
        return EXIT_FAILURE;
    brg_scope *scope = brg_scope_begin();
    brg_tensor *wrong = brg_zeros(BRG_DTYPE_F32, BRG_SHAPE(2));
    bool is_right =
        hypot_of(wrong, brg_zeros(BRG_DTYPE_F32, BRG_SHAPE(3))) == NULL &&
        brg_error_code() == BRG_ERR_SHAPE;
    brg_error_clear();
    is_right = is_right && check_gradients() && train();
    brg_scope_end(scope);
    return is_right ? EXIT_SUCCESS : EXIT_FAILURE;
}
