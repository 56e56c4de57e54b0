/* SPDX-License-Identifier: Apache-2.0
 * Hooks of random programs, on the library's side: part of library.h.
 * Each makes f g + c of a gradient g, which does not commute with another, and
 * notes what it saw. */
#ifndef BRG_TESTS_FUZZ_HOOKS_H
#define BRG_TESTS_FUZZ_HOOKS_H

/* Whether a retained gradient follows this step. */
static bool is_kept(const fuzz *f, const step *st)
{
    if (is_hook(st->kind))
        return false;
    for (int n = n_hooks_of(&f->p, st); n > 0; n--)
        if (st[n].kind == STEP_RETAIN)
            return true;
    return false;
}

/* ---- Running ---------------------------------------------------------------- */

/* The next hook of the same list, or NULL. */
static fuzz_hook *next_of(const fuzz_hook *h)
{
    fuzz *f = h->f;
    const int n = n_hooks_of(&f->p, h->st);
    for (const step *st = h->st + 1; st <= h->st + n; st++)
        if (st->kind == h->st->kind &&
            (st->kind != STEP_TENSOR_HOOK || st->a == h->st->a))
            return &f->hooks[st - f->p.steps];
    return NULL;
}

/* Once a backward: what the hook's life asks for. */
static brg_status begin_hook(fuzz_hook *h)
{
    h->n_runs++;
    h->f->p.hooks[h->st - h->f->p.steps].has_run = true;
    if (!h->handle)
        return brg_error_set(BRG_ERR_INTERNAL, __FILE__, __LINE__,
                             "a removed hook runs");
    fuzz_hook *gone = NULL;
    if (h->st->i[0] == HOOK_RUNS_ONCE)
        gone = h;
    else if (h->st->i[0] == HOOK_REMOVES_NEXT)
        gone = next_of(h);
    if (gone && gone->handle) {
        brg_hook *handle = gone->handle;
        gone->handle = NULL;
        brg_hook_remove(handle);
    }
    return BRG_OK;
}

static brg_status change(fuzz_hook *h, int k, brg_tensor **grad)
{
    if (!*grad)
        return BRG_OK;
    h->f->p.hooks[h->st - h->f->p.steps].is_defined[k] = true;
    *grad = brg_add_scalar(brg_mul_scalar(*grad, h->st->f), h->st->c);
    return *grad ? BRG_OK : brg_error_code();
}

static brg_status on_tensor(brg_tensor *grad, brg_tensor **replacement,
                            void *user)
{
    BRG_TRY(begin_hook(user));
    *replacement = grad;
    return change(user, 0, replacement);
}

static brg_status on_pre(brg_tensor **grads, size_t n, void *user)
{
    BRG_TRY(begin_hook(user));
    for (size_t i = 0; i < n && i < 2; i++)
        BRG_TRY(change(user, (int)i, &grads[i]));
    return BRG_OK;
}

/* Binds .grad anew. */
static brg_status change_leaf(fuzz_hook *h)
{
    brg_tensor *leaf = h->f->t[h->st->a], *grad = brg_tensor_grad(leaf);
    BRG_TRY(change(h, 0, &grad));
    return grad ? brg_tensor_set_grad(leaf, grad) : BRG_OK;
}

static brg_status on_accumulated(brg_tensor *leaf, void *user)
{
    (void)leaf;
    BRG_TRY(begin_hook(user));
    return change_leaf(user);
}

static brg_status on_post(brg_tensor **grad_in, size_t n_in,
                          brg_tensor *const *grad_out, size_t n_out, void *user)
{
    (void)grad_out;
    (void)n_out;
    BRG_TRY(begin_hook(user));
    if (n_in == 0)
        return change_leaf(user);
    for (size_t i = 0; i < n_in && i < 2; i++)
        BRG_TRY(change(user, (int)i, &grad_in[i]));
    return BRG_OK;
}

static void on_destroy(void *user)
{
    ((fuzz_hook *)user)->n_destroyed++;
}

/* ---- Adding ------------------------------------------------------------------ */

static brg_tensor *emit_hook(fuzz *f, const step *st)
{
    const int k = (int)(st - f->p.steps);
    brg_tensor *t = f->t[st->a];
    fuzz_hook *h = &f->hooks[k];
    *h = (fuzz_hook){.f = f, .st = st};
    brg_status status = brg_tensor_node(&f->nodes[k], t);
    if (status != BRG_OK)
        return NULL;
    if (st->kind == STEP_TENSOR_HOOK)
        status = brg_tensor_add_hook(&h->handle, t, on_tensor, h, on_destroy);
    else if (st->kind == STEP_PRE_HOOK)
        status = brg_node_add_pre_hook(&h->handle, f->nodes[k], on_pre, h,
                                       on_destroy);
    else if (st->kind == STEP_POST_HOOK)
        status = brg_node_add_post_hook(&h->handle, f->nodes[k], on_post, h,
                                        on_destroy);
    else
        status = brg_tensor_add_post_accumulate_hook(
            &h->handle, t, on_accumulated, h, on_destroy);
    if (st->i[0] == HOOK_IS_REMOVED) {
        brg_hook_remove(h->handle);
        h->handle = NULL;
    }
    f->p.hooks[k].is_there = h->handle != NULL;
    return status == BRG_OK ? t : NULL;
}

