/* SPDX-License-Identifier: Apache-2.0
 * Monotonic time. The quick one counts the processor's ticks since a look at
 * the clock, which each thread repeats so soon that neither the error of the
 * rate nor an adjustment of the clock can show. */
#include "core/base/clock.h"

#include <stdbool.h>
#include <time.h>

uint64_t brg__clock_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

#if defined(__x86_64__)
#include <cpuid.h>
#include <stdatomic.h>
#include <x86intrin.h>

/* A look is off by half its width e: at most 0.5 us at 2 GHz. A rate from looks
 * RATE_NS apart adds 2 e LOOK_NS / RATE_NS; the first one, sooner, 0.2 us. */
#define LOOK_NS 200000   /* between looks at the clock */
#define FIRST_NS 1000000 /* before the first measurement of the rate */
#define RATE_NS 20000000 /* between measurements of the rate */
#define PAIR_TICKS 2000u /* longer between two reads: something came between */

typedef struct moment {
    uint64_t ticks;
    uint64_t ns;
} moment;

static _Thread_local struct {
    moment look;
    uint64_t n_ticks; /* it holds for so many; 0: for none */
    uint64_t rate;    /* ns a tick, times 2^32; 0: not known */
    moment base;      /* where the rate is measured from */
    uint64_t last_ns; /* given out */
} mine __attribute__((tls_model("initial-exec")));

/* Do ticks keep one rate, whatever the processor does? */
static bool ticks_are_even(void)
{
    static _Atomic int known; /* 1: no, 2: yes */
    int is_even = atomic_load_explicit(&known, memory_order_relaxed);
    if (is_even == 0) {
        unsigned a, b, c, d = 0;
        is_even = __get_cpuid(0x80000007u, &a, &b, &c, &d) && d & 1u << 8;
        atomic_store_explicit(&known, ++is_even, memory_order_relaxed);
    }
    return is_even == 2;
}

/* ns behind the last measurement, at `now`. */
static void learn_rate(const moment *now)
{
    uint64_t ns = now->ns - mine.base.ns, ticks = now->ticks - mine.base.ticks;
    bool is_exact = ns >= RATE_NS;
    if (mine.base.ticks == 0 || now->ticks <= mine.base.ticks) {
        mine.base = *now;
        mine.rate = 0;
    } else if (is_exact || (mine.rate == 0 && ns >= FIRST_NS)) {
        mine.rate = (uint64_t)((double)ns / (double)ticks * 0x1p32);
        if (is_exact)
            mine.base = *now;
    }
}

/* Not inlined: the other way is the short one. */
static __attribute__((noinline)) uint64_t look(void)
{
    moment now = {.ticks = __rdtsc(), .ns = brg__clock_ns()};
    uint64_t end = __rdtsc();
    mine.n_ticks = 0;
    if (now.ns < mine.last_ns)
        return mine.last_ns;
    mine.last_ns = now.ns;
    if (end - now.ticks > PAIR_TICKS || !ticks_are_even())
        return now.ns;
    now.ticks += (end - now.ticks) / 2;
    learn_rate(&now);
    mine.look = now;
    if (mine.rate > 0)
        mine.n_ticks = ((uint64_t)LOOK_NS << 32) / mine.rate;
    return now.ns;
}

uint64_t brg__clock_quick_ns(void)
{
    uint64_t gone = __rdtsc() - mine.look.ticks;
    if (gone >= mine.n_ticks)
        return look();
    uint64_t now = mine.look.ns + (gone * mine.rate >> 32);
    if (now > mine.last_ns)
        mine.last_ns = now;
    return mine.last_ns;
}
#else
uint64_t brg__clock_quick_ns(void)
{
    return brg__clock_ns();
}
#endif
