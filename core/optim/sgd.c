/* SPDX-License-Identifier: Apache-2.0
 * The rule of SGD. */
#include <math.h>
#include <string.h>

#include "core/base/options.h"
#include "core/optim/create.h"

static int n_state(const brg_optim *optim)
{
    return optim->options.sgd.momentum != 0.0;
}

static void prepare(const brg_optim *optim, const brg__optim_slot *slot,
                    int64_t step, brg__step_scalars *filled)
{
    const brg_sgd_options *o = &optim->options.sgd;
    filled->sgd = (brg__sgd_scalars){
        .lr = optim->lr * slot->lr_scale,
        .momentum = o->momentum,
        .keep = step == 1 ? 1.0 : 1.0 - o->dampening,
        .weight_decay = slot->weight_decay,
        .nesterov = o->nesterov,
    };
}

static const brg__update_fn *update(const brg__optim_kernels *kernels)
{
    return kernels->sgd;
}

static void describe(const brg__step_scalars *scalars,
                     brg_device_update *filled)
{
    const brg__sgd_scalars *s = &scalars->sgd;
    filled->rule = s->nesterov ? BRG_UPDATE_SGD_NESTEROV : BRG_UPDATE_SGD;
    const double f[] = {s->lr, s->momentum, s->keep, s->weight_decay};
    memcpy(filled->f, f, sizeof f);
}

const brg__optim_rule brg__optim_sgd = {
    .name = "sgd",
    .state_names = {"momentum"},
    .n_state = n_state,
    .prepare = prepare,
    .update = update,
    .describe = describe,
};

static brg_status take_options(brg_sgd_options *o,
                               const brg_sgd_options *options)
{
    BRG_TRY(BRG_TAKE_OPTIONS(o, options, "brg_optim_create_sgd",
                             BRG_SGD_OPTIONS_INIT));
    BRG_CHECK_ARG(o->momentum >= 0.0 && o->momentum < INFINITY &&
                      isfinite(o->dampening) && o->weight_decay >= 0.0,
                  "brg_optim_create_sgd: momentum %g, dampening %g, "
                  "weight_decay %g: must be finite and not negative",
                  o->momentum, o->dampening, o->weight_decay);
    BRG_CHECK_ARG(!o->nesterov || (o->momentum > 0.0 && o->dampening == 0.0),
                  "brg_optim_create_sgd: nesterov needs momentum (%g) and no "
                  "dampening (%g)",
                  o->momentum, o->dampening);
    return BRG_OK;
}

brg_status brg_optim_create_sgd(brg_optim **out, const brg_params *params,
                                const brg_sgd_options *options)
{
    BRG_CHECK_ARG(out, "brg_optim_create_sgd: out is NULL");
    *out = NULL;
    brg_sgd_options o = BRG_SGD_OPTIONS_INIT;
    BRG_TRY(take_options(&o, options));
    const brg_optim_range *ranges = o.ranges;
    o.ranges = NULL; /* not kept */
    brg_optim blank = {.rule = &brg__optim_sgd, .options.sgd = o};
    return brg__optim_create(out, &blank, params, ranges, o.lr, o.weight_decay,
                             o.decay_min_ndim);
}
