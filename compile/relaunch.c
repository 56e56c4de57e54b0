/* SPDX-License-Identifier: Apache-2.0
 * Steps that are launched again: see relaunch.h. */
#include "compile/relaunch.h"

#include <pthread.h>
#include <string.h>

#include "compile/relaunch_note.h"
#include "core/autograd/debug.h"
#include "core/base/error.h"
#include "core/ops/op.h"

/* ---- Life ---------------------------------------------------------------------- */

static struct {
    pthread_mutex_t lock;
    brg__relauncher *first;
} all = {.lock = PTHREAD_MUTEX_INITIALIZER};

static uintptr_t this_thread(void)
{
    static _Thread_local char mine;
    return (uintptr_t)&mine;
}

brg_status brg__relauncher_create(brg__relauncher **out)
{
    brg__relauncher *r = *out = BRG__NEW(brg__relauncher);
    if (!r)
        return BRG_ERR_NOMEM;
    pthread_mutex_lock(&all.lock);
    r->next = all.first;
    all.first = r;
    pthread_mutex_unlock(&all.lock);
    return BRG_OK;
}

static void release_outputs(brg__relauncher *r)
{
    for (size_t i = 0; r->outputs && r->outputs[i]; i++) {
        brg_release(r->outputs[i]);
        r->outputs[i] = NULL;
    }
}

/* What is in use of its memory (gradients) lives on. */
static void drop_graph(brg__relauncher *r)
{
    r->is_recorded = false;
    release_outputs(r);
    if (r->graph)
        r->vtable->graph_free(r->device, r->graph);
    r->graph = NULL;
}

static void drop_others(const brg__relauncher *r)
{
    pthread_mutex_lock(&all.lock);
    for (brg__relauncher *other = all.first; other; other = other->next)
        if (other != r && atomic_load(&other->thread) == this_thread())
            drop_graph(other);
    pthread_mutex_unlock(&all.lock);
}

static void drop_places(brg__relauncher *r)
{
    for (size_t i = 0; r->inputs && i < r->n_inputs; i++)
        brg_release(r->inputs[i]);
    brg__mem_free(r->outputs);
    brg__mem_free(r->inputs);
    r->inputs = r->outputs = NULL;
    r->n_inputs = 0;
    brg__numbers_deinit(&r->numbers);
}

void brg__relauncher_destroy(brg__relauncher *r)
{
    if (!r)
        return;
    pthread_mutex_lock(&all.lock);
    brg__relauncher **at = &all.first;
    while (*at != r)
        at = &(*at)->next;
    *at = r->next;
    pthread_mutex_unlock(&all.lock);
    drop_graph(r);
    drop_places(r);
    brg__array_deinit(&r->state);
    brg__array_deinit(&r->now);
    brg__array_deinit(&r->reducers);
    brg__mem_free(r);
}

/* From now on as without. */
static void turn_off(brg__relauncher *r, const char *why)
{
    r->is_off = true;
    drop_graph(r);
    brg__compiler_mine()->stats.replay_skips++;
    brg__reason_of_skip(brg__compiler_mine(), NULL, why);
}

/* ---- What goes in and comes out --------------------------------------------------- */

static brg_status copy(const brg_tensor *to, const brg_tensor *from)
{
    return brg__device_copy(to->device, brg__tensor_ptr(to), from->device,
                            brg__tensor_ptr(from), brg_tensor_nbytes(from));
}

static brg_status new_like(brg_tensor **out, const brg_tensor *t)
{
    brg__layout layout = brg__layout_from_start(t);
    return brg__tensor_new(out, &layout);
}

static brg_status fill_places(brg__relauncher *r, const brg__segment *s,
                              brg_tensor *const *inputs, size_t n_inputs)
{
    r->outputs = brg__mem_alloc_array((size_t)s->captured.n_outputs + 1,
                                      sizeof *r->outputs, "results");
    brg_tensor **made =
        brg__mem_alloc_array(n_inputs + 1, sizeof *made, "inputs");
    r->inputs = made;
    r->n_inputs = n_inputs;
    if (!made || !r->outputs)
        return BRG_ERR_NOMEM;
    BRG_TRY(brg__numbers_init(&r->numbers, s, inputs, n_inputs, r->device));
    for (size_t i = 0; i < n_inputs; i++) {
        made[i] = brg_retain(brg__numbers_place(&r->numbers, i));
        for (size_t k = 0; k < i && !made[i]; k++)
            made[i] = inputs[k] == inputs[i] ? brg_retain(made[k]) : NULL;
        if (inputs[i] && !made[i])
            BRG_TRY(new_like(&made[i], inputs[i]));
    }
    return BRG_OK;
}

