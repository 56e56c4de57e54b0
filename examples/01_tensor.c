/* SPDX-License-Identifier: Apache-2.0
 * Tensors: scopes own them, ops are expressions, views share memory, and one
 * check at the end of an expression is enough. */
#include <stdio.h>
#include <stdlib.h>

#include <brigade/ops.h>
#include <brigade/tensor.h>

static void show(const char *what, const brg_tensor *t)
{
    char text[256];
    brg_tensor_print(t, 6, text, sizeof text);
    printf("%s = %s\n", what, text);
}

/* A function that makes temporaries: its scope ends with them, and the result
 * moves to the scope of the caller. */
static brg_tensor *normalise(brg_tensor *x)
{
    brg_scope *scope = brg_scope_begin();
    brg_tensor *centred = brg_sub(x, brg_mean(x, BRG_DIMS(-1), true));
    brg_tensor *deviation =
        brg_sqrt(brg_mean(brg_square(centred), BRG_DIMS(-1), true));
    return brg_scope_return(scope, brg_div(centred, deviation));
}

int main(void)
{
    const float values[6] = {1, 2, 3, 4, 5, 9};
    brg_scope *scope = brg_scope_begin();
    brg_tensor *x = brg_from_data(BRG_DTYPE_F32, BRG_SHAPE(2, 3), values);
    show("x", x);
    show("normalise(x)", normalise(x));

    /* A view: no copy, writes are seen by both. */
    brg_tensor *row = brg_select(x, 0, 1);
    brg_status status = brg_mul_scalar_(row, 10);
    if (status != BRG_OK)
        return EXIT_FAILURE;
    show("x after row *= 10", x);

    /* (2, 3) times (2, 3) does not fit: the op returns NULL, so do the ops
     * that get the NULL, and the error is that of the first. */
    brg_tensor *bad = brg_relu(brg_add_scalar(brg_matmul(x, x), 1));
    if (bad != NULL)
        return EXIT_FAILURE;
    printf("expected error: %s\n", brg_error_message());

    /* To keep a tensor beyond its scope, retain it. */
    brg_tensor *kept = brg_retain(brg_sum_all(x));
    brg_scope_end(scope);
    double sum = 0;
    status = brg_tensor_item(kept, &sum);
    brg_release(kept);
    printf("sum = %g\n", sum);
    return status == BRG_OK && sum == 186 ? EXIT_SUCCESS : EXIT_FAILURE;
}
