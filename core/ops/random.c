/* SPDX-License-Identifier: Apache-2.0
 * Random tensors and dropout: see include/brigade/random.h for which number
 * goes where.
 *
 * A *stream* hands out the elements k, k+1, ... of one draw in pieces of any
 * length, as the walk over a tensor's tiles asks for them. */
#include <brigade/random.h>

#include <string.h>

#include <brigade/autograd.h>

#include "core/base/progress.h"
#include "core/base/tracer.h"
#include "core/ops/isa.h"
#include "core/ops/op.h"
#include "core/ops/random.h"
#include "core/ops/tiles.h"
#include "core/tensor/device.h"

#define WORDS BRG__RANDOM_WORDS

/* ---- The thread's state -------------------------------------------------- */

static _Thread_local brg_random_state state;

void brg_seed(uint64_t seed)
{
    if (brg__is_traced())
        (void)brg__tracer_settle("brg_seed", "seed outside of the function");
    state = (brg_random_state){.seed = seed};
}

void brg_random_get_state(brg_random_state *filled)
{
    *filled = state;
}

void brg__random_set_state(const brg_random_state *new_state)
{
    state = *new_state;
}

void brg_random_set_state(const brg_random_state *new_state)
{
    if (brg__is_traced())
        (void)brg__tracer_settle("brg_random_set_state",
                                 "set it outside of the function");
    state = *new_state;
}

uint64_t brg__random_counters(int64_t n)
{
    return ((uint64_t)n + 3) / 4;
}

brg_random_state brg__random_take(uint64_t n_counters)
{
    brg_random_state taken = state;
    state.offset += n_counters;
    return taken;
}

/* Takes the counters for n elements; returns the first. */
static brg_random_state take(int64_t n)
{
    return brg__random_take(brg__random_counters(n));
}

/* ---- Streams ------------------------------------------------------------- */

typedef struct stream {
    const brg__random_kernels *kernels;
    brg_random_state from;
    uint64_t next; /* the element to hand out next */
    uint32_t words[WORDS];
    float normal[WORDS]; /* of these words, if is_normal */
    bool is_normal;
} stream;

static void stream_init(stream *s, brg_random_state from, bool is_normal)
{
    s->kernels = BRG__ISA_PICK(brg__random);
    s->from = from;
    s->next = 0;
    s->is_normal = is_normal;
}

static void stream_fill(stream *s, uint64_t first_counter)
{
    uint64_t counter = s->from.offset + first_counter;
    brg__random_block block = {
        .counter = {(uint32_t)counter, (uint32_t)(counter >> 32)},
        .key = {(uint32_t)s->from.seed, (uint32_t)(s->from.seed >> 32)}};
    s->kernels->words(&block, s->words);
    if (s->is_normal)
        s->kernels->normal(s->words, s->normal);
}

/* The next piece, at most n elements: its length and its place in `words`. */
static size_t stream_next(stream *s, size_t n, size_t *at)
{
    *at = (size_t)(s->next % WORDS);
    if (*at == 0)
        stream_fill(s, s->next / 4);
    size_t count = WORDS - *at < n ? WORDS - *at : n;
    s->next += count;
    return count;
}

/* ---- Filling ------------------------------------------------------------- */

/* A brg_draw says what (ext/random.h), the stream from where. */

static void make_f32(stream *s, const brg_draw *r, size_t n, float *out)
{
    brg__random_unit unit = {(float)r->a, (float)r->b, r->n_bits};
    for (size_t at, count; n > 0; n -= count, out += count) {
        count = stream_next(s, n, &at);
        if (r->kind == BRG_DRAW_UNIFORM)
            s->kernels->uniform(count, s->words + at, &unit, out);
        else
            for (size_t i = 0; i < count; i++)
                out[i] = unit.a + unit.b * s->normal[at + i];
    }
}

static void make_f64(stream *s, const brg_draw *r, size_t n, double *out)
{
    for (size_t at, count; n > 0; n -= count, out += count) {
        count = stream_next(s, n, &at);
        for (size_t i = 0; i < count; i++) {
            double unit = r->kind == BRG_DRAW_UNIFORM
                              ? s->words[at + i] * 0x1p-32
                              : (double)s->normal[at + i];
            out[i] = r->a + r->b * unit;
        }
    }
}

