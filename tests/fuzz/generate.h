/* SPDX-License-Identifier: Apache-2.0
 * Making random programs: part of library.h. Each step is tried with
 * random slots, and run on both sides at once; values stay within bounds, and
 * nothing is changed in place that a gradient needs. */
#ifndef BRG_TESTS_FUZZ_GENERATE_H
#define BRG_TESTS_FUZZ_GENERATE_H

static int draw(fuzz *f, int n)
{
    return (int)(brg_test_random(&f->random) % (uint64_t)n);
}

/* A slot, mostly a late one, of values that are not too large; -1: none. */
static int pick(fuzz *f)
{
    for (int tries = 0; tries < 8 && f->p.n_slots > 0; tries++) {
        int s = draw(f, f->p.n_slots);
        if (draw(f, 3) != 0 && f->p.n_slots > 12)
            s = f->p.n_slots - 1 - draw(f, 12);
        if (largest(&f->m, s) <= 4)
            return s;
    }
    return -1;
}

/* ---- Shapes ---------------------------------------------------------------- */

static bool broadcast(const slot *a, const slot *b, slot *out)
{
    out->rank = a->rank > b->rank ? a->rank : b->rank;
    for (int d = 0; d < out->rank; d++) {
        const int i = d - (out->rank - a->rank), j = d - (out->rank - b->rank);
        const int x = i < 0 ? 1 : a->shape[i], y = j < 0 ? 1 : b->shape[j];
        if (x != y && x != 1 && y != 1)
            return false;
        out->shape[d] = x > y ? x : y;
    }
    return numel_of(out) <= MAX_NUMEL;
}

static void row_major(slot *s)
{
    int n = 1;
    for (int d = s->rank - 1; d >= 0; d--) {
        s->stride[d] = n;
        n *= s->shape[d];
    }
}

static bool is_row_major(const slot *s)
{
    slot plain = *s;
    row_major(&plain);
    for (int d = 0; d < s->rank; d++)
        if (s->shape[d] != 1 && s->stride[d] != plain.stride[d])
            return false;
    return true;
}

static void without_dim(slot *s, int dim)
{
    for (int d = dim; d + 1 < s->rank; d++) {
        s->shape[d] = s->shape[d + 1];
        s->stride[d] = s->stride[d + 1];
    }
    s->rank--;
}

/* ---- Steps: each fills *st and the shape of *out, or is not possible --------- */

static bool plan_leaf(fuzz *f, step *st, slot *out)
{
    st->a = -1;
    do {
        out->rank = draw(f, 4);
        for (int d = 0; d < out->rank; d++)
            out->shape[d] = 1 + draw(f, 4);
    } while (numel_of(out) > 12);
    return true;
}

static bool plan_view(fuzz *f, step *st, slot *out)
{
    if (st->kind == STEP_RESHAPE) {
        const int n = numel_of(out);
        const int k = 1 + draw(f, 4);
        if (!is_row_major(out) || n % k != 0 || out->rank == 2)
            return false;
        out->rank = 2;
        out->shape[0] = k;
        out->shape[1] = n / k;
        row_major(out);
        return true;
    }
    if (st->kind == STEP_EXPAND) {
        const int k = 2 + draw(f, 2);
        if (out->rank == MAX_RANK || numel_of(out) * k > MAX_NUMEL)
            return false;
        memmove(out->shape + 1, out->shape, sizeof(int) * (MAX_RANK - 1));
        memmove(out->stride + 1, out->stride, sizeof(int) * (MAX_RANK - 1));
        out->shape[0] = k;
        out->stride[0] = 0;
        out->rank++;
        return true;
    }
    if (out->rank == 0)
        return false;
    const int d = st->i[0] = draw(f, out->rank);
    if (st->kind == STEP_TRANSPOSE) {
        const int e = st->i[1] = draw(f, out->rank);
        const slot in = *out;
        out->shape[d] = in.shape[e], out->shape[e] = in.shape[d];
        out->stride[d] = in.stride[e], out->stride[e] = in.stride[d];
        return true;
    }
    const int first = st->i[1] = draw(f, out->shape[d]);
    out->offset += first * out->stride[d];
    if (st->kind == STEP_SELECT) {
        without_dim(out, d);
        return true;
    }
    const int by = st->i[2] = 1 + draw(f, 2);
    out->shape[d] = (out->shape[d] - first + by - 1) / by;
    out->stride[d] *= by;
    return true;
}

