/* SPDX-License-Identifier: Apache-2.0
 * The one place that names the thread library: POSIX threads. Mutexes and
 * conditions are used through pthread's own names, which are clear enough;
 * this header adds what they lack. */
#ifndef BRG_CORE_BASE_THREAD_H
#define BRG_CORE_BASE_THREAD_H

#include <pthread.h>
#include <stdatomic.h>

/* Tells the core that we spin. */
static inline void brg__cpu_relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

#endif
