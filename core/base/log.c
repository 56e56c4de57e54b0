/* SPDX-License-Identifier: Apache-2.0
 * The log sink and its level. */
#include "core/base/log.h"

#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>

static struct {
    pthread_mutex_t lock;
    brg_log_fn sink;
    void *user;
    _Atomic int level; /* -1: not yet read from the environment */
} logger = {.lock = PTHREAD_MUTEX_INITIALIZER, .level = -1};

brg_log_level brg_get_log_level(void)
{
    int level = atomic_load_explicit(&logger.level, memory_order_relaxed);
    if (level < 0) {
        /* Not through env.c: that one logs. */
        const char *text = getenv("BRG_LOG_LEVEL");
        level =
            text && *text >= '0' && *text <= '4' ? *text - '0' : BRG_LOG_WARN;
        atomic_store(&logger.level, level);
    }
    return (brg_log_level)level;
}

void brg_set_log_level(brg_log_level level)
{
    atomic_store(&logger.level, (int)level);
}

void brg_set_log_sink(brg_log_fn sink, void *user)
{
    pthread_mutex_lock(&logger.lock);
    logger.sink = sink;
    logger.user = user;
    pthread_mutex_unlock(&logger.lock);
}

/* A sink may call what logs: messages from inside it are dropped. */
static _Thread_local bool is_inside_sink;

void brg__log(brg_log_level level, const char *area, const char *format, ...)
{
    if (is_inside_sink || level > brg_get_log_level())
        return;
    char text[1024];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    pthread_mutex_lock(&logger.lock);
    is_inside_sink = true;
    if (logger.sink)
        logger.sink(level, area, text, logger.user);
    is_inside_sink = false;
    pthread_mutex_unlock(&logger.lock);
}
