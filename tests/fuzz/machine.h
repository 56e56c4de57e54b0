/* SPDX-License-Identifier: Apache-2.0
 * The oracle of the fuzz test: random programs, and a small machine that runs
 * them on dual numbers (a value and its derivative by one leaf element) by
 * plain loops. It shares no code with the library.
 *
 * A program is a list of steps over slots; a slot is a strided view of a
 * storage, so that changes in place are seen through all views, as in the
 * library. What changes gradients but not values (hooks, detach, a function
 * with a gradient of its own) is a change of the derivatives here.
 *
 * A hook makes f g + c of a gradient g. Derivatives go the other way, so the
 * hooks of a node are met in the reverse of the order in which backward runs
 * them: post-hooks, the rule, pre-hooks, (a retained gradient), tensor hooks;
 * each list from its last. f scales what passes; c is a sum of what passes,
 * added to the derivative of the loss. */
#ifndef BRG_TESTS_FUZZ_MACHINE_H
#define BRG_TESTS_FUZZ_MACHINE_H

#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#define MAX_STEPS 400
#define MAX_SLOTS 800
#define MAX_NUMEL 24
#define MAX_RANK 4

/* A list of X() never settles. */
/* clang-format off */
#define STEP_KINDS(X)                                                          \
    X(LEAF)                                                                    \
    X(CONSTANT)                                                                \
    X(COPY) X(SIN) X(TANH) X(SIGMOID) X(RELU) X(SQUARE) X(NEG) X(SCALE)        \
        X(SHIFT) X(ADD) X(SUB) X(MUL) X(DIV) X(MATMUL) X(SUM) X(MEAN)          \
            X(SOFTMAX) X(RESHAPE) X(TRANSPOSE) X(SLICE) X(SELECT) X(EXPAND)    \
                X(CAT) X(DETACH) X(NO_GRAD_SIN) X(FN_SIN) X(FN_PAIR)           \
                    X(FN_DOUBLE_) X(ADD_) X(SCALE_) X(COPY_) X(FILL_)          \
                        X(RETAIN) X(TENSOR_HOOK) X(PRE_HOOK) X(POST_HOOK)      \
                            X(ACCUMULATE_HOOK)
/* clang-format on */

typedef enum step_kind {
#define STEP_ENUM(name) STEP_##name,
    STEP_KINDS(STEP_ENUM)
#undef STEP_ENUM
        N_STEP_KINDS
} step_kind;

static const char *const step_names[] = {
#define STEP_NAME(name) #name,
    STEP_KINDS(STEP_NAME)
#undef STEP_NAME
};

typedef struct step {
    step_kind kind;
    int a, b, out, out2; /* slots; in place: a is changed */
    int i[3];            /* of a hook, i[0]: its life (hook_life) */
    double f, c;         /* c of hooks only */
} step;

typedef enum hook_life {
    HOOK_STAYS,
    HOOK_RUNS_ONCE,    /* and removes itself then */
    HOOK_REMOVES_NEXT, /* of its list, while it runs */
    HOOK_IS_REMOVED,   /* before it could run */
    N_HOOK_LIVES
} hook_life;

/* What became of a hook: whether it is there, and in the last backward which
 * of the gradients it saw were defined. An undefined one has no c. */
typedef struct hook_state {
    bool is_there, has_run, is_defined[2];
} hook_state;

typedef struct slot {
    int storage, offset, rank;
    int shape[MAX_RANK], stride[MAX_RANK];
    bool is_view;
} slot;

typedef struct program {
    uint64_t seed;
    step steps[MAX_STEPS];
    int n_steps;
    slot slots[MAX_SLOTS];
    int n_slots;
    int n_storages;
    double leaf[MAX_SLOTS][MAX_NUMEL]; /* by storage */
    hook_state hooks[MAX_STEPS];       /* by step */
} program;

typedef struct dual {
    double v, t;
} dual;

