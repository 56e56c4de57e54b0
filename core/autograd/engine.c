/* SPDX-License-Identifier: Apache-2.0
 * The backward engine: collect, run, finish. See engine.h. */
#include "core/autograd/engine.h"

#include <string.h>

#include "core/autograd/autocast.h"
#include "core/base/error.h"
#include "core/base/options.h"
#include "core/base/progress.h"
#include "core/base/tracer.h"
#include "core/tensor/device.h"
#include "core/tensor/shape.h"

#include <brigade/device.h>
#include <brigade/ops.h>

#define MAX_DEPTH 60 /* backward inside backward inside ... */

/* ---- Tasks: one per depth, kept for reuse ------------------------------------------- */

static _Thread_local brg__task *innermost;
static _Thread_local brg__task *idle;
static _Thread_local int depth;

static pthread_key_t exit_key;
static pthread_once_t exit_once = PTHREAD_ONCE_INIT;
static _Thread_local bool is_registered;

static void task_destroy(brg__task *task)
{
    brg__map_deinit(&task->index);
    brg__array_deinit(&task->visits);
    brg__array_deinit(&task->buffers);
    brg__array_deinit(&task->heap);
    brg__array_deinit(&task->stack);
    brg__array_deinit(&task->roots);
    brg__array_deinit(&task->requests);
    brg__array_deinit(&task->callbacks);
    brg__mem_free(task);
}

static void on_thread_exit(void *unused)
{
    (void)unused;
    while (idle) {
        brg__task *next = idle->outer;
        task_destroy(idle);
        idle = next;
    }
    is_registered = false;
}

static void make_exit_key(void)
{
    (void)pthread_key_create(&exit_key, on_thread_exit);
}

brg__task *brg__task_current(void)
{
    return innermost;
}

bool brg__task_runs(const brg__task *task, const brg_node *node)
{
    uint32_t visit;
    if (!task || !task->is_selective)
        return true;
    return brg__map_get(&task->index, node, &visit) &&
           (task->visits.at[visit].is_needed ||
            task->visits.at[visit].is_wanted);
}

uint32_t brg__task_needs(const brg__task *task, const brg_node *node)
{
    uint32_t needs = 0;
    for (uint16_t i = 0; i < node->n_edges; i++)
        if (node->edges[i].node && brg__task_runs(task, node->edges[i].node))
            needs |= 1u << i;
    return needs;
}

brg_status brg__task_enter(brg__task *task)
{
    if (depth == MAX_DEPTH)
        return BRG_FAIL(BRG_ERR_STATE,
                        "backward called from inside backward %d levels deep",
                        MAX_DEPTH);
    task->outer = innermost;
    innermost = task;
    depth++;
    return BRG_OK;
}

static void leave(const brg__task *task)
{
    innermost = task->outer;
    depth--;
}

static brg_status task_begin(brg__task **out)
{
    if (!is_registered) {
        pthread_once(&exit_once, make_exit_key);
        (void)pthread_setspecific(exit_key, &is_registered);
        is_registered = true;
    }
    brg__task *task = idle ? idle : BRG__NEW(brg__task);
    if (!task)
        return BRG_ERR_NOMEM;
    idle = task->outer; /* of a new one: NULL */
    brg_status status = brg__task_enter(task);
    if (status != BRG_OK) {
        task->outer = idle;
        idle = task;
        return status;
    }
    brg__map_clear(&task->index);
    *out = task;
    return BRG_OK;
}

/* Lets go of everything the task holds; it may have stopped anywhere. */
static void task_end(brg__task *task)
{
    for (size_t i = 0; i < task->buffers.n; i++)
        brg_release(task->buffers.at[i]);
    for (size_t i = 0; i < task->requests.n; i++)
        brg_release(task->requests.at[i].grad);
    for (size_t i = 0; i < task->roots.n; i++)
        brg_node_release(task->roots.at[i].node);
    task->visits.n = task->buffers.n = task->heap.n = task->stack.n = 0;
    task->roots.n = task->requests.n = 0;
    task->callbacks.n = task->n_called = 0;
    task->n_arrivals = 0;
    task->is_retained = task->is_selective = task->returns_grads = false;
    task->is_cut = false;
    leave(task);
    task->outer = idle;
    idle = task;
}

