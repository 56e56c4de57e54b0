/* SPDX-License-Identifier: Apache-2.0
 * Reading of environment variables. */
#include "core/base/env.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>

#include <brigade/runtime.h>

#include "core/base/log.h"
#include "core/base/text.h"

static const brg_env_info rows[] = {
#define BRG_ENV(name, value, doc) {"BRG_" #name, value, doc},
#include "core/base/env.def"
#undef BRG_ENV
};

const brg_env_info *brg_env_at(size_t i)
{
    return i < BRG__N_ENV ? &rows[i] : NULL;
}

const char *brg__env_text(brg__env_name name)
{
    const char *text = getenv(rows[name].name);
    return text ? text : rows[name].default_value;
}

double brg__env_double(brg__env_name name)
{
    static _Atomic bool is_reported[BRG__N_ENV];
    const char *text = brg__env_text(name);
    double value;
    if (brg__text_number(text, &value))
        return value;
    if (!atomic_exchange(&is_reported[name], true))
        brg__log(BRG_LOG_WARN, "env", "%s=%s is not a number; using %s",
                 rows[name].name, text, rows[name].default_value);
    (void)brg__text_number(rows[name].default_value, &value);
    return value;
}

int64_t brg__env_int(brg__env_name name)
{
    double value = brg__env_double(name);
    if (value >= 0x1p63)
        return INT64_MAX;
    return value <= -0x1p63 ? INT64_MIN : (int64_t)value;
}
