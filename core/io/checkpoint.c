/* SPDX-License-Identifier: Apache-2.0
 * The whole state of a run in one safetensors file:
 *
 *   tensors       parameters and buffers under their names, the optimizer's
 *                 under "optim/<name>"
 *   __metadata__  brigade.checkpoint   version of this layout
 *                 brigade.step .epoch .batch   decimal
 *                 brigade.seed .draws  the generator's state, decimal
 *                 brigade.optim .lr    kind, and rate as a hex float without a
 *                                      point, which depends on the locale
 *                 user.<key>           the caller's items
 *
 * Loading reads and checks all of it before it changes anything. */
#include <errno.h>
#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <brigade/random.h>

#include "core/base/options.h"
#include "core/base/text.h"
#include "core/io/safetensors.h"
#include "core/io/safetensors_save.h"

#define VERSION "1"
#define PREFIX "brigade."
#define USER "user."
#define MAX_KEY 128
#define MAX_NUMBER 40

static brg_status take_struct(const char *op, brg_checkpoint *c,
                              const brg_checkpoint *given)
{
    *c = (brg_checkpoint)BRG_CHECKPOINT_INIT;
    BRG_TRY(BRG_TAKE_OPTIONS(c, given, op, BRG_CHECKPOINT_INIT));
    BRG_CHECK_ARG(given && c->params,
                  "%s: the checkpoint is NULL or without params", op);
    BRG_CHECK_ARG(c->items || c->n_items == 0, "%s: items is NULL", op);
    for (size_t i = 0; i < c->n_items; i++) {
        const brg_checkpoint_item *item = &c->items[i];
        BRG_CHECK_ARG(item->key && item->key[0] &&
                          strlen(item->key) < MAX_KEY - sizeof USER,
                      "%s: item %zu has no key, or a long one", op, i);
        for (size_t k = 0; k < i; k++)
            BRG_CHECK_ARG(strcmp(item->key, c->items[k].key) != 0,
                          "%s: the item '%s' is there twice", op, item->key);
    }
    return BRG_OK;
}

/* ---- The list of tensors ---------------------------------------------------------- */

typedef struct tensor_list {
    BRG__ARRAY(brg_named_tensor) tensors;
    BRG__ARRAY(char *) names; /* those that are ours */
} tensor_list;

static void list_deinit(tensor_list *list)
{
    for (size_t i = 0; i < list->names.n; i++)
        brg__mem_free(list->names.at[i]);
    brg__array_deinit(&list->names);
    brg__array_deinit(&list->tensors);
}

static brg_status list_optim(tensor_list *list, const brg_named_tensor *state)
{
    size_t size = sizeof BRG__CHECKPOINT_OPTIM + strlen(state->name);
    BRG_TRY(brg__array_reserve(&list->names, 1));
    char *name = brg__mem_alloc(size, "a name in a checkpoint");
    if (!name)
        return BRG_ERR_NOMEM;
    snprintf(name, size, "%s%s", BRG__CHECKPOINT_OPTIM, state->name);
    list->names.at[list->names.n++] = name;
    brg_named_tensor entry = {name, state->tensor};
    return brg__array_push(&list->tensors, entry);
}

static brg_status list_init(tensor_list *list, const brg_checkpoint *c)
{
    for (size_t i = 0; i < brg_params_count(c->params); i++) {
        const brg_param *param = brg_params_at(c->params, i);
        brg_named_tensor entry = {param->name, param->tensor};
        BRG_CHECK_ARG(strncmp(param->name, BRG__CHECKPOINT_OPTIM,
                              strlen(BRG__CHECKPOINT_OPTIM)) != 0,
                      "checkpoint: the parameter '%s' has a name of the "
                      "optimizer's",
                      param->name);
        BRG_TRY(brg__array_push(&list->tensors, entry));
    }
    for (size_t i = 0; c->optim && i < brg_optim_state_count(c->optim); i++)
        BRG_TRY(list_optim(list, brg_optim_state_at(c->optim, i)));
    return BRG_OK;
}

/* ---- Saving -------------------------------------------------------------------------- */

#define N_OWN 8

typedef struct texts {
    char step[MAX_NUMBER], epoch[MAX_NUMBER], batch[MAX_NUMBER];
    char seed[MAX_NUMBER], draws[MAX_NUMBER], lr[MAX_NUMBER];
} texts;

static void put_rate(char *text, double lr)
{
    int exponent;
    double fraction = frexp(lr, &exponent);
    snprintf(text, MAX_NUMBER, "0x%llxp%d",
             (unsigned long long)ldexp(fraction, DBL_MANT_DIG),
             exponent - DBL_MANT_DIG);
}

