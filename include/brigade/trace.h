/* SPDX-License-Identifier: Apache-2.0
 * The trace: what each rank did last, always on. See docs/tracing.md. */
#ifndef BRG_TRACE_H
#define BRG_TRACE_H

#include <brigade/status.h>
#include <brigade/types.h>

BRG_BEGIN_DECLS

/* Every rank keeps its newest records in a ring: one for the process, and one
 * for each rank of a simulated world, whose calls from the rank's thread mean
 * that one. Records may come from any thread; the functions here may be called
 * from any thread unless they say otherwise. */

/* ---- Records --------------------------------------------------------------- */

/* X(NAME, value, text). */
#define BRG_TRACE_KIND_MAP(X)                                                  \
    X(HOOK, 1, "hook")         /* a gradient is complete, see value */         \
    X(COPY, 2, "copy")         /* it is in its bucket, if it was not before */ \
    X(START, 3, "start")       /* a collective set out */                      \
    X(PROGRESS, 4, "progress") /* it came to a brg_trace_stage */              \
    X(COMPLETE, 5, "complete") /* this rank knows that it is over */           \
    X(WAIT, 6, "wait")         /* this rank begins to wait for it */           \
    X(WAKE, 7, "wake")         /* and has waited, span_ns long */              \
    X(BEGIN, 8, "begin")       /* a span of the user's; text */                \
    X(END, 9, "end")           /* its end; text */                             \
    X(MARK, 10, "mark")        /* a moment of the user's; text */              \
    X(FAIL, 11, "fail")        /* the group has failed; value: the status */

typedef enum brg_trace_kind {
#define BRG_TRACE_ENUM(name, value, text) BRG_TRACE_##name = value,
    BRG_TRACE_KIND_MAP(BRG_TRACE_ENUM)
#undef BRG_TRACE_ENUM
} brg_trace_kind;

BRG_API const char *brg_trace_kind_name(brg_trace_kind kind);

/* What a PROGRESS record says, in `value`. */
typedef enum brg_trace_stage {
    BRG_TRACE_ARRIVED = 1, /* this rank's call, later than it was started:
                              a delay of the simulated world */
    BRG_TRACE_MET = 2,     /* the ranks that this one can see have come */
    BRG_TRACE_SHARED = 3   /* this rank's part is done */
} brg_trace_stage;

#define BRG_TRACE_TEXT_MAX 40

/* 64 bytes; files hold it as it is here, in the byte order of the machine. */
typedef struct brg_trace_record {
    uint64_t time_ns; /* monotonic; of a simulated rank with time: its own */
    uint64_t number;  /* of this ring's records, from 1; 0: no record */
    uint8_t kind;     /* brg_trace_kind */
    uint8_t coll;     /* brg_coll, of collectives */
    uint8_t group;    /* this process's groups, in the order of their making */
    uint8_t reducer;  /* of that group, from 1; 0: none */
    int16_t bucket;   /* -1: none, or more than fit */
    uint16_t thread;  /* of this process, in the order of their records */
    union {
        struct {
            uint64_t seq;    /* of a collective, as in messages */
            uint64_t nbytes; /* sent, copied */
            uint64_t span_ns;
            int32_t param; /* of the reducer; -1: none */
            int32_t peer;  /* of send and recv, root; -1: none */
            int64_t value; /* of a hook, 1: in its bucket, no copy follows */
        } call;
        char text[BRG_TRACE_TEXT_MAX]; /* cut to fit, zero at the end */
    } u;
} brg_trace_record;

/* ---- Switching ------------------------------------------------------------- */

/* On from the beginning, unless BRG_TRACE is 0. For all ranks in the
 * process. */
BRG_API void brg_trace_set_enabled(bool is_enabled);
BRG_API bool brg_trace_is_enabled(void);

/* Room for the newest n records of this process, rounded up to a power of two;
 * what was recorded is forgotten. From the beginning it is BRG_TRACE_RECORDS.
 * Up to 16384 need no memory of the allocator; more do until the next call
 * (0: as at the beginning). No other thread may record meanwhile. */