typedef struct machine {
    const program *p;
    dual at[MAX_SLOTS][MAX_NUMEL]; /* by storage */
    /* What derivatives are by: an element of a leaf, or of the gradient that
     * step seed_step keeps; -1: none. */
    int seed_storage, seed_step, seed_element;
    double nudge;      /* added to the seed's value: for differences */
    bool is_capturing; /* no pre-hooks at leaves */
    double passes;     /* of the derivatives that the step at hand loads */
    double added;      /* by hooks to the derivative of the loss */
} machine;

/* ---- Places ---------------------------------------------------------------- */

static int numel_of(const slot *s)
{
    int n = 1;
    for (int d = 0; d < s->rank; d++)
        n *= s->shape[d];
    return n;
}

/* Where element i (row-major) of the shape of `out` lies in s, broadcast. */
static int place(const slot *s, const slot *out, int i)
{
    int offset = s->offset;
    for (int d = out->rank - 1; d >= 0; d--) {
        int index = i % out->shape[d], k = d - (out->rank - s->rank);
        i /= out->shape[d];
        if (k >= 0 && s->shape[k] != 1)
            offset += index * s->stride[k];
    }
    return offset;
}

static void load(const machine *m, int s, const slot *out, dual *x)
{
    const slot *from = &m->p->slots[s];
    for (int i = 0; i < numel_of(out); i++) {
        x[i] = m->at[from->storage][place(from, out, i)];
        x[i].t *= m->passes;
    }
}

static void store(machine *m, int s, const dual *x)
{
    const slot *to = &m->p->slots[s];
    for (int i = 0; i < numel_of(to); i++)
        m->at[to->storage][place(to, to, i)] = x[i];
}

static double largest(const machine *m, int s)
{
    dual x[MAX_NUMEL];
    const slot *from = &m->p->slots[s];
    double max = 0;
    load(m, s, from, x);
    for (int i = 0; i < numel_of(from); i++)
        max = fmax(max, fabs(x[i].v));
    return max;
}

static double smallest(const machine *m, int s)
{
    dual x[MAX_NUMEL];
    const slot *from = &m->p->slots[s];
    double min = HUGE_VAL;
    load(m, s, from, x);
    for (int i = 0; i < numel_of(from); i++)
        min = fmin(min, fabs(x[i].v));
    return min;
}

/* ---- Steps ------------------------------------------------------------------- */

static dual unary(const step *st, dual x)
{
    double y;
    switch (st->kind) {
    case STEP_SIN:
        return (dual){sin(x.v), x.t * cos(x.v)};
    case STEP_NO_GRAD_SIN:
        return (dual){sin(x.v), 0};
    case STEP_FN_SIN: /* a gradient twice too large */
        return (dual){sin(x.v), 2 * x.t * cos(x.v)};
    case STEP_TANH:
        y = tanh(x.v);
        return (dual){y, x.t * (1 - y * y)};
    case STEP_SIGMOID:
        y = 1 / (1 + exp(-x.v));
        return (dual){y, x.t * y * (1 - y)};
    case STEP_RELU:
        return x.v > 0 ? x : (dual){0, 0};
    case STEP_SQUARE:
        return (dual){x.v * x.v, 2 * x.v * x.t};
    case STEP_NEG:
        return (dual){-x.v, -x.t};
    case STEP_SCALE:
    case STEP_SCALE_:
        return (dual){x.v * st->f, x.t * st->f};
    case STEP_FN_DOUBLE_:
        return (dual){x.v * 2, x.t * 2};
    case STEP_SHIFT:
        return (dual){x.v + st->f, x.t};
    case STEP_FILL_:
        return (dual){st->f, 0};
    case STEP_DETACH:
        return (dual){x.v, 0};
    default: /* COPY */
        return x;
    }
}

static dual binary(const step *st, dual a, dual b)
{
    switch (st->kind) {
    case STEP_ADD:
        return (dual){a.v + b.v, a.t + b.t};
    case STEP_ADD_:
        return (dual){a.v + st->f * b.v, a.t + st->f * b.t};
    case STEP_SUB:
        return (dual){a.v - b.v, a.t - b.t};
    case STEP_COPY_:
        return b;
    case STEP_DIV:
        return (dual){a.v / b.v, (a.t - a.v / b.v * b.t) / b.v};
    default: /* MUL */
        return (dual){a.v * b.v, a.t * b.v + a.v * b.t};
    }
}