static brg_status make_places(brg__relauncher *r, const brg__segment *s,
                              brg_tensor *const *inputs, size_t n_inputs)
{
    if (r->inputs)
        return BRG_OK;
    brg_status status = fill_places(r, s, inputs, n_inputs);
    if (status != BRG_OK)
        drop_places(r);
    return status;
}

static brg_status put_inputs(brg__relauncher *r, brg_tensor *const *inputs)
{
    for (size_t i = 0; i < r->n_inputs; i++)
        if (inputs[i] && !brg__is_number(inputs[i]))
            BRG_TRY(copy(r->inputs[i], inputs[i]));
    return brg__numbers_bring(&r->numbers, inputs);
}

/* The next launch overwrites them: the caller gets copies. */
static brg_status copy_outputs(const brg__relauncher *r, brg__segment *s)
{
    for (int i = 0; i < s->captured.n_outputs; i++) {
        BRG_TRY(new_like(&s->outputs[i], r->outputs[i]));
        BRG_TRY(copy(s->outputs[i], r->outputs[i]));
    }
    return BRG_OK;
}

static brg_status keep_outputs(brg__relauncher *r, brg__segment *s)
{
    for (int i = 0; i < s->captured.n_outputs; i++) {
        r->outputs[i] = s->outputs[i];
        s->outputs[i] = NULL;
    }
    return copy_outputs(r, s);
}

/* All that the work reads of this call. */
static brg_status bring(brg__relauncher *r, brg_tensor *const *inputs)
{
    BRG_TRY(put_inputs(r, inputs));
    for (size_t i = 0; i < r->reducers.n; i++) {
        const brg__reduction_part *part = &r->reducers.at[i];
        BRG_TRY(part->relaunch->ready(part->relaunch_self));
    }
    return BRG_OK;
}

/* ---- Recording --------------------------------------------------------------------- */

/* What was recorded is launched in any case: other ranks may wait for it. */
static brg_status end_recording(brg__relauncher *r, brg_status run)
{
    brg__error_record kept;
    if (run != BRG_OK)
        brg__error_save(&kept);
    brg_status status = r->vtable->graph_recorded(r->device, r->graph);
    if (status == BRG_OK)
        status = r->vtable->graph_launch(r->device, r->graph);
    if (run != BRG_OK)
        brg__error_restore(&kept);
    return run != BRG_OK ? run : status;
}

/* There is no graph; for want of memory the next step makes room and tries
 * again, once. */
static void end_without(brg__relauncher *r, brg_status status)
{
    if (status == BRG_ERR_NOMEM && !r->has_room)
        r->lacks_room = true;
    else
        turn_off(r, brg_error_message());
}

static void make_room(brg__relauncher *r)
{
    if (!r->lacks_room)
        return;
    r->lacks_room = false;
    r->has_room = true;
    drop_graph(r);
    drop_others(r);
}

static brg_status record(brg__relauncher *r, brg__segment *s,
                         brg_tensor *const *inputs, size_t n_inputs)
{
    brg_compile_stats *stats = &brg__compiler_mine()->stats;
    const size_t n_lasting = r->n_lasting;
    r->is_recorded = false;
    release_outputs(r);
    make_room(r);
    brg_status placed = make_places(r, s, inputs, n_inputs);
    if (placed == BRG_ERR_NOMEM) {
        end_without(r, placed);
        return brg__segment_run_forward(s, inputs, n_inputs);
    }
    BRG_TRY(placed);
    BRG_TRY(bring(r, inputs));
    BRG_TRY(r->vtable->graph_record(r->device, &r->graph));
    r->n_recordings++;
    stats->replay_recordings++;
    brg__numbers_enter(&r->numbers, s);
    brg_status status = brg__segment_run_forward(s, r->inputs, n_inputs);
    brg__numbers_leave(&r->numbers, s);
    const bool is_run = status == BRG_OK;
    status = end_recording(r, status);
    if (is_run && (status == BRG_ERR_UNSUPPORTED || status == BRG_ERR_NOMEM)) {
        end_without(r, status);
        return BRG_OK;
    }
    BRG_TRY(status);
    BRG_TRY(keep_outputs(r, s));
    /* Where it ended must be where it began. */
    brg__words began = r->now;
    r->now = r->state;
    r->state = began;
    if (brg__relaunch_note(r, s) == BRG_OK)
        r->is_recorded = brg__relaunch_is_back(r, n_lasting);
    if (!r->is_recorded)
        release_outputs(r);
    return BRG_OK;
}

