/* SPDX-License-Identifier: Apache-2.0
 * Text written by a trained model, one byte after the other. */
#ifndef EXAMPLES_GPT_SAMPLE_H
#define EXAMPLES_GPT_SAMPLE_H

#include "model.h"

/* Prints n bytes that follow `prompt`. Temperature 0: always the likeliest
 * byte. */
BRG_NODISCARD brg_status sample_print(const gpt *m, const char *prompt,
                                      int64_t n, double temperature,
                                      uint64_t seed);

#endif
