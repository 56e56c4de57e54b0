/* SPDX-License-Identifier: Apache-2.0
 * Environment variables: the rows of env.def, read as BRG_<NAME>. */
#ifndef BRG_CORE_BASE_ENV_H
#define BRG_CORE_BASE_ENV_H

#include <stdint.h>

typedef enum brg__env_name {
#define BRG_ENV(name, value, doc) BRG__ENV_##name,
#include "core/base/env.def"
#undef BRG_ENV
    BRG__N_ENV
} brg__env_name;

/* The variable's text, or its default. Never NULL. */
const char *brg__env_text(brg__env_name name);

/* The same as a number; the default if it is not one (logged once
 * for each variable). */
int64_t brg__env_int(brg__env_name name);
double brg__env_double(brg__env_name name);

#endif
