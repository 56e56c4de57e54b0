/* SPDX-License-Identifier: Apache-2.0
 * One case of an op, and what is checked of every case: see
 * tests/core/README.md for the rows of op_cases.def. */
#ifndef BRG_TESTS_SUPPORT_OP_CASE_H
#define BRG_TESTS_SUPPORT_OP_CASE_H

#include <math.h>

#include <brigade/ops.h>

#include "core/ops/op.h"
#include "tests/support/brg_test.h"

#define OP_MAX_IN BRG_MAX_OP_INPUTS

typedef struct op_shape {
    int ndim;
    int64_t size[BRG_MAX_DIMS];
} op_shape;

/* Values in row-major order. */
typedef struct op_values {
    op_shape shape;
    size_t n;
    double *v;
} op_values;

typedef struct op_case {
    const char *op;      /* the row of ops.def */
    const char *variant; /* tells cases of one op apart; "" for the first */
    brg_tensor *(*call)(brg_tensor *const *x);
    double (*scalar)(double a, double b, double c); /* with is_scalar */
    bool is_scalar;
    void (*ref)(op_values *y, const op_values *x); /* without */
    int n_in;
    op_shape in[OP_MAX_IN];
    int n_zero;
    op_shape zero[OP_MAX_IN];
    int n_bad;
    op_shape bad[OP_MAX_IN];
    bool has_range;
    double low, high;
    double in_low[OP_MAX_IN], in_high[OP_MAX_IN]; /* if they differ */
    brg_dtype fixed[OP_MAX_IN]; /* of inputs that do not follow the mode */
    bool is_fixed[OP_MAX_IN];
    uint32_t dtypes;    /* bit mask; 0: floats */
    double tolerance;   /* factor; 0: 1 */
    bool no_gradient;   /* skip the gradient modes */
    bool no_second;     /* skip the second-order mode */
    bool no_layouts;    /* only row-major inputs */
    bool allows_mixed;  /* inputs may differ in dtype */
    bool allows_others; /* dtypes not listed may work too */
} op_case;

typedef enum op_layout {
    OP_ROW_MAJOR,
    OP_TRANSPOSED, /* dims in reversed order in memory */
    OP_STEPPED,    /* every second element, from the third on */
    OP_EXPANDED,   /* the first dim repeats one slice */
    OP_N_LAYOUTS
} op_layout;

/* The inputs of one run: values, and tensors that hold them. */
typedef struct op_inputs {
    op_values values[OP_MAX_IN];
    brg_tensor *x[OP_MAX_IN];
} op_inputs;

/* ---- For reference functions --------------------------------------------- */

/* Sets y's shape and gets memory for its values, zeroed; freed by the
 * harness. */
void op_values_init(op_values *y, int ndim, const int64_t *shape);
/* The value at an index, missing dims ignored. */
double op_at(const op_values *x, const int64_t *index);

/* ---- Modes --------------------------------------------------------------- */

typedef void (*op_mode_fn)(const op_case *c);

typedef struct op_mode {
    const char *name;
    op_mode_fn run;
} op_mode;

extern const op_mode op_modes[];
extern const size_t op_n_modes;

/* ---- Inside the harness -------------------------------------------------- */

bool op_allows(const op_case *c, brg_dtype dtype);
void op_inputs_make(op_inputs *in, const op_case *c, const op_shape *shapes,
                    brg_dtype dtype, op_layout layout);
void op_inputs_free(op_inputs *in, const op_case *c);
/* The reference's answer for these inputs. */
void op_reference(op_values *y, const op_case *c, const op_inputs *in);
/* All elements as f64. */
void op_read(op_values *filled, const brg_tensor *t);
/* Fails the test naming the case, `where` and the element. */
void op_compare(const op_case *c, const char *where, const op_values *got,
                const op_values *want, double tolerance);
/* What rounding to the dtype allows, times the case's factor. */
double op_tolerance(const op_case *c, brg_dtype dtype);
void op_fail(const op_case *c, const char *where, const char *format, ...)
    BRG_PRINTF(3, 4);

#endif
