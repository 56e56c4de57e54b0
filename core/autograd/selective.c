/* SPDX-License-Identifier: Apache-2.0
 * Selective recomputation: the emitter of a stretch with a policy. The first
 * time it keeps the outputs of the ops that the policy names; the second time
 * it hands them back instead of running the op. */
#include "core/autograd/recompute.h"
#include "core/base/error.h"

static bool is_kept(const brg__selective *s, const brg_op *op)
{
    return s->frame->options.policy(op, s->frame->user) == BRG_RECOMPUTE_SAVE;
}

static brg_status keep(brg__selective *s, const brg_op_call *call)
{
    for (int j = 0; j < call->n_out; j++) {
        brg_tensor *alias;
        BRG_TRY(brg__tensor_new_alias(&alias, call->out[j]));
        if (brg__array_push(&s->frame->kept, alias) != BRG_OK) {
            brg_release(alias);
            return BRG_ERR_NOMEM;
        }
    }
    return BRG_OK;
}

static brg_status hand_back(brg__selective *s, brg_op_call *call)
{
    for (int j = 0; j < call->n_out; j++) {
        if (s->n_replayed == s->frame->kept.n)
            return BRG_FAIL(BRG_ERR_MISMATCH,
                            "%s: the stretch runs other ops than during the "
                            "forward pass",
                            call->op->name);
        call->out[j] = brg_detach(s->frame->kept.at[s->n_replayed++]);
        if (!call->out[j])
            return brg_error_code();
    }
    return BRG_OK;
}

static brg_status emit_selective(brg__emitter *self, brg_op_call *call)
{
    brg__selective *s = (brg__selective *)self;
    bool wants = is_kept(s, call->op);
    if (wants && s->is_replaying)
        return hand_back(s, call);
    BRG_TRY(s->inner->emit(s->inner, call));
    return wants ? keep(s, call) : BRG_OK;
}

void brg__selective_begin(brg__selective *s, brg__frame *frame,
                          bool is_replaying)
{
    *s = (brg__selective){.base.emit = emit_selective,
                          .inner = brg__emitter_get(),
                          .frame = frame,
                          .is_replaying = is_replaying};
    brg__emitter_set(&s->base);
}

void brg__selective_end(brg__selective *s)
{
    brg__emitter_set(s->inner);
}
