/* SPDX-License-Identifier: Apache-2.0
 * Softmax over strips of scores for one element type REAL, with EXP and LOG
 * of it; NAME(x) names the functions. Loops run over LANES partial results, so
 * that they vectorise without reordering a sum. No guard: included by
 * attention_kernels.c and attention_run.c. */

#define LANES 16

static int64_t NAME(visible)(const brg__strip *s, int64_t i)
{
    const int64_t seen = s->first + i + 1;
    return s->is_causal && seen < s->cols ? seen : s->cols;
}

static REAL NAME(row_max)(const REAL *x, int64_t n)
{
    REAL part[LANES], top;
    for (int j = 0; j < LANES; j++)
        part[j] = x[0];
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int j = 0; j < LANES; j++)
            part[j] = x[i + j] > part[j] ? x[i + j] : part[j];
    top = part[0];
    for (int j = 1; j < LANES; j++)
        top = part[j] > top ? part[j] : top;
    for (; i < n; i++)
        top = x[i] > top ? x[i] : top;
    return top;
}

static REAL NAME(row_sum)(const REAL *x, int64_t n)
{
    REAL part[LANES] = {0}, sum = 0;
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int j = 0; j < LANES; j++)
            part[j] += x[i + j];
    for (; i < n; i++)
        sum += x[i];
    for (int j = 0; j < LANES; j++)
        sum += part[j];
    return sum;
}

static void NAME(softmax)(const brg__strip *s)
{
    for (int64_t i = 0; i < s->rows; i++) {
        REAL *const x = (REAL *)s->scores + i * s->cols;
        const int64_t n = NAME(visible)(s, i);
        const REAL top = NAME(row_max)(x, n);
        for (int64_t j = 0; j < n; j++)
            x[j] = EXP(x[j] - top);
        const REAL sum = NAME(row_sum)(x, n), inverse = 1 / sum;
        for (int64_t j = 0; j < n; j++)
            x[j] *= inverse;
        for (int64_t j = n; j < s->cols; j++)
            x[j] = 0;
        ((REAL *)s->lse)[i] = top + LOG(sum);
    }
}

static void NAME(softmax_grad)(const brg__strip *s, void *dp, const void *delta,
                               double scale)
{
    for (int64_t i = 0; i < s->rows; i++) {
        REAL *restrict const x = (REAL *)s->scores + i * s->cols;
        REAL *restrict const d = (REAL *)dp + i * s->cols;
        const REAL lse = ((const REAL *)s->lse)[i];
        const REAL mean = ((const REAL *)delta)[i];
        const int64_t n = NAME(visible)(s, i);
        for (int64_t j = 0; j < n; j++) {
            x[j] = EXP(x[j] - lse);
            d[j] = (REAL)scale * x[j] * (d[j] - mean);
        }
        for (int64_t j = n; j < s->cols; j++) {
            x[j] = 0;
            d[j] = 0;
        }
    }
}
