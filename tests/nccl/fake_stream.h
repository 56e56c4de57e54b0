/* SPDX-License-Identifier: Apache-2.0
 * A stream: a thread that runs what is queued, one after the other. */
#ifndef BRG_TESTS_NCCL_FAKE_STREAM_H
#define BRG_TESTS_NCCL_FAKE_STREAM_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define FAKE_MAX_NODES 2048

/* In a capture (fake_graph.h): the nodes that come before. */
typedef struct fake_place {
    unsigned long capture; /* its number; 0: none */
    uint64_t before[FAKE_MAX_NODES / 64];
} fake_place;

/* Its arguments lie behind it. */
typedef struct fake_op {
    struct fake_op *next;
    void (*run)(void *args);
} fake_op;

typedef struct fake_stream {
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    fake_op *first; /* not done yet */
    unsigned long n_queued, n_done;
    bool is_over;
    fake_place place;
} fake_stream;

/* `args` are copied. */
void fake_push(fake_stream *s, void (*run)(void *), const void *args,
               size_t nbytes);

/* Until all streams have done what is queued now. */
void fake_await_all(void);

#endif