/* ---- Collect ---------------------------------------------------------------------------- */

/* The visit of a node, made on first sight. */
static brg_status visit_of(brg__task *task, brg_node *node, uint32_t *out,
                           bool *is_new)
{
    BRG_TRY(brg__map_put(&task->index, node, (uint32_t)task->visits.n, out,
                         is_new));
    if (!*is_new)
        return BRG_OK;
    brg__visit visit = {.node = node,
                        .first_buffer = (uint32_t)task->buffers.n,
                        .is_needed = true};
    BRG_TRY(brg__array_push(&task->visits, visit));
    BRG_TRY(brg__array_reserve(&task->buffers, node->n_slots));
    for (uint16_t i = 0; i < node->n_slots; i++)
        task->buffers.at[task->buffers.n++] = NULL;
    return brg__array_push(&task->stack, *out);
}

static brg_status collect(brg__task *task)
{
    uint32_t visit;
    bool is_new;
    for (size_t i = 0; i < task->roots.n; i++)
        BRG_TRY(visit_of(task, task->roots.at[i].node, &visit, &is_new));
    while (task->stack.n > 0) {
        const brg_node *node =
            task->visits.at[task->stack.at[--task->stack.n]].node;
        for (uint16_t i = 0; i < node->n_edges; i++) {
            if (!node->edges[i].node)
                continue;
            BRG_TRY(visit_of(task, node->edges[i].node, &visit, &is_new));
            task->visits.at[visit].n_waiting++;
        }
    }
    return BRG_OK;
}

/* Nodes are needed that lead to a requested one. Behind every edge is an
 * earlier recorded node (or a leaf), so going through them in that order
 * settles each after those it leads to. */
static brg_status mark_needed(brg__task *task)
{
    for (uint32_t i = 0; i < task->visits.n; i++)
        BRG_TRY(brg__ready_push(task, i));
    size_t n = task->heap.n;
    BRG_TRY(brg__array_reserve(&task->stack, n));
    for (size_t i = 0; i < n; i++)
        (void)brg__ready_pop(task, &task->stack.at[n - 1 - i]);
    /* Leaves came out first: they are last in the list and settle first. */
    for (size_t pass = 0; pass < 2; pass++)
        for (size_t i = 0; i < n; i++) {
            brg__visit *visit = &task->visits.at[task->stack.at[i]];
            bool is_leaf = brg__node_is_accumulate(visit->node);
            if (is_leaf != (pass == 0))
                continue;
            bool is_needed =
                is_leaf && visit->is_wanted && !task->returns_grads;
            for (uint16_t e = 0; e < visit->node->n_edges; e++) {
                uint32_t to;
                if (!visit->node->edges[e].node ||
                    !brg__map_get(&task->index, visit->node->edges[e].node,
                                  &to))
                    continue;
                const brg__visit *next = &task->visits.at[to];
                is_needed |= next->is_needed || next->is_wanted;
            }
            visit->is_needed = is_needed;
        }
    task->n_arrivals = 0;
    return BRG_OK;
}

/* ---- Roots and requested tensors ------------------------------------------------------------ */

static brg_status add_root(brg__task *task, brg_tensor *output)
{
    char text[BRG_TENSOR_TEXT_MAX];
    if (!output)
        return brg__error_pending("backward: output");
    brg__edge edge;
    BRG_TRY(brg__edge_of(output, &edge));
    if (!edge.node)
        return BRG_FAIL(BRG_ERR_STATE,
                        "backward: output %zu (%s) does not require grad and "
                        "was not computed from a tensor that does",
                        task->roots.n, brg__tensor_text(output, text));
    brg_status status = brg__array_push(&task->roots, edge);
    if (status != BRG_OK)
        brg_node_release(edge.node);
    return status;
}

