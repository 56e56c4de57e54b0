/* SPDX-License-Identifier: Apache-2.0
 * Sampling: the whole context runs through the model for each new byte. */
#include "sample.h"

#include <ctype.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <brigade/autograd.h>
#include <brigade/device.h>
#include <brigade/ops.h>
#include <brigade/random.h>

/* Scores of the byte after the last of `ids`. */
static brg_status next_scores(const gpt *m, const int64_t *ids, int64_t n,
                              float scores[GPT_BYTES])
{
    brg_scope *scope = brg_scope_begin();
    if (scope == NULL)
        return brg_error_code();
    brg_tensor *all =
        gpt_forward(m, brg_from_data(BRG_DTYPE_I64, BRG_SHAPE(1, n), ids));
    brg_tensor *last =
        brg_cast(brg_select(brg_select(all, 0, 0), 0, n - 1), BRG_DTYPE_F32);
    brg_status status =
        last == NULL
            ? brg_error_code()
            : brg_tensor_read(last, scores, GPT_BYTES * sizeof scores[0]);
    brg_scope_end(scope);
    return status;
}

/* The byte at which the scores' distribution passes `chance`, in [0, 1). */
static int draw(const float scores[GPT_BYTES], double temperature,
                double chance)
{
    int best = 0;
    for (int i = 1; i < GPT_BYTES; i++)
        best = scores[i] > scores[best] ? i : best;
    if (temperature <= 0)
        return best;
    double weights[GPT_BYTES], total = 0;
    for (int i = 0; i < GPT_BYTES; i++) {
        weights[i] = exp((double)(scores[i] - scores[best]) / temperature);
        total += weights[i];
    }
    double left = chance * total;
    for (int i = 0; i < GPT_BYTES; i++) {
        left -= weights[i];
        if (left < 0)
            return i;
    }
    return best;
}

static void print_byte(int byte)
{
    putchar(byte < 128 && (isprint(byte) || byte == '\n') ? byte : '?');
}

/* `ids` has room for the context and holds n_ids bytes. */
static brg_status generate(const gpt *m, int64_t *ids, int64_t n_ids,
                           brg_tensor *chances, double temperature)
{
    float scores[GPT_BYTES];
    if (chances == NULL)
        return brg_error_code();
    const double *chance = brg_tensor_data(chances);
    for (int64_t i = 0; i < brg_tensor_numel(chances); i++) {
        BRG_TRY(next_scores(m, ids, n_ids, scores));
        int byte = draw(scores, temperature, chance[i]);
        print_byte(byte);
        if (n_ids == m->config.context)
            memmove(ids, ids + 1, (size_t)--n_ids * sizeof *ids);
        ids[n_ids++] = byte;
    }
    putchar('\n');
    return BRG_OK;
}

brg_status sample_print(const gpt *m, const char *prompt, int64_t n,
                        double temperature, uint64_t seed)
{
    int64_t *ids = calloc((size_t)m->config.context, sizeof *ids);
    if (ids == NULL)
        return brg_error_set(BRG_ERR_NOMEM, __FILE__, __LINE__,
                             "no memory for a sample");
    int64_t n_ids = 0;
    printf("sample: ");
    for (; prompt[n_ids] != '\0' && n_ids < m->config.context; n_ids++) {
        ids[n_ids] = (unsigned char)prompt[n_ids];
        print_byte((int)ids[n_ids]);
    }
    bool mode = brg_grad_mode_set(false);
    brg_scope *scope = brg_scope_begin();
    brg_seed(seed);
    brg_tensor *chances = brg_to(brg_rand(BRG_DTYPE_F64, BRG_SHAPE(n)),
                                 (brg_device){BRG_DEVICE_CPU, 0});
    brg_status status = generate(m, ids, n_ids, chances, temperature);
    brg_scope_end(scope);
    brg_grad_mode_set(mode);
    free(ids);
    return status;
}
