// SPDX-License-Identifier: Apache-2.0
// The trainer of alone.c in C++, with the update of each bucket's parameters
// while later buckets are still on their way.
#include <brigade/brigade.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <exception>
#include <vector>

namespace
{

constexpr int n_in = 2, n_hidden = 32, batch = 48, n_steps = 300;
constexpr double rate = 0.3;
enum { w1, b1, w2, b2, n_params };

using brigade::check;

double sample(int step, int i, double *x)
{
    x[0] = std::sin(1.3 * step + 0.7 * i);
    x[1] = std::cos(2.1 * step + 0.4 * i);
    return x[0] * x[1];
}

class Network
{
  public:
    explicit Network(brg_pg *pg)
        : n(batch / brg_pg_world_size(pg)), first(n * brg_pg_rank(pg))
    {
        const std::array<std::size_t, n_params> sizes{n_in * n_hidden, n_hidden,
                                                      n_hidden, 1};
        std::array<brg_reducer_param, n_params> list{};
        for (int p = 0; p < n_params; p++) {
            param[p].resize(sizes[p]);
            grad[p].resize(sizes[p]);
            for (std::size_t k = 0; (p == w1 || p == w2) && k < sizes[p]; k++)
                param[p][k] = std::sin(9.7 * static_cast<double>(k) + p);
            list[p] = brg_reducer_raw(nullptr, grad[p].data(), sizes[p],
                                      BRG_DTYPE_F64);
        }
        brg_reducer_options options = BRG_REDUCER_OPTIONS_INIT;
        options.first_bucket_bytes = options.bucket_bytes = 64; // several
        options.on_bucket = &Network::update;
        options.user = this;
        reducer =
            brigade::make<brigade::reducer>(brg_reducer_create, pg, list.data(),
                                            std::size_t{n_params}, &options);
    }

    void train(int step)
    {
        forward(step, first, n);
        backward();
        check(brg_reducer_wait(reducer)); // calls update
    }

    double test_error()
    {
        double sum = 0;
        forward(n_steps, 0, batch);
        for (double e : error)
            sum += e * e / batch;
        return sum;
    }

    std::array<std::vector<double>, n_params> param;

  private:
    void forward(int step, int from, int count)
    {
        for (int i = 0; i < count; i++) {
            error[i] = param[b2][0] - sample(step, from + i, x[i]);
            for (int j = 0; j < n_hidden; j++) {
                double sum = param[b1][j];
                for (int k = 0; k < n_in; k++)
                    sum += x[i][k] * param[w1][k * n_hidden + j];
                h[i][j] = std::tanh(sum);
                error[i] += h[i][j] * param[w2][j];
            }
        }
    }

    void mark(int p)
    {
        check(brg_reducer_mark_ready(reducer, p));
    }

    void backward()
    {
        for (auto &g : grad)
            std::fill(g.begin(), g.end(), 0.0);
        for (int i = 0; i < n; i++) {
            grad[b2][0] += error[i] / n;
            for (int j = 0; j < n_hidden; j++)
                grad[w2][j] += error[i] * h[i][j] / n;
        }
        mark(w2);
        mark(b2);
        for (int i = 0; i < n; i++)
            for (int j = 0; j < n_hidden; j++) {
                double d =
                    error[i] * param[w2][j] * (1 - h[i][j] * h[i][j]) / n;
                grad[b1][j] += d;
                for (int k = 0; k < n_in; k++)
                    grad[w1][k * n_hidden + j] += d * x[i][k];
            }
        mark(w1);
        mark(b1);
    }

    static brg_status update(brg_reducer *reducer, std::size_t bucket,
                             void *user)
    {
        auto *self = static_cast<Network *>(user);
        brg_bucket_info info;
        BRG_TRY(brg_reducer_get_bucket(reducer, bucket, &info));
        for (std::size_t k = 0; k < info.n_params; k++) {
            auto p = info.params[k];
            for (std::size_t e = 0; e < self->param[p].size(); e++)
                self->param[p][e] -= rate * self->grad[p][e];
        }
        return BRG_OK;
    }

    int n, first;
    std::array<std::vector<double>, n_params> grad;
    brigade::reducer reducer;
    double x[batch][n_in], h[batch][n_hidden], error[batch];
};

void run()
{
    auto pg =
        brigade::make<brigade::process_group>(brg_pg_create, "auto", nullptr);
    auto network = std::make_unique<Network>(pg);
    for (int step = 0; step < n_steps; step++)
        network->train(step);
    double result = network->test_error();
    if (brg_pg_rank(pg) == 0)
        std::printf("error %.10f, w1[0] %.10f\n", result,
                    network->param[w1][0]);
}

} // namespace

int main()
{
    try {
        run();
    } catch (const std::exception &e) {
        std::fprintf(stderr, "%s\n", e.what());
        return EXIT_FAILURE;
    }
    return EXIT_SUCCESS;
}
