// SPDX-License-Identifier: Apache-2.0
// A trainer in C++ outside the project: the macros of the C headers are plain
// C++, and sizes need not be constants.
#include <cstdio>
#include <stdexcept>
#include <vector>

#include <brigade/brigade.hpp>

namespace
{

using brigade::check;

// Learns to add up three numbers; batches differ in size.
double train(brg_params *params, brg_optim *optim, const brg_nn_linear &layer)
{
    double loss = 0;
    for (int step = 0; step < 400; step++) {
        const brigade::scope scope;
        const std::size_t n = 4 + static_cast<std::size_t>(step) % 3;
        std::vector<float> data(n * 3);
        for (std::size_t i = 0; i < data.size(); i++)
            data[i] = static_cast<float>((i * 7 + step) % 5) / 5;
        brg_tensor *x =
            brg_from_data(BRG_DTYPE_F32, BRG_SHAPE(n, 3), data.data());
        brg_tensor *y = brg_sum(x, BRG_DIMS(-1), true);
        brg_tensor *l = brg_mse(brg_nn_linear_forward(&layer, x), y);
        check(brg_backward(l));
        check(brg_clip_grad_norm(nullptr, params, 10, true));
        check(brg_optim_step(optim));
        check(brg_optim_zero_grad(optim, false));
        check(brg_tensor_item(l, &loss));
    }
    return loss;
}

} // namespace

int main()
try {
    brg_nn_options nn = BRG_NN_OPTIONS_INIT;
    brg_sgd_options sgd = BRG_SGD_OPTIONS_INIT;
    brg_adamw_options adamw = BRG_ADAMW_OPTIONS_INIT;
    if (nn.dtype != BRG_DTYPE_F32 || sgd.struct_size != sizeof sgd ||
        sgd.lr != 0.01 || sgd.momentum != 0 || adamw.beta2 != 0.999)
        throw std::runtime_error("options begin with other values than in C");
    brg_nn_linear layer;
    auto params = brigade::make<brigade::params>(brg_params_create);
    nn.params = params;
    check(brg_nn_linear_init(&layer, &nn, "sum", 3, 1));
    sgd.lr = 0.1;
    sgd.momentum = 0.9;
    auto optim = brigade::make<brigade::optimizer>(brg_optim_create_sgd,
                                                   params.get(), &sgd);
    const double loss = train(params, optim, layer);
    std::printf("loss %g\n", loss);
    return loss < 1e-4 ? 0 : 1;
} catch (const std::exception &e) {
    std::fprintf(stderr, "%s\n", e.what());
    return 1;
}
