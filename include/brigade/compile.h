/* SPDX-License-Identifier: Apache-2.0
 * Compiled backward: the backward pass captured once into a plan and replayed.
 *
 * Inside a scope every backward of the thread first collects what it is (the
 * graph, its ops, dtypes and hooks, no sizes, no addresses). The first time, the
 * plan is captured; from then on it runs, for all batch sizes. Hooks, custom
 * functions and reducers run at their places in it. Gradients are the eager
 * ones, bit for bit. A backward that no plan can serve (create_graph,
 * sparse gradients) runs eagerly and is counted. */
#ifndef BRG_COMPILE_H
#define BRG_COMPILE_H

#include <brigade/status.h>
#include <brigade/types.h>

BRG_BEGIN_DECLS

typedef struct brg_compile_options {
    size_t struct_size;
    /* A backward that cannot be compiled fails instead of running eagerly. */
    bool fullgraph;
} brg_compile_options;

#define BRG_COMPILE_OPTIONS_INIT                                               \
    {                                                                          \
        .struct_size = sizeof(brg_compile_options)                             \
    }

/* Scopes nest; each end gives back what its begin gave, innermost first, and
 * restores what was in force. *scope: the token to end it with. */
BRG_API BRG_NODISCARD brg_status
brg_compile_begin(int *scope, const brg_compile_options *options);
/* Eager inside, whatever is set around it or begun inside it. */
BRG_API BRG_NODISCARD brg_status brg_compile_disable_begin(int *scope);
/* Fails if a scope begun inside is still open: "Nested Compiled Autograd
 * Contexts must return before their parent context". */
BRG_API BRG_NODISCARD brg_status brg_compile_end(int scope);

/* True if a backward started now would be compiled. */
BRG_API bool brg_compile_is_on(void);

/* Drops the thread's plans, counters and scopes. Fails while a plan runs. */
BRG_API BRG_NODISCARD brg_status brg_compile_reset(void);

/* Of the calling thread, since its start or reset. */
typedef struct brg_compile_stats {
    uint64_t captures;        /* plans captured */
    uint64_t hits;            /* backwards that found their plan */
    uint64_t specialisations; /* times a plan was made concrete for sizes */
    uint64_t fallbacks;       /* backwards that ran eagerly instead */
} brg_compile_stats;

BRG_API void brg_compile_get_stats(brg_compile_stats *filled);

/* Why the last capture happened, or why the last backward fell back: one line;
 * borrowed until the thread's next backward. Never NULL. */
BRG_API const char *brg_compile_reason(void);

/* The text of plan number i (from 0, in order of capture), one node a line;
 * returns the length that all of it needs, 0 if there is no such plan. A new
 * plan is logged as well: its lines as information, the reason for debugging. */
BRG_API size_t brg_compile_print(size_t i, char *filled, size_t size);

BRG_END_DECLS

#endif