static size_t own_metadata(brg_key_value *pairs, texts *t,
                           const brg_checkpoint *c)
{
    size_t n = 0;
    snprintf(t->step, MAX_NUMBER, "%lld", (long long)c->step);
    snprintf(t->epoch, MAX_NUMBER, "%lld", (long long)c->position.epoch);
    snprintf(t->batch, MAX_NUMBER, "%lld", (long long)c->position.batch);
    brg_random_state random;
    brg_random_get_state(&random);
    snprintf(t->seed, MAX_NUMBER, "%llu", (unsigned long long)random.seed);
    snprintf(t->draws, MAX_NUMBER, "%llu", (unsigned long long)random.offset);
    pairs[n++] = (brg_key_value){PREFIX "checkpoint", VERSION};
    pairs[n++] = (brg_key_value){PREFIX "step", t->step};
    pairs[n++] = (brg_key_value){PREFIX "epoch", t->epoch};
    pairs[n++] = (brg_key_value){PREFIX "batch", t->batch};
    pairs[n++] = (brg_key_value){PREFIX "seed", t->seed};
    pairs[n++] = (brg_key_value){PREFIX "draws", t->draws};
    if (c->optim) {
        put_rate(t->lr, brg_optim_lr(c->optim));
        pairs[n++] = (brg_key_value){PREFIX "optim", brg_optim_kind(c->optim)};
        pairs[n++] = (brg_key_value){PREFIX "lr", t->lr};
    }
    return n;
}

static brg_status write_all(const char *path, const brg_checkpoint *c,
                            const tensor_list *list)
{
    texts t;
    brg_key_value *pairs = brg__mem_alloc_array(
        N_OWN + c->n_items, sizeof *pairs, "metadata of a checkpoint");
    char(*keys)[MAX_KEY] =
        brg__mem_alloc_array(c->n_items, sizeof *keys, "keys of a checkpoint");
    brg_status status = BRG_ERR_NOMEM;
    if (!pairs || !keys)
        goto out;
    size_t n = own_metadata(pairs, &t, c);
    for (size_t i = 0; i < c->n_items; i++) {
        const brg_checkpoint_item *item = &c->items[i];
        snprintf(keys[i], sizeof keys[i], "%s%s", USER, item->key);
        pairs[n++] = (brg_key_value){keys[i], item->value};
    }
    status =
        brg__safetensors_write("brg_checkpoint_save", path, list->tensors.at,
                               list->tensors.n, pairs, n);
out:
    brg__mem_free(keys);
    brg__mem_free(pairs);
    return status;
}

brg_status brg_checkpoint_save(const char *path,
                               const brg_checkpoint *checkpoint)
{
    brg_checkpoint c;
    BRG_TRY(take_struct("brg_checkpoint_save", &c, checkpoint));
    BRG_CHECK_ARG(c.step >= 0 && c.position.epoch >= 0 && c.position.batch >= 0,
                  "brg_checkpoint_save: step %lld, epoch %lld, batch %lld: "
                  "none may be negative",
                  (long long)c.step, (long long)c.position.epoch,
                  (long long)c.position.batch);
    for (size_t i = 0; i < c.n_items; i++)
        BRG_CHECK_ARG(memchr(c.items[i].value, '\0', sizeof c.items[i].value),
                      "brg_checkpoint_save: the value of '%s' does not end",
                      c.items[i].key);
    tensor_list list = {0};
    brg_status status = list_init(&list, &c);
    if (status == BRG_OK)
        status = write_all(path, &c, &list);
    list_deinit(&list);
    return status;
}

/* ---- Loading -------------------------------------------------------------------------- */

/* What the metadata says, before any of it is put to use. */
typedef struct loaded {
    int64_t step;
    brg_sampler_position position;
    brg_random_state random;
    double lr;
} loaded;

static brg_status get_text(const brg_safetensors *file, const char *key,
                           const char **text)
{
    *text = brg_safetensors_metadata(file, key);
    if (*text)
        return BRG_OK;
    return BRG_FAIL(BRG_ERR_FORMAT,
                    "brg_checkpoint_load: %s has no '%s' and is not a "
                    "complete checkpoint",
                    file->path, key);
}

static brg_status fail_value(const brg_safetensors *file, const char *key,
                             const char *text, const char *expected)
{
    return BRG_FAIL(BRG_ERR_FORMAT,
                    "brg_checkpoint_load: %s: '%s' is '%.80s', expected %s",
                    file->path, key, text, expected);
}

static brg_status get_number(const brg_safetensors *file, const char *key,
                             uint64_t *value)
{
    const char *text;
    char *end;
    BRG_TRY(get_text(file, key, &text));
    errno = 0;
    *value = strtoull(text, &end, 10);
    bool starts_right = text[0] >= '0' && text[0] <= '9';
    if (!starts_right || *end != '\0' || errno != 0)
        return fail_value(file, key, text, "a whole number from 0 up");
    return BRG_OK;
}

