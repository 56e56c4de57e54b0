/* SPDX-License-Identifier: Apache-2.0
 * Optimizers of every rule, for tests that step with each. */
#ifndef BRG_TESTS_SUPPORT_OPTIM_RULES_H
#define BRG_TESTS_SUPPORT_OPTIM_RULES_H

#include <brigade/optim.h>

#include "tests/support/brg_test.h"

typedef enum optim_rule { SGD, MOMENTUM, NESTEROV, ADAMW, N_RULES } optim_rule;

/* With weight decay; the caller owns it. */
static inline brg_optim *make_optim(const brg_params *params, optim_rule r)
{
    brg_optim *optim;
    brg_sgd_options sgd = BRG_SGD_OPTIONS_INIT;
    brg_adamw_options adamw = BRG_ADAMW_OPTIONS_INIT;
    sgd.momentum = r == SGD ? 0.0 : 0.9;
    sgd.nesterov = r == NESTEROV;
    sgd.weight_decay = adamw.weight_decay = 0.1;
    sgd.lr = adamw.lr = 0.05;
    assert_brg_ok(r == ADAMW ? brg_optim_create_adamw(&optim, params, &adamw)
                             : brg_optim_create_sgd(&optim, params, &sgd));
    return optim;
}

#endif