static bool plan_matmul(const fuzz *f, const step *st, slot *out)
{
    const slot *a = &f->p.slots[st->a], *b = &f->p.slots[st->b];
    if (a->rank != 2 || b->rank != 2 || a->shape[1] != b->shape[0])
        return false;
    out->shape[1] = b->shape[1];
    return numel_of(out) <= MAX_NUMEL;
}

static bool plan_cat(fuzz *f, step *st, slot *out)
{
    const slot *b = &f->p.slots[st->b];
    if (out->rank == 0 || out->rank != b->rank)
        return false;
    const int dim = st->i[0] = draw(f, out->rank);
    for (int d = 0; d < out->rank; d++)
        if (d != dim && out->shape[d] != b->shape[d])
            return false;
    out->shape[dim] += b->shape[dim];
    return numel_of(out) <= MAX_NUMEL;
}

static bool plan_reduce(fuzz *f, step *st, slot *out)
{
    if (out->rank == 0)
        return false;
    st->i[0] = draw(f, out->rank);
    st->i[1] = draw(f, 2);
    if (st->i[1])
        out->shape[st->i[0]] = 1;
    else
        without_dim(out, st->i[0]);
    return true;
}

static bool is_inplace(step_kind k)
{
    return k >= STEP_FN_DOUBLE_ && !is_hook(k);
}

/* Neither a leaf nor saved nor with elements in one place; the source fits. */
static bool plan_inplace(const fuzz *f, const step *st, const slot *out)
{
    if (f->is_saved[out->storage] || f->is_leaf[out->storage])
        return false;
    for (int d = 0; d < out->rank; d++)
        if (out->stride[d] == 0 && out->shape[d] > 1)
            return false;
    slot both;
    if (!is_binary(st->kind))
        return true;
    return broadcast(out, &f->p.slots[st->b], &both) &&
           both.rank == out->rank && numel_of(&both) == numel_of(out);
}

/* A hook sees all of a tensor's gradient: it must come right after the step
 * that made the tensor what it is. A kept gradient is that of the tensor as it
 * stays. */
static bool plan_hook(fuzz *f, step *st, slot *out)
{
    const step *made = &f->p.steps[f->p.n_steps - 1];
    while (is_hook(made->kind))
        made--;
    const bool is_leaf = made->kind == STEP_LEAF;
    st->a = made->out;
    st->b = -1;
    if (st->kind == STEP_TENSOR_HOOK && made->out2 >= 0 && draw(f, 2))
        st->a = made->out2;
    st->i[0] = draw(f, 2) ? HOOK_STAYS : draw(f, N_HOOK_LIVES);
    st->c = brg_test_uniform(&f->random, -1, 1);
    *out = f->p.slots[st->a];
    if (out->is_view || !brg_requires_grad(f->t[st->a]))
        return false;
    if (st->kind == STEP_RETAIN && (is_leaf || is_kept(f, made)))
        return false;
    return st->kind != STEP_ACCUMULATE_HOOK || is_leaf;
}

static bool plan(fuzz *f, step *st, slot *out)
{
    if (st->kind == STEP_LEAF || st->kind == STEP_CONSTANT)
        return plan_leaf(f, st, out);
    st->a = pick(f);
    st->b = pick(f);
    if (st->a < 0 || st->b < 0)
        return false;
    *out = f->p.slots[st->a];
    if (is_hook(st->kind))
        return plan_hook(f, st, out);
    if (is_inplace(st->kind))
        return plan_inplace(f, st, out);
    if (makes_view(st->kind))
        return plan_view(f, st, out);
    if (st->kind == STEP_MATMUL)
        return plan_matmul(f, st, out);
    if (st->kind == STEP_CAT)
        return plan_cat(f, st, out);
    if (st->kind == STEP_SUM || st->kind == STEP_MEAN)
        return plan_reduce(f, st, out);
    if (st->kind == STEP_SOFTMAX)
        return out->rank > 0;
    if (st->kind == STEP_DIV && smallest(&f->m, st->b) < 0.3)
        return false;
    if (st->kind == STEP_FN_PAIR || is_binary(st->kind))
        return broadcast(&f->p.slots[st->a], &f->p.slots[st->b], out);
    return true;
}