static void make_i64(stream *s, const brg_draw *r, size_t n, int64_t *out)
{
    for (size_t at, count; n > 0; n -= count, out += count) {
        count = stream_next(s, n, &at);
        for (size_t i = 0; i < count; i++)
            out[i] = r->low + (int64_t)((s->words[at + i] * r->range) >> 32);
    }
}

static void fill_host(const brg_tensor *t, const brg_draw *r)
{
    stream s;
    stream_init(&s, take(t->numel), r->kind == BRG_DRAW_NORMAL);
    brg__tiles tiles;
    brg__tile_buffer buffer;
    brg__ctype type = brg__ctype_of((brg_dtype)t->dtype);
    brg__tiles_init(&tiles, t->ndim, t->shape, type);
    brg__tiles_add(&tiles, t);
    for (brg__tiles_begin(&tiles); tiles.n > 0; brg__tiles_next(&tiles)) {
        void *values = brg__tiles_target(&tiles, 0, &buffer);
        if (type == BRG__F64)
            make_f64(&s, r, tiles.n, values);
        else if (type == BRG__I64)
            make_i64(&s, r, tiles.n, values);
        else
            make_f32(&s, r, tiles.n, values);
        brg__tiles_write(&tiles, 0, values);
        brg__progress_poll();
    }
}

/* Without such a slot: drawn here and copied. */
static brg_status fill_from_host(const brg_tensor *t, const brg_draw *r)
{
    brg_tensor *drawn;
    BRG_TRY(brg__tensor_new_like(&drawn, t, BRG_CPU));
    fill_host(drawn, r);
    brg_status status = brg__copy_now(t, drawn);
    brg_release(drawn);
    return status;
}

/* By the device, into t, which is row-major. */
static brg_status draw_there(const brg_device_vtable *vtable,
                             const brg_tensor *t, const brg_draw *r)
{
    brg_random_state from = take(t->numel);
    brg_draw draw = *r;
    draw.dtype = (brg_dtype)t->dtype;
    draw.numel = (size_t)t->numel;
    draw.out = brg__tensor_ptr(t);
    draw.seed = from.seed;
    draw.offset = from.offset;
    return vtable->draw(t->device, &draw);
}

static brg_status fill_there(const brg_tensor *t, const brg_draw *r)
{
    const brg_device_vtable *vtable;
    brg_tensor *rows;
    BRG_TRY(brg__device_find(t->device, &vtable));
    if (!vtable->draw)
        return fill_from_host(t, r);
    if (t->is_contiguous)
        return draw_there(vtable, t, r);
    BRG_TRY(brg__tensor_new_like(&rows, t, t->device));
    brg_status status = draw_there(vtable, rows, r);
    if (status == BRG_OK)
        status = brg__copy_now(t, rows);
    brg_release(rows);
    return status;
}

static brg_status fill(const brg_tensor *t, const brg_draw *r)
{
    if (t->numel == 0)
        return BRG_OK;
    if (t->device.type != BRG_DEVICE_CPU)
        return fill_there(t, r);
    fill_host(t, r);
    return BRG_OK;
}

static int bits_of(brg_dtype dtype)
{
    static const int n_bits[] = {0, 24, 11, 8};
    return n_bits[dtype];
}

/* Numbers drawn while a function is captured would never change. */
#define INSTEAD "draw outside of the function, or use dropout"

static brg_tensor *new_float(const char *name, brg_dtype dtype, int ndim,
                             const int64_t *shape)
{
    if (brg__is_traced() && brg__tracer_settle(name, INSTEAD) != BRG_OK)
        return NULL;
    brg_tensor *t = brg_empty(dtype, ndim, shape);
    if (!t || brg__tensor_is_float(t))
        return t;
    (void)BRG_FAIL(BRG_ERR_DTYPE, "%s: dtype %s is not a float", name,
                   brg_dtype_name(dtype));
    return NULL;
}

brg_tensor *brg_rand(brg_dtype dtype, int ndim, const int64_t *shape)
{
    brg_tensor *t = new_float("brg_rand", dtype, ndim, shape);
    if (!t)
        return NULL;
    const brg_draw r = {
        .kind = BRG_DRAW_UNIFORM, .b = 1.0, .n_bits = bits_of(dtype)};
    return fill(t, &r) == BRG_OK ? t : NULL;
}

