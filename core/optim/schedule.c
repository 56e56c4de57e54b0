/* SPDX-License-Identifier: Apache-2.0
 * Learning-rate schedules: pure functions of the step. */
#include <brigade/optim.h>

#include <math.h>

#define PI 3.14159265358979323846

double brg_lr_cosine_at(const brg_lr_cosine *schedule, int64_t step)
{
    const brg_lr_cosine *s = schedule;
    if (step < s->n_warmup)
        return s->lr * (double)(step + 1) / (double)s->n_warmup;
    if (step >= s->n_steps)
        return s->lr_min;
    double done =
        (double)(step - s->n_warmup) / (double)(s->n_steps - s->n_warmup);
    return s->lr_min + (s->lr - s->lr_min) * 0.5 * (1.0 + cos(PI * done));
}

double brg_lr_step_at(const brg_lr_step *schedule, int64_t step)
{
    int64_t n = schedule->every > 0 ? step / schedule->every : 0;
    return schedule->lr * pow(schedule->gamma, (double)n);
}
