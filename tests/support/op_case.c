/* SPDX-License-Identifier: Apache-2.0
 * Making inputs of any layout and dtype, references, comparing. */
#include "tests/support/op_case.h"

#include "core/base/dtype.h"

/* ---- Values -------------------------------------------------------------- */

void op_values_init(op_values *y, int ndim, const int64_t *shape)
{
    y->shape = (op_shape){.ndim = ndim};
    y->n = 1;
    for (int d = 0; d < ndim; d++) {
        y->shape.size[d] = shape[d];
        y->n *= (size_t)shape[d];
    }
    y->v = calloc(y->n ? y->n : 1, sizeof *y->v);
    assert_non_null(y->v);
}

double op_at(const op_values *x, const int64_t *index)
{
    int64_t k = 0;
    for (int d = 0; d < x->shape.ndim; d++)
        k = k * x->shape.size[d] + index[d];
    return x->v[k];
}

/* The k-th index of a shape in row-major order. */
static void unravel(const op_shape *shape, size_t k, int64_t *index)
{
    for (int d = shape->ndim - 1; d >= 0; d--) {
        index[d] = (int64_t)(k % (size_t)shape->size[d]);
        k /= (size_t)shape->size[d];
    }
}

static void put(void *data, brg_dtype dtype, size_t i, double v)
{
    switch (dtype) {
    case BRG_DTYPE_F64:
        ((double *)data)[i] = v;
        break;
    case BRG_DTYPE_F32:
        ((float *)data)[i] = (float)v;
        break;
    case BRG_DTYPE_F16:
        ((uint16_t *)data)[i] = brg__f32_to_f16((float)v);
        break;
    case BRG_DTYPE_BF16:
        ((uint16_t *)data)[i] = brg__f32_to_bf16((float)v);
        break;
    case BRG_DTYPE_I64:
        ((int64_t *)data)[i] = (int64_t)v;
        break;
    case BRG_DTYPE_I32:
        ((int32_t *)data)[i] = (int32_t)v;
        break;
    case BRG_DTYPE_U8:
        ((uint8_t *)data)[i] = (uint8_t)(int64_t)v;
        break;
    case BRG_DTYPE_BOOL:
        ((uint8_t *)data)[i] = v != 0;
        break;
    }
}

static double get(const void *data, brg_dtype dtype, size_t i)
{
    switch (dtype) {
    case BRG_DTYPE_F64:
        return ((const double *)data)[i];
    case BRG_DTYPE_F32:
        return ((const float *)data)[i];
    case BRG_DTYPE_F16:
        return brg__f16_to_f32(((const uint16_t *)data)[i]);
    case BRG_DTYPE_BF16:
        return brg__bf16_to_f32(((const uint16_t *)data)[i]);
    case BRG_DTYPE_I64:
        return (double)((const int64_t *)data)[i];
    case BRG_DTYPE_I32:
        return ((const int32_t *)data)[i];
    default:
        return ((const uint8_t *)data)[i];
    }
}

void op_read(op_values *filled, const brg_tensor *t)
{
    op_values_init(filled, t->ndim, t->shape);
    void *bytes = calloc(filled->n + 1, 8);
    assert_brg_ok(brg_tensor_read(t, bytes, brg_tensor_nbytes(t)));
    for (size_t i = 0; i < filled->n; i++)
        filled->v[i] = get(bytes, (brg_dtype)t->dtype, i);
    free(bytes);
}

/* ---- Inputs -------------------------------------------------------------- */

bool op_allows(const op_case *c, brg_dtype dtype)
{
    uint32_t floats = 1u << BRG_DTYPE_F64 | 1u << BRG_DTYPE_F32 |
                      1u << BRG_DTYPE_F16 | 1u << BRG_DTYPE_BF16;
    return ((c->dtypes ? c->dtypes : floats) >> dtype) & 1u;
}

static uint64_t seed_of(const op_case *c, int i)
{
    uint64_t seed = 1469598103934665603u + (uint64_t)i;
    for (const char *p = c->op; *p; p++)
        seed = (seed ^ (unsigned char)*p) * 1099511628211u;
    const char *text = getenv("BRG_TEST_SEED");
    return text ? seed ^ strtoull(text, NULL, 0) : seed;
}

static void draw(op_values *values, const op_case *c, int i, brg_dtype dtype)
{
    uint64_t state = seed_of(c, i);
    double low = c->has_range ? c->low : -2.0;
    double high = c->has_range ? c->high : 2.0;
    if (c->in_low[i] != c->in_high[i]) {
        low = c->in_low[i];
        high = c->in_high[i];
    }
    if (dtype == BRG_DTYPE_BOOL && !c->is_fixed[i])
        low = 0.0, high = 2.0;
    if (dtype == BRG_DTYPE_U8 && low < 0.0)
        low = 0.0;
    for (size_t k = 0; k < values->n; k++) {
        double v = brg_test_uniform(&state, low, high);
        bool is_float = brg_dtype_is_float(dtype);
        unsigned char bytes[8];
        put(bytes, dtype, 0, is_float ? v : floor(v));
        values->v[k] = get(bytes, dtype, 0);
    }
}

static void repeat_first_slice(op_values *values)
{
    size_t slice = values->n / (size_t)values->shape.size[0];
    for (size_t k = slice; k < values->n; k++)
        values->v[k] = values->v[k % slice];
}