/* One number may come from anywhere. */
static brg_status check_given(const brg_tensor *output, size_t i,
                              brg_tensor **grad)
{
    char a[BRG_TENSOR_TEXT_MAX], b[BRG_TENSOR_TEXT_MAX];
    brg_tensor *given = *grad;
    if (!brg__shape_equal(given->ndim, given->shape, output->ndim,
                          output->shape) ||
        given->dtype != output->dtype)
        return BRG_FAIL(BRG_ERR_SHAPE,
                        "backward: grad_outputs[%zu] is %s, its output is %s: "
                        "shape and dtype must be equal",
                        i, brg__tensor_text(given, a),
                        brg__tensor_text(output, b));
    if (given->ndim == 0)
        *grad = brg_to(given, output->device);
    else if (!brg__device_equal(given->device, output->device))
        return BRG_FAIL(BRG_ERR_DEVICE,
                        "backward: grad_outputs[%zu] is on %s, its output on "
                        "%s: move it with brg_to",
                        i, brg__device_text(given->device, a),
                        brg__device_text(output->device, b));
    return *grad ? BRG_OK : brg_error_code();
}

static brg_status first_gradient(brg_tensor *output, brg_tensor *given,
                                 size_t i, brg_tensor **grad)
{
    char a[BRG_TENSOR_TEXT_MAX];
    *grad = given;
    if (given)
        return check_given(output, i, grad);
    if (output->numel != 1)
        return BRG_FAIL(BRG_ERR_SHAPE,
                        "backward: grad can be implicitly created only for "
                        "scalar outputs; output %zu is %s: give grad_outputs",
                        i, brg__tensor_text(output, a));
    *grad = brg_ones_like(output);
    return *grad ? BRG_OK : brg_error_code();
}

static brg_status start(brg__task *task, brg_tensor *const *outputs,
                        brg_tensor *const *grad_outputs)
{
    for (size_t i = 0; i < task->roots.n; i++) {
        brg_tensor *grad;
        BRG_TRY(first_gradient(
            outputs[i], grad_outputs ? grad_outputs[i] : NULL, i, &grad));
        uint32_t visit = 0;
        (void)brg__map_get(&task->index, task->roots.at[i].node, &visit);
        BRG_TRY(
            brg__task_add_gradient(task, visit, task->roots.at[i].slot, grad));
    }
    for (size_t i = 0; i < task->roots.n; i++) {
        uint32_t visit = 0;
        (void)brg__map_get(&task->index, task->roots.at[i].node, &visit);
        brg__visit *v = &task->visits.at[visit];
        if (v->n_waiting == 0) {
            v->n_waiting = UINT32_MAX; /* pushed: not a second time */
            BRG_TRY(brg__ready_push(task, visit));
        }
    }
    return BRG_OK;
}

/* Marks what `inputs` asks for. */
static brg_status request(brg__task *task, brg_tensor *const *inputs,
                          size_t n_inputs)
{
    char text[BRG_TENSOR_TEXT_MAX];
    for (size_t i = 0; i < n_inputs; i++) {
        if (!inputs[i])
            return brg__error_pending("backward: input");
        brg__edge edge;
        brg_tensor *input = inputs[i];
        BRG_TRY(brg__tracer_bring(&input));
        BRG_TRY(brg__edge_of(input, &edge));
        if (!edge.node)
            return BRG_FAIL(BRG_ERR_STATE,
                            "backward: input %zu (%s) does not require grad", i,
                            brg__tensor_text(inputs[i], text));
        uint32_t visit = UINT32_MAX;
        if (brg__map_get(&task->index, edge.node, &visit))
            task->visits.at[visit].is_wanted = true;
        bool is_leaf = brg__node_is_accumulate(edge.node);
        brg_node_release(edge.node);
        if (!task->returns_grads && !is_leaf)
            return BRG_FAIL(BRG_ERR_STATE,
                            "backward: input %zu (%s) is not a leaf; use "
                            "brg_grad for it",
                            i, brg__tensor_text(inputs[i], text));
        if (task->returns_grads)
            BRG_TRY(brg__array_push(&task->requests,
                                    ((brg__request){visit, edge.slot, NULL})));
    }
    return BRG_OK;
}

