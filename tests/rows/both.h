/* SPDX-License-Identifier: Apache-2.0
 * Running the body of a row eagerly and compiled: the same seed, the same
 * values bit for bit, and as many captures as the row says. */
#ifndef BRG_TESTS_ROWS_BOTH_H
#define BRG_TESTS_ROWS_BOTH_H

#include <brigade/compile.h>
#include <brigade/random.h>

#include "tests/rows/rows.h"
#include "tests/support/plan_text.h"

/* What a body yielded, one after the other. */
typedef struct yields {
    unsigned char *at;
    size_t n;
    bool is_compiled; /* this run is the compiled one */
} yields;

typedef void (*both_body)(yields *y);

static inline ROW_UNUSED void yield_bytes(yields *y, const void *data, size_t n)
{
    y->at = realloc(y->at, y->n + n + 1);
    assert_non_null(y->at);
    memcpy(y->at + y->n, data, n);
    y->n += n;
}

static inline ROW_UNUSED void yield_text(yields *y, const char *text)
{
    yield_bytes(y, text, strlen(text) + 1);
}

/* Dtype, shape and values; "none" for NULL. */
static inline ROW_UNUSED void yield(yields *y, const brg_tensor *t)
{
    if (!t) {
        yield_text(y, "none");
        return;
    }
    int ndim = brg_tensor_ndim(t);
    size_t nbytes = brg_tensor_nbytes(t);
    brg_dtype dtype = brg_tensor_dtype(t);
    yield_bytes(y, &dtype, sizeof dtype);
    yield_bytes(y, brg_tensor_shape(t), (size_t)ndim * sizeof(int64_t));
    char *values = malloc(nbytes + 1);
    assert_brg_ok(brg_tensor_read(t, values, nbytes));
    yield_bytes(y, values, nbytes);
    free(values);
}

/* Values and strides of a gradient. */
static inline ROW_UNUSED void yield_grad(yields *y, const brg_tensor *leaf)
{
    const brg_tensor *grad = brg_tensor_grad(leaf);
    yield(y, grad);
    if (grad)
        yield_bytes(y, brg_tensor_strides(grad),
                    (size_t)brg_tensor_ndim(grad) * sizeof(int64_t));
}

static inline ROW_UNUSED brg_compile_stats both_stats(void)
{
    brg_compile_stats stats;
    brg_compile_get_stats(&stats);
    return stats;
}

/* What compiled runs use. */
static brg_compile_backend both_backend ROW_UNUSED;

static inline yields run_one(both_body body, bool is_compiled)
{
    yields y = {.is_compiled = is_compiled};
    assert_brg_ok(brg_compile_reset());
    brg_scope *scope = brg_scope_begin();
    assert_non_null(scope);
    brg_seed(123);
    int token = 0;
    brg_compile_options options = BRG_COMPILE_OPTIONS_INIT;
    options.backend = both_backend;
    if (is_compiled)
        assert_brg_ok(brg_compile_begin(&token, &options));
    body(&y);
    if (is_compiled)
        assert_brg_ok(brg_compile_end(token));
    brg_scope_end(scope);
    return y;
}

/* The counters are left as the compiled run left them. */
static inline ROW_UNUSED void run_both(both_body body, uint64_t n_captures)
{
    yields eager = run_one(body, false);
    assert_int_equal(both_stats().captures, 0);
    yields compiled = run_one(body, true);
    assert_true(eager.n > 0);
    assert_int_equal(eager.n, compiled.n);
    assert_memory_equal(eager.at, compiled.at, eager.n);
    free(eager.at);
    free(compiled.at);
    assert_int_equal(both_stats().captures, n_captures);
    assert_int_equal(both_stats().fallbacks, 0);
}

/* The same, and so many pieces of plans. */
static inline ROW_UNUSED void run_counted(both_body body, uint64_t n_captures,
                                          uint64_t n_compiles)
{
    run_both(body, n_captures);
    assert_int_equal(both_stats().compiles, n_compiles);
}

/* Whether a word stands in the text of plan i. */
static inline ROW_UNUSED bool plan_has(size_t i, const char *word)
{
    return strstr(plan_text(i), word) != NULL;
}

/* A row that is a body and its number of captures. */
#define BOTH_ROW(name, n_captures)                                             \
    static void name(void **state)                                             \
    {                                                                          \
        (void)state;                                                           \
        run_both(name##_body, (n_captures));                                   \
    }

#endif
