/* SPDX-License-Identifier: Apache-2.0
 * Agreement of the ranks on what is to be reduced. See verify.h. */
#include "reducer/verify.h"

#include <string.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "core/base/alloc.h"
#include "core/base/error.h"
#include "core/base/text.h"
#include "core/tensor/shape.h"

/* What each rank sends first. */
typedef struct header {
    int64_t status;
    uint64_t n_params;
    uint64_t n_buffers;
    uint64_t caps[2];
    uint32_t flags;
    uint32_t n_leaves;
    uint64_t hash; /* of the descriptors */
    uint64_t hook;
} header;

#define N_ON_STACK 64

void brg__descriptor_set_name(brg__descriptor *d, const char *name)
{
    size_t n = strlen(name);
    d->name_hash = XXH64(name, n, 0);
    memcpy(d->name, name, n < sizeof d->name ? n : sizeof d->name - 1);
}

static brg_status gather(brg_pg *pg, void *recv, const void *send,
                         size_t nbytes)
{
    brg_work *work;
    BRG_TRY(brg_all_gather(pg, &work, recv, send, nbytes, BRG_DTYPE_U8));
    return brg_work_wait(work);
}

/* ---- Words ------------------------------------------------------------------ */

static void describe(brg__text *text, int rank, const brg__descriptor *d)
{
    char shape[BRG_SHAPE_TEXT_MAX], strides[BRG_SHAPE_TEXT_MAX];
    brg__text_add(text, "rank %d has %s %s%s", rank,
                  d->name[0] ? d->name : "(no name)",
                  brg_dtype_name((brg_dtype)d->dtype),
                  brg__shape_text(d->ndim, d->shape, shape));
    if (!brg__shape_is_contiguous(d->ndim, d->shape, d->strides))
        brg__text_add(text, " with strides %s",
                      brg__shape_text(d->ndim, d->strides, strides));
    if (!d->requires_grad)
        brg__text_add(text, " without gradient");
    if (d->group)
        brg__text_add(text, " in bucket group %llu",
                      (unsigned long long)d->group);
}

static brg_status fail_tensor(const brg__agreement *mine, size_t i, int rank,
                              const brg__descriptor *expected,
                              const brg__descriptor *found)
{
    char message[420];
    brg__text text = brg__text_begin(message, sizeof message);
    bool is_buffer = i >= mine->n_params;
    brg__text_add(&text, "%s: ranks disagree on %s %zu: ", mine->what,
                  is_buffer ? "buffer" : "parameter",
                  is_buffer ? i - mine->n_params : i);
    describe(&text, 0, expected);
    brg__text_add(&text, ", ");
    describe(&text, rank, found);
    return BRG_FAIL(BRG_ERR_MISMATCH, "%s", message);
}

static brg_status fail_count(const brg__agreement *mine, const header *all,
                             int rank)
{
    return BRG_FAIL(BRG_ERR_MISMATCH,
                    "%s: ranks disagree on the number of tensors: rank 0 has "
                    "%llu parameters and %llu buffers, rank %d has %llu and "
                    "%llu",
                    mine->what, (unsigned long long)all[0].n_params,
                    (unsigned long long)all[0].n_buffers, rank,
                    (unsigned long long)all[rank].n_params,
                    (unsigned long long)all[rank].n_buffers);
}

/* The options of both front ends, by their bits. */
static const char *const flag_names[] = {BRG__FLAG_NAMES};

#define N_FLAGS (sizeof flag_names / sizeof flag_names[0])

static void add_options(brg__text *text, const char *caps_name, int rank,
                        const header *h, const header *other)
{
    brg__text_add(text, "rank %d has ", rank);
    if (h->caps[0] != other->caps[0] || h->caps[1] != other->caps[1])
        brg__text_add(
            text, "%s %llu, %llu ", caps_name ? caps_name : "bucket sizes",
            (unsigned long long)h->caps[0], (unsigned long long)h->caps[1]);
    for (size_t k = 0; k < N_FLAGS; k++)
        if ((h->flags ^ other->flags) >> k & 1)
            brg__text_add(text, "%s %s ", flag_names[k],
                          h->flags >> k & 1 ? "on" : "off");
    if (h->n_leaves != other->n_leaves)
        brg__text_add(text, "%u leaves ", h->n_leaves);
    if (h->hook != other->hook)
        brg__text_add(text, "communication hook %016llx ",
                      (unsigned long long)h->hook);
    if (text->length < text->size)
        text->at[--text->length] = '\0'; /* the last blank */
}

static brg_status fail_options(const brg__agreement *mine, const header *all,
                               int rank)
{
    char words[320];
    brg__text text = brg__text_begin(words, sizeof words);
    add_options(&text, mine->caps_name, 0, &all[0], &all[rank]);
    brg__text_add(&text, ", ");
    add_options(&text, mine->caps_name, rank, &all[rank], &all[0]);
    return BRG_FAIL(BRG_ERR_MISMATCH, "%s: ranks disagree on the options: %s",
                    mine->what, words);
}