/* ---- Running a step on both sides ---------------------------------------------- */

static int add_slot(fuzz *f, slot s, bool is_view)
{
    if (!is_view) {
        s.storage = f->p.n_storages++;
        s.offset = 0;
        row_major(&s);
    }
    s.is_view = is_view;
    f->p.slots[f->p.n_slots] = s;
    return f->p.n_slots++;
}

static void mark_saved(fuzz *f, const step *st)
{
    static const bool inputs[N_STEP_KINDS] = {
        [STEP_SIN] = true,     [STEP_SQUARE] = true, [STEP_MUL] = true,
        [STEP_DIV] = true,     [STEP_MATMUL] = true, [STEP_FN_SIN] = true,
        [STEP_FN_PAIR] = true, [STEP_DETACH] = true, [STEP_RETAIN] = true};
    static const bool outputs[N_STEP_KINDS] = {
        [STEP_RELU] = true,    [STEP_TANH] = true, [STEP_SIGMOID] = true,
        [STEP_SOFTMAX] = true, [STEP_DIV] = true,  [STEP_DETACH] = true};
    const slot *slots = f->p.slots;
    if (inputs[st->kind]) {
        f->is_saved[slots[st->a].storage] = true;
        if (st->b >= 0)
            f->is_saved[slots[st->b].storage] = true;
    }
    if (outputs[st->kind])
        f->is_saved[slots[st->out].storage] = true;
    if (st->kind == STEP_LEAF)
        f->is_leaf[slots[st->out].storage] = true;
}

static bool perform(fuzz *f, step st, slot out)
{
    if (is_inplace(st.kind) || is_hook(st.kind))
        st.out = st.a;
    else
        st.out = add_slot(f, out, makes_view(st.kind));
    if (st.kind == STEP_FN_PAIR)
        st.out2 = add_slot(f, out, false);
    const slot *s = &f->p.slots[st.out];
    if (st.kind == STEP_LEAF || st.kind == STEP_CONSTANT)
        for (int i = 0; i < numel_of(s); i++)
            f->p.leaf[s->storage][i] = brg_test_uniform(&f->random, -1.5, 1.5);
    const step *placed = &f->p.steps[f->p.n_steps++];
    f->p.steps[f->p.n_steps - 1] = st;
    run_step(&f->m, placed);
    brg_error_clear();
    f->t[st.out] = emit(f, placed);
    mark_saved(f, placed);
    if (f->t[st.out])
        return true;
    snprintf(f->why, sizeof f->why, "%s failed: %s", step_names[st.kind],
             brg_error_message());
    return false;
}

static step_kind choose(fuzz *f)
{
    /* More of what makes sharing and changes in place possible. */
    static const step_kind often[] = {STEP_COPY,  STEP_ADD,       STEP_SELECT,
                                      STEP_SLICE, STEP_SCALE_,    STEP_ADD_,
                                      STEP_COPY_, STEP_FN_DOUBLE_};
    if (draw(f, 8) == 0)
        return STEP_RETAIN + draw(f, N_STEP_KINDS - STEP_RETAIN);
    if (draw(f, 3) == 0)
        return often[draw(f, (int)(sizeof often / sizeof *often))];
    return (step_kind)draw(f, N_STEP_KINDS);
}

static bool generate(fuzz *f, int n_steps)
{
    while (f->p.n_steps < n_steps) {
        step st = {.kind = choose(f), .a = -1, .b = -1, .out2 = -1};
        slot out = {0};
        if (f->p.n_steps == 0)
            st.kind = STEP_LEAF;
        st.f = brg_test_uniform(&f->random, -1.2, 1.2);
        if (plan(f, &st, &out) && !perform(f, st, out))
            return false;
    }
    return true;
}

#endif