brg_tensor *brg_randn(brg_dtype dtype, int ndim, const int64_t *shape)
{
    brg_tensor *t = new_float("brg_randn", dtype, ndim, shape);
    const brg_draw r = {.kind = BRG_DRAW_NORMAL, .b = 1.0};
    return t && fill(t, &r) == BRG_OK ? t : NULL;
}

static brg_status change(const char *name, brg_tensor *t, const brg_draw *r)
{
    char text[BRG_TENSOR_TEXT_MAX];
    if (!t)
        return brg__error_pending("%s: the tensor", name);
    if (brg__is_traced())
        BRG_TRY(brg__tracer_settle(name, INSTEAD));
    if (!brg__tensor_is_float(t))
        return BRG_FAIL(BRG_ERR_DTYPE, "%s: %s is not of a float dtype", name,
                        brg__tensor_text(t, text));
    if (brg__tensor_is_meta(t))
        return BRG_FAIL(BRG_ERR_STATE, "%s: %s has no memory", name,
                        brg__tensor_text(t, text));
    if (brg_grad_mode() && brg_requires_grad(t))
        return BRG_FAIL(BRG_ERR_STATE,
                        "%s: %s requires gradients and gradients are being "
                        "recorded; turn recording off with "
                        "brg_grad_mode_set(false)",
                        name, brg__tensor_text(t, text));
    BRG_TRY(fill(t, r));
    brg_tensor_touch(t);
    return BRG_OK;
}

brg_status brg_uniform_(brg_tensor *t, double low, double high)
{
    BRG_CHECK_ARG(low <= high, "brg_uniform_: low is %g, above high, %g", low,
                  high);
    return change(
        "brg_uniform_", t,
        &(brg_draw){
            .kind = BRG_DRAW_UNIFORM, .a = low, .b = high - low, .n_bits = 24});
}

brg_status brg_normal_(brg_tensor *t, double mean, double deviation)
{
    return change(
        "brg_normal_", t,
        &(brg_draw){.kind = BRG_DRAW_NORMAL, .a = mean, .b = deviation});
}

/* ---- Integers ------------------------------------------------------------ */

brg_tensor *brg_randint(int64_t low, int64_t high, int ndim,
                        const int64_t *shape)
{
    uint64_t range = (uint64_t)high - (uint64_t)low;
    BRG_CHECK_ARG_NULL(low < high && range <= (uint64_t)1 << 32,
                       "brg_randint: [%lld, %lld) is empty or wider than 2^32",
                       (long long)low, (long long)high);
    if (brg__is_traced() &&
        brg__tracer_settle("brg_randint", INSTEAD) != BRG_OK)
        return NULL;
    brg_tensor *t = brg_empty(BRG_DTYPE_I64, ndim, shape);
    const brg_draw r = {.kind = BRG_DRAW_INTEGERS, .low = low, .range = range};
    return t && fill(t, &r) == BRG_OK ? t : NULL;
}

/* Fisher and Yates, from the end. */
brg_tensor *brg_randperm(int64_t n)
{
    BRG_CHECK_ARG_NULL(n >= 0 && n <= (int64_t)UINT32_MAX,
                       "brg_randperm: n is %lld, expected 0 to 2^32 - 1",
                       (long long)n);
    if (brg__is_traced() &&
        brg__tracer_settle("brg_randperm", INSTEAD) != BRG_OK)
        return NULL;
    brg_tensor *t = brg__empty_host(BRG_DTYPE_I64, BRG_SHAPE(n));
    if (!t || n == 0)
        return brg__to_current(t);
    int64_t *out = brg__tensor_ptr(t);
    for (int64_t i = 0; i < n; i++)
        out[i] = i;
    stream s;
    stream_init(&s, take(n), false);
    for (int64_t i = n - 1; i > 0; i--) {
        size_t at;
        (void)stream_next(&s, 1, &at);
        int64_t k = (int64_t)((s.words[at] * (uint64_t)(i + 1)) >> 32);
        int64_t moved = out[i];
        out[i] = out[k];
        out[k] = moved;
    }
    return brg__to_current(t);
}