BRG_API BRG_NODISCARD brg_status brg_trace_set_size(size_t n_records);

/* ---- Marks of the user's ---------------------------------------------------- */

/* A span ("forward") from begin to end, on one thread, nested as blocks are;
 * a moment. `name` is copied. NULL is allowed: nothing. */
BRG_API void brg_trace_begin(const char *name);
BRG_API void brg_trace_end(const char *name);
BRG_API void brg_trace_mark(const char *name);

/* The newest records of the calling rank, at most n, oldest first; returns how
 * many. */
BRG_API size_t brg_trace_copy(brg_trace_record *filled, size_t n);

/* ---- Files ------------------------------------------------------------------- */

/* Where dumps go, as rank<r>.trace (BRG_TRACE_FOLDER says it as well; empty:
 * nowhere). From then on a group that fails, at a time-out for instance, writes
 * the rank's records before the failing call returns. The folder must exist.
 * NULL: none. Not beside other calls. */
BRG_API BRG_NODISCARD brg_status brg_trace_set_folder(const char *folder);

/* Writes the calling rank's records, to `path` or (NULL) to the folder, under
 * a temporary name that is renamed. */
BRG_API BRG_NODISCARD brg_status brg_trace_dump(const char *path);

/* Installs a handler (replacing what was there) that dumps the process's
 * records to the folder whenever the signal comes, wherever the program is;
 * BRG_TRACE_SIGNAL does so as well. The library installs none by itself. */
BRG_API BRG_NODISCARD brg_status brg_trace_on_signal(int signal_number);

typedef enum brg_trace_reason {
    BRG_TRACE_ASKED = 0,
    BRG_TRACE_SIGNALLED = 1,
    BRG_TRACE_FAILED = 2
} brg_trace_reason;

/* A file: this, n_records records, n_text bytes of lines. A line is words with
 * tabs between them:
 *
 *     group <group> <backend> <rank> <world size>
 *     param <group> <reducer> <index> <name>
 *     error <message> */
typedef struct brg_trace_header {
    char magic[8]; /* "BRGTRACE" */
    uint32_t version;
    uint32_t record_size;
    uint64_t n_records; /* some may have number 0 */
    uint64_t n_lost;    /* older ones, overwritten */
    uint64_t n_text;
    uint64_t time_ns; /* of writing, by the clock of the records */
    int64_t wall_ns;  /* the same moment since 1970 */
    uint64_t clock;   /* equal: the same clock (a boot of a machine) */
    int32_t rank;     /* in the first group of the process; -1: none yet */
    int32_t world_size;
    int32_t pid;
    int32_t reason; /* brg_trace_reason */
} brg_trace_header;

#define BRG_TRACE_VERSION 1

/* A file read back. One thread at a time; immutable. */
typedef struct brg_trace brg_trace;

/* *out: owned. BRG_ERR_FORMAT if it is no such file. */
BRG_API BRG_NODISCARD brg_status brg_trace_load(brg_trace **out,
                                                const char *path);
BRG_API void brg_trace_free(brg_trace *trace);

BRG_API const brg_trace_header *brg_trace_get_header(const brg_trace *trace);
/* Valid ones, oldest first; borrowed. */
BRG_API const brg_trace_record *brg_trace_records(const brg_trace *trace,
                                                  size_t *n);
/* The name of a parameter, the text of the error line; borrowed, NULL if the
 * file does not say. */
BRG_API const char *brg_trace_param_name(const brg_trace *trace, int group,
                                         int reducer, int param);
BRG_API const char *brg_trace_error(const brg_trace *trace);

/* What to add to each trace's times so that they fit those of the first. Ranks
 * of one clock need nothing. Between clocks, every collective that no rank can
 * leave before all have come bounds the difference from both sides; the middle
 * of what remains is taken. Without a common collective: the time of day. */
BRG_API BRG_NODISCARD brg_status brg_trace_align(brg_trace *const *traces,
                                                 size_t n, int64_t *filled);

BRG_END_DECLS

#endif
