// SPDX-License-Identifier: Apache-2.0
// For C++ (11 or later): objects that give back what the C functions made, and
// exceptions for their status. Everything else is called as from C: the objects
// convert to the pointers that its functions take.
//
//     brigade::scope scope;
//     brigade::tensor y = brg_relu(brg_linear(x, w, b)); // throws if an op failed
//     auto pg = brigade::make<brigade::process_group>(brg_pg_create, "mpi", nullptr);
//     brigade::check(brg_backward(brg_mean_all(y)));
//
// Thread rules are those of what is held.
#ifndef BRG_BRIGADE_HPP
#define BRG_BRIGADE_HPP

#include <exception>
#include <memory>
#include <new>
#include <stdexcept>
#include <utility>

#include <brigade/brigade.h>

namespace brigade
{

// ---- Errors -----------------------------------------------------------------

// A call that failed; what() is the library's message.
class error : public std::runtime_error
{
  public:
    explicit error(brg_status code)
        : std::runtime_error(brg_error_message()), code_(code)
    {
    }
    brg_status code() const noexcept
    {
        return code_;
    }

  private:
    brg_status code_;
};

// Throws if the call has failed.
inline void check(brg_status status)
{
    if (status != BRG_OK)
        throw error(status);
}

// The same for functions that return a pointer, which is borrowed as before.
template <class T> T *check(T *pointer)
{
    if (!pointer)
        throw error(brg_error_code());
    return pointer;
}

// For callbacks, which no exception may leave: calls f(). What it throws becomes
// the thread's error, and its code is returned.
template <class F> brg_status guard(F &&f) noexcept
{
    try {
        std::forward<F>(f)();
        return BRG_OK;
    } catch (const error &e) {
        return brg_error_set(e.code(), __FILE__, __LINE__, "%s", e.what());
    } catch (const std::bad_alloc &e) {
        return brg_error_set(BRG_ERR_NOMEM, __FILE__, __LINE__, "%s", e.what());
    } catch (const std::exception &e) {
        return brg_error_set(BRG_ERR_CALLBACK, __FILE__, __LINE__, "%s",
                             e.what());
    } catch (...) {
        return brg_error_set(BRG_ERR_CALLBACK, __FILE__, __LINE__,
                             "an exception that is no std::exception");
    }
}

// ---- Tensors ----------------------------------------------------------------

// Until it ends, the tensors that ops make on this thread are its own.
class scope
{
  public:
    scope() : scope_(check(brg_scope_begin()))
    {
    }
    scope(const scope &) = delete;
    scope &operator=(const scope &) = delete;
    ~scope()
    {
        brg_scope_end(scope_);
    }

  private:
    brg_scope *scope_;
};

// A reference of its own, so that the tensor outlives its scope; or nothing.
// Made of what an op returned, it throws if that failed.
class tensor
{
  public:
    tensor() noexcept = default;
    tensor(brg_tensor *borrowed) : tensor_(brg_retain(check(borrowed)))
    {
    }
    tensor(const tensor &other) noexcept : tensor_(brg_retain(other.tensor_))
    {
    }
    tensor(tensor &&other) noexcept : tensor_(other.tensor_)
    {
        other.tensor_ = nullptr;
    }
    tensor &operator=(tensor other) noexcept
    {
        std::swap(tensor_, other.tensor_);
        return *this;
    }
    ~tensor()
    {
        brg_release(tensor_);
    }
    operator brg_tensor *() const noexcept
    {
        return tensor_;
    }
    // The value of a tensor of one element.
    double item() const
    {
        double value;
        check(brg_tensor_item(tensor_, &value));
        return value;
    }

  private:
    brg_tensor *tensor_ = nullptr;
};

// Turns recording for gradients on or off until its end, on this thread.
class grad_mode
{
  public:
    explicit grad_mode(bool is_on) : before_(brg_grad_mode_set(is_on))
    {
    }
    grad_mode(const grad_mode &) = delete;
    grad_mode &operator=(const grad_mode &) = delete;
    ~grad_mode()
    {
        brg_grad_mode_set(before_);
    }

  private:
    bool before_;
};

// ---- What has one owner -----------------------------------------------------

template <class T, void (*destroy)(T *)> struct deleter {
    void operator()(T *owned) const noexcept
    {
        destroy(owned);
    }
};

// A std::unique_ptr that is an argument of the C functions too. As in C, a group
// goes after what uses it: declare it first.
template <class T, void (*destroy)(T *)>
class handle : public std::unique_ptr<T, deleter<T, destroy>>
{
    using base = std::unique_ptr<T, deleter<T, destroy>>;

  public:
    using base::base;
    operator T *() const noexcept
    {
        return this->get();
    }
};

using averager = handle<brg_averager, brg_averager_destroy>;
using comm_hook = handle<brg_comm_hook, brg_comm_hook_destroy>;
using compiled = handle<brg_compiled, brg_compiled_destroy>;
using ddp = handle<brg_ddp, brg_ddp_destroy>;
using optimizer = handle<brg_optim, brg_optim_destroy>;
using params = handle<brg_params, brg_params_destroy>;
using process_group = handle<brg_pg, brg_pg_destroy>;
using profile = handle<brg_profile, brg_profile_destroy>;
using reducer = handle<brg_reducer, brg_reducer_destroy>;
using safetensors = handle<brg_safetensors, brg_safetensors_close>;
using sampler = handle<brg_sampler, brg_sampler_destroy>;
using sync_norm = handle<brg_sync_norm, brg_sync_norm_destroy>;

// What create(&out, args...) makes: make<ddp>(brg_ddp_create, pg, ...).
template <class Handle, class Create, class... Args>
Handle make(Create create, Args &&...args)
{
    typename Handle::pointer out = nullptr;
    check(create(&out, std::forward<Args>(args)...));
    return Handle(out);
}

// f(pg) on each rank of a simulated world; throws what the first rank that failed
// has said.
template <class F>
void sim_run(int world_size, F f, const brg_sim_options *options = nullptr)
{
    check(brg_sim_run(
        world_size, options,
        [](brg_pg *pg, void *user) {
            return guard([=] { (*static_cast<F *>(user))(pg); });
        },
        &f));
}

} // namespace brigade

#endif
