/* SPDX-License-Identifier: Apache-2.0
 * The version of the running library, and what the build contains. */
#include <brigade/runtime.h>
#include <brigade/version.h>

const char *brg_version(void)
{
    return BRG_VERSION;
}
