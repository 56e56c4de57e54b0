/* SPDX-License-Identifier: Apache-2.0
 * Status codes and the calling thread's record of its last error. */
#ifndef BRG_STATUS_H
#define BRG_STATUS_H

#include <brigade/export.h>

BRG_BEGIN_DECLS

/* X(NAME, value, text). A published value never changes its meaning. */
#define BRG_STATUS_MAP(X)                                                      \
    X(OK, 0, "success")                                                        \
    X(ERR_NOMEM, -1, "out of memory")                                          \
    X(ERR_ARG, -2, "invalid argument")                                         \
    X(ERR_SHAPE, -3, "shapes do not fit")                                      \
    X(ERR_DTYPE, -4, "wrong dtype")                                            \
    X(ERR_DEVICE, -5, "wrong device")                                          \
    X(ERR_STATE, -6, "not allowed in this state")                              \
    X(ERR_UNSUPPORTED, -7, "not supported")                                    \
    X(ERR_NOT_FOUND, -8, "not found")                                          \
    X(ERR_IO, -9, "input or output failed")                                    \
    X(ERR_FORMAT, -10, "malformed data")                                       \
    X(ERR_COMM, -11, "communication failed")                                   \
    X(ERR_MISMATCH, -12, "ranks disagree")                                     \
    X(ERR_TIMEOUT, -13, "timed out")                                           \
    X(ERR_PEER, -14, "a peer rank failed or left")                             \
    X(ERR_MODIFIED, -15, "a saved tensor was modified")                        \
    X(ERR_NAN, -16, "not a number")                                            \
    X(ERR_CALLBACK, -17, "a user callback failed")                             \
    X(ERR_ABI, -18, "binary interface mismatch")                               \
    X(ERR_INTERNAL, -19, "internal error")

typedef enum brg_status {
#define BRG_STATUS_ENUM(name, value, text) BRG_##name = value,
    BRG_STATUS_MAP(BRG_STATUS_ENUM)
#undef BRG_STATUS_ENUM
} brg_status;

/* The code's name ("BRG_ERR_SHAPE") and its text. Never NULL; static. */
BRG_API const char *brg_status_name(brg_status status);
BRG_API const char *brg_status_text(brg_status status);

/* The calling thread's last error: read it only after a call has failed; a
 * call that succeeds leaves it as it was. `message` is one line that names
 * what was wrong, what was expected and where; borrowed, valid until the
 * thread's next failing call. `file`:`line` is the place of detection. */
BRG_API brg_status brg_error_code(void);
BRG_API const char *brg_error_message(void);
BRG_API const char *brg_error_file(void);
BRG_API int brg_error_line(void);
BRG_API void brg_error_clear(void);

/* For callbacks and user ops: record an error the way the library does and
 * return its code. A callback that returns an error and records none gets a
 * message that names it. No C++ exception and no longjmp may leave a callback:
 * there is C between it and your code (docs/errors.md). */
BRG_API brg_status brg_error_set(brg_status code, const char *file, int line,
                                 const char *format, ...) BRG_PRINTF(4, 5);

/* Passes a failure up to the caller. */
#define BRG_TRY(expr)                                                          \
    do {                                                                       \
        brg_status brg_try_status_ = (expr);                                   \
        if (brg_try_status_ != BRG_OK)                                         \
            return brg_try_status_;                                            \
    } while (0)

/* As BRG_TRY, through the function's one cleanup label. Needs a variable
 * `brg_status status` in the function. */
#define BRG_TRY_GOTO(expr, label)                                              \
    do {                                                                       \
        status = (expr);                                                       \
        if (status != BRG_OK)                                                  \
            goto label;                                                        \
    } while (0)

BRG_END_DECLS

#endif