static void matmul(const machine *m, const step *st, dual *y)
{
    const slot *a = &m->p->slots[st->a], *b = &m->p->slots[st->b];
    dual x[MAX_NUMEL], w[MAX_NUMEL];
    load(m, st->a, a, x);
    load(m, st->b, b, w);
    const int n = a->shape[0], k = a->shape[1], l = b->shape[1];
    for (int i = 0; i < n; i++)
        for (int j = 0; j < l; j++) {
            dual sum = {0, 0};
            for (int c = 0; c < k; c++) {
                const dual p = x[i * k + c], q = w[c * l + j];
                sum.v += p.v * q.v;
                sum.t += p.t * q.v + p.v * q.t;
            }
            y[i * l + j] = sum;
        }
}

/* Sum or mean over dim i[0]. */
static void reduce(const machine *m, const step *st, dual *y)
{
    const slot *a = &m->p->slots[st->a];
    const int dim = st->i[0], n = a->shape[dim];
    int inner = 1;
    for (int d = dim + 1; d < a->rank; d++)
        inner *= a->shape[d];
    dual x[MAX_NUMEL];
    load(m, st->a, a, x);
    const double by = st->kind == STEP_MEAN ? 1.0 / n : 1.0;
    for (int i = 0; i < numel_of(a) / n; i++) {
        y[i] = (dual){0, 0};
        for (int k = 0; k < n; k++) {
            const dual e = x[(i / inner * n + k) * inner + i % inner];
            y[i].v += e.v * by;
            y[i].t += e.t * by;
        }
    }
}

static void softmax(const machine *m, const step *st, dual *y)
{
    const slot *a = &m->p->slots[st->a];
    const int n = a->shape[a->rank - 1];
    load(m, st->a, a, y);
    for (dual *row = y; row < y + numel_of(a); row += n) {
        double sum = 0, mix = 0;
        for (int i = 0; i < n; i++)
            sum += exp(row[i].v);
        for (int i = 0; i < n; i++) {
            row[i].v = exp(row[i].v) / sum;
            mix += row[i].v * row[i].t;
        }
        for (int i = 0; i < n; i++)
            row[i].t = row[i].v * (row[i].t - mix);
    }
}

static void cat(const machine *m, const step *st, dual *y)
{
    const slot *out = &m->p->slots[st->out];
    const slot *a = &m->p->slots[st->a], *b = &m->p->slots[st->b];
    const int dim = st->i[0];
    int inner = 1;
    for (int d = dim + 1; d < out->rank; d++)
        inner *= out->shape[d];
    dual x[MAX_NUMEL], w[MAX_NUMEL];
    load(m, st->a, a, x);
    load(m, st->b, b, w);
    const int na = a->shape[dim] * inner, nb = b->shape[dim] * inner;
    for (int i = 0; i < numel_of(out); i++) {
        const int row = i / (na + nb), col = i % (na + nb);
        y[i] = col < na ? x[row * na + col] : w[row * nb + col - na];
    }
}

static void run_pair(machine *m, const step *st)
{
    const slot *out = &m->p->slots[st->out];
    dual a[MAX_NUMEL], b[MAX_NUMEL], y[MAX_NUMEL], z[MAX_NUMEL];
    load(m, st->a, out, a);
    load(m, st->b, out, b);
    for (int i = 0; i < numel_of(out); i++) {
        y[i] = (dual){a[i].v * b[i].v, a[i].t * b[i].v + a[i].v * b[i].t};
        z[i] = (dual){a[i].v + b[i].v, a[i].t + b[i].t};
    }
    store(m, st->out, y);
    store(m, st->out2, z);
}

static bool is_binary(step_kind k)
{
    return k == STEP_ADD || k == STEP_SUB || k == STEP_MUL || k == STEP_DIV ||
           k == STEP_ADD_ || k == STEP_COPY_;
}

