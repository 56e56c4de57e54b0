/* SPDX-License-Identifier: Apache-2.0
 * Numbers of the host in steps that are launched again: see
 * relaunch_numbers.h. */
#include "compile/relaunch_numbers.h"

#include <string.h>

#include "core/base/error.h"
#include "core/ops/op.h"
#include "core/ops/random.h"
#include "core/tensor/device.h"

#define N_DRAWN 2 /* words: the seed, and the first counter */
#define WORD sizeof(uintptr_t)
_Static_assert(WORD == 8, "a word holds any element");

bool brg__is_number(const brg_tensor *t)
{
    return t && t->storage && t->ndim == 0 && t->device.type == BRG_DEVICE_CPU;
}

/* ---- Who reads them -------------------------------------------------------------- */

/* What the plan knows on the host: of values, whether they come from there. */
static bool is_given_there(const brg__ir_value *v, brg_tensor *const *inputs)
{
    return brg__is_number(v->source == BRG__IR_FROM_INPUT   ? inputs[v->index]
                          : v->source == BRG__IR_FROM_CONST ? v->constant
                                                            : NULL);
}

static bool moves_it(const brg__ir_node *node, brg_device device)
{
    return node->kind == BRG__IR_OP && node->op == &brg__op_to_device &&
           node->attrs.i[0] == device.type && node->attrs.i[1] == device.index;
}

static bool may_read(const brg__ir_node *node)
{
    return node->kind == BRG__IR_OP || node->kind == BRG__IR_ADD ||
           node->kind == BRG__IR_FUSED ||
           (node->kind == BRG__IR_EFFECT && node->effect->target);
}

const char *brg__numbers_check(const brg__segment *s, brg_tensor *const *inputs,
                               brg_device device)
{
    const brg__ir *ir = &s->captured.forward;
    const char *why = NULL;
    bool *is_host = brg__mem_alloc_array(ir->values.n + 1, 1, "numbers");
    if (!is_host)
        return brg_error_message();
    for (size_t id = 0; id < ir->values.n; id++)
        is_host[id] = is_given_there(&ir->values.at[id], inputs);
    for (size_t n = 0; n < ir->nodes.n && !why; n++) {
        const brg__ir_node *node = &ir->nodes.at[n];
        bool reads = false;
        for (int i = 0; i < node->n_in; i++) {
            const int id = brg__ir_in(ir, node)[i];
            reads |= id != BRG__IR_NONE && is_host[id];
        }
        if (reads && !may_read(node))
            why = "a number on the host that is no op's";
        for (int j = 0; j < node->n_out; j++)
            is_host[node->first_out + j] = reads && !moves_it(node, device);
    }
    brg__mem_free(is_host);
    return why;
}

/* ---- Their places ------------------------------------------------------------------ */

static brg_status add_number(brg__relaunch_numbers *n,
                             const brg_tensor *constant, size_t input)
{
    const brg__relaunch_number number = {.constant = constant, .input = input};
    return brg__array_push(&n->list, number);
}

static brg_status find_numbers(brg__relaunch_numbers *n, const brg__segment *s,
                               brg_tensor *const *inputs, size_t n_inputs)
{
    const brg__ir *ir = &s->captured.forward;
    for (size_t i = 0; i < n_inputs; i++)
        if (brg__is_number(inputs[i]))
            BRG_TRY(add_number(n, NULL, i));
    for (size_t id = 0; id < ir->values.n; id++)
        if (brg__is_number(ir->values.at[id].constant))
            BRG_TRY(add_number(n, ir->values.at[id].constant, 0));
    for (size_t k = 0; k < ir->nodes.n; k++)
        if (ir->nodes.at[k].is_drawing)
            n->n_counters += brg__random_counters(ir->nodes.at[k].n_drawn);
    return BRG_OK;
}

/* A word of the block, as the tensor that it stands for. */
static brg_status make_place(const brg__relaunch_numbers *n, brg_tensor **out,
                             const brg_tensor *like, size_t word)
{
    brg__layout layout = brg__layout_row_major(like);
    layout.device = n->there->device;
    layout.offset = (int64_t)(word * WORD / brg_dtype_size(layout.dtype));
    return brg__tensor_new_view(out, &layout, n->there->storage);
}