/* ---- Run -------------------------------------------------------------------------------------- */

brg_status brg__task_run(brg__task *task)
{
    uint32_t visit;
    while (brg__ready_pop(task, &visit)) {
        BRG_TRY(brg__task_evaluate(task, visit));
        brg__progress_poll();
    }
    return BRG_OK;
}

static _Thread_local brg__runner *runner;
_Thread_local bool brg__runner_captures;

brg__runner *brg__runner_set(brg__runner *fresh)
{
    brg__runner *before = runner;
    runner = fresh;
    return before;
}

static brg_status run(brg__task *task)
{
    if (brg__runner_captures)
        return BRG_FAIL(BRG_ERR_STATE,
                        "Trying to run compiled autograd within another "
                        "compiled autograd call, this is not supported yet. (a "
                        "backward was started while a plan was captured)");
    if (!runner)
        return brg__task_run(task);
    brg__runner *mine = brg__runner_set(NULL);
    brg_status status = mine->run(mine, task);
    brg__runner_set(mine);
    return status;
}

static brg_status run_final_callbacks(brg__task *task)
{
    while (task->n_called < task->callbacks.n) { /* it may grow */
        brg__callback callback = task->callbacks.at[task->n_called++];
        brg_status status = callback.fn(callback.user);
        BRG_EXPLAIN(status, "a final callback");
        BRG_TRY(status);
    }
    return BRG_OK;
}

brg_status brg_queue_final_callback(brg_final_callback_fn fn, void *user)
{
    BRG_CHECK_ARG(fn, "brg_queue_final_callback: fn is NULL");
    BRG_TRY(brg__tracer_outside("brg_queue_final_callback"));
    if (!innermost)
        return BRG_FAIL(BRG_ERR_STATE, "Final callbacks can only be installed "
                                       "during backward pass.");
    if (innermost->is_cut)
        return BRG_FAIL(BRG_ERR_UNSUPPORTED,
                        "Final callbacks are only supported when Compiled "
                        "Autograd is enabled with fullgraph=True: this plan is "
                        "cut at a function or hook that it cannot hold");
    return brg__array_push(&innermost->callbacks,
                           ((brg__callback){fn, NULL, user, 0}));
}

/* The newest takes the place of the first that was queued alike, comes after it
 * and has not been called; the user's stay where they are. */
static void take_turn(brg__task *task)
{
    brg__callback *all = task->callbacks.at;
    size_t last = task->callbacks.n - 1;
    for (size_t i = last; i-- > task->n_called;) {
        if (!all[i].on_failure)
            continue;
        if (all[i].turn <= all[last].turn)
            break;
        const brg__callback later = all[i];
        all[i] = all[last];
        all[last] = later;
        last = i;
    }
}

brg_status brg__queue_at_end(brg_final_callback_fn fn,
                             void (*on_failure)(void *user), void *user,
                             int turn)
{
    brg__task *task = innermost;
    if (!task)
        return BRG_FAIL(BRG_ERR_STATE, "no backward is running");
    while (task->outer)
        task = task->outer;
    BRG_TRY(brg__array_push(&task->callbacks,
                            ((brg__callback){fn, on_failure, user, turn})));
    take_turn(task);
    return BRG_OK;
}

static void run_failure_callbacks(const brg__task *task)
{
    brg__error_record kept;
    brg__error_save(&kept);
    for (size_t i = 0; i < task->callbacks.n; i++)
        if (task->callbacks.at[i].on_failure)
            task->callbacks.at[i].on_failure(task->callbacks.at[i].user);
    brg__error_restore(&kept);
}

brg_status brg__task_leave(brg__task *task, brg_status status)
{
    if (status == BRG_OK)
        status = run_final_callbacks(task);
    if (status != BRG_OK)
        run_failure_callbacks(task);
    task->callbacks.n = task->n_called = 0;
    leave(task);
    return status;
}