static bool makes_view(step_kind k)
{
    return k >= STEP_RESHAPE && k <= STEP_EXPAND;
}

static void run_leaf(machine *m, const step *st, dual *y)
{
    const slot *out = &m->p->slots[st->out];
    for (int i = 0; i < numel_of(out); i++) {
        const bool is_seed = st->kind == STEP_LEAF &&
                             m->seed_storage == out->storage &&
                             m->seed_element == i;
        y[i] = (dual){m->p->leaf[out->storage][i], is_seed};
        if (is_seed)
            y[i].v += m->nudge;
    }
}

static void run_rule(machine *m, const step *st)
{
    const slot *out = &m->p->slots[st->out];
    dual y[MAX_NUMEL], b[MAX_NUMEL];
    if (st->kind == STEP_FN_PAIR) {
        run_pair(m, st);
        return;
    }
    if (st->kind == STEP_LEAF || st->kind == STEP_CONSTANT)
        run_leaf(m, st, y);
    else if (st->kind == STEP_MATMUL)
        matmul(m, st, y);
    else if (st->kind == STEP_SUM || st->kind == STEP_MEAN)
        reduce(m, st, y);
    else if (st->kind == STEP_SOFTMAX)
        softmax(m, st, y);
    else if (st->kind == STEP_CAT)
        cat(m, st, y);
    else {
        load(m, st->a, out, y);
        if (is_binary(st->kind))
            load(m, st->b, out, b);
        for (int i = 0; i < numel_of(out); i++)
            y[i] =
                is_binary(st->kind) ? binary(st, y[i], b[i]) : unary(st, y[i]);
    }
    store(m, st->out, y);
}

/* ---- Hooks ------------------------------------------------------------------------ */

static bool is_hook(step_kind k)
{
    return k >= STEP_RETAIN;
}

/* How many hooks there are of step st: they follow it. */
static int n_hooks_of(const program *p, const step *st)
{
    int n = 0;
    while (st + n + 1 < p->steps + p->n_steps && is_hook(st[n + 1].kind))
        n++;
    return n;
}

static const hook_state *state_of(const machine *m, const step *hook)
{
    return &m->p->hooks[hook - m->p->steps];
}

static double sum_of(const machine *m, int s)
{
    dual x[MAX_NUMEL];
    double sum = 0;
    load(m, s, &m->p->slots[s], x);
    for (int i = 0; i < numel_of(&m->p->slots[s]); i++)
        sum += x[i].t;
    return sum;
}

/* Post-hooks: what of the derivatives of a and b reaches the rule. */
static void meet_post_hooks(machine *m, const step *st, int n)
{
    for (const step *h = st + n; h > st; h--) {
        if (h->kind != STEP_POST_HOOK || !state_of(m, h)->is_there)
            continue;
        if (state_of(m, h)->is_defined[0])
            m->added += h->c * sum_of(m, st->a);
        if (state_of(m, h)->is_defined[1])
            m->added += h->c * sum_of(m, st->b);
        m->passes *= h->f;
    }
}

/* One hook that sees the gradient of slot s, its k-th. */
static void meet(machine *m, const step *h, int s, int k)
{
    dual x[MAX_NUMEL];
    if (s < 0 || !state_of(m, h)->is_there)
        return;
    const slot *to = &m->p->slots[s];
    if (state_of(m, h)->is_defined[k])
        m->added += h->c * sum_of(m, s);
    load(m, s, to, x);
    for (int i = 0; i < numel_of(to); i++)
        x[i].t *= h->f;
    store(m, s, x);
}

static void seed_kept_gradient(machine *m, const step *st)
{
    dual x[MAX_NUMEL];
    const slot *out = &m->p->slots[st->out];
    load(m, st->out, out, x);
    for (int i = 0; i < numel_of(out); i++)
        x[i].t = i == m->seed_element;
    store(m, st->out, x);
}

