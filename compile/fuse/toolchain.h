/* SPDX-License-Identifier: Apache-2.0
 * The system's C compiler: which one it is, and running it with a time limit. */
#ifndef BRG_COMPILE_FUSE_TOOLCHAIN_H
#define BRG_COMPILE_FUSE_TOOLCHAIN_H

#include <stdbool.h>

#include <brigade/status.h>

#define BRG__TOOLCHAIN_TEXT 512

/* What decides what comes out of a source besides the source: the compiler's
 * first words about itself, and the flags. False: there is none that works,
 * which has been logged, once for each name of a compiler. */
bool brg__toolchain_identity(char text[BRG__TOOLCHAIN_TEXT]);

/* Compiles the file `source` into the shared object `object`; what the
 * compiler says goes to the file `words`. Progress functions are polled while
 * it runs. Fails, with the first of those words, if it fails or takes longer
 * than BRG_COMPILE_TIMEOUT_S; it and all that it started are gone then. */
brg_status brg__toolchain_run(const char *source, const char *object,
                              const char *words);

#endif
