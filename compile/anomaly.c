/* SPDX-License-Identifier: Apache-2.0
 * Anomaly mode of a compiled backward: see anomaly.h. */
#include "compile/anomaly.h"

#include <stdio.h>
#include <string.h>

#include "core/autograd/debug.h"
#include "core/base/error.h"

typedef struct names {
    char text[256];
    size_t n;
} names;

/* Appends "name f32(2, 3)" or "#3 f32(2, 3)"; what does not fit is cut. */
static void add_name(names *list, size_t at, const brg_tensor *t)
{
    char text[BRG_TENSOR_TEXT_MAX], number[24];
    const char *name = brg_tensor_name(t);
    snprintf(number, sizeof number, "#%zu", at);
    size_t used = strlen(list->text);
    snprintf(list->text + used, sizeof list->text - used, "%s%s %s",
             list->n++ ? ", " : "", name && *name ? name : number,
             brg__tensor_text(t, text));
}

/* The leaves that this task adds to, with a NaN in their .grad. */
static brg_status bad_leaves(const brg__task *task, names *list)
{
    size_t n_leaves = 0;
    for (size_t i = 0; i < task->visits.n; i++) {
        const brg__visit *visit = &task->visits.at[i];
        if (!visit->is_needed || !brg__node_is_accumulate(visit->node))
            continue;
        const brg_tensor *leaf = visit->node->leaf;
        bool is_bad = false;
        pthread_mutex_lock(&visit->node->lock);
        brg_tensor *grad = brg__autograd_of(leaf)->grad;
        brg_status status = grad ? brg__has_nan(grad, &is_bad) : BRG_OK;
        pthread_mutex_unlock(&visit->node->lock);
        BRG_TRY(status);
        if (is_bad)
            add_name(list, n_leaves, leaf);
        n_leaves++;
    }
    return BRG_OK;
}

brg_status brg__anomaly_before(const brg__task *task)
{
    names list = {.n = 0};
    if (!brg__anomaly_is_on)
        return BRG_OK;
    BRG_TRY(bad_leaves(task, &list));
    if (list.n == 0)
        return BRG_OK;
    return BRG_FAIL(BRG_ERR_NAN,
                    "Compiled Autograd was given parameters already having NaN "
                    "gradient. This is not supported. Parameters: %s",
                    list.text);
}

brg_status brg__anomaly_after(const brg__task *task)
{
    names leaves = {.n = 0}, outputs = {.n = 0};
    if (!brg__anomaly_is_on)
        return BRG_OK;
    BRG_TRY(bad_leaves(task, &leaves));
    if (leaves.n > 0)
        return BRG_FAIL(
            BRG_ERR_NAN,
            "Compiled Autograd returned NaN gradients for parameters: %s",
            leaves.text);
    for (size_t i = 0; i < task->requests.n; i++) {
        brg_tensor *grad = task->requests.at[i].grad;
        bool is_bad = false;
        if (grad)
            BRG_TRY(brg__has_nan(grad, &is_bad));
        if (is_bad)
            add_name(&outputs, i, grad);
    }
    if (outputs.n == 0)
        return BRG_OK;
    return BRG_FAIL(
        BRG_ERR_NAN,
        "Compiled Autograd returned NaN gradients for output nodes: %s",
        outputs.text);
}