static void release_hooks(fuzz *f)
{
    for (int k = 0; k < f->p.n_steps; k++) {
        brg_hook_release(f->hooks[k].handle);
        brg_node_release(f->nodes[k]);
    }
}

/* When the graph is gone. */
static bool check_destroyed(fuzz *f)
{
    for (int k = 0; k < f->p.n_steps; k++)
        if (f->hooks[k].st && f->hooks[k].n_destroyed != 1)
            return FAIL("the hook of step %d was destroyed %d times", k,
                        f->hooks[k].n_destroyed);
    return true;
}

/* ---- What a backward did with them ---------------------------------------------- */

static void before_backward(fuzz *f)
{
    for (int k = 0; k < f->p.n_steps; k++) {
        hook_state *state = &f->p.hooks[k];
        *state = (hook_state){.is_there = state->is_there};
        f->hooks[k].n_runs = 0;
    }
}

/* A hook that one before it has removed in this backward has no part in it. */
static void drop_removed(fuzz *f)
{
    for (int k = 0; k < f->p.n_steps; k++) {
        const fuzz_hook *h = &f->hooks[k];
        if (!h->st || h->st->i[0] != HOOK_REMOVES_NEXT || h->n_runs == 0)
            continue;
        const fuzz_hook *next = next_of(h);
        if (next)
            f->p.hooks[next->st - f->p.steps].is_there = false;
    }
}

/* Hooks run at most once, not after their removal, and not where no gradient
 * can come by. With wanted leaves (NULL: backward), no node runs that has
 * nothing to do with them, and not the leaves themselves. */
static bool check_hooks(fuzz *f, const bool *is_wanted)
{
    bool tainted[MAX_SLOTS], live[MAX_SLOTS];
    find_tainted(&f->p, is_wanted, tainted);
    find_live(&f->p, live);
    drop_removed(f);
    for (int k = 0; k < f->p.n_steps; k++) {
        const fuzz_hook *h = &f->hooks[k];
        if (!h->st || h->n_runs == 0)
            continue;
        const int s = f->p.slots[h->st->a].storage;
        const bool is_leaf = f->is_leaf[s];
        if (h->n_runs != 1 || !f->p.hooks[k].is_there)
            return FAIL("the hook of step %d ran %d times", k, h->n_runs);
        if (!tainted[s])
            return FAIL("the hook of step %d ran: nobody wants it", k);
        if (is_wanted && is_leaf && h->st->kind != STEP_TENSOR_HOOK)
            return FAIL("step %d: brg_grad ran a leaf's node", k);
    }
    for (int k = 0; k < f->p.n_steps; k++) { /* out2 may be the live one */
        const step *st = &f->p.steps[k];
        bool is_live = live[f->p.slots[st->out].storage] ||
                       (st->out2 >= 0 && live[f->p.slots[st->out2].storage]);
        for (int n = n_hooks_of(&f->p, st); !is_hook(st->kind) && n > 0; n--)
            if (f->hooks[k + n].n_runs > 0 && !is_live)
                return FAIL("the hook of step %d ran: no gradient gets there",
                            k + n);
    }
    return true;
}

/* The hooks that remove themselves have done so. */
static void after_backward(fuzz *f)
{
    for (int k = 0; k < f->p.n_steps; k++)
        if (!f->hooks[k].handle)
            f->p.hooks[k].is_there = false;
}

/* At a leaf: post-accumulate hooks, then post-hooks. `grad` is what arrived in
 * this backward, `sum` becomes what .grad should be. */
static bool run_leaf_hooks(fuzz *f, const step *leaf, const double *grad,
                           double *sum)
{
    static const step_kind kinds[] = {STEP_ACCUMULATE_HOOK, STEP_POST_HOOK};
    const int n = numel_of(&f->p.slots[leaf->out]);
    const int n_hooks = n_hooks_of(&f->p, leaf);
    bool has_grad = false;
    for (int i = 0; i < n; i++)
        has_grad |= grad[i] != 0;
    for (int j = 0; j < 2; j++)
        for (const step *h = leaf + 1; h <= leaf + n_hooks; h++) {
            const hook_state *state = state_of(&f->m, h);
            if (h->kind != kinds[j] || !state->is_there)
                continue;
            if (has_grad && !state->has_run)
                return FAIL("the hook of step %d did not run",
                            (int)(h - f->p.steps));
            for (int i = 0; state->is_defined[0] && i < n; i++)
                sum[i] = h->f * sum[i] + h->c;
        }
    return true;
}

#endif
