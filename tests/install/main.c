/* SPDX-License-Identifier: Apache-2.0
 * A program outside the project, linked to an installed copy of the library. */
#include <stdio.h>
#include <string.h>

#include <brigade/runtime.h>
#include <brigade/types.h>
#include <brigade/version.h>

int main(void)
{
    printf("%s", brg_build_info());
    if (strcmp(brg_version(), BRG_VERSION) != 0) {
        fprintf(stderr, "headers of %s, library %s\n", BRG_VERSION,
                brg_version());
        return 1;
    }
    if (brg_dtype_size(BRG_DTYPE_F32) != 4)
        return 1;
    return 0;
}
