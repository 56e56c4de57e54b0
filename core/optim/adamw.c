/* SPDX-License-Identifier: Apache-2.0
 * The rule of AdamW. The powers of the betas are taken afresh at each step, so
 * that a resumed run has the same bits as one that went through. */
#include <math.h>
#include <string.h>

#include "core/base/options.h"
#include "core/optim/create.h"

static int n_state(const brg_optim *optim)
{
    (void)optim;
    return 2;
}

static void prepare(const brg_optim *optim, const brg__optim_slot *slot,
                    int64_t step, brg__step_scalars *filled)
{
    const brg_adamw_options *o = &optim->options.adamw;
    double lr = optim->lr * slot->lr_scale, t = (double)step;
    filled->adamw = (brg__adamw_scalars){
        .decay = 1.0 - lr * slot->weight_decay,
        .beta1 = o->beta1,
        .beta2 = o->beta2,
        .step_size = lr / (1.0 - pow(o->beta1, t)),
        .root_scale = 1.0 / sqrt(1.0 - pow(o->beta2, t)),
        .eps = o->eps,
    };
}

static const brg__update_fn *update(const brg__optim_kernels *kernels)
{
    return kernels->adamw;
}

static void describe(const brg__step_scalars *scalars,
                     brg_device_update *filled)
{
    const brg__adamw_scalars *s = &scalars->adamw;
    filled->rule = BRG_UPDATE_ADAMW;
    const double f[] = {s->decay,     s->beta1,      s->beta2,
                        s->step_size, s->root_scale, s->eps};
    memcpy(filled->f, f, sizeof f);
}

const brg__optim_rule brg__optim_adamw = {
    .name = "adamw",
    .state_names = {"exp_avg", "exp_avg_sq"},
    .n_state = n_state,
    .prepare = prepare,
    .update = update,
    .describe = describe,
};

static bool is_beta(double beta)
{
    return beta >= 0.0 && beta < 1.0;
}

static brg_status take_options(brg_adamw_options *o,
                               const brg_adamw_options *options)
{
    BRG_TRY(BRG_TAKE_OPTIONS(o, options, "brg_optim_create_adamw",
                             BRG_ADAMW_OPTIONS_INIT));
    BRG_CHECK_ARG(is_beta(o->beta1) && is_beta(o->beta2),
                  "brg_optim_create_adamw: beta1 %g and beta2 %g must lie in "
                  "[0, 1)",
                  o->beta1, o->beta2);
    BRG_CHECK_ARG(o->eps >= 0.0 && o->weight_decay >= 0.0,
                  "brg_optim_create_adamw: eps %g and weight_decay %g must not "
                  "be negative",
                  o->eps, o->weight_decay);
    return BRG_OK;
}

brg_status brg_optim_create_adamw(brg_optim **out, const brg_params *params,
                                  const brg_adamw_options *options)
{
    BRG_CHECK_ARG(out, "brg_optim_create_adamw: out is NULL");
    *out = NULL;
    brg_adamw_options o = BRG_ADAMW_OPTIONS_INIT;
    BRG_TRY(take_options(&o, options));
    const brg_optim_range *ranges = o.ranges;
    o.ranges = NULL; /* not kept */
    brg_optim blank = {.rule = &brg__optim_adamw, .options.adamw = o};
    return brg__optim_create(out, &blank, params, ranges, o.lr, o.weight_decay,
                             o.decay_min_ndim);
}
