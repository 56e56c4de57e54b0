/* SPDX-License-Identifier: Apache-2.0
 * Starting values of weights. The formulas are in nn.h. */
#include <brigade/nn.h>

#include <math.h>

#include <brigade/ops_pointwise.h>
#include <brigade/random.h>

#include "core/base/error.h"

static brg_status check_fans(const brg_nn_fans *fans)
{
    BRG_CHECK_ARG(fans && fans->in > 0 && fans->out > 0,
                  "brg_nn_fill: fan_in %lld and fan_out %lld must be positive",
                  fans ? (long long)fans->in : 0,
                  fans ? (long long)fans->out : 0);
    return BRG_OK;
}

static brg_status fill_uniform(brg_tensor *t, double variance)
{
    double bound = sqrt(3.0 * variance); /* U(a) has the variance a^2 / 3 */
    return brg_uniform_(t, -bound, bound);
}

brg_status brg_nn_fill(brg_tensor *filled, brg_nn_init init,
                       const brg_nn_fans *fans)
{
    if (!filled)
        return brg__error_pending("brg_nn_fill: tensor");
    if (init == BRG_NN_INIT_ZEROS)
        return brg_zero_(filled);
    BRG_CHECK_ARG(fans, "brg_nn_fill: fans is NULL");
    if (init == BRG_NN_INIT_NORMAL)
        return brg_normal_(filled, 0.0, fans->std);
    BRG_TRY(check_fans(fans));
    double in = (double)fans->in, sum = in + (double)fans->out;
    switch (init) {
    case BRG_NN_INIT_DEFAULT:
        return fill_uniform(filled, 1.0 / (3.0 * in));
    case BRG_NN_INIT_KAIMING_UNIFORM:
        return fill_uniform(filled, 2.0 / in);
    case BRG_NN_INIT_KAIMING_NORMAL:
        return brg_normal_(filled, 0.0, sqrt(2.0 / in));
    case BRG_NN_INIT_XAVIER_UNIFORM:
        return fill_uniform(filled, 2.0 / sum);
    case BRG_NN_INIT_XAVIER_NORMAL:
        return brg_normal_(filled, 0.0, sqrt(2.0 / sum));
    default:
        return BRG_FAIL(BRG_ERR_ARG, "brg_nn_fill: %d is no known init",
                        (int)init);
    }
}