static brg_status execute(brg__task *task, brg_tensor *const *outputs,
                          size_t n_outputs, const brg_backward_options *options,
                          brg_tensor *const *inputs, size_t n_inputs)
{
    for (size_t i = 0; i < n_outputs; i++)
        BRG_TRY(add_root(task, outputs[i]));
    BRG_TRY(collect(task));
    if (inputs) {
        BRG_TRY(request(task, inputs, n_inputs));
        BRG_TRY(mark_needed(task));
    }
    BRG_TRY(start(task, outputs, options->grad_outputs));
    BRG_TRY(run(task));
    return run_final_callbacks(task);
}

/* Runs the task inside a scope and a grad mode of its own. */
static brg_status backward(brg__task *task, brg_tensor *const *outputs,
                           size_t n_outputs,
                           const brg_backward_options *options,
                           brg_tensor *const *inputs, size_t n_inputs)
{
    task->is_retained = options->retain_graph || options->create_graph;
    task->is_selective = inputs != NULL;
    brg_scope *scope = brg_scope_begin();
    if (!scope)
        return BRG_ERR_NOMEM;
    bool mode = brg_grad_mode_set(options->create_graph);
    brg_autocast policy = brg__autocast_swap((brg_autocast){0});
    brg_status status =
        execute(task, outputs, n_outputs, options, inputs, n_inputs);
    if (status != BRG_OK)
        run_failure_callbacks(task);
    brg__autocast_swap(policy);
    brg_grad_mode_set(mode);
    brg_scope_end(scope);
    return status;
}

/* ---- Public -------------------------------------------------------------------------------------- */

brg_status brg_backward_with(brg_tensor *const *outputs, size_t n_outputs,
                             const brg_backward_options *options)
{
    brg_backward_options o = BRG_BACKWARD_OPTIONS_INIT;
    BRG_TRY(
        BRG_TAKE_OPTIONS(&o, options, "backward", BRG_BACKWARD_OPTIONS_INIT));
    BRG_CHECK_ARG(outputs && n_outputs > 0, "backward: no outputs");
    BRG_CHECK_ARG(!o.inputs || o.n_inputs > 0,
                  "backward: inputs is given but empty");
    brg__task *task;
    BRG_TRY(brg__tracer_flush());
    BRG_TRY(task_begin(&task));
    brg__tracer *tracer = brg__tracer_suspend();
    brg_status status =
        backward(task, outputs, n_outputs, &o, o.inputs, o.n_inputs);
    brg__tracer_resume(tracer);
    task_end(task);
    return status;
}

brg_status brg_backward(brg_tensor *loss)
{
    return brg_backward_with(&loss, 1, NULL);
}

brg_status brg_grad(brg_tensor **grads, brg_tensor *const *outputs,
                    size_t n_outputs, brg_tensor *const *inputs,
                    size_t n_inputs, const brg_backward_options *options)
{
    brg_backward_options o = BRG_BACKWARD_OPTIONS_INIT;
    BRG_TRY(
        BRG_TAKE_OPTIONS(&o, options, "brg_grad", BRG_BACKWARD_OPTIONS_INIT));
    BRG_CHECK_ARG(grads, "brg_grad: grads is NULL");
    BRG_CHECK_ARG(outputs && n_outputs > 0, "brg_grad: no outputs");
    BRG_CHECK_ARG(inputs && n_inputs > 0,
                  "brg_grad: grad requires non-empty inputs");
    memset(grads, 0, n_inputs * sizeof *grads);
    brg__task *task;
    BRG_TRY(brg__tracer_flush());
    BRG_TRY(task_begin(&task));
    task->returns_grads = true;
    brg__tracer *tracer = brg__tracer_suspend();
    brg_status status =
        backward(task, outputs, n_outputs, &o, inputs, n_inputs);
    brg__tracer_resume(tracer);
    for (size_t i = 0; status == BRG_OK && i < n_inputs; i++)
        if (task->requests.at[i].grad) {
            grads[i] = brg__scope_adopt(brg_retain(task->requests.at[i].grad));
            if (!grads[i])
                status = brg_error_code();
        }
    task_end(task);
    return status;
}