brg_status brg__numbers_init(brg__relaunch_numbers *n, const brg__segment *s,
                             brg_tensor *const *inputs, size_t n_inputs,
                             brg_device device)
{
    BRG_TRY(find_numbers(n, s, inputs, n_inputs));
    if (n->list.n == 0 && n->n_counters == 0)
        return BRG_OK;
    const size_t n_words = N_DRAWN + n->list.n;
    for (size_t k = 0; k < n_words; k++) {
        BRG_TRY(brg__array_push(&n->now, (uintptr_t)0));
        BRG_TRY(brg__array_push(&n->sent, (uintptr_t)0));
    }
    const brg__layout layout = {.dtype = BRG_DTYPE_I64,
                                .device = device,
                                .ndim = 1,
                                .shape = {(int64_t)n_words},
                                .stride = {1}};
    BRG_TRY(brg__tensor_new(&n->there, &layout));
    for (size_t k = 0; k < n->list.n; k++) {
        brg__relaunch_number *number = &n->list.at[k];
        BRG_TRY(make_place(n, &number->place,
                           number->constant ? number->constant
                                            : inputs[number->input],
                           N_DRAWN + k));
    }
    return BRG_OK;
}

void brg__numbers_deinit(brg__relaunch_numbers *n)
{
    for (size_t k = 0; k < n->list.n; k++)
        brg_release(n->list.at[k].place);
    brg_release(n->there);
    brg__array_deinit(&n->list);
    brg__array_deinit(&n->now);
    brg__array_deinit(&n->sent);
    *n = (brg__relaunch_numbers){0};
}

brg_tensor *brg__numbers_place(const brg__relaunch_numbers *n, size_t input)
{
    for (size_t k = 0; k < n->list.n; k++)
        if (!n->list.at[k].constant && n->list.at[k].input == input)
            return n->list.at[k].place;
    return NULL;
}

/* ---- Each call ----------------------------------------------------------------------- */

brg_status brg__numbers_bring(brg__relaunch_numbers *n,
                              brg_tensor *const *inputs)
{
    if (!n->there)
        return BRG_OK;
    if (n->n_counters > 0) {
        const brg_random_state drawn = brg__random_take(n->n_counters);
        n->now.at[0] = (uintptr_t)drawn.seed;
        n->now.at[1] = (uintptr_t)drawn.offset;
    }
    for (size_t k = 0; k < n->list.n; k++) {
        const brg__relaunch_number *number = &n->list.at[k];
        const brg_tensor *t =
            number->constant ? number->constant : inputs[number->input];
        memcpy(&n->now.at[N_DRAWN + k], brg__tensor_ptr(t),
               brg_tensor_nbytes(t));
    }
    const size_t nbytes = n->now.n * WORD;
    if (n->is_sent && memcmp(n->now.at, n->sent.at, nbytes) == 0)
        return BRG_OK;
    BRG_TRY(brg__device_copy(n->there->device, brg__tensor_ptr(n->there),
                             BRG_CPU, n->now.at, nbytes));
    memcpy(n->sent.at, n->now.at, nbytes);
    n->is_sent = true;
    return BRG_OK;
}

static void swap_constants(const brg__relaunch_numbers *n, brg__exec *exec,
                           bool enters)
{
    for (size_t k = 0; k < n->list.n; k++) {
        const brg__relaunch_number *number = &n->list.at[k];
        brg_tensor *real = (brg_tensor *)(uintptr_t)number->constant;
        const brg_tensor *from = enters ? real : number->place;
        for (size_t i = 0; real && i < exec->n_roots; i++)
            if (exec->roots[i].kind == BRG__ROOT_CONST &&
                exec->roots[i].constant == from)
                exec->roots[i].constant = enters ? number->place : real;
    }
}

/* All draws of a step are counters in a row. */
static void place_draws(const brg__relaunch_numbers *n, brg__segment *s)
{
    const brg__ir *ir = &s->captured.forward;
    int64_t at = 0;
    for (size_t k = 0; k < ir->nodes.n; k++) {
        const brg__ir_node *node = &ir->nodes.at[k];
        if (!node->is_drawing)
            continue;
        brg_attrs *attrs = &s->draws[node->draw - 1];
        *attrs = node->attrs;
        attrs->i[0] = 0;
        attrs->i[1] = at;
        attrs->i[2] = (int64_t)(uintptr_t)brg__tensor_ptr(n->there);
        at += (int64_t)brg__random_counters(node->n_drawn);
    }
}

void brg__numbers_enter(const brg__relaunch_numbers *n, brg__segment *s)
{
    swap_constants(n, s->forward, true);
    s->io.is_drawn = n->n_counters > 0;
    if (s->io.is_drawn)
        place_draws(n, s);
}

void brg__numbers_leave(const brg__relaunch_numbers *n, brg__segment *s)
{
    swap_constants(n, s->forward, false);
    s->io.is_drawn = false;
}
