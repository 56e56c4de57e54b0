// SPDX-License-Identifier: Apache-2.0
// brigade.hpp: who holds what, what is thrown, what callbacks return.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include <brigade/brigade.hpp>

namespace
{

int n_failed;

#define EXPECT(cond)                                                           \
    do {                                                                       \
        if (!(cond)) {                                                         \
            std::fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #cond);    \
            n_failed++;                                                        \
        }                                                                      \
    } while (0)

// What f() throws is a brigade::error of this code, with these words.
template <class F> bool throws(brg_status code, const char *words, F f)
{
    try {
        f();
    } catch (const brigade::error &e) {
        return e.code() == code && std::strstr(e.what(), words);
    }
    return false;
}

// Tensors whose memory was wrapped and is not given back yet.
int n_wrapped;

brg_tensor *wrap(float *data)
{
    n_wrapped++;
    return brg_wrap(
        BRG_DTYPE_F32, BRG_SCALAR, data, [](void *) { n_wrapped--; }, nullptr);
}

void test_tensors_outlive_scopes()
{
    float data = 7;
    {
        brigade::tensor kept;
        {
            brigade::scope scope;
            kept = wrap(&data);
            brigade::tensor copy = kept, moved = std::move(copy);
            EXPECT(!copy && moved && moved == kept);
            brigade::tensor &same = moved;
            moved = same;
            moved = std::move(same);
            EXPECT(moved && moved.item() == 7);
        }
        EXPECT(n_wrapped == 1 && kept.item() == 7);
        std::vector<brigade::tensor> many(3, kept);
        kept = brigade::tensor();
        EXPECT(n_wrapped == 1 && many[2].item() == 7);
    }
    EXPECT(n_wrapped == 0);
}

void test_failures_are_thrown()
{
    brigade::scope scope;
    brigade::tensor x = brg_ones(BRG_DTYPE_F32, BRG_SHAPE(2, 3));
    EXPECT(throws(BRG_ERR_SHAPE, "matmul", [&] {
        brigade::tensor product = brg_matmul(x, x);
        EXPECT(!product);
    }));
    EXPECT(throws(BRG_ERR_ARG, "300", [&] {
        brigade::check(brg_full(BRG_DTYPE_U8, BRG_SHAPE(1), 300));
    }));
    EXPECT(throws(BRG_ERR_NOT_FOUND, "nobody", [] {
        brigade::make<brigade::process_group>(brg_pg_create, "nobody", nullptr);
    }));
    brigade::check(BRG_OK);
    EXPECT(brigade::check(static_cast<brg_tensor *>(x)) == x);
}

void test_handles_move()
{
    static_assert(!std::is_copy_constructible<brigade::ddp>::value, "");
    static_assert(std::is_nothrow_move_constructible<brigade::ddp>::value, "");
    auto pg = brigade::make<brigade::process_group>(brg_pg_create_self);
    EXPECT(pg && brg_pg_world_size(pg) == 1);
    brigade::process_group other = std::move(pg);
    EXPECT(!pg && other != nullptr && brg_pg_rank(other) == 0);
    other = nullptr;
    EXPECT(!other);
}

void test_grad_mode_comes_back()
{
    EXPECT(brg_grad_mode());
    try {
        brigade::grad_mode off(false);
        EXPECT(!brg_grad_mode());
        brigade::check(brg_error_set(BRG_ERR_IO, "here", 1, "gone"));
    } catch (const brigade::error &e) {
        EXPECT(e.code() == BRG_ERR_IO && std::string(e.what()) == "gone");
    }
    EXPECT(brg_grad_mode());
}

void test_callbacks_return_what_is_thrown()
{
    EXPECT(brigade::guard([] {}) == BRG_OK);
    EXPECT(brigade::guard([] {
               brigade::check(brg_error_set(BRG_ERR_IO, "here", 1, "gone"));
           }) == BRG_ERR_IO);
    EXPECT(std::string(brg_error_message()) == "gone");
    EXPECT(brigade::guard([] { throw std::logic_error("odd"); }) ==
           BRG_ERR_CALLBACK);
    EXPECT(std::string(brg_error_message()) == "odd");
    EXPECT(brigade::guard([] { throw std::bad_alloc(); }) == BRG_ERR_NOMEM);
    EXPECT(brigade::guard([] { throw 3; }) == BRG_ERR_CALLBACK);
}

// Ranks average what they hold; one that throws makes the call throw.
void test_simulated_ranks()
{
    float sums[3] = {};
    brigade::sim_run(3, [&](brg_pg *pg) {
        float x = static_cast<float>(brg_pg_rank(pg) + 1);
        brg_work *work;
        brigade::check(
            brg_all_reduce(pg, &work, &x, 1, BRG_DTYPE_F32, BRG_REDUCE_SUM));
        brigade::check(brg_work_wait(work));
        sums[brg_pg_rank(pg)] = x;
    });
    EXPECT(sums[0] == 6 && sums[1] == 6 && sums[2] == 6);
    EXPECT(throws(BRG_ERR_CALLBACK, "rank 1: tired", [] {
        brigade::sim_run(2, [](brg_pg *pg) {
            if (brg_pg_rank(pg) == 1)
                throw std::runtime_error("tired");
        });
    }));
}

// Two ranks, each with half of a batch, learn to double a number.
void test_ranks_train()
{
    double weights[2] = {};
    brigade::sim_run(2, [&](brg_pg *pg) {
        brigade::scope outer;
        auto params = brigade::make<brigade::params>(brg_params_create);
        brigade::tensor w = brg_zeros(BRG_DTYPE_F32, BRG_SHAPE(1, 1));
        brigade::check(brg_params_add(params, "w", w, BRG_PARAM_TRAINED));
        brg_sgd_options sgd = BRG_SGD_OPTIONS_INIT;
        sgd.lr = 0.2;
        auto optim = brigade::make<brigade::optimizer>(brg_optim_create_sgd,
                                                       params.get(), &sgd);
        brg_tensor *list[] = {w};
        auto ddp = brigade::make<brigade::ddp>(brg_ddp_create, pg, list, 1u,
                                               nullptr, 0u, nullptr);
        for (int step = 0; step < 60; step++) {
            brigade::scope scope;
            const float data[] = {1.0f + brg_pg_rank(pg), -1};
            brg_tensor *x = brg_from_data(BRG_DTYPE_F32, BRG_SHAPE(2, 1), data);
            brigade::check(
                brg_backward(brg_mse(brg_matmul(x, w), brg_mul_scalar(x, 2))));
            brigade::check(brg_optim_step(optim));
            brigade::check(brg_optim_zero_grad(optim, false));
        }
        weights[brg_pg_rank(pg)] = w.item();
    });
    EXPECT(weights[0] == weights[1]);
    EXPECT(weights[0] > 1.999 && weights[0] < 2.001);
}

} // namespace

int main()
{
    test_tensors_outlive_scopes();
    test_failures_are_thrown();
    test_handles_move();
    test_grad_mode_comes_back();
    test_callbacks_return_what_is_thrown();
    test_simulated_ranks();
    test_ranks_train();
    std::printf("%d failed\n", n_failed);
    return n_failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
