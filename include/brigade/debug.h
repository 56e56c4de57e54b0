/* SPDX-License-Identifier: Apache-2.0
 * Finding out what went wrong: anomaly mode, places of op calls, observers. */
#ifndef BRG_DEBUG_H
#define BRG_DEBUG_H

#include <brigade/status.h>
#include <brigade/types.h>

BRG_BEGIN_DECLS

/* ---- Anomaly mode ---------------------------------------------------------------
 * While on (for the calling thread), backward checks what every node gives and
 * fails with BRG_ERR_NAN at the first value that is not a number, naming the
 * op, which of its gradients it is, and the place of the op's call if the
 * caller compiled with BRG_TRACE_CALLS. A compiled backward (compile.h), of a
 * step compiled whole too, is checked at its two ends only. Returns the mode
 * before. */
BRG_API bool brg_anomaly_mode_set(bool is_on);
BRG_API bool brg_anomaly_mode(void);

/* ---- Places ------------------------------------------------------------------------
 * A file that defines BRG_TRACE_CALLS before it includes <brigade/brigade.h> (or
 * <brigade/places.h>) tells each op the file and line of its call. Without it
 * the calls cost nothing. Used by places.h; calls nest. */
BRG_API void brg_place_push(const char *file, int line);
BRG_API brg_tensor *brg_place_pop(brg_tensor *result);

/* ---- Observers -------------------------------------------------------------------
 * Told of each op of the thread after it ran, those of backward included, the
 * innermost observer first. Ops called by an observer are not observed. The
 * tensors are borrowed for the call. A failure makes the op fail. `user` must
 * live until the pop. BRG_ERR_STATE for one observer too many, and if there is
 * none to pop. */
typedef struct brg_observation {
    const brg_op *op;
    const char *name;
    brg_tensor *const *in; /* entries may be NULL */
    size_t n_in;
    brg_tensor *const *out;
    size_t n_out;
} brg_observation;

typedef brg_status (*brg_observer_fn)(const brg_observation *observation,
                                      void *user);

BRG_API BRG_NODISCARD brg_status brg_observer_push(brg_observer_fn fn,
                                                   void *user);
/* Ends the innermost one. */
BRG_API BRG_NODISCARD brg_status brg_observer_pop(void);

BRG_END_DECLS

#endif
