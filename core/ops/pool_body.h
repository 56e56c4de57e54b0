/* SPDX-License-Identifier: Apache-2.0
 * Pooling kernels for one element type REAL; NAME(x) names them. Included by
 * pool_run.c once per type, so it has no guard. */

/* The first of the largest, or the first NaN; -1: the window is empty. */
static int64_t NAME(largest_of)(const brg__pool *p, const window *at,
                                const REAL *x, REAL *filled)
{
    REAL best = 0;
    int64_t best_at = -1;
    for (int64_t r = at->y0; r < at->y1; r++)
        for (int64_t c = at->x0; c < at->x1; c++) {
            const REAL value = x[r * p->w + c];
            if (best_at >= 0 && !(value > best) && value == value)
                continue;
            if (best_at >= 0 && best != best)
                continue;
            best = value;
            best_at = position(p, at, r, c);
        }
    *filled = best;
    return best_at;
}

void NAME(brg__pool_max)(const brg__pool *p, const REAL *x, REAL *y,
                         void *which)
{
    window at;
    for (int64_t i = 0; i < p->planes; i++, x += p->h * p->w) {
        window_first(p, &at);
        do {
            const int64_t best_at = NAME(largest_of)(p, &at, x, y++);
            which_set(p, which, at.n++, best_at);
        } while (window_next(p, &at));
        which = which_at(p, which, p->oh * p->ow);
    }
}

void NAME(brg__pool_put)(const brg__pool *p, const REAL *g, const void *which,
                         REAL *gx)
{
    window at;
    memset(gx, 0, (size_t)(p->planes * p->h * p->w) * sizeof *gx);
    for (int64_t i = 0; i < p->planes; i++, gx += p->h * p->w) {
        window_first(p, &at);
        do {
            gx[pixel(p, &at, which_get(p, which, at.n++))] += *g++;
        } while (window_next(p, &at));
        which = which_at(p, (void *)which, p->oh * p->ow);
    }
}

void NAME(brg__pool_take)(const brg__pool *p, const REAL *x, const void *which,
                          REAL *y)
{
    window at;
    for (int64_t i = 0; i < p->planes; i++, x += p->h * p->w) {
        window_first(p, &at);
        do {
            *y++ = x[pixel(p, &at, which_get(p, which, at.n++))];
        } while (window_next(p, &at));
        which = which_at(p, (void *)which, p->oh * p->ow);
    }
}

static REAL NAME(weight)(const brg__pool *p, const window *at)
{
    const int64_t inside = (at->y1 - at->y0) * (at->x1 - at->x0);
    const int64_t all = p->kernel[0] * p->kernel[1];
    return (REAL)1 / (REAL)(p->exclude_padding ? inside : all);
}

void NAME(brg__pool_avg)(const brg__pool *p, const REAL *x, REAL *y)
{
    window at;
    for (int64_t i = 0; i < p->planes; i++, x += p->h * p->w) {
        window_first(p, &at);
        do {
            REAL sum = 0;
            for (int64_t r = at.y0; r < at.y1; r++)
                for (int64_t c = at.x0; c < at.x1; c++)
                    sum += x[r * p->w + c];
            *y++ = sum * NAME(weight)(p, &at);
        } while (window_next(p, &at));
    }
}

void NAME(brg__pool_avg_grad)(const brg__pool *p, const REAL *g, REAL *gx)
{
    window at;
    memset(gx, 0, (size_t)(p->planes * p->h * p->w) * sizeof *gx);
    for (int64_t i = 0; i < p->planes; i++, gx += p->h * p->w) {
        window_first(p, &at);
        do {
            const REAL share = *g++ * NAME(weight)(p, &at);
            for (int64_t r = at.y0; r < at.y1; r++)
                for (int64_t c = at.x0; c < at.x1; c++)
                    gx[r * p->w + c] += share;
        } while (window_next(p, &at));
    }
}
