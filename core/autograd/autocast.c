/* SPDX-License-Identifier: Apache-2.0
 * Autocast: which dtype an op's inputs are cast to, and the leaves' casts. */
#include "core/autograd/autocast.h"

#include <pthread.h>

#include "core/autograd/node.h"
#include "core/base/array.h"
#include "core/base/error.h"

#include <brigade/ops.h>

_Thread_local brg_autocast brg__autocast;

/* ---- Casts of leaves, kept --------------------------------------------------------- */

/* A leaf (a weight) is used again and again: layer by layer, step by step
 * until it changes. */
typedef struct kept_cast {
    brg_tensor *leaf; /* retained */
    brg_tensor *cast; /* retained */
    uint32_t version;
} kept_cast;

static _Thread_local BRG__ARRAY(kept_cast) kept;
static _Thread_local bool is_registered;
static pthread_key_t exit_key;
static pthread_once_t exit_once = PTHREAD_ONCE_INIT;

static void drop_kept(void)
{
    while (kept.n > 0) {
        kept_cast *k = &kept.at[--kept.n];
        brg_release(k->cast);
        brg_release(k->leaf);
    }
}

static void on_thread_exit(void *unused)
{
    (void)unused;
    drop_kept();
    brg__array_deinit(&kept);
    is_registered = false;
}

static void make_exit_key(void)
{
    (void)pthread_key_create(&exit_key, on_thread_exit);
}

static brg_status keep(brg_tensor *leaf, brg_tensor *cast)
{
    if (!is_registered) {
        pthread_once(&exit_once, make_exit_key);
        (void)pthread_setspecific(exit_key, &is_registered);
        is_registered = true;
    }
    kept_cast k = {leaf, cast, brg_tensor_version(leaf)};
    BRG_TRY(brg__array_push(&kept, k));
    brg_retain(leaf);
    brg_retain(cast);
    return BRG_OK;
}

static brg_tensor *find(const brg_tensor *leaf, brg_dtype dtype)
{
    for (size_t i = 0; i < kept.n; i++)
        if (kept.at[i].leaf == leaf && kept.at[i].cast->dtype == dtype &&
            kept.at[i].version == brg_tensor_version(leaf) &&
            brg_requires_grad(kept.at[i].cast) == brg_grad_mode())
            return kept.at[i].cast;
    return NULL;
}

static brg_status cast_one(brg_tensor **t, brg_dtype dtype)
{
    if (!*t || !brg__tensor_is_float(*t) || (*t)->dtype == BRG_DTYPE_F64 ||
        (brg_dtype)(*t)->dtype == dtype)
        return BRG_OK;
    bool is_kept = brg__requires_grad(*t) && brg_is_leaf(*t);
    brg_tensor *cast = is_kept ? find(*t, dtype) : NULL;
    if (!cast) {
        if (!(cast = brg_cast(*t, dtype)))
            return brg_error_code();
        if (is_kept)
            BRG_TRY(keep(*t, cast));
    }
    *t = cast;
    return BRG_OK;
}

/* ---- The rule ------------------------------------------------------------------------- */

/* f32 if the floats differ or one of them is f32, else what they all are;
 * F64 stands for "leave them". */
static brg_dtype widest(int n_in, brg_tensor *const *in)
{
    int found = -1;
    for (int i = 0; i < n_in; i++) {
        if (!in[i] || !brg__tensor_is_float(in[i]))
            continue;
        if (in[i]->dtype == BRG_DTYPE_F64)
            return BRG_DTYPE_F64;
        found =
            found < 0 || found == in[i]->dtype ? in[i]->dtype : BRG_DTYPE_F32;
    }
    return found < 0 ? BRG_DTYPE_F64 : (brg_dtype)found;
}

brg_status brg__autocast_inputs(const brg_op *op, int n_in, brg_tensor **cast)
{
    if (op->autocast == BRG_AUTOCAST_NEVER)
        return BRG_OK;
    brg_dtype dtype = widest(n_in, cast);
    if (dtype == BRG_DTYPE_F64)
        return BRG_OK;
    if (op->autocast == BRG_AUTOCAST_LOW)
        dtype = brg__autocast.dtype;
    if (op->autocast == BRG_AUTOCAST_F32)
        dtype = BRG_DTYPE_F32;
    brg_autocast policy = brg__autocast;
    brg__autocast.is_on = false; /* the casts themselves are not cast */
    brg_status status = BRG_OK;
    for (int i = 0; i < n_in && status == BRG_OK; i++)
        status = cast_one(&cast[i], dtype);
    brg__autocast = policy;
    return status;
}

/* ---- The policy -------------------------------------------------------------------------- */

brg_autocast brg__autocast_swap(brg_autocast policy)
{
    brg_autocast before = brg__autocast;
    brg__autocast = policy;
    return before;
}

void brg__autocast_forget(void)
{
    drop_kept();
}

brg_autocast brg_autocast_get(void)
{
    return brg__autocast;
}

brg_status brg_autocast_set(brg_autocast policy, brg_autocast *before)
{
    if (policy.is_on && policy.dtype != BRG_DTYPE_BF16 &&
        policy.dtype != BRG_DTYPE_F16)
        return BRG_FAIL(BRG_ERR_DTYPE,
                        "brg_autocast_set: the dtype is %s, expected bf16 or "
                        "f16",
                        brg_dtype_name(policy.dtype));
    if (before)
        *before = brg__autocast;
    if (!policy.is_on || policy.dtype != brg__autocast.dtype)
        drop_kept();
    brg__autocast = policy;
    return BRG_OK;
}