static void set_strides(const op_shape *shape, op_layout layout,
                        int64_t *strides)
{
    int64_t step = layout == OP_STEPPED ? 2 : 1;
    for (int i = 0; i < shape->ndim; i++) {
        int d = layout == OP_TRANSPOSED ? i : shape->ndim - 1 - i;
        strides[d] = step;
        step *= shape->size[d] > 0 ? shape->size[d] : 1;
    }
    if (layout == OP_EXPANDED && shape->ndim > 0)
        strides[0] = 0;
}

static brg_tensor *lay_out(const op_values *values, brg_dtype dtype,
                           op_layout layout)
{
    const op_shape *shape = &values->shape;
    int64_t strides[BRG_MAX_DIMS] = {0}, index[BRG_MAX_DIMS];
    set_strides(shape, layout, strides);
    int64_t offset = layout == OP_ROW_MAJOR ? 0 : 2;
    size_t n_memory = 2 * values->n + 8;
    void *memory = calloc(n_memory, 8);
    for (size_t k = 0; k < n_memory; k++) /* poison between the elements */
        put(memory, dtype, k, brg_dtype_is_float(dtype) ? NAN : 77);
    for (size_t k = 0; k < values->n; k++) {
        unravel(shape, k, index);
        int64_t at = offset;
        for (int d = 0; d < shape->ndim; d++)
            at += index[d] * strides[d];
        put(memory, dtype, (size_t)at, values->v[k]);
    }
    brg_tensor *flat = assert_brg_some(
        brg_from_data(dtype, BRG_SHAPE((int64_t)n_memory), memory));
    free(memory);
    return assert_brg_some(
        brg_as_strided(flat, shape->ndim, shape->size, strides, offset));
}

void op_inputs_make(op_inputs *in, const op_case *c, const op_shape *shapes,
                    brg_dtype dtype, op_layout layout)
{
    memset(in, 0, sizeof *in);
    for (int i = 0; i < c->n_in; i++) {
        brg_dtype own = c->is_fixed[i] ? c->fixed[i] : dtype;
        op_values *values = &in->values[i];
        op_values_init(values, shapes[i].ndim, shapes[i].size);
        draw(values, c, i, own);
        if (layout == OP_EXPANDED && values->n > 0 && values->shape.ndim > 0)
            repeat_first_slice(values);
        in->x[i] = lay_out(values, own, layout);
    }
}

void op_inputs_free(op_inputs *in, const op_case *c)
{
    for (int i = 0; i < c->n_in; i++)
        free(in->values[i].v);
}

/* ---- References ---------------------------------------------------------- */

/* x at an index of the broadcast shape. */
static double at_broadcast(const op_values *x, const op_shape *shape,
                           const int64_t *index)
{
    int64_t own[BRG_MAX_DIMS];
    int shift = shape->ndim - x->shape.ndim;
    for (int d = 0; d < x->shape.ndim; d++)
        own[d] = x->shape.size[d] == 1 ? 0 : index[d + shift];
    return op_at(x, own);
}

void op_reference(op_values *y, const op_case *c, const op_inputs *in)
{
    if (!c->is_scalar) {
        assert_non_null(c->ref);
        c->ref(y, in->values);
        return;
    }
    op_shape shape = in->values[0].shape;
    for (int i = 1; i < c->n_in; i++) {
        const op_shape *other = &in->values[i].shape;
        assert_true(brg__shape_broadcast(shape.ndim, shape.size, other->ndim,
                                         other->size, &shape.ndim, shape.size));
    }
    op_values_init(y, shape.ndim, shape.size);
    for (size_t k = 0; k < y->n; k++) {
        int64_t index[BRG_MAX_DIMS];
        double v[3] = {0};
        unravel(&shape, k, index);
        for (int i = 0; i < c->n_in; i++)
            v[i] = at_broadcast(&in->values[i], &shape, index);
        y->v[k] = c->scalar(v[0], v[1], v[2]);
    }
}

/* ---- Comparing ----------------------------------------------------------- */

void op_fail(const op_case *c, const char *where, const char *format, ...)
{
    char words[300];
    va_list args;
    va_start(args, format);
    vsnprintf(words, sizeof words, format, args);
    va_end(args);
    print_error("%s%s%s, %s: %s\n", c->op, c->variant[0] ? "/" : "", c->variant,
                where, words);
    fail();
}

double op_tolerance(const op_case *c, brg_dtype dtype)
{
    static const double rounding[BRG_N_DTYPES] = {1e-11, 1e-5, 2e-3, 1.6e-2};
    return rounding[dtype] * (c->tolerance > 0.0 ? c->tolerance : 1.0);
}

void op_compare(const op_case *c, const char *where, const op_values *got,
                const op_values *want, double tolerance)
{
    char a[BRG_SHAPE_TEXT_MAX], b[BRG_SHAPE_TEXT_MAX];
    if (!brg__shape_equal(got->shape.ndim, got->shape.size, want->shape.ndim,
                          want->shape.size))
        op_fail(c, where, "the shape is %s, expected %s",
                brg__shape_text(got->shape.ndim, got->shape.size, a),
                brg__shape_text(want->shape.ndim, want->shape.size, b));
    for (size_t k = 0; k < got->n; k++) {
        double x = got->v[k], y = want->v[k];
        bool is_same = x == y || (x != x && y != y) ||
                       fabs(x - y) <= tolerance * (1.0 + fabs(y));
        if (!is_same)
            op_fail(c, where, "element %zu is %.17g, expected %.17g", k, x, y);
    }
}
