/* SPDX-License-Identifier: Apache-2.0
 * The hash of the parameters. */
#include "common/report.h"

#include <inttypes.h>
#include <stdlib.h>

#include <brigade/tensor.h>
#include <xxhash.h>

static brg_status hash_tensor(XXH3_state_t *state, const brg_tensor *tensor)
{
    size_t nbytes = brg_tensor_nbytes(tensor);
    void *copy = malloc(nbytes > 0 ? nbytes : 1);
    if (copy == NULL)
        return brg_error_set(BRG_ERR_NOMEM, __FILE__, __LINE__,
                             "no memory to hash the parameters");
    brg_status status = brg_tensor_read(tensor, copy, nbytes);
    if (status == BRG_OK)
        XXH3_64bits_update(state, copy, nbytes);
    free(copy);
    return status;
}

static brg_status hash_local(uint64_t *out, const brg_params *params)
{
    XXH3_state_t *state = XXH3_createState();
    if (state == NULL)
        return brg_error_set(BRG_ERR_NOMEM, __FILE__, __LINE__,
                             "no memory to hash the parameters");
    XXH3_64bits_reset(state);
    brg_status status = BRG_OK;
    for (size_t i = 0; status == BRG_OK && i < brg_params_count(params); i++)
        status = hash_tensor(state, brg_params_at(params, i)->tensor);
    *out = XXH3_64bits_digest(state);
    XXH3_freeState(state);
    return status;
}

static brg_status compare(const uint64_t *hashes, const world *w)
{
    for (int r = 0; r < w->size; r++) {
        if (hashes[r] != hashes[0])
            return brg_error_set(BRG_ERR_MISMATCH, __FILE__, __LINE__,
                                 "parameters of rank %d hash to %016" PRIx64
                                 ", those of rank 0 to %016" PRIx64,
                                 r, hashes[r], hashes[0]);
    }
    return BRG_OK;
}

brg_status params_hash(uint64_t *out, const brg_params *params, const world *w)
{
    BRG_TRY(hash_local(out, params));
    uint64_t *hashes = calloc((size_t)w->size, sizeof *hashes);
    if (hashes == NULL)
        return brg_error_set(BRG_ERR_NOMEM, __FILE__, __LINE__,
                             "no memory for %d hashes", w->size);
    brg_work *work = NULL;
    brg_status status =
        brg_all_gather(w->pg, &work, hashes, out, 1, BRG_DTYPE_I64);
    if (status == BRG_OK)
        status = brg_work_wait(work);
    if (status == BRG_OK)
        status = compare(hashes, w);
    free(hashes);
    return status;
}
