/* SPDX-License-Identifier: Apache-2.0
 * The published weights of GPT-2. */
#ifndef EXAMPLES_GPT_WEIGHTS_H
#define EXAMPLES_GPT_WEIGHTS_H

#include "model.h"

/* Fills all parameters from a safetensors file with the names of the published
 * checkpoint ("wte.weight", "h.0.attn.c_attn.weight" as (in, out), ..; with or
 * without "transformer." in front), of any float dtype. Rows that pad the
 * vocabulary become zero. */
BRG_NODISCARD brg_status weights_load(const gpt *m, const char *path);

#endif