/* ---- Launching ------------------------------------------------------------------------ */

static brg_status run_on_host(const brg__relauncher *r, const brg__segment *s)
{
    const brg__ir *ir = &s->captured.forward;
    brg__relaunch launch = {r->device, r->vtable, r->graph, 0};
    for (size_t n = 0; n < ir->nodes.n; n++) {
        const brg__ir_node *node = &ir->nodes.at[n];
        if (node->kind == BRG__IR_EFFECT)
            BRG_TRY(node->effect->relaunch(node->effect, &launch));
        else if (node->kind == BRG__IR_OP && node->draw == 0 &&
                 (node->op->flags & BRG_OP_IMPURE))
            brg__relaunch_touch(ir, node);
    }
    return BRG_OK;
}

/* What the host wants to know of it later. */
static brg_status ask(const brg__relauncher *r, const brg__segment *s)
{
    brg_status status = BRG_OK;
    for (size_t i = 0; i < s->captured.effects.n && status == BRG_OK; i++) {
        const brg__effect *effect = s->captured.effects.at[i];
        status = effect->launched ? effect->launched(effect) : BRG_OK;
    }
    for (size_t i = 0; i < r->reducers.n; i++) {
        const brg__reduction_part *part = &r->reducers.at[i];
        brg_status ended = part->relaunch->launched(part->relaunch_self);
        status = status == BRG_OK ? ended : status;
    }
    return status;
}

static brg_status launch(brg__relauncher *r, brg__segment *s,
                         brg_tensor *const *inputs)
{
    BRG_TRY(bring(r, inputs));
    BRG_TRY(run_on_host(r, s));
    BRG_TRY(r->vtable->graph_launch(r->device, r->graph));
    brg__compiler_mine()->stats.replay_launches++;
    brg_status status = copy_outputs(r, s);
    const brg_status asked = ask(r, s);
    return status == BRG_OK ? asked : status;
}

/* ---- A call ----------------------------------------------------------------------------- */

static void judge(brg__relauncher *r, const brg__segment *s,
                  brg_tensor *const *inputs, size_t n_inputs)
{
    char why[128];
    r->is_judged = true;
    if (brg__relaunch_allows(r, s, inputs, n_inputs, why, sizeof why))
        brg__compiler_mine()->stats.replays++;
    else
        turn_off(r, why);
}

/* Not this time; in the end, never. */
static bool is_fit(brg__relauncher *r, const brg__segment *s)
{
    if (brg__relaunch_note(r, s) == BRG_OK) {
        r->n_unfit = 0;
        return true;
    }
    if (++r->n_unfit == BRG__RELAUNCH_UNFIT)
        turn_off(r, brg_error_message());
    return false;
}

brg_status brg__relaunch_step(brg__segment *s, brg_tensor *const *inputs,
                              size_t n_inputs)
{
    brg__relauncher *r = s->relauncher;
    atomic_store(&r->thread, this_thread());
    memset(s->outputs, 0, (size_t)s->captured.n_outputs * sizeof *s->outputs);
    if (!r->is_judged)
        judge(r, s, inputs, n_inputs);
    if (r->is_off || brg__anomaly_is_on || r->n_runs++ < BRG__RELAUNCH_WARM ||
        !is_fit(r, s))
        return brg__segment_run_forward(s, inputs, n_inputs);
    if (r->is_recorded && brg__relaunch_is_noted(r))
        return launch(r, s, inputs);
    if (r->n_recordings < BRG__RELAUNCH_RECORDINGS)
        return record(r, s, inputs, n_inputs);
    turn_off(r, "addresses that differ from call to call");
    return brg__segment_run_forward(s, inputs, n_inputs);
}