/* ---- Dropout: attrs i = {seed, offset, from}, f = {p} ---------------------
 * from: 0, or where {seed, offset} lie on the tensor's device when the kernel
 * runs; the offset in i[1] is added to that one. */

static void mask_f64(size_t n, const uint32_t *words, uint32_t threshold,
                     double scale, const double *x, double *out)
{
    for (size_t i = 0; i < n; i++)
        out[i] = words[i] < threshold ? 0.0 : x[i] * scale;
}

static void mask_tile(stream *s, double p, size_t n, const void *x, void *out,
                      brg__ctype type)
{
    uint32_t threshold = p >= 1.0 ? UINT32_MAX : (uint32_t)(p * 4294967296.0);
    double scale = p >= 1.0 ? 0.0 : 1.0 / (1.0 - p);
    size_t item = brg__ctype_size(type);
    for (size_t at, count; n > 0; n -= count) {
        count = stream_next(s, n, &at);
        if (type == BRG__F64)
            mask_f64(count, s->words + at, threshold, scale, x, out);
        else
            s->kernels->mask_f32(count, s->words + at, threshold, (float)scale,
                                 x, out);
        x = (const char *)x + count * item;
        out = (char *)out + count * item;
    }
}

static brg_random_state drawn(const brg_attrs *attrs)
{
    const uint64_t *from = (const uint64_t *)(uintptr_t)attrs->i[2];
    const uint64_t offset = (uint64_t)attrs->i[1];
    return from ? (brg_random_state){from[0], from[1] + offset}
                : (brg_random_state){(uint64_t)attrs->i[0], offset};
}

brg_status brg__dropout_run(brg_op_call *call)
{
    const brg_tensor *x = call->in[0], *y = call->out[0];
    if (y->numel == 0)
        return BRG_OK;
    stream s;
    stream_init(&s, drawn(call->attrs), false);
    brg__ctype type = brg__ctype_of((brg_dtype)x->dtype);
    brg__tiles t;
    brg__tile_buffer buffers[2];
    brg__tiles_init(&t, y->ndim, y->shape, type);
    brg__tiles_add(&t, x);
    brg__tiles_add(&t, y);
    for (brg__tiles_begin(&t); t.n > 0; brg__tiles_next(&t)) {
        const void *from = brg__tiles_read(&t, 0, &buffers[0]);
        void *to = brg__tiles_target(&t, 1, &buffers[1]);
        mask_tile(&s, call->attrs->f[0], t.n, from, to, type);
        brg__tiles_write(&t, 1, to);
        brg__progress_poll();
    }
    return BRG_OK;
}

brg_status brg__dropout_infer(brg_op_call *call)
{
    BRG_TRY(brg__check_float(call, 0, "the input"));
    brg__infer_like(call, 0, call->in[0]);
    return BRG_OK;
}

brg_status brg__dropout_vjp(brg_vjp *v)
{
    BRG_VJP_SET(v, 0,
                brg__call1(&brg__op_dropout_grad, v->grad_out[0], v->attrs));
    return BRG_OK;
}

brg_status brg__dropout_grad_infer(brg_op_call *call)
{
    return brg__dropout_infer(call);
}

brg_status brg__dropout_grad_run(brg_op_call *call)
{
    return brg__dropout_run(call);
}

brg_status brg__dropout_grad_vjp(brg_vjp *v)
{
    return brg__dropout_vjp(v);
}

void brg__dropout_redraw(brg_attrs *attrs, int64_t n)
{
    brg_random_state taken = take(n);
    attrs->i[0] = (int64_t)taken.seed;
    attrs->i[1] = (int64_t)taken.offset;
}

brg_tensor *brg_dropout(brg_tensor *x, double p, bool training)
{
    BRG_CHECK_ARG_NULL(p >= 0.0 && p <= 1.0,
                       "dropout: p is %g, expected 0 to 1", p);
    if (!x || !training || p == 0.0)
        return x;
    brg_random_state taken = take(x->numel);
    return brg__call1(
        &brg__op_dropout, x,
        &(brg_attrs){.i = {(int64_t)taken.seed, (int64_t)taken.offset},
                     .f = {p}});
}
