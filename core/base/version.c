/* SPDX-License-Identifier: Apache-2.0
 * The version of the running library, and what the build contains. The
 * BRG_INFO_* texts come from CMakeLists.txt beside this file. */
#include <brigade/runtime.h>
#include <brigade/version.h>

const char *brg_version(void)
{
    return BRG_VERSION;
}

const char *brg_build_info(void)
{
    return "version=" BRG_VERSION "\n"
           "compiler=" BRG_INFO_COMPILER "\n"
           "build_type=" BRG_INFO_BUILD_TYPE "\n"
           "debug_level=" BRG_INFO_DEBUG "\n"
           "sanitizers=" BRG_INFO_SANITIZERS "\n"
           "components=" BRG_INFO_COMPONENTS "\n"
           "isa_levels=" BRG_INFO_ISA_LEVELS "\n";
}