static brg_status get_count(const brg_safetensors *file, const char *key,
                            int64_t *value)
{
    uint64_t number = 0;
    BRG_TRY(get_number(file, key, &number));
    if (number > INT64_MAX)
        return fail_value(file, key, "too large", "at most 2^63 - 1");
    *value = (int64_t)number;
    return BRG_OK;
}

static brg_status get_optim(const brg_safetensors *file,
                            const brg_checkpoint *c, double *lr)
{
    const char *kind, *text;
    if (!c->optim)
        return BRG_OK;
    BRG_TRY(get_text(file, PREFIX "optim", &kind));
    if (strcmp(kind, brg_optim_kind(c->optim)) != 0)
        return fail_value(file, PREFIX "optim", kind, brg_optim_kind(c->optim));
    BRG_TRY(get_text(file, PREFIX "lr", &text));
    if (!brg__text_number(text, lr) || *lr < 0.0)
        return fail_value(file, PREFIX "lr", text, "a learning rate");
    return BRG_OK;
}

static brg_status check_items(const brg_safetensors *file,
                              const brg_checkpoint *c)
{
    for (size_t i = 0; i < c->n_items; i++) {
        char key[MAX_KEY];
        const char *text;
        snprintf(key, sizeof key, "%s%s", USER, c->items[i].key);
        BRG_TRY(get_text(file, key, &text));
        if (strlen(text) >= sizeof c->items[i].value)
            return fail_value(file, key, text, "a shorter text");
    }
    return BRG_OK;
}

static void fill_items(const brg_safetensors *file, brg_checkpoint *c)
{
    for (size_t i = 0; i < c->n_items; i++) {
        brg_checkpoint_item *item = &c->items[i];
        char key[MAX_KEY];
        snprintf(key, sizeof key, "%s%s", USER, item->key);
        snprintf(item->value, sizeof item->value, "%s",
                 brg_safetensors_metadata(file, key));
    }
}

static brg_status check_all(const brg_safetensors *file,
                            const brg_checkpoint *c, const tensor_list *list,
                            loaded *found)
{
    brg__safetensors_match match = {
        .op = "brg_checkpoint_load",
        .skip = c->optim ? NULL : BRG__CHECKPOINT_OPTIM,
    };
    const char *version;
    BRG_TRY(get_text(file, PREFIX "checkpoint", &version));
    if (strcmp(version, VERSION) != 0)
        return fail_value(file, PREFIX "checkpoint", version,
                          "version " VERSION);
    BRG_TRY(get_count(file, PREFIX "step", &found->step));
    BRG_TRY(get_count(file, PREFIX "epoch", &found->position.epoch));
    BRG_TRY(get_count(file, PREFIX "batch", &found->position.batch));
    BRG_TRY(get_number(file, PREFIX "seed", &found->random.seed));
    BRG_TRY(get_number(file, PREFIX "draws", &found->random.offset));
    BRG_TRY(get_optim(file, c, &found->lr));
    BRG_TRY(check_items(file, c));
    return brg__safetensors_check(file, list->tensors.at, list->tensors.n,
                                  &match);
}

static brg_status put_to_use(const brg_safetensors *file, brg_checkpoint *c,
                             const tensor_list *list, const loaded *found)
{
    BRG_TRY(brg__safetensors_read_all(file, list->tensors.at, list->tensors.n));
    if (c->optim)
        BRG_TRY(brg_optim_set_lr(c->optim, found->lr));
    brg_random_state random = found->random, own;
    brg_random_get_state(&own);
    if (c->keep_seed)
        random.seed = own.seed;
    brg_random_set_state(&random);
    c->step = found->step;
    c->position = found->position;
    fill_items(file, c);
    return BRG_OK;
}

brg_status brg_checkpoint_load(brg_checkpoint *checkpoint, const char *path)
{
    brg_checkpoint c;
    BRG_TRY(take_struct("brg_checkpoint_load", &c, checkpoint));
    tensor_list list = {0};
    brg_safetensors *file = NULL;
    loaded found = {0};
    brg_status status;
    BRG_TRY_GOTO(list_init(&list, &c), out);
    BRG_TRY_GOTO(brg_safetensors_open(&file, path), out);
    BRG_TRY_GOTO(check_all(file, &c, &list, &found), out);
    status = put_to_use(file, &c, &list, &found);
    checkpoint->step = c.step;
    checkpoint->position = c.position;
out:
    brg_safetensors_close(file);
    list_deinit(&list);
    return status;
}
