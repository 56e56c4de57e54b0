/* SPDX-License-Identifier: Apache-2.0
 * The choice of instruction set, made once. */
#include "core/ops/isa.h"

#include <stdatomic.h>
#include <string.h>

#include <brigade/runtime.h>

#include "core/base/env.h"
#include "core/base/log.h"

static const char *const names[] = {"base", "avx2", "avx512"};

static int best_level(void)
{
#if defined(BRG_HAVE_ISA_AVX512) && defined(BRG_HAVE_ISA_AVX2)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") &&
        __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl"))
        return BRG__ISA_AVX512;
    /* every processor with AVX2 has F16C, which not all compilers can ask */
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        return BRG__ISA_AVX2;
#endif
    return BRG__ISA_BASE;
}

static int choose_level(void)
{
    int best = best_level();
    const char *wanted = brg__env_text(BRG__ENV_ISA);
    if (wanted[0] == '\0')
        return best;
    for (int level = BRG__ISA_BASE; level <= BRG__ISA_AVX512; level++)
        if (strcmp(wanted, names[level]) == 0)
            return level < best ? level : best;
    brg__log(BRG_LOG_WARN, "ops", "BRG_ISA=%s is not base, avx2 or avx512",
             wanted);
    return best;
}

brg__isa_level brg__isa(void)
{
    static _Atomic int chosen = -1; /* several threads may choose: the same */
    int level = atomic_load_explicit(&chosen, memory_order_relaxed);
    if (level < 0) {
        level = choose_level();
        atomic_store_explicit(&chosen, level, memory_order_relaxed);
    }
    return (brg__isa_level)level;
}
