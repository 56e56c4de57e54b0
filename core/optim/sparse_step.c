/* SPDX-License-Identifier: Apache-2.0
 * The step of a parameter with a sparse gradient: the places that it has. */
#include "core/ops/op.h"
#include "core/ops/sparse.h"
#include "core/optim/optim.h"
#include "core/optim/wide.h"

#define MANY 64 /* runs of one call */

static void follow_all(const brg__run *run)
{
    const brg__wide wide = brg__wide_of(brg__optim_kernels_get(), run->dtype);
    const uint16_t *param = run->param;
    for (size_t i = 0; i < run->n; i += BRG__WIDE_BLOCK) {
        const size_t rest = run->n - i;
        brg__wide_follow(run->master + i, param + i,
                         rest < BRG__WIDE_BLOCK ? rest : BRG__WIDE_BLOCK,
                         &wide);
    }
}

/* n elements of the run from `first` on. */
static brg__run part_of(const brg__run *run, size_t first, size_t n,
                        const void *grad)
{
    const size_t real =
        run->dtype == BRG_DTYPE_F64 ? sizeof(double) : sizeof(float);
    brg__run part = *run;
    part.param = (char *)run->param + first * brg_dtype_size(run->dtype);
    for (int k = 0; k < BRG__OPTIM_MAX_STATE; k++)
        if (run->state[k])
            part.state[k] = (char *)run->state[k] + first * real;
    if (run->master)
        part.master = run->master + first;
    part.grad = grad;
    part.n = n;
    part.follows = false;
    return part;
}

void brg__optim_step_places(const brg_optim *optim, const brg__optim_slot *slot,
                            const brg__run *run)
{
    const brg_tensor *grad = slot->grad, *values = grad->sparse->values;
    const brg__update_fn *update =
        optim->rule->update(brg__optim_kernels_get());
    const size_t n = (size_t)values->stride[0],
                 size = brg__tensor_item_size(values);
    const size_t end = slot->first + slot->n;
    brg__run runs[MANY];
    size_t n_runs = 0;
    if (run->follows)
        follow_all(run);
    for (int64_t k = 0; values->numel > 0 && k < brg__sparse_nnz(grad); k++) {
        const size_t at = (size_t)brg__sparse_place(grad, k) * n;
        const size_t low = at < slot->first ? slot->first : at;
        const size_t high = at + n > end ? end : at + n;
        if (low >= high)
            continue;
        const char *from = brg__tensor_ptr(values);
        runs[n_runs++] = part_of(run, low - slot->first, high - low,
                                 from + ((size_t)k * n + low - at) * size);
        if (n_runs == MANY) {
            update[run->dtype](runs, n_runs);
            n_runs = 0;
        }
    }
    update[run->dtype](runs, n_runs);
}
