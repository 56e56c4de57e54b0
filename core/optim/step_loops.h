/* SPDX-License-Identifier: Apache-2.0
 * The loops for one real type: included with T the type, FN(name) the name of
 * its function and SQRT its root. No guard: included once per type. */

static void FN(sgd_plain)(T *restrict p, const T *restrict g, size_t n,
                          const brg__sgd_scalars *s)
{
    const T lr = (T)s->lr, decay = (T)s->weight_decay;
    for (size_t i = 0; i < n; i++)
        p[i] -= lr * (g[i] + decay * p[i]);
}

static void FN(sgd_momentum)(T *restrict p, const T *restrict g, T *restrict b,
                             size_t n, const brg__sgd_scalars *s)
{
    const T lr = (T)s->lr, decay = (T)s->weight_decay;
    const T momentum = (T)s->momentum, keep = (T)s->keep;
    for (size_t i = 0; i < n; i++) {
        T d = g[i] + decay * p[i];
        b[i] = momentum * b[i] + keep * d;
        p[i] -= lr * b[i];
    }
}

static void FN(sgd_nesterov)(T *restrict p, const T *restrict g, T *restrict b,
                             size_t n, const brg__sgd_scalars *s)
{
    const T lr = (T)s->lr, decay = (T)s->weight_decay;
    const T momentum = (T)s->momentum, keep = (T)s->keep;
    for (size_t i = 0; i < n; i++) {
        T d = g[i] + decay * p[i];
        b[i] = momentum * b[i] + keep * d;
        p[i] -= lr * (d + momentum * b[i]);
    }
}

static ONE_COPY void FN(sgd)(void *p, const void *g, void *const *state,
                             size_t n, const brg__step_scalars *scalars)
{
    const brg__sgd_scalars *s = &scalars->sgd;
    if (!state[0])
        FN(sgd_plain)(p, g, n, s);
    else if (s->nesterov)
        FN(sgd_nesterov)(p, g, state[0], n, s);
    else
        FN(sgd_momentum)(p, g, state[0], n, s);
}

static void FN(adamw_loop)(T *restrict p, const T *restrict g, T *restrict m,
                           T *restrict v, size_t n, const brg__adamw_scalars *s)
{
    const T decay = (T)s->decay, eps = (T)s->eps;
    const T beta1 = (T)s->beta1, rest1 = (T)(1.0 - s->beta1);
    const T beta2 = (T)s->beta2, rest2 = (T)(1.0 - s->beta2);
    const T step_size = (T)s->step_size, root_scale = (T)s->root_scale;
    for (size_t i = 0; i < n; i++) {
        m[i] = beta1 * m[i] + rest1 * g[i];
        v[i] = beta2 * v[i] + rest2 * g[i] * g[i];
        T root = SQRT(v[i]) * root_scale + eps;
        p[i] = decay * p[i] - step_size * m[i] / root;
    }
}

static ONE_COPY void FN(adamw)(void *p, const void *g, void *const *state,
                               size_t n, const brg__step_scalars *scalars)
{
    FN(adamw_loop)(p, g, state[0], state[1], n, &scalars->adamw);
}

static void FN(sgd_runs)(const brg__run *runs, size_t n_runs)
{
    for (const brg__run *r = runs; r < runs + n_runs; r++)
        FN(sgd)(r->param, r->grad, r->state, r->n, r->scalars);
}

static void FN(adamw_runs)(const brg__run *runs, size_t n_runs)
{
    for (const brg__run *r = runs; r < runs + n_runs; r++)
        FN(adamw)(r->param, r->grad, r->state, r->n, r->scalars);
}

static void FN(scale)(void *to, size_t n, double factor)
{
    T *g = to;
    for (size_t i = 0; i < n; i++)
        g[i] *= (T)factor;
}

static void FN(limit)(void *to, size_t n, double limit)
{
    T *g = to;
    const T high = (T)limit, low = (T)-limit;
    for (size_t i = 0; i < n; i++) {
        T x = g[i] > high ? high : g[i];
        g[i] = x < low ? low : x;
    }
}
