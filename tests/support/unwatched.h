/* SPDX-License-Identifier: Apache-2.0
 * What the thread sanitizer need not watch: a test's own arithmetic in memory
 * that no other thread sees. Watched, the references took more than half of the
 * time of whole test programs. Results are copied to where groups see them by
 * functions that are watched. */
#ifndef BRG_TESTS_SUPPORT_UNWATCHED_H
#define BRG_TESTS_SUPPORT_UNWATCHED_H

#define UNWATCHED __attribute__((no_sanitize("thread")))

#endif