/* ---- Finding the difference ----------------------------------------------------- */

/* Both ranks have an i-th tensor, and of the same kind. */
static bool are_comparable(const header *a, const header *b, size_t i)
{
    if (i < a->n_params || i < b->n_params)
        return i < a->n_params && i < b->n_params;
    return a->n_params == b->n_params && i < a->n_params + a->n_buffers &&
           i < b->n_params + b->n_buffers;
}

/* Every rank's list, `n` descriptors each; the first difference in order of
 * the tensors, then of the ranks. */
static brg_status compare_lists(const brg__agreement *mine, const header *all,
                                const brg__descriptor *lists, size_t n,
                                int world_size)
{
    for (size_t i = 0; i < n; i++)
        for (int r = 1; r < world_size; r++) {
            const brg__descriptor *a = &lists[i];
            const brg__descriptor *b = &lists[(size_t)r * n + i];
            if (are_comparable(&all[0], &all[r], i) &&
                memcmp(a, b, sizeof *a) != 0)
                return fail_tensor(mine, i, r, a, b);
        }
    for (int r = 1; r < world_size; r++)
        if (all[r].n_params != all[0].n_params ||
            all[r].n_buffers != all[0].n_buffers)
            return fail_count(mine, all, r);
    return BRG_FAIL(BRG_ERR_INTERNAL, "%s: hashes of equal lists differ",
                    mine->what);
}

static brg_status exchange_lists(brg_pg *pg, const brg__agreement *mine,
                                 const header *all)
{
    int world_size = brg_pg_world_size(pg);
    size_t n = 0, n_mine = mine->n_params + mine->n_buffers;
    for (int r = 0; r < world_size; r++) {
        size_t n_theirs = all[r].n_params + all[r].n_buffers;
        n = n_theirs > n ? n_theirs : n;
    }
    brg__descriptor *lists = brg__mem_alloc_array(
        n * ((size_t)world_size + 1), sizeof *lists, "lists of parameters");
    if (!lists)
        return BRG_ERR_NOMEM;
    brg__descriptor *send = lists + n * (size_t)world_size;
    if (n_mine > 0)
        memcpy(send, mine->tensors, n_mine * sizeof *send);
    brg_status status = gather(pg, lists, send, n * sizeof *send);
    if (status == BRG_OK)
        status = compare_lists(mine, all, lists, n, world_size);
    brg__mem_free(lists);
    return status;
}

static brg_status compare_headers(brg_pg *pg, const brg__agreement *mine,
                                  const header *all)
{
    int world_size = brg_pg_world_size(pg);
    bool is_equal = true;
    for (int r = 0; r < world_size; r++) {
        if (all[r].status != BRG_OK)
            return BRG_FAIL(BRG_ERR_PEER, "%s failed on rank %d: %s",
                            mine->what, r,
                            brg_status_text((brg_status)all[r].status));
        is_equal &= all[r].n_params == all[0].n_params &&
                    all[r].n_buffers == all[0].n_buffers &&
                    all[r].hash == all[0].hash;
    }
    if (!is_equal)
        return exchange_lists(pg, mine, all);
    for (int r = 1; r < world_size; r++)
        if (memcmp(&all[r], &all[0], sizeof all[r]) != 0)
            return fail_options(mine, all, r);
    return BRG_OK;
}

brg_status brg__verify_ranks(brg_pg *pg, const brg__agreement *mine)
{
    header on_stack[N_ON_STACK], *all = on_stack;
    size_t n = (size_t)brg_pg_world_size(pg);
    brg__error_record failure;
    brg__error_save(&failure);
    if (n > N_ON_STACK &&
        !(all = brg__mem_alloc_array(n, sizeof *all, "headers of ranks")))
        return BRG_ERR_NOMEM;
    header own = {.status = mine->status,
                  .n_params = mine->n_params,
                  .n_buffers = mine->n_buffers,
                  .caps = {mine->caps[0], mine->caps[1]},
                  .flags = mine->flags,
                  .n_leaves = mine->n_leaves,
                  .hook = mine->hook};
    size_t n_tensors = mine->n_params + mine->n_buffers;
    if (mine->status == BRG_OK)
        own.hash = XXH64(mine->tensors, n_tensors * sizeof *mine->tensors, 0);
    brg_status status = gather(pg, all, &own, sizeof own);
    if (mine->status != BRG_OK)
        brg__error_restore(&failure);
    else if (status == BRG_OK)
        status = compare_headers(pg, mine, all);
    if (all != on_stack)
        brg__mem_free(all);
    return mine->status != BRG_OK ? mine->status : status;
}