static void run_step(machine *m, const step *st)
{
    if (makes_view(st->kind) || is_hook(st->kind))
        return;
    const int n = n_hooks_of(m->p, st);
    const bool is_leaf = st->kind == STEP_LEAF;
    if (!is_leaf)
        meet_post_hooks(m, st, n);
    run_rule(m, st);
    m->passes = 1;
    for (const step *h = st + n; h > st; h--)
        if (h->kind == STEP_PRE_HOOK && !(is_leaf && m->is_capturing)) {
            meet(m, h, st->out, 0);
            meet(m, h, st->out2, 1);
        }
    if (m->seed_step == st - m->p->steps)
        seed_kept_gradient(m, st);
    for (const step *h = st + n; h > st; h--)
        if (h->kind == STEP_TENSOR_HOOK)
            meet(m, h, h->a, 0);
}

/* ---- Programs ------------------------------------------------------------------ */

/* How much of a slot is in the loss: 0 for most. Depends on the seed and the
 * slot only, so that a shorter program is the beginning of a longer one. */
static double loss_weight(const program *p, int s)
{
    uint64_t x = (p->seed + (uint64_t)s) * 0x9E3779B97F4A7C15u;
    x = (x ^ (x >> 29)) * 0xBF58476D1CE4E5B9u;
    x ^= x >> 32;
    if (x % 4 != 0 && s != p->n_slots - 1)
        return 0;
    return (double)(x >> 11) * 0x1p-53 * 2 - 1;
}

static dual run_program(machine *m)
{
    m->added = 0;
    for (int k = 0; k < m->p->n_steps; k++)
        run_step(m, &m->p->steps[k]);
    dual loss = {0, m->added}, x[MAX_NUMEL];
    for (int s = 0; s < m->p->n_slots; s++) {
        const double w = loss_weight(m->p, s);
        const int n = numel_of(&m->p->slots[s]);
        load(m, s, &m->p->slots[s], x);
        for (int i = 0; w != 0 && i < n; i++) {
            loss.v += w * x[i].v / n;
            loss.t += w * x[i].t / n;
        }
    }
    return loss;
}

/* Which storages a change of the wanted leaves (all: NULL) could reach. */
static void find_tainted(const program *p, const bool *is_wanted, bool *tainted)
{
    memset(tainted, 0, MAX_SLOTS * sizeof *tainted);
    for (int k = 0; k < p->n_steps; k++) {
        const step *st = &p->steps[k];
        bool *out = &tainted[p->slots[st->out].storage];
        if (st->kind == STEP_LEAF)
            *out = !is_wanted || is_wanted[st->out];
        if (st->a >= 0)
            *out |= tainted[p->slots[st->a].storage];
        if (st->b >= 0)
            *out |= tainted[p->slots[st->b].storage];
        if (st->out2 >= 0)
            tainted[p->slots[st->out2].storage] = *out;
    }
}

/* Which storages could reach the loss. */
static void find_live(const program *p, bool *live)
{
    memset(live, 0, MAX_SLOTS * sizeof *live);
    for (int s = 0; s < p->n_slots; s++)
        live[p->slots[s].storage] |= loss_weight(p, s) != 0;
    for (int k = p->n_steps - 1; k >= 0; k--) {
        const step *st = &p->steps[k];
        if (!live[p->slots[st->out].storage] &&
            (st->out2 < 0 || !live[p->slots[st->out2].storage]))
            continue;
        if (st->a >= 0)
            live[p->slots[st->a].storage] = true;
        if (st->b >= 0)
            live[p->slots[st->b].storage] = true;
    }
}

static void print_program(const program *p)
{
    for (int k = 0; k < p->n_steps; k++) {
        const step *st = &p->steps[k];
        const slot *s = &p->slots[st->out];
        printf("  %%%d", st->out);
        if (st->out2 >= 0)
            printf(", %%%d", st->out2);
        printf(" = %s(%%%d, %%%d; %d %d %d; %g %g)  [", step_names[st->kind],
               st->a, st->b, st->i[0], st->i[1], st->i[2], st->f, st->c);
        for (int d = 0; d < s->rank; d++)
            printf("%s%d", d ? ", " : "", s->shape[d]);
        printf("]%s loss %.3g\n", s->is_view ? " view," : "",
               loss_weight(p, st->out));
    }
}

#endif
